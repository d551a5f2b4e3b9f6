//! Clients without a valid token.

use super::polling::{Polling, SEPARATOR};
use super::{Context, Outcome};
use crate::machine;
use crate::socket::Socket;
use crate::target::Endpoint;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Duration of an attack.
const TIME: Duration = Duration::from_secs(8);

/// Pause of an attacker after each attempt. Without it, the runtime alone, which accepts
/// connections and reads sockets on the same thread, would delay the bystanders.
const PAUSE: Duration = Duration::from_millis(50);

/// The path of a Socket.IO socket.
const SOCKET_IO: &str = "/socket.io/?EIO=4&transport=websocket";

/// Runs `count` attackers for [`TIME`]. Returns the number of attempts.
async fn attack<F: Future<Output = ()> + Send + 'static>(
    context: &Context,
    count: usize,
    attempt: impl Fn(Arc<Endpoint>, reqwest::Client) -> F + Clone + Send + 'static,
) -> u64 {
    let attempts = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        let (endpoint, http) = (context.endpoint.clone(), context.http.clone());
        let (attempt, attempts) = (attempt.clone(), attempts.clone());
        tasks.spawn(async move {
            loop {
                attempt(endpoint.clone(), http.clone()).await;
                attempts.fetch_add(1, Relaxed);
                sleep(PAUSE).await;
            }
        });
    }
    sleep(TIME).await;
    drop(tasks);
    attempts.load(Relaxed)
}

/// Opens a Socket.IO socket without a token.
async fn open(endpoint: &Endpoint) -> Option<Socket> {
    let opened = Socket::open(endpoint.address, &endpoint.host, SOCKET_IO, "");
    opened.await.ok()
}

/// Opens a Socket.IO socket without a token, from the address `number`. The platform adds this
/// header to every request.
async fn open_from(endpoint: &Endpoint, number: u64) -> Option<Socket> {
    let header = format!("CF-Connecting-IP: 203.0.113.{number}");
    let opened = Socket::open_with(endpoint.address, &endpoint.host, SOCKET_IO, &header);
    opened.await.ok()
}

/// Sends one frame and waits until the server closes the socket, at most a second.
async fn send_until_closed(socket: &mut Socket, text: &[u8]) {
    socket.queue(text);
    if socket.flush().await.is_ok() {
        let reading = async {
            while socket.fill().await.is_ok() {
                while let Ok(Some(())) = socket.next(|_| ()) {}
            }
        };
        // Fails if the server leaves the socket open.
        let _ = tokio::time::timeout(Duration::from_secs(1), reading).await;
    }
}

/// Bodies of the smallest packets, and frames near the size limit.
pub(super) async fn packet_bombs(context: &Context) -> Result<Outcome, String> {
    let polling = attack(context, 10, |endpoint, http| async move {
        if let Ok(polling) = Polling::open(&http, &endpoint, "").await {
            let body = vec!["6"; 450_000].join(&SEPARATOR.to_string());
            // Refused with 413.
            let _ = polling.post(body).await;
        }
    });
    let sockets = attack(context, 10, |endpoint, _| async move {
        if let Some(mut socket) = open(&endpoint).await {
            let frame = format!("42[\"{}\"]", "x".repeat(900_000));
            send_until_closed(&mut socket, frame.as_bytes()).await;
        }
    });
    let (bodies, frames) = tokio::join!(polling, sockets);
    let mut outcome = Outcome::default();
    outcome.note(format!("{bodies} bodies, {frames} frames"));
    Ok(outcome)
}

