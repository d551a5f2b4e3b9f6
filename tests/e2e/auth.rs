//! Authentication and authorization: tokens, rights, origins, expiry.

use super::{DEFAULT, service, token};
use roomcast_harness::{Answer, Client, SECRET, Server, Token, now};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Requests an upgrade to a room with this token and returns the response.
async fn request_upgrade(server: &Server, room: &str, token: &str) -> Answer {
    let path = format!("/rooms/{room}/ws?token={token}");
    server.request_upgrade(&path, &[]).await
}

/// A user token with the claim `rooms`.
fn with_rooms(user: &str, rooms: Value) -> String {
    Token::user(user).claim("rooms", rooms).sign(SECRET)
}

/// Returns the error code of an answer, or `ok`.
fn code(answer: Result<Value, Value>) -> Value {
    answer.map_or_else(|mut error| error["code"].take(), |_| json!("ok"))
}

#[tokio::test]
async fn an_invalid_token_is_refused_with_401_at_the_upgrade_and_over_http() {
    let alice = || Token::user("alice").claim("role", "service");
    let good = alice().sign(SECRET);
    let parts: Vec<&str> = good.split('.').collect();
    let other = Token::service("mallory").sign(SECRET);
    let other: Vec<&str> = other.split('.').collect();
    let cases = [
        ("not a JWT", "x".to_owned()),
        ("two parts", format!("{}.{}", parts[0], parts[1])),
        ("characters outside base64", "ä.ö.ü".to_owned()),
        ("16 KiB", "x".repeat(15_000)),
        (
            "claims of another token",
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
        (
            "a sub with a line break",
            alice().claim("sub", "a\nb").sign(SECRET),
        ),
        (
            "a sub with outer white space",
            alice().claim("sub", " alice").sign(SECRET),
        ),
        ("a number as sub", alice().claim("sub", 7).sign(SECRET)),
        (
            "a long sub",
            alice().claim("sub", "u".repeat(256)).sign(SECRET),
        ),
        ("no exp", alice().claim("exp", Value::Null).sign(SECRET)),
        ("a string as exp", alice().claim("exp", "soon").sign(SECRET)),
        ("expired", alice().ttl(-70).sign(SECRET)),
        ("exp 0", alice().claim("exp", 0).sign(SECRET)),
        (
            "exp out of range",
            alice().claim("exp", i64::MAX).sign(SECRET),
        ),
        (
            "nbf in the future",
            alice().claim("nbf", now() + 70).sign(SECRET),
        ),
        (
            "iat in the future",
            alice().claim("iat", now() + 70).sign(SECRET),
        ),
        ("a number as rooms", alice().claim("rooms", 7).sign(SECRET)),
        (
            "a string as rights",
            alice().claim("rooms", json!({ "a": "read" })).sign(SECRET),
        ),
    ];
    for (what, bad) in &cases {
        for answer in [
            request_upgrade(&DEFAULT, "bad-tokens", bad).await,
            DEFAULT
                .get(&format!("/rooms/bad-tokens/presence?token={bad}"), "")
                .await,
        ] {
            assert_eq!(answer.status, 401, "{what}: {}", answer.text);
            answer.problem(401, "unauthorized");
            assert_eq!(answer.header("www-authenticate"), "Bearer", "{what}");
            assert!(
                !answer.text.contains(bad.as_str()),
                "the response must not contain the token ({what})"
            );
        }
    }
    DEFAULT
        .request_upgrade("/rooms/bad-tokens/ws", &[])
        .await
        .problem(401, "unauthorized");
    DEFAULT
        .request("GET", "/rooms/bad-tokens/presence", None, None)
        .await
        .problem(401, "unauthorized");
    // The token that the cases are derived from is valid.
    Client::join(&DEFAULT, "bad-tokens", &good).await;
}

#[tokio::test]
async fn clock_skew_of_up_to_60_seconds_is_tolerated_in_nbf_and_iat() {
    for skewed in [
        Token::user("alice").claim("nbf", now() + 45),
        Token::user("alice").claim("iat", now() + 45),
    ] {
        Client::join(&DEFAULT, "leeway", &skewed.sign(SECRET)).await;
    }
}

#[tokio::test]
async fn a_token_that_closed_a_socket_opens_no_other() {
    let token = Token::user("alice").ttl(2).sign(SECRET);
    for path in ["/rooms/expired/ws", "/ws"] {
        let path = format!("{path}?token={token}");
        if let Ok(mut alice) = Client::open(&DEFAULT, &path, &[]).await {
            assert_eq!(alice.closed().await, 4401);
        }
        let answer = DEFAULT.request_upgrade(&path, &[]).await;
        answer.problem(401, "unauthorized");
    }
}

#[tokio::test]
async fn iss_and_aud_are_checked_if_configured() {
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
        let answer = request_upgrade(&server, "a", &alice(iss, aud)).await;
        answer.problem(401, "unauthorized");
    }
    for aud in [json!("chat"), json!(["mail", "chat"])] {
        Client::join(&server, "a", &alice(iss(), aud)).await;
    }
    // Without these settings, any value is accepted.
    let any = alice(json!("x"), json!(["y"]));
    Client::join(&DEFAULT, "any-issuer", &any).await;
}

