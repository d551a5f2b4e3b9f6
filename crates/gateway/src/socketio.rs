//! Socket.IO 5 (<https://socket.io/docs/v4/socket-io-protocol/>): namespaces, events
//! and acknowledgements on an Engine.IO session.
//!
//! - A message of a session is decoded to a packet. An event or acknowledgement with
//!   attachments is complete when all its attachments have arrived.
//! - A CONNECT becomes an [`EngineEvent::Connect`]. The application answers by
//!   [`EngineServer::accept`] or [`EngineServer::refuse`].
//! - An event becomes an [`EngineEvent::Event`] with the id of the acknowledgement that
//!   the client wants. The application answers by [`EngineServer::acknowledge`].

use crate::config::GatewayConfig;
use crate::engine::{ConnectInfo, EngineServer, Protocol, TIMEOUT_EXTENSION};
use crate::event::EngineEvent;
use crate::ids::SessionId;
use crate::output::Frame;
use bytes::Bytes;
use engineioxide_core::Packet as EnginePacket;
use roomcast_proto::access::Identity;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::event_name;
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::raw_object::RawObject;
use roomcast_proto::time::{Millis, SECOND};
use serde::de::{Error, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::json;
use serde_json::value::RawValue;
use socketioxide_core::Value;
use socketioxide_core::packet::{Packet, PacketData};
use socketioxide_core::parser::{Parse, ParseConfig, ParserState};
use socketioxide_parser_common::CommonParser;
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;

/// Time within which the attachments of a packet have to arrive.
const ATTACHMENT_TIMEOUT: Millis = 10 * SECOND;

/// Maximum number of attachments of a packet.
const MAX_ATTACHMENTS: usize = 256;

/// Maximum number of CONNECTs of a connection without a valid token (CONTRACT,
/// Authentication).
const MAX_CONNECTS: u32 = 5;

/// Time within which a connection has to show a valid token (CONTRACT, Authentication).
const UNAUTHENTICATED_TIMEOUT: Millis = 10 * SECOND;

/// The Socket.IO state of a session.
#[derive(Debug)]
pub(crate) struct SocketIoSession {
    /// `false` on bare Engine.IO, whose messages are not packets of Socket.IO.
    enabled: bool,
    namespaces: Vec<Namespace>,
    /// The CONNECTs that were not answered yet, in the order of their arrival.
    connecting: Vec<PendingConnect>,
    /// Number of CONNECTs without a valid token.
    connects: u32,
    /// The time by which the client has to be in a namespace. `None` once it was in
    /// one.
    pub(crate) connect_by: Option<Millis>,
    /// The deadline was extended; see [`SocketIoSession::is_overdue`].
    extended: bool,
    /// A packet whose attachments have not all arrived.
    partial: Option<PartialPacket>,
}

/// A namespace that the client is connected to.
#[derive(Debug)]
struct Namespace {
    name: String,
    /// The newest valid token that the client has shown for it. See
    /// [`EngineServer::opens`].
    identity: Option<Rc<Identity>>,
}

/// A CONNECT that was not answered yet.
#[derive(Debug)]
struct PendingConnect {
    nsp: String,
    /// Unique: a client may give up a CONNECT and send another one for the same
    /// namespace.
    number: u64,
    /// `None` once the application was given the CONNECT.
    auth: Option<String>,
    /// Size of the CONNECT.
    bytes: usize,
}

/// A packet whose attachments have not all arrived.
#[derive(Debug)]
struct PartialPacket {
    packet: Packet,
    /// Number of attachments that have not arrived.
    missing: usize,
    /// The contents are empty if the application does not read them.
    attachments: Vec<Bytes>,
    /// Size of the attachments so far.
    bytes: usize,
    deadline: Millis,
}

impl SocketIoSession {
    pub(crate) fn new(info: &ConnectInfo, config: &GatewayConfig, now: Millis) -> Self {
        let enabled = info.protocol == Protocol::SocketIo;
        let timeout = match info.identity {
            Some(_) => config.connect_timeout,
            None => config.connect_timeout.min(UNAUTHENTICATED_TIMEOUT),
        };
        SocketIoSession {
            enabled,
            namespaces: Vec::new(),
            connecting: Vec::new(),
            connects: 0,
            connect_by: enabled.then_some(now + timeout),
            extended: false,
            partial: None,
        }
    }

    /// Returns the state after hibernation. The identities of the namespaces are set
    /// later, by [`EngineServer::set_identity`].
    pub(crate) fn restore(
        namespaces: Vec<String>,
        connect_by: Option<Millis>,
        info: &ConnectInfo,
        config: &GatewayConfig,
        now: Millis,
    ) -> Self {
        let namespaces = namespaces.into_iter().map(|name| Namespace {
            name,
            identity: None,
        });
        let namespaces: Vec<Namespace> = namespaces.collect();
        SocketIoSession {
            connect_by: connect_by.filter(|_| namespaces.is_empty()),
            namespaces,
            ..SocketIoSession::new(info, config, now)
        }
    }

    pub(crate) fn deadline(&self) -> Option<Millis> {
        let partial = self.partial.as_ref().map(|partial| partial.deadline);
        [self.connect_by, partial].into_iter().flatten().min()
    }

    /// Returns `true` if the client has missed a deadline. A deadline that passes is
    /// extended once, by [`TIMEOUT_EXTENSION`].
    pub(crate) fn is_overdue(&mut self, now: Millis) -> bool {
        if self.deadline().is_none_or(|at| at > now) {
            return false;
        }
        if self.extended {
            return true;
        }
        self.extended = true;
        let partial = self.partial.as_mut().map(|partial| &mut partial.deadline);
        for at in [self.connect_by.as_mut(), partial].into_iter().flatten() {
            *at = (*at).max(now + TIMEOUT_EXTENSION);
        }
        false
    }

    /// Returns `true` if the client has shown a valid token, which it needs for a
    /// namespace. Bare Engine.IO needs none.
    pub(crate) fn is_authenticated(&self) -> bool {
        !self.enabled || !self.namespaces.is_empty()
    }

    /// Returns the names of the namespaces that the client is connected to.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.namespaces
            .iter()
            .map(|namespace| namespace.name.as_str())
    }

    /// Returns `true` if the client is connected to the namespace.
    pub(crate) fn is_connected(&self, nsp: &str) -> bool {
        self.namespaces().any(|name| name == nsp)
    }

    /// Returns the newest valid token of a namespace. Returns `None` if the client is
    /// not connected to the namespace.
    pub(crate) fn identity(&self, nsp: &str) -> Option<Option<&Identity>> {
        let mut namespaces = self.namespaces.iter();
        let namespace = namespaces.find(|namespace| namespace.name == nsp)?;
        Some(namespace.identity.as_deref())
    }

    pub(crate) fn set_identity(&mut self, nsp: &str, identity: Rc<Identity>) {
        let mut namespaces = self.namespaces.iter_mut();
        if let Some(namespace) = namespaces.find(|namespace| namespace.name == nsp) {
            namespace.identity = Some(identity);
        }
    }

    /// Returns the size of the CONNECTs that wait until the one before them is verified.
    pub(crate) fn waiting_bytes(&self) -> usize {
        let waiting = self.connecting.iter().skip(1);
        waiting.map(|connect| connect.bytes).sum()
    }

    /// Returns all namespaces for which the application may have a client: the
    /// connected ones, and those whose CONNECT it was given.
    pub(crate) fn into_namespaces(self) -> Vec<String> {
        let connected = self.namespaces.into_iter().map(|namespace| namespace.name);
        let connecting = self.connecting.into_iter();
        let given = connecting.filter(|connect| connect.auth.is_none());
        connected.chain(given.map(|connect| connect.nsp)).collect()
    }
}

