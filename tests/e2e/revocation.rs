//! Token revocation: open connections are closed, new requests are refused.

use super::failures::plan;
use super::keys::socketio_connect;
use super::{DEFAULT, token};
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream;
use roomcast_harness::{Answer, Client, SECRET, Server, SocketIo, Token, Worker, now};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Time within which the connections of a revoked token must be closed. It usually
/// takes milliseconds.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// Returns a token of a service that may revoke tokens.
fn admin() -> String {
    Token::service("backend")
        .claim("rooms", json!({ "*": ["admin"] }))
        .sign(SECRET)
}

/// Returns a token with an `iat` of `at` seconds from now.
fn issued(user: &str, at: i64) -> Token {
    Token::user(user).claim("iat", now() + at)
}

async fn revoke(server: &Server, body: Value) -> Value {
    server.post("/revoke", &admin(), body).await.ok()
}

/// Requests an upgrade with this token and returns the response.
async fn request_upgrade(server: &Server, token: &str) -> Answer {
    let path = format!("/rooms/revoked/ws?token={token}");
    server.request_upgrade(&path, &[]).await
}

/// Opens a socket at a gateway.
async fn gateway(server: &Server, token: &str) -> Client {
    Client::open(server, &format!("/ws?token={token}"), &[])
        .await
        .expect("accepted")
}

/// Asserts that a client is closed with `code` within [`CLOSE_LIMIT`].
async fn assert_closed(client: &mut Client, code: u16) {
    let began = Instant::now();
    assert_eq!(client.closed().await, code);
    assert!(began.elapsed() < CLOSE_LIMIT, "{:?}", began.elapsed());
}

#[tokio::test]
async fn revoking_a_user_closes_its_connections_and_refuses_its_tokens() {
    let old = issued("rita", -10).sign(SECRET);
    let mut here = Client::join(&DEFAULT, "revoked", &old).await;
    let mut there = Client::join(&DEFAULT, "revoked-2", &old).await;
    let mut many = gateway(&DEFAULT, &old).await;
    let mut bob = Client::join(&DEFAULT, "revoked", &token("bob")).await;
    let mut other = gateway(&DEFAULT, &token("bob")).await;
    let answer = revoke(&DEFAULT, json!({ "userId": "rita" })).await;
    assert_eq!(answer["userId"], "rita");
    let until = answer["until"].as_i64().expect("a time");
    let days = (until - now()) / (24 * 60 * 60);
    assert!((399..=400).contains(&days), "{answer}");
    for client in [&mut here, &mut there, &mut many] {
        assert_closed(client, 4401).await;
    }
    request_upgrade(&DEFAULT, &old)
        .await
        .problem(401, "unauthorized");
    DEFAULT
        .request_upgrade(&format!("/ws?token={old}"), &[])
        .await
        .problem(401, "unauthorized");
    DEFAULT
        .get("/rooms/revoked/messages", &old)
        .await
        .problem(401, "unauthorized");
    // A token without `iat` is refused as well.
    request_upgrade(&DEFAULT, &token("rita"))
        .await
        .problem(401, "unauthorized");
    let refused = socketio_connect(&DEFAULT, "", json!({ "token": old })).await;
    assert!(refused.contains("unauthorized"), "{refused}");
    let query = format!("&token={old}");
    let refused = socketio_connect(&DEFAULT, &query, json!({})).await;
    assert!(refused.contains("unauthorized"), "{refused}");
    // A token issued after the revocation is accepted.
    let new = issued("rita", 1).sign(SECRET);
    let mut here = Client::join(&DEFAULT, "revoked", &new).await;
    let mut many = gateway(&DEFAULT, &new).await;
    for client in [&mut here, &mut many] {
        let answer = client
            .request("refreshToken", json!({ "token": old }))
            .await;
        assert_eq!(answer.expect_err("revoked")["code"], "unauthorized");
    }
    // Other users are not affected.
    bob.send_message("still here").await;
    let status = json!({ "status": "busy" });
    other
        .request("setPresence", status)
        .await
        .expect("accepted");
    let line = DEFAULT
        .wait_for_log("the revocation", |line| {
            line["event"] == "revoke" && line["by"] == "backend" && line["userId"] == "rita"
        })
        .await;
    assert!(!line.to_string().contains(&old));
}

#[tokio::test]
async fn revoking_a_jti_revokes_only_that_token() {
    let with = |jti: &str| issued("jane", -10).claim("jti", jti).sign(SECRET);
    let mut one = Client::join(&DEFAULT, "revoked-jti", &with("one")).await;
    let mut many = gateway(&DEFAULT, &with("one")).await;
    let mut two = Client::join(&DEFAULT, "revoked-jti", &with("two")).await;
    let answer = revoke(&DEFAULT, json!({ "jti": "one", "until": now() + 600 })).await;
    assert_eq!(answer["jti"], "one");
    assert_closed(&mut one, 4401).await;
    assert_closed(&mut many, 4401).await;
    request_upgrade(&DEFAULT, &with("one"))
        .await
        .problem(401, "unauthorized");
    two.send_message("another token").await;
    // After a refresh, only a revocation of the newest token closes the socket.
    let answer = two
        .request("refreshToken", json!({ "token": with("three") }))
        .await;
    answer.expect("accepted");
    revoke(&DEFAULT, json!({ "jti": "two" })).await;
    two.send_message("still here").await;
    revoke(&DEFAULT, json!({ "jti": "three" })).await;
    assert_closed(&mut two, 4401).await;
}

