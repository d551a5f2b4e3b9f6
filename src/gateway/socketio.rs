//! Socket.IO 5 (<https://socket.io/docs/v4/socket-io-protocol/>): namespaces,
//! events and acknowledgements on an Engine.IO session.

use super::engine::{Door, Protocol};
use super::{Frame, Hub, SessionId, Up};
use crate::auth::Identity;
use crate::config::GatewayConfig;
use crate::eventlog::Entry;
use crate::room::limits::network_of;
use crate::time::{Millis, SECOND};
use crate::wire::native::Close;
use crate::wire::{Object, event};
use bytes::Bytes;
use engineioxide_core::Packet as EnginePacket;
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

/// When a deadline that has passed is looked at once more. Within the time that
/// a gateway waits for by a timer, which the runtime lets wait until everything
/// that has arrived was read.
pub(super) const SECOND_LOOK: Millis = 100;

/// How long announced attachments may take.
const ATTACHMENT_TIMEOUT: Millis = 10 * SECOND;

/// Most attachments of a packet.
const MAX_ATTACHMENTS: usize = 256;

/// CONNECTs that a connection without a valid token may send in all
/// (CONTRACT, Authentication).
const MAX_CONNECTS: u32 = 5;

/// How long a connection may be without a valid token (CONTRACT,
/// Authentication).
const UNAUTHENTICATED_TIMEOUT: Millis = 10 * SECOND;

/// What Socket.IO keeps of a session.
#[derive(Debug)]
pub(super) struct Io {
    /// Not on bare Engine.IO.
    enabled: bool,
    nsps: Vec<Namespace>,
    /// CONNECTs that were not answered yet, in the order they came.
    connecting: Vec<Connecting>,
    /// CONNECTs without a valid token so far.
    connects: u32,
    /// Until when there must be a namespace.
    pub(super) connect_by: Option<Millis>,
    /// A deadline has passed once; see [`Hub::is_overdue`].
    late: bool,
    /// A packet whose attachments are not all there.
    partial: Option<Partial>,
}

/// A namespace that the client is connected to.
#[derive(Debug)]
struct Namespace {
    name: String,
    /// The newest valid token that was shown for it. See [`Hub::opens`].
    identity: Option<Rc<Identity>>,
}

/// A CONNECT that was not answered yet.
#[derive(Debug)]
struct Connecting {
    nsp: String,
    /// No other CONNECT has this number: a client may give up and send another
    /// for the same namespace.
    number: u64,
    /// `None` once the application has it.
    auth: Option<String>,
    /// Bytes of it.
    bytes: usize,
}

#[derive(Debug)]
struct Partial {
    packet: Packet,
    missing: usize,
    /// Empty where the application does not read them.
    attachments: Vec<Bytes>,
    bytes: usize,
    until: Millis,
}

impl Io {
    pub(super) fn new(door: &Door, config: &GatewayConfig, now: Millis) -> Self {
        let enabled = door.protocol == Protocol::SocketIo;
        let patience = match door.identity {
            Some(_) => config.connect_timeout,
            None => config.connect_timeout.min(UNAUTHENTICATED_TIMEOUT),
        };
        Io {
            enabled,
            nsps: Vec::new(),
            connecting: Vec::new(),
            connects: 0,
            connect_by: enabled.then_some(now + patience),
            late: false,
            partial: None,
        }
    }

    /// After hibernation.
    pub(super) fn recall(
        nsps: Vec<String>,
        connect_by: Option<Millis>,
        door: &Door,
        config: &GatewayConfig,
        now: Millis,
    ) -> Self {
        let io = Io::new(door, config, now);
        let nsps = nsps.into_iter().map(|name| Namespace {
            name,
            identity: None,
        });
        let nsps: Vec<Namespace> = nsps.collect();
        Io {
            connect_by: connect_by.filter(|_| nsps.is_empty()),
            nsps,
            ..io
        }
    }

    pub(super) fn deadline(&self) -> Option<Millis> {
        let partial = self.partial.as_ref().map(|partial| partial.until);
        [self.connect_by, partial].into_iter().flatten().min()
    }

    /// Whether a valid token has been shown: one is taken to get into a
    /// namespace. On bare Engine.IO nothing asks for one.
    pub(super) fn is_authenticated(&self) -> bool {
        !self.enabled || !self.nsps.is_empty()
    }

