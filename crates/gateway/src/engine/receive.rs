//! Frames and packets of clients.

use super::event::EngineEvent;
use super::server::EngineServer;
use super::sockets::Role;
use crate::frame::Frame;
use crate::ids::{SessionId, SocketId};
use engineioxide_core::{Packet, ProtocolVersion};
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::time::Millis;

/// Maximum size in bytes of a frame of a WebSocket that is not yet the transport of its
/// session. It sends only `2probe` and `5`.
const MAX_PROBE_BYTES: usize = 64;

/// Close code of a connection that ended without a close frame (RFC 6455, 7.4.1).
const ABNORMAL: u16 = 1006;

impl EngineServer {
    /// Handles a frame of a WebSocket.
    pub(crate) fn frame(&mut self, socket: SocketId, frame: Frame, now: Millis) {
        let Some(state) = self.sockets.get_mut(socket) else {
            return;
        };
        state.consumer.on_activity(now);
        state.has_been_active = true;
        match state.role {
            Role::Native => self.push_event(EngineEvent::NativeFrame { socket, frame }),
            Role::Candidate(id) if frame.len() > MAX_PROBE_BYTES => self.drop_candidate(id),
            Role::Candidate(id) => self.probe(id, socket, frame, now),
            Role::Session(id) => self.session_frame(id, frame, now),
        }
    }

    fn session_frame(&mut self, id: SessionId, frame: Frame, now: Millis) {
        if frame.len() > self.payload_limit_of(id) {
            return self.end_session(id, Packet::Noop, Disconnect::TooLarge);
        }
        if self.exceeds_held_limit(id) {
            return self.end_session(id, Packet::Noop, Disconnect::TooFast);
        }
        let packet = match frame {
            Frame::Text(text) => Packet::parse(ProtocolVersion::V4, text).ok(),
            Frame::Binary(bytes) => Some(Packet::Binary(bytes)),
        };
        match packet {
            Some(packet) => {
                self.receive_packet(id, packet, now);
            }
            None => self.end_session(id, Packet::Noop, Disconnect::Malformed),
        }
    }

    /// Counts a packet that is not a command: a noop, a pong, and the packets that the
    /// layer above reports. If the session has sent too many of them, ends it and returns
    /// `false`.
    pub(crate) fn count_overhead(&mut self, id: SessionId, now: Millis) -> bool {
        let rate = self.config.limits.commands;
        let Some(session) = self.sessions.get_mut(id) else {
            return false;
        };
        let within_limit = session.overhead.take(rate, now).is_ok();
        if !within_limit {
            self.end_session(id, Packet::Close, Disconnect::TooFast);
        }
        within_limit
    }

    /// Handles a packet of a session. If clients must not send packets of this type, ends
    /// the session and returns `false`.
    pub(crate) fn receive_packet(&mut self, id: SessionId, packet: Packet, now: Millis) -> bool {
        let Some(session) = self.sessions.get_mut(id) else {
            return true;
        };
        session.last_activity = now;
        match packet {
            Packet::Message(text) => self.push_event(EngineEvent::Message {
                session: id,
                frame: Frame::Text(text.to_string()),
            }),
            Packet::Binary(bytes) => self.push_event(EngineEvent::Message {
                session: id,
                frame: Frame::Binary(bytes),
            }),
            Packet::Pong => {
                session.pinged_at = None;
                self.count_overhead(id, now);
            }
            Packet::Close => self.end_session(id, Packet::Noop, Disconnect::Normal),
            Packet::Noop => {
                self.count_overhead(id, now);
            }
            _ => {
                self.end_session(id, Packet::Close, Disconnect::Malformed);
                return false;
            }
        }
        true
    }

    /// Records the time of the last ping or pong on a socket that the runtime has answered itself.
    pub fn saw(&mut self, socket: SocketId, at: Millis) {
        let Some(state) = self.sockets.get_mut(socket) else {
            return;
        };
        state.consumer.seen_at(at);
        if let Role::Session(id) = state.role
            && let Some(session) = self.sessions.get_mut(id)
        {
            session.last_activity = session.last_activity.max(at);
        }
    }

    /// Handles the end of a WebSocket that the gateway has not closed itself. The host calls
    /// [`EngineServer::saw`] before.
    pub fn closed(&mut self, socket: SocketId, code: u16) {
        let Some(state) = self.sockets.remove(socket) else {
            return;
        };
        match state.role {
            Role::Native => {
                let seen = match (code, state.consumer.active_at()) {
                    (ABNORMAL, at) if at > 0 => at.min(self.now()),
                    _ => self.now(),
                };
                self.push_event(EngineEvent::NativeClosed { socket, code, seen });
            }
            Role::Session(id) => {
                let seen = match (code, self.last_activity(id)) {
                    (ABNORMAL, Some(at)) => at.min(self.now()),
                    _ => self.now(),
                };
                self.end_seen_session(id, Packet::Noop, Disconnect::Normal, seen);
            }
            Role::Candidate(id) => {
                if let Some(session) = self.sessions.get_mut(id) {
                    session.candidate = None;
                }
            }
        }
    }
}
