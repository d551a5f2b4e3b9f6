//! More than a room can take: what becomes of latency, memory, receivers that do
//! not read and everybody else. See docs/reliability.md.

mod talker;

use crate::audience::Audience;
use crate::client::{Client, User};
use crate::dialect::Dialect;
use crate::machine;
use crate::socket::{Socket, SocketError};
use crate::target::Site;
use clap::Args;
use roomcast_harness::{Server, Token};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use talker::{Heard, Manner, lock, talk};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Options of `overload`.
#[derive(Args)]
pub struct Options {
    /// How long more is offered than can be taken.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(5..))]
    seconds: u64,
    /// How often it is measured what a hostile connection does to the others.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

const ROOM: &str = "overload";

/// Who talks, who listens, who is connected and reads nothing.
const TALKERS: usize = 50;
const LISTENERS: usize = 20;
const DEAF: usize = 5;

/// `MAX_UNACKED_BYTES` of the run: less than is said in it, so that who does not
/// read is cut before its end.
const UNACKED: &str = "1000000";

/// What workerd may have at the most: a platform's isolate has 128 MB, and the
/// runtime with its buffers as much again, twice.
const MEMORY: u64 = 512 << 20;

/// What a refusing server may take for an ack, at the 99th percentile.
const LATENCY: Duration = Duration::from_secs(1);

/// The others, beside somebody hostile: how many, and how often each says
/// something.
const OTHERS: usize = 20;
const OTHERS_RATE: f64 = 5.0;
const QUIET: Duration = Duration::from_secs(8);

/// How much worse a hostile connection may make it for them.
const WORSE: f64 = 2.0;

/// Runs all parts. `Ok(false)` when a promise was broken.
pub async fn run(options: Options) -> Result<bool, String> {
    let sustained = sustained().await?;
    println!("sustained: {sustained:.0} messages/s, {TALKERS} talk and {LISTENERS} listen");
    let bounded = overload(sustained * 3.0, Duration::from_secs(options.seconds)).await?;
    let hostile = hostile(options.rounds).await?;
    Ok(bounded && hostile)
}

/// A server with these settings and somebody who can look at it.
struct Place {
    site: Arc<Site>,
    server: Server,
}

impl Place {
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
        let site = Arc::new(Site::running(&server.url(""), server.secret()).await?);
        Ok(Place { site, server })
    }

    fn user(&self, name: String) -> User {
        let token = Token::user(&name).claim("rooms", vec!["*"]).ttl(3_600);
        let token = token.sign(self.server.secret());
        User { name, token }
    }

    /// Lets so many talk, each in this manner.
    fn talkers(
        &self,
        name: &str,
        count: usize,
        manner: Manner,
        start: Instant,
    ) -> (JoinSet<()>, Arc<Mutex<Heard>>) {
        let heard = Arc::<Mutex<Heard>>::default();
        let mut tasks = JoinSet::new();
        for number in 0..count {
            let user = self.user(format!("{name}-{number}"));
            let (site, heard) = (self.site.clone(), heard.clone());
            tasks.spawn(talk(site, user, ROOM, manner, start, heard));
        }
        (tasks, heard)
    }

    async fn listeners(&self, count: usize) -> Result<Audience, String> {
        let mut audience = Audience::default();
        for number in 0..count {
            let user = self.user(format!("listener-{number}"));
            let client = Client::open(&self.site, Dialect::Room, ROOM, &user, None, |_, _| {});
            audience.add(client.await?);
        }
        Ok(audience)
    }

