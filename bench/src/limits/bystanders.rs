//! Bystanders: clients of a quiet room, one for each kind of connection. Each sends a few
//! messages per second, measures the latency of the acknowledgements, and checks that it
//! receives every event in order.

use super::polling::Polling;
use crate::check::{Line, Sequence};
use crate::client::{Client, PING, User};
use crate::dialect::Dialect;
use crate::target::Endpoint;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

/// The room of the bystanders.
const ROOM: &str = "quiet";

/// Interval between two messages of a bystander.
const INTERVAL: Duration = Duration::from_millis(100);

/// Time limit for a connect.
const CONNECT: Duration = Duration::from_secs(20);

/// Time within which a bystander must have received every event after the scenario.
const CATCH_UP: Duration = Duration::from_secs(30);

/// How a client is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A socket of the room.
    Direct,
    /// A native socket at a gateway.
    Gateway,
    /// Socket.IO over WebSocket.
    SocketIo,
    /// Socket.IO over long-polling.
    Polling,
}

/// All kinds.
pub(super) const KINDS: [Kind; 4] = [Kind::Direct, Kind::Gateway, Kind::SocketIo, Kind::Polling];

impl Kind {
    /// Returns the protocol of a client with a WebSocket. Returns `None` for long-polling.
    pub(super) fn dialect(self) -> Option<Dialect> {
        match self {
            Kind::Direct => Some(Dialect::Room),
            Kind::Gateway => Some(Dialect::Gateway),
            Kind::SocketIo => Some(Dialect::SocketIo),
            Kind::Polling => None,
        }
    }
}

/// The observations of one bystander.
#[derive(Default)]
struct Record {
    /// The send times of acknowledged messages, with the latencies in microseconds.
    acks: Vec<(Instant, u32)>,
    /// The send times of messages without an acknowledgement.
    sent: HashMap<u64, Instant>,
    /// The last received event; `None` before the first connect.
    last: Option<u64>,
    /// Why connections ended or were refused.
    disconnects: Vec<String>,
    /// Events that were missing, repeated or out of order.
    violations: Vec<String>,
}

type Shared = Arc<Mutex<Record>>;

