//! Hibernation: the runtime evicts an object that has been idle for 10 s and keeps
//! its sockets open. There is no way to shorten this time, so these tests wait for
//! 11 s.

use super::{service, token};
use roomcast_harness::{Client, SECRET, Server, Token};
use serde_json::json;
use std::time::Duration;

const IDLE: Duration = Duration::from_secs(11);

/// Returns how often the object of a room was started or restored.
fn wakes(server: &Server, room: &str) -> usize {
    server
        .log()
        .iter()
        .filter(|line| line["event"] == "wake" && line["roomId"] == room)
        .count()
}

#[tokio::test]
async fn the_state_of_a_room_survives_hibernation_with_open_sockets() {
    let server = Server::start(&[]);
    let mut alice = Client::join(&server, "sleepy", &token("alice")).await;
    let mut bob = Client::join(&server, "sleepy", &token("bob")).await;
    let sent = json!({ "content": "before", "messageId": "m1" });
    alice
        .request("sendMessage", sent.clone())
        .await
        .expect("accepted");
    bob.logged(1).await;
    bob.request("messageRead", json!({ "seq": 1 }))
        .await
        .expect("accepted");
    bob.request("setPresence", json!({ "status": "busy" }))
        .await
        .expect("set");
    tokio::time::sleep(IDLE).await;
    assert_eq!(wakes(&server, "sleepy"), 1);

    // A resend across the eviction is recognized as a duplicate.
    let again = alice.request("sendMessage", sent).await.expect("accepted");
    assert_eq!(
        (&again["seq"], &again["duplicate"]),
        (&json!(1), &json!(true))
    );
    assert_eq!(wakes(&server, "sleepy"), 2, "the object was restored");
    assert_eq!(alice.send_message("after").await["seq"], 2);
    assert_eq!(Client::seq(&bob.logged(1).await[0]), 2);
    let answer = alice
        .request("joinRoom", json!("sleepy"))
        .await
        .expect("joined");
    assert_eq!(
        answer["members"],
        json!([{ "userId": "alice", "status": "online" }, { "userId": "bob", "status": "busy" }])
    );
    let bobs = bob
        .request("joinRoom", json!("sleepy"))
        .await
        .expect("joined");
    assert_eq!((&bobs["delivered"], &bobs["read"]), (&json!(1), &json!(1)));
    // Bob received no wrong status of alice.
    assert!(
        bob.drain()
            .await
            .iter()
            .all(|line| line["event"] != "presenceUpdate"
                || line["data"]["userId"] != "alice"
                || line["data"]["status"] == "online")
    );
}

#[tokio::test]
async fn a_ping_does_not_wake_a_room_and_an_idle_room_hibernates() {
    let server = Server::start(&[]);
    let mut alice = Client::join(&server, "idle", &token("alice")).await;
    // The typing indicator must expire before the room can hibernate.
    alice
        .request("typingIndicator", json!({ "isTyping": true }))
        .await
        .expect("accepted");
    tokio::time::sleep(IDLE + Duration::from_secs(5)).await;
    for _ in 0..3 {
        alice.send_text("ping").await;
        alice.find("pong", |line| line == "pong").await;
    }
    assert_eq!(
        wakes(&server, "idle"),
        1,
        "three pings must not wake the room"
    );
    alice.send_message("good morning").await;
    assert_eq!(wakes(&server, "idle"), 2);
}

#[tokio::test]
async fn a_token_that_expires_during_hibernation_closes_its_socket() {
    let server = Server::start(&[]);
    let short = Token::user("alice").ttl(13).sign(SECRET);
    let mut alice = Client::join(&server, "expires", &short).await;
    let mut bob = Client::join(&server, "expires", &short.clone()).await;
    bob.request("refreshToken", json!({ "token": token("alice") }))
        .await
        .expect("accepted");
    tokio::time::sleep(IDLE).await;
    assert_eq!(alice.closed().await, 4401);
    assert_eq!(wakes(&server, "expires"), 2, "the alarm must wake the room");
    bob.send_message("refreshed in time").await;
}

