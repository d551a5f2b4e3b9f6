//! A client and its subscriptions.

use super::delivery_acks::Mark;
use crate::dialect::Dialect;
use crate::ids::{SessionId, SocketId};
use crate::socketio::{Receiver, SocketIoServer};
use crate::{recovery_offset, translate};
use roomcast_proto::access::{Identity, Rights};
use roomcast_proto::command::Command;
use roomcast_proto::error::{Error, ErrorCode, Result};
use roomcast_proto::id::{ConnectionId, Epoch, RoomName};
use roomcast_proto::limits::Allowance;
use roomcast_proto::link::{self, ConnectRequest, PresenceVersion, UNKNOWN_PRESENCE};
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::position::Position;
use roomcast_proto::status::Status;
use roomcast_proto::time::{Millis, SECOND};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::rc::Rc;

/// Maximum number of commands of a client that wait for an answer of their room.
const MAX_WAITING_COMMANDS: usize = 64;

/// Maximum size in bytes of the events in these commands. Above the default of
/// `MAX_FRAME_BYTES`, so that a single frame of commands fits.
const MAX_WAITING_BYTES: usize = 128 * 1024;

/// Time in milliseconds after which the client may repeat a command that does not fit.
const WAITING_PAUSE: Millis = SECOND;

/// Maximum number of rooms that a client has left and whose positions are remembered.
const MAX_LEFT_ROOMS: usize = 32;

/// A connection of many rooms: a native socket, or a namespace of a Socket.IO session.
pub(super) struct Client {
    /// The connection id. Changes if a recovery fails.
    pub(super) id: ConnectionId,
    pub(super) framing: Framing,
    /// The vocabulary of the client.
    pub(super) dialect: Dialect,
    /// The newest valid token of the client.
    pub(super) identity: Rc<Identity>,
    pub(super) status: Status,
    pub(super) phase: Phase,
    /// In the order in which the rooms accepted the client, which is the order of the
    /// positions in offsets. Subscriptions that were not accepted yet come last.
    pub(super) subscriptions: Vec<Subscription>,
    /// Counts the changes of the order of `subscriptions`. Part of every offset.
    pub(super) version: u64,
    /// Random number with which the offsets of this client begin. It identifies the
    /// `pid` of an offset: a client library keeps the last offset that it received, and
    /// may send it with a later `pid`.
    pub(super) tag: u64,
    /// The id that Socket.IO shows to applications. Survives a recovery.
    pub(super) sid: String,
    /// The secret by which the client can resume, if it supports that.
    pub(super) pid: Option<String>,
    pub(super) allowance: Allowance,
    /// The events that the client has not acknowledged, in dialects in which the server does so.
    pub(super) mark: Mark,
    /// The time since which the client is paused: see [`super::pauses`].
    pub(super) paused_at: Option<Millis>,
    /// The commands that wait until a room has answered `joinRoom` or `leaveRoom`, in order.
    pub(super) waiting: Vec<WaitingCommand>,
    /// The rooms that the client has left, the last one at the end.
    pub(super) left_rooms: Vec<LeftRoom>,
}

/// A command that waits for the answer of its room to an earlier command.
pub(super) struct WaitingCommand {
    pub(super) room: RoomName,
    pub(super) id: Option<u32>,
    pub(super) command: Command,
}

/// A room that a client has left. The client has received the events after `first` up to
/// `delivered`.
pub(super) struct LeftRoom {
    room: RoomName,
    epoch: Epoch,
    first: u64,
    delivered: u64,
}

/// How a client is reached, and in which framing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Framing {
    Native(SocketId),
    SocketIo { session: SessionId, nsp: String },
}

