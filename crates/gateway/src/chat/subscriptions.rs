//! The changes of subscriptions: accepted, ended, failed.

use super::client::{Phase, Subscription, SubscriptionState};
use super::retries::Retry;
use super::room_link::RoomLink;
use super::state::Chat;
use crate::ids::ClientId;
use crate::socketio::SocketIoServer;
use roomcast_proto::answer::{Left, to_json};
use roomcast_proto::command::Command;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::error::Error;
use roomcast_proto::event;
use roomcast_proto::framing;
use roomcast_proto::id::{ConnectionId, Epoch, RoomName};
use roomcast_proto::link::{Command as ToRoom, UNKNOWN_PRESENCE};
use roomcast_proto::name;
use roomcast_proto::position::Position;
use roomcast_proto::retry::jittered;
use roomcast_proto::time::Millis;

impl Chat {
    /// Handles [`Item::Subscribed`]: a room has accepted a client. The client receives
    /// the events after `after`.
    pub(super) fn subscribed(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        room: &RoomName,
        after: u64,
    ) {
        let link = self.rooms.get(room);
        let epoch = link.map_or_else(Epoch::default, |link| link.epoch.clone());
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        self.positions.mark_lagging(room, &client.id);
        let version = client.version + 1;
        let Some(mut index) = client.index_of(room) else {
            return;
        };
        if client.subscriptions[index].receives_events() {
            // The room repeats it, because the answer to its delivery was lost.
            return;
        }
        if client.subscriptions[index].state == SubscriptionState::Joining {
            // Offsets use the order in which rooms accept the client.
            let subscription = client.subscriptions.remove(index);
            index = client.subscriptions.len();
            client.subscriptions.push(subscription);
        }
        let subscription = &mut client.subscriptions[index];
        let requested = (subscription.from, subscription.epoch.clone());
        subscription.delivered = after;
        subscription.lagging_at = None;
        subscription.is_paused = false;
        subscription.is_reported = false;
        subscription.lack_is_reported = false;
        if subscription.repairing {
            subscription.repairing = false;
            subscription.epoch = epoch;
            if subscription.state == SubscriptionState::Joined {
                subscription.answer_by = None;
            }
            if client.dialect.acknowledges() {
                self.acks.sent(key, server.engine.now());
            }
            return self.save(server, key);
        }
        if subscription.state == SubscriptionState::Joining {
            subscription.state = SubscriptionState::Joined;
        }
        subscription.accepted(after);
        subscription.acknowledged = after;
        subscription.from = after;
        subscription.epoch.clone_from(&epoch);
        subscription.offset_version = Some(version);
        client.version = version;
        if let Phase::Recovering {
            pending, complete, ..
        } = &mut client.phase
            && pending.remove(room)
        {
            *complete &= requested == (after, epoch);
            // Records of older versions have no version of the presence.
            client.subscriptions[index]
                .presence
                .get_or_insert(UNKNOWN_PRESENCE);
            if client.dialect.acknowledges() {
                // The client has received everything up to its offset.
                client.subscriptions[index].acknowledged = 0;
                self.acks.sent(key, server.engine.now());
            }
            return self.lacks_presence(key, room);
        }
        self.save(server, key);
        self.run_waiting(server, key, room);
    }

    /// Handles [`Item::Unsubscribed`]: a client is no longer subscribed to a room, or
    /// was not accepted.
    pub(super) fn unsubscribed(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        room: &RoomName,
    ) {
        let Some(ended) = self.remove_subscription(key, room) else {
            return;
        };
        if ended.join_command.is_some() {
            // The answer of the room was lost.
            let error = framing::error(ended.join_command, &Error::internal());
            self.send(server, key, &error);
        }
        let state = ended.state;
        if let Some(id) = ended.leave_command
            && state == SubscriptionState::Leaving
        {
            // The answer of the room was lost.
            self.send(
                server,
                key,
                &framing::ack(id, &to_json(&Left { room_id: room })),
            );
        }
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        if ended.is_accepted() {
            client.remember_left(&ended);
        }
        let is_recovering = matches!(client.phase, Phase::Recovering { .. });
        let user = client.identity.user.clone();
        if state == SubscriptionState::Joined {
            self.send(server, key, &event::user_left(room, &user));
        }
        let is_personal = RoomName::personal(&user) == *room;
        if is_personal && state == SubscriptionState::Joining && !is_recovering {
            // The room refused the join, for example because the user is banned after a flood.
            return self.close(server, key, Disconnect::TooFast);
        }
        self.save(server, key);
        self.run_waiting(server, key, room);
    }

