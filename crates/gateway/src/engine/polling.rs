//! The long-polling transport, and the upgrade from it to a WebSocket.

use super::sessions::Candidate;
use super::{ConnectInfo, EngineServer, MAX_CONNECT_BYTES, Role, Transport};
use crate::handshake::Error as HandshakeError;
use crate::ids::{PollId, SessionId, SocketId};
use crate::output::{Frame, Output};
use engineioxide_core::{Packet, ProtocolVersion};
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::time::{Millis, SECOND};
use serde_json::json;

/// Time within which an upgrade has to be complete, as in the reference server.
pub(super) const UPGRADE_TIMEOUT: Millis = 10 * SECOND;

/// The separator of the packets of a polling payload.
const SEPARATOR: char = '\u{1e}';

/// Maximum number of packets of one polling request: as many commands as an object
/// handles in one turn of its event loop (CONTRACT, Delivery 5).
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

    /// Returns the maximum size in bytes of a POST request for this session.
    pub fn payload_limit(&self, sid: &str) -> usize {
        match self.sessions.by_sid(sid) {
            Some(id) => self.payload_limit_of(id),
            None => MAX_CONNECT_BYTES,
        }
    }

    /// Handles a POST request with packets. Either all packets are well-formed and
    /// handled, or none is handled. `body` is `None` if it is larger than
    /// [`EngineServer::payload_limit`].
    pub fn post(&mut self, sid: &str, body: Option<&[u8]>, now: Millis) -> Answer {
        let Some(id) = self.sessions.by_sid(sid) else {
            return Answer::error(HandshakeError::UnknownSid);
        };
        let limit = self.payload_limit_of(id);
        let Some(session) = self.sessions.get_mut(id) else {
            return Answer::error(HandshakeError::UnknownSid);
        };
        if matches!(session.transport, Transport::Socket(_)) {
            return Answer::error(HandshakeError::BadRequest);
        }
        session.last_activity = now;
        let max_packets = match session.is_authenticated() {
            true => MAX_PACKETS,
            false => MAX_CONNECT_PACKETS,
        };
        let Some(body) = body.filter(|body| fits(body, limit, max_packets)) else {
            self.end_session(id, Packet::Close, Disconnect::TooLarge);
            return Answer::too_large();
        };
        let Some(packets) = parse_payload(body) else {
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
                self.send_to_socket(socket, Packet::PongUpgrade);
                let session = self.sessions.get_mut(id);
                if let Some(candidate) = session.and_then(|session| session.candidate.as_mut()) {
                    candidate.probed = true;
                }
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