/// The phase of the life of a client.
pub(super) enum Phase {
    /// The client was accepted.
    Connected,
    /// The host looks for the record that was saved under `pid`. Nothing is sent to the
    /// client.
    Finding {
        pid: String,
        /// The last offset that the client received.
        offset: Option<String>,
    },
    /// The rooms replay what the client missed. Nothing is sent to the client until it
    /// is known whether the replay is complete.
    Recovering {
        /// The rooms that have not answered.
        pending: HashSet<RoomName>,
        /// No event is known to be missing.
        complete: bool,
        /// The texts for the client. Sent once it is accepted.
        held: Vec<HeldText>,
        /// The recovery fails at this time.
        deadline: Millis,
    },
}

/// Lines that are held back during a recovery.
#[derive(Debug)]
pub(super) struct HeldText {
    /// The room of the lines; `None` for answers of the gateway itself.
    pub(super) room: Option<RoomName>,
    pub(super) text: String,
}

/// A room that a client has joined or is joining. Saved with the client, so the names of
/// its fields in JSON must not change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Subscription {
    pub(super) room: RoomName,
    /// The connection id in the room. Each join has a new one, so that a late delivery
    /// for one join is not taken for a delivery for another. Empty in records of
    /// versions that did not have the field.
    #[serde(default = "no_subscription_id", rename = "seat")]
    pub(super) id: ConnectionId,
    /// The epoch of the log of the room.
    pub(super) epoch: Epoch,
    /// Sequence number after which the client reads the log when it resumes, unless its
    /// offset has a later one.
    pub(super) from: u64,
    /// The [`Client::version`] since which offsets contain this room. `None` until the
    /// room accepts the client. A subscription is saved only after that.
    #[serde(rename = "version")]
    pub(super) offset_version: Option<u64>,
    /// The highest `seq` that was delivered to the client.
    #[serde(skip)]
    pub(super) delivered: u64,
    /// The highest `seq` that the server has acknowledged for the client, in dialects that do not
    /// acknowledge. After hibernation, everything that was delivered: most of it was
    /// acknowledged before.
    #[serde(skip)]
    pub(super) acknowledged: u64,
    /// The highest `seq` that was sent when the client was marked.
    #[serde(skip)]
    pub(super) marked: u64,
    /// The version of the room's presence that the client was told, if it may lack later
    /// changes: see [`super::presence`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) presence: Option<PresenceVersion>,
    #[serde(
        default,
        rename = "leaving",
        skip_serializing_if = "SubscriptionState::is_not_leaving"
    )]
    pub(super) state: SubscriptionState,
    /// The connection has received all events after this one, up to `delivered`.
    #[serde(skip)]
    pub(super) first: u64,
    /// `first` and `delivered` of the last subscription to the room, if this one continues
    /// after it.
    #[serde(skip)]
    continues: Option<(u64, u64)>,
    /// The client joins again, because the room has lost the subscription.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) repairing: bool,
    /// The position to restore after hibernation, if it is behind that of the room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) lagging_at: Option<u64>,
    /// Events were dropped because the client is paused: see [`super::pauses`].
    #[serde(skip)]
    pub(super) is_paused: bool,
    /// The answer to the join may have shown changes of the presence that the room had not
    /// announced.
    #[serde(skip)]
    pub(super) is_fresh: bool,
    /// The room knows that the client lacks changes of the presence.
    #[serde(skip)]
    pub(super) lack_is_reported: bool,
    /// The room knows that the client lacks events.
    #[serde(skip)]
    pub(super) is_reported: bool,
    /// The id of the `joinRoom` command, until it is answered.
    #[serde(skip)]
    pub(super) join_command: Option<u32>,
    /// The id of the `leaveRoom` command, until it is answered.
    #[serde(skip)]
    pub(super) leave_command: Option<u32>,
    /// The room has answered `leaveRoom`. The end of the subscription follows.
    #[serde(skip)]
    pub(super) is_leave_answered: bool,
    /// The time by which the room must answer a join or a leave.
    #[serde(skip)]
    pub(super) answer_by: Option<Millis>,
}

fn no_subscription_id() -> ConnectionId {
    ConnectionId::trusted("")
}

