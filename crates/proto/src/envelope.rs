//! The envelope of an event in a room: the sender's body and the server's stamp,
//! written as one line of JSON.

use crate::error;
use crate::event_name::NEW_MESSAGE;
use crate::id::EventName;
use crate::json::{on_one_line, push_number, push_string};
use crate::raw_object::{RawObject, TEXT};
use crate::user_info::UserInfo;
use serde::Serialize;
use serde::ser::{Error, Serializer};
use serde_json::value::RawValue;
use std::borrow::Cow;

/// The field with the profile of the sender, which the server sets if `SENDER_INFO` is `true`.
const SENDER: &str = "sender";

/// Fields of a message that the server sets. A sender's values for them are dropped.
const SERVER_FIELDS: [&str; 5] = ["roomId", "messageId", "senderId", "seq", "timestamp"];

/// The part of an event that the sender provides, as JSON text on one line. The server
/// passes it on unchanged.
///
/// The serde form, between rooms and gateways, contains the text as JSON and keeps its
/// bytes. Only `serde_json` supports it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Body {
    /// A chat message.
    Message {
        /// The fields of the message without the braces: `"content":"hi","x":1`.
        #[serde(serialize_with = "serialize_fields")]
        fields: String,
    },
    /// A custom event.
    Custom {
        /// The name of the event.
        event: EventName,
        /// Its data, any JSON value.
        #[serde(serialize_with = "serialize_json")]
        data: String,
    },
}

/// Serialises JSON text as the JSON itself.
fn serialize_json<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    let json: &RawValue = serde_json::from_str(text).map_err(S::Error::custom)?;
    json.serialize(serializer)
}

/// Serialises the fields of an object as the object.
fn serialize_fields<S: Serializer>(fields: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serialize_json(&format!("{{{fields}}}"), serializer)
}

impl Body {
    /// Parses the serde form.
    pub(crate) fn read_form(json: &str) -> error::Result<Self> {
        let (name, fields) = RawObject::parse_variant(json)?;
        if name == "Custom" {
            return Ok(Body::Custom {
                event: EventName::trusted(fields.required("event", TEXT)?),
                data: fields.required_raw("data")?.get().to_owned(),
            });
        }
        let object = fields.required_raw("fields")?.get();
        let fields = object
            .strip_prefix('{')
            .and_then(|rest| rest.strip_suffix('}'))
            .ok_or_else(|| error::Error::bad_field("fields", "an object"))?;
        Ok(Body::Message {
            fields: fields.to_owned(),
        })
    }

    /// Returns the number of bytes that the sender provides.
    pub fn size(&self) -> usize {
        match self {
            Body::Message { fields } => fields.len(),
            Body::Custom { event, data } => event.len() + data.len(),
        }
    }

    /// Returns the body of a chat message with the fields of `data`, without those that
    /// the server sets.
    pub fn message(data: &RawObject<'_>) -> Self {
        Body::of_fields(data, |key| SERVER_FIELDS.contains(&key))
    }

    /// Returns the body of a chat message with the fields of `data` that are not dropped.
    fn of_fields(data: &RawObject<'_>, is_dropped: impl Fn(&str) -> bool) -> Self {
        let mut fields = String::with_capacity(64);
        for (key, value) in data.fields() {
            if is_dropped(key) {
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

    /// Removes the field that is reserved for the profile of the sender. Only for servers that
    /// set it.
    pub fn without_sender(&self) -> Cow<'_, Self> {
        let Body::Message { fields } = self else {
            return Cow::Borrowed(self);
        };
        // The names of fields are written without needless escapes. The text may also be in a
        // value, so the field may still be missing.
        if !fields.contains(r#""sender":"#) {
            return Cow::Borrowed(self);
        }
        let object = format!("{{{fields}}}");
        let Ok(object) = RawObject::parse(&object, "the message") else {
            return Cow::Borrowed(self);
        };
        Cow::Owned(Body::of_fields(&object, |key| key == SENDER))
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
    /// The profile of the sender, if messages have it.
    pub info: Option<&'a UserInfo>,
}

/// Appends the envelope of an event to `out`, without a line break. A `newMessage`
/// carries the stamp in its `data`; every other event carries it in `meta`. With
/// `with_meta`, a `newMessage` carries it in both.
pub fn push_envelope(out: &mut String, body: &Body, stamp: Stamp<'_>, with_meta: bool) {
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

/// Returns a custom event for all connections of the server, which belongs to no room: one line
/// without `roomId` and `seq`. `data` is JSON.
pub fn broadcast(event: &str, data: &str, stamp: Stamp<'_>) -> String {
    let mut out = String::with_capacity(data.len() + 192);
    out.push_str(r#"{"event":"#);
    push_string(&mut out, event);
    out.push_str(r#","data":"#);
    out.push_str(&on_one_line(data));
    out.push_str(r#","meta":{"messageId":"#);
    push_string(&mut out, stamp.message_id);
    out.push_str(r#","senderId":"#);
    push_string(&mut out, stamp.sender);
    out.push_str(r#","timestamp":"#);
    push_string(&mut out, stamp.timestamp);
    out.push_str("}}");
    out
}

fn push_stamp(out: &mut String, stamp: Stamp<'_>) {
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
    if let Some(info) = stamp.info {
        out.push_str(r#","sender":"#);
        out.push_str(info.as_json());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_of_the_sender_is_the_last_field_of_the_stamp() {
        let info = UserInfo::parse(r#"{"name":"Alice"}"#);
        let stamp = Stamp {
            room: "r",
            message_id: "m",
            sender: "alice",
            seq: None,
            timestamp: "t",
            info: info.as_ref(),
        };
        let fields = r#""content":"hi""#.to_owned();
        let mut line = String::new();
        push_envelope(&mut line, &Body::Message { fields }, stamp, false);
        assert_eq!(
            line,
            r#"{"event":"newMessage","data":{"content":"hi","roomId":"r","messageId":"m","senderId":"alice","timestamp":"t","sender":{"name":"Alice"}}}"#
        );
    }

    #[test]
    fn a_broadcast_belongs_to_no_room() {
        let stamp = Stamp {
            room: "",
            message_id: "m",
            sender: "s",
            seq: None,
            timestamp: "t",
            info: None,
        };
        assert_eq!(
            broadcast("x", "[1,\n2]", stamp),
            r#"{"event":"x","data":[1, 2],"meta":{"messageId":"m","senderId":"s","timestamp":"t"}}"#
        );
    }

    #[test]
    fn a_client_cannot_send_the_field_of_the_server() {
        for (sent, kept) in [
            (r#"{"content":1,"sender":{"name":"Eve"}}"#, r#""content":1"#),
            (r#"{"\u0073ender":1,"x":2,"sender":3}"#, r#""x":2"#),
            (r#"{"content":{"sender":1}}"#, r#""content":{"sender":1}"#),
            (r#"{"content":"\"sender\":"}"#, r#""content":"\"sender\":""#),
        ] {
            let object = RawObject::parse(sent, "the message").expect("an object");
            let body = Body::message(&object);
            let fields = kept.to_owned();
            assert_eq!(*body.without_sender(), Body::Message { fields }, "{sent}");
        }
    }

    #[test]
    fn envelopes_are_valid_json_on_one_line() {
        let stamp = Stamp {
            room: "r",
            message_id: "a\"b\\c",
            sender: "alice",
            seq: Some(7),
            timestamp: "t",
            info: None,
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
