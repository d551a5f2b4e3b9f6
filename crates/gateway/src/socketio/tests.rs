//! Tests of the two protocol layers together: limits of sessions without a valid token,
//! pings and timeouts, long-polling, and the records of sockets.

use super::{Attachments, SocketIoServer};
use crate::answer::SEPARATOR;
use crate::config::GatewayConfig;
use crate::connect_info::{ConnectInfo, Protocol};
use crate::engine::{EngineServer, Polled, PostBody, TIMEOUT_EXTENSION};
use crate::frame::Frame;
use crate::gateway::Gateway;
use crate::ids::SessionId;
use crate::output::Output;
use engineioxide_core::Packet;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::limits::Rate;
use roomcast_proto::time::{Millis, SECOND};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

const NOW: Millis = 1_800_000_000_000;

fn server() -> SocketIoServer {
    let engine = EngineServer::new("0".into(), Rc::default(), || "id".into());
    SocketIoServer::new(engine, Attachments::Drop)
}

fn connect_info() -> ConnectInfo {
    ConnectInfo {
        protocol: Protocol::SocketIo,
        identity: None,
        error: None,
        address: None,
        recovers: false,
        may_recover: false,
    }
}

fn only_session(server: &SocketIoServer) -> SessionId {
    let id = server.engine.session_by_sid("0-idid");
    id.expect("a session")
}

/// Connects the only session to a namespace.
fn join(server: &mut SocketIoServer) {
    server.handle_engine_events(NOW);
    let session = only_session(server);
    server.receive_message(session, Frame::Text("0".to_owned()), NOW);
    assert!(server.accept(session, "/", None, "{}".to_owned()));
}

/// Takes the outputs and returns the number of pings among them.
fn pings(server: &mut SocketIoServer) -> usize {
    let is_ping = |output: &Output| match output {
        Output::Send {
            frame: Frame::Text(text),
            ..
        } => text == "2",
        _ => false,
    };
    let outputs = server.engine.take_outputs();
    outputs.iter().filter(|output| is_ping(output)).count()
}

/// Opens a session at [`NOW`] and, with `in_namespace`, connects it to a namespace.
/// Returns the record of its socket and the time at which the gateway is woken next.
fn hibernated(in_namespace: bool) -> (String, Millis) {
    let mut awake = server();
    let socket = awake.engine.open_socket(connect_info(), None, NOW);
    socket.expect("a socket");
    awake.handle_engine_events(NOW);
    if in_namespace {
        join(&mut awake);
    }
    let recheck = awake.deadline().expect("the recheck");
    awake.advance(&|_| None, recheck);
    let due = awake.deadline().expect("a ping");
    let mut outputs = awake.engine.take_outputs().into_iter().rev();
    let record = outputs.find_map(|output| match output {
        Output::Attach { record, .. } => Some(record),
        _ => None,
    });
    (record.expect("the record of the socket"), due)
}

/// Hibernates between alarms. `last_seen` returns the time of the last pong that the
/// runtime answered. Returns the time after [`NOW`] at which the socket is closed, and
/// the close code.
fn closed(in_namespace: bool, last_seen: fn(Millis) -> Option<Millis>) -> Option<(Millis, u16)> {
    let (record, mut due) = hibernated(in_namespace);
    while due < NOW + 300 * SECOND {
        let mut woken = server();
        woken.restore_socket(&record, due).expect("the socket");
        woken.engine.alarm_fired(due);
        woken.advance(&|_| last_seen(due), due);
        // A deadline within a second keeps the gateway awake.
        while let Some(soon) = woken.deadline().filter(|at| *at < due + SECOND) {
            due = soon;
            woken.advance(&|_| last_seen(due), due);
        }
        let code = woken
            .engine
            .take_outputs()
            .iter()
            .find_map(|output| match output {
                Output::Close { code, .. } => Some(*code),
                _ => None,
            });
        if let Some(code) = code {
            return Some((due - NOW, code));
        }
        due = woken.deadline().expect("the next ping");
    }
    None
}