/// The state of a subscription. Saved as a boolean, which is `true` for
/// [`SubscriptionState::Leaving`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "bool", into = "bool")]
pub(super) enum SubscriptionState {
    /// The gateway has asked the room to accept the client. Not saved.
    Joining,
    /// The room has accepted the client.
    #[default]
    Joined,
    /// The room has accepted the client, and the client has sent `leaveRoom` since then.
    Leaving,
}

impl SubscriptionState {
    fn is_not_leaving(&self) -> bool {
        *self != SubscriptionState::Leaving
    }
}

impl From<bool> for SubscriptionState {
    fn from(leaving: bool) -> Self {
        match leaving {
            true => SubscriptionState::Leaving,
            false => SubscriptionState::Joined,
        }
    }
}

impl From<SubscriptionState> for bool {
    fn from(state: SubscriptionState) -> Self {
        !state.is_not_leaving()
    }
}

impl Subscription {
    /// Returns the subscription of a client that joins `room`.
    pub(super) fn joining(room: &RoomName, id: ConnectionId, join_command: Option<u32>) -> Self {
        Subscription {
            room: room.clone(),
            id,
            epoch: Epoch::default(),
            from: 0,
            offset_version: None,
            delivered: 0,
            acknowledged: 0,
            marked: 0,
            presence: None,
            state: SubscriptionState::Joining,
            first: 0,
            continues: None,
            repairing: false,
            lagging_at: None,
            is_paused: false,
            is_fresh: true,
            lack_is_reported: false,
            is_reported: false,
            join_command,
            leave_command: None,
            is_leave_answered: false,
            answer_by: None,
        }
    }

    /// Records that the client may lack changes of the presence since `told`, the version that
    /// the subscribers of the room were told, unless it lacks earlier ones.
    pub(super) fn lacks_presence(&mut self, told: Option<PresenceVersion>) {
        let told = told.filter(|_| !self.is_fresh);
        self.presence
            .get_or_insert(told.unwrap_or(UNKNOWN_PRESENCE));
    }

    /// Returns `true` if the client receives the events that follow its position.
    pub(super) fn receives_events(&self) -> bool {
        self.state != SubscriptionState::Joining && self.is_accepted() && !self.repairing
    }

    /// Records that the room has accepted the client, which receives the events after
    /// `after`.
    pub(super) fn accepted(&mut self, after: u64) {
        self.first = match self.continues.take() {
            Some((first, delivered)) if delivered == after => first,
            _ => after,
        };
        self.answer_by = None;
    }

    /// Returns `true` if the room has accepted the client since it first joined.
    pub(super) fn is_accepted(&self) -> bool {
        self.offset_version.is_some()
    }
}

impl Client {
    /// Returns a connected client without subscriptions.
    pub(super) fn new(
        server: &SocketIoServer,
        id: ConnectionId,
        framing: Framing,
        identity: Rc<Identity>,
        now: Millis,
    ) -> Self {
        Client {
            sid: id.to_string(),
            id,
            framing,
            dialect: Dialect::default(),
            identity,
            status: Status::Online,
            phase: Phase::Connected,
            subscriptions: Vec::new(),
            version: 0,
            tag: u64::from_str_radix(&server.engine.new_id(), 16).unwrap_or_default() >> 32,
            pid: None,
            allowance: Allowance::full(&server.engine.config.limits, now),
            mark: Mark::default(),
            paused_at: None,
            waiting: Vec::new(),
            left_rooms: Vec::new(),
        }
    }

    /// Returns `true` if a command must wait until its room has answered an earlier command.
    ///
    /// While the client leaves the room, it is not known which commands the room receives
    /// before the end of the subscription, so none is sent. `leaveRoom` waits for the answer
    /// to `joinRoom`: if the join is refused, the client is not in the room.
    pub(super) fn must_wait(&self, room: &RoomName, command: &Command) -> bool {
        match self.subscription(room).map(|one| one.state) {
            Some(SubscriptionState::Leaving) => true,
            Some(SubscriptionState::Joining) => matches!(command, Command::Leave { .. }),
            Some(SubscriptionState::Joined) | None => false,
        }
    }

