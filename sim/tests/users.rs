//! The state of users that rooms show: profiles, the last sign of life, typing indicators.

use roomcast_proto::link::Command as ToRoom;
use roomcast_proto::position::Position;
use roomcast_proto::time::{Millis, SECOND};
use roomcast_proto::user_info::{Profile, UserInfo};
use roomcast_room::Frame;
use roomcast_room::service::Request;
use roomcast_sim::world::{NOW, RoomOutput, Server, config, connect_request};
use serde_json::{Value, json};

/// Returns a profile.
fn profile(name: &str) -> UserInfo {
    UserInfo::parse(&json!({ "name": name }).to_string()).expect("a profile")
}

/// Connects with a token that was issued at `issued` and has this profile.
fn connect(server: &mut Server, id: &str, user: &str, issued: u64, info: Option<UserInfo>) {
    let mut request = connect_request(id, user, Position::default());
    request.token.issued = Some(issued);
    request.info = info;
    server.connect_as(request);
    server.settle();
}

fn send(server: &mut Server, id: &str, line: &Value) {
    server.receive(id, Frame::Text(&line.to_string()));
    server.settle();
}

/// Returns the lines that were sent to a connection since the last call.
fn lines(server: &mut Server, to: &str) -> Vec<Value> {
    let outputs = server.take_outputs().into_iter();
    let frames = outputs.filter_map(|output| match output {
        RoomOutput::Frame { to: id, frame } if id == to => Some(frame),
        _ => None,
    });
    let lines = frames.flat_map(|frame| frame.split('\n').map(str::to_owned).collect::<Vec<_>>());
    lines
        .map(|line| serde_json::from_str(&line).expect("JSON"))
        .collect()
}

/// Returns the data of the events with this name.
fn events(server: &mut Server, to: &str, event: &str) -> Vec<Value> {
    let lines = lines(server, to).into_iter();
    let events = lines.filter(|line| line["event"] == event);
    events.map(|mut line| line["data"].take()).collect()
}

/// Returns the page of members, or of their presence.
fn list(server: &mut Server, presence: bool) -> Value {
    server.take_outputs();
    let limit = 1_000;
    let request = Request::List {
        presence,
        after: None,
        limit,
    };
    let answer = server.serve(request).expect("an answer");
    let (_, body) = answer.split_once('\n').expect("a head");
    serde_json::from_str(body).expect("JSON")
}

/// Returns the profiles in the list of members.
fn listed(server: &mut Server) -> Vec<(String, Value)> {
    let members = list(server, false);
    let members = members.as_array().expect("a list").iter();
    let listed = members.map(|member| {
        let user = member["userId"].as_str().expect("an id").to_owned();
        (user, member["info"]["name"].clone())
    });
    listed.collect()
}

#[test]
fn the_profile_of_the_newest_token_is_shown() {
    let mut server = Server::new("r", config(&[]));
    connect(&mut server, "bob", "bob", 1, None);
    connect(&mut server, "a1", "alice", 10, Some(profile("Alice")));
    let shown = events(&mut server, "bob", "presenceUpdate");
    let expected = json!({ "roomId": "r", "userId": "alice", "status": "online", "info": { "name": "Alice" } });
    assert_eq!(shown, [expected]);
    // An older token does not replace it, and the same profile is not announced again.
    connect(&mut server, "a2", "alice", 9, Some(profile("Old")));
    connect(&mut server, "a3", "alice", 11, Some(profile("Alice")));
    assert_eq!(
        events(&mut server, "bob", "presenceUpdate"),
        [Value::Null; 0]
    );
    // A newer one is announced.
    connect(&mut server, "a4", "alice", 12, Some(profile("Alicia")));
    let shown = events(&mut server, "bob", "presenceUpdate");
    assert_eq!(shown[0]["info"]["name"], "Alicia");
    let names = [
        ("alice".to_owned(), json!("Alicia")),
        ("bob".to_owned(), Value::Null),
    ];
    assert_eq!(listed(&mut server), names);
    // So is a token without a profile.
    connect(&mut server, "a5", "alice", 13, None);
    let shown = events(&mut server, "bob", "presenceUpdate");
    assert_eq!((shown.len(), shown[0].get("info")), (1, None));
    assert_eq!(listed(&mut server)[0].1, Value::Null);
}

