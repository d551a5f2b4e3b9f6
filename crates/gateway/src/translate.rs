//! Converts lines of the native framing to events of Socket.IO, and events of Socket.IO
//! to commands. The data of an event is copied as it is and not parsed.

use crate::ids::SessionId;
use crate::{recovery_offset, socketio};
use roomcast_proto::command::Command;
use roomcast_proto::error::Result;
use roomcast_proto::event_name::NEW_MESSAGE;
use roomcast_proto::framing;
use roomcast_proto::id::RoomName;
use roomcast_proto::json::{on_one_line, push_string};
use roomcast_proto::raw_object::{RawObject, TEXT, WHOLE};
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
pub(crate) enum Line {
    /// An acknowledgement.
    Ack {
        /// The id of the event that it acknowledges.
        id: i64,
        /// The arguments, a JSON list.
        args: String,
    },
    /// An event.
    Event {
        /// The name and the arguments: a JSON list without its final bracket, because an
        /// offset may follow. Input of [`finish_args`].
        open_args: String,
        /// The position; `None` if the event is not logged.
        stamp: Option<EventStamp>,
    },
}

/// Parses a line that a room wrote. Returns `None` if it is malformed.
pub(crate) fn parse_line(line: &str) -> Option<Line> {
    let object = RawObject::parse(line, "a line").ok()?;
    if let Some(id) = object.raw("ack") {
        let args = match object.raw("error") {
            Some(error) => format!(r#"[{{"error":{}}}]"#, error.get()),
            None => format!(
                "[{}]",
                object.required_raw("data").map_or("{}", RawValue::get)
            ),
        };
        let id = id.get().parse().ok()?;
        return Some(Line::Ack { id, args });
    }
    let event = object.raw("event")?.get();
    let data = object.required_raw("data").map_or("null", RawValue::get);
    let meta = object.raw("meta").map(RawValue::get);
    // The data of a message contains the fields of its stamp.
    let is_message = event == format!("\"{NEW_MESSAGE}\"");
    let stamp = match meta {
        Some(meta) => parse_stamp(meta),
        None if is_message => parse_stamp(data),
        None => None,
    };
    let mut open_args = String::with_capacity(line.len() + 32);
    open_args.push('[');
    open_args.push_str(event);
    open_args.push(',');
    open_args.push_str(data);
    // Messages of users have no `meta`, so those of services must not have it either.
    if let Some(meta) = meta.filter(|_| !is_message) {
        open_args.push(',');
        open_args.push_str(meta);
    }
    Some(Line::Event { open_args, stamp })
}

fn parse_stamp(json: &str) -> Option<EventStamp> {
    let object = RawObject::parse(json, "a stamp").ok()?;
    Some(EventStamp {
        room: RoomName::trusted(object.required("roomId", TEXT).ok()?),
        seq: object.required("seq", WHOLE).ok()?,
    })
}

/// Completes the list of [`Line::Event`], with the offset as the last argument if there
/// is one.
pub(crate) fn finish_args(mut open_args: String, offset: Option<&str>) -> String {
    if let Some(offset) = offset {
        open_args.push(',');
        push_string(&mut open_args, offset);
    }
    open_args.push(']');
    open_args
}

/// An event of a Socket.IO client.
#[derive(Debug, PartialEq)]
pub(crate) struct ClientEvent {
    /// Length in bytes of the same command as a line of the native framing. The limit of
    /// frames applies to it, so that both protocols accept the same commands.
    pub(crate) line_length: usize,
    /// The command, or the error to answer.
    pub(crate) command: Result<Command>,
}

/// Parses an event of a Socket.IO client: its name, and its first argument as the data.
/// Returns `None` if `args` is not a JSON list with a name.
pub(crate) fn parse_event(args: &str, id: Option<u32>) -> Option<ClientEvent> {
    let args = on_one_line(args);
    let args: Vec<&RawValue> = serde_json::from_str(&args).ok()?;
    let (name, data) = (*args.first()?, args.get(1).copied());
    let field = |key: &str, value: usize| key.len() + value;
    let mut line_length = field(r#"{"event":}"#, name.get().len());
    if let Some(data) = data {
        line_length += field(r#","data":"#, data.get().len());
    }
    if let Some(id) = id {
        let digits = id.checked_ilog10().unwrap_or(0) as usize + 1;
        line_length += field(r#","id":"#, digits);
    }
    Some(ClientEvent {
        line_length,
        command: framing::decode_parts(name, data),
    })
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

/// A text for many Socket.IO clients. Each line is parsed once, and encoded once for all
/// clients that receive the same packets.
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

    /// Returns the packets, in the order of the lines.
    pub(crate) fn packets(self) -> Vec<BroadcastPacket> {
        if self.groups.is_empty() {
            return Vec::new();
        }
        let mut packets = Vec::new();
        for line in self.text.split('\n') {
            // An acknowledgement is never broadcast.
            let Some(Line::Event { open_args, stamp }) = parse_line(line) else {
                continue;
            };
            for (PacketGroup { nsp, offset }, sessions) in &self.groups {
                let offset = match (&stamp, offset) {
                    (Some(stamp), Some(offset)) => Some(offset.at(stamp.seq)),
                    _ => None,
                };
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

    fn at(seq: u64) -> EventStamp {
        let room = RoomName::trusted("r");
        EventStamp { room, seq }
    }

    #[test]
    fn event_line_becomes_an_event_with_offset() {
        let message = r#"{"event":"newMessage","data":{"content":1,"roomId":"r","seq":7}}"#;
        assert_eq!(
            parse_line(message),
            Some(Line::Event {
                open_args: r#"["newMessage",{"content":1,"roomId":"r","seq":7}"#.into(),
                stamp: Some(at(7)),
            })
        );
        let custom = r#"{"event":"x","data":"y","meta":{"roomId":"r","seq":8}}"#;
        let Some(Line::Event { open_args, stamp }) = parse_line(custom) else {
            panic!("not an event");
        };
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
    fn answer_line_becomes_an_acknowledgement() {
        for (answer, args) in [
            (r#"{"ack":3,"data":{"a":1}}"#, r#"[{"a":1}]"#),
            (
                r#"{"ack":3,"error":{"code":"x"}}"#,
                r#"[{"error":{"code":"x"}}]"#,
            ),
        ] {
            let args = args.to_owned();
            assert_eq!(parse_line(answer), Some(Line::Ack { id: 3, args }));
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
                command: framing::decode_line(line).command,
            };
            assert_eq!(parse_event(args, id), Some(event), "{args}");
        }
        assert_eq!(parse_event("[]", None), None);
        assert_eq!(parse_event("{}", None), None);
    }
}
