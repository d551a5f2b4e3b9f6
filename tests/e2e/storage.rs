//! What rooms store: only what was written, as much as the settings allow, and nothing after
//! their end.

use super::{service, token};
use roomcast_harness::{Client, Server, TIMEOUT};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The class of the objects of rooms.
const ROOMS: &str = "rooms";

/// Publishes `count` events with contents of `bytes` bytes in one request. The events have the
/// message ids `m{first}`, `m{first + 1}` and so on. Returns their receipts.
async fn publish(server: &Server, room: &str, first: usize, count: usize, bytes: usize) -> Value {
    let messages: Vec<Value> = (first..first + count)
        .map(|n| {
            let data = json!({ "content": "x".repeat(bytes) });
            let id = format!("m{n}");
            json!({ "room": room, "event": "newMessage", "data": data, "messageId": id })
        })
        .collect();
    let token = service();
    let answer = server.post("/publish", &token, json!({ "messages": messages }));
    let answer = answer.await.ok();
    let receipts = &answer["results"];
    for receipt in receipts.as_array().expect("a list") {
        assert!(receipt["seq"].is_u64(), "{receipt}");
    }
    receipts.clone()
}

/// Waits until the databases of rooms satisfy a condition.
async fn wait_for_databases(server: &Server, what: &str, is_met: impl Fn(&[u64]) -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let sizes = server.databases(ROOMS);
        if is_met(&sizes) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{what}: {sizes:?}\n{}",
            server.output()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn requests_to_an_unused_room_store_nothing() {
    let server = Server::start(&[]);
    for n in 0..3 {
        let room = format!("/rooms/unused-{n}");
        let messages = format!("{room}/messages");
        let page = server.get(&messages, &token("alice")).await.ok();
        assert_eq!((&page["events"], &page["head"]), (&json!([]), &json!(0)));
        let members = server.get(&format!("{room}/members"), &service()).await;
        assert_eq!(members.ok(), json!([]));
        let presence = server.get(&format!("{room}/presence"), &service()).await;
        assert_eq!(
            presence.ok(),
            json!({ "memberCount": 0, "more": false, "users": [] })
        );
        let kick = format!("{room}/connections?userId=alice");
        server.delete(&kick, &service()).await.ok();
        let member = format!("{room}/members/alice");
        let removed = server.delete(&member, &service()).await;
        removed.problem(404, "notFound");
        server.delete(&room, &service()).await.ok();
    }
    let wave = json!({ "room": "@alice", "event": "wave", "data": 1, "volatile": true });
    server.post("/publish", &service(), wave).await.ok();
    let sizes = server.databases(ROOMS);
    assert!(sizes.is_empty(), "{sizes:?}");
    // The first write creates the tables.
    publish(&server, "unused-1", 0, 1, 10).await;
    wait_for_databases(&server, "one database", |sizes| sizes.len() == 1).await;
}

#[tokio::test]
async fn a_deleted_room_frees_its_storage() {
    let server = Server::start(&[("MAX_BODY_BYTES", "4000000")]);
    // The gateway keeps the client in its personal room, so there is always its database.
    let path = format!("/ws?token={}", token("carol"));
    let mut at_gateway = Client::open(&server, &path, &[]).await.expect("accepted");
    let mut epoch = Value::Null;
    for is_at_gateway in [false, true] {
        let mut alice = Client::join(&server, "deleted", &token("alice")).await;
        if is_at_gateway {
            let joined = at_gateway.request("joinRoom", json!("deleted")).await;
            joined.expect("joined");
        }
        publish(&server, "deleted", 0, 100, 30_000).await;
        let path = "/rooms/deleted/messages?limit=1";
        let old = server.get(path, &service()).await.ok();
        assert_eq!(old["head"], 100);
        let deleted = server.delete("/rooms/deleted", &service()).await.ok();
        assert_eq!(alice.closed().await, 4410);
        // The storage with a connection at a gateway is freed when the gateway has acknowledged
        // the end of the connection.
        wait_for_databases(&server, "freed", |sizes| sizes.len() == 1).await;
        let page = server.get(path, &service()).await.ok();
        assert_eq!((&page["head"], &page["events"]), (&json!(0), &json!([])));
        assert_eq!(page["epoch"], deleted["epoch"]);
        assert_ne!(page["epoch"], old["epoch"]);
        epoch = old["epoch"].clone();
    }
    // A position in the deleted log is recognised, also in a new life of the room.
    let epoch = epoch.as_str().expect("an epoch");
    publish(&server, "deleted", 0, 3, 10).await;
    let query = format!("since=2&epoch={epoch}");
    let mut bob = Client::join_with(&server, "deleted", &token("bob"), &query).await;
    assert_eq!(bob.connected["reset"], true);
    let seqs: Vec<u64> = bob.logged(3).await.iter().map(Client::seq).collect();
    assert_eq!(seqs, [1, 2, 3]);
}

#[tokio::test]
async fn a_room_without_members_frees_its_storage_after_retention() {
    // 2 seconds, in days.
    let settings = [("RETENTION_DAYS", "0.0000231481"), ("DEDUPE_WINDOW", "1s")];
    let server = Server::start(&settings);
    publish(&server, "unused", 0, 5, 100).await;
    publish(&server, "used", 0, 5, 100).await;
    server.put("/rooms/used/members/bob", &service()).await.ok();
    let old = server.get("/rooms/unused/messages", &service()).await.ok();
    wait_for_databases(&server, "one room is freed", |sizes| sizes.len() == 1).await;
    let new = server.get("/rooms/unused/messages", &service()).await.ok();
    assert_eq!((&old["head"], &new["head"]), (&json!(5), &json!(0)));
    assert_ne!(old["epoch"], new["epoch"]);
    let used = server.get("/rooms/used/messages", &service()).await.ok();
    assert_eq!(used["head"], 5, "a room with a member keeps its numbers");
    let again = publish(&server, "unused", 0, 1, 100).await;
    assert_eq!(again[0]["seq"], 1);
}

#[tokio::test]
async fn a_restarted_room_recognises_repeated_sends_without_reading_its_events() {
    let mut server = Server::start(&[("MAX_BODY_BYTES", "8000000")]);
    // 90 MB.
    for first in (0..4_500).step_by(100) {
        publish(&server, "busy", first, 100, 20_000).await;
    }
    server.restart();
    publish(&server, "other", 0, 1, 10).await;
    let before = server.memory();
    for n in [4_499, 2_000, 0] {
        let again = publish(&server, "busy", n, 1, 10).await;
        let seq = json!(n + 1);
        assert_eq!(
            (&again[0]["seq"], &again[0]["duplicate"]),
            (&seq, &json!(true))
        );
    }
    let used = server.memory().saturating_sub(before);
    assert!(used < 40, "{used} MiB for 90 MB of events");
    assert_eq!(
        publish(&server, "busy", 4_500, 1, 10).await[0]["seq"],
        4_501
    );
}

#[tokio::test]
async fn the_log_of_a_room_is_limited_by_bytes() {
    let settings = [("RETENTION_BYTES", "1048576"), ("DEDUPE_WINDOW", "1h")];
    let mut server = Server::start(&settings);
    for n in 0..100 {
        publish(&server, "large", n, 1, 30_000).await;
    }
    let path = "/rooms/large/messages?after=0&limit=1";
    let page = server.get(path, &service()).await.ok();
    let trimmed = page["gap"]["to"].as_u64().expect("a gap");
    // 1 MiB is 34 events.
    assert!((65..=70).contains(&trimmed), "{page}");
    let sizes = server.databases(ROOMS);
    for is_restarted in [false, true] {
        if is_restarted {
            server.restart();
        }
        let mut bob = Client::join_with(&server, "large", &token("bob"), "since=0").await;
        assert_eq!(bob.expect("gap").await["data"]["to"], trimmed);
        let events = bob.logged(100 - trimmed as usize).await;
        assert_eq!(Client::seq(&events[0]), trimmed + 1);
        // The hashes of deleted events are kept.
        let again = publish(&server, "large", 1, 1, 10).await;
        assert_eq!(
            (&again[0]["seq"], &again[0]["duplicate"]),
            (&json!(2), &json!(true))
        );
    }
    assert!(sizes.iter().all(|size| *size < 4_000_000), "{sizes:?}");
}
