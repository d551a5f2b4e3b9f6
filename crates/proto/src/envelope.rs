//! The envelope of an event in a room: the sender's body and the server's stamp,
//! written as one line of JSON.

use crate::event_name::NEW_MESSAGE;
use crate::id::EventName;
use crate::json::{on_one_line, push_number, push_string};
use crate::raw_object::RawObject;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Fields of a message that the server sets. A sender's values for them are dropped.
const SERVER_FIELDS: [&str; 5] = ["roomId", "messageId", "senderId", "seq", "timestamp"];

/// The part of an event that the sender provides, as JSON text on one line. The server
/// passes it on unchanged.
///
/// The serde form, between rooms and gateways, contains the text as JSON and keeps its
/// bytes. Only `serde_json` supports it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Body {
    /// A chat message.
    Message {
        /// The fields of the message without the braces: `"content":"hi","x":1`.
        #[serde(with = "object_fields")]
        fields: String,
    },
    /// A custom event.
    Custom {
        /// The name of the event.
        event: EventName,
        /// Its data, any JSON value.
        #[serde(with = "json_text")]
        data: String,
    },
}

/// The serde form of JSON text: the JSON itself.
mod json_text {
    use serde::de::{Deserialize, Deserializer};
    use serde::ser::{Error, Serialize, Serializer};
    use serde_json::value::RawValue;

    pub(super) fn serialize<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
        let json: &RawValue = serde_json::from_str(text).map_err(S::Error::custom)?;
        json.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
        Ok(<Box<RawValue>>::deserialize(d)?.get().to_owned())
    }
}

/// The serde form of the fields of an object: the object.
mod object_fields {
    use serde::de::{Deserializer, Error};
    use serde::ser::Serializer;

    pub(super) fn serialize<S: Serializer>(fields: &str, serializer: S) -> Result<S::Ok, S::Error> {
        super::json_text::serialize(&format!("{{{fields}}}"), serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
        let object = super::json_text::deserialize(d)?;
        let fields = object
            .strip_prefix('{')
            .and_then(|rest| rest.strip_suffix('}'));
        fields
            .map(str::to_owned)
            .ok_or_else(|| D::Error::custom("the fields of a message must be an object"))
    }
}

impl Body {
    /// Returns the body of a chat message with the fields of `data`, without those that
    /// the server sets.
    pub fn message(data: &RawObject) -> Self {
        let mut fields = String::with_capacity(64);
        for (key, value) in data.fields() {
            if SERVER_FIELDS.contains(&key) {
                continue;
            }
            if !fields.is_empty() {
                fields.push(',');
            }
            push_string(&mut fields, key);
            fields.push(':');
            fields.push_str(&on_one_line(value.get()));
        }
        Body::Message { fields }
    }

    /// Returns the body of a custom event.
    pub fn custom(event: EventName, data: &RawValue) -> Self {
        Body::Custom {
            event,
            data: on_one_line(data.get()).into_owned(),
        }
    }

    /// Returns the body of an event that a service publishes: a chat message for
    /// `newMessage` whose data is an object, a custom event otherwise.
    pub fn published(event: EventName, data: &RawValue) -> Self {
        if event == NEW_MESSAGE
            && let Ok(object) = RawObject::parse(data.get(), "`data`")
        {
            return Body::message(&object);
        }
        Body::custom(event, data)
    }
}

/// The fields that the server adds to an event in a room.
#[derive(Clone, Copy, Debug)]
pub struct Stamp<'a> {
    /// The room.
    pub room: &'a str,
    /// The id of the message, chosen by the sender or the server.
    pub message_id: &'a str,
    /// The user id of the sender.
    pub sender: &'a str,
    /// The sequence number; `None` for an ephemeral event.
    pub seq: Option<u64>,
    /// The time at which the room accepted the event, by RFC 3339.
    pub timestamp: &'a str,
}

/// Appends the envelope of an event to `out`, without a line break. A `newMessage`
/// carries the stamp in its `data`; every other event carries it in `meta`. With
/// `with_meta`, a `newMessage` carries it in both.
pub fn push_envelope(out: &mut String, body: &Body, stamp: Stamp, with_meta: bool) {
    match body {
        Body::Message { fields } => {
            out.push_str(r#"{"event":"newMessage","data":{"#);
            out.push_str(fields);
            if !fields.is_empty() {
                out.push(',');
            }
            push_stamp(out, stamp);
            out.push('}');
        }
        Body::Custom { event, data } => {
            out.push_str(r#"{"event":"#);
            push_string(out, event);
            out.push_str(r#","data":"#);
            out.push_str(data);
        }
    }
    if with_meta || matches!(body, Body::Custom { .. }) {
        out.push_str(r#","meta":{"#);
        push_stamp(out, stamp);
        out.push('}');
    }
    out.push('}');
}

fn push_stamp(out: &mut String, stamp: Stamp) {
    out.push_str(r#""roomId":"#);
    push_string(out, stamp.room);
    out.push_str(r#","messageId":"#);
    push_string(out, stamp.message_id);
    out.push_str(r#","senderId":"#);
    push_string(out, stamp.sender);
    if let Some(seq) = stamp.seq {
        out.push_str(r#","seq":"#);
        push_number(out, seq);
    }
    out.push_str(r#","timestamp":"#);
    push_string(out, stamp.timestamp);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envelopes_are_valid_json_on_one_line() {
        let stamp = Stamp {
            room: "r",
            message_id: "a\"b\\c",
            sender: "alice",
            seq: Some(7),
            timestamp: "t",
        };
        let bodies = [
            Body::Message {
                fields: String::new(),
            },
            Body::Message {
                fields: r#""content":"hi""#.into(),
            },
            Body::Custom {
                event: EventName::trusted("x"),
                data: r#"[1,{"a":null}]"#.into(),
            },
        ];
        for body in &bodies {
            let mut line = String::new();
            push_envelope(&mut line, body, stamp, false);
            assert!(!line.contains('\n'));
            let value: serde_json::Value = serde_json::from_str(&line).expect("valid JSON");
            let stamped = match body {
                Body::Message { .. } => &value["data"],
                Body::Custom { .. } => &value["meta"],
            };
            assert_eq!(stamped["seq"], 7);
            assert_eq!(stamped["messageId"], "a\"b\\c");
        }
    }
}
