//! What is there, compared with what users were told.

use super::player::{Shared, digest};
use crate::client::{Client, User};
use crate::dialect::Dialect;
use crate::target::Site;
use roomcast_harness::Token;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// How long presence may take to become true: the grace time and the ghost time
/// of `chaos`, and as much again.
const CONVERGES: Duration = Duration::from_secs(10);

/// A room's log: what each event was, and the number of each message.
struct Log {
    digests: Vec<u64>,
    messages: HashMap<String, u64>,
}

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    events: Vec<&'a RawValue>,
    more: bool,
}

#[derive(Deserialize)]
struct Event {
    data: Data,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    seq: u64,
    message_id: String,
}

/// Everything that is not as it must be.
pub async fn judge(
    site: &Site,
    rooms: &[&str],
    players: &[Arc<Shared>],
) -> Result<Vec<String>, String> {
    let mut broken = Vec::new();
    for room in rooms {
        let here: Vec<_> = players
            .iter()
            .filter(|player| player.room == *room)
            .collect();
        let log = read(site, room, &mut broken).await?;
        // They may still be reading the last of it.
        let head = log.digests.len() as u64;
        reach(&here, head).await;
        let members = site.get(&format!("/rooms/{room}/members")).await?;
        for player in &here {
            let who = format!("{} in {room}", player.user);
            let memory = player.memory();
            broken.extend(memory.broken.iter().cloned());
            for (message, seq) in &memory.acknowledged {
                if log.messages.get(message) != Some(seq) {
                    let there = log.messages.get(message);
                    broken.push(format!("{who}: {message} was {seq}, the log has {there:?}"));
                }
            }
            let expected = memory.began + 1..=head;
            if !memory.seen.iter().map(|(seq, _)| *seq).eq(expected) {
                let (count, last) = (memory.seen.len(), memory.seen.last());
                broken.push(format!(
                    "{who}: saw {count} events after {}, the last {last:?}, of {head}",
                    memory.began
                ));
            }
            for (seq, was) in &memory.seen {
                let is = log.digests.get(*seq as usize - 1);
                if is != Some(was) {
                    broken.push(format!("{who}: event {seq} was another than the log's"));
                }
            }
            let cursor = members.as_array().and_then(|members| {
                let own = members
                    .iter()
                    .find(|member| member["userId"] == player.user)?;
                own["delivered"].as_u64()
            });
            if cursor.is_none_or(|cursor| cursor < memory.delivered) {
                let told = memory.delivered;
                broken.push(format!("{who}: the cursor was {told} and is {cursor:?}"));
            }
        }
        let expected: BTreeSet<String> = here.iter().map(|player| player.user.to_owned()).collect();
        if let Err(seen) = presence(site, room, |online| *online == expected).await {
            broken.push(format!(
                "{room}: online are {seen:?}, there are {expected:?}"
            ));
        }
    }
    Ok(broken)
}

/// Waits until all have what is in the log; who does not is found out then.
async fn reach(players: &[&Arc<Shared>], head: u64) {
    let deadline = Instant::now() + CONVERGES;
    let behind = |player: &&&Arc<Shared>| {
        let memory = player.memory();
        memory.broken.is_empty() && memory.seen.last().map_or(memory.began, |(seq, _)| *seq) < head
    };
    while players.iter().any(|player| behind(&player)) && Instant::now() < deadline {
        sleep(Duration::from_millis(20)).await;
    }
}

/// The whole log of a room; complains of holes and of messages that are in it
/// twice.
async fn read(site: &Site, room: &str, broken: &mut Vec<String>) -> Result<Log, String> {
    let mut log = Log {
        digests: Vec::new(),
        messages: HashMap::new(),
    };
    loop {
        let after = log.digests.len();
        let path = format!("/rooms/{room}/messages?after={after}&limit=1000");
        let text = site.get_text(&path).await?;
        let page: Page = serde_json::from_str(&text).map_err(|error| format!("{path}: {error}"))?;
        for raw in &page.events {
            let Event { data } = serde_json::from_str(raw.get())
                .map_err(|error| format!("{path}: {error}: {raw}"))?;
            log.digests.push(digest(raw.get().as_bytes()));
            if data.seq != log.digests.len() as u64 {
                broken.push(format!(
                    "{room}: {} is in the place of {}",
                    data.seq,
                    log.digests.len()
                ));
            }
            if let Some(first) = log.messages.insert(data.message_id.clone(), data.seq) {
                let (id, again) = (&data.message_id, data.seq);
                broken.push(format!("{room}: {id} is there as {first} and as {again}"));
            }
        }
        if !page.more {
            return Ok(log);
        }
    }
}

/// Waits until those who are online are as they should be; answers who is.
async fn presence(
    site: &Site,
    room: &str,
    right: impl Fn(&BTreeSet<String>) -> bool,
) -> Result<(), BTreeSet<String>> {
    let deadline = Instant::now() + CONVERGES;
    loop {
        let answer = site.get(&format!("/rooms/{room}/presence")).await;
        let users = answer
            .ok()
            .and_then(|answer| answer["users"].as_array().cloned());
        let online: BTreeSet<String> = users
            .unwrap_or_default()
            .iter()
            .filter(|user| user["status"] != "offline")
            .filter_map(|user| user["userId"].as_str().map(str::to_owned))
            .collect();
        if right(&online) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(online);
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Somebody who gave a sign of life and then none, on a connection that nobody
/// closed, is shown as gone.
pub async fn ghost(site: &Site, room: &str) -> Result<(), String> {
    const NAME: &str = "ghost";
    let user = User {
        name: NAME.to_owned(),
        token: Token::user(NAME)
            .claim("rooms", vec!["*"])
            .ttl(86_400)
            .sign(roomcast_harness::SECRET),
    };
    let mut client = Client::open(site, Dialect::Room, room, &user, None, |_, _| {}).await?;
    client.ping().await?;
    let came = presence(site, room, |online| online.contains(NAME)).await;
    came.map_err(|online| format!("{NAME} came, online are {online:?}"))?;
    let went = presence(site, room, |online| !online.contains(NAME)).await;
    went.map_err(|online| format!("{NAME} is gone, online are {online:?}"))?;
    drop(client);
    Ok(())
}
