//! Who gets in, with what rights, from where, and for how long.

use super::{DEFAULT, service, token};
use roomcast_harness::{Answer, Client, SECRET, Server, Token, now};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// An upgrade with this token, which is to be refused.
async fn knock(server: &Server, room: &str, token: &str) -> Answer {
    let path = format!("/rooms/{room}/ws?token={token}");
    server.knock(&path, &[]).await
}

/// A token with `rooms`.
fn with_rooms(user: &str, rooms: Value) -> String {
    Token::user(user).claim("rooms", rooms).sign(SECRET)
}

fn code(answer: Result<Value, Value>) -> Value {
    answer.map_or_else(|mut error| error["code"].take(), |_| json!("ok"))
}

#[tokio::test]
async fn a_token_that_proves_nothing_is_401_at_the_socket_and_over_http() {
    let alice = || Token::user("alice").claim("role", "service");
    let good = alice().sign(SECRET);
    let parts: Vec<&str> = good.split('.').collect();
    let other = Token::service("mallory").sign(SECRET);
    let other: Vec<&str> = other.split('.').collect();
    let cases = [
        ("not a JWT", "x".to_owned()),
        ("two parts", format!("{}.{}", parts[0], parts[1])),
        ("no characters of base64", "ä.ö.ü".to_owned()),
        ("16 KiB", "x".repeat(15_000)),
        (
            "another's claims",
            format!("{}.{}.{}", parts[0], other[1], parts[2]),
        ),
        ("no signature", format!("{}.{}.", parts[0], parts[1])),
        ("alg none", alice().unsigned()),
        (
            "alg none and a signature",
            format!("{}{}", alice().unsigned(), parts[2]),
        ),
        ("another algorithm", alice().sign_hs512(SECRET)),
        ("another key", alice().sign("not the secret")),
        ("an empty key", alice().sign("")),
        ("no sub", alice().claim("sub", Value::Null).sign(SECRET)),
        ("an empty sub", alice().claim("sub", "").sign(SECRET)),
        ("a sub with @", alice().claim("sub", "@bob").sign(SECRET)),
        ("a sub with space", alice().claim("sub", "a b").sign(SECRET)),
        ("a number as sub", alice().claim("sub", 7).sign(SECRET)),
        (
            "a long sub",
            alice().claim("sub", "u".repeat(129)).sign(SECRET),
        ),
        ("no exp", alice().claim("exp", Value::Null).sign(SECRET)),
        ("a text as exp", alice().claim("exp", "soon").sign(SECRET)),
        ("expired", alice().ttl(-70).sign(SECRET)),
        ("exp 0", alice().claim("exp", 0).sign(SECRET)),
        (
            "exp beyond time",
            alice().claim("exp", i64::MAX).sign(SECRET),
        ),
        ("nbf ahead", alice().claim("nbf", now() + 70).sign(SECRET)),
        ("iat ahead", alice().claim("iat", now() + 70).sign(SECRET)),
        ("rooms a number", alice().claim("rooms", 7).sign(SECRET)),
        (
            "rights a text",
            alice().claim("rooms", json!({ "a": "read" })).sign(SECRET),
        ),
    ];
    for (what, bad) in &cases {
        for answer in [
            knock(&DEFAULT, "bad-tokens", bad).await,
            DEFAULT
                .get(&format!("/rooms/bad-tokens/presence?token={bad}"), "")
                .await,
        ] {
            assert_eq!(answer.status, 401, "{what}: {}", answer.text);
            answer.problem(401, "unauthorized");
            assert_eq!(answer.header("www-authenticate"), "Bearer", "{what}");
            assert!(!answer.text.contains(bad.as_str()), "{what} is not told");
        }
    }
    DEFAULT
        .knock("/rooms/bad-tokens/ws", &[])
        .await
        .problem(401, "unauthorized");
    DEFAULT
        .request("GET", "/rooms/bad-tokens/presence", None, None)
        .await
        .problem(401, "unauthorized");
    // The one they were made of is good.
    Client::join(&DEFAULT, "bad-tokens", &good).await;
}

#[tokio::test]
async fn clocks_may_differ_by_less_than_60_seconds() {
    for late in [
        Token::user("alice").ttl(-45),
        Token::user("alice").claim("nbf", now() + 45),
        Token::user("alice").claim("iat", now() + 45),
    ] {
        Client::join(&DEFAULT, "leeway", &late.sign(SECRET)).await;
    }
}

