//! A model of one room: random interleavings of joins, sends, receipts, disconnects,
//! evictions, crashes, failures of storage, clients that read late, and clock steps. In every
//! interleaving each connection receives the log in order, without holes, each event once; a
//! stalled connection receives only answers; every acknowledged message is in the log once;
//! every command is answered, also if storing fails; cursors never move back; the queue is exactly the events after the delivered
//! cursor.

use proptest::prelude::*;
use roomcast::config::Config;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::error::Error;
use roomcast_proto::framing::is_answer;
use roomcast_proto::id::{Epoch, RoomName, UserId};
use roomcast_proto::log_text::slice;
use roomcast_proto::position::Position;
use roomcast_proto::time::Millis;
use roomcast_room::history::{HistoryPage, HistoryQuery};
use roomcast_room::service::{Request, Served};
use roomcast_room::{
    Attachment, CallId, Change, ConnId, Frame, Member, Output, Room, Secret, Snapshot,
};
use roomcast_sim::stored_log::StoredLog;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};
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
    /// `message` selects one of 40 ids, so that some sends are resends.
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
    /// Sends a message and its read receipt in one frame.
    SendAndRead {
        conn: usize,
    },
    /// The client pings. The runtime answers.
    Ping {
        conn: usize,
    },
    /// Sends a portion of the log to a connection that catches up.
    Portion,
    /// Flushes the batch.
    Flush,
    Clock {
        by: i64,
    },
    /// Hibernation: the memory is lost, sockets stay open. Nothing is pending.
    Evict,
    /// The memory is lost by a panic, even if something is pending. Sockets stay open.
    Panic,
    /// The next change is not stored.
    FailStore,
    /// Memory and sockets are lost, even if something is pending.
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
        2 => any::<usize>().prop_map(|conn| Step::Leave { conn }),
        2 => (any::<usize>(), proptest::option::of(0..60u64))
            .prop_map(|(conn, since)| Step::Rejoin { conn, since }),
        1 => any::<usize>().prop_map(|conn| Step::SendAndRead { conn }),
        3 => any::<usize>().prop_map(|conn| Step::Ping { conn }),
        6 => Just(Step::Portion),
        6 => Just(Step::Flush),
        2 => (-50..500i64).prop_map(|by| Step::Clock { by }),
        1 => Just(Step::Evict),
        1 => Just(Step::Panic),
        1 => Just(Step::FailStore),
        1 => Just(Step::Crash),
    ];
    proptest::collection::vec(step, 1..120)
}

/// The storage of the room.
#[derive(Clone, Default)]
struct Disk {
    log: StoredLog,
    members: BTreeMap<UserId, Member>,
    departed: BTreeMap<UserId, Millis>,
    journal: Vec<String>,
}

/// A client and the events that it received.
struct Socket {
    user: String,
    attachment: Option<Attachment>,
    open: bool,
    joined: bool,
    /// Logged events in the order of their arrival.
    seen: Vec<u64>,
    /// The last event that the client received or that `gap` announced.
    at: Option<u64>,
    /// The position that the client has sent and that is not confirmed yet.
    since: Option<u64>,
    /// The time of the last ping.
    pinged: Option<Millis>,
}

struct World {
    config: Rc<Config>,
    disk: Disk,
    room: Room,
    sockets: Vec<Socket>,
    conns: HashMap<ConnId, usize>,
    now: Millis,
    next_id: u32,
    /// The last event of the deliveries that were carried out. Survives a panic.
    delivered: Option<u64>,
    /// The number of times that the room was restored.
    lives: u32,
    /// `true` if the next change is not stored.
    fail_store: bool,
    /// Unanswered sends, by command id: (user, message id), and whether the socket had
    /// joined.
    sent: HashMap<u32, ((String, String), bool)>,
    /// Unanswered receipts, by command id: user, and whether it is a read receipt.
    moved: HashMap<u32, (String, bool)>,
    /// The socket of each command.
    asked_by: HashMap<u32, usize>,
    /// Receipts that must be accepted.
    must_accept: HashSet<u32>,
    /// The `seq` of acknowledged sends, by user and message id.
    acknowledged: HashMap<(String, String), u64>,
    /// The `seq` of acknowledged sends without `duplicate`, by user and message id.
    firsts: HashMap<(String, String), u64>,
    /// Highest acknowledged `(delivered, read)` of each member.
    cursors: HashMap<String, (u64, u64)>,
}

