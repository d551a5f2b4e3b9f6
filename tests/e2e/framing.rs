//! The native framing: frames, answers, errors and malformed frames.

use super::{DEFAULT, FAST, token};
use roomcast_harness::{Client, Server};
use serde_json::{Value, json};

/// Connects alice and bob to a new room. Alice has received all events about bob,
/// so that the next line she receives is caused by her own commands.
async fn pair(room: &str) -> (Client, Client) {
    let mut alice = Client::join(&DEFAULT, room, &token("alice")).await;
    let bob = Client::join(&DEFAULT, room, &token("bob")).await;
    alice.expect("userJoined").await;
    alice.expect("presenceUpdate").await;
    (alice, bob)
}

/// Asserts that the room still works for other connections.
async fn assert_room_works(mut bob: Client, room: &str) {
    let mut carol = Client::join(&DEFAULT, room, &token("carol")).await;
    let seq = bob.send_message("still here").await["seq"].clone();
    assert_eq!(json!(Client::seq(&carol.logged(1).await[0])), seq);
}

#[tokio::test]
async fn only_commands_with_an_id_are_answered() {
    let (mut alice, _bob) = pair("ids").await;
    for id in [0, 7, u32::MAX] {
        let line = json!({ "event": "setPresence", "data": { "status": "online" }, "id": id });
        alice.send_text(&line.to_string()).await;
        assert_eq!(
            alice.next().await,
            json!({ "ack": id, "data": { "status": "online" } })
        );
    }
    alice.send("setPresence", json!({ "status": "away" })).await;
    alice.send("sendMessage", json!({ "content": 1 })).await;
    assert_eq!(alice.next().await["event"], "newMessage");
    // An id may be used again.
    for _ in 0..2 {
        let line = json!({ "event": "sync", "data": { "after": 0 }, "id": 9 });
        alice.send_text(&line.to_string()).await;
        assert_eq!(alice.answer(9).await.expect("a page")["head"], 1);
    }
}

#[tokio::test]
async fn connected_comes_first_with_user_room_position_expiry_and_limits() {
    let mut alice = Client::join(&DEFAULT, "connected", &token("alice")).await;
    alice.send_message("one").await;
    let again = Client::join_with(&DEFAULT, "connected", &token("alice"), "since=0").await;
    let first = again.frames[0].split('\n').next().expect("a line");
    let first: Value = serde_json::from_str(first).expect("JSON");
    assert_eq!(first["event"], "connected");
    let connected = &again.connected;
    assert_eq!(
        (&connected["userId"], &connected["roomId"]),
        (&json!("alice"), &json!("connected"))
    );
    assert_eq!(
        (&connected["seq"], &connected["delivered"]),
        (&json!(1), &json!(0))
    );
    assert_ne!(connected["connectionId"], alice.connected["connectionId"]);
    assert_eq!(connected["epoch"], alice.connected["epoch"]);
    let expires = connected["expiresAt"].as_str().expect("a time");
    assert_eq!(expires.len(), "2026-11-23T08:00:00.000Z".len(), "{expires}");
    assert_eq!(connected["limits"]["maxFrameBytes"], 65_536);
    assert_eq!(connected["limits"]["messagesPerSecond"], 20.0);
    assert_eq!(connected.get("reset"), None);
}

#[tokio::test]
async fn a_frame_can_hold_several_objects_in_both_directions() {
    let mut alice = Client::join(&FAST, "several", &token("alice")).await;
    let mut bob = Client::join(&FAST, "several", &token("bob")).await;
    let lines: Vec<String> = (1..=50)
        .map(|n| json!({ "event": "sendMessage", "data": { "content": n }, "id": n }).to_string())
        .collect();
    // A trailing line break and CRLF are accepted.
    alice.send_text(&(lines[..25].join("\n") + "\n")).await;
    alice.send_text(&lines[25..].join("\r\n")).await;
    for n in 1..=50 {
        assert_eq!(alice.answer(n).await.expect("accepted")["seq"], n);
    }
    let before = bob.frames.len();
    let events = bob.logged(50).await;
    let contents: Vec<_> = events
        .iter()
        .map(|event| &event["data"]["content"])
        .collect();
    assert_eq!(contents, (1..=50).collect::<Vec<_>>());
    let frames = bob.frames.len() - before;
    assert!(
        frames <= 4,
        "50 events must be coalesced, but came in {frames} frames"
    );
}

