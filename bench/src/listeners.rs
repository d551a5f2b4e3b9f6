//! Clients that read and check all events in background tasks.

use crate::check::Line;
use crate::client::{Client, Failure, PING, TIMEOUT};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval_at};

/// Counts over all listeners.
#[derive(Default)]
pub(crate) struct Tally {
    /// Logged events that arrived.
    pub deliveries: AtomicU64,
    /// Presence, membership and other ephemeral events that arrived.
    pub others: AtomicU64,
    /// Receipts that were sent.
    pub receipts: AtomicU64,
}

/// Counts of one read, added to a [`Tally`] afterwards.
#[derive(Default)]
pub(crate) struct Counted {
    deliveries: u64,
    others: u64,
}

impl Counted {
    pub(crate) fn count(&mut self, line: &Line) {
        match line {
            Line::Message { .. } => self.deliveries += 1,
            Line::Other => self.others += 1,
            Line::Ack { .. } | Line::Connected { .. } | Line::Open | Line::Ping => {}
        }
    }

    pub(crate) fn add_to(&self, tally: &Tally) {
        tally.deliveries.fetch_add(self.deliveries, Relaxed);
        tally.others.fetch_add(self.others, Relaxed);
    }
}

/// Minimal interval between two receipts of a client.
pub(crate) const RECEIPTS: Duration = Duration::from_secs(1);

/// Reads until the connection ends or the task is aborted. `seen` is set to the last
/// received event.
async fn listen(
    mut client: Client,
    tally: &Tally,
    seen: &AtomicU64,
    receipts: bool,
) -> Result<(), Failure> {
    let interval = |period| {
        let mut interval = interval_at(tokio::time::Instant::now() + period, period);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        interval
    };
    let (mut ping, mut receipt) = (interval(PING), interval(RECEIPTS));
    let mut acknowledged = client.sequence.last();
    seen.store(acknowledged, Relaxed);
    loop {
        let mut counted = Counted::default();
        tokio::select! {
            read = client.read(|line| counted.count(line)) => read?,
            _ = ping.tick() => client.ping().await?,
            _ = receipt.tick(), if receipts => {
                if client.sequence.last() > acknowledged {
                    acknowledged = client.sequence.last();
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

/// Clients that read in the background until this is dropped.
pub(crate) struct Listeners {
    pub tally: Arc<Tally>,
    receipts: bool,
    seen: Vec<Arc<AtomicU64>>,
    tasks: JoinSet<()>,
    failures: mpsc::UnboundedReceiver<String>,
    report: mpsc::UnboundedSender<String>,
}

impl Default for Listeners {
    fn default() -> Self {
        let (report, failures) = mpsc::unbounded_channel();
        Listeners {
            tally: Arc::default(),
            receipts: false,
            seen: Vec::new(),
            tasks: JoinSet::new(),
            failures,
            report,
        }
    }
}

impl Listeners {
    /// Listeners that send receipts, each at most once per [`RECEIPTS`].
    pub(crate) fn with_receipts() -> Self {
        Listeners {
            receipts: true,
            ..Listeners::default()
        }
    }

    /// Adds a client, which reads from now on.
    pub(crate) fn add(&mut self, client: Client) {
        let seen = Arc::new(AtomicU64::new(client.sequence.last()));
        self.seen.push(seen.clone());
        let tally = self.tally.clone();
        let report = self.report.clone();
        let receipts = self.receipts;
        self.tasks.spawn(async move {
            if let Err(failure) = listen(client, &tally, &seen, receipts).await {
                // Fails if the run is over and the receiver was dropped.
                let _ = report.send(failure.into());
            }
        });
    }

    /// Returns the first failure of a listener, if there is one.
    pub(crate) fn check(&mut self) -> Result<(), String> {
        match self.failures.try_recv() {
            Ok(failure) => Err(failure),
            Err(_) => Ok(()),
        }
    }

    /// Waits until every listener has received event `head`. Fails if a later event
    /// arrives.
    pub(crate) async fn reach(&mut self, head: u64) -> Result<(), String> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            self.check()?;
            let behind = self.seen.iter().filter(|seen| seen.load(Relaxed) < head);
            match behind.count() {
                0 => break,
                count if Instant::now() > deadline => {
                    return Err(format!("{count} sockets did not receive event {head}"));
                }
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
        match self.seen.iter().map(|seen| seen.load(Relaxed)).max() {
            Some(last) if last > head => Err(format!(
                "event {last} arrived, but the last event is {head}"
            )),
            _ => Ok(()),
        }
    }
}