/// CONNECTs with an invalid token, from a few addresses.
pub(super) async fn connect_flood(context: &Context) -> Result<Outcome, String> {
    const ADDRESSES: u64 = 10;
    let (next, opened) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let accepted = opened.clone();
    let attempts = attack(context, 40, move |endpoint, _| {
        let (address, accepted) = (next.fetch_add(1, Relaxed) % ADDRESSES, accepted.clone());
        async move {
            let Some(mut socket) = open_from(&endpoint, address).await else {
                return;
            };
            accepted.fetch_add(1, Relaxed);
            for number in 0..50 {
                let connect = format!(r#"40/n{number},{{"token":"a.b.c"}}"#);
                socket.queue(connect.as_bytes());
                if socket.flush().await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    let opened = opened.load(Relaxed);
    let mut outcome = Outcome::default();
    outcome.note(format!(
        "{attempts} connects, {opened} sessions with 50 CONNECTs each"
    ));
    outcome.check(opened == 0, "no session was opened".to_owned());
    Ok(outcome)
}

/// Announced attachments, which the server would have to keep.
pub(super) async fn attachments(context: &Context) -> Result<Outcome, String> {
    const CLIENTS: usize = 80;
    let attachment = vec![0; 60_000];
    let mut sockets = Vec::new();
    for _ in 0..CLIENTS {
        if let Some(mut socket) = open(&context.endpoint).await {
            socket.queue(br#"45256-["x"]"#);
            for _ in 0..15 {
                socket.queue_binary(&attachment);
            }
            // Fails if the server has closed the socket.
            let _ = socket.flush().await;
            sockets.push(socket);
        }
    }
    sleep(TIME).await;
    let mut outcome = Outcome::default();
    outcome.note(format!("{} sockets", sockets.len()));
    Ok(outcome)
}

/// Maximum number of bytes that the Worker allocates in [`half_open`], the default of
/// `MAX_OBJECT_BYTES`. Gateways refuse further bodies above three quarters of it.
const MAX_HALF_SENT: u64 = 48 << 20;

/// Connections that stop in the middle of a request, of an upgrade, or after it, and users
/// that do not send the end of a body.
pub(super) async fn half_open(context: &Context) -> Result<Outcome, String> {
    const EACH: usize = 250;
    let (address, host) = (context.endpoint.address, &context.endpoint.host);
    let request = format!("POST /publish HTTP/1.1\r\nHost: {host}\r\n");
    let posted = format!("{request}Content-Length: 1000000\r\n\r\n{{");
    let mut streams = Vec::new();
    for part in ["", &request, &posted] {
        for _ in 0..EACH {
            let stream = TcpStream::connect(address).await;
            let mut stream = stream.map_err(|error| error.to_string())?;
            // Fails if the server has closed the connection.
            let _ = stream.write_all(part.as_bytes()).await;
            streams.push(stream);
        }
    }
    let mut sockets = Vec::new();
    for _ in 0..EACH {
        sockets.extend(open(&context.endpoint).await);
    }
    let strangers = streams.len();
    // Valid users, who may send a megabyte in each session.
    for number in 0..EACH {
        let token = context.endpoint.token(&format!("half-sent-{number}"));
        if let Ok(polling) = Polling::open(&context.http, &context.endpoint, &token).await {
            let head = format!("POST {} HTTP/1.1\r\nHost: {host}\r\n", polling.path());
            let head = format!("{head}Content-Length: 999000\r\n\r\n");
            let stream = TcpStream::connect(address).await;
            let mut stream = stream.map_err(|error| error.to_string())?;
            // Fails if the server refuses the body.
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.write_all(&vec![b'6'; 998_000]).await;
            streams.push(stream);
        }
    }
    sleep(TIME).await;
    let account = context.endpoint.get("/failpoints").await?;
    let peak = account["peakBytes"].as_u64().unwrap_or(u64::MAX);
    let mut outcome = Outcome::default();
    outcome.note(format!(
        "{strangers} connections, {} sockets, {} bodies of users",
        sockets.len(),
        streams.len() - strangers
    ));
    outcome.check(
        peak > MAX_HALF_SENT,
        format!("the peak is {peak} bytes, the limit is {MAX_HALF_SENT}"),
    );
    Ok(outcome)
}

/// Maximum of the processor time of a request or a CONNECT without a valid token.
const MAX_COST_MS: f64 = 1.0;

/// Number of CONNECTs on a session, before the last of which it is not closed.
const CONNECTS: usize = 4;

/// Measures the processor time of refused requests.
pub(super) async fn refused_cost(context: &Context) -> Result<Outcome, String> {
    let mut outcome = Outcome::default();
    // The runtime compiles the code that is used most in the background.
    cost(context, Refused::Session { connects: CONNECTS }).await;
    let upgrade = cost(context, Refused::Upgrade).await;
    let poll = cost(context, Refused::Poll).await;
    let session = cost(context, Refused::Session { connects: 0 }).await;
    let connects = cost(context, Refused::Session { connects: CONNECTS }).await;
    let connect = (connects - session) / CONNECTS as f64;
    for (name, cost) in [
        ("upgrade", upgrade),
        ("poll", poll),
        ("session without a CONNECT", session),
        ("CONNECT", connect),
    ] {
        outcome.note(format!("{name} {cost:.2} ms"));
        let limit =
            format!("{name}: {cost:.2} ms of processor time, the limit is {MAX_COST_MS} ms");
        outcome.check(cost > MAX_COST_MS, limit);
    }
    Ok(outcome)
}

/// An action of a client without a valid token.
#[derive(Clone, Copy)]
enum Refused {
    /// Asks for a socket of a room, which is refused with 401.
    Upgrade,
    /// Polls an invented session.
    Poll,
    /// Opens a Socket.IO session, sends CONNECTs and waits for their answers.
    Session { connects: usize },
}

/// Returns the processor time of workerd in milliseconds.
async fn cost(context: &Context, what: Refused) -> f64 {
    const COUNT: u32 = 500;
    let (endpoint, http) = (&context.endpoint, &context.http);
    let (address, host) = (endpoint.address, endpoint.host.clone());
    let idle = Instant::now();
    let before_idle = machine::cpu_seconds(context.pid());
    sleep(Duration::from_secs(2)).await;
    let per_second =
        (machine::cpu_seconds(context.pid()) - before_idle) / idle.elapsed().as_secs_f64();
    let (begun, before) = (Instant::now(), machine::cpu_seconds(context.pid()));
    for _ in 0..COUNT {
        match what {
            Refused::Upgrade => {
                let _ = Socket::open(address, &host, "/rooms/x/ws", "a.b.c").await;
            }
            Refused::Poll => {
                let url = format!("http://{host}/socket.io/?EIO=4&transport=polling&sid=0-x");
                let _ = http.get(url).send().await;
            }
            Refused::Session { connects } => {
                if let Some(mut socket) = open(endpoint).await {
                    for _ in 0..connects {
                        send_connect(&mut socket).await;
                    }
                }
            }
        }
    }
    let bystanders = per_second * begun.elapsed().as_secs_f64();
    let spent = machine::cpu_seconds(context.pid()) - before - bystanders;
    spent * 1e3 / f64::from(COUNT)
}

/// Sends a CONNECT with an invalid token and waits for the answer.
async fn send_connect(socket: &mut Socket) {
    socket.queue(br#"40{"token":"a.b.c"}"#);
    if socket.flush().await.is_err() {
        return;
    }
    let mut refused = false;
    while !refused && socket.fill().await.is_ok() {
        while let Ok(Some(is_error)) = socket.next(|packet| packet.starts_with(b"44")) {
            refused |= is_error;
        }
    }
}
