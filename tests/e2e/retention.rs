//! Retention of events, and the announcement of trimmed events by `gap`.

use super::{service, token};
use roomcast_harness::{Client, Server};
use serde_json::json;
use std::time::Duration;

#[tokio::test]
async fn events_trimmed_by_count_are_announced_by_gap() {
    let server = Server::start(&[("RETENTION_EVENTS", "10"), ("MESSAGES_BURST", "1000")]);
    let mut alice = Client::join(&server, "count", &token("alice")).await;
    Client::join(&server, "count", &token("bob"))
        .await
        .close()
        .await;
    for n in 0..45 {
        alice.send_message(&n.to_string()).await;
    }
    // The gap is announced in a replay from the cursor, in a replay from `since`, and
    // in a page.
    let mut bob = Client::join(&server, "count", &token("bob")).await;
    let gap = json!({ "event": "gap", "data": { "roomId": "count", "from": 1, "to": 35 } });
    assert_eq!(bob.next().await, gap);
    let seqs: Vec<u64> = bob.logged(10).await.iter().map(Client::seq).collect();
    assert_eq!(seqs, (36..=45).collect::<Vec<u64>>());
    let mut carol = Client::join_with(&server, "count", &token("carol"), "since=30").await;
    assert_eq!(carol.expect("gap").await["data"]["from"], 31);
    assert_eq!(Client::seq(&carol.logged(10).await[0]), 36);
    let page = server
        .get("/rooms/count/messages?after=0", &service())
        .await
        .ok();
    assert_eq!(page["gap"], json!({ "from": 1, "to": 35 }));
    assert_eq!(page["events"].as_array().map(Vec::len), Some(10));
    // The gap ends where the requested range ends.
    let page = server
        .get("/rooms/count/messages?after=5&before=20", &service())
        .await
        .ok();
    assert_eq!(page["gap"], json!({ "from": 6, "to": 19 }));
    assert_eq!(
        (&page["events"], &page["more"]),
        (&json!([]), &json!(false))
    );
    let members = server.get("/rooms/count/members", &service()).await.ok();
    assert_eq!(members[1]["queued"], 10);
    // A `since` within the retained events causes no gap.
    let mut dave = Client::join_with(&server, "count", &token("dave"), "since=40").await;
    assert_eq!(Client::seq(&dave.logged(5).await[0]), 41);
    assert!(dave.drain().await.iter().all(|line| line["event"] != "gap"));
}

#[tokio::test]
async fn events_trimmed_by_age_are_announced_by_gap() {
    // 2 seconds, in days.
    let server = Server::start(&[("RETENTION_DAYS", "0.0000231481")]);
    let mut alice = Client::join(&server, "age", &token("alice")).await;
    alice.send_message("old").await;
    alice.send_message("old").await;
    // The retention is a period of time, so the test waits until it has passed.
    tokio::time::sleep(Duration::from_millis(2_200)).await;
    alice.send_message("new").await;
    let mut bob = Client::join_with(&server, "age", &token("bob"), "since=0").await;
    assert_eq!(
        bob.expect("gap").await["data"],
        json!({ "roomId": "age", "from": 1, "to": 2 })
    );
    assert_eq!(Client::seq(&bob.logged(1).await[0]), 3);
    let page = server.get("/rooms/age/messages", &service()).await.ok();
    assert_eq!(page["events"].as_array().map(Vec::len), Some(1));
    // The next `seq` follows the last one, even if all events are trimmed.
    tokio::time::sleep(Duration::from_millis(2_200)).await;
    assert_eq!(alice.send_message("newer").await["seq"], 4);
}

#[tokio::test]
async fn retention_is_the_same_after_a_restart() {
    let mut server = Server::start(&[("RETENTION_EVENTS", "5"), ("MESSAGES_BURST", "1000")]);
    let mut alice = Client::join(&server, "kept", &token("alice")).await;
    for n in 0..40 {
        alice.send_message(&n.to_string()).await;
    }
    server.restart();
    let mut bob = Client::join_with(&server, "kept", &token("bob"), "since=0").await;
    assert_eq!(bob.expect("gap").await["data"]["to"], 35);
    let seqs: Vec<u64> = bob.logged(5).await.iter().map(Client::seq).collect();
    assert_eq!(seqs, [36, 37, 38, 39, 40]);
}
