//! What comes over the transports of Engine.IO. The first byte says what the
//! session is: odd of bare Engine.IO, even of Socket.IO; from `2` on it begins
//! on a WebSocket. The rest is cut at NUL, and each piece is, by its first byte:
//!
//! | byte | |
//! | --- | --- |
//! | `p` | a request with packets |
//! | `g` | a poll |
//! | `q` | the poll that waits is given up |
//! | `t`, `b` | a text or binary frame on the session's WebSocket |
//! | `o` | a WebSocket that would upgrade the session |
//! | `u`, `v` | a text or binary frame on that one |
//! | `x`, `y` | the one or the other closes |
//! | `w` | time goes by: as many times 100 ms as the next byte says |
//! | `h` | hibernation |

use super::socketio::Mirror;
use super::world::{self, NOW};
use base64ct::{Base64, Encoding};
use engineioxide_core::{Packet, ProtocolVersion};
use roomcast::gateway::{
    Answer, Frame, Gateway, Hub, Output, PollId, Polled, PostBody, Protocol, SocketId,
};
use roomcast::time::Millis;
use serde_json::Value;
use std::rc::Rc;

const SEPARATOR: char = '\u{1e}';

/// What a packet of a client is.
enum Said {
    Message(Frame),
    Other,
    Close,
    Refused,
}

/// A request by the book. `None` where it is no payload at all.
fn payload(body: &[u8]) -> Option<Vec<Said>> {
    let body = std::str::from_utf8(body).ok()?;
    let packets = body.split(SEPARATOR).map(|packet| {
        let mut chars = packet.chars();
        let (kind, rest) = (chars.next()?, chars.as_str());
        Some(match kind {
            '4' => Said::Message(Frame::Text(rest.to_owned())),
            'b' => Said::Message(Frame::Binary(Base64::decode_vec(rest).ok()?.into())),
            '3' if rest != "probe" => Said::Other,
            '6' => Said::Other,
            '1' => Said::Close,
            '2' | '3' | '5' => Said::Refused,
            _ => return None,
        })
    });
    packets.collect()
}

/// Packets of the server.
fn assert_packets(answer: &Answer) {
    if answer.status != 200 {
        return world::assert_json(&answer.body);
    }
    for packet in answer.body.split(SEPARATOR) {
        Packet::parse(ProtocolVersion::V4, packet.to_owned()).expect("a packet");
    }
}

struct Bench {
    gateway: Gateway<Mirror>,
    now: Millis,
    sid: String,
    socket: Option<SocketId>,
    candidate: Option<SocketId>,
    waiting: Option<PollId>,
    /// What the sockets carry over hibernation.
    records: Vec<(SocketId, String)>,
}

impl Bench {
    fn new(protocol: Protocol, on_socket: bool) -> Self {
        let mut bench = Bench {
            gateway: gateway(),
            now: NOW,
            sid: String::new(),
            socket: None,
            candidate: None,
            waiting: None,
            records: Vec::new(),
        };
        bench.open(protocol, on_socket);
        bench
    }

    /// A session.
    fn open(&mut self, protocol: Protocol, on_socket: bool) {
        let door = world::door(protocol, None);
        let open = if on_socket {
            let socket = self.gateway.hub.open_socket(door, None, self.now);
            self.socket = Some(socket.expect("is let in"));
            let sent = self.settle();
            let Some((_, Frame::Text(open))) = sent.into_iter().next() else {
                panic!("nothing was said");
            };
            open
        } else {
            self.gateway.hub.open_polling(door, self.now).body
        };
        let open = open.strip_prefix('0').expect("an open packet");
        let open: Value = serde_json::from_str(open).expect("JSON");
        self.sid = open["sid"].as_str().expect("a sid").to_owned();
        assert_eq!(open["maxPayload"], world::MAX_PAYLOAD);
    }

    fn is_open(&self) -> bool {
        self.gateway.hub.session_of(&self.sid).is_some()
    }