#[tokio::test]
async fn a_token_accepted_within_the_leeway_gives_a_socket_that_can_be_used() {
    let late = Token::user("alice").ttl(-30).sign(SECRET);
    let mut alice = Client::join(&DEFAULT, "leeway-used", &late).await;
    alice.say("just in time").await;
    // And a token that is fresh puts it right.
    let token = token("alice");
    alice
        .request("refreshToken", json!({ "token": token }))
        .await
        .expect("taken");
    alice.say("with time to spare").await;
}

#[tokio::test]
async fn iss_and_aud_are_checked_when_they_are_set() {
    let server = Server::start(&[
        ("JWT_ISSUER", "https://id.example"),
        ("JWT_AUDIENCE", "chat"),
    ]);
    let alice = |iss: Value, aud: Value| {
        let token = Token::user("alice").claim("iss", iss).claim("aud", aud);
        token.sign(SECRET)
    };
    let iss = || json!("https://id.example");
    for (iss, aud) in [
        (Value::Null, Value::Null),
        (iss(), Value::Null),
        (Value::Null, json!("chat")),
        (json!("https://id.example/"), json!("chat")),
        (iss(), json!("chats")),
        (iss(), json!(["mail", "news"])),
        (iss(), json!([])),
    ] {
        let answer = knock(&server, "a", &alice(iss, aud)).await;
        answer.problem(401, "unauthorized");
    }
    for aud in [json!("chat"), json!(["mail", "chat"])] {
        Client::join(&server, "a", &alice(iss(), aud)).await;
    }
    // Not set, they may be anything.
    let any = alice(json!("x"), json!(["y"]));
    Client::join(&DEFAULT, "any-issuer", &any).await;
}

#[tokio::test]
async fn of_room_patterns_the_longest_match_wins() {
    let token = with_rooms(
        "alice",
        json!({
            "hall-*": ["read"],
            "hall-of-*": ["read", "write", "presence"],
            "hall-of-fame": ["read", "presence"],
            "hall-of-mirrors*": [],
            "hall": ["admin"],
        }),
    );
    let send = |content: &str| ("sendMessage", json!({ "content": content }));
    let show = || ("setPresence", json!({ "status": "away" }));
    for (room, writes, shows) in [
        ("hall-a", "forbidden", "forbidden"),
        ("hall-of-x", "ok", "ok"),
        ("hall-of-fame", "forbidden", "ok"),
        ("hall-of-famers", "ok", "ok"),
        ("hall", "ok", "ok"),
    ] {
        let mut alice = Client::join(&DEFAULT, room, &token).await;
        for ((event, data), expected) in [(send("hi"), writes), (show(), shows)] {
            let answer = alice.request(event, data).await;
            assert_eq!(code(answer), expected, "{event} in {room}");
        }
    }
    for room in [
        "hall-of-mirrors",
        "hall-of-mirrors-2",
        "halls",
        "other",
        "*",
    ] {
        let answer = knock(&DEFAULT, room, &token).await;
        let expected = if room == "*" { 400 } else { 403 };
        assert_eq!(answer.status, expected, "{room}");
    }
}

#[tokio::test]
async fn a_right_opens_what_it_names_and_nothing_else() {
    let only = |rights: Value| with_rooms("alice", json!({ "rights": rights }));
    for rights in [json!(["write", "presence"]), json!([]), json!(["fly"])] {
        let answer = knock(&DEFAULT, "rights", &only(rights)).await;
        answer.problem(403, "forbidden");
    }
    let mut alice = Client::join(&DEFAULT, "rights", &only(json!(["read", "fly"]))).await;
    for (event, data) in [
        ("sendMessage", json!({ "content": "x" })),
        ("emit", json!({ "event": "x", "data": 1 })),
        ("emit", json!({ "event": "x", "data": 1, "volatile": true })),
        ("typingIndicator", json!({ "isTyping": true })),
        ("setPresence", json!({ "status": "busy" })),
    ] {
        assert_eq!(
            code(alice.request(event, data).await),
            "forbidden",
            "{event}"
        );
    }
    for (event, data) in [
        ("sync", json!({ "after": 0 })),
        ("messageRead", json!({ "seq": 0 })),
        ("joinRoom", json!("rights")),
        ("leaveRoom", json!("rights")),
    ] {
        assert_eq!(code(alice.request(event, data).await), "ok", "{event}");
    }
    // A list of patterns gives all but admin.
    let mut bob = Client::join(&DEFAULT, "rights", &with_rooms("bob", json!(["rig*"]))).await;
    bob.say("hello").await;
    bob.request("setPresence", json!({ "status": "busy" }))
        .await
        .expect("presence is among them");
}

