//! Commands of clients at gateways: each is answered once, in order, and has its effect.

use roomcast_gateway::{Frame, Output, Protocol, SocketId};
use roomcast_proto::command::Command;
use roomcast_proto::id::RoomName;
use roomcast_proto::link::Command as ToRoom;
use roomcast_sim::world::{self, NOW, Net, connect_info, identity};
use serde_json::{Value, json};

/// A gateway with its rooms.
struct Fixture {
    net: Net,
}

impl Fixture {
    fn new(settings: &[(&str, &str)]) -> Self {
        world::begin();
        Fixture {
            net: Net::new("0", world::config(settings)),
        }
    }

    /// Connects a native client.
    fn connect(&mut self, user: &str) -> SocketId {
        let info = connect_info(Protocol::Native, Some(identity(user)));
        let engine = &mut self.net.gateway.server.engine;
        let socket = engine.open_native(info, self.net.now);
        self.net.settle();
        socket
    }

    /// Connects a Socket.IO client with this `auth`. Returns its socket and its `pid`.
    fn connect_socketio(&mut self, user: &str, auth: &Value) -> (SocketId, String) {
        let info = connect_info(Protocol::SocketIo, Some(identity(user)));
        let engine = &mut self.net.gateway.server.engine;
        let socket = engine.open_socket(info, None, self.net.now);
        let socket = socket.expect("a socket");
        self.send(socket, &format!("40{auth}"));
        let sent = self.received(socket);
        let connected = sent.iter().find_map(|text| text.strip_prefix("40"));
        let connected: Value =
            serde_json::from_str(connected.expect("an answer to CONNECT")).expect("JSON");
        let pid = connected["pid"].as_str().expect("a pid").to_owned();
        (socket, pid)
    }

    fn queue(&mut self, socket: SocketId, frame: &str) {
        let frame = Frame::Text(frame.to_owned());
        self.net.gateway.server.frame(socket, frame, self.net.now);
    }

    /// Sends a frame to the gateway while the requests of the gateway to rooms do not leave it.
    fn send_to_gateway(&mut self, socket: SocketId, frame: &str) {
        self.queue(socket, frame);
        let outputs = self.net.gateway.settle(self.net.now);
        self.net
            .sent
            .extend(outputs.into_iter().filter_map(|output| match output {
                Output::Send { socket, frame } => Some((socket, frame)),
                _ => None,
            }));
    }

    /// Takes the commands of the next request to the room `r`.
    fn take(&mut self) -> Option<Vec<ToRoom>> {
        self.net.gateway.take_commands(&RoomName::trusted("r"))
    }

    fn send(&mut self, socket: SocketId, frame: &str) {
        self.queue(socket, frame);
        self.net.settle();
    }

    /// Returns the frames that a socket has received since the last call.
    fn received(&mut self, socket: SocketId) -> Vec<String> {
        let sent = self.net.sent.extract_if(.., |(to, _)| *to == socket);
        let texts = sent.filter_map(|(_, frame)| match frame {
            Frame::Text(text) => Some(text),
            Frame::Binary(_) => None,
        });
        texts.collect()
    }

    /// Returns the lines that a native client has received since the last call.
    fn lines(&mut self, socket: SocketId) -> Vec<Value> {
        let frames = self.received(socket);
        let lines = frames.iter().flat_map(|frame| frame.split('\n'));
        lines
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }
}

fn command(id: u32, event: &str, data: Value) -> String {
    json!({ "event": event, "data": data, "id": id }).to_string()
}

fn join(id: u32) -> String {
    command(id, "joinRoom", json!({ "roomId": "r" }))
}

fn leave(id: u32) -> String {
    command(id, "leaveRoom", json!({ "roomId": "r" }))
}

fn message(id: u32) -> String {
    command(id, "sendMessage", json!({ "roomId": "r", "content": id }))
}

/// Returns the answers in lines: the id, and the code of an error.
fn answers(lines: &[Value]) -> Vec<(u64, Option<&str>)> {
    let answers = lines.iter().filter_map(|line| {
        let id = line["ack"].as_u64()?;
        Some((id, line["error"]["code"].as_str()))
    });
    answers.collect()
}

