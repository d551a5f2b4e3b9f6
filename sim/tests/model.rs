//! The core against a simple model: random interleavings of joins, sends,
//! acknowledgements, disconnects, evictions, crashes and clock steps. Whatever
//! comes, every connection sees the log in order, without holes, each event
//! once; what was acknowledged is in the log once; cursors never move back; the
//! queue is exactly what comes after the delivered cursor.

use proptest::prelude::*;
use roomcast::config::Config;
use roomcast_proto::access::{Rights, TokenId};
use roomcast_proto::log_text::slice;
use roomcast_proto::time::Millis;
use roomcast_proto::wire::command::{Position, Status};
use roomcast_room::log::{Bounds, Page, Range, Row};
use roomcast_room::service::{Request, Served};
use roomcast_room::{Attachment, Change, ConnId, Frame, Hello, Member, Output, Room, Snapshot};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

const USERS: [&str; 3] = ["alice", "bob", "carol"];
const RETENTION: u64 = 40;

#[derive(Clone, Debug)]
enum Step {
    Connect {
        user: usize,
        since: Option<u64>,
    },
    Disconnect {
        conn: usize,
    },
    /// `message` picks one of a few ids, so that sends are repeated.
    Send {
        conn: usize,
        message: u8,
    },
    Acknowledge {
        conn: usize,
        seq: u64,
        read: bool,
    },
    Leave {
        conn: usize,
    },
    Rejoin {
        conn: usize,
        since: Option<u64>,
    },
    Tick,
    Clock {
        by: i64,
    },
    /// Hibernation: memory goes, sockets stay. Only when nothing is pending.
    Evict,
    /// Memory and sockets go, whatever is pending.
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..3usize, proptest::option::of(0..60u64))
            .prop_map(|(user, since)| Step::Connect { user, since }),
        1 => any::<usize>().prop_map(|conn| Step::Disconnect { conn }),
        10 => (any::<usize>(), 0..40u8).prop_map(|(conn, message)| Step::Send { conn, message }),
        4 => (any::<usize>(), 0..80u64, any::<bool>())
            .prop_map(|(conn, seq, read)| Step::Acknowledge { conn, seq, read }),
        1 => any::<usize>().prop_map(|conn| Step::Leave { conn }),
        1 => (any::<usize>(), proptest::option::of(0..60u64))
            .prop_map(|(conn, since)| Step::Rejoin { conn, since }),
        6 => Just(Step::Tick),
        2 => (-50..500i64).prop_map(|by| Step::Clock { by }),
        1 => Just(Step::Evict),
        1 => Just(Step::Crash),
    ];
    proptest::collection::vec(step, 1..120)
}

/// What the runtime keeps: storage.
#[derive(Clone, Default)]
struct Disk {
    rows: Vec<Row>,
    members: BTreeMap<String, Member>,
    journal: Vec<String>,
}

/// What a client saw.
struct Socket {
    user: String,
    attachment: Option<Attachment>,
    open: bool,
    joined: bool,
    /// Logged events in the order they came.
    seen: Vec<u64>,
    /// The last event it was given, or told that it is gone.
    at: Option<u64>,
}

struct World {
    config: Rc<Config>,
    disk: Disk,
    room: Room,
    sockets: Vec<Socket>,
    places: HashMap<ConnId, usize>,
    now: Millis,
    next_id: u32,
    /// Sends that wait for an answer: (user, message id), and whether the
    /// socket was joined.
    sent: HashMap<u32, ((String, String), bool)>,
    /// Acknowledgements that wait for an answer: user, and whether of reading.
    moved: HashMap<u32, (String, bool)>,
    /// Acknowledged sends: (user, message id) to seq.
    acknowledged: HashMap<(String, String), u64>,
    /// Those that were answered as no duplicates.
    firsts: HashMap<(String, String), u64>,
    /// Highest `(delivered, read)` that a member was answered.
    cursors: HashMap<String, (u64, u64)>,
}

