//! Engine.IO 4 (<https://socket.io/docs/v4/engine-io-protocol/>): sessions on a
//! WebSocket or on long-polling, the upgrade from one to the other, heartbeats.

mod heartbeat;
mod polling;
mod sleep;

use super::handshake::Error;
use super::{Frame, Hub, Output, PollId, SessionId, SocketId, Up, socketio};
use crate::auth::token::MAX_TOKEN;
use crate::auth::{Identity, Rights};
use crate::eventlog::Entry;
use crate::fault::Fault;
use crate::room::limits::{Bucket, CONNECTS, Reader, network_of};
use crate::time::Millis;
use crate::wire::native::Close;
use engineioxide_core::{Packet, ProtocolVersion};
use polling::UPGRADE_TIMEOUT;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sleep::Record;
use std::rc::Rc;

/// What stands between the packets of a polling payload.
const SEPARATOR: char = '\u{1e}';

/// The longest that the timers of JavaScript hold; clients wait for the
/// interval and the timeout together.
const MAX_TIMER: Millis = i32::MAX as Millis;

/// How often a session is asked for a sign of life while so much is written to
/// it that without one it would be cut.
const ASKED_WITHIN_LIMIT: usize = 4;

/// Most bytes that are kept of a session that has not shown a valid token: of
/// what waits until its token is judged (CONTRACT, Authentication).
pub const UNAUTHENTICATED_BYTES: usize = 4 * 1024;

/// Most bytes of one message or one polling request of such a session: a CONNECT
/// with the longest token, and as much besides as is kept.
const MAX_CONNECT_BYTES: usize = MAX_TOKEN + UNAUTHENTICATED_BYTES;

/// Most packets of one polling request of such a session: its CONNECTs, each with
/// a noop or a pong.
const MAX_CONNECT_PACKETS: usize = 16;

/// Packets that one polling request may have in any case: as many commands as an
/// object handles in one turn of its event loop (CONTRACT, Delivery 5). With a
/// larger `COMMANDS_BURST` it may have as many as that: more would be refused.
const MAX_PACKETS: usize = 1_000;

/// The longest frame that a WebSocket may send before it is a session's
/// transport: `2probe` and `5` are all there is.
const MAX_PROBE: usize = 64;

/// What a refusal calls CONNECTs that were refused before.
const REFUSED: &str = "refused connects from this address";

/// What a socket speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    Native,
    EngineIo,
    SocketIo,
}

/// What is known of somebody who came, from the request that began it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Door {
    pub protocol: Protocol,
    /// Of the token that the request had, if it had one.
    pub identity: Option<Identity>,
    /// What was wrong with it.
    pub fault: Option<Fault>,
    /// Where it comes from, for the limit per address.
    pub address: Option<String>,
    /// Whether a client of this kind can come back to where it was. Others
    /// would hand the offsets of events to their handlers.
    pub recovers: bool,
}

/// What a request is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Answer {
    fn packets(packets: impl IntoIterator<Item = Packet>) -> Self {
        let packets: Vec<String> = packets.into_iter().map(String::from).collect();
        Answer {
            status: 200,
            body: packets.join(&SEPARATOR.to_string()),
        }
    }

    pub fn error(error: Error) -> Self {
        Answer {
            status: 400,
            body: error.json(),
        }
    }

    fn too_large() -> Self {
        Answer {
            status: 413,
            body: json!({ "code": 3, "message": "Payload too large" }).to_string(),
        }
    }
}

/// The answer to a poll, or the promise of one.
#[derive(Debug)]
pub enum Polled {
    Now(Answer),
    Later(PollId),
}

/// How the body of a polling request is to be read.
#[derive(Clone, Copy, Debug)]
pub struct Posting {
    /// Most bytes of it.
    pub limit: usize,
    /// Most milliseconds that it may take.
    pub within: Millis,
}

/// The body of a polling request.
#[derive(Clone, Debug)]
pub enum PostBody {
    Whole(Vec<u8>),
    TooLarge,
    /// It did not come to its end, or not in time.
    Broken,
}

/// A WebSocket.
#[derive(Debug)]
pub(super) struct Sock {
    role: Role,
    reader: Reader,
    /// Of a native socket.
    id: Option<String>,
    /// Of a native socket: the newest valid token that it has shown. See
    /// [`Hub::opens`].
    identity: Option<Rc<Identity>>,
}

