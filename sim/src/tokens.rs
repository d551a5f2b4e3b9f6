//! Tokens. The first byte selects the format of the rest:
//!
//! | byte | rest |
//! | --- | --- |
//! | `t` | a token |
//! | `c` | a header, a line break and claims. The target signs them |
//! | `j` | a JWK Set |
//! | `h` | one line each for `Authorization`, `Sec-WebSocket-Protocol` and the query |

use super::signing::{sign, signature};
use super::world::{self, NOW};
use base64ct::{Base64UrlUnpadded, Encoding};
use roomcast::http::query::Query;
use roomcast_auth::Credentials;
use roomcast_auth::jwk::KeySet;
use roomcast_auth::keys::{KeyStep, Keys};
use roomcast_proto::access::{Identity, Rights};
use roomcast_proto::name;
use serde_json::Value;

/// A key set with a public key only, so no valid signature can be made.
const PUBLIC: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"k",
    "x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

/// Runs the target on an input. Panics if a promise is broken.
pub fn run(input: &[u8]) {
    world::begin();
    let Some((kind, rest)) = input.split_first() else {
        return;
    };
    let Ok(text) = std::str::from_utf8(rest) else {
        return;
    };
    match kind {
        b't' => token(text),
        b'c' => {
            if let Some((header, claims)) = text.split_once('\n') {
                signed(header, claims);
            }
        }
        b'j' => key_set(text),
        b'h' => credentials(text),
        _ => {}
    }
}

fn token(token: &str) {
    let config = world::config(&[("JWT_JWKS", PUBLIC)]);
    // The start of a step alone must not mark the token as verified.
    config.auth.keys.step(token, true, NOW);
    let Ok(identity) = config.auth.verify(token, NOW) else {
        return;
    };
    let (signed, given) = token.rsplit_once('.').expect("a JWT");
    assert_eq!(signature(signed), given, "only one signature is valid");
    let header = signed.split('.').next().expect("a header");
    let header = Base64UrlUnpadded::decode_vec(header).expect("base64");
    let header: Value = serde_json::from_slice(&header).expect("JSON");
    assert_eq!(header["alg"], "HS256");
    assert_identity(&identity);
}

fn signed(header: &str, claims: &str) {
    let config = world::config(&[]);
    let Ok(identity) = config.auth.verify(&sign(header, claims.as_bytes()), NOW) else {
        return;
    };
    assert_identity(&identity);
    let header: Value = serde_json::from_str(header).expect("JSON");
    assert_eq!(header["alg"], "HS256");
    assert!(header.get("crit").is_none_or(Value::is_null));
    let claims: Value = serde_json::from_str(claims).expect("JSON");
    assert_eq!(claims["sub"], identity.user.as_str());
    assert_eq!(identity.service, claims["role"] == "service");
    assert_eq!(claims["jti"].as_str(), identity.token.jti.as_deref());
    let seconds = |name: &str| claims[name].as_f64();
    let (now, leeway) = (NOW as f64 / 1_000.0, 60.0);
    assert!(seconds("exp").expect("a number") >= now.floor());
    assert!(seconds("nbf").is_none_or(|at| at <= now + leeway + 1.0));
    assert!(seconds("iat").is_none_or(|at| at <= now + leeway + 1.0));
    match &claims["rooms"] {
        Value::Null => assert_eq!(
            identity.rights("x"),
            Rights::MEMBER,
            "DEFAULT_ROOMS applies"
        ),
        Value::Array(patterns) => {
            for pattern in patterns.iter().filter_map(Value::as_str) {
                if !pattern.starts_with('@') && !pattern.ends_with('*') {
                    assert_eq!(identity.rights(pattern), Rights::MEMBER);
                }
            }
        }
        Value::Object(_) => {}
        other => panic!("invalid rooms: {other}"),
    }
}

/// Asserts the invariants of every identity.
fn assert_identity(identity: &Identity) {
    assert!(name::is_user(&identity.user));
    assert!(identity.expires > NOW);
    // The identity is part of socket attachments, so it must survive serialisation.
    let printed = serde_json::to_string(identity).expect("JSON");
    let read: Identity = serde_json::from_str(&printed).expect("valid JSON");
    assert_eq!(serde_json::to_string(&read).expect("JSON"), printed);
    roomcast_proto::time::rfc3339(identity.expires);
    if !identity.service {
        assert_eq!(identity.service_rights("x"), Rights::NONE);
        assert!(!identity.is_service_of_all());
    }
    assert_eq!(identity.rights("@another-user"), Rights::NONE);
}

fn key_set(json: &str) {
    let lenient = KeySet::lenient(json);
    let strict = KeySet::strict(json);
    if strict.is_ok() {
        assert!(lenient.is_ok());
    }
    let Ok(set) = lenient else {
        return;
    };
    let read: Value = serde_json::from_str(json).expect("JSON");
    let kids = read["keys"].as_array().expect("keys").iter();
    let kids: Vec<&str> = kids.filter_map(|key| key["kid"].as_str()).collect();
    let keys = Keys::new(&[], set, None);
    for alg in ["EdDSA", "ES256", "RS256", "HS256"] {
        let of_any = format!(r#"{{"alg":"{alg}"}}"#);
        let named = kids.iter().take(8).map(|kid| {
            let kid = Value::from(*kid);
            format!(r#"{{"alg":"{alg}","kid":{kid}}}"#)
        });
        for header in std::iter::once(of_any).chain(named) {
            let token = sign(&header, br#"{"sub":"alice","exp":1900000000}"#);
            let Some(KeyStep::Check(candidates)) = keys.step(&token, true, NOW) else {
                continue;
            };
            assert_ne!(alg, "HS256", "a public key must not be used as a secret");
            for key in candidates {
                world::assert_json(&key.jwk);
                // A serialized key is parsed to the same key.
                let set = format!(r#"{{"keys":[{}]}}"#, key.jwk);
                let again = Keys::new(&[], KeySet::strict(&set).expect("a valid key"), None);
                let of_any = sign(&format!(r#"{{"alg":"{alg}"}}"#), b"{}");
                let task = again.step(&of_any, true, NOW);
                assert_eq!(task, Some(KeyStep::Check(vec![key.clone()])));
                keys.mark_verified(&token, key);
                assert_eq!(keys.step(&token, true, NOW), None);
            }
        }
    }
}

fn credentials(text: &str) {
    let mut lines = text.split('\n');
    let mut next = || lines.next().filter(|line| !line.is_empty());
    let (authorization, protocols, query) = (next(), next(), next().map(Query::read));
    let credentials = Credentials {
        authorization,
        protocols,
        query: query.as_ref().and_then(|query| query.get("token")),
    };
    credentials.offers_subprotocol();
    if let Some(given) = credentials.token() {
        assert!(!given.is_empty());
        token(given);
    }
}
