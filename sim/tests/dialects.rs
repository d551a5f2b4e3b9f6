//! The dialects of Socket.IO namespaces, with rooms, and beside clients of the protocol's own
//! vocabulary.

use roomcast_gateway::{Frame, Protocol, SocketId};
use roomcast_proto::command::Command;
use roomcast_proto::id::ConnectionId;
use roomcast_proto::link::{Command as ToRoom, Item};
use roomcast_proto::position::Position;
use roomcast_proto::time::Millis;
use roomcast_sim::world::{self, Net, Server, connect_info, identity};
use serde_json::{Value, json};
use std::collections::HashMap;

/// A gateway with its rooms, and the times of the last pongs, which the runtime answers.
struct Fixture {
    net: Net,
    pongs: HashMap<SocketId, Millis>,
}

impl Fixture {
    fn new(settings: &[(&str, &str)]) -> Self {
        world::begin();
        Fixture {
            net: Net::new("0", world::config(settings)),
            pongs: HashMap::new(),
        }
    }

    /// Connects a client of Socket.IO to a namespace, with this `auth`.
    fn connect(&mut self, user: &str, nsp: &str, recovers: bool, auth: &Value) -> Client {
        let mut info = connect_info(Protocol::SocketIo, Some(identity(user)));
        info.recovers = recovers;
        let engine = &mut self.net.gateway.server.engine;
        let socket = engine.open_socket(info, None, self.net.now);
        let mut client = Client {
            socket: socket.expect("a socket"),
            // The packets of the default namespace do not name it.
            prefix: match nsp {
                "/" => String::new(),
                nsp => format!("{nsp},"),
            },
            pid: Value::Null,
        };
        let prefix = format!("40{}", client.prefix);
        let accepted = self.send(&client, &format!("{prefix}{auth}"));
        let answer = accepted.iter().find_map(|text| text.strip_prefix(&prefix));
        let answer: Value = serde_json::from_str(answer.expect("accepted")).expect("JSON");
        client.pid = answer["pid"].clone();
        client
    }

    fn module(&mut self, user: &str) -> Client {
        self.connect(user, "/module", false, &json!({}))
    }

    /// Connects a native client that joins the room `r`.
    fn native(&mut self, user: &str) -> SocketId {
        let info = connect_info(Protocol::Native, Some(identity(user)));
        let engine = &mut self.net.gateway.server.engine;
        let socket = engine.open_native(info, self.net.now);
        self.frame(
            socket,
            r#"{"event":"joinRoom","data":{"roomId":"r"},"id":1}"#,
        );
        socket
    }

    fn frame(&mut self, socket: SocketId, text: &str) {
        let frame = Frame::Text(text.to_owned());
        self.net.gateway.server.frame(socket, frame, self.net.now);
        self.net.settle();
    }

    /// Sends a packet. Returns the packets that the client has received since the last call.
    fn send(&mut self, client: &Client, packet: &str) -> Vec<String> {
        self.frame(client.socket, packet);
        self.received(client.socket)
    }

    /// Sends an event. Returns the events and acknowledgements that the client has received.
    fn emit(&mut self, client: &Client, args: &Value) -> Vec<Value> {
        let packet = format!("42{}{args}", client.prefix);
        self.frame(client.socket, &packet);
        self.events(client)
    }

    /// As [`Fixture::emit`], with the acknowledgement id 7. Returns the arguments of the
    /// acknowledgement.
    fn request(&mut self, client: &Client, args: &Value) -> Value {
        let packet = format!("42{}7{args}", client.prefix);
        self.frame(client.socket, &packet);
        let prefix = format!("43{}7", client.prefix);
        let received = self.received(client.socket);
        let answer = received.iter().find_map(|text| text.strip_prefix(&prefix));
        serde_json::from_str(answer.expect("an acknowledgement")).expect("JSON")
    }

