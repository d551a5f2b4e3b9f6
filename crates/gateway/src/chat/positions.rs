//! The positions up to which events were delivered, as far as they have to survive
//! hibernation and panics.
//!
//! - [`Output::TrackPosition`] follows every delivery. It survives a panic.
//! - [`Output::StorePosition`] follows a pause. It survives hibernation.

use super::Chat;
use crate::engine::EngineServer;
use crate::output::Output;
use roomcast_proto::time::Millis;
use std::collections::HashSet;

/// The pause after the last delivery before the positions of rooms are stored. They are
/// needed after hibernation, which follows 10 s of silence, so a busy gateway never
/// writes them.
const STORE_DELAY: Millis = 300;

/// Which positions have to be reported or stored.
#[derive(Default)]
pub(super) struct DeliveryPositions {
    /// The time at which the positions of rooms are stored.
    store_at: Option<Millis>,
    /// Rooms and the ids of clients that lag behind the other clients of the room, or
    /// did in the last report.
    lagging: HashSet<(String, String)>,
}

impl DeliveryPositions {
    /// Marks a client as lagging in a room until the next report.
    pub(super) fn mark_lagging(&mut self, room: &str, client: &str) {
        self.lagging.insert((room.to_owned(), client.to_owned()));
    }

    fn take_lagging(&mut self, room: &str) -> Vec<String> {
        let lagging = self.lagging.extract_if(|(of, _)| of == room);
        lagging.map(|(_, client)| client).collect()
    }

    /// Returns the time at which [`Chat::store_positions`] is due.
    pub(super) fn deadline(&self) -> Option<Millis> {
        self.store_at
    }
}

impl Chat {
    /// The clients of a room have received its events up to `at`.
    pub(super) fn advance_position(&mut self, room: &str, at: u64, now: Millis) {
        if let Some(link) = self.rooms.get_mut(room)
            && at > link.delivered
        {
            link.delivered = at;
            link.is_unsaved = true;
            self.positions.store_at = Some(now + STORE_DELAY);
        }
    }

    /// Stores the positions of rooms if that is due.
    pub(super) fn store_positions(&mut self, engine: &mut EngineServer, now: Millis) {
        if self.positions.store_at.is_none_or(|at| at > now) {
            return;
        }
        self.positions.store_at = None;
        for (room, link) in &mut self.rooms {
            if std::mem::take(&mut link.is_unsaved) {
                engine.push(Output::StorePosition {
                    room: room.clone(),
                    at: link.delivered,
                });
            }
        }
    }

    /// Reports the position of a room and those of its clients that lag.
    pub(super) fn report_positions(&mut self, engine: &mut EngineServer, room: &str) {
        let Some(link) = self.rooms.get_mut(room) else {
            return;
        };
        let delivered = link.delivered;
        if link.reported.replace(delivered) != Some(delivered) {
            let (key, at) = (room.to_owned(), Some(delivered));
            engine.push(Output::TrackPosition { key, at });
        }
        for client in self.positions.take_lagging(room) {
            let key = self.clients.by_id(&client);
            let subscription = key.and_then(|key| self.clients.subscription(key, room));
            let behind = subscription.filter(|one| one.repairing || one.delivered < delivered);
            let at = behind.map(|subscription| subscription.delivered);
            let key = lagging_key(room, &client);
            engine.push(Output::TrackPosition { key, at });
            if at.is_some() {
                self.positions.mark_lagging(room, &client);
            }
        }
    }
}

/// Returns the key of a lagging client in [`Output::TrackPosition`]. The names of rooms
/// contain no space.
pub(super) fn lagging_key(room: &str, client: &str) -> String {
    format!("{room} {client}")
}
