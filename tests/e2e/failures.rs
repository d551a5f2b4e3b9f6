//! Panics, storage that fails, a full disk: no outage, and nothing told that is
//! not so. Against a build that fails on demand; see `src/durable/sabotage.rs`.

use super::{service, token};
use roomcast_harness::{Client, Server, Worker};
use serde_json::{Value, json};
use std::sync::LazyLock;
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard};

/// One isolate has all the rooms, so that tests fail it one at a time.
static SABOTAGED: LazyLock<Mutex<Server>> =
    LazyLock::new(|| Mutex::new(Server::start_worker(&Worker::built("sabotage"), &[])));

async fn sabotaged() -> MutexGuard<'static, Server> {
    SABOTAGED.lock().await
}

/// Has the code fail when it next passes these points.
async fn plan(server: &Server, points: &[&str]) {
    let plan = json!({ "points": points });
    let planned = server.post("/sabotage", &service(), plan).await;
    assert_eq!(planned.status, 200);
}

/// Sends until it is acknowledged, as a client does that hears nothing; under
/// one `messageId`.
async fn insist(client: &mut Client, message: Value) -> Value {
    for _ in 0..10 {
        let id = client.start("sendMessage", message.clone()).await;
        if let Ok(answer) = tokio::time::timeout(Duration::from_secs(2), client.answer(id)).await {
            return answer.expect("the message is taken");
        }
    }
    panic!("never answered");
}

fn message(id: &str) -> Value {
    json!({ "content": id, "messageId": id })
}

/// The log of a room, as `messageId`s.
async fn log(server: &Server, room: &str) -> Vec<String> {
    let mut log = Vec::new();
    loop {
        let path = format!("/rooms/{room}/messages?after={}", log.len());
        let page = server.get(&path, &service()).await.ok();
        let events = page["events"].as_array().expect("events").iter();
        let id = |event: &Value| {
            event["data"]["messageId"]
                .as_str()
                .unwrap_or("?")
                .to_owned()
        };
        log.extend(events.map(id));
        if page["more"] == false {
            return log;
        }
    }
}

#[tokio::test]
async fn a_panic_in_a_room_loses_no_socket_and_no_event() {
    let server = sabotaged().await;
    for point in ["Frame", "Tick", "Stored"] {
        let room = format!("panic-{point}");
        let mut alice = Client::join(&server, &room, &token("alice")).await;
        let mut bob = Client::join(&server, &room, &token("bob")).await;
        let mut carol = Client::join(&server, &format!("{room}-other"), &token("carol")).await;
        insist(&mut alice, message("before")).await;
        insist(&mut carol, message("before")).await;

        plan(&server, &[point]).await;
        let answer = insist(&mut alice, message("m")).await;
        assert_eq!(answer["seq"], 2, "{point}");
        assert!(server.output().contains(&format!("sabotaged: {point}")));
        // The same sockets go on, in this room and in others.
        insist(&mut bob, message("after")).await;
        insist(&mut carol, message("after")).await;
        let seen: Vec<u64> = bob.logged(3).await.iter().map(Client::seq).collect();
        assert_eq!(seen, [1, 2, 3], "{point}");
        assert_eq!(log(&server, &room).await, ["before", "m", "after"]);
        assert_eq!(bob.drain_logged(), 0, "nothing came twice");
    }
}

#[tokio::test]
async fn a_panic_in_an_alarm_is_made_up_for() {
    // Ghosts are looked for after 3 s, by the alarm.
    let server = Server::start_worker(
        &Worker::built("sabotage"),
        &[("GHOST_TIMEOUT", "3s"), ("PRESENCE_GRACE", "1s")],
    );
    let mut alice = Client::join(&server, "alarm", &token("alice")).await;
    let mut ghost = Client::join(&server, "alarm", &token("ghost")).await;
    insist(&mut alice, message("before")).await;
    plan(&server, &["Alarm"]).await;
    // From now on it says nothing, though its socket stays open.
    ghost.send_text("ping").await;
    server
        .wait_for_log("the panic", |_| {
            server.output().contains("sabotaged: Alarm")
        })
        .await;
    insist(&mut alice, message("after")).await;
    let gone = alice.find("the ghost to be gone", |line| {
        line["event"] == "presenceUpdate"
            && line["data"]["userId"] == "ghost"
            && line["data"]["status"] == "offline"
    });
    gone.await;
    assert_eq!(log(&server, "alarm").await, ["before", "after"]);
}

#[tokio::test]
async fn a_panic_at_a_gateway_loses_no_socket_and_no_event() {
    let server = sabotaged().await;
    for point in ["GatewayFrame", "GatewayPush"] {
        let room = format!("panic-{point}");
        let mut members = Vec::new();
        for user in ["alice", "bob"] {
            let path = format!("/ws?token={}", token(user));
            let mut client = Client::open(&server, &path, &[]).await.expect("let in");
            let joined = client.request("joinRoom", json!(room)).await;
            joined.expect("the room lets in");
            members.push(client);
        }
        let in_room = |id: &str| json!({ "content": id, "messageId": id, "roomId": room });
        insist(&mut members[0], in_room("before")).await;
        plan(&server, &[point]).await;
        insist(&mut members[0], in_room("m")).await;
        assert!(server.output().contains(&format!("sabotaged: {point}")));
        insist(&mut members[1], in_room("after")).await;
        for member in &mut members {
            let seen: Vec<u64> = member.logged(3).await.iter().map(Client::seq).collect();
            assert_eq!(seen, [1, 2, 3], "{point}");
        }
        assert_eq!(log(&server, &room).await, ["before", "m", "after"]);
    }
}

