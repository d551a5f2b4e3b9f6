//! A minimal WebSocket client. The load generator shares two cores with the server, so
//! it must use little processor time.
//!
//! It reads many frames with one system call, passes payloads without copying them, and
//! does not offer compression. It does not support TLS, check `Sec-WebSocket-Accept`,
//! validate UTF-8 or answer protocol pings (the runtime sends none). All masks are zero.
//! RFC 6455 section 5.3 requires unpredictable masks to protect proxies, but there are
//! none here, and unmasking costs the server the same.

use std::io;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Why a connection ended or could not be opened.
#[derive(Debug)]
pub(crate) enum SocketError {
    Io(io::Error),
    /// The server refused the upgrade, with this status line and body.
    Refused(String),
    /// The server closed the connection, with this code and reason.
    Closed(u16, String),
    /// Bytes that are not a valid WebSocket frame.
    Malformed(&'static str),
}

impl std::fmt::Display for SocketError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SocketError::Io(error) => write!(f, "{error}"),
            SocketError::Refused(answer) => write!(f, "upgrade refused: {answer}"),
            SocketError::Closed(code, reason) => write!(f, "closed with {code} {reason:?}"),
            SocketError::Malformed(what) => write!(f, "malformed: {what}"),
        }
    }
}

impl std::error::Error for SocketError {}

impl From<io::Error> for SocketError {
    fn from(error: io::Error) -> Self {
        SocketError::Io(error)
    }
}

/// Initial size of the read buffer in bytes. It grows to the largest frame.
const BUFFER: usize = 32 * 1024;

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// One open WebSocket.
pub(crate) struct Socket {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Unprocessed data: `buffer[start..end]`.
    start: usize,
    end: usize,
    /// The parts of a fragmented message so far.
    fragments: Vec<u8>,
    out: Vec<u8>,
}

impl Socket {
    /// Connects to `path` (with its query) at `address`, with a bearer token.
    pub(crate) async fn open(
        address: SocketAddr,
        host: &str,
        path: &str,
        token: &str,
    ) -> Result<Self, SocketError> {
        let authorization = format!("Authorization: Bearer {token}");
        Self::open_with(address, host, path, &authorization).await
    }

    /// Connects to `path` (with its query) at `address`, with another header.
    pub(crate) async fn open_with(
        address: SocketAddr,
        host: &str,
        path: &str,
        header: &str,
    ) -> Result<Self, SocketError> {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             {header}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut socket = Socket {
            stream,
            buffer: vec![0; BUFFER],
            start: 0,
            end: 0,
            fragments: Vec::new(),
            out: Vec::new(),
        };
        loop {
            let head = &socket.buffer[..socket.end];
            if let Some(end) = memchr::memmem::find(head, b"\r\n\r\n") {
                if !head.starts_with(b"HTTP/1.1 101") {
                    // The part of the body that has arrived is part of the error.
                    let answer = String::from_utf8_lossy(head);
                    let status = answer.lines().next().unwrap_or_default();
                    let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
                    return Err(SocketError::Refused(format!("{status} {body}")));
                }
                socket.start = end + 4;
                return Ok(socket);
            }
            socket.fill().await?;
        }
    }

