//! This build opens the storage that commit a5565a6 wrote, and nothing is lost.
//!
//! `tests/fixtures/storage-a5565a6.tar.gz` is the storage of a server of that
//! commit after SIGKILL. `tests/fixtures/storage-a5565a6.json` contains the answers
//! that the same commit gives on this storage, and the positions of its clients.
//! `tests/fixtures/make-old-data` creates both files with [`make_fixture`].
//!
//! | data of the older build | covered by |
//! | --- | --- |
//! | log, members, cursors (journal and checkpoint), epochs, connections at gateways | this module |
//! | clients and positions of gateways, revocations, tickets, alarms | this module |
//! | attachments of hibernated sockets of gateways | tests of `crates/gateway/src/engine/hibernation.rs` and `crates/gateway/src/chat/record.rs` |
//! | attachments of hibernated sockets of rooms | this module, by the column `subscribers.attachment`, which has the same form |
//!
//! workerd keeps the attachments of sockets in memory, so a killed server leaves
//! none. The table `spills` of the fixture has attachments that were too long for a
//! socket. Without the socket, the gateway deletes them when it starts.
//!
//! With [`SETTINGS`], no event, `messageId` or token of the fixture expires. Two checks
//! depend on the age of the fixture: a revocation expires after 400 days, and the
//! gateway forgets a client that was disconnected before the crash after one day.

use super::{service, token};
use roomcast_harness::{Client, SECRET, Server, SocketIo, Token, Worker, now};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

/// Settings of the old server and of the new servers.
const SETTINGS: [(&str, &str); 10] = [
    // The clients of the fixture speak the vocabulary of the protocol on `/chat`.
    ("NAMESPACES", "/ /chat"),
    ("GATEWAY_SHARDS", "1"),
    ("RETENTION_DAYS", "36500"),
    ("RETENTION_EVENTS", "1000000"),
    ("DEDUPE_WINDOW", "36500d"),
    ("PRESENCE_GRACE_MS", "100"),
    ("MAX_FRAME_BYTES", "1000000"),
    ("MESSAGES_PER_SECOND", "100000"),
    ("MESSAGES_BURST", "100000"),
    ("COMMANDS_BURST", "100000"),
];

/// Rooms whose pages and members are compared byte for byte.
const ROOMS: [&str; 6] = ["talk", "deleted", "trimmed", "desk", "@gina", "empty"];

/// Number of events in the room `steps`. The journal of cursors may not have this many
/// rows, so a checkpoint has written the members of this room.
const STEPS: u64 = 1_200;

/// Number of events sent to the room `trimmed`. A server with [`TRIMMING`] has deleted
/// the first of them from the log.
const SENT: u64 = 200;
/// Settings that delete all but the last events from the log.
const TRIMMING: [(&str, &str); 2] = [("RETENTION_EVENTS", "10"), ("DEDUPE_WINDOW", "1ms")];

/// The expected answers.
static EXPECTED: LazyLock<Value> = LazyLock::new(|| {
    let text = std::fs::read_to_string(fixture("json")).expect("the fixture");
    serde_json::from_str(&text).expect("the fixture is JSON")
});

fn fixture(extension: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    folder.join(format!("storage-a5565a6.{extension}"))
}

/// Starts this build on a copy of the fixture.
fn server() -> Server {
    Server::start_from(&fixture("tar.gz"), &Worker::roomcast(), &SETTINGS)
}

/// Returns a text of 200 kB that is not ASCII.
fn large_text() -> String {
    (0..10_000)
        .map(|n| format!("{n:05} Grüße 💡 "))
        .collect::<String>()
}

/// Returns a token that expires in the year 2286. Rooms and gateways store the expiry,
/// so it must be later than every run of the tests.
fn lasting(user: &str) -> Token {
    Token::user(user).claim("exp", 9_999_999_999_i64)
}

/// Returns a token with so many rooms that the attachment of its session is stored in
/// the table `spills`.
fn wide_token() -> String {
    let rooms: Vec<String> = (0..400)
        .map(|n| format!("a-room-with-a-long-name-{n}"))
        .chain(["desk".to_owned()])
        .collect();
    lasting("wide").claim("rooms", rooms).sign(SECRET)
}

/// Returns the expected value at a JSON pointer.
fn expected(pointer: &str) -> &'static Value {
    EXPECTED
        .pointer(pointer)
        .unwrap_or_else(|| panic!("{pointer} is missing in the fixture"))
}

