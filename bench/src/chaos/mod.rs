//! Fault injection: users send messages while the server is killed, restarted,
//! disconnected, hibernated, made to panic, and given a different clock.
//!
//! A round injects faults for [`FAULT_PHASE`]. Then all users reconnect and resend
//! their unacknowledged messages, and [`verify`] compares what the users received
//! with the log. Rooms, users and storage stay the same in all rounds. The same seed
//! injects the same faults.

mod departures;
mod participant;
mod verify;

use crate::client::{Client, User};
use crate::dialect::Dialect;
use crate::target::Endpoint;
use clap::Args;
use departures::{DEPARTURES, Departing, Departure};
use participant::{Participant, Phase, Shared};
use roomcast_harness::{Server, Token, Worker};
use serde_json::json;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::sleep;

/// Options of `chaos`.
#[derive(Args)]
pub(crate) struct Options {
    /// Number of rounds of faults and verification.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seed of the faults and their times.
    #[arg(long)]
    seed: Option<u64>,
    /// Flavour of the build: `failpoints`, or `limits` with 64 MiB of memory.
    #[arg(long, default_value = "failpoints", value_parser = ["failpoints", "limits"])]
    build: String,
}

const ROOMS: [&str; 3] = ["red", "green", "blue"];
const USERS: [&str; 6] = ["ada", "bob", "cleo", "dan", "eve", "finn"];

/// `GHOST_TIMEOUT` of the server. A client that has pinged and then sends nothing is
/// offline after this time and the grace time.
const GHOST_TIMEOUT: &str = "3s";
const PRESENCE_GRACE_MS: &str = "500";

/// Time after which a user that has gone must not be shown as online: the grace time and 5 s.
const ABSENCE: Duration = Duration::from_millis(5_500);

/// Duration of the faults of a round.
const FAULT_PHASE: Duration = Duration::from_secs(5);

/// Range of the pause between two faults, in milliseconds.
const PAUSE: (u64, u64) = (150, 1_200);

/// Range of the clock offset in milliseconds. An offset lasts until the next one or
/// until the server ends. The range is larger than `GHOST_TIMEOUT`, so that a step can
/// make all connections look stale, and small enough for presence to converge in time.
const CLOCK_OFFSETS: (i64, i64) = (-3_000, 3_000);

/// Number of lines of the server's output that are printed after a failure.
const OUTPUT_LINES: usize = 40;

/// Failpoints that panic; see `src/runtime/failpoint.rs`.
const FAILPOINTS: [&str; 7] = [
    "Frame",
    "Flush",
    "Stored",
    "Alarm",
    "GatewayFrame",
    "GatewayPush",
    "GatewayAlarm",
];

/// Number of rounds between two pauses. In a pause the users send nothing until the
/// objects hibernate. The runtime evicts idle objects after 10 s.
const HIBERNATE_EVERY: u32 = 10;
const HIBERNATION: Duration = Duration::from_millis(11_500);

/// Limit for the reconnection of all users. It ends a run that hangs.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Number of injected faults over all rounds.
#[derive(Default)]
struct Faults {
    kills: u32,
    deploys: u32,
    cuts: u32,
    clock_steps: u32,
    panics: u32,
    hibernations: u32,
    /// Backlogs of which a part was delivered when the server was killed.
    backlogs: u32,
    /// Times in which gateways did not accept deliveries.
    stops: u32,
    /// Tokens that were replaced by one without the room.
    narrowed: u32,
    /// Users that left their room or disconnected.
    departures: u32,
}

/// A backlog: number and size of its events. It is larger than two portions of the log, so that
/// it is delivered in several steps.
const BACKLOG_EVENTS: usize = 80;
const BACKLOG_BYTES: usize = 8_000;

/// Range of the time for which gateways do not accept deliveries, in milliseconds.
const STOP: (u64, u64) = (500, 4_000);

