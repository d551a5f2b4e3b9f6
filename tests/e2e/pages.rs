//! Requests of pages: errors that a page of an allowed origin can read, and refused sockets.

use super::{service, token};
use roomcast_harness::{Client, SECRET, Server, SocketIo, Token};
use serde_json::{Value, json};
use std::sync::LazyLock;

const PAGE: &str = "https://chat.example";
const EVIL: &str = "https://evil.example";

static SERVER: LazyLock<Server> =
    LazyLock::new(|| Server::start(&[("ALLOWED_ORIGINS", PAGE), ("LOG_LEVEL", "info")]));

fn expired() -> String {
    Token::user("alice").ttl(-1).sign(SECRET)
}

#[tokio::test]
async fn the_reason_of_a_refused_upgrade_of_a_page_is_in_the_close_frame() {
    let nothing = Token::user("alice")
        .claim("rooms", json!(["a"]))
        .sign(SECRET);
    for (path, code, reason) in [
        (
            format!("/rooms/r/ws?token={}", expired()),
            4401,
            "unauthorized: the token has expired",
        ),
        (
            format!("/ws?token={}", expired()),
            4401,
            "unauthorized: the token has expired",
        ),
        (
            "/ws?ticket=x".to_owned(),
            4401,
            "unauthorized: invalid, used or expired ticket",
        ),
        (
            format!("/rooms/r/ws?token={nothing}"),
            4403,
            "forbidden: the token does not allow access to this room",
        ),
        (
            format!("/rooms/r/ws?since=x&token={}", token("alice")),
            4400,
            "badRequest: `since` must be an integer between 0 and 2^53-1",
        ),
        (
            format!("/rooms/a%20b/ws?token={}", token("alice")),
            4400,
            "badRequest: `room` must be a room name (1 to 128 of A-Z a-z 0-9 . _ : - @, or @ and a user id)",
        ),
    ] {
        let own = SERVER.url("");
        for origin in [PAGE, own.trim_end_matches('/')] {
            let refused = Client::refused(&SERVER, &path, &[("origin", origin)]).await;
            assert_eq!(refused, (code, reason.to_owned()), "{path}");
        }
        // Other clients, and pages that may not connect, receive the HTTP response.
        let plain = SERVER.request_upgrade(&path, &[]).await;
        assert_eq!(plain.status, code - 4_000, "{path}");
        let evil = SERVER.request_upgrade(&path, &[("origin", EVIL)]).await;
        assert!(evil.status >= 400, "{path}");
        // Without an upgrade there is no socket.
        let page = SERVER.call("GET", &path, &[("origin", PAGE)], "").await;
        assert!(page.status >= 400, "{path}");
    }
    // The socket is only opened with a subprotocol that the page has offered.
    let offered = format!("roomcast.v1, bearer.{}", expired());
    let headers = [
        ("origin", PAGE),
        ("sec-websocket-protocol", offered.as_str()),
    ];
    let (code, _) = Client::refused(&SERVER, "/rooms/r/ws", &headers).await;
    assert_eq!(code, 4401);
    let record = SERVER
        .wait_for_log("the refusal", |record| {
            record["event"] == "reject" && record["route"] == "/rooms/{room}/ws"
        })
        .await;
    assert_eq!(record["origin"], PAGE);
}

#[tokio::test]
async fn a_refused_upgrade_of_a_page_reaches_no_object_and_stores_nothing() {
    let server = Server::start(&[("ALLOWED_ORIGINS", PAGE)]);
    for path in [
        format!("/rooms/r/ws?token={}", expired()),
        format!("/ws?token={}", expired()),
    ] {
        Client::refused(&server, &path, &[("origin", PAGE)]).await;
    }
    for binding in ["ROOMS", "GATEWAYS"] {
        assert_eq!(server.objects(binding), 0, "{binding}");
    }
}

#[tokio::test]
async fn a_page_over_the_limit_of_connects_is_told_when_to_retry() {
    let server = Server::start(&[
        ("ALLOWED_ORIGINS", PAGE),
        ("CONNECTS_PER_MINUTE", "1"),
        ("GATEWAY_SHARDS", "1"),
    ]);
    let from = [("origin", PAGE), ("cf-connecting-ip", "192.0.2.7")];
    let path = format!("/rooms/busy/ws?token={}", token("alice"));
    let mut reason = String::new();
    for _ in 0..30 {
        match Client::open(&server, &path, &from[1..]).await {
            Ok(client) => drop(client),
            Err(refused) => {
                assert_eq!(refused.0, 429);
                let (code, why) = Client::refused(&server, &path, &from).await;
                assert_eq!(code, 4429);
                reason = why;
                break;
            }
        }
    }
    assert!(reason.starts_with("rateLimited (retry after "), "{reason}");
}

