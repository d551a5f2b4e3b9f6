//! Token buckets, for one client or for many by a key.

use crate::error::{Error, Result};
use crate::time::{Millis, SECOND};
use std::collections::HashMap;
use std::net::IpAddr;

/// A rate limit: the parameters of a token bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Tokens that are added per second.
    pub per_second: f64,
    /// Maximum number of tokens: the number of requests that can arrive at the same time.
    pub burst: f64,
}

impl Rate {
    /// Returns the limit of `count` requests per minute, all of which can arrive at the
    /// same time.
    pub fn per_minute(count: f64) -> Self {
        Rate {
            per_second: count / 60.0,
            burst: count,
        }
    }
}

/// A token bucket. It starts full, each request takes one token, and tokens are added at
/// a constant rate.
///
/// The rate is passed to each call, so that buckets with the same rate need not store it.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    tokens: f64,
    at: Millis,
}

impl TokenBucket {
    /// Creates a full bucket.
    pub fn full(rate: Rate, now: Millis) -> Self {
        TokenBucket {
            tokens: rate.burst,
            at: now,
        }
    }

    /// Takes one token. If there is none, returns the time in milliseconds after which
    /// there will be one.
    pub fn take(&mut self, rate: Rate, now: Millis) -> std::result::Result<(), Millis> {
        self.take_many(1, rate, now)
    }

    /// Takes `count` tokens, or all of a full bucket if that has fewer. If there are too few,
    /// takes none and returns the time in milliseconds after which there will be enough.
    pub fn take_many(
        &mut self,
        count: usize,
        rate: Rate,
        now: Millis,
    ) -> std::result::Result<(), Millis> {
        self.refill(rate, now);
        let count = (count as f64).min(rate.burst);
        if self.tokens >= count {
            self.tokens -= count;
            Ok(())
        } else {
            Err(((count - self.tokens) / rate.per_second * SECOND as f64).ceil() as Millis)
        }
    }

    /// Takes `count` more tokens for a request that turned out to be large. The number of
    /// tokens can become negative, down to minus a quarter of the burst.
    pub fn charge(&mut self, count: f64, rate: Rate) {
        self.tokens = (self.tokens - count).max(-rate.burst / 4.0);
    }

    fn refill(&mut self, rate: Rate, now: Millis) {
        // If the clock was set back, no tokens are added.
        let elapsed = now.saturating_sub(self.at) as f64 / SECOND as f64;
        self.tokens = (self.tokens + elapsed * rate.per_second).min(rate.burst);
        self.at = now;
    }

    /// Returns `true` if the bucket is full, so that it need not be kept.
    pub fn is_full(&self, rate: Rate, now: Millis) -> bool {
        let elapsed = now.saturating_sub(self.at) as f64 / SECOND as f64;
        self.tokens + elapsed * rate.per_second >= rate.burst
    }
}

/// Number of buckets below which a [`KeyedRateLimiter`] never drops the full ones.
const MIN_PRUNE: usize = 1_000;

/// Maximum number of buckets of a [`KeyedRateLimiter`]: about 2 MB with keys of 50 bytes. If more
/// than half of them are in use, all are dropped. A full bucket is not in use.
const MAX_BUCKETS: usize = 20_000;

/// A rate limit for each key, such as an address or a user.
#[derive(Debug, Default)]
pub struct KeyedRateLimiter {
    buckets: HashMap<String, TokenBucket>,
    /// Number of buckets at which the full ones are dropped the next time. At least twice
    /// the number that was left the last time, so that a call takes constant time on
    /// average.
    prune_at: usize,
}

impl KeyedRateLimiter {
    /// Returns the error that [`KeyedRateLimiter::admit`] would return, without taking a
    /// token.
    pub fn check(&self, key: &str, what: &str, rate: Rate, now: Millis) -> Result<()> {
        let taken = self
            .buckets
            .get(key)
            .map_or(Ok(()), |bucket| bucket.clone().take(rate, now));
        taken.map_err(|wait| Error::rate_limited(what, wait))
    }