    fn received(&mut self, socket: SocketId) -> Vec<String> {
        let sent = self.net.sent.extract_if(.., |(to, _)| *to == socket);
        let texts = sent.filter_map(|(_, frame)| match frame {
            Frame::Text(text) => Some(text),
            Frame::Binary(_) => None,
        });
        texts.collect()
    }

    /// Returns the events that a client has received since the last call. Answers pings, as the
    /// runtime does.
    fn events(&mut self, client: &Client) -> Vec<Value> {
        let prefix = format!("42{}", client.prefix);
        let received = self.received(client.socket);
        if received.iter().any(|text| text == "2") {
            self.pongs.insert(client.socket, self.net.now + 5);
        }
        let events = received
            .iter()
            .filter_map(|text| text.strip_prefix(&prefix));
        events
            .map(|args| serde_json::from_str(args).expect("JSON"))
            .collect()
    }

    /// Returns the lines that a native client has received since the last call.
    fn lines(&mut self, socket: SocketId) -> Vec<Value> {
        let frames = self.received(socket);
        let lines = frames.iter().flat_map(|frame| frame.split('\n'));
        lines
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }

    /// Advances the clock by a second, `n` times. The runtime has answered the pings.
    fn wait(&mut self, n: usize) {
        for _ in 0..n {
            self.net.now += 1_000;
            let now = self.net.now;
            self.net.gateway.server.engine.set_now(now);
            let pongs = &self.pongs;
            let last_seen = |socket: SocketId| pongs.get(&socket).copied();
            self.net.gateway.advance(&last_seen, now);
            self.net.settle();
        }
    }

    /// Lets the room `r` send what waits for its timers, by commands of a native client.
    fn flush(&mut self, socket: SocketId) {
        for _ in 0..3 {
            let sync = json!({ "event": "sync", "data": { "roomId": "r", "after": 0 }, "id": 9 });
            self.frame(socket, &sync.to_string());
        }
    }

    /// Sends messages of a native client to the room `r`.
    fn publish(&mut self, socket: SocketId, n: usize) {
        for content in 0..n {
            let line =
                json!({ "event": "sendMessage", "data": { "roomId": "r", "content": content } });
            self.frame(socket, &line.to_string());
        }
    }
}

#[derive(Clone)]
struct Client {
    socket: SocketId,
    prefix: String,
    pid: Value,
}

/// Returns the names of events.
fn names(events: &[Value]) -> Vec<&str> {
    events
        .iter()
        .map(|event| event[0].as_str().expect("a name"))
        .collect()
}

#[test]
fn both_vocabularies_see_the_same_messages_in_one_room() {
    let mut fixture = Fixture::new(&[]);
    let carol = fixture.native("carol");
    let alice = fixture.module("alice");
    let joined = fixture.emit(&alice, &json!(["joinRoom", "r"]));
    assert_eq!(joined, [json!(["joinedRoom", "r"])]);
    fixture.lines(carol);
    let sent = fixture.emit(
        &alice,
        &json!(["sendMessage", { "roomId": "r", "content": "hi" }]),
    );
    assert_eq!(names(&sent), ["messageSent", "newMessage"]);
    let (id, message) = (&sent[0][1]["id"], &sent[1][1]);
    assert_eq!(&message["id"], id);
    assert_eq!(
        (&message["sender"], &message["content"]),
        (&json!("alice"), &json!("hi"))
    );
    let lines = fixture.lines(carol);
    let same = lines.iter().find(|line| line["event"] == "newMessage");
    assert_eq!(&same.expect("the message")["data"]["messageId"], id);
    fixture.publish(carol, 1);
    let events = fixture.events(&alice);
    assert_eq!(names(&events), ["newMessage"], "{events:?}");
    assert_eq!(events[0][1]["sender"], "carol");
}

