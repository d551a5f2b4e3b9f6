//! Order, acknowledgement, idempotence, replay, cursors, custom events.

use super::{DEFAULT, FAST, service, token};
use roomcast_harness::{Client, Server};
use serde_json::{Value, json};

#[tokio::test]
async fn every_receiver_sees_events_in_order_without_holes_each_once() {
    let mut alice = Client::join(&DEFAULT, "order", &token("alice")).await;
    let mut bob = Client::join(&DEFAULT, "order", &token("bob")).await;
    let mut ids = Vec::new();
    for n in 0..30 {
        let (sender, event) = if n % 2 == 0 {
            (&mut alice, "sendMessage")
        } else {
            (&mut bob, "sendMessage")
        };
        ids.push(sender.start(event, json!({ "content": n })).await);
    }
    for client in [&mut alice, &mut bob] {
        let seqs: Vec<u64> = client.logged(30).await.iter().map(Client::seq).collect();
        assert_eq!(seqs, (1..=30).collect::<Vec<u64>>());
    }
}

#[tokio::test]
async fn a_message_carries_what_the_sender_gave_and_what_the_server_sets() {
    let mut alice = Client::join(&DEFAULT, "stamp", &token("alice")).await;
    let answer = alice
        .request(
            "sendMessage",
            json!({ "content": { "text": "hi" }, "messageId": "m1", "color": "blue",
                "senderId": "eve", "seq": 99, "timestamp": "never" }),
        )
        .await
        .expect("taken");
    let event = alice.expect("newMessage").await;
    assert_eq!(
        event["data"],
        json!({ "content": { "text": "hi" }, "color": "blue", "roomId": "stamp",
            "messageId": "m1", "senderId": "alice", "seq": 1, "timestamp": answer["timestamp"] })
    );
    let timestamp = answer["timestamp"].as_str().expect("a time");
    assert_eq!(timestamp.len(), "2026-11-23T08:00:00.000Z".len());
    assert!(timestamp.ends_with('Z'));
}

