//! Tickets: single-use credentials for URLs, in place of tokens.

use super::keys::socketio_connect;
use super::{DEFAULT, token};
use roomcast_harness::{Client, KeyPair, Polling, SECRET, Server, Token, now};
use serde_json::json;
use std::time::Duration;

/// Requests a ticket for a token.
async fn ticket(server: &Server, token: &str) -> String {
    let answer = server.request("POST", "/tickets", Some(token), None).await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    assert_eq!(answer.header("cache-control"), "no-store");
    let ticket = answer.json["ticket"].as_str().expect("a ticket");
    assert!(ticket.len() < 64 && !token.contains(ticket));
    ticket.to_owned()
}

/// Returns the path of a room socket with a ticket.
fn room(ticket: &str) -> String {
    format!("/rooms/tickets/ws?ticket={ticket}")
}

/// Returns the path of a gateway socket with a ticket.
fn native(ticket: &str) -> String {
    format!("/ws?ticket={ticket}")
}

#[tokio::test]
async fn a_ticket_opens_exactly_one_socket() {
    for path in [room, native] {
        let ticket = ticket(&DEFAULT, &token("tina")).await;
        let client = Client::open(&DEFAULT, &path(&ticket), &[]).await;
        assert_eq!(client.expect("accepted").connected["userId"], "tina");
        for path in [room(&ticket), native(&ticket)] {
            DEFAULT
                .request_upgrade(&path, &[])
                .await
                .problem(401, "unauthorized");
        }
    }
    // A subprotocol without a token can be combined with a ticket.
    let path = room(&ticket(&DEFAULT, &token("tina")).await);
    let offer = [("sec-websocket-protocol", "roomcast.v1")];
    let client = Client::open(&DEFAULT, &path, &offer)
        .await
        .expect("accepted");
    assert_eq!(client.subprotocol.as_deref(), Some("roomcast.v1"));
}

#[tokio::test]
async fn of_concurrent_upgrades_with_one_ticket_one_is_accepted() {
    for _ in 0..5 {
        let path = room(&ticket(&DEFAULT, &token("tom")).await);
        let all = (0..8).map(|_| Client::open(&DEFAULT, &path, &[]));
        let all = futures_util::future::join_all(all).await;
        let refused = all.iter().filter_map(|one| one.as_ref().err());
        assert!(refused.clone().all(|refused| refused.0 == 401));
        assert_eq!(refused.count(), 7);
    }
}

#[tokio::test]
async fn a_socketio_client_connects_with_a_ticket() {
    let ticket = ticket(&DEFAULT, &token("sue")).await;
    // The client sends the ticket with each request of its session.
    let query = format!("&ticket={ticket}");
    let connected = socketio_connect(&DEFAULT, &query, json!({})).await;
    assert!(connected.starts_with("40"), "{connected}");
    for transport in ["polling", "websocket"] {
        let path = format!("/socket.io/?EIO=4&transport={transport}{query}");
        let answer = match transport {
            "polling" => DEFAULT.call("GET", &path, &[], "").await,
            _ => DEFAULT.request_upgrade(&path, &[]).await,
        };
        answer.problem(401, "unauthorized");
    }
}

#[tokio::test]
async fn a_ticket_has_the_rights_and_expiry_of_its_token() {
    let exp = now() + 3;
    let token = Token::user("otto")
        .claim("exp", exp)
        .claim("rooms", json!({ "tickets": ["read"] }))
        .sign(SECRET);
    let path = room(&ticket(&DEFAULT, &token).await);
    let mut otto = Client::open(&DEFAULT, &path, &[]).await.expect("accepted");
    let sent = otto.request("sendMessage", json!({ "content": 1 })).await;
    assert_eq!(sent.expect_err("read only")["code"], "forbidden");
    let elsewhere = ticket(&DEFAULT, &token).await;
    let path = format!("/rooms/elsewhere/ws?ticket={elsewhere}");
    DEFAULT
        .request_upgrade(&path, &[])
        .await
        .problem(403, "forbidden");
    let unused = ticket(&DEFAULT, &token).await;
    assert_eq!(otto.closed().await, 4401);
    // A ticket expires with its token.
    DEFAULT
        .request_upgrade(&room(&unused), &[])
        .await
        .problem(401, "unauthorized");
}

#[tokio::test]
async fn tickets_of_a_revoked_token_are_refused() {
    let old = Token::user("nora").claim("iat", now() - 10).sign(SECRET);
    let before = ticket(&DEFAULT, &old).await;
    let admin = Token::service("backend").claim("rooms", json!({ "*": ["admin"] }));
    let body = json!({ "userId": "nora" });
    DEFAULT
        .post("/revoke", &admin.sign(SECRET), body)
        .await
        .ok();
    DEFAULT
        .request_upgrade(&room(&before), &[])
        .await
        .problem(401, "unauthorized");
    let answer = DEFAULT.request("POST", "/tickets", Some(&old), None).await;
    answer.problem(401, "unauthorized");
}