    pub(super) fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.nsps.iter().map(|one| one.name.as_str())
    }

    /// The identity that a namespace was accepted with; `None` if the client is not
    /// in the namespace.
    pub(super) fn identity(&self, nsp: &str) -> Option<Option<&Identity>> {
        let mut nsps = self.nsps.iter();
        Some(nsps.find(|one| one.name == nsp)?.identity.as_deref())
    }

    pub(super) fn set_identity(&mut self, nsp: &str, identity: Rc<Identity>) {
        if let Some(one) = self.nsps.iter_mut().find(|one| one.name == nsp) {
            one.identity = Some(identity);
        }
    }

    /// Bytes of the CONNECTs that wait behind the one that is judged.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.connecting.iter().skip(1).map(|one| one.bytes).sum()
    }

    /// All namespaces of which the application may have a client: those that
    /// are connected, and those whose CONNECT it was given.
    pub(super) fn into_namespaces(self) -> Vec<String> {
        let given = self.connecting.into_iter().filter(|one| one.auth.is_none());
        let connected = self.nsps.into_iter().map(|one| one.name);
        connected.chain(given.map(|one| one.nsp)).collect()
    }
}

impl Hub {
    /// Whether a session has missed a deadline. What it sent in time may still
    /// wait to be read, so a deadline counts when it is looked at a second time,
    /// a moment later; see [`Hub::advance`].
    pub(super) fn is_overdue(&mut self, place: SessionId, now: Millis) -> bool {
        let Some(session) = self.session_mut(place) else {
            return false;
        };
        let io = &mut session.io;
        if io.deadline().is_none_or(|at| at > now) {
            return false;
        }
        if io.late {
            return true;
        }
        io.late = true;
        let partial = io.partial.as_mut().map(|partial| &mut partial.until);
        for at in [io.connect_by.as_mut(), partial].into_iter().flatten() {
            *at = (*at).max(now + SECOND_LOOK);
        }
        false
    }

    /// A message of a session's client.
    pub(super) fn message(&mut self, place: SessionId, frame: Frame, now: Millis) {
        let Some(session) = self.session(place) else {
            return;
        };
        if !session.io.enabled {
            return self.ups.push_back(Up::Message {
                session: place,
                frame,
            });
        }
        let understood = match frame {
            Frame::Text(text) => self.text(place, &text, now),
            Frame::Binary(bytes) => self.attachment(place, bytes, now),
        };
        if understood.is_none() {
            self.close_session(place, Close::Malformed);
        }
    }

    fn text(&mut self, place: SessionId, text: &str, now: Millis) -> Option<()> {
        let (packet, missing) = decode(text)?;
        let session = self.session_mut(place)?;
        if session.io.partial.is_some() {
            return None;
        }
        if missing == 0 {
            return self.packet_in(place, packet, Vec::new(), now);
        }
        // Only namespaces take events, so nothing is kept for a client that is
        // in none.
        session.io.namespaces().find(|one| *one == packet.ns)?;
        session.io.partial = Some(Partial {
            packet,
            missing,
            attachments: Vec::new(),
            bytes: 0,
            until: now + ATTACHMENT_TIMEOUT,
        });
        self.begun(place, now);
        Some(())
    }

    fn attachment(&mut self, place: SessionId, bytes: Bytes, now: Millis) -> Option<()> {
        let limit = self.config.gateway.max_payload;
        let keeps = self.keeps_attachments;
        let session = self.session_mut(place)?;
        let partial = session.io.partial.as_mut()?;
        partial.bytes += bytes.len();
        partial.missing -= 1;
        if partial.bytes > limit {
            return None;
        }
        // What is not kept is still an attachment: the event is refused by name.
        partial
            .attachments
            .push(if keeps { bytes } else { Bytes::new() });
        if partial.missing > 0 {
            return Some(());
        }
        let whole = session.io.partial.take()?;
        self.packet_in(place, whole.packet, whole.attachments, now)
    }

