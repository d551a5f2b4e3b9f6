//! Sockets on which nothing happens, and the memory that they take.

use super::ROOM;
use crate::audience::Audience;
use crate::client;
use crate::target::Target;
use std::time::Duration;

/// In each room: as many as gateways can tell of each other in time.
const PER_ROOM: usize = 100;

/// After all are there, for what is still being told; then the runtime puts
/// objects to sleep that nothing has happened in for 10 s.
const SETTLED: Duration = Duration::from_secs(2);
const ASLEEP: Duration = Duration::from_secs(12);

/// Kilobytes of the server's memory that each of `sockets` takes: when they have
/// just come, and when nothing has happened for a while.
pub async fn memory(target: &Target, sockets: usize) -> Result<(f64, f64), String> {
    // What a server takes once that has done each thing before is not a socket's.
    let users = client::users(target, PER_ROOM);
    drop(client::connect_all(target, "warm-up", &users).await?);
    tokio::time::sleep(SETTLED).await;
    let before = target.memory();
    let mut audience = Audience::default();
    for room in 0..sockets / PER_ROOM {
        let room = format!("{ROOM}-{room}");
        for client in client::connect_all(target, &room, &users).await? {
            audience.add(client);
        }
    }
    let each = || (target.memory() as f64 - before as f64) / 1024.0 / sockets as f64;
    tokio::time::sleep(SETTLED).await;
    let awake = each();
    tokio::time::sleep(ASLEEP).await;
    audience.check()?;
    Ok((awake, each()))
}
