//! Memory of idle connections.

use super::ROOM;
use crate::client;
use crate::listeners::Listeners;
use crate::target::Target;
use std::time::Duration;

/// Connections per room.
const PER_ROOM: usize = 100;

/// Time for the presence updates after all connects.
const SETTLE: Duration = Duration::from_secs(2);

/// Time after which objects have hibernated. The runtime evicts them after 10 s.
const HIBERNATION: Duration = Duration::from_secs(12);

/// Returns kilobytes of server memory per connection, after the connects and after
/// hibernation.
pub(crate) async fn memory(target: &Target, sockets: usize) -> Result<(f64, f64), String> {
    // The warm-up allocates memory that does not depend on the number of connections.
    let users = client::users(target, PER_ROOM);
    drop(client::connect_all(target, "warm-up", &users).await?);
    tokio::time::sleep(SETTLE).await;
    let before = target.memory();
    let mut listeners = Listeners::default();
    for room in 0..sockets / PER_ROOM {
        let room = format!("{ROOM}-{room}");
        for client in client::connect_all(target, &room, &users).await? {
            listeners.add(client);
        }
    }
    let each = || (target.memory() as f64 - before as f64) / 1024.0 / sockets as f64;
    tokio::time::sleep(SETTLE).await;
    let awake = each();
    tokio::time::sleep(HIBERNATION).await;
    listeners.check()?;
    Ok((awake, each()))
}