    /// Waits for data and reads it. Cancel safe.
    pub(crate) async fn fill(&mut self) -> Result<(), SocketError> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            if self.start > 0 {
                self.buffer.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            } else {
                self.buffer.resize(self.buffer.len() * 2, 0);
            }
        }
        match self.stream.read(&mut self.buffer[self.end..]).await? {
            0 => Err(SocketError::Io(io::ErrorKind::UnexpectedEof.into())),
            n => {
                self.end += n;
                Ok(())
            }
        }
    }

    /// Calls `take` with the next complete text message in the buffer. Returns `None` if
    /// there is none.
    pub(crate) fn next<T>(
        &mut self,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Result<Option<T>, SocketError> {
        loop {
            let Some((opcode, fin, header, length)) = self.frame()? else {
                return Ok(None);
            };
            let from = self.start + header;
            let payload = from..from + length;
            self.start = payload.end;
            match opcode {
                TEXT if fin => return Ok(Some(take(&self.buffer[payload]))),
                0 | TEXT => {
                    self.fragments.extend_from_slice(&self.buffer[payload]);
                    if fin {
                        let whole = std::mem::take(&mut self.fragments);
                        return Ok(Some(take(&whole)));
                    }
                }
                CLOSE => {
                    let payload = &self.buffer[payload];
                    let (code, reason) = match payload {
                        [a, b, reason @ ..] => (u16::from_be_bytes([*a, *b]), reason),
                        _ => (1005, &[][..]),
                    };
                    let reason = String::from_utf8_lossy(reason).into_owned();
                    return Err(SocketError::Closed(code, reason));
                }
                PING | PONG => {}
                _ => return Err(SocketError::Malformed("unknown opcode")),
            }
        }
    }

    /// Returns the header of the next complete frame: opcode, FIN, header length, payload
    /// length.
    fn frame(&mut self) -> Result<Option<(u8, bool, usize, usize)>, SocketError> {
        let bytes = &self.buffer[self.start..self.end];
        let [first, second, rest @ ..] = bytes else {
            return Ok(None);
        };
        if second & 0x80 != 0 {
            return Err(SocketError::Malformed("the server sent a masked frame"));
        }
        let (header, length) = match (second & 0x7f, rest) {
            (126, [a, b, ..]) => (4, u16::from_be_bytes([*a, *b]) as usize),
            (127, [a, b, c, d, e, f, g, h, ..]) => (
                10,
                u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]) as usize,
            ),
            (126 | 127, _) => return Ok(None),
            (length, _) => (2, length as usize),
        };
        let complete = bytes.len() >= header + length;
        let found = (first & 0x0f, first & 0x80 != 0, header, length);
        if !complete && self.buffer.len() < header + length {
            self.buffer.resize((header + length).next_power_of_two(), 0);
        }
        Ok(complete.then_some(found))
    }

    /// Queues a text message for [`Socket::flush`].
    pub(crate) fn queue(&mut self, text: &[u8]) {
        self.queue_frame(TEXT, text);
    }

    /// Queues a binary message for [`Socket::flush`].
    pub(crate) fn queue_binary(&mut self, bytes: &[u8]) {
        self.queue_frame(BINARY, bytes);
    }

    fn queue_frame(&mut self, opcode: u8, payload: &[u8]) {
        self.out.push(0x80 | opcode);
        match payload.len() {
            n @ 0..126 => self.out.push(0x80 | n as u8),
            n @ 126..65536 => {
                self.out.push(0x80 | 126);
                self.out.extend_from_slice(&(n as u16).to_be_bytes());
            }
            n => {
                self.out.push(0x80 | 127);
                self.out.extend_from_slice(&(n as u64).to_be_bytes());
            }
        }
        self.out.extend_from_slice(&[0; 4]);
        self.out.extend_from_slice(payload);
    }

    /// Sends the queued frames.
    pub(crate) async fn flush(&mut self) -> Result<(), SocketError> {
        if !self.out.is_empty() {
            self.stream.write_all(&self.out).await?;
            self.out.clear();
        }
        Ok(())
    }

    /// Sends a close frame and waits for the answer of the server.
    pub(crate) async fn close(mut self) {
        self.queue_frame(CLOSE, &1000u16.to_be_bytes());
        if self.flush().await.is_err() {
            return;
        }
        while let Ok(()) | Err(SocketError::Malformed(_)) = self.drain() {
            if self.fill().await.is_err() {
                return;
            }
        }
    }

    fn drain(&mut self) -> Result<(), SocketError> {
        while self.next(|_| ())?.is_some() {}
        Ok(())
    }

    /// Ends the connection without a close frame, as a lost network does.
    pub(crate) fn cut(self) {
        // A reset instead of a FIN. If the option fails, the connection still ends
        // without a close frame.
        let _ = self.stream.set_zero_linger();
    }
}
