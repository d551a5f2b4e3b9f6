//! Many members, many clients that return at once, and restarts of a busy room.

use super::readers::{publish, user};
use super::{Context, Outcome};
use crate::client::{Client, User};
use crate::dialect::Dialect;
use crate::target::Endpoint;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Number of connects at the same time. A client library spreads reconnects over seconds.
const CONNECTING: usize = 64;

/// Time limit for one client.
const LIMIT: Duration = Duration::from_secs(60);

/// Adds 10,000 members, then lets 2,000 clients join.
pub(super) async fn members(context: &Context) -> Result<Outcome, String> {
    const MEMBERS: usize = 10_000;
    const JOINS: usize = 2_000;
    /// Number of joins at the same time. They use all of the one thread that a local workerd has,
    /// so with more of them the bystanders wait for the joins of others, and not for one.
    const JOINING: usize = 16;
    const ROOM: &str = "full";
    let endpoint = &context.endpoint;
    let service = &endpoint.service;
    let puts = stream::iter(0..MEMBERS).map(|number| async move {
        let url = format!("http://{}/rooms/{ROOM}/members/m{number}", endpoint.host);
        let answer = context.http.put(url).bearer_auth(service).send().await;
        answer
            .and_then(reqwest::Response::error_for_status)
            .map_err(|error| error.to_string())
    });
    let added = puts.buffer_unordered(16).try_for_each(|_| async { Ok(()) });
    added.await?;
    let begun = Instant::now();
    let dialects = [Dialect::Room, Dialect::Gateway, Dialect::SocketIo];
    let users = (0..JOINS).map(|number| user(endpoint, format!("m{number}")));
    let joins = stream::iter(users.enumerate()).map(|(number, user)| async move {
        let dialect = dialects[number % dialects.len()];
        let opening = Client::open(endpoint, dialect, ROOM, &user, None, |_, _| {});
        let opened = timeout(LIMIT, opening).await;
        opened.map_err(|_| format!("{} cannot join in time", user.name))?
    });
    let joined: Vec<Result<Client, String>> = joins.buffer_unordered(JOINING).collect().await;
    let mut outcome = Outcome::default();
    let seconds = begun.elapsed().as_secs_f64();
    let clients = joined.iter().flatten().count();
    outcome.note(format!("{clients} joins in {seconds:.1} s"));
    if let Some(reason) = joined.iter().find_map(|one| one.as_ref().err()) {
        let refused = JOINS - clients;
        let reason = format!("{refused} clients did not join: {reason}");
        outcome.violations.push(reason);
    }
    Ok(outcome)
}

/// Opens `count` clients in rooms of 100.
async fn connect_crowd(endpoint: &Arc<Endpoint>, users: &[User], since: Option<u64>) -> Crowd {
    let begun = Instant::now();
    let opens = stream::iter(users.iter().enumerate()).map(|(number, user)| {
        let room = format!("crowd-{}", number / ROOM_SIZE);
        let dialect = match number % 2 {
            0 => Dialect::Room,
            _ => Dialect::Gateway,
        };
        async move {
            let opening = async {
                let opened = Client::open(endpoint, dialect, &room, user, since, |_, _| {});
                let mut client = opened.await?;
                while client.sequence.last()
                    < since.unwrap_or(0) + MISSED * u64::from(since.is_some())
                {
                    client.read(|_| {}).await?;
                }
                Ok(client)
            };
            let opened = timeout(LIMIT, opening).await;
            opened.unwrap_or_else(|_| Err(format!("{} ({dialect:?}): timeout", user.name)))
        }
    });
    let results: Vec<Result<Client, String>> = opens.buffer_unordered(CONNECTING).collect().await;
    let mut crowd = Crowd {
        clients: Vec::new(),
        failures: Vec::new(),
        time: begun.elapsed(),
    };
    for result in results {
        match result {
            Ok(client) => crowd.clients.push(client),
            Err(reason) => crowd.failures.push(reason),
        }
    }
    crowd
}

/// Number of clients of a room.
const ROOM_SIZE: usize = 100;

/// Number of events that each client missed.
const MISSED: u64 = 100;

