//! Converts lines of rooms to packets of Socket.IO, in the dialect of each client
//! ([`crate::dialect`]).

use crate::dialect::{Dialect, Outcome};
use crate::ids::SessionId;
use crate::{recovery_offset, socketio};
use roomcast_proto::event_name::NEW_MESSAGE;
use roomcast_proto::id::RoomName;
use roomcast_proto::json::push_string;
use roomcast_proto::raw_object::{RawObject, TEXT, WHOLE};
use roomcast_proto::time::Millis;
use serde_json::value::RawValue;
use std::collections::HashMap;

/// The position of a logged event.
#[derive(Debug, PartialEq)]
pub(crate) struct EventStamp {
    pub(crate) room: RoomName,
    pub(crate) seq: u64,
}

/// A line of a room, for a Socket.IO client.
#[derive(Debug, PartialEq)]
pub(crate) enum Line<'a> {
    /// An acknowledgement.
    Ack {
        /// The id of the command that it acknowledges.
        id: i64,
        outcome: Outcome<'a>,
    },
    Event(EventLine<'a>),
}

/// An event of a room.
#[derive(Debug, PartialEq)]
pub(crate) struct EventLine<'a> {
    pub(crate) name: &'a str,
    /// The data, as JSON.
    pub(crate) data: &'a str,
    /// The stamp of a custom event, as JSON.
    pub(crate) meta: Option<&'a str>,
    /// The position; `None` if the event is not logged.
    pub(crate) stamp: Option<EventStamp>,
}

/// Parses a line that a room wrote. Returns `None` if it is malformed.
pub(crate) fn parse_line(line: &str) -> Option<Line<'_>> {
    let object = RawObject::parse(line, "a line").ok()?;
    if let Some(id) = object.raw("ack") {
        let outcome = match object.raw("error") {
            Some(error) => Outcome::Error(error.get()),
            None => Outcome::Data(object.required_raw("data").map_or("{}", RawValue::get)),
        };
        let id = id.get().parse().ok()?;
        return Some(Line::Ack { id, outcome });
    }
    EventLine::of(&object).map(Line::Event)
}

impl<'a> EventLine<'a> {
    /// Parses the line of an event.
    pub(crate) fn parse(line: &'a str) -> Option<Self> {
        EventLine::of(&RawObject::parse(line, "a line").ok()?)
    }

    fn of(object: &RawObject<'a>) -> Option<Self> {
        // The names of events have no characters that JSON escapes.
        let name = object.raw("event")?.get();
        let name = name.strip_prefix('"')?.strip_suffix('"')?;
        let data = object.required_raw("data").map_or("null", RawValue::get);
        let meta = object.raw("meta").map(RawValue::get);
        // The data of a message contains the fields of its stamp.
        let stamp = match meta {
            Some(meta) => parse_stamp(meta),
            None if name == NEW_MESSAGE => parse_stamp(data),
            None => None,
        };
        Some(EventLine {
            name,
            data,
            meta,
            stamp,
        })
    }
}

fn parse_stamp(json: &str) -> Option<EventStamp> {
    let object = RawObject::parse(json, "a stamp").ok()?;
    Some(EventStamp {
        room: RoomName::trusted(object.required("roomId", TEXT).ok()?),
        seq: object.required("seq", WHOLE).ok()?,
    })
}

/// Completes a list of [`open_args`](crate::dialect::open_args), with the offset as the last
/// argument if there is one.
pub(crate) fn finish_args(mut open_args: String, offset: Option<&str>) -> String {
    if let Some(offset) = offset {
        open_args.push(',');
        push_string(&mut open_args, offset);
    }
    open_args.push(']');
    open_args
}

/// Returns `true` if the last argument of an open list is a string. A client with recovery takes
/// it for an offset, so an offset must follow.
pub(crate) fn ends_with_string(open_args: &str) -> bool {
    open_args.ends_with('"')
}

