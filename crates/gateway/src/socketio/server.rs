//! The state of the Socket.IO layer, the input of clients, and the deadlines.

use super::event::{ConnectionEvent, DisconnectCause};
use super::session::SocketIoSession;
use crate::answer::Answer;
use crate::connect_info::Protocol;
use crate::engine::{Authentication, EngineEvent, EngineServer, PostBody, RECHECK_DELAY};
use crate::frame::Frame;
use crate::handshake::Error as HandshakeError;
use crate::host::LastSeen;
use crate::ids::{SessionId, SocketId};
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::time::{Millis, sooner};
use slotmap::SecondaryMap;
use std::collections::VecDeque;

/// The treatment of the contents of attachments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachments {
    /// The application reads them.
    Keep,
    /// The application does not read them. It receives one empty attachment for each, so
    /// that it knows their number.
    Drop,
}

/// The namespaces of all Socket.IO sessions, on an [`EngineServer`].
///
/// Methods do not call the application and do no I/O. They queue
/// [`ConnectionEvent`]s, and [`crate::Output`]s in the [`EngineServer`]. The crate
/// documentation has the order of calls.
///
/// Methods that take the key of a session do nothing if it is closed.
pub struct SocketIoServer {
    /// The layer below.
    pub engine: EngineServer,
    /// The sessions of Socket.IO. Sessions of bare Engine.IO are not in it.
    pub(super) sessions: SecondaryMap<SessionId, SocketIoSession>,
    pub(super) attachments: Attachments,
    /// The number of the last CONNECT.
    pub(super) last_connect: u64,
    /// No session has missed a deadline of this layer before this time.
    next_deadline: Option<Millis>,
    events: VecDeque<ConnectionEvent>,
}

impl SocketIoServer {
    /// Returns a server without connections.
    pub fn new(engine: EngineServer, attachments: Attachments) -> Self {
        SocketIoServer {
            engine,
            sessions: SecondaryMap::new(),
            attachments,
            last_connect: 0,
            next_deadline: None,
            events: VecDeque::new(),
        }
    }

    /// Handles a frame of a WebSocket.
    pub fn frame(&mut self, socket: SocketId, frame: Frame, now: Millis) {
        self.engine.frame(socket, frame, now);
        self.handle_engine_events(now);
    }

    /// Handles the body of a POST request, after [`EngineServer::begin_post`]. Either
    /// all packets are well-formed and handled, or none is handled.
    pub fn post(&mut self, sid: &str, body: PostBody, now: Millis) -> Answer {
        self.handle_engine_events(now);
        let (id, packets) = match self.engine.packets_of_post(sid, body, now) {
            Ok(post) => post,
            Err(answer) => return answer,
        };
        for packet in packets {
            if !self.engine.receive_packet(id, packet, now) {
                return Answer::error(HandshakeError::BadRequest);
            }
            // A packet may end the session; then the following ones have no effect.
            self.handle_engine_events(now);
        }
        Answer::ok("ok".into())
    }

    /// Returns the next event for the application.
    pub fn next_event(&mut self, now: Millis) -> Option<ConnectionEvent> {
        self.handle_engine_events(now);
        self.events.pop_front()
    }

    pub(super) fn push_event(&mut self, event: ConnectionEvent) {
        self.events.push_back(event);
    }

    pub(super) fn handle_engine_events(&mut self, now: Millis) {
        while let Some(event) = self.engine.next_event() {
            self.handle_engine_event(event, now);
        }
    }

    fn handle_engine_event(&mut self, event: EngineEvent, now: Millis) {
        match event {
            EngineEvent::NativeOpened { socket, id, info } => {
                self.attach_native(socket, &id);
                self.push_event(ConnectionEvent::Opened { socket, id, info });
            }
            EngineEvent::NativeFrame { socket, frame } => {
                self.push_event(ConnectionEvent::Frame { socket, frame });
            }
            EngineEvent::NativeClosed { socket, code, seen } => {
                self.push_event(ConnectionEvent::Closed { socket, code, seen });
            }
            EngineEvent::Opened { session } => self.session_opened(session, now),
            EngineEvent::Upgraded { session } => self.attach(session),
            EngineEvent::Message { session, frame } => self.receive_message(session, frame, now),
            EngineEvent::Closed { session, seen } => self.session_closed(session, seen),
        }
    }

