//! Requests and frames of Engine.IO. The first byte selects the session: bit 0 for bare
//! Engine.IO instead of Socket.IO, bit 1 for a WebSocket instead of polling (in ASCII:
//! `0` and `1` poll, `2` and `3` use a WebSocket). The rest is split at NUL. The first
//! byte of each piece selects an action:
//!
//! | byte | action |
//! | --- | --- |
//! | `p` | a POST request with packets |
//! | `g` | a poll |
//! | `q` | the client aborts the pending poll |
//! | `t`, `b` | a text or binary frame on the WebSocket of the session |
//! | `o` | a second WebSocket, the candidate of an upgrade |
//! | `u`, `v` | a text or binary frame on the candidate |
//! | `x`, `y` | the WebSocket or the candidate closes |
//! | `w` | advance the clock by the next byte times 100 ms |
//! | `h` | hibernate |

use super::socketio::Mirror;
use super::world::{self, NOW};
use base64ct::{Base64, Encoding};
use engineioxide_core::{Packet, ProtocolVersion};
use roomcast_gateway::{
    Answer, Attachments, EngineServer, Frame, Output, PollId, Polled, PostBody, Protocol, SocketId,
    SocketIoServer,
};
use roomcast_proto::time::Millis;
use serde_json::Value;

const SEPARATOR: char = '\u{1e}';

/// Effect of a packet of a client.
enum PacketKind {
    Message(Frame),
    Other,
    Close,
    Refused,
}

/// Reference parser for the body of a POST. Returns `None` if it is malformed.
fn payload(body: &[u8]) -> Option<Vec<PacketKind>> {
    let body = std::str::from_utf8(body).ok()?;
    let packets = body.split(SEPARATOR).map(|packet| {
        let mut chars = packet.chars();
        let (kind, rest) = (chars.next()?, chars.as_str());
        Some(match kind {
            '4' => PacketKind::Message(Frame::Text(rest.to_owned())),
            'b' => PacketKind::Message(Frame::Binary(Base64::decode_vec(rest).ok()?.into())),
            '3' if rest != "probe" => PacketKind::Other,
            '6' => PacketKind::Other,
            '1' => PacketKind::Close,
            '2' | '3' | '5' => PacketKind::Refused,
            _ => return None,
        })
    });
    packets.collect()
}

/// Asserts that a response contains valid packets, or an error as JSON.
fn assert_packets(answer: &Answer) {
    if answer.status != 200 {
        return world::assert_json(&answer.body);
    }
    for packet in answer.body.split(SEPARATOR) {
        Packet::parse(ProtocolVersion::V4, packet.to_owned()).expect("a packet");
    }
}

/// A gateway with one session.
struct Fixture {
    server: SocketIoServer,
    mirror: Mirror,
    now: Millis,
    sid: String,
    socket: Option<SocketId>,
    candidate: Option<SocketId>,
    waiting: Option<PollId>,
    /// Attachments of the sockets.
    records: Vec<(SocketId, String)>,
}

impl Fixture {
    fn new(protocol: Protocol, on_socket: bool) -> Self {
        let mut fixture = Fixture {
            server: server(),
            mirror: Mirror::default(),
            now: NOW,
            sid: String::new(),
            socket: None,
            candidate: None,
            waiting: None,
            records: Vec::new(),
        };
        fixture.open(protocol, on_socket);
        fixture
    }

    /// Opens a session.
    fn open(&mut self, protocol: Protocol, on_socket: bool) {
        let info = world::connect_info(protocol, None);
        let open = if on_socket {
            let socket = self.server.engine.open_socket(info, None, self.now);
            self.socket = Some(socket.expect("accepted"));
            let sent = self.settle();
            let Some((_, Frame::Text(open))) = sent.into_iter().next() else {
                panic!("no open packet");
            };
            open
        } else {
            self.server.engine.open_polling(info, self.now).body
        };
        let open = open.strip_prefix('0').expect("an open packet");
        let open: Value = serde_json::from_str(open).expect("JSON");
        self.sid = open["sid"].as_str().expect("a sid").to_owned();
        assert_eq!(open["maxPayload"], world::MAX_PAYLOAD);
    }

    fn is_open(&self) -> bool {
        self.server.engine.session_by_sid(&self.sid).is_some()
    }

