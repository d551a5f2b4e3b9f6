//! Users who talk while the server under them is killed, restarted, cut off, put
//! to sleep, made to panic and given another time, and a judge who compares what
//! they were told with what is there.
//!
//! A round is a storm, then calm: all come back, all that was not acknowledged
//! is said again, and the judge looks ([`verdict`]). Rooms, users and storage
//! stay the same from round to round. The same seed makes the same faults.

mod player;
mod verdict;

use crate::client::User;
use crate::dialect::Dialect;
use crate::target::Site;
use clap::Args;
use player::{Phase, Player, Shared};
use roomcast_harness::{Server, Token, Worker};
use serde_json::json;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::sleep;

/// Options of `chaos`.
#[derive(Args)]
pub struct Options {
    /// How often there is a storm and then a judgement.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Which faults there are, and when; the same seed makes the same ones.
    #[arg(long)]
    seed: Option<u64>,
}

const ROOMS: [&str; 3] = ["red", "green", "blue"];
const USERS: [&str; 6] = ["ada", "bob", "cleo", "dan", "eve", "finn"];

/// Who sends a sign of life and then none is gone after this and the grace time.
const GHOST_TIMEOUT: &str = "3s";
const PRESENCE_GRACE_MS: &str = "500";

/// How long a storm takes, and how long there is nothing between two faults.
const STORM: Duration = Duration::from_secs(5);
const LULL: (u64, u64) = (150, 1_200);

/// To how many milliseconds ahead of the machine's the clock is stepped, until it
/// is stepped again or the server ends, which steps it back. From end to end more
/// than the ghost time, so that all seem to be gone; not so far that what is due
/// comes later than presence may take to become true.
const STEPS: (i64, i64) = (-3_000, 3_000);

/// How many lines of what the server said are shown when something is broken.
const LAST_WORDS: usize = 40;

/// Where the server panics; see `src/durable/sabotage.rs`.
const POINTS: [&str; 7] = [
    "Frame",
    "Tick",
    "Stored",
    "Alarm",
    "GatewayFrame",
    "GatewayPush",
    "GatewayAlarm",
];

/// Every so many rounds all fall silent for so long that objects are put to
/// sleep: the runtime does so after 10 s.
const SLEEP_EVERY: u32 = 10;
const ASLEEP: Duration = Duration::from_millis(11_500);

/// How long all may take to come back and be done. Only a limit to end a run
/// that hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was done to the server, over all rounds.
#[derive(Default)]
struct Faults {
    kills: u32,
    deploys: u32,
    cuts: u32,
    steps: u32,
    panics: u32,
    sleeps: u32,
}