    /// Carries out what there is to do; what was sent over sockets.
    fn settle(&mut self) -> Vec<(SocketId, Frame)> {
        let mut sent = Vec::new();
        for output in self.gateway.settle(self.now) {
            match output {
                Output::Send { socket, frame } => sent.push((socket, frame)),
                Output::Broadcast { sockets, text } => {
                    let frames = sockets.into_iter();
                    sent.extend(frames.map(|socket| (socket, Frame::Text(text.clone()))));
                }
                Output::Close { socket, .. } => {
                    self.records.retain(|(one, _)| *one != socket);
                    for place in [&mut self.socket, &mut self.candidate] {
                        place.take_if(|one| *one == socket);
                    }
                }
                Output::Attach { socket, record } => {
                    world::assert_json(&record);
                    self.records.retain(|(one, _)| *one != socket);
                    self.records.push((socket, record));
                }
                Output::Answer { poll, answer } => {
                    assert_eq!(self.waiting.take(), Some(poll), "a poll is answered once");
                    assert_packets(&answer);
                }
                Output::Log(entry) => world::assert_json(&entry.line(self.now)),
                other => panic!("not of these layers: {other:?}"),
            }
        }
        for (_, frame) in &sent {
            if let Frame::Text(text) = frame
                && !text.starts_with('0')
            {
                Packet::parse(ProtocolVersion::V4, text.clone()).expect("a packet");
            }
        }
        sent
    }

    fn post(&mut self, body: &[u8]) {
        let (was_open, polls) = (self.is_open(), self.socket.is_none());
        self.gateway.app.messages.clear();
        let answer = match self.gateway.hub.begin_post(&self.sid, self.now) {
            Ok(posting) => {
                let body = match body.len() <= posting.limit {
                    true => PostBody::Whole(body.to_vec()),
                    false => PostBody::TooLarge,
                };
                self.gateway.hub.post(&self.sid, body, self.now)
            }
            Err(answer) => answer,
        };
        self.settle();
        if !was_open || !polls {
            assert_eq!(answer.status, 400);
            assert!(self.gateway.app.messages.is_empty());
            return;
        }
        if body.len() > world::MAX_PAYLOAD {
            assert_eq!((answer.status, self.is_open()), (413, false));
            return;
        }
        let mut expected = Vec::new();
        let mut goes_on = true;
        let Some(packets) = payload(body) else {
            assert_eq!((answer.status, self.is_open()), (400, false));
            assert!(self.gateway.app.messages.is_empty(), "all of it or nothing");
            return;
        };
        let refused = packets
            .iter()
            .position(|packet| matches!(packet, Said::Refused));
        for packet in packets {
            match packet {
                Said::Message(frame) => expected.push(frame),
                Said::Other => continue,
                Said::Close | Said::Refused => {
                    goes_on = false;
                    break;
                }
            }
        }
        if self.gateway.app.bare {
            assert_eq!(self.gateway.app.messages, expected);
            assert_eq!(self.is_open(), goes_on);
        }
        // What comes after a close counts no more.
        if answer.status == 200 {
            assert_eq!(answer.body, "ok");
        } else {
            assert!(refused.is_some());
            assert!(!self.is_open());
        }
    }

    fn poll(&mut self) {
        let polled = self.gateway.hub.poll(&self.sid, self.now);
        match polled {
            Polled::Now(answer) => assert_packets(&answer),
            Polled::Later(poll) => {
                assert!(self.waiting.is_none());
                self.waiting = Some(poll);
            }
        }
        self.settle();
    }

    fn advance(&mut self, by: Millis) {
        self.now += by;
        self.gateway.advance(&|_| None, self.now);
        self.settle();
        let next = self.gateway.deadline();
        assert!(next.is_none_or(|at| at > self.now), "what was due is done");
    }

    fn hibernate(&mut self) {
        // A session on long-polling keeps the gateway awake.
        if !self.is_open() || self.socket.is_none() || self.candidate.is_some() {
            return;
        }
        let bare = self.gateway.app.bare;
        let namespaces = std::mem::take(&mut self.gateway.app.namespaces);
        self.gateway = gateway();
        self.gateway.app.bare = bare;
        for (_, record) in std::mem::take(&mut self.records) {
            let place = self.gateway.hub.recall(&record, self.now);
            let place = place.expect("what a socket carries is understood");
            self.socket = Some(place);
            self.records.push((place, record));
        }
        assert!(self.is_open());
        let session = self.gateway.hub.session_of(&self.sid).expect("is open");
        self.gateway.app.namespaces = namespaces
            .into_iter()
            .map(|(_, nsp)| (session, nsp))
            .collect();
        for (_, nsp) in &self.gateway.app.namespaces {
            assert_eq!(self.gateway.hub.session_with(&self.sid, nsp), Some(session));
        }
    }

