//! The clients of a gateway, native and Socket.IO, and their rooms.
//!
//! The gateway decides which rooms a client may join, and keeps the positions up to which
//! it has delivered events. Everything else belongs to the rooms: commands are forwarded
//! to them as they are, and their deliveries are sent to the clients.
//!
//! | module | contents |
//! | --- | --- |
//! | `client`, `clients` | a client and its subscriptions; the table of clients |
//! | `lifecycle` | connect, accept, disconnect |
//! | `commands`, `tokens` | commands of clients; verified tokens and the rights that they grant |
//! | `subscriptions`, `delivery` | changes of subscriptions; deliveries of rooms |
//! | `recovery` | Socket.IO's connection state recovery |
//! | `record`, `restore` | the stored records of clients, and hibernation |
//! | `room_link`, `departures`, `retries`, `positions` | state of rooms, disconnected clients, failed requests, delivered events |

mod client;
mod clients;
mod commands;
mod delivery;
mod departures;
mod lifecycle;
mod positions;
mod record;
mod recovery;
mod restore;
mod retries;
mod room_link;
mod subscriptions;
mod tokens;

use crate::app::{App, IsRevoked, LastSeen, Stored};
use crate::engine::EngineServer;
use crate::event::EngineEvent;
use crate::ids::ClientId;
use crate::output::AuthRequest;
use client::{Client, Framing, Phase};
use clients::Clients;
use departures::Departures;
use lifecycle::{Connect, Resumable};
use positions::DeliveryPositions;
use retries::Retries;
use room_link::RoomLink;
use roomcast_proto::access::Identity;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::error::Result;
use roomcast_proto::link::{Command as ToRoom, Push, Pushed};
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::time::{Millis, sooner};
use std::collections::{HashMap, HashSet};

/// The application of a gateway: its clients and their rooms. See [`App`] for the calls.
#[derive(Default)]
pub struct Chat {
    clients: Clients,
    rooms: HashMap<String, RoomLink>,
    /// The clients in [`Phase::Recovering`].
    recovering: HashSet<ClientId>,
    departures: Departures,
    retries: Retries,
    positions: DeliveryPositions,
    /// No client and no retry is due before this time.
    next_deadline: Option<Millis>,
}

impl App for Chat {
    fn handle_event(&mut self, engine: &mut EngineServer, event: EngineEvent, now: Millis) {
        match event {
            EngineEvent::Opened { socket, id, info } => {
                self.native_opened(engine, socket, id, info, now);
            }
            EngineEvent::Frame { socket, frame } => {
                if let Some(key) = self.clients.by_socket(socket) {
                    self.handle_frame(engine, key, frame, now);
                }
            }
            EngineEvent::Closed { socket, code } => {
                if let Some(key) = self.clients.by_socket(socket) {
                    self.disconnected(engine, key, code, Resumable::No);
                }
            }
            EngineEvent::Connect {
                session,
                nsp,
                number,
                auth,
            } => {
                let connect = Connect {
                    session,
                    nsp,
                    number,
                    auth: &auth,
                };
                self.connect_requested(engine, connect, now);
            }
            EngineEvent::Event {
                session,
                nsp,
                ack,
                args,
                attachments,
            } => {
                if let Some(key) = self.clients.by_namespace(session, nsp) {
                    let is_binary = !attachments.is_empty();
                    self.handle_socketio_event(engine, key, ack, &args, is_binary, now);
                }
            }
            EngineEvent::Disconnected {
                session,
                nsp,
                by_client,
            } => {
                if let Some(key) = self.clients.by_namespace(session, nsp) {
                    let resumable = match by_client {
                        true => Resumable::No,
                        false => Resumable::Yes,
                    };
                    self.disconnected(engine, key, 1000, resumable);
                }
            }
            // Clients of bare Engine.IO are not supported.
            EngineEvent::Message { session, .. } => {
                engine.close_session(session, Disconnect::Malformed);
            }
        }
    }

