//! The token buckets of one connection.

use super::connection::ConnectionLimits;
use super::flood::{FloodGuard, Penalty, Violations};
use super::rate_limit::TokenBucket;
use crate::error::{Error, Result};
use crate::time::Millis;

/// Number of bytes of a page that count as one request, because the cost of a request grows
/// with its page.
const PAGE_BYTES: f64 = 32.0 * 1024.0;

/// Returns the number of tokens that a page of `bytes` bytes takes in addition to the token of
/// its request.
pub fn page_tokens(bytes: usize) -> f64 {
    (bytes as f64 / PAGE_BYTES).floor()
}

/// The kinds of requests of a connection. Some kinds share a token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any command. Each command takes a token of this kind and one of its own kind.
    Command,
    /// `sendMessage` and `emit`.
    Message,
    /// `typingIndicator` and `setPresence`.
    Signal,
    /// `joinRoom` and `leaveRoom`.
    Join,
    /// `sync`, `members` and `refreshToken`. Shares the bucket of [`Kind::Join`].
    Request,
}

impl Kind {
    /// Returns the name for the error message.
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

/// The token buckets and the violations of one connection.
#[derive(Debug)]
pub struct Allowance {
    commands: TokenBucket,
    messages: TokenBucket,
    signals: TokenBucket,
    joins: TokenBucket,
    bytes: TokenBucket,
    violations: Violations,
}

impl Allowance {
    /// Creates full buckets.
    pub fn full(limits: &ConnectionLimits, now: Millis) -> Self {
        Allowance {
            commands: TokenBucket::full(limits.commands, now),
            messages: TokenBucket::full(limits.messages, now),
            signals: TokenBucket::full(limits.signals, now),
            joins: TokenBucket::full(limits.joins, now),
            bytes: TokenBucket::full(limits.bytes, now),
            violations: Violations::default(),
        }
    }

    /// Takes a token for one request of this kind.
    ///
    /// # Errors
    ///
    /// Returns `rateLimited` if there is none.
    pub fn take(&mut self, kind: Kind, limits: &ConnectionLimits, now: Millis) -> Result<()> {
        let (bucket, rate) = match kind {
            Kind::Command => (&mut self.commands, limits.commands),
            Kind::Message => (&mut self.messages, limits.messages),
            Kind::Signal => (&mut self.signals, limits.signals),
            Kind::Join | Kind::Request => (&mut self.joins, limits.joins),
        };
        let taken = bucket.take(rate, now);
        taken.map_err(|wait| Error::rate_limited(kind.name(), wait))
    }

    /// Takes tokens for a command of this number of bytes.
    ///
    /// # Errors
    ///
    /// Returns `rateLimited` if there are too few.
    pub fn take_bytes(
        &mut self,
        bytes: usize,
        limits: &ConnectionLimits,
        now: Millis,
    ) -> Result<()> {
        let taken = self.bytes.take_many(bytes, limits.bytes, now);
        taken.map_err(|wait| Error::rate_limited("bytes", wait))
    }

    /// Takes more tokens of [`Kind::Request`] for a page of `bytes` bytes.
    pub fn charge_page(&mut self, bytes: usize, limits: &ConnectionLimits) {
        self.joins.charge(page_tokens(bytes), limits.joins);
    }

    /// Counts a rejected command of the connection and returns the penalty. `guard` is the
    /// guard of the object.
    pub fn refuse(
        &mut self,
        guard: &mut FloodGuard,
        user: &str,
        limits: &ConnectionLimits,
        now: Millis,
    ) -> Penalty {
        guard.refuse(&mut self.violations, user, limits, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_limited_to_256_kib_per_second_with_a_burst_of_1_mib() {
        let limits = ConnectionLimits::default();
        let mut allowance = Allowance::full(&limits, 0);
        let mut send = |now| allowance.take_bytes(64 * 1024, &limits, now);
        assert!((0..16).all(|_| send(0).is_ok()));
        let error = send(0).expect_err("over the limit");
        assert_eq!(error.retry_after, Some(250));
        assert!(send(249).is_err());
        assert!(send(250).is_ok());
    }

    #[test]
    fn a_page_is_charged_by_its_size_up_to_a_quarter_of_the_burst() {
        let limits = ConnectionLimits::default();
        let mut allowance = Allowance::full(&limits, 0);
        let mut ask = |bytes, now| {
            let taken = allowance.take(Kind::Request, &limits, now);
            allowance.charge_page(bytes, &limits);
            taken.is_ok()
        };
        assert!(ask(30_000, 0), "one request");
        assert!(ask(99 * 32 * 1024, 0), "the rest of the burst and more");
        assert!(ask(0, 400));
        assert!(ask(1_000_000_000, 600));
        assert!(!ask(0, 5_000));
        assert!(ask(0, 6_000), "the debt is at most 25 tokens");
    }
}
