//! A model of two rooms, two gateways, and a link between them that loses,
//! repeats and delays, in which all of them may be evicted: what clients may
//! believe holds, whatever happens in whatever order.

#[allow(dead_code)]
mod fuzz;

use fuzz::world::{self, NOW, Said, Server, door, identity, item};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use roomcast::auth::{Rights, TokenId};
use roomcast::gateway::chat::Chat;
use roomcast::gateway::{App, Frame, Gateway, Hub, Output, Protocol, SocketId};
use roomcast::room::link::{Command as ToRoom, Item, Push};
use roomcast::room::links::Links;
use roomcast::room::service::Request;
use roomcast::room::{Frame as RoomFrame, Hello};
use roomcast::time::Millis;
use roomcast::wire::command::{Position, Status};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};

const GATEWAYS: [&str; 2] = ["n0", "n1"];
const ROOMS: [&str; 2] = ["a", "b"];
const USERS: [&str; 3] = ["alice", "bob", "carol"];

/// What happens. Clients, rooms and gateways are named by numbers, taken modulo
/// how many there are.
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
    /// The last message of the client, once more under its id.
    Again {
        client: usize,
        room: usize,
    },
    Read {
        client: usize,
        room: usize,
    },
    Disconnect {
        client: usize,
    },
    /// What waits at a gateway for a room goes there.
    Request {
        gateway: usize,
        room: usize,
        fate: Fate,
    },
    /// What waits in a room for a gateway goes there.
    Push {
        room: usize,
        gateway: usize,
        fate: Fate,
    },
    /// A push of before comes again, late.
    Echo {
        room: usize,
        gateway: usize,
    },
    EvictRoom {
        room: usize,
    },
    /// It sleeps, if nothing is on its way.
    EvictGateway {
        gateway: usize,
    },
    /// What waits in it is lost, whatever it is.
    PanicGateway {
        gateway: usize,
    },
    Wait {
        millis: Millis,
    },
}

/// What becomes of a request between objects.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Arrives,
    /// The first answer is lost: the sender tries again.
    Twice,
    /// It never arrives.
    Lost,
    /// It arrives, and no answer ever does.
    Unanswered,
}

fn step() -> impl Strategy<Value = Step> {
    let (n, two) = (0..6_usize, 0..2_usize);
    let client_room = (n.clone(), two.clone());
    let fate = || {
        prop_oneof![
            6 => Just(Fate::Arrives), 1 => Just(Fate::Twice),
            1 => Just(Fate::Lost), 1 => Just(Fate::Unanswered),
        ]
    };
    let link = move || (0..2_usize, 0..2_usize, fate());
    prop_oneof![
        2 => (0..3_usize, two.clone()).prop_map(|(user, gateway)| Step::Connect { user, gateway }),
        4 => client_room.clone().prop_map(|(client, room)| Step::Join { client, room }),
        1 => client_room.clone().prop_map(|(client, room)| Step::Leave { client, room }),
        5 => client_room.clone().prop_map(|(client, room)| Step::Send { client, room }),
        1 => client_room.clone().prop_map(|(client, room)| Step::Again { client, room }),
        1 => client_room.prop_map(|(client, room)| Step::Read { client, room }),
        1 => n.prop_map(|client| Step::Disconnect { client }),
        9 => link().prop_map(|(gateway, room, fate)| Step::Request { gateway, room, fate }),
        9 => link().prop_map(|(gateway, room, fate)| Step::Push { room, gateway, fate }),
        1 => (two.clone(), two.clone()).prop_map(|(room, gateway)| Step::Echo { room, gateway }),
        2 => two.clone().prop_map(|room| Step::EvictRoom { room }),
        2 => two.clone().prop_map(|gateway| Step::EvictGateway { gateway }),
        1 => two.prop_map(|gateway| Step::PanicGateway { gateway }),
        2 => prop_oneof![Just(20), Just(400), Just(6_000)].prop_map(|millis| Step::Wait { millis }),
    ]
}

