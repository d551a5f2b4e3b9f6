//! The HTTP API for services.

use super::{DEFAULT, FAST, service, token};
use roomcast_harness::{Answer, Client, SECRET, Server, Token, Worker};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Publishes as a service.
async fn publish(body: Value) -> Answer {
    DEFAULT.post("/publish", &service(), body).await
}

/// Returns the sorted keys of a JSON object.
fn keys(object: &Value) -> Vec<&str> {
    let object = object.as_object().expect("an object");
    let mut keys: Vec<&str> = object.keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[tokio::test]
async fn a_publication_reaches_the_room_with_meta_beside_its_data() {
    let mut alice = Client::join(&DEFAULT, "publish", &token("alice")).await;
    let data = json!({ "order": 7, "lines": [{ "a": null }] });
    let answer = publish(
        json!({ "event": "order:paid", "data": data, "room": "publish",
        "unknown": "ignored" }),
    )
    .await;
    assert_eq!(answer.header("content-type"), "application/json");
    let answer = answer.ok();
    assert_eq!(
        keys(&answer),
        [
            "messageId",
            "online",
            "queued",
            "roomId",
            "seq",
            "timestamp"
        ]
    );
    assert_eq!(
        (&answer["roomId"], &answer["seq"]),
        (&json!("publish"), &json!(1))
    );
    assert_eq!(
        (&answer["online"], &answer["queued"]),
        (&json!(1), &json!(0))
    );
    assert_eq!(
        alice.logged(1).await[0],
        json!({ "event": "order:paid", "data": data, "meta": { "roomId": "publish",
            "messageId": answer["messageId"], "senderId": "backend", "seq": 1,
            "timestamp": answer["timestamp"] } })
    );
    // `data` can be any JSON value, including `null`.
    for data in [json!(null), json!("text"), json!(1.5), json!([])] {
        publish(json!({ "event": "x", "data": data, "room": "publish" }))
            .await
            .ok();
        assert_eq!(alice.logged(1).await[0]["data"], data);
    }
}

#[tokio::test]
async fn a_published_new_message_has_the_shape_of_a_sent_message() {
    let mut alice = Client::join(&DEFAULT, "as-message", &token("alice")).await;
    let body = json!({ "event": "newMessage", "room": "as-message", "messageId": "m1",
        "data": { "content": "hi", "senderId": "eve", "seq": 9 } });
    let answer = publish(body).await.ok();
    let event = alice.expect("newMessage").await;
    let stamp = json!({ "roomId": "as-message", "messageId": "m1", "senderId": "backend",
        "seq": 1, "timestamp": answer["timestamp"] });
    assert_eq!(event["meta"], stamp);
    let mut data = stamp;
    data["content"] = json!("hi");
    assert_eq!(event["data"], data);
}

#[tokio::test]
async fn a_publication_to_a_user_goes_to_the_personal_room() {
    let mut ann = Client::join(&DEFAULT, "@ann", &token("ann")).await;
    let answer = publish(json!({ "event": "note", "data": 1, "userId": "ann" }))
        .await
        .ok();
    assert_eq!(
        (&answer["roomId"], &answer["online"]),
        (&json!("@ann"), &json!(1))
    );
    let event = ann.expect("note").await;
    assert_eq!(event["meta"]["roomId"], "@ann");
    // The personal room can also be addressed by its name.
    publish(json!({ "event": "note", "data": 2, "room": "@ann" }))
        .await
        .ok();
    assert_eq!(Client::seq(&ann.expect("note").await), 2);
}

#[tokio::test]
async fn online_counts_connected_users_and_queued_counts_offline_members() {
    let mut desk = Client::join(&DEFAULT, "counts", &token("alice")).await;
    let _phone = Client::join(&DEFAULT, "counts", &token("alice")).await;
    Client::join(&DEFAULT, "counts", &token("bob"))
        .await
        .close()
        .await;
    DEFAULT
        .put("/rooms/counts/members/carol", &service())
        .await
        .ok();
    // A user with the status `offline` still receives events.
    desk.request("setPresence", json!({ "status": "offline" }))
        .await
        .expect("set");
    let answer = publish(json!({ "event": "x", "data": 1, "room": "counts" }))
        .await
        .ok();
    assert_eq!(
        (&answer["online"], &answer["queued"]),
        (&json!(1), &json!(2))
    );
    let members = DEFAULT.get("/rooms/counts/members", &service()).await.ok();
    let queued: Vec<_> = members
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| &one["queued"])
        .collect();
    assert_eq!(queued, [1, 1, 1], "alice has not acknowledged it yet");
}

#[tokio::test]
async fn a_repeated_publication_is_a_duplicate() {
    let mut alice = Client::join(&DEFAULT, "pub-again", &token("alice")).await;
    let body = json!({ "event": "x", "data": 1, "room": "pub-again", "messageId": "p1" });
    let first = publish(body.clone()).await.ok();
    assert_eq!(first.get("duplicate"), None);
    let again = publish(body.clone()).await.ok();
    assert_eq!(again["duplicate"], true);
    for same in ["seq", "messageId", "timestamp"] {
        assert_eq!(again[same], first[same]);
    }
    let twice = publish(json!({ "messages": [body, body] })).await.ok();
    assert_eq!(twice["results"][0]["duplicate"], true);
    // A `messageId` is scoped to its sender.
    let other = Token::service("another").sign(SECRET);
    let other = DEFAULT.post("/publish", &other, body).await.ok();
    assert_eq!((&other["seq"], other.get("duplicate")), (&json!(2), None));
    alice.logged(2).await;
    assert!(
        alice.drain().await.iter().all(|line| line["event"] != "x"),
        "each publication is delivered once"
    );
}

