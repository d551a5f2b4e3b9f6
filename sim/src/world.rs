//! Simulated hosts: a room with storage ([`Server`]), and a gateway with its rooms
//! ([`Net`]). They execute the outputs of the core as the Durable Objects do, and assert
//! the invariants of each output.

use roomcast::config::Config;
use roomcast_gateway::chat::Chat;
use roomcast_gateway::{
    App, ConnectInfo, EngineServer, Frame as SocketFrame, Gateway, Output as ToShell, Stored,
};
use roomcast_gateway::{Credentials, Protocol, SocketId};
use roomcast_proto::access::{Identity, Rights, TokenId};
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::error::Result;
use roomcast_proto::event;
use roomcast_proto::event_name;
use roomcast_proto::framing;
use roomcast_proto::link::{Command as ToRoom, Item, Push};
use roomcast_proto::log_text::slice;
use roomcast_proto::position::Position;
use roomcast_proto::raw_object::{RawObject, TEXT, WHOLE};
use roomcast_proto::status::Status;
use roomcast_proto::time::Millis;
use roomcast_room::log::{Bounds, Page, Range, Row};
use roomcast_room::service::{Request, Served};
use roomcast_room::{
    Attachment, Change, ConnId, Custom, Delivery, Frame, Hello, Member, Output, Room, Snapshot,
};
use serde_json::value::RawValue;
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// The time at the start of each run.
pub const NOW: Millis = 1_800_000_000_000;

pub const SECRET: &str = "a secret of thirty-two bytes, yes";

/// `MAX_FRAME_BYTES`. Small, so that oversized frames are small inputs.
pub const MAX_FRAME: usize = 1_024;

/// `MAX_PAYLOAD`, the largest message or request of Engine.IO.
pub const MAX_PAYLOAD: usize = 2_048;

/// Settings without rate limits that an input could reach. Size limits are small.
pub fn config(more: &[(&str, &str)]) -> Rc<Config> {
    let (max_frame, max_payload) = (MAX_FRAME.to_string(), MAX_PAYLOAD.to_string());
    let mut settings: HashMap<&str, &str> = HashMap::from([
        ("JWT_SECRET", SECRET),
        ("DEFAULT_ROOMS", "*"),
        ("REVOCATION", "false"),
        ("MAX_FRAME_BYTES", &*max_frame),
        ("MAX_PAYLOAD", &*max_payload),
        ("MESSAGES_BURST", "1e9"),
        ("SIGNALS_BURST", "1e9"),
        ("JOINS_BURST", "1e9"),
        ("COMMANDS_BURST", "1e9"),
        ("CONNECTS_PER_MINUTE", "1e9"),
        ("MAX_CONNECTIONS_PER_USER", "1000"),
    ]);
    settings.extend(more.iter().copied());
    let read = |name: &str| settings.get(name).map(|value| (*value).to_owned());
    Rc::new(Config::read(read).expect("settings"))
}

/// Returns a new id. The sequence of ids is the same in every run.
pub fn fresh() -> String {
    FRESH.with(|last| {
        last.set(last.get() + 1);
        format!("{:016x}", last.get())
    })
}

thread_local! {
    static FRESH: Cell<u64> = const { Cell::new(0) };
}

/// Resets the ids. Call it at the start of each run.
pub fn begin() {
    FRESH.with(|last| last.set(0));
}