fn path(room: &str, resource: &str) -> String {
    match resource {
        "messages" => format!("/rooms/{room}/messages?after=0&limit=1000"),
        resource => format!("/rooms/{room}/{resource}"),
    }
}

/// Returns the pages and the members of [`ROOMS`] as texts.
async fn pages(server: &Server) -> Value {
    let mut pages = Map::new();
    for room in ROOMS {
        let mut page = Map::new();
        for resource in ["messages", "members"] {
            let answer = server.get(&path(room, resource), &service()).await;
            assert_eq!(answer.status, 200, "{}", answer.text);
            page.insert(resource.to_owned(), answer.text.into());
        }
        pages.insert(room.to_owned(), page.into());
    }
    pages.into()
}

/// Publishes as a service.
async fn publish(server: &Server, room: &str, content: &str) -> Value {
    let data = json!({ "content": content });
    let body = json!({ "room": room, "event": "newMessage", "data": data });
    server.post("/publish", &service(), body).await.ok()
}

fn admin() -> String {
    let rooms = json!({ "*": ["admin"] });
    Token::service("backend").claim("rooms", rooms).sign(SECRET)
}

/// Returns the `seq` of the next `count` `newMessage` events of `room` that the client
/// receives.
async fn messages(client: &mut SocketIo, room: &str, count: usize) -> Vec<u64> {
    let mut seqs = Vec::new();
    while seqs.len() < count {
        let what = format!("message {} of {count} in {room}", seqs.len() + 1);
        let event = client.find(&what, |event| {
            event.name == "newMessage" && event.room() == Some(room)
        });
        let event = event.await;
        let seq = event.args.iter().find_map(|arg| arg["seq"].as_u64());
        seqs.push(seq.expect("a logged event"));
    }
    seqs
}

fn range(from: u64, to: u64) -> Vec<u64> {
    (from..=to).collect()
}

fn number(value: &Value) -> u64 {
    value.as_u64().expect("a number")
}

// ---- The fixture ----

