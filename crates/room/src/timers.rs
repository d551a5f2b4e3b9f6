//! The deadlines of a room.

use roomcast_proto::time::{Millis, sooner};

/// A deadline. The first ones are short: the host sets a timer for them. The others are
/// long: the host sets an alarm, so that the room can hibernate until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// Queued ephemeral events are sent.
    PresenceFlush,
    /// Moved cursors are stored and announced.
    CursorFlush,
    /// A typing indicator or the grace period of a user without connections ends.
    PresenceTimeout,
    /// Feeds of the presence send their next texts.
    PresenceFeed,
    /// A stalled connection may have shown a sign of life.
    StallCheck,
    /// Gateways have not answered which connections of a user are active.
    Replacement,
    /// A token expires.
    TokenExpiry,
    /// A stale connection may have to be closed.
    KeepaliveCheck,
    /// A row of the log expires by age.
    LogRetention,
    /// Expired rows of the log are stored that were too many to delete at once.
    LogTrim,
    /// Events or other items that must arrive wait for a gateway. If the room loses its memory
    /// before the gateway accepts them, the alarm restores it, so that it delivers again.
    DeliveryRetry,
}

impl Timer {
    const SHORT: [Timer; 6] = [
        Timer::PresenceFlush,
        Timer::CursorFlush,
        Timer::PresenceTimeout,
        Timer::PresenceFeed,
        Timer::StallCheck,
        Timer::Replacement,
    ];

    const LONG: [Timer; 5] = [
        Timer::TokenExpiry,
        Timer::KeepaliveCheck,
        Timer::LogRetention,
        Timer::LogTrim,
        Timer::DeliveryRetry,
    ];
}

/// The time of each [`Timer`] that is set.
#[derive(Debug, Default)]
pub(crate) struct TimerTable {
    times: [Option<Millis>; Timer::SHORT.len() + Timer::LONG.len()],
}

impl TimerTable {
    pub(crate) fn get(&self, timer: Timer) -> Option<Millis> {
        self.times[timer as usize]
    }

    /// Sets a timer, or stops it with `None`.
    pub(crate) fn set(&mut self, timer: Timer, at: Option<Millis>) {
        self.times[timer as usize] = at;
    }

    /// Sets a timer unless it is set.
    pub(crate) fn start(&mut self, timer: Timer, at: Millis) {
        self.times[timer as usize].get_or_insert(at);
    }

    /// Sets a timer unless it is set to an earlier time.
    pub(crate) fn set_earliest(&mut self, timer: Timer, at: Millis) {
        sooner(&mut self.times[timer as usize], at);
    }

    pub(crate) fn stop(&mut self, timer: Timer) {
        self.set(timer, None);
    }

    /// Returns `true` if the time of the timer has come.
    pub(crate) fn is_due(&self, timer: Timer, now: Millis) -> bool {
        self.get(timer).is_some_and(|at| at <= now)
    }

    /// Returns the time of the next short timer.
    pub(crate) fn next_short(&self) -> Option<Millis> {
        self.next(&Timer::SHORT)
    }

    /// Returns the time of the next long timer.
    pub(crate) fn next_long(&self) -> Option<Millis> {
        self.next(&Timer::LONG)
    }

    fn next(&self, timers: &[Timer]) -> Option<Millis> {
        let times = timers.iter().map(|timer| self.get(*timer));
        times.flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_timers_are_separate() {
        let mut timers = TimerTable::default();
        timers.set(Timer::LogRetention, Some(5));
        timers.start(Timer::CursorFlush, 50);
        timers.start(Timer::CursorFlush, 40);
        assert_eq!(
            (timers.next_short(), timers.next_long()),
            (Some(50), Some(5))
        );
        timers.set_earliest(Timer::CursorFlush, 40);
        timers.set_earliest(Timer::CursorFlush, 60);
        assert!(timers.is_due(Timer::CursorFlush, 40) && !timers.is_due(Timer::CursorFlush, 39));
        timers.stop(Timer::CursorFlush);
        assert_eq!(timers.next_short(), None);
    }
}