#[tokio::test]
async fn without_rooms_in_the_token_default_rooms_decides() {
    let none = Server::start(&[("DEFAULT_ROOMS", "")]);
    knock(&none, "lobby", &token("alice"))
        .await
        .problem(403, "forbidden");
    Client::join(&none, "lobby", &with_rooms("alice", json!(["lobby"]))).await;
    let some = Server::start(&[("DEFAULT_ROOMS", "lobby, team-*")]);
    for room in ["lobby", "team-7"] {
        let mut alice = Client::join(&some, room, &token("alice")).await;
        alice.say("hello").await;
    }
    knock(&some, "lobby-2", &token("alice"))
        .await
        .problem(403, "forbidden");
    // The token's own word goes before it, even where it says nothing.
    knock(&some, "lobby", &with_rooms("alice", json!([])))
        .await
        .problem(403, "forbidden");
}

#[tokio::test]
async fn a_personal_room_is_for_its_user_alone_and_services_publish_to_it() {
    let publish = |data: Value| async move {
        let body = json!({ "event": "note", "data": data, "userId": "pia" });
        DEFAULT.post("/publish", &service(), body).await.ok()
    };
    // Before the first visit, so that it waits for her.
    let first = publish(json!(1)).await;
    assert_eq!(first["roomId"], "@pia");
    assert_eq!((&first["online"], &first["queued"]), (&json!(0), &json!(1)));
    // Her own, whatever the token says of rooms; nobody else's.
    let mut pia = Client::join(&DEFAULT, "@pia", &with_rooms("pia", json!([]))).await;
    assert_eq!(pia.expect("note").await["data"], 1);
    publish(json!(2)).await;
    assert_eq!(pia.expect("note").await["data"], 2);
    for rooms in [json!(["*"]), json!(["@*"]), json!({ "@pia": ["admin"] })] {
        knock(&DEFAULT, "@pia", &with_rooms("bob", rooms))
            .await
            .problem(403, "forbidden");
    }
    // Services publish to it; they do not join it either.
    knock(&DEFAULT, "@pia", &service())
        .await
        .problem(403, "forbidden");
    knock(&DEFAULT, "%40pia", &token("bob"))
        .await
        .problem(403, "forbidden");
    let sent = pia.request("sendMessage", json!({ "content": "me" })).await;
    assert_eq!(code(sent), "forbidden");
    let shown = pia
        .request("setPresence", json!({ "status": "busy" }))
        .await;
    assert_eq!(code(shown), "ok");
    let read = DEFAULT.get("/rooms/@pia/messages", &token("bob")).await;
    read.problem(403, "forbidden");
    let read = DEFAULT
        .get("/rooms/@pia/messages", &token("pia"))
        .await
        .ok();
    assert_eq!(read["head"], 2);
    DEFAULT
        .put("/rooms/@pia/members/bob", &service())
        .await
        .problem(403, "forbidden");
    // The longest user id has one too.
    let long = "u".repeat(128);
    Client::join(&DEFAULT, &format!("@{long}"), &token(&long)).await;
}

#[tokio::test]
async fn the_token_is_taken_from_the_header_the_subprotocol_or_the_query() {
    let path = "/rooms/places/ws";
    let (good, bad) = (token("alice"), Token::user("eve").sign("another key"));
    let (good_query, bad_query) = (
        format!("{path}?token={good}"),
        format!("{path}?token={bad}"),
    );
    let (good_header, bad_header) = (format!("Bearer {good}"), format!("Bearer {bad}"));
    let (good_offer, bad_offer) = (
        format!("roomcast.v1, bearer.{good}"),
        format!("roomcast.v1, bearer.{bad}"),
    );
    let (header, offer) = ("authorization", "sec-websocket-protocol");
    for (path, headers, selected) in [
        (path, vec![(header, good_header.as_str())], None),
        (
            path,
            vec![(offer, good_offer.as_str())],
            Some("roomcast.v1"),
        ),
        (&good_query, vec![], None),
        (
            &good_query,
            vec![(offer, "roomcast.v1")],
            Some("roomcast.v1"),
        ),
        (&good_query, vec![(header, "Basic abc")], None),
        // The first place that has one decides.
        (
            &bad_query,
            vec![(header, &good_header), (offer, &bad_offer)],
            Some("roomcast.v1"),
        ),
        (&bad_query, vec![(offer, &good_offer)], Some("roomcast.v1")),
    ] {
        let client = Client::open(&DEFAULT, path, &headers)
            .await
            .unwrap_or_else(|refused| panic!("{path} {headers:?}: {refused:?}"));
        assert_eq!(client.connected["userId"], "alice");
        assert_eq!(client.subprotocol.as_deref(), selected, "{headers:?}");
    }
    for (path, headers) in [
        (&good_query, vec![(header, bad_header.as_str())]),
        (&good_query, vec![(offer, bad_offer.as_str())]),
    ] {
        let answer = DEFAULT.knock(path, &headers).await;
        answer.problem(401, "unauthorized");
    }
}