#[tokio::test]
#[ignore = "creates the fixture: run tests/fixtures/make-old-data"]
async fn make_fixture() {
    let build = std::env::var_os("OLD_BUILD").expect("OLD_BUILD: the folder of the old build");
    let worker = Worker::in_folder(Path::new(&build));
    let archive = fixture("trimmed.tar.gz");
    {
        let mut settings = SETTINGS.to_vec();
        settings.retain(|(name, _)| TRIMMING.iter().all(|(other, _)| other != name));
        settings.extend(TRIMMING);
        let mut server = Server::start_worker(&worker, &settings);
        let mut ana = Client::join(&server, "trimmed", &token("ana")).await;
        for n in 1..=SENT {
            ana.send_message(&n.to_string()).await;
        }
        ana.close().await;
        server.kill();
        server.pack_storage(&archive);
    }
    let mut server = Server::start_from(&archive, &worker, &SETTINGS);
    std::fs::remove_file(&archive).expect("the archive is removed");
    let mut expected = json!({ "commit": "a5565a6" });

    // A room with events of all kinds, and members with different cursors.
    let mut ana = Client::join(&server, "talk", &token("ana")).await;
    let mut bob = Client::join(&server, "talk", &token("bob")).await;
    let mut carla = Client::join(&server, "talk", &token("carla")).await;
    let dora = Client::join(&server, "talk", &token("dora")).await;
    for (n, content) in [
        json!("plain"),
        json!("Grüße, 世界 💡 \u{0} \u{2028} \"quoted\" \\ \n\t"),
        json!({ "nested": [1, 2.5, null, { "ключ": "значение" }], "empty": {} }),
        json!(""),
        json!(false),
        json!(9_007_199_254_740_993_u64),
    ]
    .into_iter()
    .enumerate()
    {
        let data = json!({ "content": content, "messageId": format!("ana-{n}") });
        ana.request("sendMessage", data).await.expect("accepted");
    }
    let generated = ana.send_message("an id of the server").await;
    let note = json!({ "event": "note", "data": ["ä", { "x": 1 }], "messageId": "note-1" });
    carla.request("emit", note).await.expect("accepted");
    bob.logged(8).await;
    bob.request("messageDelivered", json!({ "seq": 6 }))
        .await
        .expect("accepted");
    bob.request("messageRead", json!({ "seq": 4 }))
        .await
        .expect("accepted");
    bob.close().await;
    let paid = json!({ "room": "talk", "event": "order:paid", "data": { "order": 7 },
        "messageId": "paid-1" });
    server.post("/publish", &service(), paid).await.ok();
    dora.close().await;
    server
        .delete("/rooms/talk/members/dora", &service())
        .await
        .ok();
    server.put("/rooms/talk/members/erin", &service()).await;
    for n in 0..5 {
        publish(&server, "talk", &format!("later {n}")).await;
    }
    let head = 14;
    carla.logged(head as usize).await;
    carla
        .request("messageRead", json!({ "seq": head }))
        .await
        .expect("accepted");
    expected["talk"] = json!({ "head": head, "delivered": 6, "read": 4,
        "generated": generated["messageId"], "generatedSeq": generated["seq"] });

    // Members that a checkpoint has written, and a message of 200 kB.
    let mut ana = Client::join(&server, "steps", &token("ana")).await;
    for n in 1..=STEPS {
        ana.send_message(&n.to_string()).await;
        ana.request("messageDelivered", json!({ "seq": n }))
            .await
            .expect("accepted");
    }
    let mut ana = Client::join(&server, "large", &token("ana")).await;
    ana.send_message(&large_text()).await;

    // A room that was deleted and used again.
    let mut ana = Client::join(&server, "deleted", &token("ana")).await;
    for n in 1..=3 {
        ana.send_message(&format!("before {n}")).await;
    }
    let before = ana.connected["epoch"].clone();
    server.delete("/rooms/deleted", &service()).await.ok();
    for n in 1..=4 {
        publish(&server, "deleted", &format!("after {n}")).await;
    }
    expected["oldEpoch"] = before;

    // Clients of a gateway. `sam`, `wide` and `gina` are connected at the crash,
    // `tom` is not.
    let gina = lasting("gina").sign(SECRET);
    let mut gina = Client::open(&server, &format!("/ws?token={gina}"), &[])
        .await
        .expect("accepted");
    for room in ["desk", "empty"] {
        gina.request("joinRoom", json!(room)).await.expect("joined");
    }
    gina.request("setPresence", json!({ "status": "busy" }))
        .await
        .expect("set");
    let notice = json!({ "userId": "gina", "event": "notice", "data": { "für": "gina" } });
    server.post("/publish", &service(), notice).await.ok();
    let mut socketio = Vec::new();
    for (user, token) in [
        ("sam", lasting("sam").sign(SECRET)),
        ("tom", lasting("tom").sign(SECRET)),
        ("wide", wide_token()),
    ] {
        let mut client = SocketIo::open(&server, &format!("token={token}")).await;
        let answer = client.connect("/chat", json!({})).await.expect("accepted");
        client
            .request("joinRoom", json!("desk"))
            .await
            .expect("joined");
        socketio.push((user, client, answer["pid"].clone()));
    }
    for n in 1..=5 {
        publish(&server, "desk", &format!("desk {n}")).await;
    }
    let mut clients = Map::new();
    let mut connected = Vec::new();
    for (user, mut client, pid) in socketio {
        messages(&mut client, "desk", 5).await;
        let auth = json!({ "pid": pid, "offset": client.offset() });
        clients.insert(user.to_owned(), auth);
        match user {
            "tom" => client.terminate(),
            _ => connected.push(client),
        }
    }
    expected["clients"] = clients.into();
    gina.logged(6).await;
    let receipt = json!({ "roomId": "desk", "seq": 3 });
    gina.request("messageDelivered", receipt)
        .await
        .expect("accepted");
    tokio::time::sleep(Duration::from_secs(1)).await;
    // These events reach the gateway. The clients do not read them before the crash.
    for n in 6..=8 {
        publish(&server, "desk", &format!("desk {n}")).await;
    }

    // Revocations and tickets.
    expected["made"] = now().into();
    let mut until = Vec::new();
    for body in [json!({ "userId": "rex" }), json!({ "jti": "stolen" })] {
        let answer = server.post("/revoke", &admin(), body).await.ok();
        until.push(answer["until"].clone());
    }
    expected["revokedUntil"] = until[0].clone();
    let answer = server
        .request("POST", "/tickets", Some(&token("ana")), None)
        .await;
    expected["ticket"] = answer.ok()["ticket"].clone();

    // Receipts are stored within a second.
    tokio::time::sleep(Duration::from_secs(2)).await;
    server.kill();
    server.pack_storage(&fixture("tar.gz"));

    server.restart();
    expected["pages"] = pages(&server).await;
    let text = format!("{expected:#}\n");
    std::fs::write(fixture("json"), text).expect("the fixture is written");
}