#[tokio::test]
async fn a_revocation_ends_at_until() {
    let old = issued("tom", -10).sign(SECRET);
    revoke(&DEFAULT, json!({ "userId": "tom", "until": now() + 2 })).await;
    request_upgrade(&DEFAULT, &old)
        .await
        .problem(401, "unauthorized");
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    Client::join(&DEFAULT, "revoked", &old).await;
}

#[tokio::test]
async fn only_a_service_with_admin_in_all_rooms_may_revoke() {
    let with = |rooms: Value| Token::service("s").claim("rooms", rooms).sign(SECRET);
    let body = || json!({ "userId": "nobody" });
    for token in [
        token("alice"),
        Token::user("alice")
            .claim("rooms", json!({ "*": ["admin"] }))
            .sign(SECRET),
        with(json!(["*"])),
        with(json!({ "team-*": ["admin"] })),
        with(json!({ "*": ["admin"], "secret": ["read"] })),
        Token::service("backend").sign(SECRET),
    ] {
        let answer = DEFAULT.post("/revoke", &token, body()).await;
        answer.problem(403, "forbidden");
    }
    let answer = DEFAULT.request("POST", "/revoke", None, None).await;
    answer.problem(401, "unauthorized");
    for (body, field) in [
        (json!({}), "userId"),
        (json!({ "userId": "a", "jti": "b" }), "userId"),
        (json!({ "userId": "a", "until": 5 }), "until"),
        (json!({ "jti": 5 }), "jti"),
    ] {
        let answer = DEFAULT.post("/revoke", &admin(), body).await;
        answer.problem(400, "badRequest");
        assert_eq!(answer.json["field"], field);
    }
    let off = Server::start(&[("REVOCATION", "false")]);
    let answer = off.post("/revoke", &admin(), body()).await;
    answer.problem(409, "conflict");
    Client::join(&off, "revoked", &token("alice")).await;
}

#[tokio::test]
async fn a_revocation_survives_a_crash_and_closes_hibernated_sockets() {
    let mut server = Server::start(&[]);
    let old = issued("cleo", -10).sign(SECRET);
    let mut hibernated = Client::join(&server, "hibernated", &old).await;
    let mut gateway = gateway(&server, &old).await;
    // Both objects hibernate after 10 s.
    tokio::time::sleep(Duration::from_secs(12)).await;
    revoke(&server, json!({ "userId": "cleo" })).await;
    assert_closed(&mut hibernated, 4401).await;
    assert_closed(&mut gateway, 4401).await;
    server.kill();
    server.restart();
    request_upgrade(&server, &old)
        .await
        .problem(401, "unauthorized");
}

