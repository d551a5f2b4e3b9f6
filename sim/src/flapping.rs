//! Flapping Socket.IO clients: they connect, recover, join, leave and refresh, and lose
//! their connections at any step. Other clients then reuse their slots. Each asynchronous
//! operation (finding a saved client, verifying a token, a request to a room, a delivery
//! of a room) completes at a step that the input selects.
//!
//! Invariants for every order of operations:
//! - A connection receives only events of rooms that the tokens of its user allow. After
//!   a token was accepted, it receives only events of rooms that this token allows.
//! - `connected` contains the user of the token that the session has sent.
//! - At the end every CONNECT of an open session is answered, and the rooms count exactly
//!   the open connections.
//!
//! The input has three bytes per step, see `World::step`.

use super::signing::sign;
use super::world::{self, NOW, Server};
use roomcast::config::Config;
use roomcast_gateway::handshake::shard_of;
use roomcast_gateway::{
    Authentication, ClientId, ConnectInfo, EngineServer, Frame, Gateway, Output, Protocol, SocketId,
};
use roomcast_proto::id::{RoomName, UserId};
use roomcast_proto::link::{Command, Push};
use roomcast_proto::time::Millis;
use roomcast_room::service::Request;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;

const USERS: [&str; 3] = ["alice", "bob", "carol"];
const ROOMS: [&str; 4] = ["private-alice", "private-bob", "public-1", "public-2"];
const NAMESPACES: [&str; 2] = ["/", "/chat"];

/// Maximal number of concurrent sessions. Small, so that slots are reused often.
const MAX_SESSIONS: usize = 6;

/// A token of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    /// For the public rooms and the private room of the user.
    Wide,
    /// Only for `public-1`.
    Narrow,
}

impl Token {
    fn of(byte: u8) -> Self {
        match byte % 3 {
            0 => Token::Narrow,
            _ => Token::Wide,
        }
    }

    fn allows(self, user: &str, room: &str) -> bool {
        match self {
            _ if room == format!("@{user}") => true,
            Token::Wide => room.starts_with("public-") || room == format!("private-{user}"),
            Token::Narrow => room == "public-1",
        }
    }

    fn text(self, user: &str) -> String {
        let rooms = match self {
            Token::Wide => json!([format!("private-{user}"), "public-*"]),
            Token::Narrow => json!(["public-1"]),
        };
        let exp = NOW / 1_000 + 1_000_000;
        let claims = json!({ "sub": user, "exp": exp, "rooms": rooms }).to_string();
        sign(r#"{"alg":"HS256"}"#, claims.as_bytes())
    }
}

/// A gateway with its storage.
struct GatewayHost {
    gateway: Gateway,
    /// Saved clients by `pid`: user and record.
    saved: BTreeMap<String, (UserId, String)>,
    /// The current gateway of clients by `pid`, if they have moved.
    moved: BTreeMap<String, usize>,
}

/// A namespace of a session, as its client sees it.
#[derive(Debug)]
enum Nsp {
    Connecting,
    Connected,
    Refused,
}

/// A client with a Socket.IO session.
struct Session {
    user: &'static str,
    gateway: usize,
    socket: SocketId,
    /// The newest token that the server has accepted.
    token: Token,
    nsps: BTreeMap<&'static str, Nsp>,
    /// Unanswered refreshes, by acknowledgement id.
    refreshes: BTreeMap<u64, Token>,
}

/// Recovery data of a client.
#[derive(Clone, Default)]
struct Kept {
    pid: String,
    offset: Option<String>,
}

/// An asynchronous operation.
enum Delayed {
    Find {
        gateway: usize,
        client: ClientId,
        pid: String,
        user: UserId,
    },
    Found {
        gateway: usize,
        client: ClientId,
        pid: String,
        record: Option<String>,
    },
    Authenticate {
        gateway: usize,
        it: Authentication,
    },
    Request {
        gateway: usize,
        room: RoomName,
    },
    /// The next delivery of a room to a gateway. Deliveries are in order.
    Delivery {
        gateway: usize,
        room: RoomName,
    },
}

struct World {
    now: Millis,
    config: Rc<Config>,
    hosts: Vec<GatewayHost>,
    rooms: BTreeMap<RoomName, Server>,
    sessions: Vec<Session>,
    /// Recovery data of the last client, by user and namespace.
    kept: BTreeMap<(&'static str, &'static str), Kept>,
    delayed: VecDeque<Delayed>,
    deliveries: BTreeMap<(RoomName, usize), VecDeque<String>>,
    last_ack: u64,
    messages: u32,
}

/// Runs the target on an input. Panics if a promise is broken.
pub fn run(input: &[u8]) {
    world::begin();
    let mut world = World::new();
    world.begin();
    for step in input.chunks_exact(3).take(200) {
        world.step(step[0], step[1], step[2]);
    }
    world.settle_all();
    world.check();
    // New sessions are accepted as their own users and receive no earlier events.
    world.close_sessions();
    world.settle_all();
    for gateway in 0..2 {
        for user in 0..USERS.len() {
            world.open(user, gateway, true, Token::Wide);
            let session = world.sessions.len() - 1;
            world.connect(session, 0, false, Token::Wide);
        }
    }
    world.settle_all();
    for session in &world.sessions {
        assert!(matches!(session.nsps["/"], Nsp::Connected), "accepted");
    }
    world.close_sessions();
    world.settle_all();
    world.check();
}

impl World {
    fn new() -> Self {
        let config = world::config(&[]);
        let host = |name: &str| GatewayHost {
            gateway: Gateway::new(EngineServer::new(
                name.to_owned(),
                config.gateway.clone(),
                world::fresh,
            )),
            saved: BTreeMap::new(),
            moved: BTreeMap::new(),
        };
        World {
            now: NOW,
            hosts: vec![host("0"), host("1")],
            config,
            rooms: BTreeMap::new(),
            sessions: Vec::new(),
            kept: BTreeMap::new(),
            delayed: VecDeque::new(),
            deliveries: BTreeMap::new(),
            last_ack: 0,
            messages: 0,
        }
    }

