//! Panics, storage errors and a full disk cause no outage and no false
//! acknowledgement. Most tests use a build with failpoints; see
//! `src/runtime/failpoint.rs`.

use super::{service, token};
use roomcast_harness::{Client, Server, Worker};
use serde_json::{Value, json};
use std::sync::LazyLock;
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard};

/// A server with failpoints. All rooms share one isolate, so only one test at a time
/// may use the server.
static WITH_FAILPOINTS: LazyLock<Mutex<Server>> =
    LazyLock::new(|| Mutex::new(Server::start_worker(&Worker::built("failpoints"), &[])));

async fn server_with_failpoints() -> MutexGuard<'static, Server> {
    WITH_FAILPOINTS.lock().await
}

/// Arms failpoints. Each of them fails once, when the code next reaches it.
async fn arm(server: &Server, points: &[&str]) {
    plan(server, json!({ "points": points })).await;
}

/// Sends a request to `POST /failpoints`, which replaces the earlier one.
pub(crate) async fn plan(server: &Server, body: Value) {
    let armed = server.post("/failpoints", &service(), body).await;
    assert_eq!(armed.status, 200);
}

/// Sends a message with the same `messageId` until it is acknowledged. Clients do the
/// same if they receive no answer.
async fn send_until_acknowledged(client: &mut Client, message: Value) -> Value {
    for _ in 0..10 {
        let id = client.start("sendMessage", message.clone()).await;
        if let Ok(answer) = tokio::time::timeout(Duration::from_secs(2), client.answer(id)).await {
            return answer.expect("accepted");
        }
    }
    panic!("the message was never acknowledged");
}

fn message(id: &str) -> Value {
    json!({ "content": id, "messageId": id })
}

/// Returns the `messageId`s of the log of a room.
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
async fn a_panic_in_a_room_closes_no_socket_and_loses_no_event() {
    let server = server_with_failpoints().await;
    for point in ["Frame", "Flush", "Stored"] {
        let room = format!("panic-{point}");
        let mut alice = Client::join(&server, &room, &token("alice")).await;
        let mut bob = Client::join(&server, &room, &token("bob")).await;
        let mut carol = Client::join(&server, &format!("{room}-other"), &token("carol")).await;
        send_until_acknowledged(&mut alice, message("before")).await;
        send_until_acknowledged(&mut carol, message("before")).await;

        arm(&server, &[point]).await;
        let answer = send_until_acknowledged(&mut alice, message("m")).await;
        assert_eq!(answer["seq"], 2, "{point}");
        assert!(server.output().contains(&format!("failpoint: {point}")));
        // All sockets keep working, in this room and in others.
        send_until_acknowledged(&mut bob, message("after")).await;
        send_until_acknowledged(&mut carol, message("after")).await;
        let seen: Vec<u64> = bob.logged(3).await.iter().map(Client::seq).collect();
        assert_eq!(seen, [1, 2, 3], "{point}");
        assert_eq!(log(&server, &room).await, ["before", "m", "after"]);
        assert_eq!(bob.drain_logged(), 0, "no event arrived twice");
    }
}

#[tokio::test]
async fn an_alarm_runs_again_after_a_panic() {
    // The alarm looks for stale connections after 3 s.
    let server = Server::start_worker(&Worker::built("failpoints"), &[("GHOST_TIMEOUT", "3s")]);
    let mut alice = Client::join(&server, "alarm", &token("alice")).await;
    let mut stale = Client::join(&server, "alarm", &token("stale")).await;
    send_until_acknowledged(&mut alice, message("before")).await;
    arm(&server, &["Alarm"]).await;
    // The client sends a ping and then nothing more. Its socket stays open.
    stale.send_text("ping").await;
    server
        .wait_for_log("the panic", |_| {
            server.output().contains("failpoint: Alarm")
        })
        .await;
    send_until_acknowledged(&mut alice, message("after")).await;
    let offline = alice.find("the stale user to be offline", |line| {
        line["event"] == "presenceUpdate"
            && line["data"]["userId"] == "stale"
            && line["data"]["status"] == "offline"
    });
    offline.await;
    assert_eq!(log(&server, "alarm").await, ["before", "after"]);
}