    /// The number of each message in the log; fails on one that is there twice.
    async fn log(&self) -> Result<HashMap<String, u64>, String> {
        let mut log = HashMap::new();
        let mut after = 0;
        loop {
            let path = format!("/rooms/{ROOM}/messages?after={after}&limit=1000");
            let page = self.site.get(&path).await?;
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

/// Messages a second that a room takes when nobody is refused anything.
async fn sustained() -> Result<f64, String> {
    let many = [
        ("MESSAGES_PER_SECOND", "1000000"),
        ("MESSAGES_BURST", "1000000"),
        ("COMMANDS_PER_SECOND", "1000000"),
        ("COMMANDS_BURST", "1000000"),
    ];
    let place = Place::start(&many).await?;
    let mut audience = place.listeners(LISTENERS).await?;
    let (_talkers, heard) = place.talkers("talker", TALKERS, Manner::InFlight(4), Instant::now());
    sleep(Duration::from_secs(2)).await;
    let before = lock(&heard).acks.len();
    let measured = Duration::from_secs(5);
    sleep(measured).await;
    audience.check()?;
    let acked = lock(&heard).acks.len() - before;
    Ok(acked as f64 / measured.as_secs_f64())
}

/// Three times as much for a while, at default limits.
async fn overload(rate: f64, time: Duration) -> Result<bool, String> {
    let place = Place::start(&[
        ("MAX_UNACKED_BYTES", UNACKED),
        ("RETENTION_EVENTS", "10000000"),
    ])
    .await?;
    let mut audience = place.listeners(LISTENERS).await?;
    let mut deaf = Vec::new();
    for number in 0..DEAF {
        let user = place.user(format!("deaf-{number}"));
        let path = Dialect::Room.path(ROOM, None, &user.token);
        let (address, host) = (place.site.address, &place.site.host);
        let socket = Socket::open(address, host, &path, &user.token).await;
        deaf.push(socket.map_err(|error| error.to_string())?);
    }
    let pid = place.server.pid();
    let (memory_before, start) = (machine::memory(pid), Instant::now());
    let each = Manner::Rate(rate / TALKERS as f64);
    let (mut talkers, heard) = place.talkers("talker", TALKERS, each, start);
    let mut peak = memory_before;
    while start.elapsed() < time {
        sleep(Duration::from_millis(100)).await;
        peak = peak.max(machine::memory(pid));
        audience.check()?;
    }
    talkers.shutdown().await;
    let log = place.log().await?;
    audience.reach(log.len() as u64).await?;
    let mut cut = 0;
    for socket in deaf {
        cut += u32::from(is_cut(socket).await);
    }

    let heard = lock(&heard);
    let seconds = time.as_secs_f64();
    println!(
        "offered {rate:.0} messages/s for {seconds:.0} s: {:.0} acknowledged and {:.0} refused a second, \
         {} failed; closed, by code: {:?}; turned away at the door: {:.0} a second",
        heard.acks.len() as f64 / seconds,
        heard.refused as f64 / seconds,
        heard.failed,
        heard.closed,
        heard.turned_away as f64 / seconds,
    );
    let mut slowest = Duration::ZERO;
    for window in 0..time.as_secs().div_ceil(10) as u32 {
        let of_window = |(at, _): &&(u32, u32)| at / 10_000 == window;
        let mut waits: Vec<u32> = heard
            .acks
            .iter()
            .filter(of_window)
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
        "  memory: {} MiB before, {} MiB at the most; {cut} of {DEAF} that read nothing were cut",
        mib(memory_before),
        mib(peak)
    );
    let lost = heard
        .acknowledged
        .iter()
        .filter(|(id, seq)| log.get(*id) != Some(seq));
    let lost = lost.count();
    println!(
        "  {} acknowledged, lost {lost}; {LISTENERS} listeners saw all {} events once, in order",
        heard.acknowledged.len(),
        log.len()
    );
    let mut kept = true;
    for (broken, what) in [
        (lost > 0, "acknowledged messages are not in the log"),
        (heard.failed > 0, "there were failures"),
        (heard.refused == 0, "nothing was refused"),
        (peak > MEMORY, "too much memory"),
        (slowest > LATENCY, "acknowledged too late"),
        ((cut as usize) < DEAF, "who did not read was not cut"),
    ] {
        if broken {
            println!("  broken: {what}");
            kept = false;
        }
    }
    Ok(kept)
}

/// Reads what is left; whether the server has ended it.
async fn is_cut(mut socket: Socket) -> bool {
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

/// What somebody hostile does to the others in the room.
async fn hostile(rounds: u32) -> Result<bool, String> {
    let mut kept = true;
    for manner in [Manner::Flood, Manner::Junk, Manner::Pages] {
        let place = Place::start(&[]).await?;
        let mut audience = place.listeners(1).await?;
        let start = Instant::now();
        let rate = Manner::Rate(OTHERS_RATE);
        let (_others, heard) = place.talkers("other", OTHERS, rate, start);
        sleep(QUIET).await;
        let (mut alone, mut beside, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            let without = waits(&heard).await;
            let (tasks, _) = place.talkers("hostile", 1, manner, start);
            let with = waits(&heard).await;
            drop(tasks);
            sleep(Duration::from_secs(1)).await;
            ratios.push(with.as_secs_f64() / without.as_secs_f64());
            alone.push(without.as_secs_f64() * 1e3);
            beside.push(with.as_secs_f64() * 1e3);
        }
        audience.check()?;
        let (alone, beside, ratio) = (spread(alone), spread(beside), spread(ratios));
        println!(
            "{manner:?}: ack p99 of {OTHERS} others {alone} ms alone, {beside} ms beside it: {ratio}×"
        );
        if ratio.median > WORSE {
            println!("  broken: more than {WORSE}×");
            kept = false;
        }
    }
    Ok(kept)
}

/// The 99th percentile over a while.
async fn waits(heard: &Mutex<Heard>) -> Duration {
    let before = lock(heard).acks.len();
    sleep(QUIET).await;
    let mut waits: Vec<u32> = lock(heard).acks[before..].iter().map(|ack| ack.1).collect();
    quantile(&mut waits, 0.99)
}

/// By nearest rank, of microseconds.
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
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{:.2} ({:.2}–{:.2})", self.median, self.least, self.most)
    }
}
