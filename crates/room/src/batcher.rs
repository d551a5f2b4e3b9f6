//! Decides when a batch ends.
//!
//! A batch lasts for turns of the event loop, not for a fixed time. It ends with the next
//! turn, so that it includes frames that have already arrived. While fewer items wait than
//! the last batch had, it lasts a few turns longer. If the last batch had one item, the
//! batch ends immediately. After every fourth such batch the host awaits the next turn: if
//! further items have arrived by then, the room has become busy. So a quiet room answers
//! without delay, and a busy room combines items. docs/performance.md has the measurements.
//!
//! The host calls [`Batcher::input`] after each input and [`Batcher::turn`] with each turn
//! of the event loop that it awaited. If either returns `true`, the host calls
//! [`Batcher::flushed`] and flushes the batch. Then it asks [`Batcher::schedule`] whether to
//! await the next turn.

use roomcast_proto::time::Millis;

/// The maximum number of turns of the event loop that a batch waits while fewer items wait
/// than the last batch had.
const MAX_TURNS: u32 = 4;

/// Longest duration of a batch while frames arrive; see also [`CONNECTIONS_PER_MILLI`]. The
/// runtime delays timers as long as there is input, so without this limit a flood would
/// delay all answers.
const MAX_BATCH_TIME: Millis = 3;

/// Number of connections for which a batch may last a millisecond longer. A flush takes
/// about 20 µs per connection (docs/performance.md), so with more connections flushes must
/// be rarer.
const CONNECTIONS_PER_MILLI: usize = 5;

/// After one of this many batches without a wait, the host awaits the next turn, which costs
/// a timer. A smaller number costs a quiet room more. With a larger number, a room that
/// becomes busy starts to combine later.
const QUIET_BATCHES: u32 = 4;

/// The state of a room that determines when a batch ends.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// The number of items that wait for the end of the batch.
    pub waiting: usize,
    /// The number of connections.
    pub connections: usize,
    /// The batch must not grow.
    pub is_full: bool,
}

/// Decides when a batch ends. The module documentation explains how to use it.
#[derive(Debug, Default)]
pub struct Batcher {
    /// The number of turns that the batch may still wait; 0 if no batch has begun.
    turns: u32,
    /// The host awaits a turn.
    awaits_turn: bool,
    /// The start of the batch.
    began: Millis,
    /// The number of items in the last batch.
    last: usize,
    /// The number of batches that did not wait.
    quiet: u32,
}

impl Batcher {
    /// Handles an input. Returns `true` if the batch ends now.
    pub fn input(&mut self, load: Load, now: Millis) -> bool {
        let begins = load.waiting > 0 && self.turns == 0;
        let quiet = begins && self.last <= 1;
        let longest = MAX_BATCH_TIME + (load.connections / CONNECTIONS_PER_MILLI) as Millis;
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
        load.is_full || quiet || overdue
    }

    /// Handles the turn of the event loop that the host has awaited. Returns `true` if the
    /// batch ends now.
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

    /// Returns `true` if the host already awaits a turn of the event loop.
    pub fn awaits_turn(&self) -> bool {
        self.awaits_turn
    }

    /// Returns `true` if the host must await the next turn of the event loop and does not
    /// do so yet. `pages` is the number of pages of the log that the host has to read, one
    /// with each turn.
    pub fn schedule(&mut self, pages: usize) -> bool {
        let schedule = !self.awaits_turn && (self.turns > 0 || pages > 0);
        self.awaits_turn |= schedule;
        schedule
    }

    /// Records that a batch with this number of items is flushed.
    pub fn flushed(&mut self, items: usize) {
        self.last = items;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(waiting: usize, connections: usize) -> Load {
        Load {
            waiting,
            connections,
            is_full: false,
        }
    }

    #[test]
    fn a_quiet_room_flushes_at_once_and_looks_at_every_fourth_turn() {
        let mut batcher = Batcher::default();
        for n in 1..=8 {
            assert!(batcher.input(load(1, 2), 0));
            batcher.flushed(1);
            assert_eq!(batcher.schedule(0), n % 4 == 0, "batch {n}");
            if batcher.awaits_turn() {
                assert!(batcher.turn(0), "the turn ends the batch");
            }
        }
    }

    #[test]
    fn a_busy_room_waits_for_as_many_items_as_last_time_for_at_most_four_turns() {
        let mut batcher = Batcher::default();
        batcher.flushed(3);
        assert!(!batcher.input(load(1, 2), 0));
        assert!(batcher.schedule(0));
        assert!(!batcher.turn(2), "fewer than last time");
        assert!(batcher.turn(3));
        batcher.flushed(3);
        batcher.input(load(1, 2), 0);
        let flushed = (1..10).find(|_| batcher.turn(1));
        assert_eq!(flushed, Some(MAX_TURNS));
    }

    #[test]
    fn a_batch_that_is_full_or_takes_too_long_ends_at_once() {
        let mut batcher = Batcher::default();
        batcher.flushed(9);
        assert!(!batcher.input(load(1, 10), 0));
        let full = Load {
            is_full: true,
            ..load(2, 10)
        };
        assert!(batcher.input(full, 0), "full");
        assert!(!batcher.input(load(2, 10), 4));
        assert!(batcher.input(load(2, 10), 5), "after 3 ms and 10/5 ms");
    }

    #[test]
    fn a_turn_is_awaited_once() {
        let mut batcher = Batcher::default();
        batcher.flushed(9);
        batcher.input(load(1, 2), 0);
        assert!(batcher.schedule(0));
        batcher.input(load(2, 2), 0);
        assert!(!batcher.schedule(0), "a turn is awaited");
        let mut idle = Batcher::default();
        assert!(!idle.schedule(0));
        assert!(idle.schedule(1), "for the host");
        assert!(!idle.turn(0));
        assert!(!idle.schedule(0));
    }
}
