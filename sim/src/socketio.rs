//! Packets of Socket.IO. The input is split at NUL. A piece is a packet, or an action
//! selected by its first byte:
//!
//! | byte | action |
//! | --- | --- |
//! | 1 | advance the clock by the next byte times 100 ms |
//! | 2 | hibernate |
//! | 3 | a binary frame, that is, an attachment |
//! | 4 | reconnect with this offset, or with the last one if it is empty |

use super::pieces::{Piece, pieces};
use super::world::{self, NOW, Net};
use bytes::Bytes;
use roomcast_gateway::{
    Attachments, ConnectionEvent, EngineServer, Frame, Output, Protocol, SessionId, SocketId,
    SocketIoServer,
};
use roomcast_proto::time::Millis;
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::HashSet;

/// A received event: namespace, arguments, attachments.
type Received = (String, String, Vec<Bytes>);

/// An application in place of the chat that echoes all events.
#[derive(Default)]
pub struct Mirror {
    /// Whether the session uses bare Engine.IO.
    pub bare: bool,
    /// The messages of bare Engine.IO.
    pub messages: Vec<Frame>,
    /// The namespaces that are connected.
    pub namespaces: HashSet<(SessionId, String)>,
    events: Vec<Received>,
}

impl Mirror {
    /// Handles the events of connections and returns the outputs.
    pub fn settle(&mut self, server: &mut SocketIoServer, now: Millis) -> Vec<Output> {
        while let Some(event) = server.next_event(now) {
            self.handle_event(server, event);
        }
        server.engine.take_outputs()
    }

