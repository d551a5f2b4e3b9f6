//! JWK Sets (RFC 7517). A set may contain keys for many purposes; only the public keys that
//! can verify tokens are used.

use base64ct::{Base64UrlUnpadded, Encoding};
use roomcast_proto::reader;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::rc::Rc;

/// Allowed lengths of RSA keys in bits. The minimum is that of RFC 7518, 3.3; the maximum
/// bounds the processor time of a verification.
pub const RSA_BITS: std::ops::RangeInclusive<usize> = 2_048..=4_096;

/// Maximum size of a JWK Set in bytes. Limits the memory that a fetched set can take.
pub const MAX_JWKS: usize = 256 * 1024;

/// Maximum number of keys that are read from a JWK Set. Limits the time and memory that a
/// fetched set can take.
const MAX_KEYS: usize = 100;

/// Why a JWK Set cannot be used. The operator sees it in the log, or as the error of the
/// setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// The text is not JSON with a list `keys`, or is too long.
    #[error("it is not a JWK Set (RFC 7517)")]
    NotAKeySet,
    /// An RSA key is too short, too long, or has an unusable exponent.
    #[error("it contains an RSA key that does not have 2048 to 4096 bits and a valid exponent")]
    WeakRsa,
    /// A key lacks a field or has one with a wrong value.
    #[error("it contains a malformed key")]
    Malformed,
    /// No key can verify tokens.
    #[error("it contains no key for EdDSA (Ed25519), ES256 or RS256 signatures")]
    NoUsableKey,
}

/// The algorithms of public keys that are supported, for messages.
pub const ALGORITHMS: &str = "EdDSA (Ed25519), ES256 and RS256";

/// Maximum number of skipped keys that are reported.
const MAX_SKIPPED: usize = 10;

/// Maximum number of bytes of a text of a skipped key that are reported.
const MAX_SKIPPED_TEXT: usize = 64;

/// A key for signatures that cannot be used, for the log of the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkippedKey {
    /// The `kid` of the key, if it has one.
    pub kid: Option<String>,
    /// Why the key cannot be used, such as "ES384 is not supported".
    pub reason: String,
}

/// The signature algorithm of a public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// Ed25519 (RFC 8037).
    EdDsa,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
}

impl Algorithm {
    /// Returns the algorithm with this `alg` in a token's header or a JWK, or `None` for
    /// algorithms we do not support.
    pub(crate) fn named(alg: &str) -> Option<Self> {
        match alg {
            // `Ed25519` is the newer name (RFC 9864).
            "EdDSA" | "Ed25519" => Some(Algorithm::EdDsa),
            "ES256" => Some(Algorithm::Es256),
            "RS256" => Some(Algorithm::Rs256),
            _ => None,
        }
    }
}

/// A public key that verifies tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    /// The algorithm of the key.
    pub algorithm: Algorithm,
    /// The key as a JWK that contains only the fields of the key itself.
    pub jwk: String,
}

/// A key of a set with its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) kid: Option<String>,
    pub(crate) key: Rc<PublicKey>,
}

/// The fields of a JWK that we read.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    crv: Option<String>,
    #[serde(rename = "use")]
    intent: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    kid: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

impl Named {
    /// Reads a JWK. Keys for encryption and symmetric keys verify no tokens, and keys of other
    /// algorithms or unknown types are not supported.
    fn read(jwk: Jwk) -> Result<Read, KeySetError> {
        let is_other = jwk.intent.is_some_and(|intent| intent != "sig")
            || jwk
                .key_ops
                .is_some_and(|ops| !ops.iter().any(|op| op == "verify"));
        if is_other || jwk.kty == "oct" {
            return Ok(Read::Other);
        }
        let algorithm = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("OKP", Some("Ed25519")) => Some(Algorithm::EdDsa),
            ("EC", Some("P-256")) => Some(Algorithm::Es256),
            ("RSA", _) => Some(Algorithm::Rs256),
            _ => None,
        };
        let is_named = |algorithm: &Algorithm| {
            let named = jwk.alg.as_deref().map(Algorithm::named);
            named.is_none_or(|named| named == Some(*algorithm))
        };
        let Some(algorithm) = algorithm.filter(is_named) else {
            let kind = match (jwk.alg, jwk.crv) {
                (Some(alg), _) => alg,
                (None, Some(crv)) => format!("{} {crv}", jwk.kty),
                (None, None) => jwk.kty,
            };
            return Ok(Read::Unsupported(kind));
        };
        let decode = |field: &Option<String>| -> Result<(String, Vec<u8>), KeySetError> {
            let text = field.clone().ok_or(KeySetError::Malformed)?;
            let bytes = Base64UrlUnpadded::decode_vec(&text).map_err(|_| KeySetError::Malformed)?;
            Ok((text, bytes))
        };
        // The coordinates of both curves have 32 bytes (RFC 7518, 6.2.1.2; RFC 8037, 2).
        let coordinate = |field| match decode(field)? {
            (text, bytes) if bytes.len() == 32 => Ok(text),
            _ => Err(KeySetError::Malformed),
        };
        // Base64url needs no escapes in JSON.
        let key = match algorithm {
            Algorithm::EdDsa => {
                let x = coordinate(&jwk.x)?;
                format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#)
            }
            Algorithm::Es256 => {
                let (x, y) = (coordinate(&jwk.x)?, coordinate(&jwk.y)?);
                format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#)
            }
            Algorithm::Rs256 => {
                let (n, modulus) = decode(&jwk.n)?;
                if !RSA_BITS.contains(&bits(&modulus)) {
                    return Err(KeySetError::WeakRsa);
                }
                let (e, exponent) = decode(&jwk.e)?;
                // With an exponent of 1 every text is its own signature. Real keys use 65537.
                if !(2..=32).contains(&bits(&exponent)) {
                    return Err(KeySetError::WeakRsa);
                }
                format!(r#"{{"e":"{e}","kty":"RSA","n":"{n}"}}"#)
            }
        };
        Ok(Read::Key(Named {
            kid: jwk.kid,
            key: Rc::new(PublicKey {
                algorithm,
                jwk: key,
            }),
        }))
    }
}

