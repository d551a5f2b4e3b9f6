//! Rooms in which one sends as fast as it is answered, and all read.

use super::ROOM;
use crate::audience::Audience;
use crate::client::{self, Client};
use crate::machine;
use crate::sender::Sender;
use crate::target::Target;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// What one measurement gave.
pub struct Throughput {
    /// How long was measured.
    pub seconds: f64,
    /// Logged events that arrived at sockets in that time.
    pub deliveries: u64,
    /// Microseconds from each send to its ack, of those acknowledged then.
    pub latencies: Vec<u32>,
    /// Share of one core that server and generator used.
    pub server_cpu: f64,
    pub generator_cpu: f64,
    /// All messages of the run, the warm-up included.
    pub messages: u64,
    /// Receipts that were sent in all the run.
    pub receipts: u64,
}

/// Who is there, and what one of each room does.
#[derive(Clone, Copy)]
pub struct Crowd {
    pub rooms: usize,
    /// In each room.
    pub sockets: usize,
    /// Messages that each sender has under way.
    pub in_flight: usize,
    /// Whether those that read confirm it.
    pub receipts: bool,
}

/// Sends for `measure` after a warm-up, and waits for everything to arrive.
pub async fn throughput(
    target: &Target,
    crowd: Crowd,
    warm_up: Duration,
    measure: Duration,
) -> Result<Throughput, String> {
    let mut audiences = Vec::with_capacity(crowd.rooms);
    let mut senders = Vec::with_capacity(crowd.rooms);
    for room in 0..crowd.rooms {
        let users = client::users(target, crowd.sockets);
        let name = match crowd.rooms {
            1 => ROOM.to_owned(),
            _ => format!("{ROOM}-{room}"),
        };
        let mut clients = client::connect_all(target, &name, &users)
            .await?
            .into_iter();
        let sender: Client = clients.next().ok_or("nobody to send")?;
        senders.push(Sender::new(sender));
        let mut audience = match crowd.receipts {
            true => Audience::with_receipts(),
            false => Audience::default(),
        };
        clients.for_each(|client| audience.add(client));
        audiences.push(audience);
    }

    let stop = Arc::new(AtomicBool::new(false));
    let measuring = Arc::new(AtomicBool::new(false));
    let mut sending = JoinSet::new();
    for (room, mut sender) in senders.into_iter().enumerate() {
        let (stop, measuring) = (stop.clone(), measuring.clone());
        let tally = audiences[room].tally.clone();
        sending.spawn(async move {
            let mut latencies = Vec::with_capacity(1 << 12);
            let more = |_| !stop.load(Relaxed);
            let before = sender.head();
            let head = sender
                .run(crowd.in_flight, more, &tally, |micros| {
                    if measuring.load(Relaxed) {
                        latencies.push(micros);
                    }
                })
                .await?;
            sender.see(head).await?;
            Ok::<_, String>((room, before, head, latencies))
        });
    }

    let delivered = |audiences: &[Audience]| -> u64 {
        let each = audiences.iter();
        each.map(|audience| audience.tally.deliveries.load(Relaxed))
            .sum()
    };
    tokio::time::sleep(warm_up).await;
    let before = delivered(&audiences);
    let (server, generator) = (target.cpu_seconds(), machine::own_cpu_seconds());
    let start = Instant::now();
    measuring.store(true, Relaxed);
    tokio::time::sleep(measure).await;
    measuring.store(false, Relaxed);
    let seconds = start.elapsed().as_secs_f64();
    let deliveries = delivered(&audiences) - before;
    let server_cpu = (target.cpu_seconds() - server) / seconds;
    let generator_cpu = (machine::own_cpu_seconds() - generator) / seconds;

    stop.store(true, Relaxed);
    let (mut messages, mut all_latencies) = (0, Vec::new());
    while let Some(sent) = sending.join_next().await {
        let (room, before, head, latencies) = sent.map_err(|e| e.to_string())??;
        messages += head - before;
        all_latencies.extend(latencies);
        audiences[room].reach(head).await?;
    }
    let receipts = audiences.iter();
    Ok(Throughput {
        seconds,
        deliveries,
        latencies: all_latencies,
        server_cpu,
        generator_cpu,
        messages,
        receipts: receipts
            .map(|audience| audience.tally.receipts.load(Relaxed))
            .sum(),
    })
}
