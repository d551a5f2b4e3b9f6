//! Parses the body of `POST /revoke`.

use roomcast_auth::revocation::{MAX_JTI, MAX_LIFE, RevocationTarget};
use roomcast_proto::error::{Error, Result};
use roomcast_proto::raw_object::{Field, RawObject, USER, WHOLE};
use roomcast_proto::time::{Millis, SECOND};

/// The id of a token.
const JTI: Field<String> = Field {
    expected: "the `jti` of a token: 1 to 256 bytes",
    read: |json| {
        serde_json::from_str::<String>(json)
            .ok()
            .filter(|jti| (1..=MAX_JTI).contains(&jti.len()))
    },
};

/// Parses the body of a request. Returns the tokens to revoke, and the end of the revocation in
/// seconds since 1970: `default_until` if the body has none.
///
/// # Errors
///
/// Returns `badRequest` if the body is not an object, or has a wrong field.
pub fn parse(body: &str, default_until: u64, now: Millis) -> Result<(RevocationTarget, u64)> {
    let object = RawObject::parse(body, "the body")?;
    let target = match (object.get("userId", USER)?, object.get("jti", JTI)?) {
        (Some(user), None) => RevocationTarget::User(user.to_string()),
        (None, Some(jti)) => RevocationTarget::Jti(jti),
        _ => {
            let error = "exactly one of `userId` and `jti` is required";
            return Err(Error {
                field: Some("userId".to_owned()),
                ..Error::bad_request(error)
            });
        }
    };
    let now = now / SECOND;
    let until = object.get("until", WHOLE)?.unwrap_or(default_until);
    if until <= now || until > now + MAX_LIFE {
        let expected = "a time within the next 400 days, in seconds since 1970";
        return Err(Error::bad_field("until", expected));
    }
    Ok((target, until))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_or_a_jti_is_revoked_until_a_future_time() {
        let now = 1_000_000;
        let alice = || RevocationTarget::User("alice".into());
        for (body, expected) in [
            (r#"{"userId":"alice"}"#, (alice(), 5_000)),
            (r#"{"userId":"alice","until":1001}"#, (alice(), 1_001)),
            (
                r#"{"jti":"x y"}"#,
                (RevocationTarget::Jti("x y".into()), 5_000),
            ),
            (
                r#"{"jti":"j","userId":null,"until":null}"#,
                (RevocationTarget::Jti("j".into()), 5_000),
            ),
        ] {
            assert_eq!(parse(body, 5_000, now), Ok(expected), "{body}");
        }
        for (body, field) in [
            ("{}", Some("userId")),
            (r#"{"userId":"a","jti":"j"}"#, Some("userId")),
            (r#"{"userId":"a "}"#, Some("userId")),
            (r#"{"jti":""}"#, Some("jti")),
            (r#"{"jti":7}"#, Some("jti")),
            (r#"{"jti":"j","until":1000}"#, Some("until")),
            (r#"{"jti":"j","until":"soon"}"#, Some("until")),
            (r#"{"jti":"j","until":99999999999}"#, Some("until")),
            ("[]", None),
        ] {
            let error = parse(body, 5_000, now).expect_err(body);
            assert_eq!(error.field.as_deref(), field, "{body}");
        }
    }
}