    /// Takes a token of `key`. `what` names the requests in the error message.
    ///
    /// # Errors
    ///
    /// Returns `rateLimited` if there is no token.
    pub fn admit(&mut self, key: &str, what: &str, rate: Rate, now: Millis) -> Result<()> {
        if self.buckets.len() >= self.prune_at.max(MIN_PRUNE) {
            self.buckets.retain(|_, bucket| !bucket.is_full(rate, now));
            // To refuse further keys would let some clients lock all others out.
            if self.buckets.len() > MAX_BUCKETS / 2 {
                self.buckets.clear();
            }
            self.prune_at = 2 * self.buckets.len();
        }
        self.buckets
            .entry(key.to_owned())
            .or_insert_with(|| TokenBucket::full(rate, now))
            .take(rate, now)
            .map_err(|wait| Error::rate_limited(what, wait))
    }

    /// Takes `count` more tokens of `key`, see [`TokenBucket::charge`].
    pub fn charge(&mut self, key: &str, count: f64, rate: Rate) {
        if let Some(bucket) = self.buckets.get_mut(key) {
            bucket.charge(count, rate);
        }
    }
}

/// Returns the network by which connections from an address are limited: the address
/// itself for IPv4, its /64 for IPv6, because one customer has at least that many
/// addresses (RFC 6177). A text that is not an address is returned unchanged.
pub fn network_of(address: &str) -> String {
    let v6 = match address.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) => v6,
        _ => return address.to_owned(),
    };
    if let Some(v4) = v6.to_ipv4_mapped() {
        return v4.to_string();
    }
    let [a, b, c, d, ..] = v6.segments();
    format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
}

/// Names the requests in the error for too many connections from one address.
pub const CONNECTS: &str = "connections from this address";

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        per_second: 20.0,
        burst: 40.0,
    };

    #[test]
    fn a_bucket_allows_a_burst_and_then_its_rate() {
        let mut bucket = TokenBucket::full(RATE, 0);
        assert!((0..40).all(|_| bucket.take(RATE, 0).is_ok()));
        assert_eq!(bucket.take(RATE, 0), Err(50));
        assert!(bucket.take(RATE, 50).is_ok());
        assert!((0..20).all(|_| bucket.take(RATE, 1050).is_ok()));
        assert!(bucket.take(RATE, 1050).is_err());
        assert!(bucket.is_full(RATE, 10_000));
        assert!(
            bucket.take(RATE, 0).is_err(),
            "a clock that was set back adds nothing"
        );
    }

    #[test]
    fn a_keyed_limiter_keeps_a_limited_number_of_keys() {
        let mut limiter = KeyedRateLimiter::default();
        for key in 0..100_000 {
            let key = key.to_string();
            assert!(limiter.admit(&key, "reads", RATE, 0).is_ok());
            assert!(limiter.buckets.len() <= MAX_BUCKETS);
        }
        assert!(limiter.prune_at <= MAX_BUCKETS);
    }

    #[test]
    fn a_keyed_limiter_charges_large_answers() {
        let mut limiter = KeyedRateLimiter::default();
        let mut admit = |bytes: f64| {
            let admitted = limiter.admit("alice", "reads", RATE, 0);
            limiter.charge("alice", bytes, RATE);
            limiter.charge("bob", bytes, RATE);
            admitted.map_err(|error| error.retry_after)
        };
        assert_eq!(admit(38.0), Ok(()));
        assert_eq!(admit(5.0), Ok(()));
        assert_eq!(admit(0.0), Err(Some(300)), "the debt is 5 tokens");
        assert!(limiter.check("bob", "reads", RATE, 0).is_ok());
    }

    #[test]
    fn a_request_above_the_burst_takes_a_full_bucket() {
        let mut bucket = TokenBucket::full(RATE, 0);
        assert!(bucket.take_many(15, RATE, 0).is_ok());
        assert_eq!(bucket.take_many(30, RATE, 0), Err(250));
        assert_eq!(bucket.take_many(1_000, RATE, 0), Err(750));
        assert!(bucket.take_many(1_000, RATE, 750).is_ok());
        assert!(bucket.take(RATE, 750).is_err());
    }

    #[test]
    fn ipv6_addresses_are_limited_by_their_64_bit_prefix() {
        for (address, network) in [
            ("203.0.113.7", "203.0.113.7"),
            ("::ffff:203.0.113.7", "203.0.113.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("2001:db8:1:2::", "2001:db8:1:2::/64"),
            ("unknown", "unknown"),
        ] {
            assert_eq!(network_of(address), network);
        }
    }
}
