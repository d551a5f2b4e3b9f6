//! Native sockets at a gateway: one socket for many rooms.

use super::{DEFAULT, FAST, headers, service, token};
use roomcast_harness::{Client, Refused, SECRET, Server, SocketIo, Token};
use serde_json::{Value, json};
use std::time::Duration;

/// Opens a socket at a gateway.
async fn gateway(server: &Server, token: &str) -> Client {
    Client::open(server, &format!("/ws?token={token}"), &[])
        .await
        .expect("accepted")
}

/// Opens a socket at a gateway and joins a room.
async fn joined(server: &Server, user: &str, room: &str) -> Client {
    let mut client = gateway(server, &token(user)).await;
    join(&mut client, room).await;
    client
}

async fn join(client: &mut Client, room: &str) -> Value {
    let answer = client.request("joinRoom", json!(room)).await;
    answer.expect("joined")
}

async fn send_message(client: &mut Client, room: &str, content: impl Into<Value>) -> Value {
    let data = json!({ "roomId": room, "content": content.into() });
    let answer = client.request("sendMessage", data).await;
    answer.expect("accepted")
}

fn publication(room: &str, content: impl Into<Value>) -> Value {
    json!({ "room": room, "event": "newMessage", "data": { "content": content.into() } })
}

async fn publish(server: &Server, room: &str, content: impl Into<Value>) -> Value {
    let body = publication(room, content);
    server.post("/publish", &service(), body).await.ok()
}

