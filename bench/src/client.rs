//! Clients as they are in a room: how they get in, what they say, what they
//! make of what they read.

use crate::check::{Line, Sequence};
use crate::dialect::Dialect;
use crate::socket::{Socket, SocketError};
use crate::target::{Site, Target};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use std::time::Duration;

/// How often every client sends `ping`.
pub const PING: Duration = Duration::from_secs(3);

/// Also after so many bytes that it has read: servers cut who gives no sign while
/// it is sent much.
const PING_AFTER: usize = 4 << 20;

/// How long a server may take to finish what was asked of it. Only a limit to
/// end a run that hangs; no figure depends on it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How many connects are under way at once where the connect is not what is
/// measured.
pub const CONNECTING: usize = 32;

/// What one types in a chat: two lines on a phone.
pub const CONTENT: &str = "the quick brown fox jumps over the lazy dog, and then it rests.";

/// Why a socket does not go on.
pub enum Broken {
    /// The server broke a promise.
    Promise(String),
    /// The connection ended.
    Gone(String),
}

impl From<SocketError> for Broken {
    fn from(error: SocketError) -> Self {
        Broken::Gone(error.to_string())
    }
}

impl From<Broken> for String {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Promise(what) | Broken::Gone(what) => what,
        }
    }
}

/// A socket in the room, and where it is in the log.
pub struct Client {
    pub socket: Socket,
    pub sequence: Sequence,
    pub dialect: Dialect,
    room: String,
    /// Bytes read since it pinged for that.
    unanswered: usize,
}

/// The id of the command that joins the room.
const JOIN: u64 = 0;

impl Client {
    /// Connects `user` and waits until it is in the room.
    pub async fn connect(
        target: &Target,
        room: &str,
        user: &User,
        since: Option<u64>,
    ) -> Result<Self, String> {
        let (site, dialect) = (target.door(), target.peer.dialect());
        Client::open(site, dialect, room, user, since, |_, _| {}).await
    }

    /// The same, for somebody who wants to see all that comes, from the first.
    pub async fn open(
        site: &Site,
        dialect: Dialect,
        room: &str,
        user: &User,
        since: Option<u64>,
        mut each: impl FnMut(&Line, &[u8]),
    ) -> Result<Self, String> {
        let path = dialect.path(room, since, &user.token);
        let socket = Socket::open(site.address, &site.host, &path, &user.token)
            .await
            .map_err(|error| format!("{}: {error}", user.name))?;
        let mut client = Client {
            socket,
            sequence: Sequence::after(since),
            dialect,
            room: room.to_owned(),
            unanswered: 0,
        };
        if dialect == Dialect::SocketIo {
            let opened = |line: &Line| (*line == Line::Open).then_some(());
            client.until(opened, &mut each).await?;
            client.say("40").await?;
        }
        let connected = |line: &Line| match line {
            Line::Connected { head } => Some(*head),
            _ => None,
        };
        let mut head = client.until(connected, &mut each).await?;
        if dialect != Dialect::Room {
            let place = match since {
                Some(since) => format!(r#"{{"roomId":"{room}","since":{since}}}"#),
                None => format!(r#""{room}""#),
            };
            let join = dialect.command("joinRoom", &place, Some(JOIN));
            client.say(&join).await?;
            let joined = |line: &Line| match line {
                Line::Ack { id: JOIN, seq } => Some(*seq),
                _ => None,
            };
            head = Some(client.until(joined, &mut each).await?);
        }
        let head = head.ok_or("connected without seq")?;
        if since.is_none() {
            // Nothing can have come before it knew the head.
            let seen = client.sequence.last();
            client.sequence = Sequence::after(Some(seen.max(head)));
        }
        Ok(client)
    }

    /// Reads until `found` has found something; shows all to `each`.
    async fn until<T>(
        &mut self,
        mut found: impl FnMut(&Line) -> Option<T>,
        each: &mut impl FnMut(&Line, &[u8]),
    ) -> Result<T, Broken> {
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

    /// Has a message to its room ready to be sent.
    pub fn queue_message(&mut self, id: u64) {
        let content = format!(r#""content":"{CONTENT}""#);
        self.queue("sendMessage", &content, Some(id));
    }

    /// Has the receipt for all that it has seen ready to be sent.
    pub fn queue_receipt(&mut self, id: Option<u64>) {
        let seq = format!(r#""seq":{}"#, self.sequence.last());
        self.queue("messageDelivered", &seq, id);
    }

    /// Has a command to its room ready to be sent; `fields` are those of its data.
    pub fn queue(&mut self, event: &str, fields: &str, id: Option<u64>) {
        let data = match self.dialect {
            Dialect::Room => format!("{{{fields}}}"),
            // It could be in several.
            _ => format!(r#"{{"roomId":"{}",{fields}}}"#, self.room),
        };
        let command = self.dialect.command(event, &data, id);
        self.socket.queue(command.as_bytes());
    }

    /// Sends one frame.
    pub async fn say(&mut self, text: &str) -> Result<(), Broken> {
        self.socket.queue(text.as_bytes());
        Ok(self.socket.flush().await?)
    }

    /// Waits for something to arrive unless something is there already, checks
    /// it, and shows it to `each`. Cancel safe.
    pub async fn read(&mut self, mut each: impl FnMut(&Line)) -> Result<(), Broken> {
        self.read_raw(|line, _| each(line)).await
    }

    /// The same; `each` is also given the line as it is written.
    pub async fn read_raw(&mut self, mut each: impl FnMut(&Line, &[u8])) -> Result<(), Broken> {
        if !self.take(&mut each)? {
            self.socket.fill().await?;
            self.take(&mut each)?;
        }
        // A pong, if there is anything.
        Ok(self.socket.flush().await?)
    }

    /// Looks at what has been read; whether there was anything.
    fn take(&mut self, each: &mut impl FnMut(&Line, &[u8])) -> Result<bool, Broken> {
        let Client {
            socket,
            sequence,
            dialect,
            unanswered,
            ..
        } = self;
        let (mut any, mut pinged) = (false, false);
        loop {
            let read = socket.next(|frame| {
                *unanswered += frame.len();
                dialect.read(frame, sequence, |line, raw| {
                    pinged |= *line == Line::Ping;
                    each(line, raw);
                })
            });
            match read? {
                Some(result) => result.map_err(Broken::Promise)?,
                None => break,
            }
            any = true;
        }
        if pinged {
            socket.queue(b"3");
        }
        if *unanswered >= PING_AFTER {
            *unanswered = 0;
            if let Some(ping) = dialect.ping() {
                socket.queue(ping);
            }
        }
        Ok(any)
    }

    /// Shows that it lives, where that is up to it.
    pub async fn ping(&mut self) -> Result<(), Broken> {
        if let Some(ping) = self.dialect.ping() {
            self.socket.queue(ping);
        }
        Ok(self.socket.flush().await?)
    }

    /// Goes away without a word.
    pub fn cut(self) {
        self.socket.cut();
    }
}

/// A user and its token, made before the clock starts.
pub struct User {
    pub name: String,
    pub token: String,
}

/// `count` users that nobody else is.
pub fn users(target: &Target, count: usize) -> Vec<User> {
    (0..count)
        .map(|n| {
            let name = format!("user-{n:05}");
            let token = target.site.token(&name);
            User { name, token }
        })
        .collect()
}

/// Connects them to `room` a few at a time; answers in the order of `users`.
pub async fn connect_all(
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
