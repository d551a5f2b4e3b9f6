//! The event log: one JSON record for each event that operators need, without
//! content, tokens or other secrets.

use super::{service, token};
use roomcast_harness::{Client, SECRET, Server, Token, now};
use serde_json::{Value, json};

/// Content that must not be logged. The tests put it into every field that a client can set.
const CONTENT: &str = "zebra-crossing";

/// Performs each kind of action and refusal once in the room `log`. Returns the
/// tokens that it used.
async fn exercise(server: &Server) -> Vec<String> {
    let (alice_token, bob_token) = (token("alice"), token("bob"));
    let expired = Token::user("carol").ttl(-100).sign(SECRET);
    let other_user = Token::service("nosy")
        .claim("rooms", json!(["other"]))
        .sign(SECRET);

    let mut alice = Client::join(server, "log", &alice_token).await;
    alice.send_message(CONTENT).await;
    let custom = json!({ "event": "note", "data": { CONTENT: CONTENT }, "messageId": "m1" });
    alice.request("emit", custom).await.expect("accepted");
    let mut bob = Client::join_with(server, "log", &bob_token, "since=0").await;
    bob.logged(2).await;
    let body = json!({ "event": "note", "data": CONTENT, "room": "log" });
    server.post("/publish", &service(), body.clone()).await.ok();
    bob.request("leaveRoom", json!({})).await.expect("left");
    server
        .delete("/rooms/log/connections?userId=bob", &service())
        .await
        .ok();
    bob.closed().await;

    // Refused upgrades, requests and commands.
    for token in [&expired, &format!("{alice_token}{CONTENT}")] {
        let path = format!("/rooms/log/ws?token={token}");
        server
            .request_upgrade(&path, &[])
            .await
            .problem(401, "unauthorized");
    }
    let path = format!("/rooms/log/ws?token={alice_token}");
    let origin = [("origin", "https://evil.example")];
    server
        .request_upgrade(&path, &origin)
        .await
        .problem(403, "forbidden");
    let path = format!("/rooms/log/ws?token={alice_token}&since={CONTENT}");
    server
        .request_upgrade(&path, &[])
        .await
        .problem(400, "badRequest");
    server
        .post("/publish", &bob_token, body.clone())
        .await
        .problem(403, "forbidden");
    server
        .post("/publish", &other_user, body)
        .await
        .problem(403, "forbidden");
    let refresh = json!({ "token": bob_token });
    alice.start("refreshToken", refresh).await;
    assert_eq!(alice.closed().await, 4403);
    let mut alice = Client::join(server, "log", &alice_token).await;
    for _ in 0..5 {
        alice
            .send("sendMessage", json!({ "content": CONTENT }))
            .await;
    }
    alice.expect("error").await;
    alice.send_text(CONTENT).await;
    assert_eq!(alice.closed().await, 4400);
    let mut alice = Client::join(server, "log", &alice_token).await;
    alice.send_binary(CONTENT.as_bytes()).await;
    alice.closed().await;
    let bad = format!("{{{CONTENT}");
    let answer = server
        .request("POST", "/publish", Some(&service()), Some(bad))
        .await;
    answer.problem(400, "badRequest");

    // A token that expires. The alarm of the room closes its socket.
    let brief = Token::user("dave").ttl(2).sign(SECRET);
    let mut dave = Client::join(server, "log", &brief).await;
    assert_eq!(dave.closed().await, 4401);
    server.delete("/rooms/log", &service()).await.ok();
    vec![
        alice_token,
        bob_token,
        expired,
        brief,
        other_user,
        service(),
    ]
}