    /// Executes the outputs. Returns the frames that were sent over sockets.
    fn settle(&mut self) -> Vec<(SocketId, Frame)> {
        let mut sent = Vec::new();
        for output in self.mirror.settle(&mut self.server, self.now) {
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
                other => panic!("unexpected output: {other:?}"),
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
        self.mirror.messages.clear();
        let answer =
            match self
                .server
                .engine
                .begin_post(&self.sid, Some(body.len()), false, self.now)
            {
                Ok(limits) => {
                    let body = match body.len() <= limits.max_bytes {
                        true => PostBody::Complete(body.to_vec()),
                        false => PostBody::TooLarge,
                    };
                    self.server.post(&self.sid, body, self.now)
                }
                Err(answer) => answer,
            };
        self.settle();
        if !was_open || !polls {
            assert_eq!(answer.status, 400);
            assert!(self.mirror.messages.is_empty());
            return;
        }
        if body.len() > world::MAX_PAYLOAD {
            assert_eq!((answer.status, self.is_open()), (413, false));
            return;
        }
        let mut expected = Vec::new();
        let mut stays_open = true;
        let Some(packets) = payload(body) else {
            assert_eq!((answer.status, self.is_open()), (400, false));
            assert!(
                self.mirror.messages.is_empty(),
                "a malformed body must have no effect"
            );
            return;
        };
        let refused = packets
            .iter()
            .position(|packet| matches!(packet, PacketKind::Refused));
        for packet in packets {
            match packet {
                PacketKind::Message(frame) => expected.push(frame),
                PacketKind::Other => continue,
                PacketKind::Close | PacketKind::Refused => {
                    stays_open = false;
                    break;
                }
            }
        }
        if self.mirror.bare {
            assert_eq!(self.mirror.messages, expected);
            assert_eq!(self.is_open(), stays_open);
        }
        // Packets after a close are ignored.
        if answer.status == 200 {
            assert_eq!(answer.body, "ok");
        } else {
            assert!(refused.is_some());
            assert!(!self.is_open());
        }
    }

    fn poll(&mut self) {
        let polled = self.server.engine.poll(&self.sid, self.now);
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
        self.server.advance(&|_| None, self.now);
        self.settle();
        let next = self.server.deadline();
        assert!(
            next.is_none_or(|at| at > self.now),
            "no timer may be overdue"
        );
    }

    fn hibernate(&mut self) {
        // A polling session keeps the gateway awake.
        if !self.is_open() || self.socket.is_none() || self.candidate.is_some() {
            return;
        }
        let bare = self.mirror.bare;
        let namespaces = std::mem::take(&mut self.mirror.namespaces);
        self.server = server();
        self.mirror = Mirror::default();
        self.mirror.bare = bare;
        for (_, record) in std::mem::take(&mut self.records) {
            let place = self.server.restore_socket(&record, self.now);
            let place = place.expect("an attachment is restored");
            self.socket = Some(place);
            self.records.push((place, record));
        }
        assert!(self.is_open());
        let session = self
            .server
            .engine
            .session_by_sid(&self.sid)
            .expect("is open");
        self.mirror.namespaces = namespaces
            .into_iter()
            .map(|(_, nsp)| (session, nsp))
            .collect();
        for (_, nsp) in &self.mirror.namespaces {
            assert_eq!(
                self.server.session_in_namespace(&self.sid, nsp),
                Some(session)
            );
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
                    self.server.engine.cancelled(poll);
                    self.settle();
                    assert!(!self.is_open());
                }
            }
            b't' | b'b' => {
                if let Some(socket) = self.socket {
                    let frame = if *kind == b't' { text() } else { binary() };
                    self.server.frame(socket, frame, self.now);
                }
            }
            b'o' => {
                let info = world::connect_info(Protocol::SocketIo, None);
                let (engine, sid) = (&mut self.server.engine, self.sid.clone());
                if let Ok(socket) = engine.open_socket(info, Some(&sid), self.now) {
                    let free = self.candidate.is_none() && self.socket.is_none();
                    self.candidate.get_or_insert(socket);
                    self.settle();
                    // A second candidate is closed, and the session continues.
                    assert_eq!(self.candidate == Some(socket), free);
                    assert!(self.is_open());
                }
            }
            b'u' | b'v' => {
                if let Some(socket) = self.candidate {
                    let frame = if *kind == b'u' { text() } else { binary() };
                    let upgrades = matches!(&frame, Frame::Text(text) if text.starts_with('5'));
                    self.server.frame(socket, frame, self.now);
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
                    self.server.engine.closed(socket, 1006);
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

fn server() -> SocketIoServer {
    let config = world::config(&[("PING_INTERVAL_MS", "5000"), ("PING_TIMEOUT_MS", "2000")]);
    let engine = EngineServer::new("0".into(), config.gateway.clone(), world::fresh);
    SocketIoServer::new(engine, Attachments::Keep)
}

/// Runs the target on an input. Panics if a promise is broken.
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
    let mut fixture = Fixture::new(protocol, kind & 2 == 2);
    fixture.mirror.bare = bare;
    for piece in rest.split(|byte| *byte == 0).take(32) {
        fixture.piece(piece);
    }
    // A new session on the same gateway must work.
    fixture.socket = None;
    fixture.candidate = None;
    fixture.waiting = None;
    fixture.mirror.bare = true;
    fixture.open(Protocol::EngineIo, false);
    fixture.post("4héllo\u{1e}bAQID\u{1e}3".as_bytes());
    assert_eq!(
        fixture.mirror.messages,
        [
            Frame::Text("héllo".into()),
            Frame::Binary(vec![1, 2, 3].into())
        ]
    );
    let polled = fixture.server.engine.poll(&fixture.sid, fixture.now);
    assert!(matches!(polled, Polled::Later(_)));
}
