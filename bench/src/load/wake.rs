//! Rooms that sleep, each with one socket, and are woken one by one.

use super::ROOM;
use crate::client;
use crate::client::Client;
use crate::sender::Sender;
use crate::target::Target;
use std::time::{Duration, Instant};

/// How many are woken.
const SLEEPERS: usize = 30;

/// The runtime puts an object to sleep when nothing has happened for 10 s.
const ASLEEP: Duration = Duration::from_millis(11_500);

/// Microseconds from a frame on a sleeping room's socket to its ack, of each
/// room; and the same again at once, when it is awake.
pub async fn wake(target: &Target) -> Result<(Vec<u32>, Vec<u32>), String> {
    let users = client::users(target, SLEEPERS);
    let mut senders = Vec::with_capacity(SLEEPERS);
    for (room, user) in users.iter().enumerate() {
        let room = format!("{ROOM}-{room}");
        let mut sender = Sender::new(Client::connect(target, &room, user, None).await?);
        // A room that has something to read when it wakes.
        sender.send(10, 1).await?;
        senders.push(sender);
    }
    tokio::time::sleep(ASLEEP).await;
    let (mut asleep, mut awake) = (Vec::new(), Vec::new());
    for sender in &mut senders {
        for latencies in [&mut asleep, &mut awake] {
            let start = Instant::now();
            sender.send(1, 1).await?;
            latencies.push(start.elapsed().as_micros() as u32);
        }
    }
    Ok((asleep, awake))
}
