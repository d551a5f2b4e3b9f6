//! Tokens that count no more before they expire.
//!
//! One list for the whole server ([`Registry`], kept by an object of its own)
//! and a copy of it in every isolate ([`Revoked`]), which is looked at whenever a
//! token is judged. A copy is asked to catch up when it is older than [`FRESH`];
//! nothing here asks by itself.

use roomcast_proto::access::TokenId;
use roomcast_proto::time::{Millis, SECOND};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

/// How long a copy of the list is good. With the time that asking takes, what is
/// revoked is refused everywhere within 5 seconds.
pub const FRESH: Millis = 4 * SECOND;

/// How long after asking in vain, or after somebody else asked who was not
/// heard of again, it is asked again.
const RETRY_AFTER: Millis = SECOND;
const GIVEN_UP_AFTER: Millis = 5 * SECOND;

/// The longest that a revocation lasts, in seconds, and what it lasts unless it
/// says less: 400 days, which is how long browsers keep a cookie at the most
/// (RFC 6265bis, 5.6.2), so that no session of theirs outlives it.
pub const MAX_LIFE: u64 = 400 * 24 * 60 * 60;

/// The most revocations at a time: every isolate has all of them in memory, and
/// this many take some 10 MB of its 128.
pub const MAX_REVOCATIONS: usize = 50_000;

/// The longest `jti`, in bytes: sockets carry it over hibernation.
pub const MAX_JTI: usize = 256;

/// What is revoked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Whose {
    /// All tokens of a user that were issued up to then, and those that do not
    /// say when they were.
    User(String),
    /// The token with this `jti`.
    Jti(String),
}

/// A line of the list. Times are in seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// Counts the revocations of the server.
    pub n: u64,
    pub whose: Whose,
    pub at: u64,
    /// Nothing that it concerns lives longer.
    pub until: u64,
}

/// What was revoked since somebody asked last, and the number of the last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct News {
    pub head: u64,
    pub revocations: Vec<Revocation>,
}

/// What there is to do before the list can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Ask for what is new, and say how that went by [`Revoked::caught_up`] or
    /// [`Revoked::failed`].
    Ask,
    /// Somebody asks already, and nothing can be said before.
    Wait,
}

/// The copy of an isolate.
#[derive(Debug)]
pub struct Revoked {
    on: bool,
    known: RefCell<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Of users: revoked at, until.
    users: HashMap<String, (u64, u64)>,
    jtis: HashMap<String, u64>,
    head: u64,
    caught_up: Option<Millis>,
    asking: Option<Millis>,
    not_before: Millis,
}

impl Revoked {
    /// `on`: whether tokens can be revoked at all.
    pub fn new(on: bool) -> Self {
        Revoked {
            on,
            known: RefCell::default(),
        }
    }

    pub fn is_on(&self) -> bool {
        self.on
    }

    /// The number of the last revocation that it has caught up with.
    pub fn head(&self) -> u64 {
        self.known.borrow().head
    }

    /// Whether it ever was the whole list.
    pub fn is_known(&self) -> bool {
        !self.on || self.known.borrow().caught_up.is_some()
    }

    /// What there is to do before a token is judged; with `begin` the caller is
    /// going to do it. While the list cannot be had the last one has to do.
    pub fn task(&self, begin: bool, now: Millis) -> Option<Look> {
        let mut known = self.known.borrow_mut();
        // A clock that was set back makes nothing fresh.
        let age = known.caught_up.map(|at| now.abs_diff(at));
        if !self.on || age.is_some_and(|age| age < FRESH) {
            return None;
        }
        let asking = known.asking;
        if asking.is_some_and(|since| now.saturating_sub(since) < GIVEN_UP_AFTER) {
            return known.caught_up.is_none().then_some(Look::Wait);
        }
        if now < known.not_before {
            return None;
        }
        if begin {
            known.asking = Some(now);
        }
        Some(Look::Ask)
    }

