//! The life of clients: connect, accept, disconnect, and the requests to rooms.

use super::client::{Client, Framing, Phase, Subscription, SubscriptionState};
use super::departures::Departure;
use super::record::{RecordOf, save_output};
use super::state::Chat;
use crate::connect_info::ConnectInfo;
use crate::ids::{ClientId, SessionId, SocketId};
use crate::output::{AuthRequest, Authentication, Credentials, Output, PositionKey};
use crate::socketio::SocketIoServer;
use roomcast_proto::access::Identity;
use roomcast_proto::answer::{ConnectError, to_json};
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::error::{Error, ErrorCode, Result};
use roomcast_proto::id::{ConnectionId, RoomName, UserId};
use roomcast_proto::limits::Limits;
use roomcast_proto::link::Command as ToRoom;
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::position::Position;
use roomcast_proto::raw_object::{RawObject, TEXT};
use roomcast_proto::time::{Millis, rfc3339};
use serde_json::json;
use std::rc::Rc;

/// A CONNECT of a Socket.IO session.
pub(super) struct Connect<'a> {
    pub(super) session: SessionId,
    pub(super) nsp: String,
    /// See [`SocketIoServer::is_connecting`].
    pub(super) number: u64,
    /// A JSON object.
    pub(super) auth: &'a str,
}

impl Connect<'_> {
    /// Returns a text field of `auth`.
    fn field(&self, name: &str) -> Option<String> {
        let auth = RawObject::parse(self.auth, "`auth`").unwrap_or_default();
        let text = auth.get(name, TEXT).ok().flatten();
        text.map(|text| text.to_string())
    }

    /// Returns the credentials to verify: the token of the request that opened the session or,
    /// without one, `token` of `auth`.
    fn credentials(&self, info: &ConnectInfo) -> Result<Credentials> {
        match (&info.identity, &info.error) {
            (Some(identity), _) => Ok(Credentials::Identity(Box::new(identity.clone()))),
            (None, Some(error)) => Err(error.clone()),
            (None, None) => self
                .field("token")
                .map(Credentials::Token)
                .ok_or_else(Error::no_token),
        }
    }
}

/// The right of a disconnected client to resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resumable {
    /// Its record is kept, if it has a `pid`.
    Yes,
    /// Its record is deleted.
    No,
}

impl Chat {
    /// Adds the client of a native socket. The Worker has verified its token.
    pub(super) fn native_opened(
        &mut self,
        server: &mut SocketIoServer,
        socket: SocketId,
        id: String,
        info: ConnectInfo,
        now: Millis,
    ) {
        let Some(identity) = info.identity else {
            return server.engine.close_socket(socket, Disconnect::Expired);
        };
        let framing = Framing::Native(socket);
        let id = ConnectionId::trusted(id);
        let key = self.add(Client::new(server, id, framing, Rc::new(identity), now));
        self.schedule(now + server.engine.config.limits.ghost_timeout);
        self.begin(server, key, now);
    }

