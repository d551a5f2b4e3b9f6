//! Attacks listed in docs/security.md that no other module covers.

use super::{DEFAULT, FAST, headers, service, token};
use roomcast_harness::{Client, SECRET, Server, Token};
use serde_json::{Value, json};

#[tokio::test]
async fn room_names_outside_the_alphabet_are_refused_in_every_encoding() {
    let alice = token("alice");
    let long = "r".repeat(129);
    for name in [
        // A slash, a line break, NUL, a space, a lone percent sign.
        "..%2Fsecret",
        "a%2fb",
        "a%0Ab",
        "a%00b",
        "a%20b",
        "a%",
        "%252e",
        // Homoglyphs: Cyrillic a, fullwidth a, a zero-width joiner, NFD é.
        "%D0%B0lice",
        "%EF%BD%81lice",
        "a%E2%80%8Dlice",
        "e%CC%81",
        // Invalid UTF-8.
        "a%ff",
        long.as_str(),
    ] {
        let path = format!("/rooms/{name}/ws?token={alice}");
        DEFAULT
            .request_upgrade(&path, &[])
            .await
            .problem(400, "badRequest");
        let answer = DEFAULT
            .get(&format!("/rooms/{name}/members"), &service())
            .await;
        answer.problem(400, "badRequest");
    }
    let mut client = Client::join(&DEFAULT, "names", &alice).await;
    for name in ["../secret", "a b", "а", "a\n", "", long.as_str()] {
        let refused = client.request("joinRoom", json!(name)).await;
        assert_eq!(refused.expect_err(name)["code"], "badRequest", "{name:?}");
    }
}

#[tokio::test]
async fn sender_fields_set_by_the_client_are_overwritten() {
    let mut bob = Client::join(&DEFAULT, "impersonation", &token("bob")).await;
    let mut mallory = Client::join(&DEFAULT, "impersonation", &token("mallory")).await;
    let forged = json!({
        "content": "x", "senderId": "bob", "seq": 99, "timestamp": "1970-01-01T00:00:00.000Z",
        "roomId": "impersonation", "userId": "bob",
    });
    let answer = mallory
        .request("sendMessage", forged)
        .await
        .expect("accepted");
    let seen = bob.logged(1).await.remove(0);
    assert_eq!(seen["data"]["senderId"], "mallory");
    assert_eq!(seen["data"]["seq"], answer["seq"]);
    assert_ne!(seen["data"]["timestamp"], "1970-01-01T00:00:00.000Z");
    // The sender of a custom event is in `meta`, beside the data.
    let forged = json!({ "event": "wave", "data": { "meta": { "senderId": "bob" } } });
    mallory.request("emit", forged).await.expect("accepted");
    assert_eq!(bob.logged(1).await[0]["meta"]["senderId"], "mallory");
    // A receipt moves the cursor of its sender, even if it names another user.
    let receipt = json!({ "seq": 1, "userId": "bob" });
    mallory
        .request("messageRead", receipt)
        .await
        .expect("accepted");
    let members = DEFAULT
        .get("/rooms/impersonation/members", &service())
        .await
        .ok();
    let read = |user: &str| {
        let members = members.as_array().expect("a list");
        let member = members.iter().find(|member| member["userId"] == user);
        member.map(|member| member["read"].clone())
    };
    assert_eq!(
        (read("bob"), read("mallory")),
        (Some(json!(0)), Some(json!(1)))
    );
}

#[tokio::test]
async fn a_token_of_another_deployment_is_refused() {
    let other = "the secret of another deployment, long enough";
    let server = Server::start(&[("JWT_SECRET", other), ("JWT_ISSUER", "here")]);
    for foreign in [
        token("alice"),
        Token::user("alice").claim("iss", "there").sign(other),
        Token::user("alice").claim("iss", "here").sign(SECRET),
    ] {
        let path = format!("/rooms/r/ws?token={foreign}");
        server
            .request_upgrade(&path, &[])
            .await
            .problem(401, "unauthorized");
    }
}

#[tokio::test]
async fn internal_headers_of_clients_are_ignored_on_every_route() {
    let forged = [
        (headers::BROADCAST, "1"),
        (headers::REVOKED, "1"),
        (headers::LINK, "1"),
        (headers::ROOM, "forged"),
        (headers::READER, "forged"),
        (headers::CONNECT, "{}"),
        (headers::FIND, "1"),
        (headers::GATEWAY, "0"),
        (headers::GATEWAY_CONNECT, "{}"),
    ];
    for path in ["/rooms/forged/messages", "/rooms/forged/presence", "/ws"] {
        let answer = DEFAULT.request_upgrade(path, &forged).await;
        answer.problem(401, "unauthorized");
    }
    // They are also ignored in requests with a valid token.
    let authorization = format!("Bearer {}", service());
    let mut authorized = forged.to_vec();
    authorized.push(("authorization", &authorization));
    for path in ["members", "presence", "messages"] {
        let path = format!("/rooms/forged-not/{path}");
        let answer = DEFAULT.call("GET", &path, &authorized, "").await;
        assert_eq!(answer.status, 200, "{path}");
    }
    let body = json!({ "event": "x", "data": 1, "room": "forged-not" }).to_string();
    let answer = DEFAULT.call("POST", "/publish", &authorized, body).await;
    assert_eq!(answer.ok()["roomId"], "forged-not");
    let path = format!("/rooms/forged-not/ws?token={}", token("alice"));
    assert_eq!(DEFAULT.request_upgrade(&path, &forged).await.status, 101);
    let members = DEFAULT.get("/rooms/forged/members", &service()).await.ok();
    assert_eq!(members, json!([]));
    let messages = DEFAULT.get("/rooms/forged/messages", &service()).await.ok();
    assert_eq!(messages["head"], 0);
}

#[tokio::test]
async fn oversized_and_deeply_nested_json_is_refused_and_the_room_keeps_working() {
    let mut bob = Client::join(&FAST, "bombs", &token("bob")).await;
    let mut mallory = Client::join(&FAST, "bombs", &token("mallory")).await;
    let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
    let objects = format!("{}1{}", r#"{"a":"#.repeat(5_000), "}".repeat(5_000));
    for data in [deep, objects] {
        let frame = format!(r#"{{"event":"sendMessage","data":{{"content":{data}}},"id":1}}"#);
        mallory.send_text(&frame).await;
        let refused = mallory.answer(1).await.expect_err("too deeply nested");
        assert_eq!(refused["code"], "badRequest");
    }
    // All 1,000 commands of a frame within the size limit are executed.
    let many = [r#"{"event":"messageRead","data":{"seq":0}}"#]
        .repeat(1_000)
        .join("\n");
    mallory.send_text(&many).await;
    bob.send_message("still here").await;
    let wide: String = (0..4_000).map(|n| format!(r#""k{n}":{n},"#)).collect();
    let wide = format!(r#"{{"event":"sendMessage","data":{{{wide}"content":"wide"}},"id":2}}"#);
    mallory.send_text(&wide).await;
    let answer: Result<Value, Value> = mallory.answer(2).await;
    assert!(
        answer.is_ok(),
        "an object with many members is accepted: {answer:?}"
    );
    // A frame over `MAX_FRAME_BYTES` closes the socket.
    mallory.send_text(&"x".repeat(70_000)).await;
    assert_eq!(mallory.closed().await, 4413);
    bob.send_message("still here after the close").await;
}