#[tokio::test]
async fn the_longest_matching_room_pattern_wins() {
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
        let answer = request_upgrade(&DEFAULT, room, &token).await;
        let expected = if room == "*" { 400 } else { 403 };
        assert_eq!(answer.status, expected, "{room}");
    }
}

#[tokio::test]
async fn each_right_allows_only_its_own_commands() {
    let only = |rights: Value| with_rooms("alice", json!({ "rights": rights }));
    for rights in [json!(["write", "presence"]), json!([]), json!(["fly"])] {
        let answer = request_upgrade(&DEFAULT, "rights", &only(rights)).await;
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
    // A list of patterns grants every right except `admin`.
    let mut bob = Client::join(&DEFAULT, "rights", &with_rooms("bob", json!(["rig*"]))).await;
    bob.send_message("hello").await;
    bob.request("setPresence", json!({ "status": "busy" }))
        .await
        .expect("a list of patterns grants presence");
}

#[tokio::test]
async fn default_rooms_applies_to_tokens_without_a_rooms_claim() {
    let none = Server::start(&[("DEFAULT_ROOMS", "")]);
    let upgrade = request_upgrade(&none, "lobby", &token("alice")).await;
    let read = none.get("/rooms/lobby/messages", &token("alice")).await;
    for answer in [upgrade, read] {
        answer.problem(403, "forbidden");
        let detail = answer.json["detail"].as_str().expect("a detail");
        assert!(detail.contains("DEFAULT_ROOMS is empty"), "{detail}");
    }
    Client::join(&none, "lobby", &with_rooms("alice", json!(["lobby"]))).await;
    let some = Server::start(&[("DEFAULT_ROOMS", "lobby, team-*")]);
    for room in ["lobby", "team-7"] {
        let mut alice = Client::join(&some, room, &token("alice")).await;
        alice.send_message("hello").await;
    }
    request_upgrade(&some, "lobby-2", &token("alice"))
        .await
        .problem(403, "forbidden");
    // The claim takes precedence, even if it is empty.
    request_upgrade(&some, "lobby", &with_rooms("alice", json!([])))
        .await
        .problem(403, "forbidden");
}

#[tokio::test]
async fn a_personal_room_accepts_only_its_user_and_publications_of_services() {
    let publish = |data: Value| async move {
        let body = json!({ "event": "note", "data": data, "userId": "pia" });
        DEFAULT.post("/publish", &service(), body).await.ok()
    };
    // Published before the first join, so it is queued.
    let first = publish(json!(1)).await;
    assert_eq!(first["roomId"], "@pia");
    assert_eq!((&first["online"], &first["queued"]), (&json!(0), &json!(1)));
    // The user may join regardless of `rooms`. Other users may not.
    let mut pia = Client::join(&DEFAULT, "@pia", &with_rooms("pia", json!([]))).await;
    assert_eq!(pia.expect("note").await["data"], 1);
    publish(json!(2)).await;
    assert_eq!(pia.expect("note").await["data"], 2);
    for rooms in [json!(["*"]), json!(["@*"]), json!({ "@pia": ["admin"] })] {
        request_upgrade(&DEFAULT, "@pia", &with_rooms("bob", rooms))
            .await
            .problem(403, "forbidden");
    }
    // Services may publish to it but not join it.
    request_upgrade(&DEFAULT, "@pia", &service())
        .await
        .problem(403, "forbidden");
    request_upgrade(&DEFAULT, "%40pia", &token("bob"))
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
    // The longest user id has a personal room as well.
    let long = "u".repeat(255);
    Client::join(&DEFAULT, &format!("@{long}"), &token(&long)).await;
}

#[tokio::test]
async fn the_token_is_read_from_the_header_then_the_subprotocol_then_the_query() {
    let path = "/rooms/token-sources/ws";
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
        // The first source that contains a token decides.
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
        let answer = DEFAULT.request_upgrade(path, &headers).await;
        answer.problem(401, "unauthorized");
    }
}