/// A room, and what waits in it for gateways.
struct Place {
    server: Server,
    links: Links,
    life: u64,
    /// Gateways that are being sent something.
    busy: BTreeSet<&'static str>,
    /// Gateways that were out of reach, until when, and whether they are given
    /// up then.
    resting: BTreeMap<&'static str, (Millis, bool)>,
    /// The last push of this life to each.
    last: BTreeMap<&'static str, String>,
    /// What is stored until a gateway has heard it.
    last_words: Vec<(&'static str, Item)>,
}

impl Place {
    fn new(name: &str, now: Millis) -> Self {
        let mut server = Server::new(name, world::config(&[("DEDUPE_WINDOW", "1d")]));
        server.now = now;
        server.catches_up_at_once = false;
        Place {
            server,
            links: Links::default(),
            life: 0,
            busy: BTreeSet::new(),
            resting: BTreeMap::new(),
            last: BTreeMap::new(),
            last_words: Vec::new(),
        }
    }
}

/// What a gateway keeps, and which rooms something waits for in it.
struct Door {
    gateway: Gateway<Chat>,
    waiting: BTreeSet<String>,
    records: BTreeMap<SocketId, String>,
    clients: BTreeMap<String, String>,
    positions: HashMap<String, u64>,
    /// See [`Output::Reached`].
    reached: HashMap<String, u64>,
}

/// Where a client takes itself to stand in a room.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Stand {
    #[default]
    Out,
    /// It asked, by this id.
    Joining(u32),
    In,
    Leaving(u32),
}

#[derive(Default)]
struct Seat {
    stand: Stand,
    /// The last event it has had.
    had: u64,
    /// The cursors it has been told of.
    read: BTreeMap<String, u64>,
}

struct Client {
    user: &'static str,
    gateway: usize,
    socket: SocketId,
    seats: BTreeMap<String, Seat>,
    last_id: u32,
    /// What it sent and has no answer to: the room and the message's id.
    sent: BTreeMap<u32, (String, String)>,
    last_sent: BTreeMap<String, String>,
}

struct World {
    now: Millis,
    places: BTreeMap<String, Place>,
    doors: Vec<Door>,
    clients: Vec<Client>,
    /// Which gateway a connection is at.
    at: BTreeMap<String, usize>,
    /// Room, sender and id of what was acknowledged, and its number.
    acknowledged: BTreeMap<(String, &'static str, String), u64>,
    messages: u32,
}

fn fresh_gateway(name: &str) -> Gateway<Chat> {
    let config = world::config(&[]);
    let hub = Hub::new(name.to_owned(), config, world::fresh);
    Gateway::new(hub, Chat::default())
}

impl World {
    fn new() -> Self {
        world::begin();
        let door = |name: &&str| Door {
            gateway: fresh_gateway(name),
            waiting: BTreeSet::new(),
            records: BTreeMap::new(),
            clients: BTreeMap::new(),
            positions: HashMap::new(),
            reached: HashMap::new(),
        };
        World {
            now: NOW,
            places: BTreeMap::new(),
            doors: GATEWAYS.iter().map(door).collect(),
            clients: Vec::new(),
            at: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            messages: 0,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Connect { user, gateway } => self.connect(USERS[user], gateway),
            Step::Join { client, room } => self.join(client, ROOMS[room]),
            Step::Leave { client, room } => self.leave(client, ROOMS[room]),
            Step::Send { client, room } => self.send(client, ROOMS[room], false),
            Step::Again { client, room } => self.send(client, ROOMS[room], true),
            Step::Read { client, room } => self.read(client, ROOMS[room]),
            Step::Disconnect { client } => self.disconnect(client),
            Step::Request {
                gateway,
                room,
                fate,
            } => self.request(gateway, ROOMS[room], fate),
            Step::Push {
                room,
                gateway,
                fate,
            } => self.push(ROOMS[room], gateway, fate),
            Step::Echo { room, gateway } => self.echo(ROOMS[room], gateway),
            Step::EvictRoom { room } => self.evict_room(ROOMS[room]),
            Step::EvictGateway { gateway } => self.evict_gateway(gateway),
            Step::PanicGateway { gateway } => self.forget_gateway(gateway, true),
            Step::Wait { millis } => self.wait(millis),
        }
    }

    // Clients.