#[tokio::test]
async fn an_invalid_ticket_is_401_and_creating_one_requires_a_token() {
    let good = ticket(&DEFAULT, &token("alice")).await;
    let other = good.replace(|c: char| c.is_ascii_digit(), "f");
    for bad in [
        "",
        "x",
        "00",
        &"0".repeat(34),
        &other,
        &good[1..],
        "%00",
        "%C3%A4",
    ] {
        DEFAULT
            .request_upgrade(&room(bad), &[])
            .await
            .problem(401, "unauthorized");
    }
    // A token takes precedence, and the ticket stays unused.
    let both = format!("{}&token={}", room(&good), token("bob"));
    let client = Client::open(&DEFAULT, &both, &[]).await.expect("accepted");
    assert_eq!(client.connected["userId"], "bob");
    // A ticket is valid only for sockets.
    let path = format!("/rooms/tickets/messages?ticket={good}");
    let answer = DEFAULT.call("GET", &path, &[], "").await;
    answer.problem(401, "unauthorized");
    Client::open(&DEFAULT, &room(&good), &[])
        .await
        .expect("still valid");
    // A ticket is created only for a token in the header, because tickets exist to
    // keep tokens out of URLs.
    for (path, bearer) in [
        ("/tickets".to_owned(), None),
        (format!("/tickets?token={}", token("alice")), None),
        ("/tickets".to_owned(), Some("x")),
    ] {
        let answer = DEFAULT.request("POST", &path, bearer, None).await;
        answer.problem(401, "unauthorized");
    }
    let answer = DEFAULT.request("GET", "/tickets", None, None).await;
    answer.problem(405, "methodNotAllowed");
    assert!(!DEFAULT.output().contains(&good), "no ticket is logged");
}

#[tokio::test]
async fn pages_of_allowed_origins_can_create_tickets() {
    let server = Server::start(&[("ALLOWED_ORIGINS", "https://chat.example")]);
    let bearer = format!("Bearer {}", token("alice"));
    let (good, evil) = ("https://chat.example", "https://evil.example");
    let requested = ("access-control-request-headers", "authorization");
    let headers = [("origin", good), requested];
    let answer = server.call("OPTIONS", "/tickets", &headers, "").await;
    assert_eq!(answer.status, 204);
    assert_eq!(answer.header("access-control-allow-origin"), good);
    assert_eq!(
        answer.header("access-control-allow-headers"),
        "authorization"
    );
    for (origin, status) in [(good, 201), (evil, 403)] {
        let headers = [("origin", origin), ("authorization", bearer.as_str())];
        let answer = server.call("POST", "/tickets", &headers, "").await;
        assert_eq!(answer.status, status, "{}", answer.text);
        let allowed = answer.header("access-control-allow-origin");
        assert_eq!(allowed, if status == 201 { good } else { "" });
    }
}

#[tokio::test]
async fn a_ticket_is_used_once_across_a_crash_and_expires_after_30_seconds() {
    let mut server = Server::start(&[]);
    let (used, kept, old) = (
        ticket(&server, &token("alice")).await,
        ticket(&server, &token("alice")).await,
        ticket(&server, &token("alice")).await,
    );
    Client::open(&server, &room(&used), &[])
        .await
        .expect("accepted");
    server.kill();
    server.restart();
    server
        .request_upgrade(&room(&used), &[])
        .await
        .problem(401, "unauthorized");
    Client::open(&server, &room(&kept), &[])
        .await
        .expect("valid after the crash");
    tokio::time::sleep(Duration::from_secs(31)).await;
    server
        .request_upgrade(&room(&old), &[])
        .await
        .problem(401, "unauthorized");
}

#[tokio::test]
async fn creating_tickets_is_limited_by_connects_per_minute() {
    let server = Server::start(&[("CONNECTS_PER_MINUTE", "3")]);
    let bearer = token("alice");
    for _ in 0..3 {
        ticket(&server, &bearer).await;
    }
    let answer = server
        .request("POST", "/tickets", Some(&bearer), None)
        .await;
    answer.problem(429, "rateLimited");
    assert!(!answer.header("retry-after").is_empty());
    ticket(&server, &token("bob")).await;
}

#[tokio::test]
async fn an_invented_ticket_or_session_id_reaches_no_object() {
    let keys = KeyPair::ed25519("ed");
    let jwks = KeyPair::set(&[&keys]);
    let unsigned = [("JWT_SECRET", ""), ("JWT_JWKS", jwks.as_str())];
    let ticket = format!("00{}", "0123456789abcdef".repeat(3));
    let sid = "0123456789abcdef".repeat(3);
    for (settings, shards) in [(&[][..], &[0, 7, 8, 1023][..]), (&unsigned, &[8, 1023])] {
        let server = Server::start(settings);
        if settings.is_empty() {
            for path in [room(&ticket), native(&ticket)] {
                let answer = server.request_upgrade(&path, &[]).await;
                answer.problem(401, "unauthorized");
            }
        }
        for shard in shards {
            let query = format!("EIO=4&sid={shard}-{sid}");
            let polling = format!("/socket.io/?transport=polling&{query}");
            let socket = format!("/socket.io/?transport=websocket&{query}");
            for answer in [
                server.call("GET", &polling, &[], "").await,
                server.call("POST", &polling, &[], "40").await,
                server.request_upgrade(&socket, &[]).await,
            ] {
                assert_eq!((answer.status, &answer.json["code"]), (400, &json!(1)));
            }
        }
        for path in ["/ws", "/rooms/strangers/ws", "/ws?token=x"] {
            let answer = server.request_upgrade(path, &[]).await;
            answer.problem(401, "unauthorized");
        }
        for binding in ["TICKETS", "GATEWAYS", "ROOMS"] {
            assert_eq!(server.objects(binding), 0, "{binding}");
        }
        // The objects are counted: this session creates one.
        Polling::open(&server, "").await;
        assert_eq!(server.objects("GATEWAYS"), 1);
    }
}
