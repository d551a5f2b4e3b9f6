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
    let brief = Token::user("dave").ttl(1).sign(SECRET);
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
    let answer = alice
        .request("refreshToken", json!({ "token": bob_token }))
        .await;
    assert!(answer.is_err() || alice.closed().await == 4403);
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
