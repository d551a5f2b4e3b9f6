//! The list of all revocations.

use super::record::{Revocation, RevocationTarget};
use std::collections::{BTreeMap, HashMap};

/// Maximum number of revocations at a time. Every isolate holds all of them in memory;
/// this many take about 10 MB of its 128 MB.
pub const MAX_REVOCATIONS: usize = 50_000;

/// Maximum size of a page in bytes. A page with 2,000 or more revocations takes a few
/// milliseconds to read.
const MAX_PAGE: usize = 256 * 1024;

/// All revocations of the server, at most one for each target.
#[derive(Debug, Default)]
pub struct RevocationList {
    head: u64,
    list: BTreeMap<u64, Revocation>,
    numbers: HashMap<RevocationTarget, u64>,
}

/// A page of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The number of the newest revocation of the list, or the last of the page if there are
    /// more.
    pub head: u64,
    /// A [`RevocationDelta`](super::RevocationDelta) as JSON.
    pub json: String,
}

/// The error if the list has [`MAX_REVOCATIONS`] records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListFull;

impl RevocationList {
    /// Restores the list from storage. `head` is the highest number ever used, even if its
    /// revocation has ended.
    pub fn restore(head: u64, revocations: Vec<Revocation>) -> Self {
        let numbers = revocations.iter().map(|one| (one.target.clone(), one.n));
        let numbers = numbers.collect();
        let list = revocations.into_iter().map(|one| (one.n, one)).collect();
        RevocationList {
            head,
            list,
            numbers,
        }
    }

    /// Returns the highest number ever used, or 0.
    pub fn head(&self) -> u64 {
        self.head
    }

    /// Revokes tokens from `at` until `until` and returns the record. The record replaces an
    /// earlier revocation of the same target, and does not end before the earlier one.
    ///
    /// # Errors
    ///
    /// Fails if the list is full and has no revocation of this target.
    pub fn revoke(
        &mut self,
        target: RevocationTarget,
        at: u64,
        until: u64,
    ) -> Result<Revocation, ListFull> {
        if self.list.len() >= MAX_REVOCATIONS {
            self.prune(at);
        }
        let known = self.numbers.get(&target).copied();
        let before = known.and_then(|n| self.list.get(&n));
        let until = before.map_or(until, |before| before.until.max(until));
        if before.is_none() && self.list.len() >= MAX_REVOCATIONS {
            return Err(ListFull);
        }
        if let Some(n) = known {
            self.list.remove(&n);
        }
        self.head += 1;
        let revocation = Revocation {
            n: self.head,
            target: target.clone(),
            at,
            until,
        };
        self.list.insert(self.head, revocation.clone());
        self.numbers.insert(target, self.head);
        Ok(revocation)
    }

    /// Returns `true` if the list has no revocation.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Returns the first revocations after number `n`, at most 256 KiB.
    pub fn page(&self, n: u64) -> Page {
        let (mut head, mut more) = (n, false);
        let mut records = String::new();
        for (number, one) in self.list.range(n.saturating_add(1)..) {
            // Cannot fail: the record has only texts and numbers.
            let Ok(record) = serde_json::to_string(one) else {
                continue;
            };
            if !records.is_empty() {
                if records.len() + record.len() > MAX_PAGE {
                    more = true;
                    break;
                }
                records.push(',');
            }
            records += &record;
            head = *number;
        }
        if !more {
            head = self.head;
        }
        Page {
            head,
            json: format!(r#"{{"head":{head},"more":{more},"revocations":[{records}]}}"#),
        }
    }

    /// Removes the revocations that have ended. `now` is in seconds since 1970.
    pub fn prune(&mut self, now: u64) {
        self.list.retain(|_, one| one.until > now);
        let list = &self.list;
        self.numbers.retain(|_, n| list.contains_key(n));
    }
}

#[cfg(test)]
mod tests {
    use super::super::RevocationDelta;
    use super::*;
    use roomcast_proto::reader;

    fn page(list: &RevocationList, n: u64) -> RevocationDelta {
        reader::from_str(&list.page(n).json).expect("a delta")
    }

    #[test]
    fn a_delta_has_only_what_is_new_and_numbers_are_never_reused() {
        let mut list = RevocationList::default();
        for n in 0..5 {
            let target = RevocationTarget::User(format!("u{n}"));
            list.revoke(target, n, 1_000 + n).expect("not full");
        }
        assert_eq!(page(&list, 3).revocations.len(), 2);
        // The same target again replaces the record, with a new number and no earlier end.
        let again = list
            .revoke(RevocationTarget::User("u0".into()), 50, 60)
            .expect("not full");
        assert_eq!((again.n, again.at, again.until), (6, 50, 1_000));
        assert_eq!(page(&list, 0).revocations.len(), 5);
        assert_eq!(page(&list, 5).revocations, [again]);
        list.prune(1_002);
        assert_eq!(page(&list, 0).revocations.len(), 2);
        // Numbers are not reused after a restart either.
        let revocations = page(&list, 0).revocations;
        let mut list = RevocationList::restore(list.head(), revocations);
        let next = list
            .revoke(RevocationTarget::Jti("x".into()), 1, 2)
            .expect("not full");
        assert_eq!(next.n, 7);
    }

    #[test]
    fn a_full_list_accepts_only_known_targets() {
        let mut list = RevocationList::default();
        let jti = |jti: &str| RevocationTarget::Jti(jti.into());
        for n in 0..MAX_REVOCATIONS {
            list.revoke(jti(&n.to_string()), 1, 2).expect("not full");
        }
        assert_eq!(list.revoke(jti("x"), 1, 2), Err(ListFull));
        assert!(list.revoke(jti("7"), 1, 3).is_ok());
        // All others have ended.
        assert!(list.revoke(jti("x"), 2, 3).is_ok());
        assert_eq!(list.list.len(), 2);
    }

    #[test]
    fn pages_are_bounded_in_size_and_have_every_revocation_once() {
        let mut list = RevocationList::default();
        // Each byte takes six in JSON.
        let jti = |n: u64| format!("{n:05}{}", "\u{1}".repeat(251));
        for n in 0..1_000 {
            list.revoke(RevocationTarget::Jti(jti(n)), 1, 2)
                .expect("not full");
        }
        let (mut after, mut targets, mut pages) = (0, Vec::new(), 0);
        loop {
            let next = list.page(after);
            assert!(next.json.len() <= MAX_PAGE + 100, "{}", next.json.len());
            let delta = page(&list, after);
            assert_eq!(delta.head, next.head);
            after = delta.head;
            pages += 1;
            targets.extend(delta.revocations.into_iter().map(|one| one.target));
            if !delta.more {
                break;
            }
        }
        assert_eq!((after, pages), (1_000, 6));
        let all: Vec<_> = (0..1_000).map(|n| RevocationTarget::Jti(jti(n))).collect();
        assert_eq!(targets, all);
        let end = page(&list, 1_000);
        assert_eq!(
            (end.head, end.more, end.revocations.len()),
            (1_000, false, 0)
        );
        assert!(!page(&list, u64::MAX).more);
    }

    #[test]
    fn records_keep_their_serialised_form() {
        let stored = r#"{"n":7,"whose":{"user":"alice"},"at":1,"until":2}"#;
        let record: Revocation = reader::from_str(stored).expect("a record");
        assert_eq!(record.target, RevocationTarget::User("alice".into()));
        assert_eq!(serde_json::to_string(&record).expect("JSON"), stored);
    }
}
