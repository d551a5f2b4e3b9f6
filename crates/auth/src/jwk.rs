//! JWK Sets (RFC 7517): the public keys of one that are for signatures we check.

use base64ct::{Base64UrlUnpadded, Encoding};
use serde::Deserialize;
use serde_json::json;
use std::rc::Rc;

/// The lengths of RSA keys, in bits: the least that RFC 7518, 3.3 allows, and
/// the most that does not let a key set buy much time of the processor.
pub const RSA_BITS: std::ops::RangeInclusive<usize> = 2_048..=4_096;

/// The most bytes of a JWK Set, and the most keys of one that count.
pub const MAX_JWKS: usize = 256 * 1024;
const MAX_KEYS: usize = 100;

/// Why a JWK Set cannot be used. Shown to the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    #[error("it is not a JWK Set (RFC 7517)")]
    NotAKeySet,
    #[error("an RSA key in it is not of 2048 to 4096 bits, or has no proper exponent")]
    WeakRsa,
    #[error("a key in it is malformed")]
    Malformed,
    #[error("no key in it is for EdDSA (Ed25519), ES256 or RS256 signatures")]
    NoUsableKey,
}

/// How a public key verifies.
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
    /// By the `alg` of a token's header or of a JWK.
    pub(super) fn named(alg: &str) -> Option<Self> {
        match alg {
            // The second is the newer name (RFC 9864).
            "EdDSA" | "Ed25519" => Some(Algorithm::EdDsa),
            "ES256" => Some(Algorithm::Es256),
            "RS256" => Some(Algorithm::Rs256),
            _ => None,
        }
    }
}

/// A public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    pub algorithm: Algorithm,
    /// Its JWK, with what makes the key and nothing else.
    pub jwk: String,
}

/// A key of a set.
#[derive(Clone)]
pub(super) struct Named {
    pub(super) kid: Option<String>,
    pub(super) key: Rc<PublicKey>,
}

/// What of a JWK counts here.
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
    /// Reads a JWK. `None` where it is none of ours: for encryption, symmetric,
    /// of another algorithm or of a type that came after this was written.
    fn read(json: &serde_json::Value) -> Result<Option<Self>, KeySetError> {
        let jwk = Jwk::deserialize(json).map_err(|_| KeySetError::Malformed)?;
        if jwk.intent.is_some_and(|intent| intent != "sig")
            || jwk
                .key_ops
                .is_some_and(|ops| !ops.iter().any(|op| op == "verify"))
        {
            return Ok(None);
        }
        let algorithm = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("OKP", Some("Ed25519")) => Algorithm::EdDsa,
            ("EC", Some("P-256")) => Algorithm::Es256,
            ("RSA", _) => Algorithm::Rs256,
            _ => return Ok(None),
        };
        if jwk
            .alg
            .is_some_and(|alg| Algorithm::named(&alg) != Some(algorithm))
        {
            return Ok(None);
        }
        let bytes = |field: &Option<String>| {
            let text = field.as_deref().ok_or(KeySetError::Malformed)?;
            Base64UrlUnpadded::decode_vec(text).map_err(|_| KeySetError::Malformed)
        };
        // Coordinates of both curves have 32 bytes.
        let coordinate = |field| match bytes(field)?.len() {
            32 => Ok(()),
            _ => Err(KeySetError::Malformed),
        };
        let key = match algorithm {
            Algorithm::EdDsa => {
                coordinate(&jwk.x)?;
                json!({ "kty": "OKP", "crv": "Ed25519", "x": jwk.x })
            }
            Algorithm::Es256 => {
                coordinate(&jwk.x)?;
                coordinate(&jwk.y)?;
                json!({ "kty": "EC", "crv": "P-256", "x": jwk.x, "y": jwk.y })
            }
            Algorithm::Rs256 => {
                if !RSA_BITS.contains(&bits(&bytes(&jwk.n)?)) {
                    return Err(KeySetError::WeakRsa);
                }
                let exponent = bytes(&jwk.e)?;
                // An exponent of 1 would sign everything.
                if !(2..=32).contains(&bits(&exponent)) {
                    return Err(KeySetError::WeakRsa);
                }
                json!({ "kty": "RSA", "n": jwk.n, "e": jwk.e })
            }
        };
        Ok(Some(Named {
            kid: jwk.kid,
            key: Rc::new(PublicKey {
                algorithm,
                jwk: key.to_string(),
            }),
        }))
    }
}

/// The length of a number, in bits.
fn bits(big_endian: &[u8]) -> usize {
    let zeros = big_endian.iter().take_while(|byte| **byte == 0).count();
    let digits = &big_endian[zeros..];
    digits
        .first()
        .map_or(0, |first| digits.len() * 8 - first.leading_zeros() as usize)
}

/// A JWK Set: the keys of it that are for signatures we check.
#[derive(Clone, Default)]
pub struct KeySet(pub(super) Vec<Named>);

impl KeySet {
    /// Reads a set of the operator's own, in which every key for signatures must
    /// be a good one.
    pub fn strict(json: &str) -> Result<Self, KeySetError> {
        KeySet::read(json, true)
    }

    /// Reads a set that was fetched: a key that is no good is left out.
    pub fn lenient(json: &str) -> Result<Self, KeySetError> {
        KeySet::read(json, false)
    }

    fn read(json: &str, strict: bool) -> Result<Self, KeySetError> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        if json.len() > MAX_JWKS {
            return Err(KeySetError::NotAKeySet);
        }
        let set: Set = serde_json::from_str(json).map_err(|_| KeySetError::NotAKeySet)?;
        let mut keys = Vec::new();
        for key in set.keys.iter().take(MAX_KEYS) {
            match Named::read(key) {
                Ok(key) => keys.extend(key),
                Err(error) if strict => return Err(error),
                Err(_) => {}
            }
        }
        if keys.is_empty() {
            return Err(KeySetError::NoUsableKey);
        }
        Ok(KeySet(keys))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use roomcast_harness::KeyPair;
    use serde_json::Value;

    fn jwk(json: Value) -> Result<KeySet, KeySetError> {
        KeySet::strict(&json!({ "keys": [json] }).to_string())
    }

    #[test]
    fn keys_that_sign_nothing_here_are_left_out() {
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
            // One that was fetched spoils no other.
            let set = json!({ "keys": [broken, good()] }).to_string();
            assert!(KeySet::lenient(&set).is_ok());
        }
        for text in ["", "[]", "{}", r#"{"keys":{}}"#, "<html>"] {
            assert_eq!(KeySet::lenient(text).err(), Some(KeySetError::NotAKeySet));
        }
    }

    #[test]
    fn an_rsa_key_has_2048_to_4096_bits() {
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