    fn connect(&mut self, user: &'static str, gateway: usize) {
        if self.clients.len() == 6 {
            return;
        }
        let here = &mut self.doors[gateway].gateway;
        let config = here.hub.config.clone();
        let door = door(Protocol::Native, Some(identity(&config, user)));
        let socket = here.hub.open_native(door, self.now);
        self.clients.push(Client {
            user,
            gateway,
            socket,
            seats: BTreeMap::new(),
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

    fn ask(&mut self, client: usize, event: &str, data: Value) {
        let now = self.now;
        let Some(this) = self.client(client) else {
            return;
        };
        let text = json!({ "event": event, "data": data, "id": this.last_id }).to_string();
        let (gateway, socket) = (this.gateway, this.socket);
        let hub = &mut self.doors[gateway].gateway.hub;
        hub.frame(socket, Frame::Text(text), now);
        self.settle(gateway);
    }

    fn join(&mut self, client: usize, room: &str) {
        let Some(this) = self.client(client) else {
            return;
        };
        this.last_id += 1;
        let id = this.last_id;
        let seat = this.seats.entry(room.to_owned()).or_default();
        if seat.stand != Stand::Out {
            return;
        }
        seat.stand = Stand::Joining(id);
        let since = seat.had;
        self.ask(
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
        match this.seats.get_mut(room) {
            Some(seat) if matches!(seat.stand, Stand::In | Stand::Joining(_)) => {
                seat.stand = Stand::Leaving(id);
                self.ask(client, "leaveRoom", json!({ "roomId": room }));
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
        self.ask(client, "sendMessage", data);
    }

    fn read(&mut self, client: usize, room: &str) {
        let Some(this) = self.client(client) else {
            return;
        };
        this.last_id += 1;
        let had = this.seats.get(room).map_or(0, |seat| seat.had);
        self.ask(client, "messageRead", json!({ "roomId": room, "seq": had }));
    }

    fn disconnect(&mut self, client: usize) {
        if self.clients.is_empty() {
            return;
        }
        let this = self.clients.remove(client % self.clients.len());
        let door = &mut self.doors[this.gateway];
        door.records.remove(&this.socket);
        door.gateway.hub.closed(this.socket, 1001);
        self.settle(this.gateway);
    }

    /// A client gets a frame.
    fn hear(&mut self, gateway: usize, socket: SocketId, frame: &str) {
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
                None => this.heard(&line),
            }
        }
    }

    // Objects.

    /// Carries out what a gateway has to do.
    fn settle(&mut self, gateway: usize) {
        self.doors[gateway].gateway.hub.set_now(self.now);
        loop {
            let door = &mut self.doors[gateway];
            let outputs = door.gateway.settle(self.now);
            if outputs.is_empty() {
                return;
            }
            for output in outputs {
                self.output(gateway, output);
            }
        }
    }

    fn output(&mut self, gateway: usize, output: Output) {
        let door = &mut self.doors[gateway];
        match output {
            Output::Send { socket, frame } => {
                if let Frame::Text(text) = frame {
                    self.hear(gateway, socket, &text);
                }
            }
            Output::Broadcast { sockets, text } => {
                for socket in sockets {
                    self.hear(gateway, socket, &text);
                }
            }
            Output::Close { code, .. } => panic!("nobody is to be closed: {code}"),
            Output::Attach { socket, record } => {
                door.records.insert(socket, record);
            }
            Output::Forward { room } => {
                door.waiting.insert(room);
            }
            Output::Save { client, record, .. } => {
                door.clients.insert(client, record);
            }
            Output::Forget { client } => {
                door.clients.remove(&client);
            }
            Output::Position { room, at } => {
                door.positions.insert(room, at);
            }
            Output::Reached { key, at: Some(at) } => {
                door.reached.insert(key, at);
            }
            Output::Reached { key, at: None } => {
                door.reached.remove(&key);
            }
            Output::Log(entry) => {
                let line = entry.line(self.now);
                assert!(!line.contains(r#""level":"error""#), "{line}");
            }
            other => panic!("native clients have no part in {other:?}"),
        }
    }

    /// What a room has said goes to its links.
    fn gather(&mut self, room: &str) {
        let place = self.places.get_mut(room).expect("a room");
        place.server.advance();
        let here = place.server.remote();
        let gateways: BTreeSet<usize> = here.iter().map(|id| self.at[id]).collect();
        for said in place.server.said() {
            if let Said::CatchUp { to, conn } = said {
                place.links.catch_up(GATEWAYS[self.at[&to]], conn);
                continue;
            }
            let mut text = String::new();
            let Some(item) = item(said, &mut text) else {
                continue;
            };
            match item.to().map(|to| self.at[to]) {
                Some(gateway) => {
                    if item.is_last_word() {
                        place.last_words.push((GATEWAYS[gateway], item.clone()));
                    }
                    place.links.queue(GATEWAYS[gateway], item, &text);
                }
                None => {
                    for gateway in &gateways {
                        let gateway = GATEWAYS[*gateway];
                        place.links.queue(gateway, item.clone(), &text);
                    }
                }
            }
        }
        for gateway in place.links.start() {
            let known = GATEWAYS.into_iter().find(|name| *name == gateway);
            place.busy.extend(known);
        }
    }

    fn request(&mut self, gateway: usize, room: &str, fate: Fate) {
        if !self.doors[gateway].waiting.contains(room) {
            return;
        }
        let Gateway { hub, app } = &mut self.doors[gateway].gateway;
        let commands = app.take(hub, room);
        self.settle(gateway);
        let Some(commands) = commands else {
            self.doors[gateway].waiting.remove(room);
            return;
        };
        let copy = |commands: &Vec<ToRoom>| -> Vec<ToRoom> {
            let json = serde_json::to_string(commands).expect("JSON");
            serde_json::from_str(&json).expect("commands")
        };
        if fate != Fate::Lost {
            let now = self.now;
            let fresh = || Place::new(room, now);
            let place = self.places.entry(room.to_owned()).or_insert_with(fresh);
            place.server.now = now;
            place.links.spoke(GATEWAYS[gateway]);
            for command in copy(&commands) {
                self.at.insert(command.connection().to_owned(), gateway);
                place.server.linked(command);
            }
            self.gather(room);
        }
        if matches!(fate, Fate::Lost | Fate::Unanswered) {
            // Gateways do not try again by themselves.
            let Gateway { hub, app } = &mut self.doors[gateway].gateway;
            app.failed(hub, room, commands);
            self.settle(gateway);
        }
    }

    fn push(&mut self, room: &str, gateway: usize, fate: Fate) {
        let name = GATEWAYS[gateway];
        let Some(place) = self.places.get_mut(room) else {
            return;
        };
        if !place.busy.contains(name) || place.resting.contains_key(name) {
            return;
        }
        // One row at a time, so that much happens in between.
        if let Some(conn) = place.links.next_portion(name) {
            let is_behind = place.server.portion(conn);
            for said in place.server.said() {
                let mut text = String::new();
                let item = item(said, &mut text).expect("a portion");
                place.links.queue(name, item, &text);
            }
            if is_behind {
                place.links.catch_up(name, conn);
            }
        }
        let head = || Push {
            room: room.to_owned(),
            epoch: place.server.room.epoch().to_owned(),
            life: place.life.to_string(),
            ..Push::default()
        };
        let Some(body) = place.links.take(name, head) else {
            place.busy.remove(name);
            return;
        };
        let body = body.expect("JSON");
        place.last.insert(name, body.clone());
        let mut gone = Vec::new();
        if fate != Fate::Lost {
            gone = self.arrives(gateway, &body);
        }
        if fate == Fate::Twice {
            gone = self.arrives(gateway, &body);
        }
        let place = self.places.get_mut(room).expect("a room");
        match fate {
            Fate::Arrives | Fate::Twice => {
                let reached = place.links.reached(name);
                place
                    .last_words
                    .retain(|(_, word)| !reached.told.contains(word));
                self.lost(room, gone);
                if reached.was_missed {
                    self.look_for(room, name);
                }
            }
            Fate::Lost | Fate::Unanswered => {
                let wait = place.links.missed(name);
                let until = self.now + wait.unwrap_or(0);
                place.resting.insert(name, (until, wait.is_none()));
            }
        }
    }

    /// A push arrives: who is not there any more.
    fn arrives(&mut self, gateway: usize, body: &str) -> Vec<String> {
        let (push, texts) = Push::parse(body).expect("a push");
        let Gateway { hub, app } = &mut self.doors[gateway].gateway;
        hub.set_now(self.now);
        let gone = app.pushed(hub, push, &texts, self.now).gone;
        self.settle(gateway);
        gone
    }

    fn echo(&mut self, room: &str, gateway: usize) {
        let place = self.places.get(room);
        if let Some(body) = place.and_then(|place| place.last.get(GATEWAYS[gateway])) {
            let body = body.clone();
            self.arrives(gateway, &body);
        }
    }

    fn lost(&mut self, room: &str, gone: Vec<String>) {
        let place = self.places.get_mut(room).expect("a room");
        for id in gone {
            place.server.disconnect(&id, 1006);
        }
        self.gather(room);
    }

    fn evict_room(&mut self, room: &str) {
        let Some(place) = self.places.get_mut(room) else {
            return;
        };
        place.server.now = self.now;
        place.server.advance();
        // What was stored and not sent is lost with the memory, but for last words.
        place.server.hibernate();
        let mut last_words = std::mem::take(&mut place.last_words);
        for said in place.server.said() {
            let item = item(said, &mut String::new());
            if let Some(word) = item.filter(Item::is_last_word) {
                let gateway = word.to().map_or(0, |to| self.at[to]);
                last_words.push((GATEWAYS[gateway], word));
            }
        }
        *place = Place {
            life: place.life + 1,
            links: Links::default(),
            busy: BTreeSet::new(),
            resting: BTreeMap::new(),
            last: BTreeMap::new(),
            last_words,
            server: std::mem::replace(&mut place.server, Server::new("", world::config(&[]))),
        };
        for (gateway, word) in &place.last_words {
            place.links.queue(gateway, word.clone(), "");
        }
        let at = place.server.head();
        for to in place.server.remote() {
            let gateway = GATEWAYS[self.at[&to]];
            place.links.queue(gateway, Item::Is { to, at }, "");
        }
        self.gather(room);
    }

    fn evict_gateway(&mut self, gateway: usize) {
        let name = GATEWAYS[gateway];
        let door = &self.doors[gateway];
        let links = self.places.values();
        if door.waiting.is_empty() && !links.into_iter().any(|place| place.busy.contains(name)) {
            self.forget_gateway(gateway, false);
        }
    }

    /// The memory of a gateway goes; its sockets and what it stored stay.
    fn forget_gateway(&mut self, gateway: usize, panicked: bool) {
        let door = &mut self.doors[gateway];
        door.waiting.clear();
        door.gateway = fresh_gateway(GATEWAYS[gateway]);
        door.gateway.hub.set_now(self.now);
        let mut moved = BTreeMap::new();
        for (before, record) in std::mem::take(&mut door.records) {
            let place = door.gateway.hub.recall(&record, self.now);
            let place = place.expect("what a socket carries is understood");
            moved.insert(before, place);
            door.records.insert(place, record);
        }
        let here = self.clients.iter_mut();
        for client in here.filter(|client| client.gateway == gateway) {
            client.socket = moved[&client.socket];
        }
        let records = door.clients.values().cloned().collect();
        let Gateway { hub, app } = &mut door.gateway;
        app.recall(hub, records, door.reached.clone(), panicked, self.now);
        self.settle(gateway);
    }

    fn wait(&mut self, millis: Millis) {
        self.now += millis;
        for gateway in 0..GATEWAYS.len() {
            let here = &mut self.doors[gateway].gateway;
            here.hub.set_now(self.now);
            here.advance(&|_| None, self.now);
            self.settle(gateway);
        }
        for room in self.places.keys().cloned().collect::<Vec<_>>() {
            let place = self.places.get_mut(&room).expect("a room");
            place.server.now = self.now;
            let over = place
                .resting
                .extract_if(.., |_, (until, _)| *until <= self.now);
            for (name, (_, given_up)) in over.collect::<Vec<_>>() {
                let place = self.places.get_mut(&room).expect("a room");
                if given_up {
                    place.links.give_up(name, self.now);
                    for id in place.server.remote() {
                        if GATEWAYS[self.at[&id]] == name {
                            place.server.disconnect(&id, 1006);
                            let word = Item::Lost { to: id };
                            place.last_words.push((name, word.clone()));
                            place.links.queue(name, word, "");
                        }
                    }
                } else {
                    self.look_for(&room, name);
                }
            }
            let place = self.places.get_mut(&room).expect("a room");
            place.links.probe(self.now);
            self.gather(&room);
        }
    }

    /// Asks a gateway what it still has.
    fn look_for(&mut self, room: &str, gateway: &'static str) {
        let place = self.places.get_mut(room).expect("a room");
        let at = place.server.head();
        for to in place.server.remote() {
            if GATEWAYS[self.at[&to]] == gateway {
                place.links.queue(gateway, Item::Is { to, at }, "");
            }
        }
    }

    /// Whether there is anything on its way.
    fn is_busy(&self) -> bool {
        self.doors.iter().any(|door| !door.waiting.is_empty())
            || self.places.values().any(|place| !place.busy.is_empty())
    }

    /// The link is sound again, and time goes by.
    fn heal(&mut self) {
        for _ in 0..40 {
            for _ in 0..100 {
                if !self.is_busy() {
                    break;
                }
                let rooms: Vec<String> = self.places.keys().cloned().collect();
                for gateway in 0..GATEWAYS.len() {
                    for room in self.doors[gateway].waiting.clone() {
                        self.request(gateway, &room, Fate::Arrives);
                    }
                    for room in &rooms {
                        self.push(room, gateway, Fate::Arrives);
                    }
                }
            }
            self.wait(5_000);
            // Who gets no answer asks again, as clients do.
            for client in 0..self.clients.len() {
                for room in ROOMS {
                    let seats = &mut self.clients[client].seats;
                    let Some(seat) = seats.get_mut(room) else {
                        continue;
                    };
                    match seat.stand {
                        Stand::Joining(_) => {
                            seat.stand = Stand::Out;
                            self.join(client, room);
                        }
                        Stand::Leaving(_) => {
                            seat.stand = Stand::In;
                            self.leave(client, room);
                        }
                        Stand::In | Stand::Out => {}
                    }
                }
            }
        }
        assert!(!self.is_busy(), "it comes to rest");
    }

    /// What must be true at the end.
    fn check(&mut self) {
        for room in ROOMS {
            let Some(place) = self.places.get_mut(room) else {
                continue;
            };
            let log = place
                .server
                .serve(Request::Messages(roomcast::room::log::Range {
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
                let before = logged.insert((sender, id), data["seq"].as_u64());
                assert_eq!(before, None, "{event} is there twice");
            }
            for ((_, sender, id), seq) in self.acknowledged.iter().filter(|one| one.0.0 == room) {
                let found = logged.get(&((*sender).to_owned(), id.clone()));
                assert_eq!(
                    found,
                    Some(&Some(*seq)),
                    "{id} of {sender} was acknowledged"
                );
            }
            let head = place.server.head();
            let mut there: BTreeMap<&str, u64> = BTreeMap::new();
            for client in &self.clients {
                let Some(seat) = client.seats.get(room) else {
                    continue;
                };
                match seat.stand {
                    Stand::In => {
                        *there.entry(client.user).or_default() += 1;
                        assert_eq!(seat.had, head, "{} has all of {room}", client.user);
                    }
                    Stand::Out => {}
                    stand => panic!("{stand:?}: it was answered"),
                }
            }
            let presence = place.server.serve(Request::Presence).expect("at once");
            let presence: Value = serde_json::from_str(&presence).expect("JSON");
            for user in presence["users"].as_array().expect("users") {
                let name = user["userId"].as_str().expect("a name");
                let truth = there.get(name).copied().unwrap_or(0);
                assert_eq!(user["connections"], truth, "{name} in {room}");
                assert_eq!(user["status"] == "offline", truth == 0, "{name} in {room}");
            }
        }
    }
}

impl Client {
    /// The first answer counts.
    fn answered(
        &mut self,
        id: u32,
        line: &Value,
        acknowledged: &mut BTreeMap<(String, &'static str, String), u64>,
    ) {
        let done = line["error"].is_null();
        for seat in self.seats.values_mut() {
            seat.stand = match seat.stand {
                Stand::Joining(asked) if asked == id => match done {
                    true => Stand::In,
                    false => Stand::Out,
                },
                Stand::Leaving(asked) if asked == id => match line["error"]["code"].as_str() {
                    None | Some("notJoined") => Stand::Out,
                    // It may be in or not: it asks at the end.
                    Some(_) => Stand::Joining(0),
                },
                stand => stand,
            };
        }
        if let Some((room, message)) = self.sent.remove(&id)
            && done
        {
            let seq = line["data"]["seq"].as_u64().expect("a number");
            let before = acknowledged.insert((room, self.user, message), seq);
            assert!(before.is_none_or(|before| before == seq), "{line}");
        }
    }

    fn heard(&mut self, line: &Value) {
        let data = &line["data"];
        let Some(room) = data["roomId"].as_str() else {
            return;
        };
        let seat = self.seats.entry(room.to_owned()).or_default();
        match line["event"].as_str() {
            Some("newMessage") => {
                assert_ne!(seat.stand, Stand::Out, "{line} for who is out");
                let seq = data["seq"].as_u64().expect("a number");
                assert_eq!(seq, seat.had + 1, "{} has {line}", self.user);
                seat.had = seq;
            }
            Some("messageRead") => {
                let user = data["userId"].as_str().expect("a user").to_owned();
                let seq = data["seq"].as_u64().expect("a number");
                let before = seat.read.insert(user, seq);
                assert!(before.is_none_or(|before| before <= seq), "{line}");
            }
            // Its user left by another connection.
            Some("userLeft") if data["userId"] == self.user => seat.stand = Stand::Out,
            Some("gap") => panic!("nothing is past retention: {line}"),
            _ => {}
        }
    }
}

/// The same 2,000 cases each time; other ones with `GATEWAYS_CASES=30000`.
fn cases() -> ProptestConfig {
    let more = std::env::var("GATEWAYS_CASES").ok();
    let (cases, rng_seed) = match more.and_then(|cases| cases.parse().ok()) {
        Some(cases) => (cases, RngSeed::Random),
        None => (2_000, RngSeed::Fixed(1)),
    };
    ProptestConfig {
        cases,
        rng_seed,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn rooms_behind_a_bad_link_keep_their_promises(
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.heal();
        world.check();
    }
}

/// Cases that the model found once: each with what went wrong.
#[test]
fn what_the_model_found_stays_fixed() {
    use Fate::*;
    use Step::*;
    let join = |client, room| Join { client, room };
    let request = |room, fate| Request {
        gateway: 0,
        room,
        fate,
    };
    let connect = |user| Connect { user, gateway: 0 };
    let push = Push {
        room: 0,
        gateway: 0,
        fate: Arrives,
    };
    let panic = PanicGateway { gateway: 0 };
    let cases = [
        // It was closed, for it had not been stored yet.
        vec![connect(0), panic.clone()],
        // It was told that it is in, and was not.
        vec![connect(0), join(0, 0), request(0, Arrives), panic.clone()],
        // The room went on counting it, by a connection that had been replaced.
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
        // It came back by itself to a room that it had left, for another
        // connection of its user had joined meanwhile.
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
        // The same, after it had left before it was let in.
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
                fate: Arrives,
            },
            panic.clone(),
            push.clone(),
        ],
        // The same, and it heard of the leave before the room heard of it.
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
        // It got an event twice: once before it was let in, when it was leaving
        // already and the join of another room failed.
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
    ];
    for steps in cases {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.heal();
        world.check();
    }
}

/// The connection catches up by portions of the log, of which a push that is on
/// its way delays the first.
#[test]
fn presence_that_changes_during_catch_up_is_received() {
    world::begin();
    let mut server = Server::new("a", world::config(&[]));
    server.catches_up_at_once = false;
    let join = |server: &mut Server, id: &str, since| {
        let hello = Hello {
            connection_id: id.into(),
            user: id.into(),
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
        server.linked(ToRoom::Join {
            hello,
            id: Some(1),
            again: false,
        });
        server.settle();
    };
    join(&mut server, "bob", None);
    let send = r#"{"event":"sendMessage","data":{"content":"1"},"id":1}"#;
    server.receive("bob", RoomFrame::Text(send));
    server.settle();
    server.said();
    join(&mut server, "alice", Some(0));
    let behind = server.said().into_iter().find_map(|said| match said {
        Said::CatchUp { conn, .. } => Some(conn),
        _ => None,
    });
    let behind = behind.expect("alice is behind");
    let away = r#"{"event":"setPresence","data":{"status":"away"}}"#;
    server.receive("bob", RoomFrame::Text(away));
    server.settle();
    while server.portion(behind) {}
    server.settle();
    let receives = server.said().into_iter().any(|said| match said {
        Said::All { text, not, .. } => text.contains("away") && !not.contains(&"alice".to_owned()),
        Said::Frame { to, frame, .. } => to == "alice" && frame.contains("away"),
        _ => false,
    });
    assert!(receives);
}