#[tokio::test]
async fn a_refused_socket_io_connection_of_a_page_ends_in_a_connect_error() {
    let query = "ticket=x";
    // Other clients receive the HTTP response.
    let refused = SocketIo::try_open(&SERVER, query).await.err();
    assert_eq!(refused.map(|refused| refused.0), Some(401));
    for nsp in ["/", "/chat"] {
        let mut socket = SocketIo::try_open_as(&SERVER, query, Some(PAGE))
            .await
            .expect("a session");
        assert_eq!(socket.handshake["upgrades"], json!([]));
        assert!(socket.handshake["pingInterval"].as_u64() > Some(0));
        let error = socket.connect(nsp, json!({})).await.expect_err("refused");
        assert_eq!(
            error,
            json!({
                "message": "invalid, used or expired ticket",
                "data": { "code": "unauthorized", "message": "invalid, used or expired ticket" },
            })
        );
        assert_eq!(socket.closed().await, 4401);
    }
}

#[tokio::test]
async fn a_refused_connect_has_a_code_and_the_time_of_the_next_attempt() {
    let mut socket = SocketIo::open(&SERVER, "").await;
    let error = socket.connect("/chat", json!({ "token": expired() })).await;
    let error = error.expect_err("refused");
    assert_eq!(error["data"]["code"], "unauthorized");
    assert_eq!(error["data"].get("retryAfterMs"), None);
}

#[tokio::test]
async fn errors_of_the_routes_of_users_are_readable_by_allowed_pages() {
    for (method, path, status) in [
        ("GET", "/rooms/a%20b/messages", 400),
        ("GET", "/rooms/r/messages?limit=0", 400),
        ("HEAD", "/rooms/r/messages", 401),
        ("PATCH", "/rooms/r/members", 405),
        ("GET", "/tickets", 405),
        ("POST", "/tickets", 401),
        ("GET", "/socket.io/?EIO=4&transport=smoke", 400),
    ] {
        let bearer = format!("Bearer {}", token("alice"));
        let authorization = match status {
            401 => "Bearer x",
            _ => &bearer,
        };
        for (origin, expected) in [(PAGE, PAGE), (EVIL, "")] {
            let headers = [("origin", origin), ("authorization", authorization)];
            let answer = SERVER.call(method, path, &headers, "").await;
            let allowed = answer.header("access-control-allow-origin");
            assert_eq!(allowed, expected, "{method} {path} {}", answer.text);
            if origin == PAGE {
                assert_eq!(answer.status, status, "{method} {path} {}", answer.text);
            }
            // The page only sees the error if its preflight request is answered.
            let preflight = SERVER.call("OPTIONS", path, &headers[..1], "").await;
            let expected = if origin == PAGE { 204 } else { 403 };
            assert_eq!(preflight.status, expected, "{path}");
        }
    }
}

#[tokio::test]
async fn head_and_the_api_description_are_readable_by_pages() {
    let bearer = format!("Bearer {}", token("alice"));
    for path in ["messages", "members", "presence"] {
        let path = format!("/rooms/headed/{path}");
        let headers = [("origin", PAGE), ("authorization", bearer.as_str())];
        let answer = SERVER.call("HEAD", &path, &headers, "").await;
        assert_eq!((answer.status, answer.text.as_str()), (200, ""), "{path}");
        assert_eq!(answer.header("access-control-allow-origin"), PAGE);
        let preflight = SERVER.call("OPTIONS", &path, &headers[..1], "").await;
        let methods = preflight.header("access-control-allow-methods");
        assert_eq!(methods, "GET, HEAD, POST");
    }
    // The description has no secrets, so every page may read it.
    for origin in [PAGE, EVIL] {
        let headers = [("origin", origin)];
        let answer = SERVER.call("GET", "/openapi.json", &headers, "").await;
        assert_eq!(answer.header("access-control-allow-origin"), origin);
        assert_eq!(answer.json["openapi"], "3.1.1");
    }
    // Routes of services are not for pages.
    let bearer = format!("Bearer {}", service());
    let headers = [("origin", PAGE), ("authorization", bearer.as_str())];
    let body = json!({ "room": "r", "event": "x", "data": Value::Null }).to_string();
    let answer = SERVER.call("POST", "/publish", &headers, body).await;
    assert_eq!(answer.header("access-control-allow-origin"), "");
}
