//! Isolation of connections. A connection receives only events of rooms that its own
//! token opens. It is accepted only as the user of its own token. A client without a
//! token can neither exhaust the memory of a gateway nor block it.

use super::{connections, service, token};
use futures_util::future::join_all;
use roomcast_harness::{Client, Event, Polling, SECRET, SEPARATOR, Server, SocketIo, Token};
use serde_json::{Value, json};
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// Upper limit for the memory growth of the server under an attack, in MiB.
const MAX_GROWTH: usize = 16;

/// One gateway, so that all clients of a test share it.
const ONE_GATEWAY: (&str, &str) = ("GATEWAY_SHARDS", "1");

/// Held by tests that measure time or memory, so that they run one after the other.
static MEASURES: Mutex<()> = Mutex::const_new(());

/// Repeats a measurement up to three times, until its figures are within their bounds.
/// Panics with the last figures. Other processes on the machine can disturb one
/// measurement. A defect of the server fails all three.
async fn assert_within_bounds(measure: impl AsyncFn() -> Result<(), String>) {
    let _alone = MEASURES.lock().await;
    let mut figures = String::new();
    for _ in 0..3 {
        let Err(out_of_bounds) = measure().await else {
            return;
        };
        println!("{out_of_bounds}");
        figures = out_of_bounds;
    }
    panic!("{figures}");
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Returns a token that opens only these rooms.
fn token_for(user: &str, rooms: &[&str]) -> String {
    Token::user(user).claim("rooms", rooms).sign(SECRET)
}

async fn publish(server: &Server, room: &str, content: impl Into<Value>) {
    let content = content.into();
    let body = json!({ "room": room, "event": "newMessage", "data": { "content": content } });
    server.post("/publish", &service(), body).await.ok();
}

async fn notify(server: &Server, user: &str) {
    let body = json!({ "userId": user, "event": "notice", "data": { "for": user } });
    server.post("/publish", &service(), body).await.ok();
}

/// Waits until the room counts this many connections of the user.
async fn until_connections(server: &Server, room: &str, user: &str, expected: u64) {
    let mut counted = u64::MAX;
    for _ in 0..500 {
        counted = connections(server, room, user).await;
        if counted == expected {
            return;
        }
        tokio::time::sleep(ms(20)).await;
    }
    panic!("{room} counts {counted} connections of {user}, not {expected}");
}

/// Joins a room over Socket.IO, which must succeed.
async fn join(client: &mut SocketIo, room: &str) {
    let answer = client.request("joinRoom", json!(room)).await;
    answer.unwrap_or_else(|error| panic!("joinRoom {room}: {error}"));
}

/// Asserts that the next `connected` of the client names this user.
async fn assert_connected_as(client: &mut SocketIo, user: &str) {
    let connected = client.expect("connected").await;
    assert_eq!(connected.args[0]["userId"], user, "the identity of {user}");
}

/// Returns the received events of rooms that the client must not read: the number of
/// events by name and room.
fn foreign_events(client: &SocketIo, is_foreign: impl Fn(&str) -> bool) -> BTreeMap<String, usize> {
    let mut foreign = BTreeMap::new();
    for event in &client.events {
        if let Some(room) = event.room().filter(|room| is_foreign(room)) {
            *foreign.entry(format!("{} {room}", event.name)).or_default() += 1;
        }
    }
    foreign
}

/// Waits for the answer to the CONNECT of the client. Returns a description of the
/// problem if there is no answer, if the CONNECT is refused, or if the client is
/// accepted as another user.
async fn connect_problem(client: &mut SocketIo, user: &str) -> Option<String> {
    match client.connect_answer_within(ms(4_000)).await {
        None => return Some(format!("{user} has no answer to its CONNECT")),
        Some(Err(error)) => return Some(format!("{user} is refused: {error}")),
        Some(Ok(_)) => {}
    }
    let connected = client.expect("connected").await.args[0]["userId"].clone();
    (connected != user).then(|| format!("{user} is connected as {connected}"))
}

#[tokio::test]
async fn events_of_a_user_never_reach_another_users_connection() {
    const VICTIMS: usize = 8;
    let server = Server::start(&[ONE_GATEWAY]);
    let mut bystander = SocketIo::join(&server, &token_for("bystander", &["private"])).await;
    join(&mut bystander, "private").await;

    let mut victims = Vec::new();
    for n in 0..VICTIMS {
        let user = format!("victim-{n}");
        let query = format!("token={}", token_for(&user, &["private"]));
        let mut client = SocketIo::open(&server, &query).await;
        let answer = client.connect("/", json!({})).await.expect("accepted");
        join(&mut client, "private").await;
        publish(&server, "private", n).await;
        client.expect("newMessage").await;
        let auth = json!({ "pid": answer["pid"], "offset": client.offset() });
        client.terminate();
        victims.push((query, auth));
    }
    for round in 0..12 {
        let losses = victims
            .iter_mut()
            .enumerate()
            .map(async |(n, (query, auth))| {
                let mut client = SocketIo::open(&server, query).await;
                client.start_connect("/", auth.clone()).await;
                let wait = ms((round + n as u64) % 8);
                if let Some(Ok(answer)) = client.connect_answer_within(wait).await
                    && answer["pid"] != auth["pid"]
                {
                    // Not recovered: an application joins its rooms again.
                    *auth = json!({ "pid": answer["pid"] });
                    client.emit("joinRoom", json!("private")).await;
                    client.read_for(wait).await;
                }
                client.terminate();
            });
        join_all(losses).await;
    }

    let mut others = Vec::new();
    for n in 0..24 {
        let user = format!("other-{n}");
        let query = format!("token={}", token_for(&user, &["public*"]));
        let mut other = SocketIo::open(&server, &query).await;
        other.start_connect("/", json!({})).await;
        others.push((user, other));
    }
    let wait = ms(3_000);
    let answers = others
        .iter_mut()
        .map(|(_, other)| other.connect_answer_within(wait));
    let answers = join_all(answers).await;
    for n in 0..VICTIMS {
        publish(&server, "private", n).await;
        notify(&server, &format!("victim-{n}")).await;
        bystander.expect("newMessage").await;
    }
    join_all(others.iter_mut().map(|(_, other)| other.read_for(ms(500)))).await;

    let is_foreign = |room: &str| room == "private" || room.starts_with("@victim");
    let leaks: Vec<_> = others
        .iter()
        .map(|(user, other)| (user, foreign_events(other, is_foreign)))
        .filter(|(_, events)| !events.is_empty())
        .collect();
    assert!(leaks.is_empty(), "events of the victims' rooms: {leaks:?}");
    for ((user, other), answer) in others.iter_mut().zip(answers) {
        let answer = answer.unwrap_or_else(|| panic!("no answer to the CONNECT of {user}"));
        answer.unwrap_or_else(|error| panic!("the CONNECT of {user}: {error}"));
        assert_connected_as(other, user).await;
        join(other, "public").await;
    }
    for n in 0..VICTIMS {
        let victim = format!("victim-{n}");
        until_connections(&server, "private", &victim, 0).await;
        until_connections(&server, &format!("@{victim}"), &victim, 0).await;
    }
}

#[tokio::test]
async fn a_client_that_dies_during_recovery_leaves_nothing_behind() {
    const ROOMS: usize = 20;
    const MISSED: usize = 40;
    const VICTIMS: usize = 8;
    let server = Server::start(&[ONE_GATEWAY]);
    let rooms: Vec<String> = (0..ROOMS).map(|n| format!("secret-{n}")).collect();
    // A connected client delays the hibernation of the gateway.
    let _idle = SocketIo::join(&server, &token_for("idle", &["public*"])).await;

    let query = |n: usize| {
        let user = format!("victim-{n}");
        format!("token={}", token_for(&user, &["secret-*"]))
    };
    let victims = (0..VICTIMS).map(async |n| {
        let mut victim = SocketIo::open(&server, &query(n)).await;
        let answer = victim.connect("/", json!({})).await.expect("accepted");
        for room in &rooms {
            join(&mut victim, room).await;
        }
        victim.terminate();
        answer["pid"].clone()
    });
    let pids = join_all(victims).await;
    for n in 0..VICTIMS {
        until_connections(&server, "secret-19", &format!("victim-{n}"), 0).await;
    }
    for room in &rooms {
        let one = json!({ "room": room, "event": "newMessage", "data": { "content": "secret" } });
        let batch = json!({ "messages": vec![one; MISSED] });
        server.post("/publish", &service(), batch).await.ok();
    }

    let newcomer = async |user: String| {
        let mut other = SocketIo::open(&server, "").await;
        let auth = json!({ "token": token_for(&user, &["public*"]) });
        other.start_connect("/", auth).await;
        let problem = connect_problem(&mut other, &user).await;
        (user, other, problem)
    };
    // The victims reconnect at the same time, so that each recovery takes longer. Their
    // connections end at different moments of the recovery.
    let losses = pids.iter().enumerate().map(async |(n, pid)| {
        let mut victim = SocketIo::open(&server, &query(n)).await;
        victim.start_connect("/", json!({ "pid": pid })).await;
        tokio::time::sleep(ms(5 * n as u64)).await;
        victim.terminate();
        newcomer(format!("early-{n}")).await
    });
    let mut newcomers = join_all(losses).await;
    for n in 0..16 {
        newcomers.push(newcomer(format!("late-{n}")).await);
    }
    let (mut others, mut problems) = (Vec::new(), Vec::new());
    for (user, other, problem) in newcomers {
        problems.extend(problem);
        others.push((user, other));
    }
    assert!(problems.is_empty(), "{problems:#?}");
    for (_, other) in &mut others {
        join(other, "public").await;
        let refused = other.request("joinRoom", json!("secret-0")).await;
        assert_eq!(refused.expect_err("not its room")["code"], "forbidden");
    }
    for room in &rooms {
        publish(&server, room, "later").await;
    }
    for n in 0..VICTIMS {
        notify(&server, &format!("victim-{n}")).await;
    }
    publish(&server, "public", "for all").await;
    let is_foreign = |room: &str| room.starts_with("secret-") || room.starts_with("@victim");
    for (user, other) in &mut others {
        other.expect("newMessage").await;
        other.read_for(ms(50)).await;
        let leaked = foreign_events(other, is_foreign);
        assert!(leaked.is_empty(), "{user} received {leaked:?}");
        notify(&server, user).await;
        other.expect("notice").await;
    }
    for n in 0..VICTIMS {
        until_connections(&server, "secret-0", &format!("victim-{n}"), 0).await;
    }
}

/// Opens ten connections of `victim`, which is the limit, and an eleventh, which is lost at
/// once. Returns the ten connections and the `pid` of the eleventh. The session saved under
/// this `pid` has no rooms if the connection was lost before its personal room answered.
async fn eleven_connections(server: &Server, token: &str) -> (Vec<SocketIo>, Value) {
    let mut open = Vec::new();
    for _ in 0..10 {
        open.push(SocketIo::join(server, token).await);
    }
    until_connections(server, "@victim", "victim", 10).await;
    let mut eleventh = SocketIo::open(server, &format!("token={token}")).await;
    let answer = eleventh.connect("/", json!({})).await;
    let pid = answer.map_or(Value::Null, |answer| answer["pid"].clone());
    eleventh.terminate();
    (open, pid)
}

#[tokio::test]
async fn a_client_is_only_ever_accepted_as_the_user_of_its_own_token() {
    let server = Server::start(&[ONE_GATEWAY]);
    let mut bystander = SocketIo::join(&server, &token_for("bystander", &["public*"])).await;
    join(&mut bystander, "public").await;
    let victim = token_for("victim", &["secret"]);
    let (_open, pid) = eleven_connections(&server, &victim).await;
    for n in 0..8 {
        let mut victim = SocketIo::open(&server, &format!("token={victim}")).await;
        victim.start_connect("/", json!({ "pid": pid })).await;
        tokio::time::sleep(ms(20)).await;
        victim.terminate();
        let user = format!("other-{n}");
        let mut other = SocketIo::open(&server, "").await;
        let auth = json!({ "token": token_for(&user, &["public*"]) });
        other.start_connect("/", auth).await;
        tokio::time::sleep(ms(20)).await;
        // A delivery from any room makes the gateway process pending recoveries.
        publish(&server, "public", n).await;
        let problem = connect_problem(&mut other, &user).await;
        assert_eq!(problem, None);
    }
}

#[tokio::test]
async fn recovery_joins_the_personal_room() {
    let server = Server::start(&[ONE_GATEWAY]);
    let mut bystander = SocketIo::join(&server, &token("bystander")).await;
    join(&mut bystander, "traffic").await;
    let token = token("victim");
    let (_open, pid) = eleven_connections(&server, &token).await;
    let mut client = SocketIo::open(&server, &format!("token={token}")).await;
    client.start_connect("/", json!({ "pid": pid })).await;
    // A delivery from any room makes the gateway process pending recoveries.
    publish(&server, "traffic", "x").await;
    client.connect_answer().await.expect("accepted");
    assert_connected_as(&mut client, "victim").await;
    notify(&server, "victim").await;
    let is_notice = |event: &Event| event.name == "notice";
    let notice = client.find_within(ms(5_000), is_notice).await;
    assert!(
        notice.is_some(),
        "the client is connected but receives no event of the personal room"
    );
}

#[tokio::test]
async fn an_eleventh_connection_receives_personal_events_or_is_closed() {
    let server = Server::start(&[ONE_GATEWAY]);
    let mut bystander = SocketIo::join(&server, &token("bystander")).await;
    join(&mut bystander, "traffic").await;
    let token = token("victim");
    let (_open, pid) = eleven_connections(&server, &token).await;
    for auth in [json!({}), json!({ "pid": pid })] {
        let mut client = SocketIo::open(&server, &format!("token={token}")).await;
        client.start_connect("/", auth.clone()).await;
        publish(&server, "traffic", "x").await;
        // A refused CONNECT is correct: the client knows that it is not connected.
        if client.connect_answer().await.is_err() {
            continue;
        }
        notify(&server, "victim").await;
        let is_notice = |event: &Event| event.name == "notice";
        let notice = client.find_within(ms(5_000), is_notice).await;
        let ended = client.close_code().is_some() || client.is_disconnected("/");
        assert!(
            notice.is_some() || ended,
            "the client is connected with {auth} but receives no event of the personal room"
        );
    }
}

#[tokio::test]
async fn a_native_gateway_socket_leaves_rooms_that_the_new_token_does_not_allow() {
    let server = Server::start(&[]);
    let path = format!("/ws?token={}", token_for("bob", &["x", "y"]));
    let mut bob = Client::open(&server, &path, &[]).await.expect("accepted");
    for room in ["x", "y"] {
        bob.request("joinRoom", json!(room)).await.expect("joined");
    }
    let fresh = json!({ "token": token_for("bob", &["y"]) });
    bob.request("refreshToken", fresh).await.expect("refreshed");
    publish(&server, "x", "of x").await;
    // The event would arrive within this time.
    tokio::time::sleep(ms(300)).await;
    publish(&server, "y", "of y").await;
    let first = bob.logged(1).await.remove(0);
    assert_eq!(
        first["data"]["roomId"], "y",
        "an event of a room that the new token does not open"
    );
    let closed = bob.expect("roomClosed").await;
    assert_eq!(
        closed["data"],
        json!({ "roomId": "x", "code": "forbidden" })
    );
    let message = json!({ "roomId": "x", "content": "to x" });
    let refused = bob.request("sendMessage", message).await;
    let code = refused.expect_err("not joined")["code"].clone();
    assert!(code == "notJoined" || code == "forbidden", "{code}");
    let refused = bob.request("joinRoom", json!("x")).await;
    assert_eq!(refused.expect_err("not its room")["code"], "forbidden");
    let message = json!({ "roomId": "y", "content": "to y" });
    bob.request("sendMessage", message).await.expect("sent");
    assert_is_member(&server, "x", "bob").await;
    until_connections(&server, "x", "bob", 0).await;
}

#[tokio::test]
async fn a_socketio_client_leaves_rooms_that_the_new_token_does_not_allow() {
    let server = Server::start(&[]);
    let mut bob = SocketIo::join(&server, &token_for("bob", &["x", "y"])).await;
    for room in ["x", "y"] {
        join(&mut bob, room).await;
    }
    let fresh = json!({ "token": token_for("bob", &["y"]) });
    bob.request("refreshToken", fresh).await.expect("refreshed");
    publish(&server, "x", "of x").await;
    // The event would arrive within this time.
    tokio::time::sleep(ms(300)).await;
    publish(&server, "y", "of y").await;
    let first = bob.expect("newMessage").await;
    assert_eq!(
        first.room(),
        Some("y"),
        "an event of a room that the new token does not open"
    );
    let closed = bob.expect("roomClosed").await;
    assert_eq!(
        closed.args[0],
        json!({ "roomId": "x", "code": "forbidden" })
    );
    let message = json!({ "roomId": "x", "content": "to x" });
    let refused = bob.request("sendMessage", message).await;
    let code = refused.expect_err("not joined")["code"].clone();
    assert!(code == "notJoined" || code == "forbidden", "{code}");
    let refused = bob.request("joinRoom", json!("x")).await;
    assert_eq!(refused.expect_err("not its room")["code"], "forbidden");
    let message = json!({ "roomId": "y", "content": "to y" });
    bob.request("sendMessage", message).await.expect("sent");
    assert_is_member(&server, "x", "bob").await;
    until_connections(&server, "x", "bob", 0).await;
}

async fn assert_is_member(server: &Server, room: &str, user: &str) {
    let path = format!("/rooms/{room}/members");
    let members = server.get(&path, &service()).await.ok();
    let mut members = members.as_array().expect("a list").iter();
    let is_member = members.any(|member| member["userId"] == user);
    assert!(is_member, "{user} stays a member of {room}");
}

#[tokio::test]
async fn a_token_refreshed_in_one_namespace_counts_for_the_session() {
    let server = Server::start(&[("NAMESPACES", "/ /chat")]);
    let query = format!("token={}", token_for("bob", &["x", "y"]));
    let mut bob = SocketIo::open(&server, &query).await;
    bob.connect("/", json!({})).await.expect("accepted");
    let fresh = json!({ "token": token_for("bob", &["y"]) });
    bob.request("refreshToken", fresh).await.expect("refreshed");
    bob.disconnect("/").await;
    for nsp in ["/", "/chat"] {
        bob.connect(nsp, json!({})).await.expect("accepted");
        let refused = bob.request("joinRoom", json!("x")).await;
        let error = refused.expect_err("x is not a room of the newest token");
        assert_eq!(error["code"], "forbidden", "{nsp}");
        join(&mut bob, "y").await;
    }
}

/// Returns a long-polling body of up to `bytes` bytes that repeats this packet.
fn body_of(packet: &str, bytes: usize) -> String {
    vec![packet; bytes / (packet.len() + 1)].join(&SEPARATOR.to_string())
}

/// Returns the 95th percentile.
fn p95(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[(times.len() * 95).div_ceil(100) - 1]
}

/// Sends a message every 10 ms: at least `n` messages, and up to 1,000 while `goes_on`
/// returns `true`. Returns the time until each acknowledgement. For an acknowledgement
/// that does not arrive, it is the time until the end of the measurement.
async fn ack_times(client: &mut SocketIo, n: u32, goes_on: impl Fn() -> bool) -> Vec<Duration> {
    let (mut times, mut pending) = (Vec::new(), VecDeque::new());
    let began = Instant::now();
    let mut sent = 0;
    loop {
        if sent < n || (goes_on() && sent < 1_000) {
            let message = json!({ "roomId": "lobby", "content": "x" });
            let id = client.start("sendMessage", message).await;
            pending.push_back((id, Instant::now()));
            sent += 1;
        } else if pending.is_empty()
            || began.elapsed() > ms(15_000)
            || client.close_code().is_some()
        {
            break;
        }
        let next = began + ms(10) * sent;
        while let Some((id, at)) = pending.front() {
            let wait = next.saturating_duration_since(Instant::now());
            let Some(answer) = client.answer_within(*id, wait.max(ms(1))).await else {
                break;
            };
            answer.expect("the message is accepted");
            times.push(at.elapsed());
            pending.pop_front();
        }
        tokio::time::sleep_until(next.into()).await;
    }
    times.extend(pending.into_iter().map(|(_, at)| at.elapsed()));
    times
}

/// Sends messages one at a time.
async fn send_messages(client: &mut SocketIo, n: usize) {
    for _ in 0..n {
        let message = json!({ "roomId": "lobby", "content": "x" });
        let answer = client.request("sendMessage", message).await;
        answer.expect("the message is accepted");
    }
}

/// Returns the lowest memory use of the server within one second, in MiB. This excludes
/// memory that the server is about to free.
async fn settled_memory(server: &Server) -> usize {
    let mut least = server.memory();
    for _ in 0..10 {
        tokio::time::sleep(ms(100)).await;
        least = least.min(server.memory());
    }
    least
}

/// Returns the number of log records of the server, except those of accepted
/// messages.
fn records(server: &Server) -> usize {
    let output = server.output();
    let others = output
        .lines()
        .filter(|line| !line.contains(r#""event":"publish""#));
    others.count()
}

/// Opens eight polling sessions without a token.
async fn strangers(server: &Server) -> Vec<Polling> {
    join_all((0..8).map(|_| Polling::open(server, ""))).await
}

/// Posts a body to each session at the same time. Returns the status of each
/// answer.
async fn post_to_all(server: &Server, sessions: &[Polling], body: &str) -> Vec<Option<u16>> {
    let timeout = Duration::from_secs(60);
    let posts = sessions
        .iter()
        .map(|session| session.try_post(server, body, timeout));
    join_all(posts).await
}

/// Eight clients without a token each post a body that repeats this packet, while a
/// client of the same gateway sends messages. Returns an error with the figures if the
/// attack affects other clients, the memory or the log.
async fn measure_attack(packet: &str, bytes: usize) -> Result<(), String> {
    let fast = [
        ONE_GATEWAY,
        ("MESSAGES_PER_SECOND", "100000"),
        ("MESSAGES_BURST", "100000"),
    ];
    let server = Server::start(&fast);
    let mut clients = Vec::new();
    for n in 0..24 {
        let mut client = SocketIo::join(&server, &token(&format!("user-{n}"))).await;
        join(&mut client, "lobby").await;
        clients.push(client);
    }
    // The runtime allocates memory for this traffic until it collects garbage. The
    // usual memory is known after three rounds without growth. A malformed body ends a
    // session at once.
    let malformed = "x".repeat(1_000_000);
    let (mut usual_memory, mut unchanged, mut sent) = (0, 0, 0);
    while unchanged < 3 && sent < 2_000 {
        post_to_all(&server, &strangers(&server).await, &malformed).await;
        send_messages(&mut clients[0], 100).await;
        sent += 100;
        let memory = server.memory();
        unchanged = if memory > usual_memory {
            0
        } else {
            unchanged + 1
        };
        usual_memory = usual_memory.max(memory);
    }
    let usual = ack_times(&mut clients[0], 200, || false).await;
    let sessions = strangers(&server).await;
    let recorded = records(&server);

    let body = body_of(packet, bytes);
    let busy = Cell::new(true);
    let attack = async {
        let answers = post_to_all(&server, &sessions, &body).await;
        busy.set(false);
        answers
    };
    let (answers, under_attack) =
        tokio::join!(attack, ack_times(&mut clients[0], 200, || busy.get()));
    sent += usual.len() + under_attack.len();
    let new_records = records(&server) - recorded;
    let mut cut_off = 0;
    for client in &mut clients {
        let is_last = |event: &Event| event.args[0]["seq"] == sent;
        if client.find_within(ms(5_000), is_last).await.is_none() {
            cut_off += 1;
        }
    }
    // The runtime frees its buffers after a while; the gateway never gives back
    // memory that it has allocated.
    let mut memory = settled_memory(&server).await;
    for _ in 0..3 {
        post_to_all(&server, &strangers(&server).await, &malformed).await;
        memory = memory.min(server.memory());
    }
    let growth = memory.saturating_sub(usual_memory);
    let (usual, under_attack) = (p95(usual), p95(under_attack));
    let within = cut_off == 0
        && under_attack <= usual + ms(100)
        && growth < MAX_GROWTH
        && new_records <= 4 * answers.len();
    within.then_some(()).ok_or_else(|| {
        format!(
            "{cut_off} of 24 clients did not receive the last message; 95 % of the \
             acknowledgements took up to {usual:?} before and {under_attack:?} during the attack; the server grew by \
             {growth} MiB and wrote {new_records} log records; it answered {answers:?}"
        )
    })
}

#[tokio::test]
async fn connects_without_a_token_do_not_block_a_gateway() {
    assert_within_bounds(async || measure_attack("40", 1_000_000).await).await;
}

#[tokio::test]
async fn connects_without_a_token_in_small_bodies_do_not_block_a_gateway() {
    assert_within_bounds(async || measure_attack("40", 4_000).await).await;
}

#[tokio::test]
async fn noops_without_a_token_do_not_block_a_gateway() {
    assert_within_bounds(async || measure_attack("6", 1_000_000).await).await;
}

#[tokio::test]
async fn connects_to_unknown_namespaces_do_not_block_a_gateway() {
    assert_within_bounds(async || measure_attack("40/x,", 1_000_000).await).await;
}

/// Opens clients without a token, eight at a time. Each sends `announcement` and then
/// 900 kB of attachments. Returns after the server has closed all of them.
async fn send_attachments(server: &Server, announcement: &str, clients: usize) {
    let stranger = async || {
        let mut stranger = SocketIo::open(server, "").await;
        stranger.send(announcement).await;
        for _ in 0..9 {
            stranger.send_binary(vec![7; 100_000]).await;
        }
        stranger
    };
    let mut strangers = Vec::new();
    for _ in 0..clients / 8 {
        strangers.extend(join_all((0..8).map(|_| stranger())).await);
    }
    for mut stranger in strangers {
        stranger.closed().await;
    }
}

/// Upper limit in MiB for the memory growth by 144 MB of attachments: a third of them. The
/// runtime frees the buffers of sockets late while other tests use the processor, up to 33 MiB.
const MAX_GROWTH_BY_ATTACHMENTS: usize = 48;

/// Measures the memory growth by announced attachments. Returns an error with the
/// figure if it is too large.
async fn measure_attachments() -> Result<(), String> {
    let server = Server::start(&[ONE_GATEWAY]);
    let mut alice = SocketIo::join(&server, &token("alice")).await;
    join(&mut alice, "lobby").await;
    // The runtime allocates memory for this traffic until it collects garbage. The
    // usual memory is known after three rounds without growth. Attachments without an
    // announcement close a session at once.
    let (mut usual, mut unchanged) = (0, 0);
    for _ in 0..16 {
        send_attachments(&server, "3", 80).await;
        let memory = server.memory();
        unchanged = if memory > usual { 0 } else { unchanged + 1 };
        usual = usual.max(memory);
        if unchanged == 3 {
            break;
        }
    }
    send_attachments(&server, r#"45256-["x"]"#, 160).await;
    // The runtime frees its buffers after a while; the gateway never gives back
    // memory that it has allocated.
    let mut memory = settled_memory(&server).await;
    for _ in 0..4 {
        send_attachments(&server, "3", 80).await;
        memory = memory.min(server.memory());
    }
    join(&mut alice, "lobby-2").await;
    let growth = memory.saturating_sub(usual);
    let within = growth < MAX_GROWTH_BY_ATTACHMENTS;
    let figures = || format!("the server grew by {growth} MiB");
    within.then_some(()).ok_or_else(figures)
}

#[tokio::test]
async fn announced_attachments_without_a_token_are_not_buffered() {
    assert_within_bounds(measure_attachments).await;
}

/// Returns the `reject` records in the log of the server.
fn rejects(server: &Server) -> Vec<Value> {
    let mut records = server.log();
    records.retain(|record| record["event"] == "reject");
    records
}

#[tokio::test]
async fn a_session_without_a_token_is_closed_after_five_refused_connects() {
    let server = Server::start(&[ONE_GATEWAY]);
    let mut stranger = SocketIo::open(&server, "").await;
    for n in 1..=5 {
        let auth = json!({ "token": format!("not a token {n}") });
        let error = stranger.connect("/", auth).await.expect_err("refused");
        assert_eq!(error["data"]["code"], "unauthorized", "CONNECT {n}");
    }
    let auth = json!({ "token": "not a token 6" });
    stranger.start_connect("/", auth).await;
    let code = stranger.closed_within(ms(3_000)).await;
    assert!(code.is_some(), "the sixth CONNECT closes the session");
    let rejected = rejects(&server);
    assert_eq!(rejected.len(), 1, "one record per connection: {rejected:?}");
    // The refused CONNECTs do not affect the next session of the same client.
    SocketIo::join(&server, &token("alice")).await;
}

#[tokio::test]
async fn a_session_without_a_token_is_closed_after_ten_seconds() {
    let server = Server::start(&[ONE_GATEWAY]);
    let silent = async {
        let mut stranger = SocketIo::open(&server, "").await;
        let began = Instant::now();
        let code = stranger.closed_within(ms(13_000)).await;
        ("a silent session", code.is_some(), began.elapsed())
    };
    let refused = async {
        let mut stranger = SocketIo::open(&server, "").await;
        let began = Instant::now();
        let auth = json!({ "token": "not a token" });
        stranger.connect("/", auth).await.expect_err("refused");
        let code = stranger.closed_within(ms(13_000)).await;
        (
            "a session with a bad token",
            code.is_some(),
            began.elapsed(),
        )
    };
    let polling = async {
        let stranger = Polling::open(&server, "").await;
        let began = Instant::now();
        // A ping of the server answers a poll as well.
        let ended = async {
            while stranger.poll(&server).await.text == "2" {
                stranger.try_post(&server, "3", ms(5_000)).await;
            }
        };
        let ended = tokio::time::timeout(ms(13_000), ended).await.is_ok();
        ("a polling session", ended, began.elapsed())
    };
    let (silent, refused, polling) = tokio::join!(silent, refused, polling);
    for (name, closed, after) in [silent, refused, polling] {
        assert!(closed, "{name} is open after {after:?}");
        assert!(after > ms(9_000), "{name} is closed after {after:?}");
    }
}

/// Six sockets send a frame of 500,000 lines at the same time. Returns an error with
/// the figures if a socket is not closed with 4413 or if the server grows too much.
async fn measure_lines(path: &str) -> Result<(), String> {
    let server = Server::start(&[ONE_GATEWAY, ("MAX_FRAME_BYTES", "1048576")]);
    let open = async |user: &str| {
        let path = format!("{path}?token={}", token(user));
        let client = Client::open(&server, &path, &[]).await;
        client.expect("accepted")
    };
    let mut bob = open("bob").await;
    let mut sockets = Vec::new();
    for n in 0..6 {
        sockets.push(open(&format!("user-{n}")).await);
    }
    // Large frames are sent before the measurement, so that the buffers for them are
    // allocated already.
    for _ in 0..6 {
        let large = json!({ "none": "x".repeat(1_000_000) });
        let refused = bob.request("nonsense", large).await;
        assert_eq!(refused.expect_err("unknown")["code"], "badRequest");
    }
    let frame = "5\n".repeat(500_000);
    let memory = settled_memory(&server).await;
    let began = Instant::now();
    join_all(sockets.iter_mut().map(|socket| socket.send_text(&frame))).await;
    let closes = sockets.iter_mut().map(async |socket| {
        let closed = tokio::time::timeout(ms(4_000), socket.closed()).await;
        closed.ok()
    });
    let codes = join_all(closes).await;
    let took = began.elapsed();
    let growth = settled_memory(&server).await.saturating_sub(memory);
    let status = json!({ "status": "busy" });
    bob.request("setPresence", status).await.expect("served");
    let within = codes.iter().all(|code| *code == Some(4413)) && growth < MAX_GROWTH;
    within.then_some(()).ok_or_else(|| {
        format!("closed by {codes:?} after {took:?}; the server grew by {growth} MiB")
    })
}

#[tokio::test]
async fn a_frame_of_many_small_lines_is_refused_by_a_room() {
    assert_within_bounds(async || measure_lines("/rooms/r/ws").await).await;
}

#[tokio::test]
async fn a_frame_of_many_small_lines_is_refused_by_a_gateway() {
    assert_within_bounds(async || measure_lines("/ws").await).await;
}

/// Opens a native socket at a gateway and starts to join a room.
async fn start_join(server: &Server, user: &str, room: &str, since: u64) -> Client {
    let path = format!("/ws?token={}", token(user));
    let client = Client::open(server, &path, &[]).await;
    let mut client = client.expect("accepted");
    let from = json!({ "roomId": room, "since": since });
    client.start("joinRoom", from).await;
    client
}

/// Reads the log of a room up to `last` in order. Sends a ping after every 64 events
/// and after 250 ms without an event. Returns an error if an event is missing or if the
/// connection is closed.
async fn read_log(server: &Server, user: &str, room: &str, last: u64) -> Result<(), String> {
    let mut client = start_join(server, user, room, 0).await;
    let mut next = 1;
    while next <= last {
        match client.expect_seq(next, ms(250)).await? {
            true => next += 1,
            false => client.send_text("ping").await,
        }
        if next % 64 == 0 {
            client.send_text("ping").await;
            client.frames.clear();
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_replay_through_a_gateway_does_not_delay_other_connections() {
    const EVENTS: u64 = 10_000;
    const LISTENERS: usize = 16;
    const JOINERS: usize = 4;
    const LIVE: u64 = 20;
    let _alone = MEASURES.lock().await;
    let server = Server::start(&[ONE_GATEWAY, ("RETENTION_EVENTS", "20000")]);
    let text = "x".repeat(4_000);
    let one = json!({ "room": "long", "event": "newMessage", "data": { "content": text } });
    let batch = json!({ "messages": vec![one; 100] });
    for _ in 0..EVENTS / 100 {
        let answer = server.post("/publish", &service(), batch.clone()).await;
        answer.ok();
    }
    let mut listeners = Vec::new();
    for n in 0..LISTENERS {
        let user = format!("listener-{n}");
        let mut listener = start_join(&server, &user, "long", EVENTS).await;
        listener.answer(1).await.expect("joined");
        listeners.push(listener);
    }
    let server = Arc::new(server);
    let mut joiners = Vec::new();
    for n in 0..JOINERS {
        let server = server.clone();
        joiners.push(tokio::spawn(async move {
            read_log(&server, &format!("joiner-{n}"), "long", EVENTS + LIVE).await
        }));
    }
    // The replays have started by now.
    tokio::time::sleep(ms(500)).await;
    for n in 0..LIVE {
        publish(&server, "long", n).await;
    }
    let received = join_all(listeners.iter_mut().map(async |listener| {
        let mut received = 0;
        let deadline = tokio::time::Instant::now() + ms(10_000);
        while received < LIVE {
            match tokio::time::timeout_at(deadline, listener.try_logged()).await {
                Ok(Some(event)) if Client::seq(&event) == EVENTS + received + 1 => received += 1,
                _ => break,
            }
        }
        received
    }));
    let received = received.await;
    let mut present = Vec::new();
    for n in 0..LISTENERS {
        present.push(connections(&server, "long", &format!("listener-{n}")).await);
    }
    let figures = format!("of {LIVE} events the listeners received {received:?}");
    assert!(received.iter().all(|n| *n == LIVE), "{figures}");
    assert_eq!(present, [1; LISTENERS], "connections of the listeners");
    for joiner in joiners {
        let read = joiner.await.expect("the joiner does not panic");
        assert_eq!(read, Ok(()), "a joiner receives the whole log in order");
    }
}

#[tokio::test]
async fn a_second_websocket_of_an_upgraded_session_is_closed_and_the_session_continues() {
    let server = Server::start(&[]);
    let polling = Polling::open(&server, "").await;
    let auth = json!({ "token": token("alice") });
    let answer = polling.connect(&server, "/", auth).await;
    answer.expect("accepted");
    let mut first = polling.upgrade(&server).await;
    first.nsp = "/".to_owned();
    join(&mut first, "lobby").await;
    let sid = format!("sid={}", polling.sid);
    let second = SocketIo::upgrade(&server, &sid).await;
    let mut second = second.expect("the handshake of the second WebSocket is accepted");
    second.closed().await;
    let message = json!({ "roomId": "lobby", "content": "still here" });
    let answer = first.request("sendMessage", message).await;
    assert_eq!(answer.expect("the session continues")["seq"], 1);
}

/// A busy gateway may read the `5` of an upgrade seconds after its arrival. The packet
/// arrived in time, so the upgrade must not be closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_of_many_clients_at_once_are_not_closed() {
    const CLIENTS: usize = 100;
    let server = Arc::new(Server::start(&[]));
    let mut clients = tokio::task::JoinSet::new();
    for n in 0..CLIENTS {
        let server = server.clone();
        clients.spawn(async move {
            let user = format!("client-{n}");
            let session = Polling::open(&server, "").await;
            let auth = json!({ "token": token(&user) });
            let answer = session.connect(&server, "/", auth).await;
            answer.expect("accepted");
            let mut socket = session.upgrade(&server).await;
            socket.nsp = "/".to_owned();
            socket
                .request("joinRoom", json!(format!("room-{n}")))
                .await
                .expect("joined");
        });
    }
    let ended = clients.join_all().await;
    assert_eq!(ended.len(), CLIENTS, "each client upgrades and joins");
}

#[tokio::test]
async fn a_client_that_aborts_its_poll_is_offline_soon() {
    let server = Server::start(&[ONE_GATEWAY]);
    let session = Polling::open(&server, "").await;
    let auth = json!({ "token": token("alice") });
    let answer = session.connect(&server, "/", auth).await;
    answer.expect("accepted");
    until_connections(&server, "@alice", "alice", 1).await;
    let began = Instant::now();
    session.abort_poll(&server, ms(200)).await;
    until_connections(&server, "@alice", "alice", 0).await;
    let after = began.elapsed();
    assert!(after < ms(10_000), "offline after {after:?}");
}

/// Opens sessions without a token, aborts their polls, and returns the memory of the server
/// in MiB.
async fn abort_polls(server: &Arc<Server>, sessions: usize) -> usize {
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let server = server.clone();
        clients.spawn(async move {
            for _ in 0..sessions / 20 {
                let session = Polling::open(&server, "").await;
                session.abort_poll(&server, ms(20)).await;
            }
        });
    }
    clients.join_all().await;
    settled_memory(server).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aborted_polls_leave_nothing_in_memory() {
    let server = Arc::new(Server::start(&[ONE_GATEWAY]));
    // The memory of workerd grows by about 150 MiB before it reuses any.
    let first = abort_polls(&server, 5_000).await;
    let last = abort_polls(&server, 5_000).await;
    // Each request that stays in memory takes at least 14 kB, which is 67 MiB for all of them.
    let grown = last.saturating_sub(first);
    assert!(
        grown < 60,
        "the server grew by {grown} MiB, from {first} MiB"
    );
}
