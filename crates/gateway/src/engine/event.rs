//! The events that the Engine.IO layer reports to the layer above.

use crate::connect_info::ConnectInfo;
use crate::frame::Frame;
use crate::ids::{SessionId, SocketId};
use roomcast_proto::time::Millis;

/// An event of a native socket or of a session. Taken by
/// [`super::EngineServer::next_event`].
#[derive(Debug)]
pub(crate) enum EngineEvent {
    /// A native socket was opened.
    NativeOpened {
        /// The socket.
        socket: SocketId,
        /// The id of the connection. Survives hibernation, unlike the key.
        id: String,
        /// The properties of the connection.
        info: Box<ConnectInfo>,
    },
    /// A native socket received a frame.
    NativeFrame {
        /// The socket.
        socket: SocketId,
        /// The frame.
        frame: Frame,
    },
    /// A native socket was closed, by either side.
    NativeClosed {
        /// The socket. Its key is invalid.
        socket: SocketId,
        /// The close code.
        code: u16,
        /// The time of the last sign of life.
        seen: Millis,
    },
    /// A session was opened.
    Opened {
        /// The session.
        session: SessionId,
    },
    /// A session was upgraded from long-polling to a WebSocket.
    Upgraded {
        /// The session.
        session: SessionId,
    },
    /// A session received a message.
    Message {
        /// The session.
        session: SessionId,
        /// The message.
        frame: Frame,
    },
    /// A session was closed, by either side.
    Closed {
        /// The session. Its key is invalid.
        session: SessionId,
        /// The time of the last sign of life.
        seen: Millis,
    },
}
