//! Simulated hosts: a room with storage ([`Server`]), and a gateway with its rooms
//! ([`Net`]). They execute the outputs of the core as the Durable Objects do, and assert
//! the invariants of each output.

use super::signing::{SECRET, sign};
use super::stored_log::StoredLog;
use roomcast::config::Config;
use roomcast_gateway::{
    ConnectInfo, EngineServer, Frame as SocketFrame, Gateway, Output as GatewayOutput, Stored,
};
use roomcast_gateway::{Credentials, Protocol, SocketId};
use roomcast_proto::access::{Identity, Rights, TokenId};
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::error::Result;
use roomcast_proto::event;
use roomcast_proto::event_name;
use roomcast_proto::framing;
use roomcast_proto::id::{ConnectionId, Epoch, GatewayName, RoomName, UserId};
use roomcast_proto::link::{Command as ToRoom, Item, Push, Pushed};
use roomcast_proto::log_text::slice;
use roomcast_proto::position::Position;
use roomcast_proto::raw_object::{RawObject, TEXT, WHOLE};
use roomcast_proto::retry::Failure;
use roomcast_proto::status::Status;
use roomcast_proto::time::Millis;
use roomcast_proto::user_info::UserInfo;
use roomcast_room::history::{HistoryPage, HistoryQuery};
use roomcast_room::log::LogBatch;
use roomcast_room::service::{Request, Served};
use roomcast_room::{
    Attachment, CallId, Change, ConnId, ConnectRequest, Delivery, Frame, Member, Output,
    ReadProfiles, Retry, Room, Secret, SeqRange, Snapshot, StoredSubscriber,
};
use serde_json::value::RawValue;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// The time at the start of each run.
pub const NOW: Millis = 1_800_000_000_000;

/// `MAX_FRAME_BYTES`. Small, so that oversized frames are small inputs.
pub const MAX_FRAME: usize = 1_024;

/// `MAX_PAYLOAD`, the largest message or request of Engine.IO.
pub const MAX_PAYLOAD: usize = 2_048;