/// Where events of rooms are sent to.
#[derive(Clone, Copy, Debug)]
pub enum Receiver<'a> {
    /// A native socket.
    Native(SocketId),
    /// A namespace of a Socket.IO session.
    Namespace(SessionId, &'a str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Native,
    /// The transport of a session.
    Session(SessionId),
    /// Would become it.
    Candidate(SessionId),
}

#[derive(Debug)]
enum Transport {
    Polling {
        get: Option<PollId>,
        waiting: Vec<Packet>,
        bytes: usize,
    },
    Socket(SocketId),
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    socket: SocketId,
    /// Until when it may become the transport.
    until: Millis,
    /// `until` has passed once; see [`Hub::advance`].
    late: bool,
    /// Its client knows that it works, and waits for the last poll to end.
    probed: bool,
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) sid: String,
    pub(super) door: Door,
    transport: Transport,
    /// A WebSocket that would become the transport.
    candidate: Option<Candidate>,
    next_ping: Option<Millis>,
    /// The ping that was not answered yet.
    pinged_at: Option<Millis>,
    heard_at: Millis,
    /// Limits packets that no namespace's own limits count: noops,
    /// acknowledgements, CONNECTs.
    overhead: Bucket,
    /// The body of a polling request is being read.
    posting: bool,
    /// A refusal has been logged: one record per connection.
    pub(super) refusal_logged: bool,
    pub(super) io: socketio::Io,
}

impl Session {
    /// Whether the connection has shown a valid token.
    pub(super) fn is_authenticated(&self) -> bool {
        self.door.identity.is_some() || self.io.is_authenticated()
    }
}

impl Hub {
    /// Returns an error if no more connections may come from this address or
    /// user now. Not asked for sessions that exist already.
    pub fn admit(&mut self, door: &Door, now: Millis) -> Result<(), Fault> {
        let address = door.address.as_deref().map_or(Ok(()), |address| {
            let network = network_of(address);
            let room = &self.config.room;
            if door.identity.is_none() {
                let rate = self.config.gateway.refused_connects;
                self.refused.check(&network, REFUSED, rate, now)?;
            }
            self.doors.admit(&network, CONNECTS, room.connects, now)
        });
        let user = door
            .identity
            .as_ref()
            .map_or(Ok(()), |identity| self.floods.admit(&identity.user, now));
        address.and(user).inspect_err(|fault| {
            self.out.push(Output::Log(
                Entry::reject("rate").with("code", fault.code.as_str()),
            ));
        })
    }

    /// A native socket.
    pub fn open_native(&mut self, door: Door, now: Millis) -> SocketId {
        let socket = self.socket(Role::Native, now);
        let id = self.fresh_id();
        self.name_native(socket, &id);
        if let Some(identity) = &door.identity {
            self.set_identity(Receiver::Native(socket), Rc::new(identity.clone()));
        }
        let record = Record::Native { id: id.clone() };
        self.attach_record(socket, &record);
        self.ups.push_back(Up::Opened { socket, id, door });
        socket
    }

    /// A WebSocket: of a new session, or one that would upgrade `sid`. One for
    /// a session that has been upgraded already is accepted and closed, as the
    /// reference server does; the session goes on.
    pub fn open_socket(
        &mut self,
        door: Door,
        sid: Option<&str>,
        now: Millis,
    ) -> Result<SocketId, Error> {
        let Some(sid) = sid else {
            let socket = self.socket(Role::Native, now);
            let session = self.open_session(door, Transport::Socket(socket), now);
            self.set_role(socket, Role::Session(session));
            let open = self.open_packet(session, false);
            self.send(socket, open);
            self.attach(session);
            return Ok(socket);
        };
        let session = *self.by_sid.get(sid).ok_or(Error::UnknownSid)?;
        let free = self.session(session).is_some_and(|session| {
            session.candidate.is_none() && matches!(session.transport, Transport::Polling { .. })
        });
        let socket = self.socket(Role::Candidate(session), now);
        if !free {
            self.sockets.remove(socket);
            self.out.push(Output::close(socket, Close::Normal));
            return Ok(socket);
        }
        if let Some(session) = self.session_mut(session) {
            session.candidate = Some(Candidate {
                socket,
                until: now + UPGRADE_TIMEOUT,
                late: false,
                probed: false,
            });
        }
        self.begun(session, now);
        Ok(socket)
    }

