//! Messages at a fixed rate to many sockets, whether the server keeps up or not
//! (an open loop): each is due at its time, and its latency counts from then.

use crate::check::Line;
use crate::load::{self, Broken, Client, PATIENCE, PING};
use crate::machine;
use crate::target::Target;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval_at, sleep, sleep_until};

/// After all are connected: what is told about who came has been told then.
const SETTLE: Duration = Duration::from_secs(1);

/// After the last message was seen everywhere: what comes now is too much.
const AFTER: Duration = Duration::from_millis(200);

/// When each message is due, and which of them count.
#[derive(Clone, Copy)]
struct Schedule {
    begin: Instant,
    rate: u32,
    /// The head of the log before the first.
    head: u64,
    /// How many there are, and how many of them warm up.
    total: u64,
    warm_up: u64,
}

impl Schedule {
    /// When the message with this number is due; the first is 1.
    fn due(&self, number: u64) -> Instant {
        self.begin + Duration::from_secs_f64((number - 1) as f64 / f64::from(self.rate))
    }

    /// When counting begins and ends.
    fn window(&self) -> (Instant, Instant) {
        (self.due(self.warm_up + 1), self.due(self.total + 1))
    }
}

/// What one receiving socket has.
#[derive(Default)]
struct Received {
    /// The last `seq`.
    seen: AtomicU64,
    /// Messages that arrived in the window.
    deliveries: AtomicU64,
    /// Microseconds, of each message that counts.
    latencies: Mutex<Vec<u32>>,
}

/// What one measurement gave.
pub struct Steady {
    pub seconds: f64,
    /// Messages that arrived at receiving sockets in that time.
    pub deliveries: u64,
    /// Microseconds from when a message was due to each socket that has it.
    pub latencies: Vec<u32>,
    /// From the last message being due until all had everything, or until
    /// nobody waited any longer.
    pub drain: Duration,
    /// Deliveries that had not happened by then.
    pub missing: u64,
    /// Shares of one core.
    pub server_cpu: f64,
    pub generator_cpu: f64,
}

/// `rate` messages a second to a room of `sockets` besides the sender's.
pub async fn steady(
    target: &Target,
    sockets: usize,
    rate: u32,
    warm_up: Duration,
    measure: Duration,
) -> Result<Steady, String> {
    let users = load::users(target, sockets + 1);
    let mut clients = load::connect_all(target, &users).await?.into_iter();
    let sender = clients.next().ok_or("nobody to send")?;
    let count = |time: Duration| time.as_secs() * u64::from(rate);
    let schedule = Schedule {
        begin: Instant::now() + SETTLE,
        rate,
        head: sender.sequence.last(),
        total: count(warm_up + measure),
        warm_up: count(warm_up),
    };
    let (report, mut broken) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    let mut all = Vec::with_capacity(sockets);
    for client in clients {
        if client.sequence.last() != schedule.head {
            return Err("the room is not as quiet as it must be".to_owned());
        }
        let received = Arc::new(Received::default());
        received.seen.store(client.sequence.last(), Relaxed);
        all.push(received.clone());
        let report = report.clone();
        tasks.spawn(async move {
            // Nobody listens any more when the run is over already.
            let _ = report.send(receive(client, schedule, &received).await);
        });
    }
    tasks.spawn(async move {
        let _ = report.send(send(sender, schedule).await);
    });

    let (from, to) = schedule.window();
    sleep_until(from.into()).await;
    let (server, generator) = (target.cpu_seconds(), machine::own_cpu_seconds());
    let start = Instant::now();
    sleep_until(to.into()).await;
    let cpu_time = start.elapsed().as_secs_f64();
    let server_cpu = (target.cpu_seconds() - server) / cpu_time;
    let generator_cpu = (machine::own_cpu_seconds() - generator) / cpu_time;

    let last = schedule.head + schedule.total;
    let missing = || -> u64 {
        let missing = |one: &Arc<Received>| last.saturating_sub(one.seen.load(Relaxed));
        all.iter().map(missing).sum()
    };
    let mut gone = 0;
    let mut check = || {
        while let Ok(end) = broken.try_recv() {
            match end {
                Broken::Promise(what) => return Err(what),
                Broken::Gone(why) => {
                    gone += 1;
                    if gone == 1 {
                        eprintln!("a socket did not stay: {why}");
                    }
                }
            }
        }
        Ok(gone)
    };
    // Who is gone gets nothing any more: no use waiting when all are.
    while missing() > 0 && to.elapsed() < PATIENCE && check()? < sockets {
        sleep(Duration::from_millis(5)).await;
    }
    let (drain, missing) = (to.elapsed(), missing());
    sleep(AFTER).await;
    check()?;
    if let Some(one) = all.iter().find(|one| one.seen.load(Relaxed) > last) {
        let seen = one.seen.load(Relaxed);
        return Err(format!("an event {seen} after the last, {last}"));
    }
    let mut latencies = Vec::with_capacity(sockets * count(measure) as usize);
    for one in &all {
        let own = one.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        latencies.extend_from_slice(&own);
    }
    Ok(Steady {
        seconds: (to - from).as_secs_f64(),
        deliveries: all.iter().map(|one| one.deliveries.load(Relaxed)).sum(),
        latencies,
        drain,
        missing,
        server_cpu,
        generator_cpu,
    })
}

/// Reads, checks and takes the time until it is dropped or something breaks.
async fn receive(mut client: Client, schedule: Schedule, received: &Received) -> Broken {
    let mut ping = interval_at(tokio::time::Instant::now() + PING, PING);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (from, to) = schedule.window();
    let mut arrived: Vec<(u64, Instant)> = Vec::new();
    loop {
        let reading = client.read(|line| {
            if let Line::Message { seq } = line {
                arrived.push((*seq, Instant::now()));
            }
        });
        let read = tokio::select! {
            read = reading => read,
            _ = ping.tick() => client.ping().await,
        };
        let mut latencies = received
            .latencies
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for (seq, at) in arrived.drain(..) {
            received.seen.store(seq, Relaxed);
            if from <= at && at < to {
                received.deliveries.fetch_add(1, Relaxed);
            }
            let number = seq - schedule.head;
            if number > schedule.warm_up {
                let latency = at.saturating_duration_since(schedule.due(number));
                latencies.push(latency.as_micros() as u32);
            }
        }
        if let Err(broken) = read {
            return broken;
        }
    }
}

/// Sends what is due, and holds the answers to their order.
async fn send(mut client: Client, schedule: Schedule) -> Broken {
    let mut ping = interval_at(tokio::time::Instant::now() + PING, PING);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut sent, mut acknowledged) = (0, 0);
    loop {
        let mut wrong = None;
        let reading = client.read(|line| {
            if let Line::Ack { id, seq } = line {
                acknowledged += 1;
                if (*id, *seq) != (acknowledged, schedule.head + acknowledged) {
                    wrong = Some(format!("ack {id} with seq {seq}, {acknowledged} was next"));
                }
            }
        });
        let done = tokio::select! {
            read = reading => read,
            _ = ping.tick() => client.ping().await,
            () = sleep_until(schedule.due(sent + 1).into()), if sent < schedule.total => {
                while sent < schedule.total && schedule.due(sent + 1) <= Instant::now() {
                    sent += 1;
                    client.queue_message(sent);
                }
                client.socket.flush().await.map_err(Broken::from)
            }
        };
        if let Some(wrong) = wrong {
            return Broken::Promise(wrong);
        }
        if let Err(broken) = done {
            return broken;
        }
    }
}
