//! Sleep: the runtime evicts an object that has been idle for 10 seconds and
//! keeps its sockets. Time is the promise here: these tests wait 11 seconds.

use super::{service, token};
use roomcast_harness::{Client, SECRET, Server, Token};
use serde_json::json;
use std::time::Duration;

const IDLE: Duration = Duration::from_secs(11);

fn wakes(server: &Server, room: &str) -> usize {
    server
        .log()
        .iter()
        .filter(|line| line["event"] == "wake" && line["roomId"] == room)
        .count()
}

#[tokio::test]
async fn everything_survives_hibernation_with_sockets_open() {
    let server = Server::start(&[]);
    let mut alice = Client::join(&server, "sleepy", &token("alice")).await;
    let mut bob = Client::join(&server, "sleepy", &token("bob")).await;
    let sent = json!({ "content": "before", "messageId": "m1" });
    alice
        .request("sendMessage", sent.clone())
        .await
        .expect("taken");
    bob.logged(1).await;
    bob.request("messageRead", json!({ "seq": 1 }))
        .await
        .expect("moved");
    bob.request("setPresence", json!({ "status": "busy" }))
        .await
        .expect("set");
    tokio::time::sleep(IDLE).await;
    assert_eq!(wakes(&server, "sleepy"), 1);

    // Sent again across the eviction, it is known.
    let again = alice.request("sendMessage", sent).await.expect("taken");
    assert_eq!(
        (&again["seq"], &again["duplicate"]),
        (&json!(1), &json!(true))
    );
    assert_eq!(wakes(&server, "sleepy"), 2, "the object was rebuilt");
    assert_eq!(alice.say("after").await["seq"], 2);
    assert_eq!(Client::seq(&bob.logged(1).await[0]), 2);
    let answer = alice
        .request("joinRoom", json!("sleepy"))
        .await
        .expect("known");
    assert_eq!(
        answer["members"],
        json!([{ "userId": "alice", "status": "online" }, { "userId": "bob", "status": "busy" }])
    );
    let bobs = bob
        .request("joinRoom", json!("sleepy"))
        .await
        .expect("known");
    assert_eq!((&bobs["delivered"], &bobs["read"]), (&json!(1), &json!(1)));
    // Nothing was told that is not so: the others were told of all of them.
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
async fn a_ping_does_not_wake_a_room_and_an_idle_room_sleeps_by_itself() {
    let server = Server::start(&[]);
    let mut alice = Client::join(&server, "idle", &token("alice")).await;
    // What a room does to get to sleep: typing expires, nobody is left over.
    alice
        .request("typingIndicator", json!({ "isTyping": true }))
        .await
        .expect("told");
    tokio::time::sleep(IDLE + Duration::from_secs(5)).await;
    for _ in 0..3 {
        alice.send_text("ping").await;
        alice.find("pong", |line| line == "pong").await;
    }
    assert_eq!(wakes(&server, "idle"), 1, "three pings woke nobody");
    alice.say("good morning").await;
    assert_eq!(wakes(&server, "idle"), 2);
}

#[tokio::test]
async fn a_token_that_expires_while_the_room_sleeps_closes_its_socket() {
    let server = Server::start(&[]);
    let short = Token::user("alice").ttl(13).sign(SECRET);
    let mut alice = Client::join(&server, "expires", &short).await;
    let mut bob = Client::join(&server, "expires", &short.clone()).await;
    bob.request("refreshToken", json!({ "token": token("alice") }))
        .await
        .expect("taken");
    tokio::time::sleep(IDLE).await;
    assert_eq!(alice.closed().await, 4401);
    assert_eq!(wakes(&server, "expires"), 2, "by the alarm that woke it");
    bob.say("refreshed in time").await;
}

#[tokio::test]
async fn a_ghost_in_a_sleeping_room_is_reaped_by_the_alarm() {
    let server = Server::start(&[("GHOST_TIMEOUT", "13s"), ("PRESENCE_GRACE_MS", "100")]);
    let mut bob = Client::join(&server, "haunted", &token("bob")).await;
    let mut ghost = Client::join(&server, "haunted", &token("alice")).await;
    ghost.send_text("ping").await;
    ghost.find("pong", |line| line == "pong").await;
    tokio::time::sleep(IDLE).await;
    assert_eq!(wakes(&server, "haunted"), 1);
    let gone = bob
        .find("that alice went", |line| {
            line["data"]["status"] == "offline"
        })
        .await;
    assert_eq!(gone["data"]["userId"], "alice");
    assert_eq!(ghost.closed().await, 4408);
    assert_eq!(wakes(&server, "haunted"), 2);
}

#[tokio::test]
async fn a_sleeping_room_is_reached_by_publications() {
    let server = Server::start(&[]);
    let mut alice = Client::join(&server, "reached", &token("alice")).await;
    alice.say("before").await;
    let mut carol = Client::join(&server, "reached", &token("carol")).await;
    let mut erin = Client::join(&server, "reached", &token("erin")).await;
    erin.request("leaveRoom", json!({})).await.expect("left");
    tokio::time::sleep(IDLE).await;
    let body = json!({ "event": "note", "data": 1, "room": "reached" });
    let answer = server.post("/publish", &service(), body).await.ok();
    assert_eq!(wakes(&server, "reached"), 2, "the object was rebuilt");
    assert_eq!((&answer["seq"], &answer["online"]), (&json!(2), &json!(2)));
    let seqs: Vec<u64> = alice.logged(2).await.iter().map(Client::seq).collect();
    assert_eq!(seqs, [1, 2]);
    // What each socket has had is still known: only the rest is replayed.
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
    // And that one has left.
    let sent = erin.request("sendMessage", json!({ "content": 1 })).await;
    assert_eq!(sent.expect_err("left")["code"], "notJoined");
}

#[tokio::test]
async fn who_goes_while_the_room_sleeps_is_gone() {
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
    // Without a close.
    drop(broken);
    for _ in 0..2 {
        let gone = bob
            .find("that they went", |line| line["data"]["status"] == "offline")
            .await;
        assert!(gone["data"]["lastSeen"].is_string(), "{gone}");
    }
    let presence = server.get("/rooms/noticed/presence", &service()).await.ok();
    for user in [0, 2] {
        assert_eq!(presence["users"][user]["connections"], 0, "{presence}");
        assert!(
            presence["users"][user]["lastSeen"].is_string(),
            "{presence}"
        );
    }
    // What they miss waits for them.
    bob.say("for alice").await;
    let mut alice = Client::join(&server, "noticed", &token("alice")).await;
    assert_eq!(Client::seq(&alice.logged(1).await[0]), 1);
}