    fn piece(&mut self, piece: &[u8]) {
        let Some((kind, rest)) = piece.split_first() else {
            return;
        };
        let text = || Frame::Text(String::from_utf8_lossy(rest).into_owned());
        let binary = || Frame::Binary(rest.to_vec().into());
        match kind {
            b'p' => self.post(rest),
            b'g' => self.poll(),
            b'q' => {
                if let Some(poll) = self.waiting {
                    self.gateway.hub.cancelled(poll);
                    self.settle();
                    assert!(!self.is_open());
                }
            }
            b't' | b'b' => {
                if let Some(socket) = self.socket {
                    let frame = if *kind == b't' { text() } else { binary() };
                    self.gateway.hub.frame(socket, frame, self.now);
                }
            }
            b'o' => {
                let door = world::door(Protocol::SocketIo, None);
                let (hub, sid) = (&mut self.gateway.hub, self.sid.clone());
                if let Ok(socket) = hub.open_socket(door, Some(&sid), self.now) {
                    let free = self.candidate.is_none() && self.socket.is_none();
                    self.candidate.get_or_insert(socket);
                    self.settle();
                    // One too many is closed, and the session goes on.
                    assert_eq!(self.candidate == Some(socket), free);
                    assert!(self.is_open());
                }
            }
            b'u' | b'v' => {
                if let Some(socket) = self.candidate {
                    let frame = if *kind == b'u' { text() } else { binary() };
                    let upgrades = matches!(&frame, Frame::Text(text) if text.starts_with('5'));
                    self.gateway.hub.frame(socket, frame, self.now);
                    if upgrades {
                        self.socket = self.candidate.take();
                    }
                }
            }
            b'x' | b'y' => {
                let place = match kind {
                    b'x' => &mut self.socket,
                    _ => &mut self.candidate,
                };
                if let Some(socket) = place.take() {
                    self.records.retain(|(one, _)| *one != socket);
                    self.gateway.hub.closed(socket, 1006);
                    self.settle();
                    assert_eq!(self.is_open(), *kind == b'y');
                }
            }
            b'w' => self.advance(u64::from(rest.first().copied().unwrap_or(1)) * 100),
            b'h' => self.hibernate(),
            _ => {}
        }
        self.settle();
        if !self.is_open() {
            assert_eq!(
                (self.socket, self.candidate, self.waiting),
                (None, None, None)
            );
        }
    }
}

fn gateway() -> Gateway<Mirror> {
    let config = world::config(&[("PING_INTERVAL_MS", "5000"), ("PING_TIMEOUT_MS", "2000")]);
    let hub = Hub::new("0".into(), Rc::clone(&config), world::fresh);
    Gateway::new(hub, Mirror::default())
}

pub fn run(input: &[u8]) {
    world::begin();
    let Some((kind, rest)) = input.split_first() else {
        return;
    };
    let bare = kind & 1 == 1;
    let protocol = match bare {
        true => Protocol::EngineIo,
        false => Protocol::SocketIo,
    };
    // The digits in ASCII: `0` and `1` poll, `2` and `3` have a socket.
    let mut bench = Bench::new(protocol, kind & 2 == 2);
    bench.gateway.app.bare = bare;
    for piece in rest.split(|byte| *byte == 0).take(32) {
        bench.piece(piece);
    }
    // Whoever comes next is none the worse for it.
    bench.socket = None;
    bench.candidate = None;
    bench.waiting = None;
    bench.gateway.app.bare = true;
    bench.open(Protocol::EngineIo, false);
    bench.post("4héllo\u{1e}bAQID\u{1e}3".as_bytes());
    assert_eq!(
        bench.gateway.app.messages,
        [
            Frame::Text("héllo".into()),
            Frame::Binary(vec![1, 2, 3].into())
        ]
    );
    let polled = bench.gateway.hub.poll(&bench.sid, bench.now);
    assert!(matches!(polled, Polled::Later(_)));
}
