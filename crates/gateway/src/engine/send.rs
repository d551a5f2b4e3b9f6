//! Packets and texts to clients, and slow consumers.

use super::server::EngineServer;
use super::sessions::Transport;
use super::sockets::Role;
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

impl EngineServer {
    /// Sends a packet to the client of a session.
    pub(crate) fn send_packet(&mut self, id: SessionId, packet: Packet) {
        let limit = self.config.limits.max_unacked_bytes;
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

    /// Counts `bytes` that were written to a socket. Returns `true` if more than
    /// `max_unacked_bytes` were written since the client's last frame or ping; the host
    /// must then call [`EngineServer::check_slow`]. Pings a session's socket several
    /// times before that.
    pub fn sent(&mut self, socket: SocketId, bytes: usize) -> bool {
        let limit = self.config.limits.max_unacked_bytes;
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

    /// Closes a slow consumer; its client can resume. `last_seen` is the time of the
    /// last ping that the runtime answered by itself. The socket stays open if this
    /// ping came after the last frame.
    pub fn check_slow(&mut self, socket: SocketId, last_seen: Option<Millis>, now: Millis) {
        let Some(state) = self.sockets.get_mut(socket) else {
            return;
        };
        if state.consumer.check_ping(last_seen, now) {
            return;
        }
        let (role, bytes) = (state.role, state.consumer.unacked());
        self.log(LogRecord::reject("slow").with("unackedBytes", bytes));
        match role {
            Role::Native => self.close_socket(socket, Disconnect::TooSlow),
            Role::Session(id) => self.close_session(id, Disconnect::TooSlow),
            Role::Candidate(id) => self.drop_candidate(id),
        }
    }
}
