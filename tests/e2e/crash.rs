//! SIGKILL of the runtime, and connections that do not read.

use super::{service, token};
use roomcast_harness::{Client, Server};
use serde_json::{Value, json};
use std::collections::HashSet;

#[tokio::test]
async fn acknowledged_messages_survive_kill_9_and_a_resume_delivers_each_event_once() {
    let mut server = Server::start(&[
        ("MESSAGES_PER_SECOND", "100000"),
        ("MESSAGES_BURST", "100000"),
    ]);
    let mut acknowledged: Vec<(String, u64)> = Vec::new();
    let mut seen: Vec<u64> = Vec::new();
    let mut epoch = String::new();
    let mut sent = 0;
    for round in 0..3 {
        let mut alice = Client::join(&server, "crash", &token("alice")).await;
        let last = seen.last().copied().unwrap_or(0);
        let query = format!("since={last}&epoch={epoch}");
        let query = if round == 0 { "" } else { &query };
        let mut bob = Client::join_with(&server, "crash", &token("bob"), query).await;
        assert_eq!(bob.connected.get("reset"), None);
        epoch = bob.connected["epoch"]
            .as_str()
            .expect("an epoch")
            .to_owned();
        let mut pending = Vec::new();
        for _ in 0..200 {
            let message_id = format!("m{sent}");
            let data = json!({ "content": sent, "messageId": message_id });
            pending.push((message_id, alice.start("sendMessage", data).await));
            sent += 1;
        }
        // The server is killed when only some of the messages are acknowledged.
        for (message_id, id) in pending.into_iter().take(60 + 40 * round) {
            let answer = alice.answer(id).await.expect("accepted");
            acknowledged.push((message_id, answer["seq"].as_u64().expect("a seq")));
        }
        let some = bob.logged(10).await;
        server.kill();
        seen.extend(some.iter().map(Client::seq));
        while let Some(event) = bob.try_logged().await {
            seen.push(Client::seq(&event));
        }
        server.restart();
    }
    // Bob received every event once and in order, over all connections.
    let (first, last) = (seen[0], seen[seen.len() - 1]);
    assert_eq!(seen, (first..=last).collect::<Vec<_>>());

    // Every acknowledged message is in the log once, at the acknowledged `seq`.
    let mut reader = Client::join(&server, "crash", &token("carol")).await;
    let mut log: Vec<Value> = Vec::new();
    loop {
        let page = reader
            .request("sync", json!({ "after": log.len(), "limit": 1000 }))
            .await
            .expect("a page");
        log.extend(page["events"].as_array().expect("events").iter().cloned());
        if page["more"] == false {
            break;
        }
    }
    for (index, event) in log.iter().enumerate() {
        assert_eq!(Client::seq(event), index as u64 + 1);
    }
    for (message_id, seq) in &acknowledged {
        assert_eq!(
            log[*seq as usize - 1]["data"]["messageId"],
            message_id.as_str()
        );
    }
    let ids: HashSet<&str> = log
        .iter()
        .map(|event| event["data"]["messageId"].as_str().expect("an id"))
        .collect();
    assert_eq!(ids.len(), log.len(), "no message is in the log twice");
    // A resend after the crash is recognized as a duplicate.
    let mut alice = Client::join(&server, "crash", &token("alice")).await;
    let (message_id, seq) = &acknowledged[acknowledged.len() - 1];
    let again = alice
        .request(
            "sendMessage",
            json!({ "content": "again", "messageId": message_id }),
        )
        .await
        .expect("accepted");
    assert_eq!(
        (&again["seq"], &again["duplicate"]),
        (&json!(seq), &json!(true))
    );
}