/// A packet that violates the protocol. Its session is closed.
struct Malformed;

impl EngineServer {
    /// Handles a message of a session.
    pub(crate) fn receive_message(&mut self, id: SessionId, frame: Frame, now: Millis) {
        let Some(session) = self.sessions.get(id) else {
            return;
        };
        if !session.socketio.enabled {
            return self.push_event(EngineEvent::Message { session: id, frame });
        }
        let handled = match frame {
            Frame::Text(text) => self.receive_text(id, &text, now),
            Frame::Binary(bytes) => self.receive_attachment(id, bytes, now),
        };
        if let Err(Malformed) = handled {
            self.close_session(id, Disconnect::Malformed);
        }
    }

    fn receive_text(&mut self, id: SessionId, text: &str, now: Millis) -> Result<(), Malformed> {
        let (packet, missing) = decode(text).ok_or(Malformed)?;
        let session = self.sessions.get_mut(id).ok_or(Malformed)?;
        if session.socketio.partial.is_some() {
            return Err(Malformed);
        }
        if missing == 0 {
            return self.receive_complete(id, packet, Vec::new(), now);
        }
        // Only connected namespaces receive events, so nothing is kept for a client
        // that is in none.
        if !session.socketio.is_connected(&packet.ns) {
            return Err(Malformed);
        }
        session.socketio.partial = Some(PartialPacket {
            packet,
            missing,
            attachments: Vec::new(),
            bytes: 0,
            deadline: now + ATTACHMENT_TIMEOUT,
        });
        self.schedule_recheck(id, now);
        Ok(())
    }