/// Returns the `seq` of each message in lines.
fn messages(lines: &[Value]) -> Vec<u64> {
    let messages = lines.iter().filter(|line| line["event"] == "newMessage");
    messages
        .map(|line| line["data"]["seq"].as_u64().expect("a number"))
        .collect()
}

#[test]
fn joins_and_leaves_in_one_frame_are_answered_in_order() {
    let mut fixture = Fixture::new(&[]);
    let alice = fixture.connect("alice");
    let bob = fixture.connect("bob");
    fixture.send(bob, &join(1));
    fixture.lines(alice);
    let mut frame = Vec::new();
    for id in (1..=12).step_by(3) {
        frame.extend([join(id), leave(id + 1), join(id + 2)]);
    }
    fixture.send(alice, &frame.join("\n"));
    let lines = fixture.lines(alice);
    let expected: Vec<_> = (1..=12).map(|id| (id, None)).collect();
    assert_eq!(answers(&lines), expected);
    fixture.lines(bob);
    fixture.send(bob, &message(2));
    assert_eq!(
        messages(&fixture.lines(alice)).len(),
        1,
        "the last command joins"
    );
    let frame = [leave(13), join(14), leave(15)].join("\n");
    fixture.send(alice, &frame);
    assert_eq!(
        answers(&fixture.lines(alice)),
        [(13, None), (14, None), (15, None)]
    );
    fixture.send(bob, &message(3));
    assert!(
        messages(&fixture.lines(alice)).is_empty(),
        "the last command leaves"
    );
}

#[test]
fn a_message_that_is_sent_before_the_client_leaves_and_joins_again_is_acknowledged() {
    let mut fixture = Fixture::new(&[]);
    let alice = fixture.connect("alice");
    fixture.send(alice, &join(1));
    fixture.lines(alice);
    let frame = [message(2), leave(3), message(4), join(5), message(6)].join("\n");
    fixture.send(alice, &frame);
    let lines = fixture.lines(alice);
    let expected = [
        (2, None),
        (3, None),
        (4, Some("notJoined")),
        (5, None),
        (6, None),
    ];
    assert_eq!(answers(&lines), expected);
}

#[test]
fn a_leave_after_a_join_that_the_room_refuses_is_answered_with_not_joined() {
    let mut fixture = Fixture::new(&[("MAX_MEMBERS", "1")]);
    let bob = fixture.connect("bob");
    fixture.send(bob, &join(1));
    let alice = fixture.connect("alice");
    fixture.lines(alice);
    fixture.send(alice, &[join(1), leave(2), join(3)].join("\n"));
    let lines = fixture.lines(alice);
    let expected = [
        (1, Some("conflict")),
        (2, Some("notJoined")),
        (3, Some("conflict")),
    ];
    assert_eq!(answers(&lines), expected);
}

#[test]
fn commands_that_wait_for_a_room_are_limited() {
    let mut fixture = Fixture::new(&[]);
    let alice = fixture.connect("alice");
    fixture.send(alice, &join(1));
    fixture.lines(alice);
    let content = "x".repeat(900);
    let data = json!({ "roomId": "r", "content": content });
    fixture.queue(alice, &leave(2));
    for id in 3..200 {
        fixture.queue(alice, &command(id, "sendMessage", data.clone()));
    }
    fixture.net.settle();
    let lines = fixture.lines(alice);
    let answers = answers(&lines);
    assert_eq!(answers.len(), 198, "every command is answered");
    let count = |code| answers.iter().filter(|one| one.1 == Some(code)).count();
    assert_eq!(count("notJoined"), 64, "as many as may wait");
    assert_eq!(count("rateLimited"), 133);
}