    /// Removes the subscription of a client to a room, so that the client receives no
    /// further events of the room. A recovery without the room is incomplete.
    pub(super) fn remove_subscription(
        &mut self,
        key: ClientId,
        room: &RoomName,
    ) -> Option<Subscription> {
        let client = self.clients.get_mut(key)?;
        let index = client.index_of(room)?;
        let removed = client.subscriptions.remove(index);
        client.version += 1;
        for subscription in &mut client.subscriptions[index..] {
            // Older offsets use another order of rooms.
            if let Some(version) = &mut subscription.offset_version {
                *version = client.version;
                subscription.from = subscription.from.max(subscription.delivered);
            }
        }
        if let Phase::Recovering {
            pending, complete, ..
        } = &mut client.phase
        {
            pending.remove(room);
            *complete = false;
        }
        self.remove_subscriber(key, room);
        Some(removed)
    }

    /// Takes the answers to the `joinRoom` and `leaveRoom` commands of a client, if they are in
    /// `text`. Returns `true` if one of them is the error of the command that the subscription
    /// waits for.
    pub(super) fn command_answered(&mut self, key: ClientId, room: &RoomName, text: &str) -> bool {
        let Some(subscription) = self.clients.subscription_mut(key, room) else {
            return false;
        };
        let mut failed = false;
        for line in text.split('\n') {
            let id = framing::answered(line);
            if id.is_none() {
                continue;
            }
            if id == subscription.join_command {
                subscription.join_command = None;
                failed |=
                    subscription.state == SubscriptionState::Joining && framing::is_error(line);
            }
            if id == subscription.leave_command {
                subscription.leave_command = None;
                subscription.is_leave_answered = true;
                failed |= framing::is_error(line);
            }
        }
        failed
    }

    /// Handles the `joinRoom` or `leaveRoom` of a client that a room has answered with an error:
    /// the client is in the room as before the command. The room may have lost its memory with
    /// the error, so it may send nothing more about the command.
    pub(super) fn change_refused(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        room: &RoomName,
    ) {
        match self.clients.subscription(key, room).map(|one| one.state) {
            Some(SubscriptionState::Joining) => match name::personal_room_owner(room) {
                // The gateway joins the personal room by itself, so the client would not retry.
                Some(_) => self.close(server, key, Disconnect::Failed),
                None => self.unsubscribed(server, key, room),
            },
            Some(SubscriptionState::Leaving) => self.leave_failed(server, key, room),
            Some(SubscriptionState::Joined) | None => {}
        }
    }

    /// Asks a room that has accepted a client for the answer to its `joinRoom` command, if the
    /// answer was lost. The command joins the room again, which has no other effect.
    pub(super) fn request_join_answer(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        room: &RoomName,
    ) {
        let subscription = self.clients.subscription_mut(key, room);
        let Some(subscription) = subscription.filter(|one| one.join_command.is_some()) else {
            return;
        };
        if subscription.state == SubscriptionState::Leaving {
            // The command must not follow the `leaveRoom` command.
            let id = subscription.join_command.take();
            self.send(server, key, &framing::error(id, &Error::internal()));
        } else {
            let command = ToRoom::Execute {
                connection: subscription.id.clone(),
                id: subscription.join_command,
                command: Command::Join {
                    room: Some(room.clone()),
                    position: Position::default(),
                },
            };
            self.forward(server, room, command);
        }
    }

    /// Handles the commands of a request to a room that failed, and those of the waiting
    /// commands that fail with them; see [`RoomLink::forward_failed`].
    pub(crate) fn request_failed(
        &mut self,
        server: &mut SocketIoServer,
        room: &RoomName,
        commands: Vec<ToRoom>,
    ) {
        let waiting = (self.rooms.get_mut(room)).map_or_else(Vec::new, RoomLink::forward_failed);
        for command in commands.into_iter().chain(waiting) {
            let key = self.clients.by_subscription(command.connection());
            match (command, key) {
                (
                    command @ ToRoom::Execute {
                        command: Command::Join { .. },
                        id: Some(id),
                        ..
                    },
                    Some(key),
                ) if self.awaits_join(key, room, id) => self.retry(server, room, command),
                (
                    ToRoom::Execute {
                        connection,
                        id,
                        command,
                    },
                    Some(key),
                ) => {
                    let now = server.engine.now();
                    if self.acknowledgement_failed(key, room, id, &command, now) {
                        continue;
                    }
                    let left = matches!(command, Command::Leave { .. })
                        && self
                            .clients
                            .current_subscription(room, &connection)
                            .is_some();
                    self.send(server, key, &framing::error(id, &Error::internal()));
                    if left {
                        self.leave_failed(server, key, room);
                    }
                }
                (command @ ToRoom::Join { .. }, Some(key)) => {
                    self.join_request_failed(server, key, room, command);
                }
                // The room must learn of these commands, so they are sent again.
                (
                    command
                    @ (ToRoom::Gone { .. } | ToRoom::Refresh { .. } | ToRoom::Resume { .. }),
                    _,
                ) => self.retry(server, room, command),
                // Only gateways of older versions send frames.
                (ToRoom::Frame { .. }, Some(_)) | (_, None) => {}
            }
        }
    }