#[test]
fn receipts_name_messages_by_their_ids_in_the_dialect() {
    let mut fixture = Fixture::new(&[]);
    let carol = fixture.native("carol");
    let alice = fixture.module("alice");
    fixture.emit(&alice, &json!(["joinRoom", "r"]));
    fixture.publish(carol, 3);
    let messages = fixture.events(&alice);
    let id = |n: usize| messages[n][1]["id"].clone();
    // A native receipt, by `seq`: the room finds the id.
    let receipt = json!({ "event": "messageRead", "data": { "roomId": "r", "seq": 2 } });
    fixture.frame(carol, &receipt.to_string());
    fixture.flush(carol);
    let events = fixture.events(&alice);
    assert_eq!(names(&events), ["messageRead"], "{events:?}");
    assert_eq!(
        (&events[0][1]["messageId"], &events[0][1]["userId"]),
        (&id(1), &json!("carol"))
    );
    // A receipt by id: the room finds the position.
    fixture.lines(carol);
    let read = json!(["readReceipt", { "roomId": "r", "messageId": id(2) }]);
    assert_eq!(fixture.request(&alice, &read), json!([{ "seq": 3 }]));
    fixture.flush(carol);
    let lines = fixture.lines(carol);
    let read = lines.iter().find(|line| line["event"] == "messageRead");
    let expected = json!({ "roomId": "r", "userId": "alice", "seq": 3, "messageId": id(2) });
    assert_eq!(read.expect("a receipt")["data"], expected);
    // An id of no message.
    let read = json!(["readReceipt", { "roomId": "r", "messageId": "none" }]);
    assert_eq!(fixture.request(&alice, &read)[0]["code"], "notFound");
}

#[test]
fn receipts_have_no_message_id_in_a_room_without_clients_of_the_dialect() {
    let mut fixture = Fixture::new(&[]);
    let (carol, dave) = (fixture.native("carol"), fixture.native("dave"));
    fixture.publish(carol, 1);
    fixture.lines(carol);
    let receipt = json!({ "event": "messageRead", "data": { "roomId": "r", "seq": 1 } });
    fixture.frame(dave, &receipt.to_string());
    fixture.flush(dave);
    let lines = fixture.lines(carol);
    let read = lines.iter().find(|line| line["event"] == "messageRead");
    let expected = json!({ "roomId": "r", "userId": "dave", "seq": 1 });
    assert_eq!(read.expect("a receipt")["data"], expected);
}

#[test]
fn several_receipts_at_once_are_each_announced() {
    let mut fixture = Fixture::new(&[]);
    let carol = fixture.native("carol");
    let (alice, bob) = (fixture.module("alice"), fixture.module("bob"));
    for client in [&alice, &bob] {
        fixture.emit(client, &json!(["joinRoom", "r"]));
    }
    fixture.publish(carol, 3);
    let messages = fixture.events(&alice);
    let messages: Vec<&Value> = messages
        .iter()
        .filter(|one| one[0] == "newMessage")
        .collect();
    fixture.events(&bob);
    for message in &messages {
        let read = json!(["readReceipt", { "roomId": "r", "messageId": message[1]["id"] }]);
        let packet = format!("42/module,{read}");
        let frame = Frame::Text(packet);
        fixture
            .net
            .gateway
            .server
            .frame(alice.socket, frame, fixture.net.now);
    }
    fixture.net.settle();
    let events = fixture.events(&bob);
    let read: Vec<&Value> = events
        .iter()
        .filter(|event| event[0] == "messageRead")
        .map(|event| &event[1]["messageId"])
        .collect();
    let ids: Vec<&Value> = messages.iter().map(|message| &message[1]["id"]).collect();
    assert_eq!(read, ids);
}

