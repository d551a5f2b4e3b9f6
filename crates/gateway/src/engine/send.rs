//! Packets and texts to clients, and slow consumers.

use super::server::EngineServer;
use super::sessions::Transport;
use super::sockets::{Role, SocketState};
use crate::frame::Frame;
use crate::ids::{SessionId, SocketId};
use crate::output::Output;
use engineioxide_core::Packet;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::time::Millis;

/// Number of additional pings that a session receives per `max_unacked_bytes` of
/// output. Their pongs show that the client reads, so that it does not count as a slow
/// consumer.
const PINGS_PER_LIMIT: usize = 4;

/// Maximum number of bytes sent to a client that has not sent a frame or a ping since it
/// connected, if it is less than `max_unacked_bytes` (CONTRACT, Delivery 4).
const MAX_UNACKED_BEFORE_ACTIVITY: usize = 1 << 20;

/// Size in bytes of the packets that wait for the next poll of a session above which the
/// layers above must send no further events. It is the size of the answer to a poll, which is
/// in memory as a whole.
const MAX_WAITING: usize = 1 << 20;

impl EngineServer {
    /// Sends a packet to the client of a session.
    pub(crate) fn send_packet(&mut self, id: SessionId, packet: Packet) {
        // The layers above stop at `MAX_WAITING`, except for answers to commands.
        let limit = self.config.limits.max_unacked_bytes.max(4 * MAX_WAITING);
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        match &mut session.transport {
            Transport::Socket(socket) => {
                let socket = *socket;
                self.send_to_socket(socket, packet);
            }
            Transport::Polling { get: Some(_), .. } => self.answer_poll(id, packet),
            Transport::Polling { waiting, bytes, .. } => {
                *bytes += packet.get_size_hint(true);
                waiting.push(packet);
                if *bytes > limit {
                    self.log(LogRecord::reject("slow"));
                    self.end_session(id, Packet::Close, Disconnect::TooSlow);
                }
            }
        }
    }

    pub(super) fn send_to_socket(&mut self, socket: SocketId, packet: Packet) {
        let frame = match packet {
            Packet::Binary(bytes) => Frame::Binary(bytes),
            packet => Frame::Text(packet.into()),
        };
        self.push(Output::Send { socket, frame });
    }

    /// Sends the same message to many sessions.
    pub(crate) fn broadcast_message(&mut self, sessions: &[SessionId], message: &str) {
        let mut sockets = Vec::with_capacity(sessions.len());
        for id in sessions {
            match self.sessions.get(*id).map(|session| &session.transport) {
                Some(Transport::Socket(socket)) => sockets.push(*socket),
                Some(Transport::Polling { .. }) => {
                    self.send_packet(*id, Packet::Message(message.to_owned().into()));
                }
                None => {}
            }
        }
        if sockets.is_empty() {
            return;
        }
        let text = String::from(Packet::Message(message.to_owned().into()));
        self.push(Output::Broadcast { sockets, text });
    }

    /// Sends a text frame to a socket.
    pub fn send(&mut self, socket: SocketId, text: String) {
        let frame = Frame::Text(text);
        self.push(Output::Send { socket, frame });
    }

    /// Returns `true` if the client of a socket must receive no further events, because it
    /// has not shown that it reads.
    pub(crate) fn is_socket_congested(&self, socket: SocketId) -> bool {
        let state = self.sockets.get(socket);
        state.is_some_and(|state| state.consumer.unacked() > self.limit_of(state))
    }

    /// Returns `true` if the client of a session must receive no further events, because it
    /// has not shown that it reads, or has not polled.
    pub(crate) fn is_session_congested(&self, id: SessionId) -> bool {
        match self.sessions.get(id).map(|session| &session.transport) {
            Some(Transport::Socket(socket)) => self.is_socket_congested(*socket),
            Some(Transport::Polling { bytes, .. }) => *bytes > MAX_WAITING,
            None => false,
        }
    }

    /// Returns `true` if a session on long-polling waits for packets: its client has received the
    /// answers to its earlier polls.
    pub(crate) fn has_taken_packets(&self, id: SessionId) -> bool {
        match self.sessions.get(id).map(|session| &session.transport) {
            Some(Transport::Polling { get, .. }) => get.is_some(),
            Some(Transport::Socket(_)) | None => false,
        }
    }

    /// Returns `true` if packets of a session wait for its next poll.
    pub(crate) fn has_waiting_packets(&self, id: SessionId) -> bool {
        match self.sessions.get(id).map(|session| &session.transport) {
            Some(Transport::Polling { waiting, .. }) => !waiting.is_empty(),
            Some(Transport::Socket(_)) | None => false,
        }
    }

    /// Returns the maximum number of bytes that the client of a socket may not have read.
    fn limit_of(&self, state: &SocketState) -> usize {
        let limit = self.config.limits.max_unacked_bytes;
        match state.has_been_active {
            true => limit,
            false => limit.min(MAX_UNACKED_BEFORE_ACTIVITY),
        }
    }

    /// Counts `bytes` that were written to a socket. Returns `true` if the client must receive
    /// no further events, because it has not sent a frame or ping since; the host must then
    /// call [`EngineServer::check_slow`]. Pings a session's socket several times before that.
    pub fn sent(&mut self, socket: SocketId, bytes: usize) -> bool {
        let Some(state) = self.sockets.get(socket) else {
            return false;
        };
        let limit = self.limit_of(state);
        let Some(state) = self.sockets.get_mut(socket) else {
            return false;
        };
        let step = limit / PINGS_PER_LIMIT;
        let before = state.consumer.unacked();
        let is_ping_due = before / step != (before + bytes) / step;
        let over_limit = state.consumer.on_sent(bytes, limit);
        if is_ping_due && let Role::Session(_) = state.role {
            self.send_to_socket(socket, Packet::Ping);
        }
        over_limit
    }

    /// Takes the time of the last ping that the runtime answered by itself. If this ping came
    /// after the last frame, the client can receive events again.
    pub fn check_slow(&mut self, socket: SocketId, last_seen: Option<Millis>, now: Millis) {
        let Some(state) = self.sockets.get_mut(socket) else {
            return;
        };
        state.has_been_active |= state.consumer.check_ping(last_seen, now);
    }
}
