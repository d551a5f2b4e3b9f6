//! The keys that verify tokens. They come from secrets, from a JWK Set (RFC 7517) in the
//! settings, and from a JWK Set that is fetched. A server may use several of these.
//!
//! The key determines the algorithm: a key verifies signatures of the algorithm of its type
//! (`kty`, `crv`) only. A token that names another algorithm matches no key.
//!
//! This module does no I/O. The host fetches key sets and checks the signatures of public keys
//! with the platform's WebCrypto. A Rust implementation in WebAssembly would make the Worker a
//! fifth larger and would be many times slower. Before each verification the host calls
//! [`Keys::step`], does the step, reports its result by [`Keys::fetched`] or
//! [`Keys::mark_verified`], and repeats until there is none. Secrets need no steps.

use crate::jwk::{Algorithm, KeySet, KeySetError, PublicKey, SkippedKey};
use crate::jwt::UnverifiedToken;
use crate::verified_tokens::VerifiedTokens;
use jwt_compact::Algorithm as _;
use jwt_compact::alg::{Hs256, Hs256Key};
use roomcast_proto::limits::{Rate, TokenBucket};
use roomcast_proto::time::{DAY, MINUTE, Millis, SECOND};
use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

/// Shortest secret in bytes: an HS256 key must not be shorter than its hash (RFC 7518,
/// 3.2).
pub const MIN_SECRET: usize = 32;

/// Shortest and longest time for which a fetched set is used. A `max-age` of `Cache-Control`
/// outside these bounds is raised or lowered to them.
const MAX_AGE: (Millis, Millis) = (MINUTE, DAY);

/// Time for which a fetched set without `max-age` is used.
const DEFAULT_AGE: Millis = 5 * MINUTE;

/// Time in milliseconds for which a cache between the isolates and the server of the set may
/// keep an answer. All isolates of a location then cause one request per minute to the server,
/// and a removed key is accepted for at most a minute longer.
pub const CACHE_TIME: Millis = MINUTE;

/// Delay of the next fetch after a failed one. A fetch that has not ended after this time
/// counts as failed.
pub const RETRY_AFTER: Millis = 5 * SECOND;

/// Rate limit of the fetches because of an unknown `kid`. A new key is found immediately, and
/// tokens with invented ids cause at most two requests per minute and isolate.
const UNKNOWN_KID: Rate = Rate {
    per_second: 1.0 / 30.0,
    burst: 3.0,
};

/// The state of the set at `JWT_JWKS_URL` in this isolate.
struct Remote {
    url: String,
    /// The last valid set; `None` before the first successful fetch.
    set: Option<KeySet>,
    fresh_until: Millis,
    /// Start of the fetch that is in progress.
    fetching: Option<Millis>,
    /// No fetch before this time, except for an unknown `kid`.
    not_before: Millis,
    unknown: TokenBucket,
}

/// The step that the host must take before a token can be verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyStep {
    /// Fetch the set from [`Keys::url`] and pass the result to [`Keys::fetched`].
    Fetch {
        /// `true` if the answer may come from a cache that keeps it for at most
        /// [`CACHE_TIME`]. `false` if the last set lacks the key of the token.
        cached: bool,
    },
    /// Wait a moment and ask again: another request is fetching the set.
    Wait,
    /// Check the signature with each of these keys, and pass the key that verifies it to
    /// [`Keys::mark_verified`]. If no key verifies it, the token is invalid.
    Check(Vec<Rc<PublicKey>>),
}

/// Why a token could not be verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VerifyError {
    /// No key of this server verifies the signature.
    BadSignature,
    /// The token has no `kid`, and several keys match.
    Ambiguous,
    /// The key set could not be fetched yet.
    NoKeysYet,
    /// The token names an algorithm that is not supported.
    UnsupportedAlgorithm,
}

/// All keys of the server. There is one value per isolate, which the Worker and its
/// objects share.
pub struct Keys {
    secrets: Vec<Hs256Key>,
    set: KeySet,
    remote: Option<RefCell<Remote>>,
    /// Tokens whose signature by a public key was checked.
    verified: RefCell<VerifiedTokens>,
}

