//! The state of the Engine.IO layer, and the end of sockets and sessions.

use super::admission::Admission;
use super::event::EngineEvent;
use super::last_packets::LastPackets;
use super::sessions::{Sessions, Transport};
use super::sockets::Sockets;
use crate::answer::Answer;
use crate::config::GatewayConfig;
use crate::connect_info::ConnectInfo;
use crate::ids::{PollId, SessionId, SocketId};
use crate::output::Output;
use engineioxide_core::Packet;
use roomcast_proto::access::Identity;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::time::Millis;
use std::collections::VecDeque;
use std::rc::Rc;

/// Adds a signature to a session id.
type Sign = dyn Fn(&str) -> String;

/// All sockets of a gateway: native sockets, and those of Engine.IO sessions.
///
/// Methods do not call the layer above and do no I/O. They queue events, which the layer
/// above takes, and [`Output`]s, which [`crate::Gateway::settle`] takes. Call
/// [`EngineServer::set_now`] before any other method. The crate documentation has the order
/// of calls.
///
/// Methods that take the key of a socket or session do nothing if it is closed.
pub struct EngineServer {
    /// The settings.
    pub config: Rc<GatewayConfig>,
    /// Returns a random id of hexadecimal digits.
    random_id: fn() -> String,
    /// Returns a session id with its signature.
    sign: Option<Box<Sign>>,
    /// Session ids begin with it, so that the Worker finds this gateway by them.
    pub(super) name: String,
    pub(super) sockets: Sockets,
    pub(super) sessions: Sessions,
    pub(crate) admission: Admission,
    pub(super) last_poll: PollId,
    pub(super) last_packets: LastPackets,
    /// Number of large bodies of POST requests that are being read.
    pub(super) large_posts: usize,
    /// No session has a deadline before this time.
    pub(super) next_deadline: Option<Millis>,
    now: Millis,
    outputs: Vec<Output>,
    events: VecDeque<EngineEvent>,
}

impl EngineServer {
    /// Returns a server without connections. `name` is the name of the gateway;
    /// `random_id` returns a new random id of hexadecimal digits at each call.
    pub fn new(name: String, config: Rc<GatewayConfig>, random_id: fn() -> String) -> Self {
        EngineServer {
            admission: Admission::new(&config.limits),
            config,
            random_id,
            sign: None,
            name,
            sockets: Sockets::default(),
            sessions: Sessions::default(),
            last_poll: 0,
            last_packets: LastPackets::default(),
            large_posts: 0,
            next_deadline: None,
            now: 0,
            outputs: Vec::new(),
            events: VecDeque::new(),
        }
    }

    /// Returns the name of the gateway.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns a new random id.
    pub fn new_id(&self) -> String {
        (self.random_id)()
    }

    /// Returns a random number.
    pub(crate) fn random(&self) -> u32 {
        let id = u64::from_str_radix(&self.new_id(), 16).unwrap_or_default();
        (id >> 32) as u32
    }

    /// Sets the function that adds a signature to a session id. Without it, session ids have
    /// no signature.
    pub fn set_signer(&mut self, sign: impl Fn(&str) -> String + 'static) {
        self.sign = Some(Box::new(sign));
    }

    /// Returns a new session id, with its signature.
    pub(super) fn new_sid(&self) -> String {
        let sid = format!("{}-{}{}", self.name, self.new_id(), self.new_id());
        match &self.sign {
            Some(sign) => sign(&sid),
            None => sid,
        }
    }

    /// Sets the current time. Called before any other method.
    pub fn set_now(&mut self, now: Millis) {
        self.now = now;
    }

    pub(crate) fn now(&self) -> Millis {
        self.now
    }

    /// Queues an output.
    pub fn push(&mut self, output: Output) {
        self.outputs.push(output);
    }

    /// Queues a log record.
    pub fn log(&mut self, entry: LogRecord) {
        self.push(Output::Log(entry));
    }

    /// Queues an event for the layer above.
    pub(super) fn push_event(&mut self, event: EngineEvent) {
        self.events.push_back(event);
    }

    /// Returns the next event for the layer above.
    pub(crate) fn next_event(&mut self) -> Option<EngineEvent> {
        self.events.pop_front()
    }

