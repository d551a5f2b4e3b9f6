//! Penalties for connections that exceed their limits, and bans for users that flood an
//! object.

use super::connection::ConnectionLimits;
use super::rate_limit::TokenBucket;
use crate::error::{Error, Result};
use crate::time::{Millis, SECOND};
use std::collections::HashMap;

/// Time after which a connection that keeps exceeding its limits is closed (contract,
/// close code 4429).
pub const MAX_VIOLATION_TIME: Millis = 10 * SECOND;

/// Time without a rejected command after which a series of violations ends.
const VIOLATION_GAP: Millis = 2 * SECOND;

/// Number of consecutive violations after which a connection is closed while its object
/// exceeds [`ConnectionLimits::refusals`] (docs/settings.md). A client that reacts to
/// rejections does not reach it.
const FLOOD_VIOLATIONS: u32 = 100;

/// Longest ban, as a multiple of the first ban (docs/settings.md).
const MAX_BAN_FACTOR: u32 = 64;

/// The current series of violations of one connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Violations {
    first: Millis,
    last: Millis,
    times: u32,
}

/// The consequence of a violation for the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Penalty {
    /// None, for the first violation of a series. It is logged.
    First,
    /// None, for a further violation.
    Again,
    /// Close: the violations continued for [`MAX_VIOLATION_TIME`].
    Persistent,
    /// Close: the connection floods the object, and its user is banned for a while.
    Flood,
}

impl Penalty {
    /// Returns `true` if the connection must be closed.
    pub fn is_final(self) -> bool {
        matches!(self, Penalty::Persistent | Penalty::Flood)
    }
}

impl Violations {
    /// Counts a violation and returns its penalty.
    pub(super) fn refuse(&mut self, now: Millis) -> Penalty {
        if self.times == 0 || now.saturating_sub(self.last) > VIOLATION_GAP {
            *self = Violations {
                first: now,
                last: now,
                times: 1,
            };
            return Penalty::First;
        }
        self.last = now;
        self.times = self.times.saturating_add(1);
        match now.saturating_sub(self.first) >= MAX_VIOLATION_TIME {
            true => Penalty::Persistent,
            false => Penalty::Again,
        }
    }
}

/// Protects one object from floods: counts the rejected commands of all its connections,
/// and bans users whose connections flood it. It is kept in memory only, because a
/// flooded object does not hibernate.
#[derive(Clone, Debug)]
pub struct FloodGuard {
    refusals: TokenBucket,
    bans: HashMap<String, Ban>,
}

#[derive(Clone, Copy, Debug)]
struct Ban {
    until: Millis,
    /// Length of the ban.
    lasts: Millis,
}

impl FloodGuard {
    /// Creates a guard without bans.
    pub fn new(limits: &ConnectionLimits, now: Millis) -> Self {
        FloodGuard {
            refusals: TokenBucket::full(limits.refusals, now),
            bans: HashMap::new(),
        }
    }

    /// Checks that a user may connect.
    ///
    /// # Errors
    ///
    /// Returns `rateLimited` while the user is banned.
    pub fn admit(&self, user: &str, now: Millis) -> Result<()> {
        match self.bans.get(user) {
            Some(ban) if now < ban.until => {
                let wait = ban.until - now;
                Err(Error::rate_limited("rejected commands", wait))
            }
            _ => Ok(()),
        }
    }

    /// Counts a rejected command of a connection and returns its penalty. Bans the user
    /// if the object is flooded and the connection has [`FLOOD_VIOLATIONS`] violations
    /// in the series.
    pub(super) fn refuse(
        &mut self,
        violations: &mut Violations,
        user: &str,
        limits: &ConnectionLimits,
        now: Millis,
    ) -> Penalty {
        let penalty = violations.refuse(now);
        let flooded = self.refusals.take(limits.refusals, now).is_err();
        if flooded && violations.times >= FLOOD_VIOLATIONS {
            self.ban(user, limits.flood_ban, now);
            return Penalty::Flood;
        }
        penalty
    }

    /// Bans a user for twice the length of the last ban. If more time than that length
    /// has passed since the last ban ended, the length starts again at `shortest`. Does
    /// nothing if the user is banned already, because several connections can belong to
    /// one flood.
    fn ban(&mut self, user: &str, shortest: Millis, now: Millis) {
        if self.admit(user, now).is_err() {
            return;
        }
        self.bans.retain(|_, ban| now < ban.until + ban.lasts);
        let lasts = self.bans.get(user).map_or(shortest, |last| {
            (last.lasts * 2).min(shortest * Millis::from(MAX_BAN_FACTOR))
        });
        let until = now + lasts;
        self.bans.insert(user.to_owned(), Ban { until, lasts });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn violations_for_ten_seconds_close_the_connection() {
        let mut violations = Violations::default();
        assert_eq!(violations.refuse(0), Penalty::First);
        for at in 1..10 {
            assert_eq!(violations.refuse(at * SECOND), Penalty::Again);
        }
        assert_eq!(violations.refuse(10 * SECOND), Penalty::Persistent);
        assert_eq!(violations.refuse(13 * SECOND), Penalty::First);
    }

    #[test]
    fn each_flood_is_closed_and_banned_twice_as_long_as_the_last() {
        let limits = ConnectionLimits::default();
        let mut guard = FloodGuard::new(&limits, 0);
        let mut flood = |now| {
            let mut violations = Violations::default();
            let mut refuse = || guard.refuse(&mut violations, "mallory", &limits, now);
            let refused = (1..).find(|_| refuse() == Penalty::Flood);
            let ban = guard.admit("mallory", now).expect_err("banned");
            assert!(guard.admit("alice", now).is_ok());
            assert!(
                guard
                    .admit("mallory", now + ban.retry_after.unwrap_or(0))
                    .is_ok()
            );
            (refused, ban.retry_after)
        };
        assert_eq!(flood(0), (Some(1_001), Some(10_000)), "after the burst");
        assert_eq!(flood(10_000), (Some(1_001), Some(20_000)));
        assert_eq!(flood(45_000), (Some(1_001), Some(40_000)), "remembered");
        assert_eq!(flood(125_000).1, Some(10_000), "forgotten");
        assert_eq!(
            flood(126_000).1,
            Some(9_000),
            "another connection: the same ban"
        );
    }

    #[test]
    fn a_connection_with_few_violations_survives_a_flood() {
        let limits = ConnectionLimits::default();
        let mut guard = FloodGuard::new(&limits, 0);
        let (mut loud, mut quiet) = (Violations::default(), Violations::default());
        for _ in 0..99 {
            assert!(!guard.refuse(&mut quiet, "alice", &limits, 0).is_final());
        }
        while guard.refuse(&mut loud, "mallory", &limits, 0) != Penalty::Flood {}
        // Below 2,000 a second, the number of violations does not matter.
        assert_eq!(
            guard.refuse(&mut quiet, "alice", &limits, 1),
            Penalty::Again
        );
        assert_eq!(
            guard.refuse(&mut quiet, "alice", &limits, 2 * SECOND + 2),
            Penalty::First
        );
    }
}
