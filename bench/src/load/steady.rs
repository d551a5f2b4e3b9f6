//! Messages at a fixed rate to many clients (an open loop). Each message is due at a
//! fixed time and its latency counts from then, even if the server does not keep up.

use super::ROOM;
use crate::check::Line;
use crate::client::{self, CONNECTING, Client, Failure, PING, TIMEOUT};
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

/// Time for the presence updates after all connects.
const SETTLE: Duration = Duration::from_secs(1);

/// Time after the last message in which an additional event would arrive.
const EXTRA: Duration = Duration::from_millis(200);

/// Times of the messages.
#[derive(Clone, Copy)]
struct Schedule {
    begin: Instant,
    rate: u32,
    /// The head of the log before the first message.
    head: u64,
    /// Number of messages, and how many of them belong to the warm-up.
    total: u64,
    warm_up: u64,
}

impl Schedule {
    /// Returns when a message is due. The first message has number 1.
    fn due(&self, number: u64) -> Instant {
        self.begin + Duration::from_secs_f64((number - 1) as f64 / f64::from(self.rate))
    }

    /// Returns the begin and the end of the measurement.
    fn window(&self) -> (Instant, Instant) {
        (self.due(self.warm_up + 1), self.due(self.total + 1))
    }
}

/// Measurements of one receiving client.
#[derive(Default)]
struct Received {
    /// The last received `seq`.
    last: AtomicU64,
    /// Messages that arrived during the measurement.
    deliveries: AtomicU64,
    /// Latency of each measured message in microseconds.
    latencies: Mutex<Vec<u32>>,
    /// The connection of the client has ended.
    disconnected: AtomicBool,
}

/// Result of one measurement.
pub(crate) struct Steady {
    pub seconds: f64,
    /// Messages that arrived at receiving clients in that time.
    pub deliveries: u64,
    /// Microseconds from the due time of a message to its arrival, for each client.
    pub latencies: Vec<u32>,
    /// From the due time after the last message until every connected client had all
    /// messages.
    pub drain: Duration,
    /// Deliveries that were missing at that time.
    pub missing: u64,
    /// Processor use in cores.
    pub server_cpu: f64,
    pub generator_cpu: f64,
}

/// Sends `rate` messages per second to a room with `sockets` receiving clients.
pub(crate) async fn steady(
    target: &Target,
    sockets: usize,
    rate: u32,
    warm_up: Duration,
    measure: Duration,
) -> Result<Steady, String> {
    let mut users = client::users(target, sockets + 1);
    let sender = users.pop().ok_or("no users")?;
    let (report, mut failures) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    let mut all = Vec::with_capacity(sockets);
    let schedule_cell = Arc::new(OnceLock::new());
    let mut connecting = stream::iter(&users)
        .map(|user| Client::connect(target, ROOM, user, None))
        .buffer_unordered(CONNECTING);
    while let Some(client) = connecting.next().await {
        let client = client?;
        let received = Arc::new(Received::default());
        received.last.store(client.sequence.last(), Relaxed);
        all.push(received.clone());
        let (report, schedule_cell) = (report.clone(), schedule_cell.clone());
        // Reads from now on, because the server closes clients that do not answer pings.
        tasks.spawn(async move {
            let failure = receive(client, &schedule_cell, &received).await;
            received.disconnected.store(true, Relaxed);
            // Fails if the run is over and the receiver was dropped.
            let _ = report.send(failure);
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
    let schedule = *schedule_cell.get_or_init(|| schedule);
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
    let mut printed = BTreeSet::new();
    let behind = |one: &Received| last.saturating_sub(one.last.load(Relaxed));
    // Disconnected clients receive no further messages.
    let waits = |one: &Arc<Received>| behind(one) > 0 && !one.disconnected.load(Relaxed);
    let answered = || acknowledged.load(Relaxed) == schedule.total;
    while (all.iter().any(waits) || !answered()) && to.elapsed() < TIMEOUT {
        check(&mut failures, &mut printed)?;
        sleep(Duration::from_millis(5)).await;
    }
    let drain = to.elapsed();
    let missing = all.iter().map(|one| behind(one)).sum();
    sleep(EXTRA).await;
    check(&mut failures, &mut printed)?;
    let disconnected = all
        .iter()
        .filter(|one| one.disconnected.load(Relaxed))
        .count();
    if disconnected > 0 {
        eprintln!("{disconnected} clients were disconnected");
    }
    if missing == 0 && !answered() {
        return Err("all messages arrived, but not all were acknowledged".to_owned());
    }
    if let Some(one) = all.iter().find(|one| one.last.load(Relaxed) > last) {
        let seq = one.last.load(Relaxed);
        return Err(format!("event {seq} arrived, but the last event is {last}"));
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

/// Returns an error if the server violated a promise. Disconnects are only printed:
/// the server did not keep up, and the missing deliveries are counted.
fn check(
    failures: &mut mpsc::UnboundedReceiver<Failure>,
    printed: &mut BTreeSet<String>,
) -> Result<(), String> {
    while let Ok(failure) = failures.try_recv() {
        match failure {
            Failure::Violation(what) => return Err(what),
            Failure::Disconnected(reason) => {
                // Each reason is printed once, not once per client.
                if printed.insert(reason.clone()) {
                    eprintln!("a client was disconnected: {reason}");
                }
            }
        }
    }
    Ok(())
}

/// Reads, checks and measures until the connection ends or the task is aborted.
async fn receive(
    mut client: Client,
    schedule: &OnceLock<Schedule>,
    received: &Received,
) -> Failure {
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
            let Some(schedule) = schedule.get().filter(|schedule| schedule.head < seq) else {
                return Failure::Violation(format!("message {seq} arrived before the first send"));
            };
            let (from, to) = schedule.window();
            received.last.store(seq, Relaxed);
            if from <= at && at < to {
                received.deliveries.fetch_add(1, Relaxed);
            }
            let number = seq - schedule.head;
            if number > schedule.warm_up {
                let latency = at.saturating_duration_since(schedule.due(number));
                latencies.push(latency.as_micros() as u32);
            }
        }
        if let Err(failure) = read {
            return failure;
        }
    }
}

/// Sends each message when it is due. Asserts that the acknowledgements have
/// consecutive `seq`s, because the due time is derived from the `seq`.
async fn send(mut client: Client, schedule: Schedule, answered: &AtomicU64) -> Failure {
    let mut ping = interval_at(tokio::time::Instant::now() + PING, PING);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut sent, mut acknowledged) = (0, 0);
    loop {
        let mut violation = None;
        let reading = client.read(|line| {
            if let Line::Ack { id, seq } = line {
                acknowledged += 1;
                if (*id, *seq) != (acknowledged, schedule.head + acknowledged) {
                    violation = Some(format!(
                        "ack {id} with seq {seq}, expected ack {acknowledged}"
                    ));
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
                client.socket.flush().await.map_err(Failure::from)
            }
        };
        if let Some(violation) = violation {
            return Failure::Violation(violation);
        }
        answered.store(acknowledged, Relaxed);
        if let Err(failure) = done {
            return failure;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_begins_after_the_warm_up() {
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
