//! The long-polling transport, and the upgrade from it to a WebSocket.

use super::sessions::Candidate;
use super::{ConnectInfo, EngineServer, Role, Transport};
use crate::handshake::Error as HandshakeError;
use crate::ids::{PollId, SessionId, SocketId};
use crate::output::{Frame, Output};
use engineioxide_core::{Packet, ProtocolVersion};
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::time::{Millis, SECOND};
use serde_json::json;

/// Time within which an upgrade has to be complete, as in the reference server.
pub(super) const UPGRADE_TIMEOUT: Millis = 10 * SECOND;

/// Time within which the body of a POST request has to arrive.
const POST_TIMEOUT: Millis = 60 * SECOND;

/// The same for a session without a valid token.
const UNAUTHENTICATED_POST_TIMEOUT: Millis = 10 * SECOND;

/// The separator of the packets of a polling payload.
const SEPARATOR: char = '\u{1e}';

/// Maximum number of packets of one polling request: as many commands as an object
/// handles in one turn of its event loop (CONTRACT, Delivery 5). If the burst of
/// commands is larger, the maximum is the burst, because more would be refused.
const MAX_PACKETS: usize = 1_000;

/// Maximum number of packets of one polling request of a session without a valid token:
/// its CONNECTs, each with a noop or a pong.
const MAX_CONNECT_PACKETS: usize = 16;

/// The answer to a request of long-polling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: String,
}

impl Answer {
    fn ok(body: String) -> Self {
        Answer { status: 200, body }
    }

    fn packets(packets: impl IntoIterator<Item = Packet>) -> Self {
        let packets: Vec<String> = packets.into_iter().map(String::from).collect();
        Answer::ok(packets.join(&SEPARATOR.to_string()))
    }

    /// Returns the answer to a request that fails with `error`.
    pub fn error(error: HandshakeError) -> Self {
        Answer {
            status: 400,
            body: error.json(),
        }
    }

    fn too_large() -> Self {
        Answer {
            status: 413,
            body: json!({ "code": 3, "message": "Payload too large" }).to_string(),
        }
    }
}

/// The result of [`EngineServer::poll`].
#[derive(Debug)]
pub enum Polled {
    /// The answer.
    Now(Answer),
    /// Nothing to send yet. [`Output::Answer`] with this id answers the request.
    Later(PollId),
}

/// How to read the body of a POST request. Result of [`EngineServer::begin_post`].
#[derive(Clone, Copy, Debug)]
pub struct PostLimits {
    /// Maximum size of the body in bytes.
    pub max_bytes: usize,
    /// Time within which the body has to arrive.
    pub timeout: Millis,
}

/// The body of a POST request. Input of [`EngineServer::post`].
#[derive(Clone, Debug)]
pub enum PostBody {
    /// The whole body.
    Complete(Vec<u8>),
    /// The body is larger than [`PostLimits::max_bytes`].
    TooLarge,
    /// The request was aborted, or exceeded [`PostLimits::timeout`].
    Incomplete,
}

impl EngineServer {
    /// Opens a session on long-polling and returns its first packet.
    pub fn open_polling(&mut self, info: ConnectInfo, now: Millis) -> Answer {
        let transport = Transport::Polling {
            get: None,
            waiting: Vec::new(),
            bytes: 0,
        };
        let id = self.open_session(info, transport, now);
        Answer::ok(self.open_packet(id, true))
    }

    /// Handles a GET request for the packets that wait.
    pub fn poll(&mut self, sid: &str, now: Millis) -> Polled {
        let Some(id) = self.sessions.by_sid(sid) else {
            return Polled::Now(Answer::error(HandshakeError::UnknownSid));
        };
        self.last_poll += 1;
        let poll = self.last_poll;
        let Some(session) = self.sessions.get_mut(id) else {
            return Polled::Now(Answer::error(HandshakeError::UnknownSid));
        };
        session.last_activity = now;
        let is_upgrading = session.candidate.is_some_and(|candidate| candidate.probed);
        match &mut session.transport {
            Transport::Socket(_) => Polled::Now(Answer::error(HandshakeError::BadRequest)),
            Transport::Polling { get: Some(_), .. } => {
                self.end_session(id, Packet::Close, Disconnect::Malformed);
                Polled::Now(Answer::error(HandshakeError::BadRequest))
            }
            Transport::Polling {
                get,
                waiting,
                bytes,
            } => {
                if waiting.is_empty() && is_upgrading {
                    // The client completes the upgrade only after its poll has ended.
                    return Polled::Now(Answer::packets([Packet::Noop]));
                }
                if waiting.is_empty() {
                    *get = Some(poll);
                    return Polled::Later(poll);
                }
                *bytes = 0;
                Polled::Now(Answer::packets(std::mem::take(waiting)))
            }
        }
    }

