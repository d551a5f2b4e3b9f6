//! Clients that do not read, and clients that read a large log.

use super::bystanders::{KINDS, Kind};
use super::polling::Polling;
use super::{Context, Outcome};
use crate::client::{Client, User};
use crate::dialect::Dialect;
use crate::target::Endpoint;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::sleep;

const ROOM: &str = "loud";

/// Maximum number of bytes of the events in one request, below MAX_BODY_BYTES.
const REQUEST_BYTES: usize = 900_000;

/// Maximum number of events in one request (docs/protocol.md).
const REQUEST_EVENTS: usize = 100;

/// Publishes `count` events of `bytes` bytes each to a room, as fast as the server accepts
/// them. Each has a `messageId` that begins with `ids`.
pub(super) async fn publish(
    endpoint: &Endpoint,
    room: &str,
    ids: &str,
    count: usize,
    bytes: usize,
) -> Result<(), String> {
    let content = "x".repeat(bytes);
    let each = (REQUEST_BYTES / (bytes + 200)).clamp(1, REQUEST_EVENTS);
    let mut sent = 0;
    while sent < count {
        let messages: Vec<String> = (sent..count.min(sent + each))
            .map(|number| {
                format!(
                    r#"{{"room":"{room}","event":"newMessage","messageId":"{ids}-{number}","data":{{"content":"{content}"}}}}"#
                )
            })
            .collect();
        let body = format!(r#"{{"messages":[{}]}}"#, messages.join(","));
        let answer = endpoint.post("/publish", &body).await?;
        let results = answer["results"].as_array().cloned().unwrap_or_default();
        if let Some(refused) = results.iter().find(|one| !one["error"].is_null()) {
            return Err(format!("a publication was refused: {refused}"));
        }
        sent += messages.len();
    }
    Ok(())
}

pub(super) fn user(endpoint: &Endpoint, name: String) -> User {
    let token = endpoint.token(&name);
    User { name, token }
}

/// Clients that join and then do not read, while events are published.
pub(super) async fn non_reading(context: &Context, kind: Kind) -> Result<Outcome, String> {
    const CLIENTS: usize = 30;
    const EVENTS: usize = 1_000;
    const BYTES: usize = 30_000;
    let endpoint = &context.endpoint;
    let (mut clients, mut sessions) = (Vec::new(), Vec::new());
    for number in 0..CLIENTS {
        let user = user(endpoint, format!("deaf-{number}"));
        match kind.dialect() {
            Some(dialect) => {
                clients.push(Client::open(endpoint, dialect, ROOM, &user, None, |_, _| {}).await?);
            }
            None => sessions.push(join_by_polling(context, &user).await?),
        }
    }
    let begun = Instant::now();
    for part in 0..10 {
        publish(endpoint, ROOM, &format!("p{part}"), EVENTS / 10, BYTES).await?;
        // The load is the memory, not the rate.
        sleep(Duration::from_millis(500)).await;
    }
    let seconds = begun.elapsed().as_secs_f64();
    sleep(Duration::from_secs(2)).await;
    let mut outcome = Outcome::default();
    let megabytes = EVENTS * BYTES / 1_000_000;
    outcome.note(format!(
        "{CLIENTS} clients, {megabytes} MB in {seconds:.0} s"
    ));
    Ok(outcome)
}

/// Opens a session on long-polling and joins the room.
async fn join_by_polling(context: &Context, user: &User) -> Result<Polling, String> {
    let polling = Polling::open(&context.http, &context.endpoint, &user.token).await?;
    polling.post("40".to_owned()).await?;
    let join = Dialect::SocketIo.command("joinRoom", &format!(r#""{ROOM}""#), Some(0));
    while !polling
        .poll()
        .await?
        .iter()
        .any(|packet| packet.starts_with("40"))
    {}
    polling.post(join).await?;
    while !polling
        .poll()
        .await?
        .iter()
        .any(|packet| packet.starts_with("430"))
    {}
    Ok(polling)
}

/// Clients that read the same large log at once. All receive it in order, without holes.
pub(super) async fn large_log(context: &Context) -> Result<Outcome, String> {
    const CLIENTS: usize = 50;
    const EVENTS: usize = 5_000;
    const BYTES: usize = 30_000;
    /// The clients may be slower than that, but none may stand still or lose its connection.
    const TIME: Duration = Duration::from_secs(60);
    let endpoint = &context.endpoint;
    publish(endpoint, ROOM, "log", EVENTS, BYTES).await?;
    let mut tasks = JoinSet::new();
    for number in 0..CLIENTS {
        let dialect = KINDS[number % 3].dialect().unwrap_or(Dialect::Room);
        let user = user(endpoint, format!("reader-{number}"));
        tasks.spawn(read(endpoint.clone(), dialect, user, EVENTS as u64, TIME));
    }
    let (mut outcome, mut complete, mut events) = (Outcome::default(), 0, 0);
    while let Some(read) = tasks.join_next().await {
        match read.map_err(|error| error.to_string())? {
            Ok(last) => {
                complete += u32::from(last == EVENTS as u64);
                events += last;
                outcome.check(last == 0, "a reader received nothing".to_owned());
            }
            Err(reason) => outcome.check(true, reason),
        }
    }
    let megabytes = events as usize * BYTES / 1_000_000;
    outcome.note(format!(
        "{complete} of {CLIENTS} at the head, {megabytes} MB read"
    ));
    Ok(outcome)
}

/// Reads the log from its start up to event `head`, at most for `time`. Returns the last event.
async fn read(
    endpoint: Arc<Endpoint>,
    dialect: Dialect,
    user: User,
    head: u64,
    time: Duration,
) -> Result<u64, String> {
    let deadline = tokio::time::Instant::now() + time;
    let opening = Client::open(&endpoint, dialect, ROOM, &user, Some(0), |_, _| {});
    let Ok(opened) = tokio::time::timeout_at(deadline, opening).await else {
        return Ok(0);
    };
    let mut client = opened?;
    while client.sequence.last() < head {
        match tokio::time::timeout_at(deadline, client.read(|_| {})).await {
            Ok(read) => read.map_err(|failure| {
                let reason = String::from(failure);
                let (name, last) = (&user.name, client.sequence.last());
                format!("{name} ({dialect:?}) after event {last}: {reason}")
            })?,
            Err(_) => break,
        }
    }
    Ok(client.sequence.last())
}
