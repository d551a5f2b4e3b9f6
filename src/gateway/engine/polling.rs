//! Long-polling, and the upgrade from it to a WebSocket.

use super::{
    Answer, Candidate, Door, MAX_CONNECT_PACKETS, MAX_PACKETS, Polled, PostBody, Posting, Role,
    SEPARATOR, Session, Transport,
};
use crate::gateway::handshake::Error;
use crate::gateway::{Frame, Hub, Output, PollId, SessionId, SocketId};
use crate::time::{Millis, SECOND};
use crate::wire::native::Close;
use engineioxide_core::{Packet, ProtocolVersion};

/// How long the body of a polling request may take, and that of a session that
/// has not shown a valid token.
const POST_TIMEOUT: Millis = 60 * SECOND;
const UNAUTHENTICATED_POST_TIMEOUT: Millis = 10 * SECOND;

/// How long an upgrade may take, as in Engine.IO's own server.
pub(super) const UPGRADE_TIMEOUT: Millis = 10 * SECOND;

impl Hub {
    /// A new session on long-polling.
    pub fn open_polling(&mut self, door: Door, now: Millis) -> Answer {
        let transport = Transport::Polling {
            get: None,
            waiting: Vec::new(),
            bytes: 0,
        };
        let session = self.open_session(door, transport, now);
        Answer {
            status: 200,
            body: self.open_packet(session, true),
        }
    }

