//! Verification of JSON Web Tokens (RFC 7519) and their claims.

use crate::keys::{Keys, VerifyError};
use crate::revocation::MAX_JTI;
use chrono::{DateTime, TimeDelta, Utc};
use jwt_compact::UntrustedToken;
use roomcast_proto::access::{self, Identity, Rights, RoomPatterns, TokenId};
use roomcast_proto::error::{Error, Result};
use roomcast_proto::id::UserId;
use roomcast_proto::time::Millis;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// Tolerance in seconds for `nbf` and `iat`, because clocks differ. `exp` has none: a
/// connection that its token has closed must not be opened again by the same token.
pub const LEEWAY_SECONDS: i64 = 60;

/// The required values of claims, and the default for `rooms`.
pub(crate) struct ClaimRules<'a> {
    /// The required `iss`; `None` allows any.
    pub(crate) issuer: Option<&'a str>,
    /// A value that `aud` must contain; `None` allows any.
    pub(crate) audience: Option<&'a str>,
    /// The patterns of a token without `rooms`.
    pub(crate) default_rooms: &'a RoomPatterns,
}

/// The claims of the contract. Unknown claims are ignored; a claim of a wrong type makes
/// the token invalid.
#[derive(Deserialize)]
struct Claims {
    sub: Option<String>,
    iss: Option<String>,
    aud: Option<Audience>,
    rooms: Option<RoomsClaim>,
    role: Option<String>,
    jti: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Audience {
    fn contains(&self, wanted: &str) -> bool {
        match self {
            Audience::One(audience) => audience == wanted,
            Audience::Many(audiences) => audiences.iter().any(|audience| audience == wanted),
        }
    }
}

/// The claim `rooms`: `{ pattern: [right, …] }` or `[pattern, …]`.
struct RoomsClaim(RoomPatterns);

impl<'de> Deserialize<'de> for RoomsClaim {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Rooms;
        impl<'de> Visitor<'de> for Rooms {
            type Value = RoomsClaim;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of room patterns, or a map from pattern to rights")
            }

            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut list: A,
            ) -> std::result::Result<RoomsClaim, A::Error> {
                let mut patterns = Vec::new();
                while let Some(pattern) = list.next_element::<String>()? {
                    patterns.push((pattern, Rights::MEMBER));
                }
                Ok(RoomsClaim(RoomPatterns::new(patterns)))
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<RoomsClaim, A::Error> {
                let mut patterns = Vec::new();
                while let Some((pattern, names)) = map.next_entry::<String, Vec<String>>()? {
                    let rights = names
                        .iter()
                        .filter_map(|name| Rights::parse(name))
                        .fold(Rights::NONE, Rights::with);
                    patterns.push((pattern, rights));
                }
                Ok(RoomsClaim(RoomPatterns::new(patterns)))
            }
        }
        deserializer.deserialize_any(Rooms)
    }
}

/// Fields of a token's header that the library does not read.
#[derive(Clone, Deserialize)]
struct ExtraHeader {
    /// Extensions that a recipient must understand (RFC 7515, 4.1.11). We support none.
    crit: Option<IgnoredAny>,
}

/// Verifies the signature and the claims of a token and returns its identity. Does not
/// check whether the token was revoked.
pub(crate) fn verify(
    keys: &Keys,
    rules: &ClaimRules<'_>,
    token: &str,
    now: Millis,
) -> Result<Identity> {
    if token.len() > access::MAX_TOKEN {
        return Err(invalid("is longer than 16384 bytes"));
    }
    let untrusted: UntrustedToken<'_, ExtraHeader> =
        token.try_into().map_err(|_| invalid("is not a JWT"))?;
    if untrusted.header().other_fields.crit.is_some() {
        return Err(invalid("uses extensions (`crit`), which are not supported"));
    }
    let verified = keys.verify::<Claims, _>(token, &untrusted);
    let claims = verified.map_err(|why| match why {
        VerifyError::BadSignature => invalid("is not signed with a key of this server"),
        VerifyError::BadClaims => invalid("has a claim of a wrong type"),
        VerifyError::Ambiguous => invalid("has no `kid`, and several keys match"),
        VerifyError::NoKeysYet => Error::internal(),
    })?;
    let expires = check_times(&claims, now)?;

    let custom = claims.custom;
    let user = custom.sub.ok_or_else(|| invalid("has no `sub`"))?;
    let user = UserId::parse(&user).ok_or_else(|| {
        invalid("has an invalid `sub`: it must be 1 to 128 of A-Z a-z 0-9 . _ : -")
    })?;
    if rules.issuer.is_some() && custom.iss.as_deref() != rules.issuer {
        return Err(invalid("has the wrong `iss`"));
    }
    if let Some(wanted) = rules.audience
        && !custom.aud.is_some_and(|audience| audience.contains(wanted))
    {
        return Err(invalid("has the wrong `aud`"));
    }
    if custom.jti.as_ref().is_some_and(|jti| jti.len() > MAX_JTI) {
        return Err(invalid("has a `jti` of more than 256 bytes"));
    }
    Ok(Identity {
        user,
        expires,
        service: custom.role.as_deref() == Some("service"),
        patterns: match custom.rooms {
            Some(RoomsClaim(patterns)) => patterns,
            None => rules.default_rooms.clone(),
        },
        token: TokenId {
            issued: claims
                .issued_at
                .and_then(|at| u64::try_from(at.timestamp()).ok()),
            jti: custom.jti,
        },
    })
}

