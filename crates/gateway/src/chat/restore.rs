//! Restores the clients after hibernation or a panic.

use super::client::{Client, Framing, SubscriptionState};
use super::lifecycle::Resumable;
use super::record::{ClientRecord, SessionRecord};
use super::state::Chat;
use crate::host::Stored;
use crate::ids::ClientId;
use crate::output::{Output, PositionKey};
use crate::socketio::SocketIoServer;
use roomcast_proto::link::UNKNOWN_PRESENCE;
use roomcast_proto::reader;
use roomcast_proto::time::Millis;
use std::collections::HashMap;
use std::rc::Rc;

impl Chat {
    /// Restores the clients from their records. A client whose connection is closed is
    /// disconnected from its rooms.
    pub(crate) fn restore_clients(
        &mut self,
        server: &mut SocketIoServer,
        stored: Stored,
        now: Millis,
    ) {
        for record in &stored.clients {
            if let Ok(record) = reader::from_str(record) {
                self.restore_client(server, record, &stored, now);
            }
        }
        for room in self.rooms.keys().cloned().collect::<Vec<_>>() {
            self.report_positions(server, &room);
        }
        self.forget_unused_positions(server, stored.positions);
        server.engine.close_unknown_sockets(|socket| {
            self.clients.by_framing(&Framing::Native(socket)).is_some()
        });
        self.schedule(now + server.engine.config.limits.ghost_timeout);
    }

    /// Deletes the positions of rooms without subscribers at the host.
    fn forget_unused_positions(
        &mut self,
        server: &mut SocketIoServer,
        positions: HashMap<PositionKey, u64>,
    ) {
        for key in positions.into_keys() {
            let (PositionKey::Room(room) | PositionKey::Presence(room)) = &key else {
                continue;
            };
            if let Some(link) = self.rooms.get_mut(room) {
                link.is_stored = true;
                continue;
            }
            let deleted = key.clone();
            server.engine.push(Output::TrackPosition { key, at: None });
            server.engine.push(Output::StorePosition {
                key: deleted,
                at: None,
            });
        }
    }

    fn restore_client(
        &mut self,
        server: &mut SocketIoServer,
        record: ClientRecord,
        stored: &Stored,
        now: Millis,
    ) {
        let FoundConnection { framing, is_open } = find_connection(server, &record);
        let is_socketio = record.session.is_some();
        let dialect = record.dialect();
        let identity = Rc::new(record.identity);
        let client = Client {
            dialect,
            status: record.status,
            subscriptions: record.subscriptions,
            version: record.version,
            tag: record.tag,
            sid: record.sid,
            pid: record.pid,
            ..Client::new(server, record.id, framing, identity.clone(), now)
        };
        server.set_identity(client.receiver(), identity);
        let key = self.add(client);
        self.restore_subscriptions(key, &stored.positions);
        self.leave_again(server, key);
        if !is_open {
            let resumable = match is_socketio {
                true => Resumable::Yes,
                false => Resumable::No,
            };
            let now = server.engine.now();
            return self.disconnected(server, key, 1006, now, resumable);
        }
        // Older versions did not apply refreshed tokens to rooms.
        self.leave_forbidden_rooms(server, key);
        self.repair_rooms(server, key, stored.panicked);
        if stored.panicked {
            self.join_personal_room(server, key, now);
        }
    }

    fn restore_subscriptions(&mut self, key: ClientId, positions: &HashMap<PositionKey, u64>) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        for subscription in &mut client.subscriptions {
            let room = &subscription.room;
            // While a client lacked changes, the stored version of the room is unknown.
            subscription.presence = None;
            subscription.is_fresh = false;
            if subscription.id.is_empty() {
                // Older versions used the id of the client in all its rooms.
                subscription.id.clone_from(&client.id);
            }
            let behind = positions.get(&PositionKey::Lagging {
                room: room.clone(),
                client: client.id.clone(),
            });
            let behind = behind.copied().or(subscription.lagging_at);
            subscription.delivered = match behind {
                Some(behind) => behind,
                None => {
                    let stored = positions
                        .get(&PositionKey::Room(room.clone()))
                        .copied()
                        .unwrap_or(0);
                    subscription.from.max(stored)
                }
            };
            if behind.is_some() {
                self.positions.mark_lagging(room, &client.id);
            }
            subscription.first = subscription.from;
            subscription.acknowledged = subscription.delivered;
            let link = self.rooms.entry(room.clone()).or_default();
            link.subscribers.push(key);
            link.presence = Some(
                positions
                    .get(&PositionKey::Presence(room.clone()))
                    .copied()
                    .unwrap_or(UNKNOWN_PRESENCE),
            );
            link.delivered = link.delivered.max(subscription.delivered);
            link.epoch.clone_from(&subscription.epoch);
        }
    }

    /// Sends `leaveRoom` again to the rooms that had not answered it. Nobody waits for the
    /// answers.
    fn leave_again(&mut self, server: &mut SocketIoServer, key: ClientId) {
        let Some(client) = self.clients.get(key) else {
            return;
        };
        let subscriptions = client.subscriptions.iter();
        let leaving = subscriptions.filter(|one| one.state == SubscriptionState::Leaving);
        for room in leaving.map(|one| one.room.clone()).collect::<Vec<_>>() {
            self.leave(server, key, &room, None);
            if let Some(client) = self.clients.get_mut(key) {
                let id = client.new_subscription_id(server);
                if let Some(subscription) = client.subscription_mut(&room) {
                    // After a panic, a delivery may be repeated that the client has received.
                    // With another id, the client receives only the end of the subscription.
                    subscription.id = id;
                    subscription.repairing = true;
                }
            }
        }
    }

    /// Repairs the subscriptions that were being repaired. After a panic, repairs all
    /// subscriptions, because the commands and deliveries in memory are lost. Asks the rooms
    /// for the events that the other subscriptions lack.
    fn repair_rooms(&mut self, server: &mut SocketIoServer, key: ClientId, panicked: bool) {
        let Some(client) = self.clients.get(key) else {
            return;
        };
        let subscriptions = client.subscriptions.iter();
        let missed = subscriptions.filter(|one| panicked || one.repairing);
        for room in missed.map(|one| one.room.clone()).collect::<Vec<_>>() {
            self.repair(server, key, &room);
        }
        let Some(client) = self.clients.get(key) else {
            return;
        };
        let subscriptions = client.subscriptions.iter();
        let lagging = subscriptions.filter(|one| one.lagging_at.is_some());
        for room in lagging.map(|one| one.room.clone()).collect::<Vec<_>>() {
            self.request_log(server, key, &room);
        }
    }
}

/// The connection of a restored client.
struct FoundConnection {
    /// A null key, which finds nothing, if the connection is closed. The client is then
    /// removed immediately.
    framing: Framing,
    is_open: bool,
}

/// Finds the connection of a client.
fn find_connection(server: &SocketIoServer, record: &ClientRecord) -> FoundConnection {
    match &record.session {
        None => {
            let socket = server.engine.native_socket(&record.id);
            FoundConnection {
                framing: Framing::Native(socket.unwrap_or_default()),
                is_open: socket.is_some(),
            }
        }
        Some(SessionRecord { sid, nsp }) => {
            let session = server.session_in_namespace(sid, nsp);
            FoundConnection {
                framing: Framing::SocketIo {
                    session: session.unwrap_or_default(),
                    nsp: nsp.clone(),
                },
                is_open: session.is_some(),
            }
        }
    }
}