/// Runs all rounds. `Ok(false)` when a promise was broken.
pub async fn run(options: Options) -> Result<bool, String> {
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!(
        "seed {seed}: `make chaos ROUNDS={} SEED={seed}` does the same",
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
    let server = spawn_blocking(move || {
        // The same code, which can be made to fail and has a clock to step.
        Server::start_worker(&Worker::built("sabotage"), &vars)
    })
    .await
    .map_err(|error| error.to_string())?;
    let site = Site::running(&server.url(""), server.secret()).await?;
    let site = Arc::new(site);
    let server = Arc::new(Mutex::new(server));
    let kept = rounds(&server, &site, &options, seed).await;
    if !matches!(kept, Ok(true)) {
        let server = server.lock().unwrap_or_else(PoisonError::into_inner);
        let output = server.output();
        let lines: Vec<&str> = output.lines().collect();
        println!("the server said last:");
        for line in &lines[lines.len().saturating_sub(LAST_WORDS)..] {
            println!("  {line}");
        }
    }
    kept
}

/// Runs all rounds on a server.
async fn rounds(
    server: &Arc<Mutex<Server>>,
    site: &Arc<Site>,
    options: &Options,
    seed: u64,
) -> Result<bool, String> {
    let mut random = fastrand::Rng::with_seed(seed);
    let (phase, phases) = watch::channel(Phase::Storm);
    let mut tasks = JoinSet::new();
    let mut players: Vec<Arc<Shared>> = Vec::new();
    for room in ROOMS {
        for (number, name) in USERS.iter().enumerate() {
            let user = User {
                name: (*name).to_owned(),
                token: Token::user(name)
                    .claim("rooms", vec!["*"])
                    .ttl(86_400)
                    .sign(roomcast_harness::SECRET),
            };
            // Half of them at the room itself, half at a gateway.
            let dialect = match number % 2 {
                0 => Dialect::Room,
                _ => Dialect::Gateway,
            };
            let shared = Arc::new(Shared::new(room, name));
            players.push(shared.clone());
            let seed = random.u64(..);
            let player = Player::new(site.clone(), user, dialect, shared, seed);
            tasks.spawn(player.play(phases.clone()));
        }
    }

    let start = Instant::now();
    let mut faults = Faults::default();
    for round in 1..=options.rounds {
        phase.send_replace(Phase::Storm);
        storm(server, site, &phase, &mut random, &mut faults).await?;
        if round % SLEEP_EVERY == 0 {
            phase.send_replace(Phase::Silence);
            sleep(ASLEEP).await;
            faults.sleeps += 1;
        }
        phase.send_replace(Phase::Calm);
        calm(&players).await?;
        let broken = verdict::judge(site, &ROOMS, &players).await?;
        let messages: usize = players.iter().map(|player| player.acknowledged()).sum();
        println!("round {round}: {messages} messages acknowledged so far");
        if !broken.is_empty() {
            for what in broken.iter().take(20) {
                println!("  broken: {what}");
            }
            println!("{} promises broken with seed {seed}", broken.len());
            return Ok(false);
        }
    }
    phase.send_replace(Phase::Calm);
    let ghost = verdict::ghost(site, ROOMS[0]).await;
    drop(tasks);
    let sum =
        |count: fn(&Shared) -> usize| players.iter().map(|player| count(player)).sum::<usize>();
    println!(
        "{} rounds in {} s: {} kills, {} deploys, {} cuts, {} steps of the clock, {} panics, {} sleeps, \
         {} reconnections; \
         {} messages acknowledged, {} said again; lost 0, doubled 0, reordered 0",
        options.rounds,
        start.elapsed().as_secs(),
        faults.kills,
        faults.deploys,
        faults.cuts,
        faults.steps,
        faults.panics,
        faults.sleeps,
        sum(Shared::reconnections),
        sum(Shared::acknowledged),
        sum(Shared::repeated),
    );
    if let Err(why) = ghost {
        println!("  broken: {why}");
        return Ok(false);
    }
    Ok(true)
}

/// Does things to the server and its sockets for a while.
async fn storm(
    server: &Arc<Mutex<Server>>,
    site: &Site,
    phase: &watch::Sender<Phase>,
    random: &mut fastrand::Rng,
    faults: &mut Faults,
) -> Result<(), String> {
    let end = Instant::now() + STORM;
    while Instant::now() < end {
        sleep(Duration::from_millis(random.u64(LULL.0..LULL.1))).await;
        match random.u8(..12) {
            // Not at all when it has just been killed: the next one comes.
            0 => {
                faults.steps += 1;
                let ahead = random.i64(STEPS.0..STEPS.1);
                let _ = site
                    .post("/sabotage", &json!({ "ahead": ahead }).to_string())
                    .await;
            }
            1 => {
                faults.panics += 1;
                let point = POINTS[random.usize(..POINTS.len())];
                let plan = json!({ "points": [point] });
                let _ = site.post("/sabotage", &plan.to_string()).await;
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
            number => {
                faults.cuts += 1;
                // Who it hits each decides by this number.
                phase.send_replace(Phase::Cut(random.u64(..), number % 2 == 0));
                sleep(Duration::from_millis(20)).await;
                phase.send_replace(Phase::Storm);
            }
        }
    }
    Ok(())
}

/// Blocks a thread of its own, so that players go on meanwhile.
async fn with(
    server: &Arc<Mutex<Server>>,
    what: impl FnOnce(&mut Server) + Send + 'static,
) -> Result<(), String> {
    let server = server.clone();
    let done = spawn_blocking(move || {
        what(&mut server.lock().unwrap_or_else(PoisonError::into_inner));
    });
    done.await.map_err(|error| error.to_string())
}

/// Waits until all are connected and have nothing left to say.
async fn calm(players: &[Arc<Shared>]) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let waiting = players.iter().find(|player| !player.is_done());
        let Some(waiting) = waiting else {
            return Ok(());
        };
        if Instant::now() > deadline {
            return Err(format!("not done in time: {}", waiting.describe()));
        }
        sleep(Duration::from_millis(20)).await;
    }
}
