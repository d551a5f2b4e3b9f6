//! The copy of the revocation list in an isolate.

use super::record::{Revocation, RevocationDelta, RevocationTarget};
use roomcast_proto::access::TokenId;
use roomcast_proto::time::{Millis, SECOND};
use std::cell::RefCell;
use std::collections::HashMap;

/// Time for which a copy of the list is used without a refresh. With the time that the
/// refresh takes, a revoked token is rejected everywhere within 5 seconds (contract).
pub const FRESH: Millis = 4 * SECOND;

/// Delay of the next refresh after a failed one.
const RETRY_AFTER: Millis = SECOND;

/// Time after which a refresh in progress counts as failed.
const GIVEN_UP_AFTER: Millis = 5 * SECOND;

/// The step that the host must take before a token can be checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefreshStep {
    /// Fetch the revocations after [`RevocationCache::head`] and report the result with
    /// [`RevocationCache::caught_up`] or [`RevocationCache::failed`].
    Fetch,
    /// Call [`RevocationCache::step`] again after a moment: another request is fetching the
    /// first copy.
    Wait,
}

/// An isolate's copy of the revocation list.
#[derive(Debug)]
pub struct RevocationCache {
    on: bool,
    known: RefCell<Known>,
}

/// The time of a revocation and its end, in seconds since 1970.
#[derive(Debug, Default)]
struct OfUser {
    at: u64,
    until: u64,
}

#[derive(Debug, Default)]
struct Known {
    users: HashMap<String, OfUser>,
    /// The end of the revocation of each `jti`, in seconds since 1970.
    jtis: HashMap<String, u64>,
    head: u64,
    /// Time of the last successful refresh.
    caught_up: Option<Millis>,
    /// Start of the refresh that is in progress.
    refreshing: Option<Millis>,
    /// No refresh before this time.
    not_before: Millis,
}

impl RevocationCache {
    /// Creates an empty copy. `on` is `false` if tokens cannot be revoked (`REVOCATION`);
    /// the copy then never needs a refresh.
    pub fn new(on: bool) -> Self {
        RevocationCache {
            on,
            known: RefCell::default(),
        }
    }

    /// Returns `true` if tokens can be revoked.
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// Returns the number of the newest revocation that the copy contains.
    pub fn head(&self) -> u64 {
        self.known.borrow().head
    }

    /// Returns `true` after the first refresh. Before that no token can be checked.
    pub fn is_known(&self) -> bool {
        !self.on || self.known.borrow().caught_up.is_some()
    }

    /// Returns the next step before a token can be checked, or `None` if there is none. With
    /// `begin` the caller promises to do the step. While refreshes fail, the last copy is
    /// used.
    pub fn step(&self, begin: bool, now: Millis) -> Option<RefreshStep> {
        let mut known = self.known.borrow_mut();
        // With `abs_diff`, a copy does not become fresh when the clock is set back.
        let age = known.caught_up.map(|at| now.abs_diff(at));
        if !self.on || age.is_some_and(|age| age < FRESH) {
            return None;
        }
        let refreshing = known.refreshing;
        if refreshing.is_some_and(|since| now.saturating_sub(since) < GIVEN_UP_AFTER) {
            return known.caught_up.is_none().then_some(RefreshStep::Wait);
        }
        if now < known.not_before {
            return None;
        }
        if begin {
            known.refreshing = Some(now);
        }
        Some(RefreshStep::Fetch)
    }

    /// Adds all revocations after [`RevocationCache::head`] and removes revocations that
    /// have ended. Counts as a refresh.
    pub fn caught_up(&self, delta: RevocationDelta, now: Millis) {
        self.learn(&delta.revocations);
        let mut known = self.known.borrow_mut();
        known.head = known.head.max(delta.head);
        known.caught_up = Some(now);
        known.refreshing = None;
        let seconds = now / SECOND;
        known.users.retain(|_, one| one.until > seconds);
        known.jtis.retain(|_, until| *until > seconds);
    }

    /// Records that a refresh failed.
    pub fn failed(&self, now: Millis) {
        let mut known = self.known.borrow_mut();
        known.refreshing = None;
        known.not_before = now + RETRY_AFTER;
    }