#[tokio::test]
async fn cursors_and_membership_survive_kill_9() {
    let mut server = Server::start(&[]);
    let mut alice = Client::join(&server, "kept", &token("alice")).await;
    for n in 0..4 {
        alice.send_message(&n.to_string()).await;
    }
    alice
        .request("messageDelivered", json!({ "seq": 3 }))
        .await
        .expect("accepted");
    alice
        .request("messageRead", json!({ "seq": 2 }))
        .await
        .expect("accepted");
    server.restart();
    let mut alice = Client::join(&server, "kept", &token("alice")).await;
    let answer = alice
        .request("joinRoom", json!("kept"))
        .await
        .expect("joined");
    assert_eq!(
        (&answer["delivered"], &answer["read"]),
        (&json!(3), &json!(2))
    );
    assert_eq!(Client::seq(&alice.logged(1).await[0]), 4);
}

#[tokio::test]
async fn a_connection_that_does_not_read_is_paused_and_others_receive_everything() {
    let server = Server::start(&[
        ("MAX_UNACKED_BYTES", "300000"),
        ("MESSAGES_PER_SECOND", "100000"),
        ("MESSAGES_BURST", "100000"),
    ]);
    let mut alice = Client::join(&server, "slow", &token("alice")).await;
    let mut bob = Client::join(&server, "slow", &token("bob")).await;
    // This client does not read.
    let mut slow = Client::join(&server, "slow", &token("carol")).await;
    let text = "x".repeat(10_000);
    for n in 0..200u64 {
        assert_eq!(alice.send_message(&text).await["seq"], n + 1);
        // The pings of the other clients show that they read.
        if n % 10 == 0 {
            alice.send_text("ping").await;
            bob.send_text("ping").await;
        }
    }
    let seqs: Vec<u64> = bob.logged(200).await.iter().map(Client::seq).collect();
    assert_eq!(seqs, (1..=200).collect::<Vec<u64>>());
    let is_paused = |line: &Value| line["event"] == "pause" && line["userId"] == "carol";
    server.wait_for_log("the pause", is_paused).await;
    // The client continues with its pings.
    let mut seqs = Vec::new();
    for _ in 0..200 {
        seqs.push(Client::seq(&slow.logged(1).await[0]));
        slow.send_text("ping").await;
    }
    assert_eq!(seqs, (1..=200).collect::<Vec<u64>>());
    // Then it is live again.
    alice.send_message("live").await;
    assert_eq!(Client::seq(&slow.logged(1).await[0]), 201);
}

#[tokio::test]
async fn a_paused_connection_is_closed_after_catch_up_timeout_and_can_resume() {
    let server = Server::start(&[
        ("MAX_UNACKED_BYTES", "300000"),
        ("CATCH_UP_TIMEOUT", "1s"),
        ("MESSAGES_PER_SECOND", "100000"),
        ("MESSAGES_BURST", "100000"),
    ]);
    let mut alice = Client::join(&server, "timeout", &token("alice")).await;
    let mut slow = Client::join(&server, "timeout", &token("carol")).await;
    let text = "x".repeat(10_000);
    for n in 0..60 {
        alice.send_message(&text).await;
        if n % 10 == 0 {
            alice.send_text("ping").await;
        }
    }
    let is_closed = |line: &Value| {
        line["event"] == "reject" && line["reason"] == "slow" && line["userId"] == "carol"
    };
    server.wait_for_log("the close", is_closed).await;
    assert_eq!(slow.closed().await, 4503);
    let received = slow.drain_logged();
    assert!((1..60).contains(&received), "{received}");
    let query = format!("since={received}");
    let mut resumed = Client::join_with(&server, "timeout", &token("carol"), &query).await;
    assert_eq!(Client::seq(&resumed.logged(1).await[0]), received + 1);
}

#[tokio::test]
async fn a_user_connected_at_a_crash_has_a_last_seen_time() {
    let mut server = Server::start(&[]);
    let mut alice = Client::join(&server, "seen", &token("alice")).await;
    alice.send_message("here").await;
    server.kill();
    server.restart();
    let presence = server.get("/rooms/seen/presence", &service()).await.ok();
    let user = &presence["users"][0];
    assert_eq!(
        (&user["userId"], &user["connections"]),
        (&json!("alice"), &json!(0))
    );
    assert!(user["lastSeen"].is_string(), "{user}");
}
