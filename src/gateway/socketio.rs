//! Socket.IO 5 (<https://socket.io/docs/v4/socket-io-protocol/>): namespaces,
//! events and acknowledgements on an Engine.IO session.

use super::engine::{Door, Protocol};
use super::{Frame, Hub, SessionId, Up};
use crate::config::GatewayConfig;
use crate::time::{Millis, SECOND};
use crate::wire::native::Close;
use crate::wire::{Object, event};
use bytes::Bytes;
use engineioxide_core::Packet as EnginePacket;
use serde_json::value::RawValue;
use socketioxide_core::Value;
use socketioxide_core::packet::{Packet, PacketData};
use socketioxide_core::parser::{Parse, ParseConfig, ParserState};
use socketioxide_parser_common::CommonParser;
use std::collections::VecDeque;

/// How long announced attachments may take.
const ATTACHMENT_TIMEOUT: Millis = 10 * SECOND;

/// Most attachments of a packet.
const MAX_ATTACHMENTS: usize = 256;

/// What Socket.IO keeps of a session.
#[derive(Debug)]
pub(super) struct Io {
    /// Not on bare Engine.IO.
    enabled: bool,
    nsps: Vec<String>,
    /// Until when there must be one.
    pub(super) connect_by: Option<Millis>,
    /// A packet whose attachments are not all there.
    partial: Option<Partial>,
}

#[derive(Debug)]
struct Partial {
    packet: Packet,
    missing: usize,
    attachments: Vec<Bytes>,
    bytes: usize,
    until: Millis,
}

impl Io {
    pub(super) fn new(door: &Door, config: &GatewayConfig, now: Millis) -> Self {
        let enabled = door.protocol == Protocol::SocketIo;
        Io {
            enabled,
            nsps: Vec::new(),
            connect_by: enabled.then_some(now + config.connect_timeout),
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

    pub(super) fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.nsps.iter().map(String::as_str)
    }

    pub(super) fn into_namespaces(self) -> Vec<String> {
        self.nsps
    }
}

impl Hub {
    /// Whether a session has let a deadline go by.
    pub(super) fn overdue(&self, place: SessionId, now: Millis) -> bool {
        self.session(place)
            .and_then(|session| session.io.deadline())
            .is_some_and(|at| at <= now)
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
            Frame::Binary(bytes) => self.attachment(place, bytes),
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
            return self.packet_in(place, packet, Vec::new());
        }
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

    fn attachment(&mut self, place: SessionId, bytes: Bytes) -> Option<()> {
        let limit = self.config.gateway.max_payload;
        let session = self.session_mut(place)?;
        let partial = session.io.partial.as_mut()?;
        partial.bytes += bytes.len();
        partial.missing -= 1;
        partial.attachments.push(bytes);
        if partial.bytes > limit {
            return None;
        }
        if partial.missing > 0 {
            return Some(());
        }
        let whole = session.io.partial.take()?;
        self.packet_in(place, whole.packet, whole.attachments)
    }

    /// A packet with all that belongs to it. `None` where it is malformed.
    fn packet_in(
        &mut self,
        place: SessionId,
        packet: Packet,
        attachments: Vec<Bytes>,
    ) -> Option<()> {
        let nsp = packet.ns.to_string();
        let session = self.session_mut(place)?;
        let known = session.io.nsps.iter().position(|one| *one == nsp);
        let up = match packet.inner {
            PacketData::Connect(auth) => {
                let auth = match &auth {
                    Some(Value::Str(auth, _)) => auth.to_string(),
                    _ => "{}".into(),
                };
                Object::parse(&auth, "`auth`").ok()?;
                // Asked twice, as clients do whose `connect` is called twice.
                if known.is_some() {
                    return Some(());
                }
                Up::Connect {
                    session: place,
                    nsp,
                    auth,
                }
            }
            PacketData::Disconnect => {
                session.io.nsps.remove(known?);
                self.attach(place);
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
                serde_json::from_str::<Vec<&RawValue>>(&args).ok()?;
                return Some(());
            }
            _ => return None,
        };
        self.ups.push_back(up);
        Some(())
    }

    /// Lets a client into a namespace, with this JSON object.
    pub fn accept(&mut self, place: SessionId, nsp: &str, data: String) {
        if let Some(session) = self.session_mut(place) {
            session.io.nsps.push(nsp.to_owned());
            session.io.connect_by = None;
        }
        let data = Some(Value::Str(data.into(), None));
        self.send_out(place, Packet::connect(nsp.to_owned(), data));
        self.attach(place);
    }

    /// Does not; `data` is a JSON object.
    pub fn refuse(&mut self, place: SessionId, nsp: &str, data: &str) {
        // The packet of the library has a message and nothing else.
        let nsp = match nsp {
            "/" => String::new(),
            nsp => format!("{nsp},"),
        };
        self.packet(place, EnginePacket::Message(format!("4{nsp}{data}").into()));
    }

    /// Sends a client out of a namespace. One that has none left is closed.
    pub fn expel(&mut self, place: SessionId, nsp: &str, why: Close) {
        let Some(session) = self.session_mut(place) else {
            return;
        };
        session.io.nsps.retain(|one| one != nsp);
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

/// Whether it is a list that begins with the name of an event.
fn is_event(args: &str) -> bool {
    let Ok(args) = serde_json::from_str::<Vec<&RawValue>>(args) else {
        return false;
    };
    let Some(name) = args.first().map(|name| name.get()) else {
        return false;
    };
    match serde_json::from_str::<String>(name) {
        // A packet with one of these is malformed, as in Socket.IO's own server.
        Ok(name) => !event::is_of_connections(&name),
        Err(_) => name.parse::<u64>().is_ok(),
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
