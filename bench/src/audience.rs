//! Sockets that read and check everything in the background.

use crate::check::Line;
use crate::client::{Broken, Client, PATIENCE, PING};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval_at};

/// What the reading sockets have counted together.
#[derive(Default)]
pub struct Tally {
    /// Logged events that arrived, over all sockets.
    pub deliveries: AtomicU64,
    /// Presence, membership and the like, over all sockets.
    pub others: AtomicU64,
    /// Receipts that were sent.
    pub receipts: AtomicU64,
}

#[derive(Default)]
pub struct Counted {
    deliveries: u64,
    others: u64,
}

impl Counted {
    pub fn count(&mut self, line: &Line) {
        match line {
            Line::Message { .. } => self.deliveries += 1,
            Line::Other => self.others += 1,
            Line::Ack { .. } | Line::Connected { .. } | Line::Open | Line::Ping => {}
        }
    }

    pub fn add_to(&self, tally: &Tally) {
        tally.deliveries.fetch_add(self.deliveries, Relaxed);
        tally.others.fetch_add(self.others, Relaxed);
    }
}

/// How often a socket with receipts sends one, when there is something new.
pub const RECEIPTS: Duration = Duration::from_secs(1);

/// Reads until it is told to stop by being dropped; `seen` follows the last
/// event it has.
async fn listen(
    mut client: Client,
    tally: &Tally,
    seen: &AtomicU64,
    receipts: bool,
) -> Result<(), Broken> {
    let ticks = |period| {
        let mut ticks = interval_at(tokio::time::Instant::now() + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    };
    let (mut ping, mut receipt) = (ticks(PING), ticks(RECEIPTS));
    let mut told = client.sequence.last();
    seen.store(told, Relaxed);
    loop {
        let mut counted = Counted::default();
        tokio::select! {
            read = client.read(|line| counted.count(line)) => read?,
            _ = ping.tick() => client.ping().await?,
            _ = receipt.tick(), if receipts => {
                if client.sequence.last() > told {
                    told = client.sequence.last();
                    client.queue_receipt(None);
                    client.socket.flush().await?;
                    tally.receipts.fetch_add(1, Relaxed);
                }
            }
        }
        counted.add_to(tally);
        seen.store(client.sequence.last(), Relaxed);
    }
}

/// Sockets that read in the background until this is dropped.
pub struct Audience {
    pub tally: Arc<Tally>,
    receipts: bool,
    seen: Vec<Arc<AtomicU64>>,
    tasks: JoinSet<()>,
    failures: mpsc::UnboundedReceiver<String>,
    report: mpsc::UnboundedSender<String>,
}

impl Default for Audience {
    fn default() -> Self {
        let (report, failures) = mpsc::unbounded_channel();
        Audience {
            tally: Arc::default(),
            receipts: false,
            seen: Vec::new(),
            tasks: JoinSet::new(),
            failures,
            report,
        }
    }
}

impl Audience {
    /// One whose sockets say what they have, each every [`RECEIPTS`] at the most.
    pub fn with_receipts() -> Self {
        Audience {
            receipts: true,
            ..Audience::default()
        }
    }

    /// Lets a client listen.
    pub fn add(&mut self, client: Client) {
        let seen = Arc::new(AtomicU64::new(client.sequence.last()));
        self.seen.push(seen.clone());
        let tally = self.tally.clone();
        let report = self.report.clone();
        let receipts = self.receipts;
        self.tasks.spawn(async move {
            if let Err(failure) = listen(client, &tally, &seen, receipts).await {
                // Nobody listens any more when the run is over already.
                let _ = report.send(failure.into());
            }
        });
    }

    /// Fails with what the first socket complained about, if one has.
    pub fn check(&mut self) -> Result<(), String> {
        match self.failures.try_recv() {
            Ok(failure) => Err(failure),
            Err(_) => Ok(()),
        }
    }

    /// Waits until every socket has seen the event `head`, and no more.
    pub async fn reach(&mut self, head: u64) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.check()?;
            let behind = self.seen.iter().filter(|seen| seen.load(Relaxed) < head);
            match behind.count() {
                0 => break,
                count if Instant::now() > deadline => {
                    return Err(format!("{count} sockets never saw event {head}"));
                }
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
        match self.seen.iter().map(|seen| seen.load(Relaxed)).max() {
            Some(last) if last > head => Err(format!("an event {last} after the last, {head}")),
            _ => Ok(()),
        }
    }
}
