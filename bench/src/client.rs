//! A client of a room: connects, sends commands, reads and checks events.

use crate::check::{Line, Sequence};
use crate::dialect::Dialect;
use crate::socket::{Socket, SocketError};
use crate::target::{Endpoint, Target};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use std::time::Duration;

/// Interval between two pings of a client.
pub(crate) const PING: Duration = Duration::from_secs(3);

/// Number of received bytes after which a client sends an additional ping. roomcast
/// pauses a client if it has sent `MAX_UNACKED_BYTES` to it since its last frame or
/// ping, and 1 MiB before its first one.
const PING_AFTER: usize = 512 << 10;

/// Time limit for every wait. It ends a run that hangs. No figure depends on it.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

/// Number of concurrent connects where connects are not measured.
pub(crate) const CONNECTING: usize = 32;

/// The content of every message.
pub(crate) const CONTENT: &str = "the quick brown fox jumps over the lazy dog, and then it rests.";

/// Why a client stopped.
pub(crate) enum Failure {
    /// The server violated a promise of the contract.
    Violation(String),
    /// The connection ended.
    Disconnected(String),
}

impl From<SocketError> for Failure {
    fn from(error: SocketError) -> Self {
        Failure::Disconnected(error.to_string())
    }
}

impl From<Failure> for String {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Violation(what) | Failure::Disconnected(what) => what,
        }
    }
}

/// A connection to a room with its position in the log.
pub(crate) struct Client {
    pub socket: Socket,
    pub sequence: Sequence,
    pub dialect: Dialect,
    room: String,
    /// Bytes read since the last ping caused by [`PING_AFTER`].
    unacked: usize,
}

/// The id of the command that joins the room.
const JOIN: u64 = 0;

impl Client {
    /// Connects `user` and waits until it has joined the room.
    pub(crate) async fn connect(
        target: &Target,
        room: &str,
        user: &User,
        since: Option<u64>,
    ) -> Result<Self, String> {
        let (endpoint, dialect) = (target.next_endpoint(), target.peer.dialect());
        Client::open(endpoint, dialect, room, user, since, |_, _| {}).await
    }

