//! How much a connection may ask for: token buckets, and what happens to one
//! that does not stop.

use crate::config::Rate;
use crate::time::{Millis, SECOND};
use std::collections::HashMap;

/// A connection that goes on over a limit for this long is closed (contract).
pub const PATIENCE: Millis = 10 * SECOND;

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
        // A clock that was set back refills nothing.
        let elapsed = now.saturating_sub(self.at) as f64 / SECOND as f64;
        self.tokens = (self.tokens + elapsed * rate.per_second).min(rate.burst);
        self.at = now;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            Ok(())
        } else {
            Err(((1.0 - self.tokens) / rate.per_second * SECOND as f64).ceil() as Millis)
        }
    }

    /// Whether it is as good as new, so that it need not be remembered.
    pub fn is_full(&self, rate: Rate, now: Millis) -> bool {
        let elapsed = now.saturating_sub(self.at) as f64 / SECOND as f64;
        self.tokens + elapsed * rate.per_second >= rate.burst
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
