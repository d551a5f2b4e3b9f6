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
