//! The users who have left the room lately.
//!
//! The presence of all members does not name them. A receiver that may have missed their
//! `userLeft` is told again, so this list is stored.

use crate::output::Change;
use crate::presence::SHOWN_FOR;
use roomcast_proto::id::UserId;
use roomcast_proto::time::Millis;
use std::collections::VecDeque;

/// Maximum number of users in the list. With ids of the maximum length they have about
/// 300 kB.
const MAX_DEPARTED: usize = 1_000;

/// The users who have left within [`SHOWN_FOR`], in the order in which they left, with the times.
#[derive(Debug, Default)]
pub(crate) struct Departed(VecDeque<(UserId, Millis)>);

impl Departed {
    /// Restores the stored list.
    pub(crate) fn restore(mut stored: Vec<(UserId, Millis)>) -> Self {
        stored.sort_by_key(|(_, at)| *at);
        Departed(stored.into())
    }

    /// Returns the users.
    pub(crate) fn users(&self) -> impl Iterator<Item = &UserId> {
        self.0.iter().map(|(user, _)| user)
    }

    /// Adds a user who has left. Returns the changes to store.
    pub(crate) fn add(&mut self, user: &UserId, now: Millis) -> Vec<Change> {
        let mut changes: Vec<Change> = self.remove(user).into_iter().collect();
        while let Some((oldest, at)) = self.0.front()
            && (self.0.len() >= MAX_DEPARTED || at + SHOWN_FOR <= now)
        {
            changes.push(Change::RemoveDeparted(oldest.clone()));
            self.0.pop_front();
        }
        self.0.push_back((user.clone(), now));
        changes.push(Change::PutDeparted(user.clone(), now));
        changes
    }

    /// Removes a user who has joined again. Returns the change to store if the user was in the
    /// list.
    pub(crate) fn remove(&mut self, user: &UserId) -> Option<Change> {
        let index = self.0.iter().position(|(departed, _)| departed == user)?;
        self.0.remove(index);
        Some(Change::RemoveDeparted(user.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = 1_800_000_000_000;

    fn user(n: usize) -> UserId {
        UserId::trusted(format!("user-{n}"))
    }

    #[test]
    fn the_list_has_a_maximum_length_and_forgets_users_after_a_day() {
        let mut departed = Departed::default();
        for n in 0..=MAX_DEPARTED {
            departed.add(&user(n), NOW);
        }
        assert_eq!(departed.users().count(), MAX_DEPARTED);
        assert_eq!(departed.users().next(), Some(&user(1)));
        let changes = departed.add(&user(0), NOW + SHOWN_FOR);
        assert_eq!(changes.len(), MAX_DEPARTED + 1);
        assert_eq!(departed.users().collect::<Vec<_>>(), [&user(0)]);
    }

    #[test]
    fn a_user_who_joins_again_is_removed_from_the_list() {
        let mut departed = Departed::default();
        departed.add(&user(1), NOW);
        assert!(departed.remove(&user(2)).is_none());
        let removed = departed.remove(&user(1));
        assert!(matches!(removed, Some(Change::RemoveDeparted(one)) if one == user(1)));
        assert_eq!(departed.users().count(), 0);
    }
}
