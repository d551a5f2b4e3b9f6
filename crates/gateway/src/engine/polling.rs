//! The long-polling transport, and the upgrade from it to a WebSocket.

use super::event::EngineEvent;
use super::server::EngineServer;
use super::sessions::{Candidate, Transport};
use super::sockets::Role;
use crate::answer::{Answer, SEPARATOR};
use crate::connect_info::ConnectInfo;
use crate::frame::Frame;
use crate::handshake::Error as HandshakeError;
use crate::ids::{PollId, SessionId, SocketId};
use crate::output::Output;
use engineioxide_core::{Packet, ProtocolVersion};
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::time::{Millis, SECOND};

/// Time within which an upgrade must be complete, as in the reference server.
pub(super) const UPGRADE_TIMEOUT: Millis = 10 * SECOND;

/// Time within which the body of a POST request must arrive. Limits the time for which a
/// slow request holds memory. Enough for 1 MB at 400 kbit/s.
const POST_TIMEOUT: Millis = 20 * SECOND;

/// [`POST_TIMEOUT`] of a session without a valid token: the time within which it must
/// authenticate (CONTRACT, Authentication).
const UNAUTHENTICATED_POST_TIMEOUT: Millis = 10 * SECOND;

/// Maximum number of large bodies that are read at the same time. At 1 MB each
/// (`MAX_PAYLOAD`) they hold a third of the budget of an object (`MAX_OBJECT_BYTES`).
const MAX_LARGE_POSTS: usize = 16;

/// Size in bytes from which a body counts as large. A thousand smaller ones hold as much as
/// [`MAX_LARGE_POSTS`] large ones.
const LARGE_POST: usize = 16 * 1024;

/// Maximum number of packets of one polling request: as many commands as an object
/// handles in one turn of its event loop (CONTRACT, Delivery 5).
const MAX_PACKETS: usize = 1_000;

/// Maximum number of packets of one polling request of a session without a valid token:
/// its CONNECTs, each with a noop or a pong.
const MAX_CONNECT_PACKETS: usize = 16;

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
    /// Time within which the body must arrive.
    pub timeout: Millis,
    /// The body counts for the limit of large bodies until
    /// [`EngineServer::post_read`] is called.
    is_large: bool,
}