#[tokio::test]
async fn a_malformed_object_is_answered_and_the_valid_objects_of_its_frame_are_executed() {
    let (mut alice, bob) = pair("malformed").await;
    let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
    let deep_with_id =
        format!(r#"{{"event":"emit","data":{{"event":"x","data":{deep}}},"id":11}}"#);
    let unclosed = format!(r#"{{"event":"emit","id":12,"data":{}"#, "[".repeat(20_000));
    // (line, id of its answer)
    let lines: Vec<(&str, Option<u32>)> = vec![
        ("not json", None),
        ("[]", None),
        ("7", None),
        ("null", None),
        (r#""sendMessage""#, None),
        ("{}", None),
        (r#"{"event":7}"#, None),
        (r#"{"event":null,"id":1}"#, Some(1)),
        (r#"{"id":2,"data":{}}"#, Some(2)),
        (r#"{"event":"nothing","id":3}"#, Some(3)),
        (r#"{"event":"newMessage","data":{},"id":4}"#, Some(4)),
        (r#"{"event":"sendMessage","id":5}"#, Some(5)),
        (r#"{"event":"sendMessage","data":[],"id":6}"#, Some(6)),
        (r#"{"event":"sendMessage","data":"hi","id":7}"#, Some(7)),
        (r#"{"event":"sendMessage","data":{},"id":8}"#, Some(8)),
        (
            r#"{"event":"sendMessage","data":{"content":1},"id":-1}"#,
            None,
        ),
        (
            r#"{"event":"sendMessage","data":{"content":1},"id":1.5}"#,
            None,
        ),
        (
            r#"{"event":"sendMessage","data":{"content":1},"id":"9"}"#,
            None,
        ),
        (
            r#"{"event":"sendMessage","data":{"content":1},"id":4294967296}"#,
            None,
        ),
        (
            r#"{"event":"sendMessage","data":{"content":1},"id":[]}"#,
            None,
        ),
        (r#"{"event":"sendMessage","data":{"content":1}"#, None),
        (r#"{"event":"sendMessage","data":{"content":1}}}"#, None),
        (&deep_with_id, Some(11)),
        (&unclosed, None),
    ];
    for (line, id) in &lines {
        // The line is sent between two valid commands, which are executed.
        let good = |id: u32| format!(r#"{{"event":"sync","data":{{"after":0}},"id":{id}}}"#);
        let frame = format!("{}\n{line}\n{}", good(1001), good(1002));
        alice.send_text(&frame).await;
        let line = &line[..line.len().min(80)];
        let (mut error, mut good) = (None, 0);
        for _ in 0..3 {
            let mut answer = alice.next().await;
            match (answer["ack"].as_u64(), answer["event"].as_str()) {
                (Some(1001 | 1002), _) => good += 1,
                (Some(ack), _) => {
                    assert_eq!(Some(ack as u32), *id, "{line}");
                    error = Some(answer["error"].take());
                }
                (None, Some("error")) => {
                    assert_eq!(None, *id, "{line}");
                    error = Some(answer["data"].take());
                }
                _ => panic!("{line} was answered with {answer}"),
            }
        }
        let error = error.unwrap_or_else(|| panic!("{line} was not answered"));
        assert_eq!(error["code"], "badRequest", "{line}: {error}");
        assert!(error["message"].is_string(), "{line}: {error}");
        assert_eq!(
            good, 2,
            "both valid commands beside {line} must be answered"
        );
    }
    assert_eq!(
        alice.send_message("nothing was stored before").await["seq"],
        1
    );
    assert_room_works(bob, "malformed").await;
}

#[tokio::test]
async fn invalid_values_are_answered_with_bad_request() {
    let (mut alice, _bob) = pair("values").await;
    let long = "x".repeat(129);
    for (event, data) in [
        ("sendMessage", json!({ "content": null })),
        ("sendMessage", json!({ "content": 1, "messageId": "" })),
        ("sendMessage", json!({ "content": 1, "messageId": 7 })),
        ("sendMessage", json!({ "content": 1, "messageId": "a\nb" })),
        ("sendMessage", json!({ "content": 1, "messageId": long })),
        ("sendMessage", json!({ "content": 1, "roomId": "a b" })),
        ("sendMessage", json!({ "content": 1, "roomId": 7 })),
        ("emit", json!({ "data": 1 })),
        ("emit", json!({ "event": 7, "data": 1 })),
        ("emit", json!({ "event": "x".repeat(65), "data": 1 })),
        ("emit", json!({ "event": "ü", "data": 1 })),
        ("emit", json!({ "event": "presenceUpdate", "data": 1 })),
        (
            "emit",
            json!({ "event": "x", "data": 1, "volatile": "yes" }),
        ),
        ("messageDelivered", json!({})),
        ("messageDelivered", json!({ "seq": 1 })),
        ("messageRead", json!({ "seq": -1 })),
        ("messageRead", json!({ "seq": 9_007_199_254_740_992u64 })),
        ("typingIndicator", json!({})),
        ("typingIndicator", json!({ "isTyping": "true" })),
        ("setPresence", json!({})),
        ("setPresence", json!({ "status": "Online" })),
        ("setPresence", json!({ "status": "invisible" })),
        ("sync", json!({})),
        ("sync", json!({ "after": -1 })),
        ("sync", json!({ "after": 0, "limit": 0 })),
        ("sync", json!({ "after": 0, "limit": 1001 })),
        ("joinRoom", json!("a/b")),
        ("joinRoom", json!("")),
        ("joinRoom", json!(7)),
        ("joinRoom", json!({ "since": -1 })),
        ("joinRoom", json!({ "since": 1.5 })),
        ("joinRoom", json!({ "since": "0" })),
        ("joinRoom", json!({ "since": 9_007_199_254_740_992u64 })),
        ("joinRoom", json!({ "history": -1 })),
        ("joinRoom", json!({ "epoch": 1 })),
        ("leaveRoom", json!({ "roomId": "ä" })),
        ("refreshToken", json!({})),
        ("refreshToken", json!({ "token": 7 })),
    ] {
        let answer = alice.request(event, data.clone()).await;
        let error = answer.expect_err(&format!("{event} {data}"));
        assert_eq!(error["code"], "badRequest", "{event} {data}: {error}");
    }
    // The socket of a room cannot use another room.
    for event in [
        "sendMessage",
        "typingIndicator",
        "messageRead",
        "sync",
        "leaveRoom",
    ] {
        let data = json!({ "roomId": "elsewhere", "content": 1, "isTyping": true, "seq": 0,
            "after": 0 });
        let error = alice.request(event, data).await.expect_err(event);
        assert_eq!(error["code"], "notJoined", "{event}");
    }
    // The socket may name its own room.
    alice
        .request("sendMessage", json!({ "content": 1, "roomId": "values" }))
        .await
        .expect("accepted");
}

#[tokio::test]
async fn a_malformed_frame_closes_its_socket_and_no_other() {
    let limit = 65_536;
    let message = |length: usize| {
        let frame = json!({ "event": "sendMessage", "data": { "content": "" } }).to_string();
        let text = "x".repeat(length - frame.len());
        json!({ "event": "sendMessage", "data": { "content": text } }).to_string()
    };
    let cases = [
        ("hello".to_owned(), 4400),
        ("{".to_owned(), 4400),
        ("PING".to_owned(), 4400),
        (r#"42["sendMessage",{"content":"hi"}]"#.to_owned(), 4400),
        (message(limit + 1), 4413),
        (message(10 << 20), 4413),
        ("ü".repeat(limit / 2 + 1), 4413),
    ];
    for (n, (text, code)) in cases.into_iter().enumerate() {
        let room = format!("not-frames-{n}");
        let (mut alice, bob) = pair(&room).await;
        alice.send_text(&text).await;
        let start: String = text.chars().take(40).collect();
        assert_eq!(alice.closed().await, code, "{} bytes: {start}", text.len());
        assert_room_works(bob, &room).await;
    }
    let (mut alice, bob) = pair("not-frames").await;
    alice.send_binary(b"{\"event\":\"sync\"}").await;
    assert_eq!(alice.closed().await, 4400);
    assert_room_works(bob, "not-frames").await;
    // A frame of exactly the maximal size is accepted.
    let mut alice = Client::join(&DEFAULT, "not-frames", &token("alice")).await;
    alice.send_text(&message(limit)).await;
    alice
        .find("the large message", |line| {
            line["data"]["content"]
                .as_str()
                .is_some_and(|text| text.len() > 60_000)
        })
        .await;
}

#[tokio::test]
async fn invalid_utf_8_is_replaced_or_closes_only_its_socket() {
    // RFC 6455 requires a close with 1007. workerd replaces invalid bytes by U+FFFD
    // instead.
    let (mut alice, bob) = pair("wrong-utf8").await;
    let message = b"{\"event\":\"sendMessage\",\"data\":{\"content\":\"\xff\"},\"id\":1}";
    alice.send_as_text(message).await;
    alice.answer(1).await.expect("accepted");
    let event = alice.expect("newMessage").await;
    assert_eq!(event["data"]["content"], "\u{fffd}");
    bob.close().await;
    for (n, bytes) in [&b"\xc3\x28"[..], b"\xed\xa0\x80", b"\xff\xfe\x00"]
        .into_iter()
        .enumerate()
    {
        let room = format!("wrong-utf8-{n}");
        let (mut alice, bob) = pair(&room).await;
        alice.send_as_text(bytes).await;
        assert_eq!(alice.closed().await, 4400);
        assert_room_works(bob, &room).await;
    }
}

#[tokio::test]
async fn content_is_delivered_byte_for_byte() {
    let (mut alice, mut bob) = pair("content").await;
    for text in [
        r#""👩‍👩‍👧 हिन्दी עברית ქართული \u0000 \ud83d\ude00""#,
        "\"\u{2028}\u{2029}\u{7f}\u{feff}\"",
        r#""\ud800 alone""#,
        r#""\\ \" \/ \n\t""#,
        "12345678901234567890123456789",
        "-0.10e+400",
        "[]",
        r#"{"__proto__":{"x":1},"":null,"a":1,"a":2}"#,
        r#""</script>""#,
        "false",
        "0",
        "\"\"",
    ] {
        let frame = format!(r#"{{"event":"sendMessage","data":{{"content":{text}}}}}"#);
        alice.send_text(&frame).await;
        // Compared as text, because serde_json cannot parse every case.
        let content = format!(r#""content":{text}"#);
        while !bob
            .frames
            .last()
            .is_some_and(|frame| frame.contains(&content))
        {
            bob.next().await;
        }
    }
    // 60 levels of nesting are accepted.
    let deep = format!("{}{}", "[".repeat(60), "]".repeat(60));
    let frame = format!(r#"{{"event":"sendMessage","data":{{"content":{deep}}}}}"#);
    alice.send_text(&frame).await;
    bob.logged(1).await;
}

#[tokio::test]
async fn a_publication_with_line_breaks_is_delivered_as_one_line() {
    let mut alice = Client::join(&DEFAULT, "one-line", &token("alice")).await;
    let body = "{\n  \"event\": \"note\",\n  \"room\": \"one-line\",\n  \"data\": {\n    \"a\":\r\n 1\n  }\n}";
    let answer = DEFAULT
        .request(
            "POST",
            "/publish",
            Some(&super::service()),
            Some(body.to_owned()),
        )
        .await;
    answer.ok();
    assert_eq!(alice.next().await["data"], json!({ "a": 1 }));
    let mut again = Client::join_with(&DEFAULT, "one-line", &token("bob"), "since=0").await;
    assert_eq!(again.next().await["data"], json!({ "a": 1 }));
}

#[tokio::test]
async fn a_ping_is_answered_with_pong() {
    let (mut alice, _bob) = pair("ping").await;
    for ping in ["ping", "ping", "ping", "ping\n", "ping\r\n"] {
        alice.send_text(ping).await;
        assert_eq!(alice.next().await, "pong", "{ping:?}");
    }
}

#[tokio::test]
async fn blank_frames_and_lines_are_ignored() {
    let (mut alice, bob) = pair("blank").await;
    for blank in ["", "\n", "\r\n", " \n\n"] {
        alice.send_text(blank).await;
    }
    let line = json!({ "event": "sendMessage", "data": { "content": "x" }, "id": 1 });
    alice.send_text(&format!("\n{line}\n\n")).await;
    assert_eq!(alice.answer(1).await.expect("stored")["seq"], 1);
    assert_room_works(bob, "blank").await;
}

#[tokio::test]
async fn blank_frames_count_as_commands() {
    let server = Server::start(&[("COMMANDS_PER_SECOND", "1"), ("COMMANDS_BURST", "20")]);
    let mut alice = Client::join(&server, "blank-flood", &token("alice")).await;
    for _ in 0..40 {
        alice.send_text("\n").await;
    }
    let error = alice.expect("error").await;
    assert_eq!(error["data"]["code"], "rateLimited");
}

#[tokio::test]
async fn lone_surrogates_in_names_are_refused_and_the_room_keeps_working() {
    let (mut alice, bob) = pair("surrogates").await;
    // (line without its id and its last brace, whether it may be accepted)
    for (line, may_be_accepted) in [
        (r#"{"event":"\udfff","data":{"content":1}"#, false),
        (
            r#"{"event":"emit","data":{"event":"\ud800","data":1}"#,
            false,
        ),
        (
            r#"{"event":"sendMessage","data":{"content":1,"messageId":"\ud800"}"#,
            false,
        ),
        (
            r#"{"event":"sendMessage","data":{"content":1,"roomId":"\ud800"}"#,
            false,
        ),
        (r#"{"event":"joinRoom","data":"\ud800""#, false),
        (r#"{"event":"joinRoom","data":{"epoch":"\ud800"}"#, false),
        (
            r#"{"event":"setPresence","data":{"status":"\ud800"}"#,
            false,
        ),
        (
            r#"{"event":"refreshToken","data":{"token":"\ud800"}"#,
            false,
        ),
        (
            r#"{"event":"sendMessage","data":{"content":"\ud83d","\ud800":2}"#,
            true,
        ),
        (
            r#"{"event":"sendMessage","\ud800":1,"data":{"content":"\udc00\ud800"}"#,
            true,
        ),
        (
            r#"{"event":"emit","data":{"event":"odd","data":{"\ud800":["\udbff"]}}"#,
            true,
        ),
        (
            r#"{"event":"emit","data":{"event":"odd","data":"\ud800","volatile":true}"#,
            true,
        ),
    ] {
        alice.send_text(&format!(r#"{line},"id":77}}"#)).await;
        // A line that serde_json cannot parse is a string here.
        let answer = alice
            .find("an answer", |line| {
                let text = line.to_string();
                line["ack"] == 77 || line["event"] == "error" || text.contains(r#"\"ack\":77"#)
            })
            .await;
        let refused = answer["error"].is_object() || answer["event"] == "error";
        assert!(
            refused || may_be_accepted,
            "{line} was answered with {answer}"
        );
        if refused {
            let error = match answer["error"].is_object() {
                true => &answer["error"],
                false => &answer["data"],
            };
            let code = error["code"].as_str().expect("a code");
            assert!(["badRequest", "unauthorized"].contains(&code), "{answer}");
        }
    }
    // Accepted messages are replayed and can be read over HTTP.
    let head = alice.send_message("after all that").await["seq"].clone();
    let again = Client::join_with(&DEFAULT, "surrogates", &token("dora"), "since=0").await;
    assert_eq!(again.connected["seq"], head);
    let page = DEFAULT
        .get("/rooms/surrogates/messages", &super::service())
        .await;
    assert_eq!(page.status, 200);
    assert!(page.text.contains("after all that"), "{}", page.text);
    assert_room_works(bob, "surrogates").await;
}