    /// A packet with all that belongs to it. `None` where it is malformed.
    fn packet_in(
        &mut self,
        place: SessionId,
        packet: Packet,
        attachments: Vec<Bytes>,
        now: Millis,
    ) -> Option<()> {
        let nsp = packet.ns.to_string();
        let session = self.session_mut(place)?;
        let known = session.io.nsps.iter().position(|one| one.name == nsp);
        let up = match packet.inner {
            PacketData::Connect(auth) => {
                let auth = match auth {
                    Some(Value::Str(auth, _)) => auth.to_string(),
                    _ => "{}".into(),
                };
                self.connect(place, nsp, auth, now)?;
                return Some(());
            }
            PacketData::Disconnect => {
                match known {
                    Some(known) => {
                        session.io.nsps.remove(known);
                        self.attach(place);
                    }
                    // It does not wait for the answer to its CONNECT.
                    None => {
                        let connecting = &mut session.io.connecting;
                        let known = connecting.iter().position(|one| one.nsp == nsp)?;
                        connecting.remove(known);
                        self.start_connects(place);
                    }
                }
                Up::Disconnected {
                    session: place,
                    nsp,
                    by_itself: true,
                }
            }
            PacketData::Event(Value::Str(args, _), ack)
            | PacketData::BinaryEvent(Value::Str(args, _), ack) => {
                known?;
                if !is_event(&args) {
                    return None;
                }
                Up::Event {
                    session: place,
                    nsp,
                    ack,
                    args: args.to_string(),
                    attachments,
                }
            }
            // Nothing here asks clients for acknowledgements.
            PacketData::EventAck(Value::Str(args, _), _)
            | PacketData::BinaryAck(Value::Str(args, _), _) => {
                known?;
                if self.count_overhead(place, now) {
                    serde_json::from_str::<Vec<IgnoredAny>>(&args).ok()?;
                }
                return Some(());
            }
            _ => return None,
        };
        self.ups.push_back(up);
        Some(())
    }

    /// A CONNECT. Without a valid token, five may be sent in all, and the
    /// application judges one at a time; the others wait. `None` where it is
    /// malformed.
    fn connect(&mut self, place: SessionId, nsp: String, auth: String, now: Millis) -> Option<()> {
        if !self.count_overhead(place, now) {
            return Some(());
        }
        self.last_connect += 1;
        let number = self.last_connect;
        let session = self.session_mut(place)?;
        if !session.is_authenticated() {
            session.io.connects += 1;
            if session.io.connects > MAX_CONNECTS {
                self.close_session(place, Close::TooFast);
                return Some(());
            }
        }
        Object::parse(&auth, "`auth`").ok()?;
        let io = &mut session.io;
        let mut connecting = io.connecting.iter();
        // Asked twice, as clients do whose `connect` is called twice.
        if io.nsps.iter().any(|one| one.name == nsp) || connecting.any(|one| one.nsp == nsp) {
            return Some(());
        }
        io.connecting.push(Connecting {
            bytes: nsp.len() + auth.len(),
            number,
            nsp,
            auth: Some(auth),
        });
        self.start_connects(place);
        Some(())
    }

    /// Gives the application the CONNECTs that it may judge now.
    fn start_connects(&mut self, place: SessionId) {
        let Some(session) = self.sessions.get_mut(place) else {
            return;
        };
        let one_at_a_time = !session.is_authenticated();
        for connecting in &mut session.io.connecting {
            if let Some(auth) = connecting.auth.take() {
                self.ups.push_back(Up::Connect {
                    session: place,
                    nsp: connecting.nsp.clone(),
                    number: connecting.number,
                    auth,
                });
            }
            if one_at_a_time {
                return;
            }
        }
    }

    /// Whether the CONNECT of this number waits for its answer.
    pub fn is_connecting(&self, place: SessionId, number: u64) -> bool {
        let session = self.session(place);
        session.is_some_and(|it| it.io.connecting.iter().any(|one| one.number == number))
    }

    /// Answers a CONNECT: the client is in the namespace by the token of
    /// `identity`. `data` is a JSON object. Returns `false` if the CONNECT is
    /// not there any more, with the session or without it.
    pub fn accept(
        &mut self,
        place: SessionId,
        nsp: &str,
        identity: Option<Rc<Identity>>,
        data: String,
    ) -> bool {
        let Some(session) = self.session_mut(place) else {
            return false;
        };
        let connecting = &mut session.io.connecting;
        let Some(asked) = connecting.iter().position(|one| one.nsp == nsp) else {
            return false;
        };
        let name = connecting.remove(asked).nsp;
        session.io.nsps.push(Namespace { name, identity });
        session.io.connect_by = None;
        session.io.late = false;
        session.io.connects = 0;
        let data = Some(Value::Str(data.into(), None));
        self.send_out(place, Packet::connect(nsp.to_owned(), data));
        self.attach(place);
        self.start_connects(place);
        true
    }