#[tokio::test]
async fn a_gateway_hears_who_left_though_it_panics_when_it_is_told() {
    let server = sabotaged().await;
    let path = format!("/ws?token={}", token("alice"));
    let mut far = Client::open(&server, &path, &[]).await.expect("let in");
    let joined = far.request("joinRoom", json!("panic-leave")).await;
    joined.expect("the room lets in");
    let mut near = Client::join(&server, "panic-leave", &token("alice")).await;
    let mut bob = Client::join(&server, "panic-leave", &token("bob")).await;
    far.find("bob", |line| {
        line["event"] == "userJoined" && line["data"]["userId"] == "bob"
    })
    .await;
    plan(&server, &["GatewayPush"]).await;
    near.start("leaveRoom", json!({})).await;
    server
        .wait_for_log("the panic", |_| {
            server.output().contains("sabotaged: GatewayPush")
        })
        .await;
    // The panic took the memory of the room, too: it says so when it wakes.
    insist(&mut bob, message("m")).await;
    far.find("the leave", |line| {
        assert_ne!(line["event"], "newMessage", "it is out");
        line["event"] == "userLeft" && line["data"]["userId"] == "alice"
    })
    .await;
}

#[tokio::test]
async fn when_storing_fails_senders_are_told_internal_and_nobody_sees_anything() {
    let server = sabotaged().await;
    let mut alice = Client::join(&server, "write", &token("alice")).await;
    let mut bob = Client::join(&server, "write", &token("bob")).await;
    insist(&mut alice, message("before")).await;
    plan(&server, &["Write"]).await;
    let refused = alice.request("sendMessage", message("m")).await;
    assert_eq!(refused.expect_err("not stored")["code"], "internal");
    let published = json!({ "room": "write", "event": "news", "data": 1, "messageId": "p" });
    plan(&server, &["Write"]).await;
    let answer = server.post("/publish", &service(), published.clone()).await;
    answer.problem(500, "internal");
    // Sent again, both are new.
    assert_eq!(insist(&mut alice, message("m")).await["seq"], 2);
    server.post("/publish", &service(), published).await.ok();
    assert_eq!(log(&server, "write").await.len(), 3);
    let seen: Vec<u64> = bob.logged(3).await.iter().map(Client::seq).collect();
    assert_eq!(seen, [1, 2, 3]);
}

#[tokio::test]
async fn when_the_log_cannot_be_read_no_send_is_taken_that_may_be_a_repetition() {
    let server = sabotaged().await;
    let mut alice = Client::join(&server, "read", &token("alice")).await;
    assert_eq!(insist(&mut alice, message("m")).await["seq"], 1);
    // The room forgets what it had in memory.
    plan(&server, &["Frame"]).await;
    alice.send("typing", json!({ "isTyping": true })).await;
    server
        .wait_for_log("the panic", |_| {
            server.output().contains("sabotaged: Frame")
        })
        .await;
    plan(&server, &["Read"]).await;
    let refused = alice.request("sendMessage", message("m")).await;
    assert_eq!(refused.expect_err("not known")["code"], "internal");
    let again = insist(&mut alice, message("m")).await;
    assert_eq!(
        (&again["seq"], &again["duplicate"]),
        (&json!(1), &json!(true))
    );
}

#[tokio::test]
async fn a_full_disk_acknowledges_nothing_and_once_there_is_room_all_goes_on() {
    // No file may grow beyond 1 MiB; a write beyond fails.
    let full = "trap '' XFSZ; ulimit -f 2048";
    let settings = [
        ("MESSAGES_PER_SECOND", "100000"),
        ("MESSAGES_BURST", "100000"),
    ];
    let mut server = Server::start_after(full, &Worker::roomcast(), &settings);
    let content = "x".repeat(30_000);
    let (mut acknowledged, mut failed) = (Vec::new(), 0);
    for n in 0..1000 {
        let id = format!("m{n}");
        let data = json!({ "content": content });
        let publication =
            json!({ "room": "full", "event": "newMessage", "data": data, "messageId": id });
        let answer = server.post("/publish", &service(), publication).await;
        match answer.status {
            200 => acknowledged.push((id, answer.ok()["seq"].clone())),
            _ => {
                answer.problem(500, "internal");
                failed += 1;
            }
        }
        if failed == 5 {
            break;
        }
    }
    assert_eq!(failed, 5, "the disk was never full");
    assert!(!acknowledged.is_empty());
    // Other rooms are served meanwhile.
    let mut bob = Client::join(&server, "elsewhere", &token("bob")).await;
    bob.say("still here").await;

    server.restart_after("");
    let log = log(&server, "full").await;
    for (id, seq) in &acknowledged {
        let seq = seq.as_u64().expect("a seq") as usize;
        assert_eq!(log.get(seq - 1), Some(id));
    }
    let mut alice = Client::join(&server, "full", &token("alice")).await;
    alice.say("there is room").await;
}

#[tokio::test]
async fn a_request_interrupted_by_a_panic_is_answered_at_once() {
    let server = sabotaged().await;
    let publication = json!({ "room": "hung", "event": "news", "data": 1, "messageId": "p" });
    let publish = async || {
        let token = service();
        let answer = server.post("/publish", &token, publication.clone());
        let answer = tokio::time::timeout(Duration::from_secs(10), answer);
        answer.await.expect("the request is answered")
    };
    plan(&server, &["Tick"]).await;
    publish().await.problem(500, "internal");
    assert_eq!(publish().await.ok()["seq"], 1);
}