fn config() -> Rc<Config> {
    let vars: HashMap<&str, String> = HashMap::from([
        ("JWT_SECRET", roomcast_harness::SECRET.to_owned()),
        ("RETENTION_EVENTS", RETENTION.to_string()),
        // Longer than what is played: no send is new again.
        ("DEDUPE_WINDOW", "1d".to_owned()),
        ("MESSAGES_BURST", "1000000".to_owned()),
        ("JOINS_BURST", "1000000".to_owned()),
        ("MAX_CONNECTIONS_PER_USER", "1000".to_owned()),
    ]);
    Rc::new(Config::read(|name| vars.get(name).cloned()).expect("settings are fine"))
}

fn open(config: &Rc<Config>, disk: &Disk) -> Room {
    let mut bounds = Bounds::default();
    for row in disk.rows.first().into_iter().chain(disk.rows.last()) {
        bounds.extend(row.first, row.last, row.at);
    }
    let rows = disk.rows.clone();
    let snapshot = Snapshot {
        life: "l".into(),
        epoch: "e".into(),
        bounds,
        members: disk.members.clone().into_iter().collect(),
        journal: disk.journal.clone(),
        recent: Some(Box::new(move |since| {
            let rows = rows.iter().filter(|row| row.at >= since);
            Ok(rows.map(|row| (row.first, row.body.clone())).collect())
        })),
    };
    Room::new("r".into(), config.room.clone(), snapshot)
}

impl World {
    fn new() -> Self {
        let config = config();
        let disk = Disk::default();
        World {
            room: open(&config, &disk),
            config,
            disk,
            sockets: Vec::new(),
            places: HashMap::new(),
            now: 1_000_000,
            next_id: 0,
            sent: HashMap::new(),
            moved: HashMap::new(),
            acknowledged: HashMap::new(),
            firsts: HashMap::new(),
            cursors: HashMap::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Connect { user, since } => self.connect(USERS[*user], *since),
            Step::Disconnect { conn } => {
                if let Some(place) = self.pick(*conn) {
                    let mut out = Vec::new();
                    self.room.disconnect(place, 1000, self.now, &mut out);
                    self.sockets[self.places[&place]].open = false;
                    self.places.remove(&place);
                    self.run(out);
                }
            }
            Step::Send { conn, message } => {
                if let Some(place) = self.pick(*conn) {
                    let socket = &self.sockets[self.places[&place]];
                    let (user, joined) = (socket.user.clone(), socket.joined);
                    let message_id = format!("m{message}");
                    let id = self.id();
                    self.sent.insert(id, ((user, message_id.clone()), joined));
                    self.frame(
                        place,
                        json!({"event": "sendMessage", "id": id,
                            "data": {"content": message, "messageId": message_id}}),
                    );
                }
            }
            Step::Acknowledge { conn, seq, read } => {
                if let Some(place) = self.pick(*conn) {
                    let event = if *read {
                        "messageRead"
                    } else {
                        "messageDelivered"
                    };
                    let user = self.sockets[self.places[&place]].user.clone();
                    let id = self.id();
                    self.moved.insert(id, (user, *read));
                    self.frame(
                        place,
                        json!({"event": event, "id": id, "data": {"seq": seq}}),
                    );
                }
            }
            Step::Leave { conn } => {
                if let Some(place) = self.pick(*conn) {
                    let socket = &self.sockets[self.places[&place]];
                    if socket.joined {
                        let user = socket.user.clone();
                        self.frame(place, json!({"event": "leaveRoom"}));
                        self.cursors.remove(&user);
                        self.moved.retain(|_, (one, _)| *one != user);
                        for socket in &mut self.sockets {
                            if socket.user == user {
                                socket.joined = false;
                            }
                        }
                    }
                }
            }
            Step::Rejoin { conn, since } => {
                if let Some(place) = self.pick(*conn) {
                    let socket = &mut self.sockets[self.places[&place]];
                    if !socket.joined {
                        // A fresh start: what comes now is judged by itself.
                        socket.seen.clear();
                        socket.at = None;
                        let id = self.id();
                        self.frame(
                            place,
                            json!({"event": "joinRoom", "id": id, "data": {"since": since}}),
                        );
                        let index = self.places[&place];
                        self.sockets[index].joined = true;
                    }
                }
            }
            Step::Tick => self.advance(),
            Step::Clock { by } => self.now = self.now.saturating_add_signed(*by),
            Step::Evict => {
                self.now += 60_000;
                self.advance();
                self.advance();
                self.wake();
            }
            Step::Crash => {
                for socket in &mut self.sockets {
                    socket.open = false;
                }
                self.sent.clear();
                self.moved.clear();
                self.wake();
            }
        }
        self.check();
    }

