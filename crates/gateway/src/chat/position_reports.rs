//! Reports positions to the host; see [`super::positions`].

use super::client::Subscription;
use super::state::Chat;
use crate::output::{Output, PositionKey};
use crate::socketio::SocketIoServer;
use roomcast_proto::id::RoomName;
use roomcast_proto::time::Millis;
use std::collections::HashSet;

/// Delay after the last delivery until the positions of rooms are stored. They are
/// needed only after hibernation, which follows 10 s without events. So a busy gateway
/// never writes them.
const STORE_DELAY: Millis = 300;

impl Chat {
    /// Records that the clients of a room have received its events up to `at`.
    pub(super) fn advance_position(&mut self, room: &RoomName, at: u64, now: Millis) {
        if let Some(link) = self.rooms.get_mut(room)
            && at > link.delivered
        {
            link.delivered = at;
            link.is_unsaved = true;
            self.positions.store_at = Some(now + STORE_DELAY);
        }
    }

    /// Stores the positions of rooms if that is due.
    pub(super) fn store_positions(&mut self, server: &mut SocketIoServer, now: Millis) {
        if self.positions.store_at.is_none_or(|at| at > now) {
            return;
        }
        self.positions.store_at = None;
        self.store_lagging(server);
        for (room, link) in &mut self.rooms {
            if std::mem::take(&mut link.is_unsaved) {
                link.is_stored = true;
                server.engine.push(Output::StorePosition {
                    key: PositionKey::Room(room.clone()),
                    at: Some(link.delivered),
                });
                if let Some(presence) = link.presence_to_store() {
                    server.engine.push(Output::StorePosition {
                        key: PositionKey::Presence(room.clone()),
                        at: Some(presence),
                    });
                }
            }
        }
    }

    /// Saves the positions of the clients that lag with their records. Rooms send them events
    /// all the time, so this happens only if a room is out of reach or the client is paused.
    fn store_lagging(&mut self, server: &mut SocketIoServer) {
        let mut changed = HashSet::new();
        for (room, client) in self.positions.lagging() {
            let key = self.clients.by_id(client);
            let subscription = key.and_then(|key| self.clients.subscription_mut(key, room));
            if let (Some(key), Some(subscription)) = (key, subscription) {
                let at = Some(subscription.delivered);
                if std::mem::replace(&mut subscription.lagging_at, at) != at {
                    changed.insert(key);
                }
            }
        }
        for key in changed {
            self.save(server, key);
        }
    }

    /// Reports the position of a room and those of its clients that lag.
    pub(super) fn report_positions(&mut self, server: &mut SocketIoServer, room: &RoomName) {
        let Some(link) = self.rooms.get_mut(room) else {
            return;
        };
        let delivered = link.delivered;
        if link.reported.replace(delivered) != Some(delivered) {
            let (key, at) = (PositionKey::Room(room.clone()), Some(delivered));
            server.engine.push(Output::TrackPosition { key, at });
        }
        let presence = link.presence_to_store();
        if link.reported_presence != presence {
            link.reported_presence = presence;
            link.is_unsaved = true;
            let (key, at) = (PositionKey::Presence(room.clone()), presence);
            server.engine.push(Output::TrackPosition { key, at });
            self.positions.store_at = Some(server.engine.now() + STORE_DELAY);
        }
        for client in self.positions.take_lagging(room) {
            // The stored position of the client may be outdated.
            let due = server.engine.now() + STORE_DELAY;
            self.positions.store_at = Some(due);
            let key = self.clients.by_id(&client);
            let subscription = key.and_then(|key| self.clients.subscription_mut(key, room));
            let is_behind = |one: &&mut Subscription| one.repairing || one.delivered < delivered;
            let (mut at, mut is_stored) = (None, false);
            match subscription {
                Some(one) if is_behind(&one) => at = Some(one.delivered),
                Some(one) => is_stored = one.lagging_at.take().is_some(),
                None => {}
            }
            if let Some(key) = key.filter(|_| is_stored) {
                self.save(server, key);
            }
            let key = PositionKey::Lagging {
                room: room.clone(),
                client: client.clone(),
            };
            server.engine.push(Output::TrackPosition { key, at });
            if at.is_some() {
                self.positions.mark_lagging(room, &client);
            }
        }
    }
}
