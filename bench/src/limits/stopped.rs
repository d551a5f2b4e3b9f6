//! Gateways that do not answer, and storage that is full.

use super::readers::{publish, user};
use super::{Context, Outcome};
use crate::client::{Client, User};
use crate::dialect::Dialect;
use crate::target::Endpoint;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::sleep;

const ROOM: &str = "cut-off";

/// Number of clients at the gateway.
const CLIENTS: usize = 50;

/// Time after which every client has all events.
const RECOVERY: Duration = Duration::from_secs(40);

/// The clients of a gateway. Each connects again from its position if it is closed.
struct Clients {
    /// The last event of each.
    seen: Vec<Arc<AtomicU64>>,
    failures: tokio::sync::mpsc::UnboundedReceiver<String>,
    _tasks: JoinSet<()>,
}

impl Clients {
    fn start(endpoint: &Arc<Endpoint>) -> Self {
        let (report, failures) = tokio::sync::mpsc::unbounded_channel();
        let (mut tasks, mut seen) = (JoinSet::new(), Vec::new());
        for number in 0..CLIENTS {
            let user = user(endpoint, format!("client-{number}"));
            let last = Arc::new(AtomicU64::new(0));
            seen.push(last.clone());
            let (endpoint, report) = (endpoint.clone(), report.clone());
            tasks.spawn(async move {
                loop {
                    if let Err(reason) = listen(&endpoint, &user, &last).await {
                        // Fails if the scenario is over.
                        let _ = report.send(reason);
                    }
                    sleep(Duration::from_millis(500)).await;
                }
            });
        }
        Clients {
            seen,
            failures,
            _tasks: tasks,
        }
    }

    /// Waits until all clients have received event `head`, for at most `limit`. Returns the
    /// number of those that have not.
    async fn behind(&self, head: u64, limit: Duration) -> usize {
        let deadline = Instant::now() + limit;
        loop {
            let behind = self
                .seen
                .iter()
                .filter(|last| last.load(Relaxed) < head)
                .count();
            if behind == 0 || Instant::now() > deadline {
                return behind;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Returns the reasons for which connections ended.
    fn closed(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.failures.try_recv().ok()).collect()
    }
}

async fn listen(endpoint: &Endpoint, user: &User, last: &AtomicU64) -> Result<(), String> {
    let since = Some(last.load(Relaxed));
    let mut client = Client::open(endpoint, Dialect::Gateway, ROOM, user, since, |_, _| {}).await?;
    let mut pings = tokio::time::interval(crate::client::PING);
    loop {
        tokio::select! {
            read = client.read(|_| {}) => read?,
            _ = pings.tick() => client.ping().await?,
        }
        last.store(client.sequence.last(), Relaxed);
    }
}

/// Makes the native gateways refuse deliveries for a while. Afterwards every client has every
/// event.
pub(super) async fn gateway(context: &Context, time: Duration) -> Result<Outcome, String> {
    const BYTES: usize = 1_000;
    let endpoint = &context.endpoint;
    let mut clients = Clients::start(endpoint);
    publish(endpoint, ROOM, "before", 1, BYTES).await?;
    let behind = clients.behind(1, RECOVERY).await;
    if behind > 0 {
        return Err(format!(
            "{behind} clients cannot connect: {:?}",
            clients.closed()
        ));
    }
    context.plan(&json!({ "stopped": true })).await?;
    let begun = Instant::now();
    let mut head = 1;
    while begun.elapsed() < time {
        publish(endpoint, ROOM, &format!("during-{head}"), 20, BYTES).await?;
        head += 20;
        sleep(Duration::from_millis(500)).await;
    }
    context.plan(&json!({})).await?;
    let resumed = Instant::now();
    // An event after the failure must not hide a hole.
    publish(endpoint, ROOM, "after", 1, BYTES).await?;
    head += 1;
    let behind = clients.behind(head, RECOVERY).await;
    let (mut outcome, closed) = (Outcome::default(), clients.closed());
    let seconds = resumed.elapsed().as_secs_f64();
    outcome.note(format!(
        "{head} events, all delivered {seconds:.1} s after the gateway returned, {} reconnects",
        closed.len()
    ));
    outcome.check(
        behind > 0,
        format!("{behind} of {CLIENTS} clients miss events without a close"),
    );
    let gaps = closed
        .iter()
        .find(|reason| reason.contains("a hole") || reason.contains("out of order"));
    if let Some(reason) = gaps {
        outcome.check(true, reason.clone());
    }
    Ok(outcome)
}

/// Fills the storage: writing fails, reading works, and no connection ends.
pub(super) async fn storage(context: &Context) -> Result<Outcome, String> {
    const BYTES: usize = 100;
    let endpoint = &context.endpoint;
    let mut clients = Clients::start(endpoint);
    publish(endpoint, ROOM, "before", 10, BYTES).await?;
    let behind = clients.behind(10, RECOVERY).await;
    let mut outcome = Outcome::default();
    outcome.check(behind > 0, format!("{behind} clients cannot connect"));
    context
        .plan(&json!({ "points": vec!["Full"; 1_000] }))
        .await?;
    let mut refused = 0;
    for number in 0..10 {
        let written = publish(endpoint, ROOM, &format!("full-{number}"), 1, BYTES).await;
        refused += u32::from(written.is_err());
    }
    let head = endpoint.head(ROOM).await;
    outcome.check(
        head.is_err(),
        "the log cannot be read while the storage is full".to_owned(),
    );
    context.plan(&json!({})).await?;
    outcome.check(
        refused == 0,
        "no write was refused: is the failpoint `Full` compiled in?".to_owned(),
    );
    publish(endpoint, ROOM, "after", 10, BYTES).await?;
    let head = endpoint.head(ROOM).await?;
    let behind = clients.behind(head, RECOVERY).await;
    outcome.check(behind > 0, format!("{behind} clients miss events"));
    let closed = clients.closed();
    let reason = closed.first().cloned().unwrap_or_default();
    outcome.check(
        !closed.is_empty(),
        format!("{} connections ended: {reason}", closed.len()),
    );
    outcome.note(format!(
        "{refused} of 10 publications refused, {head} events"
    ));
    Ok(outcome)
}