    /// Adds revocations that may be incomplete. Does not count as a refresh.
    pub fn learn(&self, revocations: &[Revocation]) {
        let mut known = self.known.borrow_mut();
        for one in revocations {
            match &one.target {
                RevocationTarget::User(user) => {
                    let known = known.users.entry(user.clone()).or_default();
                    known.at = one.at.max(known.at);
                    known.until = one.until.max(known.until);
                }
                RevocationTarget::Jti(jti) => {
                    let until = known.jtis.entry(jti.clone()).or_default();
                    *until = one.until.max(*until);
                }
            }
        }
    }

    /// Returns `true` if a token of `user` is revoked.
    pub fn covers(&self, user: &str, token: &TokenId, now: Millis) -> bool {
        let known = self.known.borrow();
        let seconds = now / SECOND;
        // `iat` has whole seconds: a token of the same second may have been issued before
        // the revocation.
        let by_user = known.users.get(user).is_some_and(|one| {
            one.until > seconds && token.issued.is_none_or(|issued| issued <= one.at)
        });
        by_user
            || token
                .jti
                .as_ref()
                .and_then(|jti| known.jtis.get(jti))
                .is_some_and(|until| *until > seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(issued: Option<u64>, jti: Option<&str>) -> TokenId {
        TokenId {
            issued,
            jti: jti.map(str::to_owned),
        }
    }

    /// Returns a copy with one revocation from second 100 to second 200.
    fn revoked(target: RevocationTarget) -> RevocationCache {
        let cache = RevocationCache::new(true);
        let revocation = Revocation {
            n: 1,
            target,
            at: 100,
            until: 200,
        };
        let delta = RevocationDelta {
            head: 1,
            revocations: vec![revocation],
        };
        cache.caught_up(delta, 0);
        cache
    }

    #[test]
    fn tokens_issued_after_the_revocation_of_their_user_are_valid() {
        let cache = revoked(RevocationTarget::User("alice".into()));
        let at = |second: u64| second * SECOND;
        for (issued, refused) in [(Some(99), true), (Some(100), true), (Some(101), false)] {
            assert_eq!(cache.covers("alice", &id(issued, None), at(150)), refused);
        }
        assert!(cache.covers("alice", &id(None, Some("a")), at(150)));
        assert!(!cache.covers("bob", &id(Some(1), None), at(150)));
        // The revocation has ended.
        assert!(!cache.covers("alice", &id(Some(1), None), at(200)));
    }

    #[test]
    fn revoking_a_jti_concerns_one_token() {
        let cache = revoked(RevocationTarget::Jti("j".into()));
        let now = 150 * SECOND;
        assert!(cache.covers("alice", &id(Some(120), Some("j")), now));
        assert!(!cache.covers("alice", &id(Some(1), Some("k")), now));
        assert!(!cache.covers("alice", &id(Some(1), None), now));
        assert!(!cache.covers("j", &id(None, None), now));
    }

    #[test]
    fn one_request_refreshes_at_a_time_and_the_last_copy_stays_when_it_fails() {
        let cache = RevocationCache::new(true);
        assert_eq!(cache.step(false, 0), Some(RefreshStep::Fetch));
        assert_eq!(cache.step(true, 0), Some(RefreshStep::Fetch));
        assert_eq!(cache.step(true, 1), Some(RefreshStep::Wait));
        assert!(!cache.is_known());
        cache.failed(1);
        assert_eq!(cache.step(true, 2), None, "not again at once");
        assert_eq!(cache.step(true, 1 + RETRY_AFTER), Some(RefreshStep::Fetch));
        cache.caught_up(RevocationDelta::default(), 2_000);
        assert!(cache.is_known());
        assert_eq!(cache.step(true, 1_999 + FRESH), None);
        assert_eq!(cache.step(true, 2_000 + FRESH), Some(RefreshStep::Fetch));
        assert_eq!(
            cache.step(true, 2_001 + FRESH),
            None,
            "the last copy is used"
        );
        let given_up = 2_000 + FRESH + GIVEN_UP_AFTER;
        assert_eq!(cache.step(true, given_up), Some(RefreshStep::Fetch));
        assert_eq!(RevocationCache::new(false).step(true, 0), None);
    }
}
