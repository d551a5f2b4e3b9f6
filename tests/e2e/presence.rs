//! Presence over several devices, typing, membership.

use super::{DEFAULT, service, token};
use roomcast_harness::{Client, SECRET, Server, Token};
use serde_json::json;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// Short grace and typing times, so that tests need not wait long for them.
static QUICK: LazyLock<Server> =
    LazyLock::new(|| Server::start(&[("PRESENCE_GRACE_MS", "600"), ("TYPING_TTL_MS", "600")]));

async fn status_of(client: &mut Client, user: &str) -> String {
    let update = client
        .find(&format!("news of {user}"), |line| {
            line["event"] == "presenceUpdate" && line["data"]["userId"] == user
        })
        .await;
    update["data"]["status"]
        .as_str()
        .expect("a status")
        .to_owned()
}

#[tokio::test]
async fn a_users_status_is_the_most_available_of_its_connections() {
    let mut bob = Client::join(&QUICK, "devices", &token("bob")).await;
    let mut phone = Client::join(&QUICK, "devices", &token("alice")).await;
    assert_eq!(status_of(&mut bob, "alice").await, "online");
    phone
        .request("setPresence", json!({ "status": "away" }))
        .await
        .expect("set");
    assert_eq!(status_of(&mut bob, "alice").await, "away");
    let mut desk = Client::join(&QUICK, "devices", &token("alice")).await;
    assert_eq!(status_of(&mut bob, "alice").await, "online");
    assert_eq!(
        desk.request("setPresence", json!({ "status": "busy" }))
            .await,
        Ok(json!({ "status": "busy" }))
    );
    assert_eq!(status_of(&mut bob, "alice").await, "busy");
    // The phone going offline changes nothing; the desk is still busy.
    phone
        .request("setPresence", json!({ "status": "offline" }))
        .await
        .expect("set");
    phone.close().await;
    desk.request("setPresence", json!({ "status": "away" }))
        .await
        .expect("set");
    assert_eq!(status_of(&mut bob, "alice").await, "away");
    let presence = QUICK.get("/rooms/devices/presence", &service()).await.ok();
    assert_eq!(
        presence["users"][0],
        json!({ "userId": "alice", "status": "away", "connections": 1, "lastSeen": null })
    );
}

#[tokio::test]
async fn a_status_is_told_when_it_changes_and_only_then() {
    let mut bob = Client::join(&QUICK, "changes", &token("bob")).await;
    let mut alice = Client::join(&QUICK, "changes", &token("alice")).await;
    let mut phone = Client::join(&QUICK, "changes", &token("alice")).await;
    assert_eq!(status_of(&mut bob, "alice").await, "online");
    // Nothing of this changes how she is seen.
    phone
        .request("setPresence", json!({ "status": "away" }))
        .await
        .expect("set");
    alice
        .request("setPresence", json!({ "status": "online" }))
        .await
        .expect("set");
    phone.close().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    // This does, and is the next that bob hears.
    alice
        .request("setPresence", json!({ "status": "busy" }))
        .await
        .expect("set");
    assert_eq!(status_of(&mut bob, "alice").await, "busy");
}

#[tokio::test]
async fn offline_by_choice_is_shown_as_offline_and_still_receives() {
    let mut bob = Client::join(&QUICK, "hidden", &token("bob")).await;
    let mut alice = Client::join(&QUICK, "hidden", &token("alice")).await;
    assert_eq!(status_of(&mut bob, "alice").await, "online");
    alice
        .request("setPresence", json!({ "status": "offline" }))
        .await
        .expect("set");
    assert_eq!(status_of(&mut bob, "alice").await, "offline");
    bob.say("do you hear me?").await;
    alice.expect("newMessage").await;
}

#[tokio::test]
async fn offline_is_told_after_a_grace_time_and_a_reconnect_does_not_flicker() {
    let mut bob = Client::join(&QUICK, "grace", &token("bob")).await;
    let alice = Client::join(&QUICK, "grace", &token("alice")).await;
    assert_eq!(status_of(&mut bob, "alice").await, "online");
    alice.close().await;
    let alice = Client::join(&QUICK, "grace", &token("alice")).await;
    let left = Instant::now();
    alice.close().await;
    // The next news of her is that she is gone; not that she came back.
    let update = bob.expect("presenceUpdate").await;
    assert_eq!(update["data"]["status"], "offline");
    assert!(update["data"]["lastSeen"].is_string());
    assert!(
        left.elapsed() >= Duration::from_millis(550),
        "{:?}",
        left.elapsed()
    );
    let presence = QUICK.get("/rooms/grace/presence", &service()).await.ok();
    assert_eq!(presence["users"][0]["status"], "offline");
    assert_eq!(presence["users"][0]["connections"], 0);
    assert!(presence["users"][0]["lastSeen"].is_string());
}