/// Connected clients, and the reasons of those that could not connect.
struct Crowd {
    clients: Vec<Client>,
    failures: Vec<String>,
    time: Duration,
}

/// Kills workerd, publishes events, and lets all clients return.
pub(super) async fn mass_reconnect(context: &Context) -> Result<Outcome, String> {
    const CLIENTS: usize = 5_000;
    let endpoint = &context.endpoint;
    let users: Vec<User> = (0..CLIENTS)
        .map(|number| user(endpoint, format!("crowd-{number}")))
        .collect();
    let mut outcome = Outcome::default();
    let before = connect_crowd(endpoint, &users, None).await;
    let failed = before.failures.len();
    let reason = before.failures.first().cloned().unwrap_or_default();
    outcome.check(
        failed > 0,
        format!("{failed} first connects failed: {reason}"),
    );
    context.restart().await?;
    drop(before.clients);
    for room in 0..CLIENTS / ROOM_SIZE {
        publish(
            endpoint,
            &format!("crowd-{room}"),
            "m",
            MISSED as usize,
            200,
        )
        .await?;
    }
    let after = connect_crowd(endpoint, &users, Some(0)).await;
    let failed = after.failures.len();
    let reason = after.failures.first().cloned().unwrap_or_default();
    outcome.check(
        failed > 0,
        format!("{failed} of {CLIENTS} did not return: {reason}"),
    );
    let (first, again) = (before.time.as_secs_f64(), after.time.as_secs_f64());
    outcome.note(format!(
        "connected in {first:.0} s, returned with {MISSED} events each in {again:.0} s"
    ));
    Ok(outcome)
}

/// Maximum time from the restart of a room to the acknowledgement of the first event.
const MAX_RESTART: Duration = Duration::from_secs(2);

/// Restarts a room that has received 1,000 messages a second with a `messageId` each.
pub(super) async fn room_restart(context: &Context) -> Result<Outcome, String> {
    const ROOM: &str = "busy";
    const MESSAGES: usize = 60_000;
    const BYTES: usize = 500;
    const SENDERS: usize = 10;
    let endpoint = &context.endpoint;
    // Publications are faster than 1,000 a second. The room has to know the ids of all of them.
    publish(endpoint, ROOM, "busy", MESSAGES, BYTES).await?;
    let mut senders = JoinSet::new();
    for number in 0..SENDERS {
        let (endpoint, user) = (endpoint.clone(), user(endpoint, format!("sender-{number}")));
        senders.spawn(async move {
            // Ends at the restart.
            let _ = send_steadily(&endpoint, &user, ROOM).await;
        });
    }
    sleep(Duration::from_secs(5)).await;
    // A panic replaces the WebAssembly memory of all objects. The sockets stay open.
    context.plan(&json!({ "points": ["Flush"] })).await?;
    sleep(Duration::from_millis(50)).await;
    let begun = Instant::now();
    let mut last = Err(String::new());
    while last.is_err() && begun.elapsed() < LIMIT {
        last = publish(endpoint, ROOM, "after", 1, BYTES).await;
    }
    let time = begun.elapsed();
    last?;
    let mut outcome = Outcome::default();
    let again = publish(endpoint, ROOM, "after", 1, BYTES).await;
    outcome.check(
        again.is_err(),
        "a resend after the restart was refused".to_owned(),
    );
    outcome.note(format!(
        "first acknowledgement {} ms after the panic",
        time.as_millis()
    ));
    outcome.check(
        time > MAX_RESTART,
        format!("the restart took {} ms", time.as_millis()),
    );
    Ok(outcome)
}

/// Sends 100 messages a second until the connection ends.
async fn send_steadily(endpoint: &Endpoint, user: &User, room: &str) -> Result<(), String> {
    let mut client = Client::open(endpoint, Dialect::Room, room, user, None, |_, _| {}).await?;
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    let mut number = 0;
    loop {
        tokio::select! {
            read = client.read(|_| {}) => read?,
            _ = ticks.tick() => {
                number += 1;
                let name = &user.name;
                let fields = format!(r#""content":"hello","messageId":"{name}-{number}""#);
                client.queue("sendMessage", &fields, Some(number));
                client.socket.flush().await.map_err(|error| error.to_string())?;
            }
        }
    }
}
