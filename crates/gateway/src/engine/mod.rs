//! Engine.IO 4 (<https://socket.io/docs/v4/engine-io-protocol/>) and native sockets.
//!
//! A session of Engine.IO runs on a WebSocket or on long-polling, and can upgrade from
//! long-polling to a WebSocket. [`EngineServer`] owns all sockets and sessions:
//!
//! - `admission`: rate limits of new connections
//! - `open`: opens sockets and sessions; `sockets`, `sessions`: their tables
//! - `receive`, `send`: frames and packets, in and out; slow consumers
//! - `polling`: the long-polling transport, and the upgrade
//! - `heartbeat`: pings, timeouts and the deadline
//! - `identity`: the tokens of receivers, and the last check before an event is sent
//! - `hibernation`: the records that sockets carry over hibernation

mod admission;
mod heartbeat;
mod hibernation;
mod identity;
mod open;
mod polling;
mod receive;
mod send;
mod sessions;
mod sockets;

pub(crate) use heartbeat::{RECHECK_DELAY, TIMEOUT_EXTENSION};
pub use identity::Receiver;
pub use open::{ConnectInfo, Protocol};
pub use polling::{Answer, Polled, PostBody, PostLimits};

use crate::config::GatewayConfig;
use crate::event::EngineEvent;
use crate::ids::{PollId, SessionId, SocketId};
use crate::output::Output;
use admission::Admission;
use engineioxide_core::Packet;
use roomcast_proto::access::MAX_TOKEN;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::time::Millis;
use sessions::{Session, Sessions, Transport};
use sockets::{Role, Sockets};
use std::collections::VecDeque;
use std::rc::Rc;

/// Maximum number of bytes that are kept for a session without a valid token, until
/// the token is verified (CONTRACT, Authentication).
pub const UNAUTHENTICATED_BYTES: usize = 4 * 1024;

/// Maximum size in bytes of one message or one polling request of a session without a
/// valid token: a CONNECT with the longest token, and [`UNAUTHENTICATED_BYTES`].
const MAX_CONNECT_BYTES: usize = MAX_TOKEN + UNAUTHENTICATED_BYTES;

/// All sockets and sessions of a gateway: native sockets, Engine.IO sessions and the
/// Socket.IO namespaces on them.
///
/// Methods do not call the application and do no I/O. They queue [`EngineEvent`]s and
/// [`Output`]s, which [`crate::Gateway::settle`] takes. Call [`EngineServer::set_now`]
/// before any other method. The crate documentation has the order of calls.
///
/// Methods that take the key of a socket or session do nothing if it is closed.
pub struct EngineServer {
    /// The settings.
    pub config: Rc<GatewayConfig>,
    /// Returns a random id of hexadecimal digits.
    random_id: fn() -> String,
    /// Session ids begin with it, so that the Worker finds this gateway by them.
    name: String,
    sockets: Sockets,
    pub(crate) sessions: Sessions,
    pub(crate) admission: Admission,
    last_poll: PollId,
    /// The number of the last CONNECT.
    pub(crate) last_connect: u64,
    /// No session has anything due before this time.
    next_deadline: Option<Millis>,
    /// See [`crate::App::KEEPS_ATTACHMENTS`].
    pub(crate) keeps_attachments: bool,
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
            name,
            sockets: Sockets::default(),
            sessions: Sessions::default(),
            last_poll: 0,
            last_connect: 0,
            next_deadline: None,
            keeps_attachments: false,
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

    /// Queues an event for the application.
    pub(crate) fn push_event(&mut self, event: EngineEvent) {
        self.events.push_back(event);
    }

    pub(crate) fn next_event(&mut self) -> Option<EngineEvent> {
        self.events.pop_front()
    }

    pub(crate) fn take_outputs(&mut self) -> Vec<Output> {
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

    /// Returns the session with this `sid` if it is connected to the namespace.
    pub fn session_in_namespace(&self, sid: &str, nsp: &str) -> Option<SessionId> {
        let id = self.sessions.by_sid(sid)?;
        let session = self.sessions.get(id)?;
        session.socketio.is_connected(nsp).then_some(id)
    }

    /// Returns the `sid` of a session.
    pub fn sid(&self, id: SessionId) -> Option<String> {
        Some(self.sessions.get(id)?.sid.clone())
    }

    /// Returns the properties of the connection of a session.
    pub fn connect_info(&self, id: SessionId) -> Option<&ConnectInfo> {
        Some(&self.sessions.get(id)?.info)
    }

    /// Closes a native socket.
    pub fn close_socket(&mut self, socket: SocketId, why: Disconnect) {
        if self.sockets.remove(socket).is_some() {
            self.push(Output::close(socket, why));
            let code = why.code();
            self.push_event(EngineEvent::Closed { socket, code });
        }
    }

    /// Closes a session.
    pub fn close_session(&mut self, id: SessionId, why: Disconnect) {
        self.end_session(id, Packet::Close, why);
    }

    /// Ends a session. A poll that waits is answered with `last`.
    fn end_session(&mut self, id: SessionId, last: Packet, why: Disconnect) {
        self.drop_candidate(id);
        self.answer_poll(id, last);
        let Some(session) = self.sessions.remove(id) else {
            return;
        };
        if let Transport::Socket(socket) = session.transport
            && self.sockets.remove(socket).is_some()
        {
            self.push(Output::close(socket, why));
        }
        let reason = match why {
            Disconnect::Malformed | Disconnect::TooLarge => Some("malformed"),
            Disconnect::TooFast => Some("rate"),
            _ => None,
        };
        if let Some(reason) = reason.filter(|_| !session.refusal_logged) {
            self.log(LogRecord::reject(reason).with("code", why.code()));
        }
        // Includes the namespaces whose CONNECT the application was given: it may have
        // a client for them already.
        for nsp in session.socketio.into_namespaces() {
            self.push_event(EngineEvent::Disconnected {
                session: id,
                nsp,
                by_client: false,
            });
        }
    }
}
