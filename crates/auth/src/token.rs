//! JSON Web Tokens (RFC 7519) to identities.

use super::Authenticator;
use super::keys::Unverified;
use super::revoked::MAX_JTI;
use chrono::{DateTime, TimeDelta, Utc};
use jwt_compact::{TimeOptions, UntrustedToken};
use roomcast_proto::access::{self, Identity, Patterns, Rights, TokenId};
use roomcast_proto::fault::{Fault, Result};
use roomcast_proto::name;
use roomcast_proto::time::Millis;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// Clocks differ: `exp`, `nbf` and `iat` may be off by this much, in seconds.
/// The contract allows 60 at the most.
pub const LEEWAY_SECONDS: i64 = 60;

/// The claims the contract names. Unknown claims are ignored, those of a wrong
/// type make the token invalid.
#[derive(Deserialize)]
struct Claims {
    sub: String,
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

/// `{ pattern: [right, …] }` or `[pattern, …]`.
struct RoomsClaim(Patterns);

impl<'de> Deserialize<'de> for RoomsClaim {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Rooms;
        impl<'de> Visitor<'de> for Rooms {
            type Value = RoomsClaim;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
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
                Ok(RoomsClaim(Patterns::new(patterns)))
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
                Ok(RoomsClaim(Patterns::new(patterns)))
            }
        }
        deserializer.deserialize_any(Rooms)
    }
}

/// Of a token's header, beside what the library reads.
#[derive(Clone, Deserialize)]
struct Extra {
    /// Extensions that must be understood (RFC 7515, 4.1.11). There are none
    /// that are.
    crit: Option<IgnoredAny>,
}

/// See [`Authenticator::verify`].
pub(super) fn verify(config: &Authenticator, token: &str, now: Millis) -> Result<Identity> {
    let invalid = |what: &str| Fault::unauthorized(format!("the token {what}"));
    if token.len() > access::MAX_TOKEN {
        return Err(invalid("is too long"));
    }
    let untrusted: UntrustedToken<'_, Extra> =
        token.try_into().map_err(|_| invalid("is not a JWT"))?;
    if untrusted.header().other_fields.crit.is_some() {
        return Err(invalid("has extensions (`crit`) that are not understood"));
    }
    let verified = config.keys.verify::<Claims, _>(token, &untrusted);
    let claims = verified.map_err(|why| match why {
        Unverified::Invalid => {
            invalid("is not signed with a key of this server, or has claims of a wrong type")
        }
        Unverified::Ambiguous => invalid("has no `kid`, and several keys could be meant"),
        Unverified::NoKeysYet => Fault::internal(),
    })?;

    let at = i64::try_from(now)
        .ok()
        .and_then(DateTime::<Utc>::from_timestamp_millis)
        .ok_or_else(Fault::internal)?;
    let leeway = TimeDelta::seconds(LEEWAY_SECONDS);
    let time = TimeOptions::new(leeway, || at);
    claims
        .validate_expiration(&time)
        .map_err(|_| invalid("has expired, or has no `exp`"))?;
    // Not by the library, which subtracts the leeway from `nbf` and panics where
    // there is no such time.
    if claims.not_before.is_some_and(|from| from > at + leeway) {
        return Err(invalid("is not valid yet"));
    }
    if claims.issued_at.is_some_and(|issued| issued > at + leeway) {
        return Err(invalid("was issued in the future"));
    }
    let expires = claims
        .expiration
        .and_then(|at| u64::try_from(at.timestamp_millis()).ok())
        .ok_or_else(|| invalid("has no usable `exp`"))?;
    // The leeway forgives a clock that is off at the door. A socket that came in
    // within it gets no time past the leeway.
    let expires = match expires > now {
        true => expires,
        false => expires + LEEWAY_SECONDS as u64 * 1000,
    };
    if expires <= now {
        return Err(invalid("has expired"));
    }

    let custom = &claims.custom;
    if !name::is_user(&custom.sub) {
        return Err(invalid(
            "has a `sub` that is not 1 to 128 of A-Z a-z 0-9 . _ : -",
        ));
    }
    if config.issuer.is_some() && custom.iss != config.issuer {
        return Err(invalid("has another `iss`"));
    }
    if let Some(wanted) = &config.audience {
        let named = match &custom.aud {
            None => false,
            Some(Audience::One(audience)) => audience == wanted,
            Some(Audience::Many(audiences)) => audiences.contains(wanted),
        };
        if !named {
            return Err(invalid("has another `aud`"));
        }
    }
    if custom.jti.as_ref().is_some_and(|jti| jti.len() > MAX_JTI) {
        return Err(invalid("has a `jti` of more than 256 bytes"));
    }
    let identity = Identity {
        user: custom.sub.clone(),
        expires,
        service: custom.role.as_deref() == Some("service"),
        patterns: match &custom.rooms {
            Some(RoomsClaim(patterns)) => patterns.clone(),
            None => config.default_rooms.clone(),
        },
        token: TokenId {
            issued: claims
                .issued_at
                .and_then(|at| u64::try_from(at.timestamp()).ok()),
            jti: custom.jti.clone(),
        },
    };
    if config.is_revoked(&identity, now) {
        return Err(invalid("was revoked"));
    }
    Ok(identity)
}

/// Fails with `unauthorized` when a request has no token at all.
pub fn require(token: Option<&str>) -> Result<&str> {
    token.ok_or_else(Fault::no_token)
}

/// Signs a token for the demo page; development builds only.
#[cfg(feature = "dev-tokens")]
pub fn issue(
    config: &Authenticator,
    user: &str,
    rooms: Option<&[String]>,
    expires: Millis,
) -> Result<String> {
    use jwt_compact::AlgorithmExt;
    use jwt_compact::alg::Hs256;

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
        iss: config.issuer.as_deref(),
        aud: config.audience.as_deref(),
    });
    claims.expiration = i64::try_from(expires)
        .ok()
        .and_then(DateTime::<Utc>::from_timestamp_millis);
    let secret = config.keys.secret().ok_or_else(|| {
        Fault::new(
            roomcast_proto::fault::Code::NotFound,
            "there is no JWT_SECRET to sign with",
        )
    })?;
    Hs256
        .token(&jwt_compact::Header::empty(), &claims, secret)
        .map_err(|_| Fault::internal())
}

#[cfg(test)]
mod tests {
    use super::*;
    use roomcast_harness::{SECRET, Token, now};

    #[test]
    fn times_at_the_ends_of_time_are_judged_as_any_other() {
        let config = Authenticator::of_secret(SECRET);
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
            ("exp", last, true),
        ] {
            let token = Token::user("alice").claim(claim, time).sign(SECRET);
            let verified = verify(&config, &token, at);
            assert_eq!(verified.is_ok(), is_good, "{claim} {time}");
        }
    }
}