#[test]
fn a_refreshed_token_replaces_the_profile() {
    let mut server = Server::new("r", config(&[]));
    connect(&mut server, "bob", "bob", 1, None);
    let request = connect_request("c:1", "alice", Position::default());
    let (id, again) = (Some(1), false);
    server.handle_gateway("0", vec![ToRoom::Join { request, id, again }]);
    server.settle();
    server.take_outputs();
    let request = connect_request("c:1", "alice", Position::default());
    let refresh = ToRoom::Refresh {
        connection: request.connection_id,
        rights: request.rights,
        expires: request.expires,
        profile: Some(Profile {
            issued: Some(NOW / 1_000 + 1),
            info: Some(profile("Alice")),
        }),
    };
    server.handle_gateway("0", vec![refresh]);
    server.settle();
    let shown = events(&mut server, "bob", "presenceUpdate");
    assert_eq!(shown[0]["info"]["name"], "Alice");
}

#[test]
fn profiles_survive_hibernation_leave_with_their_member_and_are_read_for_lists() {
    let mut server = Server::new("r", config(&[]));
    connect(&mut server, "bob", "bob", 1, None);
    connect(&mut server, "a", "alice", 10, Some(profile("Alice")));
    connect(&mut server, "c", "carol", 10, Some(profile("Carol")));
    server.disconnect("c", 1000);
    server.now += 10 * SECOND;
    server.settle();
    server.hibernate();
    server.take_outputs();
    let names = |pairs: &[(&str, &str)]| {
        let pairs = pairs.iter();
        let pairs = pairs.map(|(user, name)| (user.to_string(), json!(name)));
        pairs.collect::<Vec<_>>()
    };
    let mut expected = names(&[("alice", "Alice"), ("bob", ""), ("carol", "Carol")]);
    expected[1].1 = Value::Null;
    assert_eq!(listed(&mut server), expected);
    let presence = list(&mut server, true);
    assert_eq!(presence["users"][2]["info"]["name"], "Carol");
    assert_eq!(presence["users"][2]["status"], "offline");
    // Presence and typing have the profile of a connection that was restored.
    send(
        &mut server,
        "a",
        &json!({ "event": "typingIndicator", "data": { "isTyping": true } }),
    );
    let typing = events(&mut server, "bob", "userTyping");
    assert_eq!(typing[0]["info"]["name"], "Alice");
    send(
        &mut server,
        "a",
        &json!({ "event": "setPresence", "data": { "status": "busy" } }),
    );
    let shown = events(&mut server, "bob", "presenceUpdate");
    assert_eq!(shown[0]["info"]["name"], "Alice");
    send(
        &mut server,
        "a",
        &json!({ "event": "setPresence", "data": { "status": "online" } }),
    );
    // The same token again changes nothing after hibernation.
    server.hibernate();
    server.take_outputs();
    connect(&mut server, "a2", "alice", 10, Some(profile("Alice")));
    assert_eq!(
        events(&mut server, "bob", "presenceUpdate"),
        [Value::Null; 0]
    );
    // The list of `joinRoom` has it.
    send(
        &mut server,
        "bob",
        &json!({ "event": "joinRoom", "data": {}, "id": 7 }),
    );
    let answers = lines(&mut server, "bob");
    let joined = answers
        .iter()
        .find(|line| line["ack"] == 7)
        .expect("an answer");
    assert_eq!(joined["data"]["members"][0]["info"]["name"], "Alice");
    // A user who leaves and joins again with a token without profile has none.
    send(
        &mut server,
        "a",
        &json!({ "event": "leaveRoom", "data": {} }),
    );
    connect(&mut server, "a3", "alice", 1, None);
    assert_eq!(listed(&mut server)[0], ("alice".to_owned(), Value::Null));
}

#[test]
fn an_offline_user_is_announced_without_a_profile() {
    let mut server = Server::new("r", config(&[]));
    connect(&mut server, "bob", "bob", 1, None);
    connect(&mut server, "a", "alice", 10, Some(profile("Alice")));
    server.take_outputs();
    server.disconnect("a", 1000);
    server.now += 10 * SECOND;
    server.settle();
    let shown = events(&mut server, "bob", "presenceUpdate");
    assert_eq!(
        (&shown[0]["status"], shown[0].get("info")),
        (&json!("offline"), None)
    );
}

