//! Frames, events and commands of clients.

use super::client::{Subscription, SubscriptionState, WaitingCommand};
use super::state::Chat;
use crate::dialect::Request;
use crate::frame::Frame;
use crate::ids::ClientId;
use crate::output::{AuthRequest, Authentication, Credentials, Output};
use crate::socketio::SocketIoServer;
use roomcast_proto::access::Rights;
use roomcast_proto::command::Command;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::error::{Error, ErrorCode, Result};
use roomcast_proto::framing::{self, Idle, Incoming};
use roomcast_proto::id::{ConnectionId, RoomName};
use roomcast_proto::limits::{Kind, Penalty};
use roomcast_proto::link::Command as ToRoom;
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::name;
use roomcast_proto::position::Position;
use roomcast_proto::status::Status;
use roomcast_proto::time::{Millis, SECOND};

/// Time in milliseconds after which a client may repeat a command that was refused because too
/// many commands wait for its room.
const FULL_PAUSE: Millis = SECOND;

impl Chat {
    /// Handles a frame of a native client.
    pub(super) fn handle_frame(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        frame: Frame,
        now: Millis,
    ) {
        let limit = server.engine.config.limits.max_frame_bytes;
        let text = match frame {
            Frame::Text(text) if text.len() <= limit => text,
            Frame::Text(_) => return self.reject(server, key, Disconnect::TooLarge),
            Frame::Binary(_) => return self.reject(server, key, Disconnect::Malformed),
        };
        if let Some(idle) = framing::idle(&text) {
            if self.take_command_allowance(server, key, None, now) && idle == Idle::Ping {
                self.send(server, key, framing::PONG);
            }
            return;
        }
        match framing::decode(&text) {
            Ok(lines) => {
                for Incoming { line, id, command } in lines {
                    let bytes = self.take_bytes(server, key, line.len(), now);
                    let request = bytes.and(command).map(Request::Command);
                    if !self.handle_request(server, key, id, request, now) {
                        return;
                    }
                }
            }
            Err(why) => self.reject(server, key, why),
        }
    }

    fn reject(&mut self, server: &mut SocketIoServer, key: ClientId, why: Disconnect) {
        if let Some(client) = self.clients.get(key) {
            let record = client.log_record(LogRecord::reject("malformed"));
            server.engine.log(record.with("code", why.code()));
        }
        self.close(server, key, why);
    }

    /// Handles an event of a Socket.IO client. `is_binary` is `true` if the event has
    /// attachments.
    pub(super) fn handle_socketio_event(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        ack: Option<i64>,
        args: &str,
        is_binary: bool,
        now: Millis,
    ) {
        let limit = server.engine.config.limits.max_frame_bytes;
        let Some(dialect) = self.clients.get(key).map(|client| client.dialect) else {
            return;
        };
        self.acks.received(key, now);
        let event = match args.len() <= limit {
            true => dialect.parse_event(args, ack),
            false => None,
        };
        let id = match &event {
            Some(event) => event.id,
            None => dialect.id_of_unparsed(ack),
        };
        let line_length = event.as_ref().map_or(0, |event| event.line_length);
        let length = line_length.max(args.len());
        let error = if length > limit {
            Some(framing::too_large(limit))
        } else if is_binary {
            Some(Error::bad_request(
                "binary data is not supported; send it as text, or send a link to it",
            ))
        } else if ack.is_some_and(|ack| !(0..=dialect.max_ack()).contains(&ack)) {
            let limit = dialect.max_ack();
            Some(Error::bad_field("id", &format!("at most {limit}")))
        } else {
            None
        };
        match error {
            Some(error) => {
                if self.take_command_allowance(server, key, id, now) {
                    self.send(server, key, &framing::error(id, &error));
                }
            }
            None => {
                if let Some(event) = event {
                    let bytes = self.take_bytes(server, key, length, now);
                    let request = bytes.and(event.request);
                    self.handle_request(server, key, id, request, now);
                }
            }
        }
    }