    /// Begins a POST request. Returns how to read its body, for
    /// [`EngineServer::post`], or the answer if the body is not to be read.
    ///
    /// A session has one POST request at a time. A second one ends the session, as in
    /// the reference server.
    pub fn begin_post(&mut self, sid: &str, now: Millis) -> Result<PostLimits, Answer> {
        let Some(id) = self.sessions.by_sid(sid) else {
            return Err(Answer::error(HandshakeError::UnknownSid));
        };
        let max_bytes = self.payload_limit_of(id);
        let Some(session) = self.sessions.get_mut(id) else {
            return Err(Answer::error(HandshakeError::UnknownSid));
        };
        if matches!(session.transport, Transport::Socket(_)) {
            return Err(Answer::error(HandshakeError::BadRequest));
        }
        session.last_activity = now;
        if std::mem::replace(&mut session.is_posting, true) {
            self.end_session(id, Packet::Close, Disconnect::Malformed);
            return Err(Answer::error(HandshakeError::BadRequest));
        }
        let timeout = match session.is_authenticated() {
            true => POST_TIMEOUT,
            false => UNAUTHENTICATED_POST_TIMEOUT,
        };
        Ok(PostLimits { max_bytes, timeout })
    }

    /// Handles the body of a POST request, after [`EngineServer::begin_post`]. Either
    /// all packets are well-formed and handled, or none is handled.
    pub fn post(&mut self, sid: &str, body: PostBody, now: Millis) -> Answer {
        let Some(id) = self.sessions.by_sid(sid) else {
            return Answer::error(HandshakeError::UnknownSid);
        };
        let max_bytes = self.payload_limit_of(id);
        let burst = self.config.limits.commands.burst as usize;
        let exceeds_waiting_limit = self.exceeds_waiting_limit(id);
        let Some(session) = self.sessions.get_mut(id) else {
            return Answer::error(HandshakeError::UnknownSid);
        };
        session.is_posting = false;
        if matches!(session.transport, Transport::Socket(_)) {
            return Answer::error(HandshakeError::BadRequest);
        }
        session.last_activity = now;
        let max_packets = match session.is_authenticated() {
            true => MAX_PACKETS.max(burst),
            false => MAX_CONNECT_PACKETS,
        };
        let body = match body {
            PostBody::Complete(body) => Some(body),
            PostBody::TooLarge => None,
            PostBody::Incomplete => {
                // Often the network has failed, so it is not logged as a refusal.
                self.end_session(id, Packet::Close, Disconnect::Normal);
                return Answer::error(HandshakeError::BadRequest);
            }
        };
        if exceeds_waiting_limit {
            self.end_session(id, Packet::Close, Disconnect::TooFast);
            return Answer::error(HandshakeError::BadRequest);
        }
        let Some(body) = body.filter(|body| fits(body, max_bytes, max_packets)) else {
            self.end_session(id, Packet::Close, Disconnect::TooLarge);
            return Answer::too_large();
        };
        let Some(packets) = parse_payload(&body) else {
            self.end_session(id, Packet::Close, Disconnect::Malformed);
            return Answer::error(HandshakeError::BadRequest);
        };
        for packet in packets {
            if !self.receive_packet(id, packet, now) {
                return Answer::error(HandshakeError::BadRequest);
            }
        }
        Answer::ok("ok".into())
    }

    /// The client has given up a request that waits. Ends its session.
    pub fn cancelled(&mut self, poll: PollId) {
        if let Some(id) = self.sessions.by_poll(poll) {
            self.end_session(id, Packet::Close, Disconnect::Malformed);
        }
    }

    /// Answers the poll of a session that waits, if there is one.
    pub(super) fn answer_poll(&mut self, id: SessionId, packet: Packet) {
        if let Some(session) = self.sessions.get_mut(id)
            && let Transport::Polling { get, .. } = &mut session.transport
            && let Some(poll) = get.take()
        {
            let answer = Answer::packets([packet]);
            self.push(Output::Answer { poll, answer });
        }
    }