    fn step(&mut self, kind: u8, a: u8, b: u8) {
        let session = usize::from(a);
        let room = usize::from(b) % ROOMS.len();
        // The main namespace (index 0) for 15 of 16 values.
        let nsp = usize::from(b >> 4 == 0);
        match kind % 32 {
            0..3 => self.open(
                session % 3,
                usize::from(b & 1),
                b & 2 > 0,
                Token::of(b >> 2),
            ),
            3..7 => self.connect(session, nsp, b & 3 > 0, Token::of(b >> 2)),
            7..11 => {
                self.emit(session, nsp, json!(["joinRoom", ROOMS[room]]));
            }
            11 => {
                self.emit(session, nsp, json!(["leaveRoom", ROOMS[room]]));
            }
            12..16 => {
                self.messages += 1;
                let message = json!({ "roomId": ROOMS[room], "content": self.messages });
                self.emit(session, nsp, json!(["sendMessage", message]));
            }
            16 => self.refresh(session, nsp, Token::of(b)),
            17..20 => self.close(session),
            20 => self.disconnect(session, nsp),
            21..30 => {
                for n in 0..=usize::from(b % 16) {
                    self.complete(session + 7 * n);
                }
            }
            30 => self.complete_all(),
            _ => self.pass(Millis::from(b) * 50),
        }
    }

    /// Connects every user and joins its rooms.
    fn begin(&mut self) {
        for user in 0..USERS.len() {
            self.open(user, user % 2, true, Token::Wide);
            self.connect(user, 0, false, Token::Wide);
            self.complete_all();
            for room in [user.min(1), 2] {
                self.emit(user, 0, json!(["joinRoom", ROOMS[room]]));
            }
        }
        self.complete_all();
    }

    // The actions of clients.

    fn open(&mut self, user: usize, gateway: usize, by_request: bool, token: Token) {
        if self.sessions.len() == MAX_SESSIONS {
            return;
        }
        let user = USERS[user];
        let host = &mut self.hosts[gateway];
        let identity = by_request.then(|| {
            let token = token.text(user);
            self.config.auth.verify(&token, self.now).expect("a token")
        });
        let info = ConnectInfo {
            protocol: Protocol::SocketIo,
            identity,
            error: None,
            address: None,
            recovers: true,
            may_recover: false,
        };
        let socket = host.gateway.server.engine.open_socket(info, None, self.now);
        self.sessions.push(Session {
            user,
            gateway,
            socket: socket.expect("accepted"),
            token,
            nsps: BTreeMap::new(),
            refreshes: BTreeMap::new(),
        });
        self.settle(gateway);
    }

    fn session(&mut self, session: usize) -> Option<&mut Session> {
        let count = self.sessions.len().max(1);
        self.sessions.get_mut(session % count)
    }

