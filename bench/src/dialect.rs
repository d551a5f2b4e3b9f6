//! The protocols of clients: how a connection is opened and how commands and events
//! are written.

use crate::check::{self, Line, Sequence};

/// The protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// The native framing on the socket of a room.
    Room,
    /// The native framing on a socket of a gateway.
    Gateway,
    /// Socket.IO over WebSocket.
    SocketIo,
}

impl Dialect {
    /// Returns the path that opens a connection for `room`.
    pub(crate) fn path(self, room: &str, since: Option<u64>, token: &str) -> String {
        match (self, since) {
            (Dialect::Room, Some(since)) => format!("/rooms/{room}/ws?since={since}"),
            (Dialect::Room, None) => format!("/rooms/{room}/ws"),
            (Dialect::Gateway, _) => "/ws".to_owned(),
            (Dialect::SocketIo, _) => {
                format!("/socket.io/?EIO=4&transport=websocket&recovery=1&token={token}")
            }
        }
    }

    /// Returns a command. With `id` the server answers it. `data` is JSON.
    pub(crate) fn command(self, event: &str, data: &str, id: Option<u64>) -> String {
        match (self, id) {
            (Dialect::Room | Dialect::Gateway, Some(id)) => {
                format!(r#"{{"event":"{event}","data":{data},"id":{id}}}"#)
            }
            (Dialect::Room | Dialect::Gateway, None) => {
                format!(r#"{{"event":"{event}","data":{data}}}"#)
            }
            (Dialect::SocketIo, Some(id)) => format!(r#"42{id}["{event}",{data}]"#),
            (Dialect::SocketIo, None) => format!(r#"42["{event}",{data}]"#),
        }
    }

    /// Returns the ping that clients send, or `None` if the server sends pings.
    pub(crate) fn ping(self) -> Option<&'static [u8]> {
        match self {
            Dialect::Room | Dialect::Gateway => Some(b"ping"),
            Dialect::SocketIo => None,
        }
    }

    /// Checks a frame and calls `each` with every line and its raw bytes.
    pub(crate) fn read(
        self,
        frame: &[u8],
        sequence: &mut Sequence,
        mut each: impl FnMut(&Line, &[u8]),
    ) -> Result<(), String> {
        match self {
            Dialect::Room | Dialect::Gateway => check::lines(frame, |line| {
                each(&sequence.line(line)?, line);
                Ok(())
            }),
            Dialect::SocketIo => {
                each(&sequence.packet(frame)?, frame);
                Ok(())
            }
        }
    }
}