#[tokio::test]
async fn a_panic_in_a_gateway_closes_no_socket_and_loses_no_event() {
    let server = server_with_failpoints().await;
    for point in ["GatewayFrame", "GatewayPush"] {
        let room = format!("panic-{point}");
        let mut members = Vec::new();
        for user in ["alice", "bob"] {
            let path = format!("/ws?token={}", token(user));
            let mut client = Client::open(&server, &path, &[]).await.expect("accepted");
            let joined = client.request("joinRoom", json!(room)).await;
            joined.expect("joined");
            members.push(client);
        }
        let in_room = |id: &str| json!({ "content": id, "messageId": id, "roomId": room });
        send_until_acknowledged(&mut members[0], in_room("before")).await;
        arm(&server, &[point]).await;
        send_until_acknowledged(&mut members[0], in_room("m")).await;
        assert!(server.output().contains(&format!("failpoint: {point}")));
        send_until_acknowledged(&mut members[1], in_room("after")).await;
        for member in &mut members {
            let seen: Vec<u64> = member.logged(3).await.iter().map(Client::seq).collect();
            assert_eq!(seen, [1, 2, 3], "{point}");
        }
        assert_eq!(log(&server, &room).await, ["before", "m", "after"]);
    }
}

#[tokio::test]
async fn a_leave_is_delivered_to_a_gateway_that_panics_on_the_delivery() {
    let server = server_with_failpoints().await;
    let path = format!("/ws?token={}", token("alice"));
    let mut at_gateway = Client::open(&server, &path, &[]).await.expect("accepted");
    let joined = at_gateway.request("joinRoom", json!("panic-leave")).await;
    joined.expect("joined");
    let mut at_room = Client::join(&server, "panic-leave", &token("alice")).await;
    let mut bob = Client::join(&server, "panic-leave", &token("bob")).await;
    at_gateway
        .find("the join of bob", |line| {
            line["event"] == "userJoined" && line["data"]["userId"] == "bob"
        })
        .await;
    arm(&server, &["GatewayPush"]).await;
    at_room.start("leaveRoom", json!({})).await;
    server
        .wait_for_log("the panic", |_| {
            server.output().contains("failpoint: GatewayPush")
        })
        .await;
    // The panic discarded the memory of the room as well. The room delivers the
    // leave again when it restarts.
    send_until_acknowledged(&mut bob, message("m")).await;
    at_gateway
        .find("the leave", |line| {
            assert_ne!(
                line["event"], "newMessage",
                "a user who left receives no messages"
            );
            line["event"] == "userLeft" && line["data"]["userId"] == "alice"
        })
        .await;
}

/// Returns the number of panics of a failpoint.
fn panics(server: &Server, point: &str) -> usize {
    let message = format!("failpoint: {point}");
    server.output().matches(&message).count()
}

/// Waits until a failpoint has panicked more than `before` times.
async fn wait_for_panic(server: &Server, point: &str, before: usize) {
    server
        .wait_for_log("the panic", |_| panics(server, point) > before)
        .await;
}

#[tokio::test]
async fn a_failed_join_leaves_the_socket_outside_the_room() {
    // A server of its own: no other room takes the failpoint.
    let server = Server::start_worker(&Worker::built("failpoints"), &[]);
    let mut bob = Client::join(&server, "failed-join", &token("bob")).await;
    let mut alice = Client::join(&server, "failed-join", &token("alice")).await;
    alice.request("leaveRoom", json!({})).await.expect("left");
    let is_of_alice =
        |line: &Value, name: &str| line["event"] == name && line["data"]["userId"] == "alice";
    // Otherwise the announcements would be lost with the state of the room.
    for name in ["userJoined", "userLeft"] {
        bob.find(name, |line| is_of_alice(line, name)).await;
    }
    arm(&server, &["Write"]).await;
    let refused = alice.request("joinRoom", json!("failed-join")).await;
    assert_eq!(refused.expect_err("not stored")["code"], "internal");
    let refused = alice.request("sendMessage", message("m")).await;
    assert_eq!(refused.expect_err("not in the room")["code"], "notJoined");
    send_until_acknowledged(&mut bob, message("first")).await;
    let joined = alice.request("joinRoom", json!("failed-join")).await;
    assert_eq!(joined.expect("joined")["seq"], 1);
    send_until_acknowledged(&mut bob, message("second")).await;
    let received = alice.logged(1).await;
    assert_eq!(Client::seq(&received[0]), 2, "`first` was sent to members");
    // The failed join was not announced.
    bob.find("userJoined", |line| is_of_alice(line, "userJoined"))
        .await;
    let rest = bob.drain().await;
    assert!(!rest.iter().any(|line| is_of_alice(line, "userJoined")));
}

