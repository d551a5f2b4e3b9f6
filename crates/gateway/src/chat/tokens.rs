//! Verified tokens, and the rights of clients by their newest token.

use super::client::{Framing, Subscription};
use super::commands::no_access;
use super::lifecycle::Connect;
use super::state::Chat;
use crate::ids::{ClientId, SessionId};
use crate::output::AuthRequest;
use crate::socketio::SocketIoServer;
use roomcast_proto::access::{Identity, Rights};
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::error::{Error, Result};
use roomcast_proto::event;
use roomcast_proto::framing;
use roomcast_proto::id::RoomName;
use roomcast_proto::link::Command as ToRoom;
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::time::{Millis, rfc3339};
use std::rc::Rc;

impl Chat {
    /// Handles the result of a token verification. Does nothing if the client has
    /// disconnected.
    pub(crate) fn token_verified(
        &mut self,
        server: &mut SocketIoServer,
        request: AuthRequest,
        identity: Result<Identity>,
        now: Millis,
    ) {
        match request {
            AuthRequest::Refresh { connection, id } => {
                let Some(key) = self.clients.by_id(&connection) else {
                    return;
                };
                let done = identity.and_then(|it| self.token_refreshed(server, key, id, it));
                if let Err(error) = done {
                    self.send(server, key, &framing::error(id, &error));
                }
            }
            AuthRequest::Connect {
                sid,
                nsp,
                number,
                auth,
            } => {
                if let Some(session) = server.engine.session_by_sid(&sid) {
                    let connect = Connect {
                        session,
                        nsp,
                        number,
                        auth: &auth,
                    };
                    self.connect_authenticated(server, connect, identity, now);
                }
            }
        }
    }

    fn token_refreshed(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        id: Option<u32>,
        identity: Identity,
    ) -> Result<()> {
        let client = self.clients.get_mut(key).ok_or_else(Error::internal)?;
        if identity.user != client.identity.user {
            server
                .engine
                .log(client.log_record(LogRecord::reject("auth")));
            self.close(server, key, Disconnect::Forbidden);
            return Ok(());
        }
        let identity = Rc::new(identity);
        let expires = rfc3339(identity.expires);
        match client.framing {
            Framing::Native(_) => self.apply_token(server, key, &identity),
            Framing::SocketIo { session, .. } => {
                self.apply_token_to_session(server, session, &identity);
            }
        }
        self.answer(server, key, id, &format!(r#"{{"expiresAt":"{expires}"}}"#));
        Ok(())
    }

    /// Applies a token to all namespaces of a session that belong to the user of the
    /// token. It is the newest token of this user on the connection.
    pub(super) fn apply_token_to_session(
        &mut self,
        server: &mut SocketIoServer,
        session: SessionId,
        identity: &Rc<Identity>,
    ) {
        let clients = self.clients.iter().filter(|(_, client)| {
            matches!(client.framing, Framing::SocketIo { session: of, .. } if of == session)
                && client.identity.user == identity.user
        });
        for key in clients.map(|(key, _)| key).collect::<Vec<_>>() {
            self.apply_token(server, key, identity);
        }
    }

    /// Gives a client exactly the rights of its newest token. The client leaves the
    /// rooms on which the token does not grant `read`. The other rooms receive the new
    /// rights.
    fn apply_token(&mut self, server: &mut SocketIoServer, key: ClientId, identity: &Rc<Identity>) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        client.identity = identity.clone();
        server.set_identity(client.receiver(), identity.clone());
        self.leave_forbidden_rooms(server, key);
        self.forward_to_all_rooms(server, key, |room, connection| ToRoom::Refresh {
            connection,
            rights: identity.rights(room),
            expires: identity.expires,
            profile: Some(identity.profile()),
        });
        self.schedule(identity.expires);
        self.save(server, key);
    }

    /// Leaves the rooms that the token of a client does not open. The user stays a
    /// member of them: membership belongs to the user and not to the connection.
    pub(super) fn leave_forbidden_rooms(&mut self, server: &mut SocketIoServer, key: ClientId) {
        let Some(client) = self.clients.get(key) else {
            return;
        };
        let is_forbidden =
            |one: &&Subscription| !client.identity.rights(&one.room).has(Rights::READ);
        let forbidden = client.subscriptions.iter().filter(is_forbidden);
        for room in forbidden.map(|one| one.room.clone()).collect::<Vec<_>>() {
            self.leave_forbidden_room(server, key, &room);
        }
    }

    fn leave_forbidden_room(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        room: &RoomName,
    ) {
        let error = no_access();
        let subscription = self.clients.subscription_mut(key, room);
        let join_command = subscription.and_then(|one| one.join_command.take());
        let Some(subscription) = self.remove_subscription(key, room) else {
            return;
        };
        if join_command.is_some() {
            self.send(server, key, &framing::error(join_command, &error));
        }
        if subscription.is_accepted() {
            self.send(server, key, &event::room_closed(room, error.code));
        }
        let code = Disconnect::Forbidden.code();
        let now = server.engine.now();
        self.leave_rooms(server, key, vec![subscription], code, now);
        self.run_waiting(server, key, room);
    }
}