#[tokio::test]
async fn a_worker_without_a_key_answers_500_and_names_the_missing_setting() {
    let server = Server::start(&[("JWT_SECRET", "")]);
    let body = json!({ "event": "x", "data": 1, "room": "a" });
    for answer in [
        knock(&server, "a", &token("alice")).await,
        server.post("/publish", &service(), body).await,
    ] {
        answer.problem(500, "misconfigured");
        let detail = answer.json["detail"].as_str().expect("a detail");
        assert!(detail.contains("JWT_SECRET"), "{detail}");
    }
    let health = server.request("GET", "/healthz", None, None).await.ok();
    assert_eq!(health["status"], "ok", "which says that it runs, no more");
    server
        .wait_for_log("what is missing", |line| {
            line["event"] == "error" && line["error"].to_string().contains("JWT_SECRET")
        })
        .await;
}

#[tokio::test]
async fn a_setting_that_cannot_be_used_is_named() {
    let server = Server::start(&[("RETENTION_DAYS", "for ever")]);
    let answer = knock(&server, "a", &token("alice")).await;
    answer.problem(500, "misconfigured");
    assert!(answer.text.contains("RETENTION_DAYS"), "{}", answer.text);
    assert!(!answer.text.contains("for ever"));
}

/// Whether an upgrade from this origin gets in, checked to be a 403 otherwise.
async fn passes(server: &Server, origin: &str) -> bool {
    let path = format!("/rooms/origins/ws?token={}", token("alice"));
    let headers = [("origin", origin)];
    if Client::open(server, &path, &headers).await.is_ok() {
        return true;
    }
    server
        .knock(&path, &headers)
        .await
        .problem(403, "forbidden");
    false
}

#[tokio::test]
async fn without_allowed_origins_only_the_same_origin_passes() {
    let own = DEFAULT.url("");
    for (origin, expected) in [
        (own.as_str(), true),
        ("http://127.0.0.1", false),
        ("http://127.0.0.1:1", false),
        ("https://evil.example", false),
        ("null", false),
    ] {
        assert_eq!(passes(&DEFAULT, origin).await, expected, "{origin}");
    }
    // No browser, no origin.
    Client::join(&DEFAULT, "origins", &token("alice")).await;
}

#[tokio::test]
async fn allowed_origins_are_a_list_with_a_wildcard_for_a_label() {
    let list = "https://chat.example, https://*.team.example http://localhost:3000";
    let server = Server::start(&[("ALLOWED_ORIGINS", list)]);
    for (origin, expected) in [
        ("https://chat.example", true),
        ("https://CHAT.example", true),
        ("https://a.team.example", true),
        ("http://localhost:3000", true),
        ("http://chat.example", false),
        ("https://chat.example:8443", false),
        ("https://team.example", false),
        ("https://a.b.team.example", false),
        ("https://a.team.example.evil.example", false),
        ("https://chat.example.evil.example", false),
        ("http://localhost:3001", false),
        ("null", false),
    ] {
        assert_eq!(passes(&server, origin).await, expected, "{origin}");
    }
    Client::join(&server, "origins", &token("alice")).await;
}

#[tokio::test]
async fn at_exp_the_socket_is_closed_with_4401() {
    let exp = now() + 2;
    let short = Token::user("alice").claim("exp", exp).sign(SECRET);
    let mut alice = Client::join(&DEFAULT, "expiry", &short).await;
    let mut bob = Client::join(&DEFAULT, "expiry", &token("bob")).await;
    assert_eq!(alice.closed().await, 4401);
    let late = Duration::from_secs(2);
    assert!((exp..=exp + late.as_secs() as i64).contains(&now()));
    // Others are not concerned.
    bob.say("still here").await;
    bob.logged(1).await;
}