#[tokio::test]
async fn a_failed_leave_leaves_the_sockets_of_the_user_in_the_room() {
    // A server of its own: no other room takes the failpoint.
    let server = Server::start_worker(&Worker::built("failpoints"), &[]);
    let mut open = Vec::new();
    for point in ["Write", "Flush"] {
        let room = format!("failed-leave-{point}");
        let mut phone = Client::join(&server, &room, &token("alice")).await;
        let mut desk = Client::join(&server, &room, &token("alice")).await;
        let mut bob = Client::join(&server, &room, &token("bob")).await;
        let before = panics(&server, point);
        arm(&server, &[point]).await;
        let id = phone.start("leaveRoom", json!({})).await;
        match point {
            "Write" => {
                let refused = phone.answer(id).await;
                assert_eq!(refused.expect_err("not stored")["code"], "internal");
            }
            _ => wait_for_panic(&server, point, before).await,
        }
        send_until_acknowledged(&mut bob, message("m")).await;
        for socket in [&mut phone, &mut desk] {
            assert_eq!(Client::seq(&socket.logged(1).await[0]), 1, "{point}");
        }
        let frames = bob.drain().await;
        assert!(frames.iter().all(|line| line["event"] != "userLeft"));
        open.extend([phone, desk, bob]);
    }
}

#[tokio::test]
async fn a_room_that_fails_during_a_delivery_delivers_everything_afterwards() {
    let server = server_with_failpoints().await;
    for point in ["Write", "Flush", "Stored"] {
        let room = format!("failed-delivery-{point}");
        let path = format!("/ws?token={}", token("alice"));
        let mut listener = Client::open(&server, &path, &[]).await.expect("accepted");
        let joined = listener.request("joinRoom", json!(room)).await;
        joined.expect("joined");
        let publish = async |id: &str| {
            let data = json!({ "content": id });
            let body =
                json!({ "room": room, "event": "newMessage", "messageId": id, "data": data });
            server.post("/publish", &service(), body).await
        };
        // The gateway refuses the delivery of this event, and the room repeats the delivery.
        plan(&server, json!({ "stopped": true })).await;
        publish("first").await.ok();
        plan(&server, json!({ "stopped": true, "points": [point] })).await;
        publish("second").await;
        plan(&server, json!({})).await;
        publish("third").await.ok();
        let stored = log(&server, &room).await;
        assert!(stored.contains(&"first".to_owned()) && stored.contains(&"third".to_owned()));
        let received = listener.logged(stored.len()).await;
        let received: Vec<&str> = received
            .iter()
            .filter_map(|event| event["data"]["messageId"].as_str())
            .collect();
        assert_eq!(received, stored, "{point}");
    }
}

/// The room has closed the socket, but its client has not ended the connection.
#[tokio::test]
async fn a_frame_of_a_closed_socket_that_wakes_the_room_starts_its_deliveries() {
    let one_connection = [("MAX_CONNECTIONS_PER_USER", "1")];
    let server = Server::start_worker(&Worker::built("failpoints"), &one_connection);
    let path = format!("/ws?token={}", token("alice"));
    let mut listener = Client::open(&server, &path, &[]).await.expect("accepted");
    let joined = listener.request("joinRoom", json!("closed-socket")).await;
    joined.expect("joined");
    let mut closed = Client::join(&server, "closed-socket", &token("bob")).await;
    let mut sender = Client::join(&server, "closed-socket", &token("bob")).await;
    // The event is stored. The room loses its memory before it sends the event.
    arm(&server, &["Stored"]).await;
    sender.start("sendMessage", message("m")).await;
    wait_for_panic(&server, "Stored", 0).await;
    closed.send_text("{}").await;
    assert_eq!(Client::seq(&listener.logged(1).await[0]), 1);
}