    /// Counts the bytes of a command.
    fn take_bytes(
        &mut self,
        server: &SocketIoServer,
        key: ClientId,
        bytes: usize,
        now: Millis,
    ) -> Result<()> {
        let client = self.clients.get_mut(key).ok_or_else(Error::internal)?;
        let limits = &server.engine.config.limits;
        client.allowance.take_bytes(bytes, limits, now)
    }

    /// Counts a command. If the client is over its limit, answers the command with the error
    /// and returns `false`.
    fn take_command_allowance(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        id: Option<u32>,
        now: Millis,
    ) -> bool {
        let Some(client) = self.clients.get_mut(key) else {
            return false;
        };
        let limits = &server.engine.config.limits;
        match client.allowance.take(Kind::Command, limits, now) {
            Ok(()) => true,
            Err(error) => {
                self.send(server, key, &framing::error(id, &error));
                self.penalize(server, key, now);
                false
            }
        }
    }

    /// Counts a `rateLimited` error. Returns `false` if the client was disconnected,
    /// because it has been over its limits for too long.
    fn penalize(&mut self, server: &mut SocketIoServer, key: ClientId, now: Millis) -> bool {
        let Some(client) = self.clients.get_mut(key) else {
            return false;
        };
        let user = &client.identity.user;
        let (limits, guard) = (
            &server.engine.config.limits,
            &mut server.engine.admission.flood_guard,
        );
        let penalty = client.allowance.refuse(guard, user, limits, now);
        if penalty != Penalty::Again {
            let record = client.log_record(LogRecord::reject("rate"));
            server.engine.log(record.with("closed", penalty.is_final()));
        }
        if penalty.is_final() {
            self.close(server, key, Disconnect::TooFast);
        }
        !penalty.is_final()
    }

    /// Handles a request, or answers with its error. Returns `false` if the client was
    /// disconnected or is over its limits, so that the rest of the frame is dropped.
    fn handle_request(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        id: Option<u32>,
        request: Result<Request>,
        now: Millis,
    ) -> bool {
        if !self.take_command_allowance(server, key, id, now) {
            return false;
        }
        let done = request.and_then(|request| match request {
            Request::Command(command) => self.execute(server, key, id, command, now),
            Request::Nothing => {
                self.answer(server, key, id, "{}");
                Ok(())
            }
        });
        if let Err(error) = done {
            self.send(server, key, &framing::error(id, &error));
            if error.code == ErrorCode::RateLimited && !self.penalize(server, key, now) {
                return false;
            }
        }
        // A command may have closed the connection.
        self.clients.get(key).is_some()
    }

    /// Executes a command of the gateway, or forwards it to its room.
    fn execute(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        id: Option<u32>,
        command: Command,
        now: Millis,
    ) -> Result<()> {
        match command {
            Command::Presence { status } => self.set_presence(server, key, id, status, now),
            Command::Refresh { token } => self.refresh(server, key, id, &token, now),
            command => self.execute_in_room(server, key, id, command, now),
        }
    }

