//! How much a connection may ask for: token buckets, and what happens to one
//! that does not stop.

use crate::config::{Rate, RoomConfig};
use crate::fault::{self, Fault};
use crate::time::{Millis, SECOND};
use std::collections::HashMap;
use std::net::IpAddr;

/// A connection that goes on over a limit for this long is closed (contract).
pub const PATIENCE: Millis = 10 * SECOND;

/// A page of the log counts as one request more for each so many bytes: what is
/// asked for with one frame may be a megabyte.
const PAGE_BYTES: f64 = 32.0 * 1024.0;

/// Two refusals further apart than this are not the same transgression.
const LULL: Millis = 2 * SECOND;

/// While an object refuses more than it can bear, a connection that was refused
/// so often in a row is taken for one of those that flood it. More than a client
/// sends by accident, and soon reached by one that does not listen.
const FLOOD: u32 = 100;

/// Who floods again and again is kept out so many times as long at the most.
const MAX_BAN: u32 = 64;

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
    overrun: Overrun,
}

impl Allowance {
    pub fn full(limits: &RoomConfig, now: Millis) -> Self {
        Allowance {
            commands: Bucket::full(limits.commands, now),
            messages: Bucket::full(limits.messages, now),
            signals: Bucket::full(limits.signals, now),
            joins: Bucket::full(limits.joins, now),
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

    /// It was refused something: what that means for it.
    pub fn refuse(
        &mut self,
        floods: &mut Floods,
        user: &str,
        limits: &RoomConfig,
        now: Millis,
    ) -> Verdict {
        let verdict = self.overrun.refuse(now);
        let flooded = floods.refusals.take(limits.refusals, now).is_err();
        if flooded && self.overrun.times >= FLOOD {
            floods.ban(user, limits.flood_ban, now);
            return Verdict::Flood;
        }
        verdict
    }
}

/// How much an object refuses in all, which takes its time from everybody, and
/// who is kept out of it for that. In memory: who sleeps is not flooded.
#[derive(Clone, Debug)]
pub struct Floods {
    refusals: Bucket,
    bans: HashMap<String, Ban>,
}

#[derive(Clone, Copy, Debug)]
struct Ban {
    until: Millis,
    /// How long it is.
    lasts: Millis,
}

impl Floods {
    pub fn none(limits: &RoomConfig, now: Millis) -> Self {
        Floods {
            refusals: Bucket::full(limits.refusals, now),
            bans: HashMap::new(),
        }
    }

    /// Whether a user may come in.
    pub fn admit(&self, user: &str, now: Millis) -> fault::Result<()> {
        match self.bans.get(user) {
            Some(ban) if now < ban.until => {
                let wait = ban.until - now;
                Err(Fault::rate_limited("refused commands", wait))
            }
            _ => Ok(()),
        }
    }

    /// Keeps a user out, for twice as long as last time. That is forgotten once
    /// nothing came of it for as long again. Who is kept out already has other
    /// connections that flood.
    fn ban(&mut self, user: &str, least: Millis, now: Millis) {
        if self.admit(user, now).is_err() {
            return;
        }
        self.bans.retain(|_, ban| now < ban.until + ban.lasts);
        let lasts = self.bans.get(user).map_or(least, |last| {
            (last.lasts * 2).min(least * Millis::from(MAX_BAN))
        });
        let until = now + lasts;
        self.bans.insert(user.to_owned(), Ban { until, lasts });
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

/// How often each may come to a door: an address, or a user. Who has been quiet is
/// forgotten.
#[derive(Debug, Default)]
pub struct Doors {
    buckets: HashMap<String, Bucket>,
    /// How many there may be before the full ones are looked for again.
    scan_at: usize,
}

/// So many are remembered in any case.
const MIN_SCAN: usize = 1_000;

impl Doors {
    /// Returns an error, as [`Doors::admit`] would, without counting anything.
    pub fn check(&self, who: &str, what: &str, rate: Rate, now: Millis) -> fault::Result<()> {
        let taken = self
            .buckets
            .get(who)
            .map_or(Ok(()), |bucket| bucket.clone().take(rate, now));
        taken.map_err(|wait| Fault::rate_limited(what, wait))
    }

    /// Lets one more in, or says that there were too many `what`.
    pub fn admit(&mut self, who: &str, what: &str, rate: Rate, now: Millis) -> fault::Result<()> {
        if self.buckets.len() >= self.scan_at.max(MIN_SCAN) {
            self.buckets.retain(|_, bucket| !bucket.is_full(rate, now));
            self.scan_at = 2 * self.buckets.len();
        }
        self.buckets
            .entry(who.to_owned())
            .or_insert_with(|| Bucket::full(rate, now))
            .take(rate, now)
            .map_err(|wait| Fault::rate_limited(what, wait))
    }
}

/// The network that an address is counted by: itself, or its /64 for IPv6, of
/// which one customer has all addresses (RFC 6177). A text that is no address is
/// counted as it is.
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

/// What a refusal at the door calls those that came from one address.
pub const CONNECTS: &str = "connects from this address";

/// Refusals in a row.
#[derive(Clone, Copy, Debug, Default)]
pub struct Overrun {
    first: Millis,
    last: Millis,
    times: u32,
}

/// What a refusal means for the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The first of a transgression: worth a line in the event log.
    First,
    Again,
    /// Kept up for [`PATIENCE`]: close.
    Enough,
    /// One of those that flood the whole object: close, and keep out for a while.
    Flood,
}

impl Verdict {
    /// Whether the connection is to be closed.
    pub fn is_final(self) -> bool {
        matches!(self, Verdict::Enough | Verdict::Flood)
    }
}

impl Overrun {
    pub fn refuse(&mut self, now: Millis) -> Verdict {
        if self.times == 0 || now.saturating_sub(self.last) > LULL {
            *self = Overrun {
                first: now,
                last: now,
                times: 1,
            };
            return Verdict::First;
        }
        self.last = now;
        self.times = self.times.saturating_add(1);
        match now.saturating_sub(self.first) >= PATIENCE {
            true => Verdict::Enough,
            false => Verdict::Again,
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
    fn who_floods_an_object_is_closed_and_kept_out_longer_each_time() {
        let limits = RoomConfig::default();
        let mut floods = Floods::none(&limits, 0);
        let mut flood = |now| {
            let mut allowance = Allowance::full(&limits, now);
            let mut refuse = || allowance.refuse(&mut floods, "mallory", &limits, now);
            let refused = (1..).find(|_| refuse() == Verdict::Flood);
            let ban = floods.admit("mallory", now).expect_err("kept out");
            assert!(floods.admit("alice", now).is_ok());
            assert!(
                floods
                    .admit("mallory", now + ban.retry_after.unwrap_or(0))
                    .is_ok()
            );
            (refused, ban.retry_after)
        };
        assert_eq!(flood(0), (Some(1_001), Some(10_000)), "a burst is answered");
        assert_eq!(flood(10_000), (Some(1_001), Some(20_000)));
        assert_eq!(flood(45_000), (Some(1_001), Some(40_000)), "remembered");
        assert_eq!(flood(125_000).1, Some(10_000), "and forgotten");
        assert_eq!(
            flood(126_000).1,
            Some(9_000),
            "another socket: the same ban"
        );
    }

    #[test]
    fn in_a_flood_who_is_refused_now_and_then_stays() {
        let limits = RoomConfig::default();
        let mut floods = Floods::none(&limits, 0);
        let (mut loud, mut quiet) = (Allowance::full(&limits, 0), Allowance::full(&limits, 0));
        for _ in 0..99 {
            assert!(!quiet.refuse(&mut floods, "alice", &limits, 0).is_final());
        }
        while loud.refuse(&mut floods, "mallory", &limits, 0) != Verdict::Flood {}
        // 2,000 a second are borne, whoever they are for.
        assert_eq!(
            quiet.refuse(&mut floods, "alice", &limits, 1),
            Verdict::Again
        );
        assert_eq!(
            quiet.refuse(&mut floods, "alice", &limits, 2 * SECOND + 2),
            Verdict::First
        );
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
    fn addresses_are_counted_by_network() {
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
