//! The copy of the revocation list in an isolate.

use super::list::MAX_REVOCATIONS;
use super::record::{Revocation, RevocationDelta, RevocationTarget};
use roomcast_proto::access::TokenId;
use roomcast_proto::time::{Millis, SECOND};
use std::cell::RefCell;
use std::collections::HashMap;

/// The longest time for which a copy of the list is used without a refresh. With the time that
/// the refresh takes, a revoked token is rejected everywhere within 5 seconds (contract).
/// The time is up to a quarter shorter, at random, so that isolates that start at the same
/// time do not refresh at the same time.
pub const FRESH: Millis = 4 * SECOND;

/// The shortest `REVOCATION_MAX_AGE`, and its default: the time within which a revoked token is
/// rejected everywhere (contract).
pub const MAX_AGE: Millis = 5 * SECOND;

/// Delay of the next refresh after a failed one.
const RETRY_AFTER: Millis = SECOND;

/// Time after which a refresh in progress counts as failed.
const GIVEN_UP_AFTER: Millis = 5 * SECOND;

/// The step that the host must take before a token can be checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefreshStep {
    /// Fetch the revocations after [`RevocationCache::head`] and report the result with
    /// [`RevocationCache::add`] or [`RevocationCache::failed`].
    Fetch,
    /// Call [`RevocationCache::step`] again after a moment: the copy is not usable, and another
    /// request is refreshing it.
    Wait,
}

/// An isolate's copy of the revocation list.
#[derive(Debug)]
pub struct RevocationCache {
    on: bool,
    max_age: Millis,
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
    /// Time for which the copy is used without a refresh; see [`FRESH`].
    fresh_for: Millis,
    /// Start of the refresh that is in progress.
    refreshing: Option<Millis>,
    /// No refresh before this time.
    not_before: Millis,
}

impl Known {
    /// Returns the time since the last successful refresh. With `abs_diff`, a copy does not
    /// become fresh when the clock is set back.
    fn age(&self, now: Millis) -> Option<Millis> {
        self.caught_up.map(|at| now.abs_diff(at))
    }

    /// Removes the revocations that have ended. `now` is in seconds since 1970.
    fn prune(&mut self, now: u64) {
        self.users.retain(|_, one| one.until > now);
        self.jtis.retain(|_, until| *until > now);
    }
}

impl RevocationCache {
    /// Creates an empty copy. `on` is `false` if tokens cannot be revoked (`REVOCATION`);
    /// the copy then never needs a refresh. A copy is usable for `max_age`, at least
    /// [`MAX_AGE`].
    pub fn new(on: bool, max_age: Millis) -> Self {
        RevocationCache {
            on,
            max_age: max_age.max(MAX_AGE),
            known: RefCell::default(),
        }
    }

    /// Returns `true` if tokens can be revoked.
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// Returns the number after which revocations may be missing in the copy.
    pub fn head(&self) -> u64 {
        self.known.borrow().head
    }

    /// Returns `true` after the first refresh.
    pub fn is_known(&self) -> bool {
        !self.on || self.known.borrow().caught_up.is_some()
    }

    /// Returns `true` if tokens can be checked: the copy is not older than
    /// `REVOCATION_MAX_AGE`.
    pub fn is_usable(&self, now: Millis) -> bool {
        let age = self.known.borrow().age(now);
        !self.on || age.is_some_and(|age| age <= self.max_age)
    }

    /// Returns the next step before a token can be checked, or `None` if there is none. With
    /// `begin` the caller promises to do the step. While refreshes fail, the last copy is
    /// used as long as it [is usable](RevocationCache::is_usable).
    pub fn step(&self, begin: bool, now: Millis) -> Option<RefreshStep> {
        let is_usable = self.is_usable(now);
        let mut known = self.known.borrow_mut();
        let is_fresh = known.age(now).is_some_and(|age| age < known.fresh_for);
        if !self.on || is_fresh {
            return None;
        }
        let refreshing = known.refreshing;
        if refreshing.is_some_and(|since| now.saturating_sub(since) < GIVEN_UP_AFTER) {
            return (!is_usable).then_some(RefreshStep::Wait);
        }
        if now < known.not_before {
            return None;
        }
        if begin {
            known.refreshing = Some(now);
        }
        Some(RefreshStep::Fetch)
    }

    /// Adds a page of the revocations after [`RevocationCache::head`]. Returns `true` after the
    /// last page, which completes the refresh. Otherwise the host fetches the next page.
    /// `random` is a random number; see [`FRESH`].
    pub fn add(&self, delta: RevocationDelta, random: u32, now: Millis) -> bool {
        self.learn(&delta.revocations);
        let mut known = self.known.borrow_mut();
        let is_new = delta.head > known.head;
        known.head = known.head.max(delta.head);
        // A page without a new revocation would be fetched again for ever.
        if delta.more && is_new {
            known.refreshing = Some(now);
            return false;
        }
        known.caught_up = Some(now);
        known.fresh_for = FRESH - Millis::from(random) % (FRESH / 4);
        known.refreshing = None;
        known.prune(now / SECOND);
        true
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
        // An isolate that only receives notices never refreshes its copy.
        if known.users.len() + known.jtis.len() >= MAX_REVOCATIONS
            && let Some(newest) = revocations.last()
        {
            known.prune(newest.at);
        }
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
        let cache = RevocationCache::new(true, 0);
        assert!(cache.add(page(1, target, false), 0, 0));
        cache
    }