/// Runs all rounds. Returns `Ok(false)` if a promise was violated.
pub(crate) async fn run(options: Options) -> Result<bool, String> {
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!(
        "seed {seed}: repeat with `make chaos ROUNDS={} SEED={seed}`",
        options.rounds
    );
    let vars = [
        ("LOG_LEVEL", "error"),
        ("GHOST_TIMEOUT", GHOST_TIMEOUT),
        ("PRESENCE_GRACE_MS", PRESENCE_GRACE_MS),
        ("RETENTION_EVENTS", "10000000"),
        ("MESSAGES_PER_SECOND", "100000"),
        ("MESSAGES_BURST", "100000"),
        ("COMMANDS_PER_SECOND", "100000"),
        ("COMMANDS_BURST", "100000"),
        ("JOINS_PER_SECOND", "100000"),
        ("JOINS_BURST", "100000"),
        ("SIGNALS_PER_SECOND", "100000"),
        ("SIGNALS_BURST", "100000"),
        ("MAX_CONNECTIONS_PER_USER", "1000"),
        ("GATEWAY_SHARDS", "2"),
    ];
    let build = options.build.clone();
    let server = spawn_blocking(move || {
        // Both builds have failpoints and an adjustable clock.
        Server::start_worker(&Worker::built(&build), &vars)
    })
    .await
    .map_err(|error| error.to_string())?;
    let endpoint = Endpoint::running(&server.url(""), server.secret()).await?;
    let endpoint = Arc::new(endpoint);
    let server = Arc::new(Mutex::new(server));
    let result = rounds(&server, &endpoint, &options, seed).await;
    if !matches!(result, Ok(true)) {
        let server = server.lock().unwrap_or_else(PoisonError::into_inner);
        println!("last lines of the server:");
        for line in server.last_lines(OUTPUT_LINES) {
            println!("  {line}");
        }
    }
    result
}

/// Runs all rounds on a server.
async fn rounds(
    server: &Arc<Mutex<Server>>,
    endpoint: &Arc<Endpoint>,
    options: &Options,
    seed: u64,
) -> Result<bool, String> {
    let mut random = fastrand::Rng::with_seed(seed);
    let (phase, phases) = watch::channel(Phase::Faults);
    let mut tasks = JoinSet::new();
    let mut participants: Vec<Arc<Shared>> = Vec::new();
    for room in ROOMS {
        for (number, name) in USERS.iter().enumerate() {
            let user = User {
                name: (*name).to_owned(),
                token: Token::user(name)
                    .claim("rooms", vec!["*"])
                    .ttl(86_400)
                    .sign(roomcast_harness::SECRET),
            };
            // One half connects to the room, the other half to a gateway.
            let dialect = match number % 2 {
                0 => Dialect::Room,
                _ => Dialect::Gateway,
            };
            let shared = Arc::new(Shared::new(room, name));
            participants.push(shared.clone());
            let seed = random.u64(..);
            let participant = Participant::new(endpoint.clone(), user, dialect, shared, seed);
            tasks.spawn(participant.run(phases.clone()));
        }
    }

    let start = Instant::now();
    let mut faults = Faults::default();
    for round in 1..=options.rounds {
        phase.send_replace(Phase::Faults);
        let departing = start_departures(endpoint, round, &mut random);
        inject_faults(server, endpoint, &phase, &mut random, &mut faults).await?;
        if round % HIBERNATE_EVERY == 0 {
            phase.send_replace(Phase::Idle(random.u64(..)));
            // Some participants do not read this backlog before the room hibernates.
            let room = ROOMS[random.usize(..ROOMS.len())];
            publish_backlog(endpoint, room, random.u64(..)).await;
            sleep(HIBERNATION).await;
            faults.hibernations += 1;
        }
        phase.send_replace(Phase::Settle);
        let open = finish_departures(departing, &mut faults).await?;
        let departed = Instant::now();
        settle(&participants).await?;
        let mut violations = verify::verify(endpoint, &ROOMS, &participants, departed).await?;
        drop(open);
        if round % HIBERNATE_EVERY == 1 {
            faults.narrowed += 1;
            let narrowed = verify::narrowed_token(endpoint, round).await;
            violations.extend(narrowed.err());
        }
        let messages: usize = participants.iter().map(|one| one.acknowledged()).sum();
        println!("round {round}: {messages} messages acknowledged so far");
        if !violations.is_empty() {
            for what in violations.iter().take(20) {
                println!("  violated: {what}");
            }
            println!("{} violations with seed {seed}", violations.len());
            return Ok(false);
        }
    }
    phase.send_replace(Phase::Settle);
    let stale = verify::stale_connection(endpoint, ROOMS[0]).await;
    drop(tasks);
    let sum =
        |count: fn(&Shared) -> usize| participants.iter().map(|one| count(one)).sum::<usize>();
    // The table of docs/reliability.md.
    println!(
        "| faults and results | {} build, seed {seed} |",
        options.build
    );
    println!("| --- | --- |");
    for (what, count) in [
        ("rounds", u64::from(options.rounds)),
        ("seconds", start.elapsed().as_secs()),
        ("kills (SIGKILL)", u64::from(faults.kills)),
        ("deploys (SIGTERM)", u64::from(faults.deploys)),
        ("cuts of a third of the connections", u64::from(faults.cuts)),
        ("kills during a catch-up", u64::from(faults.backlogs)),
        (
            "gateways that did not accept deliveries",
            u64::from(faults.stops),
        ),
        ("clock steps", u64::from(faults.clock_steps)),
        ("panics", u64::from(faults.panics)),
        (
            "hibernations, a third of the clients not reading",
            u64::from(faults.hibernations),
        ),
        ("tokens that lost a room", u64::from(faults.narrowed)),
        (
            "users that left or disconnected",
            u64::from(faults.departures),
        ),
        ("reconnections", sum(Shared::reconnections) as u64),
        ("messages acknowledged", sum(Shared::acknowledged) as u64),
        ("messages resent", sum(Shared::resent) as u64),
    ] {
        println!("| {what} | {count} |");
    }
    println!("| lost, duplicated, reordered, silent gaps, presence wrong | 0, 0, 0, 0, 0 |");
    if let Err(reason) = stale {
        println!("  violated: {reason}");
        return Ok(false);
    }
    Ok(true)
}

