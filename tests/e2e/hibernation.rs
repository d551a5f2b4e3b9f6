//! Sleep: the runtime evicts an object that has been idle for 10 seconds and
//! keeps its sockets. Time is the promise here: these tests wait 11 seconds.

use super::token;
use roomcast_harness::{Client, Server};
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
    let short = roomcast_harness::Token::user("alice")
        .ttl(13)
        .sign(roomcast_harness::SECRET);
    let mut alice = Client::join(&server, "expires", &short).await;
    tokio::time::sleep(IDLE).await;
    assert_eq!(alice.closed().await, 4401);
    assert_eq!(wakes(&server, "expires"), 2, "by the alarm that woke it");
}