#[tokio::test]
async fn a_worker_without_a_key_answers_500_with_the_missing_setting() {
    let server = Server::start(&[("JWT_SECRET", "")]);
    let body = json!({ "event": "x", "data": 1, "room": "a" });
    for answer in [
        request_upgrade(&server, "a", &token("alice")).await,
        server.post("/publish", &service(), body).await,
    ] {
        answer.problem(500, "misconfigured");
        let detail = answer.json["detail"].as_str().expect("a detail");
        assert!(detail.contains("JWT_SECRET"), "{detail}");
    }
    let health = server.request("GET", "/healthz", None, None).await;
    health.problem(503, "misconfigured");
    assert!(health.text.contains("JWT_SECRET"), "{}", health.text);
    server
        .wait_for_log("the missing setting", |line| {
            line["event"] == "error" && line["error"].to_string().contains("JWT_SECRET")
        })
        .await;
}

#[tokio::test]
async fn an_invalid_setting_answers_500_with_its_name() {
    let server = Server::start(&[("RETENTION_DAYS", "for ever")]);
    let answer = request_upgrade(&server, "a", &token("alice")).await;
    answer.problem(500, "misconfigured");
    assert!(answer.text.contains("RETENTION_DAYS"), "{}", answer.text);
    assert!(!answer.text.contains("for ever"));
}

/// Returns `true` if an upgrade with this origin is accepted. Asserts that it is
/// refused with 403 otherwise.
async fn is_allowed(server: &Server, origin: &str) -> bool {
    let path = format!("/rooms/origins/ws?token={}", token("alice"));
    let headers = [("origin", origin)];
    if Client::open(server, &path, &headers).await.is_ok() {
        return true;
    }
    server
        .request_upgrade(&path, &headers)
        .await
        .problem(403, "forbidden");
    false
}

#[tokio::test]
async fn without_allowed_origins_only_the_same_origin_is_accepted() {
    let own = DEFAULT.url("");
    for (origin, expected) in [
        (own.as_str(), true),
        ("http://127.0.0.1", false),
        ("http://127.0.0.1:1", false),
        ("https://evil.example", false),
        ("null", false),
    ] {
        assert_eq!(is_allowed(&DEFAULT, origin).await, expected, "{origin}");
    }
    // Clients other than browsers send no `Origin`.
    Client::join(&DEFAULT, "origins", &token("alice")).await;
}

#[tokio::test]
async fn allowed_origins_is_a_list_with_wildcards_for_one_label() {
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
        assert_eq!(is_allowed(&server, origin).await, expected, "{origin}");
    }
    let own = format!("http://{}", server.address());
    assert!(is_allowed(&server, &own).await, "the own origin");
    Client::join(&server, "origins", &token("alice")).await;
}