#[tokio::test]
async fn concurrent_publications_get_distinct_seqs() {
    let mut alice = Client::join(&DEFAULT, "at-once", &token("alice")).await;
    let publications: tokio::task::JoinSet<_> = (0..40)
        .map(|n| publish(json!({ "event": "x", "data": n, "room": "at-once" })))
        .collect();
    let answers = publications.join_all().await;
    let mut seqs: Vec<u64> = answers
        .into_iter()
        .map(|answer| answer.ok()["seq"].as_u64().expect("a seq"))
        .collect();
    seqs.sort_unstable();
    let all = (1..=40).collect::<Vec<u64>>();
    assert_eq!(seqs, all);
    let seen: Vec<u64> = alice.logged(40).await.iter().map(Client::seq).collect();
    assert_eq!(seen, all);
}

#[tokio::test]
async fn concurrent_large_publications_are_stored_in_rows_of_limited_size() {
    let one = json!({ "event": "x", "data": "x".repeat(60_000), "room": "large-at-once" });
    let body = json!({ "messages": vec![one; 16] });
    for _ in 0..3 {
        let publications: tokio::task::JoinSet<_> = (0..8).map(|_| publish(body.clone())).collect();
        for answer in publications.join_all().await {
            let answer = answer.ok();
            let results = answer["results"].as_array().expect("a list");
            assert!(results.iter().all(|one| one["seq"].is_u64()), "{answer}");
        }
    }
    // A batch is stored as one row. Cloudflare limits a row to 2 MB. workerd has no
    // such limit, so the test derives the size from the log.
    let log = DEFAULT.log();
    let batches = log
        .iter()
        .filter(|line| line["event"] == "publish" && line["roomId"] == "large-at-once");
    for batch in batches {
        let (events, rows) = (&batch["count"], &batch["rowsWritten"]);
        let (events, rows) = (
            events.as_u64().expect("a count"),
            rows.as_u64().expect("rows"),
        );
        assert!(
            events * 60_000 < rows * 1_000_000,
            "{events} events of 60 kB in {rows} rows"
        );
    }
}

#[tokio::test]
async fn events_are_delivered_only_to_their_room() {
    let mut clients = Vec::new();
    for room in ["apart", "Apart", "apart-2", "a.part"] {
        clients.push((room, Client::join(&DEFAULT, room, &token("alice")).await));
    }
    for (room, _) in &clients {
        publish(json!({ "event": "x", "data": room, "room": room }))
            .await
            .ok();
    }
    for (room, client) in &mut clients {
        assert_eq!(client.expect("x").await["data"], *room);
        assert!(client.drain().await.iter().all(|line| line["event"] != "x"));
    }
}

#[tokio::test]
async fn a_volatile_publication_is_delivered_and_not_stored() {
    let mut alice = Client::join(&DEFAULT, "pub-volatile", &token("alice")).await;
    let body = json!({
        "event": "x", "data": 1, "room": "pub-volatile", "volatile": true, "messageId": "v1"
    });
    let answer = publish(body).await.ok();
    assert_eq!(
        (answer.get("seq"), &answer["messageId"]),
        (None, &json!("v1"))
    );
    assert_eq!(
        (&answer["online"], &answer["queued"]),
        (&json!(1), &json!(0))
    );
    let event = alice.expect("x").await;
    assert_eq!(event["meta"]["senderId"], "backend");
    assert_eq!(event["meta"]["messageId"], "v1");
    assert_eq!(event["meta"].get("seq"), None);
    let page = DEFAULT
        .get("/rooms/pub-volatile/messages", &service())
        .await
        .ok();
    assert_eq!((&page["events"], &page["head"]), (&json!([]), &json!(0)));
}

#[tokio::test]
async fn a_batch_is_answered_with_one_result_per_message_in_order() {
    let mut alice = Client::join(&DEFAULT, "batch-a", &token("alice")).await;
    let limited = Token::service("limited")
        .claim("rooms", json!(["batch-*"]))
        .sign(SECRET);
    let body = json!({ "messages": [
        { "event": "x", "data": 1, "room": "batch-a" },
        { "event": "x", "data": 2, "room": "batch-b" },
        { "event": "x", "data": 3 },
        { "event": "x", "data": 4, "room": "batch-a" },
        { "event": "connected", "data": 5, "room": "batch-a" },
        { "event": "x", "data": 6, "room": "elsewhere" },
        "seven",
        { "event": "x", "data": "x".repeat(70_000), "room": "batch-a" },
        { "event": "x", "data": 9, "room": "batch-a", "volatile": true },
        { "event": "x", "data": 10, "room": "batch-a" },
    ]});
    let answer = DEFAULT.post("/publish", &limited, body).await.ok();
    assert_eq!(keys(&answer), ["results"]);
    let results = answer["results"].as_array().expect("a list");
    let outcomes: Vec<Value> = results
        .iter()
        .map(|one| match one.get("error") {
            Some(error) => error["code"].clone(),
            None => one["seq"].clone(),
        })
        .collect();
    assert_eq!(
        json!(outcomes),
        json!([
            1,
            1,
            "badRequest",
            2,
            "badRequest",
            "forbidden",
            "badRequest",
            "tooLarge",
            null,
            3
        ])
    );
    assert_eq!(results[1]["roomId"], "batch-b");
    assert!(results[2]["error"]["message"].is_string());
    let seen: Vec<Value> = alice
        .logged(3)
        .await
        .iter()
        .map(|one| one["data"].clone())
        .collect();
    assert_eq!(seen, [1, 4, 10]);
}

#[tokio::test]
async fn a_batch_holds_1_to_100_messages() {
    let batch = |n: usize| {
        let one = json!({ "event": "x", "data": 1, "room": "hundred" });
        json!({ "messages": vec![one; n] })
    };
    let results = publish(batch(100)).await.ok();
    let last = &results["results"][99];
    assert_eq!(last["seq"], 100);
    for bad in [
        batch(0),
        batch(101),
        json!({ "messages": {} }),
        json!({ "messages": "x" }),
    ] {
        let answer = publish(bad).await;
        answer.problem(400, "badRequest");
        assert_eq!(answer.json["field"], "messages");
    }
}