/// The identity of a user with a token for all rooms.
pub fn identity(user: &str) -> Identity {
    let claims = format!(r#"{{"sub":"{user}","exp":{}}}"#, NOW / 1_000 + 1_000_000);
    let token = super::tokens::sign(r#"{"alg":"HS256"}"#, claims.as_bytes());
    let auth = config(&[]).auth.clone();
    auth.verify(&token, NOW).expect("a token")
}

/// Verifies credentials, as the host does.
pub fn verify(config: &Config, credentials: Credentials, now: Millis) -> Result<Identity> {
    match credentials {
        Credentials::Token(token) => config.auth.verify(&token, now),
        Credentials::Identity(identity) => config.auth.recheck(*identity, now),
    }
}

/// Connect information of a client without an address.
pub fn connect_info(protocol: Protocol, identity: Option<Identity>) -> ConnectInfo {
    ConnectInfo {
        protocol,
        identity,
        error: None,
        address: None,
        recovers: true,
    }
}

/// Asserts that a text is JSON. Strings are not decoded, as in the server: a client can
/// send lone surrogates.
pub fn assert_json(json: &str) {
    serde_json::from_str::<&RawValue>(json).unwrap_or_else(|error| panic!("{error}: {json}"));
}

/// A line of the server.
#[derive(Debug, PartialEq)]
pub enum Line {
    /// The answer to the command with this id.
    Answer(u32),
    /// An event with its `seq` if it is logged.
    Event(Option<u64>),
}

/// Parses a line of the server and asserts that it is valid.
pub fn line(line: &str) -> Line {
    if line == framing::PONG {
        return Line::Event(None);
    }
    let object = RawObject::parse(line, line).expect("each line is an object");
    if let Some(id) = object.raw("ack") {
        assert!(object.required_raw("data").is_ok() != object.raw("error").is_some());
        return Line::Answer(id.get().parse().expect("an id"));
    }
    let name = object
        .required("event", TEXT)
        .expect("the name of an event");
    let data = object.required_raw("data").expect("data").get();
    let stamp = match object.raw("meta") {
        Some(meta) => meta.get(),
        None if name == event_name::NEW_MESSAGE => data,
        None => return Line::Event(None),
    };
    let stamp = RawObject::parse(stamp, "a stamp").expect("a stamp");
    for name in ["roomId", "messageId", "senderId", "timestamp"] {
        stamp.required(name, TEXT).expect(name);
    }
    Line::Event(stamp.get("seq", WHOLE).expect("a number"))
}

/// Parses the lines of a frame. Asserts that its logged events are consecutive.
pub fn lines(frame: &str) -> Vec<Line> {
    let lines: Vec<Line> = frame.split('\n').map(line).collect();
    let logged = lines.iter().filter_map(|line| match line {
        Line::Event(seq) => *seq,
        Line::Answer(_) => None,
    });
    let logged: Vec<u64> = logged.collect();
    assert!(logged.is_sorted_by(|a, b| a + 1 == *b), "{frame}");
    lines
}

/// An output of a room, in the order of the outputs.
#[derive(Debug)]
pub enum RoomOutput {
    /// A frame to a connection. `events`: the positions before and after it.
    Frame {
        to: String,
        frame: String,
        events: (Option<u64>, Option<u64>),
    },
    /// A frame to all connections at gateways except these.
    Broadcast {
        text: String,
        not: Vec<String>,
        events: (u64, u64),
    },
    Subscribed {
        to: String,
        after: u64,
    },
    Unsubscribed {
        to: String,
    },
    Closed {
        to: String,
        why: Disconnect,
    },
    Lost {
        to: String,
    },
    /// The connection catches up from the log by [`Server::portion`].
    #[allow(dead_code)] // used by tests/gateways.rs
    CatchUp {
        to: String,
        conn: ConnId,
    },
    Reply(String),
}

impl RoomOutput {
    fn line(to: &str, line: String) -> Self {
        RoomOutput::Frame {
            to: to.to_owned(),
            frame: line,
            events: (None, None),
        }
    }
}

/// Returns why a connection was closed, or `None`.
pub fn closed(outputs: &[RoomOutput], id: &str) -> Option<Disconnect> {
    outputs.iter().find_map(|output| match output {
        RoomOutput::Closed { to, why } if to == id => Some(*why),
        _ => None,
    })
}

/// Returns the ids of the answers to a connection, sorted.
pub fn answers(outputs: &[RoomOutput], id: &str) -> Vec<u32> {
    let frames = outputs.iter().filter_map(|output| match output {
        RoomOutput::Frame { to, frame, .. } if to == id => Some(frame.as_str()),
        _ => None,
    });
    answers_in(frames)
}

/// Returns the ids of the answers in frames, sorted.
pub fn answers_in<'a>(frames: impl Iterator<Item = &'a str>) -> Vec<u32> {
    let mut ids: Vec<u32> = frames
        .flat_map(lines)
        .filter_map(|line| match line {
            Line::Answer(id) => Some(id),
            Line::Event(_) => None,
        })
        .collect();
    ids.sort_unstable();
    ids
}

#[derive(Default)]
struct Disk {
    epoch: String,
    rows: Vec<Row>,
    members: BTreeMap<String, Member>,
    journal: Vec<String>,
}

/// A connection as its host knows it.
#[derive(Clone)]
struct Connection {
    id: String,
    remote: bool,
    attachment: Option<Attachment>,
}

/// A room with its storage.
pub struct Server {
    pub room: Room,
    pub now: Millis,
    name: String,
    config: Rc<Config>,
    disk: Disk,
    connections: BTreeMap<ConnId, Connection>,
    outputs: Vec<RoomOutput>,
    calls: u64,
    /// Whether connections that catch up receive all portions at once.
    pub catches_up_at_once: bool,
}

impl Server {
    pub fn new(name: &str, config: Rc<Config>) -> Self {
        let disk = Disk {
            epoch: "e".into(),
            ..Disk::default()
        };
        Server {
            room: open(name, &config, &disk),
            now: NOW,
            name: name.to_owned(),
            config,
            disk,
            connections: BTreeMap::new(),
            outputs: Vec::new(),
            calls: 0,
            catches_up_at_once: true,
        }
    }

    /// Returns the outputs since the last call.
    pub fn take_outputs(&mut self) -> Vec<RoomOutput> {
        std::mem::take(&mut self.outputs)
    }

    pub fn head(&self) -> u64 {
        self.room.bounds().head
    }

    /// Connects a socket to the room.
    pub fn connect(&mut self, id: &str, user: &str, position: Position) {
        let hello = Hello {
            connection_id: id.to_owned(),
            user: user.to_owned(),
            rights: Rights::MEMBER,
            expires: u64::MAX,
            address: None,
            position,
            status: Status::Online,
            token: TokenId::default(),
        };
        self.room.admit(&hello, self.now).expect("limits are high");
        let mut out = Vec::new();
        let conn = self.room.connect(hello, self.now, &mut out);
        self.add_connection(conn, id, false);
        self.run(out);
    }

    fn add_connection(&mut self, conn: ConnId, id: &str, remote: bool) {
        let connection = Connection {
            id: id.to_owned(),
            remote,
            attachment: None,
        };
        let before = self.connections.insert(conn, connection);
        assert!(before.is_none(), "a connection slot must be free");
    }

    /// Returns the ids of the connections at gateways.
    #[allow(dead_code)] // not used by the fuzz targets
    pub fn remote(&self) -> Vec<String> {
        let connections = self
            .connections
            .values()
            .filter(|connection| connection.remote);
        connections
            .map(|connection| connection.id.clone())
            .collect()
    }

    /// Returns the id of a connection.
    pub fn id(&self, conn: ConnId) -> Option<String> {
        Some(self.connections.get(&conn)?.id.clone())
    }

    /// Sends one row of the log to a connection that catches up. Returns `true` if it is
    /// still behind.
    pub fn portion(&mut self, conn: ConnId) -> bool {
        self.gap(conn);
        let Some(portion) = self.room.next_portion(conn) else {
            return false;
        };
        let (after, upto) = (portion.after, portion.upto);
        let mut rows = self.disk.rows.iter();
        let row = rows.find(|row| row.last > after).expect("no holes");
        let last = row.last.min(upto);
        let text = slice(row.first, &row.body, after, upto).to_owned();
        self.send(conn, text, portion.events(last));
        self.room.given(conn, last);
        self.room.next_portion(conn).is_some()
    }

    fn gap(&mut self, conn: ConnId) {
        while let Some((skipped, line)) = self.room.gap(conn) {
            self.send(conn, line, skipped.events(skipped.upto));
        }
    }

    fn conn(&self, id: &str) -> Option<ConnId> {
        let mut connections = self.connections.iter();
        connections.find_map(|(conn, connection)| (connection.id == id).then_some(*conn))
    }

    pub fn receive(&mut self, id: &str, frame: Frame) {
        if let Some(conn) = self.conn(id) {
            let mut out = Vec::new();
            self.room.receive(conn, frame, self.now, &mut out);
            self.run(out);
        }
    }

    pub fn disconnect(&mut self, id: &str, code: u16) {
        if let Some(conn) = self.conn(id) {
            self.connections.remove(&conn);
            let mut out = Vec::new();
            self.room.disconnect(conn, code, self.now, &mut out);
            self.run(out);
        }
    }

    /// Executes a command of a gateway for one of its connections.
    pub fn execute(&mut self, command: ToRoom) {
        let id = command.connection().to_owned();
        let known = self.conn(&id);
        let mut out = Vec::new();
        match command {
            ToRoom::Join {
                hello,
                id: answer,
                again,
            } => {
                assert!(known.is_none(), "a connection joins only once");
                let joined = self
                    .room
                    .subscribe(hello, answer, again, self.now, &mut out);
                self.run(std::mem::take(&mut out));
                match joined {
                    Ok(conn) => self.add_connection(conn, &id, true),
                    Err(error) => {
                        if !again {
                            let line = framing::error(answer, &error);
                            self.outputs.push(RoomOutput::line(&id, line));
                        }
                        self.outputs.push(RoomOutput::Unsubscribed { to: id });
                    }
                }
            }
            ToRoom::Frame { frame, .. } => match known {
                Some(conn) => {
                    let frame = Frame::Text(&frame);
                    self.room.receive(conn, frame, self.now, &mut out);
                }
                None => {
                    let answer = framing::decode_line(&frame).id;
                    let error = roomcast_proto::error::Error::internal();
                    self.outputs.push(RoomOutput::Lost { to: id.clone() });
                    let line = framing::error(answer, &error);
                    self.outputs.push(RoomOutput::line(&id, line));
                }
            },
            ToRoom::Gone { code, .. } => {
                if let Some(conn) = known.or_else(|| self.room.seat_of(&id)) {
                    self.connections.remove(&conn);
                    self.room.disconnect(conn, code, self.now, &mut out);
                }
            }
            ToRoom::Refresh {
                rights, expires, ..
            } => {
                if let Some(conn) = known {
                    self.room
                        .refreshed(conn, rights, expires, self.now, &mut out);
                }
            }
        }
        self.run(out);
    }

    /// Flushes the batch, then advances the clock and flushes delayed outputs.
    pub fn settle(&mut self) {
        for later in [0, 1_100] {
            self.now += later;
            self.advance();
        }
    }

    pub fn advance(&mut self) {
        let mut out = Vec::new();
        self.room.advance(self.now, &mut out);
        self.run(out);
    }

    /// Executes a request of a service. Returns the answer if it is immediate.
    pub fn serve(&mut self, request: Request) -> Option<String> {
        self.calls += 1;
        let mut out = Vec::new();
        let served = self.room.serve(request, self.calls, self.now, &mut out);
        self.run(out);
        let answer = match served {
            Ok(Served::Now(json, _)) => json,
            Ok(Served::Page(range)) => self.page(range),
            Ok(Served::Later) => return None,
            Err(error) => event::error_fields(&error),
        };
        assert_json(&answer);
        Some(answer)
    }

    fn page(&self, range: Range) -> String {
        let mut page = Page::new(range, self.room.floor());
        let mut rows: Vec<&Row> = self.disk.rows.iter().collect();
        if range.newest {
            rows.reverse();
        }
        rows.into_iter().all(|row| page.take(row.first, &row.body));
        let page = page.finish(self.head(), self.room.epoch());
        assert_json(&page);
        page
    }

    /// Hibernates the room: discards the memory, keeps storage and sockets.
    pub fn hibernate(&mut self) {
        self.settle();
        let head = self.head();
        self.room = open(&self.name, &self.config, &self.disk);
        assert_eq!(self.head(), head, "all events must be stored");
        for connection in std::mem::take(&mut self.connections).into_values() {
            let attachment = connection.attachment.clone().expect("attached");
            let conn = self.room.recall(attachment, self.now);
            self.connections.insert(conn, connection);
        }
    }

    /// Asserts that the room answers all read requests and knows its connections.
    pub fn assert_sound(&mut self) {
        let all = Range {
            after: 0,
            before: u64::MAX,
            limit: u64::MAX,
            newest: false,
        };
        for request in [
            Request::Messages(all),
            Request::Messages(Range {
                newest: true,
                limit: 3,
                ..all
            }),
            Request::Members,
            Request::Presence,
        ] {
            self.serve(request);
        }
        assert!(self.conns_are_known());
    }

    fn conns_are_known(&self) -> bool {
        self.connections.iter().all(|(conn, connection)| {
            let attachment = self.room.attachment(*conn);
            attachment.is_some_and(|attachment| attachment.id == connection.id)
        })
    }

    fn run(&mut self, out: Vec<Output>) {
        for output in out {
            match output {
                Output::Store(change) => self.store(change),
                Output::Send { conn, frame } => self.send(conn, frame, (None, None)),
                Output::Deliver(delivery) => self.deliver(delivery),
                Output::Replay { conn, after, upto } => {
                    let rows = self.disk.rows.iter();
                    let frames: Vec<_> = rows
                        .map(|row| (row.last, slice(row.first, &row.body, after, upto)))
                        .filter(|(_, frame)| !frame.is_empty())
                        .map(|(last, frame)| (last.min(upto), frame.to_owned()))
                        .collect();
                    for (last, frame) in frames {
                        self.send(conn, frame, (None, Some(last)));
                    }
                }
                Output::CatchUp { conn } if self.catches_up_at_once => while self.portion(conn) {},
                Output::CatchUp { conn } => {
                    self.gap(conn);
                    if let Some(to) = self.id(conn)
                        && self.room.next_portion(conn).is_some()
                    {
                        self.outputs.push(RoomOutput::CatchUp { to, conn });
                    }
                }
                Output::Page { conn, id, range } => {
                    let page = self.page(range);
                    self.send(conn, framing::ack(id, &page), (None, None));
                }
                Output::Attach { conn } => {
                    let attachment = self.room.attachment(conn);
                    if let Some(connection) = self.connections.get_mut(&conn) {
                        connection.attachment = attachment;
                    }
                }
                Output::Joined { conn, after } => {
                    if let Some(to) = self.id(conn) {
                        self.outputs.push(RoomOutput::Subscribed { to, after });
                    }
                }
                Output::Replaced { conn } => {
                    self.connections.remove(&conn);
                }
                Output::Parted { conn } => {
                    if let Some(to) = self.id(conn) {
                        self.outputs.push(RoomOutput::Unsubscribed { to });
                        self.connections.remove(&conn);
                    }
                }
                Output::Close { conn, why } => {
                    if let Some(connection) = self.connections.remove(&conn) {
                        self.outputs.push(RoomOutput::Closed {
                            to: connection.id,
                            why,
                        });
                    }
                }
                Output::Reply { answers, .. } => {
                    assert_json(&answers);
                    self.outputs.push(RoomOutput::Reply(answers));
                }
                Output::Authenticate {
                    connection,
                    id,
                    token,
                } => {
                    let identity = self.config.auth.verify(&token, self.now);
                    let mut out = Vec::new();
                    self.room
                        .authenticated(&connection, id, identity, self.now, &mut out);
                    self.run(out);
                }
                Output::Log(entry) => assert_json(&entry.line(self.now)),
            }
        }
    }

    fn send(&mut self, conn: ConnId, frame: String, events: (Option<u64>, Option<u64>)) {
        lines(&frame);
        if let Some(to) = self.id(conn) {
            self.outputs.push(RoomOutput::Frame { to, frame, events });
        }
    }

    fn deliver(&mut self, delivery: Delivery) {
        let whole = delivery.shared.as_deref().unwrap_or_default();
        let whole = whole.encode_utf16().count();
        let (after, at) = delivery.events;
        let gets_all = |custom: &Custom| match custom.shared.as_deref() {
            Some([all]) => *all == (0..whole),
            _ => false,
        };
        let frames = delivery.frames();
        let mut served = Vec::new();
        for custom in &delivery.custom {
            let Some(connection) = self.connections.get(&custom.conn) else {
                continue;
            };
            if connection.remote && gets_all(custom) {
                self.send(custom.conn, custom.private.clone(), (None, None));
                continue;
            }
            served.push(custom.conn);
            if let Some(Some(frame)) = frames.get(&custom.conn) {
                let has_some = custom.shared.as_ref().is_some_and(|runs| !runs.is_empty());
                let events = (at > after && has_some).then_some((after, at));
                let events = (events.map(|(after, _)| after), events.map(|(_, at)| at));
                self.send(custom.conn, frame.clone(), events);
            }
        }
        let Some(text) = delivery.shared else {
            return;
        };
        lines(&text);
        let own: Vec<ConnId> = self.connections.keys().copied().collect();
        for conn in own.into_iter().filter(|conn| !served.contains(conn)) {
            if !self.connections[&conn].remote && self.room.receives(conn, delivery.tick) {
                self.send(conn, text.clone(), (Some(after), Some(at)));
            }
        }
        let not = served.into_iter().filter_map(|conn| self.id(conn));
        let not = not.collect();
        let events = (after, at);
        self.outputs
            .push(RoomOutput::Broadcast { text, not, events });
    }

    fn store(&mut self, change: Change) {
        let disk = &mut self.disk;
        match change {
            Change::Append(row) => {
                let head = disk.rows.last().map_or(0, |row| row.last);
                assert_eq!(row.first, head + 1, "the log has no holes");
                let events: Vec<Line> = row.body.split('\n').map(line).collect();
                let numbered = (row.first..).zip(&events);
                for (seq, event) in numbered {
                    assert_eq!(*event, Line::Event(Some(seq)), "a line each");
                }
                assert_eq!(events.len() as u64, row.last - row.first + 1);
                disk.rows.push(row);
            }
            Change::PutMember(user, member) => {
                disk.members.insert(user.to_string(), member);
            }
            Change::RemoveMember(user) => {
                disk.members.remove(&*user);
            }
            Change::Cursors(moved) => {
                assert_json(&moved);
                disk.journal.push(moved);
            }
            Change::Checkpoint(members) => {
                for (user, member) in members {
                    disk.members.insert(user.to_string(), member);
                }
                disk.journal.clear();
            }
            Change::Trim { upto, before } => {
                let head = disk.rows.last().map_or(0, |row| row.last);
                let rows = &mut disk.rows;
                rows.retain(|row| row.last > upto || row.at >= before || row.last == head);
            }
            Change::Wipe { epoch } => {
                *disk = Disk {
                    epoch,
                    ..Disk::default()
                };
            }
        }
    }
}

fn open(name: &str, config: &Rc<Config>, disk: &Disk) -> Room {
    let mut bounds = Bounds::default();
    for row in disk.rows.first().into_iter().chain(disk.rows.last()) {
        bounds.extend(row.first, row.last, row.at);
    }
    let rows = disk.rows.clone();
    let snapshot = Snapshot {
        epoch: disk.epoch.clone(),
        bounds,
        members: disk.members.clone().into_iter().collect(),
        journal: disk.journal.clone(),
        recent: Some(Box::new(move |since| {
            let rows = rows.iter().filter(|row| row.at >= since);
            Ok(rows.map(|row| (row.first, row.body.clone())).collect())
        })),
    };
    Room::new(name.to_owned(), config.room.clone(), snapshot)
}

/// Maximal number of rooms of a gateway. Joins of further rooms fail.
const MAX_ROOMS: usize = 8;

/// The stored record of a client.
struct Saved {
    user: String,
    gone: bool,
    record: String,
}

/// A gateway with its rooms.
pub struct Net {
    config: Rc<Config>,
    pub gateway: Gateway<Chat>,
    pub now: Millis,
    rooms: BTreeMap<String, (Server, u64)>,
    /// Sent frames with their sockets.
    pub sent: Vec<(SocketId, SocketFrame)>,
    /// Bodies of the answers to pending polls.
    pub polled: Vec<String>,
    pub closed: Vec<(SocketId, u16)>,
    /// Why rooms closed connections.
    pub closed_by_rooms: Vec<Disconnect>,
    /// Attachments of the sockets.
    pub records: BTreeMap<SocketId, String>,
    /// Stored clients.
    saved: BTreeMap<String, Saved>,
}

impl Net {
    pub fn new(name: &str, config: Rc<Config>) -> Self {
        let engine = EngineServer::new(name.to_owned(), config.gateway.clone(), fresh);
        Net {
            config,
            gateway: Gateway::new(engine, Chat::default()),
            now: NOW,
            rooms: BTreeMap::new(),
            sent: Vec::new(),
            polled: Vec::new(),
            closed: Vec::new(),
            closed_by_rooms: Vec::new(),
            records: BTreeMap::new(),
            saved: BTreeMap::new(),
        }
    }

    /// Executes outputs until there are none.
    pub fn settle(&mut self) {
        self.gateway.engine.set_now(self.now);
        let mut forward = Vec::new();
        loop {
            let outputs = self.gateway.settle(self.now);
            if outputs.is_empty() && forward.is_empty() {
                break;
            }
            for output in outputs {
                self.output(output, &mut forward);
            }
            for room in std::mem::take(&mut forward) {
                while let Some(commands) = self.take(&room) {
                    self.ask(&room, commands);
                }
            }
        }
    }

    fn output(&mut self, output: ToShell, forward: &mut Vec<String>) {
        match output {
            ToShell::Send { socket, frame } => self.sent.push((socket, frame)),
            ToShell::Broadcast { sockets, text } => {
                for socket in sockets {
                    self.sent.push((socket, SocketFrame::Text(text.clone())));
                }
            }
            ToShell::Close { socket, code, .. } => {
                self.records.remove(&socket);
                self.closed.push((socket, code));
            }
            ToShell::Attach { socket, record } => {
                assert_json(&record);
                self.records.insert(socket, record);
            }
            ToShell::Answer { answer, .. } => self.polled.push(answer.body),
            ToShell::Forward { room } => forward.push(room),
            ToShell::Save {
                client,
                user,
                gone,
                record,
            } => {
                assert_json(&record);
                let saved = Saved { user, gone, record };
                self.saved.insert(client, saved);
            }
            ToShell::Forget { client } => {
                self.saved.remove(&client);
            }
            ToShell::StorePosition { .. } | ToShell::TrackPosition { .. } => {}
            ToShell::Find { client, pid, user } => {
                let (app, engine) = (&mut self.gateway.app, &mut self.gateway.engine);
                app.evict(engine, &pid, &user);
                let saved = self.saved.get(&pid).filter(|saved| saved.user == user);
                let record = saved.map(|saved| saved.record.clone());
                app.found(engine, client, &pid, record, self.now);
            }
            ToShell::Authenticate(it) => {
                let identity = verify(&self.config, it.credentials, self.now);
                let (app, engine) = (&mut self.gateway.app, &mut self.gateway.engine);
                app.authenticated(engine, it.request, identity, self.now);
            }
            ToShell::Log(entry) => assert_json(&entry.line(self.now)),
        }
    }

    fn ask(&mut self, name: &str, commands: Vec<ToRoom>) {
        // Serializes the commands, as a request between objects does.
        let commands = serde_json::to_string(&commands).expect("commands are JSON");
        let commands: Vec<ToRoom> = serde_json::from_str(&commands).expect("commands are read");
        let (app, engine) = (&mut self.gateway.app, &mut self.gateway.engine);
        if !self.rooms.contains_key(name) {
            if self.rooms.len() == MAX_ROOMS {
                return app.forward_failed(engine, name, commands);
            }
            let server = Server::new(name, self.config.clone());
            self.rooms.insert(name.to_owned(), (server, 0));
        }
        let (server, number) = self.rooms.get_mut(name).expect("a room");
        for command in commands {
            server.execute(command);
        }
        server.settle();
        *number += 1;
        let (mut items, mut texts) = (Vec::new(), String::new());
        for output in server.take_outputs() {
            if let RoomOutput::Closed { why, .. } = output {
                self.closed_by_rooms.push(why);
            }
            items.extend(item(output, &mut texts));
        }
        let push = Push {
            room: name.to_owned(),
            epoch: server.room.epoch().to_owned(),
            life: "l".into(),
            number: *number,
            items,
        };
        let body = push.body(&texts).expect("a push is JSON");
        let (push, texts) = Push::parse(&body).expect("a push is read");
        let gone = app.handle_push(engine, push, &texts, self.now).gone;
        for connection in gone {
            let code = 1006;
            server.execute(ToRoom::Gone { connection, code });
        }
    }

    /// [`Server::assert_sound`] for all rooms.
    pub fn assert_sound(&mut self) {
        for (server, _) in self.rooms.values_mut() {
            server.assert_sound();
        }
    }

    /// Advances the clock.
    pub fn advance(&mut self, by: Millis) {
        self.now += by;
        self.gateway.engine.set_now(self.now);
        self.gateway.advance(&|_| None, self.now);
        self.settle();
    }

    /// Takes the queued commands for a room.
    fn take(&mut self, room: &str) -> Option<Vec<ToRoom>> {
        let Gateway { engine, app } = &mut self.gateway;
        app.take_commands(engine, room)
    }

    /// Hibernates the gateway: discards the memory, keeps sockets and storage. Returns the
    /// socket ids before and after.
    pub fn hibernate(&mut self) -> BTreeMap<SocketId, SocketId> {
        self.settle();
        let name = self.gateway.engine.name().to_owned();
        let config = self.config.gateway.clone();
        self.gateway = Gateway::new(EngineServer::new(name, config, fresh), Chat::default());
        self.gateway.engine.set_now(self.now);
        let mut sockets = BTreeMap::new();
        for (before, record) in std::mem::take(&mut self.records) {
            let socket = self.gateway.engine.restore_socket(&record, self.now);
            let socket = socket.expect("an attachment is restored");
            sockets.insert(before, socket);
            self.records.insert(socket, record);
        }
        let here = self.saved.values().filter(|saved| !saved.gone);
        let clients = here.map(|saved| saved.record.clone());
        let stored = Stored {
            clients: clients.collect(),
            ..Stored::default()
        };
        let (app, engine) = (&mut self.gateway.app, &mut self.gateway.engine);
        app.restore(engine, stored, self.now);
        self.settle();
        sockets
    }
}

/// Returns an output of a room as an item of a delivery.
pub fn item(output: RoomOutput, texts: &mut String) -> Option<Item> {
    Some(match output {
        RoomOutput::Frame {
            to,
            frame,
            events: (after, at),
        } => {
            texts.push_str(&frame);
            let bytes = frame.len();
            Item::One {
                to,
                bytes,
                after,
                at,
            }
        }
        RoomOutput::Broadcast {
            text,
            not,
            events: (after, at),
        } => {
            texts.push_str(&text);
            let bytes = text.len();
            Item::All {
                bytes,
                not,
                after,
                at,
            }
        }
        RoomOutput::Subscribed { to, after } => Item::In { to, after },
        RoomOutput::Unsubscribed { to } => Item::Out { to },
        RoomOutput::Closed { to, why } => Item::Close { to, why },
        RoomOutput::Lost { to } => Item::Lost { to },
        RoomOutput::CatchUp { .. } | RoomOutput::Reply(_) => return None,
    })
}

/// Parses a position from a query.
pub fn position(query: &[u8]) -> Position {
    let query = String::from_utf8_lossy(query);
    let query = roomcast::http::route::Query::read(&query);
    query.position().unwrap_or_default()
}
