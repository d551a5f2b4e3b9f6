//! A client and its subscriptions.

use crate::ids::{SessionId, SocketId};
use crate::socketio::{Receiver, SocketIoServer};
use crate::{recovery_offset, translate};
use roomcast_proto::access::{Identity, Rights};
use roomcast_proto::id::{ConnectionId, Epoch, RoomName};
use roomcast_proto::limits::Allowance;
use roomcast_proto::link::{self, ConnectRequest, PresenceVersion};
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::position::Position;
use roomcast_proto::status::Status;
use roomcast_proto::time::Millis;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::rc::Rc;

/// A connection of many rooms: a native socket, or a namespace of a Socket.IO session.
pub(super) struct Client {
    /// The connection id. Changes if a recovery fails.
    pub(super) id: ConnectionId,
    pub(super) framing: Framing,
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
    /// The time since which the client is paused: see [`super::pauses`].
    pub(super) paused_at: Option<Millis>,
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
    /// The version of the room's presence that the client was told, if it may lack later
    /// changes: it is paused, or was disconnected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) presence: Option<PresenceVersion>,
    #[serde(skip)]
    pub(super) state: SubscriptionState,
    /// The client joins again, because the room has lost the subscription.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) repairing: bool,
    /// The position to restore after hibernation, if it is behind that of the room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) lagging_at: Option<u64>,
    /// Events were dropped because the client is paused: see [`super::pauses`].
    #[serde(skip)]
    pub(super) is_paused: bool,
    /// The room knows that the client lacks events.
    #[serde(skip)]
    pub(super) is_reported: bool,
    /// The id of the `joinRoom` command, until it is answered.
    #[serde(skip)]
    pub(super) join_command: Option<u32>,
}

fn no_subscription_id() -> ConnectionId {
    ConnectionId::trusted("")
}

/// The state of a subscription.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum SubscriptionState {
    /// The gateway has asked the room to accept the client.
    Joining,
    /// The room has accepted the client. All subscriptions that are saved are in this
    /// state.
    #[default]
    Joined,
    /// The client sent `leaveRoom`. A subscription that is left before it was accepted
    /// has no [`Subscription::offset_version`].
    Leaving,
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
            presence: None,
            state: SubscriptionState::Joining,
            repairing: false,
            lagging_at: None,
            is_paused: false,
            is_reported: false,
            join_command,
        }
    }

    /// Returns `true` if the client receives the events that follow its position.
    pub(super) fn receives_events(&self) -> bool {
        self.state != SubscriptionState::Joining && self.is_accepted() && !self.repairing
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
            identity,
            status: Status::Online,
            phase: Phase::Connected,
            subscriptions: Vec::new(),
            version: 0,
            tag: u64::from_str_radix(&server.engine.new_id(), 16).unwrap_or_default() >> 32,
            pid: None,
            allowance: Allowance::full(&server.engine.config.limits, now),
            paused_at: None,
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