#[test]
fn a_sync_sends_the_messages_after_an_id_or_the_last_ones() {
    let mut fixture = Fixture::new(&[]);
    let carol = fixture.native("carol");
    fixture.publish(carol, 5);
    let alice = fixture.module("alice");
    fixture.emit(&alice, &json!(["joinRoom", "r"]));
    let contents = |events: &[Value]| -> Vec<Value> {
        let messages = events.iter().filter(|event| event[0] == "newMessage");
        messages.map(|event| event[1]["content"].clone()).collect()
    };
    let last = fixture.emit(
        &alice,
        &json!(["syncMessages", { "roomId": "r", "limit": 2 }]),
    );
    assert_eq!(contents(&last), [json!(3), json!(4)]);
    let done = json!(["syncComplete", { "roomId": "r", "syncedMessageCount": 2, "more": true }]);
    assert_eq!(last.last(), Some(&done));
    let all = fixture.emit(&alice, &json!(["syncMessages", { "roomId": "r" }]));
    let first = all[0][1]["id"].clone();
    let after = json!({ "roomId": "r", "lastMessageId": first, "limit": 3 });
    let next = fixture.emit(&alice, &json!(["syncMessages", after]));
    assert_eq!(contents(&next), [json!(1), json!(2), json!(3)]);
    assert_eq!(next[3][1]["more"], true);
}

#[test]
fn a_leave_without_acknowledgement_tells_the_others_only() {
    const GATEWAY: &str = "0";
    world::begin();
    let mut server = Server::new("r", world::config(&[]));
    let join = |id: &str, user: &str| ToRoom::Join {
        request: world::connect_request(id, user, Position::default()),
        id: Some(1),
        again: false,
    };
    // The batch ends with its timer, as when nothing waits for an answer.
    let advance = |server: &mut Server, by: Millis| {
        server.now += by;
        server.advance();
        server.take_all(GATEWAY)
    };
    server.handle_gateway(GATEWAY, vec![join("bob:1", "bob")]);
    advance(&mut server, 1_000);
    advance(&mut server, 1_000);
    // The join and the leave are announced together.
    server.handle_gateway(GATEWAY, vec![join("eve:1", "eve")]);
    advance(&mut server, 0);
    let leave = ToRoom::Execute {
        connection: ConnectionId::trusted("eve:1"),
        id: None,
        command: Command::Leave { room: None },
    };
    server.handle_gateway(GATEWAY, vec![leave]);
    let items = advance(&mut server, 1_000);
    let announced = items.iter().find_map(|(item, text)| match item {
        Item::Broadcast { not, .. } if text.contains("userLeft") => Some((not, text)),
        _ => None,
    });
    let (not, text) = announced.expect("the leave is announced");
    assert!(text.contains("userJoined"), "{text}");
    assert_eq!(*not, [ConnectionId::trusted("eve:1")]);
    let own = items
        .iter()
        .filter(|(item, _)| item.to().is_some_and(|to| *to == "eve:1"));
    let own: Vec<&str> = own.map(|(_, text)| text.as_str()).collect();
    assert!(own.iter().all(|text| !text.contains("user")), "{own:?}");
}

#[test]
fn delivery_is_acknowledged_after_a_sign_of_life_and_not_before() {
    let mut fixture = Fixture::new(&[]);
    let carol = fixture.native("carol");
    let alice = fixture.module("alice");
    fixture.emit(&alice, &json!(["joinRoom", "r"]));
    fixture.publish(carol, 2);
    fixture.lines(carol);
    let delivered = |fixture: &mut Fixture| -> Option<u64> {
        fixture.flush(carol);
        let lines = fixture.lines(carol);
        let acks = lines
            .iter()
            .filter(|line| line["event"] == "messageDelivered");
        acks.filter_map(|line| line["data"]["seq"].as_u64()).max()
    };
    // The client does not answer the ping.
    fixture.wait(8);
    assert_eq!(delivered(&mut fixture), None);
    assert!(
        fixture.net.gateway.deadline() > Some(fixture.net.now + 1_000),
        "it may hibernate"
    );
    // The pong arrived. An alarm is the next opportunity.
    assert_eq!(names(&fixture.events(&alice)), ["newMessage", "newMessage"]);
    fixture.wait(1);
    assert_eq!(delivered(&mut fixture), Some(2));
    // One acknowledgement for many events.
    fixture.publish(carol, 20);
    fixture.lines(carol);
    for _ in 0..6 {
        fixture.wait(1);
        fixture.events(&alice);
    }
    assert_eq!(delivered(&mut fixture), Some(22));
    // A DISCONNECT is a packet after the events.
    fixture.publish(carol, 1);
    fixture.lines(carol);
    fixture.send(&alice, "41/module,");
    assert_eq!(delivered(&mut fixture), Some(23));
    let again = fixture.module("alice");
    let joined = fixture.emit(&again, &json!(["joinRoom", "r"]));
    assert_eq!(names(&joined), ["joinedRoom"], "no message is repeated");
}