    fn id(&mut self) -> u32 {
        self.next_id += 1;
        self.next_id
    }

    fn pick(&self, conn: usize) -> Option<ConnId> {
        let mut places: Vec<_> = self.places.keys().copied().collect();
        places.sort_unstable();
        (!places.is_empty()).then(|| places[conn % places.len()])
    }

    fn connect(&mut self, user: &str, since: Option<u64>) {
        let hello = Hello {
            connection_id: self.sockets.len().to_string(),
            user: user.into(),
            rights: Rights::MEMBER,
            expires: u64::MAX,
            address: None,
            position: Position {
                since,
                ..Position::default()
            },
            status: Status::Online,
            token: TokenId::default(),
        };
        self.room.admit(&hello, self.now).expect("limits are high");
        let mut out = Vec::new();
        let place = self.room.connect(hello, self.now, &mut out);
        self.places.insert(place, self.sockets.len());
        self.sockets.push(Socket {
            user: user.into(),
            attachment: None,
            open: true,
            joined: true,
            seen: Vec::new(),
            at: None,
        });
        self.run(out);
    }

    fn frame(&mut self, place: ConnId, frame: Value) {
        let mut out = Vec::new();
        self.room
            .receive(place, Frame::Text(&frame.to_string()), self.now, &mut out);
        self.run(out);
    }

    fn advance(&mut self) {
        let mut out = Vec::new();
        self.room.advance(self.now, &mut out);
        self.run(out);
    }

    /// Everything in memory is gone: the room is what storage and sockets say.
    fn wake(&mut self) {
        self.room = open(&self.config, &self.disk);
        self.places.clear();
        for (index, socket) in self.sockets.iter().enumerate() {
            if socket.open {
                let attachment = socket.attachment.clone().expect("attached");
                assert_eq!(attachment.joined, socket.joined);
                let place = self.room.recall(attachment, self.now);
                self.places.insert(place, index);
            }
        }
    }

    fn run(&mut self, out: Vec<Output>) {
        for output in out {
            match output {
                Output::Store(change) => self.store(change),
                Output::Send { conn, frame } => self.receive(conn, &frame),
                Output::Deliver(delivery) => {
                    let custom = delivery.frames();
                    for conn in self.places.keys().copied().collect::<Vec<_>>() {
                        match custom.get(&conn) {
                            Some(Some(frame)) => self.receive(conn, frame),
                            Some(None) => {}
                            None => {
                                if let Some(frame) = &delivery.shared
                                    && self.room.receives(conn, delivery.tick)
                                {
                                    self.receive(conn, frame);
                                }
                            }
                        }
                    }
                }
                Output::Replay { conn, after, upto } => {
                    let frames: Vec<String> = self
                        .disk
                        .rows
                        .iter()
                        .map(|row| slice(row.first, &row.body, after, upto).to_owned())
                        .filter(|frame| !frame.is_empty())
                        .collect();
                    for frame in frames {
                        self.receive(conn, &frame);
                    }
                }
                Output::Attach { conn } => {
                    let attachment = self.room.attachment(conn);
                    let socket = &mut self.sockets[self.places[&conn]];
                    socket.attachment = attachment;
                }
                Output::Page { .. }
                | Output::Reply { .. }
                | Output::Authenticate { .. }
                | Output::Log(_) => {}
                Output::Joined { .. } | Output::Parted { .. } | Output::CatchUp { .. } => {
                    panic!("nobody is at a gateway")
                }
                Output::Close { .. } => {
                    panic!("nothing here closes a socket")
                }
            }
        }
    }

