//! The keys that tokens are checked with: secrets, a JWK Set (RFC 7517) in the
//! settings, one that is fetched, or any of them together.
//!
//! The algorithm is the key's, never the token's: what a key is (`kty`, `crv`)
//! says how it verifies, and a token that names another algorithm finds no key.
//!
//! Nothing here waits for anything. Sets are fetched by the shell, and it is the
//! shell that checks signatures of public keys, by the platform's own
//! cryptography: in WebAssembly it would make the Worker a fifth larger and be
//! many times slower. [`Keys::task`] says what there is to do before a token is
//! judged; [`Keys::fetched`] and [`Keys::vouch`] take what came of it. Secrets
//! need none of this.

use crate::config::Rate;
use crate::room::limits::Bucket;
use crate::time::{DAY, MINUTE, Millis, SECOND};
use base64ct::{Base64UrlUnpadded, Encoding};
use jwt_compact::alg::{Hs256, Hs256Key};
use jwt_compact::{AlgorithmExt, Claims, UntrustedToken};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;

/// The shortest secret, in bytes: HS256 wants a key no shorter than its hash
/// (RFC 7518, 3.2).
pub const MIN_SECRET: usize = 32;

/// The lengths of RSA keys, in bits: the least that RFC 7518, 3.3 allows, and
/// the most that does not let a key set buy much time of the processor.
pub const RSA_BITS: std::ops::RangeInclusive<usize> = 2_048..=4_096;

/// The most bytes of a JWK Set, and the most keys of one that count.
pub const MAX_JWKS: usize = 256 * 1024;
const MAX_KEYS: usize = 100;

/// For how long a fetched set is good, whatever its `Cache-Control` says, and
/// what counts where that says nothing.
const MAX_AGE: (Millis, Millis) = (MINUTE, DAY);
const DEFAULT_AGE: Millis = 5 * MINUTE;

/// How long after a fetch that failed, or that was never heard of again, the
/// next may be tried.
pub const RETRY_AFTER: Millis = 5 * SECOND;

/// Fetches because of a `kid` that is not known: a key that is new is found at
/// once, and made-up ones bring the URL no more than two requests a minute from
/// an isolate.
const UNKNOWN_KID: Rate = Rate {
    per_second: 1.0 / 30.0,
    burst: 3.0,
};

/// Signatures of public keys that are remembered, each by a hash of its token.
const MAX_VOUCHED: usize = 10_000;

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
    fn named(alg: &str) -> Option<Self> {
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
struct Named {
    kid: Option<String>,
    key: Rc<PublicKey>,
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
pub struct KeySet(Vec<Named>);

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

/// What is known of the set at `JWT_JWKS_URL`, in this isolate.
struct Remote {
    url: String,
    /// The last good one; `None` before the first.
    set: Option<KeySet>,
    fresh_until: Millis,
    /// A fetch was begun at this time, and not heard of yet.
    fetching: Option<Millis>,
    /// No fetch before this, but for a `kid` that is not known.
    not_before: Millis,
    unknown: Bucket,
}

/// What there is to do before a token can be judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Fetch the set, and say how that went by [`Keys::fetched`].
    Fetch,
    /// Somebody fetches already, and nothing can be said before.
    Wait,
    /// Check the signature, and if it is one of any of these keys, say so by
    /// [`Keys::vouch`].
    Check(Vec<Rc<PublicKey>>),
}

/// Why no key verifies a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unverified {
    /// There is no such key, or the signature is not its own.
    Invalid,
    /// Without a `kid` it could be of several keys.
    Ambiguous,
    /// The set of keys could not be fetched yet.
    NoKeysYet,
}

/// All keys of the server. One an isolate: what is fetched is there for the
/// Worker and its objects alike.
pub struct Keys {
    secrets: Vec<Hs256Key>,
    set: KeySet,
    remote: Option<RefCell<Remote>>,
    /// Hashes of tokens whose signature was checked, with the key that made it.
    vouched: RefCell<HashMap<[u8; 32], Rc<PublicKey>>>,
}