/// An offset of a client without the position in one room. Its methods insert the
/// position of an event of that room.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct OffsetTemplate {
    /// The numbers before the position.
    pub(crate) before: String,
    /// The numbers after the position; may be empty.
    pub(crate) after: String,
}

impl OffsetTemplate {
    /// Returns the offset of the event `seq`.
    pub(crate) fn at(&self, seq: u64) -> String {
        let mut offset = self.before.clone();
        recovery_offset::push(&mut offset, seq);
        if !self.after.is_empty() {
            offset.push('.');
            offset.push_str(&self.after);
        }
        offset
    }
}

/// Clients that receive the same packets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PacketGroup {
    /// The namespace.
    pub(crate) nsp: String,
    /// The vocabulary of the namespace.
    pub(crate) dialect: Dialect,
    /// The offsets of the events; `None` if the clients cannot resume.
    pub(crate) offset: Option<OffsetTemplate>,
}

/// A packet for many clients.
pub(crate) struct BroadcastPacket {
    /// The receivers.
    pub(crate) sessions: Vec<SessionId>,
    /// The message of Engine.IO.
    pub(crate) message: String,
}

/// A text for many Socket.IO clients. Each line is parsed once, translated once for each dialect,
/// and encoded once for all clients that receive the same packets.
pub(crate) struct BroadcastText<'a> {
    text: &'a str,
    groups: HashMap<PacketGroup, Vec<SessionId>>,
}

