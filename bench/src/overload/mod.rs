//! Overload: latency, memory and slow consumers under more load than a room accepts,
//! and the effect of hostile clients on others. See docs/reliability.md.

mod sender;

use crate::client::{Client, User};
use crate::dialect::Dialect;
use crate::listeners::Listeners;
use crate::machine;
use crate::socket::{Socket, SocketError};
use crate::target::Endpoint;
use clap::Args;
use roomcast_harness::{Server, Token};
use sender::{Behaviour, Results, lock, run_sender};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Options of `overload`.
#[derive(Args)]
pub(crate) struct Options {
    /// Duration of the overload in seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(5..))]
    seconds: u64,
    /// Number of measurements with a hostile client.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

const ROOM: &str = "overload";

/// Number of clients that send.
const SENDERS: usize = 50;

/// Number of clients that receive.
const LISTENERS: usize = 20;

/// Number of clients that are connected and do not read.
const NON_READING: usize = 5;

/// `MAX_UNACKED_BYTES` of the run. Less than the sent data, so that clients that do not
/// read are closed before the end.
const UNACKED: &str = "1000000";

/// Limit for the memory of workerd: four times the 128 MB of an isolate. The rest is
/// for the runtime and its buffers.
const MAX_MEMORY: u64 = 512 << 20;

/// Limit for the 99th percentile of acknowledgement latency under overload.
const MAX_LATENCY: Duration = Duration::from_secs(1);

/// Number and rate (messages per second) of the other clients in the room of a hostile
/// client.
const OTHERS: usize = 20;
const OTHERS_RATE: f64 = 5.0;

/// Duration of each latency measurement.
const MEASURE: Duration = Duration::from_secs(8);

/// Limit for the latency ratio with and without a hostile client.
const MAX_RATIO: f64 = 2.0;

/// Runs all parts. Returns `Ok(false)` if a promise was violated.
pub(crate) async fn run(options: Options) -> Result<bool, String> {
    let sustained = sustained().await?;
    println!(
        "sustained: {sustained:.0} messages/s with {SENDERS} senders and {LISTENERS} listeners"
    );
    let bounded = overload(sustained * 3.0, Duration::from_secs(options.seconds)).await?;
    let hostile = hostile(options.rounds).await?;
    Ok(bounded && hostile)
}

/// A server and its endpoint.
struct Setup {
    endpoint: Arc<Endpoint>,
    server: Server,
}

impl Setup {
    /// Starts roomcast with these settings.
    async fn start(vars: &[(&str, &str)]) -> Result<Self, String> {
        let vars: Vec<(String, String)> = vars
            .iter()
            .chain(&[("LOG_LEVEL", "error")])
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let server = tokio::task::spawn_blocking(move || {
            let vars: Vec<_> = vars.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            Server::start(&vars)
        })
        .await
        .map_err(|error| error.to_string())?;
        let endpoint = Arc::new(Endpoint::running(&server.url(""), server.secret()).await?);
        Ok(Setup { endpoint, server })
    }

    fn user(&self, name: String) -> User {
        let token = Token::user(&name).claim("rooms", vec!["*"]).ttl(3_600);
        let token = token.sign(self.server.secret());
        User { name, token }
    }

    /// Starts `count` clients with this behaviour.
    fn senders(
        &self,
        name: &str,
        count: usize,
        behaviour: Behaviour,
        start: Instant,
    ) -> (JoinSet<()>, Arc<Mutex<Results>>) {
        let results = Arc::<Mutex<Results>>::default();
        let mut tasks = JoinSet::new();
        for number in 0..count {
            let user = self.user(format!("{name}-{number}"));
            let (endpoint, results) = (self.endpoint.clone(), results.clone());
            tasks.spawn(run_sender(endpoint, user, ROOM, behaviour, start, results));
        }
        (tasks, results)
    }

    async fn listeners(&self, count: usize) -> Result<Listeners, String> {
        let mut listeners = Listeners::default();
        for number in 0..count {
            let user = self.user(format!("listener-{number}"));
            let client = Client::open(&self.endpoint, Dialect::Room, ROOM, &user, None, |_, _| {});
            listeners.add(client.await?);
        }
        Ok(listeners)
    }

