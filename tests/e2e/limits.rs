//! Every limit: what is over it is refused and does no more, the rest goes on.

use super::{DEFAULT, FAST, service, token};
use roomcast_harness::{Answer, Client, Server};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Sends `n` times at once and answers what became of each: `Ok` or the error.
async fn burst(client: &mut Client, n: usize, event: &str, data: Value) -> Vec<Result<(), Value>> {
    let mut ids = Vec::with_capacity(n);
    for _ in 0..n {
        ids.push(client.start(event, data.clone()).await);
    }
    let mut answers = Vec::with_capacity(n);
    for id in ids {
        answers.push(client.answer(id).await.map(drop));
    }
    answers
}

/// Asserts that all but the first `burst` were refused as too many, or nearly
/// so: the bucket refills meanwhile. Answers the last error.
fn limited(answers: &[Result<(), Value>], burst: usize, refill: usize) -> Value {
    let taken = answers.iter().filter(|answer| answer.is_ok()).count();
    assert!((burst..=burst + refill).contains(&taken), "{taken} taken");
    assert!(answers[..burst].iter().all(Result::is_ok), "the burst is");
    let errors: Vec<&Value> = answers
        .iter()
        .filter_map(|one| one.as_ref().err())
        .collect();
    for error in &errors {
        assert_eq!(error["code"], "rateLimited");
        assert!(
            error["retryAfterMs"].as_u64().is_some_and(|wait| wait > 0),
            "{error}"
        );
    }
    errors.last().copied().expect("some were refused").clone()
}

async fn knock(server: &Server, room: &str, user: &str, address: &str) -> Answer {
    let path = format!("/rooms/{room}/ws?token={}", token(user));
    server.knock(&path, &[("cf-connecting-ip", address)]).await
}

#[tokio::test]
async fn messages_20_a_second_with_a_burst_of_40() {
    let mut alice = Client::join(&DEFAULT, "rate", &token("alice")).await;
    let mut bob = Client::join(&DEFAULT, "rate", &token("bob")).await;
    let began = Instant::now();
    let mut answers = burst(&mut alice, 60, "sendMessage", json!({ "content": 1 })).await;
    let refill = (began.elapsed().as_secs_f64() * 20.0).ceil() as usize;
    let error = limited(&answers, 40, refill);
    let wait = error["retryAfterMs"].as_u64().expect("a time");
    assert!(wait <= 50, "{wait}");
    // Custom events count with them, another's messages do not.
    answers.extend(burst(&mut alice, 20, "emit", json!({ "event": "x", "data": 1 })).await);
    assert!(answers[60..].iter().any(Result::is_err));
    bob.say("not concerned").await;
    // After the time it said there is one more, and so on.
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        answers.extend(burst(&mut alice, 1, "sendMessage", json!({ "content": 2 })).await);
    }
    assert!(answers[80..].iter().all(Result::is_ok));
    // What was refused is nowhere.
    let taken = answers.iter().filter(|answer| answer.is_ok()).count() + 1;
    bob.logged(taken).await;
    let page = bob
        .request("sync", json!({ "after": 0 }))
        .await
        .expect("a page");
    assert_eq!(page["head"], taken);
}

#[tokio::test]
async fn typing_and_presence_5_a_second_with_a_burst_of_20() {
    let mut alice = Client::join(&DEFAULT, "signals", &token("alice")).await;
    let mut answers = burst(
        &mut alice,
        10,
        "typingIndicator",
        json!({ "isTyping": true }),
    )
    .await;
    answers.extend(burst(&mut alice, 20, "setPresence", json!({ "status": "away" })).await);
    limited(&answers, 20, 5);
    alice.say("messages are another matter").await;
}

#[tokio::test]
async fn joins_are_limited() {
    let server = Server::start(&[("JOINS_PER_SECOND", "1"), ("JOINS_BURST", "10")]);
    let mut alice = Client::join(&server, "joins", &token("alice")).await;
    let mut answers = burst(&mut alice, 5, "joinRoom", json!({ "since": 0 })).await;
    answers.extend(burst(&mut alice, 5, "sync", json!({ "after": 0 })).await);
    answers.extend(burst(&mut alice, 5, "refreshToken", json!({ "token": "x" })).await);
    // Those that are refused for another reason count too.
    let over: Vec<_> = answers.split_off(10);
    assert!(answers.iter().all(Result::is_ok));
    assert!(over.iter().any(|one| {
        one.as_ref()
            .is_err_and(|error| error["code"] == "rateLimited")
    }));
    let left = burst(&mut alice, 5, "leaveRoom", json!({})).await;
    assert!(left.iter().any(|one| {
        one.as_ref()
            .is_err_and(|error| error["code"] == "rateLimited")
    }));
}