// ---- Tests ----

#[tokio::test]
async fn pages_and_members_are_the_same_byte_for_byte() {
    let server = server();
    let pages = pages(&server).await;
    for room in ROOMS {
        for resource in ["messages", "members"] {
            let before = expected(&format!("/pages/{}/{resource}", room));
            assert_eq!(&pages[room][resource], before, "{resource} of {room}");
        }
    }
    let page = server.get(&path("large", "messages"), &service()).await;
    let page = page.ok();
    assert_eq!(page["events"][0]["data"]["content"], large_text());
}

#[tokio::test]
async fn a_member_receives_every_event_after_its_delivered_cursor() {
    let server = server();
    let talk = expected("/talk");
    let (head, delivered) = (number(&talk["head"]), number(&talk["delivered"]));
    let mut bob = Client::join(&server, "talk", &token("bob")).await;
    assert_eq!(bob.connected["delivered"], delivered);
    let missed = bob.logged((head - delivered) as usize).await;
    let seqs: Vec<u64> = missed.iter().map(Client::seq).collect();
    assert_eq!(seqs, range(delivered + 1, head));
    let joined = bob.request("joinRoom", json!("talk")).await;
    assert_eq!(joined.expect("joined")["read"], talk["read"]);
    assert_eq!(bob.send_message("new").await["seq"], head + 1);
    assert_eq!(Client::seq(&bob.logged(1).await[0]), head + 1);

    // Cursors of a checkpoint and of the journal after it.
    let mut ana = Client::join(&server, "steps", &token("ana")).await;
    assert_eq!(ana.connected["delivered"], STEPS);
    assert_eq!(ana.connected["seq"], STEPS);
    let mut reader = Client::join_with(&server, "steps", &token("x"), "since=0").await;
    let events = reader.logged(STEPS as usize).await;
    for (n, event) in (1..).zip(&events) {
        assert_eq!(Client::seq(event), n);
        assert_eq!(event["data"]["content"], n.to_string());
    }
    assert_eq!(ana.send_message("new").await["seq"], STEPS + 1);
}

#[tokio::test]
async fn a_resend_of_an_old_message_is_a_duplicate() {
    let server = server();
    let talk = expected("/talk");
    let mut ana = Client::join(&server, "talk", &token("ana")).await;
    for (message_id, seq) in [
        (json!("ana-0"), json!(1)),
        (json!("ana-5"), json!(6)),
        (talk["generated"].clone(), talk["generatedSeq"].clone()),
    ] {
        let data = json!({ "content": "again", "messageId": message_id });
        let again = ana.request("sendMessage", data).await.expect("accepted");
        assert_eq!((&again["seq"], &again["duplicate"]), (&seq, &json!(true)));
    }
    let paid = json!({ "room": "talk", "event": "order:paid", "data": 1, "messageId": "paid-1" });
    let again = server.post("/publish", &service(), paid).await.ok();
    assert_eq!(
        (&again["seq"], &again["duplicate"]),
        (&json!(9), &json!(true))
    );
}

#[tokio::test]
async fn a_resend_of_an_old_message_is_a_duplicate_after_its_row_was_deleted() {
    let mut settings = SETTINGS.to_vec();
    settings.retain(|(name, _)| *name != "RETENTION_EVENTS");
    settings.push(("RETENTION_EVENTS", "1"));
    let mut server = Server::start_from(&fixture("tar.gz"), &Worker::roomcast(), &settings);
    let head = number(expected("/talk/head"));
    // Enough events, so that the old rows are deleted.
    for n in 1..=20 {
        assert_eq!(publish(&server, "talk", "new").await["seq"], head + n);
    }
    server.restart();
    let page = server.get(&path("talk", "messages"), &service()).await.ok();
    assert!(number(&page["gap"]["to"]) >= head, "{page}");
    let mut ana = Client::join(&server, "talk", &token("ana")).await;
    for (message_id, seq) in [
        (json!("ana-0"), json!(1)),
        (
            expected("/talk/generated").clone(),
            expected("/talk/generatedSeq").clone(),
        ),
    ] {
        let data = json!({ "content": "again", "messageId": message_id });
        let again = ana.request("sendMessage", data).await.expect("accepted");
        assert_eq!((&again["seq"], &again["duplicate"]), (&seq, &json!(true)));
    }
}

