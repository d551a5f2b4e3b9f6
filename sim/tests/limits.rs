//! The memory of a gateway stays bounded: with many distinct rooms, and over a long time without
//! hibernation. An allocator that counts bytes shows state of any kind that is never freed.

use roomcast_gateway::{Credentials, EngineServer, Frame, Gateway, Output, Protocol, SocketId};
use roomcast_proto::id::RoomName;
use roomcast_proto::link::Push;
use roomcast_proto::time::{Millis, SECOND};
use roomcast_room::service::Request;
use roomcast_sim::world::{NOW, Server, config, connect_info, identity};
use serde_json::json;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// Number of bytes by which the memory of a gateway may grow. Tables double when they are full,
/// and rate limiters keep their recent users.
const MAX_GROWTH: isize = 256 * 1024;

thread_local! {
    /// The bytes that this thread has allocated and not freed. Each test has its own thread.
    static ALLOCATED: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn count(bytes: isize) {
    // Fails while the thread ends.
    let _ = ALLOCATED.try_with(|allocated| allocated.set(allocated.get() + bytes));
}

// SAFETY: all calls are passed to the default allocator without a change.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `GlobalAlloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// A gateway with its rooms.
struct Host {
    config: Rc<roomcast::config::Config>,
    gateway: Gateway,
    rooms: HashMap<RoomName, Server>,
    /// The records and positions that the gateway has stored and not deleted.
    stored: HashSet<String>,
    now: Millis,
    /// Number of frames to clients.
    frames: usize,
}

impl Host {
    fn new() -> Self {
        fn fresh() -> String {
            thread_local!(static LAST: Cell<u64> = const { Cell::new(0) });
            LAST.set(LAST.get() + 1);
            format!("{:016x}", LAST.get())
        }
        let config = config(&[("MAX_ROOMS_PER_CONNECTION", "1000")]);
        let engine = EngineServer::new("n0".to_owned(), config.gateway.clone(), fresh);
        let mut gateway = Gateway::new(engine);
        gateway.server.engine.set_now(NOW);
        Host {
            config,
            gateway,
            rooms: HashMap::new(),
            stored: HashSet::new(),
            now: NOW,
            frames: 0,
        }
    }

    fn connect(&mut self, user: &str) -> SocketId {
        let info = connect_info(Protocol::Native, Some(identity(user)));
        let engine = &mut self.gateway.server.engine;
        engine.admit(&info, self.now).expect("limits are high");
        let socket = engine.open_native(info, self.now);
        self.settle();
        socket
    }

    fn send(&mut self, socket: SocketId, command: serde_json::Value) {
        let frame = Frame::Text(command.to_string());
        self.gateway.server.frame(socket, frame, self.now);
        self.settle();
    }

    fn close(&mut self, socket: SocketId) {
        self.gateway.server.engine.closed(socket, 1000);
        self.settle();
    }

    fn advance(&mut self, by: Millis) {
        self.now += by;
        self.gateway.server.engine.set_now(self.now);
        self.gateway.advance(&|_| None, self.now);
        for server in self.rooms.values_mut() {
            server.now = self.now;
        }
        self.settle();
    }

    /// Carries out outputs until there are none.
    fn settle(&mut self) {
        loop {
            let outputs = self.gateway.settle(self.now);
            if outputs.is_empty() {
                return;
            }
            for output in outputs {
                self.run(output);
            }
        }
    }

    fn run(&mut self, output: Output) {
        match output {
            Output::Forward { room } => {
                while let Some(commands) = self.gateway.take_commands(&room) {
                    let server = self.server(&room);
                    server.handle_gateway("n0", commands);
                    server.settle();
                    self.deliver(&room);
                }
            }
            Output::Send { .. } | Output::Broadcast { .. } => self.frames += 1,
            Output::Save { client, .. } => {
                self.stored.insert(client);
            }
            Output::Forget { client } => {
                self.stored.remove(&client);
            }
            Output::StorePosition { key, at } => {
                match at {
                    Some(_) => self.stored.insert(key.to_string()),
                    None => self.stored.remove(&key.to_string()),
                };
            }
            Output::Clean => self.gateway.cleaned(0, self.now),
            Output::Find { client, pid, .. } => self.gateway.found(client, &pid, None, self.now),
            Output::Authenticate(request) => {
                if let Credentials::Identity(identity) = request.credentials {
                    let request = request.request;
                    self.gateway.authenticated(request, Ok(*identity), self.now);
                }
            }
            _ => {}
        }
    }

    fn server(&mut self, room: &RoomName) -> &mut Server {
        let (config, now) = (self.config.clone(), self.now);
        let server = self.rooms.entry(room.clone());
        server.or_insert_with(|| {
            let mut server = Server::new(room, config);
            server.now = now;
            server
        })
    }

    /// Delivers what a room has queued for the gateway.
    fn deliver(&mut self, room: &RoomName) {
        let now = self.now;
        self.server(room).start_deliveries();
        while let Some(body) = self.server(room).take_delivery("n0", usize::MAX) {
            let (push, texts) = Push::parse(&body).expect("a delivery");
            let pushed = self.gateway.handle_push(push, &texts, now);
            let server = self.server(room);
            server.delivery_acknowledged("n0", &pushed);
            server.settle();
        }
    }

    /// Publishes an event to a room.
    fn publish(&mut self, room: &RoomName) {
        let message = json!({ "event": "newMessage", "data": { "content": "x" } });
        let request = json!({ "Publish": { "sender": "s", "messages": [message] } });
        let request: Request = serde_json::from_value(request).expect("a request");
        let server = self.server(room);
        server.serve(request);
        server.settle();
        self.deliver(room);
        self.settle();
    }
}

fn command(event: &str, room: &str) -> serde_json::Value {
    json!({ "event": event, "data": { "roomId": room }, "id": 1 })
}

/// Returns the growth of the memory between two calls, without that of the rooms, which are
/// dropped.
fn allocated(host: &mut Host) -> isize {
    host.rooms.clear();
    ALLOCATED.get()
}

/// Joins and leaves `count` distinct rooms, 20 a second.
fn visit_rooms(host: &mut Host, socket: SocketId, first: usize, count: usize) {
    for number in first..first + count {
        let name = format!("room-{number}");
        let room = RoomName::trusted(name.as_str());
        host.send(socket, command("joinRoom", &name));
        host.publish(&room);
        host.send(socket, command("leaveRoom", &name));
        host.rooms.remove(&room);
        host.advance(SECOND / 20);
    }
}

#[test]
fn memory_does_not_grow_with_the_number_of_rooms_that_a_gateway_ever_saw() {
    // A shortened version of a million rooms: bytes kept for each would be visible after thousands.
    const ROOMS: usize = 4_000;
    let mut host = Host::new();
    let socket = host.connect("alice");
    visit_rooms(&mut host, socket, 0, ROOMS);
    let (before, stored) = (allocated(&mut host), host.stored.len());
    visit_rooms(&mut host, socket, ROOMS, ROOMS);
    let growth = allocated(&mut host) - before;
    assert!(growth < MAX_GROWTH, "{growth} bytes for {ROOMS} rooms");
    let growth = host.stored.len().saturating_sub(stored);
    assert!(growth < 100, "{growth} stored rows for {ROOMS} rooms");
    // The answer to the join, the event, and the answer to the leave.
    assert!(host.frames >= 3 * 2 * ROOMS, "{} frames", host.frames);
}

/// Lets clients come and go for this number of seconds, while events flow.
fn busy(host: &mut Host, clients: &mut Vec<SocketId>, seconds: usize, names: &mut usize) {
    let room = RoomName::trusted("busy");
    for _ in 0..seconds {
        *names += 1;
        let socket = host.connect(&format!("user-{names}"));
        host.send(socket, command("joinRoom", "busy"));
        clients.push(socket);
        if clients.len() > 20 {
            let oldest = clients.remove(0);
            host.close(oldest);
        }
        for _ in 0..3 {
            host.publish(&room);
        }
        for socket in clients.clone() {
            host.gateway
                .server
                .frame(socket, Frame::Text("ping".to_owned()), host.now);
        }
        host.advance(SECOND);
    }
}

#[test]
fn memory_does_not_grow_while_a_gateway_never_sleeps() {
    // A shortened hour: 900 clients come and go.
    let mut host = Host::new();
    let (mut clients, mut names) = (Vec::new(), 0);
    let mut before = 0;
    for part in 0..6 {
        busy(&mut host, &mut clients, 150, &mut names);
        let allocated = allocated(&mut host);
        if part == 1 {
            before = allocated;
        }
        let growth = allocated - before;
        assert!(
            part < 2 || growth < MAX_GROWTH,
            "{growth} bytes after {part} parts"
        );
    }
}
