//! Rooms and gateways: slow clients, clients that missed a lot, and gateways that were out of
//! reach receive everything from the log, in order, and without having to send anything.

use super::{connections, service, token};
use futures_util::future::join_all;
use roomcast_harness::{Client, Event, Polling, SEPARATOR, Server, SocketIo, Worker};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

/// One gateway, so that all clients of a test share it.
const ONE_GATEWAY: (&str, &str) = ("GATEWAY_SHARDS", "1");

/// Publishes `events` events with `bytes` bytes of content each.
async fn publish(server: &Server, room: &str, events: usize, bytes: usize) {
    let content = "x".repeat(bytes);
    let one = json!({ "room": room, "event": "newMessage", "data": { "content": content } });
    let batch = (1_000_000 / (bytes + 100)).clamp(1, 100);
    let mut left = events;
    while left > 0 {
        let n = left.min(batch);
        let body = json!({ "messages": vec![&one; n] });
        server.post("/publish", &service(), body).await.ok();
        left -= n;
    }
}

/// Opens a native socket at a gateway and joins a room at its head.
async fn join(server: &Server, user: &str, room: &str) -> Client {
    let path = format!("/ws?token={}", token(user));
    let client = Client::open(server, &path, &[]).await;
    let mut client = client.expect("accepted");
    let joined = client.request("joinRoom", json!({ "roomId": room })).await;
    joined.expect("joined");
    client
}

/// Reads the events up to `last`, in order, after the event `next - 1`.
async fn read_to(client: &mut Client, next: u64, last: u64) -> Result<(), String> {
    for expected in next..=last {
        if !client.expect_seq(expected, Duration::from_secs(40)).await? {
            return Err(format!("event {expected} does not arrive"));
        }
        client.frames.clear();
    }
    Ok(())
}

#[tokio::test]
async fn after_an_outage_of_a_gateway_every_client_receives_everything_without_sending() {
    let worker = Worker::built("failpoints");
    let server = Server::start_worker(&worker, &[ONE_GATEWAY]);
    let mut listeners = Vec::new();
    for n in 0..4 {
        listeners.push(join(&server, &format!("listener-{n}"), "outage").await);
    }
    publish(&server, "outage", 3, 10).await;
    for listener in &mut listeners {
        assert_eq!(read_to(listener, 1, 3).await, Ok(()));
    }
    server
        .post("/failpoints", &service(), json!({ "stopped": true }))
        .await;
    publish(&server, "outage", 20, 10).await;
    let stopped = json!("Error: failpoint: stopped");
    let failed = |record: &Value| record["error"] == stopped;
    // The room logs the error when the gateway counts as unreachable.
    server.wait_for_log("an unreachable gateway", failed).await;
    publish(&server, "outage", 20, 10).await;
    assert_eq!(connections(&server, "outage", "listener-0").await, 1);
    server
        .post("/failpoints", &service(), json!({ "stopped": false }))
        .await;
    let received = join_all(listeners.iter_mut().map(|one| read_to(one, 4, 43)));
    for received in received.await {
        assert_eq!(received, Ok(()));
    }
}