#[test]
fn a_client_of_the_own_vocabulary_acknowledges_itself() {
    let mut fixture = Fixture::new(&[]);
    let carol = fixture.native("carol");
    let alice = fixture.connect("alice", "/chat", false, &json!({}));
    fixture.emit(&alice, &json!(["joinRoom", "r"]));
    fixture.publish(carol, 2);
    fixture.lines(carol);
    for _ in 0..6 {
        fixture.wait(1);
        fixture.events(&alice);
    }
    fixture.send(&alice, "41/chat,");
    let lines = fixture.lines(carol);
    assert!(
        lines.iter().all(|line| line["event"] != "messageDelivered"),
        "{lines:?}"
    );
}

#[test]
fn an_event_that_ends_with_a_string_has_an_offset_for_clients_with_recovery() {
    let mut fixture = Fixture::new(&[]);
    let carol = fixture.native("carol");
    let alice = fixture.connect("alice", "/module", true, &json!({}));
    let joined = fixture.emit(&alice, &json!(["joinRoom", "r"]));
    assert!(joined[0][2].is_string(), "{joined:?}");
    fixture.publish(carol, 2);
    let note = json!({
        "event": "emit", "data": { "roomId": "r", "event": "note", "data": "text", "volatile": true },
    });
    fixture.frame(carol, &note.to_string());
    let events = fixture.events(&alice);
    assert_eq!(names(&events), ["newMessage", "newMessage", "note"]);
    assert_eq!(events[2][1], "text");
    assert_eq!(
        events[2][2], events[1][2],
        "the position after the second message"
    );
    let offset = events[2][2].clone();
    // The connection is lost, and the client resumes from this offset.
    fixture.net.gateway.server.engine.closed(alice.socket, 1006);
    fixture.net.settle();
    fixture.publish(carol, 1);
    let auth = json!({ "pid": alice.pid, "offset": offset });
    let again = fixture.connect("alice", "/module", true, &auth);
    assert_eq!(again.pid, alice.pid, "recovered");
    // `connect` has taken the frames with the missed events.
    let missed = fixture.emit(
        &again,
        &json!(["syncMessages", { "roomId": "r", "limit": 1 }]),
    );
    assert_eq!(missed[0][1]["seq"], 3);
}

#[test]
fn a_record_of_another_dialect_is_not_resumed() {
    let mut fixture = Fixture::new(&[]);
    fixture.native("carol");
    let alice = fixture.connect("alice", "/chat", true, &json!({}));
    fixture.emit(&alice, &json!(["joinRoom", "r"]));
    fixture.net.gateway.server.engine.closed(alice.socket, 1006);
    fixture.net.settle();
    let auth = json!({ "pid": alice.pid });
    let other = fixture.connect("alice", "/module", true, &auth);
    assert_ne!(other.pid, alice.pid);
}