#[tokio::test]
async fn a_socket_is_closed_with_4401_at_exp() {
    let exp = now() + 2;
    let short = Token::user("alice").claim("exp", exp).sign(SECRET);
    let mut alice = Client::join(&DEFAULT, "expiry", &short).await;
    let mut bob = Client::join(&DEFAULT, "expiry", &token("bob")).await;
    assert_eq!(alice.closed().await, 4401);
    let tolerance = Duration::from_secs(2);
    assert!((exp..=exp + tolerance.as_secs() as i64).contains(&now()));
    // Other connections stay open.
    bob.send_message("still here").await;
    bob.logged(1).await;
}

#[tokio::test]
async fn a_refresh_before_exp_keeps_the_socket_open_with_the_new_rights() {
    let token = |ttl: i64| Token::user("alice").ttl(ttl).sign(SECRET);
    let mut alice = Client::join(&DEFAULT, "refresh", &token(3)).await;
    let exp = Instant::now() + Duration::from_secs(3);
    let was = alice.connected["expiresAt"].clone();
    // A refresh with an invalid token changes nothing.
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
        .expect("accepted");
    assert!(
        answer["expiresAt"].as_str() > was.as_str(),
        "{answer} {was}"
    );
    tokio::time::sleep_until((exp + Duration::from_millis(1_500)).into()).await;
    alice.send_message("past the first exp").await;
    // The connection loses the rights that the new token does not have.
    let rooms = json!({ "refresh": ["read"] });
    let narrower = Token::user("alice")
        .claim("rooms", rooms)
        .ttl(2)
        .sign(SECRET);
    alice
        .request("refreshToken", json!({ "token": narrower }))
        .await
        .expect("accepted");
    let sent = alice.request("sendMessage", json!({ "content": 1 })).await;
    assert_eq!(code(sent), "forbidden");
    // It is closed at the `exp` of the new token, which is earlier.
    assert_eq!(alice.closed().await, 4401);
}

#[tokio::test]
async fn a_refresh_with_a_token_of_another_user_or_room_closes_with_4403() {
    for other in [token("bob"), with_rooms("alice", json!(["elsewhere"]))] {
        let mut alice = Client::join(&DEFAULT, "refresh-other", &token("alice")).await;
        alice.start("refreshToken", json!({ "token": other })).await;
        assert_eq!(alice.closed().await, 4403);
    }
}

#[tokio::test]
async fn a_request_without_upgrade_is_426_and_an_invalid_room_name_is_400() {
    let path = format!("/rooms/a/ws?token={}", token("alice"));
    let answer = DEFAULT.call("GET", &path, &[], "").await;
    answer.problem(426, "upgradeRequired");
    let long = "r".repeat(129);
    for room in ["a%20b", "a%2Fb", "%C3%A4", "%FF", "%00", "a%0Ab", "", &long] {
        let answer = request_upgrade(&DEFAULT, room, &token("alice")).await;
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
async fn an_upgrade_with_a_since_or_history_that_is_not_an_integer_is_400() {
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
            let answer = DEFAULT.request_upgrade(&path, &[]).await;
            assert_eq!(answer.status, 400, "{field}={bad}");
            answer.problem(400, "badRequest");
            assert_eq!(answer.json["field"], field, "{bad}");
        }
        for good in ["0", "9007199254740991"] {
            let query = format!("{field}={good}");
            Client::join_with(&DEFAULT, "since", &token("alice"), &query).await;
        }
    }
    // A refused user has not joined.
    let path = format!("/rooms/since/ws?token={}&since=x", token("bob"));
    DEFAULT
        .request_upgrade(&path, &[])
        .await
        .problem(400, "badRequest");
    let members = DEFAULT.get("/rooms/since/members", &service()).await.ok();
    let users: Vec<_> = members
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| &one["userId"])
        .collect();
    assert_eq!(users, ["alice"]);
}