    /// A request for what waits.
    pub fn poll(&mut self, sid: &str, now: Millis) -> Polled {
        let Some(place) = self.by_sid.get(sid).copied() else {
            return Polled::Now(Answer::error(Error::UnknownSid));
        };
        self.last_poll += 1;
        let poll = self.last_poll;
        let Some(session) = self.session_mut(place) else {
            return Polled::Now(Answer::error(Error::UnknownSid));
        };
        session.heard_at = now;
        let upgrades = session.candidate.is_some_and(|candidate| candidate.probed);
        match &mut session.transport {
            Transport::Socket(_) => Polled::Now(Answer::error(Error::BadRequest)),
            Transport::Polling { get: Some(_), .. } => {
                self.end(place, Packet::Close, Close::Malformed);
                Polled::Now(Answer::error(Error::BadRequest))
            }
            Transport::Polling {
                get,
                waiting,
                bytes,
            } => {
                if waiting.is_empty() && upgrades {
                    // It would hold the upgrade up.
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

    /// A polling request with packets comes in: how its body is to be read, or the
    /// answer without reading it. One at a time, as Engine.IO has it.
    pub fn begin_post(&mut self, sid: &str, now: Millis) -> Result<Posting, Answer> {
        let place = self.by_sid.get(sid).copied();
        let Some(place) = place else {
            return Err(Answer::error(Error::UnknownSid));
        };
        let limit = self.payload_limit_of(place);
        let Some(session) = self.session_mut(place) else {
            return Err(Answer::error(Error::UnknownSid));
        };
        if matches!(session.transport, Transport::Socket(_)) {
            return Err(Answer::error(Error::BadRequest));
        }
        session.heard_at = now;
        if std::mem::replace(&mut session.posting, true) {
            self.end(place, Packet::Close, Close::Malformed);
            return Err(Answer::error(Error::BadRequest));
        }
        let within = match session.is_authenticated() {
            true => POST_TIMEOUT,
            false => UNAUTHENTICATED_POST_TIMEOUT,
        };
        Ok(Posting { limit, within })
    }

    /// The packets of a polling request, of which all are taken or none.
    pub fn post(&mut self, sid: &str, body: PostBody, now: Millis) -> Answer {
        let Some(place) = self.by_sid.get(sid).copied() else {
            return Answer::error(Error::UnknownSid);
        };
        let limit = self.payload_limit_of(place);
        let burst = self.config.room.commands.burst as usize;
        let holds_too_much = self.holds_too_much(place);
        let Some(session) = self.session_mut(place) else {
            return Answer::error(Error::UnknownSid);
        };
        session.posting = false;
        if matches!(session.transport, Transport::Socket(_)) {
            return Answer::error(Error::BadRequest);
        }
        session.heard_at = now;
        let max_packets = match session.is_authenticated() {
            true => MAX_PACKETS.max(burst),
            false => MAX_CONNECT_PACKETS,
        };
        let body = match body {
            PostBody::Whole(body) => Some(body),
            PostBody::TooLarge => None,
            PostBody::Broken => {
                self.end(place, Packet::Close, Close::Normal);
                return Answer::error(Error::BadRequest);
            }
        };
        if holds_too_much {
            self.end(place, Packet::Close, Close::TooFast);
            return Answer::error(Error::BadRequest);
        }
        let separator = SEPARATOR as u8;
        let body = body.filter(|body| {
            body.len() <= limit
                && body.iter().filter(|byte| **byte == separator).count() < max_packets
        });
        let Some(body) = body else {
            self.end(place, Packet::Close, Close::TooLarge);
            return Answer::too_large();
        };
        let packets: Option<Vec<Packet>> = std::str::from_utf8(&body).ok().and_then(|body| {
            body.split(SEPARATOR)
                .map(|packet| Packet::parse(ProtocolVersion::V4, packet.to_owned()).ok())
                .collect()
        });
        let Some(packets) = packets else {
            self.end(place, Packet::Close, Close::Malformed);
            return Answer::error(Error::BadRequest);
        };
        for packet in packets {
            if !self.incoming(place, packet, now) {
                return Answer::error(Error::BadRequest);
            }
        }
        Answer {
            status: 200,
            body: "ok".into(),
        }
    }

    /// A request that waited was given up by its client.
    pub fn cancelled(&mut self, poll: PollId) {
        let waits = |session: &Session| matches!(session.transport, Transport::Polling { get: Some(get), .. } if get == poll);
        let mut sessions = self.sessions.iter();
        let place = sessions.find_map(|(place, session)| waits(session).then_some(place));
        if let Some(place) = place {
            self.end(place, Packet::Close, Close::Malformed);
        }
    }

    pub(super) fn answer_poll(&mut self, place: SessionId, packet: Packet) {
        if let Some(session) = self.session_mut(place)
            && let Transport::Polling { get, .. } = &mut session.transport
            && let Some(poll) = get.take()
        {
            let answer = Answer::packets([packet]);
            self.out.push(Output::Answer { poll, answer });
        }
    }

    /// A frame of a WebSocket that would become a session's transport.
    pub(super) fn probe(&mut self, place: SessionId, socket: SocketId, frame: Frame, now: Millis) {
        let packet = match frame {
            Frame::Text(text) => Packet::parse(ProtocolVersion::V4, text).ok(),
            Frame::Binary(_) => None,
        };
        match packet {
            Some(Packet::PingUpgrade) => {
                let session = self.session_mut(place);
                let candidate = session.and_then(|session| session.candidate.as_mut());
                // A client probes once. More would be answered without end.
                if candidate.is_none_or(|it| std::mem::replace(&mut it.probed, true)) {
                    return self.drop_candidate(place);
                }
                self.send_packet(socket, Packet::PongUpgrade);
                // As those do that come from here on: see `poll`.
                self.answer_poll(place, Packet::Noop);
            }
            Some(Packet::Upgrade) => {
                self.answer_poll(place, Packet::Noop);
                let Some(session) = self.session_mut(place) else {
                    return;
                };
                session.candidate = None;
                session.heard_at = now;
                let before = std::mem::replace(&mut session.transport, Transport::Socket(socket));
                self.set_role(socket, Role::Session(place));
                self.attach(place);
                if let Transport::Polling { waiting, .. } = before {
                    for packet in waiting {
                        self.packet(place, packet);
                    }
                }
            }
            _ => {
                self.drop_candidate(place);
            }
        }
    }

    pub(super) fn drop_candidate(&mut self, place: SessionId) {
        let candidate = self
            .session_mut(place)
            .and_then(|session| session.candidate.take());
        if let Some(Candidate { socket, .. }) = candidate {
            self.sockets.remove(socket);
            self.out.push(Output::close(socket, Close::Malformed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::heartbeat::tests::{NOW, door, hub, join};
    use super::*;

    fn sid(hub: &Hub) -> String {
        hub.by_sid.keys().next().expect("a session").clone()
    }

    #[test]
    fn a_poll_that_comes_after_the_probe_is_let_go_at_once() {
        let mut hub = hub();
        hub.open_polling(door(), NOW);
        let sid = sid(&hub);
        let socket = hub.open_socket(door(), Some(&sid), NOW).expect("a socket");
        assert!(
            matches!(hub.poll(&sid, NOW), Polled::Later(_)),
            "not probed"
        );
        hub.frame(socket, Frame::Text("2probe".to_owned()), NOW);
        for _ in 0..2 {
            let Polled::Now(answer) = hub.poll(&sid, NOW) else {
                panic!("it would hold the upgrade up");
            };
            assert_eq!((answer.status, answer.body.as_str()), (200, "6"));
        }
        hub.frame(socket, Frame::Text("5".to_owned()), NOW);
        let Polled::Now(answer) = hub.poll(&sid, NOW) else {
            panic!("it is a WebSocket now");
        };
        assert_eq!(answer.status, 400);
    }

    #[test]
    fn an_upgrade_that_was_made_sets_no_alarm() {
        let mut hub = hub();
        hub.open_polling(door(), NOW);
        join(&mut hub);
        let sid = sid(&hub);
        let socket = hub.open_socket(door(), Some(&sid), NOW).expect("a socket");
        let first = hub.deadline().expect("to be looked at again");
        assert!(first < NOW + UPGRADE_TIMEOUT, "while it is awake anyway");
        hub.frame(socket, Frame::Text("2probe".to_owned()), NOW);
        hub.frame(socket, Frame::Text("5".to_owned()), NOW);
        hub.advance(&|_| None, first);
        assert_eq!(hub.deadline(), Some(NOW + 25 * SECOND), "the ping");
    }
}