    fn send(&mut self, session: usize, packet: String) {
        let now = self.now;
        let Some(this) = self.session(session) else {
            return;
        };
        let (gateway, socket) = (this.gateway, this.socket);
        let server = &mut self.hosts[gateway].gateway.server;
        server.frame(socket, Frame::Text(packet), now);
        self.settle(gateway);
    }

    fn connect(&mut self, session: usize, nsp: usize, recovers: bool, token: Token) {
        let nsp = NAMESPACES[nsp];
        let kept = self.kept.clone();
        let Some(this) = self.session(session) else {
            return;
        };
        if matches!(this.nsps.get(nsp), Some(Nsp::Connecting | Nsp::Connected)) {
            return;
        }
        this.nsps.insert(nsp, Nsp::Connecting);
        let mut auth = json!({ "token": token.text(this.user) });
        if let Some(kept) = kept.get(&(this.user, nsp)).filter(|_| recovers) {
            auth["pid"] = kept.pid.as_str().into();
            if let Some(offset) = &kept.offset {
                auth["offset"] = offset.as_str().into();
            }
        }
        // Either the token of the request or that of the CONNECT is used, so the check
        // allows the events of a wide token.
        this.token = Token::Wide;
        self.send(session, format!("40{}{auth}", prefix(nsp)));
    }

    fn emit(&mut self, session: usize, nsp: usize, args: Value) -> Option<u64> {
        self.last_ack += 1;
        let ack = self.last_ack;
        let nsp = NAMESPACES[nsp];
        let this = self.session(session)?;
        // socket.io-client sends no events before it is connected.
        if !matches!(this.nsps.get(nsp), Some(Nsp::Connected)) {
            return None;
        }
        self.send(session, format!("42{}{ack}{args}", prefix(nsp)));
        Some(ack)
    }

    fn refresh(&mut self, session: usize, nsp: usize, token: Token) {
        let Some(user) = self.session(session).map(|this| this.user) else {
            return;
        };
        let ack = self.last_ack + 1;
        if let Some(this) = self.session(session) {
            // Only one refresh at a time, so that the newest token is known.
            if this.refreshes.is_empty() {
                this.refreshes.insert(ack, token);
            } else {
                return;
            }
        }
        let args = json!(["refreshToken", { "token": token.text(user) }]);
        if self.emit(session, nsp, args).is_none()
            && let Some(this) = self.session(session)
        {
            this.refreshes.remove(&ack);
        }
    }

    /// Ends the connection of a session.
    fn close(&mut self, session: usize) {
        if self.sessions.is_empty() {
            return;
        }
        let this = self.sessions.remove(session % self.sessions.len());
        let engine = &mut self.hosts[this.gateway].gateway.server.engine;
        engine.closed(this.socket, 1006);
        self.settle(this.gateway);
    }

    fn disconnect(&mut self, session: usize, nsp: usize) {
        let nsp = NAMESPACES[nsp];
        let Some(this) = self.session(session) else {
            return;
        };
        if this.nsps.remove(nsp).is_some() {
            self.send(session, format!("41{}", prefix(nsp)));
        }
    }

    fn close_sessions(&mut self) {
        while !self.sessions.is_empty() {
            self.close(0);
        }
    }

    // The asynchronous operations.

    fn pass(&mut self, millis: Millis) {
        self.now += millis;
        for gateway in 0..self.hosts.len() {
            let host = &mut self.hosts[gateway];
            host.gateway.server.engine.set_now(self.now);
            // The clients answer pings.
            let now = self.now;
            host.gateway.advance(&|_| Some(now), now);
            self.settle(gateway);
        }
    }

    /// Completes an operation. Deliveries stay in order.
    fn complete(&mut self, which: usize) {
        if self.delayed.is_empty() {
            return;
        }
        let which = which % self.delayed.len();
        let Some(delayed) = self.delayed.remove(which) else {
            return;
        };
        match delayed {
            Delayed::Find {
                gateway,
                client,
                pid,
                user,
            } => {
                let record = self.find(gateway, &pid, &user);
                self.delayed.push_back(Delayed::Found {
                    gateway,
                    client,
                    pid,
                    record,
                });
            }
            Delayed::Found {
                gateway,
                client,
                pid,
                record,
            } => {
                let core = &mut self.hosts[gateway].gateway;
                core.found(client, &pid, record, self.now);
                self.settle(gateway);
            }
            Delayed::Authenticate { gateway, it } => {
                let identity = world::verify(&self.config, it.credentials, self.now);
                let core = &mut self.hosts[gateway].gateway;
                core.authenticated(it.request, identity, self.now);
                self.settle(gateway);
            }
            Delayed::Request { gateway, room } => {
                let core = &mut self.hosts[gateway].gateway;
                let commands = core.take_commands(&room);
                self.settle(gateway);
                if let Some(commands) = commands {
                    self.request(gateway, &room, commands);
                    self.delayed.push_back(Delayed::Request { gateway, room });
                }
            }
            Delayed::Delivery { gateway, room } => self.delivery(gateway, &room),
        }
    }