/// Returns settings with rate limits that no input reaches, and with small size limits.
pub fn config(more: &[(&str, &str)]) -> Rc<Config> {
    let (max_frame, max_payload) = (MAX_FRAME.to_string(), MAX_PAYLOAD.to_string());
    let mut settings: HashMap<&str, &str> = HashMap::from([
        ("JWT_SECRET", SECRET),
        // The first two speak the vocabulary of the protocol.
        ("NAMESPACES", "/ /chat /module=module /relay=relay"),
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

/// Returns a token with these claims, as JSON.
pub fn token(claims: &str) -> String {
    sign(r#"{"alg":"HS256"}"#, claims.as_bytes())
}

/// Returns the identity of a user with a token for all rooms.
pub fn identity(user: &str) -> Identity {
    let claims = format!(r#"{{"sub":"{user}","exp":{}}}"#, NOW / 1_000 + 1_000_000);
    let token = token(&claims);
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

/// Returns the connect information of a client without an address.
pub fn connect_info(protocol: Protocol, identity: Option<Identity>) -> ConnectInfo {
    ConnectInfo {
        protocol,
        identity,
        error: None,
        address: None,
        recovers: true,
        may_recover: false,
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

/// A frame, close or reply of a room for its own sockets and for services, in the order
/// of the outputs.
#[derive(Debug)]
pub enum RoomOutput {
    /// A frame was sent.
    Frame {
        /// The id of the connection.
        to: String,
        /// The frame.
        frame: String,
    },
    /// A socket was closed.
    Closed {
        /// The id of the connection.
        to: String,
        /// The reason.
        why: Disconnect,
    },
    /// A request of a service was answered with this JSON.
    Reply(String),
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
    epoch: Epoch,
    log: StoredLog,
    members: BTreeMap<UserId, Member>,
    /// The profiles of members, with [`Member::informed`]. Shared with the function that reads
    /// them.
    profiles: Rc<RefCell<Profiles>>,
    departed: BTreeMap<UserId, Millis>,
    journal: Vec<String>,
    /// Stored connections at gateways: the gateway and the JSON of [`StoredSubscriber`], by id.
    subscribers: BTreeMap<ConnectionId, (GatewayName, String)>,
}

/// The stored profiles of members, with [`Member::informed`].
type Profiles = BTreeMap<UserId, (Option<UserInfo>, u64)>;

impl Disk {
    /// Returns the members as they are stored.
    fn members(&self) -> Vec<(UserId, Member)> {
        let profiles = self.profiles.borrow();
        let members = self.members.clone().into_iter();
        members
            .map(|(user, mut member)| {
                let profile = profiles.get(&user);
                member.has_info = profile.is_some_and(|(info, _)| info.is_some());
                member.informed = profile.map_or(0, |(_, informed)| *informed);
                (user, member)
            })
            .collect()
    }

    /// Returns the function that reads the profiles.
    fn profiles(&self) -> ReadProfiles {
        let profiles = Rc::clone(&self.profiles);
        Box::new(move |users, take| {
            let profiles = profiles.borrow();
            for user in users {
                if let Some((Some(info), _)) = profiles.get(user) {
                    take(user.clone(), info.clone());
                }
            }
            Ok(())
        })
    }

    /// Returns the first row with events in `range`: its last event in the range and the text
    /// of its events there.
    fn portion(&self, range: SeqRange) -> (u64, &str) {
        let SeqRange { after, upto } = range;
        let mut rows = self.log.rows.iter();
        let row = rows.find(|row| row.last > after).expect("no holes");
        (row.last.min(upto), slice(row.first, &row.body, after, upto))
    }
}

/// A socket that is connected to the room directly.
struct Socket {
    id: String,
    attachment: Option<Attachment>,
}

/// A room with its storage.
pub struct Server {
    /// The room.
    pub room: Room,
    /// The time.
    pub now: Millis,
    name: String,
    config: Rc<Config>,
    disk: Disk,
    sockets: BTreeMap<ConnId, Socket>,
    outputs: Vec<RoomOutput>,
    calls: u64,
    /// Number of restarts of the room.
    lives: u64,
}

/// Returns the request of a member to connect to a room.
pub fn connect_request(id: &str, user: &str, position: Position) -> ConnectRequest {
    ConnectRequest {
        connection_id: ConnectionId::trusted(id),
        user: UserId::trusted(user),
        rights: Rights::MEMBER,
        expires: u64::MAX,
        address: None,
        position,
        status: Status::Online,
        token: TokenId::default(),
        info: None,
        needs_message_ids: false,
    }
}

impl Server {
    /// Returns a room with empty storage.
    pub fn new(name: &str, config: Rc<Config>) -> Self {
        let disk = Disk {
            epoch: Epoch::trusted("e"),
            ..Disk::default()
        };
        Server {
            room: open(name, &config, &disk, 0),
            now: NOW,
            name: name.to_owned(),
            config,
            disk,
            sockets: BTreeMap::new(),
            outputs: Vec::new(),
            calls: 0,
            lives: 0,
        }
    }

    /// Returns the outputs since the last call.
    pub fn take_outputs(&mut self) -> Vec<RoomOutput> {
        std::mem::take(&mut self.outputs)
    }

    /// Returns the sequence number of the last event.
    pub fn head(&self) -> u64 {
        self.room.bounds().head
    }

    /// Connects a socket to the room.
    pub fn connect(&mut self, id: &str, user: &str, position: Position) {
        self.connect_as(connect_request(id, user, position));
    }

    /// Connects a socket to the room, with the request that the Worker would send.
    pub fn connect_as(&mut self, request: ConnectRequest) {
        let id = request.connection_id.to_string();
        self.room
            .admit(&request, self.now)
            .expect("limits are high");
        let mut out = Vec::new();
        let conn = self.room.connect(request, |_| None, self.now, &mut out);
        let socket = Socket {
            id,
            attachment: None,
        };
        let before = self.sockets.insert(conn, socket);
        assert!(before.is_none(), "a connection slot must be free");
        self.run(out);
    }

    fn conn(&self, id: &str) -> Option<ConnId> {
        let mut sockets = self.sockets.iter();
        sockets.find_map(|(conn, socket)| (socket.id == id).then_some(*conn))
    }

    /// Handles a frame of a connection, if it is open.
    pub fn receive(&mut self, id: &str, frame: Frame<'_>) {
        if let Some(conn) = self.conn(id) {
            let mut out = Vec::new();
            self.room.receive(conn, frame, self.now, &mut out);
            self.run(out);
        }
    }

    /// Ends the socket of a connection, if it is open.
    pub fn disconnect(&mut self, id: &str, code: u16) {
        self.disconnect_pinged(id, code, None);
    }

    /// Ends the socket of a connection, if it is open. The runtime has answered its last ping at
    /// `pinged`.
    pub fn disconnect_pinged(&mut self, id: &str, code: u16, pinged: Option<Millis>) {
        if let Some(conn) = self.conn(id) {
            self.sockets.remove(&conn);
            let mut out = Vec::new();
            self.room.disconnect(conn, code, pinged, self.now, &mut out);
            self.run(out);
        }
    }

    /// Executes a request of a gateway for its connections.
    pub fn handle_gateway(&mut self, gateway: &str, commands: Vec<ToRoom>) {
        let gateway = GatewayName::trusted(gateway);
        for command in commands {
            let mut out = Vec::new();
            self.room.gateway_command(
                &gateway,
                command,
                |_, _| false,
                |_| None,
                self.now,
                &mut out,
            );
            self.run(out);
        }
    }

    /// Returns the gateways to which deliveries start.
    pub fn start_deliveries(&mut self) -> Vec<GatewayName> {
        let mut out = Vec::new();
        let gateways = self.room.start_deliveries(self.now, &mut out);
        self.run(out);
        gateways
    }

    /// Returns the next delivery to a gateway. Before that, reads up to `reads` rows of the
    /// log for connections that catch up.
    pub fn take_delivery(&mut self, gateway: &str, reads: usize) -> Option<String> {
        let gateway = &GatewayName::trusted(gateway);
        for _ in 0..reads {
            let Some(read) = self.room.next_read(gateway) else {
                break;
            };
            let (last, text) = self.disk.portion(read.portion.range);
            lines(text);
            self.room.log_read(read, last, text);
        }
        let delivery = self.room.take_delivery(gateway)?;
        Some(delivery.body.expect("a push is JSON"))
    }

    /// Takes and acknowledges all deliveries to a gateway, without portions of the log. Returns
    /// their items and texts.
    pub fn take_all(&mut self, gateway: &str) -> Vec<(Item, String)> {
        let mut items = Vec::new();
        self.start_deliveries();
        while let Some(body) = self.take_delivery(gateway, 0) {
            let (push, texts) = Push::parse(&body).expect("a push");
            let texts = texts.into_iter().map(str::to_owned);
            items.extend(push.items.into_iter().zip(texts));
            self.delivery_acknowledged(gateway, &Pushed::default());
        }
        items
    }

    /// Handles the acknowledgement of a delivery.
    pub fn delivery_acknowledged(&mut self, gateway: &str, pushed: &Pushed) {
        let mut out = Vec::new();
        self.room
            .delivery_acknowledged(&GatewayName::trusted(gateway), pushed, self.now, &mut out);
        self.run(out);
    }

    /// Handles the failure of a delivery to a gateway.
    pub fn delivery_failed(&mut self, gateway: &str) -> Retry {
        let gateway = GatewayName::trusted(gateway);
        // The random number selects the shortest delays.
        self.room
            .delivery_failed(&gateway, Failure::Other, 0, self.now)
    }

    /// Runs the alarm of the room. It may run at any time.
    pub fn alarm(&mut self) {
        self.alarm_pinged(None);
    }

    /// Runs the alarm of the room. The runtime has answered the last ping on each socket at
    /// `pinged`.
    pub fn alarm_pinged(&mut self, pinged: Option<Millis>) {
        let mut out = Vec::new();
        self.room.handle_alarm(|_| pinged, self.now, &mut out);
        self.run(out);
    }

    /// Expires the rows of the log that are older than the retention.
    fn apply_retention(&mut self) {
        if let Some(limit) = self.room.retention_cutoff(self.now) {
            self.room.expire_log(self.disk.log.oldest(limit));
        }
    }

    /// Flushes the batch, then advances the clock and flushes delayed outputs.
    pub fn settle(&mut self) {
        for later in [0, 1_100] {
            self.now += later;
            self.advance();
        }
    }

    /// Flushes the batch and handles the timers that are due. Then sends portions of the log
    /// until no socket catches up.
    pub fn advance(&mut self) {
        let mut out = Vec::new();
        self.room.check_stalled(|_| None, self.now, &mut out);
        self.room.flush(self.now, &mut out);
        self.run(out);
        loop {
            let mut out = Vec::new();
            let read = self.room.next_replay(&mut out);
            self.run(out);
            let Some(read) = read else {
                break;
            };
            assert!(!self.room.is_stalled(read.conn), "no size is counted");
            let (last, text) = self.disk.portion(read.portion.range);
            let text = text.to_owned();
            let mut out = Vec::new();
            self.room.replayed(read, last, &mut out);
            self.send(read.conn, text);
            self.run(out);
        }
    }

    /// Executes a request of a service. Returns the answer if it is immediate.
    pub fn serve(&mut self, request: Request) -> Option<String> {
        self.calls += 1;
        let mut out = Vec::new();
        let served = self
            .room
            .serve(request, CallId(self.calls), self.now, &mut out);
        self.run(out);
        let answer = match served {
            Ok(Served::Now(json) | Served::Created(json)) => json,
            Ok(Served::Page(query)) => self.page(query),
            Ok(Served::Later) => return None,
            Err(error) => event::error_fields(&error),
        };
        // A page of a list has a head.
        answer.split('\n').for_each(assert_json);
        Some(answer)
    }

    fn page(&self, query: HistoryQuery) -> String {
        let mut page = HistoryPage::new(query, self.room.floor());
        let mut rows: Vec<&LogBatch> = self.disk.log.rows.iter().collect();
        if query.newest {
            rows.reverse();
        }
        rows.into_iter().all(|row| page.add(row.first, &row.body));
        let page = page.finish(self.head(), self.room.epoch());
        assert_json(&page);
        page
    }

    /// Hibernates the room: discards the memory, keeps storage and sockets.
    pub fn hibernate(&mut self) {
        self.settle();
        self.restart();
    }

    /// Restores the room from its storage. The room loses the open batch and the items for
    /// gateways.
    pub fn restart(&mut self) {
        let head = self.head();
        self.lives += 1;
        self.room = open(&self.name, &self.config, &self.disk, self.lives);
        assert_eq!(self.head(), head, "all events must be stored");
        for socket in std::mem::take(&mut self.sockets).into_values() {
            let attachment = socket.attachment.clone().expect("attached");
            let conn = self.room.restore_connection(attachment, self.now);
            self.sockets.insert(conn, socket);
        }
        for (gateway, json) in self.disk.subscribers.values() {
            let subscriber = StoredSubscriber::parse(json);
            let subscriber = subscriber.expect("a stored connection is parsed");
            self.room.restore_subscriber(gateway, subscriber, self.now);
        }
    }

    /// Asserts that the room answers all read requests and still has all open connections.
    pub fn assert_sound(&mut self) {
        let all = HistoryQuery {
            after: 0,
            before: u64::MAX,
            limit: u64::MAX,
            newest: false,
        };
        for request in [
            Request::Messages(all),
            Request::Messages(HistoryQuery {
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
        self.sockets.iter().all(|(conn, socket)| {
            let attachment = self.room.attachment(*conn);
            attachment.is_some_and(|attachment| *attachment.id == *socket.id)
        })
    }

    fn run(&mut self, out: Vec<Output>) {
        for output in out {
            let Some(output) = self.room.route(output) else {
                continue;
            };
            match output {
                Output::Store(change) => self.store(change),
                Output::Send { conn, frame } => self.send(conn, frame),
                Output::Deliver(delivery) => self.deliver(delivery),
                Output::Page { conn, id, query } => {
                    let frame = framing::ack(id, &self.page(query));
                    self.run(vec![Output::Send { conn, frame }]);
                }
                Output::Attach { conn } => {
                    let attachment = self.room.attachment(conn);
                    if let Some(socket) = self.sockets.get_mut(&conn) {
                        socket.attachment = attachment;
                    }
                }
                Output::Subscribed { .. }
                | Output::CatchUp { .. }
                | Output::Unsubscribed { .. } => {
                    panic!("the room routes outputs for connections at gateways")
                }
                Output::Close { conn, reason } => {
                    if let Some(socket) = self.sockets.remove(&conn) {
                        self.outputs.push(RoomOutput::Closed {
                            to: socket.id,
                            why: reason,
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

    fn send(&mut self, conn: ConnId, frame: String) {
        lines(&frame);
        if let Some(socket) = self.sockets.get(&conn) {
            let to = socket.id.clone();
            self.outputs.push(RoomOutput::Frame { to, frame });
        }
    }

    fn deliver(&mut self, delivery: Delivery) {
        let frames = delivery.frames();
        for custom in &delivery.custom {
            if let Some(Some(frame)) = frames.get(&custom.conn) {
                self.send(custom.conn, frame.clone());
            }
        }
        let Some(text) = delivery.shared else {
            return;
        };
        lines(&text);
        let own: Vec<ConnId> = self.sockets.keys().copied().collect();
        for conn in own.into_iter().filter(|conn| !frames.contains_key(conn)) {
            if self.room.receives(conn, delivery.batch) {
                self.send(conn, text.to_string());
            }
        }
    }

    fn store(&mut self, change: Change) {
        let disk = &mut self.disk;
        match change {
            Change::Append(row) => {
                let head = disk.log.rows.last().map_or(0, |row| row.last);
                assert_eq!(row.first, head + 1, "the log has no holes");
                let events: Vec<Line> = row.body.split('\n').map(line).collect();
                let numbered = (row.first..).zip(&events);
                for (seq, event) in numbered {
                    assert_eq!(*event, Line::Event(Some(seq)), "a line each");
                }
                assert_eq!(events.len() as u64, row.last - row.first + 1);
                disk.log.push(row);
            }
            Change::PutMember(user, member) => {
                disk.members.insert(user, member);
            }
            Change::PutProfile {
                user,
                info,
                informed,
            } => {
                if disk.members.contains_key(&user) {
                    disk.profiles.borrow_mut().insert(user, (info, informed));
                }
            }
            Change::RemoveMember(user) => {
                disk.members.remove(&user);
                disk.profiles.borrow_mut().remove(&user);
            }
            Change::PutDeparted(user, at) => {
                disk.departed.insert(user, at);
            }
            Change::RemoveDeparted(user) => {
                disk.departed.remove(&user);
            }
            Change::AppendJournal(moved) => {
                assert_json(&moved);
                disk.journal.push(moved);
            }
            Change::Checkpoint(members) => {
                for (user, member) in members {
                    disk.members.insert(user, member);
                }
                disk.journal.clear();
            }
            Change::PutSubscriber {
                id,
                gateway,
                subscriber,
            } => {
                let json = subscriber.json().expect("JSON");
                disk.subscribers.insert(id, (gateway, json));
            }
            Change::RemoveSubscriber(id) => {
                disk.subscribers.remove(&id);
            }
            Change::Trim { upto, since, first } => disk.log.trim(upto, since, first),
            Change::Wipe { epoch } => {
                disk.profiles.borrow_mut().clear();
                *disk = Disk {
                    epoch,
                    profiles: Rc::clone(&disk.profiles),
                    subscribers: std::mem::take(&mut disk.subscribers),
                    ..Disk::default()
                };
            }
        }
    }
}

fn open(name: &str, config: &Rc<Config>, disk: &Disk, life: u64) -> Room {
    let snapshot = Snapshot {
        life: life.to_string(),
        epoch: disk.epoch.clone(),
        secret: Secret::default(),
        bounds: disk.log.bounds(),
        members: disk.members(),
        departed: disk.departed.clone().into_iter().collect(),
        journal: disk.journal.clone(),
        recent: Some(disk.log.recent()),
        profiles: Some(disk.profiles()),
        rows: Some(disk.log.reader()),
    };
    Room::new(RoomName::trusted(name), config.room.clone(), snapshot)
}

/// Maximal number of rooms of a gateway. Joins of further rooms fail.
const MAX_ROOMS: usize = 8;

/// The stored record of a client.
struct Saved {
    user: UserId,
    gone: bool,
    record: String,
}

/// A gateway with its rooms.
pub struct Net {
    config: Rc<Config>,
    /// The gateway.
    pub gateway: Gateway,
    /// The time.
    pub now: Millis,
    rooms: BTreeMap<RoomName, Server>,
    /// Sent frames with their sockets.
    pub sent: Vec<(SocketId, SocketFrame)>,
    /// Bodies of the answers to pending polls.
    pub polled: Vec<String>,
    /// Closed sockets, with their close codes.
    pub closed: Vec<(SocketId, u16)>,
    /// The reasons for which rooms closed connections.
    pub closed_by_rooms: Vec<Disconnect>,
    /// Attachments of the sockets.
    pub records: BTreeMap<SocketId, String>,
    /// Stored clients.
    saved: BTreeMap<String, Saved>,
}

impl Net {
    /// Returns a gateway without connections.
    pub fn new(name: &str, config: Rc<Config>) -> Self {
        let engine = EngineServer::new(name.to_owned(), config.gateway.clone(), fresh);
        Net {
            config,
            gateway: Gateway::new(engine),
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
        self.gateway.server.engine.set_now(self.now);
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

    fn output(&mut self, output: GatewayOutput, forward: &mut Vec<RoomName>) {
        match output {
            GatewayOutput::Send { socket, frame } => self.sent.push((socket, frame)),
            GatewayOutput::Broadcast { sockets, text } => {
                for socket in sockets {
                    self.sent.push((socket, SocketFrame::Text(text.clone())));
                }
            }
            GatewayOutput::Close { socket, code, .. } => {
                self.records.remove(&socket);
                self.closed.push((socket, code));
            }
            GatewayOutput::Attach { socket, record } => {
                assert_json(&record);
                self.records.insert(socket, record);
            }
            GatewayOutput::Answer { answer, .. } => self.polled.push(answer.body),
            GatewayOutput::Forward { room } => forward.push(room),
            GatewayOutput::Save {
                client,
                user,
                gone,
                record,
            } => {
                assert_json(&record);
                let saved = Saved { user, gone, record };
                self.saved.insert(client, saved);
            }
            GatewayOutput::Forget { client } => {
                self.saved.remove(&client);
            }
            GatewayOutput::StorePosition { .. }
            | GatewayOutput::TrackPosition { .. }
            | GatewayOutput::Clean => {}
            GatewayOutput::Find { client, pid, user } => {
                let core = &mut self.gateway;
                core.evict(&pid, &user);
                let saved = self.saved.get(&pid).filter(|saved| saved.user == user);
                let record = saved.map(|saved| saved.record.clone());
                core.found(client, &pid, record, self.now);
            }
            GatewayOutput::Authenticate(it) => {
                let identity = verify(&self.config, it.credentials, self.now);
                let core = &mut self.gateway;
                core.authenticated(it.request, identity, self.now);
            }
            GatewayOutput::Log(entry) => assert_json(&entry.line(self.now)),
        }
    }

    fn ask(&mut self, name: &RoomName, commands: Vec<ToRoom>) {
        // Serializes the commands, as a request between objects does.
        let commands = serde_json::to_string(&commands).expect("commands are JSON");
        let commands: Vec<ToRoom> = serde_json::from_str(&commands).expect("commands are read");
        let core = &mut self.gateway;
        if !self.rooms.contains_key(name) {
            if self.rooms.len() == MAX_ROOMS {
                return core.forward_failed(name, commands);
            }
            let server = Server::new(name, self.config.clone());
            self.rooms.insert(name.clone(), server);
        }
        let server = self.rooms.get_mut(name).expect("a room");
        let gateway = core.server.engine.name().to_owned();
        server.handle_gateway(&gateway, commands);
        self.deliver(name);
    }

    /// Delivers everything that a room has for the gateway.
    fn deliver(&mut self, name: &RoomName) {
        let Some(server) = self.rooms.get_mut(name) else {
            return;
        };
        let core = &mut self.gateway;
        let gateway = core.server.engine.name().to_owned();
        server.settle();
        server.start_deliveries();
        while let Some(body) = server.take_delivery(&gateway, usize::MAX) {
            let (push, texts) = Push::parse(&body).expect("a push is read");
            for item in &push.items {
                if let Item::Close { why, .. } = item {
                    self.closed_by_rooms.push(*why);
                }
            }
            let pushed = core.handle_push(push, &texts, self.now);
            server.delivery_acknowledged(&gateway, &pushed);
            server.settle();
        }
    }

    /// Hibernates all rooms. They wake after `sleep`, by their alarms.
    pub fn hibernate_rooms(&mut self, sleep: Millis) {
        for name in self.rooms.keys().cloned().collect::<Vec<_>>() {
            if let Some(server) = self.rooms.get_mut(&name) {
                server.hibernate();
                server.now += sleep;
                server.apply_retention();
                server.alarm();
            }
            self.deliver(&name);
        }
        self.settle();
    }

    /// Returns the number of stored records of clients.
    pub fn stored_clients(&self) -> usize {
        self.saved.len()
    }

    /// [`Server::assert_sound`] for all rooms.
    pub fn assert_sound(&mut self) {
        for server in self.rooms.values_mut() {
            server.assert_sound();
        }
    }

    /// Advances the clock.
    pub fn advance(&mut self, by: Millis) {
        self.now += by;
        self.gateway.server.engine.set_now(self.now);
        self.gateway.advance(&|_| None, self.now);
        self.settle();
    }

    /// Takes the queued commands for a room.
    fn take(&mut self, room: &RoomName) -> Option<Vec<ToRoom>> {
        let core = &mut self.gateway;
        core.take_commands(room)
    }

    /// Hibernates the gateway: discards the memory, keeps sockets and storage. Returns the
    /// socket ids before and after.
    pub fn hibernate(&mut self) -> BTreeMap<SocketId, SocketId> {
        self.settle();
        let name = self.gateway.server.engine.name().to_owned();
        let config = self.config.gateway.clone();
        self.gateway = Gateway::new(EngineServer::new(name, config, fresh));
        self.gateway.server.engine.set_now(self.now);
        let mut sockets = BTreeMap::new();
        for (before, record) in std::mem::take(&mut self.records) {
            let socket = self.gateway.restore_socket(&record, self.now);
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
        let core = &mut self.gateway;
        core.restore(stored, self.now);
        self.settle();
        sockets
    }
}

/// Parses a position from a query.
pub fn position(query: &[u8]) -> Position {
    let query = String::from_utf8_lossy(query);
    let query = roomcast::http::query::Query::read(&query);
    query.position().unwrap_or_default()
}