    fn open_session(&mut self, door: Door, transport: Transport, now: Millis) -> SessionId {
        let sid = format!("{}-{}{}", self.name, self.fresh_id(), self.fresh_id());
        let io = socketio::Io::new(&door, &self.config.gateway, now);
        let session = Session {
            sid: sid.clone(),
            door,
            transport,
            candidate: None,
            next_ping: self.ping_after(now),
            pinged_at: None,
            heard_at: now,
            overhead: Bucket::full(self.config.room.commands, now),
            posting: false,
            refusal_logged: false,
            io,
        };
        let place = self.sessions.insert(session);
        self.by_sid.insert(sid, place);
        self.begun(place, now);
        place
    }

    /// The first packet: exactly what the protocol names. Not the library's, for
    /// its ids are of its own making, and ours name the gateway.
    fn open_packet(&self, session: SessionId, polling: bool) -> String {
        let config = &self.config.gateway;
        let interval = match config.ping_interval {
            0 => MAX_TIMER - config.ping_timeout,
            interval => interval,
        };
        let sid = self.session(session).map_or("", |session| &session.sid);
        let open = json!({
            "sid": sid,
            "upgrades": if polling { &["websocket"][..] } else { &[] },
            "pingInterval": interval,
            "pingTimeout": config.ping_timeout,
            "maxPayload": config.max_payload,
        });
        format!("0{open}")
    }

    /// A frame came in over a WebSocket.
    pub fn frame(&mut self, socket: SocketId, frame: Frame, now: Millis) {
        let Some(sock) = self.sockets.get_mut(socket) else {
            return;
        };
        sock.reader.heard(now);
        match sock.role {
            Role::Native => self.ups.push_back(Up::Frame { socket, frame }),
            Role::Candidate(session) if frame.len() > MAX_PROBE => self.drop_candidate(session),
            Role::Candidate(session) => self.probe(session, socket, frame, now),
            Role::Session(session) => {
                if frame.len() > self.payload_limit_of(session) {
                    return self.end(session, Packet::Noop, Close::TooLarge);
                }
                if self.holds_too_much(session) {
                    return self.end(session, Packet::Noop, Close::TooFast);
                }
                let packet = match frame {
                    Frame::Text(text) => Packet::parse(ProtocolVersion::V4, text).ok(),
                    Frame::Binary(bytes) => Some(Packet::Binary(bytes)),
                };
                match packet {
                    Some(packet) => {
                        self.incoming(session, packet, now);
                    }
                    None => self.end(session, Packet::Noop, Close::Malformed),
                }
            }
        }
    }

    /// Most bytes of one message or request of this session's client.
    fn payload_limit_of(&self, place: SessionId) -> usize {
        match self.session(place) {
            Some(session) if !session.is_authenticated() => {
                MAX_CONNECT_BYTES.min(self.config.gateway.max_payload)
            }
            _ => self.config.gateway.max_payload,
        }
    }

    /// Whether more waits for the judgement of a token than a connection without one
    /// may have, now that it sends more.
    fn holds_too_much(&self, place: SessionId) -> bool {
        self.session(place).is_some_and(|session| {
            !session.is_authenticated() && session.io.waiting_bytes() > UNAUTHENTICATED_BYTES
        })
    }

    /// Counts a packet that no namespace counts. Ends the session and returns
    /// `false` if it has sent too many.
    pub(super) fn count_overhead(&mut self, place: SessionId, now: Millis) -> bool {
        let rate = self.config.room.commands;
        let Some(session) = self.session_mut(place) else {
            return false;
        };
        let within = session.overhead.take(rate, now).is_ok();
        if !within {
            self.end(place, Packet::Close, Close::TooFast);
        }
        within
    }

    /// A packet of a session's client. Returns `false` if the packet is not one
    /// that clients may send.
    fn incoming(&mut self, place: SessionId, packet: Packet, now: Millis) -> bool {
        let Some(session) = self.session_mut(place) else {
            return true;
        };
        session.heard_at = now;
        match packet {
            Packet::Message(text) => self.message(place, Frame::Text(text.to_string()), now),
            Packet::Binary(bytes) => self.message(place, Frame::Binary(bytes), now),
            Packet::Pong => {
                session.pinged_at = None;
                self.count_overhead(place, now);
            }
            Packet::Close => self.end(place, Packet::Noop, Close::Normal),
            Packet::Noop => {
                self.count_overhead(place, now);
            }
            _ => {
                self.end(place, Packet::Close, Close::Malformed);
                return false;
            }
        }
        true
    }

    /// A WebSocket is gone.
    pub fn closed(&mut self, socket: SocketId, code: u16) {
        let Some(sock) = self.sockets.remove(socket) else {
            return;
        };
        match sock.role {
            Role::Native => self.native_gone(socket, sock, code),
            Role::Session(session) => self.end(session, Packet::Noop, Close::Normal),
            Role::Candidate(session) => {
                if let Some(session) = self.session_mut(session) {
                    session.candidate = None;
                }
            }
        }
    }