/// Waits until presence shows no connection of a user.
async fn wait_until_offline(server: &Server, room: &str, user: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while connections(server, room, user).await > 0 {
        assert!(Instant::now() < deadline, "{user} is still connected");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Applies the presence events of a client to the users that it shows.
fn apply_presence(shown: &mut BTreeMap<String, bool>, event: &Event) {
    let data = &event.args[0];
    let online = match event.name.as_str() {
        "presenceUpdate" => data["status"] != "offline",
        "userJoined" => true,
        "userLeft" => false,
        _ => return,
    };
    let user = data["userId"].as_str().expect("a user").to_owned();
    shown.insert(user, online);
}

#[tokio::test]
async fn a_recovered_client_is_told_who_went_and_who_came() {
    let server = Server::start(&[ONE_GATEWAY, ("PRESENCE_GRACE_MS", "200")]);
    let mut leaving = join(&server, "leaving", "cut-off").await;
    let going = join(&server, "going", "cut-off").await;
    let query = format!("token={}", token("alice"));
    // Native clients are at another gateway than clients of Socket.IO.
    let mut neighbour = SocketIo::join(&server, &token("neighbour")).await;
    let joined = neighbour.request("joinRoom", json!("cut-off")).await;
    joined.expect("joined");
    let mut alice = SocketIo::open(&server, &query).await;
    let accepted = alice.connect("/", json!({})).await.expect("accepted");
    let joined = alice.request("joinRoom", json!("cut-off")).await;
    let members = joined.expect("joined")["members"].clone();
    let members = members.as_array().expect("a list").iter();
    let online = members.map(|member| {
        let user = member["userId"].as_str().expect("a user").to_owned();
        (user, member["status"] == "online")
    });
    let mut shown: BTreeMap<String, bool> = online.collect();
    let users = |users: &[(&str, bool)]| {
        let users = users
            .iter()
            .map(|(user, online)| ((*user).to_owned(), *online));
        users.collect::<BTreeMap<_, _>>()
    };
    let before = [
        ("alice", true),
        ("going", true),
        ("leaving", true),
        ("neighbour", true),
    ];
    assert_eq!(shown, users(&before));
    publish(&server, "cut-off", 1, 10).await;
    alice.expect("newMessage").await;
    let auth = json!({ "pid": accepted["pid"], "offset": alice.offset() });
    alice.terminate();
    wait_until_offline(&server, "cut-off", "alice").await;

    let left = leaving.request("leaveRoom", json!({ "roomId": "cut-off" }));
    left.await.expect("left");
    going.close().await;
    let _coming = join(&server, "coming", "cut-off").await;
    wait_until_offline(&server, "cut-off", "going").await;
    // The grace time has passed, and the room has told the others.
    sleep(Duration::from_secs(2)).await;

    let mut alice = SocketIo::open(&server, &query).await;
    let again = alice.connect("/", auth).await.expect("accepted");
    assert_eq!(again["pid"], accepted["pid"], "the client recovers");
    let after = [
        ("alice", true),
        ("coming", true),
        ("going", false),
        ("leaving", false),
        ("neighbour", true),
    ];
    while shown != users(&after) {
        let event = alice.find_within(Duration::from_secs(10), |_| true).await;
        let Some(event) = event else {
            panic!("the client shows {shown:?} after {:?}", alice.events);
        };
        apply_presence(&mut shown, &event);
    }
}

#[tokio::test]
async fn fifty_clients_that_missed_a_megabyte_each_recover_at_once_and_stay_subscribed() {
    const CLIENTS: usize = 50;
    const MISSED: usize = 250;
    let server = Server::start(&[ONE_GATEWAY]);
    let mut sessions = Vec::new();
    for n in 0..CLIENTS {
        let query = format!("token={}", token(&format!("user-{n}")));
        let mut client = SocketIo::open(&server, &query).await;
        let accepted = client.connect("/", json!({})).await.expect("accepted");
        let joined = client.request("joinRoom", json!("missed")).await;
        joined.expect("joined");
        sessions.push((query, accepted["pid"].clone(), client));
    }
    publish(&server, "missed", 1, 10).await;
    let mut returning = Vec::new();
    for (query, pid, mut client) in sessions {
        client.expect("newMessage").await;
        let auth = json!({ "pid": pid, "offset": client.offset() });
        client.terminate();
        returning.push((query, auth));
    }
    publish(&server, "missed", MISSED, 4_000).await;
    let returned = join_all(returning.into_iter().map(async |(query, auth)| {
        let mut client = SocketIo::open(&server, &query).await;
        let accepted = client.connect("/", auth.clone()).await.expect("accepted");
        let recovered = accepted["pid"] == auth["pid"];
        (recovered, client)
    }));
    let mut clients = returned.await;
    let recovered = clients.iter().filter(|(recovered, _)| *recovered).count();
    assert_eq!(recovered, CLIENTS, "clients recover");
    publish(&server, "missed", 1, 10).await;
    let received = join_all(clients.iter_mut().map(async |(_, client)| {
        let mut received = 0;
        for expected in 2..MISSED + 3 {
            let wait = Duration::from_secs(40);
            let event = client
                .find_within(wait, |event| event.name == "newMessage")
                .await;
            match event {
                Some(event) if event.args[0]["seq"] == expected => received += 1,
                _ => break,
            }
        }
        received
    }));
    assert_eq!(received.await, [MISSED + 1; CLIENTS]);
}

/// Returns the `newMessage` events in the body of an answer to a poll: room, seq and offset.
fn messages(body: &str) -> Vec<(String, u64, Option<String>)> {
    let events = body.split(SEPARATOR).filter_map(|packet| {
        let args = &packet[packet.find('[')?..];
        let args: Value = serde_json::from_str(args).ok()?;
        if args[0] != "newMessage" {
            return None;
        }
        let room = args[1]["roomId"].as_str()?.to_owned();
        let offset = args.as_array()?.last()?.as_str().map(str::to_owned);
        Some((room, args[1]["seq"].as_u64()?, offset))
    });
    events.collect()
}

#[tokio::test]
async fn a_polling_client_receives_many_megabytes_that_it_missed_in_two_rooms() {
    const MISSED: usize = 4_750;
    const ROOMS: [&str; 2] = ["first", "second"];
    let server = Server::start(&[ONE_GATEWAY]);
    let query = format!("token={}", token("alice"));
    let session = Polling::open(&server, &query).await;
    let accepted = session.connect(&server, "/", json!({})).await;
    let pid = accepted.expect("accepted")["pid"].clone();
    for (n, room) in ROOMS.iter().enumerate() {
        let packet = format!(r#"42{n}["joinRoom","{room}"]"#);
        assert_eq!(session.post(&server, packet).await.status, 200);
    }
    publish(&server, "first", 1, 10).await;
    publish(&server, "second", 1, 10).await;
    let mut offset = None;
    let mut first = 0;
    while first < 2 {
        for (_, _, position) in messages(&session.poll(&server).await.text) {
            offset = position;
            first += 1;
        }
    }
    // The session ends, and the client returns later.
    assert_eq!(session.post(&server, "1").await.status, 200);
    for room in ROOMS {
        publish(&server, room, MISSED, 4_000).await;
    }
    let session = Polling::open(&server, &query).await;
    let auth = json!({ "pid": pid, "offset": offset.expect("an offset") });
    let packet = roomcast_harness::connect_packet("/", &auth);
    assert_eq!(session.post(&server, packet).await.status, 200);
    let mut last: BTreeMap<String, u64> = ROOMS.map(|room| (room.to_owned(), 1)).into();
    let mut largest = 0;
    let mut recovered = false;
    while last.values().any(|seq| *seq < MISSED as u64 + 1) {
        let polled = session.poll(&server).await;
        assert_eq!(polled.status, 200, "{last:?}: {}", polled.text);
        recovered |= polled.text.contains(pid.as_str().expect("a pid"));
        largest = largest.max(polled.text.len());
        for (room, seq, _) in messages(&polled.text) {
            let last = last.get_mut(&room).expect("a known room");
            assert_eq!(seq, *last + 1, "the events of {room} are in order");
            *last = seq;
        }
        if polled.text.split(SEPARATOR).any(|packet| packet == "2") {
            session.post(&server, "3").await;
        }
    }
    assert!(recovered, "the client recovers");
    assert!(largest < 3 << 20, "{largest} bytes waited for a poll");
}

#[tokio::test]
async fn a_client_that_stops_reading_continues_from_the_log_when_it_pings() {
    const EVENTS: u64 = 300;
    let limits = [ONE_GATEWAY, ("MAX_UNACKED_BYTES", "100000")];
    let server = Server::start(&limits);
    let mut slow = join(&server, "slow", "busy").await;
    let mut other = join(&server, "other", "busy").await;
    for n in 0..EVENTS / 20 {
        publish(&server, "busy", 20, 4_000).await;
        assert_eq!(read_to(&mut other, n * 20 + 1, n * 20 + 20).await, Ok(()));
        other.send_text("ping").await;
    }
    // The client has not read anything, and has at most the limit in its buffers.
    let mut next = 1;
    while next <= EVENTS {
        match timeout(Duration::from_millis(300), slow.try_logged()).await {
            Ok(Some(event)) => {
                assert_eq!(Client::seq(&event), next);
                next += 1;
            }
            Ok(None) => panic!("close {} before event {next}", slow.closed().await),
            Err(_) => slow.send_text("ping").await,
        }
    }
}

#[tokio::test]
async fn a_client_without_a_sign_of_life_is_closed_after_the_catch_up_timeout() {
    let server = Server::start(&[
        ONE_GATEWAY,
        ("MAX_UNACKED_BYTES", "100000"),
        ("CATCH_UP_TIMEOUT", "2s"),
    ]);
    let mut silent = join(&server, "silent", "busy").await;
    let mut other = join(&server, "other", "busy").await;
    for n in 0..4 {
        publish(&server, "busy", 10, 4_000).await;
        assert_eq!(read_to(&mut other, n * 10 + 1, n * 10 + 10).await, Ok(()));
        other.send_text("ping").await;
    }
    let closed = timeout(Duration::from_secs(20), silent.closed()).await;
    assert_eq!(closed.expect("closed in time"), 4503);
    let received = silent.drain_logged();
    assert!(received < 40, "it received only what it could hold");
    publish(&server, "busy", 1, 10).await;
    assert_eq!(read_to(&mut other, 41, 41).await, Ok(()));
}
