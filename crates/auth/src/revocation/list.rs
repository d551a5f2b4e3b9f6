//! The list of all revocations.

use super::record::{Revocation, RevocationDelta, RevocationTarget};
use std::collections::{BTreeMap, HashMap};

/// Maximum number of revocations at a time. Every isolate holds all of them in memory;
/// this many take about 10 MB of its 128 MB.
pub const MAX_REVOCATIONS: usize = 50_000;

/// All revocations of the server, at most one for each target.
#[derive(Debug, Default)]
pub struct RevocationList {
    head: u64,
    list: BTreeMap<u64, Revocation>,
    numbers: HashMap<RevocationTarget, u64>,
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

    /// Returns the revocations after number `n`.
    pub fn after(&self, n: u64) -> RevocationDelta {
        RevocationDelta {
            head: self.head,
            revocations: self
                .list
                .range(n + 1..)
                .map(|(_, one)| one.clone())
                .collect(),
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
    use super::*;

    #[test]
    fn a_delta_has_only_what_is_new_and_numbers_are_never_reused() {
        let mut list = RevocationList::default();
        for n in 0..5 {
            let target = RevocationTarget::User(format!("u{n}"));
            list.revoke(target, n, 1_000 + n).expect("not full");
        }
        assert_eq!(list.after(3).revocations.len(), 2);
        // The same target again replaces the record, with a new number and no earlier end.
        let again = list
            .revoke(RevocationTarget::User("u0".into()), 50, 60)
            .expect("not full");
        assert_eq!((again.n, again.at, again.until), (6, 50, 1_000));
        assert_eq!(list.after(0).revocations.len(), 5);
        assert_eq!(list.after(5).revocations, [again]);
        list.prune(1_002);
        assert_eq!(list.after(0).revocations.len(), 2);
        // Numbers are not reused after a restart either.
        let revocations = list.after(0).revocations;
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
        list.prune(2);
        assert!(list.revoke(jti("x"), 1, 3).is_ok());
    }

    #[test]
    fn records_keep_their_serialised_form() {
        let stored = r#"{"n":7,"whose":{"user":"alice"},"at":1,"until":2}"#;
        let record: Revocation = serde_json::from_str(stored).expect("a record");
        assert_eq!(record.target, RevocationTarget::User("alice".into()));
        assert_eq!(serde_json::to_string(&record).expect("JSON"), stored);
    }
}