#[tokio::test]
async fn an_invalid_body_is_a_problem_with_the_field_name() {
    let with = |field: &str, value: Value| {
        let mut body = json!({ "event": "x", "data": 1, "room": "checked" });
        match value {
            Value::Null => drop(body.as_object_mut().expect("an object").remove(field)),
            value => body[field] = value,
        }
        body
    };
    for (field, value) in [
        ("event", Value::Null),
        ("event", json!(7)),
        ("event", json!("")),
        ("event", json!("a b")),
        ("event", json!("x".repeat(65))),
        ("event", json!("presenceUpdate")),
        ("event", json!("messageRead")),
        ("data", Value::Null),
        ("room", Value::Null),
        ("room", json!(7)),
        ("room", json!("")),
        ("room", json!("a/b")),
        ("room", json!("r".repeat(129))),
        ("userId", json!(7)),
        ("userId", json!("a\nb")),
        ("messageId", json!(7)),
        ("messageId", json!("")),
        ("messageId", json!("x".repeat(129))),
        ("messageId", json!("a\u{0}b")),
        ("volatile", json!("true")),
    ] {
        let body = with(field, value);
        let answer = publish(body.clone()).await;
        assert_eq!(answer.status, 400, "{body}");
        answer.problem(400, "badRequest");
        assert_eq!(answer.json["field"], field, "{body}");
    }
    // Exactly one of `room` and `userId` is required.
    let both = publish(with("userId", json!("alice"))).await;
    both.problem(400, "badRequest");
    assert!(["room", "userId"].contains(&both.json["field"].as_str().expect("a field")));
    let page = DEFAULT
        .get("/rooms/checked/messages", &service())
        .await
        .ok();
    assert_eq!(page["head"], 0, "nothing was stored");
}

