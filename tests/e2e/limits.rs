//! Limits: a request over a limit is refused and has no effect. Other clients are not
//! affected.

use super::{DEFAULT, FAST, service, token};
use roomcast_harness::{Answer, Client, Server, SocketIo, Token};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Sends a command `n` times without waiting and returns all answers.
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

/// Asserts that the first `burst` commands and up to `refill` more were accepted and
/// the rest refused with `rateLimited`. Returns the last error.
fn assert_limited(answers: &[Result<(), Value>], burst: usize, refill: usize) -> Value {
    let accepted = answers.iter().filter(|answer| answer.is_ok()).count();
    assert!(
        (burst..=burst + refill).contains(&accepted),
        "{accepted} accepted"
    );
    assert!(
        answers[..burst].iter().all(Result::is_ok),
        "the whole burst must be accepted"
    );
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

/// Requests an upgrade from an address and returns the response.
async fn request_upgrade(server: &Server, room: &str, user: &str, address: &str) -> Answer {
    let path = format!("/rooms/{room}/ws?token={}", token(user));
    server
        .request_upgrade(&path, &[("cf-connecting-ip", address)])
        .await
}

#[tokio::test]
async fn messages_are_limited_to_20_per_second_with_a_burst_of_40() {
    let mut alice = Client::join(&DEFAULT, "rate", &token("alice")).await;
    let mut bob = Client::join(&DEFAULT, "rate", &token("bob")).await;
    let began = Instant::now();
    let mut answers = burst(&mut alice, 60, "sendMessage", json!({ "content": 1 })).await;
    let refill = (began.elapsed().as_secs_f64() * 20.0).ceil() as usize;
    let error = assert_limited(&answers, 40, refill);
    let wait = error["retryAfterMs"].as_u64().expect("a time");
    assert!(wait <= 50, "{wait}");
    // Custom events count as messages. Messages of other users do not.
    answers.extend(burst(&mut alice, 20, "emit", json!({ "event": "x", "data": 1 })).await);
    assert!(answers[60..].iter().any(Result::is_err));
    bob.send_message("not limited").await;
    // One message is accepted after each `retryAfterMs`.
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        answers.extend(burst(&mut alice, 1, "sendMessage", json!({ "content": 2 })).await);
    }
    assert!(answers[80..].iter().all(Result::is_ok));
    // Refused messages are neither delivered nor stored.
    let accepted = answers.iter().filter(|answer| answer.is_ok()).count() + 1;
    bob.logged(accepted).await;
    let page = bob
        .request("sync", json!({ "after": 0 }))
        .await
        .expect("a page");
    assert_eq!(page["head"], accepted);
}

#[tokio::test]
async fn typing_and_presence_are_limited_to_5_per_second_with_a_burst_of_20() {
    let mut alice = Client::join(&DEFAULT, "signals", &token("alice")).await;
    let mut answers = burst(
        &mut alice,
        10,
        "typingIndicator",
        json!({ "isTyping": true }),
    )
    .await;
    answers.extend(burst(&mut alice, 20, "setPresence", json!({ "status": "away" })).await);
    assert_limited(&answers, 20, 5);
    alice.send_message("messages have their own limit").await;
}