#[tokio::test]
async fn a_failed_write_is_answered_internal_and_nothing_is_broadcast() {
    let server = server_with_failpoints().await;
    let mut alice = Client::join(&server, "write", &token("alice")).await;
    let mut bob = Client::join(&server, "write", &token("bob")).await;
    send_until_acknowledged(&mut alice, message("before")).await;
    arm(&server, &["Write"]).await;
    let refused = alice.request("sendMessage", message("m")).await;
    assert_eq!(refused.expect_err("not stored")["code"], "internal");
    let published = json!({ "room": "write", "event": "news", "data": 1, "messageId": "p" });
    arm(&server, &["Write"]).await;
    let answer = server.post("/publish", &service(), published.clone()).await;
    answer.problem(500, "internal");
    // A resend of each is stored as a new message.
    assert_eq!(
        send_until_acknowledged(&mut alice, message("m")).await["seq"],
        2
    );
    server.post("/publish", &service(), published).await.ok();
    assert_eq!(log(&server, "write").await.len(), 3);
    let seen: Vec<u64> = bob.logged(3).await.iter().map(Client::seq).collect();
    assert_eq!(seen, [1, 2, 3]);
}

#[tokio::test]
async fn a_possible_duplicate_is_refused_while_the_log_cannot_be_read() {
    let server = server_with_failpoints().await;
    let mut alice = Client::join(&server, "read", &token("alice")).await;
    assert_eq!(
        send_until_acknowledged(&mut alice, message("m")).await["seq"],
        1
    );
    // A panic discards the memory of the room.
    arm(&server, &["Frame"]).await;
    alice
        .send("typingIndicator", json!({ "isTyping": true }))
        .await;
    server
        .wait_for_log("the panic", |_| {
            server.output().contains("failpoint: Frame")
        })
        .await;
    arm(&server, &["Read"]).await;
    let refused = alice.request("sendMessage", message("m")).await;
    assert_eq!(
        refused.expect_err("the log cannot be read")["code"],
        "internal"
    );
    let again = send_until_acknowledged(&mut alice, message("m")).await;
    assert_eq!(
        (&again["seq"], &again["duplicate"]),
        (&json!(1), &json!(true))
    );
}

#[tokio::test]
async fn a_full_room_deletes_its_oldest_events_and_stores_the_new_one() {
    let server = server_with_failpoints().await;
    let mut alice = Client::join(&server, "full-room", &token("alice")).await;
    for n in 1..=30 {
        send_until_acknowledged(&mut alice, message(&format!("m{n}"))).await;
    }
    alice.logged(30).await;
    arm(&server, &["Full"]).await;
    let stored = alice.request("sendMessage", message("new")).await;
    assert_eq!(stored.expect("stored")["seq"], 31);
    assert_eq!(Client::seq(&alice.logged(1).await[0]), 31);
    let path = "/rooms/full-room/messages?after=0";
    let page = server.get(path, &service()).await.ok();
    assert_eq!(page["gap"], json!({ "from": 1, "to": 3 }), "a tenth");
    assert_eq!(page["events"].as_array().map(Vec::len), Some(28));
    // A send whose event was deleted is still recognised.
    let again = alice.request("sendMessage", message("m1")).await;
    assert_eq!(again.expect("accepted")["seq"], 1);

    // If that does not suffice, the sender learns the reason.
    arm(&server, &["Full", "Full"]).await;
    let refused = alice.request("sendMessage", message("refused")).await;
    let refused = refused.expect_err("not stored");
    let reason = "the storage of the room is full, try again later";
    assert_eq!(
        (&refused["code"], &refused["message"]),
        (&json!("internal"), &json!(reason))
    );
    arm(&server, &["Full", "Full"]).await;
    let published = json!({ "room": "full-room", "event": "news", "data": 1, "messageId": "p" });
    let answer = server.post("/publish", &service(), published).await;
    answer.problem(500, "internal");
    let stored = alice.request("sendMessage", message("after")).await;
    assert_eq!(stored.expect("stored")["seq"], 32);
}

