//! Fan-out: in each room one client sends with a fixed number of messages in flight,
//! and all clients receive.

use super::ROOM;
use crate::client::{self, Client};
use crate::listeners::Listeners;
use crate::machine;
use crate::sender::Sender;
use crate::target::Target;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Result of one measurement.
pub(crate) struct Throughput {
    /// Duration of the measurement.
    pub seconds: f64,
    /// Logged events that arrived at the clients in that time.
    pub deliveries: u64,
    /// Microseconds from each send to its acknowledgement.
    pub latencies: Vec<u32>,
    /// Processor use of server and load generator, in cores.
    pub server_cpu: f64,
    pub generator_cpu: f64,
    /// All messages of the run, including the warm-up.
    pub messages: u64,
    /// Receipts of the run, including the warm-up.
    pub receipts: u64,
}

/// Parameters of the load.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub rooms: usize,
    /// Connections in each room.
    pub sockets: usize,
    /// Messages in flight of each sender.
    pub in_flight: usize,
    /// The receiving clients send receipts.
    pub receipts: bool,
}

/// Sends for `measure` after a warm-up, then waits until every event has arrived.
pub(crate) async fn throughput(
    target: &Target,
    load: Load,
    warm_up: Duration,
    measure: Duration,
) -> Result<Throughput, String> {
    let mut all_listeners = Vec::with_capacity(load.rooms);
    let mut senders = Vec::with_capacity(load.rooms);
    for room in 0..load.rooms {
        let users = client::users(target, load.sockets);
        let name = match load.rooms {
            1 => ROOM.to_owned(),
            _ => format!("{ROOM}-{room}"),
        };
        let mut clients = client::connect_all(target, &name, &users)
            .await?
            .into_iter();
        let sender: Client = clients.next().ok_or("no users")?;
        senders.push(Sender::new(sender));
        let mut listeners = match load.receipts {
            true => Listeners::with_receipts(),
            false => Listeners::default(),
        };
        clients.for_each(|client| listeners.add(client));
        all_listeners.push(listeners);
    }

    let stop = Arc::new(AtomicBool::new(false));
    let measuring = Arc::new(AtomicBool::new(false));
    let mut sending = JoinSet::new();
    for (room, mut sender) in senders.into_iter().enumerate() {
        let (stop, measuring) = (stop.clone(), measuring.clone());
        let tally = all_listeners[room].tally.clone();
        sending.spawn(async move {
            let mut latencies = Vec::with_capacity(1 << 12);
            let more = |_| !stop.load(Relaxed);
            let before = sender.head();
            let head = sender
                .run(load.in_flight, more, &tally, |micros| {
                    if measuring.load(Relaxed) {
                        latencies.push(micros);
                    }
                })
                .await?;
            sender.see(head).await?;
            Ok::<_, String>((room, before, head, latencies))
        });
    }

    let delivered = |all_listeners: &[Listeners]| -> u64 {
        let each = all_listeners.iter();
        each.map(|listeners| listeners.tally.deliveries.load(Relaxed))
            .sum()
    };
    tokio::time::sleep(warm_up).await;
    let before = delivered(&all_listeners);
    let (server, generator) = (target.cpu_seconds(), machine::own_cpu_seconds());
    let start = Instant::now();
    measuring.store(true, Relaxed);
    tokio::time::sleep(measure).await;
    measuring.store(false, Relaxed);
    let seconds = start.elapsed().as_secs_f64();
    let deliveries = delivered(&all_listeners) - before;
    let server_cpu = (target.cpu_seconds() - server) / seconds;
    let generator_cpu = (machine::own_cpu_seconds() - generator) / seconds;

    stop.store(true, Relaxed);
    let (mut messages, mut all_latencies) = (0, Vec::new());
    while let Some(sent) = sending.join_next().await {
        let (room, before, head, latencies) = sent.map_err(|e| e.to_string())??;
        messages += head - before;
        all_latencies.extend(latencies);
        all_listeners[room].reach(head).await?;
    }
    let receipts = all_listeners.iter();
    Ok(Throughput {
        seconds,
        deliveries,
        latencies: all_latencies,
        server_cpu,
        generator_cpu,
        messages,
        receipts: receipts
            .map(|listeners| listeners.tally.receipts.load(Relaxed))
            .sum(),
    })
}
