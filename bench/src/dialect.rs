//! The ways to be in a room: how one gets in, and how what is said there is
//! written.

use crate::check::{self, Line, Sequence};

/// What a socket speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Lines, on a room's own socket.
    Room,
    /// Lines, on a socket that joins rooms.
    Gateway,
    /// Packets of Socket.IO on a WebSocket that joins rooms.
    SocketIo,
}

impl Dialect {
    /// Where a socket for `room` is opened.
    pub fn path(self, room: &str, since: Option<u64>, token: &str) -> String {
        match (self, since) {
            (Dialect::Room, Some(since)) => format!("/rooms/{room}/ws?since={since}"),
            (Dialect::Room, None) => format!("/rooms/{room}/ws"),
            (Dialect::Gateway, _) => "/ws".to_owned(),
            (Dialect::SocketIo, _) => {
                format!("/socket.io/?EIO=4&transport=websocket&token={token}")
            }
        }
    }

    /// A command; with `id` it asks to be answered. `data` is JSON.
    pub fn command(self, event: &str, data: &str, id: Option<u64>) -> String {
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

    /// What a client says by itself every few seconds. With Socket.IO the
    /// server asks.
    pub fn ping(self) -> Option<&'static [u8]> {
        match self {
            Dialect::Room | Dialect::Gateway => Some(b"ping"),
            Dialect::SocketIo => None,
        }
    }

    /// Checks what is in a frame, and shows it to `each`, also as it is written.
    pub fn read(
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