    /// Takes the saved record of a `pid` from its current gateway.
    fn find(&mut self, by: usize, pid: &str, user: &UserId) -> Option<String> {
        let host = shard_of(pid).filter(|host| *host < self.hosts.len())?;
        let at = self.hosts[host].moved.get(pid).copied().unwrap_or(host);
        let core = &mut self.hosts[at].gateway;
        core.evict(pid, user);
        self.settle(at);
        let found = self.hosts[at].saved.get(pid).filter(|(of, _)| of == user);
        let record = found.map(|(_, record)| record.clone());
        if record.is_some() {
            self.hosts[at].saved.remove(pid);
            self.hosts[host].moved.insert(pid.to_owned(), by);
        }
        record
    }

    fn request(&mut self, gateway: usize, room: &RoomName, commands: Vec<Command>) {
        let config = self.config.clone();
        let fresh = || Server::new(room, config);
        let server = self.rooms.entry(room.clone()).or_insert_with(fresh);
        server.now = self.now;
        server.handle_gateway(&gateway.to_string(), commands);
        self.queue_deliveries(room);
    }

    /// Queues the outputs of a room as deliveries to the gateways.
    fn queue_deliveries(&mut self, room: &RoomName) {
        let server = self.rooms.get_mut(room).expect("a room");
        server.settle();
        server.start_deliveries();
        for gateway in 0..self.hosts.len() {
            while let Some(body) = server.take_delivery(&gateway.to_string(), usize::MAX) {
                let key = (room.clone(), gateway);
                self.deliveries.entry(key).or_default().push_back(body);
                let room = room.clone();
                self.delayed.push_back(Delayed::Delivery { gateway, room });
            }
        }
    }

    fn delivery(&mut self, gateway: usize, room: &RoomName) {
        let key = (room.clone(), gateway);
        let body = self.deliveries.get_mut(&key).and_then(VecDeque::pop_front);
        let body = body.expect("one delivery per queued operation");
        let (push, texts) = Push::parse(&body).expect("a push");
        let core = &mut self.hosts[gateway].gateway;
        let pushed = core.handle_push(push, &texts, self.now);
        self.settle(gateway);
        let server = self.rooms.get_mut(room).expect("a room");
        server.delivery_acknowledged(&gateway.to_string(), &pushed);
        self.queue_deliveries(room);
    }

    fn settle(&mut self, gateway: usize) {
        self.hosts[gateway].gateway.server.engine.set_now(self.now);
        loop {
            let outputs = self.hosts[gateway].gateway.settle(self.now);
            if outputs.is_empty() {
                return;
            }
            for output in outputs {
                self.output(gateway, output);
            }
        }
    }

