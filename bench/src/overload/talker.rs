//! Somebody who says more than may be said, or says it badly.

use crate::client::User;
use crate::dialect::Dialect;
use crate::socket::{Socket, SocketError};
use crate::target::Site;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::{MissedTickBehavior, interval, sleep};

/// What talkers were told, all of them together.
#[derive(Default)]
pub struct Heard {
    /// Milliseconds since the start, and microseconds that it took.
    pub acks: Vec<(u32, u32)>,
    /// Message ids and the numbers they were acknowledged with.
    pub acknowledged: HashMap<String, u64>,
    /// Answers that were `rateLimited`.
    pub refused: u64,
    /// Any other answer that is an error.
    pub failed: u64,
    /// Connections that were closed, by code.
    pub closed: HashMap<u16, u64>,
    /// Connects that were refused as too many, or after a flood: 429.
    pub turned_away: u64,
}

/// How somebody talks.
#[derive(Clone, Copy, Debug)]
pub enum Manner {
    /// So many messages unanswered at any time.
    InFlight(usize),
    /// So many messages a second, whatever is answered.
    Rate(f64),
    /// [`BATCH`] every [`TICK`], whatever comes of it: messages.
    Flood,
    /// The same: frames that are none, and some near the limit.
    Junk,
    /// The same: asks for pages of the log, and reads nothing.
    Pages,
}

/// How often one with a rate says what is due.
const TICK: Duration = Duration::from_millis(10);

/// What a flood writes at a time: 20,000 frames a second. Of one that writes as
/// much as it can the runtime reads as long as there is something: behind a bare
/// object that ignores all of it others wait longer, too.
const BATCH: usize = 200;

/// Talks in `room` until it is dropped; comes back when it is closed.
pub async fn talk(
    site: Arc<Site>,
    user: User,
    room: &'static str,
    manner: Manner,
    start: Instant,
    heard: Arc<Mutex<Heard>>,
) {
    let (mut number, mut since) = (0, None);
    loop {
        let said = (&mut number, &mut since);
        let ended = connection(&site, &user, room, manner, start, &heard, said).await;
        match ended {
            Err(SocketError::Refused(answer)) if answer.starts_with("HTTP/1.1 429") => {
                lock(&heard).turned_away += 1;
            }
            Err(SocketError::Closed(code, _)) => {
                *lock(&heard).closed.entry(code).or_default() += 1;
            }
            // 1006: abnormal closure (RFC 6455, 7.4.1).
            _ => *lock(&heard).closed.entry(1006).or_default() += 1,
        }
        // As clients do that do not look at `Retry-After`.
        sleep(Duration::from_millis(200)).await;
    }
}

pub fn lock(heard: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn connection(
    site: &Site,
    user: &User,
    room: &str,
    manner: Manner,
    start: Instant,
    heard: &Mutex<Heard>,
    (number, since): (&mut u64, &mut Option<u64>),
) -> Result<(), SocketError> {
    let path = Dialect::Room.path(room, *since, &user.token);
    let mut socket = Socket::open(site.address, &site.host, &path, &user.token).await?;
    let mut sent: HashMap<u64, Instant> = HashMap::new();
    let mut say = |socket: &mut Socket, sent: &mut HashMap<u64, Instant>| {
        *number += 1;
        let id = *number;
        let text = match (manner, id % 20) {
            (Manner::Junk, 0) => format!(
                "{{\"event\":\"sendMessage\",\"data\":\"{}",
                "x".repeat(60_000)
            ),
            (Manner::Junk, _) => "{\"event\":\"sendMessage\",\"data\":{".to_owned(),
            (Manner::Pages, _) => {
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
    let reads = !matches!(manner, Manner::Pages);
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let began = Instant::now();
    let (mut said, mut is_due) = (0, true);
    loop {
        match manner {
            Manner::InFlight(most) => {
                while sent.len() < most {
                    say(&mut socket, &mut sent);
                }
            }
            Manner::Rate(rate) => {
                while (said as f64) < began.elapsed().as_secs_f64() * rate {
                    say(&mut socket, &mut sent);
                    said += 1;
                }
            }
            Manner::Flood | Manner::Junk | Manner::Pages if is_due => {
                for _ in 0..BATCH {
                    say(&mut socket, &mut sent);
                }
            }
            Manner::Flood | Manner::Junk | Manner::Pages => {}
        }
        socket.flush().await?;
        is_due = tokio::select! {
            filled = socket.fill(), if reads => filled.map(|()| false)?,
            _ = ticks.tick(), if !matches!(manner, Manner::InFlight(_)) => true,
        };
        while let Some(()) = socket.next(|frame| {
            for line in frame.split(|byte| *byte == b'\n') {
                let seq = answer(line, &user.name, start, &mut sent, heard);
                *since = seq.or(*since);
            }
        })? {}
    }
}

/// Takes note of a line, if it is an answer: the number it was acknowledged with.
fn answer(
    line: &[u8],
    user: &str,
    start: Instant,
    sent: &mut HashMap<u64, Instant>,
    heard: &Mutex<Heard>,
) -> Option<u64> {
    if !line.starts_with(br#"{"ack":"#) {
        return None;
    }
    let number = |key: &[u8]| crate::check::number_after(line, key);
    let id = number(br#""ack":"#)?;
    let at = sent.remove(&id)?;
    let mut heard = lock(heard);
    if memchr::memmem::find(line, br#""error""#).is_some() {
        match memchr::memmem::find(line, b"rateLimited") {
            Some(_) => heard.refused += 1,
            None => heard.failed += 1,
        }
        return None;
    }
    let seq = number(br#""seq":"#)?;
    let when = start.elapsed().as_millis() as u32;
    heard.acks.push((when, at.elapsed().as_micros() as u32));
    heard.acknowledged.insert(format!("{user}-{id}"), seq);
    Some(seq)
}
