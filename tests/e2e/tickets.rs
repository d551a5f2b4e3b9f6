//! Tickets: what stands in a URL in place of a token.

use super::keys::socketio_connect;
use super::{DEFAULT, token};
use roomcast_harness::{Client, SECRET, Server, Token, now};
use serde_json::json;
use std::time::Duration;

async fn ticket(server: &Server, token: &str) -> String {
    let answer = server.request("POST", "/tickets", Some(token), None).await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    assert_eq!(answer.header("cache-control"), "no-store");
    let ticket = answer.json["ticket"].as_str().expect("a ticket");
    assert!(ticket.len() < 64 && !token.contains(ticket));
    ticket.to_owned()
}

fn room(ticket: &str) -> String {
    format!("/rooms/tickets/ws?ticket={ticket}")
}

fn native(ticket: &str) -> String {
    format!("/ws?ticket={ticket}")
}

#[tokio::test]
async fn a_ticket_opens_one_socket_and_no_second_one() {
    for path in [room, native] {
        let ticket = ticket(&DEFAULT, &token("tina")).await;
        let client = Client::open(&DEFAULT, &path(&ticket), &[]).await;
        assert_eq!(client.expect("gets in").connected["userId"], "tina");
        for path in [room(&ticket), native(&ticket)] {
            DEFAULT.knock(&path, &[]).await.problem(401, "unauthorized");
        }
    }
    // A subprotocol without a token goes with it.
    let path = room(&ticket(&DEFAULT, &token("tina")).await);
    let offer = [("sec-websocket-protocol", "roomcast.v1")];
    let client = Client::open(&DEFAULT, &path, &offer)
        .await
        .expect("gets in");
    assert_eq!(client.subprotocol.as_deref(), Some("roomcast.v1"));
}

#[tokio::test]
async fn of_many_who_show_a_ticket_at_once_one_gets_in() {
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
async fn a_socketio_client_connects_by_a_ticket() {
    let ticket = ticket(&DEFAULT, &token("sue")).await;
    // The client shows it with each of its requests; it opens one session.
    let query = format!("&ticket={ticket}");
    let connected = socketio_connect(&DEFAULT, &query, json!({})).await;
    assert!(connected.starts_with("40/chat,"), "{connected}");
    for transport in ["polling", "websocket"] {
        let path = format!("/socket.io/?EIO=4&transport={transport}{query}");
        let answer = match transport {
            "polling" => DEFAULT.call("GET", &path, &[], "").await,
            _ => DEFAULT.knock(&path, &[]).await,
        };
        answer.problem(401, "unauthorized");
    }
}

#[tokio::test]
async fn the_socket_of_a_ticket_is_that_of_its_token() {
    let exp = now() + 3;
    let token = Token::user("otto")
        .claim("exp", exp)
        .claim("rooms", json!({ "tickets": ["read"] }))
        .sign(SECRET);
    let path = room(&ticket(&DEFAULT, &token).await);
    let mut otto = Client::open(&DEFAULT, &path, &[]).await.expect("gets in");
    let sent = otto.request("sendMessage", json!({ "content": 1 })).await;
    assert_eq!(sent.expect_err("read only")["code"], "forbidden");
    let elsewhere = ticket(&DEFAULT, &token).await;
    let path = format!("/rooms/elsewhere/ws?ticket={elsewhere}");
    DEFAULT.knock(&path, &[]).await.problem(403, "forbidden");
    let late = ticket(&DEFAULT, &token).await;
    assert_eq!(otto.closed().await, 4401);
    // The token's end is the ticket's.
    DEFAULT
        .knock(&room(&late), &[])
        .await
        .problem(401, "unauthorized");
}

#[tokio::test]
async fn a_revoked_token_has_no_tickets() {
    let old = Token::user("nora").claim("iat", now() - 10).sign(SECRET);
    let before = ticket(&DEFAULT, &old).await;
    let admin = Token::service("backend").claim("rooms", json!({ "*": ["admin"] }));
    let body = json!({ "userId": "nora" });
    DEFAULT
        .post("/revoke", &admin.sign(SECRET), body)
        .await
        .ok();
    DEFAULT
        .knock(&room(&before), &[])
        .await
        .problem(401, "unauthorized");
    let answer = DEFAULT.request("POST", "/tickets", Some(&old), None).await;
    answer.problem(401, "unauthorized");
}

#[tokio::test]
async fn what_is_no_ticket_is_401_and_takes_a_token_to_make() {
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
            .knock(&room(bad), &[])
            .await
            .problem(401, "unauthorized");
    }
    // A token goes before it, and leaves it as it is.
    let both = format!("{}&token={}", room(&good), token("bob"));
    let client = Client::open(&DEFAULT, &both, &[]).await.expect("gets in");
    assert_eq!(client.connected["userId"], "bob");
    // It is for sockets alone.
    let path = format!("/rooms/tickets/messages?ticket={good}");
    let answer = DEFAULT.call("GET", &path, &[], "").await;
    answer.problem(401, "unauthorized");
    Client::open(&DEFAULT, &room(&good), &[])
        .await
        .expect("still good");
    // In the header alone: a URL is what tickets are to keep tokens out of.
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
async fn pages_of_allowed_origins_may_ask_for_tickets() {
    let server = Server::start(&[("ALLOWED_ORIGINS", "https://chat.example")]);
    let bearer = format!("Bearer {}", token("alice"));
    let (good, evil) = ("https://chat.example", "https://evil.example");
    let asked = ("access-control-request-headers", "authorization");
    let headers = [("origin", good), asked];
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
async fn a_ticket_is_used_once_whatever_happens_and_for_30_seconds() {
    let mut server = Server::start(&[]);
    let (used, kept, old) = (
        ticket(&server, &token("alice")).await,
        ticket(&server, &token("alice")).await,
        ticket(&server, &token("alice")).await,
    );
    Client::open(&server, &room(&used), &[])
        .await
        .expect("gets in");
    server.kill();
    server.restart();
    server
        .knock(&room(&used), &[])
        .await
        .problem(401, "unauthorized");
    Client::open(&server, &room(&kept), &[])
        .await
        .expect("outlived it");
    tokio::time::sleep(Duration::from_secs(31)).await;
    server
        .knock(&room(&old), &[])
        .await
        .problem(401, "unauthorized");
}

#[tokio::test]
async fn tickets_are_limited_as_connects_are() {
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