#[test]
fn a_client_that_leaves_and_joins_again_receives_no_event_twice() {
    let mut fixture = Fixture::new(&[]);
    let alice = fixture.connect("alice");
    let bob = fixture.connect("bob");
    fixture.send(alice, &join(1));
    fixture.send(bob, &join(1));
    for id in 2..7 {
        fixture.send(bob, &message(id));
    }
    assert_eq!(messages(&fixture.lines(alice)), [1, 2, 3, 4, 5]);
    let again = |id, data| [leave(id), command(id + 1, "joinRoom", data)].join("\n");
    // The events 3 to 5 were under way when the client took its position.
    fixture.send(alice, &again(2, json!({ "roomId": "r", "since": 2 })));
    assert!(messages(&fixture.lines(alice)).is_empty());
    // An event that the client misses while it has left is replayed.
    fixture.send(alice, &leave(4));
    fixture.send(bob, &message(7));
    let data = json!({ "roomId": "r", "since": 1 });
    fixture.send(alice, &command(5, "joinRoom", data));
    assert_eq!(messages(&fixture.lines(alice)), [6]);
    fixture.send(alice, &again(6, json!({ "roomId": "r", "since": 0 })));
    assert!(messages(&fixture.lines(alice)).is_empty());
    // `history` requests events again.
    fixture.send(alice, &again(8, json!({ "roomId": "r", "history": 2 })));
    assert_eq!(messages(&fixture.lines(alice)), [5, 6]);
    fixture.send(bob, &message(8));
    assert_eq!(messages(&fixture.lines(alice)), [7]);
}

#[test]
fn a_position_before_the_first_event_of_the_connection_replays_from_there() {
    let mut fixture = Fixture::new(&[]);
    let bob = fixture.connect("bob");
    fixture.send(bob, &join(1));
    fixture.send(bob, &message(2));
    fixture.send(bob, &message(3));
    let alice = fixture.connect("alice");
    fixture.send(alice, &join(1));
    fixture.send(bob, &message(4));
    assert_eq!(messages(&fixture.lines(alice)), [3]);
    let data = json!({ "roomId": "r", "since": 1 });
    fixture.send(alice, &[leave(2), command(3, "joinRoom", data)].join("\n"));
    assert_eq!(messages(&fixture.lines(alice)), [2, 3]);
}

#[test]
fn a_wake_of_a_room_past_retention_repeats_no_gap() {
    /// More than `RETENTION_DAYS`, and less than the lifetime of the tokens.
    const EIGHT_DAYS: u64 = 8 * 86_400_000;
    let mut fixture = Fixture::new(&[]);
    let bob = fixture.connect("bob");
    fixture.send(bob, &[join(1), message(2), message(3)].join("\n"));
    fixture.net.hibernate_rooms(EIGHT_DAYS);
    let alice = fixture.connect("alice");
    let from_the_start = json!({ "roomId": "r", "since": 0 });
    fixture.send(alice, &command(1, "joinRoom", from_the_start));
    let gaps = |lines: &[Value]| {
        let gaps = lines.iter().filter(|line| line["event"] == "gap");
        gaps.map(|line| line["data"].clone()).collect::<Vec<_>>()
    };
    let gap = json!({ "roomId": "r", "from": 1, "to": 2 });
    assert_eq!(gaps(&fixture.lines(alice)), [gap]);
    for _ in 0..3 {
        fixture.net.hibernate_rooms(0);
        assert_eq!(fixture.lines(alice), [] as [Value; 0]);
    }
    fixture.send(bob, &message(4));
    let lines = fixture.lines(alice);
    assert_eq!((gaps(&lines), messages(&lines)), (vec![], vec![3]));
}

#[test]
fn a_client_without_the_right_presence_joins_online() {
    let mut fixture = Fixture::new(&[]);
    let rooms = json!({ "r": ["read", "write"], "shown": ["read", "write", "presence"] });
    let expires = NOW / 1_000 + 1_000_000;
    let claims = json!({ "sub": "alice", "exp": expires, "rooms": rooms });
    let token = world::token(&claims.to_string());
    let auth = world::config(&[]).auth.clone();
    let alice = auth.verify(&token, NOW).expect("a token");
    let info = connect_info(Protocol::Native, Some(alice));
    let engine = &mut fixture.net.gateway.server.engine;
    let alice = engine.open_native(info, NOW);
    let in_shown = json!({ "roomId": "shown", "status": "away" });
    let commands = [
        command(1, "joinRoom", json!({ "roomId": "shown" })),
        command(2, "setPresence", in_shown),
        join(3),
    ];
    for command in commands {
        fixture.send(alice, &command);
    }
    let answered = fixture.lines(alice);
    assert_eq!(answers(&answered), [(1, None), (2, None), (3, None)]);
    let bob = fixture.connect("bob");
    for (room, status) in [("shown", "away"), ("r", "online")] {
        let join = json!({ "roomId": room });
        fixture.send(bob, &command(1, "joinRoom", join));
        let lines = fixture.lines(bob);
        let joined = lines.iter().find(|line| line["ack"] == 1);
        let members = joined.expect("an answer")["data"]["members"].clone();
        let members = members.as_array().expect("a list").clone();
        let alice = members.iter().find(|member| member["userId"] == "alice");
        assert_eq!(alice.expect("a member")["status"], status, "{room}");
    }
}

