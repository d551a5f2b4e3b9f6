//! Messages at a fixed rate to many sockets, whether the server keeps up or not
//! (an open loop): each is due at its time, and its latency counts from then.

use super::ROOM;
use crate::check::Line;
use crate::client::{self, Broken, CONNECTING, Client, PATIENCE, PING};
use crate::machine;
use crate::target::Target;
use futures_util::stream::{self, StreamExt};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};
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
    /// Its connection has ended.
    gone: AtomicBool,
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
    let mut users = client::users(target, sockets + 1);
    let sender = users.pop().ok_or("nobody to send")?;
    let (report, mut broken) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    let mut all = Vec::with_capacity(sockets);
    let agreed = Arc::new(OnceLock::new());
    let mut connecting = stream::iter(&users)
        .map(|user| Client::connect(target, ROOM, user, None))
        .buffer_unordered(CONNECTING);
    while let Some(client) = connecting.next().await {
        let client = client?;
        let received = Arc::new(Received::default());
        received.seen.store(client.sequence.last(), Relaxed);
        all.push(received.clone());
        let (report, agreed) = (report.clone(), agreed.clone());
        // At once: a client that does not answer pings is let go.
        tasks.spawn(async move {
            let broken = receive(client, &agreed, &received).await;
            received.gone.store(true, Relaxed);
            // Nobody listens any more when the run is over already.
            let _ = report.send(broken);
        });
    }
    let sender = Client::connect(target, ROOM, &sender, None).await?;
    let count = |time: Duration| time.as_secs() * u64::from(rate);
    let schedule = Schedule {
        begin: Instant::now() + SETTLE,
        rate,
        head: sender.sequence.last(),
        total: count(warm_up + measure),
        warm_up: count(warm_up),
    };
    let schedule = *agreed.get_or_init(|| schedule);
    let acknowledged = Arc::new(AtomicU64::new(0));
    tasks.spawn({
        let acknowledged = acknowledged.clone();
        async move {
            let _ = report.send(send(sender, schedule, &acknowledged).await);
        }
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
    let mut said = BTreeSet::new();
    let behind = |one: &Received| last.saturating_sub(one.seen.load(Relaxed));
    // Who is gone gets nothing any more.
    let waits = |one: &Arc<Received>| behind(one) > 0 && !one.gone.load(Relaxed);
    let answered = || acknowledged.load(Relaxed) == schedule.total;
    while (all.iter().any(waits) || !answered()) && to.elapsed() < PATIENCE {
        check(&mut broken, &mut said)?;
        sleep(Duration::from_millis(5)).await;
    }
    let drain = to.elapsed();
    let missing = all.iter().map(|one| behind(one)).sum();
    sleep(AFTER).await;
    check(&mut broken, &mut said)?;
    let gone = all.iter().filter(|one| one.gone.load(Relaxed)).count();
    if gone > 0 {
        eprintln!("{gone} sockets did not stay");
    }
    if missing == 0 && !answered() {
        return Err("all has arrived, but not all was acknowledged".to_owned());
    }
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

/// Fails when a server broke a promise. One that lets sockets go did not keep
/// up; what they then lack is counted.
fn check(
    broken: &mut mpsc::UnboundedReceiver<Broken>,
    said: &mut BTreeSet<String>,
) -> Result<(), String> {
    while let Ok(broken) = broken.try_recv() {
        match broken {
            Broken::Promise(what) => return Err(what),
            Broken::Gone(why) => {
                // Each reason once, not for a thousand sockets.
                if said.insert(why.clone()) {
                    eprintln!("a socket did not stay: {why}");
                }
            }
        }
    }
    Ok(())
}

/// Reads, checks and takes the time until it is dropped or something breaks.
async fn receive(mut client: Client, agreed: &OnceLock<Schedule>, received: &Received) -> Broken {
    let mut ping = interval_at(tokio::time::Instant::now() + PING, PING);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
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
            let Some(schedule) = agreed.get().filter(|schedule| schedule.head < seq) else {
                return Broken::Promise(format!("message {seq} before one was sent"));
            };
            let (from, to) = schedule.window();
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

/// Sends what is due, and holds the answers to their order: so it is known which
/// `seq` was due when.
async fn send(mut client: Client, schedule: Schedule, answered: &AtomicU64) -> Broken {
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
        answered.store(acknowledged, Relaxed);
        if let Err(broken) = done {
            return broken;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_begins_with_the_first_message_that_counts() {
        let begin = Instant::now();
        let schedule = Schedule {
            begin,
            rate: 200,
            head: 0,
            total: 600,
            warm_up: 200,
        };
        assert_eq!(schedule.due(1), begin);
        assert_eq!(schedule.due(2), begin + Duration::from_millis(5));
        let window = (
            begin + Duration::from_secs(1),
            begin + Duration::from_secs(3),
        );
        assert_eq!(schedule.window(), window);
    }
}