fn lock(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The bystanders. They stop when this is dropped.
pub(super) struct Bystanders {
    records: Vec<(Kind, Shared)>,
    /// The end of the quiet phase.
    quiet_until: Instant,
    _tasks: JoinSet<()>,
}

/// The observations of all bystanders.
pub(super) struct Summary {
    /// Disconnects and refused connects, with their reasons.
    pub disconnects: Vec<String>,
    /// Missing, repeated and reordered events.
    pub violations: Vec<String>,
    /// Latencies before and during the scenario.
    pub quiet: Latency,
    pub during: Latency,
}

/// The quantiles of the latency of acknowledgements, in milliseconds.
pub(super) struct Latency {
    pub p50: f64,
    pub p99: f64,
}

impl Latency {
    fn of(mut micros: Vec<u32>) -> Self {
        micros.sort_unstable();
        // Nearest rank.
        let quantile = |share: f64| {
            let index = (micros.len() as f64 * share).ceil() as usize;
            f64::from(micros.get(index.max(1) - 1).copied().unwrap_or(0)) / 1e3
        };
        Latency {
            p50: quantile(0.5),
            p99: quantile(0.99),
        }
    }
}

impl Bystanders {
    /// Connects one bystander of each kind. Waits until all of them are connected.
    pub(super) async fn start(endpoint: &Arc<Endpoint>, kinds: &[Kind]) -> Result<Self, String> {
        let mut tasks = JoinSet::new();
        let mut records = Vec::new();
        for kind in kinds {
            let name = format!("bystander-{kind:?}").to_lowercase();
            let token = endpoint.token(&name);
            let bystander = Bystander {
                endpoint: endpoint.clone(),
                http: reqwest::Client::new(),
                user: User { name, token },
                record: Shared::default(),
                next_id: 1,
            };
            records.push((*kind, bystander.record.clone()));
            tasks.spawn(bystander.run(*kind));
        }
        let connected = async {
            while records.iter().any(|(_, one)| lock(one).acks.is_empty()) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(CONNECT, connected).await.is_err() {
            let reasons = records
                .iter()
                .flat_map(|(_, one)| lock(one).disconnects.clone());
            let reasons: Vec<String> = reasons.collect();
            return Err(format!("the bystanders cannot connect: {reasons:?}"));
        }
        Ok(Bystanders {
            records,
            quiet_until: Instant::now(),
            _tasks: tasks,
        })
    }

    /// Measures for a while, without other load.
    pub(super) async fn measure_quiet(&mut self, time: Duration) {
        // The first acknowledgements include the start of the objects.
        for (_, record) in &self.records {
            lock(record).acks.clear();
        }
        sleep(time).await;
        self.quiet_until = Instant::now();
    }

    /// Returns the observations. `until` is the end of the scenario. Waits until all bystanders
    /// have received all events.
    pub(super) async fn finish(
        self,
        endpoint: &Endpoint,
        until: Instant,
    ) -> Result<Summary, String> {
        let head = endpoint.head(ROOM).await?;
        let deadline = Instant::now() + CATCH_UP;
        let is_behind = |(_, record): &(Kind, Shared)| lock(record).last.unwrap_or(0) < head;
        while self.records.iter().any(is_behind) && Instant::now() < deadline {
            sleep(Duration::from_millis(50)).await;
        }
        let (mut quiet, mut during) = (Vec::new(), Vec::new());
        let (mut disconnects, mut violations) = (Vec::new(), Vec::new());
        for (kind, record) in &self.records {
            let record = lock(record);
            let named = |reason: &String| format!("{kind:?}: {reason}");
            disconnects.extend(record.disconnects.iter().map(named));
            violations.extend(record.violations.iter().map(named));
            let last = record.last.unwrap_or(0);
            if last < head {
                violations.push(format!("{kind:?}: {} events are missing", head - last));
            }
            for (at, latency) in &record.acks {
                match (*at < self.quiet_until, *at < until) {
                    (true, _) => quiet.push(*latency),
                    (_, true) => during.push(*latency),
                    _ => {}
                }
            }
            // A message that was never acknowledged counts with its age.
            let waiting = record.sent.values().filter(|at| **at < until);
            during.extend(waiting.map(|at| at.elapsed().as_micros() as u32));
        }
        Ok(Summary {
            disconnects,
            violations,
            quiet: Latency::of(quiet),
            during: Latency::of(during),
        })
    }
}

struct Bystander {
    endpoint: Arc<Endpoint>,
    http: reqwest::Client,
    user: User,
    record: Shared,
    next_id: u64,
}

impl Bystander {
    /// Runs until the task is aborted. Connects again after each disconnect.
    async fn run(mut self, kind: Kind) {
        loop {
            let ended = match kind.dialect() {
                Some(dialect) => self.use_socket(dialect).await,
                None => self.use_polling().await,
            };
            if let Err(reason) = ended {
                let mut record = lock(&self.record);
                let is_violation = reason.contains("a hole") || reason.contains("out of order");
                match is_violation {
                    true => record.violations.push(reason),
                    false => record.disconnects.push(reason),
                }
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    async fn use_socket(&mut self, dialect: Dialect) -> Result<(), String> {
        let since = lock(&self.record).last;
        let opening = Client::open(&self.endpoint, dialect, ROOM, &self.user, since, |_, _| {});
        let opened = timeout(CONNECT, opening).await;
        let mut client = opened.map_err(|_| "a connect took too long".to_owned())??;
        lock(&self.record).last = Some(client.sequence.last());
        let (mut sends, mut pings) = (ticks(INTERVAL), ticks(PING));
        loop {
            let record = self.record.clone();
            let read = tokio::select! {
                read = client.read(|line| record_ack(&record, line)) => read,
                _ = sends.tick() => {
                    let id = self.next_id();
                    client.queue_message(id);
                    client.socket.flush().await.map_err(Into::into)
                }
                _ = pings.tick() => client.ping().await,
            };
            lock(&self.record).last = Some(client.sequence.last());
            read?;
        }
    }

    async fn use_polling(&mut self) -> Result<(), String> {
        let since = lock(&self.record).last;
        let polling = Polling::open(&self.http, &self.endpoint, &self.user.token).await?;
        polling.post("40".to_owned()).await?;
        let position = match since {
            Some(since) => format!(r#"{{"roomId":"{ROOM}","since":{since}}}"#),
            None => format!(r#""{ROOM}""#),
        };
        let mut sequence = Sequence::after(since);
        let mut sends = ticks(INTERVAL);
        let (mut connected, mut joined) = (false, false);
        let mut poll = Box::pin(polling.poll());
        loop {
            tokio::select! {
                packets = &mut poll => {
                    for packet in packets? {
                        match sequence.packet(packet.as_bytes())? {
                            Line::Ping => polling.post("3".to_owned()).await?,
                            Line::Connected { .. } => connected = true,
                            Line::Ack { id: 0, seq } => {
                                joined = true;
                                if since.is_none() {
                                    sequence = Sequence::after(Some(seq.max(sequence.last())));
                                }
                            }
                            line => record_ack(&self.record, &line),
                        }
                    }
                    if joined {
                        lock(&self.record).last = Some(sequence.last());
                    }
                    poll.set(polling.poll());
                }
                _ = sends.tick() => {
                    if joined {
                        let id = self.next_id();
                        let data = format!(r#"{{"roomId":"{ROOM}","content":"hello"}}"#);
                        let message = Dialect::SocketIo.command("sendMessage", &data, Some(id));
                        polling.post(message).await?;
                    } else if std::mem::take(&mut connected) {
                        polling.post(Dialect::SocketIo.command("joinRoom", &position, Some(0))).await?;
                    }
                }
            }
        }
    }

    /// Returns the id of the next message, and records its send time.
    fn next_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        lock(&self.record).sent.insert(id, Instant::now());
        id
    }
}

fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn record_ack(record: &Mutex<Record>, line: &Line) {
    if let Line::Ack { id, .. } = line {
        let mut record = lock(record);
        if let Some(at) = record.sent.remove(id) {
            record.acks.push((at, at.elapsed().as_micros() as u32));
        }
    }
}
