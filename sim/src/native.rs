//! Frames on native sockets. The input is cut at NUL; a piece is a frame, or by
//! its first byte:
//!
//! | byte | |
//! | --- | --- |
//! | 1 | time goes by: as many times 10 ms as the next byte says |
//! | 2 | hibernation |
//! | 3 | a binary frame |
//! | 4 | the client goes and comes back, at the position that a query names |

use super::world::{self, Net, Said, Server};
use roomcast_gateway::{Frame as SocketFrame, Protocol};
use roomcast_proto::time::Millis;
use roomcast_proto::wire::command::{Body, Command, Position};
use roomcast_proto::wire::native::{self, Close};
use roomcast_proto::wire::object::on_one_line;
use roomcast_room::Frame;
use serde_json::Value;
use serde_json::value::RawValue;

const HEALTHY: &str =
    r#"{"event":"sendMessage","data":{"roomId":"r","content":"ok","messageId":"healthy"},"id":77}"#;

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
            Some(1) => Piece::Later(u64::from(rest.first().copied().unwrap_or(1)) * 10),
            Some(2) => Piece::Hibernate,
            Some(3) => Piece::Binary(rest),
            Some(4) => Piece::Reconnect(rest),
            // A frame that is no UTF-8 does not get past the runtime.
            _ => Piece::Text(String::from_utf8_lossy(piece).into_owned()),
        }
    })
}

pub fn run(input: &[u8]) {
    world::begin();
    for piece in pieces(input) {
        if let Piece::Text(text) = piece {
            reads_as_it_is(&text);
        }
    }
    on_a_room(input);
    on_a_gateway(input);
}

