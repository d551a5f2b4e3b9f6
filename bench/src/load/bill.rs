//! Billed resources of a chat, and their price.

use super::ROOM;
use crate::client;
use crate::listeners::Listeners;
use crate::sender::Sender;
use crate::target::Target;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// List prices of Durable Objects in dollars per million requests, rows written and
/// gigabyte-seconds of duration (2026,
/// <https://developers.cloudflare.com/durable-objects/platform/pricing/>).
const REQUESTS: f64 = 0.15;
const ROWS_WRITTEN: f64 = 1.00;
const DURATION: f64 = 12.50;

/// Number of incoming WebSocket messages that are billed as one request (same page).
/// Outgoing messages are free.
const MESSAGES_PER_REQUEST: f64 = 20.0;

/// Billed memory of an object in gigabytes: 128 MB, whatever the object uses (same
/// page).
const GIGABYTES: f64 = 0.128;

/// Interval between two messages.
const INTERVAL: Duration = Duration::from_millis(100);

/// Number of messages.
const MESSAGES: u64 = 60;

/// Average use per message.
pub(crate) struct Use {
    /// Rows written, including those of receipts.
    pub rows: f64,
    /// Receipts received.
    pub receipts: f64,
    /// Seconds of processor time. An idle object hibernates and is not billed for
    /// duration.
    pub active_seconds: f64,
}

impl Use {
    /// Price of a million messages in dollars.
    pub(crate) fn price_of_a_million(&self) -> f64 {
        let requests = (1.0 + self.receipts) / MESSAGES_PER_REQUEST;
        requests * REQUESTS + self.rows * ROWS_WRITTEN + self.active_seconds * GIGABYTES * DURATION
    }
}

/// Measures one sender with a fixed interval and `receivers` that send receipts.
pub(crate) async fn use_of(target: &Target, receivers: usize) -> Result<Use, String> {
    let mut users = client::users(target, receivers + 1);
    let sender = users.pop().ok_or("no users")?;
    let mut listeners = Listeners::with_receipts();
    for client in client::connect_all(target, ROOM, &users).await? {
        listeners.add(client);
    }
    let mut sender = Sender::new(client::Client::connect(target, ROOM, &sender, None).await?);
    // The presence updates of the connects are delivered within this time.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = target.rows_written(ROOM).await?;
    let (cpu, receipts) = (target.cpu_seconds(), listeners.tally.receipts.load(Relaxed));
    let mut sends = interval(INTERVAL);
    sends.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for _ in 0..MESSAGES {
        sends.tick().await;
        sender.send(1, 1).await?;
    }
    listeners.reach(sender.head()).await?;
    let after = target.rows_written(ROOM).await?;
    let each = |used: f64| used / MESSAGES as f64;
    Ok(Use {
        rows: each((after.rows - before.rows) as f64),
        receipts: each((listeners.tally.receipts.load(Relaxed) - receipts) as f64),
        active_seconds: each(target.cpu_seconds() - cpu),
    })
}

/// Use of rooms with idle connections.
pub(crate) struct Upkeep {
    /// Alarms per room and month. Each alarm is one request, and one row for setting the
    /// next alarm.
    pub alarms: f64,
    /// Seconds of processor time per room and month. It includes the automatic answers
    /// of the runtime to pings, which are free. The bare object has no other use.
    pub active_seconds: f64,
    /// Number of rooms for 10,000 connections, 100 in each.
    pub rooms: f64,
}

/// The `GHOST_TIMEOUT` of this measurement. A room with pinging clients checks for
/// stale connections at this interval.
pub(crate) const CHECK_INTERVAL: &str = "30s";

/// The default `GHOST_TIMEOUT` in units of [`CHECK_INTERVAL`].
const DEFAULT_INTERVAL_RATIO: f64 = 90.0 / 30.0;

/// Duration of the measurement: two alarms of each room.
const MEASURE: Duration = Duration::from_secs(62);
const MONTH: f64 = 30.0 * 86_400.0;

const IDLE_ROOMS: usize = 10;
const PER_ROOM: usize = 100;

impl Upkeep {
    /// Price per month for 10,000 connections in dollars.
    pub(crate) fn price_of_a_month(&self) -> f64 {
        let million = 1e6;
        let room = self.alarms * (REQUESTS + ROWS_WRITTEN) / million
            + self.active_seconds * GIGABYTES * DURATION / million;
        room * self.rooms
    }
}

/// Measures connections that only ping.
pub(crate) async fn upkeep(target: &Target) -> Result<Upkeep, String> {
    let users = client::users(target, PER_ROOM);
    let mut listeners = Listeners::default();
    for room in 0..IDLE_ROOMS {
        let room = format!("{ROOM}-{room}");
        for client in client::connect_all(target, &room, &users).await? {
            listeners.add(client);
        }
    }
    // Time for the presence updates and for the first alarms.
    tokio::time::sleep(Duration::from_secs(12)).await;
    let (alarms, cpu) = (target.wakes(), target.cpu_seconds());
    tokio::time::sleep(MEASURE).await;
    listeners.check()?;
    let per_month = |used: f64| used / IDLE_ROOMS as f64 / MEASURE.as_secs_f64() * MONTH;
    Ok(Upkeep {
        alarms: per_month((target.wakes() - alarms) as f64) / DEFAULT_INTERVAL_RATIO,
        active_seconds: per_month(target.cpu_seconds() - cpu),
        rooms: 10_000.0 / PER_ROOM as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn price_of_a_million_is_rows_plus_requests_plus_duration() {
        let used = Use {
            rows: 1.0,
            receipts: 19.0,
            active_seconds: 0.001,
        };
        // Per message: one row, one billed request (20 incoming messages), 1 ms of
        // 128 MB.
        assert!((used.price_of_a_million() - (1.0 + 0.15 + 0.0016)).abs() < 1e-9);
    }
}
