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

use super::jwk::{Algorithm, KeySet, KeySetError, PublicKey};
use jwt_compact::alg::{Hs256, Hs256Key};
use jwt_compact::{AlgorithmExt, Claims, UntrustedToken};
use roomcast_proto::limits::{Bucket, Rate};
use roomcast_proto::time::{DAY, MINUTE, Millis, SECOND};
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;

/// The shortest secret, in bytes: HS256 wants a key no shorter than its hash
/// (RFC 7518, 3.2).
pub const MIN_SECRET: usize = 32;

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
        let kid = token.header().key_id.as_deref();
        let Some(algorithm) = Algorithm::named(token.algorithm()) else {
            // A `kid` names one key, and a public one makes no HMACs.
            if kid.is_some_and(|kid| self.names_public(kid)) {
                return Err(Unverified::Invalid);
            }
            // HMACs are compared in constant time by the crate.
            return self
                .secrets
                .iter()
                .find_map(|key| Hs256.validator(key).validate(token).ok())
                .map(|token: jwt_compact::Token<T, H>| token.into_parts().1)
                .ok_or(Unverified::Invalid);
        };
        let keys = self.candidates(algorithm, kid)?;
        let vouched = self.vouched.borrow();
        vouched
            .get(&hash(text))
            // A key may have been taken out of the set meanwhile.
            .filter(|key| keys.contains(key))
            .and_then(|_| token.deserialize_claims_unchecked().ok())
            .ok_or(Unverified::Invalid)
    }

    /// Whether a public key is known by this `kid`.
    fn names_public(&self, kid: &str) -> bool {
        let named = |set: &KeySet| set.0.iter().any(|key| key.kid.as_deref() == Some(kid));
        let remote = self.remote.as_ref().map(RefCell::borrow);
        let fetched = remote.as_ref().and_then(|remote| remote.set.as_ref());
        named(&self.set) || fetched.is_some_and(named)
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
    fn a_secret_signs_for_itself_and_not_under_the_kid_of_a_public_key() {
        let ed = KeyPair::ed25519("ed");
        let set = KeySet::strict(&KeyPair::set(&[&ed])).expect("a set");
        let keys = Keys::new(&[SECRET.to_owned()], set, None);
        let token = Token::user("alice");
        for (kid, judged) in [
            (None, Ok(())),
            (Some("mine"), Ok(())),
            (Some("ed"), Err(Unverified::Invalid)),
        ] {
            let signed = token.sign_as(SECRET, kid);
            assert_eq!(judge(&keys, &signed), judged, "{kid:?}");
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