impl Keys {
    /// `secrets`: the current first.
    pub fn new(secrets: &[String], set: KeySet, url: Option<String>) -> Self {
        Keys {
            secrets: secrets.iter().map(Hs256Key::new).collect(),
            set,
            remote: url.map(|url| {
                RefCell::new(Remote {
                    url,
                    set: None,
                    fresh_until: 0,
                    fetching: None,
                    not_before: 0,
                    unknown: Bucket::full(UNKNOWN_KID, 0),
                })
            }),
            vouched: RefCell::default(),
        }
    }

    /// Where to fetch from, if anywhere.
    pub fn url(&self) -> Option<String> {
        Some(self.remote.as_ref()?.borrow().url.clone())
    }

    /// The claims of a token, if its signature is that of the key it can be of.
    pub(super) fn verify<T: DeserializeOwned, H: Clone>(
        &self,
        text: &str,
        token: &UntrustedToken<'_, H>,
    ) -> Result<Claims<T>, Unverified> {
        let Some(algorithm) = Algorithm::named(token.algorithm()) else {
            // HMACs are compared in constant time by the crate.
            return self
                .secrets
                .iter()
                .find_map(|key| Hs256.validator(key).validate(token).ok())
                .map(|token: jwt_compact::Token<T, H>| token.into_parts().1)
                .ok_or(Unverified::Invalid);
        };
        let keys = self.candidates(algorithm, token.header().key_id.as_deref())?;
        let vouched = self.vouched.borrow();
        vouched
            .get(&hash(text))
            // A key may have been taken out of the set meanwhile.
            .filter(|key| keys.contains(key))
            .and_then(|_| token.deserialize_claims_unchecked().ok())
            .ok_or(Unverified::Invalid)
    }

    /// The keys that a token can be of. By its `kid` mostly one, though two
    /// sets may use the same; without one there must be but one key.
    fn candidates(
        &self,
        algorithm: Algorithm,
        kid: Option<&str>,
    ) -> Result<Vec<Rc<PublicKey>>, Unverified> {
        let remote = self.remote.as_ref().map(RefCell::borrow);
        let fetched = remote.as_ref().and_then(|remote| remote.set.as_ref());
        let mut keys: Vec<Rc<PublicKey>> = Vec::new();
        for named in [Some(&self.set), fetched]
            .into_iter()
            .flatten()
            .flat_map(|set| &set.0)
        {
            let meant = kid.is_none() || named.kid.as_deref() == kid;
            if meant && named.key.algorithm == algorithm && !keys.contains(&named.key) {
                keys.push(named.key.clone());
            }
        }
        match keys.len() {
            0 if remote.is_some() && fetched.is_none() => Err(Unverified::NoKeysYet),
            0 => Err(Unverified::Invalid),
            1 => Ok(keys),
            _ if kid.is_none() => Err(Unverified::Ambiguous),
            _ => Ok(keys),
        }
    }

    /// What there is to do before `token` can be judged. With `begin` the
    /// caller is going to do it; without it is just looked whether there is.
    pub fn task(&self, token: &str, begin: bool, now: Millis) -> Option<Task> {
        if self.set.0.is_empty() && self.remote.is_none() {
            // Secrets alone: nothing to look at.
            return None;
        }
        let untrusted = UntrustedToken::new(token).ok()?;
        let algorithm = Algorithm::named(untrusted.algorithm())?;
        let kid = untrusted.header().key_id.as_deref();
        if let Some(task) = self.fetch_task(algorithm, kid, begin, now) {
            return Some(task);
        }
        let keys = self.candidates(algorithm, kid).ok()?;
        let vouched = self.vouched.borrow();
        let known = vouched.get(&hash(token));
        match known.is_some_and(|key| keys.contains(key)) {
            true => None,
            false => Some(Task::Check(keys)),
        }
    }