    /// Answers a CONNECT by a refusal; `data` is a JSON object. A refusal of a
    /// connection without a valid token counts against its address.
    pub fn refuse(&mut self, place: SessionId, nsp: &str, data: &str) {
        let Some(session) = self.session_mut(place) else {
            return;
        };
        session.io.connecting.retain(|one| one.nsp != nsp);
        // The first of a session is that of an honest client whose token has expired.
        if !session.is_authenticated()
            && session.io.connects > 1
            && let Some(network) = session.door.address.as_deref().map(network_of)
        {
            let rate = self.config.gateway.refused_connects;
            // Over the limit, `admit` refuses the next connection.
            let _ = self.refused.admit(&network, "", rate, self.now);
        }
        // The packet of the library has a message and nothing else.
        let nsp = match nsp {
            "/" => String::new(),
            nsp => format!("{nsp},"),
        };
        self.packet(place, EnginePacket::Message(format!("4{nsp}{data}").into()));
        self.start_connects(place);
    }

    /// Logs a refusal, the first of a connection alone.
    pub fn log_refusal(&mut self, place: SessionId, entry: Entry) {
        if let Some(session) = self.session_mut(place)
            && !std::mem::replace(&mut session.refusal_logged, true)
        {
            self.log(entry);
        }
    }

    /// Sends a client out of a namespace. One that has none left is closed.
    pub fn expel(&mut self, place: SessionId, nsp: &str, why: Close) {
        let Some(session) = self.session_mut(place) else {
            return;
        };
        if session.io.connecting.iter().any(|one| one.nsp == nsp) {
            // Not let in yet: its CONNECT is answered.
            let refusal = json!({ "message": why.reason() });
            return self.refuse(place, nsp, &refusal.to_string());
        }
        session.io.nsps.retain(|one| one.name != nsp);
        let last = session.io.nsps.is_empty();
        self.send_out(place, Packet::disconnect(nsp.to_owned()));
        self.attach(place);
        if last {
            self.close_session(place, why);
        }
    }

    /// An event: a JSON list, its name first.
    pub fn emit(&mut self, place: SessionId, nsp: &str, args: &str, attachments: Vec<Bytes>) {
        self.send_out(
            place,
            Packet::event(nsp.to_owned(), value(args, attachments)),
        );
    }

    /// The answer to an event that asked for one: a JSON list.
    pub fn acknowledge(
        &mut self,
        place: SessionId,
        nsp: &str,
        ack: i64,
        args: &str,
        attachments: Vec<Bytes>,
    ) {
        let value = value(args, attachments);
        self.send_out(place, Packet::ack(nsp.to_owned(), value, ack));
    }

    fn send_out(&mut self, place: SessionId, packet: Packet) {
        if let Value::Str(text, attachments) = CommonParser.encode(packet) {
            self.packet(place, EnginePacket::Message(text));
            for bytes in attachments.into_iter().flatten() {
                self.packet(place, EnginePacket::Binary(bytes));
            }
        }
    }
}

/// The message that is an event in a namespace; `args` is a JSON list.
pub(super) fn event(nsp: &str, args: &str) -> String {
    match CommonParser.encode(Packet::event(nsp.to_owned(), value(args, Vec::new()))) {
        Value::Str(text, _) => text.to_string(),
        Value::Bytes(_) => String::new(),
    }
}

fn value(args: &str, attachments: Vec<Bytes>) -> Value {
    let attachments = (!attachments.is_empty()).then(|| VecDeque::from(attachments));
    Value::Str(args.to_owned().into(), attachments)
}

/// A packet, and how many attachments will follow it.
fn decode(text: &str) -> Option<(Packet, usize)> {
    let (text, attachments) = match text.as_bytes().first()? {
        // The library measures how long attachments take with a clock that
        // WebAssembly has not: it is told of none, and they are gathered here.
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

/// Whether it is a list that begins with the name of an event. The rest of the
/// list is checked and not kept.
fn is_event(args: &str) -> bool {
    let Ok(EventName(name)) = serde_json::from_str::<EventName>(args) else {
        return false;
    };
    match serde_json::from_str::<String>(name) {
        // A packet with one of these is malformed, as in Socket.IO's own server.
        Ok(name) => !event::is_of_connections(&name),
        Err(_) => name.parse::<u64>().is_ok(),
    }
}

/// The first element of a list, as it stands there.
struct EventName<'a>(&'a str);

impl<'de: 'a, 'a> Deserialize<'de> for EventName<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct First;

        impl<'de> Visitor<'de> for First {
            type Value = EventName<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a list with the name of an event")
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

    #[test]
    fn what_is_malformed_is_no_packet() {
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
    fn an_event_has_a_name_that_is_not_the_connections_own() {
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
}