#[test]
fn a_room_that_is_being_left_does_not_make_a_recovery_incomplete() {
    let mut fixture = Fixture::new(&[]);
    let (socket, pid) = fixture.connect_socketio("alice", &json!({}));
    for room in ["a", "b"] {
        fixture.send(socket, &format!(r#"420["joinRoom",{{"roomId":"{room}"}}]"#));
    }
    let bob = fixture.connect("bob");
    let join = |room: &str| command(1, "joinRoom", json!({ "roomId": room }));
    let message = |room: &str| {
        let data = json!({ "roomId": room, "content": "x" });
        command(2, "sendMessage", data)
    };
    fixture.send(bob, &[join("a"), join("b"), message("a")].join("\n"));
    let received = fixture.received(socket);
    let event = received.iter().find(|text| text.contains("newMessage"));
    let offset = event.and_then(|event| event.rsplit('"').nth(1));
    let offset = offset.expect("an offset").to_owned();
    fixture.queue(socket, r#"42["leaveRoom",{"roomId":"a"}]"#);
    fixture.net.gateway.server.engine.closed(socket, 1006);
    fixture.net.settle();
    fixture.send(bob, &[message("a"), message("b")].join("\n"));
    let auth = json!({ "pid": pid, "offset": offset });
    let (socket, again) = fixture.connect_socketio("alice", &auth);
    assert_eq!(again, pid, "recovered");
    fixture.send(bob, &message("b"));
    fixture.send(bob, &message("a"));
    let received = fixture.received(socket).concat();
    assert_eq!(received.matches(r#""roomId":"b""#).count(), 1, "{received}");
    assert!(!received.contains(r#""roomId":"a""#), "{received}");
}

#[test]
fn a_client_whose_session_ends_before_a_room_has_accepted_it_is_not_stored() {
    let mut fixture = Fixture::new(&[]);
    let info = connect_info(Protocol::SocketIo, Some(identity("alice")));
    let engine = &mut fixture.net.gateway.server.engine;
    let socket = engine.open_socket(info, None, fixture.net.now);
    let socket = socket.expect("a socket");
    fixture.queue(socket, "40");
    let room = RoomName::trusted("@alice");
    loop {
        let outputs = fixture.net.gateway.settle(fixture.net.now);
        let done = outputs.is_empty();
        for output in outputs {
            if let roomcast_gateway::Output::Authenticate(it) = output {
                let identity = Ok(identity("alice"));
                let gateway = &mut fixture.net.gateway;
                gateway.authenticated(it.request, identity, fixture.net.now);
            }
        }
        if done {
            break;
        }
    }
    fixture.net.gateway.server.engine.closed(socket, 1006);
    fixture.net.gateway.settle(fixture.net.now);
    fixture.net.gateway.take_commands(&room);
    fixture.net.gateway.take_commands(&room);
    fixture.net.settle();
    assert_eq!(fixture.net.stored_clients(), 0);
}

#[test]
fn a_client_that_disconnects_is_stored_only_if_it_can_resume() {
    let mut fixture = Fixture::new(&[]);
    let (socket, _) = fixture.connect_socketio("alice", &json!({}));
    assert_eq!(fixture.net.stored_clients(), 1);
    fixture.send(socket, "41");
    assert_eq!(
        fixture.net.stored_clients(),
        0,
        "the client has disconnected"
    );
    let socket = fixture.connect("alice");
    fixture.net.gateway.server.engine.closed(socket, 1000);
    fixture.net.settle();
    assert_eq!(fixture.net.stored_clients(), 0, "a native client");
    let (socket, _) = fixture.connect_socketio("alice", &json!({}));
    fixture.net.gateway.server.engine.closed(socket, 1006);
    fixture.net.settle();
    assert_eq!(fixture.net.stored_clients(), 1, "the connection was lost");
}

#[test]
fn a_leave_above_the_limit_is_refused_and_the_client_stays_in_the_room() {
    let settings = [("JOINS_BURST", "1"), ("JOINS_PER_SECOND", "0.01")];
    let mut fixture = Fixture::new(&settings);
    let alice = fixture.connect("alice");
    let bob = fixture.connect("bob");
    fixture.send(bob, &join(1));
    fixture.send(alice, &[join(1), leave(2), message(3)].join("\n"));
    let lines = fixture.lines(alice);
    assert_eq!(
        answers(&lines),
        [(2, Some("rateLimited")), (1, None), (3, None)]
    );
    fixture.send(bob, &message(2));
    assert_eq!(messages(&fixture.lines(alice)), [2]);
}

/// A room that restarts loses the commands that it has not stored.
#[test]
fn a_join_and_a_leave_that_a_room_never_answers_fail() {
    let mut fixture = Fixture::new(&[]);
    let alice = fixture.connect("alice");
    fixture.lines(alice);
    let room = RoomName::trusted("r");
    fixture.queue(alice, &[join(1), leave(2)].join("\n"));
    fixture.net.gateway.settle(fixture.net.now);
    let lost = fixture.net.gateway.take_commands(&room);
    assert_eq!(lost.map(|commands| commands.len()), Some(1));
    assert!(fixture.net.gateway.take_commands(&room).is_none());
    fixture.net.advance(10_000);
    assert!(fixture.lines(alice).is_empty());
    fixture.net.advance(15_000);
    assert_eq!(
        answers(&fixture.lines(alice)),
        [(1, Some("internal")), (2, Some("notJoined"))]
    );
    fixture.send(alice, &join(3));
    assert_eq!(answers(&fixture.lines(alice)), [(3, None)]);
    fixture.queue(alice, &[leave(4), message(5)].join("\n"));
    fixture.net.gateway.settle(fixture.net.now);
    let lost = fixture.net.gateway.take_commands(&room);
    assert_eq!(lost.map(|commands| commands.len()), Some(1));
    assert!(fixture.net.gateway.take_commands(&room).is_none());
    fixture.net.advance(25_000);
    assert_eq!(
        answers(&fixture.lines(alice)),
        [(4, Some("internal")), (5, None)],
        "the client has joined again"
    );
}

/// Returns a `refreshToken` command with a token for the room `r`.
fn refresh(id: u32, user: &str, rights: &[&str]) -> String {
    let claims = json!({
        "sub": user,
        "exp": NOW / 1_000 + 1_000_000,
        "rooms": { "r": rights },
    });
    let token = world::token(&claims.to_string());
    command(id, "refreshToken", json!({ "token": token }))
}

#[test]
fn the_newest_token_counts_after_hibernation_and_after_joining_again() {
    let mut fixture = Fixture::new(&[]);
    let mut alice = fixture.connect("alice");
    fixture.send(alice, &join(1));
    fixture.send(alice, &refresh(2, "alice", &["read"]));
    fixture.lines(alice);
    let sockets = fixture.net.hibernate();
    alice = sockets[&alice];
    let frame = [message(3), leave(4), join(5), message(6)].join("\n");
    fixture.send(alice, &frame);
    let expected = [
        (3, Some("forbidden")),
        (4, None),
        (5, None),
        (6, Some("forbidden")),
    ];
    assert_eq!(answers(&fixture.lines(alice)), expected);
    // The token changes while a command waits.
    let frame = [leave(7), refresh(8, "alice", &[]), join(9)].join("\n");
    fixture.send(alice, &frame);
    let lines = fixture.lines(alice);
    assert!(
        answers(&lines).contains(&(9, Some("forbidden"))),
        "{lines:?}"
    );
}

/// The request that fails may have contained an older token than a later one that arrived.
#[test]
fn a_refresh_that_is_sent_again_has_the_newest_rights() {
    let mut fixture = Fixture::new(&[]);
    let alice = fixture.connect("alice");
    fixture.send(alice, &join(1));
    let room = RoomName::trusted("r");
    fixture.queue(alice, &refresh(2, "alice", &["read"]));
    let outputs = fixture.net.gateway.settle(fixture.net.now);
    for output in outputs {
        if let roomcast_gateway::Output::Authenticate(it) = output {
            let config = world::config(&[]);
            let identity = world::verify(&config, it.credentials, fixture.net.now);
            let gateway = &mut fixture.net.gateway;
            gateway.authenticated(it.request, identity, fixture.net.now);
        }
    }
    let lost = fixture.net.gateway.take_commands(&room).expect("a refresh");
    fixture.net.gateway.forward_failed(&room, lost);
    assert!(fixture.net.gateway.take_commands(&room).is_none());
    fixture.net.settle();
    fixture.send(alice, &refresh(3, "alice", &["read", "write"]));
    fixture.net.advance(10_000);
    fixture.lines(alice);
    fixture.send(alice, &message(4));
    assert_eq!(answers(&fixture.lines(alice)), [(4, None)]);
}

/// Settings with which a client can send many large messages at once.
const LARGE_MESSAGES: [(&str, &str); 3] = [
    ("MAX_FRAME_BYTES", "65536"),
    ("BYTES_BURST", "1e9"),
    ("ROOM_BYTES_BURST", "1e9"),
];

/// Returns a `sendMessage` command with `bytes` bytes of content.
fn large_message(id: u32, bytes: usize) -> String {
    let content = "x".repeat(bytes);
    command(
        id,
        "sendMessage",
        json!({ "roomId": "r", "content": content }),
    )
}

/// Returns the size in bytes of the events in commands.
fn event_bytes(commands: &[ToRoom]) -> usize {
    let bytes = commands.iter().map(|command| match command {
        ToRoom::Execute { command, .. } => command.event_bytes(),
        _ => 0,
    });
    bytes.sum()
}

#[test]
fn commands_for_a_room_that_does_not_answer_are_limited() {
    let mut fixture = Fixture::new(&LARGE_MESSAGES);
    let (alice, bob) = (fixture.connect("alice"), fixture.connect("bob"));
    for client in [alice, bob] {
        fixture.send(client, &join(1));
        fixture.lines(client);
    }
    // The request to the room is in progress.
    fixture.send_to_gateway(alice, &message(2));
    assert_eq!(fixture.take().map(|commands| commands.len()), Some(1));
    for id in 3..203 {
        fixture.send_to_gateway(alice, &large_message(id, 60_000));
    }
    let lines = fixture.lines(alice);
    let refused = answers(&lines);
    let is_limited = |one: &(u64, Option<&str>)| one.1 == Some("rateLimited");
    assert!(refused.iter().all(is_limited), "{refused:?}");
    assert!(
        (120..140).contains(&refused.len()),
        "{} refused",
        refused.len()
    );
    // Further commands of other clients, and for the room itself.
    let status = command(4, "setPresence", json!({ "status": "away" }));
    fixture.send_to_gateway(bob, &[message(2), status, leave(3)].join("\n"));
    let carol = fixture.connect("carol");
    fixture.send_to_gateway(carol, &join(1));
    assert!(answers(&fixture.lines(carol)).iter().all(is_limited));
    assert_eq!(
        answers(&fixture.lines(bob)),
        [(2, Some("rateLimited")), (4, Some("rateLimited"))],
        "a client can leave"
    );
    fixture.net.gateway.server.engine.closed(carol, 1006);
    fixture.net.gateway.server.engine.closed(alice, 1006);
    fixture.net.gateway.settle(fixture.net.now);
    let (mut bytes, mut last) = (0, Vec::new());
    while let Some(commands) = fixture.take() {
        bytes += event_bytes(&commands);
        last = commands;
    }
    assert!((4 << 20..5 << 20).contains(&bytes), "{bytes} bytes waited");
    let is_leave = |command: &ToRoom| match command {
        ToRoom::Execute { command, .. } => matches!(command, Command::Leave { .. }),
        _ => false,
    };
    assert!(last.iter().any(is_leave), "{last:?}");
    let is_end = |command: &ToRoom| matches!(command, ToRoom::Gone { .. });
    assert!(last.iter().any(is_end), "the room learns of the disconnect");
    let net = &fixture.net;
    assert!(net.closed.is_empty(), "a refusal is no violation");
}

#[test]
fn many_small_commands_for_a_room_that_does_not_answer_are_limited() {
    let mut fixture = Fixture::new(&[("BYTES_BURST", "1e9")]);
    let alice = fixture.connect("alice");
    fixture.send(alice, &join(1));
    fixture.lines(alice);
    let typing = json!({ "roomId": "r", "isTyping": true });
    for id in 0..30_000 {
        let command = command(id, "typingIndicator", typing.clone());
        fixture.send_to_gateway(alice, &command);
    }
    let refused = fixture.lines(alice).len();
    let mut waited = 0;
    while let Some(commands) = fixture.take() {
        assert!(commands.len() <= 1_000, "{} in a request", commands.len());
        waited += commands.len();
    }
    assert_eq!(waited + refused, 30_000);
    assert!((16_000..17_000).contains(&waited), "{waited} waited");
}

#[test]
fn a_request_to_a_room_has_at_most_1000_commands_and_1_mib() {
    let mut fixture = Fixture::new(&LARGE_MESSAGES);
    let alice = fixture.connect("alice");
    fixture.send(alice, &join(1));
    fixture.lines(alice);
    for id in 1..=2_500 {
        fixture.send_to_gateway(alice, &message(id));
    }
    for id in 2_501..=2_540 {
        fixture.send_to_gateway(alice, &large_message(id, 60_000));
    }
    let (mut ids, mut requests) = (Vec::new(), 0);
    while let Some(commands) = fixture.take() {
        requests += 1;
        assert!(commands.len() <= 1_000, "{} commands", commands.len());
        let bytes = event_bytes(&commands);
        assert!(bytes <= 1 << 20, "{bytes} bytes");
        ids.extend(commands.iter().map(|command| match command {
            ToRoom::Execute { id, .. } => id.expect("an id"),
            other => panic!("not a command: {other:?}"),
        }));
    }
    assert_eq!(ids, (1..=2_540).collect::<Vec<_>>(), "in order");
    assert!((5..=7).contains(&requests), "{requests} requests");
    assert!(fixture.lines(alice).is_empty(), "none is refused");
}

/// Otherwise the last command would wait for twenty requests, each until its deadline.
#[test]
fn a_failed_request_fails_all_commands_that_wait_if_the_next_request_does_not_hold_them() {
    let mut fixture = Fixture::new(&[("BYTES_BURST", "1e9")]);
    let alice = fixture.connect("alice");
    fixture.send(alice, &join(1));
    fixture.lines(alice);
    let room = RoomName::trusted("r");
    for (waiting, failed) in [(1_000, 10), (1_001, 1_011)] {
        for id in 1..=10 {
            fixture.send_to_gateway(alice, &message(id));
        }
        let lost = fixture.take().expect("a request");
        for id in 11..=10 + waiting {
            fixture.send_to_gateway(alice, &message(id));
        }
        fixture.net.gateway.forward_failed(&room, lost);
        fixture.net.settle();
        let lines = fixture.lines(alice);
        let expected: Vec<_> = (1..=failed).map(|id| (id, Some("internal"))).collect();
        assert_eq!(answers(&lines), expected);
        let waited = fixture.take().map_or(0, |commands| commands.len());
        assert_eq!(waited as u64, 10 + u64::from(waiting) - failed);
        assert!(fixture.take().is_none());
    }
}

#[test]
fn commands_for_rooms_are_refused_while_the_host_is_short_of_memory() {
    let mut fixture = Fixture::new(&[]);
    let (alice, bob) = (fixture.connect("alice"), fixture.connect("bob"));
    fixture.send(alice, &join(1));
    fixture.lines(alice);
    fixture.net.gateway.set_overloaded(true);
    fixture.send(bob, &join(1));
    fixture.send(alice, &[message(2), leave(3), message(4)].join("\n"));
    let lines = fixture.lines(bob);
    assert_eq!(answers(&lines), [(1, Some("rateLimited"))]);
    let answer = lines.last().expect("an answer");
    assert_eq!(answer["error"]["retryAfterMs"], 2_000);
    let mut lines = fixture.lines(alice);
    lines.sort_by_key(|line| line["ack"].as_u64());
    let limited = Some("rateLimited");
    assert_eq!(answers(&lines), [(2, limited), (3, None), (4, limited)]);
    fixture.net.gateway.set_overloaded(false);
    fixture.send(alice, &[join(5), message(6)].join("\n"));
    assert_eq!(answers(&fixture.lines(alice)), [(5, None), (6, None)]);
}
