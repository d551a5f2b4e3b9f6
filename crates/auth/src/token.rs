//! Verification of JSON Web Tokens (RFC 7519) and their claims.

use crate::jwt::UnverifiedToken;
use crate::keys::{Keys, VerifyError};
use crate::revocation::MAX_JTI;
use roomcast_proto::access::{self, Identity, Rights, RoomPatterns, TokenId};
use roomcast_proto::error::{Error, Result};
use roomcast_proto::id::UserId;
use roomcast_proto::raw_object::{RawObject, TEXT, USER};
use roomcast_proto::reader;
use roomcast_proto::time::{Millis, SECOND};
use roomcast_proto::user_info::UserInfo;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use serde_json::value::RawValue;
use std::ops::RangeInclusive;

/// Tolerance in seconds for `nbf` and `iat`, because clocks differ. `exp` has none: a
/// connection that its token has closed must not be opened again by the same token.
pub const LEEWAY_SECONDS: i64 = 60;

/// The required values of claims, and the default for `rooms`.
pub(crate) struct ClaimRules<'a> {
    /// The name of the claim with the user id.
    pub(crate) user_claim: &'a str,
    /// The required `iss`; `None` allows any.
    pub(crate) issuer: Option<&'a str>,
    /// A value that `aud` must contain; `None` allows any.
    pub(crate) audience: Option<&'a str>,
    /// The patterns of a token without `rooms`.
    pub(crate) default_rooms: &'a RoomPatterns,
}

/// The claims of the contract, except for those of the user. Unknown claims are ignored; a claim
/// of a wrong type makes the token invalid.
#[derive(Deserialize)]
struct Claims {
    #[serde(default, deserialize_with = "time")]
    exp: Option<i64>,
    #[serde(default, deserialize_with = "time")]
    nbf: Option<i64>,
    #[serde(default, deserialize_with = "time")]
    iat: Option<i64>,
    iss: Option<String>,
    aud: Option<Audience>,
    rooms: Option<RoomsClaim>,
    role: Option<String>,
    jti: Option<String>,
}

/// The times in seconds since 1970 that a claim may have: a quarter of a million years before
/// and after.
const TIMES: RangeInclusive<i64> = -8_334_601_228_800..=8_210_266_876_799;

/// Reads a time, which may have a fraction (RFC 7519, 2). `f64` represents all [`TIMES`] exactly.
fn time<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<i64>, D::Error> {
    let seconds = f64::deserialize(deserializer)? as i64;
    match TIMES.contains(&seconds) {
        true => Ok(Some(seconds)),
        false => Err(D::Error::custom("a time out of range")),
    }
}

/// The claim `aud`: a string or a list of strings.
struct Audience(Vec<String>);

impl<'de> Deserialize<'de> for Audience {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let json = <&RawValue>::deserialize(deserializer)?.get();
        let audiences = match json.starts_with('[') {
            true => reader::from_str(json),
            false => reader::from_str(json).map(|audience| vec![audience]),
        };
        audiences.map(Audience).map_err(D::Error::custom)
    }
}

/// The claim `rooms`: `{ pattern: [right, …] }` or `[pattern, …]`.
struct RoomsClaim(RoomPatterns);

impl<'de> Deserialize<'de> for RoomsClaim {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let json = <&RawValue>::deserialize(deserializer)?.get();
        let patterns = match json.starts_with('[') {
            true => members_of(json),
            false => rights_of(json),
        };
        let patterns = patterns.map(|patterns| RoomsClaim(RoomPatterns::new(patterns)));
        patterns.ok_or_else(|| D::Error::custom("expected a list or a map of room patterns"))
    }
}

fn members_of(list: &str) -> Option<Vec<(String, Rights)>> {
    let patterns: Vec<String> = reader::from_str(list).ok()?;
    let patterns = patterns.into_iter();
    Some(patterns.map(|name| (name, Rights::MEMBER)).collect())
}

