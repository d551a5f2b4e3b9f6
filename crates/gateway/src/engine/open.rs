//! Opens sockets and sessions.

use super::event::EngineEvent;
use super::polling::UPGRADE_TIMEOUT;
use super::server::EngineServer;
use super::sessions::{Authentication, Candidate, Session, Transport};
use super::sockets::Role;
use crate::connect_info::ConnectInfo;
use crate::handshake::{self, Error as HandshakeError};
use crate::ids::{SessionId, SocketId};
use crate::output::Output;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::error::Error;
use roomcast_proto::limits::TokenBucket;
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::time::Millis;
use std::rc::Rc;

impl EngineServer {
    /// Counts a new connection of this address and user. Returns an error if the address
    /// has too many connections per minute, or if the user is banned. Not called for an
    /// upgrade of an existing session.
    pub fn admit(&mut self, info: &ConnectInfo, now: Millis) -> Result<(), Error> {
        let admitted = self.admission.admit(info, &self.config, now);
        admitted.inspect_err(|error| {
            self.log(LogRecord::rejected(error));
        })
    }

    /// Opens a native socket.
    pub fn open_native(&mut self, info: ConnectInfo, now: Millis) -> SocketId {
        let socket = self.sockets.insert(Role::Native, now);
        let id = self.new_id();
        self.sockets.set_native_id(socket, &id);
        if let Some(identity) = &info.identity {
            self.set_socket_identity(socket, Rc::new(identity.clone()));
        }
        let info = Box::new(info);
        self.push_event(EngineEvent::NativeOpened { socket, id, info });
        socket
    }

    /// Opens a WebSocket of Engine.IO, for a new session or for an upgrade of the session
    /// with this `sid`. Returns an error if there is no such session.
    ///
    /// If the session is not on long-polling or is being upgraded, the WebSocket is
    /// accepted and closed immediately, as in the reference server. The session
    /// continues.
    pub fn open_socket(
        &mut self,
        info: ConnectInfo,
        sid: Option<&str>,
        now: Millis,
    ) -> Result<SocketId, HandshakeError> {
        match sid {
            None => Ok(self.open_socket_session(info, now)),
            Some(sid) => {
                let id = self
                    .sessions
                    .by_sid(sid)
                    .ok_or(HandshakeError::UnknownSid)?;
                Ok(self.open_candidate(id, now))
            }
        }
    }

    fn open_socket_session(&mut self, info: ConnectInfo, now: Millis) -> SocketId {
        let socket = self.sockets.insert(Role::Native, now);
        let id = self.open_session(info, Transport::Socket(socket), now);
        self.sockets.set_role(socket, Role::Session(id));
        let open = self.open_packet(id, &[]);
        self.send(socket, open);
        socket
    }

    fn open_candidate(&mut self, id: SessionId, now: Millis) -> SocketId {
        let socket = self.sockets.insert(Role::Candidate(id), now);
        let session = self.sessions.get_mut(id).filter(|session| {
            session.candidate.is_none() && matches!(session.transport, Transport::Polling { .. })
        });
        let Some(session) = session else {
            self.sockets.remove(socket);
            self.push(Output::close(socket, Disconnect::Normal));
            return socket;
        };
        session.candidate = Some(Candidate {
            socket,
            deadline: now + UPGRADE_TIMEOUT,
            extended: false,
            probed: false,
        });
        self.schedule_recheck(id, now);
        socket
    }

    pub(super) fn open_session(
        &mut self,
        info: ConnectInfo,
        transport: Transport,
        now: Millis,
    ) -> SessionId {
        let id = self.add_session(self.new_sid(), info, transport, now);
        self.schedule(id);
        self.push_event(EngineEvent::Opened { session: id });
        id
    }

    fn add_session(
        &mut self,
        sid: String,
        info: ConnectInfo,
        transport: Transport,
        now: Millis,
    ) -> SessionId {
        let session = Session {
            sid,
            info,
            transport,
            candidate: None,
            next_ping: self.ping_after(now),
            pinged_at: None,
            last_activity: now,
            overhead: TokenBucket::full(self.config.limits.commands, now),
            is_posting: false,
            refusal_logged: false,
            authentication: Authentication::Pending { held_bytes: 0 },
        };
        self.sessions.insert(session)
    }

    /// Restores a native socket that is still open after hibernation.
    pub(crate) fn restore_native(&mut self, id: &str) -> SocketId {
        // The time of its last frame is not known.
        let socket = self.sockets.insert(Role::Native, 0);
        self.sockets.set_native_id(socket, id);
        socket
    }

    /// Restores a session whose socket is still open after hibernation. `last_activity`
    /// is the time of its last packet.
    pub(crate) fn restore_session(
        &mut self,
        sid: String,
        info: ConnectInfo,
        last_activity: Option<Millis>,
        now: Millis,
    ) -> (SocketId, SessionId) {
        // The time of its last frame is not known.
        let socket = self.sockets.insert(Role::Native, 0);
        let id = self.add_session(sid, info, Transport::Socket(socket), now);
        self.sockets.set_role(socket, Role::Session(id));
        if let Some(at) = last_activity
            && let Some(session) = self.sessions.get_mut(id)
        {
            session.last_activity = at;
        }
        self.schedule(id);
        (socket, id)
    }

    /// Returns the first packet of a session. `upgrades` are the transports to which the client
    /// can change.
    pub(super) fn open_packet(&self, id: SessionId, upgrades: &[&str]) -> String {
        let sid = self.sessions.get(id).map_or("", |session| &session.sid);
        handshake::open_packet(sid, upgrades, &self.config)
    }
}
