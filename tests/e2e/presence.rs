//! Presence over several connections, typing indicators, stale connections.

use super::{DEFAULT, service, token};
use roomcast_harness::{Client, SECRET, Server, SocketIo, Token};
use serde_json::{Value, json};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// A server with a short grace time and typing timeout, so that tests wait less.
static QUICK: LazyLock<Server> =
    LazyLock::new(|| Server::start(&[("PRESENCE_GRACE_MS", "600"), ("TYPING_TTL_MS", "600")]));

/// Returns the status in the next presence update of a user.
async fn status_of(client: &mut Client, user: &str) -> String {
    let update = client
        .find(&format!("a presence update of {user}"), |line| {
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
    // The end of the phone connection changes nothing, the desk is still busy.
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
async fn a_presence_update_is_sent_only_if_the_status_changes() {
    let mut bob = Client::join(&QUICK, "changes", &token("bob")).await;
    let mut alice = Client::join(&QUICK, "changes", &token("alice")).await;
    let mut phone = Client::join(&QUICK, "changes", &token("alice")).await;
    assert_eq!(status_of(&mut bob, "alice").await, "online");
    // These do not change the status of the user.
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
    // This changes it, and is the next update that bob receives.
    alice
        .request("setPresence", json!({ "status": "busy" }))
        .await
        .expect("set");
    assert_eq!(status_of(&mut bob, "alice").await, "busy");
}

#[tokio::test]
async fn a_user_with_status_offline_still_receives_messages() {
    let mut bob = Client::join(&QUICK, "hidden", &token("bob")).await;
    let mut alice = Client::join(&QUICK, "hidden", &token("alice")).await;
    assert_eq!(status_of(&mut bob, "alice").await, "online");
    alice
        .request("setPresence", json!({ "status": "offline" }))
        .await
        .expect("set");
    assert_eq!(status_of(&mut bob, "alice").await, "offline");
    bob.send_message("do you hear me?").await;
    alice.expect("newMessage").await;
}

#[tokio::test]
async fn a_disconnect_is_announced_after_the_grace_time_and_not_if_the_user_reconnects() {
    let mut bob = Client::join(&QUICK, "grace", &token("bob")).await;
    let alice = Client::join(&QUICK, "grace", &token("alice")).await;
    assert_eq!(status_of(&mut bob, "alice").await, "online");
    alice.close().await;
    let alice = Client::join(&QUICK, "grace", &token("alice")).await;
    let left = Instant::now();
    alice.close().await;
    // The next update is `offline`. The reconnection causes no update.
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
async fn a_connection_lost_without_a_close_frame_ends_presence() {
    let mut bob = Client::join(&QUICK, "broken", &token("bob")).await;
    let alice = Client::join(&QUICK, "broken", &token("alice")).await;
    assert_eq!(status_of(&mut bob, "alice").await, "online");
    drop(alice);
    assert_eq!(status_of(&mut bob, "alice").await, "offline");
    let id = bob.connected["connectionId"].clone();
    let line = QUICK
        .wait_for_log("the disconnect of alice", |line| {
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
async fn typing_is_sent_to_other_users_and_expires() {
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
        .expect("accepted");
    alice
        .request("typingIndicator", json!({ "isTyping": false }))
        .await
        .expect("accepted");
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
async fn typing_ends_with_the_last_connection_of_the_user() {
    let mut bob = Client::join(&DEFAULT, "typing-ends", &token("bob")).await;
    let mut alice = Client::join(&DEFAULT, "typing-ends", &token("alice")).await;
    alice
        .request("typingIndicator", json!({ "isTyping": true }))
        .await
        .expect("accepted");
    assert_eq!(bob.expect("userTyping").await["data"]["isTyping"], true);
    let left = Instant::now();
    alice.close().await;
    assert_eq!(bob.expect("userTyping").await["data"]["isTyping"], false);
    assert!(
        left.elapsed() < Duration::from_secs(4),
        "typing must end before its timeout"
    );
}

#[tokio::test]
async fn typing_ends_with_membership() {
    let mut bob = Client::join(&DEFAULT, "typing-leaves", &token("bob")).await;
    let mut alice = Client::join(&DEFAULT, "typing-leaves", &token("alice")).await;
    alice
        .request("typingIndicator", json!({ "isTyping": true }))
        .await
        .expect("accepted");
    assert_eq!(bob.expect("userTyping").await["data"]["isTyping"], true);
    alice.request("leaveRoom", json!({})).await.expect("left");
    assert_eq!(bob.expect("userTyping").await["data"]["isTyping"], false);
    assert_eq!(bob.expect("userLeft").await["data"]["userId"], "alice");
}

#[tokio::test]
async fn a_connection_that_stops_pinging_is_closed_and_its_presence_ends() {
    let server = Server::start(&[("GHOST_TIMEOUT", "2s"), ("PRESENCE_GRACE_MS", "100")]);
    let mut bob = Client::join(&server, "stale", &token("bob")).await;
    let mut stale = Client::join(&server, "stale", &token("alice")).await;
    assert_eq!(status_of(&mut bob, "alice").await, "online");
    stale.send_text("ping").await;
    stale.find("pong", |line| line == "pong").await;
    // The connection stays open but sends nothing. Bob never pinged, so he has not
    // opted in to keepalive.
    assert_eq!(status_of(&mut bob, "alice").await, "offline");
    assert_eq!(stale.closed().await, 4408);
    bob.send_message("still here").await;
    server
        .wait_for_log("the alarm that closed the stale connection", |line| {
            line["event"] == "alarm" && line["ghosts"] == 1
        })
        .await;
}

#[tokio::test]
async fn a_connection_that_pings_stays_open() {
    let server = Server::start(&[("GHOST_TIMEOUT", "1s")]);
    let mut alice = Client::join(&server, "alive", &Token::user("alice").sign(SECRET)).await;
    // The test lasts three times as long as the timeout.
    for _ in 0..10 {
        alice.send_text("ping").await;
        alice.find("pong", |line| line == "pong").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    alice.send_message("still here").await;
}

/// Returns the milliseconds since 1970 of a time.
fn millis(time: &Value) -> i64 {
    let time = time.as_str().expect("a time");
    roomcast_proto::time::parse_rfc3339(time).expect("a time") as i64
}

#[tokio::test]
async fn a_stale_user_was_last_seen_at_its_last_ping() {
    let server = Server::start(&[
        ("GHOST_TIMEOUT", "3s"),
        ("PRESENCE_GRACE_MS", "100"),
        ("GATEWAY_SHARDS", "1"),
    ]);
    for path in ["/rooms/seen/ws", "/ws"] {
        let room = format!("seen{}", path.len());
        let mut bob = Client::join(&server, &room, &token("bob")).await;
        let path = format!("{path}?token={}", token("alice")).replace("seen", &room);
        let mut stale = Client::open(&server, &path, &[]).await.expect("accepted");
        if path.starts_with("/ws") {
            stale
                .request("joinRoom", json!({ "roomId": room }))
                .await
                .expect("joined");
        }
        assert_eq!(status_of(&mut bob, "alice").await, "online");
        stale.send_text("ping").await;
        stale.find("pong", |line| line == "pong").await;
        let pinged = unix_millis();
        let update = loop {
            let update = bob.expect("presenceUpdate").await["data"].take();
            if update["status"] == "offline" {
                break update;
            }
        };
        // The absence is noticed three seconds later.
        assert!(unix_millis() - pinged >= 2_900, "{path}");
        let seen = millis(&update["lastSeen"]);
        assert!((seen - pinged).abs() < 1_000, "{path}: {}", seen - pinged);
    }
}

fn unix_millis() -> i64 {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
    since.expect("a clock after 1970").as_millis() as i64
}

#[tokio::test]
async fn a_newcomer_is_told_who_is_typing() {
    let mut alice = Client::join(&DEFAULT, "typing-now", &token("alice")).await;
    let mut first = Client::join(&DEFAULT, "typing-now", &token("first")).await;
    alice
        .request("typingIndicator", json!({ "isTyping": true }))
        .await
        .expect("accepted");
    first.expect("userTyping").await;
    let expected = json!({ "roomId": "typing-now", "userId": "alice", "isTyping": true });
    let mut own = Client::join(&DEFAULT, "typing-now", &token("own")).await;
    assert_eq!(own.expect("userTyping").await["data"], expected);
    let path = format!("/ws?token={}", token("native"));
    let mut native = Client::open(&DEFAULT, &path, &[]).await.expect("accepted");
    let join = json!({ "roomId": "typing-now" });
    native
        .request("joinRoom", join.clone())
        .await
        .expect("joined");
    assert_eq!(native.expect("userTyping").await["data"], expected);
    let mut socketio = SocketIo::join(&DEFAULT, &token("socketio")).await;
    socketio.request("joinRoom", join).await.expect("joined");
    assert_eq!(socketio.expect("userTyping").await.args[0], expected);
}