#[test]
fn woken_gateway_pings_once_however_late_its_alarm_is() {
    let (record, due) = hibernated(false);
    for late in [0, 3, 15_000] {
        let mut woken = server();
        let socket = woken.restore_socket(&record, due + late);
        socket.expect("the socket");
        woken.engine.alarm_fired(due + late);
        woken.advance(&|_| None, due + late);
        assert_eq!(pings(&mut woken), 1, "{late} ms late");
        woken.advance(&|_| None, due + late);
        assert_eq!(pings(&mut woken), 0, "once");
        assert!(woken.deadline().is_some_and(|next| next > due + late));
    }
}

#[test]
fn gateway_that_another_event_wakes_just_before_the_alarm_pings_once() {
    let (record, due) = hibernated(false);
    let mut woken = server();
    let socket = woken.restore_socket(&record, due + 3);
    socket.expect("the socket");
    woken.advance(&|_| None, due + 3);
    assert_eq!(pings(&mut woken), 0);
    for expected in [1, 0] {
        woken.engine.alarm_fired(due + 5);
        woken.advance(&|_| None, due + 5);
        assert_eq!(pings(&mut woken), expected);
    }
}

#[test]
fn hibernating_gateway_closes_session_without_valid_token() {
    let timeout = 10 * SECOND + TIMEOUT_EXTENSION;
    assert_eq!(closed(false, Some), Some((timeout, 4408)));
}

#[test]
fn hibernating_gateway_closes_session_that_answers_no_pings() {
    assert_eq!(closed(true, |_| None), Some((75 * SECOND, 4408)));
    // The client answers the first two pings, 5 ms after each.
    let twice = |at: Millis| {
        let pong = |n: Millis| Some(NOW + n * 25 * SECOND + 5).filter(|pong| *pong <= at);
        pong(2).or(pong(1))
    };
    assert_eq!(closed(true, twice), Some((125 * SECOND, 4408)));
    assert_eq!(closed(true, Some), None, "a client that answers stays");
}

fn sid(server: &SocketIoServer) -> String {
    server.engine.sid(only_session(server)).expect("a session")
}

#[test]
fn poll_after_probe_is_answered_at_once() {
    let mut server = server();
    server.engine.open_polling(connect_info(), NOW);
    let sid = sid(&server);
    let socket = server
        .engine
        .open_socket(connect_info(), Some(&sid), NOW)
        .expect("a socket");
    assert!(
        matches!(server.engine.poll(&sid, NOW), Polled::Later(_)),
        "the upgrade was not probed yet"
    );
    server.frame(socket, Frame::Text("2probe".to_owned()), NOW);
    for _ in 0..2 {
        let Polled::Now(answer) = server.engine.poll(&sid, NOW) else {
            panic!("the poll delays the upgrade");
        };
        assert_eq!((answer.status, answer.body.as_str()), (200, "6"));
    }
    server.frame(socket, Frame::Text("5".to_owned()), NOW);
    let Polled::Now(answer) = server.engine.poll(&sid, NOW) else {
        panic!("the session is on a WebSocket");
    };
    assert_eq!(answer.status, 400);
}

#[test]
fn second_probe_drops_the_candidate() {
    let mut server = server();
    server.engine.open_polling(connect_info(), NOW);
    let sid = sid(&server);
    let socket = server
        .engine
        .open_socket(connect_info(), Some(&sid), NOW)
        .expect("a socket");
    for _ in 0..3 {
        server.frame(socket, Frame::Text("2probe".to_owned()), NOW);
    }
    let outputs = server.engine.take_outputs();
    let answers = outputs.iter().filter(
        |output| matches!(output, Output::Send { frame: Frame::Text(text), .. } if text == "3probe"),
    );
    assert_eq!(answers.count(), 1, "{outputs:?}");
    let is_closed = |output: &Output| matches!(output, Output::Close { .. });
    assert!(outputs.iter().any(is_closed), "{outputs:?}");
    assert!(
        server.engine.session_by_sid(&sid).is_some(),
        "the session goes on"
    );
}