    fn receive_attachment(
        &mut self,
        id: SessionId,
        bytes: Bytes,
        now: Millis,
    ) -> Result<(), Malformed> {
        let limit = self.config.max_payload;
        let keeps = self.keeps_attachments;
        let session = self.sessions.get_mut(id).ok_or(Malformed)?;
        let partial = session.socketio.partial.as_mut().ok_or(Malformed)?;
        partial.bytes += bytes.len();
        partial.missing -= 1;
        if partial.bytes > limit {
            return Err(Malformed);
        }
        // The application still has to know the number of attachments, because it
        // refuses events that have any.
        let kept = if keeps { bytes } else { Bytes::new() };
        partial.attachments.push(kept);
        if partial.missing > 0 {
            return Ok(());
        }
        let complete = session.socketio.partial.take().ok_or(Malformed)?;
        self.receive_complete(id, complete.packet, complete.attachments, now)
    }

    /// Handles a packet whose attachments have all arrived.
    fn receive_complete(
        &mut self,
        id: SessionId,
        packet: Packet,
        attachments: Vec<Bytes>,
        now: Millis,
    ) -> Result<(), Malformed> {
        let nsp = packet.ns.to_string();
        match packet.inner {
            PacketData::Connect(auth) => {
                let auth = match auth {
                    Some(Value::Str(auth, _)) => auth.to_string(),
                    _ => "{}".into(),
                };
                self.receive_connect(id, nsp, auth, now)
            }
            PacketData::Disconnect => self.receive_disconnect(id, nsp),
            PacketData::Event(Value::Str(args, _), ack)
            | PacketData::BinaryEvent(Value::Str(args, _), ack) => {
                self.check_connected(id, &nsp)?;
                if !is_event(&args) {
                    return Err(Malformed);
                }
                self.push_event(EngineEvent::Event {
                    session: id,
                    nsp,
                    ack,
                    args: args.to_string(),
                    attachments,
                });
                Ok(())
            }
            // The gateway asks clients for no acknowledgements, so they are dropped.
            PacketData::EventAck(Value::Str(args, _), _)
            | PacketData::BinaryAck(Value::Str(args, _), _) => {
                self.check_connected(id, &nsp)?;
                if self.count_overhead(id, now) {
                    serde_json::from_str::<Vec<IgnoredAny>>(&args).map_err(|_| Malformed)?;
                }
                Ok(())
            }
            _ => Err(Malformed),
        }
    }

    /// Returns an error if the client is not connected to the namespace.
    fn check_connected(&self, id: SessionId, nsp: &str) -> Result<(), Malformed> {
        let session = self.sessions.get(id).ok_or(Malformed)?;
        match session.socketio.is_connected(nsp) {
            true => Ok(()),
            false => Err(Malformed),
        }
    }

