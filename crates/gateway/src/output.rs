//! The effects that the host carries out for a gateway. The crate documentation
//! describes the steps for each.

use crate::answer::Answer;
use crate::frame::Frame;
use crate::ids::{ClientId, PollId, SocketId};
use roomcast_proto::access::Identity;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::id::{ConnectionId, RoomName, UserId};
use roomcast_proto::log_record::LogRecord;
use std::fmt;

/// An effect of the gateway on the outside. The host carries out outputs in order.
#[derive(Debug)]
pub enum Output {
    /// Sends a frame to one socket.
    Send {
        /// The receiver.
        socket: SocketId,
        /// The frame.
        frame: Frame,
    },
    /// Sends the same text frame to many sockets.
    Broadcast {
        /// The receivers; may be empty.
        sockets: Vec<SocketId>,
        /// The text of the frame.
        text: String,
    },
    /// Closes a socket.
    Close {
        /// The socket. Its key is invalid after this output.
        socket: SocketId,
        /// The close code.
        code: u16,
        /// The close reason.
        reason: &'static str,
    },
    /// Attaches a record to a socket and replaces the earlier record. Input of
    /// [`crate::SocketIoServer::restore_socket`].
    Attach {
        /// The socket.
        socket: SocketId,
        /// The record, as JSON.
        record: String,
    },
    /// Answers a polling request that waits.
    Answer {
        /// The request, from [`crate::Polled::Later`].
        poll: PollId,
        /// The answer.
        answer: Answer,
    },
    /// Commands wait for this room; see [`crate::Gateway::take_commands`]. Not repeated
    /// until [`crate::Gateway::take_commands`] has returned `None`.
    Forward {
        /// The name of the room.
        room: RoomName,
    },
    /// Stores the record of a client and replaces the earlier record.
    Save {
        /// The storage key: the `pid` of the client, or its id if it has no `pid`.
        client: String,
        /// The user of the client.
        user: UserId,
        /// The client is disconnected and can resume.
        gone: bool,
        /// The record, as JSON.
        record: String,
    },
    /// Deletes the record of a client.
    Forget {
        /// The storage key, as in [`Output::Save`].
        client: String,
    },
    /// Keeps a position in memory that survives a panic, for
    /// [`crate::Gateway::restore`].
    TrackPosition {
        /// The subject of the position.
        key: PositionKey,
        /// The highest `seq` that was delivered; `None` if the client has caught up, or if the
        /// gateway has no subscriber in the room any more.
        at: Option<u64>,
    },
    /// Stores or deletes a position of a room, for [`crate::Gateway::restore`].
    StorePosition {
        /// The subject of the position.
        key: PositionKey,
        /// The highest `seq` that the clients of the room have received; `None` if the
        /// gateway has no subscriber in the room any more.
        at: Option<u64>,
    },
    /// Deletes at most [`crate::MAX_CLEANED`] records that have been marked `gone` for
    /// longer than [`crate::RECOVERY_WINDOW`]. Answered by [`crate::Gateway::cleaned`].
    Clean,
    /// Finds the saved record of a client that resumes. Answered by
    /// [`crate::Gateway::found`].
    Find {
        /// The client that resumes.
        client: ClientId,
        /// The `pid` that the client sent. Begins with the name of the gateway that
        /// created it.
        pid: String,
        /// The user of the client. A record of another user is not returned.
        user: UserId,
    },
    /// Verifies credentials. Answered by [`crate::Gateway::authenticated`].
    Authenticate(Authentication),
    /// Writes a log record.
    Log(LogRecord),
}

/// The subject of a delivered position. Hosts store it as text, by `Display` and
/// [`PositionKey::parse`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PositionKey {
    /// All clients of a room, except for those that lag.
    Room(RoomName),
    /// The version of the presence that all clients of a room were told: see
    /// [`roomcast_proto::link::PresenceVersion`].
    Presence(RoomName),
    /// A client that lags behind the other clients of a room.
    Lagging {
        /// The name of the room.
        room: RoomName,
        /// The connection id of the client.
        client: ConnectionId,
    },
}

impl PositionKey {
    /// Returns the key with this text. The names of rooms contain no space.
    pub fn parse(text: &str) -> Self {
        match text.split_once(' ') {
            None => PositionKey::Room(RoomName::trusted(text)),
            Some((room, "")) => PositionKey::Presence(RoomName::trusted(room)),
            Some((room, client)) => PositionKey::Lagging {
                room: RoomName::trusted(room),
                client: ConnectionId::trusted(client),
            },
        }
    }
}

impl fmt::Display for PositionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PositionKey::Room(room) => f.write_str(room),
            PositionKey::Presence(room) => write!(f, "{room} "),
            PositionKey::Lagging { room, client } => write!(f, "{room} {client}"),
        }
    }
}

impl Output {
    /// Returns the output that closes `socket` for the reason `why`.
    pub(crate) fn close(socket: SocketId, why: Disconnect) -> Self {
        Output::Close {
            socket,
            code: why.code(),
            reason: why.reason(),
        }
    }
}

/// Credentials to verify, and the request that needs the result.
#[derive(Clone, Debug)]
pub struct Authentication {
    /// The credentials to verify.
    pub credentials: Credentials,
    /// Passed back to [`crate::Gateway::authenticated`] as it is.
    pub request: AuthRequest,
}

/// Credentials of a client.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// A token as the client sent it.
    Token(String),
    /// The identity of a token that was valid when the connection was opened. It may
    /// have expired or been revoked since.
    Identity(Box<Identity>),
}

/// The request that needs an authentication. It contains ids that are never reused,
/// because the connection may be closed before the result is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthRequest {
    /// A `refreshToken` command.
    Refresh {
        /// The id of the client.
        connection: ConnectionId,
        /// The id of the command, if it has one.
        id: Option<u32>,
    },
    /// A Socket.IO CONNECT.
    Connect {
        /// The id of the Engine.IO session.
        sid: String,
        /// The namespace.
        nsp: String,
        /// The number of the CONNECT; see [`crate::SocketIoServer::is_connecting`].
        number: u64,
        /// The `auth` of the CONNECT, a JSON object.
        auth: String,
    },
}