    fn output(&mut self, gateway: usize, output: Output) {
        let host = &mut self.hosts[gateway];
        match output {
            Output::Send { socket, frame } => self.receive(gateway, socket, &frame),
            Output::Broadcast { sockets, text } => {
                let frame = Frame::Text(text);
                for socket in sockets {
                    self.receive(gateway, socket, &frame);
                }
            }
            Output::Close { socket, .. } => {
                self.sessions
                    .retain(|one| (one.gateway, one.socket) != (gateway, socket));
            }
            Output::Forward { room } => {
                self.delayed.push_back(Delayed::Request { gateway, room });
            }
            Output::Save {
                client,
                user,
                record,
                ..
            } => {
                host.saved.insert(client, (user, record));
            }
            Output::Forget { client } => {
                host.saved.remove(&client);
            }
            Output::Find { client, pid, user } => self.delayed.push_back(Delayed::Find {
                gateway,
                client,
                pid,
                user,
            }),
            Output::Authenticate(it) => {
                self.delayed
                    .push_back(Delayed::Authenticate { gateway, it });
            }
            Output::Log(entry) => {
                let line = entry.line(self.now);
                assert!(!line.contains(r#""level":"error""#), "{line}");
            }
            Output::Attach { .. }
            | Output::Answer { .. }
            | Output::StorePosition { .. }
            | Output::TrackPosition { .. }
            | Output::Clean => {}
        }
    }

    /// Processes a frame as its client.
    fn receive(&mut self, gateway: usize, socket: SocketId, frame: &Frame) {
        let Frame::Text(text) = frame else {
            panic!("rooms send no binary data");
        };
        let mut sessions = self.sessions.iter_mut();
        let session = sessions.find(|one| (one.gateway, one.socket) == (gateway, socket));
        let (Some(session), Some(message)) = (session, text.strip_prefix('4')) else {
            return;
        };
        let (kind, rest) = message.split_at(1);
        let (nsp, rest) = match rest.starts_with('/') {
            true => rest.split_once(',').expect("a namespace"),
            false => ("/", rest),
        };
        let nsp = *NAMESPACES.iter().find(|one| **one == nsp).expect("known");
        let json = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        let ack = rest[..rest.len() - json.len()].parse().ok();
        let value: Value = serde_json::from_str(json).unwrap_or_default();
        match kind {
            "0" => {
                session.nsps.insert(nsp, Nsp::Connected);
                let pid = value["pid"]
                    .as_str()
                    .expect("recovery is enabled")
                    .to_owned();
                let kept = self.kept.entry((session.user, nsp)).or_default();
                if kept.pid != pid {
                    *kept = Kept { pid, offset: None };
                }
            }
            "1" => {
                session.nsps.remove(nsp);
            }
            "4" => {
                session.nsps.insert(nsp, Nsp::Refused);
            }
            "3" => {
                let token = ack.and_then(|ack| session.refreshes.remove(&ack));
                if let Some(token) = token.filter(|_| value[0]["error"].is_null()) {
                    session.token = token;
                }
            }
            _ => {
                session.event(nsp, &value);
                let last = value.as_array().and_then(|args| args.last());
                if let Some(offset) = last.and_then(Value::as_str)
                    && let Some(kept) = self.kept.get_mut(&(session.user, nsp))
                {
                    kept.offset = Some(offset.to_owned());
                }
            }
        }
    }

    /// Completes all operations and advances the clock until the timers have run.
    fn settle_all(&mut self) {
        for _ in 0..12 {
            self.complete_all();
            self.pass(2_500);
        }
        self.complete_all();
    }

    fn complete_all(&mut self) {
        for _ in 0..5_000 {
            self.complete(0);
        }
        assert!(self.delayed.is_empty(), "all operations must complete");
    }

    fn check(&mut self) {
        for session in &self.sessions {
            for (nsp, state) in &session.nsps {
                assert!(
                    !matches!(state, Nsp::Connecting),
                    "CONNECT {nsp} must be answered"
                );
            }
        }
        // A room counts one connection per joined client. Every connected client has
        // joined its personal room.
        let mut connected: HashMap<String, u64> = HashMap::new();
        for session in &self.sessions {
            let nsps = session.nsps.values();
            let count = nsps.filter(|nsp| matches!(nsp, Nsp::Connected)).count() as u64;
            *connected.entry(session.user.to_owned()).or_default() += count;
        }
        for (room, server) in &mut self.rooms {
            let presence = server.serve(Request::Presence).expect("at once");
            let presence: Value = serde_json::from_str(&presence).expect("JSON");
            for user in presence["users"].as_array().expect("users") {
                let name = user["userId"].as_str().expect("a name");
                let there = connected.get(name).copied().unwrap_or(0);
                let counted = user["connections"].as_u64().expect("a number");
                if room.starts_with('@') {
                    assert_eq!(counted, there, "{name} in {room}");
                }
                assert!(counted <= there, "{name} in {room}: {counted} of {there}");
            }
        }
    }
}

impl Session {
    fn event(&self, nsp: &str, args: &Value) {
        let (name, data) = (args[0].as_str().expect("a name"), &args[1]);
        if name == "connected" {
            assert_eq!(data["userId"], self.user, "another user's connection");
            return;
        }
        if matches!(name, "error" | "roomClosed") {
            return;
        }
        let room = data["roomId"].as_str().expect("an event of a room");
        assert!(
            Token::Wide.allows(self.user, room),
            "{} receives an event of {room} in {nsp}: {args}",
            self.user
        );
        assert!(
            self.token.allows(self.user, room) || name == "userLeft",
            "{} has no right to {room} with its newest token: {args}",
            self.user
        );
    }
}

/// Returns the namespace prefix of a packet.
fn prefix(nsp: &str) -> String {
    match nsp {
        "/" => String::new(),
        nsp => format!("{nsp},"),
    }
}