    /// Checks that the client can join another room. The limit does not count the personal
    /// room, which the gateway joins.
    ///
    /// # Errors
    ///
    /// Returns `conflict` if the client is in `max` rooms.
    pub(super) fn check_room_limit(&self, room: &RoomName, max: usize) -> Result<()> {
        let personal = RoomName::personal(&self.identity.user);
        let subscriptions = self.subscriptions.iter();
        let others = subscriptions.filter(|one| one.room != personal).count();
        if *room != personal && others >= max {
            return Err(Error::new(
                ErrorCode::Conflict,
                format!("a connection can be in at most {max} rooms"),
            ));
        }
        Ok(())
    }

    /// Returns `true` if commands for the room are waiting.
    pub(super) fn has_waiting(&self, room: &RoomName) -> bool {
        self.waiting.iter().any(|waiting| waiting.room == *room)
    }

    /// Adds a command that waits.
    ///
    /// # Errors
    ///
    /// Returns `rateLimited` if too many commands wait.
    pub(super) fn wait(&mut self, waiting: WaitingCommand) -> Result<()> {
        let bytes = self.waiting.iter().map(|one| one.command.event_bytes());
        let bytes: usize = bytes.sum::<usize>() + waiting.command.event_bytes();
        if self.waiting.len() >= MAX_WAITING_COMMANDS || bytes > MAX_WAITING_BYTES {
            return Err(Error::rate_limited(
                "commands while the room is joined or left",
                WAITING_PAUSE,
            ));
        }
        self.waiting.push(waiting);
        Ok(())
    }

    /// Removes the first waiting command for a room that need not wait any longer.
    pub(super) fn take_waiting(&mut self, room: &RoomName) -> Option<WaitingCommand> {
        let mut waiting = self.waiting.iter();
        let index = waiting.position(|one| one.room == *room)?;
        if self.must_wait(room, &self.waiting[index].command) {
            return None;
        }
        Some(self.waiting.remove(index))
    }

    /// Remembers the events that the client has received by a subscription that has ended.
    pub(super) fn remember_left(&mut self, ended: &Subscription) {
        if self.left_rooms.len() == MAX_LEFT_ROOMS {
            self.left_rooms.remove(0);
        }
        self.left_rooms.push(LeftRoom {
            room: ended.room.clone(),
            epoch: ended.epoch.clone(),
            first: ended.first,
            delivered: ended.delivered,
        });
    }

    /// Moves the position of a join to the last event that the client has received, so that
    /// it receives each event once. Events that the gateway sent before the client left the
    /// room may have been under way when the client took its position.
    ///
    /// A position before the first of the received events does not change, and neither does
    /// a request for `history`: the client asks for events again.
    pub(super) fn continue_after_leave(
        &mut self,
        subscription: &mut Subscription,
        position: &mut Position,
    ) {
        let mut left = self.left_rooms.iter();
        let Some(index) = left.position(|left| left.room == subscription.room) else {
            return;
        };
        let left = self.left_rooms.remove(index);
        let is_same_log = position.epoch.as_ref().is_none_or(|it| *it == left.epoch);
        let received = left.first..=left.delivered;
        if is_same_log
            && position
                .since
                .is_some_and(|since| received.contains(&since))
        {
            position.since = Some(left.delivered);
            position.epoch = Some(left.epoch);
            subscription.continues = Some((left.first, left.delivered));
        }
    }