    /// Executes a command for a room, or lets it wait until the room has answered an earlier
    /// command. So a room receives the commands of a client in order, and the client receives
    /// the answers in this order.
    ///
    /// The room applies its own limits, but counts only its own commands. So the gateway counts
    /// the commands for all rooms.
    fn execute_in_room(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        id: Option<u32>,
        command: Command,
        now: Millis,
    ) -> Result<()> {
        let client = self.clients.get_mut(key).ok_or_else(Error::internal)?;
        let mut command = command;
        if let Command::Send(send) = &mut command
            && send.room.is_none()
            && client.dialect.has_only_room()
        {
            send.room = Some(client.only_room()?);
        }
        let room = command.room().ok_or_else(room_required)?.clone();
        let waits = client.has_waiting(&room) || client.must_wait(&room, &command);
        let is_subscribed = client.subscription(&room).is_some();
        let kind = match command {
            Command::Join { .. } if waits => Some(Kind::Join),
            Command::Join { .. } if !is_subscribed => {
                client.check_room_limit(&room, server.engine.config.max_rooms)?;
                Some(Kind::Join)
            }
            Command::Join { .. } => None,
            _ if !is_subscribed => return Err(Error::not_joined()),
            Command::Leave { .. } if name::personal_room_owner(&room).is_some() => {
                return Err(Error::forbidden("a personal room cannot be left"));
            }
            Command::Leave { .. } => Some(Kind::Join),
            Command::Send(_) => Some(Kind::Message),
            Command::Typing { .. } => Some(Kind::Signal),
            _ => None,
        };
        if let Some(kind) = kind {
            let limits = &server.engine.config.limits;
            client.allowance.take(kind, limits, now)?;
        }
        if let Err(error) = self.admit_command(&room, &command) {
            // Does not count as a violation: other clients have sent most of the commands.
            self.send(server, key, &framing::error(id, &error));
            return Ok(());
        }
        match self.clients.get_mut(key) {
            Some(client) if waits => client.wait(WaitingCommand { room, id, command }),
            _ => self.run_in_room(server, key, &room, id, command),
        }
    }

    /// Checks that a command of a client may wait for its room. `leaveRoom` may in any case,
    /// because it ends the use of memory; a client has at most one of them for each room.
    ///
    /// # Errors
    ///
    /// Returns `rateLimited` if too many commands wait for the room, or if the host is short of
    /// memory.
    fn admit_command(&self, room: &RoomName, command: &Command) -> Result<()> {
        let is_full = self.rooms.get(room).is_some_and(|link| link.is_full());
        match command {
            Command::Leave { .. } => Ok(()),
            _ if is_full => Err(Error::rate_limited(
                "commands that wait for this room",
                FULL_PAUSE,
            )),
            _ if self.is_overloaded => Err(Error {
                code: ErrorCode::RateLimited,
                ..Error::overloaded()
            }),
            _ => Ok(()),
        }
    }

    /// Executes the commands for a room that have waited, until one must wait again.
    pub(super) fn run_waiting(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        room: &RoomName,
    ) {
        while let Some(client) = self.clients.get_mut(key)
            && let Some(WaitingCommand { id, command, .. }) = client.take_waiting(room)
        {
            let admitted = self.admit_command(room, &command);
            let run = admitted.and_then(|()| self.run_in_room(server, key, room, id, command));
            if let Err(error) = run {
                self.send(server, key, &framing::error(id, &error));
            }
        }
    }

    fn run_in_room(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        room: &RoomName,
        id: Option<u32>,
        command: Command,
    ) -> Result<()> {
        let is_subscribed = self.clients.subscription(key, room).is_some();
        match command {
            Command::Join { position, .. } if !is_subscribed => {
                return self.join(server, key, room, position, id, server.engine.now());
            }
            _ if !is_subscribed => return Err(Error::not_joined()),
            Command::Leave { .. } => self.leave(server, key, room, id),
            command => self.forward_command(server, key, room, id, command),
        }
        Ok(())
    }

    /// Leaves a room. `id` is the id of the `leaveRoom` command, which the room answers.
    pub(super) fn leave(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        room: &RoomName,
        id: Option<u32>,
    ) {
        if let Some(subscription) = self.clients.subscription_mut(key, room) {
            subscription.state = SubscriptionState::Leaving;
            subscription.leave_command = id;
            subscription.is_leave_answered = false;
            let command = Command::Leave {
                room: Some(room.clone()),
            };
            self.forward_command(server, key, room, id, command);
            self.await_answer(key, room, server.engine.now());
            self.save(server, key);
        }
    }