#[tokio::test]
async fn a_full_disk_acknowledges_nothing_and_the_room_recovers_with_free_space() {
    // Writes beyond 1 MiB (2,048 blocks of 512 bytes) in a file fail.
    let limit = "trap '' XFSZ; ulimit -f 2048";
    let settings = [
        ("MESSAGES_PER_SECOND", "100000"),
        ("MESSAGES_BURST", "100000"),
    ];
    let mut server = Server::start_after(limit, &Worker::roomcast(), &settings);
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
    assert_eq!(failed, 5, "the disk must be full");
    assert!(!acknowledged.is_empty());
    // Other rooms still work.
    let mut bob = Client::join(&server, "elsewhere", &token("bob")).await;
    bob.send_message("still here").await;

    server.restart_after("");
    let log = log(&server, "full").await;
    for (id, seq) in &acknowledged {
        let seq = seq.as_u64().expect("a seq") as usize;
        assert_eq!(log.get(seq - 1), Some(id));
    }
    let mut alice = Client::join(&server, "full", &token("alice")).await;
    alice.send_message("there is free space").await;
}

#[tokio::test]
async fn a_request_interrupted_by_a_panic_is_answered_at_once() {
    let server = server_with_failpoints().await;
    let publication = json!({ "room": "hung", "event": "news", "data": 1, "messageId": "p" });
    let publish = async || {
        let token = service();
        let answer = server.post("/publish", &token, publication.clone());
        let answer = tokio::time::timeout(Duration::from_secs(10), answer);
        answer.await.expect("the request is answered")
    };
    arm(&server, &["Flush"]).await;
    publish().await.problem(500, "internal");
    assert_eq!(publish().await.ok()["seq"], 1);
}

#[tokio::test]
async fn commands_after_a_failed_write_in_the_same_request_are_answered() {
    let server = server_with_failpoints().await;
    let room = "write-gateway";
    let path = format!("/ws?token={}", token("alice"));
    let mut alice = Client::open(&server, &path, &[]).await.expect("accepted");
    alice
        .request("joinRoom", json!(room))
        .await
        .expect("joined");
    let in_room = |id: &str| json!({ "content": id, "messageId": id, "roomId": room });
    send_until_acknowledged(&mut alice, in_room("before")).await;
    arm(&server, &["Write"]).await;
    let send = |id: u32| {
        let data = in_room(&format!("m-{id}"));
        json!({ "event": "sendMessage", "data": data, "id": id })
    };
    let commands = [
        send(101),
        // A repeated join ends the batch, which stores the first message.
        json!({ "event": "joinRoom", "data": room, "id": 102 }),
        send(103),
        send(104),
    ];
    let frame = commands.map(|command| command.to_string()).join("\n");
    alice.send_text(&frame).await;
    for (id, fails) in [(101, true), (102, true), (103, false), (104, false)] {
        let answer = alice.answer(id).await;
        match answer {
            Err(error) => assert!(fails && error["code"] == "internal", "{id}: {error}"),
            Ok(answer) => assert!(!fails, "{id}: {answer}"),
        }
    }
    send_until_acknowledged(&mut alice, in_room("after")).await;
    let seen: Vec<u64> = alice.logged(4).await.iter().map(Client::seq).collect();
    assert_eq!(seen, [1, 2, 3, 4]);
    let stored = log(&server, room).await;
    assert_eq!(stored, ["before", "m-103", "m-104", "after"]);
    let again = alice
        .drain()
        .await
        .iter()
        .any(|line| !line["ack"].is_null());
    assert!(!again, "a command was answered twice");
}

#[tokio::test]
async fn a_socket_that_the_platform_does_not_accept_leaves_no_connection() {
    let server = server_with_failpoints().await;
    let path = format!("/ws?token={}", token("unaccepted"));
    arm(&server, &["GatewayAccept"]).await;
    let answer = server.request_upgrade(&path, &[]).await;
    answer.problem(429, "rateLimited");
    let mut client = Client::open(&server, &path, &[]).await.expect("accepted");
    // The personal room has only the second connection.
    client
        .request("joinRoom", json!("accepted"))
        .await
        .expect("joined");
    let presence = server.get("/rooms/@unaccepted/presence", &service()).await;
    assert_eq!(presence.ok()["users"][0]["connections"], 1);
}