#[tokio::test]
async fn anything_at_all_is_limited() {
    let server = Server::start(&[("COMMANDS_PER_SECOND", "1"), ("COMMANDS_BURST", "10")]);
    let mut alice = Client::join(&server, "commands", &token("alice")).await;
    // Faults and acknowledgements, which no other limit counts.
    for _ in 0..5 {
        alice.send("nothing", json!({})).await;
        assert_eq!(alice.expect("error").await["data"]["code"], "badRequest");
    }
    let answers = burst(&mut alice, 20, "messageRead", json!({ "seq": 0 })).await;
    limited(&answers, 5, 2);
    alice.send("nothing", json!({})).await;
    let error = alice.expect("error").await["data"].clone();
    assert_eq!(error["code"], "rateLimited");
    assert!(error["retryAfterMs"].as_u64().is_some());
}

#[tokio::test]
async fn a_burst_over_the_limit_is_answered_one_by_one_and_closes_nothing() {
    let mut alice = Client::join(&DEFAULT, "burst", &token("alice")).await;
    let began = Instant::now();
    let answers = burst(&mut alice, 900, "sendMessage", json!({ "content": 1 })).await;
    let refill = (began.elapsed().as_secs_f64() * 20.0).ceil() as usize;
    limited(&answers, 40, refill);
    alice
        .request("sync", json!({ "after": 0 }))
        .await
        .expect("still here");
}

/// Floods until it is closed: the code.
async fn flood(client: &mut Client, data: Value) -> u16 {
    let message = json!({ "event": "sendMessage", "data": data }).to_string();
    let frame = vec![message; 500].join("\n");
    for _ in 0..20 {
        client.send_text(&frame).await;
    }
    client.closed().await
}

#[tokio::test]
async fn a_flood_is_closed_with_4429_at_once_and_kept_out_for_a_while() {
    let server = Server::start(&[("FLOOD_BAN", "2s"), ("GATEWAY_SHARDS", "1")]);
    let mut bob = Client::join(&server, "flood", &token("bob")).await;
    let mut carol = Client::join(&server, "flood", &token("carol")).await;
    let mut mallory = Client::join(&server, "flood", &token("mallory")).await;
    assert_eq!(flood(&mut mallory, json!({ "content": "" })).await, 4429);
    let answer = knock(&server, "flood", "mallory", "192.0.2.1").await;
    answer.problem(429, "rateLimited");
    let wait: u32 = answer.header("retry-after").parse().expect("seconds");
    assert!((1..=2).contains(&wait), "{wait}");
    // Nobody else is concerned, nor is another room.
    carol.say("still here").await;
    bob.find("carol's", |line| line["data"]["content"] == "still here")
        .await;
    Client::join(&server, "elsewhere", &token("mallory")).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    Client::join(&server, "flood", &token("mallory")).await;

    // The same at a gateway.
    let path = |user: &str| format!("/ws?token={}", token(user));
    let mut mallory = Client::open(&server, &path("mallory"), &[])
        .await
        .expect("let in");
    mallory
        .request("joinRoom", json!("far"))
        .await
        .expect("joined");
    let spoken = json!({ "roomId": "far", "content": "" });
    assert_eq!(flood(&mut mallory, spoken).await, 4429);
    let answer = server.knock(&path("mallory"), &[]).await;
    answer.problem(429, "rateLimited");
    Client::open(&server, &path("bob"), &[])
        .await
        .expect("let in");
}

