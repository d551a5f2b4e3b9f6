//! Detection of slow consumers.

use crate::time::Millis;

/// Maximum number of bytes that are sent to a client before its first sign of life. A client
/// that reads a lot shows one early, so this is far below the default of `MAX_UNACKED_BYTES`
/// and bounds the memory that clients which never read take.
pub const MAX_UNACKED_BEFORE_FIRST_SIGN: usize = 1 << 20;

/// Tracks whether a client reads the frames that are sent to it. The runtime does not
/// report how much a socket buffers, so the guard counts the bytes sent since the client's
/// last activity (its last sign of life): a frame or a ping.
#[derive(Debug)]
pub struct SlowConsumerGuard {
    active_at: Millis,
    /// `false` until the first activity after the client has connected.
    was_active: bool,
    unacked: usize,
}

impl SlowConsumerGuard {
    /// Creates a guard. `active_at` is the time at which the client has connected, or 0 for
    /// a connection that was restored, whose last activity only the runtime knows.
    pub fn new(active_at: Millis) -> Self {
        SlowConsumerGuard {
            active_at,
            was_active: active_at == 0,
            unacked: 0,
        }
    }

    /// Records activity of the client.
    pub fn on_activity(&mut self, now: Millis) {
        self.active_at = now;
        self.was_active = true;
        self.unacked = 0;
    }

    /// Records that the client was active at a time that may be in the past.
    pub fn seen_at(&mut self, at: Millis) {
        self.active_at = self.active_at.max(at);
    }

    /// Returns the time of the last known activity.
    pub fn active_at(&self) -> Millis {
        self.active_at
    }

    /// Returns the number of bytes sent since the last activity.
    pub fn unacked(&self) -> usize {
        self.unacked
    }

    /// Records that `bytes` were sent. Returns `true` if the number of bytes since the last
    /// activity exceeds `limit`, or [`MAX_UNACKED_BEFORE_FIRST_SIGN`] if the client was never
    /// active. The caller then asks the runtime for the last ping and passes it to
    /// [`SlowConsumerGuard::check_ping`].
    pub fn on_sent(&mut self, bytes: usize, limit: usize) -> bool {
        self.unacked = self.unacked.saturating_add(bytes);
        // The first comparison decides almost always.
        self.unacked > limit.min(MAX_UNACKED_BEFORE_FIRST_SIGN)
            && (self.unacked > limit || !self.was_active)
    }

    /// Takes the time of the last ping that the runtime answered itself. Returns `true`,
    /// and records activity, if the ping came after the last known activity.
    pub fn check_ping(&mut self, pinged: Option<Millis>, now: Millis) -> bool {
        let is_active = pinged.is_some_and(|at| at > self.active_at);
        if is_active {
            self.on_activity(now);
        }
        is_active
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_without_a_sign_of_life_may_receive_less() {
        let limit = 4 * MAX_UNACKED_BEFORE_FIRST_SIGN;
        let mut guard = SlowConsumerGuard::new(100);
        assert!(!guard.on_sent(MAX_UNACKED_BEFORE_FIRST_SIGN, limit));
        assert!(guard.on_sent(1, limit));
        assert!(!guard.check_ping(Some(100), 200), "from before the connect");
        assert!(guard.check_ping(Some(150), 200));
        assert!(!guard.on_sent(limit, limit));
        assert!(guard.on_sent(1, limit));
        guard.on_activity(300);
        assert!(!guard.on_sent(limit, limit));
    }

    #[test]
    fn a_smaller_limit_counts_also_before_the_first_sign_of_life() {
        let mut guard = SlowConsumerGuard::new(100);
        assert!(!guard.on_sent(1_000, 1_000));
        assert!(guard.on_sent(1, 1_000));
    }
}
