//! The positions up to which events were delivered. They must survive hibernation and
//! panics:
//!
//! - [`crate::Output::TrackPosition`] follows every delivery. Its position survives a
//!   panic.
//! - [`crate::Output::StorePosition`] follows a pause in the deliveries. Its position
//!   survives hibernation.

use roomcast_proto::id::{ConnectionId, RoomName};
use roomcast_proto::time::Millis;
use std::collections::{HashMap, HashSet};

/// The positions that have to be reported or stored.
#[derive(Default)]
pub(super) struct DeliveryPositions {
    /// The time at which the positions of rooms are stored.
    pub(super) store_at: Option<Millis>,
    /// For each room, the ids of the clients that lag behind the other clients of the
    /// room now or did so in the last report.
    lagging: HashMap<RoomName, HashSet<ConnectionId>>,
}

impl DeliveryPositions {
    /// Marks a client as lagging in a room until the next report.
    pub(super) fn mark_lagging(&mut self, room: &RoomName, client: &ConnectionId) {
        let lagging = self.lagging.entry(room.clone()).or_default();
        lagging.insert(client.clone());
    }

    /// Returns the clients that are marked in a room, and unmarks them.
    pub(super) fn take_lagging(&mut self, room: &RoomName) -> HashSet<ConnectionId> {
        self.lagging.remove(room).unwrap_or_default()
    }

    /// Returns the rooms and the ids of the clients that are marked.
    pub(super) fn lagging(&self) -> impl Iterator<Item = (&RoomName, &ConnectionId)> {
        let rooms = self.lagging.iter();
        rooms.flat_map(|(room, clients)| clients.iter().map(move |client| (room, client)))
    }

    /// Returns the time at which [`super::Chat::store_positions`] is due.
    pub(super) fn deadline(&self) -> Option<Millis> {
        self.store_at
    }
}