#[tokio::test]
async fn the_senders_ack_comes_in_or_before_the_frame_of_its_event() {
    let mut alice = Client::join(&DEFAULT, "ack", &token("alice")).await;
    for n in 0..20 {
        alice.start("sendMessage", json!({ "content": n })).await;
    }
    alice.logged(20).await;
    let text = alice.frames.join("\n");
    for id in 1..=20 {
        let ack = text.find(&format!(r#""ack":{id},"#)).expect("an ack");
        let event = text.find(&format!(r#""seq":{id},"timestamp""#));
        let event = text[ack..].find(&format!(r#""seq":{id},"#)).is_some() || event.is_some();
        assert!(event);
        let own_event = text
            .match_indices("newMessage")
            .nth(id as usize - 1)
            .expect("the event")
            .0;
        assert!(ack < own_event, "ack {id} before its event");
    }
}

#[tokio::test]
async fn a_repeated_send_gives_the_same_seq_and_is_not_broadcast() {
    let mut alice = Client::join(&DEFAULT, "again", &token("alice")).await;
    let mut bob = Client::join(&DEFAULT, "again", &token("bob")).await;
    let send = json!({ "content": "once", "messageId": "m1" });
    // In one tick, and again in a later one.
    let first = alice.start("sendMessage", send.clone()).await;
    let second = alice.start("sendMessage", send.clone()).await;
    let first = alice.answer(first).await.expect("taken");
    let second = alice.answer(second).await.expect("taken");
    let third = alice
        .request("sendMessage", send.clone())
        .await
        .expect("taken");
    assert_eq!(first.get("duplicate"), None);
    for again in [&second, &third] {
        assert_eq!(again["duplicate"], true);
        assert_eq!(again["seq"], first["seq"]);
        assert_eq!(again["timestamp"], first["timestamp"]);
    }
    // The id is the sender's own: another's is another message.
    let other = bob.request("sendMessage", send).await.expect("taken");
    assert_eq!(other.get("duplicate"), None);
    assert_eq!(other["seq"], 2);
    // An id that the server made is known again too.
    let made = alice.say("without an id").await;
    let again = alice
        .request(
            "sendMessage",
            json!({ "content": "again", "messageId": made["messageId"] }),
        )
        .await
        .expect("taken");
    assert_eq!(
        (&again["seq"], &again["duplicate"]),
        (&made["seq"], &json!(true))
    );
    let seen: Vec<u64> = bob.logged(3).await.iter().map(Client::seq).collect();
    assert_eq!(seen, [1, 2, 3]);
    assert!(
        bob.drain()
            .await
            .iter()
            .all(|line| line["event"] != "newMessage")
    );
}

#[tokio::test]
async fn the_offline_queue_is_what_comes_after_the_delivered_cursor() {
    let mut alice = Client::join(&DEFAULT, "queue", &token("alice")).await;
    let mut bob = Client::join(&DEFAULT, "queue", &token("bob")).await;
    alice.say("1").await;
    alice.say("2").await;
    bob.logged(2).await;
    bob.request("messageDelivered", json!({ "seq": 1 }))
        .await
        .expect("moved");
    bob.close().await;
    alice.say("3").await;
    let publish = DEFAULT
        .post(
            "/publish",
            &service(),
            json!({ "event": "note", "data": 4, "room": "queue" }),
        )
        .await
        .ok();
    assert_eq!(
        (&publish["online"], &publish["queued"]),
        (&json!(1), &json!(1))
    );
    let members = DEFAULT.get("/rooms/queue/members", &service()).await.ok();
    let queued = |user: &str| {
        let members = members.as_array().expect("a list");
        members
            .iter()
            .find(|member| member["userId"] == user)
            .map(|member| member["queued"].clone())
    };
    assert_eq!(queued("bob"), Some(json!(3)));

    let mut bob = Client::join(&DEFAULT, "queue", &token("bob")).await;
    assert_eq!(bob.connected["delivered"], 1);
    assert_eq!(bob.connected["seq"], 4);
    let replayed = bob.logged(3).await;
    assert_eq!(
        replayed.iter().map(Client::seq).collect::<Vec<_>>(),
        [2, 3, 4]
    );
    // Then what is live, in order.
    alice.say("5").await;
    assert_eq!(Client::seq(&bob.logged(1).await[0]), 5);
}

#[tokio::test]
async fn a_first_join_starts_at_the_head_or_with_history_before_it() {
    let mut alice = Client::join(&DEFAULT, "first", &token("alice")).await;
    for n in 0..5 {
        alice.say(&n.to_string()).await;
    }
    let mut bob = Client::join(&DEFAULT, "first", &token("bob")).await;
    assert_eq!(
        (&bob.connected["seq"], &bob.connected["delivered"]),
        (&json!(5), &json!(5))
    );
    let mut carol = Client::join_with(&DEFAULT, "first", &token("carol"), "history=2").await;
    let replayed = carol.logged(2).await;
    assert_eq!(replayed.iter().map(Client::seq).collect::<Vec<_>>(), [4, 5]);
    assert!(
        bob.drain()
            .await
            .iter()
            .all(|line| line["event"] != "newMessage")
    );
}

#[tokio::test]
async fn with_since_everything_after_it_is_replayed_before_anything_live() {
    let mut alice = Client::join(&DEFAULT, "since", &token("alice")).await;
    for n in 0..10 {
        alice.say(&n.to_string()).await;
    }
    let epoch = alice.connected["epoch"]
        .as_str()
        .expect("an epoch")
        .to_owned();
    let query = format!("since=7&epoch={epoch}");
    let mut bob = Client::join_with(&DEFAULT, "since", &token("bob"), &query).await;
    assert_eq!(bob.connected.get("reset"), None);
    alice.say("live").await;
    let seqs: Vec<u64> = bob.logged(4).await.iter().map(Client::seq).collect();
    assert_eq!(seqs, [8, 9, 10, 11]);
}

#[tokio::test]
async fn a_since_that_makes_no_sense_any_more_resets() {
    let mut alice = Client::join(&DEFAULT, "reset", &token("alice")).await;
    for n in 0..3 {
        alice.say(&n.to_string()).await;
    }
    for query in ["since=4", "since=2&epoch=another", "since=9007199254740991"] {
        let mut bob = Client::join_with(&DEFAULT, "reset", &token("bob"), query).await;
        assert_eq!(bob.connected["reset"], true, "{query}");
        let seqs: Vec<u64> = bob.logged(3).await.iter().map(Client::seq).collect();
        assert_eq!(seqs, [1, 2, 3], "{query}");
        bob.close().await;
    }
}

#[tokio::test]
async fn join_room_on_a_rooms_own_socket_answers_with_where_it_stands_and_replays() {
    let mut alice = Client::join(&DEFAULT, "rejoin", &token("alice")).await;
    for n in 0..4 {
        alice.say(&n.to_string()).await;
    }
    let mut bob = Client::join(&DEFAULT, "rejoin", &token("bob")).await;
    let answer = bob
        .request("joinRoom", json!("rejoin"))
        .await
        .expect("joined");
    assert_eq!(answer["roomId"], "rejoin");
    assert_eq!(answer["seq"], 4);
    assert_eq!(
        (&answer["delivered"], &answer["read"]),
        (&json!(4), &json!(4))
    );
    assert_eq!(
        answer["members"],
        json!([{ "userId": "alice", "status": "online" }, { "userId": "bob", "status": "online" }])
    );
    // More of the past than it has been given, and no more than that.
    bob.request("joinRoom", json!({ "roomId": "rejoin", "since": 2 }))
        .await
        .expect("joined");
    let seqs: Vec<u64> = bob.logged(2).await.iter().map(Client::seq).collect();
    assert_eq!(seqs, [3, 4]);
    bob.request("joinRoom", json!({ "since": 0 }))
        .await
        .expect("joined");
    let seqs: Vec<u64> = bob.logged(2).await.iter().map(Client::seq).collect();
    assert_eq!(seqs, [1, 2]);
    let error = bob
        .request("joinRoom", json!("elsewhere"))
        .await
        .expect_err("another room");
    assert_eq!(error["code"], "badRequest");
}

#[tokio::test]
async fn leaving_ends_membership_and_drops_the_queue_closing_does_not() {
    let mut alice = Client::join(&DEFAULT, "leave", &token("alice")).await;
    let mut bob = Client::join(&DEFAULT, "leave", &token("bob")).await;
    assert_eq!(alice.expect("userJoined").await["data"]["userId"], "bob");
    assert_eq!(
        bob.request("leaveRoom", json!({})).await,
        Ok(json!({ "roomId": "leave" }))
    );
    assert_eq!(
        alice.expect("userLeft").await["data"],
        json!({ "roomId": "leave", "userId": "bob" })
    );
    let error = bob
        .request("sendMessage", json!({ "content": 1 }))
        .await
        .expect_err("left");
    assert_eq!(error["code"], "notJoined");
    alice.say("bob does not get this").await;
    let answer = bob
        .request("joinRoom", json!("leave"))
        .await
        .expect("joined again");
    assert_eq!(answer["delivered"], 1, "a first join again, at the head");
    alice.say("this he gets").await;
    assert_eq!(Client::seq(&bob.logged(1).await[0]), 2);
    bob.close().await;
    let members = DEFAULT.get("/rooms/leave/members", &service()).await.ok();
    assert_eq!(
        members.as_array().map(Vec::len),
        Some(2),
        "a close is no leave"
    );
}

#[tokio::test]
async fn cursors_are_cumulative_never_move_back_and_read_is_at_most_delivered() {
    let mut alice = Client::join(&DEFAULT, "cursors", &token("alice")).await;
    let mut bob = Client::join(&DEFAULT, "cursors", &token("bob")).await;
    for n in 0..5 {
        alice.say(&n.to_string()).await;
    }
    let request = |event: &'static str, seq: u64| (event, json!({ "seq": seq }));
    for ((event, data), answer) in [
        (request("messageDelivered", 3), 3),
        (request("messageDelivered", 1), 3),
        (request("messageRead", 2), 2),
        (request("messageRead", 4), 4),
        (request("messageDelivered", 2), 4),
        (request("messageRead", 1), 4),
    ] {
        let answer = json!({ "seq": answer });
        assert_eq!(
            bob.request(event, data.clone()).await,
            Ok(answer),
            "{event} {data}"
        );
    }
    for seq in [json!(6), json!(-1), json!(1.5), json!("1"), Value::Null] {
        let error = bob
            .request("messageRead", json!({ "seq": seq }))
            .await
            .expect_err("no seq");
        assert_eq!(error["code"], "badRequest");
    }
    // The others are told, coalesced, and bob himself is not.
    let read = alice
        .find("bob's last read", |line| {
            line["event"] == "messageRead" && line["data"]["seq"] == 4
        })
        .await;
    assert_eq!(
        read["data"],
        json!({ "roomId": "cursors", "userId": "bob", "seq": 4 })
    );
    let events: Vec<Value> = bob.drain().await;
    assert!(events.iter().all(|line| line["event"] != "messageRead"));
    let members = DEFAULT.get("/rooms/cursors/members", &service()).await.ok();
    let bob = &members[1];
    assert_eq!(
        (&bob["delivered"], &bob["read"], &bob["queued"]),
        (&json!(4), &json!(4), &json!(1))
    );
}

#[tokio::test]
async fn a_custom_event_has_its_data_untouched_and_meta_beside_it() {
    let mut alice = Client::join(&DEFAULT, "custom", &token("alice")).await;
    let data = json!({ "x": [1, { "y": null }], "seq": "mine" });
    let answer = alice
        .request(
            "emit",
            json!({ "event": "cursor:moved", "data": data, "messageId": "c1" }),
        )
        .await
        .expect("taken");
    let event = alice.expect("cursor:moved").await;
    assert_eq!(event["data"], data);
    assert_eq!(
        event["meta"],
        json!({ "roomId": "custom", "messageId": "c1", "senderId": "alice", "seq": 1,
            "timestamp": answer["timestamp"] })
    );
    for name in [
        "newMessage",
        "connected",
        "presenceUpdate",
        "gap",
        "",
        "a b",
    ] {
        let error = alice
            .request("emit", json!({ "event": name, "data": 1 }))
            .await;
        assert_eq!(error.expect_err(name)["code"], "badRequest");
    }
}

#[tokio::test]
async fn a_volatile_event_is_never_stored() {
    let mut alice = Client::join(&DEFAULT, "volatile", &token("alice")).await;
    let mut bob = Client::join(&DEFAULT, "volatile", &token("bob")).await;
    let answer = alice
        .request(
            "emit",
            json!({ "event": "wave", "data": 1, "volatile": true }),
        )
        .await;
    assert_eq!(answer, Ok(json!({})));
    let event = bob.expect("wave").await;
    assert_eq!(event["data"], 1);
    assert_eq!(event["meta"]["senderId"], "alice");
    assert_eq!(event["meta"].get("seq"), None);
    let page = bob
        .request("sync", json!({ "after": 0 }))
        .await
        .expect("a page");
    assert_eq!((&page["events"], &page["head"]), (&json!([]), &json!(0)));
}

#[tokio::test]
async fn sync_reads_pages_of_the_log() {
    let mut alice = Client::join(&DEFAULT, "sync", &token("alice")).await;
    for n in 0..5 {
        alice.say(&n.to_string()).await;
    }
    let page = alice
        .request("sync", json!({ "after": 1, "limit": 3 }))
        .await
        .expect("a page");
    let seqs: Vec<u64> = page["events"]
        .as_array()
        .expect("events")
        .iter()
        .map(Client::seq)
        .collect();
    assert_eq!(seqs, [2, 3, 4]);
    assert_eq!((&page["head"], &page["more"]), (&json!(5), &json!(true)));
    let page = alice
        .request("sync", json!({ "after": 4 }))
        .await
        .expect("a page");
    assert_eq!(page["events"].as_array().map(Vec::len), Some(1));
    assert_eq!(page["more"], false);
}

#[tokio::test]
async fn large_replays_come_in_large_frames_and_in_order() {
    let mut alice = Client::join(&DEFAULT, "large", &token("alice")).await;
    let text = "long ".repeat(1000);
    for batch in 0..3 {
        let messages: Vec<Value> = (0..100)
            .map(|n| {
                json!({ "event": "note", "data": { "n": batch * 100 + n, "text": text },
                "room": "large" })
            })
            .collect();
        for chunk in messages.chunks(50) {
            DEFAULT
                .post("/publish", &service(), json!({ "messages": chunk }))
                .await
                .ok();
        }
    }
    alice.logged(300).await;
    let mut bob = Client::join_with(&DEFAULT, "large", &token("bob"), "since=0").await;
    let seqs: Vec<u64> = bob.logged(300).await.iter().map(Client::seq).collect();
    assert_eq!(seqs, (1..=300).collect::<Vec<u64>>());
    assert!(bob.frames.len() < 20, "{} frames", bob.frames.len());
}

#[tokio::test]
async fn join_room_with_a_since_that_makes_no_sense_any_more_resets() {
    let mut alice = Client::join(&DEFAULT, "reset-join", &token("alice")).await;
    for n in 0..3 {
        alice.say(&n.to_string()).await;
    }
    for position in [
        json!({ "since": 4 }),
        json!({ "since": 3, "epoch": "another" }),
        json!({ "since": 9_007_199_254_740_991u64, "roomId": "reset-join" }),
    ] {
        let mut bob = Client::join(&DEFAULT, "reset-join", &token("bob")).await;
        let answer = bob
            .request("joinRoom", position.clone())
            .await
            .expect("no error");
        assert_eq!(answer["reset"], true, "{position}");
        let seqs: Vec<u64> = bob.logged(3).await.iter().map(Client::seq).collect();
        assert_eq!(seqs, [1, 2, 3], "{position}");
        bob.close().await;
    }
    let mut bob = Client::join(&DEFAULT, "reset-join", &token("bob")).await;
    let position = json!({ "since": 3, "epoch": alice.connected["epoch"] });
    let answer = bob.request("joinRoom", position).await.expect("joined");
    assert_eq!(answer.get("reset"), None);
}

#[tokio::test]
async fn logged_events_go_to_every_connection_the_rest_to_the_others() {
    let mut desk = Client::join(&DEFAULT, "who", &token("alice")).await;
    let mut phone = Client::join(&DEFAULT, "who", &token("alice")).await;
    let mut bob = Client::join(&DEFAULT, "who", &token("bob")).await;
    let volatile = json!({ "event": "wave", "data": 1, "volatile": true });
    desk.request("emit", volatile).await.expect("told");
    desk.request("typingIndicator", json!({ "isTyping": true }))
        .await
        .expect("told");
    desk.request("setPresence", json!({ "status": "busy" }))
        .await
        .expect("set");
    phone
        .request("setPresence", json!({ "status": "away" }))
        .await
        .expect("set");
    desk.say("hello").await;
    desk.request("messageRead", json!({ "seq": 1 }))
        .await
        .expect("moved");
    // Bob, who is another user, is told of everything.
    for event in [
        "wave",
        "userTyping",
        "presenceUpdate",
        "newMessage",
        "messageRead",
    ] {
        bob.find(event, |line| {
            line["event"] == event && line["data"]["userId"] != "bob"
        })
        .await;
    }
    // Her devices get each other's events and what is not of that user.
    phone.expect("wave").await;
    for client in [&mut desk, &mut phone] {
        client.expect("newMessage").await;
        client.expect("userJoined").await;
        let rest = client.drain().await;
        assert!(
            rest.iter()
                .all(|line| line["event"] == "presenceUpdate" && line["data"]["userId"] == "bob"),
            "{rest:?}"
        );
    }
}

#[tokio::test]
async fn receipts_are_told_coalesced() {
    let mut alice = Client::join(&FAST, "receipts", &token("alice")).await;
    let mut bob = Client::join(&FAST, "receipts", &token("bob")).await;
    for n in 1..=50 {
        alice.say(&n.to_string()).await;
    }
    bob.logged(50).await;
    let mut last = 0;
    for seq in 1..=50 {
        last = bob.start("messageDelivered", json!({ "seq": seq })).await;
    }
    assert_eq!(bob.answer(last).await, Ok(json!({ "seq": 50 })));
    let mut told = Vec::new();
    while told.last() != Some(&50) {
        let line = alice.expect("messageDelivered").await;
        assert_eq!(line["data"]["userId"], "bob");
        told.push(line["data"]["seq"].as_u64().expect("a seq"));
    }
    assert!(told.is_sorted() && told.len() <= 10, "{told:?}");
}

#[tokio::test]
async fn replay_comes_before_anything_live_whoever_is_talking() {
    let mut bob = Client::join(&FAST, "talking", &token("bob")).await;
    let talk = tokio::spawn(async {
        let mut alice = Client::join(&FAST, "talking", &token("alice")).await;
        for n in 0..600u64 {
            alice.start("sendMessage", json!({ "content": n })).await;
            if n % 4 == 0 {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        }
        alice.logged(600).await;
    });
    // Somebody comes and goes all the time; what he sees over all his
    // connections is the log.
    let mut seen = bob
        .logged(5)
        .await
        .iter()
        .map(Client::seq)
        .collect::<Vec<_>>();
    let mut connections = 0;
    while seen.len() < 600 {
        let since = format!("since={}", seen.len());
        let mut carol = Client::join_with(&FAST, "talking", &token("carol"), &since).await;
        let some = (600 - seen.len()).min(40);
        seen.extend(carol.logged(some).await.iter().map(Client::seq));
        // Some go without a word, some politely.
        if connections % 2 == 0 {
            carol.close().await;
        }
        connections += 1;
    }
    assert_eq!(seen, (1..=600).collect::<Vec<u64>>());
    assert!(connections >= 10);
    talk.await.expect("she was heard");
    assert_eq!(Client::seq(&bob.logged(595).await[594]), 600);
}

#[tokio::test]
async fn after_the_dedupe_window_an_id_is_new() {
    let server = Server::start(&[("DEDUPE_WINDOW", "1s")]);
    let mut alice = Client::join(&server, "window", &token("alice")).await;
    let send = json!({ "content": "x", "messageId": "m1" });
    let mut answer = async || {
        alice
            .request("sendMessage", send.clone())
            .await
            .expect("taken")
    };
    assert_eq!(answer().await["seq"], 1);
    assert_eq!(answer().await["duplicate"], true);
    // Time is the promise.
    tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
    let later = answer().await;
    assert_eq!((&later["seq"], later.get("duplicate")), (&json!(2), None));
    assert_eq!(answer().await["seq"], 2);
}

#[tokio::test]
async fn a_repeated_send_is_known_after_a_restart_whatever_it_says() {
    let mut server = Server::start(&[]);
    let contents = [
        r#""plain""#,
        r#""\ud800""#,
        "1e400",
        "-0.0",
        "123456789012345678901234567890",
        r#""\u0000\"\\""#,
        r#"{"messageId":"x","senderId":"y","timestamp":"z"}"#,
    ];
    let mut made = Vec::new();
    for round in 0..2 {
        let mut alice = Client::join(&server, "odd", &token("alice")).await;
        for (n, content) in contents.iter().enumerate() {
            let data = format!(r#"{{"content":{content},"messageId":"x","messageId":"m{n}"}}"#);
            let frame = format!(r#"{{"event":"sendMessage","data":{data},"id":{n}}}"#);
            alice.send_text(&frame).await;
            let answer = alice.answer(n as u32).await.expect("taken");
            assert_eq!(answer["seq"], n + 1, "{content} in round {round}");
            assert_eq!(answer["duplicate"] == true, round == 1, "{content}");
        }
        if round == 0 {
            made.push(alice.say("an id of the server's").await);
            let custom = json!({ "event": "x", "data": { "meta": 1 }, "messageId": "c" });
            made.push(alice.request("emit", custom).await.expect("taken"));
            server.restart();
            continue;
        }
        for made in &made {
            let again = json!({ "content": 1, "messageId": made["messageId"] });
            let again = alice.request("sendMessage", again).await.expect("taken");
            assert_eq!(
                (&again["seq"], &again["duplicate"]),
                (&made["seq"], &json!(true))
            );
        }
    }
}

#[tokio::test]
async fn a_replay_that_is_too_much_at_once_is_cut_and_can_be_resumed() {
    let server = Server::start(&[
        ("MAX_UNACKED_BYTES", "300000"),
        ("MESSAGES_PER_SECOND", "100000"),
        ("MESSAGES_BURST", "100000"),
    ]);
    let mut alice = Client::join(&server, "much", &token("alice")).await;
    let text = "x".repeat(10_000);
    for _ in 0..120 {
        alice.say(&text).await;
    }
    let mut seen = Vec::new();
    let mut cuts = 0;
    while seen.len() < 120 {
        let since = format!("since={}", seen.len());
        let mut bob = Client::join_with(&server, "much", &token("bob"), &since).await;
        let before = seen.len();
        while seen.len() < 120 {
            match bob.try_logged().await {
                Some(event) => seen.push(Client::seq(&event)),
                None => {
                    assert_eq!(bob.closed().await, 4503);
                    cuts += 1;
                    break;
                }
            }
        }
        assert!(seen.len() > before, "each connection gets on");
    }
    assert_eq!(seen, (1..=120).collect::<Vec<u64>>());
    assert!(cuts > 0);
}