    /// This is all that came after [`Revoked::head`].
    pub fn caught_up(&self, news: News, now: Millis) {
        self.learn(&news.revocations);
        let mut known = self.known.borrow_mut();
        known.head = known.head.max(news.head);
        known.caught_up = Some(now);
        known.asking = None;
        let seconds = now / SECOND;
        known.users.retain(|_, (_, until)| *until > seconds);
        known.jtis.retain(|_, until| *until > seconds);
    }

    pub fn failed(&self, now: Millis) {
        let mut known = self.known.borrow_mut();
        known.asking = None;
        known.not_before = now + RETRY_AFTER;
    }

    /// These are among the revocations.
    pub fn learn(&self, revocations: &[Revocation]) {
        let mut known = self.known.borrow_mut();
        for one in revocations {
            match &one.whose {
                Whose::User(user) => {
                    let (at, until) = known.users.entry(user.clone()).or_default();
                    *at = one.at.max(*at);
                    *until = one.until.max(*until);
                }
                Whose::Jti(jti) => {
                    let until = known.jtis.entry(jti.clone()).or_default();
                    *until = one.until.max(*until);
                }
            }
        }
    }

    /// Whether a token of `user` counts no more.
    pub fn covers(&self, user: &str, token: &TokenId, now: Millis) -> bool {
        let known = self.known.borrow();
        let seconds = now / SECOND;
        // `iat` has whole seconds: what was issued in the same one may have been
        // issued before.
        let by_user = known.users.get(user).is_some_and(|(at, until)| {
            *until > seconds && token.issued.is_none_or(|issued| issued <= *at)
        });
        by_user
            || token
                .jti
                .as_ref()
                .and_then(|jti| known.jtis.get(jti))
                .is_some_and(|until| *until > seconds)
    }
}

/// The list itself.
#[derive(Debug, Default)]
pub struct Registry {
    head: u64,
    list: BTreeMap<u64, Revocation>,
    numbers: HashMap<Whose, u64>,
}

