//! The event log: a line for everything an operator wants to see, and nothing
//! that is nobody's business.

use super::{service, token};
use roomcast_harness::{Client, SECRET, Server, Token};
use serde_json::{Value, json};

/// Nobody's business, in all the places where a client can put it.
const CONTENT: &str = "zebra-crossing";

/// Does one of everything, in the room `log`.
async fn bustle(server: &Server) -> Vec<String> {
    let (alice_token, bob_token) = (token("alice"), token("bob"));
    let expired = Token::user("carol").ttl(-100).sign(SECRET);
    let other_user = Token::service("nosy")
        .claim("rooms", json!(["other"]))
        .sign(SECRET);

    let mut alice = Client::join(server, "log", &alice_token).await;
    alice.say(CONTENT).await;
    let custom = json!({ "event": "note", "data": { CONTENT: CONTENT }, "messageId": "m1" });
    alice.request("emit", custom).await.expect("taken");
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

    // What is refused, at the door and later.
    for token in [&expired, &format!("{alice_token}{CONTENT}")] {
        let path = format!("/rooms/log/ws?token={token}");
        server.knock(&path, &[]).await.problem(401, "unauthorized");
    }
    let path = format!("/rooms/log/ws?token={alice_token}");
    let origin = [("origin", "https://evil.example")];
    server.knock(&path, &origin).await.problem(403, "forbidden");
    let path = format!("/rooms/log/ws?token={alice_token}&since={CONTENT}");
    server.knock(&path, &[]).await.problem(400, "badRequest");
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

    // An alarm.
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

/// The lines about `event`, once the last is there.
async fn lines(server: &Server, event: &str, n: usize) -> Vec<Value> {
    let of_event = |line: &Value| line["event"] == event;
    let deadline = std::time::Instant::now() + roomcast_harness::PATIENCE;
    loop {
        let lines: Vec<Value> = server.log().into_iter().filter(of_event).collect();
        if lines.len() >= n {
            return lines;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "{} of {n} lines for {event} in:\n{}",
            lines.len(),
            server.output()
        );
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn everything_an_operator_wants_to_see_is_a_line_and_no_content_or_token_is() {
    let server = Server::start(&[
        ("LOG_LEVEL", "debug"),
        ("MESSAGES_BURST", "3"),
        ("MESSAGES_PER_SECOND", "1"),
    ]);
    let secrets = bustle(&server).await;
    // (event, at least so many lines, the fields they have besides)
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
        for line in lines(&server, event, n).await {
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
        // Nor the part of a token that says who it is, nor that which proves it.
        for part in secret.split('.').skip(1) {
            assert!(!output.contains(part), "{part} in:\n{output}");
        }
    }
    assert!(!output.contains("panicked"), "{output}");
}

#[tokio::test]
async fn whatever_is_refused_is_a_line_with_its_reason() {
    let server = Server::start(&[("MESSAGES_BURST", "3"), ("MESSAGES_PER_SECOND", "1")]);
    bustle(&server).await;
    for (what, reason, user, n) in [
        ("bad tokens at the door", "auth", Value::Null, 2),
        ("an origin", "origin", Value::Null, 1),
        ("a since that is none", "malformed", Value::Null, 1),
        ("too many messages", "rate", json!("alice"), 1),
        ("malformed frames", "malformed", json!("alice"), 2),
        ("a refresh with another's token", "auth", json!("alice"), 1),
    ] {
        let rejects = lines(&server, "reject", n).await;
        let found = rejects
            .iter()
            .filter(|line| line["reason"] == reason && (user.is_null() || line["userId"] == user));
        assert!(found.count() >= n, "{what}: {rejects:?}");
    }
    // Over HTTP as well: a user's publication, one out of the token's rooms, a
    // body that is no JSON.
    let rejects = lines(&server, "reject", 9).await;
    let of = |reason: &str| {
        rejects
            .iter()
            .filter(|line| line["reason"] == reason)
            .count()
    };
    assert!(
        of("auth") >= 5,
        "two at the door, two publications, one refresh: {rejects:?}"
    );
    assert!(
        of("malformed") >= 4,
        "a since, two frames, a body: {rejects:?}"
    );
}

#[tokio::test]
async fn log_level_decides_which_lines_there_are() {
    let levels = async |level: &str| {
        let server = Server::start(&[
            ("LOG_LEVEL", level),
            ("MESSAGES_BURST", "3"),
            ("MESSAGES_PER_SECOND", "1"),
        ]);
        bustle(&server).await;
        let log = server.log();
        let levels = log.iter().map(|line| line["level"].to_string());
        levels.collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(levels("off").await, [].into());
    assert_eq!(levels("error").await, [].into(), "nothing failed");
    assert_eq!(levels("warn").await, ["\"warn\"".to_owned()].into());
    let info = levels("info").await;
    assert!(info.contains("\"info\"") && info.contains("\"warn\""));
    assert!(!info.contains("\"debug\""));
}

/// A line that nobody but the room may write, as a client would try to.
const FORGED: &str = r#"{"event":"kick","level":"info","userId":"forged"}"#;

#[tokio::test]
async fn a_line_break_anywhere_forges_no_line() {
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
        // At the door: in the name of a room, in each value of the query, in
        // what a token says of itself.
        for path in [
            format!("/rooms/{query}/ws?token={good}"),
            format!("/rooms/forge/ws?token={query}"),
            format!("/rooms/forge/ws?token={good}&since={query}"),
            format!("/rooms/forge/ws?token={good}&history={query}"),
            format!("/{query}"),
        ] {
            let answer = server.knock(&path, &[]).await;
            assert!((400..500).contains(&answer.status), "{path}");
        }
        let sub = Token::user(&forged).sign(SECRET);
        let path = format!("/rooms/forge/ws?token={sub}");
        server.knock(&path, &[]).await.problem(401, "unauthorized");
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
        // Over the socket, in every string that there is.
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
            // Refused or not, it is answered.
            let _ = alice.request(event, data).await;
        }
        alice.say(&forged).await;
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
    // What follows is logged last.
    server.delete("/rooms/forge", &service()).await.ok();
    lines(&server, "delete", 1).await;
    let output = server.output();
    assert!(!output.contains("forged"), "{output}");
    // The runtime may have a word of its own, but not with a brace.
    for line in output.lines().filter(|line| line.contains('{')) {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line} is whole"));
        assert!(line["ts"].is_string() && line["event"].is_string());
    }
}

#[tokio::test]
async fn how_long_it_took_is_said_where_something_takes_time() {
    let server = Server::start(&[]);
    let mut alice = Client::join(&server, "took", &token("alice")).await;
    alice.say("one").await;
    alice.close().await;
    let bob = Client::join_with(&server, "took", &token("bob"), "since=0").await;
    bob.close().await;
    for event in ["wake", "publish", "replay", "disconnect"] {
        for line in lines(&server, event, 1).await {
            assert!(line["durationMs"].as_u64().is_some(), "{line}");
        }
    }
}

#[tokio::test]
async fn limits_at_the_door_and_over_http_are_lines_too() {
    let server = Server::start(&[
        ("MAX_CONNECTIONS_PER_USER", "1"),
        ("CONNECTS_PER_MINUTE", "2"),
        ("MAX_BODY_BYTES", "1024"),
    ]);
    let path = format!("/rooms/door/ws?token={}", token("alice"));
    let _alice = Client::open(&server, &path, &[]).await.expect("the first");
    server.knock(&path, &[]).await.problem(429, "rateLimited");
    let rejects = lines(&server, "reject", 1).await;
    assert_eq!(
        (&rejects[0]["reason"], &rejects[0]["userId"]),
        (&json!("rate"), &json!("alice"))
    );
    let path = format!("/rooms/door/ws?token={}", token("bob"));
    let headers = [("cf-connecting-ip", "192.0.2.7")];
    for _ in 0..2 {
        let bob = Client::open(&server, &path, &headers).await;
        bob.expect("within").close().await;
    }
    server
        .knock(&path, &headers)
        .await
        .problem(429, "rateLimited");
    let rejects = lines(&server, "reject", 2).await;
    assert_eq!(
        (&rejects[1]["reason"], &rejects[1]["userId"]),
        (&json!("rate"), &json!("bob"))
    );
    let body = json!({ "event": "x", "data": "x".repeat(2000), "room": "door" });
    server
        .post("/publish", &service(), body)
        .await
        .problem(413, "tooLarge");
    let rejects = lines(&server, "reject", 3).await;
    assert_eq!(rejects[2]["reason"], "malformed", "{rejects:?}");
}