/// Waits until there are `n` records of an event and returns them.
async fn records(server: &Server, event: &str, n: usize) -> Vec<Value> {
    let of_event = |line: &Value| line["event"] == event;
    let deadline = std::time::Instant::now() + roomcast_harness::TIMEOUT;
    loop {
        let lines: Vec<Value> = server.log().into_iter().filter(of_event).collect();
        if lines.len() >= n {
            return lines;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "{} of {n} records of {event} in:\n{}",
            lines.len(),
            server.output()
        );
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn each_event_is_logged_with_its_fields_and_without_content_or_tokens() {
    let server = Server::start(&[
        ("LOG_LEVEL", "debug"),
        ("MESSAGES_BURST", "3"),
        ("MESSAGES_PER_SECOND", "1"),
    ]);
    let secrets = exercise(&server).await;
    // (event, minimal number of records, additional fields)
    for (event, n, fields) in [
        ("wake", 1, &["connections", "seq", "durationMs"][..]),
        ("connect", 5, &["userId", "connectionId"]),
        ("disconnect", 5, &["userId", "connectionId", "code"]),
        ("join", 3, &["userId", "connectionId"]),
        ("leave", 1, &["userId"]),
        ("publish", 3, &["first", "count", "durationMs"]),
        ("replay", 1, &["userId", "connectionId", "after", "events"]),
        ("kick", 1, &["userId", "connections"]),
        ("alarm", 1, &[]),
        ("reject", 8, &["reason"]),
    ] {
        for line in records(&server, event, n).await {
            for field in ["ts", "level", "roomId"].iter().chain(fields) {
                assert!(!line[field].is_null(), "{field} in {line}");
            }
            let ts = line["ts"].as_str().expect("a time");
            assert_eq!(ts.len(), "2026-11-23T08:00:00.000Z".len(), "{line}");
            let level = line["level"].as_str().expect("a level");
            assert!(
                ["debug", "info", "warn", "error"].contains(&level),
                "{line}"
            );
        }
    }
    let output = server.output();
    for secret in secrets.iter().map(String::as_str).chain([CONTENT, SECRET]) {
        assert!(!output.contains(secret), "{secret} in:\n{output}");
        // The claims and the signature of a token must not appear alone either.
        for part in secret.split('.').skip(1) {
            assert!(!output.contains(part), "{part} in:\n{output}");
        }
    }
    assert!(!output.contains("panicked"), "{output}");
}

#[tokio::test]
async fn each_refusal_is_logged_with_its_reason() {
    let server = Server::start(&[("MESSAGES_BURST", "3"), ("MESSAGES_PER_SECOND", "1")]);
    exercise(&server).await;
    for (what, reason, user, n) in [
        ("upgrades with invalid tokens", "auth", Value::Null, 2),
        ("an upgrade from a foreign origin", "origin", Value::Null, 1),
        (
            "an upgrade with an invalid since",
            "malformed",
            Value::Null,
            1,
        ),
        ("too many messages", "rate", json!("alice"), 1),
        ("malformed frames", "malformed", json!("alice"), 2),
        (
            "a refresh with a token of another user",
            "auth",
            json!("alice"),
            1,
        ),
    ] {
        let rejects = records(&server, "reject", n).await;
        let found = rejects
            .iter()
            .filter(|line| line["reason"] == reason && (user.is_null() || line["userId"] == user));
        assert!(found.count() >= n, "{what}: {rejects:?}");
    }
    // Refused HTTP requests are logged as well: a publication of a user, a
    // publication to a room outside the token, a body that is not JSON.
    let rejects = records(&server, "reject", 9).await;
    let of = |reason: &str| {
        rejects
            .iter()
            .filter(|line| line["reason"] == reason)
            .count()
    };
    assert!(
        of("auth") >= 5,
        "two upgrades, two publications, one refresh: {rejects:?}"
    );
    assert!(
        of("malformed") >= 4,
        "one since, two frames, one body: {rejects:?}"
    );
}

#[tokio::test]
async fn log_level_selects_the_logged_records() {
    let levels = async |level: &str| {
        let server = Server::start(&[
            ("LOG_LEVEL", level),
            ("MESSAGES_BURST", "3"),
            ("MESSAGES_PER_SECOND", "1"),
        ]);
        exercise(&server).await;
        let log = server.log();
        let levels = log.iter().map(|line| line["level"].to_string());
        levels.collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(levels("off").await, [].into());
    assert_eq!(levels("error").await, [].into(), "no error was logged");
    assert_eq!(levels("warn").await, ["\"warn\"".to_owned()].into());
    let info = levels("info").await;
    assert!(info.contains("\"info\"") && info.contains("\"warn\""));
    assert!(!info.contains("\"debug\""));
}

/// A log record that a client tries to forge.
const FORGED: &str = r#"{"event":"kick","level":"info","userId":"forged"}"#;

#[tokio::test]
async fn a_line_break_in_any_field_does_not_forge_a_log_record() {
    let server = Server::start(&[("LOG_LEVEL", "debug")]);
    let breaks = ["\n", "\r", "\r\n", "\u{2028}", "\u{85}"];
    let encoded = |text: &str| {
        text.bytes()
            .map(|byte| format!("%{byte:02X}"))
            .collect::<String>()
    };
    let good = token("alice");
    for line_break in breaks {
        let forged = format!("x{line_break}{FORGED}{line_break}");
        let query = encoded(&forged);
        // In upgrades: in the room name, in each query parameter, in the claims of
        // a token.
        for path in [
            format!("/rooms/{query}/ws?token={good}"),
            format!("/rooms/forge/ws?token={query}"),
            format!("/rooms/forge/ws?token={good}&since={query}"),
            format!("/rooms/forge/ws?token={good}&history={query}"),
            format!("/{query}"),
        ] {
            let answer = server.request_upgrade(&path, &[]).await;
            assert!((400..500).contains(&answer.status), "{path}");
        }
        let sub = Token::user(&forged).sign(SECRET);
        let path = format!("/rooms/forge/ws?token={sub}");
        server
            .request_upgrade(&path, &[])
            .await
            .problem(401, "unauthorized");
        let path = format!("/rooms/forge/members/{query}");
        server
            .put(&path, &service())
            .await
            .problem(400, "badRequest");
        let path = format!("/rooms/forge/connections?userId={query}");
        server
            .delete(&path, &service())
            .await
            .problem(400, "badRequest");
        // In every string of every command.
        let path = format!("epoch={query}");
        let mut alice = Client::join_with(&server, "forge", &good, &path).await;
        for (event, data) in [
            ("joinRoom", json!(forged)),
            ("joinRoom", json!({ "since": 0, "epoch": forged })),
            ("leaveRoom", json!({ "roomId": forged })),
            (
                "sendMessage",
                json!({ "content": 1, "messageId": forged, "senderId": forged }),
            ),
            ("emit", json!({ "event": forged, "data": forged })),
            ("setPresence", json!({ "status": forged })),
            ("refreshToken", json!({ "token": forged })),
            (&forged, json!({})),
        ] {
            // The test only needs an answer, which may be an error.
            let _ = alice.request(event, data).await;
        }
        alice.send_message(&forged).await;
        alice.send_text(&forged).await;
        // Over HTTP.
        for field in ["event", "data", "room", "userId", "messageId"] {
            let mut body = json!({ "event": "x", "data": 1, "room": "forge" });
            body[field] = json!(forged);
            server.post("/publish", &service(), body).await;
        }
        let answer = server
            .request("POST", "/publish", Some(&service()), Some(forged))
            .await;
        answer.problem(400, "badRequest");
    }
    // The deletion is the last record.
    server.delete("/rooms/forge", &service()).await.ok();
    records(&server, "delete", 1).await;
    let output = server.output();
    assert!(!output.contains("forged"), "{output}");
    // The runtime may print other lines. They contain no brace.
    for line in output.lines().filter(|line| line.contains('{')) {
        let line: Value = serde_json::from_str(line)
            .unwrap_or_else(|_| panic!("{line} is not a complete record"));
        assert!(line["ts"].is_string() && line["event"].is_string());
    }
}

#[tokio::test]
async fn records_of_operations_have_a_duration() {
    let server = Server::start(&[]);
    let mut alice = Client::join(&server, "took", &token("alice")).await;
    alice.send_message("one").await;
    alice.close().await;
    let bob = Client::join_with(&server, "took", &token("bob"), "since=0").await;
    bob.close().await;
    for event in ["wake", "publish", "replay", "disconnect"] {
        for line in records(&server, event, 1).await {
            assert!(line["durationMs"].as_u64().is_some(), "{line}");
        }
    }
}

#[tokio::test]
async fn a_refused_request_is_logged_with_its_route_and_origin() {
    let server = Server::start(&[]);
    let body = json!({ "event": "x", "data": 1, "room": "a" });
    server
        .post("/publish", &token("alice"), body)
        .await
        .problem(403, "forbidden");
    let origin = format!("https://evil.example/{}", "x".repeat(1_000));
    server
        .request_upgrade("/rooms/a/ws", &[("origin", &origin)])
        .await
        .problem(403, "forbidden");
    let path = "/socket.io/?EIO=3&transport=polling";
    let same_origin = server.url("");
    let headers = [("origin", same_origin.trim_end_matches('/'))];
    let answer = server.call("GET", path, &headers, "").await;
    assert_eq!(answer.status, 200, "Engine.IO 3 is refused by a packet");
    let expired = Token::user("alice").claim("exp", now() - 61).sign(SECRET);
    let answer = server.get("/rooms/a/messages", &expired).await;
    answer.problem(401, "unauthorized");
    let records = records(&server, "reject", 4).await;
    for (record, reason, code, route, origin) in [
        (
            &records[0],
            "auth",
            json!("forbidden"),
            "/publish",
            Value::Null,
        ),
        (
            &records[1],
            "origin",
            json!("forbidden"),
            "/rooms/{room}/ws",
            json!(origin[..300]),
        ),
        (
            &records[2],
            "malformed",
            json!("badRequest"),
            "/socket.io/",
            json!(headers[0].1),
        ),
        (
            &records[3],
            "auth",
            json!("unauthorized"),
            "/rooms/{room}/messages",
            Value::Null,
        ),
    ] {
        assert_eq!(
            (&record["reason"], &record["code"]),
            (&json!(reason), &code)
        );
        assert_eq!(
            (&record["route"], &record["origin"]),
            (&json!(route), &origin)
        );
    }
    assert_eq!(records[3]["detail"], "the token has expired");
}

#[tokio::test]
async fn exceeded_limits_of_upgrades_and_http_requests_are_logged() {
    let server = Server::start(&[
        ("MAX_CONNECTIONS_PER_USER", "1"),
        ("CONNECTS_PER_MINUTE", "2"),
        ("MAX_BODY_BYTES", "1024"),
    ]);
    let path = format!("/rooms/limits/ws?token={}", token("alice"));
    let _alice = Client::open(&server, &path, &[])
        .await
        .expect("within the limit");
    let _replacement = Client::open(&server, &path, &[])
        .await
        .expect("replaces the first connection");
    let rejects = records(&server, "reject", 1).await;
    assert_eq!(
        (&rejects[0]["reason"], &rejects[0]["userId"]),
        (&json!("rate"), &json!("alice"))
    );
    let path = format!("/rooms/limits/ws?token={}", token("bob"));
    let headers = [("cf-connecting-ip", "192.0.2.7")];
    for _ in 0..2 {
        let bob = Client::open(&server, &path, &headers).await;
        bob.expect("within the limit").close().await;
    }
    server
        .request_upgrade(&path, &headers)
        .await
        .problem(429, "rateLimited");
    let rejects = records(&server, "reject", 2).await;
    assert_eq!(
        (&rejects[1]["reason"], &rejects[1]["userId"]),
        (&json!("rate"), &json!("bob"))
    );
    let body = json!({ "event": "x", "data": "x".repeat(2000), "room": "limits" });
    server
        .post("/publish", &service(), body)
        .await
        .problem(413, "tooLarge");
    let rejects = records(&server, "reject", 3).await;
    assert_eq!(rejects[2]["reason"], "malformed", "{rejects:?}");
}