    /// Returns the receiver of the client's events.
    pub(super) fn receiver(&self) -> Receiver<'_> {
        match &self.framing {
            Framing::Native(socket) => Receiver::Native(*socket),
            Framing::SocketIo { session, nsp } => Receiver::Namespace(*session, nsp),
        }
    }

    /// Adds the user and the connection to a log record.
    pub(super) fn log_record(&self, entry: LogRecord) -> LogRecord {
        entry.user(&self.identity.user).connection(&self.id)
    }

    /// Returns a new subscription id, which begins with the id of the client.
    pub(super) fn new_subscription_id(&self, server: &SocketIoServer) -> ConnectionId {
        let (client, random) = (&self.id, server.engine.new_id());
        ConnectionId::trusted(format!("{client}{}{random}", link::CLIENT_SEPARATOR))
    }

    /// Returns the request to join a room with this subscription id.
    pub(super) fn join_request(
        &self,
        id: ConnectionId,
        rights: Rights,
        position: Position,
    ) -> ConnectRequest {
        ConnectRequest {
            connection_id: id,
            user: self.identity.user.clone(),
            rights,
            expires: self.identity.expires,
            address: None,
            position,
            status: self.status,
            token: self.identity.token.clone(),
            info: self.identity.info.clone(),
            needs_message_ids: self.dialect.needs_message_ids(),
        }
    }

    /// Returns the key under which the record of the client is saved.
    pub(super) fn storage_key(&self) -> String {
        self.pid.clone().unwrap_or_else(|| self.id.to_string())
    }

    pub(super) fn subscription(&self, room: &RoomName) -> Option<&Subscription> {
        self.subscriptions.iter().find(|one| one.room == *room)
    }

    pub(super) fn subscription_mut(&mut self, room: &RoomName) -> Option<&mut Subscription> {
        self.subscriptions.iter_mut().find(|one| one.room == *room)
    }

    /// Returns the index of the subscription to `room`.
    pub(super) fn index_of(&self, room: &RoomName) -> Option<usize> {
        self.subscriptions.iter().position(|one| one.room == *room)
    }

    /// Returns the offsets of this client for the events of the subscription at `index`.
    pub(super) fn offset_template(&self, index: usize) -> translate::OffsetTemplate {
        let (mut before, mut after) = (String::new(), String::new());
        recovery_offset::push(&mut before, self.tag);
        recovery_offset::push(&mut before, self.version);
        for (at, subscription) in self.subscriptions.iter().enumerate() {
            if subscription.state == SubscriptionState::Joining || at == index {
                continue;
            }
            let part = if at < index { &mut before } else { &mut after };
            recovery_offset::push(part, subscription.delivered);
        }
        translate::OffsetTemplate { before, after }
    }

    /// Returns the offset of a client that has received everything so far. Returns `None` if the
    /// client does not resume or is in no room.
    pub(super) fn current_offset(&self) -> Option<String> {
        self.pid.as_ref()?;
        let subscriptions = self.subscriptions.iter().enumerate();
        let mut accepted = subscriptions.filter(|(_, one)| one.state != SubscriptionState::Joining);
        let (index, subscription) = accepted.next()?;
        Some(self.offset_template(index).at(subscription.delivered))
    }

    /// Returns the room of a command without `roomId`, in dialects that allow it: the only room
    /// that the client is in, not counting its personal room.
    ///
    /// # Errors
    ///
    /// Returns `notJoined` if the client is in no room, and `badRequest` if it is in several.
    pub(super) fn only_room(&self) -> Result<RoomName> {
        let personal = RoomName::personal(&self.identity.user);
        let subscriptions = self.subscriptions.iter();
        let mut rooms = subscriptions.filter(|one| one.room != personal);
        match (rooms.next(), rooms.next()) {
            (Some(only), None) => Ok(only.room.clone()),
            (None, _) => Err(Error::not_joined()),
            (Some(_), Some(_)) => Err(Error {
                field: Some("roomId".into()),
                ..Error::bad_request("`roomId` is required, because the client is in several rooms")
            }),
        }
    }

    /// Ends a recovery before the client has received any text of it. The order of the
    /// rooms may have changed, so an offset in the earlier order is no longer valid. The
    /// positions of the offset are in [`Subscription::from`] already.
    pub(super) fn abandon_recovery(&mut self) {
        self.version += 1;
        for subscription in &mut self.subscriptions {
            subscription.offset_version = Some(self.version);
            subscription.state = SubscriptionState::Joined;
        }
    }
}
