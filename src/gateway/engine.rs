//! Engine.IO 4 (<https://socket.io/docs/v4/engine-io-protocol/>): sessions on a
//! WebSocket or on long-polling, the upgrade from one to the other, heartbeats.

use super::handshake::Error;
use super::{Frame, Heard, Hub, Output, PollId, SessionId, SocketId, Up, seat, socketio};
use crate::auth::Identity;
use crate::eventlog::Entry;
use crate::fault::Fault;
use crate::room::limits::{CONNECTS, Reader};
use crate::time::{Millis, SECOND, sooner};
use crate::wire::native::Close;
use engineioxide_core::{Packet, ProtocolVersion};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// What stands between the packets of a polling payload.
const SEPARATOR: char = '\u{1e}';

/// The longest that the timers of JavaScript hold; clients wait for the
/// interval and the timeout together.
const MAX_TIMER: Millis = i32::MAX as Millis;

/// How long an upgrade may take, as in Engine.IO's own server.
const UPGRADE_TIMEOUT: Millis = 10 * SECOND;

/// Below this interval each session is pinged when its own time has come (a
/// timer is needed for it anyway); from there on all together, by one alarm.
const PINGS_BY_ALARM_FROM: Millis = 5 * SECOND;

/// How often a session is asked for a sign of life while so much is written to
/// it that without one it would be cut.
const ASKED_WITHIN_LIMIT: usize = 4;

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

/// A WebSocket.
#[derive(Debug)]
pub(super) struct Sock {
    role: Role,
    reader: Reader,
    /// Of a native socket.
    id: Option<String>,
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
    pub(super) io: socketio::Io,
}

/// What a socket carries over hibernation.
#[derive(Serialize, Deserialize)]
enum Record {
    Native {
        id: String,
    },
    Session {
        sid: String,
        door: Box<Door>,
        nsps: Vec<String>,
        /// When the client was heard last, as far as that is known: the runtime
        /// knows of later pongs.
        #[serde(default)]
        heard_at: Option<Millis>,
        /// See [`socketio::Io`].
        #[serde(default)]
        connect_by: Option<Millis>,
    },
}