/// The result of [`Named::read`].
enum Read {
    /// A key that verifies tokens.
    Key(Named),
    /// A key for another purpose.
    Other,
    /// A key for signatures of this algorithm or type, which is not supported.
    Unsupported(String),
}

/// Returns the length of a number in bits, without leading zeros.
fn bits(big_endian: &[u8]) -> usize {
    let zeros = big_endian.iter().take_while(|byte| **byte == 0).count();
    let digits = &big_endian[zeros..];
    digits
        .first()
        .map_or(0, |first| digits.len() * 8 - first.leading_zeros() as usize)
}

/// The keys of a JWK Set that can verify tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySet {
    pub(crate) keys: Vec<Named>,
    /// The first keys for signatures that cannot be used.
    pub(crate) skipped: Vec<SkippedKey>,
}

impl KeySet {
    /// Parses a set from the settings. Fails if any key for signatures is malformed or weak,
    /// so that the operator notices.
    pub fn strict(json: &str) -> Result<Self, KeySetError> {
        KeySet::read(json, true)
    }

    /// Parses a set that was fetched. Skips malformed and weak keys; fails only if no usable
    /// key remains.
    pub fn lenient(json: &str) -> Result<Self, KeySetError> {
        KeySet::read(json, false)
    }

    fn read(json: &str, strict: bool) -> Result<Self, KeySetError> {
        #[derive(Deserialize)]
        struct Set<'a> {
            #[serde(borrow)]
            keys: Vec<&'a RawValue>,
        }
        if json.len() > MAX_JWKS {
            return Err(KeySetError::NotAKeySet);
        }
        let set: Set<'_> = reader::from_str(json).map_err(|_| KeySetError::NotAKeySet)?;
        let mut keys = Vec::new();
        let mut skipped = Vec::new();
        for key in set.keys.iter().take(MAX_KEYS) {
            let jwk = reader::from_str::<Jwk>(key.get()).map_err(|_| KeySetError::Malformed);
            let kid = jwk.as_ref().ok().and_then(|jwk| jwk.kid.clone());
            let reason = match jwk.and_then(Named::read) {
                Ok(Read::Key(key)) => {
                    keys.push(key);
                    continue;
                }
                Ok(Read::Other) => continue,
                Ok(Read::Unsupported(kind)) => format!("{} is not supported", cut(kind)),
                Err(error) if strict => return Err(error),
                Err(error) => error.to_string(),
            };
            if skipped.len() < MAX_SKIPPED {
                let kid = kid.map(cut);
                skipped.push(SkippedKey { kid, reason });
            }
        }
        if keys.is_empty() {
            return Err(KeySetError::NoUsableKey);
        }
        Ok(KeySet { keys, skipped })
    }
}

