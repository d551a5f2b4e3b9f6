//! User ids of identity providers.

use super::{DEFAULT, service, token};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use roomcast_harness::{Client, SECRET, Server, SocketIo, Token, now};
use serde_json::json;

/// Ids that identity providers issue, and the most unusual ones that are allowed.
const IDS: [&str; 9] = [
    "auth0|5f7c8ec7c33c6c004bbafe82",
    "google-oauth2|103547991597142817347",
    "alice@example.com",
    "@alice",
    "José 山田",
    "👩",
    "https://login.example/users/7?tenant=a&b=%20#c",
    r#"CN=Alice "Al" O'Brien,OU=R\D"#,
    "a,b;c:d*",
];

fn encode(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// The longest id, of characters that take the most bytes as escapes in JSON.
fn longest() -> String {
    "é".repeat(127) + "e"
}

#[tokio::test]
async fn ids_of_identity_providers_work_everywhere() {
    let longest = longest();
    for (n, id) in IDS.into_iter().chain([longest.as_str()]).enumerate() {
        let (room, user) = (format!("users-{n}"), encode(id));
        // On a room's own socket, at a gateway, and with Socket.IO.
        let mut own = Client::join(&DEFAULT, &room, &token(id)).await;
        assert_eq!(own.connected["userId"], id);
        let mut native = Client::open(&DEFAULT, &format!("/ws?token={}", token(id)), &[])
            .await
            .expect("accepted");
        native
            .request("joinRoom", json!({ "roomId": room }))
            .await
            .expect("joined");
        let mut socketio = SocketIo::join(&DEFAULT, &token(id)).await;
        let joined = socketio
            .request("joinRoom", json!({ "roomId": room }))
            .await;
        let members = joined.expect("joined")["members"].take();
        assert_eq!(members, json!([{ "status": "online", "userId": id }]));
        // Messages carry the id.
        native
            .request("sendMessage", json!({ "roomId": room, "content": "hi" }))
            .await
            .expect("sent");
        for message in [
            own.expect("newMessage").await["data"].take(),
            native.expect("newMessage").await["data"].take(),
            socketio.expect("newMessage").await.args[0].take(),
        ] {
            assert_eq!(message["senderId"], id);
        }
        // The personal room, by its name in a URL, by `userId`, and on sockets.
        let personal = format!("@{id}");
        let body = json!({ "event": "note", "data": n, "userId": id });
        let published = DEFAULT.post("/publish", &service(), body).await.ok();
        assert_eq!(published["roomId"], personal);
        assert_eq!(native.expect("note").await["meta"]["roomId"], personal);
        assert_eq!(socketio.expect("note").await.args[0], n);
        let path = format!("/rooms/%40{user}/messages");
        assert_eq!(DEFAULT.get(&path, &token(id)).await.ok()["head"], 1);
        let path = format!("%40{user}");
        let mut alone = Client::join_with(&DEFAULT, &path, &token(id), "since=0").await;
        assert_eq!(alone.expect("note").await["data"], n);
        assert_eq!(alone.connected["roomId"], personal);
        let path = format!("/rooms/%40{user}/messages");
        let read = DEFAULT.get(&path, &token("bob")).await;
        read.problem(403, "forbidden");
        // Routes with the id in the path and in the query.
        let path = format!("/rooms/{room}/presence");
        let presence = DEFAULT.get(&path, &token(id)).await.ok();
        assert_eq!(presence["users"][0]["userId"], id);
        assert_eq!(presence["users"][0]["connections"], 3);
        let path = format!("/rooms/{room}/members?after={user}");
        assert_eq!(DEFAULT.get(&path, &token(id)).await.ok(), json!([]));
        let path = format!("/rooms/{room}/connections?userId={user}");
        let kicked = DEFAULT.delete(&path, &service()).await.ok();
        assert_eq!(kicked["closed"], 3);
        let path = format!("/rooms/{room}/members/{user}");
        let removed = DEFAULT.delete(&path, &service()).await.ok();
        assert_eq!(removed["userId"], id);
        assert_eq!(DEFAULT.put(&path, &service()).await.status, 201);
    }
}

#[tokio::test]
async fn user_ids_survive_a_restart_in_storage_sockets_and_the_log() {
    let mut server = Server::start(&[]);
    let longest = longest();
    for id in [IDS[0], IDS[4], IDS[6], &longest] {
        let mut native = Client::open(&server, &format!("/ws?token={}", token(id)), &[])
            .await
            .expect("accepted");
        native
            .request("joinRoom", json!({ "roomId": "kept" }))
            .await
            .expect("joined");
        native
            .request(
                "sendMessage",
                json!({ "roomId": "kept", "content": "hi", "messageId": "m" }),
            )
            .await
            .expect("sent");
    }
    server.restart();
    for (n, id) in [IDS[0], IDS[4], IDS[6], &longest].into_iter().enumerate() {
        let mut client = Client::join(&server, "kept", &token(id)).await;
        let again = json!({ "content": "hi", "messageId": "m" });
        let receipt = client.request("sendMessage", again).await.expect("sent");
        assert_eq!(
            (&receipt["seq"], &receipt["duplicate"]),
            (&json!(n + 1), &json!(true))
        );
        let path = format!("/rooms/%40{}/members", encode(id));
        let members = server.get(&path, &token(id)).await.ok();
        assert_eq!(members[0]["userId"], id);
    }
    let members = server.get("/rooms/kept/members", &service()).await.ok();
    assert_eq!(members.as_array().map(Vec::len), Some(4));
}

#[tokio::test]
async fn a_page_link_after_an_id_of_an_identity_provider_leads_to_the_next_page() {
    for id in ["a|1", "b@example.com", "José"] {
        let path = format!("/rooms/linked/members/{}", encode(id));
        DEFAULT.put(&path, &service()).await.ok();
    }
    let mut path = "/rooms/linked/members?limit=1".to_owned();
    let mut seen = Vec::new();
    loop {
        let answer = DEFAULT.get(&path, &service()).await;
        let link = answer.header("link").to_owned();
        seen.push(answer.ok()[0]["userId"].take());
        match link.strip_prefix('<').and_then(|link| link.split_once('>')) {
            Some((next, _)) => path = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(json!(seen), json!(["José", "a|1", "b@example.com"]));
}

#[tokio::test]
async fn the_user_claim_names_the_claim_with_the_user_id() {
    let server = Server::start(&[("USER_CLAIM", "email"), ("DEFAULT_ROOMS", "*")]);
    let token = Token::user("subject").claim("email", "alice@example.com");
    let client = Client::join(&server, "claimed", &token.sign(SECRET)).await;
    assert_eq!(client.connected["userId"], "alice@example.com");
    let without = Token::user("subject").sign(SECRET);
    let refused = server.get("/rooms/claimed/members", &without).await;
    assert!(
        refused.text.contains("the token has no `email`"),
        "{}",
        refused.text
    );
    refused.problem(401, "unauthorized");
}

/// Returns a token with a profile.
fn with_name(user: &str, name: &str, issued: i64) -> String {
    Token::user(user)
        .claim("iat", issued)
        .claim("info", json!({ "name": name }))
        .sign(SECRET)
}

#[tokio::test]
async fn the_profile_of_a_token_is_shown_in_members_presence_and_typing() {
    let mut server = Server::start(&[("PRESENCE_GRACE_MS", "100")]);
    let issued = now() - 10;
    let (alice, carol) = (
        with_name("alice", "Alice Ä", issued),
        with_name("carol", "Carol", issued),
    );
    let mut bob = Client::join(&server, "profiles", &token("bob")).await;
    let mut own = Client::join(&server, "profiles", &alice).await;
    let update = bob.expect("presenceUpdate").await["data"].take();
    assert_eq!(update["info"], json!({ "name": "Alice Ä" }));
    // At gateways as well.
    let mut socketio = SocketIo::join(&server, &carol).await;
    let joined = socketio.request("joinRoom", json!("profiles")).await;
    let members = joined.expect("joined")["members"].take();
    assert_eq!(members[0]["info"]["name"], "Alice Ä");
    let update = bob.expect("presenceUpdate").await["data"].take();
    assert_eq!(update["info"], json!({ "name": "Carol" }));
    let typing = json!({ "roomId": "profiles", "isTyping": true });
    socketio
        .request("typingIndicator", typing)
        .await
        .expect("accepted");
    assert_eq!(
        bob.expect("userTyping").await["data"]["info"]["name"],
        "Carol"
    );
    // A refreshed token replaces it.
    let newer = with_name("alice", "Alicia", issued + 1);
    own.request("refreshToken", json!({ "token": newer }))
        .await
        .expect("refreshed");
    let update = bob.expect("presenceUpdate").await["data"].take();
    assert_eq!(update["info"], json!({ "name": "Alicia" }));
    let newer = with_name("carol", "Caro", issued + 1);
    let refresh = json!({ "token": newer });
    let refreshed = socketio.request("refreshToken", refresh).await;
    refreshed.expect("refreshed");
    let update = bob.expect("presenceUpdate").await["data"].take();
    assert_eq!(update["info"], json!({ "name": "Caro" }));
    // The profiles are stored.
    drop((own, socketio));
    server.restart();
    let members = server.get("/rooms/profiles/members", &service()).await.ok();
    let infos: Vec<&serde_json::Value> = (0..3).map(|n| &members[n]["info"]["name"]).collect();
    assert_eq!(json!(infos), json!(["Alicia", null, "Caro"]));
    let presence = server
        .get("/rooms/profiles/presence", &service())
        .await
        .ok();
    assert_eq!(presence["users"][2]["info"]["name"], "Caro");
    // An older token does not bring an older profile back.
    let mut again = Client::join(&server, "profiles", &alice).await;
    let page = again.request("members", json!({})).await.expect("a page");
    assert_eq!(page["members"][0]["info"]["name"], "Alicia");
    // Nor does a checkpoint or a leave of another user change it.
    server
        .delete("/rooms/profiles/members/carol", &service())
        .await
        .ok();
    server
        .put("/rooms/profiles/members/carol", &service())
        .await;
    let members = server.get("/rooms/profiles/members", &service()).await.ok();
    assert_eq!(members[0]["info"]["name"], "Alicia");
    assert_eq!(members[1].get("info"), None);
}

#[tokio::test]
async fn messages_have_the_profile_of_their_sender_if_the_setting_says_so() {
    let server = Server::start(&[("SENDER_INFO", "true")]);
    let mut bob = Client::join(&server, "senders", &token("bob")).await;
    let mut alice = SocketIo::join(&server, &with_name("alice", "Alice", now())).await;
    alice
        .request("joinRoom", json!("senders"))
        .await
        .expect("joined");
    let message = json!({ "roomId": "senders", "content": "hi", "sender": "somebody else" });
    alice.request("sendMessage", message).await.expect("sent");
    let data = bob.expect("newMessage").await["data"].take();
    assert_eq!(data["sender"], json!({ "name": "Alice" }));
    // A user without a profile cannot invent one.
    let message = json!({ "content": "hi", "sender": { "name": "Alice" } });
    bob.request("sendMessage", message).await.expect("sent");
    let data = bob.expect("newMessage").await["data"].take();
    assert_eq!(data.get("sender"), None);
    // A service has that of its own token.
    let token = Token::service("billing").claim("info", json!({ "name": "Billing" }));
    let body = json!({ "room": "senders", "event": "invoice", "data": 1 });
    server
        .post("/publish", &token.sign(SECRET), body)
        .await
        .ok();
    let meta = bob.expect("invoice").await["meta"].take();
    assert_eq!(meta["sender"], json!({ "name": "Billing" }));
    // It is stored with the messages.
    let log = server.get("/rooms/senders/messages", &service()).await.ok();
    assert_eq!(log["events"][0]["data"]["sender"]["name"], "Alice");
}

#[tokio::test]
async fn a_token_with_an_invalid_profile_is_refused() {
    for info in [
        json!("Alice"),
        json!([]),
        json!({ "bio": "x".repeat(1_100) }),
    ] {
        let token = Token::user("alice").claim("info", info).sign(SECRET);
        let refused = DEFAULT.get("/rooms/r/members", &token).await;
        assert!(refused.text.contains("invalid `info`"), "{}", refused.text);
        refused.problem(401, "unauthorized");
    }
}