    fn fetch_task(
        &self,
        algorithm: Algorithm,
        kid: Option<&str>,
        begin: bool,
        now: Millis,
    ) -> Option<Task> {
        let known = |set: &KeySet| {
            set.0.iter().any(|named| {
                (kid.is_none() || named.kid.as_deref() == kid) && named.key.algorithm == algorithm
            })
        };
        let remote = self.remote.as_ref()?;
        if kid.is_some() && known(&self.set) {
            return None;
        }
        let mut remote = remote.borrow_mut();
        let is_known = remote.set.as_ref().is_some_and(known);
        if let Some(since) = remote.fetching
            && now.saturating_sub(since) < RETRY_AFTER
        {
            return (!is_known).then_some(Task::Wait);
        }
        let due = now >= remote.fresh_until && now >= remote.not_before;
        let is_new = kid.is_some() && !is_known && remote.set.is_some();
        let mut unknown = remote.unknown.clone();
        if !(due || is_new && unknown.take(UNKNOWN_KID, now).is_ok()) {
            return None;
        }
        if begin {
            remote.unknown = unknown;
            remote.fetching = Some(now);
        }
        Some(Task::Fetch)
    }

    /// The signature of `token` is that of `key`.
    pub fn vouch(&self, token: &str, key: Rc<PublicKey>) {
        let mut vouched = self.vouched.borrow_mut();
        if vouched.len() >= MAX_VOUCHED {
            vouched.clear();
        }
        vouched.insert(hash(token), key);
    }

    /// What a fetch brought: the body, and its `Cache-Control`. A set that is
    /// none changes nothing, nor does a failure, which is `None`.
    pub fn fetched(
        &self,
        body: Option<&str>,
        cache_control: Option<&str>,
        now: Millis,
    ) -> Result<(), KeySetError> {
        let Some(remote) = &self.remote else {
            return Ok(());
        };
        let mut remote = remote.borrow_mut();
        remote.fetching = None;
        remote.not_before = now + RETRY_AFTER;
        let Some(body) = body else {
            return Ok(());
        };
        let set = KeySet::lenient(body)?;
        remote.set = Some(set);
        remote.fresh_until = now + max_age(cache_control);
        Ok(())
    }

    /// The secret that development tokens are signed with.
    #[cfg(feature = "dev-tokens")]
    pub(super) fn secret(&self) -> Option<&Hs256Key> {
        self.secrets.first()
    }
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// The `max-age` of a `Cache-Control`, within bounds.
fn max_age(cache_control: Option<&str>) -> Millis {
    let mut age = DEFAULT_AGE;
    for directive in cache_control.unwrap_or_default().split(',') {
        let directive = directive.trim().to_ascii_lowercase();
        match directive.split_once('=') {
            Some(("max-age", seconds)) => {
                if let Ok(seconds) = seconds.trim_matches('"').parse::<Millis>() {
                    age = seconds.saturating_mul(SECOND);
                }
            }
            None if matches!(directive.as_str(), "no-cache" | "no-store") => return MAX_AGE.0,
            _ => {}
        }
    }
    age.clamp(MAX_AGE.0, MAX_AGE.1)
}

/// Keys are secret, or of no use to a reader.
impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use roomcast_harness::{KeyPair, SECRET, Token};
    use serde_json::Value;

    fn keys(set: &[&KeyPair]) -> Keys {
        let set = KeySet::strict(&KeyPair::set(set)).expect("a set");
        Keys::new(&[], set, None)
    }

    fn remote() -> Keys {
        Keys::new(&[], KeySet::default(), Some("https://keys.example".into()))
    }

    fn judge(keys: &Keys, token: &str) -> Result<(), Unverified> {
        let untrusted = UntrustedToken::new(token).expect("a JWT");
        keys.verify::<Value, _>(token, &untrusted).map(|_| ())
    }

    /// What the shell would do where every signature is good.
    fn check(keys: &Keys, token: &str, now: Millis) -> Vec<Rc<PublicKey>> {
        match keys.task(token, true, now) {
            Some(Task::Check(candidates)) => {
                keys.vouch(token, candidates[0].clone());
                candidates
            }
            other => panic!("{other:?}"),
        }
    }