/// Starts the users that join each room and go while faults are injected. In every second
/// round, those that can are on the rooms' own sockets.
fn start_departures(
    endpoint: &Arc<Endpoint>,
    round: u32,
    random: &mut fastrand::Rng,
) -> JoinSet<Option<Client>> {
    let mut departing = JoinSet::new();
    for room in ROOMS {
        for (user, departure) in DEPARTURES {
            let dialect = match departure {
                Departure::Leaves | Departure::Disconnects if round.is_multiple_of(2) => {
                    Dialect::Room
                }
                _ => Dialect::Gateway,
            };
            let one = Departing {
                endpoint: endpoint.clone(),
                room,
                user,
                departure,
                dialect,
                seed: random.u64(..),
            };
            departing.spawn(one.run());
        }
    }
    departing
}

/// Waits until the users of [`start_departures`] have gone. Returns their open connections.
async fn finish_departures(
    departing: JoinSet<Option<Client>>,
    faults: &mut Faults,
) -> Result<Vec<Client>, String> {
    let departed = tokio::time::timeout(TIMEOUT, departing.join_all()).await;
    let departed = departed.map_err(|_| "timeout: a user cannot leave its room".to_owned())?;
    let open: Vec<Client> = departed.into_iter().flatten().collect();
    let lost = open.len() as u32;
    faults.narrowed += lost;
    faults.departures += (ROOMS.len() * DEPARTURES.len()) as u32 - lost;
    Ok(open)
}

