//! Rooms that are alike but for the length of their logs, used in turns.

use super::ROOM;
use crate::client::{self, Client};
use crate::sender::Sender;
use crate::target::Target;
use std::time::Instant;

/// How long the logs are, in events.
pub const LOGS: [u64; 3] = [1_000, 10_000, 100_000];

/// How often each thing is done in each room.
const TIMES: usize = 60;

/// What is asked for when somebody comes back.
const REPLAYED: u64 = 100;

/// Messages in flight while a log is filled.
const FILLING: usize = 128;

/// Microseconds in one room.
#[derive(Default)]
pub struct Room {
    /// Somebody new: from the connect to being in the room.
    pub joins: Vec<u32>,
    /// Somebody who missed [`REPLAYED`] events: from the connect to the last.
    pub replays: Vec<u32>,
    /// From a send to its ack.
    pub sends: Vec<u32>,
}

pub async fn growth(target: &Target) -> Result<[Room; LOGS.len()], String> {
    let mut users = client::users(target, 2 * TIMES + 1).into_iter();
    let owner = users.next().ok_or("nobody to send")?;
    let names = LOGS.map(|events| format!("{ROOM}-{events}"));
    let mut senders = Vec::new();
    for (name, events) in names.iter().zip(LOGS) {
        let mut sender = Sender::new(Client::connect(target, name, &owner, None).await?);
        sender.send(events, FILLING).await?;
        senders.push(sender);
    }
    let mut rooms: [Room; LOGS.len()] = Default::default();
    while let (Some(newcomer), Some(returned)) = (users.next(), users.next()) {
        for ((room, name), sender) in rooms.iter_mut().zip(&names).zip(&mut senders) {
            let start = Instant::now();
            let client = Client::connect(target, name, &newcomer, None).await?;
            room.joins.push(start.elapsed().as_micros() as u32);
            client.cut();

            let head = sender.head();
            let start = Instant::now();
            let since = Some(head - REPLAYED);
            let mut client = Client::connect(target, name, &returned, since).await?;
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
