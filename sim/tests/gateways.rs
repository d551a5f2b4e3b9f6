//! A model of two rooms and two gateways. Requests and deliveries between them can be
//! lost, repeated and delayed, all objects can be evicted, gateways can be unreachable for
//! minutes, and clients can stop reading. The promises to clients hold for every order of
//! steps. When the network works again, every client receives all events without having to
//! send anything.

mod cases;

use proptest::prelude::*;
use roomcast_gateway::config::GatewayConfig;
use roomcast_gateway::{
    EngineServer, Frame, Gateway, Output, PositionKey, Protocol, SocketId, Stored,
};
use roomcast_proto::framing;
use roomcast_proto::id::{ConnectionId, RoomName};
use roomcast_proto::link::{Command as ToRoom, Item, Push, Pushed};
use roomcast_proto::position::Position;
use roomcast_proto::time::Millis;
use roomcast_room::Retry;
use roomcast_room::history::HistoryQuery;
use roomcast_room::service::Request;
use roomcast_sim::world::{self, NOW, Server, connect_info, identity};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

const GATEWAYS: [&str; 2] = ["n0", "n1"];
const ROOMS: [&str; 2] = ["a", "b"];
const USERS: [&str; 3] = ["alice", "bob", "carol"];

/// A step. Client numbers are taken modulo the number of clients.
#[derive(Clone, Debug)]
enum Step {
    Connect {
        user: usize,
        gateway: usize,
    },
    Join {
        client: usize,
        room: usize,
    },
    Leave {
        client: usize,
        room: usize,
    },
    Send {
        client: usize,
        room: usize,
    },
    /// A resend of the last message of the client.
    Resend {
        client: usize,
        room: usize,
    },
    Read {
        client: usize,
        room: usize,
    },
    /// The client sends a ping, so that the gateway knows that it reads.
    Ping {
        client: usize,
    },
    Disconnect {
        client: usize,
    },
    /// A gateway sends its queued commands to a room.
    Request {
        gateway: usize,
        room: usize,
        outcome: Outcome,
    },
    /// A gateway sends its queued commands to a room. The room answers the request and restarts
    /// before it stores the batch.
    LoseBatch {
        gateway: usize,
        room: usize,
    },
    /// A room delivers its queued items to a gateway.
    Push {
        room: usize,
        gateway: usize,
        outcome: Outcome,
    },
    /// The last delivery arrives again.
    Redeliver {
        room: usize,
        gateway: usize,
    },
    EvictRoom {
        room: usize,
    },
    /// Hibernates a gateway if nothing is queued.
    EvictGateway {
        gateway: usize,
    },
    /// A gateway loses its memory, even if something is queued.
    PanicGateway {
        gateway: usize,
    },
    Wait {
        millis: Millis,
    },
}

/// Outcome of a request between objects.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    Arrives,
    /// The first answer is lost, so that the sender retries.
    Twice,
    /// It does not arrive.
    Lost,
    /// It arrives, but its answer does not.
    Unanswered,
}

fn step() -> impl Strategy<Value = Step> {
    let (n, two) = (0..6_usize, 0..2_usize);
    let client_room = (n.clone(), two.clone());
    let outcome = || {
        prop_oneof![
            6 => Just(Outcome::Arrives), 1 => Just(Outcome::Twice),
            1 => Just(Outcome::Lost), 1 => Just(Outcome::Unanswered),
        ]
    };
    let link = move || (0..2_usize, 0..2_usize, outcome());
    prop_oneof![
        2 => (0..3_usize, two.clone()).prop_map(|(user, gateway)| Step::Connect { user, gateway }),
        4 => client_room.clone().prop_map(|(client, room)| Step::Join { client, room }),
        1 => client_room.clone().prop_map(|(client, room)| Step::Leave { client, room }),
        5 => client_room.clone().prop_map(|(client, room)| Step::Send { client, room }),
        1 => client_room.clone().prop_map(|(client, room)| Step::Resend { client, room }),
        1 => client_room.prop_map(|(client, room)| Step::Read { client, room }),
        1 => n.clone().prop_map(|client| Step::Ping { client }),
        1 => n.prop_map(|client| Step::Disconnect { client }),
        9 => link().prop_map(|(gateway, room, outcome)| Step::Request { gateway, room, outcome }),
        9 => link().prop_map(|(gateway, room, outcome)| Step::Push { room, gateway, outcome }),
        1 => (two.clone(), two.clone()).prop_map(|(room, gateway)| Step::Redeliver { room, gateway }),
        2 => two.clone().prop_map(|room| Step::EvictRoom { room }),
        2 => two.clone().prop_map(|gateway| Step::EvictGateway { gateway }),
        1 => two.clone().prop_map(|gateway| Step::PanicGateway { gateway }),
        2 => prop_oneof![Just(20), Just(400), Just(6_000), Just(60_000)]
            .prop_map(|millis| Step::Wait { millis }),
        2 => (two.clone(), two).prop_map(|(gateway, room)| Step::LoseBatch { gateway, room }),
    ]
}

/// A room with its deliveries to gateways.
struct RoomHost {
    server: Server,
    /// Gateways with a delivery in progress.
    busy: BTreeSet<&'static str>,
    /// The last delivery to each gateway since the last restart.
    last: BTreeMap<&'static str, String>,
}

impl RoomHost {
    fn new(name: &str, now: Millis) -> Self {
        let mut server = Server::new(name, world::config(&[("DEDUPE_WINDOW", "1d")]));
        server.now = now;
        RoomHost {
            server,
            busy: BTreeSet::new(),
            last: BTreeMap::new(),
        }
    }
}

/// A gateway with its storage.
struct GatewayHost {
    gateway: Gateway,
    /// Rooms with queued commands.
    pending: BTreeSet<RoomName>,
    records: BTreeMap<SocketId, String>,
    clients: BTreeMap<String, String>,
    positions: HashMap<PositionKey, u64>,
    /// See [`Output::TrackPosition`].
    reached: HashMap<PositionKey, u64>,
}

/// State of a subscription from the point of view of the client.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum State {
    #[default]
    Unsubscribed,
    /// The client has sent `joinRoom` with this id.
    Joining(u32),
    Subscribed,
    /// The client has sent `leaveRoom` with this id.
    Leaving(u32),
}

#[derive(Default)]
struct Subscription {
    state: State,
    /// The last received event.
    last: u64,
    /// Received read cursors by user.
    read: BTreeMap<String, u64>,
    /// The status of each user as the client shows it. Absent users are offline.
    shown: BTreeMap<String, String>,
}

impl Subscription {
    fn show(&mut self, user: &Value) {
        let text = |name: &str| user[name].as_str().expect("a text").to_owned();
        self.shown.insert(text("userId"), text("status"));
    }
}

struct Client {
    user: &'static str,
    gateway: usize,
    socket: SocketId,
    subscriptions: BTreeMap<String, Subscription>,
    last_id: u32,
    /// Unanswered sends, by command id: room and message id.
    sent: BTreeMap<u32, (String, String)>,
    last_sent: BTreeMap<String, String>,
}