impl Keys {
    /// Creates the keys. `secrets` are HS256 keys; the first one signs development tokens.
    /// `set` is the configured JWK Set, `url` the address of the set to fetch.
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
                    unknown: TokenBucket::full(UNKNOWN_KID, 0),
                })
            }),
            verified: RefCell::default(),
        }
    }

    /// Returns the address to fetch the key set from.
    pub fn url(&self) -> Option<String> {
        Some(self.remote.as_ref()?.borrow().url.clone())
    }

    /// Checks that a key of this server verifies the signature of a token, whose text is `text`.
    pub(crate) fn verify(
        &self,
        text: &str,
        token: &UnverifiedToken<'_>,
    ) -> Result<(), VerifyError> {
        let kid = token.header.kid.as_deref();
        let Some(algorithm) = Algorithm::named(&token.header.alg) else {
            if token.header.alg != Hs256.name() {
                return Err(VerifyError::UnsupportedAlgorithm);
            }
            // A token with the `kid` of a public key must not be verified by a secret.
            let is_public = kid.is_some_and(|kid| self.names_public(kid));
            let is_verified = self.secrets.iter().any(|key| token.is_signed_with(key));
            return match !is_public && is_verified {
                true => Ok(()),
                false => Err(VerifyError::BadSignature),
            };
        };
        let keys = self.candidates(algorithm, kid)?;
        match self.verified.borrow_mut().get(text) {
            // The key may have been removed from the set since.
            Some(key) if keys.contains(&key) => Ok(()),
            _ => Err(VerifyError::BadSignature),
        }
    }

    /// Returns `true` if a public key has this `kid`.
    fn names_public(&self, kid: &str) -> bool {
        let named = |set: &KeySet| set.keys.iter().any(|key| key.kid.as_deref() == Some(kid));
        let remote = self.remote.as_ref().map(RefCell::borrow);
        let fetched = remote.as_ref().and_then(|remote| remote.set.as_ref());
        named(&self.set) || fetched.is_some_and(named)
    }

    /// Returns the public keys that may have signed a token. A `kid` usually selects one
    /// key, but both sets may use it. Without a `kid` there must be exactly one key of the
    /// algorithm.
    fn candidates(
        &self,
        algorithm: Algorithm,
        kid: Option<&str>,
    ) -> Result<Vec<Rc<PublicKey>>, VerifyError> {
        let remote = self.remote.as_ref().map(RefCell::borrow);
        let fetched = remote.as_ref().and_then(|remote| remote.set.as_ref());
        let mut keys: Vec<Rc<PublicKey>> = Vec::new();
        for named in [Some(&self.set), fetched]
            .into_iter()
            .flatten()
            .flat_map(|set| &set.keys)
        {
            let matches = kid.is_none() || named.kid.as_deref() == kid;
            if matches && named.key.algorithm == algorithm && !keys.contains(&named.key) {
                keys.push(named.key.clone());
            }
        }
        match keys.len() {
            0 if remote.is_some() && fetched.is_none() => Err(VerifyError::NoKeysYet),
            0 => Err(VerifyError::BadSignature),
            1 => Ok(keys),
            _ if kid.is_none() => Err(VerifyError::Ambiguous),
            _ => Ok(keys),
        }
    }

    /// Returns the next step before `token` can be verified, or `None` if there is none.
    /// With `begin` the caller promises to do the step; without, the step counts as not begun.
    pub fn step(&self, token: &str, begin: bool, now: Millis) -> Option<KeyStep> {
        if self.set.keys.is_empty() && self.remote.is_none() {
            // Secrets need no steps.
            return None;
        }
        let header = UnverifiedToken::parse(token)?.header;
        let algorithm = Algorithm::named(&header.alg)?;
        let kid = header.kid.as_deref();
        if let Some(step) = self.fetch_step(algorithm, kid, begin, now) {
            return Some(step);
        }
        let keys = self.candidates(algorithm, kid).ok()?;
        let known = self.verified.borrow_mut().get(token);
        match known.is_some_and(|key| keys.contains(&key)) {
            true => None,
            false => Some(KeyStep::Check(keys)),
        }
    }

    fn fetch_step(
        &self,
        algorithm: Algorithm,
        kid: Option<&str>,
        begin: bool,
        now: Millis,
    ) -> Option<KeyStep> {
        let known = |set: &KeySet| {
            set.keys.iter().any(|named| {
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
            return (!is_known).then_some(KeyStep::Wait);
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
        Some(KeyStep::Fetch { cached: !is_new })
    }

    /// Records that `key` verifies the signature of `token`.
    pub fn mark_verified(&self, token: &str, key: Rc<PublicKey>) {
        self.verified.borrow_mut().insert(token, key);
    }

    /// Returns the keys of `JWT_JWKS` that cannot be used.
    pub fn skipped(&self) -> &[SkippedKey] {
        &self.set.skipped
    }

    /// Takes the result of a fetch: the body and its `Cache-Control`, or `None` for a fetch
    /// that failed. Returns the keys of the set that cannot be used, if they are others than in
    /// the last set: after the first fetch, and when the set changes. After a failure the last valid set stays in use. `random` is a random
    /// number: the set is fetched again up to an eighth earlier than its `max-age`, so that
    /// isolates that start at the same time do not fetch at the same time.
    ///
    /// # Errors
    ///
    /// Fails if the body is not a JWK Set with a usable key.
    pub fn fetched(
        &self,
        body: Option<&str>,
        cache_control: Option<&str>,
        random: u32,
        now: Millis,
    ) -> Result<Vec<SkippedKey>, KeySetError> {
        let Some(remote) = &self.remote else {
            return Ok(Vec::new());
        };
        let mut remote = remote.borrow_mut();
        remote.fetching = None;
        remote.not_before = now + RETRY_AFTER;
        let Some(body) = body else {
            return Ok(Vec::new());
        };
        let set = KeySet::lenient(body)?;
        let before = remote.set.as_ref().map(|set| &set.skipped);
        let skipped = match before == Some(&set.skipped) {
            true => Vec::new(),
            false => set.skipped.clone(),
        };
        remote.set = Some(set);
        let age = max_age(cache_control);
        remote.fresh_until = now + age - Millis::from(random) % (age / 8);
        Ok(skipped)
    }

    /// Returns the secret that signs development tokens.
    #[cfg(feature = "dev-tokens")]
    pub(crate) fn secret(&self) -> Option<&Hs256Key> {
        self.secrets.first()
    }
}

/// Returns the `max-age` of a `Cache-Control` in milliseconds, within [`MAX_AGE`].
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

/// Prints no keys, because they are secret or too long to read.
impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_keys_are_reported_once_for_each_set() {
        let es384 = r#"{"kty":"EC","crv":"P-384","alg":"ES384","kid":"a"}"#;
        let good = KeyPair::es256("es").jwk();
        let (keys, now) = (remote(), 1_000);
        let fetched = |keys: &Keys, set: &str| keys.fetched(Some(set), None, 0, now);
        let set = format!(r#"{{"keys":[{es384},{good}]}}"#);
        let skipped = fetched(&keys, &set).expect("a usable key");
        assert_eq!(skipped[0].reason, "ES384 is not supported");
        assert_eq!(fetched(&keys, &set), Ok(Vec::new()));
        assert_eq!(
            fetched(&keys, &KeyPair::set(&[&KeyPair::es256("es")])),
            Ok(Vec::new())
        );
        assert_eq!(fetched(&keys, &set).map(|skipped| skipped.len()), Ok(1));
    }
    use roomcast_harness::{KeyPair, SECRET, Token};

    fn keys(set: &[&KeyPair]) -> Keys {
        let set = KeySet::strict(&KeyPair::set(set)).expect("a set");
        Keys::new(&[], set, None)
    }

    const CACHED: KeyStep = KeyStep::Fetch { cached: true };
    const UNCACHED: KeyStep = KeyStep::Fetch { cached: false };

    fn remote() -> Keys {
        Keys::new(&[], KeySet::default(), Some("https://keys.example".into()))
    }

    fn verify(keys: &Keys, token: &str) -> Result<(), VerifyError> {
        let unverified = UnverifiedToken::parse(token).expect("a JWT");
        keys.verify(token, &unverified)
    }

    /// Does the steps of the host and treats every signature as valid. Returns the keys that
    /// were to be checked.
    fn check(keys: &Keys, token: &str, now: Millis) -> Vec<Rc<PublicKey>> {
        match keys.step(token, true, now) {
            Some(KeyStep::Check(candidates)) => {
                keys.mark_verified(token, candidates[0].clone());
                candidates
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_kid_selects_one_key_with_one_algorithm() {
        let (ed, es) = (KeyPair::ed25519("ed"), KeyPair::es256("es"));
        let keys = keys(&[&ed, &es]);
        let token = Token::user("alice");
        for (pair, algorithm) in [(&ed, Algorithm::EdDsa), (&es, Algorithm::Es256)] {
            let good = pair.sign(&token);
            assert_eq!(
                verify(&keys, &good),
                Err(VerifyError::BadSignature),
                "unchecked"
            );
            let candidates = check(&keys, &good, 0);
            assert_eq!(candidates.len(), 1);
            assert_eq!(candidates[0].algorithm, algorithm);
            assert_eq!(verify(&keys, &good), Ok(()));
            assert_eq!(keys.step(&good, true, 1), None, "remembered");
        }
        // The key with this `kid` has another algorithm.
        for bad in [
            ed.sign_as(&token, Some("es")),
            ed.sign_as(&token, Some("none")),
        ] {
            assert_eq!(keys.step(&bad, true, 0), None);
            assert_eq!(verify(&keys, &bad), Err(VerifyError::BadSignature));
        }
        // Without a secret there is no HS256, not even with the public key as secret.
        for secret in [ed.jwk().to_string(), String::new(), SECRET.to_owned()] {
            let forged = token.sign(&secret);
            assert_eq!(keys.step(&forged, true, 0), None);
            assert_eq!(verify(&keys, &forged), Err(VerifyError::BadSignature));
        }
    }

    #[test]
    fn a_secret_does_not_verify_tokens_with_the_kid_of_a_public_key() {
        let ed = KeyPair::ed25519("ed");
        let set = KeySet::strict(&KeyPair::set(&[&ed])).expect("a set");
        let keys = Keys::new(&[SECRET.to_owned()], set, None);
        let token = Token::user("alice");
        for (kid, expected) in [
            (None, Ok(())),
            (Some("mine"), Ok(())),
            (Some("ed"), Err(VerifyError::BadSignature)),
        ] {
            let signed = token.sign_as(SECRET, kid);
            assert_eq!(verify(&keys, &signed), expected, "{kid:?}");
        }
    }

    #[test]
    fn a_token_without_kid_needs_exactly_one_matching_key() {
        let (one, two) = (KeyPair::ed25519("one"), KeyPair::ed25519("two"));
        let es = KeyPair::es256("es");
        let token = one.sign_as(&Token::user("alice"), None);
        let unambiguous = keys(&[&one, &es]);
        check(&unambiguous, &token, 0);
        assert_eq!(verify(&unambiguous, &token), Ok(()));
        let ambiguous = keys(&[&one, &two]);
        assert_eq!(ambiguous.step(&token, true, 0), None);
        assert_eq!(verify(&ambiguous, &token), Err(VerifyError::Ambiguous));
        // The same key in both sets counts once.
        let set = KeyPair::set(&[&one]);
        let both = Keys::new(&[], KeySet::strict(&set).expect("a set"), Some("x".into()));
        both.fetched(Some(&set), None, 0, 0).expect("a set");
        assert_eq!(check(&both, &token, 1).len(), 1);
    }

    #[test]
    fn a_set_is_fetched_again_when_it_is_stale_or_a_kid_is_unknown() {
        let (old, new) = (KeyPair::ed25519("old"), KeyPair::ed25519("new"));
        let (set, both) = (KeyPair::set(&[&old]), KeyPair::set(&[&old, &new]));
        let (by_old, by_new) = (
            old.sign(&Token::user("alice")),
            new.sign(&Token::user("alice")),
        );
        let keys = remote();
        let fetches = |token: &str, now| keys.step(token, true, now) == Some(CACHED);
        assert_eq!(keys.step(&by_old, false, 0), Some(CACHED));
        assert!(fetches(&by_old, 0), "without `begin` no fetch has begun");
        assert_eq!(keys.step(&by_old, true, 1), Some(KeyStep::Wait));
        keys.fetched(Some(&set), Some("public, max-age=3600"), 0, 2)
            .expect("a set");
        check(&keys, &by_old, 3);
        assert_eq!(keys.step(&by_old, true, 4), None);
        // An unknown key is fetched at once, and not from a cache.
        assert_eq!(keys.step(&by_new, true, 5), Some(UNCACHED));
        assert_eq!(
            keys.step(&by_old, true, 5),
            None,
            "a known key need not wait"
        );
        keys.fetched(Some(&both), Some("max-age=3600"), 0, 6)
            .expect("a set");
        check(&keys, &by_new, 7);
        assert_eq!(verify(&keys, &by_old), Ok(()), "the key is still there");
        // After an hour the set is fetched again, without the removed key.
        let later = 3_600 * SECOND + 6;
        assert!(!fetches(&by_old, later - 1) && fetches(&by_old, later));
        let rotated = KeyPair::set(&[&new]);
        keys.fetched(Some(&rotated), None, 0, later).expect("a set");
        assert_eq!(verify(&keys, &by_old), Err(VerifyError::BadSignature));
        assert_eq!(verify(&keys, &by_new), Ok(()));
        // Tokens that no public key can have signed cause no request.
        assert_eq!(keys.step(&Token::user("alice").sign(SECRET), true, 0), None);
        assert_eq!(keys.step("x", true, 0), None);
    }

    #[test]
    fn invented_kids_cause_few_fetches() {
        let key = KeyPair::ed25519("k");
        let keys = remote();
        let mut fetches = 0;
        for second in 0..600 {
            let now = second * SECOND;
            let forged = key.sign_as(&Token::user("eve"), Some(&format!("invented {second}")));
            if matches!(keys.step(&forged, true, now), Some(KeyStep::Fetch { .. })) {
                fetches += 1;
                let hour = Some("max-age=3600");
                keys.fetched(Some(&KeyPair::set(&[&key])), hour, 0, now)
                    .expect("a set");
            }
        }
        assert!((20..=24).contains(&fetches), "{fetches} in 10 minutes");
    }

    #[test]
    fn the_last_good_set_stays_in_use_when_a_fetch_fails() {
        let key = KeyPair::ed25519("k");
        let token = key.sign(&Token::user("alice"));
        let keys = remote();
        assert_eq!(keys.step(&token, true, 0), Some(CACHED));
        keys.fetched(None, None, 0, 1)
            .expect("a failed fetch is not an error");
        assert_eq!(verify(&keys, &token), Err(VerifyError::NoKeysYet));
        assert_eq!(keys.step(&token, true, 2), None, "not again at once");
        let again = 1 + RETRY_AFTER;
        assert_eq!(keys.step(&token, true, again), Some(CACHED));
        keys.fetched(Some(&KeyPair::set(&[&key])), Some("no-store"), 0, again)
            .expect("a set");
        check(&keys, &token, again);
        // A set is used for at least a minute, even with a shorter `max-age`.
        let old = again + MINUTE;
        assert_eq!(keys.step(&token, true, old - 1), None);
        for rubbish in [None, Some("<html>"), Some(r#"{"keys":[]}"#)] {
            let now = old + 10 * MINUTE;
            assert_eq!(keys.step(&token, true, now), Some(CACHED));
            assert_eq!(
                keys.fetched(rubbish, None, 0, old).is_err(),
                rubbish.is_some()
            );
            assert_eq!(verify(&keys, &token), Ok(()));
        }
        // A fetch that never ends counts as failed.
        assert_eq!(keys.step(&token, true, old + DAY), Some(CACHED));
        let unknown = key.sign_as(&Token::user("alice"), Some("?"));
        assert_eq!(keys.step(&unknown, true, old + DAY), Some(KeyStep::Wait));
        let given_up = old + DAY + RETRY_AFTER;
        assert_eq!(keys.step(&unknown, true, given_up), Some(UNCACHED));
    }

    #[test]
    fn a_set_from_a_cache_that_lacks_the_key_is_fetched_again_at_once() {
        let (old, new) = (KeyPair::ed25519("old"), KeyPair::ed25519("new"));
        let token = new.sign(&Token::user("alice"));
        let keys = remote();
        assert_eq!(keys.step(&token, true, 0), Some(CACHED));
        keys.fetched(Some(&KeyPair::set(&[&old])), None, 0, 1)
            .expect("a set");
        assert_eq!(keys.step(&token, true, 1), Some(UNCACHED));
        keys.fetched(Some(&KeyPair::set(&[&new])), None, 0, 2)
            .expect("a set");
        check(&keys, &token, 2);
        assert_eq!(verify(&keys, &token), Ok(()));
        // The periodic fetch for a known key may come from a cache.
        assert_eq!(keys.step(&token, true, 2 + DEFAULT_AGE), Some(CACHED));
    }

    #[test]
    fn fetches_of_isolates_are_spread_over_an_eighth_of_the_max_age() {
        let key = KeyPair::ed25519("k");
        let token = key.sign(&Token::user("alice"));
        for (random, earlier) in [(0, 0), (1, 1), (u32::MAX, u64::from(u32::MAX) % 7_500)] {
            let keys = remote();
            let minute = Some("max-age=60");
            keys.fetched(Some(&KeyPair::set(&[&key])), minute, random, 0)
                .expect("a set");
            check(&keys, &token, 0);
            let due = MINUTE - earlier;
            assert_eq!(keys.step(&token, false, due - 1), None);
            assert_eq!(keys.step(&token, false, due), Some(CACHED));
        }
    }

    #[test]
    fn max_age_is_bounded() {
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