#[tokio::test]
async fn a_body_that_is_not_a_json_object_in_utf_8_is_400() {
    let bearer = format!("Bearer {}", service());
    let headers = [("authorization", bearer.as_str())];
    let deep = |n: usize| {
        let data = format!("{}{}", "[".repeat(n), "]".repeat(n));
        format!(r#"{{"event":"x","room":"bodies","data":{data}}}"#).into_bytes()
    };
    for body in [
        &b""[..],
        b"null",
        b"[]",
        b"7",
        b"{",
        b"{}{}",
        b"event=x&room=bodies",
        b"{\"event\":\"x\",\"room\":\"bodies\",\"data\":\"\xff\"}",
        b"\xff\xfe{\x00}\x00",
        &deep(64),
        &deep(100_000),
    ] {
        let answer = DEFAULT
            .call("POST", "/publish", &headers, body.to_vec())
            .await;
        answer.problem(400, "badRequest");
    }
    let answer = DEFAULT.call("POST", "/publish", &headers, deep(60)).await;
    assert_eq!(answer.ok()["seq"], 1);
}

#[tokio::test]
async fn messages_are_paged_in_both_directions() {
    let mut alice = Client::join(&FAST, "pages", &token("alice")).await;
    for n in 1..=25 {
        alice.send("sendMessage", json!({ "content": n })).await;
    }
    alice.logged(25).await;
    let page = async |query: &str| {
        let page = FAST
            .get(&format!("/rooms/pages/messages{query}"), &service())
            .await
            .ok();
        assert_eq!(page["head"], 25);
        assert_eq!(page["epoch"], alice.connected["epoch"]);
        let events = page["events"].as_array().expect("a list");
        let seqs: Vec<u64> = events.iter().map(Client::seq).collect();
        (seqs, page["more"] == true)
    };
    let range = |from: u64, to: u64| (from..=to).collect::<Vec<u64>>();
    for (query, from, to, more) in [
        ("", 1, 25, false),
        ("?limit=10", 1, 10, true),
        ("?after=0&limit=25", 1, 25, false),
        ("?after=10&limit=10", 11, 20, true),
        ("?after=20&limit=10", 21, 25, false),
        ("?before=26&limit=10", 16, 25, true),
        ("?before=16&limit=10", 6, 15, true),
        ("?before=6&limit=10", 1, 5, false),
        ("?before=9007199254740991&limit=3", 23, 25, true),
        ("?after=5&before=10", 6, 9, false),
        ("?after=5&before=20&limit=3", 6, 8, true),
    ] {
        assert_eq!(page(query).await, (range(from, to), more), "{query}");
    }
    for empty in [
        "?after=25",
        "?after=99",
        "?before=1",
        "?before=0",
        "?after=5&before=6",
    ] {
        assert_eq!(page(empty).await, (vec![], false), "{empty}");
    }
    // Events have the same shape as on sockets.
    let first = FAST
        .get("/rooms/pages/messages?limit=1", &service())
        .await
        .ok();
    assert_eq!(keys(&first["events"][0]), ["data", "event"]);
    assert_eq!(first["events"][0]["data"]["content"], 1);
    for (query, field) in [
        ("?after=-1", "after"),
        ("?after=x", "after"),
        ("?after=", "after"),
        ("?before=1.5", "before"),
        ("?limit=0", "limit"),
        ("?limit=1001", "limit"),
        ("?after=9007199254740992", "after"),
    ] {
        let answer = FAST
            .get(&format!("/rooms/pages/messages{query}"), &service())
            .await;
        answer.problem(400, "badRequest");
        assert_eq!(answer.json["field"], field, "{query}");
    }
}

#[tokio::test]
async fn a_page_over_the_size_limit_ends_early_with_more() {
    let text = "x".repeat(50_000);
    let one = json!({ "event": "x", "data": text, "room": "large-pages" });
    for _ in 0..4 {
        publish(json!({ "messages": vec![one.clone(); 15] }))
            .await
            .ok();
    }
    let (mut seqs, mut pages) = (Vec::new(), 0);
    loop {
        let path = format!(
            "/rooms/large-pages/messages?limit=1000&after={}",
            seqs.len()
        );
        let page = DEFAULT.get(&path, &service()).await;
        assert!(page.text.len() < 2 << 20, "{}", page.text.len());
        let page = page.ok();
        let events = page["events"].as_array().expect("a list");
        seqs.extend(events.iter().map(Client::seq));
        pages += 1;
        if page["more"] == false {
            break;
        }
    }
    assert_eq!(seqs, (1..=60).collect::<Vec<u64>>());
    assert!(pages > 1);
}

#[tokio::test]
async fn users_with_read_can_read_messages() {
    let reader = |rooms: Value| Token::user("ulla").claim("rooms", rooms).sign(SECRET);
    let path = "/rooms/readers/messages";
    publish(json!({ "event": "x", "data": 1, "room": "readers" }))
        .await
        .ok();
    let page = DEFAULT
        .get(path, &reader(json!({ "readers": ["read"] })))
        .await
        .ok();
    assert_eq!(page["head"], 1);
    for rooms in [
        json!([]),
        json!(["other"]),
        json!({ "readers": ["write", "presence"] }),
    ] {
        DEFAULT
            .get(path, &reader(rooms))
            .await
            .problem(403, "forbidden");
    }
    // Reading does not join the room.
    let members = DEFAULT.get("/rooms/readers/members", &service()).await.ok();
    assert_eq!(members, json!([]));
}

/// Adds members to a room of the default server.
async fn add_members(room: &str, users: &[String]) {
    for user in users {
        let path = format!("/rooms/{room}/members/{user}");
        DEFAULT.put(&path, &service()).await.ok();
    }
}

#[tokio::test]
async fn members_and_presence_are_read_in_pages_by_following_link() {
    let users: Vec<String> = (0..25).map(|number| format!("user-{number:02}")).collect();
    add_members("paged", &users).await;
    let reader = Token::user("user-03")
        .claim("rooms", json!({ "paged": ["read"] }))
        .sign(SECRET);
    for (resource, token) in [
        ("members", service()),
        ("presence", service()),
        ("members", reader.clone()),
        ("presence", reader),
    ] {
        let mut path = format!("/rooms/paged/{resource}?limit=10");
        let mut sizes = Vec::new();
        let mut listed = Vec::new();
        loop {
            let answer = DEFAULT.get(&path, &token).await;
            assert_eq!(answer.header("x-total-count"), "25");
            assert_eq!(answer.header("content-type"), "application/json");
            let link = answer.header("link").to_owned();
            let body = answer.ok();
            let list = match resource {
                "members" => &body,
                _ => &body["users"],
            };
            if resource == "presence" {
                assert_eq!(body["more"], !link.is_empty());
                assert_eq!(body["memberCount"], 25);
            }
            let list = list.as_array().expect("a list");
            sizes.push(list.len());
            listed.extend(list.iter().map(|one| one["userId"].clone()));
            if link.is_empty() {
                break;
            }
            let next = link.strip_suffix(r#">; rel="next""#).expect("next");
            next.strip_prefix('<').expect("a URL").clone_into(&mut path);
        }
        assert_eq!(sizes, [10, 10, 5], "{resource}");
        assert_eq!(json!(listed), json!(users));
    }
    for (query, field) in [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("after=%20x", "after"),
        ("after=", "after"),
    ] {
        for resource in ["members", "presence"] {
            let path = format!("/rooms/paged/{resource}?{query}");
            let answer = DEFAULT.get(&path, &service()).await;
            answer.problem(400, "badRequest");
            assert_eq!(answer.json["field"], field);
        }
    }
}

#[tokio::test]
async fn join_room_lists_100_members_and_the_command_members_the_rest() {
    let users: Vec<String> = (0..150).map(|number| format!("user-{number:03}")).collect();
    add_members("crowd", &users).await;
    let path = format!("/ws?token={}", token("zoe"));
    let at_gateway = Client::open(&DEFAULT, &path, &[]).await.expect("accepted");
    let at_room = Client::join(&DEFAULT, "crowd", &token("zoe")).await;
    for mut zoe in [at_gateway, at_room] {
        let joined = zoe.request("joinRoom", json!("crowd")).await;
        let joined = joined.expect("joined");
        assert_eq!(joined["memberCount"], 151);
        let members = joined["members"].as_array().expect("a list");
        assert_eq!(members.len(), 100);
        assert_eq!(members[0], json!({ "userId": "zoe", "status": "online" }));
        assert_eq!(members[1]["userId"], "user-000");
        let (mut listed, mut after) = (Vec::new(), Value::Null);
        loop {
            let data = json!({ "roomId": "crowd", "after": after });
            let page = zoe.request("members", data).await.expect("a page");
            assert_eq!(page["roomId"], "crowd");
            assert_eq!(page["memberCount"], 151);
            let members = page["members"].as_array().expect("a list");
            listed.extend(members.iter().map(|one| one["userId"].clone()));
            after = listed.last().expect("a member").clone();
            if page["more"] == false {
                break;
            }
            assert_eq!(members.len(), 100);
        }
        let mut expected = users.clone();
        expected.push("zoe".into());
        assert_eq!(json!(listed), json!(expected));
    }
    let path = format!("/rooms/crowd/ws?token={}", token("yan"));
    let mut yan = Client::open(&DEFAULT, &path, &[]).await.expect("accepted");
    yan.request("leaveRoom", json!({})).await.expect("left");
    let refused = yan.request("members", json!({})).await;
    assert_eq!(refused.expect_err("not a member")["code"], "notJoined");
}

#[tokio::test]
async fn the_reads_of_a_user_are_limited_and_those_of_services_are_not() {
    let server = Server::start(&[("JOINS_PER_SECOND", "1"), ("JOINS_BURST", "4")]);
    let (alice, bob, service) = (token("alice"), token("bob"), service());
    for resource in ["messages", "members", "presence", "members"] {
        let path = format!("/rooms/limited/{resource}");
        server.get(&path, &alice).await.ok();
    }
    let path = "/rooms/limited/messages";
    let answer = server.get(path, &alice).await;
    answer.problem(429, "rateLimited");
    assert_eq!(answer.header("retry-after"), "1");
    server.get(path, &bob).await.ok();
    for _ in 0..10 {
        server.get(path, &service).await.ok();
    }
}

#[tokio::test]
async fn pages_of_allowed_origins_can_read_rooms_and_the_reasons_of_refusals() {
    let server = Server::start(&[
        ("ALLOWED_ORIGINS", "https://chat.example"),
        ("JOINS_PER_SECOND", "0.01"),
        ("JOINS_BURST", "2"),
    ]);
    let bearer = format!("Bearer {}", token("alice"));
    let (good, evil) = ("https://chat.example", "https://evil.example");
    for resource in ["messages", "members", "presence"] {
        let path = format!("/rooms/{resource}/{resource}");
        let requested = ("access-control-request-headers", "authorization");
        let answer = server
            .call("OPTIONS", &path, &[("origin", good), requested], "")
            .await;
        assert_eq!(answer.status, 204);
        assert_eq!(
            answer.header("access-control-allow-headers"),
            "authorization"
        );
        let answer = server
            .call("OPTIONS", &path, &[("origin", evil), requested], "")
            .await;
        answer.problem(403, "forbidden");
        let authorization = ("authorization", bearer.as_str());
        for (origin, token, status) in [
            (good, authorization, 200),
            (good, ("authorization", "Bearer x"), 401),
            (good, authorization, 200),
            (good, authorization, 429),
            (evil, authorization, 403),
        ] {
            let headers = [("origin", origin), token];
            let answer = server.call("GET", &path, &headers, "").await;
            assert_eq!(answer.status, status, "{path}: {}", answer.text);
            let allowed = answer.header("access-control-allow-origin");
            assert_eq!(allowed, if origin == good { good } else { "" });
            if origin == good {
                let exposed = answer.header("access-control-expose-headers");
                assert_eq!(exposed, "Link, Retry-After, X-Total-Count");
            }
        }
    }
}

#[tokio::test]
async fn presence_and_members_list_all_fields() {
    let mut alice = Client::join(&DEFAULT, "people", &token("alice")).await;
    let _phone = Client::join(&DEFAULT, "people", &token("alice")).await;
    alice.send_message("1").await;
    alice.send_message("2").await;
    alice
        .request("messageDelivered", json!({ "seq": 2 }))
        .await
        .expect("accepted");
    alice
        .request("messageRead", json!({ "seq": 1 }))
        .await
        .expect("accepted");
    DEFAULT
        .put("/rooms/people/members/bob", &service())
        .await
        .ok();
    let presence = DEFAULT.get("/rooms/people/presence", &service()).await.ok();
    assert_eq!(
        presence,
        json!({ "memberCount": 2, "more": false, "users": [
            { "userId": "alice", "status": "online", "connections": 2, "lastSeen": null },
            { "userId": "bob", "status": "offline", "connections": 0, "lastSeen": null },
        ]})
    );
    let mut members = DEFAULT.get("/rooms/people/members", &service()).await.ok();
    for member in members.as_array_mut().expect("a list") {
        let joined = member["joinedAt"].take();
        let joined = joined.as_str().expect("a time");
        assert_eq!(joined.len(), "2026-11-23T08:00:00.000Z".len(), "{joined}");
    }
    assert_eq!(
        members,
        json!([
            { "userId": "alice", "joinedAt": null, "delivered": 2, "read": 1, "queued": 0 },
            { "userId": "bob", "joinedAt": null, "delivered": 2, "read": 2, "queued": 0 },
        ])
    );
}

#[tokio::test]
async fn a_member_is_added_and_removed_without_a_socket() {
    let mut alice = Client::join(&DEFAULT, "put", &token("alice")).await;
    let path = "/rooms/put/members/bob";
    alice.send_message("before bob").await;
    let added = DEFAULT.put(path, &service()).await;
    assert_eq!(added.status, 201);
    assert_eq!(
        keys(&added.json),
        ["delivered", "joinedAt", "queued", "read", "userId"]
    );
    let joined = json!({ "roomId": "put", "userId": "bob" });
    assert_eq!(alice.expect("userJoined").await["data"], joined);
    assert_eq!(
        DEFAULT.put(path, &service()).await.status,
        200,
        "bob is a member already"
    );
    alice.send_message("for bob").await;
    // Messages after the addition are queued for bob.
    let mut bob = Client::join(&DEFAULT, "put", &token("bob")).await;
    assert_eq!(Client::seq(&bob.logged(1).await[0]), 2);
    assert_eq!(DEFAULT.delete(path, &service()).await.ok(), joined);
    assert_eq!(alice.expect("userLeft").await["data"], joined);
    assert_eq!(
        bob.expect("userLeft").await["data"],
        joined,
        "the removed user is notified as well"
    );
    let sent = bob.request("sendMessage", json!({ "content": 1 })).await;
    assert_eq!(sent.expect_err("not a member")["code"], "notJoined");
    DEFAULT
        .delete(path, &service())
        .await
        .problem(404, "notFound");
    for bad in ["a%0Ab", "%20bob", &"u".repeat(256)] {
        let answer = DEFAULT
            .put(&format!("/rooms/put/members/{bad}"), &service())
            .await;
        answer.problem(400, "badRequest");
        assert_eq!(answer.json["field"], "user", "{bad}");
    }
}

#[tokio::test]
async fn a_kick_closes_all_sockets_of_the_user_with_4403() {
    let mut alice = Client::join(&DEFAULT, "kick", &token("alice")).await;
    let mut desk = Client::join(&DEFAULT, "kick", &token("bob")).await;
    let mut phone = Client::join(&DEFAULT, "kick", &token("bob")).await;
    let path = "/rooms/kick/connections";
    let kicked = DEFAULT
        .delete(&format!("{path}?userId=bob"), &service())
        .await
        .ok();
    assert_eq!(kicked, json!({ "closed": 2 }));
    assert_eq!((desk.closed().await, phone.closed().await), (4403, 4403));
    let second = DEFAULT
        .delete(&format!("{path}?userId=bob"), &service())
        .await
        .ok();
    assert_eq!(second, json!({ "closed": 0 }));
    // A kick does not end membership: messages are queued.
    alice.send_message("meanwhile").await;
    let mut bob = Client::join(&DEFAULT, "kick", &token("bob")).await;
    assert_eq!(Client::seq(&bob.logged(1).await[0]), 1);
    // A kick also closes the socket of a user who has left the room.
    bob.request("leaveRoom", json!({})).await.expect("left");
    let kicked = DEFAULT
        .delete(&format!("{path}?userId=bob"), &service())
        .await
        .ok();
    assert_eq!(kicked, json!({ "closed": 1 }));
    assert_eq!(bob.closed().await, 4403);
    for query in ["", "?userId=", "?userId=%20b"] {
        let answer = DEFAULT.delete(&format!("{path}{query}"), &service()).await;
        answer.problem(400, "badRequest");
        assert_eq!(answer.json["field"], "userId", "{query}");
    }
}

#[tokio::test]
async fn a_deleted_room_is_empty_and_has_a_new_epoch() {
    let mut server = Server::start(&[]);
    let mut alice = Client::join(&server, "gone", &token("alice")).await;
    let send = json!({ "content": "hi", "messageId": "m1" });
    alice
        .request("sendMessage", send.clone())
        .await
        .expect("accepted");
    alice.send_message("two").await;
    server.put("/rooms/gone/members/bob", &service()).await.ok();
    let old = alice.connected["epoch"].clone();
    let deleted = server.delete("/rooms/gone", &service()).await.ok();
    assert_eq!(keys(&deleted), ["epoch", "roomId"]);
    assert_ne!(deleted["epoch"], old);
    assert_eq!(alice.closed().await, 4410);
    let members = server.get("/rooms/gone/members", &service()).await.ok();
    assert_eq!(members, json!([]));
    let page = server.get("/rooms/gone/messages", &service()).await.ok();
    assert_eq!((&page["events"], &page["head"]), (&json!([]), &json!(0)));
    assert_eq!(page["epoch"], deleted["epoch"]);
    // A `since` of the old epoch resets, although its number is valid.
    let old = old.as_str().expect("an epoch");
    let query = format!("since=0&epoch={old}");
    let mut alice = Client::join_with(&server, "gone", &token("alice"), &query).await;
    assert_eq!(alice.connected["reset"], true);
    let again = alice.request("sendMessage", send).await.expect("accepted");
    assert_eq!((&again["seq"], again.get("duplicate")), (&json!(1), None));
    // The new epoch survives a restart.
    server.restart();
    let query = format!("since=1&epoch={old}");
    let mut bob = Client::join_with(&server, "gone", &token("bob"), &query).await;
    assert_eq!(bob.connected["reset"], true);
    assert_eq!(bob.connected["epoch"], deleted["epoch"]);
    assert_eq!(bob.logged(1).await[0]["data"]["messageId"], "m1");
}

#[tokio::test]
async fn service_routes_require_a_service_token_with_rights_in_the_room() {
    let user = token("alice");
    let elsewhere = Token::service("s")
        .claim("rooms", json!(["elsewhere"]))
        .sign(SECRET);
    let reader = Token::service("s")
        .claim("rooms", json!({ "*": ["read"] }))
        .sign(SECRET);
    let writer = Token::service("s")
        .claim("rooms", json!({ "*": ["write"] }))
        .sign(SECRET);
    let almost = Token::user("s").claim("role", "Service").sign(SECRET);
    let body = json!({ "event": "x", "data": 1, "room": "api" });
    for (method, path, reads) in [
        ("POST", "/publish", false),
        ("GET", "/rooms/api/messages", true),
        ("GET", "/rooms/api/presence", true),
        ("GET", "/rooms/api/members", true),
        ("PUT", "/rooms/api/members/bob", false),
        ("DELETE", "/rooms/api/members/bob", false),
        ("DELETE", "/rooms/api/connections?userId=bob", false),
        ("DELETE", "/rooms/api", false),
    ] {
        let ask = async |token: Option<&str>| {
            let body = (method == "POST").then(|| body.to_string());
            DEFAULT.request(method, path, token, body).await
        };
        ask(None).await.problem(401, "unauthorized");
        ask(Some("x")).await.problem(401, "unauthorized");
        ask(Some(&elsewhere)).await.problem(403, "forbidden");
        for token in [&user, &almost] {
            let answer = ask(Some(token)).await;
            match reads {
                true => assert_eq!(answer.status, 200, "{path}"),
                false => answer.problem(403, "forbidden"),
            }
        }
        let (may, may_not) = if reads {
            (&reader, &writer)
        } else {
            (&writer, &reader)
        };
        ask(Some(may_not)).await.problem(403, "forbidden");
        let answer = ask(Some(may)).await;
        assert!(answer.status < 300, "{method} {path}: {}", answer.text);
    }
}

#[tokio::test]
async fn unknown_routes_are_404_and_wrong_methods_405_with_allow() {
    for path in [
        "/nothing",
        "/rooms",
        "/rooms/a/b",
        "/rooms/a/ws/c",
        "/publish/x",
        "/rooms/a/members/b/c",
    ] {
        for method in ["GET", "POST"] {
            let answer = DEFAULT.request(method, path, Some(&service()), None).await;
            answer.problem(404, "notFound");
        }
    }
    for (path, allow, wrong) in [
        ("/publish", "POST", vec!["GET", "PUT", "DELETE"]),
        ("/healthz", "GET, HEAD", vec!["POST", "DELETE"]),
        ("/rooms/a", "DELETE", vec!["GET", "POST", "PUT", "PATCH"]),
        ("/rooms/a/ws", "GET", vec!["POST", "HEAD"]),
        (
            "/rooms/a/messages",
            "GET, HEAD, OPTIONS",
            vec!["POST", "DELETE"],
        ),
        ("/rooms/a/presence", "GET, HEAD, OPTIONS", vec!["PUT"]),
        (
            "/rooms/a/members",
            "GET, HEAD, OPTIONS",
            vec!["POST", "DELETE"],
        ),
        ("/rooms/a/members/b", "PUT, DELETE", vec!["GET", "POST"]),
        ("/rooms/a/connections", "DELETE", vec!["GET"]),
    ] {
        for method in wrong {
            let answer = DEFAULT.request(method, path, Some(&service()), None).await;
            // A response to HEAD has no body.
            if method == "HEAD" {
                assert_eq!(answer.status, 405);
            } else {
                answer.problem(405, "methodNotAllowed");
            }
            assert_eq!(answer.header("allow"), allow, "{method} {path}");
        }
    }
    for room in ["a%20b", "a%2Fb", "%FF", &"r".repeat(129)] {
        for path in [
            format!("/rooms/{room}/presence"),
            format!("/rooms/{room}/messages"),
        ] {
            let answer = DEFAULT.get(&path, &service()).await;
            answer.problem(400, "badRequest");
            assert_eq!(answer.json["field"], "room", "{path}");
        }
    }
}

#[tokio::test]
async fn healthz_needs_no_token() {
    let answer = DEFAULT.request("GET", "/healthz", None, None).await.ok();
    assert_eq!(keys(&answer), ["status", "version"]);
    assert_eq!(answer["status"], "ok");
    assert_eq!(answer["version"], env!("CARGO_PKG_VERSION"));
}

#[tokio::test]
async fn head_is_answered_like_get_without_a_body() {
    publish(json!({ "event": "x", "data": 1, "room": "head" }))
        .await
        .ok();
    let service = service();
    for (path, token, status) in [
        ("/healthz", None, 200),
        ("/openapi.json", None, 200),
        ("/rooms/head/messages", Some(&service), 200),
        ("/rooms/head/presence", Some(&service), 200),
        ("/rooms/head/members", Some(&service), 200),
        ("/rooms/head/members", None, 401),
        ("/rooms/head/messages?limit=0", Some(&service), 400),
    ] {
        let request = async |method| {
            let token = token.map(String::as_str);
            DEFAULT.request(method, path, token, None).await
        };
        let (get, head) = (request("GET").await, request("HEAD").await);
        assert_eq!((get.status, head.status), (status, status), "{path}");
        assert_eq!(head.text, "", "{path}");
        for name in ["content-type", "cache-control", "www-authenticate"] {
            assert_eq!(head.header(name), get.header(name), "{name} of {path}");
        }
    }
}

#[tokio::test]
async fn the_data_of_a_published_new_message_must_be_an_object() {
    let one = |data: Value| json!({ "event": "newMessage", "data": data, "room": "no-object" });
    for data in [json!(null), json!("text"), json!(7), json!([{}])] {
        let answer = publish(one(data)).await;
        answer.problem(400, "badRequest");
        assert_eq!(answer.json["field"], "data");
    }
    let both = json!({ "messages": [one(json!(1)), one(json!({}))] });
    let answer = publish(both).await.ok();
    assert_eq!(answer["results"][0]["error"]["code"], "badRequest");
    assert_eq!(answer["results"][1]["seq"], 1);
}

#[tokio::test]
async fn development_tokens_require_a_development_build_and_dev_tokens() {
    let body = || json!({ "user": "alice" });
    let enabled = [("DEV_TOKENS", "true")];
    let release = Server::start(&enabled);
    release
        .post("/dev/token", "", body())
        .await
        .problem(404, "notFound");
    let dev = Worker::built("dev");
    let off = Server::start_worker(&dev, &[]);
    off.post("/dev/token", "", body())
        .await
        .problem(404, "notFound");
    let on = Server::start_worker(&dev, &enabled);
    let answer = on.post("/dev/token", "", body()).await.ok();
    assert_eq!(keys(&answer), ["expiresAt", "token"]);
    let token = answer["token"].as_str().expect("a token");
    let alice = Client::join(&on, "dev", token).await;
    assert_eq!(alice.connected["userId"], "alice");
    assert_eq!(
        alice.connected["expiresAt"].as_str().map(str::len),
        Some(24)
    );
    let few = json!({ "user": "bob", "rooms": ["lobby"], "ttl": 60 });
    let answer = on.post("/dev/token", "", few).await.ok();
    let token = answer["token"].as_str().expect("a token");
    Client::join(&on, "lobby", token).await;
    let answer = on
        .request_upgrade(&format!("/rooms/dev/ws?token={token}"), &[])
        .await;
    answer.problem(403, "forbidden");
    for (bad, field) in [
        (json!({}), "user"),
        (json!({ "user": " a" }), "user"),
        (json!({ "user": "a", "rooms": "x" }), "rooms"),
        (json!({ "user": "a", "ttl": "1h" }), "ttl"),
    ] {
        let answer = on.post("/dev/token", "", bad).await;
        answer.problem(400, "badRequest");
        assert_eq!(answer.json["field"], field);
    }
}

#[tokio::test]
async fn published_data_is_delivered_byte_for_byte() {
    let mut alice = Client::join(&DEFAULT, "raw", &token("alice")).await;
    let raw = [
        "1.0",
        "-0",
        "1E400",
        "123456789012345678901234567890.10",
        r#""\u00e9 é \/ / \ud83d\ude00 😀""#,
        r#""\udc00 alone""#,
        "\"\u{2028}\u{2029}\u{feff}\u{7f}\"",
        r#"{"b":1,"a":{"z":[ ],"y":{ }},"b":2}"#,
        r#"[ 1 ,  2 ]"#,
        r#"{"event":"x","meta":{"seq":1},"seq":0,"roomId":"other"}"#,
        r#""two\nlines and a\ttab""#,
    ];
    for data in raw {
        for volatile in [true, false] {
            let body = format!(
                r#" {{ "volatile" : {volatile}, "room":"raw", "data":{data}, "event":"x" }} "#
            );
            let answer = DEFAULT
                .request("POST", "/publish", Some(&service()), Some(body))
                .await;
            answer.ok();
            // Compared as text, because serde_json cannot parse every case.
            let expected = format!(r#""data":{data}"#);
            let before = alice.frames.len();
            while !alice.frames[before..]
                .iter()
                .any(|frame| frame.contains(&expected))
            {
                alice.next().await;
            }
        }
    }
    // Replay and HTTP return the same bytes as the live delivery.
    let page = DEFAULT.get("/rooms/raw/messages", &service()).await.text;
    let mut bob = Client::join_with(&DEFAULT, "raw", &token("bob"), "since=0").await;
    let has_received = |bob: &Client, data: &str| {
        let expected = format!(r#""data":{data}"#);
        bob.frames.iter().any(|frame| frame.contains(&expected))
    };
    for data in raw {
        assert!(
            page.contains(&format!(r#""data":{data}"#)),
            "{data} in {page}"
        );
        while !has_received(&bob, data) {
            bob.next().await;
        }
    }
}

#[tokio::test]
async fn pretty_printed_data_is_delivered_with_spaces_for_line_breaks() {
    let mut alice = Client::join(&DEFAULT, "pretty", &token("alice")).await;
    let data = "{\n  \"text\": \"a\\n  b\",\r\n  \"list\": [\n    1,\r    2.0\n  ]\n}";
    let line = data.replace(['\r', '\n'], " ");
    for event in ["note", "newMessage"] {
        let body = format!(r#"{{"room":"pretty","event":"{event}","data":{data}}}"#);
        let answer = DEFAULT
            .request("POST", "/publish", Some(&service()), Some(body))
            .await;
        answer.ok();
        let received = alice.expect(event).await;
        assert_eq!(received["data"]["text"], "a\n  b");
        assert_eq!(received["data"]["list"], json!([1, 2.0]));
    }
    let frames = alice.frames.join("\n");
    assert!(
        frames.contains(&format!(r#""data":{line}"#)),
        "{line} in {frames}"
    );
    assert!(!frames.contains('\r'));
}

#[tokio::test]
async fn a_page_has_100_events_by_default() {
    let one = json!({ "event": "x", "data": 1, "room": "default-page" });
    for n in [100, 20] {
        publish(json!({ "messages": vec![one.clone(); n] }))
            .await
            .ok();
    }
    let mut alice = Client::join(&DEFAULT, "default-page", &token("alice")).await;
    let over_socket = alice
        .request("sync", json!({ "after": 10 }))
        .await
        .expect("a page");
    let path = "/rooms/default-page/messages";
    let over_http = DEFAULT
        .get(&format!("{path}?after=10"), &service())
        .await
        .ok();
    for page in [&over_socket, &over_http] {
        let events = page["events"].as_array().expect("a list");
        let seqs: Vec<u64> = events.iter().map(Client::seq).collect();
        assert_eq!(seqs, (11..=110).collect::<Vec<u64>>());
        assert_eq!((&page["head"], &page["more"]), (&json!(120), &json!(true)));
    }
    assert_eq!(over_socket, over_http);
    let newest = DEFAULT
        .get(&format!("{path}?before=1000"), &service())
        .await
        .ok();
    assert_eq!(Client::seq(&newest["events"][0]), 21);
    let all = DEFAULT
        .get(&format!("{path}?limit=1000"), &service())
        .await
        .ok();
    assert_eq!(all["events"].as_array().map(Vec::len), Some(120));
}

#[tokio::test]
async fn openapi_json_needs_no_token_and_no_key() {
    let server = Server::start(&[("JWT_SECRET", "")]);
    let answer = server.request("GET", "/openapi.json", None, None).await;
    assert_eq!(answer.header("content-type"), "application/json");
    let api = answer.ok();
    assert!(
        api["openapi"]
            .as_str()
            .expect("a version")
            .starts_with("3.1")
    );
    let health = DEFAULT.request("GET", "/healthz", None, None).await.ok();
    assert_eq!(api["info"]["version"], health["version"]);
    for path in [
        "/publish",
        "/revoke",
        "/tickets",
        "/rooms/{room}/members/{user}",
    ] {
        assert!(api["paths"][path].is_object(), "{path}");
    }
    let answer = server.request("POST", "/openapi.json", None, None).await;
    answer.problem(405, "methodNotAllowed");
}

#[tokio::test]
async fn a_broadcast_reaches_the_sockets_of_rooms_and_gateways() {
    let server = Server::start(&[]);
    let admin = Token::service("backend").claim("rooms", json!({ "*": ["admin"] }));
    let admin = admin.sign(SECRET);
    let mut room = Client::join(&server, "hall", &token("alice")).await;
    let mut gateway = Client::open(&server, &format!("/ws?token={}", token("bob")), &[])
        .await
        .expect("accepted");
    let body = json!({ "event": "announcement", "data": { "für": "alle" }, "messageId": "b1" });
    // Rooms and gateways register soon after their first connection.
    let deadline = Instant::now() + Duration::from_secs(10);
    let sent = loop {
        let answer = server.post("/broadcast", &admin, body.clone()).await.ok();
        if answer["rooms"] == 1 && answer["gateways"] == 1 {
            break answer;
        }
        assert!(Instant::now() < deadline, "{answer}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(
        (&sent["failed"], &sent["messageId"]),
        (&json!(0), &json!("b1"))
    );
    for client in [&mut room, &mut gateway] {
        let event = client.expect("announcement").await;
        assert_eq!(event["data"], json!({ "für": "alle" }));
        let meta = &event["meta"];
        assert_eq!(
            (&meta["senderId"], &meta["messageId"]),
            (&json!("backend"), &json!("b1"))
        );
        assert_eq!((meta.get("roomId"), meta.get("seq")), (None, None));
    }
    // It is in no log.
    let page = server.get("/rooms/hall/messages", &service()).await.ok();
    assert_eq!(page["head"], 0);
    for (token, body, status, code) in [
        (service(), body.clone(), 403, "forbidden"),
        (token("alice"), body.clone(), 403, "forbidden"),
        (
            admin.clone(),
            json!({ "event": "newMessage", "data": {} }),
            400,
            "badRequest",
        ),
        (
            admin.clone(),
            json!({ "event": "x", "data": 1, "room": "r" }),
            400,
            "badRequest",
        ),
        (
            admin.clone(),
            json!({ "event": "x", "data": ["x".repeat(70_000)] }),
            413,
            "tooLarge",
        ),
    ] {
        let answer = server.post("/broadcast", &token, body).await;
        answer.problem(status, code);
    }
    let server = Server::start(&[("REVOCATION", "false")]);
    let answer = server.post("/broadcast", &admin, body).await;
    answer.problem(409, "conflict");
}
