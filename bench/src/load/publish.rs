//! A service publishes over HTTP to a room with listeners.

use super::ROOM;
use crate::client::{self, CONTENT};
use crate::listeners::Listeners;
use crate::target::Target;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Number of listeners.
const SOCKETS: usize = 10;

/// Number of concurrent requests.
const REQUESTS: usize = 16;

/// Result of one measurement.
pub(crate) struct Published {
    pub seconds: f64,
    /// Published events in that time.
    pub messages: u64,
    /// Duration of each request in microseconds.
    pub latencies: Vec<u32>,
    pub server_cpu: f64,
}

/// Publishes with `batch` events per request.
pub(crate) async fn publish(
    target: &Arc<Target>,
    batch: usize,
    warm_up: Duration,
    measure: Duration,
) -> Result<Published, String> {
    let users = client::users(target, SOCKETS);
    let mut listeners = Listeners::default();
    for client in client::connect_all(target, ROOM, &users).await? {
        listeners.add(client);
    }
    let message = json!({ "room": ROOM, "event": "newMessage", "data": { "content": CONTENT } });
    let body = match batch {
        1 => message,
        _ => json!({ "messages": vec![message; batch] }),
    };
    let body: Arc<str> = body.to_string().into();
    let (stop, measuring) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
    );
    let head = Arc::new(AtomicU64::new(0));
    let mut requests = JoinSet::new();
    for _ in 0..REQUESTS {
        let (target, body, head) = (target.clone(), body.clone(), head.clone());
        let (stop, measuring) = (stop.clone(), measuring.clone());
        requests.spawn(async move {
            let mut latencies = Vec::new();
            while !stop.load(Relaxed) {
                let start = Instant::now();
                let answer = target.endpoint.post("/publish", &body).await?;
                if measuring.load(Relaxed) {
                    latencies.push(start.elapsed().as_micros() as u32);
                }
                let answers = match answer["results"].as_array() {
                    Some(results) => results.as_slice(),
                    None => std::slice::from_ref(&answer),
                };
                if answers.len() != batch {
                    return Err(format!(
                        "{batch} events were published, but the answer is {answer}"
                    ));
                }
                let seq = |answer: &Value| answer["seq"].as_u64();
                let last = answers.iter().map(seq).max().flatten();
                let last = last.ok_or_else(|| format!("an answer without seq: {answer}"))?;
                head.fetch_max(last, Relaxed);
            }
            Ok::<_, String>(latencies)
        });
    }
    tokio::time::sleep(warm_up).await;
    let cpu = target.cpu_seconds();
    let start = Instant::now();
    measuring.store(true, Relaxed);
    tokio::time::sleep(measure).await;
    measuring.store(false, Relaxed);
    let seconds = start.elapsed().as_secs_f64();
    let server_cpu = (target.cpu_seconds() - cpu) / seconds;
    stop.store(true, Relaxed);
    let mut latencies = Vec::new();
    while let Some(done) = requests.join_next().await {
        latencies.extend(done.map_err(|e| e.to_string())??);
    }
    listeners.reach(head.load(Relaxed)).await?;
    Ok(Published {
        seconds,
        messages: (latencies.len() * batch) as u64,
        latencies,
        server_cpu,
    })
}