struct World {
    now: Millis,
    rooms: BTreeMap<String, RoomHost>,
    gateways: Vec<GatewayHost>,
    clients: Vec<Client>,
    /// The `seq` of each acknowledged message, by room, sender and message id.
    acknowledged: BTreeMap<(String, &'static str, String), u64>,
    messages: u32,
    /// The runtime answers pings of the clients.
    clients_ping: bool,
}

fn fresh_gateway(name: &str) -> Gateway {
    let config = world::config(&[("CATCH_UP_TIMEOUT", "1d")]);
    let mut config = GatewayConfig::clone(&config.gateway);
    // A client that does not read is paused after two messages.
    config.limits.max_unacked_bytes = 300;
    let engine = EngineServer::new(name.to_owned(), Rc::new(config), world::fresh);
    Gateway::new(engine)
}

impl World {
    fn new() -> Self {
        world::begin();
        let host = |name: &&str| GatewayHost {
            gateway: fresh_gateway(name),
            pending: BTreeSet::new(),
            records: BTreeMap::new(),
            clients: BTreeMap::new(),
            positions: HashMap::new(),
            reached: HashMap::new(),
        };
        World {
            now: NOW,
            rooms: BTreeMap::new(),
            gateways: GATEWAYS.iter().map(host).collect(),
            clients: Vec::new(),
            acknowledged: BTreeMap::new(),
            messages: 0,
            clients_ping: false,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Connect { user, gateway } => self.connect(USERS[user], gateway),
            Step::Join { client, room } => self.join(client, ROOMS[room]),
            Step::Leave { client, room } => self.leave(client, ROOMS[room]),
            Step::Send { client, room } => self.send(client, ROOMS[room], false),
            Step::Resend { client, room } => self.send(client, ROOMS[room], true),
            Step::Read { client, room } => self.read(client, ROOMS[room]),
            Step::Ping { client } => self.ping(client),
            Step::Disconnect { client } => self.disconnect(client),
            Step::Request {
                gateway,
                room,
                outcome,
            } => self.request(gateway, ROOMS[room], outcome),
            Step::LoseBatch { gateway, room } => self.lose_batch(gateway, ROOMS[room]),
            Step::Push {
                room,
                gateway,
                outcome,
            } => self.push(ROOMS[room], gateway, outcome),
            Step::Redeliver { room, gateway } => self.redeliver(ROOMS[room], gateway),
            Step::EvictRoom { room } => self.evict_room(ROOMS[room]),
            Step::EvictGateway { gateway } => self.evict_gateway(gateway),
            Step::PanicGateway { gateway } => self.forget_gateway(gateway, true),
            Step::Wait { millis } => self.wait(millis),
        }
    }

    // Actions of clients.

    fn connect(&mut self, user: &'static str, gateway: usize) {
        if self.clients.len() == 6 {
            return;
        }
        let here = &mut self.gateways[gateway].gateway;
        let connect = connect_info(Protocol::Native, Some(identity(user)));
        let socket = here.server.engine.open_native(connect, self.now);
        self.clients.push(Client {
            user,
            gateway,
            socket,
            subscriptions: BTreeMap::new(),
            last_id: 0,
            sent: BTreeMap::new(),
            last_sent: BTreeMap::new(),
        });
        self.settle(gateway);
    }

    fn client(&mut self, client: usize) -> Option<&mut Client> {
        let count = self.clients.len().max(1);
        self.clients.get_mut(client % count)
    }

    fn send_command(&mut self, client: usize, event: &str, data: Value) {
        let now = self.now;
        let Some(this) = self.client(client) else {
            return;
        };
        let text = json!({ "event": event, "data": data, "id": this.last_id }).to_string();
        let (gateway, socket) = (this.gateway, this.socket);
        let server = &mut self.gateways[gateway].gateway.server;
        server.frame(socket, Frame::Text(text), now);
        self.settle(gateway);
    }

    fn join(&mut self, client: usize, room: &str) {
        let Some(this) = self.client(client) else {
            return;
        };
        this.last_id += 1;
        let id = this.last_id;
        let subscription = this.subscriptions.entry(room.to_owned()).or_default();
        if subscription.state != State::Unsubscribed {
            return;
        }
        subscription.state = State::Joining(id);
        let since = subscription.last;
        self.send_command(
            client,
            "joinRoom",
            json!({ "roomId": room, "since": since }),
        );
    }

    fn leave(&mut self, client: usize, room: &str) {
        let Some(this) = self.client(client) else {
            return;
        };
        this.last_id += 1;
        let id = this.last_id;
        match this.subscriptions.get_mut(room) {
            Some(subscription)
                if matches!(subscription.state, State::Subscribed | State::Joining(_)) =>
            {
                subscription.state = State::Leaving(id);
                self.send_command(client, "leaveRoom", json!({ "roomId": room }));
            }
            _ => {}
        }
    }

    fn send(&mut self, client: usize, room: &str, again: bool) {
        self.messages += 1;
        let fresh = format!("m{}", self.messages);
        let Some(this) = self.client(client) else {
            return;
        };
        this.last_id += 1;
        let id = match this.last_sent.get(room) {
            Some(last) if again => last.clone(),
            _ => fresh,
        };
        this.last_sent.insert(room.to_owned(), id.clone());
        this.sent
            .insert(this.last_id, (room.to_owned(), id.clone()));
        let data = json!({ "roomId": room, "content": id, "messageId": id });
        self.send_command(client, "sendMessage", data);
    }

    fn read(&mut self, client: usize, room: &str) {
        let Some(this) = self.client(client) else {
            return;
        };
        this.last_id += 1;
        let last = this
            .subscriptions
            .get(room)
            .map_or(0, |subscription| subscription.last);
        self.send_command(
            client,
            "messageRead",
            json!({ "roomId": room, "seq": last }),
        );
    }

    fn ping(&mut self, client: usize) {
        let now = self.now;
        let Some(this) = self.client(client) else {
            return;
        };
        let (gateway, socket) = (this.gateway, this.socket);
        let server = &mut self.gateways[gateway].gateway.server;
        server.frame(socket, Frame::Text(framing::PING.into()), now);
        self.settle(gateway);
    }

    fn disconnect(&mut self, client: usize) {
        if self.clients.is_empty() {
            return;
        }
        let this = self.clients.remove(client % self.clients.len());
        let host = &mut self.gateways[this.gateway];
        host.records.remove(&this.socket);
        host.gateway.server.engine.closed(this.socket, 1001);
        self.settle(this.gateway);
    }

    /// Processes a frame as the client does.
    fn receive(&mut self, gateway: usize, socket: SocketId, frame: &str) {
        let pinged = self.clients_ping.then_some(self.now);
        let engine = &mut self.gateways[gateway].gateway.server.engine;
        if engine.sent(socket, frame.len()) {
            engine.check_slow(socket, pinged, self.now);
        }
        if frame == framing::PONG {
            return;
        }
        let mut clients = self.clients.iter_mut();
        let Some(this) =
            clients.find(|client| (client.gateway, client.socket) == (gateway, socket))
        else {
            return;
        };
        for line in frame.split('\n') {
            let line: Value = serde_json::from_str(line).expect("JSON");
            match line["ack"].as_u64() {
                Some(id) => this.answered(id as u32, &line, &mut self.acknowledged),
                None => this.received(&line),
            }
        }
    }

    // Requests between objects.

    /// Executes the outputs of a gateway.
    fn settle(&mut self, gateway: usize) {
        self.gateways[gateway]
            .gateway
            .server
            .engine
            .set_now(self.now);
        loop {
            let host = &mut self.gateways[gateway];
            let outputs = host.gateway.settle(self.now);
            if outputs.is_empty() {
                return;
            }
            for output in outputs {
                self.output(gateway, output);
            }
        }
    }