    fn receive_disconnect(&mut self, id: SessionId, nsp: String) -> Result<(), Malformed> {
        let session = self.sessions.get_mut(id).ok_or(Malformed)?;
        let SocketIoSession {
            namespaces,
            connecting,
            ..
        } = &mut session.socketio;
        if let Some(index) = namespaces.iter().position(|one| one.name == nsp) {
            namespaces.remove(index);
            self.attach(id);
        } else {
            // The client does not wait for the answer to its CONNECT.
            let index = connecting.iter().position(|connect| connect.nsp == nsp);
            connecting.remove(index.ok_or(Malformed)?);
            self.start_connects(id);
        }
        self.push_event(EngineEvent::Disconnected {
            session: id,
            nsp,
            by_client: true,
        });
        Ok(())
    }

    /// Handles a CONNECT. Without a valid token a client can send [`MAX_CONNECTS`] in
    /// all; the application handles one at a time, and the others wait.
    fn receive_connect(
        &mut self,
        id: SessionId,
        nsp: String,
        auth: String,
        now: Millis,
    ) -> Result<(), Malformed> {
        if !self.count_overhead(id, now) {
            return Ok(());
        }
        self.last_connect += 1;
        let number = self.last_connect;
        let session = self.sessions.get_mut(id).ok_or(Malformed)?;
        if !session.is_authenticated() {
            session.socketio.connects += 1;
            if session.socketio.connects > MAX_CONNECTS {
                self.close_session(id, Disconnect::TooFast);
                return Ok(());
            }
        }
        RawObject::parse(&auth, "`auth`").map_err(|_| Malformed)?;
        let SocketIoSession {
            namespaces,
            connecting,
            ..
        } = &mut session.socketio;
        // Clients send a CONNECT twice if their `connect` is called twice.
        let is_repeated = namespaces.iter().any(|namespace| namespace.name == nsp)
            || connecting.iter().any(|connect| connect.nsp == nsp);
        if is_repeated {
            return Ok(());
        }
        connecting.push(PendingConnect {
            bytes: nsp.len() + auth.len(),
            nsp,
            number,
            auth: Some(auth),
        });
        self.start_connects(id);
        Ok(())
    }

    /// Gives the application the CONNECTs that it can handle now.
    fn start_connects(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        let one_at_a_time = !session.is_authenticated();
        let mut started = Vec::new();
        for connect in &mut session.socketio.connecting {
            if let Some(auth) = connect.auth.take() {
                started.push(EngineEvent::Connect {
                    session: id,
                    nsp: connect.nsp.clone(),
                    number: connect.number,
                    auth,
                });
            }
            if one_at_a_time {
                break;
            }
        }
        for event in started {
            self.push_event(event);
        }
    }

    /// Returns `true` if the CONNECT with this number waits for its answer.
    pub fn is_connecting(&self, id: SessionId, number: u64) -> bool {
        self.sessions.get(id).is_some_and(|session| {
            let mut connecting = session.socketio.connecting.iter();
            connecting.any(|connect| connect.number == number)
        })
    }

    /// Accepts a CONNECT: the client is in the namespace by the token of `identity`.
    /// `data` is a JSON object. Returns `false` if no CONNECT for the namespace waits
    /// any more; then nothing is done.
    pub fn accept(
        &mut self,
        id: SessionId,
        nsp: &str,
        identity: Option<Rc<Identity>>,
        data: String,
    ) -> bool {
        let Some(session) = self.sessions.get_mut(id) else {
            return false;
        };
        let state = &mut session.socketio;
        let index = state.connecting.iter().position(|one| one.nsp == nsp);
        let Some(index) = index else {
            return false;
        };
        let name = state.connecting.remove(index).nsp;
        state.namespaces.push(Namespace { name, identity });
        state.connect_by = None;
        state.extended = false;
        state.connects = 0;
        let data = Some(Value::Str(data.into(), None));
        self.encode_and_send(id, Packet::connect(nsp.to_owned(), data));
        self.attach(id);
        self.start_connects(id);
        true
    }

    /// Refuses a CONNECT. `data` is a JSON object. The refusals of a connection without a
    /// valid token count against its address, except for the first one: clients whose
    /// token has expired reconnect with it once.
    pub fn refuse(&mut self, id: SessionId, nsp: &str, data: &str) {
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        session
            .socketio
            .connecting
            .retain(|connect| connect.nsp != nsp);
        if !session.is_authenticated()
            && session.socketio.connects > 1
            && let Some(address) = session.info.address.clone()
        {
            self.count_refused_connect(&address);
        }
        // The library's packet has a message and no further fields.
        let nsp = match nsp {
            "/" => String::new(),
            nsp => format!("{nsp},"),
        };
        self.send_packet(id, EnginePacket::Message(format!("4{nsp}{data}").into()));
        self.start_connects(id);
    }