    fn jwk(json: Value) -> Result<KeySet, KeySetError> {
        KeySet::strict(&json!({ "keys": [json] }).to_string())
    }

    #[test]
    fn a_key_is_chosen_by_its_kid_and_has_one_algorithm() {
        let (ed, es) = (KeyPair::ed25519("ed"), KeyPair::es256("es"));
        let keys = keys(&[&ed, &es]);
        let token = Token::user("alice");
        for (pair, algorithm) in [(&ed, Algorithm::EdDsa), (&es, Algorithm::Es256)] {
            let good = pair.sign(&token);
            assert_eq!(judge(&keys, &good), Err(Unverified::Invalid), "unchecked");
            let candidates = check(&keys, &good, 0);
            assert_eq!(candidates.len(), 1);
            assert_eq!(candidates[0].algorithm, algorithm);
            assert_eq!(judge(&keys, &good), Ok(()));
            assert_eq!(keys.task(&good, true, 1), None, "remembered");
        }
        // The key of this `kid` is of another algorithm.
        for bad in [
            ed.sign_as(&token, Some("es")),
            ed.sign_as(&token, Some("none")),
        ] {
            assert_eq!(keys.task(&bad, true, 0), None);
            assert_eq!(judge(&keys, &bad), Err(Unverified::Invalid));
        }
        // No secret, no HS256: not even with what the public key is.
        for secret in [ed.jwk().to_string(), String::new(), SECRET.to_owned()] {
            let forged = token.sign(&secret);
            assert_eq!(keys.task(&forged, true, 0), None);
            assert_eq!(judge(&keys, &forged), Err(Unverified::Invalid));
        }
    }