#[tokio::test]
async fn a_connection_that_breaks_without_a_close_ends_presence() {
    let mut bob = Client::join(&QUICK, "broken", &token("bob")).await;
    let alice = Client::join(&QUICK, "broken", &token("alice")).await;
    assert_eq!(status_of(&mut bob, "alice").await, "online");
    drop(alice);
    assert_eq!(status_of(&mut bob, "alice").await, "offline");
    let id = bob.connected["connectionId"].clone();
    let line = QUICK
        .wait_for_log("the end of it", |line| {
            line["event"] == "disconnect" && line["roomId"] == "broken"
        })
        .await;
    assert_eq!(
        (&line["userId"], &line["code"]),
        (&json!("alice"), &json!(1006))
    );
    assert_ne!(line["connectionId"], id);
}

#[tokio::test]
async fn typing_is_told_to_the_others_and_expires() {
    let mut bob = Client::join(&QUICK, "typing", &token("bob")).await;
    let mut alice = Client::join(&QUICK, "typing", &token("alice")).await;
    let typing =
        |is_typing: bool| json!({ "roomId": "typing", "userId": "alice", "isTyping": is_typing });
    assert_eq!(
        alice
            .request("typingIndicator", json!({ "isTyping": true }))
            .await,
        Ok(json!({}))
    );
    let began = Instant::now();
    assert_eq!(bob.expect("userTyping").await["data"], typing(true));
    assert_eq!(bob.expect("userTyping").await["data"], typing(false));
    assert!(
        began.elapsed() >= Duration::from_millis(550),
        "{:?}",
        began.elapsed()
    );
    alice
        .request("typingIndicator", json!({ "isTyping": true }))
        .await
        .expect("told");
    alice
        .request("typingIndicator", json!({ "isTyping": false }))
        .await
        .expect("told");
    assert_eq!(bob.expect("userTyping").await["data"], typing(true));
    assert_eq!(bob.expect("userTyping").await["data"], typing(false));
    assert!(
        alice
            .drain()
            .await
            .iter()
            .all(|line| line["event"] != "userTyping")
    );
}

#[tokio::test]
async fn typing_ends_with_the_last_socket_of_the_user() {
    let mut bob = Client::join(&DEFAULT, "typing-ends", &token("bob")).await;
    let mut alice = Client::join(&DEFAULT, "typing-ends", &token("alice")).await;
    alice
        .request("typingIndicator", json!({ "isTyping": true }))
        .await
        .expect("told");
    assert_eq!(bob.expect("userTyping").await["data"]["isTyping"], true);
    let left = Instant::now();
    alice.close().await;
    assert_eq!(bob.expect("userTyping").await["data"]["isTyping"], false);
    assert!(
        left.elapsed() < Duration::from_secs(4),
        "before it would expire"
    );
}

#[tokio::test]
async fn typing_ends_with_membership() {
    let mut bob = Client::join(&DEFAULT, "typing-leaves", &token("bob")).await;
    let mut alice = Client::join(&DEFAULT, "typing-leaves", &token("alice")).await;
    alice
        .request("typingIndicator", json!({ "isTyping": true }))
        .await
        .expect("told");
    assert_eq!(bob.expect("userTyping").await["data"]["isTyping"], true);
    alice.request("leaveRoom", json!({})).await.expect("left");
    assert_eq!(bob.expect("userTyping").await["data"]["isTyping"], false);
    assert_eq!(bob.expect("userLeft").await["data"]["userId"], "alice");
}

#[tokio::test]
async fn a_socket_that_stops_pinging_without_a_close_is_reaped_and_its_presence_ends() {
    let server = Server::start(&[("GHOST_TIMEOUT", "2s"), ("PRESENCE_GRACE_MS", "100")]);
    let mut bob = Client::join(&server, "ghost", &token("bob")).await;
    let mut ghost = Client::join(&server, "ghost", &token("alice")).await;
    assert_eq!(status_of(&mut bob, "alice").await, "online");
    ghost.send_text("ping").await;
    ghost.find("pong", |line| line == "pong").await;
    // Its connection stays open; it just falls silent. Bob never pinged, so
    // nothing is expected of him.
    assert_eq!(status_of(&mut bob, "alice").await, "offline");
    assert_eq!(ghost.closed().await, 4408);
    bob.say("still here").await;
    server
        .wait_for_log("the alarm that reaped it", |line| {
            line["event"] == "alarm" && line["ghosts"] == 1
        })
        .await;
}

#[tokio::test]
async fn a_socket_that_goes_on_pinging_is_not_reaped() {
    let server = Server::start(&[("GHOST_TIMEOUT", "1s")]);
    let mut alice = Client::join(&server, "alive", &Token::user("alice").sign(SECRET)).await;
    // Time is the promise: three timeouts long.
    for _ in 0..10 {
        alice.send_text("ping").await;
        alice.find("pong", |line| line == "pong").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    alice.say("still here").await;
}