    /// Logs a refusal, if it is the first one of the connection.
    pub fn log_refusal(&mut self, id: SessionId, entry: LogRecord) {
        if let Some(session) = self.sessions.get_mut(id)
            && !std::mem::replace(&mut session.refusal_logged, true)
        {
            self.log(entry);
        }
    }

    /// Disconnects a client from a namespace by a DISCONNECT packet, after which clients
    /// do not reconnect by themselves. A session that is in no namespace any more is
    /// closed. If the CONNECT of the client was not accepted yet, it is refused instead.
    pub fn expel(&mut self, id: SessionId, nsp: &str, why: Disconnect) {
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        let mut connecting = session.socketio.connecting.iter();
        if connecting.any(|connect| connect.nsp == nsp) {
            let refusal = json!({ "message": why.reason() });
            return self.refuse(id, nsp, &refusal.to_string());
        }
        let namespaces = &mut session.socketio.namespaces;
        namespaces.retain(|namespace| namespace.name != nsp);
        let is_last = namespaces.is_empty();
        self.encode_and_send(id, Packet::disconnect(nsp.to_owned()));
        self.attach(id);
        if is_last {
            self.close_session(id, why);
        }
    }

    /// Sends an event. `args` is a JSON list that begins with the name of the event.
    pub fn emit(&mut self, id: SessionId, nsp: &str, args: &str, attachments: Vec<Bytes>) {
        let value = value(args, attachments);
        self.encode_and_send(id, Packet::event(nsp.to_owned(), value));
    }

    /// Sends an acknowledgement: the answer to the event with this `ack` id. `args` is a
    /// JSON list.
    pub fn acknowledge(
        &mut self,
        id: SessionId,
        nsp: &str,
        ack: i64,
        args: &str,
        attachments: Vec<Bytes>,
    ) {
        let value = value(args, attachments);
        self.encode_and_send(id, Packet::ack(nsp.to_owned(), value, ack));
    }

    fn encode_and_send(&mut self, id: SessionId, packet: Packet) {
        if let Value::Str(text, attachments) = CommonParser.encode(packet) {
            self.send_packet(id, EnginePacket::Message(text));
            for bytes in attachments.into_iter().flatten() {
                self.send_packet(id, EnginePacket::Binary(bytes));
            }
        }
    }
}

/// Returns the message for an event in a namespace. `args` is a JSON list.
pub(crate) fn event_message(nsp: &str, args: &str) -> String {
    match CommonParser.encode(Packet::event(nsp.to_owned(), value(args, Vec::new()))) {
        Value::Str(text, _) => text.to_string(),
        Value::Bytes(_) => String::new(),
    }
}

fn value(args: &str, attachments: Vec<Bytes>) -> Value {
    let attachments = (!attachments.is_empty()).then(|| VecDeque::from(attachments));
    Value::Str(args.to_owned().into(), attachments)
}

/// Returns a packet and the number of attachments that follow it.
fn decode(text: &str) -> Option<(Packet, usize)> {
    let (text, attachments) = match text.as_bytes().first()? {
        // The library measures the time that attachments take with a clock that
        // WebAssembly does not have. So it is told that there are none, and they are
        // collected here.
        b'5' | b'6' => {
            let (count, rest) = text[1..].split_once('-')?;
            let count: usize = count.parse().ok()?;
            if count > MAX_ATTACHMENTS {
                return None;
            }
            (format!("{}0-{rest}", &text[..1]), count)
        }
        _ => (text.to_owned(), 0),
    };
    let packet = CommonParser
        .decode_str(
            &ParseConfig::default(),
            &ParserState::default(),
            text.into(),
        )
        .ok()?;
    Some((packet, attachments))
}

