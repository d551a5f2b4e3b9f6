//! The profile of a user, which other users see: the claim `info` of the token.

use crate::json::{on_one_line, too_deep, unescape_non_ascii};
use crate::raw_object::RawObject;
use serde::de::{Deserializer, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use std::fmt;
use std::rc::Rc;

/// Longest profile in bytes of JSON.
pub const MAX_USER_INFO: usize = 1024;

/// A JSON object of at most [`MAX_USER_INFO`] bytes on one line, for example with a name and an
/// avatar. A clone copies a pointer.
///
/// `Serialize` writes the object itself. Only `serde_json` supports it.
#[derive(Clone, PartialEq, Eq)]
pub struct UserInfo(Rc<str>);

impl UserInfo {
    /// Validates JSON. Returns `None` if it is not an object, too long, or nested too deep.
    pub fn parse(json: &str) -> Option<Self> {
        let info = UserInfo::trusted(json);
        let is_valid = info.0.len() <= MAX_USER_INFO
            && !too_deep(&info.0)
            && RawObject::parse(&info.0, "info").is_ok();
        is_valid.then_some(info)
    }

    /// Creates a profile from JSON that was validated before.
    pub fn trusted(json: &str) -> Self {
        // The same profile always has the same text: see `PartialEq`.
        let json = on_one_line(json.trim());
        UserInfo(unescape_non_ascii(&json).into())
    }

    /// Returns the profile as JSON on one line.
    pub fn as_json(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for UserInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for UserInfo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let json: &RawValue = serde_json::from_str(&self.0).map_err(S::Error::custom)?;
        json.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for UserInfo {
    /// Reads a profile that was validated before it was stored or sent.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = <&RawValue>::deserialize(deserializer)?.get();
        match json.starts_with('{') {
            true => Ok(UserInfo::trusted(json)),
            false => Err(D::Error::custom("expected an object")),
        }
    }
}

/// The newest profile of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// The time at which the token was issued, in seconds since 1970, if it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued: Option<u64>,
    /// The profile in the token, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub info: Option<UserInfo>,
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for UserInfo {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "UserInfo".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "object",
            "additionalProperties": true,
            "description": "The profile of a user: the claim `info` of the user's newest token. Not sent if that token has none.",
            "examples": [{ "name": "Alice" }],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_an_object_of_at_most_1024_bytes() {
        let name = |length: usize| format!(r#"{{"n":"{}"}}"#, "x".repeat(length));
        let deep = |depth: usize| format!(r#"{{"n":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
        for good in ["{}", r#"{"name":"José"}"#, &name(1016), &deep(63)] {
            assert_eq!(UserInfo::parse(good).expect(good).as_json(), good);
        }
        for bad in ["", "[]", "7", "null", "{", "{}x", &name(1017), &deep(64)] {
            assert_eq!(UserInfo::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_same_profile_has_the_same_text_however_it_arrives() {
        let info = UserInfo::parse(r#"{"name":"José 👩"}"#);
        let escaped = r#" {"name":"Jos\u00e9 \ud83d\udc69"} "#;
        assert_eq!(UserInfo::parse(escaped), info);
        let read: UserInfo = serde_json::from_str(escaped).expect("an object");
        assert_eq!(Some(read), info);
        let lines = UserInfo::parse("{\"a\":\r\n1}").expect("an object");
        assert_eq!(lines.as_json(), r#"{"a":  1}"#);
    }

    #[test]
    fn a_profile_is_serialised_as_the_object() {
        let profile = Profile {
            issued: Some(7),
            info: UserInfo::parse(r#"{"b":1.50,"a":2}"#),
        };
        let json = serde_json::to_string(&profile).expect("JSON");
        assert_eq!(json, r#"{"issued":7,"info":{"b":1.50,"a":2}}"#);
        let read: Profile = crate::reader::from_str(&json).expect("a profile");
        assert_eq!(read, profile);
        assert!(crate::reader::from_str::<Profile>(r#"{"info":[]}"#).is_err());
    }
}
