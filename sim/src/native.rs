//! Frames on native sockets. The input is split at NUL. A piece is a frame, or an action
//! selected by its first byte:
//!
//! | byte | action |
//! | --- | --- |
//! | 1 | advance the clock by the next byte times 10 ms |
//! | 2 | hibernate |
//! | 3 | a binary frame |
//! | 4 | reconnect at the position in a query |

use super::pieces::{Piece, pieces};
use super::world::{self, Net, RoomOutput, Server};
use roomcast_gateway::{Frame as SocketFrame, Protocol};
use roomcast_proto::command::Command;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::envelope::Body;
use roomcast_proto::framing;
use roomcast_proto::json::on_one_line;
use roomcast_proto::position::Position;
use roomcast_proto::time::Millis;
use roomcast_room::Frame;
use serde_json::Value;
use serde_json::value::RawValue;

const HEALTHY: &str =
    r#"{"event":"sendMessage","data":{"roomId":"r","content":"ok","messageId":"healthy"},"id":77}"#;

/// The clock advances in units of 10 ms.
const UNIT: Millis = 10;

/// Runs the target on an input. Panics if a promise is broken.
pub fn run(input: &[u8]) {
    world::begin();
    for piece in pieces(input, UNIT) {
        if let Piece::Text(text) = piece {
            assert_parsed_like_json(&text);
        }
    }
    on_a_room(input);
    on_a_gateway(input);
}

/// Asserts that a parsed frame is equal to its JSON.
fn assert_parsed_like_json(frame: &str) {
    let Ok(incoming) = framing::decode(frame) else {
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
        // A serialized command is parsed to the same command.
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
        // serde_json finds the same values.
        let Ok(given) = serde_json::from_str::<Value>(one.line) else {
            continue;
        };
        let mut given = given["data"].clone();
        match sent {
            Some(data) => {
                let data: Value = serde_json::from_str(data).expect("valid JSON");
                assert_eq!(data, given["data"]);
            }
            None => {
                let fields = given.as_object_mut().expect("an object");
                for name in ["roomId", "messageId", "senderId", "seq", "timestamp"] {
                    fields.remove(name);
                }
                let fields: Value = serde_json::from_str(&printed).expect("valid JSON");
                assert_eq!(fields, given);
            }
        }
        assert_eq!(on_one_line(&printed), printed);
    }
}

/// Returns the ids of the commands in a frame, sorted.
fn expected_answers(frame: &str) -> Vec<u32> {
    let incoming = framing::decode(frame).unwrap_or_default();
    let mut ids: Vec<u32> = incoming.into_iter().filter_map(|one| one.id).collect();
    ids.sort_unstable();
    ids
}

/// Returns the reason for which a frame of this form must close its socket, or `None`.
fn expected_close(frame: Frame<'_>) -> Option<Disconnect> {
    match frame {
        Frame::Binary => Some(Disconnect::Malformed),
        Frame::Text(text) if text.len() > world::MAX_FRAME => Some(Disconnect::TooLarge),
        Frame::Text(text) if framing::idle(text).is_some() => None,
        Frame::Text(text) => framing::decode(text).err(),
    }
}

fn on_a_room(input: &[u8]) {
    let config = world::config(&[]);
    let mut server = Server::new("r", config);
    let (mut alice, mut connections) = ("alice".to_owned(), 0);
    server.connect(&alice, "alice", Position::default());
    server.connect("bob", "bob", Position::default());
    server.settle();
    let mut reconnect = |server: &mut Server, alice: &mut String, position| {
        connections += 1;
        *alice = format!("alice-{connections}");
        server.connect(alice, "alice", position);
    };
    for piece in pieces(input, UNIT) {
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
                reconnect(&mut server, &mut alice, world::position(query));
                continue;
            }
            Piece::Binary(_) => Frame::Binary,
            Piece::Text(text) => Frame::Text(text),
        };
        server.take_outputs();
        server.receive(&alice, frame);
        server.settle();
        let outputs = server.take_outputs();
        let why = world::closed(&outputs, &alice);
        match expected_close(frame) {
            Some(due) => assert_eq!(why, Some(due)),
            // A refresh with a token of another user or an expired token.
            None => assert!(matches!(
                why,
                None | Some(Disconnect::Forbidden | Disconnect::Expired)
            )),
        }
        match (why, frame) {
            (None, Frame::Text(text)) => {
                assert_eq!(
                    world::answers(&outputs, &alice),
                    expected_answers(text),
                    "each command with an id must be answered"
                );
            }
            _ => reconnect(&mut server, &mut alice, Position::default()),
        }
        assert_eq!(world::closed(&outputs, "bob"), None);
    }
    server.settle();
    server.assert_sound();
    // Other connections still work, even after hibernation.
    let head = server.head();
    for again in [false, true] {
        server.take_outputs();
        server.receive("bob", Frame::Text(HEALTHY));
        server.settle();
        let answer = server
            .take_outputs()
            .into_iter()
            .find_map(|output| match output {
                RoomOutput::Frame { to, frame, .. } if to == "bob" => Some(frame),
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
    let join = |net: &mut Net, user: &str| {
        let connect = world::connect_info(Protocol::Native, Some(world::identity(user)));
        let socket = net.gateway.server.engine.open_native(connect, net.now);
        net.settle();
        let join = r#"{"event":"joinRoom","data":"r"}"#.to_owned();
        let server = &mut net.gateway.server;
        server.frame(socket, SocketFrame::Text(join), net.now);
        net.settle();
        socket
    };
    let mut alice = join(&mut net, "alice");
    let mut bob = join(&mut net, "bob");
    for piece in pieces(input, UNIT) {
        let (socket_frame, frame) = match &piece {
            Piece::Later(by) => {
                net.advance(*by);
                continue;
            }
            Piece::Hibernate => {
                let sockets = net.hibernate();
                (alice, bob) = (sockets[&alice], sockets[&bob]);
                continue;
            }
            Piece::Reconnect(_) => {
                net.gateway.server.engine.closed(alice, 1000);
                net.settle();
                alice = join(&mut net, "alice");
                continue;
            }
            Piece::Binary(bytes) => (SocketFrame::Binary(bytes.to_vec().into()), Frame::Binary),
            Piece::Text(text) => (SocketFrame::Text(text.clone()), Frame::Text(text)),
        };
        net.sent.clear();
        net.closed.clear();
        net.closed_by_rooms.clear();
        net.gateway.server.frame(alice, socket_frame, net.now);
        net.settle();
        let why = net.closed.iter().find(|(socket, _)| *socket == alice);
        let why = why.map(|(_, code)| *code);
        match expected_close(frame) {
            Some(due) => assert_eq!(why, Some(due.code())),
            None => assert!(matches!(why, None | Some(4403))),
        }
        assert!(
            net.closed_by_rooms.is_empty(),
            "a gateway must forward only valid commands"
        );
        match (why, frame) {
            (None, Frame::Text(text)) => {
                let answers = world::answers_in(sent_to(&net, alice));
                assert_eq!(
                    answers,
                    expected_answers(text),
                    "each command with an id must be answered"
                );
            }
            _ => alice = join(&mut net, "alice"),
        }
        assert!(net.closed.iter().all(|(socket, _)| *socket != bob));
    }
    net.sent.clear();
    let healthy = SocketFrame::Text(HEALTHY.to_owned());
    net.gateway.server.frame(bob, healthy, net.now);
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