    /// Handles a frame of a WebSocket that may become the transport of a session.
    pub(super) fn probe(&mut self, id: SessionId, socket: SocketId, frame: Frame, now: Millis) {
        let packet = match frame {
            Frame::Text(text) => Packet::parse(ProtocolVersion::V4, text).ok(),
            Frame::Binary(_) => None,
        };
        match packet {
            Some(Packet::PingUpgrade) => {
                let session = self.sessions.get_mut(id);
                let candidate = session.and_then(|session| session.candidate.as_mut());
                // Clients probe once. Each further probe would cost an answer that no
                // limit counts.
                if candidate.is_none_or(|it| std::mem::replace(&mut it.probed, true)) {
                    return self.drop_candidate(id);
                }
                self.send_to_socket(socket, Packet::PongUpgrade);
                // `poll` answers the requests that follow in the same way.
                self.answer_poll(id, Packet::Noop);
            }
            Some(Packet::Upgrade) => self.complete_upgrade(id, socket, now),
            _ => self.drop_candidate(id),
        }
    }

    fn complete_upgrade(&mut self, id: SessionId, socket: SocketId, now: Millis) {
        self.answer_poll(id, Packet::Noop);
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        session.candidate = None;
        session.last_activity = now;
        let before = std::mem::replace(&mut session.transport, Transport::Socket(socket));
        self.sockets.set_role(socket, Role::Session(id));
        self.attach(id);
        if let Transport::Polling { waiting, .. } = before {
            for packet in waiting {
                self.send_packet(id, packet);
            }
        }
    }

    /// Closes the WebSocket that would have become the transport of a session.
    pub(super) fn drop_candidate(&mut self, id: SessionId) {
        let candidate = self
            .sessions
            .get_mut(id)
            .and_then(|session| session.candidate.take());
        if let Some(Candidate { socket, .. }) = candidate {
            self.sockets.remove(socket);
            self.push(Output::close(socket, Disconnect::Malformed));
        }
    }
}

/// Returns `true` if a payload has at most `max_bytes` bytes and `max_packets` packets.
fn fits(body: &[u8], max_bytes: usize, max_packets: usize) -> bool {
    let separator = SEPARATOR as u8;
    body.len() <= max_bytes && body.iter().filter(|byte| **byte == separator).count() < max_packets
}