    /// Returns the `seq` of each message in the log. Fails if a message is in it twice.
    async fn log(&self) -> Result<HashMap<String, u64>, String> {
        let mut log = HashMap::new();
        let mut after = 0;
        loop {
            let path = format!("/rooms/{ROOM}/messages?after={after}&limit=1000");
            let page = self.endpoint.get(&path).await?;
            for event in page["events"].as_array().into_iter().flatten() {
                let id = event["data"]["messageId"].as_str().unwrap_or_default();
                after = event["data"]["seq"].as_u64().unwrap_or(after);
                if log.insert(id.to_owned(), after).is_some() {
                    return Err(format!("{id} is in the log twice"));
                }
            }
            if page["more"] != Value::Bool(true) {
                return Ok(log);
            }
        }
    }
}

/// Measures the messages per second that a room accepts without rate limits.
async fn sustained() -> Result<f64, String> {
    let no_limits = [
        ("MESSAGES_PER_SECOND", "1000000"),
        ("MESSAGES_BURST", "1000000"),
        ("COMMANDS_PER_SECOND", "1000000"),
        ("COMMANDS_BURST", "1000000"),
    ];
    let setup = Setup::start(&no_limits).await?;
    let mut listeners = setup.listeners(LISTENERS).await?;
    let (_senders, results) =
        setup.senders("sender", SENDERS, Behaviour::InFlight(4), Instant::now());
    sleep(Duration::from_secs(2)).await;
    let before = lock(&results).acks.len();
    let measured = Duration::from_secs(5);
    sleep(measured).await;
    listeners.check()?;
    let acked = lock(&results).acks.len() - before;
    Ok(acked as f64 / measured.as_secs_f64())
}

/// Sends at `rate` for a while, with the default limits.
async fn overload(rate: f64, time: Duration) -> Result<bool, String> {
    let setup = Setup::start(&[
        ("MAX_UNACKED_BYTES", UNACKED),
        ("RETENTION_EVENTS", "10000000"),
    ])
    .await?;
    let mut listeners = setup.listeners(LISTENERS).await?;
    let mut non_reading = Vec::new();
    for number in 0..NON_READING {
        let user = setup.user(format!("non-reading-{number}"));
        let path = Dialect::Room.path(ROOM, None, &user.token);
        let (address, host) = (setup.endpoint.address, &setup.endpoint.host);
        let socket = Socket::open(address, host, &path, &user.token).await;
        non_reading.push(socket.map_err(|error| error.to_string())?);
    }
    let pid = setup.server.pid();
    let (memory_before, start) = (machine::memory(pid), Instant::now());
    let each = Behaviour::Rate(rate / SENDERS as f64);
    let (mut senders, results) = setup.senders("sender", SENDERS, each, start);
    let mut peak = memory_before;
    while start.elapsed() < time {
        sleep(Duration::from_millis(100)).await;
        peak = peak.max(machine::memory(pid));
        listeners.check()?;
    }
    senders.shutdown().await;
    let log = setup.log().await?;
    listeners.reach(log.len() as u64).await?;
    let mut closed = 0;
    for socket in non_reading {
        closed += u32::from(is_closed(socket).await);
    }

    let results = lock(&results);
    let seconds = time.as_secs_f64();
    println!(
        "offered {rate:.0} messages/s for {seconds:.0} s: {:.0} acknowledged and {:.0} refused per second, \
         {} failed; closes by code: {:?}; connects refused with 429: {:.0} per second",
        results.acks.len() as f64 / seconds,
        results.refused as f64 / seconds,
        results.failed,
        results.closed,
        results.refused_connects as f64 / seconds,
    );
    let mut slowest = Duration::ZERO;
    for window in 0..time.as_secs().div_ceil(10) as u32 {
        let in_window = |(at, _): &&(u32, u32)| at / 10_000 == window;
        let mut waits: Vec<u32> = results
            .acks
            .iter()
            .filter(in_window)
            .map(|ack| ack.1)
            .collect();
        let p99 = quantile(&mut waits, 0.99);
        println!(
            "  {:>3} s: ack p50 {:.1} ms, p99 {:.1} ms",
            window * 10,
            quantile(&mut waits, 0.5).as_secs_f64() * 1e3,
            p99.as_secs_f64() * 1e3
        );
        slowest = slowest.max(p99);
    }
    let mib = |bytes: u64| bytes >> 20;
    println!(
        "  memory: {} MiB before, {} MiB peak; {closed} of {NON_READING} clients that do not read were closed",
        mib(memory_before),
        mib(peak)
    );
    let lost = results
        .acknowledged
        .iter()
        .filter(|(id, seq)| log.get(*id) != Some(seq));
    let lost = lost.count();
    println!(
        "  {} acknowledged, {lost} lost; {LISTENERS} listeners received all {} events once, in order",
        results.acknowledged.len(),
        log.len()
    );
    let mut passed = true;
    for (violated, what) in [
        (lost > 0, "acknowledged messages are not in the log"),
        (results.failed > 0, "commands failed"),
        (results.refused == 0, "no message was refused"),
        (peak > MAX_MEMORY, "the memory limit was exceeded"),
        (slowest > MAX_LATENCY, "the latency limit was exceeded"),
        (
            (closed as usize) < NON_READING,
            "a client that does not read was not closed",
        ),
    ] {
        if violated {
            println!("  violated: {what}");
            passed = false;
        }
    }
    Ok(passed)
}

/// Reads the remaining data. Returns `true` if the server has closed the connection.
async fn is_closed(mut socket: Socket) -> bool {
    let ends = async {
        loop {
            match socket.next(|_| ()) {
                Ok(Some(())) => {}
                Ok(None) => match socket.fill().await {
                    Ok(()) => {}
                    Err(_) => return true,
                },
                Err(SocketError::Closed(..)) => return true,
                Err(_) => return false,
            }
        }
    };
    timeout(Duration::from_secs(5), ends).await.unwrap_or(false)
}

/// Measures the latency of other clients with and without a hostile client.
async fn hostile(rounds: u32) -> Result<bool, String> {
    let mut passed = true;
    for behaviour in [Behaviour::Flood, Behaviour::Malformed, Behaviour::Pages] {
        let setup = Setup::start(&[]).await?;
        let mut listeners = setup.listeners(1).await?;
        let start = Instant::now();
        let rate = Behaviour::Rate(OTHERS_RATE);
        let (_others, results) = setup.senders("other", OTHERS, rate, start);
        sleep(MEASURE).await;
        let (mut without_hostile, mut with_hostile, mut ratios) =
            (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            let without = p99(&results).await;
            let (tasks, _) = setup.senders("hostile", 1, behaviour, start);
            let with = p99(&results).await;
            drop(tasks);
            sleep(Duration::from_secs(1)).await;
            ratios.push(with.as_secs_f64() / without.as_secs_f64());
            without_hostile.push(without.as_secs_f64() * 1e3);
            with_hostile.push(with.as_secs_f64() * 1e3);
        }
        listeners.check()?;
        let (without, with, ratio) = (
            spread(without_hostile),
            spread(with_hostile),
            spread(ratios),
        );
        println!(
            "{behaviour:?}: ack p99 of {OTHERS} other clients {without} ms without, {with} ms with it: {ratio}×"
        );
        if ratio.median > MAX_RATIO {
            println!("  violated: more than {MAX_RATIO}×");
            passed = false;
        }
    }
    Ok(passed)
}

/// Measures the 99th percentile of acknowledgement latency for [`MEASURE`].
async fn p99(results: &Mutex<Results>) -> Duration {
    let before = lock(results).acks.len();
    sleep(MEASURE).await;
    let mut waits: Vec<u32> = lock(results).acks[before..]
        .iter()
        .map(|ack| ack.1)
        .collect();
    quantile(&mut waits, 0.99)
}

/// Returns a quantile of microseconds by nearest rank.
fn quantile(micros: &mut [u32], share: f64) -> Duration {
    micros.sort_unstable();
    let index = (micros.len() as f64 * share).ceil() as usize;
    let value = micros.get(index.saturating_sub(1)).copied();
    Duration::from_micros(u64::from(value.unwrap_or(0)))
}

struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

fn spread(mut values: Vec<f64>) -> Spread {
    values.sort_unstable_by(f64::total_cmp);
    Spread {
        median: values[values.len() / 2],
        least: values[0],
        most: values[values.len() - 1],
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} ({:.2}–{:.2})", self.median, self.least, self.most)
    }
}