#[test]
fn second_post_at_the_same_time_ends_the_session() {
    let mut server = server();
    server.engine.open_polling(connect_info(), NOW);
    let sid = sid(&server);
    for _ in 0..2 {
        server
            .engine
            .begin_post(&sid, Some(1), false, NOW)
            .expect("a first request");
        let answer = server.post(&sid, PostBody::Complete(b"6".to_vec()), NOW);
        assert_eq!(answer.status, 200);
    }
    server
        .engine
        .begin_post(&sid, Some(1), false, NOW)
        .expect("a first request");
    let answer = server
        .engine
        .begin_post(&sid, Some(1), false, NOW)
        .expect_err("a second request");
    assert_eq!(answer.status, 400);
    assert!(server.engine.session_by_sid(&sid).is_none());
    let answer = server.post(&sid, PostBody::Complete(b"6".to_vec()), NOW);
    assert_eq!(answer.status, 400, "the first request");
}

#[test]
fn post_has_the_limits_of_its_session() {
    let mut server = server();
    assert!(
        server
            .engine
            .begin_post("0-other", Some(1), false, NOW)
            .is_err(),
        "no session"
    );
    server.engine.open_polling(connect_info(), NOW);
    let sid = sid(&server);
    let limits = server.engine.begin_post(&sid, None, false, NOW);
    let limits = limits.expect("limits");
    assert_eq!((limits.max_bytes, limits.timeout), (20 * 1024, 10 * SECOND));
    server.post(&sid, PostBody::Complete(b"6".to_vec()), NOW);
    join(&mut server);
    let limits = server
        .engine
        .begin_post(&sid, None, false, NOW)
        .expect("limits");
    assert_eq!((limits.max_bytes, limits.timeout), (1_000_000, 20 * SECOND));
}

#[test]
fn large_bodies_in_progress_are_limited() {
    const LARGE: Option<usize> = Some(1_000_000);
    static LAST: AtomicU32 = AtomicU32::new(0);
    let fresh = || format!("{:08}", LAST.fetch_add(1, Ordering::Relaxed));
    let engine = EngineServer::new("0".into(), Rc::default(), fresh);
    let mut server = SocketIoServer::new(engine, Attachments::Drop);
    let mut open = || {
        let opened = server.engine.open_polling(connect_info(), NOW).body;
        let opened: serde_json::Value = serde_json::from_str(&opened[1..]).expect("JSON");
        let sid = opened["sid"].as_str().expect("a sid").to_owned();
        server.handle_engine_events(NOW);
        let session = server.engine.session_by_sid(&sid).expect("a session");
        server.receive_message(session, Frame::Text("0".to_owned()), NOW);
        assert!(server.accept(session, "/", None, "{}".to_owned()));
        sid
    };
    let authenticated: Vec<String> = (0..20).map(|_| open()).collect();
    let mut begun = Vec::new();
    for (n, sid) in authenticated.iter().enumerate() {
        // A request that does not announce the size counts as well.
        let bytes = if n % 2 == 0 { LARGE } else { None };
        match server.engine.begin_post(sid, bytes, false, NOW) {
            Ok(limits) => begun.push((sid, limits)),
            Err(answer) => assert_eq!((answer.status, n >= 16), (503, true), "{n}"),
        }
    }
    assert_eq!(begun.len(), 16);
    let last = &authenticated[19];
    let small = server.engine.begin_post(last, Some(100), false, NOW);
    server.engine.post_read(&small.expect("a small body"));
    server.post(last, PostBody::Complete(b"6".to_vec()), NOW);
    // The session of a body ends before it has arrived.
    let (sid, limits) = begun.pop().expect("a request");
    let refused = server.engine.begin_post(sid, Some(1), false, NOW);
    assert_eq!(refused.expect_err("a second request").status, 400);
    server.engine.post_read(&limits);
    let answer = server.post(sid, PostBody::Incomplete, NOW);
    assert_eq!(answer.status, 400);
    let limits = server.engine.begin_post(last, LARGE, false, NOW);
    server.engine.post_read(&limits.expect("a large body"));
    server.post(last, PostBody::Complete(b"6".to_vec()), NOW);
    let refused = server.engine.begin_post(last, LARGE, true, NOW);
    assert_eq!(
        refused.expect_err("the host is short of memory").status,
        503
    );
}

#[test]
fn incomplete_body_ends_the_session_without_a_log_record() {
    let mut server = server();
    server.engine.open_polling(connect_info(), NOW);
    let sid = sid(&server);
    server
        .engine
        .begin_post(&sid, Some(1), false, NOW)
        .expect("limits");
    let answer = server.post(&sid, PostBody::Incomplete, NOW);
    assert_eq!(answer.status, 400);
    assert!(server.engine.session_by_sid(&sid).is_none());
    let outputs = server.engine.take_outputs();
    let is_log = |output: &Output| matches!(output, Output::Log(_));
    assert!(!outputs.iter().any(is_log), "{outputs:?}");
}

