//! How much a connection may ask for: token buckets, and what happens to one
//! that does not stop.

use crate::config::{Rate, RoomConfig};
use crate::fault::{self, Fault};
use crate::time::{Millis, SECOND};
use std::collections::HashMap;

/// A connection that goes on over a limit for this long is closed (contract).
pub const PATIENCE: Millis = 10 * SECOND;

/// A page of the log counts as one request more for each so many bytes: what is
/// asked for with one frame may be a megabyte.
const PAGE_BYTES: f64 = 32.0 * 1024.0;

/// Two refusals further apart than this are not the same transgression.
const LULL: Millis = 2 * SECOND;

/// A token bucket: starts full, refills steadily.
#[derive(Clone, Debug)]
pub struct Bucket {
    tokens: f64,
    at: Millis,
}

impl Bucket {
    pub fn full(rate: Rate, now: Millis) -> Self {
        Bucket {
            tokens: rate.burst,
            at: now,
        }
    }

    /// Takes one, or says in how many milliseconds there will be one.
    pub fn take(&mut self, rate: Rate, now: Millis) -> Result<(), Millis> {
        self.refill(rate, now);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            Ok(())
        } else {
            Err(((1.0 - self.tokens) / rate.per_second * SECOND as f64).ceil() as Millis)
        }
    }

    /// Takes more for what turned out to be large. A quarter of the burst may be
    /// owed.
    pub fn charge(&mut self, count: f64, rate: Rate) {
        self.tokens = (self.tokens - count).max(-rate.burst / 4.0);
    }

    /// Whether there is none to take.
    pub fn is_empty(&mut self, rate: Rate, now: Millis) -> bool {
        self.refill(rate, now);
        self.tokens < 1.0
    }

    fn refill(&mut self, rate: Rate, now: Millis) {
        // A clock that was set back refills nothing.
        let elapsed = now.saturating_sub(self.at) as f64 / SECOND as f64;
        self.tokens = (self.tokens + elapsed * rate.per_second).min(rate.burst);
        self.at = now;
    }

    /// Whether it is as good as new, so that it need not be remembered.
    pub fn is_full(&self, rate: Rate, now: Millis) -> bool {
        let elapsed = now.saturating_sub(self.at) as f64 / SECOND as f64;
        self.tokens + elapsed * rate.per_second >= rate.burst
    }
}

/// What a connection may ask for. Some kinds share a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Anything at all.
    Command,
    Message,
    Signal,
    Join,
    /// As a join.
    Request,
}

impl Kind {
    /// As a refusal names it.
    fn name(self) -> &'static str {
        match self {
            Kind::Command => "commands",
            Kind::Message => "messages",
            Kind::Signal => "signals",
            Kind::Join => "joins",
            Kind::Request => "requests",
        }
    }
}

/// What one connection may still ask for, and how it takes a refusal.
#[derive(Debug)]
pub struct Allowance {
    commands: Bucket,
    messages: Bucket,
    signals: Bucket,
    joins: Bucket,
    refusals: Bucket,
    overrun: Overrun,
}

impl Allowance {
    pub fn full(limits: &RoomConfig, now: Millis) -> Self {
        Allowance {
            commands: Bucket::full(limits.commands, now),
            messages: Bucket::full(limits.messages, now),
            signals: Bucket::full(limits.signals, now),
            joins: Bucket::full(limits.joins, now),
            refusals: Bucket::full(limits.refusals, now),
            overrun: Overrun::default(),
        }
    }

    /// Takes one, or fails with `rateLimited`.
    pub fn take(&mut self, kind: Kind, limits: &RoomConfig, now: Millis) -> fault::Result<()> {
        let (bucket, rate) = match kind {
            Kind::Command => (&mut self.commands, limits.commands),
            Kind::Message => (&mut self.messages, limits.messages),
            Kind::Signal => (&mut self.signals, limits.signals),
            Kind::Join | Kind::Request => (&mut self.joins, limits.joins),
        };
        let taken = bucket.take(rate, now);
        taken.map_err(|wait| Fault::rate_limited(kind.name(), wait))
    }

    /// A page of so many bytes was read for it.
    pub fn charge_page(&mut self, bytes: usize, limits: &RoomConfig) {
        let more = (bytes as f64 / PAGE_BYTES).floor();
        self.joins.charge(more, limits.joins);
    }

    /// Whether it was refused so much that what comes now is not even read: to
    /// answer each frame of a flood takes more than the flood itself.
    pub fn is_deaf(&mut self, limits: &RoomConfig, now: Millis) -> bool {
        self.refusals.is_empty(limits.refusals, now)
    }

    /// It was refused something, or not heard: what that means for it.
    pub fn refuse(&mut self, limits: &RoomConfig, now: Millis) -> Verdict {
        // There is none left when it is not heard.
        let _ = self.refusals.take(limits.refusals, now);
        self.overrun.refuse(now)
    }
}

/// Whether a receiver reads, as far as can be known: the runtime does not say
/// how much it still holds for a socket, so what was written since the socket's
/// last sign of life counts.
#[derive(Debug)]
pub struct Reader {
    heard_at: Millis,
    unacked: usize,
}