/// Waits until the room counts this many connections of its first user.
async fn until_connections(server: &Server, room: &str, connections: u64) {
    let path = format!("/rooms/{room}/presence");
    for _ in 0..500 {
        let presence = server.get(&path, &service()).await.ok();
        if presence["users"][0]["connections"] == connections {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{room} never counted {connections} connections");
}

#[tokio::test]
async fn connected_comes_first_without_a_room() {
    let client = gateway(&DEFAULT, &token("alice")).await;
    assert_eq!(client.connected["userId"], "alice");
    assert!(client.connected["roomId"].is_null() && client.connected["seq"].is_null());
    assert!(client.connected["expiresAt"].is_string());
    assert_eq!(client.connected["limits"]["messagesPerSecond"], 20.0);
}

#[tokio::test]
async fn an_upgrade_is_authenticated_like_an_upgrade_of_a_room() {
    DEFAULT
        .get("/ws", &token("alice"))
        .await
        .problem(426, "upgradeRequired");
    DEFAULT
        .request_upgrade("/ws", &[])
        .await
        .problem(401, "unauthorized");
    let path = format!("/ws?token={}", token("alice"));
    let origin = [("origin", "https://evil.example")];
    DEFAULT
        .request_upgrade(&path, &origin)
        .await
        .problem(403, "forbidden");
    let offered = format!("roomcast.v1, bearer.{}", token("alice"));
    let offered = [("sec-websocket-protocol", offered.as_str())];
    let client = Client::open(&DEFAULT, "/ws", &offered).await;
    let client = client.expect("a token in the subprotocol");
    assert_eq!(client.subprotocol.as_deref(), Some("roomcast.v1"));
}

#[tokio::test]
async fn events_of_many_rooms_over_one_socket_are_in_order_in_each_room() {
    let mut client = gateway(&FAST, &token("alice")).await;
    let rooms: Vec<String> = (0..20).map(|n| format!("gw-many-{n}")).collect();
    for room in &rooms {
        let answer = join(&mut client, room).await;
        assert_eq!(
            (&answer["roomId"], &answer["seq"]),
            (&json!(room), &json!(0))
        );
        assert_eq!(
            answer["members"],
            json!([{ "userId": "alice", "status": "online" }])
        );
    }
    for n in 1..=5 {
        for room in &rooms {
            assert_eq!(send_message(&mut client, room, n).await["seq"], n);
        }
    }
    let events = client.logged(100).await;
    for room in &rooms {
        let of_room = events
            .iter()
            .filter(|event| event["data"]["roomId"] == **room);
        let seqs: Vec<u64> = of_room.map(Client::seq).collect();
        assert_eq!(seqs, [1, 2, 3, 4, 5], "{room}");
    }
}

#[tokio::test]
async fn since_and_epoch_apply_to_one_room() {
    for n in 1..=5 {
        publish(&DEFAULT, "gw-since", n).await;
    }
    let mut client = gateway(&DEFAULT, &token("alice")).await;
    let epoch = {
        let position = json!({ "roomId": "gw-since", "since": 2 });
        let answer = client.request("joinRoom", position).await.expect("joined");
        assert_eq!(answer["seq"], 5);
        answer["epoch"].clone()
    };
    let seqs: Vec<u64> = client.logged(3).await.iter().map(Client::seq).collect();
    assert_eq!(seqs, [3, 4, 5]);
    // A second join with an earlier `since` replays more.
    let position = json!({ "roomId": "gw-since", "since": 0, "epoch": epoch });
    client.request("joinRoom", position).await.expect("joined");
    let seqs: Vec<u64> = client.logged(2).await.iter().map(Client::seq).collect();
    assert_eq!(seqs, [1, 2]);
    let mut other = gateway(&DEFAULT, &token("bob")).await;
    let position = json!({ "roomId": "gw-since", "since": 4, "epoch": "another" });
    let answer = other.request("joinRoom", position).await.expect("joined");
    assert_eq!(answer["reset"], true);
    other.logged(5).await;
    publish(&DEFAULT, "gw-since", 6).await;
    assert_eq!(Client::seq(&client.logged(1).await[0]), 6);
    assert_eq!(Client::seq(&other.logged(1).await[0]), 6);
}

#[tokio::test]
async fn a_command_requires_a_room_id_of_a_joined_room() {
    let mut client = joined(&DEFAULT, "alice", "gw-needs").await;
    for (event, data, code) in [
        ("sendMessage", json!({ "content": 1 }), "badRequest"),
        ("joinRoom", json!({}), "badRequest"),
        ("leaveRoom", json!({}), "badRequest"),
        ("sync", json!({ "after": 0 }), "badRequest"),
        ("typingIndicator", json!({ "isTyping": true }), "badRequest"),
        (
            "sendMessage",
            json!({ "content": 1, "roomId": "gw-other" }),
            "notJoined",
        ),
        ("leaveRoom", json!("gw-other"), "notJoined"),
        ("joinRoom", json!("@bob"), "forbidden"),
        (
            "sendMessage",
            json!({ "content": 1, "roomId": "@alice" }),
            "forbidden",
        ),
        ("nonsense", json!({}), "badRequest"),
    ] {
        let error = client.request(event, data).await.expect_err(event);
        assert_eq!(error["code"], code, "{event}: {error}");
    }
    assert_eq!(
        send_message(&mut client, "gw-needs", "still here").await["seq"],
        1
    );
}

#[tokio::test]
async fn a_client_receives_nothing_after_a_leave_and_can_join_again_at_once() {
    let mut client = joined(&DEFAULT, "alice", "gw-leave").await;
    publish(&DEFAULT, "gw-leave", 1).await;
    client.logged(1).await;
    let left = client.request("leaveRoom", json!("gw-leave")).await;
    assert_eq!(left, Ok(json!({ "roomId": "gw-leave" })));
    publish(&DEFAULT, "gw-leave", 2).await;
    let members = DEFAULT.get("/rooms/gw-leave/members", &service()).await;
    assert_eq!(members.ok(), json!([]));
    let answer = join(&mut client, "gw-leave").await;
    assert_eq!(
        answer["seq"], 2,
        "event 2 was published while the client was not a member"
    );
    for n in 3..=10 {
        let leave = client.start("leaveRoom", json!("gw-leave")).await;
        let join = client.start("joinRoom", json!("gw-leave")).await;
        client.answer(leave).await.expect("left");
        client.answer(join).await.expect("joined again");
        publish(&DEFAULT, "gw-leave", n).await;
        assert_eq!(Client::seq(&client.logged(1).await[0]), n);
    }
}

#[tokio::test]
async fn commands_that_follow_a_leave_without_waiting_are_answered_in_order() {
    let room = "gw-order";
    let mut client = joined(&DEFAULT, "alice", room).await;
    let send = json!({ "roomId": room, "content": "hi" });
    for _ in 0..10 {
        let mut lines = Vec::new();
        for (id, event) in ["sendMessage", "leaveRoom", "joinRoom"].iter().enumerate() {
            let data = match *event {
                "sendMessage" => send.clone(),
                _ => json!(room),
            };
            lines.push(json!({ "event": event, "data": data, "id": 1_000 + id }).to_string());
        }
        client.send_text(&lines.join("\n")).await;
        for id in 1_000..1_003 {
            let any = |line: &Value| line["ack"].as_u64().is_some_and(|ack| ack >= 1_000);
            let answer = client.find("an answer", any).await;
            assert_eq!(answer["ack"], id, "{answer}");
            assert!(answer["error"].is_null(), "{answer}");
        }
    }
    send_message(&mut client, room, "in the room").await;
}

#[tokio::test]
async fn receipts_typing_and_presence_are_sent_to_other_users() {
    let mut alice = joined(&DEFAULT, "alice", "gw-social").await;
    let mut bob = Client::join(&DEFAULT, "gw-social", &token("bob")).await;
    let of = |user: &'static str, event: &'static str| {
        move |line: &Value| line["event"] == event && line["data"]["userId"] == user
    };
    alice
        .find("bob to be online", of("bob", "presenceUpdate"))
        .await;
    send_message(&mut alice, "gw-social", "x").await;
    let receipt = json!({ "roomId": "gw-social", "seq": 1 });
    let answer = alice.request("messageRead", receipt.clone()).await;
    assert_eq!(answer, Ok(json!({ "seq": 1 })));
    bob.find("the receipt of alice", of("alice", "messageRead"))
        .await;
    let typing = json!({ "roomId": "gw-social", "isTyping": true });
    alice
        .request("typingIndicator", typing)
        .await
        .expect("accepted");
    bob.find("alice typing", of("alice", "userTyping")).await;
    let busy = json!({ "status": "busy" });
    assert_eq!(alice.request("setPresence", busy.clone()).await, Ok(busy));
    let update = bob
        .find("alice to be busy", |line| {
            of("alice", "presenceUpdate")(line) && line["data"]["status"] == "busy"
        })
        .await;
    assert_eq!(update["data"]["roomId"], "gw-social");
    // The status applies to rooms that are joined later.
    join(&mut alice, "gw-social-2").await;
    let path = "/rooms/gw-social-2/presence";
    let presence = DEFAULT.get(path, &service()).await;
    assert_eq!(presence.ok()["users"][0]["status"], "busy");
    alice.close().await;
    bob.find("alice to be offline", |line| {
        of("alice", "presenceUpdate")(line) && line["data"]["status"] == "offline"
    })
    .await;
}

#[tokio::test]
async fn a_kick_a_deletion_and_token_expiry_close_the_socket() {
    let mut kicked = joined(&DEFAULT, "alice", "gw-kick").await;
    let path = "/rooms/gw-kick/connections?userId=alice";
    let answer = DEFAULT.delete(path, &service()).await.ok();
    assert_eq!(answer["closed"], 1);
    assert_eq!(kicked.closed().await, 4403);

    let mut deleted = joined(&DEFAULT, "alice", "gw-delete").await;
    DEFAULT.delete("/rooms/gw-delete", &service()).await.ok();
    assert_eq!(deleted.closed().await, 4410);

    let short = Token::user("alice").ttl(2).sign(SECRET);
    let mut expired = gateway(&DEFAULT, &short).await;
    let mut refreshed = gateway(&DEFAULT, &short).await;
    join(&mut refreshed, "gw-refresh").await;
    let fresh = json!({ "token": token("alice") });
    let answer = refreshed.request("refreshToken", fresh).await;
    assert!(answer.expect("accepted")["expiresAt"].is_string());
    assert_eq!(expired.closed().await, 4401);
    assert_eq!(
        send_message(&mut refreshed, "gw-refresh", "x").await["seq"],
        1
    );
    let foreign = json!({ "token": token("mallory") });
    refreshed.start("refreshToken", foreign).await;
    assert_eq!(refreshed.closed().await, 4403);
}

#[tokio::test]
async fn a_malformed_object_is_answered_and_a_malformed_frame_closes_the_socket() {
    let mut client = joined(&DEFAULT, "alice", "gw-malformed").await;
    client
        .send_text("not json\n{\"event\":\"x\",\"id\":5}")
        .await;
    assert_eq!(client.expect("error").await["data"]["code"], "badRequest");
    assert_eq!(
        client.answer(5).await.expect_err("unknown")["code"],
        "badRequest"
    );
    client.send_text("ping").await;
    client.find("pong", |line| line == "pong").await;
    for blank in ["", "\n", "ping\n"] {
        client.send_text(blank).await;
    }
    client.find("pong", |line| line == "pong").await;
    for (frame, code) in [("hello", 4400), ("PING", 4400)] {
        let mut bad = gateway(&DEFAULT, &token("bob")).await;
        bad.send_text(frame).await;
        assert_eq!(bad.closed().await, code, "{frame}");
    }
    let mut large = gateway(&DEFAULT, &token("bob")).await;
    large.send_text(&"x".repeat(70_000)).await;
    assert_eq!(large.closed().await, 4413);
    let mut binary = gateway(&DEFAULT, &token("bob")).await;
    binary.send_binary(&[1, 2, 3]).await;
    assert_eq!(binary.closed().await, 4400);
    assert_eq!(
        send_message(&mut client, "gw-malformed", "x").await["seq"],
        1
    );
}

#[tokio::test]
async fn the_rate_limit_of_a_connection_applies_across_its_rooms() {
    let mut client = joined(&DEFAULT, "alice", "gw-flood-0").await;
    join(&mut client, "gw-flood-1").await;
    join(&mut client, "gw-flood-2").await;
    let mut refused = 0;
    for n in 0..90 {
        let data = json!({ "roomId": format!("gw-flood-{}", n % 3), "content": n });
        if let Err(error) = client.request("sendMessage", data).await {
            assert_eq!(error["code"], "rateLimited");
            assert!(error["retryAfterMs"].as_u64().expect("a time") > 0);
            refused += 1;
        }
    }
    assert!(
        refused > 0,
        "the default limit is a burst of 40 and 20 messages per second"
    );
}

#[tokio::test]
async fn the_101st_room_of_a_connection_is_refused() {
    let mut client = gateway(&DEFAULT, &token("alice")).await;
    let mut ids = Vec::new();
    for n in 0..1_000 {
        ids.push(
            client
                .start("joinRoom", json!(format!("gw-hundred-{n}")))
                .await,
        );
    }
    for (n, id) in ids.into_iter().enumerate() {
        match client.answer(id).await {
            Ok(answer) => assert!(n < 100, "{n}: {answer}"),
            Err(error) => assert!(n >= 100 && error["code"] == "conflict", "{n}: {error}"),
        }
    }
}

#[tokio::test]
async fn connects_per_address_are_limited() {
    // A single gateway, because each gateway counts only its own connects.
    let vars = [("CONNECTS_PER_MINUTE", "5"), ("GATEWAY_SHARDS", "1")];
    let server = Server::start(&vars);
    let path = format!("/ws?token={}", token("alice"));
    let from = [("cf-connecting-ip", "192.0.2.1")];
    let mut open = Vec::new();
    for _ in 0..5 {
        open.push(Client::open(&server, &path, &from).await.expect("joined"));
    }
    let refused = Client::open(&server, &path, &from).await;
    assert!(matches!(refused, Err(Refused(429))), "{refused:?}");
    let elsewhere = [("cf-connecting-ip", "192.0.2.2")];
    Client::open(&server, &path, &elsewhere)
        .await
        .expect("joined");
}

#[tokio::test]
async fn a_refused_client_without_a_token_is_accepted_again_after_the_time_in_the_error() {
    let vars = [("CONNECTS_PER_MINUTE", "30"), ("GATEWAY_SHARDS", "1")];
    let server = Server::start(&vars);
    let path = "/socket.io/?EIO=4&transport=polling";
    let open = async |address: &str| {
        server
            .call("GET", path, &[("cf-connecting-ip", address)], "")
            .await
    };
    let mut accepted = 0;
    let refused = loop {
        let answer = open("192.0.2.1").await;
        match answer.status {
            200 => accepted += 1,
            _ => break answer,
        }
    };
    assert!(accepted >= 30, "{accepted}");
    refused.problem(429, "rateLimited");
    assert_eq!(open("192.0.2.1").await.status, 429);
    assert_eq!(open("192.0.2.2").await.status, 200, "another address");
    // The time is the promise: one connection every two seconds.
    let seconds: u64 = refused.header("retry-after").parse().expect("seconds");
    assert!((1..=2).contains(&seconds), "{seconds}");
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    assert_eq!(open("192.0.2.1").await.status, 200);
}

#[tokio::test]
async fn cors_lets_a_page_read_the_error_and_retry_after_of_refused_polling() {
    let vars = [("CONNECTS_PER_MINUTE", "2"), ("GATEWAY_SHARDS", "1")];
    let server = Server::start(&vars);
    let origin = server.url("");
    let headers = [
        ("origin", origin.as_str()),
        ("cf-connecting-ip", "192.0.2.1"),
    ];
    let open = || server.call("GET", "/socket.io/?EIO=4&transport=polling", &headers, "");
    for _ in 0..2 {
        assert_eq!(open().await.status, 200);
    }
    let answer = open().await;
    answer.problem(429, "rateLimited");
    assert!(!answer.header("retry-after").is_empty());
    for (name, value) in [
        ("access-control-allow-origin", origin.as_str()),
        (
            "access-control-expose-headers",
            "Link, Retry-After, X-Total-Count",
        ),
    ] {
        assert_eq!(answer.header(name), value);
    }
}

#[tokio::test]
async fn the_longest_silent_connection_at_any_gateway_makes_room_for_a_new_one() {
    let server = Server::start(&[("MAX_CONNECTIONS_PER_USER", "3")]);
    // An own socket of the personal room, a native client and a Socket.IO client, which are at
    // different gateways.
    let mut own = Client::join(&server, "@alice", &token("alice")).await;
    let mut native = gateway(&server, &token("alice")).await;
    until_connections(&server, "@alice", 2).await;
    let mut socketio = SocketIo::join(&server, &token("alice")).await;
    until_connections(&server, "@alice", 3).await;
    // The oldest two show signs of life, in a way that the personal room does not see.
    tokio::time::sleep(Duration::from_millis(50)).await;
    own.send_text("ping").await;
    own.find("pong", |line| line == "pong").await;
    native.send_text("ping").await;
    native.find("pong", |line| line == "pong").await;
    let mut newest = gateway(&server, &token("alice")).await;
    socketio.closed().await;
    until_connections(&server, "@alice", 3).await;
    // The native client has been silent longer than the others now, although it joined later.
    tokio::time::sleep(Duration::from_millis(50)).await;
    own.send_text("ping").await;
    own.find("pong", |line| line == "pong").await;
    join(&mut newest, "gw-newest").await;
    let mut another = SocketIo::join(&server, &token("alice")).await;
    assert_eq!(native.closed().await, 4409);
    until_connections(&server, "@alice", 3).await;
    another
        .request("joinRoom", json!("gw-newest"))
        .await
        .expect("joined");
    own.request("sync", json!({ "after": 0 }))
        .await
        .expect("open");
    send_message(&mut newest, "gw-newest", 1).await;
}

#[tokio::test]
async fn connections_over_max_connections_per_user_are_closed() {
    let server = Server::start(&[("MAX_CONNECTIONS_PER_USER", "2")]);
    let mut open = Vec::new();
    for _ in 0..2 {
        open.push(gateway(&server, &token("alice")).await);
    }
    until_connections(&server, "@alice", 2).await;
    open.push(gateway(&server, &token("alice")).await);
    assert_eq!(open.remove(0).closed().await, 4409);
    until_connections(&server, "@alice", 2).await;
    for client in &mut open {
        join(client, "gw-two").await;
    }
}

#[tokio::test]
async fn clients_cannot_send_internal_requests() {
    publish(&DEFAULT, "gw-internal", "secret").await;
    let connect = json!({
        "connection_id": "x", "user": "mallory", "rights": 15, "expires": 9_999_999_999_999u64
    })
    .to_string();
    let gateway_connect = json!({ "door": { "protocol": "Native", "identity": null, "recovers": false }, "ask": null });
    let gateway_connect = gateway_connect.to_string();
    for path in [
        "/rooms/gw-internal/ws",
        "/ws",
        "/socket.io/?EIO=4&transport=websocket",
    ] {
        for forged in [
            vec![
                (headers::CONNECT, connect.as_str()),
                (headers::ROOM, "gw-internal"),
            ],
            vec![(headers::LINK, "1"), (headers::ROOM, "gw-internal")],
            vec![
                (headers::GATEWAY_CONNECT, gateway_connect.as_str()),
                (headers::GATEWAY, "0"),
            ],
            vec![(headers::FIND, "1"), (headers::GATEWAY, "0")],
        ] {
            let answer = DEFAULT.request_upgrade(path, &forged).await;
            if path.starts_with("/socket.io") {
                // A Socket.IO session may start without a token. It has no rooms.
                assert_eq!(answer.status, 101, "{path} {forged:?}");
            } else {
                answer.problem(401, "unauthorized");
            }
        }
    }
    let members = DEFAULT.get("/rooms/gw-internal/members", &service()).await;
    assert_eq!(members.ok(), json!([]));
}

#[tokio::test]
async fn a_gateway_restores_the_rooms_of_its_sockets_after_hibernation() {
    let server = Server::start(&[]);
    let mut alice = joined(&server, "alice", "gw-sleep").await;
    join(&mut alice, "gw-sleep-2").await;
    publish(&server, "gw-sleep", 1).await;
    alice.logged(1).await;
    tokio::time::sleep(Duration::from_millis(11_500)).await;
    publish(&server, "gw-sleep", 2).await;
    publish(&server, "gw-sleep-2", 3).await;
    let events = alice.logged(2).await;
    let mut contents: Vec<&Value> = events.iter().map(|e| &e["data"]["content"]).collect();
    contents.sort_by_key(|content| content.as_u64());
    assert_eq!(contents, [&json!(2), &json!(3)], "each event arrives once");
    server
        .wait_for_log("the gateway to be restored with its socket", |line| {
            line["event"] == "wake" && line["gateway"].is_string() && line["connections"] == 1
        })
        .await;
    assert_eq!(send_message(&mut alice, "gw-sleep", 4).await["seq"], 3);
    alice.close().await;
    until_connections(&server, "gw-sleep", 0).await;
}

#[tokio::test]
async fn after_kill_9_rooms_drop_dead_connections_of_gateways_and_nothing_is_lost() {
    let mut server = Server::start(&[("PRESENCE_GRACE_MS", "500")]);
    let mut alice = joined(&server, "alice", "gw-crash").await;
    send_message(&mut alice, "gw-crash", 1).await;
    let receipt = json!({ "roomId": "gw-crash", "seq": 1 });
    alice
        .request("messageDelivered", receipt)
        .await
        .expect("accepted");
    server.restart();
    // When bob joins, the room detects the dead connection and updates presence.
    let mut bob = Client::join(&server, "gw-crash", &token("bob")).await;
    until_connections(&server, "gw-crash", 0).await;
    bob.send_message("while alice is away").await;
    bob.find("alice to be offline", |line| {
        line["event"] == "presenceUpdate"
            && line["data"]["userId"] == "alice"
            && line["data"]["status"] == "offline"
    })
    .await;
    let mut alice = gateway(&server, &token("alice")).await;
    let answer = join(&mut alice, "gw-crash").await;
    assert_eq!(
        (&answer["seq"], &answer["delivered"]),
        (&json!(2), &json!(1))
    );
    assert_eq!(Client::seq(&alice.logged(1).await[0]), 2);
    bob.find("alice to be online", |line| {
        line["event"] == "presenceUpdate"
            && line["data"]["userId"] == "alice"
            && line["data"]["status"] == "online"
    })
    .await;
}

#[tokio::test]
async fn events_for_many_sockets_of_a_gateway_are_coalesced() {
    let mut clients = Vec::new();
    for n in 0..40 {
        clients.push(joined(&FAST, &format!("user-{n}"), "gw-fan").await);
    }
    let one = publication("gw-fan", "x");
    let batch = json!({ "messages": vec![one; 100] });
    for _ in 0..5 {
        FAST.post("/publish", &service(), batch.clone()).await.ok();
    }
    for client in &mut clients {
        let seqs: Vec<u64> = client.logged(500).await.iter().map(Client::seq).collect();
        assert_eq!(seqs, (1..=500).collect::<Vec<_>>());
        assert!(
            client.frames.len() < 100,
            "500 events must be coalesced, but came in {} frames",
            client.frames.len()
        );
    }
}
