//! Latency of waking hibernated rooms, each with one connection.

use super::ROOM;
use crate::client;
use crate::client::Client;
use crate::sender::Sender;
use crate::target::Target;
use std::time::{Duration, Instant};

/// Number of rooms.
const HIBERNATED: usize = 30;

/// Time after which objects have hibernated. The runtime evicts them after 10 s.
const HIBERNATION: Duration = Duration::from_millis(11_500);

/// Returns the microseconds from a send to its acknowledgement for each room: while it
/// is hibernated, and directly afterwards.
pub(crate) async fn wake(target: &Target) -> Result<(Vec<u32>, Vec<u32>), String> {
    let users = client::users(target, HIBERNATED);
    let mut senders = Vec::with_capacity(HIBERNATED);
    for (room, user) in users.iter().enumerate() {
        let room = format!("{ROOM}-{room}");
        let mut sender = Sender::new(Client::connect(target, &room, user, None).await?);
        // A log that the room reads when it wakes.
        sender.send(10, 1).await?;
        senders.push(sender);
    }
    tokio::time::sleep(HIBERNATION).await;
    let (mut hibernated, mut awake) = (Vec::new(), Vec::new());
    for sender in &mut senders {
        for latencies in [&mut hibernated, &mut awake] {
            let start = Instant::now();
            sender.send(1, 1).await?;
            latencies.push(start.elapsed().as_micros() as u32);
        }
    }
    Ok((hibernated, awake))
}
