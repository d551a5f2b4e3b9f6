//! The gateway: sockets that are not of one room. Native ones and Socket.IO
//! ones; each joins and leaves rooms, and a room sees the gateway as one more
//! place to send to ([`crate::room::link`]).
//!
//! A state machine without I/O, in layers that know only what is below:
//! - `engine`: Engine.IO sessions, on WebSocket or long-polling; heartbeats
//! - `socketio`: namespaces, events and acknowledgements on a session
//! - an [`App`] on top: [`chat`], or the echo of the conformance build
//!
//! [`Hub`] is the two lower layers with what they keep; it collects what is to
//! be done ([`Output`]) and what the application is to hear ([`Up`]).

pub mod chat;
#[cfg(feature = "conformance")]
pub mod echo;
mod engine;
pub mod handshake;
mod line;
mod offset;
mod socketio;

pub use engine::{
    Answer, Door, Polled, PostBody, Posting, Protocol, Receiver, UNAUTHENTICATED_BYTES,
};

use crate::config::Config;
use crate::eventlog::Entry;
use crate::room::limits::{Doors, Floods};
use crate::room::link;
use crate::time::{Millis, SECOND};
use crate::wire::native::Close;
use bytes::Bytes;
use engine::{Session, Sock};
use slotmap::{SlotMap, new_key_type};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

/// What has just begun (a handshake, an upgrade, a recovery) is looked at again
/// after this time, before an alarm is set for the end of its patience: by then
/// it is done, mostly, and the alarm would wake the gateway for nothing.
const SETTLES: Millis = SECOND;

new_key_type! {
    /// A WebSocket. Slots are reused, keys are not: each key carries the
    /// generation of its slot, so the key of a closed socket finds nothing.
    pub struct SocketId;
    /// An Engine.IO session; generational, as [`SocketId`].
    pub struct SessionId;
    /// A client of the application; generational, as [`SocketId`].
    pub struct ClientId;
}

/// A request that waits for something to answer it with.
pub type PollId = u64;

/// A frame of a WebSocket.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    Text(String),
    Binary(Bytes),
}

impl Frame {
    /// Bytes of the frame.
    pub(crate) fn len(&self) -> usize {
        match self {
            Frame::Text(text) => text.len(),
            Frame::Binary(bytes) => bytes.len(),
        }
    }
}

/// What a gateway wants done, in order.
#[derive(Debug)]
pub enum Output {
    Send {
        socket: SocketId,
        frame: Frame,
    },
    /// The same text to many.
    Broadcast {
        sockets: Vec<SocketId>,
        text: String,
    },
    Close {
        socket: SocketId,
        code: u16,
        reason: &'static str,
    },
    /// What must be known of the socket after hibernation.
    Attach {
        socket: SocketId,
        record: String,
    },
    /// The answer to a request that waits.
    Answer {
        poll: PollId,
        answer: Answer,
    },
    /// Something waits for this room; see [`App::take`].
    Forward {
        room: String,
    },
    /// What must be known of a client after hibernation, and for as long as it
    /// may come back; under its `pid`, if it has one.
    Save {
        client: String,
        user: String,
        gone: bool,
        record: String,
    },
    Forget {
        client: String,
    },
    /// Up to which event the sockets of a room have been sent what there is, or a
    /// single client that is behind them (or no more, with `None`). To be kept
    /// where it outlives this memory as long as the sockets do.
    Reached {
        /// [`App::recall`] is to be given it again.
        key: String,
        at: Option<u64>,
    },
    /// The sockets of the room have been sent its events up to `at`: to be stored.
    Position {
        room: String,
        at: u64,
    },
    /// Finds what was saved of this user under a `pid`; see [`App::found`].
    Find {
        client: ClientId,
        pid: String,
        user: String,
    },
    /// A token can be judged only after something was fetched; then
    /// [`App::prepared`] is to be called with this again.
    Prepare(Waiting),
    Log(Entry),
}

/// What waits until its token can be judged. It names who asked by an id that
/// nobody has twice, for they may be gone by then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub token: String,
    pub asked: Asked,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// `refreshToken` of a connection.
    Refresh { connection: String, id: Option<u32> },
    /// The CONNECT of this number, with this JSON object.
    Connect {
        sid: String,
        nsp: String,
        number: u64,
        auth: String,
    },
}

/// What the application hears of its clients.
#[derive(Debug)]
pub enum Up {
    /// A native socket.
    Opened {
        socket: SocketId,
        id: String,
        door: Door,
    },
    Frame {
        socket: SocketId,
        frame: Frame,
    },
    Closed {
        socket: SocketId,
        code: u16,
    },
    /// A message of a bare Engine.IO session.
    Message {
        session: SessionId,
        frame: Frame,
    },
    /// Wants to connect to a namespace, with this JSON object. See
    /// [`Hub::is_connecting`] for the number.
    Connect {
        session: SessionId,
        nsp: String,
        number: u64,
        auth: String,
    },
    /// An event: a JSON list, its name first.
    Event {
        session: SessionId,
        nsp: String,
        ack: Option<i64>,
        args: String,
        attachments: Vec<Bytes>,
    },
    /// Left the namespace: by itself, or with its connection.
    Disconnected {
        session: SessionId,
        nsp: String,
        by_itself: bool,
    },
}

/// What runs on a [`Hub`].
pub trait App {
    /// Whether it reads the attachments of events.
    const KEEPS_ATTACHMENTS: bool = false;

    fn hear(&mut self, hub: &mut Hub, up: Up, now: Millis);

    /// The next time [`App::advance`] is to be called.
    fn deadline(&self) -> Option<Millis> {
        None
    }

    fn advance(&mut self, _hub: &mut Hub, _heard: Heard, _now: Millis) {}

