//! Packets of Socket.IO. The input is cut at NUL; a piece is a packet, or by its
//! first byte:
//!
//! | byte | |
//! | --- | --- |
//! | 1 | time goes by: as many times 100 ms as the next byte says |
//! | 2 | hibernation |
//! | 3 | a binary frame: an attachment |
//! | 4 | the client is cut off and comes back, with this offset or its last |

use super::world::{self, NOW, Net};
use bytes::Bytes;
use roomcast_gateway::{App, Frame, Gateway, Hub, Output, Protocol, SessionId, SocketId, Up};
use roomcast_proto::time::Millis;
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::HashSet;

/// An event as it was heard: namespace, arguments, attachments.
type Heard = (String, String, Vec<Bytes>);

/// In place of the chat: sends back what it gets.
#[derive(Default)]
pub struct Mirror {
    /// Whether the session is of bare Engine.IO.
    pub bare: bool,
    pub messages: Vec<Frame>,
    pub namespaces: HashSet<(SessionId, String)>,
    events: Vec<Heard>,
}

impl App for Mirror {
    const KEEPS_ATTACHMENTS: bool = true;

    fn hear(&mut self, hub: &mut Hub, up: Up, _now: Millis) {
        match up {
            Up::Message { frame, .. } => self.messages.push(frame),
            Up::Connect {
                session,
                nsp,
                number,
                auth,
            } => {
                world::assert_json(&auth);
                assert!(auth.trim_start().starts_with('{'));
                if nsp == "/refused" {
                    hub.refuse(session, &nsp, r#"{"message":"no"}"#);
                } else {
                    assert!(self.namespaces.insert((session, nsp.clone())), "{nsp}");
                    // Its session may be over already, or the client gave up.
                    let waits = hub.is_connecting(session, number);
                    let accepted = hub.accept(session, &nsp, None, r#"{"sid":"x"}"#.into());
                    assert_eq!(accepted, waits);
                }
            }
            Up::Event {
                session,
                nsp,
                ack,
                args,
                attachments,
            } => {
                assert!(self.namespaces.contains(&(session, nsp.clone())));
                let list: Vec<&RawValue> = serde_json::from_str(&args).expect("a list");
                assert!(!list.is_empty(), "an event has a name");
                hub.emit(session, &nsp, &args, attachments.clone());
                if let Some(ack) = ack {
                    hub.acknowledge(session, &nsp, ack, &args, attachments.clone());
                }
                self.events.push((nsp, args, attachments));
            }
            Up::Disconnected { session, nsp, .. } => {
                self.namespaces.remove(&(session, nsp));
            }
            Up::Opened { .. } | Up::Frame { .. } | Up::Closed { .. } => {
                panic!("there are no native sockets");
            }
        }
    }
}

enum Piece<'a> {
    Later(Millis),
    Hibernate,
    Binary(&'a [u8]),
    Reconnect(&'a [u8]),
    Text(String),
}

fn pieces(input: &[u8]) -> impl Iterator<Item = Piece<'_>> {
    // More would only be slower.
    input.split(|byte| *byte == 0).take(8).map(|piece| {
        let rest = piece.get(1..).unwrap_or_default();
        match piece.first() {
            Some(1) => Piece::Later(u64::from(rest.first().copied().unwrap_or(1)) * 100),
            Some(2) => Piece::Hibernate,
            Some(3) => Piece::Binary(rest),
            Some(4) => Piece::Reconnect(rest),
            _ => Piece::Text(String::from_utf8_lossy(piece).into_owned()),
        }
    })
}

pub fn run(input: &[u8]) {
    world::begin();
    mirrored(input);
    chatted(input);
}

/// One end of a connection.
struct End {
    gateway: Gateway<Mirror>,
    socket: Option<SocketId>,
    now: Millis,
}

impl End {
    fn new(settings: &[(&str, &str)]) -> Self {
        let hub = Hub::new(
            "0".into(),
            world::config(settings).gateway.clone(),
            world::fresh,
        );
        let mut end = End {
            gateway: Gateway::new(hub, Mirror::default()),
            socket: None,
            now: NOW,
        };
        end.open();
        end
    }

    fn open(&mut self) {
        let identity = world::identity("alice");
        let door = world::door(Protocol::SocketIo, Some(identity));
        let socket = self.gateway.hub.open_socket(door, None, self.now);
        self.socket = Some(socket.expect("is let in"));
        self.settle();
    }

    fn settle(&mut self) -> Vec<Frame> {
        let mut sent = Vec::new();
        for output in self.gateway.settle(self.now) {
            match output {
                Output::Send { frame, .. } => sent.push(frame),
                Output::Close { .. } => self.socket = None,
                _ => {}
            }
        }
        sent
    }

    fn hear(&mut self, frame: Frame) -> Vec<Frame> {
        if let Some(socket) = self.socket {
            self.gateway.hub.frame(socket, frame, self.now);
        }
        self.settle()
    }
}

/// What is read and written again is read as the same.
fn mirrored(input: &[u8]) {
    // What is written may be larger than what was read: a name of a namespace
    // has its `sid` behind it.
    let ample = (2 * world::MAX_PAYLOAD).to_string();
    let (mut one, mut other) = (End::new(&[]), End::new(&[("MAX_PAYLOAD", &ample)]));
    for piece in pieces(input) {
        let frame = match piece {
            Piece::Later(by) => {
                one.now += by;
                one.gateway.advance(&|_| None, one.now);
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
        one.gateway.app.events.clear();
        other.gateway.app.events.clear();
        let sent = one.hear(frame);
        for frame in sent {
            if let Frame::Text(text) = &frame {
                match text.strip_prefix('4') {
                    Some(message) => packet(message),
                    None => continue,
                }
                // Who answers a refusal or a farewell is not to be heard.
                if text.starts_with("41") || text.starts_with("44") {
                    continue;
                }
            }
            other.hear(frame);
            assert!(other.socket.is_some(), "what is written can be read");
        }
        // Namespaces and events alike, and nothing twice.
        assert_eq!(other.gateway.app.events, one.gateway.app.events);
    }
    // A new session is none the worse for it.
    one.open();
    one.gateway.app.events.clear();
    one.hear(Frame::Text("40".into()));
    let event = r#"451-["x",{"_placeholder":true,"num":0}]"#;
    one.hear(Frame::Text(event.into()));
    one.hear(Frame::Binary(vec![1].into()));
    one.hear(Frame::Text(r#"42["healthy"]"#.into()));
    let events = &one.gateway.app.events;
    assert_eq!(events.last().expect("an event").1, r#"["healthy"]"#);
}

/// What stands behind the type of a packet: digits, and JSON.
fn parts(mut rest: &str) -> (&str, &str) {
    if rest.starts_with('/') {
        rest = rest.split_once(',').map_or("", |(_, rest)| rest);
    }
    let json = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    (&rest[..rest.len() - json.len()], json)
}

/// A packet of the server by the book: its type, and what it holds is JSON.
fn packet(text: &str) {
    let (kind, mut rest) = text.split_at(1);
    if matches!(kind, "5" | "6") {
        rest = rest.split_once('-').expect("how many attachments").1;
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

/// The answer that an event asks for, if it is one that can have it.
fn asked(text: &str) -> Option<u32> {
    let (digits, json) = parts(text.strip_prefix('2')?);
    // The library knows no id that has a space behind it.
    digits.parse().ok().filter(|_| json.starts_with('['))
}

struct Client {
    socket: SocketId,
    pid: String,
    offset: String,
}

/// A client that comes, or comes back, and then is in a room.
fn enter(net: &mut Net, before: Option<&Client>) -> Client {
    let identity = world::identity("alice");
    let door = world::door(Protocol::SocketIo, Some(identity));
    let socket = net.gateway.hub.open_socket(door, None, net.now);
    let socket = socket.expect("is let in");
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
        net.gateway.hub.frame(socket, Frame::Text(packet), net.now);
        net.settle();
        client.note(net);
    }
    assert!(!client.pid.is_empty(), "is let in");
    client
}

impl Client {
    /// What it keeps of what came, all of which must be packets; the ids of
    /// answers.
    fn note(&mut self, net: &Net) -> Vec<u32> {
        let mut answers = Vec::new();
        for (socket, frame) in &net.sent {
            let Frame::Text(text) = frame else {
                panic!("rooms hold JSON");
            };
            if *socket != self.socket {
                continue;
            }
            let Some(message) = text.strip_prefix('4') else {
                continue;
            };
            packet(message);
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

/// With the chat and rooms behind it.
fn chatted(input: &[u8]) {
    let config = world::config(&[("MAX_ROOMS_PER_CONNECTION", "3")]);
    let mut net = Net::new("0", config.clone());
    let mut alice = enter(&mut net, None);
    for piece in pieces(input) {
        net.sent.clear();
        net.closed.clear();
        net.closed_by_rooms.clear();
        let mut expected = Some(Vec::new());
        match piece {
            Piece::Later(by) => net.advance(by),
            Piece::Hibernate => {
                let places = net.hibernate();
                if let Some(place) = places.get(&alice.socket) {
                    alice.socket = *place;
                }
            }
            Piece::Reconnect(offset) => {
                // Longer ones are more than a frame may have here.
                let offset = &offset[..offset.len().min(200)];
                let known = std::str::from_utf8(offset).unwrap_or_default();
                if !known.is_empty() {
                    alice.offset = known.to_owned();
                }
                net.gateway.hub.closed(alice.socket, 1006);
                net.settle();
                alice = enter(&mut net, Some(&alice));
                continue;
            }
            Piece::Binary(bytes) => {
                // The event that it belongs to came before.
                expected = None;
                let frame = Frame::Binary(bytes.to_vec().into());
                net.gateway.hub.frame(alice.socket, frame, net.now);
                net.settle();
            }
            Piece::Text(text) => {
                expected = (!text.starts_with('5')).then(|| Vec::from_iter(asked(&text)));
                let frame = Frame::Text(format!("4{text}"));
                net.gateway.hub.frame(alice.socket, frame, net.now);
                net.settle();
            }
        }
        let answers = alice.note(&net);
        assert!(net.closed_by_rooms.is_empty(), "what goes to rooms is good");
        if net.closed.iter().any(|(socket, _)| *socket == alice.socket) {
            alice = enter(&mut net, None);
        } else if let Some(expected) = expected {
            assert_eq!(answers, expected, "an answer each");
        }
    }
    // Another client is none the worse for it.
    let mut bob = enter(&mut net, None);
    net.sent.clear();
    let healthy = r#"4277["sendMessage",{"roomId":"r","content":"ok"}]"#;
    let frame = Frame::Text(healthy.to_owned());
    net.gateway.hub.frame(bob.socket, frame, net.now);
    net.settle();
    assert_eq!(bob.note(&net), [77]);
    net.assert_sound();
}