impl Hub {
    /// Whether one more may come from there; not asked of who is here already.
    pub fn admit(&mut self, door: &Door, now: Millis) -> Result<(), Fault> {
        let address = door.address.as_deref().map_or(Ok(()), |address| {
            let connects = self.config.room.connects;
            self.doors.admit(address, CONNECTS, connects, now)
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
        let record = Record::Native { id: id.clone() };
        self.attach_record(socket, &record);
        self.ups.push_back(Up::Opened { socket, id, door });
        socket
    }

    /// A new session on long-polling.
    pub fn open_polling(&mut self, door: Door, now: Millis) -> Answer {
        let transport = Transport::Polling {
            get: None,
            waiting: Vec::new(),
            bytes: 0,
        };
        let session = self.open_session(door, transport, now);
        Answer {
            status: 200,
            body: self.open_packet(session, true),
        }
    }

    /// A WebSocket: of a new session, or one that would upgrade `sid`.
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
        if !free {
            return Err(Error::BadRequest);
        }
        let socket = self.socket(Role::Candidate(session), now);
        if let Some(session) = self.session_mut(session) {
            session.candidate = Some(Candidate {
                socket,
                until: now + UPGRADE_TIMEOUT,
                probed: false,
            });
        }
        self.expect(session);
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
            io,
        };
        let place = seat(&mut self.sessions, session);
        self.by_sid.insert(sid, place);
        self.expect(place);
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

    /// A request for what waits.
    pub fn poll(&mut self, sid: &str, now: Millis) -> Polled {
        let Some(place) = self.by_sid.get(sid).copied() else {
            return Polled::Now(Answer::error(Error::UnknownSid));
        };
        self.last_poll += 1;
        let poll = self.last_poll;
        let Some(session) = self.session_mut(place) else {
            return Polled::Now(Answer::error(Error::UnknownSid));
        };
        session.heard_at = now;
        let upgrades = session.candidate.is_some_and(|candidate| candidate.probed);
        match &mut session.transport {
            Transport::Socket(_) => Polled::Now(Answer::error(Error::BadRequest)),
            Transport::Polling { get: Some(_), .. } => {
                self.end(place, Packet::Close, Close::Malformed);
                Polled::Now(Answer::error(Error::BadRequest))
            }
            Transport::Polling {
                get,
                waiting,
                bytes,
            } => {
                if waiting.is_empty() && upgrades {
                    // It would hold the upgrade up.
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

    /// Packets by request.
    pub fn post(&mut self, sid: &str, body: &[u8], now: Millis) -> Answer {
        let Some(place) = self.by_sid.get(sid).copied() else {
            return Answer::error(Error::UnknownSid);
        };
        let max = self.config.gateway.max_payload;
        let Some(session) = self.session_mut(place) else {
            return Answer::error(Error::UnknownSid);
        };
        if matches!(session.transport, Transport::Socket(_)) {
            return Answer::error(Error::BadRequest);
        }
        session.heard_at = now;
        if body.len() > max {
            self.end(place, Packet::Close, Close::TooLarge);
            return Answer::too_large();
        }
        let packets: Option<Vec<Packet>> = std::str::from_utf8(body).ok().and_then(|body| {
            body.split(SEPARATOR)
                .map(|packet| Packet::parse(ProtocolVersion::V4, packet.to_owned()).ok())
                .collect()
        });
        let Some(packets) = packets else {
            self.end(place, Packet::Close, Close::Malformed);
            return Answer::error(Error::BadRequest);
        };
        for packet in packets {
            if !self.incoming(place, packet, now) {
                return Answer::error(Error::BadRequest);
            }
        }
        Answer {
            status: 200,
            body: "ok".into(),
        }
    }

    /// A request that waited was given up by its client.
    pub fn cancelled(&mut self, poll: PollId) {
        let place = self.sessions.iter().position(|session| {
            session.as_ref().is_some_and(|session| {
                matches!(session.transport, Transport::Polling { get: Some(get), .. } if get == poll)
            })
        });
        if let Some(place) = place {
            self.end(place, Packet::Close, Close::Malformed);
        }
    }

    /// A frame came in over a WebSocket.
    pub fn frame(&mut self, socket: SocketId, frame: Frame, now: Millis) {
        let Some(Some(sock)) = self.sockets.get_mut(socket) else {
            return;
        };
        sock.reader.heard(now);
        match sock.role {
            Role::Native => self.ups.push_back(Up::Frame { socket, frame }),
            Role::Candidate(session) => self.probe(session, socket, frame, now),
            Role::Session(session) => {
                let (length, packet) = match frame {
                    Frame::Text(text) => {
                        let length = text.len();
                        (length, Packet::parse(ProtocolVersion::V4, text).ok())
                    }
                    Frame::Binary(bytes) => (bytes.len(), Some(Packet::Binary(bytes))),
                };
                if length > self.config.gateway.max_payload {
                    return self.end(session, Packet::Noop, Close::TooLarge);
                }
                match packet {
                    Some(packet) => {
                        self.incoming(session, packet, now);
                    }
                    None => self.end(session, Packet::Noop, Close::Malformed),
                }
            }
        }
    }

    /// A packet of a session's client. Whether it is one that it may send.
    fn incoming(&mut self, place: SessionId, packet: Packet, now: Millis) -> bool {
        let Some(session) = self.session_mut(place) else {
            return true;
        };
        session.heard_at = now;
        match packet {
            Packet::Message(text) => self.message(place, Frame::Text(text.to_string()), now),
            Packet::Binary(bytes) => self.message(place, Frame::Binary(bytes), now),
            Packet::Pong => session.pinged_at = None,
            Packet::Close => self.end(place, Packet::Noop, Close::Normal),
            Packet::Noop => {}
            _ => {
                self.end(place, Packet::Close, Close::Malformed);
                return false;
            }
        }
        true
    }

    /// A frame of a WebSocket that would become a session's transport.
    fn probe(&mut self, place: SessionId, socket: SocketId, frame: Frame, now: Millis) {
        let packet = match frame {
            Frame::Text(text) => Packet::parse(ProtocolVersion::V4, text).ok(),
            Frame::Binary(_) => None,
        };
        match packet {
            Some(Packet::PingUpgrade) => {
                self.send_packet(socket, Packet::PongUpgrade);
                let session = self.session_mut(place);
                if let Some(candidate) = session.and_then(|session| session.candidate.as_mut()) {
                    candidate.probed = true;
                }
                // As those do that come from here on: see `poll`.
                self.answer_poll(place, Packet::Noop);
            }
            Some(Packet::Upgrade) => {
                self.answer_poll(place, Packet::Noop);
                let Some(session) = self.session_mut(place) else {
                    return;
                };
                session.candidate = None;
                session.heard_at = now;
                let before = std::mem::replace(&mut session.transport, Transport::Socket(socket));
                self.set_role(socket, Role::Session(place));
                self.attach(place);
                if let Transport::Polling { waiting, .. } = before {
                    for packet in waiting {
                        self.packet(place, packet);
                    }
                }
            }
            _ => {
                self.drop_candidate(place);
            }
        }
    }

    fn drop_candidate(&mut self, place: SessionId) {
        let candidate = self
            .session_mut(place)
            .and_then(|session| session.candidate.take());
        if let Some(Candidate { socket, .. }) = candidate {
            self.sockets[socket] = None;
            self.out.push(Output::close(socket, Close::Malformed));
        }
    }

    /// A WebSocket is gone.
    pub fn closed(&mut self, socket: SocketId, code: u16) {
        let Some(sock) = self.sockets.get_mut(socket).and_then(Option::take) else {
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
        if let Some(sock) = self.sockets.get_mut(socket).and_then(Option::take) {
            self.out.push(Output::close(socket, why));
            self.native_gone(socket, sock, why.code());
        }
    }

    fn name_native(&mut self, socket: SocketId, id: &str) {
        self.natives.insert(id.to_owned(), socket);
        if let Some(Some(sock)) = self.sockets.get_mut(socket) {
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
        let Some(session) = self.sessions.get_mut(place).and_then(Option::take) else {
            return;
        };
        self.by_sid.remove(&session.sid);
        if let Transport::Socket(socket) = session.transport
            && self
                .sockets
                .get_mut(socket)
                .and_then(Option::take)
                .is_some()
        {
            self.out.push(Output::close(socket, why));
        }
        if matches!(why, Close::Malformed | Close::TooLarge) {
            self.log(Entry::reject("malformed").with("code", why.code()));
        }
        for nsp in session.io.into_namespaces() {
            self.ups.push_back(Up::Disconnected {
                session: place,
                nsp,
                by_itself: false,
            });
        }
    }

    fn answer_poll(&mut self, place: SessionId, packet: Packet) {
        if let Some(session) = self.session_mut(place)
            && let Transport::Polling { get, .. } = &mut session.transport
            && let Some(poll) = get.take()
        {
            let answer = Answer::packets([packet]);
            self.out.push(Output::Answer { poll, answer });
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
        let Some(Some(sock)) = self.sockets.get_mut(socket) else {
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
        let Some(Some(sock)) = self.sockets.get_mut(socket) else {
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

    /// When a session that begins or was pinged now is to be pinged.
    fn ping_after(&self, now: Millis) -> Option<Millis> {
        match self.config.gateway.ping_interval {
            0 => None,
            interval if interval < PINGS_BY_ALARM_FROM => Some(now + interval),
            interval => Some((now / interval + 1) * interval),
        }
    }

    /// Whether pings are so seldom that the gateway may sleep between them.
    pub fn pings_by_alarm(&self) -> bool {
        let interval = self.config.gateway.ping_interval;
        interval == 0 || interval >= PINGS_BY_ALARM_FROM
    }

    /// Nothing is due before this.
    pub(super) fn deadline(&self) -> Option<Millis> {
        self.due
    }

    /// When something of a session is due.
    fn due_of(&self, session: &Session) -> Option<Millis> {
        let pong = session.pinged_at.filter(|_| !self.pings_by_alarm());
        [
            session.next_ping,
            pong.map(|at| at + self.config.gateway.ping_timeout),
            session.candidate.map(|candidate| candidate.until),
            session.io.deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Something of a session is due that was not.
    pub(super) fn expect(&mut self, place: SessionId) {
        let due = self.session(place).and_then(|session| self.due_of(session));
        if let Some(at) = due {
            sooner(&mut self.due, at);
        }
    }

    /// Pings what is to be pinged, closes what did not answer.
    pub(super) fn advance(&mut self, heard: Heard, now: Millis) {
        if self.due.is_none_or(|at| at > now) {
            return;
        }
        for place in 0..self.sessions.len() {
            let Some(session) = self.session_mut(place) else {
                continue;
            };
            let late = session.candidate.filter(|candidate| candidate.until <= now);
            if late.is_some() {
                self.drop_candidate(place);
            }
            if self.overdue(place, now) {
                self.end(place, Packet::Close, Close::NoHandshake);
                continue;
            }
            if self.is_silent(place, heard, now) {
                self.end(place, Packet::Close, Close::Ghost);
                continue;
            }
            let Some(session) = self.session_mut(place) else {
                continue;
            };
            if session.next_ping.is_some_and(|at| at <= now) {
                session.pinged_at.get_or_insert(now);
                self.packet(place, Packet::Ping);
                let next = self.ping_after(now);
                if let Some(session) = self.session_mut(place) {
                    session.next_ping = next;
                }
            }
        }
        let open = self.sessions.iter().flatten();
        self.due = open.filter_map(|session| self.due_of(session)).min();
    }

    /// Whether a session that was pinged has not answered.
    fn is_silent(&mut self, place: SessionId, heard: Heard, now: Millis) -> bool {
        let by_alarm = self.pings_by_alarm();
        let config = self.config.clone();
        let Some(session) = self.session_mut(place) else {
            return false;
        };
        if let Transport::Socket(socket) = session.transport {
            session.heard_at = session.heard_at.max(heard(socket).unwrap_or(0));
        }
        if by_alarm {
            // Which pings were answered is forgotten in between. What the runtime
            // heard by itself it has been seen to tell late: one may go by.
            let is_due = session.next_ping.is_some_and(|at| at <= now);
            return is_due && session.heard_at + 2 * config.gateway.ping_interval < now;
        }
        let late = |pinged: &Millis| pinged + config.gateway.ping_timeout <= now;
        match session.pinged_at.filter(late) {
            Some(pinged) if session.heard_at < pinged => true,
            Some(_) => {
                session.pinged_at = None;
                false
            }
            None => false,
        }
    }

    /// The alarm has woken the gateway, at its time or later: it was set for the
    /// pings, mostly, so they are due whatever the clock says by now. One ping
    /// too many does no harm, one too few ends connections.
    pub fn woken_by_alarm(&mut self, now: Millis) {
        if !self.pings_by_alarm() || self.config.gateway.ping_interval == 0 {
            return;
        }
        for session in self.sessions.iter_mut().flatten() {
            session.next_ping = Some(now);
            self.due = Some(now);
        }
    }

    /// After hibernation: a socket that is still there, with what it carries.
    /// `None` where that is nothing of ours.
    pub fn recall(&mut self, record: &str, now: Millis) -> Option<SocketId> {
        let record: Record = serde_json::from_str(record).ok()?;
        let socket = self.socket(Role::Native, 0);
        let (sid, door, nsps, heard_at, connect_by) = match record {
            Record::Native { id } => {
                self.name_native(socket, &id);
                return Some(socket);
            }
            Record::Session {
                sid,
                door,
                nsps,
                heard_at,
                connect_by,
            } => (sid, door, nsps, heard_at, connect_by),
        };
        let io = socketio::Io::recall(nsps, connect_by, &door, &self.config.gateway, now);
        let session = Session {
            sid: sid.clone(),
            door: *door,
            transport: Transport::Socket(socket),
            candidate: None,
            next_ping: self.ping_after(now),
            pinged_at: None,
            // Of a build that did not say it is not known.
            heard_at: heard_at.unwrap_or(now),
            io,
        };
        let place = seat(&mut self.sessions, session);
        self.by_sid.insert(sid, place);
        self.expect(place);
        self.set_role(socket, Role::Session(place));
        Some(socket)
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

    /// Whether nobody is here.
    pub fn is_empty(&self) -> bool {
        self.by_sid.is_empty() && self.natives.is_empty()
    }

    pub fn session_of(&self, sid: &str) -> Option<SessionId> {
        self.by_sid.get(sid).copied()
    }

    /// Closes native sockets that the application does not know.
    pub fn close_strangers(&mut self, known: impl Fn(SocketId) -> bool) {
        let strangers: Vec<SocketId> = self.natives.values().copied().collect();
        for socket in strangers.into_iter().filter(|socket| !known(*socket)) {
            self.close_socket(socket, Close::Failed);
        }
    }

    /// When a native socket was last heard here.
    pub fn heard_at(&self, socket: SocketId) -> Millis {
        self.sockets
            .get(socket)
            .and_then(Option::as_ref)
            .map_or(0, |sock| sock.reader.heard_at())
    }

    /// What must be known of a session after hibernation has changed.
    pub(super) fn attach(&mut self, place: SessionId) {
        let Some(session) = self.session(place) else {
            return;
        };
        let Transport::Socket(socket) = session.transport else {
            return;
        };
        let record = Record::Session {
            sid: session.sid.clone(),
            door: Box::new(session.door.clone()),
            nsps: session.io.namespaces().map(str::to_owned).collect(),
            heard_at: Some(session.heard_at),
            connect_by: session.io.connect_by,
        };
        self.attach_record(socket, &record);
    }

    fn attach_record(&mut self, socket: SocketId, record: &Record) {
        // Strings and numbers alone, so it is JSON.
        let record = serde_json::to_string(record).unwrap_or_default();
        self.out.push(Output::Attach { socket, record });
    }

    fn socket(&mut self, role: Role, now: Millis) -> SocketId {
        let sock = Sock {
            role,
            reader: Reader::new(now),
            id: None,
        };
        seat(&mut self.sockets, sock)
    }

    fn set_role(&mut self, socket: SocketId, role: Role) {
        if let Some(Some(sock)) = self.sockets.get_mut(socket) {
            sock.role = role;
        }
    }

    pub(super) fn session(&self, place: SessionId) -> Option<&Session> {
        self.sessions.get(place)?.as_ref()
    }

    pub(super) fn session_mut(&mut self, place: SessionId) -> Option<&mut Session> {
        self.sessions.get_mut(place)?.as_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::gateway::Output;
    use std::rc::Rc;

    fn hub() -> Hub {
        let vars = |name: &str| (name == "JWT_SECRET").then(|| "s".repeat(32));
        let config = Config::read(vars).expect("settings");
        Hub::new("0".into(), Rc::new(config), || "id".into())
    }

    fn pings(hub: &mut Hub) -> usize {
        let is_ping = |output: &Output| match output {
            Output::Send {
                frame: Frame::Text(text),
                ..
            } => text == "2",
            _ => false,
        };
        std::mem::take(&mut hub.out)
            .iter()
            .filter(|output| is_ping(output))
            .count()
    }

    const NOW: Millis = 1_800_000_000_000;

    fn door() -> Door {
        Door {
            protocol: Protocol::SocketIo,
            identity: None,
            fault: None,
            address: None,
            recovers: false,
        }
    }

    /// What the socket of a session carries that was opened at [`NOW`], and when
    /// the gateway is to be woken; in a namespace, or in none yet.
    fn carried(introduced: bool) -> (String, Millis) {
        let mut awake = hub();
        awake.open_socket(door(), None, NOW).expect("a socket");
        if introduced {
            awake.accept(0, "/", "{}".to_owned());
        }
        let due = awake.deadline().expect("a ping");
        let record = awake.out.into_iter().rev().find_map(|output| match output {
            Output::Attach { record, .. } => Some(record),
            _ => None,
        });
        (record.expect("what it carries"), due)
    }

    /// Sleeps but for its alarms, of a session whose pongs the runtime hears as
    /// `heard` says, by the time: when and by which code the socket is closed.
    fn closed(introduced: bool, heard: fn(Millis) -> Option<Millis>) -> Option<(Millis, u16)> {
        let (record, mut due) = carried(introduced);
        while due < NOW + 300 * SECOND {
            let mut woken = hub();
            woken.recall(&record, due).expect("its socket");
            woken.woken_by_alarm(due);
            woken.advance(&|_| heard(due), due);
            let code = woken.out.iter().find_map(|output| match output {
                Output::Close { code, .. } => Some(*code),
                _ => None,
            });
            if let Some(code) = code {
                return Some((due - NOW, code));
            }
            due = woken.deadline().expect("the next ping");
        }
        None
    }

    #[test]
    fn a_sleeping_gateway_pings_however_late_its_alarm_rings() {
        let (record, due) = carried(false);
        for late in [0, 3, 15_000] {
            let mut woken = hub();
            woken.recall(&record, due + late).expect("its socket");
            woken.woken_by_alarm(due + late);
            woken.advance(&|_| None, due + late);
            assert_eq!(pings(&mut woken), 1, "{late} ms late");
            woken.advance(&|_| None, due + late);
            assert_eq!(pings(&mut woken), 0, "once");
            assert!(woken.deadline().is_some_and(|next| next > due + late));
        }
    }

    #[test]
    fn a_sleeping_gateway_closes_who_does_not_say_who_it_is() {
        assert_eq!(closed(false, Some), Some((45 * SECOND, 4408)));
    }

    #[test]
    fn a_sleeping_gateway_closes_who_answers_no_pings() {
        assert_eq!(closed(true, |_| None), Some((75 * SECOND, 4408)));
        // It answered the first two, some milliseconds after each.
        let twice = |at: Millis| {
            let pong = |n: Millis| Some(NOW + n * 25 * SECOND + 5).filter(|pong| *pong <= at);
            pong(2).or(pong(1))
        };
        assert_eq!(closed(true, twice), Some((125 * SECOND, 4408)));
        assert_eq!(closed(true, Some), None, "who answers stays");
    }

    #[test]
    fn a_poll_that_comes_after_the_probe_is_let_go_at_once() {
        let mut hub = hub();
        hub.open_polling(door(), NOW);
        let sid = hub.sid(0).expect("a session");
        let socket = hub.open_socket(door(), Some(&sid), NOW).expect("a socket");
        assert!(
            matches!(hub.poll(&sid, NOW), Polled::Later(_)),
            "not probed"
        );
        hub.frame(socket, Frame::Text("2probe".to_owned()), NOW);
        for _ in 0..2 {
            let Polled::Now(answer) = hub.poll(&sid, NOW) else {
                panic!("it would hold the upgrade up");
            };
            assert_eq!((answer.status, answer.body.as_str()), (200, "6"));
        }
        hub.frame(socket, Frame::Text("5".to_owned()), NOW);
        let Polled::Now(answer) = hub.poll(&sid, NOW) else {
            panic!("it is a WebSocket now");
        };
        assert_eq!(answer.status, 400);
    }
}
