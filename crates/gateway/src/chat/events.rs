//! Handles the events of sockets, sessions and namespaces.

use super::client::Framing;
use super::lifecycle::{Connect, Resumable};
use super::room_link::RoomLink;
use super::state::Chat;
use crate::host::IsRevoked;
use crate::ids::SessionId;
use crate::socketio::{ConnectionEvent, DisconnectCause, SocketIoServer};
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::id::RoomName;
use roomcast_proto::link::Command as ToRoom;
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::time::Millis;

impl Chat {
    /// Handles an event of a socket, a session or a namespace.
    pub(crate) fn handle_event(
        &mut self,
        server: &mut SocketIoServer,
        event: ConnectionEvent,
        now: Millis,
    ) {
        match event {
            ConnectionEvent::Opened { socket, id, info } => {
                self.native_opened(server, socket, id, *info, now);
            }
            ConnectionEvent::Frame { socket, frame } => {
                if let Some(key) = self.clients.by_framing(&Framing::Native(socket)) {
                    self.handle_frame(server, key, frame, now);
                }
            }
            ConnectionEvent::Closed { socket, code, seen } => {
                if let Some(key) = self.clients.by_framing(&Framing::Native(socket)) {
                    self.disconnected(server, key, code, seen, Resumable::No);
                }
            }
            ConnectionEvent::Connect {
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
                self.connect_requested(server, connect, now);
            }
            ConnectionEvent::Event {
                session,
                nsp,
                ack,
                args,
                attachments,
            } => {
                if let Some(key) = self.clients.by_framing(&Framing::SocketIo { session, nsp }) {
                    let is_binary = !attachments.is_empty();
                    self.handle_socketio_event(server, key, ack, &args, is_binary, now);
                }
            }
            ConnectionEvent::Disconnected {
                session,
                nsp,
                cause,
            } => {
                if let Some(key) = self.clients.by_framing(&Framing::SocketIo { session, nsp }) {
                    let (seen, resumable) = match cause {
                        DisconnectCause::Packet => {
                            self.acknowledge_all(server, key);
                            (now, Resumable::No)
                        }
                        DisconnectCause::SessionEnded { seen } => (seen, Resumable::Yes),
                    };
                    self.disconnected(server, key, 1000, seen, resumable);
                }
            }
            ConnectionEvent::Unconnected { session, nsp } => {
                self.log_unconnected(server, session, nsp);
            }
            // Clients of bare Engine.IO are not supported.
            ConnectionEvent::Message { session, .. } => {
                server.engine.close_session(session, Disconnect::Malformed);
            }
        }
    }

    /// Logs that a client has sent a packet to a namespace that it is not connected to. Its
    /// session is closed.
    fn log_unconnected(&self, server: &mut SocketIoServer, session: SessionId, nsp: String) {
        let mut clients = self.clients.iter().map(|(_, client)| client);
        let client = clients.find(|client| {
            matches!(client.framing, Framing::SocketIo { session: of, .. } if of == session)
        });
        let record = LogRecord::reject("malformed")
            .with("code", Disconnect::Malformed.code())
            .with("namespace", nsp)
            .with("detail", "the client is not connected to the namespace");
        let record = match client {
            Some(client) => client.log_record(record),
            None => record,
        };
        server.engine.log(record);
    }

    /// See [`crate::Gateway::awaits_turn`].
    pub(crate) fn awaits_turn(&mut self, room: &RoomName) -> bool {
        self.rooms.get_mut(room).is_some_and(RoomLink::awaits_turn)
    }

    /// See [`crate::Gateway::take_commands`].
    pub(crate) fn take_commands(
        &mut self,
        server: &mut SocketIoServer,
        room: &RoomName,
    ) -> Option<Vec<ToRoom>> {
        let link = self.rooms.get_mut(room)?;
        for subscription in link.take_departures() {
            if let Some(output) = self.departures.acknowledge(&subscription) {
                server.engine.push(output);
            }
        }
        let commands = link.take_commands();
        if commands.is_none() {
            self.forget_room(server, room);
        }
        commands
    }

    /// Closes the connections whose token was revoked.
    pub(crate) fn close_revoked(&mut self, server: &mut SocketIoServer, is_revoked: IsRevoked<'_>) {
        for key in self.clients.keys() {
            let client = self.clients.get(key);
            let revoked =
                client.filter(|client| is_revoked(&client.identity.user, &client.identity.token));
            if let Some(client) = revoked {
                server
                    .engine
                    .log(client.log_record(LogRecord::info("revoke")));
                self.close(server, key, Disconnect::Revoked);
            }
        }
    }
}