/// The body of a POST request. Input of [`crate::SocketIoServer::post`].
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
        Answer::ok(self.open_packet(id, &["websocket"]))
    }

    /// Handles a GET request: answers with the waiting packets, or waits for the next
    /// packet.
    pub fn poll(&mut self, sid: &str, now: Millis) -> Polled {
        let Some(id) = self.sessions.by_sid(sid) else {
            return Polled::Now(match self.last_packets.take(sid) {
                Some(body) => Answer::ok(body),
                None => Answer::error(HandshakeError::UnknownSid),
            });
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

    /// Begins a POST request. `bytes` is the size of its body, if the request announces it.
    /// Returns the limits for reading the body. When it has been read, the host calls
    /// [`EngineServer::post_read`] and passes it to [`crate::SocketIoServer::post`]. Returns
    /// the answer as the error if the host must not read the body: with status 503 if too many
    /// large bodies are being read. `is_short` is `true` if the host is short of memory; then
    /// no large body is read.
    ///
    /// A session has one POST request at a time. A second one ends the session, as in
    /// the reference server.
    pub fn begin_post(
        &mut self,
        sid: &str,
        bytes: Option<usize>,
        is_short: bool,
        now: Millis,
    ) -> Result<PostLimits, Answer> {
        let Some(id) = self.sessions.by_sid(sid) else {
            return Err(Answer::error(HandshakeError::UnknownSid));
        };
        let max_bytes = self.payload_limit_of(id);
        let is_full = is_short || self.large_posts >= MAX_LARGE_POSTS;
        let Some(session) = self.sessions.get_mut(id) else {
            return Err(Answer::error(HandshakeError::UnknownSid));
        };
        if matches!(session.transport, Transport::Socket(_)) {
            return Err(Answer::error(HandshakeError::BadRequest));
        }
        session.last_activity = now;
        // The bodies of sessions without a valid token have a smaller limit. They do not count,
        // because otherwise strangers could keep users from sending.
        let is_large = session.is_authenticated() && bytes.is_none_or(|bytes| bytes > LARGE_POST);
        if is_large && is_full {
            return Err(Answer::unavailable());
        }
        if std::mem::replace(&mut session.is_posting, true) {
            self.end_session(id, Packet::Close, Disconnect::Malformed);
            return Err(Answer::error(HandshakeError::BadRequest));
        }
        let timeout = match session.is_authenticated() {
            true => POST_TIMEOUT,
            false => UNAUTHENTICATED_POST_TIMEOUT,
        };
        self.large_posts += usize::from(is_large);
        Ok(PostLimits {
            max_bytes: bytes.map_or(max_bytes, |bytes| bytes.min(max_bytes)),
            timeout,
            is_large,
        })
    }

    /// Records that the body of a POST request is no longer being read.
    pub fn post_read(&mut self, limits: &PostLimits) {
        // The body of a request from before a restart did not count.
        self.large_posts = self
            .large_posts
            .saturating_sub(usize::from(limits.is_large));
    }

    /// Checks the body of a POST request, after [`EngineServer::begin_post`]. Returns its
    /// session and its packets, each for [`EngineServer::receive_packet`]. Returns the
    /// answer if one of them is malformed; then none is handled.
    pub(crate) fn packets_of_post(
        &mut self,
        sid: &str,
        body: PostBody,
        now: Millis,
    ) -> Result<(SessionId, Vec<Packet>), Answer> {
        let Some(id) = self.sessions.by_sid(sid) else {
            return Err(Answer::error(HandshakeError::UnknownSid));
        };
        let max_bytes = self.payload_limit_of(id);
        let exceeds_held_limit = self.exceeds_held_limit(id);
        let Some(session) = self.sessions.get_mut(id) else {
            return Err(Answer::error(HandshakeError::UnknownSid));
        };
        session.is_posting = false;
        if matches!(session.transport, Transport::Socket(_)) {
            return Err(Answer::error(HandshakeError::BadRequest));
        }
        session.last_activity = now;
        let max_packets = match session.is_authenticated() {
            true => MAX_PACKETS,
            false => MAX_CONNECT_PACKETS,
        };
        let body = match body {
            PostBody::Complete(body) => Some(body),
            PostBody::TooLarge => None,
            PostBody::Incomplete => {
                // The usual cause is a failed network, so this is not logged as a
                // refusal.
                self.end_session(id, Packet::Close, Disconnect::Normal);
                return Err(Answer::error(HandshakeError::BadRequest));
            }
        };
        if exceeds_held_limit {
            self.end_session(id, Packet::Close, Disconnect::TooFast);
            return Err(Answer::error(HandshakeError::BadRequest));
        }
        let Some(body) = body.filter(|body| fits(body, max_bytes, max_packets)) else {
            self.end_session(id, Packet::Close, Disconnect::TooLarge);
            return Err(Answer::too_large());
        };
        let Some(packets) = parse_payload(&body) else {
            self.end_session(id, Packet::Close, Disconnect::Malformed);
            return Err(Answer::error(HandshakeError::BadRequest));
        };
        Ok((id, packets))
    }

    /// Ends the session of a polling request that the client has aborted.
    pub fn cancelled(&mut self, poll: PollId) {
        if let Some(id) = self.sessions.by_poll(poll) {
            self.end_session(id, Packet::Close, Disconnect::Malformed);
        }
    }

    /// Answers the waiting poll of a session, if there is one.
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
                // Clients probe once. No limit counts the answers to further probes.
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
        if let Transport::Polling { waiting, .. } = before {
            for packet in waiting {
                self.send_packet(id, packet);
            }
        }
        self.push_event(EngineEvent::Upgraded { session: id });
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