    /// Returns `true` if a room has accepted a client and has not answered its `joinRoom`
    /// command with this id.
    fn awaits_join(&self, key: ClientId, room: &RoomName, id: u32) -> bool {
        let subscription = self.clients.subscription(key, room);
        subscription.is_some_and(|one| {
            one.state == SubscriptionState::Joined
                && one.receives_events()
                && one.join_command == Some(id)
        })
    }

    fn join_request_failed(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        room: &RoomName,
        command: ToRoom,
    ) {
        let subscription = self
            .clients
            .current_subscription(room, command.connection());
        match subscription {
            Some(subscription) if subscription.repairing => {
                // The retry has its own time.
                if subscription.state == SubscriptionState::Joined {
                    subscription.answer_by = None;
                }
                self.retry(server, room, command);
            }
            Some(subscription)
                if subscription.state == SubscriptionState::Joining
                    || !subscription.is_accepted() =>
            {
                self.join_failed(server, key, room);
            }
            _ => {}
        }
    }

    /// Informs a client that its join failed. The room may have accepted the client,
    /// with the delivery lost. Then the answer to the room's next delivery names the
    /// subscription as gone.
    pub(super) fn join_failed(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        room: &RoomName,
    ) {
        let personal = self
            .clients
            .get(key)
            .map(|client| RoomName::personal(&client.identity.user));
        if personal.is_some_and(|personal| personal == *room) {
            // The gateway joins the personal room by itself, so the client would not
            // retry.
            return self.close(server, key, Disconnect::Failed);
        }
        let subscription = self.clients.subscription_mut(key, room);
        let command = subscription.and_then(|subscription| subscription.join_command.take());
        self.send(server, key, &framing::error(command, &Error::internal()));
        self.unsubscribed(server, key, room);
    }

    /// Handles a `leaveRoom` command that has failed and was answered. The room may have
    /// executed it, so the client subscribes again.
    pub(super) fn leave_failed(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        room: &RoomName,
    ) {
        if let Some(subscription) = self.clients.subscription_mut(key, room)
            && subscription.state == SubscriptionState::Leaving
        {
            subscription.state = SubscriptionState::Joined;
            subscription.leave_command = None;
            subscription.answer_by = None;
            self.repair(server, key, room);
            self.run_waiting(server, key, room);
        }
    }

    /// Sends a command to a room again later.
    fn retry(&mut self, server: &SocketIoServer, room: &RoomName, command: ToRoom) {
        let link = self.rooms.get(room);
        let delay = link.map_or(0, RoomLink::retry_delay);
        let at = server.engine.now() + jittered(delay, server.engine.random());
        self.retries.push(Retry {
            at,
            room: room.clone(),
            command,
        });
        self.schedule(at);
    }

    /// Sends the commands that are due again.
    pub(super) fn run_retries(&mut self, server: &mut SocketIoServer, now: Millis) {
        for Retry { room, command, .. } in self.retries.take_due(now) {
            self.run_retry(server, &room, command);
            self.forget_room(server, &room);
        }
        if let Some(at) = self.retries.deadline() {
            self.schedule(at);
        }
    }

    /// Sends a command again if it still applies. The position, the rights and the
    /// subscription of the client may have changed since then.
    fn run_retry(&mut self, server: &mut SocketIoServer, room: &RoomName, command: ToRoom) {
        let id = command.connection();
        let key = self.clients.by_subscription(id);
        let is_current = self.clients.current_subscription(room, id).is_some();
        match (command, key) {
            (ToRoom::Join { .. }, Some(key)) if is_current => self.repair(server, key, room),
            (ToRoom::Refresh { connection, .. }, Some(key)) if is_current => {
                self.refresh_rights(server, key, room, connection);
            }
            // A client that is paused again is resumed later.
            (ToRoom::Resume { connection, .. }, Some(key)) if is_current => {
                let current = self.clients.current_subscription(room, &connection);
                if current.is_some_and(|subscription| !subscription.is_paused) {
                    self.request_log(server, key, room);
                }
            }
            (ToRoom::Execute { id: Some(id), .. }, Some(key))
                if self.awaits_join(key, room, id) =>
            {
                self.request_join_answer(server, key, room);
            }
            (
                ToRoom::Join { .. }
                | ToRoom::Refresh { .. }
                | ToRoom::Resume { .. }
                | ToRoom::Execute { .. },
                _,
            ) => {}
            // The client has joined again since, and its new subscription replaces the
            // one that it left.
            (ToRoom::Gone { .. }, Some(key)) if self.clients.subscription(key, room).is_some() => {}
            (command, _) => self.forward(server, room, command),
        }
    }

    /// Sends a room the rights that the newest token of a client grants.
    fn refresh_rights(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        room: &RoomName,
        connection: ConnectionId,
    ) {
        if let Some(client) = self.clients.get(key) {
            let refresh = ToRoom::Refresh {
                connection,
                rights: client.identity.rights(room),
                expires: client.identity.expires,
                profile: Some(client.identity.profile()),
            };
            self.forward(server, room, refresh);
        }
    }
}
