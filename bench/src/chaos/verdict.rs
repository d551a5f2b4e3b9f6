//! What is there, compared with what users were told.

use super::player::{Memory, Shared, digest};
use crate::client::{Client, User};
use crate::dialect::Dialect;
use crate::target::Site;
use roomcast_harness::Token;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// How often a request that failed is tried again.
const TRIES: u32 = 3;

/// How long presence may take to become true: the grace time and the ghost time
/// of `chaos`, and as much again.
const CONVERGES: Duration = Duration::from_secs(10);

/// A room's log: what each event was, and the number of each message.
#[derive(Default)]
struct Log {
    digests: Vec<u64>,
    messages: HashMap<String, u64>,
}

impl Log {
    /// Takes in the next event; answers what is wrong with it.
    fn add(&mut self, raw: &RawValue) -> Result<Vec<String>, String> {
        let Event { data } =
            serde_json::from_str(raw.get()).map_err(|error| format!("{error}: {raw}"))?;
        let mut broken = Vec::new();
        self.digests.push(digest(raw.get().as_bytes()));
        let place = self.digests.len() as u64;
        if data.seq != place {
            broken.push(format!("{} is in the place of {place}", data.seq));
        }
        let id = data.message_id;
        if let Some(first) = self.messages.insert(id.clone(), data.seq) {
            broken.push(format!("{id} is there as {first} and as {}", data.seq));
        }
        Ok(broken)
    }
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
        let members = ask(site, &format!("/rooms/{room}/members")).await?;
        let members: Value = serde_json::from_str(&members).map_err(|e| e.to_string())?;
        for player in &here {
            let cursor = members.as_array().and_then(|members| {
                let own = members
                    .iter()
                    .find(|member| member["userId"] == player.user)?;
                own["delivered"].as_u64()
            });
            let who = format!("{} in {room}", player.user);
            let wrong = compare(&player.memory(), &log, cursor);
            broken.extend(wrong.into_iter().map(|what| format!("{who}: {what}")));
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

/// What a player was told, beside what is there: the room's log and the
/// player's cursor.
fn compare(memory: &Memory, log: &Log, cursor: Option<u64>) -> Vec<String> {
    let mut broken = memory.broken.clone();
    let head = log.digests.len() as u64;
    for (message, seq) in &memory.acknowledged {
        let there = log.messages.get(message);
        if there != Some(seq) {
            broken.push(format!("{message} was {seq}, the log has {there:?}"));
        }
    }
    if !memory
        .seen
        .iter()
        .map(|(seq, _)| *seq)
        .eq(memory.began + 1..=head)
    {
        let (count, last) = (memory.seen.len(), memory.seen.last());
        broken.push(format!(
            "saw {count} events after {}, the last {last:?}, of {head}",
            memory.began
        ));
    }
    for (seq, was) in &memory.seen {
        if log.digests.get(*seq as usize - 1) != Some(was) {
            broken.push(format!("event {seq} was another than the log's"));
        }
    }
    if cursor.is_none_or(|cursor| cursor < memory.delivered) {
        let told = memory.delivered;
        broken.push(format!("the cursor was {told} and is {cursor:?}"));
    }
    broken
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

/// Asks as services do, which try again what failed: a panic that was planned for
/// an alarm comes when that rings, and ends the requests that are under way.
async fn ask(site: &Site, path: &str) -> Result<String, String> {
    let mut answer = site.get_text(path).await;
    for _ in 0..TRIES {
        let Err(error) = &answer else {
            break;
        };
        println!("  asked again: {error}");
        sleep(Duration::from_millis(200)).await;
        answer = site.get_text(path).await;
    }
    answer
}

/// The whole log of a room; complains of holes and of messages that are in it
/// twice.
async fn read(site: &Site, room: &str, broken: &mut Vec<String>) -> Result<Log, String> {
    let mut log = Log::default();
    loop {
        let after = log.digests.len();
        let path = format!("/rooms/{room}/messages?after={after}&limit=1000");
        let text = ask(site, &path).await?;
        let page: Page = serde_json::from_str(&text).map_err(|error| format!("{path}: {error}"))?;
        for raw in &page.events {
            let wrong = log.add(raw).map_err(|error| format!("{path}: {error}"))?;
            broken.extend(wrong.into_iter().map(|what| format!("{room}: {what}")));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn event(seq: u64, id: &str) -> Box<RawValue> {
        let json = format!(r#"{{"data":{{"seq":{seq},"messageId":"{id}"}}}}"#);
        RawValue::from_string(json).expect("JSON")
    }

    /// A log of three messages, and somebody who was told all of it.
    fn honest() -> (Log, Memory) {
        let (mut log, mut memory) = (Log::default(), Memory::default());
        for (seq, id) in [(1, "a"), (2, "b"), (3, "c")] {
            let raw = event(seq, id);
            assert!(log.add(&raw).expect("an event").is_empty());
            memory.seen.push((seq, digest(raw.get().as_bytes())));
        }
        memory.acknowledged.insert("b".to_owned(), 2);
        memory.delivered = 2;
        (log, memory)
    }

    /// What the judge says when this was done to the truth.
    fn judged(tamper: impl FnOnce(&mut Log, &mut Memory)) -> String {
        let (mut log, mut memory) = honest();
        tamper(&mut log, &mut memory);
        compare(&memory, &log, Some(2)).join("; ")
    }

    #[test]
    fn the_judge_finds_whatever_is_not_as_it_was_told() {
        assert_eq!(judged(|_, _| {}), "");
        let lost = judged(|log, _| {
            log.messages.remove("b");
        });
        assert_eq!(lost, "b was 2, the log has None");
        let moved = judged(|log, _| {
            log.messages.insert("b".to_owned(), 3);
        });
        assert_eq!(moved, "b was 2, the log has Some(3)");
        assert!(
            judged(|_, memory| {
                memory.seen.remove(1);
            })
            .contains("saw 2 events")
        );
        assert!(judged(|_, memory| memory.seen.swap(0, 1)).contains("saw 3 events"));
        let doubled = judged(|_, memory| memory.seen.push(memory.seen[2]));
        assert!(doubled.contains("saw 4 events"));
        assert!(
            judged(|_, memory| {
                memory.seen.pop();
            })
            .contains("saw 2 events")
        );
        let other = judged(|_, memory| memory.seen[1].1 += 1);
        assert_eq!(other, "event 2 was another than the log's");
        let back = judged(|_, memory| memory.delivered = 3);
        assert_eq!(back, "the cursor was 3 and is Some(2)");
        let said = judged(|_, memory| memory.broken.push("two numbers".to_owned()));
        assert_eq!(said, "two numbers");
    }

    #[test]
    fn the_judge_finds_holes_and_repetitions_in_a_log() {
        let add = |seq, id| {
            honest()
                .0
                .add(&event(seq, id))
                .expect("an event")
                .join("; ")
        };
        assert_eq!(add(4, "d"), "");
        assert_eq!(add(5, "d"), "5 is in the place of 4");
        assert_eq!(add(4, "b"), "b is there as 2 and as 4");
    }
}