/// Returns the first message in the log, and the first custom event.
fn logged(settings: &[(&str, &str)]) -> (String, String) {
    let mut server = Server::new("r", config(settings));
    connect(&mut server, "a", "alice", 10, Some(profile("Alice")));
    server.take_outputs();
    let message = json!({ "event": "sendMessage", "data": { "content": 1, "sender": "me", "messageId": "m" } });
    send(&mut server, "a", &message);
    let custom = json!({ "event": "emit", "data": { "event": "x", "data": 2, "messageId": "n" } });
    send(&mut server, "a", &custom);
    let outputs = server.take_outputs().into_iter();
    let frames = outputs.filter_map(|output| match output {
        RoomOutput::Frame { frame, .. } => Some(frame),
        _ => None,
    });
    let lines: Vec<String> = frames
        .flat_map(|frame| frame.split('\n').map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let find = |event: &str| {
        let start = format!(r#"{{"event":"{event}""#);
        let line = lines.iter().find(|line| line.starts_with(&start));
        line.expect("an event").clone()
    };
    (find("newMessage"), find("x"))
}

#[test]
fn messages_have_the_profile_of_their_sender_only_if_the_setting_says_so() {
    let (message, custom) = logged(&[]);
    let timestamp = &message[message.find(r#""timestamp""#).expect("a time")..];
    assert_eq!(
        message,
        format!(
            r#"{{"event":"newMessage","data":{{"content":1,"sender":"me","roomId":"r","messageId":"m","senderId":"alice","seq":1,{timestamp}"#
        )
    );
    assert!(!custom.contains("sender\""), "{custom}");
    let (message, custom) = logged(&[("SENDER_INFO", "true")]);
    let message: Value = serde_json::from_str(&message).expect("JSON");
    assert_eq!(message["data"]["sender"], json!({ "name": "Alice" }));
    let custom: Value = serde_json::from_str(&custom).expect("JSON");
    assert_eq!(custom["meta"]["sender"], json!({ "name": "Alice" }));
}

#[test]
fn a_sender_without_a_profile_cannot_send_one() {
    let mut server = Server::new("r", config(&[("SENDER_INFO", "true")]));
    connect(&mut server, "eve", "eve", 10, None);
    let message =
        json!({ "event": "sendMessage", "data": { "content": 1, "sender": { "name": "Alice" } } });
    send(&mut server, "eve", &message);
    let sent = events(&mut server, "eve", "newMessage");
    assert_eq!(
        (&sent[0]["content"], sent[0].get("sender")),
        (&json!(1), None)
    );
}

#[test]
fn pages_of_members_with_long_profiles_end_at_256_kib_and_continue() {
    let mut server = Server::new("r", config(&[]));
    let long = || UserInfo::parse(&json!({ "n": "x".repeat(1_000) }).to_string());
    for n in 0..1_000 {
        let mut request = connect_request(&format!("c{n}"), &format!("u{n}"), Position::default());
        request.info = long();
        server.connect_as(request);
    }
    server.settle();
    server.take_outputs();
    // A page ends at 256 KiB, and the next one continues.
    let (mut after, mut users, mut pages) = (None, 0, 0);
    loop {
        let request = Request::List {
            presence: false,
            after: after.clone(),
            limit: 1_000,
        };
        server.take_outputs();
        let answer = server.serve(request).expect("an answer");
        assert!(answer.len() < 300_000, "{}", answer.len());
        let (head, body) = answer.split_once('\n').expect("a head");
        let body: Value = serde_json::from_str(body).expect("JSON");
        users += body.as_array().map_or(0, Vec::len);
        pages += 1;
        let head: Value = serde_json::from_str(head).expect("JSON");
        match head["next"].as_str() {
            Some(next) => after = Some(roomcast_proto::id::UserId::trusted(next)),
            None => break,
        }
    }
    assert_eq!(users, 1_000);
    assert!(pages > 3, "{pages}");
}

#[test]
fn a_newcomer_is_told_who_is_typing() {
    let mut server = Server::new("r", config(&[]));
    connect(&mut server, "a", "alice", 10, Some(profile("Alice")));
    let typing =
        |is_typing: bool| json!({ "event": "typingIndicator", "data": { "isTyping": is_typing } });
    server.receive("a", Frame::Text(&typing(true).to_string()));
    server.advance();
    server.take_outputs();
    server.connect("b", "bob", Position::default());
    let mut request = connect_request("a2", "alice", Position::default());
    request.token.issued = Some(10);
    request.info = Some(profile("Alice"));
    server.connect_as(request);
    server.advance();
    let outputs = server.take_outputs();
    let of = |to: &str| {
        let frames = outputs.iter().filter_map(|output| match output {
            RoomOutput::Frame { to: id, frame } if id == to => Some(frame.as_str()),
            _ => None,
        });
        frames.collect::<Vec<_>>().join("\n")
    };
    let told = r#"{"event":"userTyping","data":{"roomId":"r","userId":"alice","isTyping":true,"info":{"name":"Alice"}}}"#;
    let (connected, typing_at) = (of("b").find("connected"), of("b").find(told));
    assert!(typing_at > connected && connected.is_some(), "{}", of("b"));
    assert!(!of("a2").contains("userTyping"), "the own user");
    // A client at a gateway is told after the answer to its join.
    let request = connect_request("c:1", "carol", Position::default());
    let (id, again) = (Some(1), false);
    server.handle_gateway("0", vec![ToRoom::Join { request, id, again }]);
    server.advance();
    assert_eq!(server.start_deliveries().len(), 1);
    let delivery = server.take_delivery("0", 0).expect("a delivery");
    assert!(
        delivery.find(told) > delivery.find(r#"{"ack":1"#),
        "{delivery}"
    );
    // Nobody is typing any more.
    server.receive("a", Frame::Text(&typing(false).to_string()));
    server.settle();
    server.take_outputs();
    connect(&mut server, "d", "dave", 1, None);
    assert_eq!(events(&mut server, "d", "userTyping"), [Value::Null; 0]);
}

#[test]
fn an_indicator_that_has_expired_is_not_told_to_a_newcomer() {
    let mut server = Server::new("r", config(&[]));
    connect(&mut server, "a", "alice", 10, None);
    let typing = json!({ "event": "typingIndicator", "data": { "isTyping": true } });
    send(&mut server, "a", &typing);
    server.now += 10 * SECOND;
    server.settle();
    connect(&mut server, "b", "bob", 10, None);
    assert_eq!(events(&mut server, "b", "userTyping"), [Value::Null; 0]);
}

/// Returns the time at which an offline user was last seen.
fn last_seen(server: &mut Server, user: &str) -> Value {
    server.now += 10 * SECOND;
    server.settle();
    let presence = list(server, true);
    let users = presence["users"].as_array().expect("a list").iter();
    let mut users = users.filter(|one| one["userId"] == user);
    users.next().expect("a member")["lastSeen"].clone()
}

fn time(at: Millis) -> Value {
    json!(roomcast_proto::time::rfc3339(at))
}

#[test]
fn a_user_was_last_seen_at_the_last_sign_of_life() {
    for (case, expected) in [
        // The connection is lost, a minute after its last frame.
        ("frame", NOW + 30 * SECOND),
        // The runtime has answered a ping since then.
        ("ping", NOW + 40 * SECOND),
        // The keepalive has timed out.
        ("stale", NOW + 40 * SECOND),
        // The client has closed the connection, which is a sign of life.
        ("close", NOW + 130 * SECOND),
    ] {
        let mut server = Server::new("r", config(&[]));
        connect(&mut server, "bob", "bob", 1, None);
        server.now = NOW;
        server.connect("a", "alice", Position::default());
        server.now = NOW + 30 * SECOND;
        server.receive(
            "a",
            Frame::Text(r#"{"event":"sync","data":{"after":0},"id":1}"#),
        );
        let pinged = Some(NOW + 40 * SECOND);
        server.now = NOW + 130 * SECOND;
        match case {
            "frame" => server.disconnect("a", 1006),
            "ping" => server.disconnect_pinged("a", 1006, pinged),
            "stale" => server.alarm_pinged(pinged),
            _ => server.disconnect_pinged("a", 1001, pinged),
        }
        assert_eq!(last_seen(&mut server, "alice"), time(expected), "{case}");
        // It survives hibernation.
        server.hibernate();
        assert_eq!(last_seen(&mut server, "alice"), time(expected), "{case}");
    }
}

#[test]
fn a_gateway_says_when_its_client_was_last_seen() {
    for (seen, expected) in [
        (Some(NOW + 7), NOW + 7),
        (None, NOW + 90_000),
        (Some(Millis::MAX), NOW + 90_000),
    ] {
        let mut server = Server::new("r", config(&[]));
        server.now = NOW;
        let request = connect_request("c:1", "alice", Position::default());
        let connection = request.connection_id.clone();
        let (id, again) = (Some(1), false);
        server.handle_gateway("0", vec![ToRoom::Join { request, id, again }]);
        server.advance();
        server.now = NOW + 90_000;
        let code = 1006;
        server.handle_gateway(
            "0",
            vec![ToRoom::Gone {
                connection,
                code,
                seen,
            }],
        );
        assert_eq!(last_seen(&mut server, "alice"), time(expected), "{seen:?}");
    }
}
