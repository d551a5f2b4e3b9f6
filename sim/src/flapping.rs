//! Socket.IO clients that flap: they connect, recover, join, leave and refresh,
//! and lose their connection at every step of that, while others take the slots
//! that they leave. Everything that takes time (the search for a saved client, a
//! token that is judged, a request to a room, a delivery of a room) is carried out
//! when the input says so.
//!
//! What must be true, whatever happens in whatever order:
//! - No connection receives an event of a room that the token of its user does
//!   not open, nor one that its newest token does not open once the client was
//!   told that the token is taken.
//! - `connected` names the user of the token that this very session has shown.
//! - At the end every CONNECT of an open session has been answered, and rooms
//!   count exactly the connections that are there.
//!
//! The input: three bytes a step, see [`World::step`].

use super::tokens::sign;
use super::world::{self, NOW, Server};
use roomcast::config::Config;
use roomcast_gateway::chat::Chat;
use roomcast_gateway::handshake::shard_of;
use roomcast_gateway::{
    App, Authentication, ClientId, Door, Frame, Gateway, Hub, Output, Protocol, SocketId,
};
use roomcast_proto::link::{Command, Push};
use roomcast_proto::time::Millis;
use roomcast_room::service::Request;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;

const USERS: [&str; 3] = ["alice", "bob", "carol"];
const ROOMS: [&str; 4] = ["private-alice", "private-bob", "public-1", "public-2"];
const NAMESPACES: [&str; 2] = ["/", "/chat"];

/// Most sessions at a time: enough to have each slot used again and again.
const MAX_SESSIONS: usize = 6;

/// The token of a user: for the rooms of all and one of its own, or narrower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Wide,
    Narrow,
}

impl Token {
    fn of(byte: u8) -> Self {
        match byte % 3 {
            0 => Token::Narrow,
            _ => Token::Wide,
        }
    }

    fn opens(self, user: &str, room: &str) -> bool {
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
struct Home {
    gateway: Gateway<Chat>,
    /// Saved clients: user and record.
    saved: BTreeMap<String, (String, String)>,
    /// At which gateway a client of this `pid` is by now.
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
    /// The token that counts: the newest that the client knows to be taken.
    token: Token,
    nsps: BTreeMap<&'static str, Nsp>,
    /// Refreshes without an answer, by the ids of their acknowledgements.
    refreshes: BTreeMap<u64, Token>,
}

/// What a client keeps when its connection is lost.
#[derive(Clone, Default)]
struct Kept {
    pid: String,
    offset: Option<String>,
}

/// Something that takes time.
enum Delayed {
    Find {
        gateway: usize,
        client: ClientId,
        pid: String,
        user: String,
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
        room: String,
    },
    /// The deliveries of a room to a gateway are in order.
    Delivery {
        gateway: usize,
        room: String,
    },
}

struct World {
    now: Millis,
    config: Rc<Config>,
    homes: Vec<Home>,
    rooms: BTreeMap<String, Server>,
    sessions: Vec<Session>,
    /// By user and namespace: the last client that was connected.
    kept: BTreeMap<(&'static str, &'static str), Kept>,
    delayed: VecDeque<Delayed>,
    deliveries: BTreeMap<(String, usize), VecDeque<String>>,
    last_ack: u64,
    messages: u32,
}

pub fn run(input: &[u8]) {
    world::begin();
    let mut world = World::new();
    world.begin();
    for step in input.chunks_exact(3).take(200) {
        world.step(step[0], step[1], step[2]);
    }
    world.come_to_rest();
    world.check();
    // Whoever comes now is let in, as itself, and nothing of before is for it.
    world.sessions_end();
    world.come_to_rest();
    for gateway in 0..2 {
        for user in 0..USERS.len() {
            world.open(user, gateway, true, Token::Wide);
            let session = world.sessions.len() - 1;
            world.connect(session, 0, false, Token::Wide);
        }
    }
    world.come_to_rest();
    for session in &world.sessions {
        assert!(matches!(session.nsps["/"], Nsp::Connected), "is let in");
    }
    world.sessions_end();
    world.come_to_rest();
    world.check();
}

impl World {
    fn new() -> Self {
        let config = world::config(&[]);
        let home = |name: &str| Home {
            gateway: Gateway::new(
                Hub::new(name.to_owned(), config.gateway.clone(), world::fresh),
                Chat::default(),
            ),
            saved: BTreeMap::new(),
            moved: BTreeMap::new(),
        };
        World {
            now: NOW,
            homes: vec![home("0"), home("1")],
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
        // Mostly the first.
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
                    self.carry_out(session + 7 * n);
                }
            }
            30 => self.carry_out_all(),
            _ => self.pass(Millis::from(b) * 50),
        }
    }