    fn output(&mut self, gateway: usize, output: Output) {
        let host = &mut self.gateways[gateway];
        match output {
            Output::Send { socket, frame } => {
                if let Frame::Text(text) = frame {
                    self.receive(gateway, socket, &text);
                }
            }
            Output::Broadcast { sockets, text } => {
                for socket in sockets {
                    self.receive(gateway, socket, &text);
                }
            }
            Output::Close { code, .. } => panic!("no socket may be closed: {code}"),
            Output::Attach { socket, record } => {
                host.records.insert(socket, record);
            }
            Output::Forward { room } => {
                host.pending.insert(room);
            }
            Output::Save { client, record, .. } => {
                host.clients.insert(client, record);
            }
            Output::Forget { client } => {
                host.clients.remove(&client);
            }
            Output::StorePosition { key, at: Some(at) } => {
                host.positions.insert(key, at);
            }
            Output::StorePosition { key, at: None } => {
                host.positions.remove(&key);
            }
            Output::TrackPosition { key, at: Some(at) } => {
                host.reached.insert(key, at);
            }
            Output::TrackPosition { key, at: None } => {
                host.reached.remove(&key);
            }
            Output::Log(entry) => {
                let line = entry.line(self.now);
                assert!(!line.contains(r#""level":"error""#), "{line}");
            }
            other => panic!("unexpected output: {other:?}"),
        }
    }

    /// Executes the due work of a room and starts deliveries to gateways.
    fn queue_outputs(&mut self, room: &str) {
        let host = self.rooms.get_mut(room).expect("a room");
        host.server.advance();
        for gateway in host.server.start_deliveries() {
            let known = GATEWAYS.into_iter().find(|name| gateway == *name);
            host.busy.extend(known);
        }
    }

    /// Returns the commands for the next request of a gateway to a room.
    fn take_commands(&mut self, gateway: usize, room: &str) -> Option<Vec<ToRoom>> {
        if !self.gateways[gateway].pending.contains(room) {
            return None;
        }
        let core = &mut self.gateways[gateway].gateway;
        let commands = core.take_commands(&RoomName::trusted(room));
        self.settle(gateway);
        if commands.is_none() {
            self.gateways[gateway].pending.remove(room);
        }
        commands
    }

    /// Passes the commands of a request to a room.
    fn handle_request(&mut self, gateway: usize, room: &str, commands: &[ToRoom]) {
        let json = serde_json::to_string(commands).expect("JSON");
        let commands = serde_json::from_str(&json).expect("commands");
        let now = self.now;
        let fresh = || RoomHost::new(room, now);
        let host = self.rooms.entry(room.to_owned()).or_insert_with(fresh);
        host.server.now = now;
        host.server.handle_gateway(GATEWAYS[gateway], commands);
    }

    fn request(&mut self, gateway: usize, room: &str, outcome: Outcome) {
        let Some(commands) = self.take_commands(gateway, room) else {
            return;
        };
        if outcome != Outcome::Lost {
            self.handle_request(gateway, room, &commands);
            self.queue_outputs(room);
        }
        if matches!(outcome, Outcome::Lost | Outcome::Unanswered) {
            // Gateways do not retry requests.
            let core = &mut self.gateways[gateway].gateway;
            core.forward_failed(&RoomName::trusted(room), commands);
            self.settle(gateway);
        }
    }

    fn lose_batch(&mut self, gateway: usize, room: &str) {
        let Some(commands) = self.take_commands(gateway, room) else {
            return;
        };
        self.handle_request(gateway, room, &commands);
        self.restart_room(room);
    }

    fn push(&mut self, room: &str, gateway: usize, outcome: Outcome) {
        let name = GATEWAYS[gateway];
        let Some(host) = self.rooms.get_mut(room) else {
            return;
        };
        if !host.busy.contains(name) {
            return;
        }
        // One row per delivery, so that other steps happen in between.
        let Some(body) = host.server.take_delivery(name, 1) else {
            host.busy.remove(name);
            return;
        };
        host.last.insert(name, body.clone());
        let mut pushed = Pushed::default();
        if outcome != Outcome::Lost {
            pushed = self.deliver(gateway, &body);
        }
        if outcome == Outcome::Twice {
            pushed = self.deliver(gateway, &body);
        }
        let host = self.rooms.get_mut(room).expect("a room");
        match outcome {
            Outcome::Arrives | Outcome::Twice => {
                host.server.delivery_acknowledged(name, &pushed);
                self.queue_outputs(room);
            }
            // All immediate retries of the delivery fail as well.
            Outcome::Lost | Outcome::Unanswered => {
                while let Retry::Again(_) = host.server.delivery_failed(name) {}
                host.busy.remove(name);
            }
        }
    }

    /// Delivers to a gateway. Returns its response.
    fn deliver(&mut self, gateway: usize, body: &str) -> Pushed {
        let (push, texts) = Push::parse(body).expect("a push");
        let core = &mut self.gateways[gateway].gateway;
        core.server.engine.set_now(self.now);
        let pushed = core.handle_push(push, &texts, self.now);
        self.settle(gateway);
        pushed
    }

    fn redeliver(&mut self, room: &str, gateway: usize) {
        let host = self.rooms.get(room);
        if let Some(body) = host.and_then(|host| host.last.get(GATEWAYS[gateway])) {
            let body = body.clone();
            self.deliver(gateway, &body);
        }
    }

    fn evict_room(&mut self, room: &str) {
        let Some(host) = self.rooms.get_mut(room) else {
            return;
        };
        host.server.now = self.now;
        host.server.advance();
        host.server.settle();
        self.restart_room(room);
    }

    /// Restarts a room. Queued items are lost with the memory, except stored ones.
    fn restart_room(&mut self, room: &str) {
        let host = self.rooms.get_mut(room).expect("a room");
        host.server.restart();
        host.busy.clear();
        host.last.clear();
        self.queue_outputs(room);
    }

    fn evict_gateway(&mut self, gateway: usize) {
        let name = GATEWAYS[gateway];
        let host = &self.gateways[gateway];
        let mut links = self.rooms.values();
        // A timer keeps the gateway awake.
        let is_idle = host.gateway.timer_at(self.now).is_none()
            && host.pending.is_empty()
            && !links.any(|host| host.busy.contains(name));
        if is_idle {
            let host = &mut self.gateways[gateway];
            host.reached.clone_from(&host.positions);
            self.forget_gateway(gateway, false);
        }
    }

    /// Discards the memory of a gateway. Its sockets and storage stay.
    fn forget_gateway(&mut self, gateway: usize, panicked: bool) {
        let host = &mut self.gateways[gateway];
        host.pending.clear();
        host.gateway = fresh_gateway(GATEWAYS[gateway]);
        host.gateway.server.engine.set_now(self.now);
        let mut moved = BTreeMap::new();
        for (before, record) in std::mem::take(&mut host.records) {
            let socket = host.gateway.restore_socket(&record, self.now);
            let socket = socket.expect("an attachment is restored");
            moved.insert(before, socket);
            host.records.insert(socket, record);
        }
        let here = self.clients.iter_mut();
        for client in here.filter(|client| client.gateway == gateway) {
            client.socket = moved[&client.socket];
        }
        let stored = Stored {
            clients: host.clients.values().cloned().collect(),
            positions: host.reached.clone(),
            panicked,
        };
        let core = &mut host.gateway;
        core.restore(stored, self.now);
        self.settle(gateway);
    }

    fn wait(&mut self, millis: Millis) {
        self.now += millis;
        for gateway in 0..GATEWAYS.len() {
            let here = &mut self.gateways[gateway].gateway;
            here.server.engine.set_now(self.now);
            let pinged = self.clients_ping.then_some(self.now);
            here.advance(&|_| pinged, self.now);
            self.settle(gateway);
        }
        for room in self.rooms.keys().cloned().collect::<Vec<_>>() {
            let host = self.rooms.get_mut(&room).expect("a room");
            host.server.now = self.now;
            host.server.alarm();
            self.queue_outputs(&room);
        }
    }

    /// Returns `true` if anything is queued.
    fn is_busy(&self) -> bool {
        self.gateways.iter().any(|host| !host.pending.is_empty())
            || self.rooms.values().any(|host| !host.busy.is_empty())
    }

    /// Delivers everything that is queued.
    fn deliver_all(&mut self) {
        for _ in 0..100 {
            if !self.is_busy() {
                break;
            }
            let rooms: Vec<String> = self.rooms.keys().cloned().collect();
            for gateway in 0..GATEWAYS.len() {
                for room in self.gateways[gateway].pending.clone() {
                    self.request(gateway, &room, Outcome::Arrives);
                }
                for room in &rooms {
                    self.push(room, gateway, Outcome::Arrives);
                }
            }
        }
    }

    /// Delivers everything and advances the clock until nothing is queued.
    fn settle_all(&mut self) {
        self.clients_ping = true;
        for _ in 0..40 {
            self.deliver_all();
            self.wait(5_000);
        }
        self.check_received();
        for _ in 0..40 {
            self.deliver_all();
            self.wait(5_000);
            // Clients repeat commands without an answer.
            for client in 0..self.clients.len() {
                for room in ROOMS {
                    let subscriptions = &mut self.clients[client].subscriptions;
                    let Some(subscription) = subscriptions.get_mut(room) else {
                        continue;
                    };
                    match subscription.state {
                        State::Joining(_) => {
                            subscription.state = State::Unsubscribed;
                            self.join(client, room);
                        }
                        State::Leaving(_) => {
                            subscription.state = State::Subscribed;
                            self.leave(client, room);
                        }
                        State::Subscribed | State::Unsubscribed => {}
                    }
                }
            }
        }
        assert!(!self.is_busy(), "the queues must become empty");
    }

    /// Asserts that the clients have received all events of their rooms.
    fn check_received(&self) {
        for (room, host) in &self.rooms {
            let head = host.server.head();
            for client in &self.clients {
                let Some(subscription) = client.subscriptions.get(room) else {
                    continue;
                };
                if subscription.state == State::Subscribed {
                    let (last, user) = (subscription.last, client.user);
                    assert_eq!(last, head, "{user} must have received all events of {room}");
                }
            }
        }
    }

    /// Asserts the invariants at the end.
    fn check(&mut self) {
        for room in ROOMS {
            let Some(host) = self.rooms.get_mut(room) else {
                continue;
            };
            let log = host.server.serve(Request::Messages(HistoryQuery {
                after: 0,
                before: u64::MAX,
                limit: 1_000,
                newest: false,
            }));
            let log: Value = serde_json::from_str(&log.expect("a page")).expect("JSON");
            let mut logged = BTreeMap::new();
            for event in log["events"].as_array().expect("events") {
                let data = &event["data"];
                let sender = data["senderId"].as_str().expect("a sender").to_owned();
                let id = data["messageId"].as_str().expect("an id").to_owned();
                let previous = logged.insert((sender, id), data["seq"].as_u64());
                assert_eq!(previous, None, "{event} is in the log twice");
            }
            for ((_, sender, id), seq) in self.acknowledged.iter().filter(|one| one.0.0 == room) {
                let found = logged.get(&((*sender).to_owned(), id.clone()));
                assert_eq!(
                    found,
                    Some(&Some(*seq)),
                    "{id} of {sender} was acknowledged and must be in the log"
                );
            }
            let mut connections: BTreeMap<&str, u64> = BTreeMap::new();
            for client in &self.clients {
                let Some(subscription) = client.subscriptions.get(room) else {
                    continue;
                };
                match subscription.state {
                    State::Subscribed => {
                        *connections.entry(client.user).or_default() += 1;
                    }
                    State::Unsubscribed => {}
                    state => panic!("{state:?}: the command must be answered"),
                }
            }
            let presence = host.server.serve(Request::Presence).expect("at once");
            let presence: Value = serde_json::from_str(&presence).expect("JSON");
            for user in presence["users"].as_array().expect("users") {
                let name = user["userId"].as_str().expect("a name");
                let expected = connections.get(name).copied().unwrap_or(0);
                assert_eq!(user["connections"], expected, "{name} in {room}");
                assert_eq!(
                    user["status"] == "offline",
                    expected == 0,
                    "{name} in {room}"
                );
            }
            for client in &self.clients {
                let subscription = client.subscriptions.get(room);
                let Some(Subscription {
                    state: State::Subscribed,
                    shown,
                    ..
                }) = subscription
                else {
                    continue;
                };
                for user in USERS.iter().filter(|user| **user != client.user) {
                    let shown = shown.get(*user).map_or("offline", String::as_str);
                    let users = presence["users"].as_array().expect("users");
                    let truth = users.iter().find(|one| one["userId"] == **user);
                    let truth = truth.map_or("offline", |one| one["status"].as_str().expect("one"));
                    assert_eq!(shown, truth, "{} shows {user} in {room}", client.user);
                }
            }
        }
    }
}

impl Client {
    /// Processes an answer. Only the first answer of a command counts.
    fn answered(
        &mut self,
        id: u32,
        line: &Value,
        acknowledged: &mut BTreeMap<(String, &'static str, String), u64>,
    ) {
        let succeeded = line["error"].is_null();
        for subscription in self.subscriptions.values_mut() {
            subscription.state = match subscription.state {
                State::Joining(sent) if sent == id => match succeeded {
                    true => {
                        subscription.shown.clear();
                        let members = line["data"]["members"].as_array();
                        for member in members.expect("the members") {
                            subscription.show(member);
                        }
                        State::Subscribed
                    }
                    false => State::Unsubscribed,
                },
                State::Leaving(sent) if sent == id => match line["error"]["code"].as_str() {
                    None | Some("notJoined") => State::Unsubscribed,
                    // The state is unknown: the client joins again at the end.
                    Some(_) => State::Joining(0),
                },
                state => state,
            };
        }
        if let Some((room, message)) = self.sent.remove(&id)
            && succeeded
        {
            let seq = line["data"]["seq"].as_u64().expect("a number");
            let before = acknowledged.insert((room, self.user, message), seq);
            assert!(before.is_none_or(|before| before == seq), "{line}");
        }
    }

    fn received(&mut self, line: &Value) {
        let data = &line["data"];
        let Some(room) = data["roomId"].as_str() else {
            return;
        };
        let subscription = self.subscriptions.entry(room.to_owned()).or_default();
        match line["event"].as_str() {
            Some("newMessage") => {
                assert_ne!(
                    subscription.state,
                    State::Unsubscribed,
                    "{line} for an unsubscribed client"
                );
                let seq = data["seq"].as_u64().expect("a number");
                assert_eq!(seq, subscription.last + 1, "{} received {line}", self.user);
                subscription.last = seq;
            }
            Some("messageRead") => {
                let user = data["userId"].as_str().expect("a user").to_owned();
                let seq = data["seq"].as_u64().expect("a number");
                let before = subscription.read.insert(user, seq);
                assert!(before.is_none_or(|before| before <= seq), "{line}");
            }
            // The user left by another connection.
            Some("userLeft") if data["userId"] == self.user => {
                subscription.state = State::Unsubscribed
            }
            Some("presenceUpdate") => subscription.show(data),
            Some("userLeft") => {
                subscription
                    .shown
                    .remove(data["userId"].as_str().expect("a user"));
            }
            Some("gap") => panic!("no event is trimmed: {line}"),
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(cases::cases("GATEWAYS_CASES", 2_000))]

    #[test]
    fn promises_hold_with_lost_repeated_and_delayed_requests(
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.settle_all();
        world.check_received();
        world.check();
    }
}

/// Failures that the model has found, each with its cause.
#[test]
fn failures_found_by_the_model_pass() {
    use Outcome::*;
    use Step::*;
    let join = |client, room| Join { client, room };
    let request = |room, outcome| Request {
        gateway: 0,
        room,
        outcome,
    };
    let connect = |user| Connect { user, gateway: 0 };
    let push = Push {
        room: 0,
        gateway: 0,
        outcome: Arrives,
    };
    let panic = PanicGateway { gateway: 0 };
    let cases = [
        // The connection of a client was closed because the client was not stored yet.
        vec![connect(0), panic.clone()],
        // A client received the answer to a join that had no effect.
        vec![connect(0), join(0, 0), request(0, Arrives), panic.clone()],
        // The room kept counting a replaced connection.
        vec![
            connect(0),
            join(0, 0),
            request(0, Arrives),
            Send { client: 0, room: 0 },
            push.clone(),
            request(0, Arrives),
            EvictRoom { room: 0 },
            push.clone(),
            Disconnect { client: 0 },
            panic.clone(),
        ],
        // A client was resubscribed to a room that it had left, because another
        // connection of its user had joined.
        vec![
            connect(0),
            connect(1),
            join(1, 0),
            request(0, Arrives),
            push.clone(),
            Leave { client: 1, room: 0 },
            connect(1),
            join(2, 0),
            request(0, Arrives),
            panic.clone(),
        ],
        // As before, with a leave before the answer to the join.
        vec![
            connect(0),
            connect(0),
            join(0, 0),
            join(1, 0),
            join(0, 1),
            Leave { client: 0, room: 0 },
            request(0, Arrives),
            request(1, Arrives),
            Push {
                room: 1,
                gateway: 0,
                outcome: Arrives,
            },
            panic.clone(),
            push.clone(),
        ],
        // As before, with the answer to the leave before the room received the leave.
        vec![
            connect(0),
            connect(0),
            join(0, 0),
            join(1, 0),
            request(0, Arrives),
            push.clone(),
            Leave { client: 0, room: 0 },
            request(0, Arrives),
            join(1, 0),
            request(0, Arrives),
            panic.clone(),
            push.clone(),
        ],
        // A client received an event twice, once before the answer to its join, while it
        // was leaving and the join of another room failed.
        vec![
            connect(0),
            join(0, 0),
            join(0, 1),
            Send { client: 0, room: 1 },
            request(1, Unanswered),
            join(0, 1),
            request(0, Lost),
            Leave { client: 0, room: 1 },
        ],
        // A client was shown a user who left before its join was announced, and was paused
        // when both were announced. The version of the presence was the same before and after.
        vec![
            connect(2),
            join(0, 0),
            Send { client: 0, room: 0 },
            request(0, Unanswered),
            EvictRoom { room: 0 },
            connect(0),
            join(1, 0),
            connect(2),
            join(2, 0),
            Leave { client: 4, room: 0 },
        ],
        // A gateway panicked twice, the second time while a client lacked changes of the
        // presence, and forgot that.
        vec![
            Connect {
                user: 0,
                gateway: 1,
            },
            Connect {
                user: 1,
                gateway: 1,
            },
            join(1, 1),
            Disconnect { client: 1 },
            join(0, 1),
            Request {
                gateway: 1,
                room: 1,
                outcome: Arrives,
            },
            Push {
                room: 1,
                gateway: 1,
                outcome: Arrives,
            },
            Wait { millis: 6_000 },
            PanicGateway { gateway: 1 },
            Push {
                room: 1,
                gateway: 1,
                outcome: Arrives,
            },
            PanicGateway { gateway: 1 },
        ],
        // Two clients that were told different presence were fed in turn, for ever.
        vec![
            Connect {
                user: 1,
                gateway: 1,
            },
            join(0, 0),
            Wait { millis: 20 },
            Connect {
                user: 2,
                gateway: 1,
            },
            join(2, 1),
            Send { client: 0, room: 1 },
            Request {
                gateway: 1,
                room: 1,
                outcome: Arrives,
            },
            join(1, 1),
            connect(0),
            Send { client: 0, room: 1 },
            join(2, 1),
        ],
        // A room that restarted lost the repair of a subscription, and the client received no
        // further events.
        vec![
            connect(0),
            join(0, 0),
            request(0, Arrives),
            push.clone(),
            panic.clone(),
            LoseBatch {
                gateway: 0,
                room: 0,
            },
            connect(1),
            join(1, 0),
            Send { client: 1, room: 0 },
        ],
    ];
    for steps in cases {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.settle_all();
        world.check_received();
        world.check();
    }
}

/// A connection catches up from the log in portions. The first one waits until the
/// delivery in progress is acknowledged.
#[test]
fn presence_that_changes_during_catch_up_is_received() {
    world::begin();
    let gateway = GATEWAYS[0];
    let mut server = Server::new("a", world::config(&[]));
    let join = |server: &mut Server, id: &str, since| {
        let position = Position {
            since,
            ..Position::default()
        };
        let request = world::connect_request(id, id, position);
        let join = ToRoom::Join {
            request,
            id: Some(1),
            again: false,
        };
        server.handle_gateway(gateway, vec![join]);
        server.settle();
    };
    let send = |server: &mut Server, frame: &str| {
        let frame = ToRoom::Frame {
            connection: ConnectionId::trusted("bob"),
            frame: frame.into(),
        };
        server.handle_gateway(gateway, vec![frame]);
        server.settle();
    };
    // Returns the texts for `alice` in the next delivery, and whether they contain events
    // of the log.
    let take = |server: &mut Server, reads| {
        let body = server.take_delivery(gateway, reads).expect("a push");
        let (push, texts) = Push::parse(&body).expect("a push");
        server.delivery_acknowledged(gateway, &Pushed::default());
        let (mut received, mut has_events) = (String::new(), false);
        for (item, text) in push.items.iter().zip(texts) {
            match item {
                Item::Unicast { to, at, .. } if to == "alice" => {
                    received.push_str(text);
                    has_events |= at.is_some();
                }
                Item::Broadcast { not, after, at, .. } if not.iter().all(|id| *id != "alice") => {
                    received.push_str(text);
                    has_events |= at > after;
                }
                Item::Multicast { to, .. } if to.iter().any(|id| id == "alice") => {
                    received.push_str(text);
                    has_events = true;
                }
                _ => {}
            }
        }
        (received, has_events)
    };
    join(&mut server, "bob", None);
    let message = r#"{"event":"sendMessage","data":{"content":"1"},"id":1}"#;
    send(&mut server, message);
    assert_eq!(server.start_deliveries(), [gateway]);
    take(&mut server, 0);
    join(&mut server, "alice", Some(0));
    let away = r#"{"event":"setPresence","data":{"status":"away"}}"#;
    send(&mut server, away);
    let (received, has_events) = take(&mut server, 0);
    assert!(received.contains("away"), "{received}");
    assert!(!has_events, "the message comes from the log");
    let (received, has_events) = take(&mut server, 1);
    assert!(has_events && received.contains("newMessage"), "{received}");
}

/// Gateways of older versions forward the text of a command.
#[test]
fn a_command_is_answered_alike_as_text_and_parsed() {
    world::begin();
    let gateway = GATEWAYS[0];
    let mut server = Server::new("a", world::config(&[]));
    let request = world::connect_request("bob", "bob", Position::default());
    let join = ToRoom::Join {
        request,
        id: None,
        again: false,
    };
    server.handle_gateway(gateway, vec![join]);
    server.settle();
    server.take_delivery(gateway, 0);
    server.delivery_acknowledged(gateway, &Pushed::default());
    let mut answers = |command| {
        server.handle_gateway(gateway, vec![command]);
        server.settle();
        let body = server.take_delivery(gateway, 0).expect("an answer");
        server.delivery_acknowledged(gateway, &Pushed::default());
        body.split_once('\n').expect("a header").1.to_owned()
    };
    for (connection, data, answer) in [
        ("bob", r#"{"seq":0}"#, r#"{"ack":7,"data":{"seq":0}}"#),
        (
            "bob",
            r#"{"seq":9}"#,
            r#"{"ack":7,"error":{"code":"badRequest""#,
        ),
        (
            "unknown",
            r#"{"seq":0}"#,
            r#"{"ack":7,"error":{"code":"internal""#,
        ),
    ] {
        let line = format!(r#"{{"event":"messageRead","data":{data},"id":7}}"#);
        let incoming = framing::decode_line(&line);
        let parsed = answers(ToRoom::Execute {
            connection: ConnectionId::trusted(connection),
            id: incoming.id,
            command: incoming.command.expect("a command"),
        });
        let text = answers(ToRoom::Frame {
            connection: ConnectionId::trusted(connection),
            frame: line.clone(),
        });
        assert!(parsed.starts_with(answer), "{parsed}");
        assert_eq!(parsed, text);
    }
}

/// A room with a gateway that answers by hand.
struct Fed {
    server: Server,
}

impl Fed {
    const GATEWAY: &str = GATEWAYS[0];

    fn new() -> Self {
        world::begin();
        let limits = [("MAX_FRAME_BYTES", "100000")];
        Fed {
            server: Server::new("a", world::config(&limits)),
        }
    }

    fn command(&mut self, command: ToRoom) {
        self.server.handle_gateway(Self::GATEWAY, vec![command]);
        self.server.settle();
    }

    fn join(&mut self, id: &str, since: Option<u64>) {
        let position = Position {
            since,
            ..Position::default()
        };
        self.command(ToRoom::Join {
            request: world::connect_request(id, id, position),
            id: None,
            again: false,
        });
    }

    fn frame(&mut self, from: &str, frame: String) {
        self.command(ToRoom::Frame {
            connection: ConnectionId::trusted(from),
            frame,
        });
    }

    fn send(&mut self, from: &str, bytes: usize) {
        let content = "x".repeat(bytes);
        let frame = json!({ "event": "sendMessage", "data": { "content": content } });
        self.frame(from, frame.to_string());
    }

    /// Takes the next delivery, with at most `reads` portions.
    fn take(&mut self, reads: usize) -> Option<Vec<Item>> {
        self.server.start_deliveries();
        let body = self.server.take_delivery(Self::GATEWAY, reads)?;
        Some(Push::parse(&body).expect("a push").0.items)
    }

    fn acknowledge(&mut self, pushed: &Pushed) {
        self.server.delivery_acknowledged(Self::GATEWAY, pushed);
    }

    /// Takes and acknowledges all deliveries. Returns their items.
    fn drain(&mut self) -> Vec<Item> {
        let mut items = Vec::new();
        while let Some(more) = self.take(usize::MAX) {
            items.extend(more);
            self.acknowledge(&Pushed::default());
        }
        items
    }
}

/// Returns the ranges of the events for a connection.
fn ranges(items: &[Item], to: &str) -> Vec<(u64, u64)> {
    let ranges = items.iter().filter_map(|item| match item {
        Item::Unicast {
            to: one,
            after: Some(after),
            at: Some(at),
            ..
        } if one == to => Some((*after, *at)),
        Item::Multicast {
            to: all, after, at, ..
        } if all.iter().any(|one| one == to) => Some((*after, *at)),
        Item::Broadcast { after, at, .. } if at > after => Some((*after, *at)),
        _ => None,
    });
    ranges.collect()
}

#[test]
fn a_backlog_for_a_gateway_is_read_from_the_log_once_for_all_its_connections() {
    const EVENTS: u64 = 30;
    let mut room = Fed::new();
    for user in ["alice", "bob", "carol"] {
        room.join(user, None);
    }
    room.drain();
    // A delivery is in progress.
    room.send("alice", 10);
    room.take(0).expect("the first event");
    for _ in 1..EVENTS {
        room.send("alice", 60_000);
    }
    room.acknowledge(&Pushed::default());
    let items = room.drain();
    let portions = items.iter().filter_map(|item| match item {
        Item::Multicast { to, after, at, .. } => Some((to.len(), *after, *at)),
        _ => None,
    });
    let portions: Vec<_> = portions.collect();
    assert!(portions.iter().all(|(to, ..)| *to == 3), "{portions:?}");
    for user in ["alice", "bob", "carol"] {
        let ranges = ranges(&items, user);
        let mut at = 1;
        for (after, upto) in ranges {
            // The gateway drops the events that it has.
            assert!(after <= at, "a hole after {at}");
            at = at.max(upto);
        }
        assert_eq!(at, EVENTS, "{user}");
    }
}

#[test]
fn connections_that_return_from_the_same_position_share_the_portions() {
    let mut room = Fed::new();
    room.join("alice", None);
    for _ in 0..5 {
        room.send("alice", 6_000);
    }
    room.drain();
    let users: Vec<String> = (0..50).map(|n| format!("user-{n}")).collect();
    for user in &users {
        room.join(user, Some(0));
    }
    let items = room.drain();
    let bytes: usize = items.iter().map(Item::bytes).sum();
    assert!(bytes < 100_000, "{bytes} bytes for all");
    for user in &users {
        let last = ranges(&items, user).last().copied();
        assert_eq!(last.map(|(_, at)| at), Some(5), "{user}");
    }
}

#[test]
fn a_paused_connection_receives_no_portions_until_it_is_resumed() {
    let mut room = Fed::new();
    room.join("bob", None);
    for _ in 0..3 {
        room.send("bob", 10);
    }
    room.drain();
    room.join("alice", Some(0));
    room.take(1).expect("the first portion");
    let alice = ConnectionId::trusted("alice");
    let paused = Pushed {
        paused: vec![alice.clone()],
        ..Pushed::default()
    };
    room.acknowledge(&paused);
    let items = room.drain();
    let for_alice: Vec<&Item> = items.iter().filter(|item| item.bytes() > 0).collect();
    let is_event = |item: &&&Item| !ranges(&[(**item).clone()], "alice").is_empty();
    assert_eq!(for_alice.iter().filter(is_event).count(), 0, "{items:?}");
    room.command(ToRoom::Resume {
        connection: alice.clone(),
        after: 0,
    });
    room.take(1).expect("the portion again");
    // The next resume overtakes the answer to the delivery in progress.
    room.command(ToRoom::Resume {
        connection: alice,
        after: 1,
    });
    room.acknowledge(&paused);
    assert_eq!(ranges(&room.drain(), "alice"), [(1, 2), (2, 3)]);
}

/// Returns the presence of a delivery: the connections, the text and whether it is the last.
fn presence(room: &mut Fed) -> Option<(Vec<ConnectionId>, String, bool)> {
    let body = room.server.take_delivery(Fed::GATEWAY, 0)?;
    let (push, texts) = Push::parse(&body).expect("a push");
    let mut items = push.items.into_iter().zip(texts);
    items.find_map(|(item, text)| match item {
        Item::Presence { to, is_last, .. } => Some((to, text.to_owned(), is_last)),
        _ => None,
    })
}

#[test]
fn only_the_connections_that_lack_presence_are_sent_it() {
    let mut room = Fed::new();
    for user in ["alice", "bob", "carol"] {
        room.join(user, None);
    }
    room.drain();
    let ids = |names: &[&str]| -> Vec<ConnectionId> {
        names
            .iter()
            .map(|name| ConnectionId::trusted(*name))
            .collect()
    };
    room.send("alice", 10);
    room.take(0).expect("an event");
    // The versions are not known to the room.
    room.acknowledge(&Pushed {
        lacking: vec![(3, ids(&["bob"])), (5, ids(&["carol", "unknown"]))],
        ..Pushed::default()
    });
    room.server.settle();
    let (to, text, is_last) = presence(&mut room).expect("the presence");
    assert_eq!((to, is_last), (ids(&["carol", "bob"]), true), "one text");
    for user in ["alice", "bob", "carol"] {
        assert!(
            text.contains(&format!(r#""userId":"{user}","status":"online""#)),
            "{text}"
        );
    }
    room.acknowledge(&Pushed::default());
    assert_eq!(presence(&mut room), None);
}

/// A gateway may copy a text for each of its receivers.
#[test]
fn presence_and_portions_for_many_connections_are_limited_by_the_bytes_for_all_of_them() {
    const CONNECTIONS: usize = 300;
    let mut room = Fed::new();
    let ids: Vec<String> = (0..CONNECTIONS).map(|n| format!("{n:0200}")).collect();
    let all: Vec<ConnectionId> = ids.iter().map(|id| ConnectionId::trusted(&**id)).collect();
    for id in &ids {
        room.join(id, None);
    }
    room.drain();
    for _ in 0..3 {
        room.send(&ids[0], 60_000);
    }
    room.take(0).expect("events");
    room.acknowledge(&Pushed {
        behind: all.iter().map(|id| (id.clone(), 0)).collect(),
        lacking: vec![(1, all.clone())],
        ..Pushed::default()
    });
    let (mut told, mut received) = (Vec::new(), BTreeMap::new());
    for _ in 0..500 {
        room.server.now += 50;
        room.server.settle();
        for item in room.drain() {
            match item {
                Item::Presence { to, bytes, is_last } => {
                    assert!(bytes * to.len() <= 2 << 20, "{bytes} for {}", to.len());
                    assert!(is_last);
                    told.extend(to);
                }
                Item::Multicast { to, bytes, at, .. } => {
                    assert!(bytes * to.len() <= 5 << 20, "{bytes} for {}", to.len());
                    received.extend(to.into_iter().map(|id| (id, at)));
                }
                Item::Unicast {
                    to, at: Some(at), ..
                } => {
                    received.insert(to, at);
                }
                _ => {}
            }
        }
    }
    told.sort();
    assert_eq!(told, all, "each once");
    assert_eq!(received.len(), CONNECTIONS);
    assert!(received.values().all(|at| *at == 3), "{received:?}");
}

#[test]
fn who_has_left_is_told_again_after_a_restart_unless_it_has_joined_again() {
    let mut room = Fed::new();
    for user in ["alice", "bob", "carol"] {
        room.join(user, None);
    }
    let mut is_told = |before: &dyn Fn(&mut Fed)| {
        before(&mut room);
        room.drain();
        room.server.hibernate();
        room.take(0).expect("probes");
        room.acknowledge(&Pushed {
            lacking: vec![(1, vec![ConnectionId::trusted("bob")])],
            ..Pushed::default()
        });
        // Users whose connections were lost have time to return.
        room.server.now += 60_000;
        room.server.settle();
        let (_, text, _) = presence(&mut room).expect("the presence");
        room.acknowledge(&Pushed::default());
        let left = r#"{"event":"userLeft","data":{"roomId":"a","userId":"carol"}}"#;
        text.contains(left)
    };
    assert!(is_told(&|room| {
        let leave = json!({ "event": "leaveRoom", "data": {} });
        room.frame("carol", leave.to_string());
    }));
    assert!(!is_told(&|room| room.join("carol", None)));
}

#[test]
fn a_connection_that_is_behind_receives_the_log_from_its_position() {
    let mut room = Fed::new();
    for user in ["alice", "bob"] {
        room.join(user, None);
    }
    for _ in 0..3 {
        room.send("bob", 10);
    }
    room.drain();
    room.send("bob", 10);
    room.take(0).expect("an event");
    let behind = |at| Pushed {
        behind: vec![
            (ConnectionId::trusted("alice"), at),
            (ConnectionId::trusted("unknown"), 0),
        ],
        ..Pushed::default()
    };
    room.acknowledge(&behind(2));
    assert_eq!(ranges(&room.drain(), "alice"), [(2, 3), (3, 4)]);
    room.send("bob", 10);
    room.take(0).expect("an event");
    room.acknowledge(&behind(5));
    assert!(room.drain().is_empty(), "it has received everything");
}

#[test]
fn commands_are_refused_when_too_many_answers_wait_for_a_gateway() {
    const COMMANDS: u32 = 100;
    let mut room = Fed::new();
    room.join("alice", None);
    for _ in 0..15 {
        room.send("alice", 60_000);
    }
    room.drain();
    // A delivery is in progress.
    room.send("alice", 10);
    room.take(0).expect("an event");
    for id in 1..=COMMANDS {
        let sync = json!({ "event": "sync", "data": { "after": 0 }, "id": id });
        let sync = sync.to_string();
        let incoming = framing::decode_line(&sync);
        room.command(ToRoom::Execute {
            connection: ConnectionId::trusted("alice"),
            id: incoming.id,
            command: incoming.command.expect("a command"),
        });
    }
    room.join("bob", None);
    room.acknowledge(&Pushed::default());
    let items = room.server.take_all(Fed::GATEWAY);
    let bytes: usize = items.iter().map(|(_, text)| text.len()).sum();
    assert!(bytes < 8 << 20, "{bytes} bytes");
    let answers = items.iter().flat_map(|(_, text)| text.split('\n'));
    let answers: Vec<&str> = answers.filter(|line| framing::is_answer(line)).collect();
    let refused = |line: &&&str| line.contains(r#""code":"rateLimited""#);
    let n_refused = answers.iter().filter(refused).count();
    assert_eq!(answers.len(), COMMANDS as usize + 1, "each has an answer");
    assert!((80..=100).contains(&n_refused), "{n_refused} are refused");
    let is_out =
        |(item, _): &(Item, String)| matches!(item, Item::Unsubscribed { to } if to == "bob");
    assert!(items.iter().any(is_out), "the join is refused");
    let receipt = json!({ "event": "messageDelivered", "data": { "seq": 1 }, "id": 200 });
    room.frame("alice", receipt.to_string());
    let items = room.server.take_all(Fed::GATEWAY);
    assert!(
        items
            .iter()
            .any(|(_, text)| text.contains(r#"{"ack":200,"data""#))
    );
}

#[test]
fn a_leave_is_executed_and_answered_once_while_too_many_answers_wait() {
    let mut room = Fed::new();
    room.join("alice", None);
    room.join("bob", None);
    for _ in 0..15 {
        room.send("alice", 60_000);
    }
    room.drain();
    // A delivery is in progress.
    room.send("alice", 10);
    room.take(0).expect("an event");
    let mut execute = |id: u32, event: &str, data: Value| {
        let command = json!({ "event": event, "data": data, "id": id }).to_string();
        let incoming = framing::decode_line(&command);
        room.command(ToRoom::Execute {
            connection: ConnectionId::trusted("bob"),
            id: incoming.id,
            command: incoming.command.expect("a command"),
        });
    };
    for id in 1..=20 {
        execute(id, "sync", json!({ "after": 0 }));
    }
    execute(21, "leaveRoom", json!({}));
    room.acknowledge(&Pushed::default());
    let items = room.server.take_all(Fed::GATEWAY);
    let answers = items.iter().flat_map(|(_, text)| text.split('\n'));
    let refused = |line: &&str| line.contains(r#""code":"rateLimited""#);
    assert!(
        answers.clone().any(|line| refused(&line)),
        "the outbox is full"
    );
    let of_leave = answers.filter(|line| framing::answered(line) == Some(21));
    let of_leave: Vec<&str> = of_leave.collect();
    assert_eq!(of_leave, [r#"{"ack":21,"data":{"roomId":"a"}}"#]);
    let is_out =
        |(item, _): &(Item, String)| matches!(item, Item::Unsubscribed { to } if to == "bob");
    assert!(items.iter().any(is_out), "the subscription has ended");
}

#[test]
fn an_unreachable_gateway_keeps_its_connections_and_is_probed_by_the_alarm() {
    let mut room = Fed::new();
    for user in ["alice", "bob"] {
        room.join(user, None);
    }
    room.drain();
    room.send("alice", 10);
    let start = room.server.now;
    for _ in 0..20 {
        assert!(room.take(0).is_some(), "an attempt");
        while let Retry::Again(_) = room.server.delivery_failed(Fed::GATEWAY) {}
        assert!(room.server.start_deliveries().is_empty(), "until the alarm");
        assert_eq!(room.server.room.timer_at(), None, "the room can hibernate");
        let alarm = room.server.room.alarm_at().expect("an alarm");
        assert!(alarm <= room.server.now + 60_000);
        room.server.now = alarm;
        room.server.alarm();
    }
    assert!(room.server.now > start + 5 * 60_000);
    assert_eq!(room.server.room.connections(), 2);
    let probes = room.take(0).expect("probes");
    let is_probe = |item: &&Item| matches!(item, Item::Probe { at: 1, .. });
    assert_eq!(probes.iter().filter(is_probe).count(), 2);
    let behind = ["alice", "bob"].map(|id| (ConnectionId::trusted(id), 0));
    room.acknowledge(&Pushed {
        behind: behind.into(),
        ..Pushed::default()
    });
    let items = room.drain();
    for user in ["alice", "bob"] {
        assert_eq!(ranges(&items, user), [(0, 1)], "{user}");
    }
}

#[test]
fn joins_whose_answers_do_not_fit_are_refused_with_an_error() {
    const JOINS: usize = 600;
    let mut room = Fed::new();
    // The answer to a join lists the members, at least 100 of them.
    let user = |n: usize| format!("{n:0200}");
    let joins = (0..JOINS).map(|n| ToRoom::Join {
        request: world::connect_request(&user(n), &user(n), Position::default()),
        id: Some(1),
        again: false,
    });
    room.server.handle_gateway(Fed::GATEWAY, joins.collect());
    room.server.settle();
    let items = room.server.take_all(Fed::GATEWAY);
    let bytes: usize = items.iter().map(|(_, text)| text.len()).sum();
    assert!(bytes < 6 << 20, "{bytes} bytes");
    let (mut joined, mut refused) = (BTreeSet::new(), BTreeSet::new());
    for (item, text) in &items {
        let Some(to) = item.to().filter(|_| framing::is_answer(text)) else {
            continue;
        };
        match text.contains("rateLimited") {
            true => refused.insert(to.clone()),
            false => joined.insert(to.clone()),
        };
    }
    assert!(!joined.is_empty() && !refused.is_empty());
    assert_eq!(joined.len() + refused.len(), JOINS, "each has an answer");
    for (item, _) in &items {
        match item {
            Item::Subscribed { to, .. } => assert!(joined.contains(to)),
            Item::Unsubscribed { to } => assert!(refused.contains(to)),
            _ => {}
        }
    }
    assert_eq!(room.server.room.connections(), joined.len());
}

#[test]
fn a_batch_that_is_divided_over_deliveries_arrives_without_holes_also_if_a_part_fails() {
    // Socket.IO clients receive each line in a frame of its own.
    const GATEWAY: &str = "0";
    const USERS: usize = 300;
    const EVENTS: u64 = 20;
    world::begin();
    let mut server = Server::new("a", world::config(&[]));
    let user = |n: usize| ConnectionId::trusted(format!("user-{n}"));
    let joins = (0..USERS).map(|n| ToRoom::Join {
        request: world::connect_request(&user(n), &user(n), Position::default()),
        id: None,
        again: false,
    });
    server.handle_gateway(GATEWAY, joins.collect());
    server.settle();
    server.take_all(GATEWAY);
    let frame = r#"{"event":"sendMessage","data":{"content":"hello"}}"#;
    let sends = (0..EVENTS).map(|_| ToRoom::Frame {
        connection: user(0),
        frame: frame.into(),
    });
    server.handle_gateway(GATEWAY, sends.collect());
    server.settle();
    let mut positions: BTreeMap<ConnectionId, u64> = (0..USERS).map(|n| (user(n), 0)).collect();
    let (mut deliveries, mut has_failed) = (0, false);
    loop {
        server.start_deliveries();
        let Some(body) = server.take_delivery(GATEWAY, 1) else {
            break;
        };
        deliveries += 1;
        if deliveries == 3 {
            // The gateway is out of reach until the alarm.
            while let Retry::Again(_) = server.delivery_failed(GATEWAY) {}
            has_failed = true;
            server.now = server.room.alarm_at().expect("an alarm");
            server.alarm();
            continue;
        }
        let (push, texts) = Push::parse(&body).expect("a push");
        let mut frames = 0;
        let mut behind = Vec::new();
        for (item, text) in push.items.iter().zip(texts) {
            let (receivers, after, at) = match item {
                Item::Broadcast { after, at, .. } => {
                    (positions.keys().cloned().collect(), after, at)
                }
                Item::Multicast { to, after, at, .. } => (to.clone(), after, at),
                Item::Probe { to, .. } if has_failed => {
                    behind.push((to.clone(), positions[to]));
                    continue;
                }
                _ => continue,
            };
            assert_eq!(text.split('\n').count() as u64, at - after);
            frames += receivers.len() as u64 * (at - after);
            for to in receivers {
                let position = positions.get_mut(&to).expect("a connection");
                assert!(*position >= *after, "{to}: a hole after {position}");
                *position = (*position).max(*at);
            }
        }
        assert!(frames <= 600, "{frames} frames in a delivery");
        let pushed = Pushed {
            behind,
            ..Pushed::default()
        };
        server.delivery_acknowledged(GATEWAY, &pushed);
    }
    assert!(deliveries > 10, "{deliveries}");
    assert!(positions.values().all(|at| *at == EVENTS), "{positions:?}");
}