    /// The alarm has woken the gateway: something is due that is forgotten.
    fn woken_by_alarm(&mut self, _now: Millis) {}

    /// Whether less waits for a room than it was sent last: more may have
    /// arrived already.
    fn gathers(&self, _room: &str) -> bool {
        false
    }

    /// What waits for a room, as one request; nothing more is on its way if
    /// there is none. What was taken before has arrived, unless [`App::failed`]
    /// was told.
    fn take(&mut self, _hub: &mut Hub, _room: &str) -> Option<Vec<link::Command>> {
        None
    }

    /// A request to a room failed.
    fn failed(&mut self, _hub: &mut Hub, _room: &str, _commands: Vec<link::Command>) {}

    /// A room's push: what is to be answered.
    fn pushed(
        &mut self,
        _hub: &mut Hub,
        _push: link::Push,
        _texts: &[&str],
        _now: Millis,
    ) -> link::Pushed {
        link::Pushed::default()
    }

    /// What [`Output::Prepare`] asked for is there, or could not be had.
    fn prepared(&mut self, _hub: &mut Hub, _waiting: Waiting, _ready: bool, _now: Millis) {}

    /// Tokens were revoked: closes what is there by one of them.
    fn enforce(&mut self, _hub: &mut Hub, _now: Millis) {}

    /// What was saved under a `pid`, for a client that asked for it.
    fn found(
        &mut self,
        _hub: &mut Hub,
        _client: ClientId,
        _pid: &str,
        _record: Option<String>,
        _now: Millis,
    ) {
    }

    /// A client of this `pid` comes back elsewhere: it is here no more.
    fn evict(&mut self, _hub: &mut Hub, _pid: &str, _user: &str) {}

    /// After hibernation, or after a panic, which loses what was not stored: the
    /// clients that were saved and not gone, and what [`Output::Position`] and then
    /// [`Output::Reached`] said last.
    fn recall(
        &mut self,
        _hub: &mut Hub,
        _clients: Vec<String>,
        _positions: HashMap<String, u64>,
        _panicked: bool,
        _now: Millis,
    ) {
    }
}

/// When the runtime last heard a socket by itself.
pub type Heard<'a> = &'a dyn Fn(SocketId) -> Option<Millis>;

/// Sessions and sockets.
pub struct Hub {
    pub config: Rc<Config>,
    /// Makes ids that nobody can guess.
    fresh: fn() -> String,
    /// What the ids of sessions begin with, by which the Worker finds this
    /// gateway again.
    name: String,
    sockets: SlotMap<SocketId, Sock>,
    sessions: SlotMap<SessionId, Session>,
    by_sid: HashMap<String, SessionId>,
    natives: HashMap<String, SocketId>,
    last_poll: PollId,
    /// The number of the last CONNECT.
    last_connect: u64,
    due: Option<Millis>,
    doors: Doors,
    /// Refused CONNECTs, per address.
    refused: Doors,
    floods: Floods,
    /// See [`App::KEEPS_ATTACHMENTS`].
    keeps_attachments: bool,
    /// The time, as it was told last.
    now: Millis,
    out: Vec<Output>,
    ups: VecDeque<Up>,
}

impl Hub {
    pub fn new(name: String, config: Rc<Config>, fresh: fn() -> String) -> Self {
        Hub {
            floods: Floods::none(&config.room, 0),
            config,
            fresh,
            name,
            sockets: SlotMap::with_key(),
            sessions: SlotMap::with_key(),
            by_sid: HashMap::new(),
            natives: HashMap::new(),
            last_poll: 0,
            last_connect: 0,
            due: None,
            doors: Doors::default(),
            refused: Doors::default(),
            keeps_attachments: false,
            now: 0,
            out: Vec::new(),
            ups: VecDeque::new(),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn fresh_id(&self) -> String {
        (self.fresh)()
    }

    pub(crate) fn now(&self) -> Millis {
        self.now
    }

    /// Tells the time, before anything else is told.
    pub fn set_now(&mut self, now: Millis) {
        self.now = now;
    }

    pub fn push(&mut self, output: Output) {
        self.out.push(output);
    }

    pub fn log(&mut self, entry: Entry) {
        self.out.push(Output::Log(entry));
    }
}

/// A hub and what runs on it.
pub struct Gateway<A> {
    pub hub: Hub,
    pub app: A,
}

impl<A: App> Gateway<A> {
    pub fn new(mut hub: Hub, app: A) -> Self {
        hub.keeps_attachments = A::KEEPS_ATTACHMENTS;
        Gateway { hub, app }
    }

    /// Lets the application hear what came, until nothing is left to be heard;
    /// answers what is to be done.
    pub fn settle(&mut self, now: Millis) -> Vec<Output> {
        while let Some(up) = self.hub.ups.pop_front() {
            self.app.hear(&mut self.hub, up, now);
        }
        std::mem::take(&mut self.hub.out)
    }

    /// When [`Gateway::advance`] is to be called next.
    pub fn deadline(&self) -> Option<Millis> {
        [self.hub.deadline(), self.app.deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// The alarm has woken it; [`Gateway::advance`] is to be called next.
    pub fn woken_by_alarm(&mut self, now: Millis) {
        self.hub.woken_by_alarm(now);
        self.app.woken_by_alarm(now);
    }

    /// Does what is due.
    pub fn advance(&mut self, heard: Heard, now: Millis) {
        self.hub.advance(heard, now);
        self.app.advance(&mut self.hub, heard, now);
    }
}

impl Output {
    fn close(socket: SocketId, why: Close) -> Self {
        Output::Close {
            socket,
            code: why.code(),
            reason: why.reason(),
        }
    }
}