#[tokio::test]
async fn a_token_refreshed_before_exp_keeps_the_socket() {
    let token = |ttl: i64| Token::user("alice").ttl(ttl).sign(SECRET);
    let mut alice = Client::join(&DEFAULT, "refresh", &token(3)).await;
    let exp = Instant::now() + Duration::from_secs(3);
    let was = alice.connected["expiresAt"].clone();
    // One that is no good changes nothing.
    for bad in [
        token(-100),
        "x".to_owned(),
        String::new(),
        "x".repeat(60_000),
        Token::user("alice").sign("?"),
        Token::user("alice").unsigned(),
    ] {
        let answer = alice.request("refreshToken", json!({ "token": bad })).await;
        assert_eq!(code(answer), "unauthorized");
    }
    let answer = alice
        .request("refreshToken", json!({ "token": token(600) }))
        .await
        .expect("taken");
    assert!(
        answer["expiresAt"].as_str() > was.as_str(),
        "{answer} {was}"
    );
    tokio::time::sleep_until((exp + Duration::from_millis(1_500)).into()).await;
    alice.say("past the first exp").await;
    // What the new token does not allow is allowed no more.
    let rooms = json!({ "refresh": ["read"] });
    let lesser = Token::user("alice")
        .claim("rooms", rooms)
        .ttl(2)
        .sign(SECRET);
    alice
        .request("refreshToken", json!({ "token": lesser }))
        .await
        .expect("taken");
    let sent = alice.request("sendMessage", json!({ "content": 1 })).await;
    assert_eq!(code(sent), "forbidden");
    // And it ends when the new one does, though that is earlier.
    assert_eq!(alice.closed().await, 4401);
}

#[tokio::test]
async fn a_refresh_with_anothers_token_closes_with_4403() {
    for another in [token("bob"), with_rooms("alice", json!(["elsewhere"]))] {
        let mut alice = Client::join(&DEFAULT, "refresh-other", &token("alice")).await;
        alice
            .start("refreshToken", json!({ "token": another }))
            .await;
        assert_eq!(alice.closed().await, 4403);
    }
}

#[tokio::test]
async fn an_upgrade_without_the_header_is_426_and_a_bad_room_name_400() {
    let path = format!("/rooms/a/ws?token={}", token("alice"));
    let answer = DEFAULT.call("GET", &path, &[], "").await;
    answer.problem(426, "upgradeRequired");
    let long = "r".repeat(129);
    for room in ["a%20b", "a%2Fb", "%C3%A4", "%FF", "%00", "a%0Ab", "", &long] {
        let answer = knock(&DEFAULT, room, &token("alice")).await;
        answer.problem(400, "badRequest");
        assert_eq!(answer.json["field"], "room", "{room}");
    }
    let long = "r".repeat(128);
    for room in ["A.b_c:d-e", "a@b", &long] {
        let alice = Client::join(&DEFAULT, room, &token("alice")).await;
        assert_eq!(alice.connected["roomId"], room);
    }
}

#[tokio::test]
async fn a_since_or_history_that_is_no_whole_number_is_400_at_the_upgrade() {
    for field in ["since", "history"] {
        for bad in [
            "",
            "-1",
            "1.5",
            "1e3",
            "x",
            "%2B1",
            "0x1",
            "null",
            "9007199254740992",
            "99999999999999999999",
        ] {
            let path = format!("/rooms/since/ws?token={}&{field}={bad}", token("alice"));
            let answer = DEFAULT.knock(&path, &[]).await;
            assert_eq!(answer.status, 400, "{field}={bad}");
            answer.problem(400, "badRequest");
            assert_eq!(answer.json["field"], field, "{bad}");
        }
        for good in ["0", "9007199254740991"] {
            let query = format!("{field}={good}");
            Client::join_with(&DEFAULT, "since", &token("alice"), &query).await;
        }
    }
    // Who was refused has not joined.
    let path = format!("/rooms/since/ws?token={}&since=x", token("bob"));
    DEFAULT.knock(&path, &[]).await.problem(400, "badRequest");
    let members = DEFAULT.get("/rooms/since/members", &service()).await.ok();
    let users: Vec<_> = members
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| &one["userId"])
        .collect();
    assert_eq!(users, ["alice"]);
}