    /// Closes a native socket.
    pub fn close_socket(&mut self, socket: SocketId, why: Close) {
        if let Some(sock) = self.sockets.remove(socket) {
            self.out.push(Output::close(socket, why));
            self.native_gone(socket, sock, why.code());
        }
    }

    fn name_native(&mut self, socket: SocketId, id: &str) {
        self.natives.insert(id.to_owned(), socket);
        if let Some(sock) = self.sockets.get_mut(socket) {
            sock.id = Some(id.to_owned());
        }
    }

    fn native_gone(&mut self, socket: SocketId, sock: Sock, code: u16) {
        if let Some(id) = &sock.id {
            self.natives.remove(id);
        }
        self.ups.push_back(Up::Closed { socket, code });
    }

    /// Closes a session.
    pub fn close_session(&mut self, place: SessionId, why: Close) {
        self.end(place, Packet::Close, why);
    }

    /// Ends a session; a poll that waits is answered with `last`.
    fn end(&mut self, place: SessionId, last: Packet, why: Close) {
        self.drop_candidate(place);
        self.answer_poll(place, last);
        let Some(session) = self.sessions.remove(place) else {
            return;
        };
        self.by_sid.remove(&session.sid);
        if let Transport::Socket(socket) = session.transport
            && self.sockets.remove(socket).is_some()
        {
            self.out.push(Output::close(socket, why));
        }
        let kind = match why {
            Close::Malformed | Close::TooLarge => Some("malformed"),
            Close::TooFast => Some("rate"),
            _ => None,
        };
        if let Some(kind) = kind.filter(|_| !session.refusal_logged) {
            self.log(Entry::reject(kind).with("code", why.code()));
        }
        // Also the namespaces that it was still connecting to: the application
        // may have a client for them already.
        for nsp in session.io.into_namespaces() {
            self.ups.push_back(Up::Disconnected {
                session: place,
                nsp,
                by_itself: false,
            });
        }
    }

    /// A packet to a session's client.
    pub(super) fn packet(&mut self, place: SessionId, packet: Packet) {
        let limit = self.config.room.max_unacked_bytes;
        let Some(session) = self.session_mut(place) else {
            return;
        };
        match &mut session.transport {
            Transport::Socket(socket) => {
                let socket = *socket;
                self.send_packet(socket, packet);
            }
            Transport::Polling { get: Some(_), .. } => self.answer_poll(place, packet),
            Transport::Polling { waiting, bytes, .. } => {
                *bytes += packet.get_size_hint(true);
                waiting.push(packet);
                if *bytes > limit {
                    self.log(Entry::reject("slow"));
                    self.end(place, Packet::Close, Close::TooSlow);
                }
            }
        }
    }

    fn send_packet(&mut self, socket: SocketId, packet: Packet) {
        let frame = match packet {
            Packet::Binary(bytes) => Frame::Binary(bytes),
            packet => Frame::Text(packet.into()),
        };
        self.out.push(Output::Send { socket, frame });
    }

    /// The same message to many sessions.
    pub(super) fn messages(&mut self, sessions: &[SessionId], message: &str) {
        let mut sockets = Vec::with_capacity(sessions.len());
        for place in sessions {
            match self.session(*place).map(|session| &session.transport) {
                Some(Transport::Socket(socket)) => sockets.push(*socket),
                Some(Transport::Polling { .. }) => {
                    self.packet(*place, Packet::Message(message.to_owned().into()));
                }
                None => {}
            }
        }
        let text = String::from(Packet::Message(message.to_owned().into()));
        self.out.push(Output::Broadcast { sockets, text });
    }

    /// A text to a socket, as it is.
    pub fn send(&mut self, socket: SocketId, text: String) {
        let frame = Frame::Text(text);
        self.out.push(Output::Send { socket, frame });
    }

    /// Something was written to a socket. `true` when so much was written since
    /// its last sign of life that it should be looked at. Well before that, one
    /// of a session is asked for a sign.
    pub fn sent(&mut self, socket: SocketId, bytes: usize) -> bool {
        let limit = self.config.room.max_unacked_bytes;
        let Some(sock) = self.sockets.get_mut(socket) else {
            return false;
        };
        let ask_from = limit / ASKED_WITHIN_LIMIT;
        let asks = sock.reader.unacked() / ask_from != (sock.reader.unacked() + bytes) / ask_from;
        let too_much = sock.reader.sent(bytes, limit);
        if asks && let Role::Session(_) = sock.role {
            self.send_packet(socket, Packet::Ping);
        }
        too_much
    }

