//! JSON from outside, looked at no deeper than needed: an object's fields stay
//! the text they came as, and each is read where it is known what it must be.
//! Used for socket commands and HTTP bodies alike, so that both complain in
//! the same words.

use crate::fault::{Fault, Result};
use crate::name;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// How deep JSON from outside may be nested. Deeper input is a `badRequest`,
/// so that no receiver's parser is driven into its limit (serde_json's own is
/// 128).
pub const MAX_DEPTH: usize = 64;

/// The largest number that every JSON reader holds exactly: 2^53 - 1.
pub const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;

/// An object whose values are still text, in the order they came.
#[derive(Debug, Default)]
pub struct Object<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

/// A key, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Object<'de>, A::Error> {
                let mut fields = Vec::with_capacity(8);
                while let Some((Key(key), value)) = map.next_entry()? {
                    fields.push((key, value));
                }
                Ok(Object(fields))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

impl<'a> Object<'a> {
    /// Reads `text` as an object; the fault calls it `what`.
    pub fn parse(text: &'a str, what: &str) -> Result<Self> {
        serde_json::from_str(text)
            .map_err(|_| Fault::bad_request(format!("{what} must be a JSON object")))
    }

    /// All fields.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.0.iter().map(|(key, value)| (key.as_ref(), *value))
    }

    /// The text of a field. Of a name given twice the last counts, as with
    /// JSON.parse; `null` counts as not given.
    pub fn raw(&self, name: &str) -> Option<&'a RawValue> {
        self.find(name).filter(|value| value.get() != "null")
    }

    /// The text of a field that must be there, be it `null`.
    pub fn any(&self, name: &str) -> Result<&'a RawValue> {
        self.find(name)
            .ok_or_else(|| Fault::bad_field(name, "there"))
    }

    fn find(&self, name: &str) -> Option<&'a RawValue> {
        let mut fields = self.0.iter().rev();
        fields.find(|(key, _)| key == name).map(|(_, value)| *value)
    }

    /// A field read as `kind`, if it is there.
    pub fn get<T>(&self, name: &str, kind: Kind<T>) -> Result<Option<T>> {
        self.raw(name)
            .map(|value| {
                (kind.read)(value.get()).ok_or_else(|| Fault::bad_field(name, kind.expected))
            })
            .transpose()
    }

    /// A field that must be there.
    pub fn need<T>(&self, name: &str, kind: Kind<T>) -> Result<T> {
        self.get(name, kind)?
            .ok_or_else(|| Fault::bad_field(name, kind.expected))
    }
}

/// What a field must be: how to read it, and how to say so.
pub struct Kind<T> {
    pub expected: &'static str,
    pub read: fn(&str) -> Option<T>,
}

impl<T> Clone for Kind<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Kind<T> {}

fn text(json: &str) -> Option<String> {
    serde_json::from_str(json).ok()
}

pub const BOOLEAN: Kind<bool> = Kind {
    expected: "true or false",
    read: |json| match json {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    },
};

/// A sequence number or a count.
pub const WHOLE: Kind<u64> = Kind {
    expected: "a whole number from 0 to 2^53-1",
    read: whole,
};

/// Digits to a number of at most 2^53-1, in JSON and in a query alike.
pub fn whole(digits: &str) -> Option<u64> {
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits
        .parse()
        .ok()
        .filter(|number| *number <= MAX_SAFE_INTEGER)
}

pub const TEXT: Kind<String> = Kind {
    expected: "a string",
    read: text,
};

pub const ROOM: Kind<String> = Kind {
    expected: "a room: 1 to 128 of A-Z a-z 0-9 . _ : - @",
    read: |json| text(json).filter(|room| name::is_room(room)),
};

pub const USER: Kind<String> = Kind {
    expected: "a user: 1 to 128 of A-Z a-z 0-9 . _ : -",
    read: |json| text(json).filter(|user| name::is_user(user)),
};

/// The name of a custom event: none of the contract's own.
pub const EVENT: Kind<String> = Kind {
    expected: "1 to 64 of A-Z a-z 0-9 . _ : - and no name of the protocol's own",
    read: |json| {
        text(json).filter(|event| name::is_event(event) && !super::event::is_reserved(event))
    },
};

/// What a service may publish: a custom event or `newMessage`.
pub const PUBLISHED_EVENT: Kind<String> = Kind {
    expected: EVENT.expected,
    read: |json| {
        text(json)
            .filter(|event| event == super::event::NEW_MESSAGE)
            .or_else(|| (EVENT.read)(json))
    },
};

pub const MESSAGE_ID: Kind<String> = Kind {
    expected: "a string of 1 to 128 characters without control characters",
    read: |json| {
        text(json).filter(|id| {
            (1..=128).contains(&id.chars().count()) && !id.chars().any(char::is_control)
        })
    },
};

/// An epoch as a client gives it back. What cannot be one is kept as a string
/// that no room has, for another epoch is no error.
pub const EPOCH: Kind<String> = TEXT;

/// Whether `json`, which need not be valid, nests deeper than [`MAX_DEPTH`].
pub fn too_deep(json: &str) -> bool {
    let mut depth = 0usize;
    let mut in_string = false;
    let mut bytes = json.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => in_string = !in_string,
            b'\\' if in_string => {
                bytes.next();
            }
            b'{' | b'[' if !in_string => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return true;
                }
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// `json` on one line. Inside a JSON string a line break is always escaped, so
/// those that are there stand between tokens, where a space does as well.
pub fn on_one_line(json: &str) -> Cow<'_, str> {
    if json.bytes().any(|b| b == b'\n' || b == b'\r') {
        Cow::Owned(json.replace(['\n', '\r'], " "))
    } else {
        Cow::Borrowed(json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_as_what_they_must_be() {
        let object =
            Object::parse(r#"{"a":1,"b":"x","a":2,"n":null,"\u0063":true}"#, "it").unwrap();
        assert_eq!(object.get("a", WHOLE), Ok(Some(2)));
        assert_eq!(object.get("n", WHOLE), Ok(None));
        assert_eq!(object.get("c", BOOLEAN), Ok(Some(true)));
        let fault = object.get("b", WHOLE).unwrap_err();
        assert_eq!(fault.message, "`b` must be a whole number from 0 to 2^53-1");
        assert_eq!(fault.field.as_deref(), Some("b"));
        assert!(object.need("missing", TEXT).is_err());
        assert!(Object::parse("[]", "it").is_err());
    }

    #[test]
    fn whole_numbers_end_at_2_to_the_53() {
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
    fn depth_is_counted_outside_strings() {
        assert!(!too_deep(&"[".repeat(MAX_DEPTH)));
        assert!(too_deep(&"[".repeat(MAX_DEPTH + 1)));
        assert!(!too_deep(&format!("\"{}\"", "[".repeat(1000))));
        assert!(!too_deep(&format!("\"\\\"{}\"", "[".repeat(1000))));
        assert!(!too_deep(&"[]".repeat(1000)));
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