impl Reader {
    /// `heard_at`: 0 where only the runtime knows.
    pub fn new(heard_at: Millis) -> Self {
        Reader {
            heard_at,
            unacked: 0,
        }
    }

    /// A sign of life.
    pub fn heard(&mut self, now: Millis) {
        self.heard_at = now;
        self.unacked = 0;
    }

    pub fn heard_at(&self) -> Millis {
        self.heard_at
    }

    /// Bytes written since the last sign of life.
    pub fn unacked(&self) -> usize {
        self.unacked
    }

    /// So much was written. `true` when it is more than `limit` by now, so that
    /// the runtime is to be asked.
    pub fn sent(&mut self, bytes: usize, limit: usize) -> bool {
        self.unacked += bytes;
        self.unacked > limit
    }

    /// When the runtime itself last heard it: whether that is a sign of life.
    pub fn excuse(&mut self, heard: Option<Millis>, now: Millis) -> bool {
        let lives = heard.is_some_and(|at| at > self.heard_at);
        if lives {
            self.heard(now);
        }
        lives
    }
}

/// Connects by address. Addresses that have been quiet are forgotten.
#[derive(Debug, Default)]
pub struct Doors(HashMap<String, Bucket>);

impl Doors {
    /// One more from an address, or in how many milliseconds there may be.
    pub fn take(&mut self, address: &str, rate: Rate, now: Millis) -> Result<(), Millis> {
        if self.0.len() > 1_000 {
            self.0.retain(|_, bucket| !bucket.is_full(rate, now));
        }
        self.0
            .entry(address.to_owned())
            .or_insert_with(|| Bucket::full(rate, now))
            .take(rate, now)
    }
}

/// Refusals in a row.
#[derive(Clone, Copy, Debug, Default)]
pub struct Overrun {
    span: Option<(Millis, Millis)>,
}

/// What a refusal means for the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The first of a transgression: worth a line in the event log.
    First,
    Again,
    /// Kept up for [`PATIENCE`]: close.
    Enough,
}

impl Overrun {
    pub fn refuse(&mut self, now: Millis) -> Verdict {
        match self.span {
            Some((first, last)) if now.saturating_sub(last) <= LULL => {
                self.span = Some((first, now));
                if now.saturating_sub(first) >= PATIENCE {
                    Verdict::Enough
                } else {
                    Verdict::Again
                }
            }
            _ => {
                self.span = Some((now, now));
                Verdict::First
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        per_second: 20.0,
        burst: 40.0,
    };

    #[test]
    fn twenty_a_second_with_a_burst_of_forty() {
        let mut bucket = Bucket::full(RATE, 0);
        assert!((0..40).all(|_| bucket.take(RATE, 0).is_ok()));
        assert_eq!(bucket.take(RATE, 0), Err(50));
        assert!(bucket.take(RATE, 50).is_ok());
        assert!((0..20).all(|_| bucket.take(RATE, 1050).is_ok()));
        assert!(bucket.take(RATE, 1050).is_err());
        assert!(bucket.is_full(RATE, 10_000));
        assert!(
            bucket.take(RATE, 0).is_err(),
            "a clock set back gives nothing"
        );
    }

    #[test]
    fn who_is_refused_too_often_is_not_heard_for_a_while() {
        let limits = RoomConfig::default();
        let mut allowance = Allowance::full(&limits, 0);
        for _ in 0..300 {
            assert!(!allowance.is_deaf(&limits, 0));
            allowance.refuse(&limits, 0);
        }
        assert!(allowance.is_deaf(&limits, 0));
        assert_eq!(allowance.refuse(&limits, 0), Verdict::Again);
        assert!(!allowance.is_deaf(&limits, 20), "50 a second");
        for at in 1..10 {
            allowance.refuse(&limits, at * SECOND);
        }
        assert_eq!(allowance.refuse(&limits, 10 * SECOND), Verdict::Enough);
    }

    #[test]
    fn a_page_counts_by_its_size_and_no_more_than_a_quarter_is_owed() {
        let limits = RoomConfig::default();
        let mut allowance = Allowance::full(&limits, 0);
        let mut ask = |bytes, now| {
            let taken = allowance.take(Kind::Request, &limits, now);
            allowance.charge_page(bytes, &limits);
            taken.is_ok()
        };
        assert!(ask(30_000, 0), "one request");
        assert!(ask(99 * 32 * 1024, 0), "all that is left, and more");
        assert!(ask(0, 400));
        assert!(ask(1_000_000_000, 600));
        assert!(!ask(0, 5_000));
        assert!(ask(0, 6_000), "25 are owed at the most");
    }

    #[test]
    fn ten_seconds_of_refusals_are_enough() {
        let mut overrun = Overrun::default();
        assert_eq!(overrun.refuse(0), Verdict::First);
        for at in 1..10 {
            assert_eq!(overrun.refuse(at * SECOND), Verdict::Again);
        }
        assert_eq!(overrun.refuse(10 * SECOND), Verdict::Enough);
        assert_eq!(overrun.refuse(13 * SECOND), Verdict::First);
    }
}
