//! What `POST /revoke` takes.

use roomcast_auth::revoked::{MAX_JTI, MAX_LIFE, Whose};
use roomcast_proto::fault::{Fault, Result};
use roomcast_proto::time::{Millis, SECOND};
use roomcast_proto::wire::Object;
use roomcast_proto::wire::object::{Kind, USER, WHOLE};

const JTI: Kind<String> = Kind {
    expected: "a token's `jti`: 1 to 256 bytes",
    read: |json| {
        serde_json::from_str::<String>(json)
            .ok()
            .filter(|jti| (1..=MAX_JTI).contains(&jti.len()))
    },
};

/// Reads the body: what is revoked, and until when in seconds since 1970.
pub fn parse(body: &str, now: Millis) -> Result<(Whose, u64)> {
    let object = Object::parse(body, "the body")?;
    let whose = match (object.get("userId", USER)?, object.get("jti", JTI)?) {
        (Some(user), None) => Whose::User(user),
        (None, Some(jti)) => Whose::Jti(jti),
        _ => return Err(Fault::bad_field("userId", "given, or `jti`, and not both")),
    };
    let now = now / SECOND;
    let until = object.get("until", WHOLE)?.unwrap_or(now + MAX_LIFE);
    if until <= now || until > now + MAX_LIFE {
        let expected = "a time to come within 400 days, in seconds since 1970";
        return Err(Fault::bad_field("until", expected));
    }
    Ok((whose, until))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_or_a_jti_is_revoked_until_a_time_to_come() {
        let now = 1_000_000;
        let alice = || Whose::User("alice".into());
        for (body, expected) in [
            (r#"{"userId":"alice"}"#, (alice(), 1_000 + MAX_LIFE)),
            (r#"{"userId":"alice","until":1001}"#, (alice(), 1_001)),
            (
                r#"{"jti":"x y"}"#,
                (Whose::Jti("x y".into()), 1_000 + MAX_LIFE),
            ),
            (
                r#"{"jti":"j","userId":null,"until":null}"#,
                (Whose::Jti("j".into()), 1_000 + MAX_LIFE),
            ),
        ] {
            assert_eq!(parse(body, now), Ok(expected), "{body}");
        }
        for (body, field) in [
            ("{}", Some("userId")),
            (r#"{"userId":"a","jti":"j"}"#, Some("userId")),
            (r#"{"userId":"a b"}"#, Some("userId")),
            (r#"{"jti":""}"#, Some("jti")),
            (r#"{"jti":7}"#, Some("jti")),
            (r#"{"jti":"j","until":1000}"#, Some("until")),
            (r#"{"jti":"j","until":"soon"}"#, Some("until")),
            (r#"{"jti":"j","until":99999999999}"#, Some("until")),
            ("[]", None),
        ] {
            let fault = parse(body, now).expect_err(body);
            assert_eq!(fault.field.as_deref(), field, "{body}");
        }
    }
}