    /// [`Client::connect`] with a callback for every received line, from the first.
    pub(crate) async fn open(
        endpoint: &Endpoint,
        dialect: Dialect,
        room: &str,
        user: &User,
        since: Option<u64>,
        mut each: impl FnMut(&Line, &[u8]),
    ) -> Result<Self, String> {
        let path = dialect.path(room, since, &user.token);
        let socket = Socket::open(endpoint.address, &endpoint.host, &path, &user.token)
            .await
            .map_err(|error| format!("{}: {error}", user.name))?;
        let mut client = Client {
            socket,
            sequence: Sequence::after(since),
            dialect,
            room: room.to_owned(),
            unacked: 0,
        };
        if dialect == Dialect::SocketIo {
            let opened = |line: &Line| (*line == Line::Open).then_some(());
            client.until(opened, &mut each).await?;
            client.send("40").await?;
        }
        let connected = |line: &Line| match line {
            Line::Connected { head } => Some(*head),
            _ => None,
        };
        let mut head = client.until(connected, &mut each).await?;
        if dialect != Dialect::Room {
            let position = match since {
                Some(since) => format!(r#"{{"roomId":"{room}","since":{since}}}"#),
                None => format!(r#""{room}""#),
            };
            let join = dialect.command("joinRoom", &position, Some(JOIN));
            client.send(&join).await?;
            let joined = |line: &Line| match line {
                Line::Ack { id: JOIN, seq } => Some(*seq),
                _ => None,
            };
            head = Some(client.until(joined, &mut each).await?);
        }
        let head = head.ok_or("connected without seq")?;
        if since.is_none() {
            // Events that arrived before the answer are part of the position.
            let seen = client.sequence.last();
            client.sequence = Sequence::after(Some(seen.max(head)));
        }
        Ok(client)
    }

    /// Reads until `found` returns a value. Calls `each` with every line.
    async fn until<T>(
        &mut self,
        mut found: impl FnMut(&Line) -> Option<T>,
        each: &mut impl FnMut(&Line, &[u8]),
    ) -> Result<T, Failure> {
        let mut result = None;
        loop {
            self.read_raw(|line, raw| {
                if let Some(it) = found(line) {
                    result = Some(it);
                }
                each(line, raw);
            })
            .await?;
            if let Some(it) = result {
                return Ok(it);
            }
        }
    }

    /// Queues a message to the room.
    pub(crate) fn queue_message(&mut self, id: u64) {
        let content = format!(r#""content":"{CONTENT}""#);
        self.queue("sendMessage", &content, Some(id));
    }

    /// Queues a delivery receipt for the last received event.
    pub(crate) fn queue_receipt(&mut self, id: Option<u64>) {
        let seq = format!(r#""seq":{}"#, self.sequence.last());
        self.queue("messageDelivered", &seq, id);
    }

    /// Queues a command to the room with these fields of `data`.
    pub(crate) fn queue(&mut self, event: &str, fields: &str, id: Option<u64>) {
        let data = match self.dialect {
            Dialect::Room => format!("{{{fields}}}"),
            // The connection can have several rooms.
            _ => format!(r#"{{"roomId":"{}",{fields}}}"#, self.room),
        };
        let command = self.dialect.command(event, &data, id);
        self.socket.queue(command.as_bytes());
    }

    /// Sends one frame.
    pub(crate) async fn send(&mut self, text: &str) -> Result<(), Failure> {
        self.socket.queue(text.as_bytes());
        Ok(self.socket.flush().await?)
    }

    /// Checks the lines that have arrived and calls `each` with them. Waits for data
    /// if there is none. Cancel safe.
    pub(crate) async fn read(&mut self, mut each: impl FnMut(&Line)) -> Result<(), Failure> {
        self.read_raw(|line, _| each(line)).await
    }

    /// [`Client::read`] with the raw bytes of each line.
    pub(crate) async fn read_raw(
        &mut self,
        mut each: impl FnMut(&Line, &[u8]),
    ) -> Result<(), Failure> {
        if !self.take(&mut each)? {
            self.socket.fill().await?;
            self.take(&mut each)?;
        }
        // Sends the queued pong, if there is one.
        Ok(self.socket.flush().await?)
    }

    /// Checks the data that has been read. Returns `true` if there was any.
    fn take(&mut self, each: &mut impl FnMut(&Line, &[u8])) -> Result<bool, Failure> {
        let Client {
            socket,
            sequence,
            dialect,
            unacked,
            ..
        } = self;
        let (mut any, mut pinged) = (false, false);
        loop {
            let read = socket.next(|frame| {
                *unacked += frame.len();
                dialect.read(frame, sequence, |line, raw| {
                    pinged |= *line == Line::Ping;
                    each(line, raw);
                })
            });
            match read? {
                Some(result) => result.map_err(Failure::Violation)?,
                None => break,
            }
            any = true;
        }
        if pinged {
            socket.queue(b"3");
        }
        if *unacked >= PING_AFTER {
            *unacked = 0;
            if let Some(ping) = dialect.ping() {
                socket.queue(ping);
            }
        }
        Ok(any)
    }

    /// Sends a ping if the dialect has client pings.
    pub(crate) async fn ping(&mut self) -> Result<(), Failure> {
        if let Some(ping) = self.dialect.ping() {
            self.socket.queue(ping);
        }
        Ok(self.socket.flush().await?)
    }

    /// Ends the connection without a close frame.
    pub(crate) fn cut(self) {
        self.socket.cut();
    }
}

/// A user with its token, created before the measurement.
pub(crate) struct User {
    pub name: String,
    pub token: String,
}

/// Returns `count` distinct users.
pub(crate) fn users(target: &Target, count: usize) -> Vec<User> {
    (0..count)
        .map(|n| {
            let name = format!("user-{n:05}");
            let token = target.endpoint.token(&name);
            User { name, token }
        })
        .collect()
}

/// Connects the users to `room`, [`CONNECTING`] at a time. Returns the clients in
/// the order of `users`.
pub(crate) async fn connect_all(
    target: &Target,
    room: &str,
    users: &[User],
) -> Result<Vec<Client>, String> {
    stream::iter(users)
        .map(|user| Client::connect(target, room, user, None))
        .buffered(CONNECTING)
        .try_collect()
        .await
}
