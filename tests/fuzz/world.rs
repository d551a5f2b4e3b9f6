//! Rooms with a disk, and gateways with rooms behind them: what the shell does
//! with the core's outputs, and what must be true of each of them.

use roomcast::auth::{Identity, Rights, TokenId, verify};
use roomcast::config::Config;
use roomcast::gateway::chat::Chat;
use roomcast::gateway::{App, Door, Frame as SocketFrame, Gateway, Hub, Output as ToShell};
use roomcast::gateway::{Protocol, SocketId};
use roomcast::room::link::{Command as ToRoom, Item, Push};
use roomcast::room::log::{Bounds, Page, Range, Row, slice};
use roomcast::room::service::{Request, Served};
use roomcast::room::{
    Attachment, Change, ConnId, Custom, Delivery, Frame, Hello, Member, Output, Room, Snapshot,
};
use roomcast::time::Millis;
use roomcast::wire::command::{Position, Status};
use roomcast::wire::native::{self, Close};
use roomcast::wire::object::{TEXT, WHOLE};
use roomcast::wire::{Object, event};
use serde_json::value::RawValue;
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

pub const NOW: Millis = 1_800_000_000_000;

pub const SECRET: &str = "a secret of thirty-two bytes, yes";

/// The largest frame: small, so that too large ones are small as well.
pub const MAX_FRAME: usize = 1_024;

/// The largest message or request of Engine.IO.
pub const MAX_PAYLOAD: usize = 2_048;

/// Settings under which no limit but those of size is ever met.
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

/// Ids, the same ones in every run.
pub fn fresh() -> String {
    FRESH.with(|last| {
        last.set(last.get() + 1);
        format!("{:016x}", last.get())
    })
}

thread_local! {
    static FRESH: Cell<u64> = const { Cell::new(0) };
}

/// At the begin of each run.
pub fn begin() {
    FRESH.with(|last| last.set(0));
}