/// Requests upgrades with this token until one is accepted.
async fn wait_until_accepted(server: &Server, token: &str) {
    let deadline = Instant::now() + CLOSE_LIMIT;
    loop {
        let path = format!("/rooms/revoked/ws?token={token}");
        match Client::open(server, &path, &[]).await {
            Ok(_) => return,
            Err(refused) => assert_eq!(refused.0, 503),
        }
        assert!(Instant::now() < deadline, "still refused");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn while_the_registry_does_not_answer_valid_tokens_get_503_and_invalid_ones_401() {
    let server = Server::start_worker(&Worker::built("failpoints"), &[]);
    let good = token("alice");
    let failing = vec!["Registry"; 1_000];
    // The isolate has no list at first, and then one that is 6 s old.
    for ahead in [0, 6_000] {
        plan(&server, json!({ "points": failing, "ahead": ahead })).await;
        let answer = request_upgrade(&server, &good).await;
        answer.problem(503, "unavailable");
        assert_eq!(answer.header("retry-after"), "2");
        for path in ["/ws?", "/socket.io/?EIO=4&transport=websocket&"] {
            let path = format!("{path}token={good}");
            let answer = server.request_upgrade(&path, &[]).await;
            answer.problem(503, "unavailable");
        }
        let answer = server.get("/rooms/revoked/messages", &good).await;
        answer.problem(503, "unavailable");
        let body = json!({ "userId": "alice" });
        let answer = server.post("/revoke", &admin(), body).await;
        answer.problem(503, "unavailable");
        request_upgrade(&server, &issued("alice", 0).ttl(-100).sign(SECRET))
            .await
            .problem(401, "unauthorized");
        // A Socket.IO client reconnects by itself after the end of its session.
        let mut client = SocketIo::open(&server, "").await;
        client.start_connect("/", json!({ "token": good })).await;
        assert_eq!(client.closed().await, 4500);
        plan(&server, json!({ "points": [], "ahead": ahead })).await;
        wait_until_accepted(&server, &good).await;
    }
}

#[tokio::test]
async fn a_list_up_to_revocation_max_age_is_used_while_the_registry_does_not_answer() {
    let worker = Worker::built("failpoints");
    let server = Server::start_worker(&worker, &[("REVOCATION_MAX_AGE", "1h")]);
    let (good, old) = (
        token("alice"),
        issued("mallory", -10).ttl(7_200).sign(SECRET),
    );
    wait_until_accepted(&server, &good).await;
    revoke(&server, json!({ "userId": "mallory" })).await;
    let failing = vec!["Registry"; 1_000];
    let ahead = |seconds: u64| json!({ "points": failing, "ahead": seconds * 1_000 });
    plan(&server, ahead(3_500)).await;
    let path = format!(
        "/rooms/revoked/ws?token={}",
        Token::user("bob").ttl(7_200).sign(SECRET)
    );
    assert!(Client::open(&server, &path, &[]).await.is_ok());
    request_upgrade(&server, &old)
        .await
        .problem(401, "unauthorized");
    plan(&server, ahead(3_700)).await;
    server
        .request_upgrade(&path, &[])
        .await
        .problem(503, "unavailable");
}

#[tokio::test]
async fn a_revocation_reaches_every_object_after_a_panic_during_its_delivery() {
    let server = Server::start_worker(&Worker::built("failpoints"), &[]);
    let old = issued("zoe", -10).sign(SECRET);
    // The registry reads 25 registrations at a time.
    let rooms = (0..60).map(|n| format!("delivery-{n}"));
    let rooms: Vec<String> = rooms.collect();
    let clients = rooms.iter().map(|room| Client::join(&server, room, &old));
    let mut clients = join_all(clients).await;
    let mut bob = Client::join(&server, "delivery-0", &token("bob")).await;
    plan(&server, json!({ "points": ["Notice"] })).await;
    // The panic may interrupt the answer as well.
    let body = json!({ "userId": "zoe" });
    server.post("/revoke", &admin(), body).await;
    let codes = join_all(clients.iter_mut().map(Client::closed)).await;
    assert_eq!(codes, [4401; 60]);
    assert!(server.output().contains("failpoint: Notice"));
    bob.send_message("still here").await;
}

#[tokio::test]
async fn a_list_of_more_than_one_page_is_fetched_completely() {
    let mut server = Server::start(&[]);
    // 900 records take 300 kB, and a page has 256 KiB.
    let jti = |n: usize| format!("{n:0>250}");
    stream::iter(0..900)
        .for_each_concurrent(20, |n| {
            let server = &server;
            async move {
                revoke(server, json!({ "jti": jti(n), "until": now() + 3_600 })).await;
            }
        })
        .await;
    server.kill();
    server.restart();
    // The isolate has no list, so it fetches all pages for the first token.
    let with = |n: usize| Token::user("jane").claim("jti", jti(n)).sign(SECRET);
    for n in [899, 0, 450] {
        request_upgrade(&server, &with(n))
            .await
            .problem(401, "unauthorized");
    }
    Client::join(&server, "revoked-pages", &with(900)).await;
}

#[tokio::test]
async fn max_token_lifetime_limits_tokens_and_revocations() {
    let server = Server::start(&[("MAX_TOKEN_LIFETIME", "2h")]);
    let long = Token::user("alice").ttl(3 * 3_600).sign(SECRET);
    request_upgrade(&server, &long)
        .await
        .problem(401, "unauthorized");
    Client::join(&server, "revoked", &token("alice")).await;
    let answer = revoke(&server, json!({ "userId": "nobody" })).await;
    let lasts = answer["until"].as_i64().expect("a time") - now();
    assert!((7_200..=7_400).contains(&lasts), "{answer}");
}

#[tokio::test]
async fn ended_registrations_are_removed_by_a_daily_alarm() {
    const DAY: i64 = 24 * 60 * 60;
    let mut server = Server::start_worker(&Worker::built("failpoints"), &[]);
    // The alarm is 6 s away when the room registers, and five days have passed when it fires.
    let ahead = DAY - now() % DAY - 6;
    plan(&server, json!({ "ahead": ahead * 1_000 })).await;
    let bob = Token::user("bob").ttl(3 * DAY);
    let one = bob.clone().claim("jti", "one").sign(SECRET);
    let _open = Client::join(&server, "ended", &bob.sign(SECRET)).await;
    let mut revoked = Client::join(&server, "ended", &one).await;
    let admin = Token::service("backend").ttl(3 * DAY);
    let admin = admin.claim("rooms", json!({ "*": ["admin"] })).sign(SECRET);
    server
        .post("/revoke", &admin, json!({ "jti": "one" }))
        .await
        .ok();
    // So the room is registered.
    assert_closed(&mut revoked, 4401).await;
    plan(&server, json!({ "ahead": (ahead + 5 * DAY) * 1_000 })).await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    server.kill();
    let count =
        |table: &str| server.stored("revocations", &format!("SELECT count(*) FROM {table}"));
    assert_eq!((count("places"), count("revocations")), (0, 1));
}