#[tokio::test]
async fn epochs_and_trimmed_events_are_known() {
    let server = server();
    let old = expected("/oldEpoch").as_str().expect("an epoch");
    let query = format!("since=2&epoch={old}");
    let mut ana = Client::join_with(&server, "deleted", &token("ana"), &query).await;
    assert_eq!(ana.connected["reset"], true);
    let seqs: Vec<u64> = ana.logged(4).await.iter().map(Client::seq).collect();
    assert_eq!(seqs, range(1, 4));
    let epoch = ana.connected["epoch"].as_str().expect("an epoch");
    let query = format!("since=3&epoch={epoch}");
    let mut ana = Client::join_with(&server, "deleted", &token("ana"), &query).await;
    assert_eq!(ana.connected.get("reset"), None);
    assert_eq!(Client::seq(&ana.logged(1).await[0]), 4);

    // `pages_and_members_are_the_same_byte_for_byte` checks that the old build
    // answered with the same gap.
    let page = server.get(&path("trimmed", "messages"), &service()).await;
    let gap = &page.ok()["gap"];
    let trimmed = number(&gap["to"]);
    assert!(gap["from"] == 1 && (1..SENT).contains(&trimmed));
    let mut bob = Client::join_with(&server, "trimmed", &token("bob"), "since=0").await;
    let event = bob.expect("gap").await;
    let data = json!({ "roomId": "trimmed", "from": 1, "to": trimmed });
    assert_eq!(event["data"], data);
    let kept = bob.logged((SENT - trimmed) as usize).await;
    let seqs: Vec<u64> = kept.iter().map(Client::seq).collect();
    assert_eq!(seqs, range(trimmed + 1, SENT));
}