    /// A socket that [`Hub::sent`] pointed out: when the runtime last heard it
    /// decides. One that gave no sign since is cut; it can resume.
    pub fn judge_slow(&mut self, socket: SocketId, heard: Option<Millis>, now: Millis) {
        let Some(sock) = self.sockets.get_mut(socket) else {
            return;
        };
        if sock.reader.excuse(heard, now) {
            return;
        }
        let (role, bytes) = (sock.role, sock.reader.unacked());
        self.log(Entry::reject("slow").with("unackedBytes", bytes));
        match role {
            Role::Native => self.close_socket(socket, Close::TooSlow),
            Role::Session(session) => self.close_session(session, Close::TooSlow),
            Role::Candidate(session) => self.drop_candidate(session),
        }
    }

    /// The native socket of this id.
    pub fn native(&self, id: &str) -> Option<SocketId> {
        self.natives.get(id).copied()
    }

    /// The session of this id, if it is connected to the namespace.
    pub fn session_with(&self, sid: &str, nsp: &str) -> Option<SessionId> {
        let place = *self.by_sid.get(sid)?;
        let session = self.session(place)?;
        session
            .io
            .namespaces()
            .any(|one| one == nsp)
            .then_some(place)
    }

    pub fn sid(&self, place: SessionId) -> Option<String> {
        Some(self.session(place)?.sid.clone())
    }

    pub fn door(&self, place: SessionId) -> Option<&Door> {
        Some(&self.session(place)?.door)
    }

    /// Sets the newest valid token of a receiver. For a Socket.IO session whose
    /// request had a token of the same user, it counts from now on in place of
    /// that one, so that a later CONNECT does not return to the older rights.
    pub fn set_identity(&mut self, receiver: Receiver, identity: Rc<Identity>) {
        match receiver {
            Receiver::Native(socket) => {
                if let Some(sock) = self.sockets.get_mut(socket) {
                    sock.identity = Some(identity);
                }
            }
            Receiver::Namespace(place, nsp) => {
                let Some(session) = self.session_mut(place) else {
                    return;
                };
                session.io.set_identity(nsp, identity.clone());
                let shown = session.door.identity.as_mut();
                if let Some(shown) = shown.filter(|shown| shown.user == identity.user) {
                    *shown = Identity::clone(&identity);
                    self.attach(place);
                }
            }
        }
    }

    /// Whether the receiver belongs to `user` and the newest token that it has shown
    /// opens `room`; `None` if there is no such receiver any more. The last check
    /// before an event of the room is sent to it: it asks the transport itself, not
    /// the application's client, so a mistake in the bookkeeping of clients cannot
    /// send events to another user's connection.
    pub fn opens(&self, receiver: Receiver, user: &str, room: &str) -> Option<bool> {
        let identity = match receiver {
            Receiver::Native(socket) => self.sockets.get(socket)?.identity.as_deref(),
            Receiver::Namespace(place, nsp) => self.session(place)?.io.identity(nsp)?,
        };
        Some(identity.is_some_and(|identity| {
            identity.user == user && identity.rights(room).has(Rights::READ)
        }))
    }

    /// Whether nobody is here.
    pub fn is_empty(&self) -> bool {
        self.by_sid.is_empty() && self.natives.is_empty()
    }

    pub fn session_of(&self, sid: &str) -> Option<SessionId> {
        self.by_sid.get(sid).copied()
    }

    /// When a native socket was last heard here.
    pub fn heard_at(&self, socket: SocketId) -> Millis {
        self.sockets
            .get(socket)
            .map_or(0, |sock| sock.reader.heard_at())
    }

    fn socket(&mut self, role: Role, now: Millis) -> SocketId {
        let sock = Sock {
            role,
            reader: Reader::new(now),
            id: None,
            identity: None,
        };
        self.sockets.insert(sock)
    }

    fn set_role(&mut self, socket: SocketId, role: Role) {
        if let Some(sock) = self.sockets.get_mut(socket) {
            sock.role = role;
        }
    }

    pub(super) fn session(&self, place: SessionId) -> Option<&Session> {
        self.sessions.get(place)
    }

    pub(super) fn session_mut(&mut self, place: SessionId) -> Option<&mut Session> {
        self.sessions.get_mut(place)
    }
}