/// Who has a token for all rooms.
pub fn identity(config: &Config, user: &str) -> Identity {
    let claims = format!(r#"{{"sub":"{user}","exp":{}}}"#, NOW / 1_000 + 1_000_000);
    let token = super::tokens::sign(r#"{"alg":"HS256"}"#, claims.as_bytes());
    verify(config, &token, NOW).expect("a token")
}

pub fn door(protocol: Protocol, identity: Option<Identity>) -> Door {
    Door {
        protocol,
        identity,
        fault: None,
        address: None,
        recovers: true,
    }
}

/// Asserts that a text is JSON. What senders gave is looked at no deeper than
/// the server does: it may be JSON that is not text, as half a surrogate pair.
pub fn assert_json(json: &str) {
    serde_json::from_str::<&RawValue>(json).unwrap_or_else(|error| panic!("{error}: {json}"));
}

/// What a line of the server is.
#[derive(Debug, PartialEq)]
pub enum Line {
    Answer(u32),
    /// With its number, if it is logged.
    Event(Option<u64>),
}

/// Reads a line of the server, which must be one.
pub fn line(line: &str) -> Line {
    if line == native::PONG {
        return Line::Event(None);
    }
    let object = Object::parse(line, line).expect("an object a line");
    if let Some(id) = object.raw("ack") {
        assert!(object.any("data").is_ok() != object.raw("error").is_some());
        return Line::Answer(id.get().parse().expect("an id"));
    }
    let name = object.need("event", TEXT).expect("the name of an event");
    let data = object.any("data").expect("data").get();
    let stamp = match object.raw("meta") {
        Some(meta) => meta.get(),
        None if name == event::NEW_MESSAGE => data,
        None => return Line::Event(None),
    };
    let stamp = Object::parse(stamp, "a stamp").expect("a stamp");
    for name in ["roomId", "messageId", "senderId", "timestamp"] {
        stamp.need(name, TEXT).expect(name);
    }
    Line::Event(stamp.get("seq", WHOLE).expect("a number"))
}

/// The lines of a frame; the logged events in it follow one another.
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

/// What a room has to say, in order.
#[derive(Debug)]
pub enum Said {
    /// A frame to a connection, with the events after the first number up to the
    /// second.
    Frame {
        to: String,
        frame: String,
        events: (Option<u64>, Option<u64>),
    },
    /// To all at gateways but these.
    All {
        text: String,
        not: Vec<String>,
        events: (u64, u64),
    },
    In {
        to: String,
        after: u64,
    },
    Out {
        to: String,
    },
    Closed {
        to: String,
        why: Close,
    },
    Lost {
        to: String,
    },
    /// It is behind, and gets the log by [`Server::portion`].
    #[allow(dead_code)] // of tests/gateways.rs
    CatchUp {
        to: String,
        conn: ConnId,
    },
    Reply(String),
}

impl Said {
    fn line(to: &str, line: String) -> Self {
        Said::Frame {
            to: to.to_owned(),
            frame: line,
            events: (None, None),
        }
    }
}

/// Whether a connection was closed, and why.
pub fn closed(said: &[Said], id: &str) -> Option<Close> {
    said.iter().find_map(|said| match said {
        Said::Closed { to, why } if to == id => Some(*why),
        _ => None,
    })
}

/// The answers that a connection got, sorted.
pub fn answers(said: &[Said], id: &str) -> Vec<u32> {
    let frames = said.iter().filter_map(|said| match said {
        Said::Frame { to, frame, .. } if to == id => Some(frame.as_str()),
        _ => None,
    });
    answers_in(frames)
}

/// The answers in frames, sorted.
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

/// A connection as the shell knows it.
#[derive(Clone)]
struct Peer {
    id: String,
    remote: bool,
    attachment: Option<Attachment>,
}

/// A room and its storage.
pub struct Server {
    pub room: Room,
    pub now: Millis,
    name: String,
    config: Rc<Config>,
    disk: Disk,
    peers: BTreeMap<ConnId, Peer>,
    said: Vec<Said>,
    calls: u64,
    /// Whether connections that are behind get all portions at once.
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
            peers: BTreeMap::new(),
            said: Vec::new(),
            calls: 0,
            catches_up_at_once: true,
        }
    }

    /// What was said since this was asked last.
    pub fn said(&mut self) -> Vec<Said> {
        std::mem::take(&mut self.said)
    }

    pub fn head(&self) -> u64 {
        self.room.bounds().head
    }

    /// A socket of the room's own.
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
        self.place(conn, id, false);
        self.run(out);
    }

    fn place(&mut self, conn: ConnId, id: &str, remote: bool) {
        let peer = Peer {
            id: id.to_owned(),
            remote,
            attachment: None,
        };
        let before = self.peers.insert(conn, peer);
        assert!(before.is_none(), "a place is given to one at a time");
    }

    /// The connections at gateways.
    #[allow(dead_code)] // of the fuzz targets
    pub fn remote(&self) -> Vec<String> {
        let peers = self.peers.values().filter(|peer| peer.remote);
        peers.map(|peer| peer.id.clone()).collect()
    }

    /// The id of a connection.
    pub fn id(&self, conn: ConnId) -> Option<String> {
        Some(self.peers.get(&conn)?.id.clone())
    }

    /// A connection that is behind gets one row of the log. Returns `true` if it
    /// is still behind then.
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
        let mut peers = self.peers.iter();
        peers.find_map(|(conn, peer)| (peer.id == id).then_some(*conn))
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
            self.peers.remove(&conn);
            let mut out = Vec::new();
            self.room.disconnect(conn, code, self.now, &mut out);
            self.run(out);
        }
    }

    /// What a gateway asks for one of its connections.
    pub fn linked(&mut self, command: ToRoom) {
        let id = command.connection().to_owned();
        let known = self.conn(&id);
        let mut out = Vec::new();
        match command {
            ToRoom::Join {
                hello,
                id: answer,
                again,
            } => {
                assert!(known.is_none(), "nobody joins twice by the same id");
                let joined = self
                    .room
                    .subscribe(hello, answer, again, self.now, &mut out);
                self.run(std::mem::take(&mut out));
                match joined {
                    Ok(conn) => self.place(conn, &id, true),
                    Err(fault) => {
                        if !again {
                            let line = native::fault(answer, &fault);
                            self.said.push(Said::line(&id, line));
                        }
                        self.said.push(Said::Out { to: id });
                    }
                }
            }
            ToRoom::Frame { frame, .. } => match known {
                Some(conn) => {
                    let frame = Frame::Text(&frame);
                    self.room.receive(conn, frame, self.now, &mut out);
                }
                None => {
                    let answer = native::decode_line(&frame).id;
                    let fault = roomcast::fault::Fault::internal();
                    self.said.push(Said::Lost { to: id.clone() });
                    let line = native::fault(answer, &fault);
                    self.said.push(Said::line(&id, line));
                }
            },
            ToRoom::Gone { code, .. } => {
                if let Some(conn) = known.or_else(|| self.room.seat_of(&id)) {
                    self.peers.remove(&conn);
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

    /// Ends the tick, and then, some time later, what waits for a while.
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

    /// A service's request: the answer, if it comes at once.
    pub fn serve(&mut self, request: Request) -> Option<String> {
        self.calls += 1;
        let mut out = Vec::new();
        let served = self.room.serve(request, self.calls, self.now, &mut out);
        self.run(out);
        let answer = match served {
            Ok(Served::Now(json, _)) => json,
            Ok(Served::Page(range)) => self.page(range),
            Ok(Served::Later) => return None,
            Err(fault) => event::fault_fields(&fault),
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

    /// Hibernation: what is in memory goes, storage and sockets stay.
    pub fn hibernate(&mut self) {
        self.settle();
        let head = self.head();
        self.room = open(&self.name, &self.config, &self.disk);
        assert_eq!(self.head(), head, "what was said is stored");
        for peer in std::mem::take(&mut self.peers).into_values() {
            let attachment = peer.attachment.clone().expect("attached");
            let conn = self.room.recall(attachment, self.now);
            self.peers.insert(conn, peer);
        }
    }

    /// What is asked of a room at any time.
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
        self.peers.iter().all(|(conn, peer)| {
            let attachment = self.room.attachment(*conn);
            attachment.is_some_and(|attachment| attachment.id == peer.id)
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
                        self.said.push(Said::CatchUp { to, conn });
                    }
                }
                Output::Page { conn, id, range } => {
                    let page = self.page(range);
                    self.send(conn, native::ack(id, &page), (None, None));
                }
                Output::Attach { conn } => {
                    let attachment = self.room.attachment(conn);
                    if let Some(peer) = self.peers.get_mut(&conn) {
                        peer.attachment = attachment;
                    }
                }
                Output::Joined { conn, after } => {
                    if let Some(to) = self.id(conn) {
                        self.said.push(Said::In { to, after });
                    }
                }
                Output::Replaced { conn } => {
                    self.peers.remove(&conn);
                }
                Output::Parted { conn } => {
                    if let Some(to) = self.id(conn) {
                        self.said.push(Said::Out { to });
                        self.peers.remove(&conn);
                    }
                }
                Output::Close { conn, why } => {
                    if let Some(peer) = self.peers.remove(&conn) {
                        self.said.push(Said::Closed { to: peer.id, why });
                    }
                }
                Output::Reply { answers, .. } => {
                    assert_json(&answers);
                    self.said.push(Said::Reply(answers));
                }
                Output::Prepare { .. } => panic!("secrets alone need no preparation"),
                Output::Log(entry) => assert_json(&entry.line(self.now)),
            }
        }
    }

    fn send(&mut self, conn: ConnId, frame: String, events: (Option<u64>, Option<u64>)) {
        lines(&frame);
        if let Some(to) = self.id(conn) {
            self.said.push(Said::Frame { to, frame, events });
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
            let Some(peer) = self.peers.get(&custom.conn) else {
                continue;
            };
            if peer.remote && gets_all(custom) {
                if !custom.private.is_empty() {
                    self.send(custom.conn, custom.private.clone(), (None, None));
                }
                continue;
            }
            served.push(custom.conn);
            if let Some(Some(frame)) = frames.get(&custom.conn) {
                let has_some = custom.shared.as_ref().is_some_and(|runs| !runs.is_empty());
                let events = (custom.with_events && has_some).then_some((after, at));
                let events = (events.map(|(after, _)| after), events.map(|(_, at)| at));
                self.send(custom.conn, frame.clone(), events);
            }
        }
        let Some(text) = delivery.shared else {
            return;
        };
        lines(&text);
        let own: Vec<ConnId> = self.peers.keys().copied().collect();
        for conn in own.into_iter().filter(|conn| !served.contains(conn)) {
            if !self.peers[&conn].remote && self.room.receives(conn, delivery.tick) {
                self.send(conn, text.clone(), (Some(after), Some(at)));
            }
        }
        let not = served.into_iter().filter_map(|conn| self.id(conn));
        let not = not.collect();
        let events = (after, at);
        self.said.push(Said::All { text, not, events });
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
    Room::new(name.to_owned(), config.clone(), snapshot)
}

/// The rooms that there are behind a gateway, at the most.
const MAX_ROOMS: usize = 8;

/// What is kept of a client.
struct Saved {
    user: String,
    gone: bool,
    record: String,
}

/// A gateway and the rooms behind it.
pub struct Net {
    pub gateway: Gateway<Chat>,
    pub now: Millis,
    rooms: BTreeMap<String, (Server, u64)>,
    /// What the gateway has sent, by sockets.
    pub sent: Vec<(SocketId, SocketFrame)>,
    /// The answers to requests that waited.
    pub polled: Vec<String>,
    pub closed: Vec<(SocketId, u16)>,
    /// Why rooms closed connections.
    pub closed_by_rooms: Vec<Close>,
    /// What sockets carry over hibernation.
    pub records: BTreeMap<SocketId, String>,
    /// What is kept of clients.
    saved: BTreeMap<String, Saved>,
}

impl Net {
    pub fn new(name: &str, config: Rc<Config>) -> Self {
        let hub = Hub::new(name.to_owned(), config, fresh);
        Net {
            gateway: Gateway::new(hub, Chat::default()),
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

    /// Carries out what there is to do, until there is nothing left.
    pub fn settle(&mut self) {
        self.gateway.hub.set_now(self.now);
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
            ToShell::Position { .. } | ToShell::Reached { .. } => {}
            ToShell::Find { client, pid, user } => {
                let (app, hub) = (&mut self.gateway.app, &mut self.gateway.hub);
                app.evict(hub, &pid, &user);
                let saved = self.saved.get(&pid).filter(|saved| saved.user == user);
                let record = saved.map(|saved| saved.record.clone());
                app.found(hub, client, &pid, record, self.now);
            }
            ToShell::Prepare(_) => panic!("secrets alone need no preparation"),
            ToShell::Log(entry) => assert_json(&entry.line(self.now)),
        }
    }

    fn ask(&mut self, name: &str, commands: Vec<ToRoom>) {
        // What goes over the link is what comes of it.
        let commands = serde_json::to_string(&commands).expect("commands are JSON");
        let commands: Vec<ToRoom> = serde_json::from_str(&commands).expect("commands are read");
        let (app, hub) = (&mut self.gateway.app, &mut self.gateway.hub);
        if !self.rooms.contains_key(name) {
            if self.rooms.len() == MAX_ROOMS {
                return app.failed(hub, name, commands);
            }
            let server = Server::new(name, hub.config.clone());
            self.rooms.insert(name.to_owned(), (server, 0));
        }
        let (server, number) = self.rooms.get_mut(name).expect("a room");
        for command in commands {
            server.linked(command);
        }
        server.settle();
        *number += 1;
        let (mut items, mut texts) = (Vec::new(), String::new());
        for said in server.said() {
            if let Said::Closed { why, .. } = said {
                self.closed_by_rooms.push(why);
            }
            items.extend(item(said, &mut texts));
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
        let gone = app.pushed(hub, push, &texts, self.now).gone;
        for connection in gone {
            let code = 1006;
            server.linked(ToRoom::Gone { connection, code });
        }
    }

    /// What is asked of the rooms at any time.
    pub fn assert_sound(&mut self) {
        for (server, _) in self.rooms.values_mut() {
            server.assert_sound();
        }
    }

    /// Time goes by.
    pub fn advance(&mut self, by: Millis) {
        self.now += by;
        self.gateway.hub.set_now(self.now);
        self.gateway.advance(&|_| None, self.now);
        self.settle();
    }

    /// What waits in the gateway for a room.
    fn take(&mut self, room: &str) -> Option<Vec<ToRoom>> {
        let Gateway { hub, app } = &mut self.gateway;
        app.take(hub, room)
    }

    /// Hibernation: what is in memory goes, sockets and storage stay. Sockets
    /// may have other places afterwards: those of before, and of now.
    pub fn hibernate(&mut self) -> BTreeMap<SocketId, SocketId> {
        self.settle();
        let (name, config) = (
            self.gateway.hub.name().to_owned(),
            self.gateway.hub.config.clone(),
        );
        self.gateway = Gateway::new(Hub::new(name, config, fresh), Chat::default());
        self.gateway.hub.set_now(self.now);
        let mut places = BTreeMap::new();
        for (before, record) in std::mem::take(&mut self.records) {
            let place = self.gateway.hub.recall(&record, self.now);
            let place = place.expect("what a socket carries is understood");
            places.insert(before, place);
            self.records.insert(place, record);
        }
        let here = self.saved.values().filter(|saved| !saved.gone);
        let clients = here.map(|saved| saved.record.clone());
        let (clients, positions) = (clients.collect(), HashMap::new());
        let (app, hub) = (&mut self.gateway.app, &mut self.gateway.hub);
        app.recall(hub, clients, positions, false, self.now);
        self.settle();
        places
    }
}

/// What a room says, as it goes over the link.
pub fn item(said: Said, texts: &mut String) -> Option<Item> {
    Some(match said {
        Said::Frame {
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
        Said::All {
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
        Said::In { to, after } => Item::In { to, after },
        Said::Out { to } => Item::Out { to },
        Said::Closed { to, why } => Item::Close { to, why },
        Said::Lost { to } => Item::Lost { to },
        Said::CatchUp { .. } | Said::Reply(_) => return None,
    })
}

/// A position as a query gives it.
pub fn position(query: &[u8]) -> Position {
    let query = String::from_utf8_lossy(query);
    let query = roomcast::http::route::Query::read(&query);
    query.position().unwrap_or_default()
}