/// Injects faults for [`FAULT_PHASE`].
async fn inject_faults(
    server: &Arc<Mutex<Server>>,
    endpoint: &Endpoint,
    phase: &watch::Sender<Phase>,
    random: &mut fastrand::Rng,
    faults: &mut Faults,
) -> Result<(), String> {
    let end = Instant::now() + FAULT_PHASE;
    let mut has_offset = false;
    while Instant::now() < end {
        sleep(Duration::from_millis(random.u64(PAUSE.0..PAUSE.1))).await;
        match random.u8(..15) {
            // The request fails if the server has just been killed.
            0 => {
                faults.clock_steps += 1;
                has_offset = true;
                let ahead = random.i64(CLOCK_OFFSETS.0..CLOCK_OFFSETS.1);
                let _ = endpoint
                    .post("/failpoints", &json!({ "ahead": ahead }).to_string())
                    .await;
            }
            1 => {
                faults.panics += 1;
                has_offset = false;
                let point = FAILPOINTS[random.usize(..FAILPOINTS.len())];
                let body = json!({ "points": [point] });
                let _ = endpoint.post("/failpoints", &body.to_string()).await;
            }
            2..6 => {
                faults.kills += 1;
                with(server, |server| {
                    server.kill();
                    server.restart();
                })
                .await?;
            }
            6..8 => {
                faults.deploys += 1;
                with(server, |server| {
                    server.stop();
                    server.restart();
                })
                .await?;
            }
            12 => {
                faults.backlogs += 1;
                let room = ROOMS[random.usize(..ROOMS.len())];
                phase.send_replace(Phase::Cut(random.u64(..), false));
                publish_backlog(endpoint, room, random.u64(..)).await;
                phase.send_replace(Phase::Faults);
                // The clients have connected again and have received a part of it.
                sleep(Duration::from_millis(random.u64(50..300))).await;
                with(server, |server| {
                    server.kill();
                    server.restart();
                })
                .await?;
            }
            13 | 14 => {
                faults.stops += 1;
                let plan = json!({ "stopped": true }).to_string();
                let _ = endpoint.post("/failpoints", &plan).await;
                sleep(Duration::from_millis(random.u64(STOP.0..STOP.1))).await;
                let _ = endpoint.post("/failpoints", "{}").await;
                has_offset = false;
            }
            number => {
                faults.cuts += 1;
                // Each participant derives from this number whether it loses its
                // connection.
                phase.send_replace(Phase::Cut(random.u64(..), number % 2 == 0));
                sleep(Duration::from_millis(20)).await;
                phase.send_replace(Phase::Faults);
            }
        }
    }
    if has_offset {
        // The grace time of users that have gone ends in time.
        let _ = endpoint.post("/failpoints", "{}").await;
    }
    Ok(())
}

/// Publishes a backlog to a room. A server that has just been killed may store a part of it.
async fn publish_backlog(endpoint: &Endpoint, room: &str, id: u64) {
    let content = "x".repeat(BACKLOG_BYTES);
    let messages: Vec<_> = (0..BACKLOG_EVENTS)
        .map(|number| {
            json!({
                "room": room,
                "event": "newMessage",
                "messageId": format!("backlog-{id}-{number}"),
                "data": { "content": content },
            })
        })
        .collect();
    let body = json!({ "messages": messages }).to_string();
    let _ = endpoint.post("/publish", &body).await;
}

/// Runs a blocking operation on the server in its own thread, so that the users keep
/// sending.
async fn with(
    server: &Arc<Mutex<Server>>,
    operation: impl FnOnce(&mut Server) + Send + 'static,
) -> Result<(), String> {
    let server = server.clone();
    let done = spawn_blocking(move || {
        operation(&mut server.lock().unwrap_or_else(PoisonError::into_inner));
    });
    done.await.map_err(|error| error.to_string())
}

/// Waits until all users are connected and all their messages are acknowledged.
async fn settle(participants: &[Arc<Shared>]) -> Result<(), String> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let waiting = participants.iter().find(|one| !one.is_done());
        let Some(waiting) = waiting else {
            return Ok(());
        };
        if Instant::now() > deadline {
            return Err(format!("timeout: {}", waiting.describe()));
        }
        sleep(Duration::from_millis(20)).await;
    }
}