#[tokio::test]
async fn joins_syncs_refreshes_and_leaves_are_limited() {
    let server = Server::start(&[("JOINS_PER_SECOND", "1"), ("JOINS_BURST", "10")]);
    let mut alice = Client::join(&server, "joins", &token("alice")).await;
    let mut answers = burst(&mut alice, 5, "joinRoom", json!({ "since": 0 })).await;
    answers.extend(burst(&mut alice, 5, "sync", json!({ "after": 0 })).await);
    answers.extend(burst(&mut alice, 5, "refreshToken", json!({ "token": "x" })).await);
    // Commands that are refused for another reason count as well.
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
async fn all_commands_are_limited() {
    let server = Server::start(&[("COMMANDS_PER_SECOND", "1"), ("COMMANDS_BURST", "10")]);
    let mut alice = Client::join(&server, "commands", &token("alice")).await;
    // Malformed commands and receipts count only against this limit.
    for _ in 0..5 {
        alice.send_text(r#"{"event":"nothing"}"#).await;
        assert_eq!(alice.expect("error").await["data"]["code"], "badRequest");
    }
    let answers = burst(&mut alice, 20, "messageRead", json!({ "seq": 0 })).await;
    assert_limited(&answers, 5, 2);
    alice.send_text(r#"{"event":"nothing"}"#).await;
    let error = alice.expect("error").await["data"].clone();
    assert_eq!(error["code"], "rateLimited");
    assert!(error["retryAfterMs"].as_u64().is_some());
}

#[tokio::test]
async fn each_message_of_a_burst_over_the_limit_is_answered_and_the_socket_stays_open() {
    let mut alice = Client::join(&DEFAULT, "burst", &token("alice")).await;
    let began = Instant::now();
    let answers = burst(&mut alice, 900, "sendMessage", json!({ "content": 1 })).await;
    let refill = (began.elapsed().as_secs_f64() * 20.0).ceil() as usize;
    assert_limited(&answers, 40, refill);
    alice
        .request("sync", json!({ "after": 0 }))
        .await
        .expect("still here");
}

/// Sends 10,000 messages and returns the close code.
async fn flood(client: &mut Client, data: Value) -> u16 {
    let message = json!({ "event": "sendMessage", "data": data }).to_string();
    let frame = vec![message; 500].join("\n");
    for _ in 0..20 {
        client.send_text(&frame).await;
    }
    client.closed().await
}

#[tokio::test]
async fn a_flood_is_closed_with_4429_at_once_and_the_user_is_banned() {
    let server = Server::start(&[("FLOOD_BAN", "2s"), ("GATEWAY_SHARDS", "1")]);
    let mut bob = Client::join(&server, "flood", &token("bob")).await;
    let mut carol = Client::join(&server, "flood", &token("carol")).await;
    let mut mallory = Client::join(&server, "flood", &token("mallory")).await;
    assert_eq!(flood(&mut mallory, json!({ "content": "" })).await, 4429);
    let answer = request_upgrade(&server, "flood", "mallory", "192.0.2.1").await;
    answer.problem(429, "rateLimited");
    let wait: u32 = answer.header("retry-after").parse().expect("seconds");
    assert!((1..=2).contains(&wait), "{wait}");
    // Other users and other rooms are not affected.
    carol.send_message("still here").await;
    bob.find("the message of carol", |line| {
        line["data"]["content"] == "still here"
    })
    .await;
    Client::join(&server, "elsewhere", &token("mallory")).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    Client::join(&server, "flood", &token("mallory")).await;

    // A gateway bans as well.
    let path = |user: &str| format!("/ws?token={}", token(user));
    let mut mallory = Client::open(&server, &path("mallory"), &[])
        .await
        .expect("accepted");
    mallory
        .request("joinRoom", json!("at-gateway"))
        .await
        .expect("joined");
    let message = json!({ "roomId": "at-gateway", "content": "" });
    assert_eq!(flood(&mut mallory, message).await, 4429);
    let answer = server.request_upgrade(&path("mallory"), &[]).await;
    answer.problem(429, "rateLimited");
    Client::open(&server, &path("bob"), &[])
        .await
        .expect("accepted");
}

#[tokio::test]
async fn a_socket_io_client_that_floods_is_disconnected_and_then_refused_with_a_code() {
    let server = Server::start(&[
        ("FLOOD_BAN", "30s"),
        ("GATEWAY_SHARDS", "1"),
        ("COMMANDS_PER_SECOND", "1"),
        ("COMMANDS_BURST", "5"),
        ("REFUSALS_PER_SECOND", "1"),
        ("REFUSALS_BURST", "1"),
    ]);
    let mut mallory = SocketIo::join(&server, &token("mallory")).await;
    for _ in 0..500 {
        // Not in the room, and soon over the limit of commands.
        mallory
            .send(r#"42["sendMessage",{"roomId":"flood","content":""}]"#)
            .await;
    }
    assert_eq!(mallory.closed().await, 4429);
    // A client reconnects after the end of its connection, but not after this packet.
    assert!(mallory.is_disconnected("/"));
    let mut again = SocketIo::open(&server, "").await;
    let auth = json!({ "token": token("mallory") });
    let error = again.connect("/", auth).await.expect_err("banned");
    assert_eq!(error["data"]["code"], "rateLimited");
    let wait = error["data"]["retryAfterMs"].as_u64();
    assert!(
        wait.is_some_and(|wait| (1..=30_000).contains(&wait)),
        "{error}"
    );
}

#[tokio::test]
async fn exceeding_a_limit_for_10_seconds_closes_with_4429() {
    let mut alice = Client::join(&DEFAULT, "flood", &token("alice")).await;
    let mut bob = Client::join(&DEFAULT, "flood", &token("bob")).await;
    // Carol exceeds the limit as well, but with pauses. The test must last longer
    // than 10 s.
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
async fn connections_of_a_user_in_a_room_are_limited_to_10() {
    let mut open = Vec::new();
    for _ in 0..10 {
        open.push(Client::join(&DEFAULT, "ten", &token("alice")).await);
    }
    // Other users and other rooms are not affected.
    Client::join(&DEFAULT, "ten", &token("bob")).await;
    Client::join(&DEFAULT, "eleven", &token("alice")).await;
    // All but the fourth show activity. Sockets that have left the room count as well.
    tokio::time::sleep(Duration::from_millis(20)).await;
    open[0].request("leaveRoom", json!({})).await.expect("left");
    for (index, client) in open.iter_mut().enumerate() {
        if index != 3 {
            let joined = client.request("joinRoom", json!({})).await;
            joined.expect("joined");
        }
    }
    open.push(Client::join(&DEFAULT, "ten", &token("alice")).await);
    assert_eq!(open.remove(3).closed().await, 4409);
    for client in &mut open {
        let sent = client.request("sendMessage", json!({ "content": 1 })).await;
        sent.expect("open");
    }
    // A disconnect frees one connection.
    open.pop().expect("ten").close().await;
    open.push(Client::join(&DEFAULT, "ten", &token("alice")).await);
    let sent = open[0]
        .request("sendMessage", json!({ "content": 1 }))
        .await;
    sent.expect("open");
}

#[tokio::test]
async fn connects_are_limited_per_minute_and_address() {
    let server = Server::start(&[("CONNECTS_PER_MINUTE", "3")]);
    let path = format!("/rooms/connects/ws?token={}", token("alice"));
    let connect =
        async |address: &str| Client::open(&server, &path, &[("cf-connecting-ip", address)]).await;
    for _ in 0..3 {
        connect("192.0.2.1")
            .await
            .expect("within the limit")
            .close()
            .await;
    }
    let answer = request_upgrade(&server, "connects", "alice", "192.0.2.1").await;
    answer.problem(429, "rateLimited");
    let wait: u32 = answer.header("retry-after").parse().expect("seconds");
    assert!((1..=20).contains(&wait), "{wait}");
    connect("192.0.2.2").await.expect("another address");
    connect("2001:db8::1").await.expect("another address");
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
    request_upgrade(&server, "small", "carol", "192.0.2.1")
        .await
        .problem(409, "conflict");
    server
        .put("/rooms/small/members/carol", &service())
        .await
        .problem(409, "conflict");
    // A member can still connect. A leave makes room for one new member.
    let mut alice = Client::join(&server, "small", &token("alice")).await;
    alice.request("leaveRoom", json!({})).await.expect("left");
    Client::join(&server, "small", &token("carol")).await;
    let back = alice.request("joinRoom", json!("small")).await;
    assert_eq!(back.expect_err("the room is full")["code"], "conflict");
}

#[tokio::test]
async fn limits_are_configurable_and_sent_in_connected() {
    let server = Server::start(&[
        ("MAX_FRAME_BYTES", "1000"),
        ("MAX_BODY_BYTES", "2000"),
        ("MESSAGES_PER_SECOND", "1"),
        ("MESSAGES_BURST", "3"),
        ("SIGNALS_PER_SECOND", "2"),
        ("SIGNALS_BURST", "4"),
        ("MAX_CONNECTIONS_PER_USER", "1"),
    ]);
    let mut replaced = Client::join(&server, "own", &token("alice")).await;
    let mut alice = Client::join(&server, "own", &token("alice")).await;
    assert_eq!(replaced.closed().await, 4409);
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
    assert_limited(
        &burst(&mut alice, 6, "sendMessage", json!({ "content": 1 })).await,
        3,
        1,
    );
    assert_limited(
        &burst(&mut alice, 8, "setPresence", json!({ "status": "away" })).await,
        4,
        2,
    );
    alice.send_text(&" ".repeat(1001)).await;
    assert_eq!(alice.closed().await, 4413);
    // `MAX_BODY_BYTES` limits the body, `MAX_FRAME_BYTES` each event in it.
    let publish = async |length: usize| {
        let body = json!({ "event": "x", "data": "x".repeat(length), "room": "own" });
        server.post("/publish", &service(), body).await
    };
    publish(900).await.ok();
    publish(1000).await.problem(413, "tooLarge");
    publish(2000).await.problem(413, "tooLarge");
}

#[tokio::test]
async fn a_body_over_the_limit_is_413_with_and_without_content_length() {
    let token = service();
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str())];
    let body = json!({ "event": "x", "room": "body", "data": "x".repeat(10 << 20) }).to_string();
    let answer = FAST.call("POST", "/publish", &headers, body.clone()).await;
    answer.problem(413, "tooLarge");
    // Chunked, without `Content-Length`.
    let answer = FAST.chunked("POST", "/publish", &headers, body).await;
    answer.problem(413, "tooLarge");
}

/// Upper limit for the memory growth of the server, in MiB. An object may use 128 MB.
/// One socket may use `MAX_UNACKED_BYTES` (32 MiB) of it.
const MAX_GROWTH: usize = 96;

/// Sends `frame` up to `n` times without reading. Returns the growth of the server's
/// memory in MiB and the number of frames that it accepted. Asserts that the
/// commands of bob are answered meanwhile.
async fn send_without_reading(
    server: &Server,
    bob: &mut Client,
    frame: &str,
    n: usize,
) -> (usize, usize) {
    let mut mallory = Client::join(server, "memory", &token("mallory")).await;
    let (before, mut most, mut accepted) = (server.memory(), 0, 0);
    while accepted < n {
        let sent = mallory.send_text(frame);
        // After the server has closed the connection, the send blocks.
        if tokio::time::timeout(Duration::from_secs(2), sent)
            .await
            .is_err()
        {
            break;
        }
        accepted += 1;
        if accepted % 10 == 0 {
            bob.request("sync", json!({ "after": 1_000_000 }))
                .await
                .expect("served");
            most = most.max(server.memory());
        }
    }
    // The server processes the remaining frames within this time.
    for _ in 0..50 {
        bob.request("messageRead", json!({ "seq": 0 }))
            .await
            .expect("served");
        most = most.max(server.memory());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (most.saturating_sub(before), accepted)
}

#[tokio::test]
async fn errors_for_a_client_that_does_not_read_take_bounded_memory() {
    let server = Server::start(&[]);
    let mut bob = Client::join(&server, "memory", &token("bob")).await;
    bob.send_message("hello").await;
    let frame = "7\n".repeat(32_000);
    let (grown, frames) = send_without_reading(&server, &mut bob, &frame, 100).await;
    assert!(
        grown < MAX_GROWTH,
        "the server grew by {grown} MiB after {frames} frames of malformed commands"
    );
}

#[tokio::test]
async fn pages_for_a_client_that_does_not_read_take_bounded_memory() {
    let server = Server::start(&[]);
    let mut bob = Client::join(&server, "memory", &token("bob")).await;
    let text = "x".repeat(60_000);
    for _ in 0..40 {
        let body = json!({ "event": "x", "data": text, "room": "memory" });
        server.post("/publish", &service(), body).await.ok();
    }
    bob.logged(40).await;
    let frame = json!({ "event": "sync", "data": { "after": 0, "limit": 1000 }, "id": 1 });
    let (grown, frames) = send_without_reading(&server, &mut bob, &frame.to_string(), 100).await;
    assert!(
        grown < MAX_GROWTH,
        "the server grew by {grown} MiB after {frames} `sync` commands"
    );
}

#[tokio::test]
async fn an_invalid_setting_is_named_by_500_problems_and_by_503_on_healthz() {
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
            request_upgrade(&server, "a", "alice", "192.0.2.1").await,
            server.get("/rooms/a/messages", &service()).await,
        ] {
            answer.problem(500, "misconfigured");
            let detail = answer.json["detail"].as_str().expect("a detail");
            assert!(detail.contains(name), "{name}: {detail}");
        }
        let health = server.request("GET", "/healthz", None, None).await;
        health.problem(503, "misconfigured");
        assert!(health.text.contains(name), "{name}: {}", health.text);
    }
}

#[tokio::test]
async fn a_client_that_confirms_reading_by_any_frame_stays_connected() {
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
            .expect("accepted");
        pings.logged(15).await;
        pings.send_text("ping").await;
        pings.find("pong", |line| line == "pong").await;
        sends.logged(15).await;
        sends
            .send("typingIndicator", json!({ "isTyping": true }))
            .await;
    }
}

#[tokio::test]
async fn bytes_of_a_connection_are_limited_to_256_kib_per_second_with_a_burst_of_1_mib() {
    let server = Server::start(&[("BYTES_PER_SECOND", ""), ("BYTES_BURST", "")]);
    let own = Client::join(&server, "bytes", &token("alice")).await;
    let path = format!("/ws?token={}", token("bob"));
    let mut gateway = Client::open(&server, &path, &[]).await.expect("accepted");
    let joined = gateway.request("joinRoom", json!("bytes")).await;
    joined.expect("joined");
    for mut client in [own, gateway] {
        assert_eq!(client.connected["limits"]["bytesPerSecond"], 262_144.0);
        let began = Instant::now();
        let message = json!({ "roomId": "bytes", "content": "x".repeat(60_000) });
        let answers = burst(&mut client, 30, "sendMessage", message).await;
        let refill = (began.elapsed().as_secs_f64() * 262_144.0 / 60_000.0).ceil() as usize;
        let error = assert_limited(&answers, 17, refill);
        let message = error["message"].as_str().expect("a message");
        assert_eq!(message, "too many bytes");
    }
}

#[tokio::test]
async fn bytes_of_a_room_are_limited_for_clients_and_services_together() {
    let rate = [
        ("ROOM_BYTES_PER_SECOND", "1000"),
        ("ROOM_BYTES_BURST", "100000"),
    ];
    let server = Server::start(&rate);
    let publish = async |room: &str| {
        let body = json!({ "event": "x", "data": "x".repeat(40_000), "room": room });
        server.post("/publish", &service(), body).await
    };
    publish("bytes").await.ok();
    publish("bytes").await.ok();
    let answer = publish("bytes").await;
    answer.problem(429, "rateLimited");
    let wait: u32 = answer.header("retry-after").parse().expect("seconds");
    assert!((1..=21).contains(&wait), "{wait}");
    let mut alice = Client::join(&server, "bytes", &token("alice")).await;
    let message = json!({ "content": "x".repeat(40_000) });
    let refused = alice.request("sendMessage", message).await;
    assert_eq!(refused.expect_err("refused")["code"], "rateLimited");
    alice.send_message("a small one").await;
    // Each message of a batch has its own result. Other rooms are not affected.
    let one = |room: &str| json!({ "event": "x", "data": "x".repeat(40_000), "room": room });
    let batch = json!({ "messages": [one("bytes"), one("other")] });
    let answer = server.post("/publish", &service(), batch).await.ok();
    assert_eq!(
        answer["results"][0]["error"]["code"], "rateLimited",
        "{answer}"
    );
    assert_eq!(answer["results"][1]["seq"], 1);
}

/// Upper limit of the processor time of a request without a valid token, with its TCP
/// connection. It takes about 1 ms on a busy machine with two cores.
const STRANGER_TIME: Duration = Duration::from_millis(3);

#[tokio::test]
async fn a_request_without_a_valid_token_costs_little_processor_time() {
    const REQUESTS: u32 = 500;
    let server = Server::start(&[("GATEWAY_SHARDS", "1"), ("LOG_LEVEL", "warn")]);
    let sid = format!("0-{}", "0123456789abcdef".repeat(3));
    let ticket = format!("00{}", "0123456789abcdef".repeat(3));
    let invented = Token::user("alice").sign("the secret of another deployment, long enough");
    for (name, path, is_upgrade) in [
        ("no token", "/ws".to_owned(), true),
        ("a bad token", format!("/rooms/a/ws?token={invented}"), true),
        ("an invented ticket", format!("/ws?ticket={ticket}"), true),
        (
            "an invented sid",
            format!("/socket.io/?EIO=4&transport=polling&sid={sid}"),
            false,
        ),
        (
            "a new session",
            "/socket.io/?EIO=4&transport=polling".to_owned(),
            false,
        ),
    ] {
        let request = async || match is_upgrade {
            true => server.request_upgrade(&path, &[]).await,
            false => server.call("GET", &path, &[], "").await,
        };
        for _ in 0..50 {
            request().await;
        }
        let before = server.processor_time();
        for _ in 0..REQUESTS {
            request().await;
        }
        let each = (server.processor_time() - before) / REQUESTS;
        println!("{name}: {each:?} of processor time");
        assert!(each < STRANGER_TIME, "{name}: {each:?}");
    }
}