/// There are as many revocations as there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Registry {
    /// As it was stored. `head` is the number of the last that ever was.
    pub fn recall(head: u64, revocations: Vec<Revocation>) -> Self {
        let numbers = revocations.iter().map(|one| (one.whose.clone(), one.n));
        let numbers = numbers.collect();
        let list = revocations.into_iter().map(|one| (one.n, one)).collect();
        Registry {
            head,
            list,
            numbers,
        }
    }

    pub fn head(&self) -> u64 {
        self.head
    }

    /// Revokes, from `at` until `until`, in place of what there was of the same.
    pub fn revoke(&mut self, whose: Whose, at: u64, until: u64) -> Result<Revocation, Full> {
        let known = self.numbers.get(&whose).copied();
        let before = known.and_then(|n| self.list.get(&n));
        let until = before.map_or(until, |before| before.until.max(until));
        if before.is_none() && self.list.len() >= MAX_REVOCATIONS {
            return Err(Full);
        }
        if let Some(n) = known {
            self.list.remove(&n);
        }
        self.head += 1;
        let revocation = Revocation {
            n: self.head,
            whose: whose.clone(),
            at,
            until,
        };
        self.list.insert(self.head, revocation.clone());
        self.numbers.insert(whose, self.head);
        Ok(revocation)
    }

    /// What came after number `n`.
    pub fn after(&self, n: u64) -> News {
        News {
            head: self.head,
            revocations: self
                .list
                .range(n + 1..)
                .map(|(_, one)| one.clone())
                .collect(),
        }
    }

    /// Forgets what concerns no token any more.
    pub fn prune(&mut self, now: u64) {
        self.list.retain(|_, one| one.until > now);
        let list = &self.list;
        self.numbers.retain(|_, n| list.contains_key(n));
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

    fn revoked(registry: &Registry) -> Revoked {
        let revoked = Revoked::new(true);
        revoked.caught_up(registry.after(0), 0);
        revoked
    }

    #[test]
    fn a_user_may_have_a_new_token_after_the_old_ones_are_revoked() {
        let mut registry = Registry::default();
        let alice = Whose::User("alice".into());
        registry.revoke(alice, 100, 200).expect("room");
        let revoked = revoked(&registry);
        let at = |second: u64| second * SECOND;
        for (issued, refused) in [(Some(99), true), (Some(100), true), (Some(101), false)] {
            assert_eq!(revoked.covers("alice", &id(issued, None), at(150)), refused);
        }
        assert!(revoked.covers("alice", &id(None, Some("a")), at(150)));
        assert!(!revoked.covers("bob", &id(Some(1), None), at(150)));
        // Until then and no longer.
        assert!(!revoked.covers("alice", &id(Some(1), None), at(200)));
    }

    #[test]
    fn a_jti_is_one_token() {
        let mut registry = Registry::default();
        registry
            .revoke(Whose::Jti("j".into()), 100, 200)
            .expect("room");
        let revoked = revoked(&registry);
        let now = 150 * SECOND;
        assert!(revoked.covers("alice", &id(Some(120), Some("j")), now));
        assert!(!revoked.covers("alice", &id(Some(1), Some("k")), now));
        assert!(!revoked.covers("alice", &id(Some(1), None), now));
        assert!(!revoked.covers("j", &id(None, None), now));
    }

    #[test]
    fn a_copy_catches_up_with_what_is_new_alone() {
        let mut registry = Registry::default();
        for n in 0..5 {
            let whose = Whose::User(format!("u{n}"));
            registry.revoke(whose, n, 1_000 + n).expect("room");
        }
        assert_eq!(registry.after(3).revocations.len(), 2);
        // The same again is one line, of a new number, that lasts no shorter.
        let again = registry
            .revoke(Whose::User("u0".into()), 50, 60)
            .expect("room");
        assert_eq!((again.n, again.at, again.until), (6, 50, 1_000));
        assert_eq!(registry.after(0).revocations.len(), 5);
        assert_eq!(registry.after(5).revocations, [again]);
        registry.prune(1_002);
        assert_eq!(registry.after(0).revocations.len(), 2);
        // A number is never given twice, not even after a restart.
        let list = registry.after(0).revocations;
        let mut registry = Registry::recall(registry.head(), list);
        let next = registry.revoke(Whose::Jti("x".into()), 1, 2).expect("room");
        assert_eq!(next.n, 7);
    }

    #[test]
    fn the_list_has_an_end() {
        let mut registry = Registry::default();
        for n in 0..MAX_REVOCATIONS {
            registry
                .revoke(Whose::Jti(n.to_string()), 1, 2)
                .expect("room");
        }
        assert_eq!(registry.revoke(Whose::Jti("x".into()), 1, 2), Err(Full));
        assert!(registry.revoke(Whose::Jti("7".into()), 1, 3).is_ok());
        registry.prune(2);
        assert!(registry.revoke(Whose::Jti("x".into()), 1, 3).is_ok());
    }

    #[test]
    fn one_asks_at_a_time_and_the_last_list_stays_when_asking_fails() {
        let revoked = Revoked::new(true);
        assert_eq!(revoked.task(false, 0), Some(Look::Ask));
        assert_eq!(revoked.task(true, 0), Some(Look::Ask));
        assert_eq!(revoked.task(true, 1), Some(Look::Wait));
        assert!(!revoked.is_known());
        revoked.failed(1);
        assert_eq!(revoked.task(true, 2), None, "not at once again");
        assert_eq!(revoked.task(true, 1 + RETRY_AFTER), Some(Look::Ask));
        revoked.caught_up(News::default(), 2_000);
        assert!(revoked.is_known());
        assert_eq!(revoked.task(true, 1_999 + FRESH), None);
        assert_eq!(revoked.task(true, 2_000 + FRESH), Some(Look::Ask));
        assert_eq!(revoked.task(true, 2_001 + FRESH), None, "the last one does");
        let given_up = 2_000 + FRESH + GIVEN_UP_AFTER;
        assert_eq!(revoked.task(true, given_up), Some(Look::Ask));
        assert_eq!(Revoked::new(false).task(true, 0), None);
    }
}
