//! Clients that are disconnected and whose rooms do not all know it.
//!
//! The record of such a client stays stored as if it were connected, so that the
//! rooms can be notified again after a panic.

use crate::output::Output;
use roomcast_proto::link;
use std::collections::HashMap;

/// A client that is disconnected.
pub(super) struct Departure {
    /// Number of its rooms that do not know it.
    pub(super) unacknowledged: usize,
    /// The key under which its record is saved.
    pub(super) storage_key: String,
    pub(super) user: String,
    /// Due once all rooms know it: [`Output::Save`] or [`Output::Forget`] for its
    /// record.
    pub(super) then: Output,
}

/// All such clients, by their connection ids.
#[derive(Default)]
pub(super) struct Departures(HashMap<String, Departure>);

impl Departures {
    pub(super) fn insert(&mut self, client: String, departure: Departure) {
        self.0.insert(client, departure);
    }

    /// A room knows that this subscription has ended. Returns the output that is due if
    /// it was the last room of the client.
    pub(super) fn acknowledge(&mut self, subscription: &str) -> Option<Output> {
        let client = link::client_of(subscription);
        let departure = self.0.get_mut(client)?;
        departure.unacknowledged = departure.unacknowledged.saturating_sub(1);
        if departure.unacknowledged > 0 {
            return None;
        }
        Some(self.0.remove(client)?.then)
    }

    /// Returns the outputs of the clients with this storage key and user, without
    /// waiting for their rooms.
    pub(super) fn take(&mut self, storage_key: &str, user: &str) -> Vec<Output> {
        let taken = self
            .0
            .extract_if(|_, one| one.storage_key == storage_key && one.user == user);
        taken.map(|(_, departure)| departure.then).collect()
    }
}