    /// Handles a CONNECT: asks the host to verify the token.
    pub(super) fn connect_requested(
        &mut self,
        server: &mut SocketIoServer,
        connect: Connect<'_>,
        now: Millis,
    ) {
        let session = connect.session;
        // The client may have cancelled the CONNECT.
        if !server.is_connecting(session, connect.number) {
            return;
        }
        if server.engine.config.dialect_of(&connect.nsp).is_none() {
            return server.refuse(session, &connect.nsp, r#"{"message":"Invalid namespace"}"#);
        }
        let (Some(info), Some(sid)) = (
            server.engine.connect_info(session),
            server.engine.sid(session),
        ) else {
            return;
        };
        match connect.credentials(info) {
            Ok(credentials) => {
                let request = AuthRequest::Connect {
                    sid,
                    nsp: connect.nsp,
                    number: connect.number,
                    auth: connect.auth.to_owned(),
                };
                server.engine.push(Output::Authenticate(Authentication {
                    credentials,
                    request,
                }));
            }
            Err(error) => self.connect_authenticated(server, connect, Err(error), now),
        }
    }

    /// Handles the result of the verification of a CONNECT's token.
    pub(super) fn connect_authenticated(
        &mut self,
        server: &mut SocketIoServer,
        connect: Connect<'_>,
        identity: Result<Identity>,
        now: Millis,
    ) {
        let session = connect.session;
        // The client may have cancelled the CONNECT, or its session may have ended.
        let Some(info) = server.engine.connect_info(session).cloned() else {
            return;
        };
        if !server.is_connecting(session, connect.number) {
            return;
        }
        let identity = identity.and_then(|identity| {
            server
                .engine
                .admission
                .flood_guard
                .admit(&identity.user, now)?;
            Ok(identity)
        });
        let identity = match identity {
            Ok(identity) => Rc::new(identity),
            // Clients reconnect by themselves after the end of the session, but not after a
            // refused CONNECT.
            Err(error) if error.code == ErrorCode::Unavailable => {
                return server.engine.close_session(session, Disconnect::Failed);
            }
            Err(error) => return refuse(server, &connect, &error),
        };
        if info.identity.is_none() {
            self.apply_token_to_session(server, session, &identity);
        }
        let pid = connect
            .field("pid")
            .filter(|_| info.recovers || info.may_recover);
        let offset = connect.field("offset");
        let user = identity.user.clone();
        let dialect = server.engine.config.dialect_of(&connect.nsp);
        let dialect = dialect.unwrap_or_default();
        let framing = Framing::SocketIo {
            session,
            nsp: connect.nsp,
        };
        let id = ConnectionId::trusted(server.engine.new_id());
        let client = Client {
            dialect,
            ..Client::new(server, id, framing, identity, now)
        };
        let key = self.add(client);
        match pid {
            None => self.begin(server, key, now),
            Some(pid) => self.find(server, key, pid, offset, user),
        }
    }

    /// Asks the host for the record of a client that resumes.
    fn find(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        pid: String,
        offset: Option<String>,
        user: UserId,
    ) {
        if let Some(client) = self.clients.get_mut(key) {
            client.phase = Phase::Finding {
                pid: pid.clone(),
                offset,
            };
        }
        server.engine.push(Output::Find {
            client: key,
            pid,
            user,
        });
    }

    /// Accepts a client that does not resume or cannot resume.
    pub(super) fn begin(&mut self, server: &mut SocketIoServer, key: ClientId, now: Millis) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        if let Framing::SocketIo { session, .. } = client.framing {
            let info = server.engine.connect_info(session);
            // A client that has sent a `pid` supports recovery.
            let sent_pid = client.pid.is_some() || matches!(client.phase, Phase::Finding { .. });
            if sent_pid || info.is_some_and(|info| info.recovers) {
                client.pid = Some(new_pid(server));
            }
        }
        if self.accept(server, key) {
            self.save(server, key);
            self.join_personal_room(server, key, now);
        }
    }

    /// Joins the personal room of the user, unless the client is in it.
    pub(super) fn join_personal_room(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        now: Millis,
    ) {
        let Some(client) = self.clients.get(key) else {
            return;
        };
        let room = RoomName::personal(&client.identity.user);
        if client.subscription(&room).is_none() {
            // Cannot fail: every token grants access to the personal room.
            let _ = self.join(server, key, &room, Position::default(), None, now);
        }
    }

    /// Accepts a connection and sends `connected`. If the client has cancelled its CONNECT,
    /// removes the client and returns `false`.
    pub(super) fn accept(&mut self, server: &mut SocketIoServer, key: ClientId) -> bool {
        let Some(client) = self.clients.get_mut(key) else {
            return false;
        };
        if let Framing::SocketIo { session, nsp } = &client.framing {
            let mut data = json!({ "sid": client.sid });
            let info = server.engine.connect_info(*session);
            let pid = match &client.pid {
                Some(pid) => Some(pid.clone()),
                // No record is saved under it. It shows whether the client sends it back.
                None => info
                    .is_some_and(|info| info.may_recover)
                    .then(|| new_pid(server)),
            };
            if let Some(pid) = pid {
                data["pid"] = pid.into();
            }
            let identity = Some(client.identity.clone());
            if !server.accept(*session, nsp, identity, to_json(&data)) {
                let now = server.engine.now();
                self.disconnected(server, key, 1006, now, Resumable::Yes);
                return false;
            }
        }
        client.phase = Phase::Connected;
        server
            .engine
            .log(client.log_record(LogRecord::info("connect")));
        let connected = json!({
            "event": "connected",
            "data": {
                "connectionId": client.id,
                "userId": client.identity.user,
                "expiresAt": rfc3339(client.identity.expires),
                "limits": Limits::of(&server.engine.config.limits),
            },
        });
        self.send(server, key, &to_json(&connected));
        true
    }