/// What a frame is read as says the same as its JSON.
fn reads_as_it_is(frame: &str) {
    let Ok(incoming) = native::decode(frame) else {
        let mut lines = frame.split('\n');
        assert!(!lines.any(|line| serde_json::from_str::<Value>(line).is_ok()));
        return;
    };
    for one in incoming {
        let Ok(command) = one.command else {
            continue;
        };
        world::assert_json(one.line);
        let Command::Send(send) = &command else {
            continue;
        };
        let (printed, sent) = match &send.body {
            Body::Message { fields } => {
                world::assert_json(&format!("{{{fields}}}"));
                (format!("{{{fields}}}"), None)
            }
            Body::Custom { event, data } => {
                let sent = format!(r#"{{"event":"{event}","data":{data}}}"#);
                (sent, Some(data))
            }
        };
        assert!(!printed.contains(['\n', '\r']));
        // Printed and read again it is the same.
        let event = if sent.is_some() {
            "emit"
        } else {
            "sendMessage"
        };
        let raw: &RawValue = serde_json::from_str(&printed).expect("JSON");
        let again = Command::parse(event, Some(raw)).expect("a send");
        let Command::Send(again) = again else {
            panic!("another command: {again:?}");
        };
        assert_eq!(again.body, send.body);
        // It holds what another reader of JSON finds there.
        let Ok(given) = serde_json::from_str::<Value>(one.line) else {
            continue;
        };
        let mut given = given["data"].clone();
        match sent {
            Some(data) => {
                let data: Value = serde_json::from_str(data).expect("is part of the line");
                assert_eq!(data, given["data"]);
            }
            None => {
                let fields = given.as_object_mut().expect("an object");
                for name in ["roomId", "messageId", "senderId", "seq", "timestamp"] {
                    fields.remove(name);
                }
                let fields: Value = serde_json::from_str(&printed).expect("is part of the line");
                assert_eq!(fields, given);
            }
        }
        assert_eq!(on_one_line(&printed), printed);
    }
}

/// The answers that a frame asks for, sorted.
fn asked(frame: &str) -> Vec<u32> {
    let incoming = native::decode(frame).unwrap_or_default();
    let mut ids: Vec<u32> = incoming.into_iter().filter_map(|one| one.id).collect();
    ids.sort_unstable();
    ids
}

/// What a socket is closed for by a frame of this kind, if it is by its form.
fn due(frame: Frame) -> Option<Close> {
    match frame {
        Frame::Binary => Some(Close::Malformed),
        Frame::Text(text) if text.len() > world::MAX_FRAME => Some(Close::TooLarge),
        Frame::Text(native::PING) => None,
        Frame::Text(text) => native::decode(text).err(),
    }
}

fn on_a_room(input: &[u8]) {
    let config = world::config(&[]);
    let mut server = Server::new("r", config);
    let (mut alice, mut visits) = ("alice".to_owned(), 0);
    server.connect(&alice, "alice", Position::default());
    server.connect("bob", "bob", Position::default());
    server.settle();
    let mut come_back = |server: &mut Server, alice: &mut String, position| {
        visits += 1;
        *alice = format!("alice-{visits}");
        server.connect(alice, "alice", position);
    };
    for piece in pieces(input) {
        let frame = match &piece {
            Piece::Later(by) => {
                server.now += by;
                server.advance();
                continue;
            }
            Piece::Hibernate => {
                server.hibernate();
                continue;
            }
            Piece::Reconnect(query) => {
                server.disconnect(&alice, 1000);
                come_back(&mut server, &mut alice, world::position(query));
                continue;
            }
            Piece::Binary(_) => Frame::Binary,
            Piece::Text(text) => Frame::Text(text),
        };
        server.said();
        server.receive(&alice, frame);
        server.settle();
        let said = server.said();
        let why = world::closed(&said, &alice);
        match due(frame) {
            Some(due) => assert_eq!(why, Some(due)),
            // A token of another user, or one that has expired.
            None => assert!(matches!(
                why,
                None | Some(Close::Forbidden | Close::Expired)
            )),
        }
        match (why, frame) {
            (None, Frame::Text(text)) => {
                assert_eq!(world::answers(&said, &alice), asked(text), "an answer each");
            }
            _ => come_back(&mut server, &mut alice, Position::default()),
        }
        assert_eq!(world::closed(&said, "bob"), None);
    }
    server.settle();
    server.assert_sound();
    // The others are none the worse for it, nor is the room when it wakes.
    let head = server.head();
    for again in [false, true] {
        server.said();
        server.receive("bob", Frame::Text(HEALTHY));
        server.settle();
        let answer = server.said().into_iter().find_map(|said| match said {
            Said::Frame { to, frame, .. } if to == "bob" => Some(frame),
            _ => None,
        });
        let answer = answer.expect("an answer");
        let answer = answer.split('\n').next().expect("a line");
        let answer: Value = serde_json::from_str(answer).expect("JSON");
        assert_eq!(answer["ack"], 77);
        assert_eq!(answer["data"]["seq"], head + 1);
        assert_eq!(answer["data"]["duplicate"] == true, again);
        server.hibernate();
    }
    server.assert_sound();
}

fn on_a_gateway(input: &[u8]) {
    let config = world::config(&[("MAX_ROOMS_PER_CONNECTION", "3")]);
    let mut net = Net::new("n0", config.clone());
    let enter = |net: &mut Net, user: &str| {
        let door = world::door(Protocol::Native, Some(world::identity(user)));
        let socket = net.gateway.hub.open_native(door, net.now);
        net.settle();
        let join = r#"{"event":"joinRoom","data":"r"}"#.to_owned();
        let hub = &mut net.gateway.hub;
        hub.frame(socket, SocketFrame::Text(join), net.now);
        net.settle();
        socket
    };
    let mut alice = enter(&mut net, "alice");
    let mut bob = enter(&mut net, "bob");
    for piece in pieces(input) {
        let (socket_frame, frame) = match &piece {
            Piece::Later(by) => {
                net.advance(*by);
                continue;
            }
            Piece::Hibernate => {
                let places = net.hibernate();
                (alice, bob) = (places[&alice], places[&bob]);
                continue;
            }
            Piece::Reconnect(_) => {
                net.gateway.hub.closed(alice, 1000);
                net.settle();
                alice = enter(&mut net, "alice");
                continue;
            }
            Piece::Binary(bytes) => (SocketFrame::Binary(bytes.to_vec().into()), Frame::Binary),
            Piece::Text(text) => (SocketFrame::Text(text.clone()), Frame::Text(text)),
        };
        net.sent.clear();
        net.closed.clear();
        net.closed_by_rooms.clear();
        net.gateway.hub.frame(alice, socket_frame, net.now);
        net.settle();
        let why = net.closed.iter().find(|(socket, _)| *socket == alice);
        let why = why.map(|(_, code)| *code);
        match due(frame) {
            Some(due) => assert_eq!(why, Some(due.code())),
            None => assert!(matches!(why, None | Some(4403))),
        }
        assert!(net.closed_by_rooms.is_empty(), "what goes to rooms is good");
        match (why, frame) {
            (None, Frame::Text(text)) => {
                let answers = world::answers_in(sent_to(&net, alice));
                assert_eq!(answers, asked(text), "an answer each");
            }
            _ => alice = enter(&mut net, "alice"),
        }
        assert!(net.closed.iter().all(|(socket, _)| *socket != bob));
    }
    net.sent.clear();
    let healthy = SocketFrame::Text(HEALTHY.to_owned());
    net.gateway.hub.frame(bob, healthy, net.now);
    net.settle();
    assert_eq!(world::answers_in(sent_to(&net, bob)), [77]);
    net.assert_sound();
}

fn sent_to(net: &Net, to: roomcast_gateway::SocketId) -> impl Iterator<Item = &str> {
    net.sent
        .iter()
        .filter_map(move |(socket, frame)| match frame {
            SocketFrame::Text(text) if *socket == to => Some(text.as_str()),
            SocketFrame::Binary(_) => panic!("a binary frame on a native socket"),
            SocketFrame::Text(_) => None,
        })
}