#[test]
fn a_client_keeps_its_dialect_in_hibernation() {
    let mut fixture = Fixture::new(&[]);
    let mut alice = fixture.module("alice");
    fixture.emit(&alice, &json!(["joinRoom", "r"]));
    let sockets = fixture.net.hibernate();
    alice.socket = sockets[&alice.socket];
    let sent = fixture.emit(
        &alice,
        &json!(["sendMessage", { "roomId": "r", "content": 1 }]),
    );
    assert_eq!(names(&sent)[..2], ["messageSent", "newMessage"]);
    assert_eq!(
        fixture.request(&alice, &json!(["leaveRoom", "r"])),
        json!(["r"])
    );
}

#[test]
fn the_dialect_relay_publishes_unknown_events_to_the_room() {
    let mut fixture = Fixture::new(&[]);
    let (alice, bob) = (
        fixture.connect("alice", "/relay", false, &json!({})),
        fixture.connect("bob", "/relay", false, &json!({})),
    );
    let error = fixture.request(&alice, &json!(["draw", { "x": 1 }]));
    assert_eq!(error[0]["error"]["code"], "notJoined");
    for client in [&alice, &bob] {
        fixture.request(client, &json!(["joinRoom", "r"]));
    }
    let answer = fixture.request(&alice, &json!(["draw", { "x": 1 }]));
    assert_eq!(answer[0]["seq"], 1);
    fixture.emit(&alice, &json!(["move", { "roomId": "r" }]));
    let events = fixture.events(&bob);
    let custom: Vec<&Value> = events
        .iter()
        .filter(|event| event[0] == "draw" || event[0] == "move")
        .collect();
    assert_eq!(
        custom,
        [
            &json!(["draw", { "x": 1 }]),
            &json!(["move", { "roomId": "r" }])
        ]
    );
    fixture.request(&alice, &json!(["joinRoom", "s"]));
    let error = fixture.request(&alice, &json!(["draw", {}]));
    let message = error[0]["error"]["message"].as_str().expect("a message");
    assert!(message.contains("`roomId` is required"), "{message}");
}

#[test]
fn pings_with_line_breaks_are_answered_and_blank_frames_are_ignored() {
    let mut fixture = Fixture::new(&[("COMMANDS_BURST", "10"), ("COMMANDS_PER_SECOND", "1")]);
    let carol = fixture.native("carol");
    fixture.received(carol);
    for (frame, answer) in [
        ("ping\n", Some("pong")),
        ("ping\r\n", Some("pong")),
        ("", None),
        ("\n", None),
        (" \r\n", None),
    ] {
        fixture.frame(carol, frame);
        assert_eq!(
            fixture.received(carol).first().map(String::as_str),
            answer,
            "{frame:?}"
        );
    }
    // They count as commands.
    for _ in 0..10 {
        fixture.frame(carol, "\n");
    }
    let refused = fixture.received(carol);
    assert!(
        refused.iter().any(|frame| frame.contains("rateLimited")),
        "{refused:?}"
    );
}

#[test]
fn a_broadcast_reaches_the_clients_of_all_vocabularies() {
    let mut fixture = Fixture::new(&[]);
    let carol = fixture.native("carol");
    let own = fixture.connect("dave", "/", false, &json!({}));
    let module = fixture.connect("alice", "/module", true, &json!({}));
    fixture.received(carol);
    for (data, has_offset) in [(json!({ "a": 1 }), false), (json!("text"), true)] {
        let meta = json!({ "messageId": "m", "senderId": "s", "timestamp": "t" });
        let line = json!({ "event": "x", "data": data, "meta": meta });
        fixture.net.gateway.broadcast(&line.to_string());
        fixture.net.settle();
        assert_eq!(fixture.lines(carol), std::slice::from_ref(&line));
        let received = fixture.received(own.socket);
        assert_eq!(received, [format!("42{}", json!(["x", data, meta]))]);
        let events = fixture.events(&module);
        assert_eq!((&events[0][0], &events[0][1]), (&json!("x"), &data));
        assert_eq!(
            events[0].as_array().map(Vec::len),
            Some(2 + usize::from(has_offset))
        );
    }
}