fn config() -> Rc<Config> {
    let vars: HashMap<&str, String> = HashMap::from([
        ("JWT_SECRET", roomcast_harness::SECRET.to_owned()),
        ("RETENTION_EVENTS", RETENTION.to_string()),
        // Longer than any run, so that every resend is a duplicate.
        ("DEDUPE_WINDOW", "1d".to_owned()),
        ("MESSAGES_BURST", "1000000".to_owned()),
        ("JOINS_BURST", "1000000".to_owned()),
        ("MAX_CONNECTIONS_PER_USER", "1000".to_owned()),
        // Reached by about seven events.
        ("MAX_UNACKED_BYTES", "1024".to_owned()),
        ("CATCH_UP_TIMEOUT", "2s".to_owned()),
    ]);
    Rc::new(Config::read(|name| vars.get(name).cloned()).expect("valid settings"))
}

fn open(config: &Rc<Config>, disk: &Disk) -> Room {
    let snapshot = Snapshot {
        life: "l".into(),
        epoch: Epoch::trusted("e"),
        secret: Secret::default(),
        bounds: disk.log.bounds(),
        members: disk.members.clone().into_iter().collect(),
        departed: disk.departed.clone().into_iter().collect(),
        journal: disk.journal.clone(),
        recent: Some(disk.log.recent()),
        profiles: None,
        rows: Some(disk.log.reader()),
    };
    Room::new(RoomName::trusted("r"), config.room.clone(), snapshot)
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
            conns: HashMap::new(),
            now: 1_000_000,
            next_id: 0,
            delivered: Some(0),
            lives: 0,
            fail_store: false,
            sent: HashMap::new(),
            moved: HashMap::new(),
            asked_by: HashMap::new(),
            must_accept: HashSet::new(),
            acknowledged: HashMap::new(),
            firsts: HashMap::new(),
            cursors: HashMap::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Connect { user, since } => self.connect(USERS[*user], *since),
            Step::Disconnect { conn } => {
                if let Some(conn_id) = self.pick(*conn) {
                    let mut out = Vec::new();
                    self.room
                        .disconnect(conn_id, 1000, None, self.now, &mut out);
                    self.sockets[self.conns[&conn_id]].open = false;
                    self.conns.remove(&conn_id);
                    self.run(out);
                }
            }
            Step::Send { conn, message } => {
                if let Some(conn_id) = self.pick(*conn) {
                    let socket = &self.sockets[self.conns[&conn_id]];
                    let (user, joined) = (socket.user.clone(), socket.joined);
                    let message_id = format!("m{message}");
                    let id = self.id(conn_id);
                    self.sent.insert(id, ((user, message_id.clone()), joined));
                    self.frame(
                        conn_id,
                        json!({"event": "sendMessage", "id": id,
                            "data": {"content": message, "messageId": message_id}}),
                    );
                }
            }
            Step::Acknowledge { conn, seq, read } => {
                if let Some(conn_id) = self.pick(*conn) {
                    let event = if *read {
                        "messageRead"
                    } else {
                        "messageDelivered"
                    };
                    let user = self.sockets[self.conns[&conn_id]].user.clone();
                    let id = self.id(conn_id);
                    self.moved.insert(id, (user, *read));
                    self.frame(
                        conn_id,
                        json!({"event": event, "id": id, "data": {"seq": seq}}),
                    );
                }
            }
            Step::Leave { conn } => {
                if let Some(conn_id) = self.pick(*conn) {
                    let socket = &self.sockets[self.conns[&conn_id]];
                    if socket.joined {
                        let user = socket.user.clone();
                        let life = self.lives;
                        self.frame(conn_id, json!({"event": "leaveRoom"}));
                        if self.lives != life {
                            // Storing has failed.
                            return;
                        }
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
                if let Some(conn_id) = self.pick(*conn) {
                    let (index, life) = (self.conns[&conn_id], self.lives);
                    let socket = &mut self.sockets[index];
                    if !socket.joined {
                        // The events after a new join start at a new position.
                        socket.seen.clear();
                        socket.at = None;
                        socket.since = None;
                        let id = self.id(conn_id);
                        self.frame(
                            conn_id,
                            json!({"event": "joinRoom", "id": id, "data": {"since": since}}),
                        );
                        if self.lives == life {
                            self.sockets[index].joined = true;
                        }
                    }
                }
            }
            Step::SendAndRead { conn } => {
                // The message gets the number after the head.
                self.advance();
                if let Some(conn_id) = self.pick(*conn) {
                    let socket = &self.sockets[self.conns[&conn_id]];
                    let (user, joined) = (socket.user.clone(), socket.joined);
                    let seq = self.room.bounds().head + 1;
                    let (send, read) = (self.id(conn_id), self.id(conn_id));
                    let key = (user.clone(), format!("both{send}"));
                    let message = json!({"event": "sendMessage", "id": send,
                        "data": {"content": 1, "messageId": key.1}});
                    let receipt = json!({"event": "messageRead", "id": read,
                        "data": {"seq": seq}});
                    self.sent.insert(send, (key, joined));
                    self.moved.insert(read, (user, true));
                    if joined {
                        self.must_accept.insert(read);
                    }
                    self.text(conn_id, &format!("{message}\n{receipt}"));
                }
            }
            Step::Ping { conn } => {
                if let Some(conn_id) = self.pick(*conn) {
                    self.sockets[self.conns[&conn_id]].pinged = Some(self.now);
                }
            }
            Step::Portion => self.portion(),
            Step::Flush => self.advance(),
            Step::Clock { by } => self.now = self.now.saturating_add_signed(*by),
            Step::Evict => {
                self.end_pending_work();
                let members = self.members();
                self.wake(None);
                assert_eq!(
                    self.members(),
                    members,
                    "hibernation must not change cursors"
                );
            }
            Step::Panic => {
                self.sent.clear();
                self.moved.clear();
                self.wake(self.delivered);
            }
            Step::FailStore => self.fail_store = true,
            Step::Crash => {
                for socket in &mut self.sockets {
                    socket.open = false;
                }
                self.sent.clear();
                self.moved.clear();
                self.wake(None);
            }
        }
        self.check();
    }

    /// Returns the id of a new command of the connection.
    fn id(&mut self, conn: ConnId) -> u32 {
        self.next_id += 1;
        self.asked_by.insert(self.next_id, self.conns[&conn]);
        self.next_id
    }

    fn pick(&self, conn: usize) -> Option<ConnId> {
        let mut conns: Vec<_> = self.conns.keys().copied().collect();
        conns.sort_unstable();
        (!conns.is_empty()).then(|| conns[conn % conns.len()])
    }

    fn connect(&mut self, user: &str, since: Option<u64>) {
        let position = Position {
            since,
            ..Position::default()
        };
        let request =
            roomcast_sim::world::connect_request(&self.sockets.len().to_string(), user, position);
        self.room
            .admit(&request, self.now)
            .expect("within the limits");
        let mut out = Vec::new();
        let conn_id = self.room.connect(request, |_| None, self.now, &mut out);
        self.conns.insert(conn_id, self.sockets.len());
        self.sockets.push(Socket {
            user: user.into(),
            attachment: None,
            open: true,
            joined: true,
            seen: Vec::new(),
            at: None,
            since,
            pinged: None,
        });
        self.run(out);
    }

    fn frame(&mut self, conn_id: ConnId, frame: Value) {
        self.text(conn_id, &frame.to_string());
    }

    fn text(&mut self, conn_id: ConnId, text: &str) {
        let mut out = Vec::new();
        self.room
            .receive(conn_id, Frame::Text(text), self.now, &mut out);
        self.run(out);
    }

    fn advance(&mut self) {
        let mut out = Vec::new();
        let pinged = |conn| self.sockets[*self.conns.get(&conn)?].pinged;
        self.room.check_stalled(pinged, self.now, &mut out);
        self.room.flush(self.now, &mut out);
        self.run(out);
    }

    /// Waits until nothing is pending. The end of a batch can move cursors, which are stored
    /// later.
    fn end_pending_work(&mut self) {
        for later in [60_000, 100, 0] {
            self.now += later;
            self.advance();
        }
    }

    /// Sends the first row of the next portion, after the batch has ended.
    fn portion(&mut self) {
        let mut out = Vec::new();
        let read = self.room.next_replay(&mut out);
        self.run(out);
        let Some(read) = read.filter(|read| !self.room.is_stalled(read.conn)) else {
            return;
        };
        let (after, upto) = (read.portion.range.after, read.portion.range.upto);
        let mut rows = self.disk.log.rows.iter();
        let row = rows.find(|row| row.last > after).expect("no holes");
        let text = slice(row.first, &row.body, after, upto).to_owned();
        let last = row.last.min(upto);
        let mut out = Vec::new();
        self.room.replayed(read, last, &mut out);
        self.send(read.conn, &text);
        self.run(out);
    }

    /// Discards the memory and restores the room from storage and attachments. `delivered` is
    /// the position that survives a failure.
    fn wake(&mut self, delivered: Option<u64>) {
        self.lives += 1;
        self.room = open(&self.config, &self.disk);
        self.conns.clear();
        for (index, socket) in self.sockets.iter_mut().enumerate() {
            let attachment = socket.attachment.clone().filter(|_| socket.open);
            let Some(attachment) = attachment else {
                socket.open = false;
                continue;
            };
            // A leave that was not stored is lost.
            socket.joined = attachment.joined;
            assert!(
                !socket.joined || self.disk.members.contains_key(&*socket.user),
                "a connection is joined only while its user is a member"
            );
            let conn_id = self.room.restore_connection(attachment, self.now);
            self.conns.insert(conn_id, index);
        }
        if let Some(delivered) = delivered {
            self.room.recover(delivered, self.now);
        }
        self.delivered = Some(self.room.bounds().head);
    }

    /// Handles a failure of storage as the host does.
    fn fail(&mut self, rest: impl Iterator<Item = Output>) {
        let rest: Vec<Output> = rest.collect();
        for output in self.room.fail(rest, &Error::internal(), self.now) {
            match self.room.route(output) {
                Some(Output::Send { conn, frame }) => self.receive(conn, &frame),
                Some(Output::Close { conn, .. }) => self.close(conn),
                other => panic!("{other:?} after a failure"),
            }
        }
        let mut waiting = self.sent.keys().chain(self.moved.keys());
        let unanswered = waiting.find(|id| self.sockets[self.asked_by[id]].open);
        assert_eq!(unanswered, None, "every command is answered");
        self.sent.clear();
        self.moved.clear();
        self.wake(self.delivered);
    }

    fn close(&mut self, conn: ConnId) {
        if let Some(index) = self.conns.remove(&conn) {
            self.sockets[index].open = false;
        }
    }

    /// Sends a frame to a client as the host does.
    fn send(&mut self, conn: ConnId, frame: &str) {
        self.receive(conn, frame);
        let Some(index) = self.conns.get(&conn) else {
            return;
        };
        if self.room.sent(conn, frame.len()) {
            let pinged = self.sockets[*index].pinged;
            let mut out = Vec::new();
            self.room.check_slow(conn, pinged, self.now, &mut out);
            self.run(out);
        }
    }

    fn run(&mut self, out: Vec<Output>) {
        let mut outputs = out.into_iter();
        while let Some(output) = outputs.next() {
            let Some(output) = self.room.route(output) else {
                continue;
            };
            match output {
                Output::Store(change) => {
                    if std::mem::take(&mut self.fail_store) {
                        return self.fail(outputs);
                    }
                    self.store(change);
                }
                Output::Send { conn, frame } => self.send(conn, &frame),
                Output::Deliver(delivery) => {
                    let custom = delivery.frames();
                    let events = delivery.events;
                    for conn in self.conns.keys().copied().collect::<Vec<_>>() {
                        match custom.get(&conn) {
                            Some(Some(frame)) => self.send(conn, frame),
                            Some(None) => {}
                            None => {
                                if let Some(frame) = &delivery.shared
                                    && self.room.receives(conn, delivery.batch)
                                {
                                    self.send(conn, frame);
                                }
                            }
                        }
                    }
                    if !events.is_empty() {
                        self.delivered = Some(events.upto);
                    }
                }
                Output::Attach { conn } => {
                    let attachment = self.room.attachment(conn);
                    if let Some(index) = self.conns.get(&conn) {
                        self.sockets[*index].attachment = attachment;
                    }
                }
                Output::Page { .. }
                | Output::Reply { .. }
                | Output::Authenticate { .. }
                | Output::Log(_) => {}
                Output::Subscribed { .. }
                | Output::Unsubscribed { .. }
                | Output::CatchUp { .. } => {
                    panic!("no connection is at a gateway")
                }
                Output::Close { conn, reason } => {
                    assert_eq!(reason, Disconnect::TooSlow);
                    self.close(conn);
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
                let head = self.disk.log.rows.last().map_or(0, |row| row.last);
                assert_eq!(row.first, head + 1, "the log has no holes");
                assert!(
                    self.disk
                        .log
                        .rows
                        .last()
                        .is_none_or(|last| last.at <= row.at)
                );
                self.disk.log.push(row);
            }
            Change::PutMember(user, member) => {
                self.disk.members.insert(user, member);
            }
            Change::PutProfile { .. } => panic!("no token has a profile"),
            Change::RemoveMember(user) => {
                self.disk.members.remove(&user);
            }
            Change::PutDeparted(user, at) => {
                self.disk.departed.insert(user, at);
            }
            Change::RemoveDeparted(user) => {
                self.disk.departed.remove(&user);
            }
            Change::AppendJournal(moved) => self.disk.journal.push(moved),
            Change::Checkpoint(members) => {
                for (user, member) in members {
                    self.disk.members.insert(user, member);
                }
                self.disk.journal.clear();
            }
            Change::Trim { upto, since, first } => self.disk.log.trim(upto, since, first),
            Change::Wipe { .. } => panic!("no step deletes the room"),
        }
    }

    /// Processes a frame as its client.
    fn receive(&mut self, conn: ConnId, frame: &str) {
        let Some(index) = self.conns.get(&conn).copied() else {
            return;
        };
        let is_stalled = self.room.is_stalled(conn);
        for line in frame.split('\n') {
            assert!(
                !is_stalled || is_answer(line) || line.contains("userLeft"),
                "a stalled connection receives only answers: {line}"
            );
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
                        assert_eq!(
                            seq,
                            at + 1,
                            "events must arrive in order, without holes, each once"
                        );
                    }
                    assert!(
                        self.disk.log.rows.last().is_some_and(|row| row.last >= seq),
                        "an event must be stored before it is sent"
                    );
                    socket.at = Some(seq);
                    socket.seen.push(seq);
                }
                Some("gap") => {
                    let to = line["data"]["to"].as_u64().expect("an end");
                    assert!(
                        to <= self.room.floor(),
                        "`gap` must announce only trimmed events"
                    );
                    if let Some(at) = socket.at {
                        assert_eq!(line["data"]["from"], at + 1, "a gap has no hole before it");
                    }
                    socket.at = Some(to);
                }
                Some("connected") => {
                    let seq = line["data"]["seq"].as_u64().expect("a head");
                    assert!(seq <= self.room.bounds().head);
                    assert!(socket.at.is_none(), "`connected` must be the first event");
                    let is_reset = line["data"]["reset"] == true;
                    socket.at = socket.since.filter(|_| !is_reset);
                    assert!(
                        !socket.joined || self.disk.members.contains_key(&*socket.user),
                        "a membership must be stored before `connected`"
                    );
                }
                _ => {}
            }
        }
    }

    fn answered(&mut self, id: u32, line: &Value) {
        if self.must_accept.remove(&id) && line["error"]["code"] != "internal" {
            assert!(line["data"]["seq"].is_u64(), "{line}");
        }
        if let Some((user, read)) = self.moved.remove(&id)
            && let Some(seq) = line["data"]["seq"].as_u64()
        {
            let cursors = self.cursors.entry(user).or_default();
            let cursor = if read { &mut cursors.1 } else { &mut cursors.0 };
            *cursor = seq.max(*cursor);
        }
        if let Some((key, joined)) = self.sent.remove(&id) {
            if let Some(seq) = line["data"]["seq"].as_u64() {
                // Within a batch two sockets can be answered in any order.
                let first = line["data"]["duplicate"] != true;
                if first {
                    assert!(self.firsts.insert(key.clone(), seq).is_none());
                }
                match self.acknowledged.get(&key) {
                    Some(before) => assert_eq!(seq, *before, "a resend must return the same seq"),
                    None => {
                        let rows = &self.disk.log.rows;
                        let row = rows
                            .iter()
                            .find(|row| (row.first..=row.last).contains(&seq));
                        // The answer to a resend may come when the message has expired.
                        if first || rows.first().is_some_and(|row| row.first <= seq) {
                            let row = row.expect("an acknowledged message must be stored");
                            let line = slice(row.first, &row.body, seq - 1, seq);
                            let line: Value = serde_json::from_str(line).expect("JSON");
                            assert_eq!(line["data"]["senderId"], key.0);
                            assert_eq!(line["data"]["messageId"], key.1);
                        }
                        self.acknowledged.insert(key, seq);
                    }
                }
            } else if line["error"]["code"] != "internal" {
                assert_eq!(line["error"]["code"], "notJoined", "{line}");
                assert!(!joined);
            }
        }
    }

    /// Asserts the invariants after every step.
    fn check(&mut self) {
        let head = self.disk.log.rows.last().map_or(0, |row| row.last);
        assert_eq!(head, self.room.bounds().head);
        let members = self.members();
        let floor = self.room.floor();
        for (user, (delivered, read, queued)) in members {
            assert!(read <= delivered && delivered <= head);
            assert_eq!(queued, head - delivered.max(floor).min(head));
            let acknowledged = self.cursors.get(&user).copied().unwrap_or_default();
            assert!(
                delivered >= acknowledged.0 && read >= acknowledged.1,
                "an acknowledged cursor must not move back"
            );
        }
    }

    fn is_any_stalled(&self) -> bool {
        self.conns.keys().any(|conn| self.room.is_stalled(*conn))
    }

    fn members(&mut self) -> BTreeMap<String, (u64, u64, u64)> {
        let mut out = Vec::new();
        let served = self
            .room
            .serve(Request::Members, CallId(0), self.now, &mut out);
        let Ok(Served::Now(json)) = served else {
            panic!("members must be returned immediately");
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

    /// Flushes everything, then asserts that every open connection is complete.
    fn settle(&mut self) {
        self.fail_store = false;
        self.end_pending_work();
        // The clients that are still connected read.
        while self.room.portions_waiting() > 0 || self.is_any_stalled() {
            self.now += 1_000;
            for socket in &mut self.sockets {
                socket.pinged = Some(self.now);
            }
            self.advance();
            self.portion();
        }
        let members: Vec<String> = self.members().into_keys().collect();
        let stored = self.disk.members.keys().map(UserId::to_string);
        let stored: Vec<String> = stored.collect();
        assert_eq!(members, stored, "all members must be stored");
        let head = self.room.bounds().head;
        for socket in self
            .sockets
            .iter()
            .filter(|socket| socket.open && socket.joined)
        {
            if let Some(at) = socket.at {
                assert_eq!(at, head, "{} must have received all events", socket.user);
            }
        }
        // The log contains each message once.
        let query = HistoryQuery {
            after: 0,
            before: u64::MAX,
            limit: 1_000_000,
            newest: false,
        };
        let mut page = HistoryPage::new(query, 0);
        for row in &self.disk.log.rows {
            page.add(row.first, &row.body);
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
        assert_eq!(ids.len(), events, "no message may be in the log twice");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn order_deduplication_cursors_and_queue_hold_in_every_interleaving(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        world.settle();
    }
}

#[test]
fn an_acknowledged_cursor_survives_a_crash_and_never_moves_back() {
    let mut world = World::new();
    world.connect("alice", None);
    for message in 0..5 {
        world.step(&Step::Send { conn: 0, message });
    }
    world.step(&Step::Flush);
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
    world.step(&Step::Flush);
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

#[test]
fn a_new_membership_does_not_inherit_the_cursors_of_an_earlier_one() {
    let acknowledge = Step::Acknowledge {
        conn: 0,
        seq: 5,
        read: true,
    };
    for hibernates_between in [false, true] {
        let mut world = World::new();
        world.connect("alice", None);
        for message in 0..5 {
            world.step(&Step::Send { conn: 0, message });
        }
        world.step(&Step::Flush);
        world.step(&acknowledge);
        world.step(&Step::Clock { by: 50 });
        world.step(&Step::Flush);
        assert_eq!(
            world.disk.journal.len(),
            1,
            "the cursors are in the journal"
        );
        world.step(&Step::Leave { conn: 0 });
        if hibernates_between {
            world.step(&Step::Evict);
        }
        world.connect("alice", Some(2));
        assert_eq!(world.members()["alice"], (2, 2, 3));
        world.step(&Step::Evict);
        assert_eq!(world.members()["alice"], (2, 2, 3));
    }
}

#[test]
fn cursors_of_other_members_survive_when_a_user_joins_again() {
    let mut world = World::new();
    world.connect("alice", None);
    world.connect("bob", None);
    for message in 0..5 {
        world.step(&Step::Send { conn: 0, message });
    }
    world.step(&Step::Flush);
    for conn in 0..2 {
        world.step(&Step::Acknowledge {
            conn,
            seq: 4,
            read: false,
        });
    }
    world.step(&Step::Clock { by: 50 });
    world.step(&Step::Flush);
    world.step(&Step::Leave { conn: 0 });
    world.connect("alice", Some(1));
    // Stored before the batch with the new membership, and again after it.
    for seq in [5, 4] {
        world.step(&Step::Acknowledge {
            conn: 1,
            seq,
            read: true,
        });
        world.step(&Step::Clock { by: 50 });
        world.step(&Step::Flush);
    }
    world.step(&Step::Crash);
    assert_eq!(world.members()["alice"], (1, 1, 4));
    assert_eq!(world.members()["bob"], (5, 5, 0));
}
