//! Lines of the native framing as events of Socket.IO, and the other way
//! round. What stands in them is not looked into and goes over as it is.

use super::{SessionId, offset, socketio};
use roomcast_proto::wire::Object;
use roomcast_proto::wire::event::{NEW_MESSAGE, push_string};
use roomcast_proto::wire::object::{TEXT, WHOLE};
use serde_json::value::RawValue;
use std::collections::HashMap;

/// A line for a Socket.IO client.
#[derive(Debug, PartialEq)]
pub enum Line {
    /// To an event that asked for one, with this list.
    Answer { id: i64, args: String },
    /// The list is left open, for an offset may come into it; of a logged event
    /// its room and number.
    Event {
        open: String,
        stamp: Option<(String, u64)>,
    },
}

/// Reads a line that a room wrote.
pub fn read(line: &str) -> Option<Line> {
    let object = Object::parse(line, "a line").ok()?;
    if let Some(id) = object.raw("ack") {
        let args = match object.raw("error") {
            Some(error) => format!(r#"[{{"error":{}}}]"#, error.get()),
            None => format!("[{}]", object.any("data").map_or("{}", RawValue::get)),
        };
        let id = id.get().parse().ok()?;
        return Some(Line::Answer { id, args });
    }
    let event = object.raw("event")?.get();
    let data = object.any("data").map_or("null", RawValue::get);
    let meta = object.raw("meta").map(RawValue::get);
    // A message of a client has it all in its data.
    let stamp = match meta {
        Some(meta) => stamp(meta),
        None if event == format!("\"{NEW_MESSAGE}\"") => stamp(data),
        None => None,
    };
    let mut open = String::with_capacity(line.len() + 32);
    open.push('[');
    open.push_str(event);
    open.push(',');
    open.push_str(data);
    if let Some(meta) = meta {
        open.push(',');
        open.push_str(meta);
    }
    Some(Line::Event { open, stamp })
}

fn stamp(json: &str) -> Option<(String, u64)> {
    let object = Object::parse(json, "a stamp").ok()?;
    Some((
        object.need("roomId", TEXT).ok()?,
        object.need("seq", WHOLE).ok()?,
    ))
}

pub fn is_gap(line: &str) -> bool {
    line.starts_with(r#"{"event":"gap""#)
}

/// Ends the list of an event.
pub fn close(mut open: String, offset: Option<&str>) -> String {
    if let Some(offset) = offset {
        open.push(',');
        push_string(&mut open, offset);
    }
    open.push(']');
    open
}

/// An event of a Socket.IO client as a line: its name, and its first argument
/// as the data. `None` where the name is none.
pub fn from_event(args: &str, id: Option<u32>) -> Option<String> {
    let args: Vec<&RawValue> = serde_json::from_str(args).ok()?;
    let name = args.first()?.get();
    let mut line = format!(r#"{{"event":{name}"#);
    if let Some(data) = args.get(1) {
        line.push_str(r#","data":"#);
        line.push_str(&roomcast_proto::wire::object::on_one_line(data.get()));
    }
    if let Some(id) = id {
        line.push_str(&format!(r#","id":{id}"#));
    }
    line.push('}');
    Some(line)
}

/// The offsets of a client, but for its position in one room.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Offset {
    pub before: String,
    pub after: String,
}

impl Offset {
    pub fn at(&self, seq: u64) -> String {
        let mut offset = self.before.clone();
        offset::push(&mut offset, seq);
        if !self.after.is_empty() {
            offset.push('.');
            offset.push_str(&self.after);
        }
        offset
    }
}

/// Who gets the same packets: of one namespace, with the same offsets.
type Group = (String, Option<Offset>);

/// One text for many Socket.IO clients: read once, and made into packets once
/// for all that stand alike.
pub struct Stamped<'a> {
    text: &'a str,
    groups: HashMap<Group, Vec<SessionId>>,
}

impl<'a> Stamped<'a> {
    pub fn new(text: &'a str) -> Self {
        Stamped {
            text,
            groups: HashMap::new(),
        }
    }

    pub fn add(&mut self, session: SessionId, nsp: &str, offset: Option<Offset>) {
        let group = (nsp.to_owned(), offset);
        self.groups.entry(group).or_default().push(session);
    }

    /// Each message with the sessions it is for, in the order of the lines.
    pub fn messages(self) -> Vec<(Vec<SessionId>, String)> {
        if self.groups.is_empty() {
            return Vec::new();
        }
        let mut messages = Vec::new();
        for line in self.text.split('\n') {
            // Answers are never for all.
            let Some(Line::Event { open, stamp }) = read(line) else {
                continue;
            };
            for ((nsp, offset), sessions) in &self.groups {
                let offset = match (&stamp, offset) {
                    (Some((_, seq)), Some(offset)) => Some(offset.at(*seq)),
                    _ => None,
                };
                let args = close(open.clone(), offset.as_deref());
                messages.push((sessions.clone(), socketio::event(nsp, &args)));
            }
        }
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_becomes_an_event_and_an_answer_an_acknowledgement() {
        let message = r#"{"event":"newMessage","data":{"content":1,"roomId":"r","seq":7}}"#;
        assert_eq!(
            read(message),
            Some(Line::Event {
                open: r#"["newMessage",{"content":1,"roomId":"r","seq":7}"#.into(),
                stamp: Some(("r".into(), 7)),
            })
        );
        let custom = r#"{"event":"x","data":"y","meta":{"roomId":"r","seq":8}}"#;
        let Some(Line::Event { open, stamp }) = read(custom) else {
            panic!("an event");
        };
        assert_eq!(stamp, Some(("r".into(), 8)));
        let around = Offset {
            before: "1.5".into(),
            after: "z".into(),
        };
        assert_eq!(
            close(open, Some(&around.at(8))),
            r#"["x","y",{"roomId":"r","seq":8},"1.5.8.z"]"#
        );
        for (answer, args) in [
            (r#"{"ack":3,"data":{"a":1}}"#, r#"[{"a":1}]"#),
            (
                r#"{"ack":3,"error":{"code":"x"}}"#,
                r#"[{"error":{"code":"x"}}]"#,
            ),
        ] {
            let args = args.to_owned();
            assert_eq!(read(answer), Some(Line::Answer { id: 3, args }));
        }
        assert_eq!(read("no line"), None);
    }

    #[test]
    fn an_event_becomes_a_line() {
        assert_eq!(
            from_event("[\"joinRoom\",\n \"r\"]", Some(4)).as_deref(),
            Some(r#"{"event":"joinRoom","data":"r","id":4}"#)
        );
        assert_eq!(from_event("[1]", None).as_deref(), Some(r#"{"event":1}"#));
        assert_eq!(from_event("[]", None), None);
    }
}