fn rights_of(map: &str) -> Option<Vec<(String, Rights)>> {
    let mut patterns = Vec::new();
    for (pattern, names) in RawObject::parse(map, "rooms").ok()?.fields() {
        let names: Vec<String> = reader::from_str(names.get()).ok()?;
        let rights = names.iter().filter_map(|name| Rights::parse(name));
        patterns.push((pattern.to_owned(), rights.fold(Rights::NONE, Rights::with)));
    }
    Some(patterns)
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
    let unverified = UnverifiedToken::parse(token).ok_or_else(|| invalid("is not a JWT"))?;
    if unverified.header.crit.is_some() {
        return Err(invalid("uses extensions (`crit`), which are not supported"));
    }
    let verified = keys.verify(token, &unverified);
    verified.map_err(|why| match why {
        VerifyError::BadSignature => invalid("is not signed with a key of this server"),
        VerifyError::Ambiguous => invalid("has no `kid`, and several keys match"),
        VerifyError::NoKeysYet => Error::internal(),
        VerifyError::UnsupportedAlgorithm => {
            invalid("has an `alg` that is not supported: EdDSA, ES256, RS256 and HS256 are")
        }
    })?;
    let wrong_type = || invalid("has a claim of a wrong type");
    let text = unverified.claims().ok_or_else(wrong_type)?;
    let claims: Claims = reader::from_str(text).map_err(|_| wrong_type())?;
    let expires = check_times(&claims, now)?;
    let all = RawObject::parse(text, "the claims").map_err(|_| wrong_type())?;
    let user = user(&all, rules.user_claim)?;
    let info = info(&all)?;
    if rules.issuer.is_some() && claims.iss.as_deref() != rules.issuer {
        return Err(invalid("has the wrong `iss`"));
    }
    if let Some(wanted) = rules.audience
        && !claims
            .aud
            .is_some_and(|audience| audience.0.iter().any(|audience| audience == wanted))
    {
        return Err(invalid("has the wrong `aud`"));
    }
    if claims.jti.as_ref().is_some_and(|jti| jti.len() > MAX_JTI) {
        return Err(invalid("has a `jti` of more than 256 bytes"));
    }
    Ok(Identity {
        user,
        expires,
        service: claims.role.as_deref() == Some("service"),
        patterns: match claims.rooms {
            Some(RoomsClaim(patterns)) => patterns,
            None => rules.default_rooms.clone(),
        },
        token: TokenId {
            issued: claims.iat.and_then(|iat| u64::try_from(iat).ok()),
            jti: claims.jti,
        },
        info,
    })
}

/// Returns the user id, from the claim with the name `claim`.
fn user(claims: &RawObject<'_>, claim: &str) -> Result<UserId> {
    let user = claims.get(claim, TEXT);
    let user = user.map_err(|_| invalid("has a claim of a wrong type"))?;
    let user = user.ok_or_else(|| invalid(&format!("has no `{claim}`")))?;
    UserId::parse(&user).ok_or_else(|| {
        let expected = USER.expected;
        invalid(&format!("has an invalid `{claim}`: it must be {expected}"))
    })
}

/// Returns the profile of the user, from the claim `info`.
fn info(claims: &RawObject<'_>) -> Result<Option<UserInfo>> {
    let info = claims.raw("info").map(|info| {
        UserInfo::parse(info.get()).ok_or_else(|| {
            invalid("has an invalid `info`: it must be a JSON object of at most 1024 bytes")
        })
    });
    info.transpose()
}

/// Creates an `unauthorized` error: "the token …".
fn invalid(what: &str) -> Error {
    Error::unauthorized(format!("the token {what}"))
}