impl<'a> BroadcastText<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        BroadcastText {
            text,
            groups: HashMap::new(),
        }
    }

    /// Adds a receiver.
    pub(crate) fn add(&mut self, session: SessionId, group: PacketGroup) {
        self.groups.entry(group).or_default().push(session);
    }

    /// Returns the packets, in the order of the lines. `up_to` is the position of the clients
    /// after the text.
    pub(crate) fn packets(self, up_to: u64, now: Millis) -> Vec<BroadcastPacket> {
        if self.groups.is_empty() {
            return Vec::new();
        }
        let mut packets = Vec::new();
        for line in self.text.split('\n') {
            // An acknowledgement is never broadcast.
            let Some(Line::Event(event)) = parse_line(line) else {
                continue;
            };
            let mut translations: Vec<(Dialect, Option<String>)> = Vec::new();
            for (group, sessions) in &self.groups {
                let PacketGroup {
                    nsp,
                    dialect,
                    offset,
                } = group;
                let known = translations.iter().position(|(one, _)| one == dialect);
                let index = known.unwrap_or_else(|| {
                    translations.push((*dialect, dialect.event(&event, now)));
                    translations.len() - 1
                });
                let Some(open_args) = &translations[index].1 else {
                    continue;
                };
                let at = match &event.stamp {
                    Some(stamp) => Some(stamp.seq),
                    None => ends_with_string(open_args).then_some(up_to),
                };
                let offset = offset.as_ref().zip(at).map(|(offset, at)| offset.at(at));
                let args = finish_args(open_args.clone(), offset.as_deref());
                packets.push(BroadcastPacket {
                    sessions: sessions.clone(),
                    message: socketio::event_message(nsp, &args),
                });
            }
        }
        packets
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::{ClientEvent, Request};
    use roomcast_proto::framing;

    fn at(seq: u64) -> EventStamp {
        let room = RoomName::trusted("r");
        EventStamp { room, seq }
    }

    /// Returns the event of a line in the protocol's own vocabulary, and its position.
    fn native(line: &str) -> (String, Option<EventStamp>) {
        let event = EventLine::parse(line).expect("an event");
        let args = Dialect::default().event(&event, 0);
        (args.expect("every event"), event.stamp)
    }

    #[test]
    fn event_line_becomes_an_event_with_offset() {
        let message = r#"{"event":"newMessage","data":{"content":1,"roomId":"r","seq":7}}"#;
        let expected = r#"["newMessage",{"content":1,"roomId":"r","seq":7}"#;
        assert_eq!(native(message), (expected.into(), Some(at(7))));
        let custom = r#"{"event":"x","data":"y","meta":{"roomId":"r","seq":8}}"#;
        let (open_args, stamp) = native(custom);
        assert_eq!(stamp, Some(at(8)));
        let template = OffsetTemplate {
            before: "1.5".into(),
            after: "z".into(),
        };
        assert_eq!(
            finish_args(open_args, Some(&template.at(8))),
            r#"["x","y",{"roomId":"r","seq":8},"1.5.8.z"]"#
        );
        assert_eq!(parse_line("no line"), None);
    }

    #[test]
    fn a_message_has_the_same_arguments_from_users_and_services() {
        let of_user = r#"{"event":"newMessage","data":{"roomId":"r","seq":7}}"#;
        let of_service =
            r#"{"event":"newMessage","data":{"roomId":"r","seq":7},"meta":{"roomId":"r","seq":7}}"#;
        assert_eq!(native(of_user), native(of_service));
    }

    fn session(n: u64) -> SessionId {
        slotmap::KeyData::from_ffi((1 << 32) | n).into()
    }

    #[test]
    fn a_broadcast_is_translated_once_for_each_dialect() {
        let line = r#"{"event":"x","data":"y","meta":{"roomId":"r"}}"#;
        let mut text = BroadcastText::new(line);
        let offset = OffsetTemplate {
            before: "1.5".into(),
            after: String::new(),
        };
        for (n, dialect, offset) in [
            (1, "roomcast", None),
            (2, "roomcast", Some(offset.clone())),
            (3, "module", None),
            (4, "module", Some(offset)),
        ] {
            let group = PacketGroup {
                nsp: "/".into(),
                dialect: Dialect::parse(dialect).expect("a dialect"),
                offset,
            };
            text.add(session(n), group);
        }
        let mut packets = text.packets(9, 0);
        packets.sort_by_key(|packet| packet.sessions.clone());
        let packets: Vec<&str> = packets.iter().map(|packet| &*packet.message).collect();
        // A client with recovery would take the string for an offset, so an offset follows.
        let expected = [
            r#"2["x","y",{"roomId":"r"}]"#,
            r#"2["x","y",{"roomId":"r"}]"#,
            r#"2["x","y"]"#,
            r#"2["x","y","1.5.9"]"#,
        ];
        assert_eq!(packets, expected);
    }

    #[test]
    fn answer_line_becomes_an_acknowledgement() {
        for (answer, outcome) in [
            (r#"{"ack":3,"data":{"a":1}}"#, Outcome::Data(r#"{"a":1}"#)),
            (
                r#"{"ack":3,"error":{"code":"x"}}"#,
                Outcome::Error(r#"{"code":"x"}"#),
            ),
        ] {
            assert_eq!(parse_line(answer), Some(Line::Ack { id: 3, outcome }));
        }
    }

    #[test]
    fn socketio_event_is_parsed_as_the_line_of_the_same_command() {
        for (args, id, line) in [
            (
                "[\"joinRoom\",\n \"r\"]",
                Some(4),
                r#"{"event":"joinRoom","data":"r","id":4}"#,
            ),
            ("[1]", None, r#"{"event":1}"#),
            (
                "[\"sync\",{\"after\":\n1},2]",
                Some(10),
                r#"{"event":"sync","data":{"after": 1},"id":10}"#,
            ),
            (
                "[\"emit\",{\"event\":\"x\",\"data\":[1,\r\n2]}]",
                Some(0),
                r#"{"event":"emit","data":{"event":"x","data":[1,  2]},"id":0}"#,
            ),
        ] {
            let event = ClientEvent {
                line_length: line.len(),
                id: id.map(|id| id as u32),
                request: framing::decode_line(line).command.map(Request::Command),
            };
            let dialect = Dialect::default();
            assert_eq!(dialect.parse_event(args, id), Some(event), "{args}");
        }
        assert_eq!(Dialect::default().parse_event("[]", None), None);
        assert_eq!(Dialect::default().parse_event("{}", None), None);
    }
}
