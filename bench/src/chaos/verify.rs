//! Compares what the participants received with the logs, cursors and presence of the
//! rooms.

use super::ABSENCE;
use super::departures::DEPARTURES;
use super::participant::{Record, Shared, digest};
use crate::client::{Client, User};
use crate::dialect::Dialect;
use crate::target::Endpoint;
use roomcast_harness::Token;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Number of retries of a failed request.
const TRIES: u32 = 3;

/// Time limit for the convergence of presence: the grace time, `GHOST_TIMEOUT` of
/// `chaos` and a margin.
const CONVERGENCE: Duration = Duration::from_secs(10);

/// The log of a room: the digest of each event and the `seq` of each message.
#[derive(Default)]
struct Log {
    digests: Vec<u64>,
    messages: HashMap<String, u64>,
}

impl Log {
    /// Adds the next event. Returns the violations in it.
    fn add(&mut self, raw: &RawValue) -> Result<Vec<String>, String> {
        let Event { data } =
            serde_json::from_str(raw.get()).map_err(|error| format!("{error}: {raw}"))?;
        let mut violations = Vec::new();
        self.digests.push(digest(raw.get().as_bytes()));
        let expected = self.digests.len() as u64;
        if data.seq != expected {
            violations.push(format!("seq {} instead of {expected}", data.seq));
        }
        let id = data.message_id;
        if let Some(first) = self.messages.insert(id.clone(), data.seq) {
            violations.push(format!("{id} has seq {first} and seq {}", data.seq));
        }
        Ok(violations)
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

/// Returns all violations. The users of [`DEPARTURES`] have gone at `departed`.
pub(super) async fn verify(
    endpoint: &Endpoint,
    rooms: &[&str],
    participants: &[Arc<Shared>],
    departed: Instant,
) -> Result<Vec<String>, String> {
    let mut violations = Vec::new();
    let absent_by = departed + ABSENCE;
    for room in rooms {
        let here: Vec<_> = participants
            .iter()
            .filter(|participant| participant.room == *room)
            .collect();
        let log = read(endpoint, room, &mut violations).await?;
        // The participants may not have read the last events yet.
        let head = log.digests.len() as u64;
        reach(&here, head).await;
        let members = get(endpoint, &format!("/rooms/{room}/members?limit=1000")).await?;
        let members: Value = serde_json::from_str(&members).map_err(|e| e.to_string())?;
        for participant in &here {
            let cursor = members.as_array().and_then(|members| {
                let own = members
                    .iter()
                    .find(|member| member["userId"] == participant.user)?;
                own["delivered"].as_u64()
            });
            let name = format!("{} in {room}", participant.user);
            let found = compare(&participant.record(), &log, cursor);
            violations.extend(found.into_iter().map(|what| format!("{name}: {what}")));
        }
        for wrong in wrong_presence(&here, absent_by).await {
            violations.push(format!("{room}: presence wrong: {wrong}"));
        }
        let is_absent =
            |online: &BTreeSet<String>| DEPARTURES.iter().all(|(user, _)| !online.contains(*user));
        if let Err(online) = presence(endpoint, room, absent_by, is_absent).await {
            violations.push(format!(
                "{room}: users have gone, but {online:?} are online"
            ));
        }
        let expected: BTreeSet<String> = here.iter().map(|one| one.user.to_owned()).collect();
        let deadline = Instant::now() + CONVERGENCE;
        if let Err(online) = presence(endpoint, room, deadline, |online| *online == expected).await
        {
            violations.push(format!(
                "{room}: {online:?} are online instead of {expected:?}"
            ));
        }
    }
    Ok(violations)
}

/// Compares the record of a participant with the log of the room and the delivered
/// cursor of the participant. Returns the violations.
fn compare(record: &Record, log: &Log, cursor: Option<u64>) -> Vec<String> {
    let mut violations = record.violations.clone();
    let head = log.digests.len() as u64;
    for (message, seq) in &record.acknowledged {
        let logged = log.messages.get(message);
        if logged != Some(seq) {
            violations.push(format!(
                "{message} was acknowledged with seq {seq}, the log has {logged:?}"
            ));
        }
    }
    if !record
        .events
        .iter()
        .map(|(seq, _)| *seq)
        .eq(record.start + 1..=head)
    {
        let (count, last) = (record.events.len(), record.events.last());
        violations.push(format!(
            "received {count} events after {}, the last {last:?}, of {head}",
            record.start
        ));
    }
    for (seq, digest) in &record.events {
        if log.digests.get(*seq as usize - 1) != Some(digest) {
            violations.push(format!("event {seq} differs from the log"));
        }
    }
    if cursor.is_none_or(|cursor| cursor < record.delivered) {
        let acknowledged = record.delivered;
        violations.push(format!(
            "receipt {acknowledged} was acknowledged, the cursor is {cursor:?}"
        ));
    }
    violations
}

/// Waits until all participants have received event `head`, or for [`CONVERGENCE`].
async fn reach(participants: &[&Arc<Shared>], head: u64) {
    let deadline = Instant::now() + CONVERGENCE;
    let behind = |participant: &&&Arc<Shared>| {
        let record = participant.record();
        record.violations.is_empty()
            && record.events.last().map_or(record.start, |(seq, _)| *seq) < head
    };
    while participants.iter().any(|one| behind(&one)) && Instant::now() < deadline {
        sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until every participant shows all others online and the users of [`DEPARTURES`] not.
/// Returns a description of each wrong status after [`CONVERGENCE`], or if a user that has gone is
/// shown as online after `absent_by`. All participants are connected.
async fn wrong_presence(participants: &[&Arc<Shared>], absent_by: Instant) -> Vec<String> {
    let deadline = Instant::now() + CONVERGENCE;
    let present: Vec<&str> = participants.iter().map(|one| one.user).collect();
    loop {
        let mut wrong = Vec::new();
        let mut any_absent = false;
        for participant in participants {
            let shown = &participant.record().shown;
            wrong.extend(missing(participant.user, shown, &present));
            let absent = shown_absent(participant.user, shown);
            any_absent |= !absent.is_empty();
            wrong.extend(absent);
        }
        let now = Instant::now();
        if wrong.is_empty() || now > deadline || any_absent && now > absent_by {
            return wrong;
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Returns a description of each present user that `viewer` does not show as online.
fn missing(viewer: &str, shown: &BTreeMap<String, bool>, present: &[&str]) -> Vec<String> {
    let others = present.iter().filter(|user| **user != viewer);
    let wrong = others.filter_map(|user| {
        let status = match shown.get(*user) {
            Some(true) => return None,
            Some(false) => "offline",
            None => "no member",
        };
        Some(format!("{viewer} shows that {user} is {status}"))
    });
    wrong.collect()
}

/// Returns a description of each user that has gone and that `viewer` shows as online.
fn shown_absent(viewer: &str, shown: &BTreeMap<String, bool>) -> Vec<String> {
    let departures = DEPARTURES.iter();
    let wrong = departures.filter(|(user, _)| shown.get(*user) == Some(&true));
    wrong
        .map(|(user, how)| format!("{viewer} shows that {user} is online ({how:?})"))
        .collect()
}

/// Checks that a client at a gateway leaves the room when its new token does not open it:
/// the client receives `roomClosed`, and no event of the room after that.
pub(super) async fn narrowed_token(endpoint: &Endpoint, round: u32) -> Result<(), String> {
    const ROOM: &str = "narrowed";
    const USER: &str = "gil";
    /// Time in which an event would arrive that the client must not receive.
    const WAIT: Duration = Duration::from_millis(500);
    let token = |rooms: &str| {
        let token = Token::user(USER).claim("rooms", vec![rooms]).ttl(86_400);
        token.sign(roomcast_harness::SECRET)
    };
    let user = User {
        name: USER.to_owned(),
        token: token("*"),
    };
    let mut client = Client::open(endpoint, Dialect::Gateway, ROOM, &user, None, |_, _| {}).await?;
    let refresh = format!(r#"{{"token":"{}"}}"#, token("other"));
    client
        .send(&Dialect::Gateway.command("refreshToken", &refresh, None))
        .await?;
    let mut closed = false;
    let deadline = Instant::now() + CONVERGENCE;
    while !closed {
        let reading = client.read_raw(|_, raw| {
            closed |= memchr::memmem::find(raw, br#""event":"roomClosed""#).is_some();
        });
        let wait = deadline.saturating_duration_since(Instant::now());
        let read = tokio::time::timeout(wait, reading).await;
        read.map_err(|_| "a token lost its room, but there is no `roomClosed`".to_owned())??;
    }
    let before = client.sequence.last();
    let message = format!(
        r#"{{"room":"{ROOM}","event":"newMessage","messageId":"n-{round}","data":{{"content":"x"}}}}"#
    );
    endpoint.post("/publish", &message).await?;
    let until = Instant::now() + WAIT;
    while let Ok(read) = {
        let wait = until.saturating_duration_since(Instant::now());
        tokio::time::timeout(wait, client.read(|_| {})).await
    } {
        read?;
    }
    match client.sequence.last() == before {
        true => Ok(()),
        false => Err("an event of a room arrived that the token does not open".to_owned()),
    }
}

/// Sends a GET request with retries, as services do. A failpoint of an alarm can panic
/// meanwhile, and then all concurrent requests fail.
async fn get(endpoint: &Endpoint, path: &str) -> Result<String, String> {
    let mut answer = endpoint.get_text(path).await;
    for _ in 0..TRIES {
        let Err(error) = &answer else {
            break;
        };
        println!("  retry: {error}");
        sleep(Duration::from_millis(200)).await;
        answer = endpoint.get_text(path).await;
    }
    answer
}

/// Reads the whole log of a room. Adds holes and duplicate messages to `violations`.
async fn read(
    endpoint: &Endpoint,
    room: &str,
    violations: &mut Vec<String>,
) -> Result<Log, String> {
    let mut log = Log::default();
    loop {
        let after = log.digests.len();
        let path = format!("/rooms/{room}/messages?after={after}&limit=1000");
        let text = get(endpoint, &path).await?;
        let page: Page<'_> =
            serde_json::from_str(&text).map_err(|error| format!("{path}: {error}"))?;
        for raw in &page.events {
            let found = log.add(raw).map_err(|error| format!("{path}: {error}"))?;
            violations.extend(found.into_iter().map(|what| format!("{room}: {what}")));
        }
        if !page.more {
            return Ok(log);
        }
    }
}

/// Waits until `matches` returns `true` for the users that are online. Returns these
/// users as the error if it does not do so until `deadline`.
async fn presence(
    endpoint: &Endpoint,
    room: &str,
    deadline: Instant,
    matches: impl Fn(&BTreeSet<String>) -> bool,
) -> Result<(), BTreeSet<String>> {
    loop {
        let answer = endpoint
            .get(&format!("/rooms/{room}/presence?limit=1000"))
            .await;
        let users = answer
            .ok()
            .and_then(|answer| answer["users"].as_array().cloned());
        let online: BTreeSet<String> = users
            .unwrap_or_default()
            .iter()
            .filter(|user| user["status"] != "offline")
            .filter_map(|user| user["userId"].as_str().map(str::to_owned))
            .collect();
        if matches(&online) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(online);
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Checks that a user becomes offline if its connection has pinged, then sends nothing
/// and is not closed.
pub(super) async fn stale_connection(endpoint: &Endpoint, room: &str) -> Result<(), String> {
    const NAME: &str = "stale";
    let user = User {
        name: NAME.to_owned(),
        token: Token::user(NAME)
            .claim("rooms", vec!["*"])
            .ttl(86_400)
            .sign(roomcast_harness::SECRET),
    };
    let mut client = Client::open(endpoint, Dialect::Room, room, &user, None, |_, _| {}).await?;
    client.ping().await?;
    let within = || Instant::now() + CONVERGENCE;
    let joined = presence(endpoint, room, within(), |online| online.contains(NAME)).await;
    joined.map_err(|online| format!("{NAME} has joined, but {online:?} are online"))?;
    let offline = presence(endpoint, room, within(), |online| !online.contains(NAME)).await;
    offline.map_err(|online| format!("{NAME} is stale, but {online:?} are online"))?;
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

    /// A log of three messages, and a record that matches it.
    fn consistent() -> (Log, Record) {
        let (mut log, mut record) = (Log::default(), Record::default());
        for (seq, id) in [(1, "a"), (2, "b"), (3, "c")] {
            let raw = event(seq, id);
            assert!(log.add(&raw).expect("an event").is_empty());
            record.events.push((seq, digest(raw.get().as_bytes())));
        }
        record.acknowledged.insert("b".to_owned(), 2);
        record.delivered = 2;
        (log, record)
    }

    /// Returns the violations after a change of the log or the record.
    fn violations(change: impl FnOnce(&mut Log, &mut Record)) -> String {
        let (mut log, mut record) = consistent();
        change(&mut log, &mut record);
        compare(&record, &log, Some(2)).join("; ")
    }

    #[test]
    fn differences_between_record_and_log_are_violations() {
        assert_eq!(violations(|_, _| {}), "");
        let lost = violations(|log, _| {
            log.messages.remove("b");
        });
        assert_eq!(lost, "b was acknowledged with seq 2, the log has None");
        let moved = violations(|log, _| {
            log.messages.insert("b".to_owned(), 3);
        });
        assert_eq!(moved, "b was acknowledged with seq 2, the log has Some(3)");
        assert!(
            violations(|_, record| {
                record.events.remove(1);
            })
            .contains("received 2 events")
        );
        assert!(violations(|_, record| record.events.swap(0, 1)).contains("received 3 events"));
        let repeated = violations(|_, record| record.events.push(record.events[2]));
        assert!(repeated.contains("received 4 events"));
        assert!(
            violations(|_, record| {
                record.events.pop();
            })
            .contains("received 2 events")
        );
        let different = violations(|_, record| record.events[1].1 += 1);
        assert_eq!(different, "event 2 differs from the log");
        let moved_back = violations(|_, record| record.delivered = 3);
        assert_eq!(
            moved_back,
            "receipt 3 was acknowledged, the cursor is Some(2)"
        );
        let own = violations(|_, record| record.violations.push("two numbers".to_owned()));
        assert_eq!(own, "two numbers");
    }

    #[test]
    fn users_that_are_shown_wrongly_are_violations() {
        let shown = |users: &[(&str, bool)]| {
            let users = users.iter();
            users
                .map(|(user, online)| ((*user).to_owned(), *online))
                .collect()
        };
        let right: BTreeMap<_, _> = shown(&[("bob", true), ("gus", false)]);
        let present = ["ada", "bob"];
        assert_eq!(missing("ada", &right, &present), [] as [&str; 0]);
        assert_eq!(shown_absent("ada", &right), [] as [&str; 0]);
        let wrong = shown(&[("bob", false), ("gus", true), ("ida", true)]);
        assert_eq!(
            missing("ada", &wrong, &present),
            ["ada shows that bob is offline"]
        );
        assert_eq!(
            missing("ada", &shown(&[]), &present),
            ["ada shows that bob is no member"]
        );
        assert_eq!(
            shown_absent("ada", &wrong),
            [
                "ada shows that gus is online (Leaves)",
                "ada shows that ida is online (LosesRoom)"
            ]
        );
    }

    #[test]
    fn holes_and_repetitions_in_a_log_are_violations() {
        let add = |seq, id| {
            consistent()
                .0
                .add(&event(seq, id))
                .expect("an event")
                .join("; ")
        };
        assert_eq!(add(4, "d"), "");
        assert_eq!(add(5, "d"), "seq 5 instead of 4");
        assert_eq!(add(4, "b"), "b has seq 2 and seq 4");
    }
}