/// Returns `true` if `args` is a JSON list that begins with a valid event name.
fn is_event(args: &str) -> bool {
    let Ok(EventName(name)) = serde_json::from_str::<EventName>(args) else {
        return false;
    };
    match serde_json::from_str::<String>(name) {
        // The reference server rejects the same names.
        Ok(name) => !event_name::is_socket_io_reserved(&name),
        Err(_) => name.parse::<u64>().is_ok(),
    }
}

/// The JSON text of the first element of a list. The other elements are checked and
/// dropped.
struct EventName<'a>(&'a str);

impl<'de: 'a, 'a> Deserialize<'de> for EventName<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct First;

        impl<'de> Visitor<'de> for First {
            type Value = EventName<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a list that begins with the name of an event")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let name = list.next_element::<&RawValue>()?;
                let name = name.ok_or_else(|| A::Error::invalid_length(0, &self))?;
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(EventName(name.get()))
            }
        }

        deserializer.deserialize_seq(First)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Output;
    use roomcast_proto::limits::Rate;

    #[test]
    fn malformed_packets_are_not_decoded() {
        for text in [
            "", "9", "abc", "5", "5x-[]", "51[]", "5999-[]", "3[]", "7[]", "4{}",
        ] {
            assert!(decode(text).is_none(), "{text}");
        }
        let (packet, attachments) = decode(r#"52-/chat,7["x",{"_placeholder":true,"num":0}]"#)
            .expect("an event with attachments");
        assert_eq!((&*packet.ns, attachments), ("/chat", 2));
    }

    #[test]
    fn event_needs_a_name_that_is_not_reserved() {
        for args in [r#"["x"]"#, r#"[1,2]"#, r#"["x",{"a":[1]}]"#] {
            assert!(is_event(args), "{args}");
        }
        for args in [
            "",
            "{}",
            "[]",
            "[null]",
            r#"["disconnect"]"#,
            r#"["x""#,
            "[{}]",
        ] {
            assert!(!is_event(args), "{args}");
        }
    }

    /// Returns a server with one session, without a token, that has sent these CONNECTs.
    fn connecting(namespaces: &[&str]) -> (EngineServer, SessionId) {
        let mut engine = EngineServer::new("0".into(), Rc::default(), || "id".into());
        let info = ConnectInfo {
            protocol: Protocol::SocketIo,
            identity: None,
            error: None,
            address: Some("192.0.2.1".into()),
            recovers: false,
        };
        engine.open_socket(info, None, 0).expect("a socket");
        let id = engine.session_by_sid("0-idid").expect("a session");
        for nsp in namespaces {
            engine.receive_message(id, Frame::Text(format!("0{nsp},")), 0);
        }
        engine.take_outputs();
        (engine, id)
    }

    /// Takes the outputs and returns the texts that are sent.
    fn sent(engine: &mut EngineServer) -> Vec<String> {
        let outputs = engine.take_outputs().into_iter();
        outputs
            .filter_map(|output| match output {
                Output::Send {
                    frame: Frame::Text(text),
                    ..
                } => Some(text),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn client_that_is_expelled_before_its_connect_was_accepted_is_refused() {
        let (mut engine, id) = connecting(&["/chat"]);
        engine.expel(id, "/chat", Disconnect::Expired);
        let refusal = r#"44/chat,{"message":"token expired"}"#;
        assert_eq!(sent(&mut engine), [refusal]);
        assert!(engine.sid(id).is_some(), "the session can try again");
        assert!(!engine.accept(id, "/chat", None, "{}".to_owned()));
    }

    #[test]
    fn first_refused_connect_of_a_session_does_not_count_against_its_address() {
        let (mut engine, id) = connecting(&["/chat"]);
        let mut config = GatewayConfig::clone(&engine.config);
        config.refused_connects = Rate::per_minute(1.0);
        engine.config = Rc::new(config);
        let stranger = engine.connect_info(id).expect("a session").clone();
        for counted in [false, true] {
            engine.refuse(id, "/chat", "{}");
            let admitted = engine.admit(&stranger, 0);
            assert_eq!(admitted.is_err(), counted, "{admitted:?}");
            engine.receive_message(id, Frame::Text("0/chat,".to_owned()), 0);
        }
    }
}
