//! The events that the Socket.IO layer reports to the application.

use crate::connect_info::ConnectInfo;
use crate::frame::Frame;
use crate::ids::{SessionId, SocketId};
use bytes::Bytes;
use roomcast_proto::time::Millis;

/// An event of a native socket or of a namespace. Taken by
/// [`super::SocketIoServer::next_event`].
#[derive(Debug)]
pub enum ConnectionEvent {
    /// A native socket was opened.
    Opened {
        /// The socket.
        socket: SocketId,
        /// The id of the connection. Survives hibernation, unlike the key.
        id: String,
        /// The properties of the connection.
        info: Box<ConnectInfo>,
    },
    /// A native socket received a frame.
    Frame {
        /// The socket.
        socket: SocketId,
        /// The frame.
        frame: Frame,
    },
    /// A native socket was closed, by either side.
    Closed {
        /// The socket. Its key is invalid.
        socket: SocketId,
        /// The close code.
        code: u16,
        /// The time of the last sign of life.
        seen: Millis,
    },
    /// A session of bare Engine.IO received a message.
    Message {
        /// The session.
        session: SessionId,
        /// The message.
        frame: Frame,
    },
    /// A client asks to connect to a namespace. Answered by
    /// [`super::SocketIoServer::accept`] or [`super::SocketIoServer::refuse`].
    Connect {
        /// The session.
        session: SessionId,
        /// The namespace.
        nsp: String,
        /// The number of this CONNECT; see [`super::SocketIoServer::is_connecting`].
        number: u64,
        /// The `auth` that the client sent: a JSON object.
        auth: String,
    },
    /// A client sent an event to a namespace that it is connected to.
    Event {
        /// The session.
        session: SessionId,
        /// The namespace.
        nsp: String,
        /// The id of the acknowledgement, if the client has requested one.
        ack: Option<i64>,
        /// The name and the arguments of the event: a JSON list.
        args: String,
        /// The attachments. Their contents are empty unless
        /// [`super::Attachments::Keep`] is set.
        attachments: Vec<Bytes>,
    },
    /// A client has sent a packet to a namespace that it is not connected to. The session is
    /// closed; the [`ConnectionEvent::Disconnected`]s of its namespaces follow.
    Unconnected {
        /// The session. Its key is invalid.
        session: SessionId,
        /// The start of the name of the namespace.
        nsp: String,
    },
    /// A client was disconnected from a namespace, or cancelled its CONNECT.
    Disconnected {
        /// The session. Its key may be invalid.
        session: SessionId,
        /// The namespace.
        nsp: String,
        /// The cause.
        cause: DisconnectCause,
    },
}

/// The cause of [`ConnectionEvent::Disconnected`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DisconnectCause {
    /// The client sent DISCONNECT.
    Packet,
    /// The session of the client ended.
    SessionEnded {
        /// The time of the last sign of life.
        seen: Millis,
    },
}
