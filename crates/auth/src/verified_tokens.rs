//! A cache of tokens with a verified signature.

use crate::jwk::PublicKey;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::rc::Rc;

/// Maximum number of tokens in a generation. Two generations take at most about 2 MB of
/// an isolate's 128 MB.
const GENERATION: usize = 10_000;

type Hash = [u8; 32];

/// A bounded cache of tokens with the key that verifies each. Tokens are stored as
/// hashes.
///
/// The cache has two generations. When the newer one is full it becomes the older one,
/// and the previous older one is dropped. A lookup moves a token to the newer generation.
/// So a token stays in the cache until at least [`GENERATION`] other tokens were inserted
/// or looked up after it.
#[derive(Default)]
pub(crate) struct VerifiedTokens {
    newer: HashMap<Hash, Rc<PublicKey>>,
    older: HashMap<Hash, Rc<PublicKey>>,
}

impl VerifiedTokens {
    /// Returns the key that verifies `token`. Returns `None` if the token is not in the
    /// cache.
    pub(crate) fn get(&mut self, token: &str) -> Option<Rc<PublicKey>> {
        let hash = hash(token);
        if let Some(key) = self.newer.get(&hash) {
            return Some(key.clone());
        }
        let key = self.older.remove(&hash)?;
        self.put(hash, key.clone());
        Some(key)
    }

    /// Records that `key` verifies `token`.
    pub(crate) fn insert(&mut self, token: &str, key: Rc<PublicKey>) {
        self.put(hash(token), key);
    }

    fn put(&mut self, hash: Hash, key: Rc<PublicKey>) {
        if self.newer.len() >= GENERATION && !self.newer.contains_key(&hash) {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(hash, key);
    }
}

fn hash(token: &str) -> Hash {
    Sha256::digest(token.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jwk::Algorithm;

    fn key() -> Rc<PublicKey> {
        Rc::new(PublicKey {
            algorithm: Algorithm::EdDsa,
            jwk: String::new(),
        })
    }

    fn fill(cache: &mut VerifiedTokens, prefix: &str, count: usize) {
        let key = key();
        for n in 0..count {
            cache.insert(&format!("{prefix}{n}"), key.clone());
        }
    }

    #[test]
    fn a_token_stays_until_a_whole_generation_of_others_was_used() {
        let mut cache = VerifiedTokens::default();
        fill(&mut cache, "a", GENERATION - 1);
        cache.insert("last", key());
        // The newer generation becomes the older one. No token is dropped.
        cache.insert("next", key());
        assert!(cache.get("a0").is_some());
        assert!(cache.get("last").is_some());
        fill(&mut cache, "b", GENERATION - 1);
        assert!(cache.get("last").is_some() && cache.get("next").is_some());
        assert!(cache.get("a1").is_none(), "unused for a generation");
    }

    #[test]
    fn a_token_in_use_stays_for_any_number_of_others() {
        let mut cache = VerifiedTokens::default();
        cache.insert("used", key());
        for round in 0..5 {
            fill(&mut cache, &format!("{round}-"), GENERATION - 1);
            assert!(cache.get("used").is_some(), "round {round}");
        }
        assert!(cache.get("0-0").is_none());
    }

    #[test]
    fn the_cache_is_bounded() {
        let mut cache = VerifiedTokens::default();
        fill(&mut cache, "", 3 * GENERATION);
        assert!(cache.newer.len() <= GENERATION && cache.older.len() <= GENERATION);
        // The same token again takes no further space.
        let before = cache.newer.len();
        cache.insert(&format!("{}", 3 * GENERATION - 1), key());
        assert_eq!(cache.newer.len(), before);
    }
}