/// Returns the packets of a payload, or `None` if one of them is malformed.
fn parse_payload(body: &[u8]) -> Option<Vec<Packet>> {
    let body = std::str::from_utf8(body).ok()?;
    body.split(SEPARATOR)
        .map(|packet| Packet::parse(ProtocolVersion::V4, packet.to_owned()).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::heartbeat::tests::{NOW, connect_info, engine, join, only_session};
    use super::*;

    fn sid(engine: &EngineServer) -> String {
        engine.sid(only_session(engine)).expect("a session")
    }

    #[test]
    fn poll_after_probe_is_answered_at_once() {
        let mut engine = engine();
        engine.open_polling(connect_info(), NOW);
        let sid = sid(&engine);
        let socket = engine
            .open_socket(connect_info(), Some(&sid), NOW)
            .expect("a socket");
        assert!(
            matches!(engine.poll(&sid, NOW), Polled::Later(_)),
            "the upgrade was not probed yet"
        );
        engine.frame(socket, Frame::Text("2probe".to_owned()), NOW);
        for _ in 0..2 {
            let Polled::Now(answer) = engine.poll(&sid, NOW) else {
                panic!("the poll delays the upgrade");
            };
            assert_eq!((answer.status, answer.body.as_str()), (200, "6"));
        }
        engine.frame(socket, Frame::Text("5".to_owned()), NOW);
        let Polled::Now(answer) = engine.poll(&sid, NOW) else {
            panic!("the session is on a WebSocket");
        };
        assert_eq!(answer.status, 400);
    }

    #[test]
    fn second_probe_drops_the_candidate() {
        let mut engine = engine();
        engine.open_polling(connect_info(), NOW);
        let sid = sid(&engine);
        let socket = engine
            .open_socket(connect_info(), Some(&sid), NOW)
            .expect("a socket");
        for _ in 0..3 {
            engine.frame(socket, Frame::Text("2probe".to_owned()), NOW);
        }
        let outputs = engine.take_outputs();
        let answers = outputs.iter().filter(
            |output| matches!(output, Output::Send { frame: Frame::Text(text), .. } if text == "3probe"),
        );
        assert_eq!(answers.count(), 1, "{outputs:?}");
        let is_closed = |output: &Output| matches!(output, Output::Close { .. });
        assert!(outputs.iter().any(is_closed), "{outputs:?}");
        assert!(engine.session_by_sid(&sid).is_some(), "the session goes on");
    }

    #[test]
    fn second_post_at_the_same_time_ends_the_session() {
        let mut engine = engine();
        engine.open_polling(connect_info(), NOW);
        let sid = sid(&engine);
        for _ in 0..2 {
            engine.begin_post(&sid, NOW).expect("a first request");
            let answer = engine.post(&sid, PostBody::Complete(b"6".to_vec()), NOW);
            assert_eq!(answer.status, 200);
        }
        engine.begin_post(&sid, NOW).expect("a first request");
        let answer = engine.begin_post(&sid, NOW).expect_err("a second request");
        assert_eq!(answer.status, 400);
        assert!(engine.session_by_sid(&sid).is_none());
        let answer = engine.post(&sid, PostBody::Complete(b"6".to_vec()), NOW);
        assert_eq!(answer.status, 400, "the first request");
    }

    #[test]
    fn post_has_the_limits_of_its_session() {
        let mut engine = engine();
        assert!(engine.begin_post("0-other", NOW).is_err(), "no session");
        engine.open_polling(connect_info(), NOW);
        let sid = sid(&engine);
        let limits = engine.begin_post(&sid, NOW).expect("limits");
        assert_eq!((limits.max_bytes, limits.timeout), (20 * 1024, 10 * SECOND));
        engine.post(&sid, PostBody::Complete(b"6".to_vec()), NOW);
        join(&mut engine);
        let limits = engine.begin_post(&sid, NOW).expect("limits");
        assert_eq!((limits.max_bytes, limits.timeout), (1_000_000, 60 * SECOND));
    }

    #[test]
    fn incomplete_body_ends_the_session_without_a_log_record() {
        let mut engine = engine();
        engine.open_polling(connect_info(), NOW);
        let sid = sid(&engine);
        engine.begin_post(&sid, NOW).expect("limits");
        let answer = engine.post(&sid, PostBody::Incomplete, NOW);
        assert_eq!(answer.status, 400);
        assert!(engine.session_by_sid(&sid).is_none());
        let outputs = engine.take_outputs();
        let is_log = |output: &Output| matches!(output, Output::Log(_));
        assert!(!outputs.iter().any(is_log), "{outputs:?}");
    }

    #[test]
    fn request_has_as_many_packets_as_the_burst_of_commands() {
        let mut engine = engine();
        let burst = engine.config.limits.commands.burst as usize;
        assert!(burst > MAX_PACKETS);
        engine.open_polling(connect_info(), NOW);
        join(&mut engine);
        let sid = sid(&engine);
        for (packets, status) in [(burst - 1, 200), (burst + 1, 413)] {
            let body = vec!["6"; packets].join(&SEPARATOR.to_string());
            engine.begin_post(&sid, NOW + 60 * SECOND).expect("limits");
            let body = PostBody::Complete(body.into_bytes());
            let answer = engine.post(&sid, body, NOW + 60 * SECOND);
            assert_eq!(answer.status, status, "{packets} packets");
        }
    }

    #[test]
    fn waiting_connects_are_limited_at_the_next_request() {
        let mut engine = engine();
        engine.open_polling(connect_info(), NOW);
        let sid = sid(&engine);
        let connect = |nsp: &str| format!(r#"40/{nsp},{{"token":"{}"}}"#, "x".repeat(5_000));
        let body = [connect("a"), connect("b")].join(&SEPARATOR.to_string());
        for (body, status) in [(body, 200), ("6".to_owned(), 400)] {
            engine.begin_post(&sid, NOW).expect("limits");
            let answer = engine.post(&sid, PostBody::Complete(body.into_bytes()), NOW);
            assert_eq!(answer.status, status);
        }
        assert!(engine.session_by_sid(&sid).is_none());
    }

    #[test]
    fn completed_upgrade_sets_no_alarm() {
        let mut engine = engine();
        engine.open_polling(connect_info(), NOW);
        join(&mut engine);
        let sid = sid(&engine);
        let socket = engine
            .open_socket(connect_info(), Some(&sid), NOW)
            .expect("a socket");
        let first = engine.deadline().expect("the recheck");
        assert!(
            first < NOW + UPGRADE_TIMEOUT,
            "by a timer and not by an alarm"
        );
        engine.frame(socket, Frame::Text("2probe".to_owned()), NOW);
        engine.frame(socket, Frame::Text("5".to_owned()), NOW);
        engine.advance(&|_| None, first);
        assert_eq!(engine.deadline(), Some(NOW + 25 * SECOND), "the ping");
    }
}
