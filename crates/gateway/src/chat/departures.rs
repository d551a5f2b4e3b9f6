//! Disconnected clients with rooms that have not acknowledged the disconnect.
//!
//! The record of such a client stays stored as if it were connected, so that the
//! rooms can be notified again after a panic.

use crate::output::Output;
use roomcast_proto::id::{ConnectionId, UserId};
use roomcast_proto::link;
use std::collections::{HashMap, HashSet};

/// A client that is disconnected.
pub(super) struct Departure {
    /// The subscriptions whose end was not acknowledged by their rooms.
    pub(super) unacknowledged: HashSet<ConnectionId>,
    /// The key under which its record is saved.
    pub(super) storage_key: String,
    pub(super) user: UserId,
    /// The output that is due when all rooms have acknowledged: [`Output::Save`] or
    /// [`Output::Forget`] for the record.
    pub(super) then: Output,
}

/// All departures, by the connection ids of the clients.
#[derive(Default)]
pub(super) struct Departures(HashMap<ConnectionId, Departure>);

impl Departures {
    pub(super) fn insert(&mut self, client: ConnectionId, departure: Departure) {
        self.0.insert(client, departure);
    }

    /// Records that a room has acknowledged the end of this subscription. Returns the
    /// output that is due if no other room of the client is left.
    pub(super) fn acknowledge(&mut self, subscription: &ConnectionId) -> Option<Output> {
        let client = link::client_of(subscription);
        let departure = self.0.get_mut(client)?;
        departure.unacknowledged.remove(subscription);
        if !departure.unacknowledged.is_empty() {
            return None;
        }
        Some(self.0.remove(client)?.then)
    }

    /// Returns the outputs of the clients with this storage key and user, without
    /// waiting for their rooms.
    pub(super) fn take(&mut self, storage_key: &str, user: &UserId) -> Vec<Output> {
        let taken = self
            .0
            .extract_if(|_, one| one.storage_key == storage_key && one.user == *user);
        taken.map(|(_, departure)| departure.then).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earlier_subscription_to_the_same_room_does_not_count_as_acknowledged() {
        let mut departures = Departures::default();
        let departure = Departure {
            unacknowledged: [ConnectionId::trusted("c:2")].into(),
            storage_key: "c".to_owned(),
            user: UserId::trusted("alice"),
            then: Output::Forget { client: "c".into() },
        };
        departures.insert(ConnectionId::trusted("c"), departure);
        // The retry of a leave, from before the client joined the room again.
        assert!(
            departures
                .acknowledge(&ConnectionId::trusted("c:1"))
                .is_none()
        );
        assert!(
            departures
                .acknowledge(&ConnectionId::trusted("c:2"))
                .is_some()
        );
    }
}
