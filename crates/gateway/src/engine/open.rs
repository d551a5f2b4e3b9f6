//! Opens sockets and sessions.

use super::polling::UPGRADE_TIMEOUT;
use super::sessions::Candidate;
use super::{EngineServer, Receiver, Role, Session, Transport};
use crate::event::EngineEvent;
use crate::handshake::Error as HandshakeError;
use crate::ids::{SessionId, SocketId};
use crate::output::Output;
use crate::socketio::SocketIoSession;
use roomcast_proto::access::Identity;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::error::Error;
use roomcast_proto::limits::TokenBucket;
use roomcast_proto::time::Millis;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::rc::Rc;

/// The longest time in milliseconds that the timers of JavaScript can hold. Clients set
/// a timer to the sum of ping interval and ping timeout.
const MAX_TIMER: Millis = i32::MAX as Millis;

/// The protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// The native framing on a WebSocket.
    Native,
    /// Engine.IO without Socket.IO; for the conformance build.
    EngineIo,
    /// Socket.IO on Engine.IO.
    SocketIo,
}

/// The properties of a connection, from the request that opened it. Sockets carry them
/// over hibernation, so the names of the fields in JSON do not change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConnectInfo {
    /// The protocol.
    pub protocol: Protocol,
    /// The identity of the token of the request, if there was a valid one.
    pub identity: Option<Identity>,
    /// The error of the token of the request, if there was an invalid one.
    #[serde(rename = "fault")]
    pub error: Option<Error>,
    /// The IP address of the client, for the limits per address.
    pub address: Option<String>,
    /// The client supports connection state recovery. Other clients would pass the
    /// offsets of events to their handlers.
    pub recovers: bool,
}

impl EngineServer {
    /// Opens a native socket.
    pub fn open_native(&mut self, info: ConnectInfo, now: Millis) -> SocketId {
        let socket = self.sockets.insert(Role::Native, now);
        let id = self.new_id();
        self.sockets.set_native_id(socket, &id);
        if let Some(identity) = &info.identity {
            self.set_identity(Receiver::Native(socket), Rc::new(identity.clone()));
        }
        self.attach_native(socket, &id);
        self.push_event(EngineEvent::Opened { socket, id, info });
        socket
    }

    /// Opens a WebSocket of Engine.IO: of a new session, or to upgrade the session with
    /// this `sid`. Returns an error if there is no such session.
    ///
    /// A WebSocket for a session that is not on long-polling, or is being upgraded, is
    /// accepted and closed at once, as by the reference server. The session goes on.
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
        let open = self.open_packet(id, false);
        self.send(socket, open);
        self.attach(id);
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
        let sid = format!("{}-{}{}", self.name, self.new_id(), self.new_id());
        let socketio = SocketIoSession::new(&info, &self.config, now);
        let id = self.add_session(sid, info, transport, socketio, now);
        self.schedule_recheck(id, now);
        id
    }

    pub(super) fn add_session(
        &mut self,
        sid: String,
        info: ConnectInfo,
        transport: Transport,
        socketio: SocketIoSession,
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
            socketio,
        };
        self.sessions.insert(session)
    }

    /// Returns the first packet of a session, with exactly the fields of the protocol.
    /// The library makes its own ids; ours begin with the name of the gateway.
    pub(super) fn open_packet(&self, id: SessionId, polling: bool) -> String {
        let config = &self.config;
        let interval = match config.ping_interval {
            0 => MAX_TIMER - config.ping_timeout,
            interval => interval,
        };
        let sid = self.sessions.get(id).map_or("", |session| &session.sid);
        let open = json!({
            "sid": sid,
            "upgrades": if polling { &["websocket"][..] } else { &[] },
            "pingInterval": interval,
            "pingTimeout": config.ping_timeout,
            "maxPayload": config.max_payload,
        });
        format!("0{open}")
    }
}