/// Returns the start of a text of a key, for the log.
fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_SKIPPED_TEXT));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_keys_for_signatures_are_named_with_the_reason() {
        let mut weak = KeyPair::es256("weak").jwk();
        weak["x"] = json!("AA");
        let set = json!({ "keys": [
            KeyPair::es256("good").jwk(),
            { "kty": "EC", "crv": "P-384", "alg": "ES384", "use": "sig", "kid": "k384", "x": "AA", "y": "AA" },
            { "kty": "RSA", "alg": "PS256", "kid": "ps", "n": "AA", "e": "AQAB" },
            { "kty": "RSA", "alg": "RS512", "n": "AA", "e": "AQAB" },
            { "kty": "EC", "crv": "P-521", "kid": "x".repeat(100), "x": "AA", "y": "AA" },
            { "kty": "AKP", "kid": "pq" },
            weak,
            { "kty": "RSA", "use": "enc", "alg": "RSA-OAEP", "kid": "enc", "n": "AA", "e": "AQAB" },
            { "kty": "oct", "k": "AA", "kid": "secret" },
        ]});
        let set = KeySet::lenient(&set.to_string()).expect("a usable key");
        assert_eq!(set.keys.len(), 1);
        let skipped = set.skipped.iter();
        let skipped: Vec<(Option<&str>, &str)> = skipped
            .map(|key| (key.kid.as_deref(), key.reason.as_str()))
            .collect();
        assert_eq!(
            skipped,
            [
                (Some("k384"), "ES384 is not supported"),
                (Some("ps"), "PS256 is not supported"),
                (None, "RS512 is not supported"),
                (Some(&*"x".repeat(64)), "EC P-521 is not supported"),
                (Some("pq"), "AKP is not supported"),
                (Some("weak"), "it contains a malformed key"),
            ]
        );
        let many = (0..50).map(|_| json!({ "kty": "AKP" }));
        let many: Vec<Value> = many.chain([KeyPair::es256("good").jwk()]).collect();
        let set = KeySet::lenient(&json!({ "keys": many }).to_string());
        assert_eq!(set.map(|set| set.skipped.len()), Ok(10));
    }
    use roomcast_harness::KeyPair;
    use serde_json::{Value, json};

    fn jwk(json: Value) -> Result<KeySet, KeySetError> {
        KeySet::strict(&json!({ "keys": [json] }).to_string())
    }

    #[test]
    fn keys_for_other_purposes_are_skipped() {
        let good = || KeyPair::es256("k").jwk();
        let with = |field: &str, value: Value| {
            let mut jwk = good();
            jwk[field] = value;
            jwk
        };
        for ours in [
            good(),
            with("alg", json!("ES256")),
            with("use", Value::Null),
            with("key_ops", json!(["verify"])),
            with("x5t", json!("whatever")),
        ] {
            assert!(jwk(ours.clone()).is_ok(), "{ours}");
        }
        for other in [
            with("use", json!("enc")),
            with("alg", json!("ES512")),
            with("alg", json!("HS256")),
            with("key_ops", json!(["sign"])),
            with("crv", json!("P-521")),
            with("crv", json!("secp256k1")),
            with("kty", json!("OKP")),
            json!({ "kty": "oct", "k": "c2VjcmV0", "alg": "HS256" }),
            json!({ "kty": "AKP", "alg": "ML-DSA-44", "pub": "x" }),
        ] {
            assert_eq!(
                jwk(other.clone()).err(),
                Some(KeySetError::NoUsableKey),
                "{other}"
            );
        }
        for broken in [
            with("x", json!("AA")),
            with("y", Value::Null),
            with("x", json!("not base64!")),
            with("kid", json!(7)),
            json!({ "x": "AA" }),
            json!(1),
        ] {
            assert_eq!(
                jwk(broken.clone()).err(),
                Some(KeySetError::Malformed),
                "{broken}"
            );
            // In a fetched set it does not affect the other keys.
            let set = json!({ "keys": [broken, good()] }).to_string();
            assert!(KeySet::lenient(&set).is_ok());
        }
        for text in ["", "[]", "{}", r#"{"keys":{}}"#, "<html>"] {
            assert_eq!(KeySet::lenient(text).err(), Some(KeySetError::NotAKeySet));
        }
    }

    #[test]
    fn an_rsa_key_must_have_2048_to_4096_bits_and_a_valid_exponent() {
        let rsa = |bytes: Vec<u8>, e: &str| {
            let n = Base64UrlUnpadded::encode_string(&bytes);
            jwk(json!({ "kty": "RSA", "n": n, "e": e }))
        };
        for (bytes, good) in [
            (vec![0xff; 128], false),
            (vec![0x7f; 256], false),
            (vec![0x80; 256], true),
            ([vec![0], vec![0x80; 256]].concat(), true),
            (vec![0xff; 512], true),
            (vec![0xff; 513], false),
            (Vec::new(), false),
        ] {
            assert_eq!(rsa(bytes.clone(), "AQAB").is_ok(), good, "{}", bytes.len());
        }
        for e in ["AQ", "", "AQAAAAAB"] {
            assert_eq!(rsa(vec![0xff; 256], e).err(), Some(KeySetError::WeakRsa));
        }
    }
}