    fn set_presence(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        id: Option<u32>,
        status: Status,
        now: Millis,
    ) -> Result<()> {
        let client = self.clients.get_mut(key).ok_or_else(Error::internal)?;
        let limits = &server.engine.config.limits;
        client.allowance.take(Kind::Signal, limits, now)?;
        let subscriptions = self.clients.get(key).into_iter();
        let mut rooms = subscriptions.flat_map(|client| &client.subscriptions);
        let command = Command::Presence { status };
        if let Some(error) = rooms.find_map(|one| self.admit_command(&one.room, &command).err()) {
            self.send(server, key, &framing::error(id, &error));
            return Ok(());
        }
        if let Some(client) = self.clients.get_mut(key) {
            client.status = status;
        }
        self.forward_to_all_rooms(server, key, |_, connection| ToRoom::Execute {
            connection,
            id: None,
            command: Command::Presence { status },
        });
        self.save(server, key);
        let status = status.as_str();
        self.answer(server, key, id, &format!(r#"{{"status":"{status}"}}"#));
        Ok(())
    }

    /// Sends the answer to a command if the command has an id. `data` is JSON.
    pub(super) fn answer(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        id: Option<u32>,
        data: &str,
    ) {
        if let Some(id) = id {
            self.send(server, key, &framing::ack(id, data));
        }
    }

    fn forward_command(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        room: &RoomName,
        id: Option<u32>,
        command: Command,
    ) {
        if let Some(subscription) = self.clients.subscription(key, room) {
            let command = ToRoom::Execute {
                connection: subscription.id.clone(),
                id,
                command,
            };
            self.forward(server, room, command);
        }
    }

    /// Forwards a command to all rooms of a client, except for those that it is leaving.
    /// `command` is called with the name of the room and the subscription id.
    pub(super) fn forward_to_all_rooms(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        command: impl Fn(&RoomName, ConnectionId) -> ToRoom,
    ) {
        let Some(client) = self.clients.get(key) else {
            return;
        };
        let subscriptions = client.subscriptions.iter();
        let rooms: Vec<_> = subscriptions
            .filter(|one| one.state != SubscriptionState::Leaving)
            .map(|subscription| (subscription.room.clone(), subscription.id.clone()))
            .collect();
        for (room, id) in rooms {
            self.forward(server, &room, command(&room, id));
        }
    }

    /// Joins a room that the client is not in. `id` is the id of the `joinRoom` command, which
    /// the room answers.
    pub(super) fn join(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        room: &RoomName,
        mut position: Position,
        id: Option<u32>,
        now: Millis,
    ) -> Result<()> {
        let client = self.clients.get_mut(key).ok_or_else(Error::internal)?;
        client.check_room_limit(room, server.engine.config.max_rooms)?;
        let rights = client.identity.rights(room);
        if !rights.has(Rights::READ) {
            let error = no_access();
            let record = LogRecord::rejected(&error).room(room);
            server.engine.log(client.log_record(record));
            return Err(error);
        }
        let subscription_id = client.new_subscription_id(server);
        let mut subscription = Subscription::joining(room, subscription_id.clone(), id);
        client.continue_after_leave(&mut subscription, &mut position);
        client.subscriptions.push(subscription);
        let request = client.join_request(subscription_id, rights, position);
        let link = self.rooms.entry(room.clone()).or_default();
        link.subscribers.push(key);
        let again = false;
        self.forward(server, room, ToRoom::Join { request, id, again });
        self.await_answer(key, room, now);
        Ok(())
    }

    /// Asks the host to verify the token of a `refreshToken` command.
    fn refresh(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        id: Option<u32>,
        token: &str,
        now: Millis,
    ) -> Result<()> {
        let client = self.clients.get_mut(key).ok_or_else(Error::internal)?;
        let limits = &server.engine.config.limits;
        client.allowance.take(Kind::Request, limits, now)?;
        let connection = client.id.clone();
        server.engine.push(Output::Authenticate(Authentication {
            credentials: Credentials::Token(token.to_owned()),
            request: AuthRequest::Refresh { connection, id },
        }));
        Ok(())
    }
}

/// Returns the error for a command without `roomId`.
fn room_required() -> Error {
    Error {
        field: Some("roomId".into()),
        ..Error::bad_request("`roomId` is required on a connection of many rooms")
    }
}

/// Returns the error for a room on which the token does not grant `read`.
pub(super) fn no_access() -> Error {
    Error::forbidden("the token does not allow access to this room")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Gateway;
    use crate::config::GatewayConfig;
    use crate::connect_info::{ConnectInfo, Protocol};
    use crate::engine::EngineServer;
    use roomcast_proto::access::{Identity, RoomPatterns, TokenId};
    use roomcast_proto::id::UserId;
    use roomcast_proto::limits::ConnectionLimits;
    use std::rc::Rc;

    const NOW: Millis = 1_800_000_000_000;

    fn identity() -> Identity {
        Identity {
            user: UserId::trusted("alice"),
            expires: NOW + 1_000,
            service: false,
            patterns: RoomPatterns::from_list("*"),
            token: TokenId::default(),
            info: None,
        }
    }

    fn gateway(max_frame_bytes: usize) -> Gateway {
        let config = Rc::new(GatewayConfig {
            limits: ConnectionLimits {
                max_frame_bytes,
                ..ConnectionLimits::default()
            },
            ..GatewayConfig::default()
        });
        let engine = EngineServer::new("0".into(), config, || "id".into());
        Gateway::new(engine)
    }

    /// Sends a message with `content` bytes of content to a room. Returns whether it was
    /// answered with `tooLarge`, and the ids of the commands that are forwarded to the room.
    fn send_message(content: usize) -> (bool, Vec<Option<u32>>) {
        let mut gateway = gateway(1_000);
        let info = ConnectInfo {
            protocol: Protocol::SocketIo,
            identity: Some(identity()),
            error: None,
            address: None,
            recovers: false,
            may_recover: false,
        };
        let socket = gateway.server.engine.open_socket(info, None, NOW);
        let socket = socket.expect("a socket");
        let content = "x".repeat(content);
        let mut outputs = Vec::new();
        for packet in [
            "40".to_owned(),
            r#"42["joinRoom","r"]"#.to_owned(),
            format!(r#"427["sendMessage",{{"roomId":"r","content":"{content}"}}]"#),
        ] {
            gateway.server.frame(socket, Frame::Text(packet), NOW);
            outputs = gateway.settle(NOW);
            if let Some(Output::Authenticate(it)) = outputs.last() {
                let request = it.request.clone();
                gateway.authenticated(request, Ok(identity()), NOW);
                gateway.settle(NOW);
            }
        }
        let is_too_large = outputs.iter().any(|output| match output {
            Output::Send {
                frame: Frame::Text(text),
                ..
            } => text.starts_with(r#"437[{"error":{"code":"tooLarge""#),
            _ => false,
        });
        let commands = gateway
            .take_commands(&RoomName::trusted("r"))
            .expect("a join");
        let ids = commands.into_iter().filter_map(|command| match command {
            ToRoom::Execute { id, .. } => Some(id),
            _ => None,
        });
        (is_too_large, ids.collect())
    }

    #[test]
    fn event_is_forwarded_only_if_its_line_is_within_the_limit_of_frames() {
        for content in 900..=1_000 {
            let (is_too_large, ids) = send_message(content);
            let content_text = "x".repeat(content);
            let line = format!(
                r#"{{"event":"sendMessage","data":{{"roomId":"r","content":"{content_text}"}},"id":7}}"#
            );
            assert_eq!(is_too_large, line.len() > 1_000, "{content}");
            let forwarded = if is_too_large { vec![] } else { vec![Some(7)] };
            assert_eq!(ids, forwarded, "{content}");
        }
        assert!(!send_message(900).0 && send_message(1_000).0);
    }
}