    /// Returns the outputs since the last call.
    pub fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// Returns `true` if there is no session and no native socket.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty() && !self.sockets.has_native()
    }

    /// Returns the native socket with this connection id.
    pub fn native_socket(&self, id: &str) -> Option<SocketId> {
        self.sockets.native(id)
    }

    /// Returns the time of the last frame of a socket, or 0 if it is not known.
    pub fn last_frame_at(&self, socket: SocketId) -> Millis {
        let socket = self.sockets.get(socket);
        socket.map_or(0, |socket| socket.consumer.active_at())
    }

    /// Returns the session with this `sid`.
    pub fn session_by_sid(&self, sid: &str) -> Option<SessionId> {
        self.sessions.by_sid(sid)
    }

    /// Returns the `sid` of a session.
    pub fn sid(&self, id: SessionId) -> Option<String> {
        Some(self.sessions.get(id)?.sid.clone())
    }

    /// Returns the properties of the connection of a session.
    pub fn connect_info(&self, id: SessionId) -> Option<&ConnectInfo> {
        Some(&self.sessions.get(id)?.info)
    }

    /// Replaces the identity of the request that opened a session.
    pub(crate) fn replace_identity(&mut self, id: SessionId, identity: Identity) {
        if let Some(session) = self.sessions.get_mut(id) {
            session.info.identity = Some(identity);
        }
    }

    /// Sets the newest valid token of a native socket.
    pub(crate) fn set_socket_identity(&mut self, socket: SocketId, identity: Rc<Identity>) {
        if let Some(state) = self.sockets.get_mut(socket) {
            state.identity = Some(identity);
        }
    }

    /// Returns the newest valid token of a native socket. Returns `None` if the socket is
    /// closed.
    pub(crate) fn socket_identity(&self, socket: SocketId) -> Option<Option<&Identity>> {
        Some(self.sockets.get(socket)?.identity.as_deref())
    }

    /// Returns the WebSocket that is the transport of a session. Returns `None` on
    /// long-polling.
    pub(crate) fn socket_of(&self, id: SessionId) -> Option<SocketId> {
        match self.sessions.get(id)?.transport {
            Transport::Socket(socket) => Some(socket),
            Transport::Polling { .. } => None,
        }
    }

    /// Returns the time of the last packet or polling request of a session.
    pub(crate) fn last_activity(&self, id: SessionId) -> Option<Millis> {
        Some(self.sessions.get(id)?.last_activity)
    }

    /// Logs a refusal, if it is the first one of the connection.
    pub fn log_refusal(&mut self, id: SessionId, entry: LogRecord) {
        if self.mark_refusal_logged(id) {
            self.log(entry);
        }
    }

    /// Returns `true` if no refusal of the connection was logged. The caller then logs one.
    pub(crate) fn mark_refusal_logged(&mut self, id: SessionId) -> bool {
        let session = self.sessions.get_mut(id);
        session.is_some_and(|session| !std::mem::replace(&mut session.refusal_logged, true))
    }

    /// Closes a native socket.
    pub fn close_socket(&mut self, socket: SocketId, why: Disconnect) {
        if let Some(state) = self.sockets.remove(socket) {
            self.push(Output::close(socket, why));
            let (code, seen) = (why.code(), self.seen(why, state.consumer.active_at()));
            self.push_event(EngineEvent::NativeClosed { socket, code, seen });
        }
    }

    /// Closes the native sockets for which `is_known` returns `false`.
    pub fn close_unknown_sockets(&mut self, is_known: impl Fn(SocketId) -> bool) {
        let sockets: Vec<SocketId> = self.sockets.natives().collect();
        for socket in sockets.into_iter().filter(|socket| !is_known(*socket)) {
            self.close_socket(socket, Disconnect::Failed);
        }
    }

    /// Closes a session.
    pub fn close_session(&mut self, id: SessionId, why: Disconnect) {
        self.end_session(id, Packet::Close, why);
    }

    /// Returns the time of the last sign of life of a connection that the gateway closes.
    fn seen(&self, why: Disconnect, active_at: Millis) -> Millis {
        match why {
            Disconnect::Stale | Disconnect::TooSlow if active_at > 0 => active_at.min(self.now()),
            _ => self.now(),
        }
    }

    /// Ends a session. Answers its waiting poll with `last`.
    pub(super) fn end_session(&mut self, id: SessionId, last: Packet, why: Disconnect) {
        let seen = self.seen(why, self.last_activity(id).unwrap_or(0));
        self.end_seen_session(id, last, why, seen);
    }

    /// Ends a session with a known time of its last sign of life.
    pub(super) fn end_seen_session(
        &mut self,
        id: SessionId,
        last: Packet,
        why: Disconnect,
        seen: Millis,
    ) {
        self.drop_candidate(id);
        self.answer_poll(id, last);
        let Some(session) = self.sessions.remove(id) else {
            return;
        };
        match session.transport {
            Transport::Socket(socket) => {
                if self.sockets.remove(socket).is_some() {
                    self.push(Output::close(socket, why));
                }
            }
            Transport::Polling { waiting, .. } => {
                if why.is_final() && !waiting.is_empty() {
                    // Without a close packet: `socket.io-client` would handle it before the
                    // DISCONNECT, and reconnect.
                    let answer = Answer::packets(waiting);
                    self.last_packets.insert(session.sid, answer.body);
                }
            }
        }
        let reason = match why {
            Disconnect::Malformed | Disconnect::TooLarge => Some("malformed"),
            Disconnect::TooFast => Some("rate"),
            _ => None,
        };
        if let Some(reason) = reason.filter(|_| !session.refusal_logged) {
            self.log(LogRecord::reject(reason).with("code", why.code()));
        }
        self.push_event(EngineEvent::Closed { session: id, seen });
    }
}
