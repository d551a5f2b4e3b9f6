//! Reading JSON objects from clients and services. The values of an object remain text until
//! a [`Field`] reads them, so data that is only forwarded is never parsed. Socket commands
//! and HTTP bodies both use this module, so they report the same errors.

use crate::error::{Error, Result};
use crate::event_name::{NEW_MESSAGE, is_reserved};
use crate::id::{Epoch, EventName, MessageId, RoomName, UserId};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// The largest integer that every JSON parser represents exactly: 2^53 - 1
/// (RFC 8259, 6).
pub const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;

/// A JSON object whose values are still text, in the order in which they arrived.
#[derive(Debug, Default)]
pub struct RawObject<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

/// A key, borrowed if it contains no escapes.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for RawObject<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = RawObject<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<RawObject<'de>, A::Error> {
                let mut fields = Vec::with_capacity(8);
                while let Some((Key(key), value)) = map.next_entry()? {
                    fields.push((key, value));
                }
                Ok(RawObject(fields))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

impl<'a> RawObject<'a> {
    /// Parses `text` as an object. `what` names the text in the error message.
    pub fn parse(text: &'a str, what: &str) -> Result<Self> {
        serde_json::from_str(text)
            .map_err(|_| Error::bad_request(format!("{what} must be a JSON object")))
    }

    /// Parses the serde form of a variant of an enum, `{"Variant":{…}}`. Returns the name of
    /// the variant and its fields.
    pub(crate) fn parse_variant(json: &'a str) -> Result<(Cow<'a, str>, Self)> {
        let variants = Self::parse(json, "a variant")?.0;
        let (name, fields) = variants
            .into_iter()
            .next()
            .ok_or_else(|| Error::bad_request("a variant must have a name"))?;
        Ok((name, Self::parse(fields.get(), "the fields of a variant")?))
    }

    /// Returns all fields, including repeated fields and `null`.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.0.iter().map(|(key, value)| (key.as_ref(), *value))
    }

    /// Returns the text of a field, or `None` if the field is missing or `null`. The
    /// last of repeated fields counts, as in JavaScript's `JSON.parse`.
    pub fn raw(&self, name: &str) -> Option<&'a RawValue> {
        self.find(name).filter(|value| value.get() != "null")
    }

    /// Returns the text of a field, which may be `null`. Fails if the field is missing.
    pub fn required_raw(&self, name: &str) -> Result<&'a RawValue> {
        self.find(name).ok_or_else(|| Error::missing_field(name))
    }

    fn find(&self, name: &str) -> Option<&'a RawValue> {
        let mut fields = self.0.iter().rev();
        fields.find(|(key, _)| key == name).map(|(_, value)| *value)
    }

    /// Reads a field. Returns `None` if it is missing or `null`. Fails if it has a wrong
    /// value.
    pub fn get<T>(&self, name: &str, field: Field<T>) -> Result<Option<T>> {
        self.raw(name)
            .map(|value| {
                (field.read)(value.get()).ok_or_else(|| Error::bad_field(name, field.expected))
            })
            .transpose()
    }

    /// Reads a field. Fails if it is missing, `null` or has a wrong value.
    pub fn required<T>(&self, name: &str, field: Field<T>) -> Result<T> {
        self.get(name, field)?
            .ok_or_else(|| Error::missing_field(name))
    }
}

/// The type of a field: how its JSON text is read, and how an error message describes
/// it.
pub struct Field<T> {
    /// Completes the error message "`name` must be …".
    pub expected: &'static str,
    /// Reads the JSON text of a value. Returns `None` if the value is wrong.
    pub read: fn(&str) -> Option<T>,
}

impl<T> Clone for Field<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Field<T> {}

fn text(json: &str) -> Option<String> {
    serde_json::from_str(json).ok()
}

fn event(json: &str) -> Option<EventName> {
    EventName::parse(&text(json)?)
}