    fn deadline(&self) -> Option<Millis> {
        [self.next_deadline, self.positions.deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    fn woken_by_alarm(&mut self, now: Millis) {
        // Frames before hibernation are forgotten, so only pings tell which clients are
        // alive. A gateway that a client has woken does not have to check that yet.
        self.schedule(now);
    }

    fn advance(&mut self, engine: &mut EngineServer, last_seen: LastSeen, now: Millis) {
        self.store_positions(engine, now);
        if self.next_deadline.is_none_or(|at| at > now) {
            return;
        }
        self.next_deadline = None;
        self.run_retries(engine, now);
        for key in self.clients.keys() {
            self.check_client(engine, key, last_seen, now);
        }
    }

    fn is_batching(&self, room: &str) -> bool {
        self.rooms.get(room).is_some_and(RoomLink::is_batching)
    }

    fn take_commands(&mut self, engine: &mut EngineServer, room: &str) -> Option<Vec<ToRoom>> {
        let link = self.rooms.get_mut(room)?;
        for subscription in link.take_departures() {
            if let Some(output) = self.departures.acknowledge(&subscription) {
                engine.push(output);
            }
        }
        let commands = link.take_commands();
        if commands.is_none() {
            self.forget_room(room);
        }
        commands
    }

    fn forward_failed(&mut self, engine: &mut EngineServer, room: &str, commands: Vec<ToRoom>) {
        self.request_failed(engine, room, commands);
    }

    fn handle_push(
        &mut self,
        engine: &mut EngineServer,
        push: Push,
        texts: &[&str],
        now: Millis,
    ) -> Pushed {
        self.deliver(engine, push, texts, now)
    }

    fn authenticated(
        &mut self,
        engine: &mut EngineServer,
        request: AuthRequest,
        identity: Result<Identity>,
        now: Millis,
    ) {
        self.token_verified(engine, request, identity, now);
    }

    fn close_revoked(&mut self, engine: &mut EngineServer, is_revoked: IsRevoked) {
        for key in self.clients.keys() {
            let client = self.clients.get(key);
            let revoked =
                client.filter(|client| is_revoked(&client.identity.user, &client.identity.token));
            if let Some(client) = revoked {
                engine.log(client.log_record(LogRecord::info("revoke")));
                self.close(engine, key, Disconnect::Revoked);
            }
        }
    }

    fn found(
        &mut self,
        engine: &mut EngineServer,
        client: ClientId,
        pid: &str,
        record: Option<String>,
        now: Millis,
    ) {
        self.record_found(engine, client, pid, record, now);
    }

    fn evict(&mut self, engine: &mut EngineServer, pid: &str, user: &str) {
        self.evict_client(engine, pid, user);
    }

    fn restore(&mut self, engine: &mut EngineServer, stored: Stored, now: Millis) {
        self.restore_clients(engine, stored, now);
    }
}

impl Chat {
    /// Takes a deadline into account.
    fn schedule(&mut self, at: Millis) {
        sooner(&mut self.next_deadline, at);
    }

    fn add(&mut self, client: Client) -> ClientId {
        self.schedule(client.identity.expires);
        self.clients.insert(client)
    }

    /// Closes the connection of a client if its token has expired or its keepalive has
    /// timed out, and fails a recovery that takes too long.
    fn check_client(
        &mut self,
        engine: &mut EngineServer,
        key: ClientId,
        last_seen: LastSeen,
        now: Millis,
    ) {
        let Some(client) = self.clients.get(key) else {
            return;
        };
        let expires = client.identity.expires;
        if expires <= now {
            return self.close(engine, key, Disconnect::Expired);
        }
        let mut due = expires;
        if let Phase::Recovering { deadline, .. } = client.phase {
            if deadline <= now {
                self.finish_recovery(engine, key, false, now);
            }
            due = due.min(deadline);
        }
        // Clients that never ping have not opted in to keepalive, so they do not time
        // out.
        if let Some(Client {
            framing: Framing::Native(socket),
            ..
        }) = self.clients.get(key)
            && let Some(pinged) = last_seen(*socket)
        {
            let last_activity = pinged.max(engine.last_frame_at(*socket));
            let timeout = last_activity + engine.config.limits.ghost_timeout;
            if timeout <= now {
                return self.close(engine, key, Disconnect::Ghost);
            }
            due = due.min(timeout);
        }
        self.schedule(due);
    }
}