    fn store(&mut self, change: Change) {
        match change {
            Change::PutSubscriber { .. } | Change::RemoveSubscriber(_) => {
                panic!("no connection is at a gateway")
            }
            Change::Append(row) => {
                let head = self.disk.rows.last().map_or(0, |row| row.last);
                assert_eq!(row.first, head + 1, "the log has no holes");
                assert!(self.disk.rows.last().is_none_or(|last| last.at <= row.at));
                self.disk.rows.push(row);
            }
            Change::PutMember(user, member) => {
                self.disk.members.insert(user.to_string(), member);
            }
            Change::RemoveMember(user) => {
                self.disk.members.remove(&*user);
            }
            Change::Cursors(moved) => self.disk.journal.push(moved),
            Change::Checkpoint(members) => {
                for (user, member) in members {
                    self.disk.members.insert(user.to_string(), member);
                }
                self.disk.journal.clear();
            }
            Change::Trim { upto, before } => {
                let head = self.disk.rows.last().map_or(0, |row| row.last);
                self.disk
                    .rows
                    .retain(|row| row.last > upto || row.at >= before || row.last == head);
            }
            Change::Wipe { .. } => panic!("nothing here deletes the room"),
        }
    }

    /// A client reads a frame.
    fn receive(&mut self, conn: ConnId, frame: &str) {
        let Some(index) = self.places.get(&conn).copied() else {
            return;
        };
        for line in frame.split('\n') {
            let line: Value = serde_json::from_str(line).expect("every line is JSON");
            if let Some(id) = line["ack"].as_u64() {
                self.answered(id as u32, &line);
                continue;
            }
            let socket = &mut self.sockets[index];
            match line["event"].as_str() {
                Some("newMessage") => {
                    let seq = line["data"]["seq"].as_u64().expect("a seq");
                    if let Some(at) = socket.at {
                        assert_eq!(seq, at + 1, "in order, without holes, each once");
                    }
                    assert!(
                        self.disk.rows.last().is_some_and(|row| row.last >= seq),
                        "nobody sees what is not stored"
                    );
                    socket.at = Some(seq);
                    socket.seen.push(seq);
                }
                Some("gap") => {
                    let to = line["data"]["to"].as_u64().expect("an end");
                    assert!(to <= self.room.floor(), "a gap that is true");
                    socket.at = Some(to);
                }
                Some("connected") => {
                    let seq = line["data"]["seq"].as_u64().expect("a head");
                    assert!(seq <= self.room.bounds().head);
                    assert!(socket.at.is_none(), "connected is the first thing");
                    assert!(
                        !socket.joined || self.disk.members.contains_key(&socket.user),
                        "a membership is told when it is stored"
                    );
                }
                _ => {}
            }
        }
    }

    fn answered(&mut self, id: u32, line: &Value) {
        if let Some((user, read)) = self.moved.remove(&id)
            && let Some(seq) = line["data"]["seq"].as_u64()
        {
            let told = self.cursors.entry(user).or_default();
            let told = if read { &mut told.1 } else { &mut told.0 };
            *told = seq.max(*told);
        }
        if let Some((key, joined)) = self.sent.remove(&id) {
            if let Some(seq) = line["data"]["seq"].as_u64() {
                // Two sockets may be answered in any order within a tick.
                let first = line["data"]["duplicate"] != true;
                if first {
                    assert!(self.firsts.insert(key.clone(), seq).is_none());
                }
                match self.acknowledged.get(&key) {
                    Some(before) => assert_eq!(seq, *before, "the same seq again"),
                    None => {
                        let row = self
                            .disk
                            .rows
                            .iter()
                            .find(|row| (row.first..=row.last).contains(&seq))
                            .expect("acknowledged only when stored");
                        let line = slice(row.first, &row.body, seq - 1, seq);
                        let line: Value = serde_json::from_str(line).expect("JSON");
                        assert_eq!(line["data"]["senderId"], key.0);
                        assert_eq!(line["data"]["messageId"], key.1);
                        self.acknowledged.insert(key, seq);
                    }
                }
            } else {
                assert_eq!(line["error"]["code"], "notJoined", "{line}");
                assert!(!joined);
            }
        }
    }

