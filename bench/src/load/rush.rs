//! Many that come at once: for the first time, or again.

use super::ROOM;
use crate::audience::{Audience, Counted};
use crate::client::{self, Client, PATIENCE, User};
use crate::sender::Sender;
use crate::target::Target;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Another room, in which a server that has just been started compiles its code.
const WARM_UP_ROOM: &str = "warm-up";

/// What a rush of clients gave.
pub struct Rush {
    /// From the first connect to the last client having what it came for.
    pub seconds: f64,
    /// Microseconds that each client waited.
    pub waits: Vec<u32>,
    /// Presence and membership events that arrived at all sockets meanwhile.
    pub others: u64,
}

/// All `users` connect at the same time and each waits for event `until`
/// (`connected` alone when there is nothing to wait for).
async fn rush(
    target: &Arc<Target>,
    room: &'static str,
    users: Vec<User>,
    since: Option<u64>,
    until: u64,
    audience: &mut Audience,
) -> Result<Rush, String> {
    let before = audience.tally.others.load(Relaxed);
    let mut connecting = JoinSet::new();
    let start = Instant::now();
    for user in users {
        let (target, tally) = (target.clone(), audience.tally.clone());
        connecting.spawn(async move {
            let start = Instant::now();
            let mut client = Client::connect(&target, room, &user, since).await?;
            let mut counted = Counted::default();
            while client.sequence.last() < until {
                client.read(|line| counted.count(line)).await?;
            }
            counted.add_to(&tally);
            Ok::<_, String>((client, start.elapsed().as_micros() as u32))
        });
    }
    let mut waits = Vec::with_capacity(connecting.len());
    let all = async {
        while let Some(done) = connecting.join_next().await {
            let (client, wait) = done.map_err(|e| e.to_string())??;
            waits.push(wait);
            // It goes on reading: the others' arrivals are sent to it too.
            audience.add(client);
        }
        Ok::<_, String>(start.elapsed().as_secs_f64())
    };
    let seconds = timeout(PATIENCE, all)
        .await
        .map_err(|_| "a connect was never answered".to_owned())??;
    audience.check()?;
    let others = audience.tally.others.load(Relaxed) - before;
    Ok(Rush {
        seconds,
        waits,
        others,
    })
}

/// `count` users connect to one room at once, after a quarter of that to another
/// room: code is compiled then.
pub async fn spike(target: &Arc<Target>, count: usize) -> Result<Rush, String> {
    // A server that has run for a second is not what rushes are about.
    let some = client::users(target, count / 4);
    rush(
        target,
        WARM_UP_ROOM,
        some,
        None,
        0,
        &mut Audience::default(),
    )
    .await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let all = client::users(target, count);
    rush(target, ROOM, all, None, 0, &mut Audience::default()).await
}

/// `count` clients are cut off, `missed` events happen, all come back at once
/// and resume by `since`.
pub async fn reconnect(target: &Arc<Target>, count: usize, missed: u64) -> Result<Rush, String> {
    let mut users = client::users(target, count + 1);
    let publisher = users.pop().ok_or("nobody to publish")?;
    let mut sender = Sender::new(Client::connect(target, ROOM, &publisher, None).await?);
    let clients = client::connect_all(target, ROOM, &users).await?;
    // A room that has a past.
    let since = sender.send(10, 1).await?;
    for mut client in clients {
        while client.sequence.last() < since {
            client.read(|_| {}).await?;
        }
        client.cut();
    }
    // The server needs a moment to notice; then nobody is there.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let head = sender.send(missed, 16).await?;
    let mut audience = Audience::default();
    let rush = rush(target, ROOM, users, Some(since), head, &mut audience).await?;
    audience.reach(head).await?;
    Ok(rush)
}
