//! Latency in rooms with logs of different lengths. Each repetition measures all rooms
//! in turn.

use super::ROOM;
use crate::client::{self, Client};
use crate::sender::Sender;
use crate::target::Target;
use std::time::Instant;

/// Lengths of the logs, in events.
pub(crate) const LOGS: [u64; 3] = [1_000, 10_000, 100_000];

/// Number of measurements of each kind in each room.
const REPETITIONS: usize = 60;

/// Number of events that a reconnecting user has missed.
const REPLAYED: u64 = 100;

/// Messages in flight while a log is written.
const FILLING: usize = 128;

/// Measurements of one room, in microseconds.
#[derive(Default)]
pub(crate) struct Room {
    /// A new user: from the connect until it has joined.
    pub joins: Vec<u32>,
    /// A user who missed [`REPLAYED`] events: from the connect to the last event.
    pub replays: Vec<u32>,
    /// From a send to its acknowledgement.
    pub sends: Vec<u32>,
}

/// Measures all rooms.
pub(crate) async fn growth(target: &Target) -> Result<[Room; LOGS.len()], String> {
    let mut users = client::users(target, 2 * REPETITIONS + 1).into_iter();
    let owner = users.next().ok_or("no users")?;
    let names = LOGS.map(|events| format!("{ROOM}-{events}"));
    let mut senders = Vec::new();
    for (name, events) in names.iter().zip(LOGS) {
        let mut sender = Sender::new(Client::connect(target, name, &owner, None).await?);
        sender.send(events, FILLING).await?;
        senders.push(sender);
    }
    let mut rooms: [Room; LOGS.len()] = Default::default();
    while let (Some(new_user), Some(returning_user)) = (users.next(), users.next()) {
        for ((room, name), sender) in rooms.iter_mut().zip(&names).zip(&mut senders) {
            let start = Instant::now();
            let client = Client::connect(target, name, &new_user, None).await?;
            room.joins.push(start.elapsed().as_micros() as u32);
            client.cut();

            let head = sender.head();
            let start = Instant::now();
            let since = Some(head - REPLAYED);
            let mut client = Client::connect(target, name, &returning_user, since).await?;
            while client.sequence.last() < head {
                client.read(|_| {}).await?;
            }
            room.replays.push(start.elapsed().as_micros() as u32);
            client.cut();

            let start = Instant::now();
            sender.send(1, 1).await?;
            room.sends.push(start.elapsed().as_micros() as u32);
        }
    }
    Ok(rooms)
}