    /// Returns a page with one revocation from second 100 to second 200.
    fn page(n: u64, target: RevocationTarget, more: bool) -> RevocationDelta {
        let revocation = Revocation {
            n,
            target,
            at: 100,
            until: 200,
        };
        RevocationDelta {
            head: n,
            more,
            revocations: vec![revocation],
        }
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
        let cache = RevocationCache::new(true, 0);
        assert_eq!(cache.step(false, 0), Some(RefreshStep::Fetch));
        assert_eq!(cache.step(true, 0), Some(RefreshStep::Fetch));
        assert_eq!(cache.step(true, 1), Some(RefreshStep::Wait));
        assert!(!cache.is_known());
        cache.failed(1);
        assert_eq!(cache.step(true, 2), None, "not again at once");
        assert_eq!(cache.step(true, 1 + RETRY_AFTER), Some(RefreshStep::Fetch));
        assert!(cache.add(RevocationDelta::default(), 0, 2_000));
        assert!(cache.is_known());
        assert_eq!(cache.step(true, 1_999 + FRESH), None);
        assert_eq!(cache.step(true, 2_000 + FRESH), Some(RefreshStep::Fetch));
        assert_eq!(
            cache.step(true, 2_001 + FRESH),
            None,
            "the last copy is used"
        );
        assert_eq!(
            cache.step(true, 2_001 + MAX_AGE),
            Some(RefreshStep::Wait),
            "the last copy is too old"
        );
        let given_up = 2_000 + FRESH + GIVEN_UP_AFTER;
        assert_eq!(cache.step(true, given_up), Some(RefreshStep::Fetch));
        assert_eq!(RevocationCache::new(false, 0).step(true, 0), None);
    }

    #[test]
    fn a_copy_is_usable_for_revocation_max_age() {
        for (setting, max_age) in [(0, MAX_AGE), (MAX_AGE, MAX_AGE), (60_000, 60_000)] {
            let cache = RevocationCache::new(true, setting);
            assert!(!cache.is_usable(0), "there is no copy");
            assert!(cache.add(RevocationDelta::default(), 0, 1_000));
            assert!(cache.is_usable(1_000 + max_age));
            assert!(!cache.is_usable(1_001 + max_age));
        }
        assert!(RevocationCache::new(false, 0).is_usable(0));
    }

    #[test]
    fn a_copy_is_complete_after_the_last_page() {
        let cache = RevocationCache::new(true, 0);
        let jti = |jti: &str| RevocationTarget::Jti(jti.into());
        assert_eq!(cache.step(true, 0), Some(RefreshStep::Fetch));
        assert!(!cache.add(page(7, jti("a"), true), 0, 4_000));
        assert_eq!(cache.head(), 7);
        assert!(!cache.is_known());
        // The refresh is still in progress.
        assert_eq!(
            cache.step(true, 4_000 + GIVEN_UP_AFTER - 1),
            Some(RefreshStep::Wait)
        );
        assert!(cache.add(page(9, jti("b"), false), 0, 5_000));
        for known in ["a", "b"] {
            assert!(cache.covers("alice", &id(None, Some(known)), 150 * SECOND));
        }
        // A page that contains nothing new ends the refresh as well.
        assert!(cache.add(page(9, jti("b"), true), 0, 6_000));
    }

    #[test]
    fn refreshes_of_isolates_are_spread_over_a_second() {
        let due = |random| {
            let cache = RevocationCache::new(true, 0);
            assert!(cache.add(RevocationDelta::default(), random, 0));
            (0..=FRESH).find(|now| cache.step(false, *now).is_some())
        };
        assert_eq!(due(0), Some(FRESH));
        assert_eq!(due(600), Some(FRESH - 600));
        assert_eq!(due(u32::MAX), Some(FRESH - u64::from(u32::MAX) % 1_000));
    }

    #[test]
    fn a_copy_that_is_never_refreshed_holds_no_more_than_the_list() {
        let cache = RevocationCache::new(true, 0);
        for n in 0..3 * MAX_REVOCATIONS as u64 {
            cache.learn(&[Revocation {
                n,
                target: RevocationTarget::Jti(n.to_string()),
                at: n,
                until: n + 1_000,
            }]);
        }
        let known = cache.known.borrow();
        assert!(known.jtis.len() <= MAX_REVOCATIONS, "{}", known.jtis.len());
        assert!(known.jtis.len() >= 1_000);
    }
}
