//! The effects that a room asks its host to carry out.

use crate::delivery::Delivery;
use crate::history::HistoryQuery;
use crate::ids::{CallId, ConnId};
use crate::log::LogBatch;
use crate::member::Member;
use crate::subscriber::StoredSubscriber;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::id::{ConnectionId, Epoch, GatewayName, UserId};
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::time::Millis;
use roomcast_proto::user_info::UserInfo;

/// An effect that the host carries out. The crate documentation describes the steps for
/// each.
#[derive(Debug)]
pub enum Output {
    /// Stores a change before any output after it is carried out.
    Store(Change),
    /// Sends a frame to a connection.
    Send {
        /// The connection.
        conn: ConnId,
        /// The frame.
        frame: String,
    },
    /// Sends the frames of a batch.
    Deliver(Delivery),
    /// A connection at a gateway lacks events and catches up. For [`Room::route`] only.
    ///
    /// [`Room::route`]: crate::Room::route
    CatchUp {
        /// The connection.
        conn: ConnId,
    },
    /// Sends a page of the log as the answer to a command.
    Page {
        /// The connection.
        conn: ConnId,
        /// The id of the command.
        id: u32,
        /// The requested page.
        query: HistoryQuery,
    },
    /// Attaches the record of a connection to its socket, for
    /// [`Room::restore_connection`](crate::Room::restore_connection).
    Attach {
        /// The connection.
        conn: ConnId,
    },
    /// A connection at a gateway receives broadcasts after this output. For [`Room::route`]
    /// only.
    ///
    /// [`Room::route`]: crate::Room::route
    Subscribed {
        /// The connection.
        conn: ConnId,
        /// Sequence number of the last event before the subscription.
        after: u64,
    },
    /// A connection at a gateway has left the room; its socket stays open. For
    /// [`Room::route`] only.
    ///
    /// [`Room::route`]: crate::Room::route
    Unsubscribed {
        /// The connection.
        conn: ConnId,
    },
    /// Closes the socket of a connection, which the room has removed.
    Close {
        /// The connection.
        conn: ConnId,
        /// The reason.
        reason: Disconnect,
    },
    /// Answers a call of a service.
    Reply {
        /// The call.
        call: CallId,
        /// The answers as a JSON list.
        answers: String,
    },
    /// Verifies the token of a `refreshToken`, immediately or later. Then the host calls
    /// [`Room::authenticated`](crate::Room::authenticated).
    Authenticate {
        /// The id of the connection.
        connection: ConnectionId,
        /// The id of the command.
        id: Option<u32>,
        /// The token.
        token: String,
    },
    /// Writes a log record.
    Log(LogRecord),
}

impl Output {
    /// Returns the connection that the output is for, if it is for a single one.
    pub(crate) fn connection(&self) -> Option<ConnId> {
        match self {
            Output::Send { conn, .. }
            | Output::CatchUp { conn }
            | Output::Page { conn, .. }
            | Output::Attach { conn }
            | Output::Subscribed { conn, .. }
            | Output::Unsubscribed { conn }
            | Output::Close { conn, .. } => Some(*conn),
            Output::Store(_)
            | Output::Deliver(_)
            | Output::Reply { .. }
            | Output::Authenticate { .. }
            | Output::Log(_) => None,
        }
    }
}

/// A change of the stored state.
#[derive(Debug)]
pub enum Change {
    /// Appends a row to the log.
    Append(LogBatch),
    /// Adds a member, or replaces its record.
    PutMember(UserId, Member),
    /// Replaces the profile of a member, which [`Change::PutMember`] and [`Change::Checkpoint`]
    /// do not change.
    PutProfile {
        /// The member.
        user: UserId,
        /// The profile; `None` if the newest token of the user has none.
        info: Option<UserInfo>,
        /// See [`Member::informed`].
        informed: u64,
    },
    /// Removes a member.
    RemoveMember(UserId),
    /// Adds a user who has left at this time to the list of those, or replaces the entry.
    PutDeparted(UserId, Millis),
    /// Removes a user from this list.
    RemoveDeparted(UserId),
    /// Adds or replaces the record of a connection at a gateway.
    PutSubscriber {
        /// The id of the connection.
        id: ConnectionId,
        /// The gateway.
        gateway: GatewayName,
        /// The record.
        subscriber: StoredSubscriber,
    },
    /// Removes the record of a connection at a gateway.
    RemoveSubscriber(ConnectionId),
    /// Appends a row to the journal of moved cursors.
    AppendJournal(String),
    /// Replaces the records of these members and deletes the journal.
    Checkpoint(Vec<(UserId, Member)>),
    /// Deletes the rows of the log up to an event, except for the last row, so that the
    /// sequence numbers continue. The sends of the rows at or after a time are kept; see
    /// [`KeptSends`](crate::KeptSends).
    Trim {
        /// Sequence number of the last event to delete.
        upto: u64,
        /// The start of the dedupe window.
        since: Millis,
        /// Sequence number before which no sends are kept.
        first: u64,
    },
    /// Deletes the log, the members and the journal, and begins a new epoch. The records of
    /// connections at gateways stay. If there are none, deletes the whole storage.
    Wipe {
        /// The new epoch.
        epoch: Epoch,
    },
}