#[tokio::test]
async fn over_a_limit_for_10_seconds_closes_with_4429() {
    let mut alice = Client::join(&DEFAULT, "flood", &token("alice")).await;
    let mut bob = Client::join(&DEFAULT, "flood", &token("bob")).await;
    // Time is the promise. Carol goes over it as often, but not all the time.
    let mut carol = Client::join(&DEFAULT, "flood", &token("carol")).await;
    let began = Instant::now();
    let flood = json!({ "event": "sendMessage", "data": { "content": "" } }).to_string();
    let flood = vec![flood; 45].join("\n");
    let mut round = 0;
    while began.elapsed() < Duration::from_millis(11_000) {
        alice.send_text(&flood).await;
        if round % 7 == 0 {
            carol.send_text(&flood).await;
        }
        round += 1;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(alice.closed().await, 4429);
    carol
        .request("sync", json!({ "after": 0 }))
        .await
        .expect("still here");
    bob.request("sync", json!({ "after": 0 }))
        .await
        .expect("still here");
}

#[tokio::test]
async fn connections_of_a_user_in_a_room_are_10() {
    let mut open = Vec::new();
    for _ in 0..10 {
        open.push(Client::join(&DEFAULT, "ten", &token("alice")).await);
    }
    let answer = knock(&DEFAULT, "ten", "alice", "192.0.2.1").await;
    answer.problem(429, "rateLimited");
    assert!(
        answer
            .header("retry-after")
            .parse::<u32>()
            .is_ok_and(|wait| wait > 0)
    );
    // Other users and other rooms are other matters.
    Client::join(&DEFAULT, "ten", &token("bob")).await;
    Client::join(&DEFAULT, "eleven", &token("alice")).await;
    // One that goes makes place for one.
    open.pop().expect("ten").close().await;
    Client::join(&DEFAULT, "ten", &token("alice")).await;
}

#[tokio::test]
async fn connects_per_minute_are_counted_per_address() {
    let server = Server::start(&[("CONNECTS_PER_MINUTE", "3")]);
    let path = format!("/rooms/door/ws?token={}", token("alice"));
    let enter =
        async |address: &str| Client::open(&server, &path, &[("cf-connecting-ip", address)]).await;
    for _ in 0..3 {
        enter("192.0.2.1").await.expect("within").close().await;
    }
    let answer = knock(&server, "door", "alice", "192.0.2.1").await;
    answer.problem(429, "rateLimited");
    let wait: u32 = answer.header("retry-after").parse().expect("seconds");
    assert!((1..=20).contains(&wait), "{wait}");
    enter("192.0.2.2").await.expect("another address");
    enter("2001:db8::1").await.expect("another address");
}

#[tokio::test]
async fn members_of_a_room_are_limited() {
    let server = Server::start(&[("MAX_MEMBERS", "2")]);
    Client::join(&server, "small", &token("alice"))
        .await
        .close()
        .await;
    server
        .put("/rooms/small/members/bob", &service())
        .await
        .ok();
    knock(&server, "small", "carol", "192.0.2.1")
        .await
        .problem(409, "conflict");
    server
        .put("/rooms/small/members/carol", &service())
        .await
        .problem(409, "conflict");
    // Who is a member still comes in, and who leaves makes place.
    let mut alice = Client::join(&server, "small", &token("alice")).await;
    alice.request("leaveRoom", json!({})).await.expect("left");
    Client::join(&server, "small", &token("carol")).await;
    let back = alice.request("joinRoom", json!("small")).await;
    assert_eq!(back.expect_err("no place")["code"], "conflict");
}

#[tokio::test]
async fn limits_are_configurable_and_connected_tells_them() {
    let server = Server::start(&[
        ("MAX_FRAME_BYTES", "1000"),
        ("MAX_BODY_BYTES", "2000"),
        ("MESSAGES_PER_SECOND", "1"),
        ("MESSAGES_BURST", "3"),
        ("SIGNALS_PER_SECOND", "2"),
        ("SIGNALS_BURST", "4"),
        ("MAX_CONNECTIONS_PER_USER", "1"),
    ]);
    let mut alice = Client::join(&server, "own", &token("alice")).await;
    let limits = &alice.connected["limits"];
    assert_eq!(limits["maxFrameBytes"], 1000);
    assert_eq!(
        (&limits["messagesPerSecond"], &limits["messagesBurst"]),
        (&json!(1.0), &json!(3.0))
    );
    assert_eq!(
        (&limits["signalsPerSecond"], &limits["signalsBurst"]),
        (&json!(2.0), &json!(4.0))
    );
    knock(&server, "own", "alice", "192.0.2.1")
        .await
        .problem(429, "rateLimited");
    limited(
        &burst(&mut alice, 6, "sendMessage", json!({ "content": 1 })).await,
        3,
        1,
    );
    limited(
        &burst(&mut alice, 8, "setPresence", json!({ "status": "away" })).await,
        4,
        2,
    );
    alice.send_text(&" ".repeat(1001)).await;
    assert_eq!(alice.closed().await, 4413);
    // The body's own limit, and that of an event within it.
    let publish = async |length: usize| {
        let body = json!({ "event": "x", "data": "x".repeat(length), "room": "own" });
        server.post("/publish", &service(), body).await
    };
    publish(900).await.ok();
    publish(1000).await.problem(413, "tooLarge");
    publish(2000).await.problem(413, "tooLarge");
}

#[tokio::test]
async fn a_large_body_is_413_however_it_comes() {
    let token = service();
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str())];
    let body = json!({ "event": "x", "room": "body", "data": "x".repeat(10 << 20) }).to_string();
    let answer = FAST.call("POST", "/publish", &headers, body.clone()).await;
    answer.problem(413, "tooLarge");
    // Without saying so beforehand.
    let answer = FAST.chunked("POST", "/publish", &headers, body).await;
    answer.problem(413, "tooLarge");
}