    fn session_opened(&mut self, id: SessionId, now: Millis) {
        let Some(info) = self.engine.connect_info(id) else {
            return;
        };
        let state = (info.protocol == Protocol::SocketIo)
            .then(|| SocketIoSession::new(info, &self.engine.config, now));
        self.add_session(id, state);
        self.schedule_recheck(id, now);
        self.attach(id);
    }

    /// Adds the state of a session. `state` is `None` on bare Engine.IO, which needs no
    /// token.
    pub(super) fn add_session(&mut self, id: SessionId, state: Option<SocketIoSession>) {
        match state {
            Some(state) => {
                self.sessions.insert(id, state);
                self.authentication_changed(id);
                self.schedule(id);
            }
            None => self.engine.set_authentication(id, Authentication::Done),
        }
    }

    fn session_closed(&mut self, id: SessionId, seen: Millis) {
        // Includes the namespaces with a CONNECT that the application has received,
        // because it may already have a client for them.
        let state = self.sessions.remove(id);
        for nsp in state.into_iter().flat_map(SocketIoSession::into_namespaces) {
            self.push_event(ConnectionEvent::Disconnected {
                session: id,
                nsp,
                cause: DisconnectCause::SessionEnded { seen },
            });
        }
    }

    /// Returns the state of a session. Returns `None` if the session is closed, even if
    /// [`EngineEvent::Closed`] was not handled yet.
    pub(super) fn session(&self, id: SessionId) -> Option<&SocketIoSession> {
        self.engine.connect_info(id)?;
        self.sessions.get(id)
    }

    /// As [`SocketIoServer::session`], mutable.
    pub(super) fn session_mut(&mut self, id: SessionId) -> Option<&mut SocketIoSession> {
        self.engine.connect_info(id)?;
        self.sessions.get_mut(id)
    }

    /// Passes the state of the authentication of a session to the engine. Called after
    /// each change of its namespaces and of the CONNECTs that wait.
    pub(super) fn authentication_changed(&mut self, id: SessionId) {
        if let Some(state) = self.sessions.get(id) {
            self.engine.set_authentication(id, state.authentication());
        }
    }

    /// Returns the session with this `sid` if it is connected to the namespace.
    pub fn session_in_namespace(&self, sid: &str, nsp: &str) -> Option<SessionId> {
        let id = self.engine.session_by_sid(sid)?;
        self.session(id)?.is_connected(nsp).then_some(id)
    }

    /// Returns the time at which [`SocketIoServer::advance`] must be called next, for
    /// both layers.
    pub fn deadline(&self) -> Option<Millis> {
        let deadlines = [self.engine.deadline(), self.next_deadline];
        deadlines.into_iter().flatten().min()
    }

    /// Schedules the deadline of a session.
    fn schedule(&mut self, id: SessionId) {
        if let Some(at) = self.sessions.get(id).and_then(SocketIoSession::deadline) {
            sooner(&mut self.next_deadline, at);
        }
    }

    /// Schedules a check of a session after [`RECHECK_DELAY`], for an operation that
    /// begins at `now`.
    pub(super) fn schedule_recheck(&mut self, id: SessionId, now: Millis) {
        sooner(&mut self.next_deadline, now + RECHECK_DELAY);
        self.schedule(id);
    }

    /// Handles the deadlines at `now` in both layers: closes the sessions that have not
    /// connected to a namespace in time, and advances the engine.
    pub fn advance(&mut self, last_seen: LastSeen<'_>, now: Millis) {
        self.handle_engine_events(now);
        self.close_overdue_sessions(now);
        self.engine.advance(last_seen, now);
    }

    fn close_overdue_sessions(&mut self, now: Millis) {
        if self.next_deadline.is_none_or(|at| at > now) {
            return;
        }
        self.next_deadline = None;
        for id in self.sessions.keys().collect::<Vec<_>>() {
            let state = self.session_mut(id);
            if state.is_some_and(|state| state.is_overdue(now)) {
                self.engine.close_session(id, Disconnect::NoHandshake);
            } else {
                self.schedule(id);
            }
        }
    }
}