    #[test]
    fn without_a_kid_there_must_be_one_key_that_could_be_meant() {
        let (one, two) = (KeyPair::ed25519("one"), KeyPair::ed25519("two"));
        let es = KeyPair::es256("es");
        let token = one.sign_as(&Token::user("alice"), None);
        let unambiguous = keys(&[&one, &es]);
        check(&unambiguous, &token, 0);
        assert_eq!(judge(&unambiguous, &token), Ok(()));
        let ambiguous = keys(&[&one, &two]);
        assert_eq!(ambiguous.task(&token, true, 0), None);
        assert_eq!(judge(&ambiguous, &token), Err(Unverified::Ambiguous));
        // The same key in two sets is one.
        let set = KeyPair::set(&[&one]);
        let both = Keys::new(&[], KeySet::strict(&set).expect("a set"), Some("x".into()));
        both.fetched(Some(&set), None, 0).expect("a set");
        assert_eq!(check(&both, &token, 1).len(), 1);
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

    #[test]
    fn a_set_is_fetched_again_when_it_is_old_or_a_kid_is_new() {
        let (old, new) = (KeyPair::ed25519("old"), KeyPair::ed25519("new"));
        let (set, both) = (KeyPair::set(&[&old]), KeyPair::set(&[&old, &new]));
        let (by_old, by_new) = (
            old.sign(&Token::user("alice")),
            new.sign(&Token::user("alice")),
        );
        let keys = remote();
        let fetches = |token: &str, now| keys.task(token, true, now) == Some(Task::Fetch);
        assert_eq!(keys.task(&by_old, false, 0), Some(Task::Fetch));
        assert!(fetches(&by_old, 0), "looking is not beginning");
        assert_eq!(keys.task(&by_old, true, 1), Some(Task::Wait));
        keys.fetched(Some(&set), Some("public, max-age=3600"), 2)
            .expect("a set");
        check(&keys, &by_old, 3);
        assert_eq!(keys.task(&by_old, true, 4), None);
        // A new key is looked for at once.
        assert!(fetches(&by_new, 5));
        assert_eq!(
            keys.task(&by_old, true, 5),
            None,
            "who is known need not wait"
        );
        keys.fetched(Some(&both), Some("max-age=3600"), 6)
            .expect("a set");
        check(&keys, &by_new, 7);
        assert_eq!(judge(&keys, &by_old), Ok(()), "the key is still there");
        // An hour later what is gone is gone.
        let later = 3_600 * SECOND + 6;
        assert!(!fetches(&by_old, later - 1) && fetches(&by_old, later));
        let rotated = KeyPair::set(&[&new]);
        keys.fetched(Some(&rotated), None, later).expect("a set");
        assert_eq!(judge(&keys, &by_old), Err(Unverified::Invalid));
        assert_eq!(judge(&keys, &by_new), Ok(()));
        // Nobody else's tokens bring a request.
        assert_eq!(keys.task(&Token::user("alice").sign(SECRET), true, 0), None);
        assert_eq!(keys.task("x", true, 0), None);
    }

    #[test]
    fn made_up_kids_do_not_hammer_the_url() {
        let key = KeyPair::ed25519("k");
        let keys = remote();
        let mut fetches = 0;
        for second in 0..600 {
            let now = second * SECOND;
            let forged = key.sign_as(&Token::user("eve"), Some(&format!("made up {second}")));
            if keys.task(&forged, true, now) == Some(Task::Fetch) {
                fetches += 1;
                let hour = Some("max-age=3600");
                keys.fetched(Some(&KeyPair::set(&[&key])), hour, now)
                    .expect("a set");
            }
        }
        assert!((20..=24).contains(&fetches), "{fetches} in 10 minutes");
    }

    #[test]
    fn the_last_good_set_stays_when_a_fetch_fails() {
        let key = KeyPair::ed25519("k");
        let token = key.sign(&Token::user("alice"));
        let keys = remote();
        assert_eq!(keys.task(&token, true, 0), Some(Task::Fetch));
        keys.fetched(None, None, 1).expect("no set, no error");
        assert_eq!(judge(&keys, &token), Err(Unverified::NoKeysYet));
        assert_eq!(keys.task(&token, true, 2), None, "not at once again");
        let again = 1 + RETRY_AFTER;
        assert_eq!(keys.task(&token, true, again), Some(Task::Fetch));
        keys.fetched(Some(&KeyPair::set(&[&key])), Some("no-store"), again)
            .expect("a set");
        check(&keys, &token, again);
        // A minute at the least, whatever the answer says.
        let old = again + MINUTE;
        assert_eq!(keys.task(&token, true, old - 1), None);
        for rubbish in [None, Some("<html>"), Some(r#"{"keys":[]}"#)] {
            let now = old + 10 * MINUTE;
            assert_eq!(keys.task(&token, true, now), Some(Task::Fetch));
            assert_eq!(keys.fetched(rubbish, None, old).is_err(), rubbish.is_some());
            assert_eq!(judge(&keys, &token), Ok(()));
        }
        // One that is never heard of again is given up.
        assert_eq!(keys.task(&token, true, old + DAY), Some(Task::Fetch));
        let unknown = key.sign_as(&Token::user("alice"), Some("?"));
        assert_eq!(keys.task(&unknown, true, old + DAY), Some(Task::Wait));
        let given_up = old + DAY + RETRY_AFTER;
        assert_eq!(keys.task(&unknown, true, given_up), Some(Task::Fetch));
    }

    #[test]
    fn max_age_has_bounds() {
        for (header, expected) in [
            (None, DEFAULT_AGE),
            (Some("public"), DEFAULT_AGE),
            (Some("max-age=x"), DEFAULT_AGE),
            (Some("public, Max-Age=600, must-revalidate"), 10 * MINUTE),
            (Some("max-age=0"), MINUTE),
            (Some("no-cache, max-age=600"), MINUTE),
            (Some("max-age=99999999999999999999"), DEFAULT_AGE),
            (Some("max-age=9999999999"), DAY),
        ] {
            assert_eq!(max_age(header), expected, "{header:?}");
        }
    }
}