/// Creates an `unauthorized` error: "the token …".
fn invalid(what: &str) -> Error {
    Error::unauthorized(format!("the token {what}"))
}

/// Checks `exp`, `nbf` and `iat`, and returns the time at which the token expires.
fn check_times<T>(claims: &jwt_compact::Claims<T>, now: Millis) -> Result<Millis> {
    let at = i64::try_from(now)
        .ok()
        .and_then(DateTime::<Utc>::from_timestamp_millis)
        .ok_or_else(Error::internal)?;
    let leeway = TimeDelta::seconds(LEEWAY_SECONDS);
    let expires = claims.expiration.ok_or_else(|| invalid("has no `exp`"))?;
    // The library's check of `nbf` subtracts the leeway and panics if the result is before
    // the first time that it can represent.
    if claims.not_before.is_some_and(|from| from > at + leeway) {
        return Err(invalid("is not valid yet (`nbf`)"));
    }
    if claims.issued_at.is_some_and(|issued| issued > at + leeway) {
        return Err(invalid("was issued in the future (`iat`)"));
    }
    let expires = u64::try_from(expires.timestamp_millis()).unwrap_or_default();
    match expires > now {
        true => Ok(expires),
        false => Err(invalid("has expired")),
    }
}

/// Returns the token of a request.
///
/// # Errors
///
/// Returns `unauthorized` if the request has none.
pub fn require(token: Option<&str>) -> Result<&str> {
    token.ok_or_else(Error::no_token)
}

/// Signs a token for the demo page. Only in development builds.
#[cfg(feature = "dev-tokens")]
pub(crate) fn issue(
    keys: &Keys,
    rules: &ClaimRules<'_>,
    user: &str,
    rooms: Option<&[String]>,
    expires: Millis,
) -> Result<String> {
    use jwt_compact::AlgorithmExt;
    use jwt_compact::alg::Hs256;
    use roomcast_proto::error::ErrorCode;

    #[derive(serde::Serialize)]
    struct Issued<'a> {
        sub: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        rooms: Option<&'a [String]>,
        #[serde(skip_serializing_if = "Option::is_none")]
        iss: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        aud: Option<&'a str>,
    }
    let mut claims = jwt_compact::Claims::new(Issued {
        sub: user,
        rooms,
        iss: rules.issuer,
        aud: rules.audience,
    });
    claims.expiration = i64::try_from(expires)
        .ok()
        .and_then(DateTime::<Utc>::from_timestamp_millis);
    let secret = keys.secret().ok_or_else(|| {
        Error::new(
            ErrorCode::NotFound,
            "JWT_SECRET is not set, so no token can be signed",
        )
    })?;
    Hs256
        .token(&jwt_compact::Header::empty(), &claims, secret)
        .map_err(|_| Error::internal())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authenticator::Authenticator;
    use roomcast_harness::{KeyPair, SECRET, Token, now};
    use serde_json::{Value, json};

    #[test]
    fn times_at_the_ends_of_the_range_are_checked_like_any_other() {
        let auth = Authenticator::of_secret(SECRET);
        let now = now();
        let at = now as Millis * 1_000;
        let first = DateTime::<Utc>::MIN_UTC.timestamp();
        let last = DateTime::<Utc>::MAX_UTC.timestamp();
        for (claim, time, is_good) in [
            ("nbf", first, true),
            ("nbf", now + LEEWAY_SECONDS, true),
            ("nbf", now + LEEWAY_SECONDS + 1, false),
            ("nbf", last, false),
            ("iat", first, true),
            ("iat", last, false),
            ("exp", first, false),
            ("exp", now - 1, false),
            ("exp", now, false),
            ("exp", now + 1, true),
            ("exp", last, true),
        ] {
            let token = Token::user("alice").claim(claim, time).sign(SECRET);
            let verified = auth.verify(&token, at);
            assert_eq!(verified.is_ok(), is_good, "{claim} {time}");
        }
    }

    #[test]
    fn each_reason_for_rejection_has_its_own_message() {
        let auth = Authenticator {
            issuer: Some("us".into()),
            audience: Some("chat".into()),
            ..Authenticator::of_secret(SECRET)
        };
        let at = now() as Millis * 1_000;
        let good = || {
            let token = Token::user("alice");
            token.claim("iss", "us").claim("aud", json!(["chat"]))
        };
        assert!(auth.verify(&good().sign(SECRET), at).is_ok());
        let other = "another secret of the same length";
        let ed = KeyPair::ed25519("ed");
        for (token, message) in [
            (good().claim("exp", now()).sign(SECRET), "has expired"),
            (
                good().claim("exp", Value::Null).sign(SECRET),
                "has no `exp`",
            ),
            (
                good().sign(other),
                "is not signed with a key of this server",
            ),
            (ed.sign(&good()), "is not signed with a key of this server"),
            (
                good().claim("rooms", 7).sign(SECRET),
                "has a claim of a wrong type",
            ),
            (
                good().claim("exp", "soon").sign(SECRET),
                "has a claim of a wrong type",
            ),
            (
                good().claim("sub", Value::Null).sign(SECRET),
                "has no `sub`",
            ),
            (
                good().claim("iss", "them").sign(SECRET),
                "has the wrong `iss`",
            ),
            (
                good().claim("aud", "mail").sign(SECRET),
                "has the wrong `aud`",
            ),
            ("x".into(), "is not a JWT"),
        ] {
            let error = auth.verify(&token, at).expect_err(message);
            assert_eq!(error.message, format!("the token {message}"));
            assert_eq!(error.code.as_str(), "unauthorized");
        }
    }
}