/// A boolean.
pub const BOOLEAN: Field<bool> = Field {
    expected: "true or false",
    read: |json| match json {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    },
};

/// A sequence number or a count: an integer from 0 to [`MAX_SAFE_INTEGER`].
pub const WHOLE: Field<u64> = Field {
    expected: "an integer between 0 and 2^53-1",
    read: whole,
};

/// Parses decimal digits, in JSON or in a query. Returns `None` if the text contains
/// anything except digits, or if the number exceeds [`MAX_SAFE_INTEGER`].
pub fn whole(digits: &str) -> Option<u64> {
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits
        .parse()
        .ok()
        .filter(|number| *number <= MAX_SAFE_INTEGER)
}

/// Any string.
pub const TEXT: Field<String> = Field {
    expected: "a string",
    read: text,
};

/// A room name.
pub const ROOM: Field<RoomName> = Field {
    expected: "a room name (1 to 128 of A-Z a-z 0-9 . _ : - @, or @ and a user id)",
    read: |json| RoomName::parse(&text(json)?),
};

/// A user id.
pub const USER: Field<UserId> = Field {
    expected: "a user id (1 to 255 bytes of printable characters without outer white space)",
    read: |json| UserId::parse(&text(json)?),
};

/// The name of a custom event that is not [reserved](is_reserved).
pub const EVENT: Field<EventName> = Field {
    expected: "an event name (1 to 64 of A-Z a-z 0-9 . _ : -) that is not reserved",
    read: |json| event(json).filter(|event| !is_reserved(event)),
};

/// The name of an event that a service may publish: a custom event or `newMessage`.
pub const PUBLISHED_EVENT: Field<EventName> = Field {
    expected: EVENT.expected,
    read: |json| event(json).filter(|event| *event == NEW_MESSAGE || !is_reserved(event)),
};

/// A message id chosen by the sender.
pub const MESSAGE_ID: Field<MessageId> = Field {
    expected: "a string of 1 to 128 characters without control characters",
    read: |json| MessageId::parse(&text(json)?),
};

/// The epoch of a log, as a client sends it back. Any string is accepted: a different epoch
/// is not an error, but means a position in another log.
pub const EPOCH: Field<Epoch> = Field {
    expected: TEXT.expected,
    read: |json| text(json).map(Epoch::trusted),
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_by_their_type() {
        let object =
            RawObject::parse(r#"{"a":1,"b":"x","a":2,"n":null,"\u0063":true}"#, "it").unwrap();
        assert_eq!(object.get("a", WHOLE), Ok(Some(2)));
        assert_eq!(object.get("n", WHOLE), Ok(None));
        assert_eq!(object.get("c", BOOLEAN), Ok(Some(true)));
        let error = object.get("b", WHOLE).unwrap_err();
        assert_eq!(error.message, "`b` must be an integer between 0 and 2^53-1");
        assert_eq!(error.field.as_deref(), Some("b"));
        let error = object.required("missing", TEXT).unwrap_err();
        assert_eq!(error.message, "`missing` is required");
        assert_eq!(error.field.as_deref(), Some("missing"));
        assert!(RawObject::parse("[]", "it").is_err());
    }

    #[test]
    fn integers_end_at_2_to_the_53() {
        assert_eq!(whole("9007199254740991"), Some(MAX_SAFE_INTEGER));
        for bad in [
            "",
            "-1",
            "+1",
            "1.0",
            "1e3",
            "9007199254740992",
            "99999999999999999999",
            " 1",
        ] {
            assert_eq!(whole(bad), None, "{bad}");
        }
    }

    #[test]
    fn message_ids_have_no_control_characters() {
        assert!((MESSAGE_ID.read)(r#""a-1 ü""#).is_some());
        for bad in [
            r#""""#,
            r#""a\nb""#,
            "7",
            &format!("\"{}\"", "x".repeat(129)),
        ] {
            assert!((MESSAGE_ID.read)(bad).is_none(), "{bad}");
        }
    }
}
