//! A client that sends at a given rate, or sends hostile frames.

use crate::client::User;
use crate::dialect::Dialect;
use crate::socket::{Socket, SocketError};
use crate::target::Endpoint;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::{MissedTickBehavior, interval, sleep};

/// Results of all clients together.
#[derive(Default)]
pub(super) struct Results {
    /// Acknowledgements: milliseconds since the start, and latency in microseconds.
    pub acks: Vec<(u32, u32)>,
    /// Message ids and the `seq`s in their acknowledgements.
    pub acknowledged: HashMap<String, u64>,
    /// Number of answers with the error `rateLimited`.
    pub refused: u64,
    /// Number of answers with another error.
    pub failed: u64,
    /// Number of closed connections by code.
    pub closed: HashMap<u16, u64>,
    /// Number of connects refused with 429.
    pub refused_connects: u64,
}

/// Behaviour of a client.
#[derive(Clone, Copy, Debug)]
pub(super) enum Behaviour {
    /// Keeps this many messages in flight.
    InFlight(usize),
    /// Sends this many messages per second, independent of the answers.
    Rate(f64),
    /// Sends [`BATCH`] messages every [`INTERVAL`].
    Flood,
    /// Sends [`BATCH`] malformed frames every [`INTERVAL`], some near the size limit.
    Malformed,
    /// Requests [`BATCH`] pages of the log every [`INTERVAL`] and does not read.
    Pages,
}

/// Interval of the sends.
const INTERVAL: Duration = Duration::from_millis(10);

/// Frames per [`INTERVAL`] of a hostile client: 20,000 frames per second. A higher rate
/// would measure the runtime: it reads from one socket as long as data is available,
/// which delays other clients even if the object ignores all frames.
const BATCH: usize = 200;

/// Runs a client until the task is aborted. Reconnects after each close.
pub(super) async fn run_sender(
    endpoint: Arc<Endpoint>,
    user: User,
    room: &'static str,
    behaviour: Behaviour,
    start: Instant,
    results: Arc<Mutex<Results>>,
) {
    let (mut number, mut since) = (0, None);
    loop {
        let position = (&mut number, &mut since);
        let ended = connection(&endpoint, &user, room, behaviour, start, &results, position).await;
        match ended {
            Err(SocketError::Refused(answer)) if answer.starts_with("HTTP/1.1 429") => {
                lock(&results).refused_connects += 1;
            }
            Err(SocketError::Closed(code, _)) => {
                *lock(&results).closed.entry(code).or_default() += 1;
            }
            // 1006: abnormal closure (RFC 6455, 7.4.1).
            _ => *lock(&results).closed.entry(1006).or_default() += 1,
        }
        // Ignores `Retry-After`.
        sleep(Duration::from_millis(200)).await;
    }
}

pub(super) fn lock(results: &Mutex<Results>) -> MutexGuard<'_, Results> {
    results.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Uses one connection until it ends.
async fn connection(
    endpoint: &Endpoint,
    user: &User,
    room: &str,
    behaviour: Behaviour,
    start: Instant,
    results: &Mutex<Results>,
    (number, since): (&mut u64, &mut Option<u64>),
) -> Result<(), SocketError> {
    let path = Dialect::Room.path(room, *since, &user.token);
    let mut socket = Socket::open(endpoint.address, &endpoint.host, &path, &user.token).await?;
    let mut sent: HashMap<u64, Instant> = HashMap::new();
    let mut queue = |socket: &mut Socket, sent: &mut HashMap<u64, Instant>| {
        *number += 1;
        let id = *number;
        let text = match (behaviour, id % 20) {
            (Behaviour::Malformed, 0) => format!(
                "{{\"event\":\"sendMessage\",\"data\":\"{}",
                "x".repeat(60_000)
            ),
            (Behaviour::Malformed, _) => "{\"event\":\"sendMessage\",\"data\":{".to_owned(),
            (Behaviour::Pages, _) => {
                format!(r#"{{"event":"sync","data":{{"after":0,"limit":1000}},"id":{id}}}"#)
            }
            _ => {
                sent.insert(id, Instant::now());
                let message = format!("{}-{id}", user.name);
                format!(
                    r#"{{"event":"sendMessage","data":{{"content":"{message}","messageId":"{message}"}},"id":{id}}}"#
                )
            }
        };
        socket.queue(text.as_bytes());
    };
    let reads = !matches!(behaviour, Behaviour::Pages);
    let mut sends = interval(INTERVAL);
    sends.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let began = Instant::now();
    let (mut count, mut is_due) = (0, true);
    loop {
        match behaviour {
            Behaviour::InFlight(most) => {
                while sent.len() < most {
                    queue(&mut socket, &mut sent);
                }
            }
            Behaviour::Rate(rate) => {
                while (count as f64) < began.elapsed().as_secs_f64() * rate {
                    queue(&mut socket, &mut sent);
                    count += 1;
                }
            }
            Behaviour::Flood | Behaviour::Malformed | Behaviour::Pages if is_due => {
                for _ in 0..BATCH {
                    queue(&mut socket, &mut sent);
                }
            }
            Behaviour::Flood | Behaviour::Malformed | Behaviour::Pages => {}
        }
        socket.flush().await?;
        is_due = tokio::select! {
            filled = socket.fill(), if reads => filled.map(|()| false)?,
            _ = sends.tick(), if !matches!(behaviour, Behaviour::InFlight(_)) => true,
        };
        while let Some(()) = socket.next(|frame| {
            for line in frame.split(|byte| *byte == b'\n') {
                let seq = answer(line, &user.name, start, &mut sent, results);
                *since = seq.or(*since);
            }
        })? {}
    }
}

/// Records a line if it is an answer. Returns the `seq` of an acknowledgement.
fn answer(
    line: &[u8],
    user: &str,
    start: Instant,
    sent: &mut HashMap<u64, Instant>,
    results: &Mutex<Results>,
) -> Option<u64> {
    if !line.starts_with(br#"{"ack":"#) {
        return None;
    }
    let number = |key: &[u8]| crate::check::number_after(line, key);
    let id = number(br#""ack":"#)?;
    let at = sent.remove(&id)?;
    let mut results = lock(results);
    if memchr::memmem::find(line, br#""error""#).is_some() {
        match memchr::memmem::find(line, b"rateLimited") {
            Some(_) => results.refused += 1,
            None => results.failed += 1,
        }
        return None;
    }
    let seq = number(br#""seq":"#)?;
    let when = start.elapsed().as_millis() as u32;
    results.acks.push((when, at.elapsed().as_micros() as u32));
    results.acknowledged.insert(format!("{user}-{id}"), seq);
    Some(seq)
}
