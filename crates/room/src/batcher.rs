//! When a batch ends.
//!
//! A batch ends by turns of the event loop, not by the clock: with the next turn, so
//! that frames which have already arrived are taken in, and a few turns later while
//! fewer things wait than went out with the last batch. Where the last batch had one
//! thing, nothing else is waited for: what waits goes out at once. Every few such
//! batches the next turn is looked at all the same, for what came with it shows that
//! the room has become busy. So a quiet room answers without delay, and a busy one
//! gathers. docs/performance.md has the figures.
//!
//! The host calls [`Batcher::input`] when something has come in and
//! [`Batcher::turn`] with each turn of the event loop that it awaited. Where either
//! returns `true`, the host flushes the batch and calls [`Batcher::flushed`]. Then it
//! asks [`Batcher::schedule`] whether to await the next turn.

use roomcast_proto::time::Millis;

/// Turns of the event loop that a batch waits at most while fewer things wait than
/// went out with the last one.
pub const MAX_TURNS: u32 = 4;

/// How long a batch takes at most while frames come in: milliseconds, and
/// connections for each millisecond more. The runtime lets timers wait as long as
/// there is something to read, so a flood would keep all others waiting. Ending a
/// batch takes some 20 µs per connection, which must not use up all the time.
const MAX_BATCH: (Millis, usize) = (3, 5);

/// Of so many batches that wait for nothing, one looks at the turn after it, which
/// costs a timer: more often costs a quiet room, less often a busy one as it begins.
const QUIET_BATCHES: u32 = 4;

/// Decides when a batch ends. See the module.
#[derive(Debug, Default)]
pub struct Batcher {
    /// Turns that the batch may still take; 0 when no batch has begun.
    turns: u32,
    /// The host awaits a turn.
    awaits_turn: bool,
    began: Millis,
    /// Things that went out with the last batch.
    last: usize,
    /// Batches that waited for nothing.
    quiet: u32,
}

impl Batcher {
    /// Something has come in. Returns `true` if the batch ends now. `waiting` things
    /// wait for its end, for `connections` connections; `full`: it takes no more.
    pub fn input(&mut self, waiting: usize, connections: usize, full: bool, now: Millis) -> bool {
        let begins = waiting > 0 && self.turns == 0;
        let quiet = begins && self.last <= 1;
        let longest = MAX_BATCH.0 + (connections / MAX_BATCH.1) as Millis;
        let overdue = self.turns > 0 && now >= self.began + longest;
        if begins || overdue {
            self.began = now;
        }
        if quiet {
            self.quiet = self.quiet.wrapping_add(1);
            self.turns = u32::from(self.quiet.is_multiple_of(QUIET_BATCHES));
        } else if begins {
            self.turns = MAX_TURNS;
        }
        full || quiet || overdue
    }

    /// The turn of the event loop that the host awaited. Returns `true` if the batch
    /// ends now.
    pub fn turn(&mut self, waiting: usize) -> bool {
        self.awaits_turn = false;
        if self.turns == 0 {
            return false;
        }
        self.turns -= 1;
        if waiting >= self.last.max(1) {
            self.turns = 0;
        }
        self.turns == 0
    }

    /// Returns `true` if the host awaits a turn of the event loop already.
    pub fn awaits_turn(&self) -> bool {
        self.awaits_turn
    }

    /// Returns `true` if the host is to await the next turn of the event loop, and
    /// does not yet. `busy`: it has something of its own to do then.
    pub fn schedule(&mut self, busy: bool) -> bool {
        let schedule = !self.awaits_turn && (self.turns > 0 || busy);
        self.awaits_turn |= schedule;
        schedule
    }

    /// A batch of so many things has gone out.
    pub fn flushed(&mut self, things: usize) {
        self.last = things;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_room_flushes_at_once_and_looks_at_every_fourth_turn() {
        let mut batcher = Batcher::default();
        for n in 1..=8 {
            assert!(batcher.input(1, 2, false, 0));
            batcher.flushed(1);
            assert_eq!(batcher.schedule(false), n % 4 == 0, "batch {n}");
            if batcher.awaits_turn() {
                assert!(batcher.turn(0), "the turn ends the batch");
            }
        }
    }

    #[test]
    fn a_busy_room_gathers_as_many_things_as_last_time_for_four_turns_at_most() {
        let mut batcher = Batcher::default();
        batcher.flushed(3);
        assert!(!batcher.input(1, 2, false, 0));
        assert!(batcher.schedule(false));
        assert!(!batcher.turn(2), "fewer than last time");
        assert!(batcher.turn(3));
        batcher.flushed(3);
        batcher.input(1, 2, false, 0);
        let flushed = (1..10).find(|_| batcher.turn(1));
        assert_eq!(flushed, Some(MAX_TURNS));
    }

    #[test]
    fn a_batch_that_is_full_or_takes_too_long_ends_at_once() {
        let mut batcher = Batcher::default();
        batcher.flushed(9);
        assert!(!batcher.input(1, 10, false, 0));
        assert!(batcher.input(2, 10, true, 0), "full");
        assert!(!batcher.input(2, 10, false, 4));
        assert!(batcher.input(2, 10, false, 5), "3 ms and 10/5");
    }

    #[test]
    fn a_turn_is_awaited_once() {
        let mut batcher = Batcher::default();
        batcher.flushed(9);
        batcher.input(1, 2, false, 0);
        assert!(batcher.schedule(false));
        batcher.input(2, 2, false, 0);
        assert!(!batcher.schedule(false), "it is awaited already");
        let mut idle = Batcher::default();
        assert!(!idle.schedule(false));
        assert!(idle.schedule(true), "for the host");
        assert!(!idle.turn(0));
        assert!(!idle.schedule(false));
    }
}
