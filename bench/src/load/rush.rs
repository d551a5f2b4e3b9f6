//! Many simultaneous connects, of new users or of users that resume.

use super::ROOM;
use crate::client::{self, Client, TIMEOUT, User};
use crate::listeners::{Counted, Listeners};
use crate::sender::Sender;
use crate::target::Target;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// A separate room for the warm-up, in which the server compiles its code.
const WARM_UP_ROOM: &str = "warm-up";

/// Result of one measurement.
pub(crate) struct Rush {
    /// From the first connect until the last client is complete.
    pub seconds: f64,
    /// Microseconds until each client was complete.
    pub waits: Vec<u32>,
    /// Presence and membership events that arrived at all clients meanwhile.
    pub others: u64,
}

/// Connects all `users` at the same time. A client is complete when it has joined and
/// received event `until`.
async fn rush(
    target: &Arc<Target>,
    room: &'static str,
    users: Vec<User>,
    since: Option<u64>,
    until: u64,
    listeners: &mut Listeners,
) -> Result<Rush, String> {
    let before = listeners.tally.others.load(Relaxed);
    let mut connecting = JoinSet::new();
    let start = Instant::now();
    for user in users {
        let (target, tally) = (target.clone(), listeners.tally.clone());
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
            // The client keeps reading, because it receives presence updates.
            listeners.add(client);
        }
        Ok::<_, String>(start.elapsed().as_secs_f64())
    };
    let seconds = timeout(TIMEOUT, all)
        .await
        .map_err(|_| "a connect was not answered in time".to_owned())??;
    listeners.check()?;
    let others = listeners.tally.others.load(Relaxed) - before;
    Ok(Rush {
        seconds,
        waits,
        others,
    })
}

/// Connects `count` users to one room at the same time. Before that, a quarter of that
/// number connects to another room as a warm-up.
pub(crate) async fn spike(target: &Arc<Target>, count: usize) -> Result<Rush, String> {
    // The measurement does not include the start of the server.
    let some = client::users(target, count / 4);
    rush(
        target,
        WARM_UP_ROOM,
        some,
        None,
        0,
        &mut Listeners::default(),
    )
    .await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let all = client::users(target, count);
    rush(target, ROOM, all, None, 0, &mut Listeners::default()).await
}

/// Disconnects `count` clients, sends `missed` events, and reconnects all clients at
/// the same time with `since`.
pub(crate) async fn reconnect(
    target: &Arc<Target>,
    count: usize,
    missed: u64,
) -> Result<Rush, String> {
    let mut users = client::users(target, count + 1);
    let publisher = users.pop().ok_or("no users")?;
    let mut sender = Sender::new(Client::connect(target, ROOM, &publisher, None).await?);
    let clients = client::connect_all(target, ROOM, &users).await?;
    // Some events before the disconnect.
    let since = sender.send(10, 1).await?;
    for mut client in clients {
        while client.sequence.last() < since {
            client.read(|_| {}).await?;
        }
        client.cut();
    }
    // Time for the server to notice the disconnects.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let head = sender.send(missed, 16).await?;
    let mut listeners = Listeners::default();
    let rush = rush(target, ROOM, users, Some(since), head, &mut listeners).await?;
    listeners.reach(head).await?;
    Ok(rush)
}