    fn handle_event(&mut self, server: &mut SocketIoServer, event: ConnectionEvent) {
        match event {
            ConnectionEvent::Message { frame, .. } => self.messages.push(frame),
            ConnectionEvent::Connect {
                session,
                nsp,
                number,
                auth,
            } => {
                world::assert_json(&auth);
                assert!(auth.trim_start().starts_with('{'));
                if nsp == "/refused" {
                    server.refuse(session, &nsp, r#"{"message":"no"}"#);
                } else {
                    assert!(self.namespaces.insert((session, nsp.clone())), "{nsp}");
                    // The session may have ended, or the client has disconnected.
                    let waits = server.is_connecting(session, number);
                    let accepted = server.accept(session, &nsp, None, r#"{"sid":"x"}"#.into());
                    assert_eq!(accepted, waits);
                }
            }
            ConnectionEvent::Event {
                session,
                nsp,
                ack,
                args,
                attachments,
            } => {
                assert!(self.namespaces.contains(&(session, nsp.clone())));
                let list: Vec<&RawValue> = serde_json::from_str(&args).expect("a list");
                assert!(!list.is_empty(), "an event has a name");
                server.emit(session, &nsp, &args, attachments.clone());
                if let Some(ack) = ack {
                    server.acknowledge(session, &nsp, ack, &args, attachments.clone());
                }
                self.events.push((nsp, args, attachments));
            }
            ConnectionEvent::Disconnected { session, nsp, .. } => {
                self.namespaces.remove(&(session, nsp));
            }
            ConnectionEvent::Unconnected { .. } => {}
            ConnectionEvent::Opened { .. }
            | ConnectionEvent::Frame { .. }
            | ConnectionEvent::Closed { .. } => {
                panic!("there are no native sockets");
            }
        }
    }
}

/// The clock advances in units of 100 ms.
const UNIT: Millis = 100;

/// Runs the target on an input. Panics if a promise is broken.
pub fn run(input: &[u8]) {
    world::begin();
    test_mirror(input);
    test_chat(input);
}

/// A gateway with one session.
struct Fixture {
    server: SocketIoServer,
    mirror: Mirror,
    socket: Option<SocketId>,
    now: Millis,
}

impl Fixture {
    fn new(settings: &[(&str, &str)]) -> Self {
        let engine = EngineServer::new(
            "0".into(),
            world::config(settings).gateway.clone(),
            world::fresh,
        );
        let mut fixture = Fixture {
            server: SocketIoServer::new(engine, Attachments::Keep),
            mirror: Mirror::default(),
            socket: None,
            now: NOW,
        };
        fixture.open();
        fixture
    }

    fn open(&mut self) {
        let identity = world::identity("alice");
        let connect = world::connect_info(Protocol::SocketIo, Some(identity));
        let socket = self.server.engine.open_socket(connect, None, self.now);
        self.socket = Some(socket.expect("accepted"));
        self.settle();
    }

    fn settle(&mut self) -> Vec<Frame> {
        let mut sent = Vec::new();
        for output in self.mirror.settle(&mut self.server, self.now) {
            match output {
                Output::Send { frame, .. } => sent.push(frame),
                Output::Close { .. } => self.socket = None,
                _ => {}
            }
        }
        sent
    }

    fn handle_event(&mut self, frame: Frame) -> Vec<Frame> {
        if let Some(socket) = self.socket {
            self.server.frame(socket, frame, self.now);
        }
        self.settle()
    }
}

/// Sends packets to one gateway and its echoes to another. Both must parse the same
/// events.
fn test_mirror(input: &[u8]) {
    // An echo can be larger than the packet: the answer to CONNECT contains a `sid`.
    let larger = (2 * world::MAX_PAYLOAD).to_string();
    let (mut one, mut other) = (Fixture::new(&[]), Fixture::new(&[("MAX_PAYLOAD", &larger)]));
    for piece in pieces(input, UNIT) {
        let frame = match piece {
            Piece::Later(by) => {
                one.now += by;
                one.server.advance(&|_| None, one.now);
                one.settle();
                continue;
            }
            Piece::Binary(bytes) => Frame::Binary(bytes.to_vec().into()),
            Piece::Text(text) => Frame::Text(format!("4{text}")),
            Piece::Hibernate | Piece::Reconnect(_) => continue,
        };
        if one.socket.is_none() {
            one.open();
        }
        one.mirror.events.clear();
        other.mirror.events.clear();
        let sent = one.handle_event(frame);
        for frame in sent {
            if let Frame::Text(text) = &frame {
                match text.strip_prefix('4') {
                    Some(message) => assert_packet(message),
                    None => continue,
                }
                // The server does not accept CONNECT_ERROR and DISCONNECT as echoes.
                if text.starts_with("41") || text.starts_with("44") {
                    continue;
                }
            }
            other.handle_event(frame);
            assert!(other.socket.is_some(), "a written packet must be valid");
        }
        // Namespaces and events are equal, and none is repeated.
        assert_eq!(other.mirror.events, one.mirror.events);
    }
    // A new session must work.
    one.open();
    one.mirror.events.clear();
    one.handle_event(Frame::Text("40".into()));
    let event = r#"451-["x",{"_placeholder":true,"num":0}]"#;
    one.handle_event(Frame::Text(event.into()));
    one.handle_event(Frame::Binary(vec![1].into()));
    one.handle_event(Frame::Text(r#"42["healthy"]"#.into()));
    let events = &one.mirror.events;
    assert_eq!(events.last().expect("an event").1, r#"["healthy"]"#);
}

/// Returns the digits and the JSON after the type of a packet.
fn parts(mut rest: &str) -> (&str, &str) {
    if rest.starts_with('/') {
        rest = rest.split_once(',').map_or("", |(_, rest)| rest);
    }
    let json = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    (&rest[..rest.len() - json.len()], json)
}

/// Asserts that a packet of the server is valid.
fn assert_packet(text: &str) {
    let (kind, mut rest) = text.split_at(1);
    if matches!(kind, "5" | "6") {
        rest = rest.split_once('-').expect("the number of attachments").1;
    }
    let (_, json) = parts(rest);
    match kind {
        "0" | "4" => {
            let object: Value = serde_json::from_str(json).expect("JSON");
            assert!(object.is_object());
        }
        "1" => assert_eq!(json, ""),
        "2" | "3" | "5" | "6" => {
            let _: Vec<&RawValue> = serde_json::from_str(json).expect("a list");
        }
        _ => panic!("{text}"),
    }
}

/// Returns the acknowledgement id of an event, or `None`.
fn expected_ack(text: &str) -> Option<u32> {
    let (digits, json) = parts(text.strip_prefix('2')?);
    // socket.io-parser accepts no space after the id.
    digits.parse().ok().filter(|_| json.starts_with('['))
}

struct Client {
    socket: SocketId,
    pid: String,
    offset: String,
}

/// Connects a client, with the recovery data of `before`, and joins a room.
fn join(net: &mut Net, before: Option<&Client>) -> Client {
    let identity = world::identity("alice");
    let connect = world::connect_info(Protocol::SocketIo, Some(identity));
    let socket = net
        .gateway
        .server
        .engine
        .open_socket(connect, None, net.now);
    let socket = socket.expect("accepted");
    net.settle();
    let auth = before.map_or(String::new(), |client| {
        serde_json::json!({ "pid": client.pid, "offset": client.offset }).to_string()
    });
    let mut client = Client {
        socket,
        pid: String::new(),
        offset: String::new(),
    };
    for packet in [format!("40{auth}"), r#"420["joinRoom","r"]"#.to_owned()] {
        net.sent.clear();
        net.gateway
            .server
            .frame(socket, Frame::Text(packet), net.now);
        net.settle();
        client.receive(net);
    }
    assert!(!client.pid.is_empty(), "accepted");
    client
}

impl Client {
    /// Checks the received packets and keeps `pid` and offset. Returns the ids of the
    /// acknowledgements.
    fn receive(&mut self, net: &Net) -> Vec<u32> {
        let mut answers = Vec::new();
        for (socket, frame) in &net.sent {
            let Frame::Text(text) = frame else {
                panic!("rooms send no binary data");
            };
            if *socket != self.socket {
                continue;
            }
            let Some(message) = text.strip_prefix('4') else {
                continue;
            };
            assert_packet(message);
            if let Some(open) = message.strip_prefix("0{") {
                let open: Value = serde_json::from_str(&format!("{{{open}")).expect("JSON");
                self.pid = open["pid"].as_str().unwrap_or_default().to_owned();
            }
            if let Some(answer) = message.strip_prefix('3') {
                answers.push(parts(answer).0.parse().expect("an id"));
            }
            if let Some(args) = message.strip_prefix('2') {
                let last = args.rsplit_once(',').map(|(_, last)| last);
                let offset = last.and_then(|last| last.strip_prefix('"')?.strip_suffix("\"]"));
                self.offset = offset.unwrap_or(&self.offset).to_owned();
            }
        }
        answers
    }
}

/// Sends packets to a gateway with the chat and its rooms.
fn test_chat(input: &[u8]) {
    let config = world::config(&[("MAX_ROOMS_PER_CONNECTION", "3")]);
    let mut net = Net::new("0", config.clone());
    let mut alice = join(&mut net, None);
    for piece in pieces(input, UNIT) {
        net.sent.clear();
        net.closed.clear();
        net.closed_by_rooms.clear();
        let mut expected = Some(Vec::new());
        match piece {
            Piece::Later(by) => net.advance(by),
            Piece::Hibernate => {
                let sockets = net.hibernate();
                if let Some(socket) = sockets.get(&alice.socket) {
                    alice.socket = *socket;
                }
            }
            Piece::Reconnect(offset) => {
                // Longer offsets do not fit into a frame of `MAX_FRAME_BYTES`.
                let offset = &offset[..offset.len().min(200)];
                let known = std::str::from_utf8(offset).unwrap_or_default();
                if !known.is_empty() {
                    alice.offset = known.to_owned();
                }
                net.gateway.server.engine.closed(alice.socket, 1006);
                net.settle();
                alice = join(&mut net, Some(&alice));
                continue;
            }
            Piece::Binary(bytes) => {
                // An attachment can complete an earlier event, so any answer is valid.
                expected = None;
                let frame = Frame::Binary(bytes.to_vec().into());
                net.gateway.server.frame(alice.socket, frame, net.now);
                net.settle();
            }
            Piece::Text(text) => {
                expected = (!text.starts_with('5')).then(|| Vec::from_iter(expected_ack(&text)));
                let frame = Frame::Text(format!("4{text}"));
                net.gateway.server.frame(alice.socket, frame, net.now);
                net.settle();
            }
        }
        let answers = alice.receive(&net);
        assert!(
            net.closed_by_rooms.is_empty(),
            "a gateway must forward only valid commands"
        );
        if net.closed.iter().any(|(socket, _)| *socket == alice.socket) {
            alice = join(&mut net, None);
        } else if let Some(expected) = expected {
            assert_eq!(
                answers, expected,
                "each event with an id must be acknowledged"
            );
        }
    }
    // Another client must work.
    let mut bob = join(&mut net, None);
    net.sent.clear();
    let healthy = r#"4277["sendMessage",{"roomId":"r","content":"ok"}]"#;
    let frame = Frame::Text(healthy.to_owned());
    net.gateway.server.frame(bob.socket, frame, net.now);
    net.settle();
    assert_eq!(bob.receive(&net), [77]);
    net.assert_sound();
}