#[tokio::test]
async fn connections_of_gateways_are_restored_and_then_dropped() {
    let server = server();
    server.get(&path("desk", "members"), &service()).await.ok();
    let wake = server.wait_for_log("the start of the room", |line| {
        line["event"] == "wake" && line["roomId"] == "desk"
    });
    assert_eq!(
        wake.await["connections"],
        3,
        "the connections of gina, sam and wide"
    );
    // When bob joins, the room asks the gateway, which does not have these
    // connections.
    let _bob = Client::join(&server, "desk", &token("bob")).await;
    for _ in 0..500 {
        let presence = server.get("/rooms/desk/presence", &service()).await.ok();
        let users = presence["users"].as_array().expect("a list");
        let is_gone = |user: &&str| {
            users.iter().any(|one| {
                one["userId"] == *user && one["connections"] == 0 && one["lastSeen"].is_string()
            })
        };
        if ["gina", "sam", "tom", "wide"].iter().all(is_gone) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the room still counts connections from before the crash");
}

#[tokio::test]
async fn socketio_clients_that_were_connected_at_the_crash_are_recovered() {
    for (user, token) in [("sam", token("sam")), ("wide", wide_token())] {
        let server = server();
        let auth = expected(&format!("/clients/{user}"));
        let mut client = SocketIo::open(&server, &format!("token={token}")).await;
        let answer = client.connect("/chat", auth.clone()).await;
        assert_eq!(answer.expect("accepted")["pid"], auth["pid"], "{user}");
        assert_eq!(messages(&mut client, "desk", 3).await, [6, 7, 8], "{user}");
        assert_eq!(publish(&server, "desk", "new").await["seq"], 9);
        assert_eq!(messages(&mut client, "desk", 1).await, [9], "{user}");
    }
}

#[tokio::test]
async fn a_socketio_client_that_was_disconnected_before_the_crash_misses_nothing() {
    let server = server();
    let auth = expected("/clients/tom");
    let query = format!("token={}", token("tom"));
    let mut tom = SocketIo::open(&server, &query).await;
    let answer = tom.connect("/chat", auth.clone()).await.expect("accepted");
    // Later than a day after the crash, the client receives a new `pid`: it is not
    // recovered. It then joins its rooms again, as after a first connect.
    if answer["pid"] != auth["pid"] {
        let position = json!({ "roomId": "desk", "since": 5 });
        tom.request("joinRoom", position).await.expect("joined");
    }
    assert_eq!(messages(&mut tom, "desk", 3).await, [6, 7, 8]);
    assert_eq!(publish(&server, "desk", "new").await["seq"], 9);
    assert_eq!(messages(&mut tom, "desk", 1).await, [9]);
}

#[tokio::test]
async fn a_native_client_of_a_gateway_continues_after_its_cursor() {
    let server = server();
    let path = format!("/ws?token={}", token("gina"));
    let mut gina = Client::open(&server, &path, &[]).await.expect("accepted");
    let joined = gina.request("joinRoom", json!("desk")).await;
    let joined = joined.expect("joined");
    assert_eq!(
        (&joined["seq"], &joined["delivered"]),
        (&json!(8), &json!(3))
    );
    let mut seqs = Vec::new();
    while seqs.len() < 5 {
        let event = gina.expect("newMessage").await;
        if event["data"]["roomId"] == "desk" {
            seqs.push(Client::seq(&event));
        }
    }
    assert_eq!(seqs, range(4, 8));
}

#[tokio::test]
async fn revoked_tokens_and_old_tickets_are_refused() {
    let server = server();
    let made = expected("/made").as_i64().expect("a time");
    // An unexpired revocation applies to tokens that were issued before it.
    if now() < expected("/revokedUntil").as_i64().expect("a time") {
        for token in [
            Token::user("rex").claim("iat", made - 10),
            Token::user("ana").claim("jti", "stolen"),
        ] {
            let answer = server
                .get("/rooms/talk/messages", &token.sign(SECRET))
                .await;
            answer.problem(401, "unauthorized");
        }
    }
    for token in [
        Token::user("rex").claim("iat", now()),
        Token::user("ana").claim("jti", "mine"),
        Token::user("ana").claim("iat", made - 10),
    ] {
        let page = server
            .get("/rooms/talk/messages", &token.sign(SECRET))
            .await;
        page.ok();
    }
    // A ticket is valid for 30 s.
    let old = expected("/ticket").as_str().expect("a ticket");
    let path = |ticket: &str| format!("/rooms/talk/ws?ticket={ticket}");
    if now() > made + 60 {
        let answer = server.request_upgrade(&path(old), &[]).await;
        answer.problem(401, "unauthorized");
    }
    let bearer = token("ana");
    let answer = server
        .request("POST", "/tickets", Some(&bearer), None)
        .await;
    let new = answer.ok()["ticket"].clone();
    let new = path(new.as_str().expect("a ticket"));
    Client::open(&server, &new, &[]).await.expect("accepted");
}

#[tokio::test]
async fn data_of_both_builds_survives_kill_9() {
    let mut server = server();
    let head = number(expected("/talk/head"));
    let mut ana = Client::join(&server, "talk", &token("ana")).await;
    ana.send_message("new").await;
    let receipt = json!({ "seq": head + 1 });
    ana.request("messageRead", receipt).await.expect("accepted");
    // Receipts are stored within a second.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let page = server.get(&path("talk", "messages"), &service()).await;
    let members = server.get(&path("talk", "members"), &service()).await;
    server.restart();
    for (resource, before) in [("messages", page), ("members", members)] {
        let after = server.get(&path("talk", resource), &service()).await;
        assert_eq!(after.text, before.text);
    }
    let ana = Client::join(&server, "talk", &token("ana")).await;
    assert_eq!(ana.connected["delivered"], head + 1);
}

/// The runtime finds an object by the names of the Worker, its bindings and its
/// classes. A changed name would open an empty object.
#[test]
fn names_of_bindings_and_classes_are_those_of_the_old_build() {
    let toml = Path::new(env!("CARGO_MANIFEST_DIR")).join("wrangler.toml");
    let toml = std::fs::read_to_string(toml).expect("wrangler.toml");
    for name in [
        "name = \"roomcast\"\n",
        "name = \"ROOMS\"\nclass_name = \"Room\"\n",
        "name = \"GATEWAYS\"\nclass_name = \"Gateway\"\n",
        "name = \"REVOCATIONS\"\nclass_name = \"Revocations\"\n",
        "name = \"TICKETS\"\nclass_name = \"Tickets\"\n",
        "tag = \"v1\"\nnew_sqlite_classes = [\"Room\"]\n",
        "tag = \"v2\"\nnew_sqlite_classes = [\"Gateway\"]\n",
        "tag = \"v3\"\nnew_sqlite_classes = [\"Revocations\", \"Tickets\"]\n",
    ] {
        assert!(toml.contains(name), "{name}");
    }
}
