//! Detection of slow consumers.

use crate::time::Millis;

/// Tracks whether a client reads the frames that are sent to it. The runtime does not
/// report how much a socket buffers, so the guard counts the bytes sent since the client's
/// last activity: a frame or a ping.
#[derive(Debug)]
pub struct SlowConsumerGuard {
    active_at: Millis,
    unacked: usize,
}

impl SlowConsumerGuard {
    /// Creates a guard. `active_at` is the time of the last activity, or 0 if only the
    /// runtime knows it.
    pub fn new(active_at: Millis) -> Self {
        SlowConsumerGuard {
            active_at,
            unacked: 0,
        }
    }

    /// Records activity of the client.
    pub fn on_activity(&mut self, now: Millis) {
        self.active_at = now;
        self.unacked = 0;
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
    /// activity exceeds `limit`. The caller then asks the runtime for the last ping and
    /// passes it to [`SlowConsumerGuard::check_ping`].
    pub fn on_sent(&mut self, bytes: usize, limit: usize) -> bool {
        self.unacked += bytes;
        self.unacked > limit
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