#[tokio::test]
async fn a_stale_connection_of_a_hibernated_room_is_closed_by_the_alarm() {
    let server = Server::start(&[("GHOST_TIMEOUT", "13s"), ("PRESENCE_GRACE_MS", "100")]);
    let mut bob = Client::join(&server, "stale", &token("bob")).await;
    let mut stale = Client::join(&server, "stale", &token("alice")).await;
    stale.send_text("ping").await;
    stale.find("pong", |line| line == "pong").await;
    tokio::time::sleep(IDLE).await;
    assert_eq!(wakes(&server, "stale"), 1);
    let offline = bob
        .find("alice to be offline", |line| {
            line["data"]["status"] == "offline"
        })
        .await;
    assert_eq!(offline["data"]["userId"], "alice");
    assert_eq!(stale.closed().await, 4408);
    assert_eq!(wakes(&server, "stale"), 2);
}

#[tokio::test]
async fn a_publication_wakes_a_hibernated_room() {
    let server = Server::start(&[]);
    let mut alice = Client::join(&server, "reached", &token("alice")).await;
    alice.send_message("before").await;
    let mut carol = Client::join(&server, "reached", &token("carol")).await;
    let mut erin = Client::join(&server, "reached", &token("erin")).await;
    erin.request("leaveRoom", json!({})).await.expect("left");
    tokio::time::sleep(IDLE).await;
    let body = json!({ "event": "note", "data": 1, "room": "reached" });
    let answer = server.post("/publish", &service(), body).await.ok();
    assert_eq!(wakes(&server, "reached"), 2, "the object was restored");
    assert_eq!((&answer["seq"], &answer["online"]), (&json!(2), &json!(2)));
    let seqs: Vec<u64> = alice.logged(2).await.iter().map(Client::seq).collect();
    assert_eq!(seqs, [1, 2]);
    // The position of each socket is restored: only missing events are replayed.
    assert_eq!(Client::seq(&carol.logged(1).await[0]), 2);
    carol
        .request("joinRoom", json!({ "since": 0 }))
        .await
        .expect("joined");
    assert_eq!(Client::seq(&carol.logged(1).await[0]), 1);
    assert!(
        carol
            .drain()
            .await
            .iter()
            .all(|line| line["event"] != "note")
    );
    // The leave of erin is restored as well.
    let sent = erin.request("sendMessage", json!({ "content": 1 })).await;
    assert_eq!(sent.expect_err("left")["code"], "notJoined");
}

#[tokio::test]
async fn a_new_membership_does_not_get_the_cursors_of_an_earlier_one_after_hibernation() {
    let server = Server::start(&[]);
    let mut alice = Client::join(&server, "again", &token("alice")).await;
    for content in 0..3 {
        let sent = alice.request("sendMessage", json!({ "content": content }));
        sent.await.expect("accepted");
    }
    let read = alice.request("messageRead", json!({ "seq": 3 })).await;
    read.expect("accepted");
    alice.request("leaveRoom", json!({})).await.expect("left");
    let path = format!("/rooms/again/ws?since=1&token={}", token("alice"));
    let again = Client::open(&server, &path, &[]).await.expect("accepted");
    assert_eq!(again.connected["delivered"], 1);
    tokio::time::sleep(IDLE).await;
    let members = server.get("/rooms/again/members", &service()).await.ok();
    assert_eq!(wakes(&server, "again"), 2, "the object was restored");
    let cursors = (&members[0]["delivered"], &members[0]["read"]);
    assert_eq!(cursors, (&json!(1), &json!(1)));
}

#[tokio::test]
async fn connections_lost_during_hibernation_end_presence() {
    let server = Server::start(&[("PRESENCE_GRACE_MS", "200")]);
    let mut bob = Client::join(&server, "noticed", &token("bob")).await;
    let mut alice = Client::join(&server, "noticed", &token("alice")).await;
    let broken = Client::join(&server, "noticed", &token("carol")).await;
    alice
        .request("setPresence", json!({ "status": "busy" }))
        .await
        .expect("set");
    tokio::time::sleep(IDLE).await;
    alice.close().await;
    // A connection that ends without a close frame.
    drop(broken);
    for _ in 0..2 {
        let offline = bob
            .find("a user to be offline", |line| {
                line["data"]["status"] == "offline"
            })
            .await;
        assert!(offline["data"]["lastSeen"].is_string(), "{offline}");
    }
    let presence = server.get("/rooms/noticed/presence", &service()).await.ok();
    for user in [0, 2] {
        assert_eq!(presence["users"][user]["connections"], 0, "{presence}");
        assert!(
            presence["users"][user]["lastSeen"].is_string(),
            "{presence}"
        );
    }
    // Events that a user missed are queued.
    bob.send_message("for alice").await;
    let mut alice = Client::join(&server, "noticed", &token("alice")).await;
    assert_eq!(Client::seq(&alice.logged(1).await[0]), 1);
}