    /// Removes a client with a closed connection, and informs its rooms. `seen` is the time of its
    /// last sign of life.
    pub(super) fn disconnected(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        code: u16,
        seen: Millis,
        resumable: Resumable,
    ) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        match client.phase {
            Phase::Connected => {
                let record = client.log_record(LogRecord::info("disconnect"));
                server.engine.log(record.with("code", code));
            }
            Phase::Recovering { .. } => client.abandon_recovery(),
            Phase::Finding { .. } => {}
        }
        for subscription in &mut client.subscriptions {
            let link = self.rooms.get(&subscription.room);
            subscription.lacks_presence(link.and_then(|link| link.presence));
        }
        // A client that no room has accepted has nothing to resume: for example, a room has
        // refused it, because its user is banned after a flood.
        let mut subscriptions = client.subscriptions.iter();
        let is_accepted = subscriptions.any(|one| one.state != SubscriptionState::Joining);
        let resumes = resumable == Resumable::Yes && client.pid.is_some() && is_accepted;
        let then = match resumes {
            true => save_output(server, client, RecordOf::DisconnectedClient),
            false => Output::Forget {
                client: client.storage_key(),
            },
        };
        let Some(client) = self.clients.remove(key) else {
            return;
        };
        self.recovering.remove(&key);
        if client.subscriptions.is_empty() {
            server.engine.push(then);
        } else {
            let subscriptions = client.subscriptions.iter();
            let departure = Departure {
                unacknowledged: subscriptions.map(|one| one.id.clone()).collect(),
                storage_key: client.storage_key(),
                user: client.identity.user.clone(),
                then,
            };
            self.departures.insert(client.id, departure);
        }
        self.leave_rooms(server, key, client.subscriptions, code, seen);
    }

    /// Ends these subscriptions of a client and informs the rooms. `seen` is the time of its last
    /// sign of life.
    pub(super) fn leave_rooms(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        subscriptions: Vec<Subscription>,
        code: u16,
        seen: Millis,
    ) {
        let seen = (seen < server.engine.now()).then_some(seen);
        for subscription in subscriptions {
            self.remove_subscriber(key, &subscription.room);
            let command = ToRoom::Gone {
                connection: subscription.id,
                code,
                seen,
            };
            self.forward(server, &subscription.room, command);
        }
    }

    /// Stops the delivery of events of a room to a client.
    pub(super) fn remove_subscriber(&mut self, key: ClientId, room: &RoomName) {
        if let Some(link) = self.rooms.get_mut(room) {
            link.subscribers.retain(|subscriber| *subscriber != key);
            link.lacking.remove(&key);
        }
    }

    /// Closes the connection of a client.
    pub(super) fn close(&mut self, server: &mut SocketIoServer, key: ClientId, why: Disconnect) {
        let Some(client) = self.clients.get(key) else {
            return;
        };
        match client.framing.clone() {
            Framing::Native(socket) => server.engine.close_socket(socket, why),
            // After a DISCONNECT packet, a Socket.IO client does not reconnect by
            // itself. After a plain close it does.
            Framing::SocketIo { session, nsp } if why.is_final() => {
                server.expel(session, &nsp, why);
                let now = server.engine.now();
                self.disconnected(server, key, why.code(), now, Resumable::No);
            }
            Framing::SocketIo { session, .. } => server.engine.close_session(session, why),
        }
    }

    /// Queues a command for a room.
    pub(super) fn forward(
        &mut self,
        server: &mut SocketIoServer,
        room: &RoomName,
        command: ToRoom,
    ) {
        let link = self.rooms.entry(room.clone()).or_default();
        if link.push(command) {
            server.engine.push(Output::Forward { room: room.clone() });
        }
    }

    /// Removes the state of a room that has no subscribers and no commands in progress, and
    /// its positions at the host.
    pub(super) fn forget_room(&mut self, server: &mut SocketIoServer, room: &RoomName) {
        let is_unused = self.rooms.get(room).is_some_and(|link| link.is_unused());
        if !is_unused || self.retries.has(room) {
            return;
        }
        let Some(link) = self.rooms.remove(room) else {
            return;
        };
        for (key, is_tracked) in [
            (PositionKey::Room(room.clone()), link.reported.is_some()),
            (
                PositionKey::Presence(room.clone()),
                link.reported_presence.is_some(),
            ),
        ] {
            if is_tracked {
                let key = key.clone();
                server.engine.push(Output::TrackPosition { key, at: None });
            }
            if link.is_stored {
                server.engine.push(Output::StorePosition { key, at: None });
            }
        }
        for client in self.positions.take_lagging(room) {
            let room = room.clone();
            let key = PositionKey::Lagging { room, client };
            server.engine.push(Output::TrackPosition { key, at: None });
        }
    }
}

/// Returns a new secret by which a client can resume. It begins with the number of the gateway.
fn new_pid(server: &SocketIoServer) -> String {
    let (name, first, second) = (
        server.engine.name(),
        server.engine.new_id(),
        server.engine.new_id(),
    );
    format!("{name}-{first}{second}")
}

/// Refuses a CONNECT because of its token or its user.
fn refuse(server: &mut SocketIoServer, connect: &Connect<'_>, error: &Error) {
    let record = LogRecord::rejected(error);
    server.engine.log_refusal(connect.session, record);
    let answer = to_json(&ConnectError::from(error));
    server.refuse(connect.session, &connect.nsp, &answer);
}
