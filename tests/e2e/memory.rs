//! Requests that hold memory: bodies that do not end, and a Worker over its budget.

use super::{service, token};
use roomcast_harness::{Answer, Client, Polling, SEPARATOR, Server, TIMEOUT, Worker};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const ONE_GATEWAY: (&str, &str) = ("GATEWAY_SHARDS", "1");

/// A POST request whose body does not end.
struct HalfSent {
    stream: TcpStream,
    rest: usize,
}

impl HalfSent {
    /// Announces a body of `length` bytes and sends all but the last `rest` bytes of it, as
    /// spaces.
    async fn send(server: &Server, path: &str, length: usize, rest: usize) -> Self {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\
             authorization: Bearer {}\r\ncontent-length: {length}\r\n\r\n",
            server.address(),
            service()
        );
        let connected = TcpStream::connect(server.address()).await;
        let mut stream = connected.expect("connected");
        stream.write_all(head.as_bytes()).await.expect("sent");
        let body = " ".repeat(length - rest);
        stream.write_all(body.as_bytes()).await.expect("sent");
        HalfSent { stream, rest }
    }

    /// Sends the rest of the body. Returns the status of the answer.
    async fn complete(mut self) -> u16 {
        let rest = " ".repeat(self.rest);
        self.stream
            .write_all(rest.as_bytes())
            .await
            .expect("the server reads the body");
        let mut answer = Vec::new();
        let read = timeout(TIMEOUT, self.stream.read_to_end(&mut answer)).await;
        read.expect("the server answers").expect("an answer");
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).expect("a status line");
        status.parse().expect("a number")
    }
}

/// Opens a session on long-polling.
async fn session(server: &Server, user: &str) -> Polling {
    let session = Polling::open(server, &format!("token={}", token(user))).await;
    let accepted = session.connect(server, "/", json!({})).await;
    accepted.expect("accepted");
    session
}

/// Returns a packet with an argument of `bytes` bytes that the server ignores.
fn packet(bytes: usize) -> String {
    format!(
        r#"42["typing",{{"isTyping":true,"x":"{}"}}]"#,
        "x".repeat(bytes)
    )
}

fn has_retry_after(answer: &Answer) -> bool {
    let seconds: u32 = answer.header("retry-after").parse().unwrap_or(0);
    seconds > 0
}

#[tokio::test]
async fn half_sent_bodies_keep_nobody_from_posting() {
    const LIMIT: usize = 16;
    let server = Server::start(&[ONE_GATEWAY]);
    let bystander = session(&server, "bystander").await;
    let mut half_sent = Vec::new();
    for n in 0..LIMIT {
        let holder = session(&server, &format!("holder-{n}")).await;
        let path = format!("/socket.io/?EIO=4&transport=polling&sid={}", holder.sid);
        half_sent.push(HalfSent::send(&server, &path, 900_000, 890_000).await);
    }
    // Bodies are refused as soon as the gateway has begun to read all the others.
    let refused = loop {
        let answer = bystander.post(&server, packet(20_000)).await;
        if answer.status != 200 {
            break answer;
        }
    };
    refused.problem(503, "unavailable");
    assert!(has_retry_after(&refused), "{:?}", refused.headers);
    let small = [packet(10), packet(10)].join(&SEPARATOR.to_string());
    assert_eq!(bystander.post(&server, small).await.status, 200);
    let first = half_sent.pop().expect("a request");
    assert_eq!(first.complete().await, 400, "spaces are not a packet");
    let large = bystander.post(&server, packet(20_000)).await;
    assert_eq!(large.status, 200, "{}", large.text);
}

/// Returns the number of allocated bytes.
async fn allocated(server: &Server) -> u64 {
    let account = server.get("/failpoints", &service()).await.ok();
    account["allocatedBytes"].as_u64().expect("a number")
}

/// Waits until the number of allocated bytes has this property.
async fn wait_for_memory(server: &Server, is_met: impl Fn(u64) -> bool) {
    let waiting = async { while !is_met(allocated(server).await) {} };
    let waited = timeout(TIMEOUT, waiting).await;
    waited.expect("the memory does not change as expected");
}

#[tokio::test]
async fn a_worker_over_its_budget_refuses_and_recovers() {
    const BUDGET: u64 = 12 << 20;
    // More than the budget, whatever else is allocated.
    const HOLDERS: u64 = 16;
    const HELD: u64 = 1_000_000;
    const { assert!(HOLDERS * (HELD - 1) > BUDGET) };
    let budget = BUDGET.to_string();
    let settings = [ONE_GATEWAY, ("MAX_OBJECT_BYTES", &budget)];
    let server = Server::start_worker(&Worker::built("failpoints"), &settings);
    let mut alice = Client::join(&server, "budget", &token("alice")).await;
    let publication = json!({ "room": "budget", "event": "news", "data": 1 });
    let publish = async || {
        server
            .post("/publish", &service(), publication.clone())
            .await
    };
    publish().await.ok();
    alice.send_message("before").await;
    let idle = allocated(&server).await;
    assert!(idle < BUDGET / 2, "{idle} bytes");

    let mut holders = Vec::new();
    for _ in 0..HOLDERS {
        let holder = HalfSent::send(&server, "/publish", HELD as usize, 1);
        holders.push(holder.await);
    }
    wait_for_memory(&server, |bytes| bytes > BUDGET).await;
    let message = json!({ "content": "refused" });
    let refused = alice.request("sendMessage", message).await;
    let refused = refused.expect_err("over the budget");
    assert_eq!(refused["code"], "rateLimited", "{refused}");
    assert!(refused["retryAfterMs"].as_u64() > Some(0), "{refused}");
    let bob = token("bob");
    let polling = format!("/socket.io/?EIO=4&transport=polling&token={bob}");
    let answers = [
        publish().await,
        server.request("GET", &polling, None, None).await,
        server
            .request_upgrade(&format!("/ws?token={bob}"), &[])
            .await,
        server
            .request_upgrade(&format!("/rooms/budget/ws?token={bob}"), &[])
            .await,
    ];
    for answer in answers {
        answer.problem(503, "unavailable");
        assert!(has_retry_after(&answer), "{:?}", answer.headers);
    }

    for holder in holders {
        assert_eq!(holder.complete().await, 400, "spaces are not JSON");
    }
    wait_for_memory(&server, |bytes| bytes < BUDGET / 2).await;
    alice.send_message("after").await;
    publish().await.ok();
    let path = format!("/ws?token={bob}");
    let mut bob = Client::open(&server, &path, &[]).await.expect("accepted");
    let joined = bob.request("joinRoom", json!("budget")).await;
    joined.expect("joined");
    let seen: Vec<u64> = alice.logged(4).await.iter().map(Client::seq).collect();
    assert_eq!(seen, [1, 2, 3, 4]);
    session(&server, "carol").await;
}