#[test]
fn request_has_at_most_1000_packets() {
    let mut server = server();
    server.engine.open_polling(connect_info(), NOW);
    join(&mut server);
    let sid = sid(&server);
    for (packets, status) in [(1_000, 200), (1_001, 413)] {
        let body = vec!["6"; packets].join(&SEPARATOR.to_string());
        server
            .engine
            .begin_post(&sid, Some(1), false, NOW + 60 * SECOND)
            .expect("limits");
        let body = PostBody::Complete(body.into_bytes());
        let answer = server.post(&sid, body, NOW + 60 * SECOND);
        assert_eq!(answer.status, status, "{packets} packets");
    }
}

#[test]
fn waiting_connects_are_limited_at_the_next_request() {
    let mut server = server();
    server.engine.open_polling(connect_info(), NOW);
    let sid = sid(&server);
    let connect = |nsp: &str| format!(r#"40/{nsp},{{"token":"{}"}}"#, "x".repeat(5_000));
    let body = [connect("a"), connect("b")].join(&SEPARATOR.to_string());
    for (body, status) in [(body, 200), ("6".to_owned(), 400)] {
        server
            .engine
            .begin_post(&sid, Some(1), false, NOW)
            .expect("limits");
        let answer = server.post(&sid, PostBody::Complete(body.into_bytes()), NOW);
        assert_eq!(answer.status, status);
    }
    assert!(server.engine.session_by_sid(&sid).is_none());
}

#[test]
fn completed_upgrade_sets_no_alarm() {
    let mut server = server();
    server.engine.open_polling(connect_info(), NOW);
    join(&mut server);
    let sid = sid(&server);
    let socket = server
        .engine
        .open_socket(connect_info(), Some(&sid), NOW)
        .expect("a socket");
    let first = server.deadline().expect("the recheck");
    assert!(first < NOW + 10 * SECOND, "by a timer and not by an alarm");
    server.frame(socket, Frame::Text("2probe".to_owned()), NOW);
    server.frame(socket, Frame::Text("5".to_owned()), NOW);
    server.advance(&|_| None, first);
    assert_eq!(server.deadline(), Some(NOW + 25 * SECOND), "the ping");
}

/// Returns a server with one session, without a token, that has sent these CONNECTs.
fn connecting(namespaces: &[&str]) -> (SocketIoServer, SessionId) {
    let mut server = server();
    let info = ConnectInfo {
        protocol: Protocol::SocketIo,
        identity: None,
        error: None,
        address: Some("192.0.2.1".into()),
        recovers: false,
        may_recover: false,
    };
    server.engine.open_socket(info, None, 0).expect("a socket");
    server.handle_engine_events(0);
    let id = server.engine.session_by_sid("0-idid").expect("a session");
    for nsp in namespaces {
        server.receive_message(id, Frame::Text(format!("0{nsp},")), 0);
    }
    server.engine.take_outputs();
    (server, id)
}

/// Takes the outputs and returns the texts that are sent.
fn sent(server: &mut SocketIoServer) -> Vec<String> {
    let outputs = server.engine.take_outputs().into_iter();
    outputs
        .filter_map(|output| match output {
            Output::Send {
                frame: Frame::Text(text),
                ..
            } => Some(text),
            _ => None,
        })
        .collect()
}

#[test]
fn client_that_is_expelled_before_its_connect_was_accepted_is_refused() {
    let (mut server, id) = connecting(&["/chat"]);
    server.expel(id, "/chat", Disconnect::Expired);
    let refusal = r#"44/chat,{"message":"token expired","data":{"code":"unauthorized","message":"token expired"}}"#;
    assert_eq!(sent(&mut server), [refusal]);
    assert!(server.engine.sid(id).is_some(), "the session can try again");
    assert!(!server.accept(id, "/chat", None, "{}".to_owned()));
}

#[test]
fn first_refused_connect_of_a_session_does_not_count_against_its_address() {
    let (mut server, id) = connecting(&["/chat"]);
    let mut config = GatewayConfig::clone(&server.engine.config);
    config.refused_connects = Rate::per_minute(1.0);
    server.engine.config = Rc::new(config);
    let stranger = server.engine.connect_info(id).expect("a session").clone();
    for counted in [false, true] {
        server.refuse(id, "/chat", "{}");
        let admitted = server.engine.admit(&stranger, 0);
        assert_eq!(admitted.is_err(), counted, "{admitted:?}");
        server.receive_message(id, Frame::Text("0/chat,".to_owned()), 0);
    }
}

/// Restores a record and returns the server with its only session.
fn restored(record: &str) -> (SocketIoServer, SessionId) {
    let mut server = server();
    let socket = server.restore_socket(record, NOW);
    socket.expect("the record is valid");
    let sid = server.engine.session_by_sid("0-s").expect("the session");
    (server, sid)
}

/// Returns the record that is attached to the socket of a session.
fn attached(mut server: SocketIoServer, id: SessionId) -> String {
    server.engine.take_outputs();
    server.attach(id);
    let record = server.engine.take_outputs().into_iter().next();
    let Some(Output::Attach { record, .. }) = record else {
        panic!("no record: {record:?}");
    };
    record
}

// The records of these tests have the form of commit a5565a6.

#[test]
fn session_record_of_an_older_version_is_restored_and_written_as_before() {
    let record = r#"{"Session":{"sid":"0-s","door":{"protocol":"SocketIo","identity":{"user":"alice","expires":1900000000000,"service":false,"patterns":[["*",7],["team-*",1]],"token":{"issued":1700000000,"jti":"j"}},"fault":null,"address":"192.0.2.1","recovers":true},"nsps":["/","/chat"],"heard_at":1799999990000,"connect_by":null}}"#;
    let (server, id) = restored(record);
    assert_eq!(server.session_in_namespace("0-s", "/chat"), Some(id));
    assert_eq!(server.session_in_namespace("0-s", "/other"), None);
    let session = server.session(id);
    assert_eq!(server.engine.last_activity(id), Some(1_799_999_990_000));
    assert_eq!(session.and_then(|it| it.connect_by), None);
    let info = server.engine.connect_info(id).expect("the session");
    assert!(info.recovers && info.error.is_none());
    assert_eq!(info.address.as_deref(), Some("192.0.2.1"));
    let identity = info.identity.as_ref().expect("an identity");
    assert_eq!(&*identity.user, "alice");
    assert_eq!(identity.expires, 1_900_000_000_000);
    assert_eq!(attached(server, id), record);
}

#[test]
fn record_of_a_session_without_namespace_keeps_its_error_and_deadline() {
    let record = r#"{"Session":{"sid":"0-s","door":{"protocol":"SocketIo","identity":null,"fault":{"code":"unauthorized","message":"the token has expired","field":null,"retry_after":null},"address":null,"recovers":false},"nsps":[],"heard_at":1800000000000,"connect_by":1800000010000}}"#;
    let (server, id) = restored(record);
    let session = server.session(id);
    assert_eq!(session.and_then(|it| it.connect_by), Some(NOW + 10_000));
    let error = server
        .engine
        .connect_info(id)
        .and_then(|it| it.error.as_ref())
        .expect("an error");
    assert_eq!(error.message, "the token has expired");
    assert_eq!(attached(server, id), record);
}

#[test]
fn session_record_without_later_fields_is_restored() {
    let record = r#"{"Session":{"sid":"0-s","door":{"protocol":"EngineIo","identity":null,"fault":null,"address":null,"recovers":false},"nsps":[]}}"#;
    let (server, id) = restored(record);
    let session = server.session(id);
    assert!(session.is_none(), "bare Engine.IO");
    assert_eq!(server.engine.last_activity(id), Some(NOW));
}

#[test]
fn native_record_of_an_older_version_is_restored_and_written_as_before() {
    let mut server = server();
    let record = r#"{"Native":{"id":"c1"}}"#;
    let socket = server.restore_socket(record, NOW);
    assert_eq!(server.engine.native_socket("c1"), socket);
    server.attach_native(socket.expect("the record is valid"), "c1");
    let attached = server.engine.take_outputs().into_iter().next();
    let Some(Output::Attach { record: after, .. }) = attached else {
        panic!("no record: {attached:?}");
    };
    assert_eq!(after, record);
}

#[test]
fn invalid_record_is_not_restored() {
    for record in ["", "{}", r#"{"Other":{}}"#, "spilled:x"] {
        assert!(server().restore_socket(record, NOW).is_none(), "{record}");
    }
}

/// Returns the gateway with two sessions on long-polling for which packets wait: 40 kB for
/// the first, 1 kB for the second.
fn gateway_with_waiting_packets() -> (Gateway, [String; 2]) {
    fn fresh_id() -> String {
        use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
        static LAST: AtomicU32 = AtomicU32::new(0);
        format!("{:x}", LAST.fetch_add(1, Relaxed))
    }
    let mut gateway = Gateway::new(EngineServer::new("0".into(), Rc::default(), fresh_id));
    let engine = &mut gateway.server.engine;
    let sids = [40_000, 1_000].map(|bytes| {
        let opened = engine.open_polling(connect_info(), NOW);
        let sid = opened.body.split(r#""sid":""#).nth(1).expect("a sid");
        let sid = sid.split('"').next().expect("a sid").to_owned();
        let session = engine.session_by_sid(&sid).expect("a session");
        engine.send_packet(session, Packet::Message("x".repeat(bytes).into()));
        sid
    });
    (gateway, sids)
}

#[test]
fn short_memory_closes_the_session_that_holds_the_most() {
    let (mut gateway, [large, small]) = gateway_with_waiting_packets();
    gateway.shed(1);
    let engine = &gateway.server.engine;
    assert!(engine.session_by_sid(&large).is_none());
    assert!(engine.session_by_sid(&small).is_some());
}

#[test]
fn short_memory_does_not_close_sessions_that_hold_little() {
    let (mut gateway, [_, small]) = gateway_with_waiting_packets();
    gateway.shed(usize::MAX);
    assert!(gateway.server.engine.session_by_sid(&small).is_some());
}

#[test]
fn binary_connect_is_answered_with_an_error_for_each_namespace() {
    let (mut server, id) = connecting(&[]);
    let connect = || Frame::Binary(b"\x82\xa4type\0\xa3nsp\xa1/".as_slice().into());
    server.receive_message(id, connect(), 0);
    let outputs = server.engine.take_outputs();
    let errors = outputs.iter().filter(|output| {
        matches!(output, Output::Send { frame: Frame::Binary(packet), .. } if packet[0] == 0x83)
    });
    assert_eq!(errors.count(), server.engine.config.namespaces.len());
    let records = outputs
        .iter()
        .filter(|output| matches!(output, Output::Log(_)));
    assert_eq!(records.count(), 1, "{outputs:?}");
    assert!(server.engine.sid(id).is_some(), "the client closes it");
    for _ in 0..5 {
        server.receive_message(id, connect(), 0);
    }
    assert!(server.engine.sid(id).is_none(), "six are too many");
}

#[test]
fn binary_message_of_a_connected_client_closes_its_session() {
    let (mut server, id) = connecting(&["/chat"]);
    assert!(server.accept(id, "/chat", None, "{}".to_owned()));
    server.receive_message(id, Frame::Binary(b"\x82".as_slice().into()), 0);
    assert!(server.engine.sid(id).is_none());
}

/// The client polls again after it has handled the answer to its last poll. Its DISCONNECT may
/// come in between.
#[test]
fn disconnect_of_a_polling_client_waits_for_its_next_poll() {
    let mut server = server();
    let body = server.engine.open_polling(connect_info(), NOW).body;
    assert!(body.starts_with('0'));
    join(&mut server);
    let sid = "0-idid";
    let body = |polled| match polled {
        Polled::Now(answer) => answer,
        Polled::Later(_) => panic!("a poll waits"),
    };
    assert_eq!(body(server.engine.poll(sid, NOW)).body, "40{}");
    let id = only_session(&server);
    server.expel(id, "/", Disconnect::Expired);
    assert!(server.engine.sid(id).is_none());
    assert_eq!(body(server.engine.poll(sid, NOW)).body, "41");
    assert_eq!(body(server.engine.poll(sid, NOW)).status, 400);
}
