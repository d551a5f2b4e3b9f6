//! What a chat uses of what is paid for, and the price of that.

use super::ROOM;
use crate::audience::Audience;
use crate::client;
use crate::sender::Sender;
use crate::target::Target;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// Public list prices of Durable Objects in dollars (2026), each of a million:
/// requests, rows written, gigabyte-seconds of duration.
const REQUESTS: f64 = 0.15;
const ROWS_WRITTEN: f64 = 1.00;
const DURATION: f64 = 12.50;

/// So many messages that come in over WebSockets are billed as one request.
/// Those that go out are free.
const MESSAGES_A_REQUEST: f64 = 20.0;

/// An object is billed for 128 MB whatever it takes, in gigabytes.
const GIGABYTES: f64 = 0.128;

/// Between two messages, and how many.
const PACE: Duration = Duration::from_millis(100);
const MESSAGES: u64 = 60;

/// What one message used, on average.
pub struct Use {
    /// Rows written, receipts included.
    pub rows: f64,
    /// Receipts that came in for it.
    pub receipts: f64,
    /// Seconds of processor time: an object that does nothing may hibernate, and
    /// is not billed then.
    pub active_seconds: f64,
}

impl Use {
    /// In dollars.
    pub fn price_of_a_million(&self) -> f64 {
        let requests = (1.0 + self.receipts) / MESSAGES_A_REQUEST;
        requests * REQUESTS + self.rows * ROWS_WRITTEN + self.active_seconds * GIGABYTES * DURATION
    }
}

/// One sends at an even pace, `receivers` read and confirm.
pub async fn use_of(target: &Target, receivers: usize) -> Result<Use, String> {
    let mut users = client::users(target, receivers + 1);
    let sender = users.pop().ok_or("nobody to send")?;
    let mut audience = Audience::with_receipts();
    for client in client::connect_all(target, ROOM, &users).await? {
        audience.add(client);
    }
    let mut sender = Sender::new(client::Client::connect(target, ROOM, &sender, None).await?);
    // Who came has been told of by then.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = target.rows_written(ROOM).await?;
    let (cpu, receipts) = (target.cpu_seconds(), audience.tally.receipts.load(Relaxed));
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for _ in 0..MESSAGES {
        pace.tick().await;
        sender.send(1, 1).await?;
    }
    audience.reach(sender.head()).await?;
    let after = target.rows_written(ROOM).await?;
    let each = |used: f64| used / MESSAGES as f64;
    Ok(Use {
        rows: each((after.rows - before.rows) as f64),
        receipts: each((audience.tally.receipts.load(Relaxed) - receipts) as f64),
        active_seconds: each(target.cpu_seconds() - cpu),
    })
}

/// What rooms with idle sockets use.
pub struct Upkeep {
    /// Alarms for each room in a month: a request each, and a row, for the next
    /// one is set.
    pub alarms: f64,
    /// Seconds of processor time for each room in a month. The runtime's answers
    /// to pings are in it, though they are free: the bare object has nothing else.
    pub active_seconds: f64,
    /// Rooms that 10,000 sockets are in, 100 in each.
    pub rooms: f64,
}

/// The `GHOST_TIMEOUT` for this measurement, and what it is by default: a room
/// whose clients ping looks so often for some that are gone.
pub const LOOKS_EVERY: &str = "30s";
const LOOKS_LESS_OFTEN: f64 = 90.0 / 30.0;

/// How long idle sockets are watched: two alarms of each room.
const WATCH: Duration = Duration::from_secs(62);
const MONTH: f64 = 30.0 * 86_400.0;

const IDLE_ROOMS: usize = 10;
const PER_ROOM: usize = 100;

impl Upkeep {
    /// In dollars a month, for 10,000 sockets.
    pub fn price_of_a_month(&self) -> f64 {
        let million = 1e6;
        let room = self.alarms * (REQUESTS + ROWS_WRITTEN) / million
            + self.active_seconds * GIGABYTES * DURATION / million;
        room * self.rooms
    }
}

/// Sockets that say nothing but that they live.
pub async fn upkeep(target: &Target) -> Result<Upkeep, String> {
    let users = client::users(target, PER_ROOM);
    let mut audience = Audience::default();
    for room in 0..IDLE_ROOMS {
        let room = format!("{ROOM}-{room}");
        for client in client::connect_all(target, &room, &users).await? {
            audience.add(client);
        }
    }
    // All are told who came, and the first alarms are set.
    tokio::time::sleep(Duration::from_secs(12)).await;
    let (alarms, cpu) = (target.wakes(), target.cpu_seconds());
    tokio::time::sleep(WATCH).await;
    audience.check()?;
    let a_month = |used: f64| used / IDLE_ROOMS as f64 / WATCH.as_secs_f64() * MONTH;
    Ok(Upkeep {
        alarms: a_month((target.wakes() - alarms) as f64) / LOOKS_LESS_OFTEN,
        active_seconds: a_month(target.cpu_seconds() - cpu),
        rooms: 10_000.0 / PER_ROOM as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_messages_have_their_price() {
        let used = Use {
            rows: 1.0,
            receipts: 19.0,
            active_seconds: 0.001,
        };
        // One row, one request, a thousandth of 128 MB for a second.
        assert!((used.price_of_a_million() - (1.0 + 0.15 + 0.0016)).abs() < 1e-9);
    }
}