/// Checks `exp`, `nbf` and `iat`, and returns the time at which the token expires.
fn check_times(claims: &Claims, now: Millis) -> Result<Millis> {
    let millis = |seconds: i64| u64::try_from(seconds).unwrap_or_default() * SECOND;
    let expires = claims.exp.ok_or_else(|| invalid("has no `exp`"))?;
    let latest = now + millis(LEEWAY_SECONDS);
    if claims.nbf.is_some_and(|nbf| millis(nbf) > latest) {
        return Err(invalid("is not valid yet (`nbf`)"));
    }
    if claims.iat.is_some_and(|iat| millis(iat) > latest) {
        return Err(invalid("was issued in the future (`iat`)"));
    }
    let expires = millis(expires);
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
    info: Option<&UserInfo>,
    rooms: Option<&[String]>,
    expires: Millis,
) -> Result<String> {
    use chrono::{DateTime, Utc};
    use jwt_compact::AlgorithmExt;
    use jwt_compact::alg::Hs256;
    use roomcast_proto::error::ErrorCode;
    use std::collections::BTreeMap;

    #[derive(serde::Serialize)]
    struct Issued<'a> {
        #[serde(flatten)]
        user: BTreeMap<&'a str, &'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        info: Option<&'a UserInfo>,
        #[serde(skip_serializing_if = "Option::is_none")]
        rooms: Option<&'a [String]>,
        #[serde(skip_serializing_if = "Option::is_none")]
        iss: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        aud: Option<&'a str>,
    }
    let mut claims = jwt_compact::Claims::new(Issued {
        user: BTreeMap::from([(rules.user_claim, user)]),
        info,
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
        let first = *TIMES.start();
        let last = *TIMES.end();
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
    fn the_user_id_comes_from_the_claim_of_the_setting() {
        let auth = Authenticator {
            user_claim: "https://app.example/user".into(),
            ..Authenticator::of_secret(SECRET)
        };
        let at = now() as Millis * 1_000;
        let token = Token::user("subject");
        let error = auth.verify(&token.sign(SECRET), at).expect_err("no claim");
        let expected = "the token has no `https://app.example/user`";
        assert_eq!(error.message, expected);
        // A `sub` that is not a user id does not matter.
        let token = token.claim("sub", Value::Null);
        let token = token.claim("https://app.example/user", "auth0|José");
        let identity = auth.verify(&token.sign(SECRET), at).expect("valid");
        assert_eq!(identity.user, "auth0|José");
    }

    #[test]
    fn the_profile_of_a_token_is_part_of_its_identity() {
        let auth = Authenticator::of_secret(SECRET);
        let at = now() as Millis * 1_000;
        let verify = |info: Value| {
            let token = Token::user("alice").claim("info", info).claim("iat", now());
            auth.verify(&token.sign(SECRET), at)
        };
        let identity = verify(json!({ "name": "José" })).expect("valid");
        let profile = identity.profile();
        assert_eq!(profile.issued, Some(now() as u64));
        let info = profile.info.expect("a profile");
        assert_eq!(info.as_json(), r#"{"name":"José"}"#);
        assert_eq!(verify(Value::Null).expect("valid").info, None);
        assert!(verify(json!({ "name": "x".repeat(1_013) })).is_ok());
        assert!(verify(json!({ "name": "x".repeat(1_014) })).is_err());
        assert!(verify(json!(["Alice"])).is_err());
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
                good().claim("sub", 7).sign(SECRET),
                "has a claim of a wrong type",
            ),
            (
                good().claim("sub", " alice").sign(SECRET),
                "has an invalid `sub`: it must be a user id (1 to 255 bytes of printable characters without outer white space)",
            ),
            (
                good().claim("info", "Alice").sign(SECRET),
                "has an invalid `info`: it must be a JSON object of at most 1024 bytes",
            ),
            (
                good().claim("iss", "them").sign(SECRET),
                "has the wrong `iss`",
            ),
            (
                good().claim("aud", "mail").sign(SECRET),
                "has the wrong `aud`",
            ),
            (
                good().sign_hs512(SECRET),
                "has an `alg` that is not supported: EdDSA, ES256, RS256 and HS256 are",
            ),
            ("x".into(), "is not a JWT"),
        ] {
            let error = auth.verify(&token, at).expect_err(message);
            assert_eq!(error.message, format!("the token {message}"));
            assert_eq!(error.code.as_str(), "unauthorized");
        }
    }
}