    /// What must always be true.
    fn check(&mut self) {
        let head = self.disk.rows.last().map_or(0, |row| row.last);
        assert_eq!(head, self.room.bounds().head);
        let members = self.members();
        let floor = self.room.floor();
        for (user, (delivered, read, queued)) in members {
            assert!(read <= delivered && delivered <= head);
            assert_eq!(queued, head - delivered.max(floor).min(head));
            let told = self.cursors.get(&user).copied().unwrap_or_default();
            assert!(
                delivered >= told.0 && read >= told.1,
                "what a member was answered stays true"
            );
        }
    }

    fn members(&mut self) -> BTreeMap<String, (u64, u64, u64)> {
        let mut out = Vec::new();
        let Ok(Served::Now(json, _)) = self.room.serve(Request::Members, 0, self.now, &mut out)
        else {
            panic!("members are known at once");
        };
        let members: Vec<Value> = serde_json::from_str(&json).expect("JSON");
        members
            .iter()
            .map(|member| {
                let number = |name: &str| member[name].as_u64().expect("a number");
                (
                    member["userId"].as_str().expect("a name").to_owned(),
                    (number("delivered"), number("read"), number("queued")),
                )
            })
            .collect()
    }

    /// At rest every open connection has everything.
    fn settle(&mut self) {
        self.now += 60_000;
        self.advance();
        self.advance();
        let members: Vec<String> = self.members().into_keys().collect();
        let stored: Vec<String> = self.disk.members.keys().cloned().collect();
        assert_eq!(members, stored, "membership is stored");
        let head = self.room.bounds().head;
        for socket in self
            .sockets
            .iter()
            .filter(|socket| socket.open && socket.joined)
        {
            if let Some(at) = socket.at {
                assert_eq!(at, head, "{} has everything", socket.user);
            }
        }
        // The log tells each acknowledged send once.
        let range = Range {
            after: 0,
            before: u64::MAX,
            limit: 1_000_000,
            newest: false,
        };
        let mut page = Page::new(range, 0);
        for row in &self.disk.rows {
            page.take(row.first, &row.body);
        }
        let page: Value = serde_json::from_str(&page.finish(head, "e")).expect("JSON");
        let mut ids: Vec<String> = page["events"]
            .as_array()
            .expect("events")
            .iter()
            .map(|event| {
                format!(
                    "{}/{}",
                    event["data"]["senderId"], event["data"]["messageId"]
                )
            })
            .collect();
        let events = ids.len();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), events, "nothing is in the log twice");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn order_no_holes_no_duplicates_cursors_and_queue_whatever_comes(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        world.settle();
    }
}

/// Cursors that were acknowledged survive a crash and never move back.
#[test]
fn an_acknowledged_cursor_survives_a_crash() {
    let mut world = World::new();
    world.connect("alice", None);
    for message in 0..5 {
        world.step(&Step::Send { conn: 0, message });
    }
    world.step(&Step::Tick);
    world.step(&Step::Acknowledge {
        conn: 0,
        seq: 4,
        read: true,
    });
    world.step(&Step::Acknowledge {
        conn: 0,
        seq: 5,
        read: false,
    });
    world.step(&Step::Clock { by: 50 });
    world.step(&Step::Tick);
    world.step(&Step::Crash);
    assert_eq!(world.members()["alice"], (5, 4, 0));
    world.connect("alice", None);
    world.step(&Step::Acknowledge {
        conn: 0,
        seq: 1,
        read: true,
    });
    assert_eq!(world.members()["alice"], (5, 4, 0));
}