/// An object has 128 MB in all; a socket may have `MAX_UNACKED_BYTES` (32 MiB)
/// of it, and what else comes and goes meanwhile needs its place.
const HELD: usize = 96;

/// Sends `frame` up to `n` times and reads nothing: by how many MiB the memory
/// of the server grew, and how many it took. Bob has to be served meanwhile.
async fn deaf(server: &Server, bob: &mut Client, frame: &str, n: usize) -> (usize, usize) {
    let mut mallory = Client::join(server, "deaf", &token("mallory")).await;
    let (before, mut most, mut taken) = (server.memory(), 0, 0);
    while taken < n {
        let sent = mallory.send_text(frame);
        // Not taken any more once it is cut.
        if tokio::time::timeout(Duration::from_secs(2), sent)
            .await
            .is_err()
        {
            break;
        }
        taken += 1;
        if taken % 10 == 0 {
            bob.request("sync", json!({ "after": 1_000_000 }))
                .await
                .expect("served");
            most = most.max(server.memory());
        }
    }
    // What is on its way is served, or not, within this time.
    for _ in 0..50 {
        bob.request("messageRead", json!({ "seq": 0 }))
            .await
            .expect("served");
        most = most.max(server.memory());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (most.saturating_sub(before), taken)
}

#[tokio::test]
async fn who_sends_faults_and_reads_nothing_does_not_hold_the_memory_of_the_room() {
    let server = Server::start(&[]);
    let mut bob = Client::join(&server, "deaf", &token("bob")).await;
    bob.say("hello").await;
    let frame = "7\n".repeat(32_000);
    let (grown, frames) = deaf(&server, &mut bob, &frame, 100).await;
    assert!(grown < HELD, "{grown} MiB by {frames} frames of faults");
}

#[tokio::test]
async fn who_asks_for_pages_and_reads_none_does_not_hold_the_memory_of_the_room() {
    let server = Server::start(&[]);
    let mut bob = Client::join(&server, "deaf", &token("bob")).await;
    let text = "x".repeat(60_000);
    for _ in 0..40 {
        let body = json!({ "event": "x", "data": text, "room": "deaf" });
        server.post("/publish", &service(), body).await.ok();
    }
    bob.logged(40).await;
    let frame = json!({ "event": "sync", "data": { "after": 0, "limit": 1000 }, "id": 1 });
    let (grown, frames) = deaf(&server, &mut bob, &frame.to_string(), 100).await;
    assert!(grown < HELD, "{grown} MiB by {frames} times `sync`");
}

#[tokio::test]
async fn a_setting_that_is_none_is_a_500_that_names_it_and_healthz_still_answers() {
    for (name, value) in [
        ("MESSAGES_PER_SECOND", "-1"),
        ("MESSAGES_BURST", "NaN"),
        ("MAX_FRAME_BYTES", "64 KiB"),
        ("MAX_MEMBERS", "0"),
        ("CONNECTS_PER_MINUTE", "0"),
        ("DEDUPE_WINDOW", "ten"),
        ("LOG_LEVEL", "loud"),
    ] {
        let server = Server::start(&[(name, value)]);
        for answer in [
            knock(&server, "a", "alice", "192.0.2.1").await,
            server.get("/rooms/a/messages", &service()).await,
        ] {
            answer.problem(500, "misconfigured");
            let detail = answer.json["detail"].as_str().expect("a detail");
            assert!(detail.contains(name), "{name}: {detail}");
        }
        server.request("GET", "/healthz", None, None).await.ok();
    }
}

#[tokio::test]
async fn who_reads_and_says_so_is_not_cut() {
    let server = Server::start(&[("MAX_UNACKED_BYTES", "1000000")]);
    let one = json!({ "event": "x", "data": "x".repeat(60_000), "room": "reads" });
    let batch = json!({ "messages": vec![one; 15] });
    let mut acks = Client::join(&server, "reads", &token("acks")).await;
    let mut pings = Client::join(&server, "reads", &token("pings")).await;
    let mut sends = Client::join(&server, "reads", &token("sends")).await;
    for n in 1..=10 {
        server
            .post("/publish", &service(), batch.clone())
            .await
            .ok();
        acks.logged(15).await;
        acks.request("messageDelivered", json!({ "seq": n * 15 }))
            .await
            .expect("moved");
        pings.logged(15).await;
        pings.send_text("ping").await;
        pings.find("pong", |line| line == "pong").await;
        sends.logged(15).await;
        sends
            .send("typingIndicator", json!({ "isTyping": true }))
            .await;
    }
}