    /// Every user is in its rooms.
    fn begin(&mut self) {
        for user in 0..USERS.len() {
            self.open(user, user % 2, true, Token::Wide);
            self.connect(user, 0, false, Token::Wide);
            self.carry_out_all();
            for room in [user.min(1), 2] {
                self.emit(user, 0, json!(["joinRoom", ROOMS[room]]));
            }
        }
        self.carry_out_all();
    }

    // What clients do.

    fn open(&mut self, user: usize, gateway: usize, by_request: bool, token: Token) {
        if self.sessions.len() == MAX_SESSIONS {
            return;
        }
        let user = USERS[user];
        let home = &mut self.homes[gateway];
        let identity = by_request.then(|| {
            let token = token.text(user);
            self.config.auth.verify(&token, self.now).expect("a token")
        });
        let door = Door {
            protocol: Protocol::SocketIo,
            identity,
            fault: None,
            address: None,
            recovers: true,
        };
        let socket = home.gateway.hub.open_socket(door, None, self.now);
        self.sessions.push(Session {
            user,
            gateway,
            socket: socket.expect("is let in"),
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

    fn say(&mut self, session: usize, packet: String) {
        let now = self.now;
        let Some(this) = self.session(session) else {
            return;
        };
        let (gateway, socket) = (this.gateway, this.socket);
        let hub = &mut self.homes[gateway].gateway.hub;
        hub.frame(socket, Frame::Text(packet), now);
        self.settle(gateway);
    }

    fn connect(&mut self, session: usize, nsp: usize, comes_back: bool, token: Token) {
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
        if let Some(kept) = kept.get(&(this.user, nsp)).filter(|_| comes_back) {
            auth["pid"] = kept.pid.as_str().into();
            if let Some(offset) = &kept.offset {
                auth["offset"] = offset.as_str().into();
            }
        }
        // Which of the two counts depends on the request's token: either way the
        // rooms that the client may hear of are those of a wide one.
        this.token = Token::Wide;
        self.say(session, format!("40{}{auth}", prefix(nsp)));
    }

    fn emit(&mut self, session: usize, nsp: usize, args: Value) -> Option<u64> {
        self.last_ack += 1;
        let ack = self.last_ack;
        let nsp = NAMESPACES[nsp];
        let this = self.session(session)?;
        // The library sends nothing before it is connected.
        if !matches!(this.nsps.get(nsp), Some(Nsp::Connected)) {
            return None;
        }
        self.say(session, format!("42{}{ack}{args}", prefix(nsp)));
        Some(ack)
    }

    fn refresh(&mut self, session: usize, nsp: usize, token: Token) {
        let Some(user) = self.session(session).map(|this| this.user) else {
            return;
        };
        let ack = self.last_ack + 1;
        if let Some(this) = self.session(session) {
            // The later one counts, whichever is answered first.
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

    /// The connection is lost.
    fn close(&mut self, session: usize) {
        if self.sessions.is_empty() {
            return;
        }
        let this = self.sessions.remove(session % self.sessions.len());
        let hub = &mut self.homes[this.gateway].gateway.hub;
        hub.closed(this.socket, 1006);
        self.settle(this.gateway);
    }

    fn disconnect(&mut self, session: usize, nsp: usize) {
        let nsp = NAMESPACES[nsp];
        let Some(this) = self.session(session) else {
            return;
        };
        if this.nsps.remove(nsp).is_some() {
            self.say(session, format!("41{}", prefix(nsp)));
        }
    }

    fn sessions_end(&mut self) {
        while !self.sessions.is_empty() {
            self.close(0);
        }
    }

    // What takes time.

    fn pass(&mut self, millis: Millis) {
        self.now += millis;
        for gateway in 0..self.homes.len() {
            let home = &mut self.homes[gateway];
            home.gateway.hub.set_now(self.now);
            // Pings are answered.
            let now = self.now;
            home.gateway.advance(&|_| Some(now), now);
            self.settle(gateway);
        }
    }

    /// Carries out something that was delayed; deliveries in order.
    fn carry_out(&mut self, which: usize) {
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
                let Gateway { hub, app } = &mut self.homes[gateway].gateway;
                app.found(hub, client, &pid, record, self.now);
                self.settle(gateway);
            }
            Delayed::Authenticate { gateway, it } => {
                let identity = world::judge(&self.config, it.credentials, self.now);
                let Gateway { hub, app } = &mut self.homes[gateway].gateway;
                app.authenticated(hub, it.asked, identity, self.now);
                self.settle(gateway);
            }
            Delayed::Request { gateway, room } => {
                let Gateway { hub, app } = &mut self.homes[gateway].gateway;
                let commands = app.take(hub, &room);
                self.settle(gateway);
                if let Some(commands) = commands {
                    self.request(gateway, &room, commands);
                    self.delayed.push_back(Delayed::Request { gateway, room });
                }
            }
            Delayed::Delivery { gateway, room } => self.delivery(gateway, &room),
        }
    }

    /// What is kept under a `pid`, from wherever it is.
    fn find(&mut self, by: usize, pid: &str, user: &str) -> Option<String> {
        let home = shard_of(pid).filter(|home| *home < self.homes.len())?;
        let at = self.homes[home].moved.get(pid).copied().unwrap_or(home);
        let Gateway { hub, app } = &mut self.homes[at].gateway;
        app.evict(hub, pid, user);
        self.settle(at);
        let found = self.homes[at].saved.get(pid).filter(|(of, _)| of == user);
        let record = found.map(|(_, record)| record.clone());
        if record.is_some() {
            self.homes[at].saved.remove(pid);
            self.homes[home].moved.insert(pid.to_owned(), by);
        }
        record
    }

    fn request(&mut self, gateway: usize, room: &str, commands: Vec<Command>) {
        let config = self.config.clone();
        let fresh = || Server::new(room, config);
        let server = self.rooms.entry(room.to_owned()).or_insert_with(fresh);
        server.now = self.now;
        server.link(&gateway.to_string(), commands);
        self.gather(room);
    }

    /// What a room has to say is on its way to the gateways.
    fn gather(&mut self, room: &str) {
        let server = self.rooms.get_mut(room).expect("a room");
        server.settle();
        server.start_pushes();
        for gateway in 0..self.homes.len() {
            while let Some(body) = server.take_push(&gateway.to_string(), usize::MAX) {
                let key = (room.to_owned(), gateway);
                self.deliveries.entry(key).or_default().push_back(body);
                let room = room.to_owned();
                self.delayed.push_back(Delayed::Delivery { gateway, room });
            }
        }
    }

    fn delivery(&mut self, gateway: usize, room: &str) {
        let key = (room.to_owned(), gateway);
        let body = self.deliveries.get_mut(&key).and_then(VecDeque::pop_front);
        let body = body.expect("as many as were announced");
        let (push, texts) = Push::parse(&body).expect("a push");
        let Gateway { hub, app } = &mut self.homes[gateway].gateway;
        let pushed = app.pushed(hub, push, &texts, self.now);
        self.settle(gateway);
        let server = self.rooms.get_mut(room).expect("a room");
        server.push_reached(&gateway.to_string(), &pushed);
        self.gather(room);
    }

    fn settle(&mut self, gateway: usize) {
        self.homes[gateway].gateway.hub.set_now(self.now);
        loop {
            let outputs = self.homes[gateway].gateway.settle(self.now);
            if outputs.is_empty() {
                return;
            }
            for output in outputs {
                self.output(gateway, output);
            }
        }
    }

    fn output(&mut self, gateway: usize, output: Output) {
        let home = &mut self.homes[gateway];
        match output {
            Output::Send { socket, frame } => self.hear(gateway, socket, &frame),
            Output::Broadcast { sockets, text } => {
                let frame = Frame::Text(text);
                for socket in sockets {
                    self.hear(gateway, socket, &frame);
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
                home.saved.insert(client, (user, record));
            }
            Output::Forget { client } => {
                home.saved.remove(&client);
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
            | Output::Position { .. }
            | Output::Reached { .. } => {}
        }
    }

    /// A client receives a frame.
    fn hear(&mut self, gateway: usize, socket: SocketId, frame: &Frame) {
        let Frame::Text(text) = frame else {
            panic!("rooms hold JSON");
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
                let pid = value["pid"].as_str().expect("recovers").to_owned();
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

    /// Everything that was delayed is carried out, and time passes.
    fn come_to_rest(&mut self) {
        for _ in 0..12 {
            self.carry_out_all();
            self.pass(2_500);
        }
        self.carry_out_all();
    }

    fn carry_out_all(&mut self) {
        for _ in 0..5_000 {
            self.carry_out(0);
        }
        assert!(self.delayed.is_empty(), "it comes to rest");
    }

    fn check(&mut self) {
        for session in &self.sessions {
            for (nsp, state) in &session.nsps {
                assert!(!matches!(state, Nsp::Connecting), "{nsp} is answered");
            }
        }
        // A room counts a connection for each client that is in it. A client is in
        // its personal room if it is connected at all.
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
            Token::Wide.opens(self.user, room),
            "{} receives an event of {room} in {nsp}: {args}",
            self.user
        );
        assert!(
            self.token.opens(self.user, room) || name == "userLeft",
            "{} has left {room} with its last token: {args}",
            self.user
        );
    }
}

/// Names a namespace in a packet.
fn prefix(nsp: &str) -> String {
    match nsp {
        "/" => String::new(),
        nsp => format!("{nsp},"),
    }
}
