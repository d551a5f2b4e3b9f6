//! Names and ids as types, so that the compiler distinguishes rooms from users, and
//! validated values from plain text.
//!
//! Each type is a shared string: a clone copies a pointer. A value is validated once,
//! where it enters the server:
//!
//! - `parse` validates. Use it for everything that a client or a service sends. The fields
//!   of [`raw_object`](crate::raw_object) use it.
//! - `trusted` does not validate. Use it for values that were validated before they were
//!   stored, and for ids that the server has created.
//! - `Deserialize` does not validate either. It reads only values that an object has
//!   stored or that another object sends, and these stay valid if the rules become
//!   stricter.

use crate::name;
use serde::de::Deserializer;
use serde::{Deserialize, Serialize, Serializer};
use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::rc::Rc;

/// Defines a shared string with the rule that its values satisfy, and its JSON Schema.
macro_rules! string_type {
    (
        $(#[$doc:meta])*
        $name:ident, $rule:expr, $schema:tt
    ) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Rc<str>);

        impl $name {
            /// Validates `text`. Returns `None` if it breaks the rule of the type.
            pub fn parse(text: &str) -> Option<Self> {
                let rule: fn(&str) -> bool = $rule;
                rule(text).then(|| $name(text.into()))
            }

            /// Creates a value without validation, from storage or from the server itself.
            pub fn trusted(text: impl Into<Rc<str>>) -> Self {
                $name(text.into())
            }

            /// Returns the value as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        // Hash and Ord are those of the text, so maps can be searched by `&str`.
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                &*self.0 == other
            }
        }

        impl PartialEq<&str> for $name {
            fn eq(&self, other: &&str) -> bool {
                &*self.0 == *other
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer).map($name::trusted)
            }
        }

        #[cfg(feature = "schema")]
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!($schema)
            }
        }
    };
}

/// The pattern of user ids in JSON Schemas: characters that are not of the Unicode categories
/// "other" or "separator", and spaces between them.
#[cfg(any(test, feature = "schema"))]
pub(crate) const USER_ID_PATTERN: &str = r"^[^\p{C}\p{Z}](([^\p{C}\p{Z}]| )*[^\p{C}\p{Z}])?$";

string_type!(
    /// The name of a room; see [`name::is_room`].
    RoomName, name::is_room, {
        "type": "string",
        "pattern": "^([A-Za-z0-9._:@-]{1,128}|@[^\\p{C}\\p{Z}](([^\\p{C}\\p{Z}]| )*[^\\p{C}\\p{Z}])?)$",
        "maxLength": 256,
        "description": "The name of a room. `@{userId}` is the personal room of a user.",
        "examples": ["lobby", "@alice"],
    }
);

string_type!(
    /// The id of a user; see [`name::is_user`].
    UserId, name::is_user, {
        "type": "string",
        "pattern": USER_ID_PATTERN,
        "maxLength": 255,
        "description": "The id of a user: the claim `sub` of the token, or the claim that the setting `USER_CLAIM` names. At most 255 bytes of UTF-8.",
        "examples": ["alice", "auth0|5f7c8ec7", "alice@example.com"],
    }
);

string_type!(
    /// The id of an event, chosen by its sender or by the server; see
    /// [`name::is_message_id`].
    MessageId, name::is_message_id, {
        "type": "string",
        "minLength": 1,
        "maxLength": 128,
        "pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f]*$",
        "description": "The id of an event, chosen by its sender or by the server. If a sender repeats an id, the event is not sent again.",
    }
);

string_type!(
    /// The name of a custom event; see [`name::is_event`]. It may be
    /// [reserved](crate::event_name::is_reserved).
    EventName, name::is_event, {
        "type": "string",
        "pattern": "^[A-Za-z0-9._:-]{1,64}$",
        "description": "The name of an event.",
        "examples": ["cursor:moved"],
    }
);

string_type!(
    /// The id of a connection. Made by the server and never used twice.
    ConnectionId, |id| !id.is_empty(), {
        "type": "string",
        "minLength": 1,
        "description": "The id of a connection. It is never used twice.",
    }
);

string_type!(
    /// The epoch of a room's log. It changes when the room is deleted. A client sends it
    /// back together with a position. Any string is valid: a string that is not the room's
    /// epoch means a position in another log.
    Epoch, |_| true, {
        "type": "string",
        "description": "The epoch of a room's log. It changes when the room is deleted.",
    }
);

string_type!(
    /// The name of a gateway. Made by the server.
    GatewayName, |name| !name.is_empty(), {
        "type": "string",
        "minLength": 1,
    }
);

impl Default for Epoch {
    /// Returns the empty text, which no room has as its epoch.
    fn default() -> Self {
        Epoch::trusted("")
    }
}

impl RoomName {
    /// Returns the personal room of a user.
    pub fn personal(user: &UserId) -> Self {
        RoomName::trusted(name::personal_room(user))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn untrusted_values_are_validated() {
        assert!(RoomName::parse("lobby").is_some() && RoomName::parse("a b").is_none());
        assert!(UserId::parse("alice").is_some() && UserId::parse("a\nb").is_none());
        assert!(MessageId::parse("").is_none());
    }

    #[test]
    fn stored_values_are_read_under_any_rule() {
        for stored in [r#""alice""#, r#"" a""#, r#""""#] {
            let user: UserId = serde_json::from_str(stored).expect("a text");
            assert_eq!(serde_json::to_string(&user).expect("JSON"), stored);
        }
        assert!(serde_json::from_str::<UserId>("7").is_err());
    }

    #[test]
    fn values_are_plain_strings_in_json() {
        let user = UserId::trusted("a\"b");
        assert_eq!(serde_json::to_string(&user).expect("JSON"), r#""a\"b""#);
        assert_eq!(RoomName::personal(&user), "@a\"b");
    }

    #[test]
    fn maps_are_searched_by_text() {
        let map = HashMap::from([(UserId::trusted("alice"), 1)]);
        assert_eq!(map.get("alice"), Some(&1));
    }
}
