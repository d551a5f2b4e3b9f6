//! Deliveries of a room to a gateway that are lost or repeated.

use roomcast::config::Config;
use roomcast_gateway::{
    AuthRequest, ConnectInfo, Credentials, EngineServer, Gateway, Output, Polled, PostBody,
    Protocol, SocketId,
};
use roomcast_harness::{SECRET, Token};
use roomcast_proto::access::{Identity, TokenId};
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::error::Error;
use roomcast_proto::event;
use roomcast_proto::id::{ConnectionId, Epoch, RoomName};
use roomcast_proto::link::{Command, Item, Push, Pushed};
use roomcast_proto::log_record::Level;
use serde_json::json;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

const NOW: u64 = 1_800_000_000_000;

fn fresh() -> String {
    static LAST: AtomicU32 = AtomicU32::new(0);
    format!("id{}", LAST.fetch_add(1, Ordering::Relaxed))
}

fn room() -> RoomName {
    RoomName::trusted("r")
}

/// A gateway with one native client, `alice`, in the room `r` at event 3.
struct Fixture {
    socket: SocketId,
    gateway: Gateway,
    id: ConnectionId,
    number: u64,
    /// The answer to the last delivery.
    pushed: Pushed,
}

fn config() -> Rc<Config> {
    let vars = |name: &str| match name {
        "JWT_SECRET" => Some(SECRET.to_owned()),
        // There is no registry from which a list could be fetched.
        "REVOCATION" => Some("false".to_owned()),
        _ => None,
    };
    Rc::new(Config::read(vars).expect("settings"))
}

/// Returns a token of `alice` with these rights on the room `r`, or without the room.
fn token(rights: Option<&[&str]>) -> String {
    let rooms = rights.map_or(json!({}), |rights| json!({ "r": rights }));
    let token = Token::user("alice").ttl(1_000_000_000);
    token.claim("rooms", rooms).sign(SECRET)
}

const READ_AND_WRITE: Option<&[&str]> = Some(&["read", "write"]);

fn refresh_command(token: &str) -> String {
    format!(r#"{{"event":"refreshToken","data":{{"token":"{token}"}},"id":7}}"#)
}

fn identity(config: &Config) -> Identity {
    let token = token(READ_AND_WRITE);
    let now = roomcast_harness::now() as u64 * 1_000;
    config.auth.verify(&token, now).expect("a token")
}

/// Returns a gateway with the native socket of a user.
fn gateway_with_socket() -> (Gateway, SocketId) {
    let config = config();
    let connect = ConnectInfo {
        protocol: Protocol::Native,
        identity: Some(identity(&config)),
        error: None,
        address: None,
        recovers: false,
        may_recover: false,
    };
    let engine = EngineServer::new("n0".into(), config.gateway.clone(), fresh);
    let mut gateway = Gateway::new(engine);
    let socket = gateway.server.engine.open_native(connect, NOW);
    (gateway, socket)
}

impl Fixture {
    fn new() -> Self {
        let (mut gateway, socket) = gateway_with_socket();
        gateway.settle(NOW);
        let join = r#"{"event":"joinRoom","data":"r"}"#.to_owned();
        gateway
            .server
            .frame(socket, roomcast_gateway::Frame::Text(join), NOW);
        gateway.settle(NOW);
        let commands = gateway.take_commands(&room()).expect("a join");
        let Command::Join { request, .. } = &commands[0] else {
            panic!("not a join: {commands:?}");
        };
        let mut fixture = Fixture {
            id: request.connection_id.clone(),
            gateway,
            socket,
            number: 0,
            pushed: Pushed::default(),
        };
        let to = fixture.id.clone();
        fixture.push(vec![(Item::Subscribed { to, after: 3 }, "")]);
        assert!(fixture.take().is_none());
        fixture
    }

    /// Sends a frame as the client. Returns the outputs.
    fn send(&mut self, text: String) -> Vec<Output> {
        let frame = roomcast_gateway::Frame::Text(text);
        self.gateway.server.frame(self.socket, frame, NOW);
        self.gateway.settle(NOW)
    }

    /// Refreshes the token of the client and verifies the new token.
    fn refresh(&mut self, token: &str) {
        let outputs = self.send(refresh_command(token)).into_iter();
        let mut authentications = outputs.filter_map(|output| match output {
            Output::Authenticate(it) => Some(it),
            _ => None,
        });
        let request = authentications.next().expect("an authentication").request;
        let now = roomcast_harness::now() as u64 * 1_000;
        let identity = config().auth.verify(token, now);
        let core = &mut self.gateway;
        core.authenticated(request, identity, NOW);
        self.gateway.settle(NOW);
    }

    /// Reports to the gateway that the request with these commands has failed.
    fn fail(&mut self, commands: Vec<Command>) {
        let core = &mut self.gateway;
        core.forward_failed(&room(), commands);
        assert!(self.take().is_none(), "commands are not retried at once");
    }

    /// Returns the commands for the room a minute later.
    fn take_later(&mut self) -> Option<Vec<Command>> {
        let later = NOW + 60_000;
        self.gateway.server.engine.set_now(later);
        self.gateway.advance(&|_| None, later);
        self.gateway.settle(later);
        self.take()
    }

    /// Delivers items to the gateway. Returns the frames that it sends to clients.
    fn push(&mut self, items: Vec<(Item, &str)>) -> Vec<String> {
        self.number += 1;
        self.push_again(items)
    }

    /// Delivers items with the number of the last delivery.
    fn push_again(&mut self, items: Vec<(Item, &str)>) -> Vec<String> {
        let outputs = self.outputs_of(items).into_iter();
        outputs
            .filter_map(|output| match output {
                Output::Broadcast { text, .. } => Some(text),
                Output::Send {
                    frame: roomcast_gateway::Frame::Text(text),
                    ..
                } => Some(text),
                _ => None,
            })
            .collect()
    }

    /// Returns the outputs of a delivery with the number of the last one.
    fn outputs_of(&mut self, items: Vec<(Item, &str)>) -> Vec<Output> {
        let (items, texts): (Vec<Item>, Vec<&str>) = items.into_iter().unzip();
        let push = Push {
            room: room(),
            epoch: Epoch::trusted("e"),
            life: "l".into(),
            number: self.number,
            presence_before: 0,
            presence: 0,
            items,
        };
        self.gateway.server.engine.set_now(NOW);
        self.pushed = self.gateway.handle_push(push, &texts, NOW);
        self.gateway.settle(NOW)
    }

    /// Returns a broadcast of events after a position.
    fn all(after: u64, text: &str) -> (Item, &str) {
        let at = after + text.split('\n').count() as u64;
        let (bytes, not) = (text.len(), Vec::new());
        (
            Item::Broadcast {
                bytes,
                not,
                after,
                at,
                presence: false,
            },
            text,
        )
    }

    /// Returns a text for the client with events after a position.
    fn one<'a>(&self, after: u64, text: &'a str) -> (Item, &'a str) {
        let to = self.id.clone();
        let at = after + text.split('\n').count() as u64;
        let item = Item::Unicast {
            to,
            bytes: text.len(),
            after: Some(after),
            at: Some(at),
        };
        (item, text)
    }

    /// Returns the position of the client that the last answer to the room has reported, if
    /// the client lacks events.
    fn reported(&self) -> Option<u64> {
        let behind = self.pushed.behind.iter();
        let mut behind = behind.filter(|(id, _)| *id == self.id);
        behind.next().map(|(_, at)| *at)
    }

    /// Returns an answer of the room to the client.
    fn answer<'a>(&self, text: &'a str) -> (Item, &'a str) {
        let item = Item::Unicast {
            to: self.id.clone(),
            bytes: text.len(),
            after: None,
            at: None,
        };
        (item, text)
    }

    /// Returns the end of the subscription.
    fn out(&self) -> (Item, &'static str) {
        let to = self.id.clone();
        (Item::Unsubscribed { to }, "")
    }

    /// Sends `leaveRoom` as the client, with the id 5.
    fn leave(&mut self) {
        self.send(r#"{"event":"leaveRoom","data":{"roomId":"r"},"id":5}"#.to_owned());
        let commands = self.take().expect("a leave");
        assert_eq!(commands.len(), 1);
        assert!(self.take().is_none(), "the request has arrived");
    }

    /// Sends `joinRoom` as the client, with this id, and takes the id of the subscription.
    fn join(&mut self, id: u32) {
        self.send(format!(
            r#"{{"event":"joinRoom","data":{{"roomId":"r"}},"id":{id}}}"#
        ));
        let commands = self.take().expect("a join");
        let [Command::Join { request, .. }] = &commands[..] else {
            panic!("not a join: {commands:?}");
        };
        self.id.clone_from(&request.connection_id);
        assert!(self.take().is_none(), "the request has arrived");
    }

    /// Takes the queued commands for the room.
    fn take(&mut self) -> Option<Vec<Command>> {
        let core = &mut self.gateway;
        core.take_commands(&room())
    }

    /// Returns the position in the resubscription of the gateway, if it resubscribes.
    fn resubscribed_from(&mut self) -> Option<u64> {
        match &self.take()?[..] {
            [
                Command::Join {
                    request,
                    id: None,
                    again: true,
                },
            ] => {
                self.id.clone_from(&request.connection_id);
                request.position.since
            }
            other => panic!("not a resubscription: {other:?}"),
        }
    }
}

#[test]
fn a_repeated_delivery_is_sent_to_clients_once() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.push(vec![Fixture::all(3, "four")]), ["four"]);
    assert!(fixture.push_again(vec![Fixture::all(3, "four")]).is_empty());
    // The events are repeated by a restarted room, which numbers its deliveries from 1.
    assert!(fixture.push(vec![Fixture::all(3, "four")]).is_empty());
    assert_eq!(fixture.push(vec![Fixture::all(4, "five")]), ["five"]);
    assert_eq!(fixture.resubscribed_from(), None);
}

/// Found by `make chaos`: a gateway lost a join in a panic and then forwarded later
/// events of the room without the earlier ones.
#[test]
fn events_for_a_connection_that_is_not_subscribed_are_dropped() {
    let mut fixture = Fixture::new();
    let out = Item::Unsubscribed {
        to: fixture.id.clone(),
    };
    fixture.push(vec![(out, "")]);
    let (item, text) = fixture.one(3, "four");
    assert!(fixture.push(vec![(item, text)]).is_empty());
}

#[test]
fn a_lost_delivery_is_reported_once_and_the_log_follows() {
    let mut fixture = Fixture::new();
    let sent = fixture.push(vec![Fixture::all(5, "six")]);
    assert!(sent.is_empty(), "events 4 and 5 are missing");
    assert_eq!(fixture.reported(), Some(3));
    assert!(fixture.push(vec![Fixture::all(6, "seven")]).is_empty());
    assert_eq!(fixture.reported(), None, "the room knows it");
    let portion = fixture.one(3, "four\nfive\nsix\nseven");
    assert_eq!(fixture.push(vec![portion]), ["four\nfive\nsix\nseven"]);
    assert_eq!(fixture.push(vec![Fixture::all(7, "eight")]), ["eight"]);
    assert!(fixture.push(vec![Fixture::all(9, "ten")]).is_empty());
    assert_eq!(fixture.reported(), Some(8), "the next loss");
    assert!(fixture.take().is_none(), "the client does not join again");
}

#[test]
fn a_repeated_delivery_is_answered_as_the_first_one() {
    let mut fixture = Fixture::new();
    for _ in 0..2 {
        fixture.push_again(vec![Fixture::all(5, "six")]);
        assert_eq!(fixture.reported(), Some(3));
    }
}

#[test]
fn a_portion_that_does_not_follow_the_position_is_dropped_and_reported() {
    let mut fixture = Fixture::new();
    for _ in 0..2 {
        let portion = fixture.one(5, "six");
        assert!(fixture.push(vec![portion]).is_empty());
        assert_eq!(fixture.reported(), Some(3));
    }
}

#[test]
fn a_partly_received_delivery_is_completed() {
    let mut fixture = Fixture::new();
    let portion = fixture.one(3, "four\nfive");
    assert_eq!(fixture.push(vec![portion]), ["four\nfive"]);
    assert_eq!(
        fixture.push(vec![Fixture::all(3, "four\nfive\nsix")]),
        ["six"]
    );
    assert_eq!(fixture.reported(), None);
    let portion = fixture.one(4, "five\nsix\nseven");
    assert_eq!(fixture.push(vec![portion]), ["seven"]);
}

#[test]
fn connections_that_share_a_portion_each_receive_what_they_lack() {
    let mut fixture = Fixture::new();
    let text = "four\nfive";
    let item = Item::Multicast {
        to: vec![ConnectionId::trusted("unknown"), fixture.id.clone()],
        bytes: text.len(),
        after: 3,
        at: 5,
    };
    assert_eq!(fixture.push(vec![(item, text)]), [text]);
    assert_eq!(fixture.pushed.gone, ["unknown"]);
}

#[test]
fn ephemeral_events_are_sent_whatever_the_position_is() {
    let typing = r#"{"event":"userTyping","data":{}}"#;
    for (after, expected) in [(2, ""), (3, "four\n"), (4, "")] {
        let mut fixture = Fixture::new();
        let text = format!("four\n{typing}");
        let item = Item::Broadcast {
            bytes: text.len(),
            not: Vec::new(),
            after,
            at: after + 1,
            presence: false,
        };
        let sent = fixture.push(vec![(item, &text)]);
        assert_eq!(sent, [format!("{expected}{typing}")], "{after}");
    }
}

#[test]
fn a_gap_is_announced_from_the_position_of_the_client() {
    let mut fixture = Fixture::new();
    let gap = |after, at| event::gap("r", after + 1, at);
    let mut push = |after, at| {
        let text = gap(after, at);
        let to = fixture.id.clone();
        let item = Item::Unicast {
            to,
            bytes: text.len(),
            after: Some(after),
            at: Some(at),
        };
        fixture.push(vec![(item, &text)])
    };
    assert!(push(0, 2).is_empty());
    assert_eq!(push(2, 5), [gap(3, 5)]);
    assert_eq!(push(5, 7), [gap(5, 7)]);
    assert!(push(8, 9).is_empty());
    assert_eq!(fixture.reported(), Some(7));
    assert_eq!(fixture.push(vec![Fixture::all(7, "eight")]), ["eight"]);
}

#[test]
fn an_answer_and_its_event_are_sent_in_one_frame() {
    let mut fixture = Fixture::new();
    let to = fixture.id.clone();
    let answer = Item::Unicast {
        to,
        bytes: 3,
        after: None,
        at: None,
    };
    let frames = fixture.push(vec![(answer, "ack"), Fixture::all(3, "four")]);
    assert_eq!(frames, ["ack\nfour"]);
}

#[test]
fn a_probe_for_an_unknown_connection_returns_gone() {
    let mut fixture = Fixture::new();
    let push = Push {
        room: room(),
        epoch: Epoch::default(),
        life: "another".into(),
        number: 1,
        presence_before: 0,
        presence: 0,
        items: vec![
            probe(ConnectionId::trusted("unknown"), 3),
            probe(fixture.id.clone(), 3),
        ],
    };
    let core = &mut fixture.gateway;
    assert_eq!(core.handle_push(push, &["", ""], NOW).gone, ["unknown"]);
}

#[test]
fn a_gateway_answers_when_its_client_was_last_active() {
    let mut fixture = Fixture::new();
    let asks = |to: &str, activity: bool| Item::Probe {
        to: ConnectionId::trusted(to),
        at: 0,
        activity,
    };
    let push = |number: u64, items: Vec<Item>| Push {
        room: RoomName::trusted("r"),
        epoch: Epoch::trusted("e"),
        life: "another".into(),
        number,
        presence_before: 0,
        presence: 0,
        items,
    };
    let id = fixture.id.to_string();
    let items = vec![asks(&id, true), asks("unknown", true)];
    let core = &mut fixture.gateway;
    let sockets = core.asked_sockets(&push(1, items.clone()));
    assert_eq!(sockets, [fixture.socket]);
    // The runtime has answered a ping.
    core.server.engine.saw(fixture.socket, NOW + 5);
    let active = core.handle_push(push(1, items), &["", ""], NOW + 9).active;
    assert_eq!(active, [(fixture.id.clone(), NOW + 5)]);
    let items = vec![asks(&id, false)];
    assert!(core.asked_sockets(&push(2, items.clone())).is_empty());
    assert!(
        core.handle_push(push(2, items), &[""], NOW + 9)
            .active
            .is_empty()
    );
}

fn probe(to: ConnectionId, at: u64) -> Item {
    Item::Probe {
        to,
        at,
        activity: false,
    }
}

#[test]
fn a_probe_of_a_connection_that_is_behind_returns_its_position() {
    let mut fixture = Fixture::new();
    for (at, expected) in [(4, Some(3)), (4, Some(3)), (3, None)] {
        let to = fixture.id.clone();
        assert!(fixture.push(vec![(probe(to, at), "")]).is_empty());
        assert_eq!(fixture.reported(), expected);
    }
    assert!(fixture.take().is_none(), "the client does not join again");
}

/// Rooms of older versions give gateways up.
#[test]
fn a_connection_that_is_lost_joins_again_from_its_position() {
    let mut fixture = Fixture::new();
    let to = fixture.id.clone();
    assert!(fixture.push(vec![(Item::Lost { to }, "")]).is_empty());
    assert_eq!(fixture.resubscribed_from(), Some(3));
}

#[test]
fn a_second_acceptance_does_not_change_the_position() {
    let mut fixture = Fixture::new();
    fixture.push(vec![Fixture::all(3, "four")]);
    let to = fixture.id.clone();
    fixture.push(vec![(Item::Subscribed { to, after: 3 }, "")]);
    assert!(fixture.push(vec![Fixture::all(3, "four")]).is_empty());
    assert_eq!(fixture.push(vec![Fixture::all(4, "five")]), ["five"]);
}

/// The host verifies the token of a refresh. Commands that arrive meanwhile are executed.
#[test]
fn a_refresh_waits_for_its_authentication_and_other_commands_do_not() {
    let mut fixture = Fixture::new();
    let has_answer = |out: &[Output], part: &str| {
        out.iter().any(|output| match output {
            Output::Send {
                frame: roomcast_gateway::Frame::Text(text),
                ..
            }
            | Output::Broadcast { text, .. } => text.contains(part),
            _ => false,
        })
    };
    let token = token(READ_AND_WRITE);
    for ready in [false, true] {
        let out = fixture.send(refresh_command(&token));
        assert!(!has_answer(&out, r#""ack":7"#), "{out:?}");
        let waiting = out.into_iter().find_map(|output| match output {
            Output::Authenticate(it) => Some(it),
            _ => None,
        });
        let waiting = waiting.expect("the gateway requests authentication");
        assert!(matches!(&waiting.credentials, Credentials::Token(it) if *it == token));
        let presence = r#"{"event":"setPresence","data":{"status":"away"},"id":8}"#;
        let out = fixture.send(presence.to_owned());
        assert!(has_answer(&out, r#""ack":8"#), "{out:?}");
        let gateway = &mut fixture.gateway;
        let identity = match ready {
            true => config().auth.verify(&token, NOW),
            false => Err(Error::internal()),
        };
        let asked = waiting.request.clone();
        gateway.authenticated(asked, identity.clone(), NOW);
        let out = gateway.settle(NOW);
        let expected = if ready { "expiresAt" } else { "internal" };
        assert!(has_answer(&out, expected), "{out:?}");
        // The result for a connection that has ended is ignored.
        let gone = AuthRequest::Refresh {
            connection: ConnectionId::trusted("another"),
            id: None,
        };
        gateway.authenticated(gone, identity, NOW);
        assert!(gateway.settle(NOW).is_empty());
    }
    // A connection whose token was revoked is closed.
    let gateway = &mut fixture.gateway;
    let is_revoked = |user: &str, _: &TokenId| user == "alice";
    gateway.close_revoked(&is_revoked);
    let closed = gateway.settle(NOW);
    let closed = closed
        .iter()
        .any(|output| matches!(output, Output::Close { code: 4401, .. }));
    assert!(closed);
}

#[test]
fn a_leave_that_failed_is_not_sent_again_after_the_next_join() {
    let mut fixture = Fixture::new();
    fixture.refresh(&token(None));
    let gone = fixture.take().expect("the client leaves the room");
    assert!(matches!(&gone[..], [Command::Gone { .. }]), "{gone:?}");
    fixture.fail(gone);
    fixture.refresh(&token(READ_AND_WRITE));
    fixture.send(r#"{"event":"joinRoom","data":"r"}"#.to_owned());
    let join = fixture.take().expect("a join");
    let Some(Command::Join { request, .. }) = join.last() else {
        panic!("not a join: {join:?}");
    };
    assert!(fixture.take().is_none());
    let to = request.connection_id.clone();
    fixture.push(vec![(Item::Subscribed { to, after: 3 }, "")]);
    let sent = fixture.take_later();
    assert!(sent.is_none(), "{sent:?}");
}

#[test]
fn a_refresh_that_failed_is_sent_again_with_the_newest_rights() {
    let mut fixture = Fixture::new();
    fixture.refresh(&token(READ_AND_WRITE));
    let first = fixture.take().expect("a refresh");
    fixture.fail(first);
    fixture.refresh(&token(Some(&["read"])));
    let newest = fixture.take().expect("a refresh");
    let Some(Command::Refresh { rights: newest, .. }) = newest.last() else {
        panic!("not a refresh: {newest:?}");
    };
    assert!(fixture.take().is_none());
    let sent = fixture.take_later().expect("the refresh again");
    for command in sent {
        let Command::Refresh { rights, .. } = &command else {
            panic!("not a refresh: {command:?}");
        };
        assert_eq!(rights, newest);
    }
}

#[test]
fn an_event_after_the_close_of_its_only_receiver_is_no_violation() {
    let mut fixture = Fixture::new();
    let line = r#"{"event":"userLeft","data":{"roomId":"r","userId":"bob"}}"#;
    let close = Item::Close {
        to: fixture.id.clone(),
        why: Disconnect::Kicked,
    };
    let (bytes, not, after, at) = (line.len(), Vec::new(), 0, 0);
    let event = Item::Broadcast {
        bytes,
        not,
        after,
        at,
        presence: false,
    };
    fixture.number += 1;
    let outputs = fixture.outputs_of(vec![(close, ""), (event, line)]);
    let is_error =
        |output: &Output| matches!(output, Output::Log(record) if record.level == Level::Error);
    assert!(!outputs.iter().any(is_error), "{outputs:?}");
}

/// `MAX_UNACKED_BYTES` of the default settings.
const UNACKED: usize = 8 << 20;

impl Fixture {
    /// Reports that this many bytes were written to the socket of the client.
    fn written(&mut self, bytes: usize) {
        let is_over_limit = self.gateway.server.engine.sent(self.socket, bytes);
        assert_eq!(is_over_limit, bytes > UNACKED);
    }

    /// Advances the clock, with the time of the client's last ping. Returns the close code if
    /// the client is closed.
    fn advance(&mut self, now: u64, pinged: Option<u64>) -> Option<u16> {
        self.gateway.server.engine.set_now(now);
        self.gateway.advance(&|_| pinged, now);
        let outputs = self.gateway.settle(now);
        outputs.iter().find_map(|output| match output {
            Output::Close { code, .. } => Some(*code),
            _ => None,
        })
    }

    /// Returns the positions from which the gateway asks the room for the log.
    fn resumed_from(&mut self) -> Vec<u64> {
        let commands = self.take().unwrap_or_default();
        let resumed = commands.iter().map(|command| match command {
            Command::Resume { connection, after } if *connection == self.id => *after,
            other => panic!("not a resume: {other:?}"),
        });
        resumed.collect()
    }

    fn is_paused(&self) -> bool {
        self.pushed.paused == std::slice::from_ref(&self.id)
    }
}

#[test]
fn a_client_that_does_not_read_is_paused_and_continues_with_its_next_frame() {
    let mut fixture = Fixture::new();
    fixture.written(UNACKED + 1);
    assert!(fixture.push(vec![Fixture::all(3, "four")]).is_empty());
    assert!(fixture.is_paused());
    // The room learns it again only if it sends a portion.
    fixture.push(vec![Fixture::all(4, "five")]);
    assert_eq!(fixture.pushed, Pushed::default());
    let portion = fixture.one(3, "four");
    assert!(fixture.push(vec![portion]).is_empty());
    assert!(fixture.is_paused());
    // Answers are sent in any case.
    let to = fixture.id.clone();
    let answer = Item::Unicast {
        to: to.clone(),
        bytes: 3,
        after: None,
        at: None,
    };
    assert_eq!(fixture.push(vec![(answer, "ack")]), ["ack"]);
    fixture.push(vec![(probe(to, 5), "")]);
    assert!(fixture.is_paused() && fixture.reported().is_none());
    assert!(fixture.resumed_from().is_empty());
    fixture.send("ping".to_owned());
    assert_eq!(fixture.resumed_from(), [3]);
    let portion = fixture.one(3, "four\nfive");
    assert_eq!(fixture.push(vec![portion]), ["four\nfive"]);
    assert_eq!(fixture.push(vec![Fixture::all(5, "six")]), ["six"]);
}

#[test]
fn a_paused_client_continues_when_the_runtime_has_answered_its_ping() {
    let mut fixture = Fixture::new();
    fixture.written(UNACKED + 1);
    fixture.push(vec![Fixture::all(3, "four")]);
    assert_eq!(fixture.advance(NOW + 1_000, None), None);
    assert!(fixture.resumed_from().is_empty());
    assert_eq!(fixture.advance(NOW + 2_000, Some(NOW + 1_500)), None);
    assert_eq!(fixture.resumed_from(), [3]);
}

#[test]
fn a_paused_client_without_a_sign_of_life_is_closed_after_the_catch_up_timeout() {
    let mut fixture = Fixture::new();
    fixture.written(UNACKED + 1);
    fixture.push(vec![Fixture::all(3, "four")]);
    for second in 1..60 {
        assert_eq!(fixture.advance(NOW + second * 1_000, None), None);
    }
    assert_eq!(fixture.advance(NOW + 60_000, None), Some(4503));
}

#[test]
fn a_resume_that_failed_is_sent_again_from_the_newest_position() {
    let mut fixture = Fixture::new();
    fixture.written(UNACKED + 1);
    fixture.push(vec![Fixture::all(3, "four")]);
    fixture.send("ping".to_owned());
    let resume = fixture.take().expect("a resume");
    fixture.fail(resume);
    fixture.push(vec![Fixture::all(3, "four")]);
    let resumed = fixture.take_later().expect("the resume again");
    assert!(matches!(resumed[..], [Command::Resume { after: 4, .. }]));
}

#[test]
fn a_client_that_has_sent_nothing_is_paused_earlier() {
    let (mut gateway, socket) = gateway_with_socket();
    assert!(!gateway.server.engine.sent(socket, 1 << 20));
    assert!(gateway.server.engine.sent(socket, 1));
    // A ping that the runtime has answered is a sign of life.
    let engine = &mut gateway.server.engine;
    engine.check_slow(socket, Some(NOW + 1), NOW + 2);
    assert!(!engine.sent(socket, UNACKED));
    assert!(engine.sent(socket, 1));
}

/// A Socket.IO client, which has connected to `/chat` on long-polling or resumes.
struct SocketIoClient {
    gateway: Gateway,
    sid: String,
    number: u64,
}

impl SocketIoClient {
    fn new() -> Self {
        let config = config();
        let engine = EngineServer::new("0".into(), config.gateway.clone(), fresh);
        let mut gateway = Gateway::new(engine);
        let sid = Self::open(&mut gateway);
        SocketIoClient {
            gateway,
            sid,
            number: 0,
        }
    }

    fn identity() -> Identity {
        let token = Token::user("alice").ttl(1_000_000_000);
        let token = token.claim("rooms", json!(["*"])).sign(SECRET);
        let now = roomcast_harness::now() as u64 * 1_000;
        config().auth.verify(&token, now).expect("a token")
    }

    fn open(gateway: &mut Gateway) -> String {
        Self::open_with(gateway, true)
    }

    /// Opens a session of a client that supports recovery or, if not `recovers`, of
    /// `socket.io-client` of an unknown version.
    fn open_with(gateway: &mut Gateway, recovers: bool) -> String {
        let connect = ConnectInfo {
            protocol: Protocol::SocketIo,
            identity: Some(Self::identity()),
            error: None,
            address: None,
            recovers,
            may_recover: !recovers,
        };
        gateway.server.engine.set_now(NOW);
        let opened = gateway.server.engine.open_polling(connect, NOW).body;
        let handshake: serde_json::Value = serde_json::from_str(&opened[1..]).expect("JSON");
        handshake["sid"].as_str().expect("a sid").to_owned()
    }

    /// Posts a packet. Returns the outputs, with the authentication done.
    fn post(&mut self, packet: &str) -> Vec<Output> {
        let begun = self
            .gateway
            .server
            .engine
            .begin_post(&self.sid, Some(1), false, NOW);
        begun.expect("a session");
        let body = PostBody::Complete(packet.as_bytes().to_vec());
        self.gateway.server.post(&self.sid, body, NOW);
        let mut outputs = self.gateway.settle(NOW);
        if let Some(Output::Authenticate(it)) = outputs.last() {
            let request = it.request.clone();
            let identity = Ok(Self::identity());
            self.gateway.authenticated(request, identity, NOW);
            outputs.extend(self.gateway.settle(NOW));
        }
        outputs
    }

    /// Polls. Returns the packets that wait.
    fn poll(&mut self) -> String {
        let polled = self.gateway.server.engine.poll(&self.sid, NOW);
        match polled {
            Polled::Now(answer) => answer.body,
            Polled::Later(_) => String::new(),
        }
    }

    /// Takes the commands for a room. Returns the id of the subscription that they are for.
    fn commands(&mut self, room: &str) -> (Vec<Command>, Option<ConnectionId>) {
        let room = RoomName::trusted(room);
        let commands = self.gateway.take_commands(&room).unwrap_or_default();
        let id = commands.last().map(|command| command.connection().clone());
        assert!(self.gateway.take_commands(&room).is_none());
        (commands, id)
    }

    fn push(&mut self, room: &str, items: Vec<(Item, &str)>) -> (Pushed, Vec<Output>) {
        self.number += 1;
        let (items, texts): (Vec<Item>, Vec<&str>) = items.into_iter().unzip();
        let push = Push {
            room: RoomName::trusted(room),
            epoch: Epoch::trusted("e"),
            life: "l".into(),
            number: self.number,
            presence_before: 0,
            presence: 0,
            items,
        };
        let pushed = self.gateway.handle_push(push, &texts, NOW);
        (pushed, self.gateway.settle(NOW))
    }
}

fn message(room: &str, seq: u64, bytes: usize) -> String {
    let content = "x".repeat(bytes);
    let data = json!({
        "roomId": room, "content": content, "messageId": "m", "senderId": "bob", "seq": seq,
        "timestamp": "2026-11-26T00:00:00.000Z",
    });
    json!({ "event": "newMessage", "data": data }).to_string()
}

fn portion(to: &ConnectionId, after: u64, text: &str) -> (Item, String) {
    let item = Item::Unicast {
        to: to.clone(),
        bytes: text.len(),
        after: Some(after),
        at: Some(after + 1),
    };
    (item, text.to_owned())
}

#[test]
fn a_session_that_does_not_poll_is_paused_and_continues_with_its_next_poll() {
    let mut client = SocketIoClient::new();
    client.post("40/chat,");
    client.post(r#"42/chat,["joinRoom","r"]"#);
    client.poll();
    let (_, id) = client.commands("r");
    let id = id.expect("a join");
    let subscribed = Item::Subscribed {
        to: id.clone(),
        after: 0,
    };
    client.push("r", vec![(subscribed, "")]);
    let mut sent = 0;
    for seq in 1..100 {
        let text = message("r", seq, 100_000);
        let (item, text) = portion(&id, seq - 1, &text);
        let (pushed, _) = client.push("r", vec![(item, &text)]);
        if !pushed.paused.is_empty() {
            assert_eq!(pushed.paused, std::slice::from_ref(&id));
            break;
        }
        sent = seq;
    }
    assert_eq!(sent, 11, "1 MiB waits");
    assert!(client.commands("r").0.is_empty());
    assert_eq!(client.poll().matches("newMessage").count(), 11);
    client.gateway.settle(NOW);
    let (commands, _) = client.commands("r");
    assert!(
        matches!(commands[..], [Command::Resume { after: 11, .. }]),
        "{commands:?}"
    );
    let text = message("r", 12, 10);
    let (item, text) = portion(&id, 11, &text);
    client.push("r", vec![(item, &text)]);
    assert!(client.poll().contains(r#""seq":12"#));
}

/// Connects a client, joins two rooms, and returns with its `pid`. Returns the client and the
/// ids of its new subscriptions.
fn recovering() -> (SocketIoClient, ConnectionId, ConnectionId) {
    let mut client = SocketIoClient::new();
    client.post("40/chat,");
    client.poll();
    for room in ["a", "b"] {
        client.post(&format!(r#"42/chat,["joinRoom","{room}"]"#));
        let id = client.commands(room).1.expect("a join");
        client.push(room, vec![(Item::Subscribed { to: id, after: 5 }, "")]);
    }
    client.post("1");
    let mut record = None;
    for room in ["a", "b", "@alice"] {
        client.commands(room);
        for output in client.gateway.settle(NOW) {
            if let Output::Save {
                client,
                gone: true,
                record: saved,
                ..
            } = output
            {
                record = Some((client, saved));
            }
        }
    }
    let (pid, record) = record.expect("the record of the client");
    client.sid = SocketIoClient::open(&mut client.gateway);
    let outputs = client.post(&format!(r#"40/chat,{{"pid":"{pid}","offset":null}}"#));
    let Some(Output::Find { client: key, .. }) = outputs.last() else {
        panic!("the record is not requested: {outputs:?}");
    };
    client.gateway.found(*key, &pid, Some(record), NOW);
    client.gateway.settle(NOW);
    let a = client.commands("a").1.expect("a join");
    let b = client.commands("b").1.expect("a join");
    (client, a, b)
}

/// Returns the packet of a message in the personal room, after the room has accepted the client.
fn message_in_personal_room(client: &mut SocketIoClient) -> String {
    let (room, text) = ("@alice", message("@alice", 1, 1));
    let to = client.commands(room).1.expect("a join");
    let (item, text) = portion(&to, 0, &text);
    client.push(
        room,
        vec![(Item::Subscribed { to, after: 0 }, ""), (item, &text)],
    );
    let packets = client.poll();
    let mut packets = packets.split('\u{1e}').map(str::to_owned);
    let packet = packets.find(|packet| packet.contains("newMessage"));
    packet.expect("the message")
}

#[test]
fn a_client_of_an_unknown_version_gets_offsets_once_it_has_sent_a_pid() {
    let mut client = SocketIoClient::new();
    client.sid = SocketIoClient::open_with(&mut client.gateway, false);
    client.post("40/chat,");
    let packets = client.poll();
    let (_, pid) = packets.split_once(r#""pid":""#).expect("a pid");
    let pid = pid.split('"').next().expect("a pid").to_owned();
    let plain = message_in_personal_room(&mut client);
    assert!(plain.ends_with("}]"), "no offset: {plain}");

    client.sid = SocketIoClient::open_with(&mut client.gateway, false);
    let outputs = client.post(&format!(r#"40/chat,{{"pid":"{pid}"}}"#));
    let Some(Output::Find { client: key, .. }) = outputs.last() else {
        panic!("the record is not requested: {outputs:?}");
    };
    client.gateway.found(*key, &pid, None, NOW);
    let outputs = client.gateway.settle(NOW);
    let is_saved = |output: &Output| matches!(output, Output::Save { .. });
    assert!(outputs.iter().any(is_saved), "the client can resume");
    let stamped = message_in_personal_room(&mut client);
    assert!(stamped.ends_with("\"]"), "an offset: {stamped}");
}

#[test]
fn a_recovery_holds_little_and_continues_from_the_log_once_it_is_accepted() {
    let (mut client, a, b) = recovering();
    let subscribed = |to: &ConnectionId| {
        let to = to.clone();
        (Item::Subscribed { to, after: 5 }, "")
    };
    client.push("a", vec![subscribed(&a)]);
    let mut held = 5;
    for seq in 6..20 {
        let text = message("a", seq, 30_000);
        let (item, text) = portion(&a, seq - 1, &text);
        let (pushed, _) = client.push("a", vec![(item, &text)]);
        if !pushed.paused.is_empty() {
            break;
        }
        held = seq;
    }
    assert_eq!(held, 8, "64 KiB are held");
    assert!(!client.poll().contains("newMessage"));
    let (_, outputs) = client.push("b", vec![subscribed(&b)]);
    let answers = outputs.iter().filter_map(|output| match output {
        Output::Answer { answer, .. } => Some(answer.body.clone()),
        _ => None,
    });
    let accepted: String = answers.collect::<Vec<_>>().join("") + &client.poll();
    assert!(accepted.contains("40/chat,"), "{accepted}");
    assert_eq!(accepted.matches("newMessage").count(), 3);
    client.gateway.settle(NOW);
    let (commands, _) = client.commands("a");
    assert!(
        matches!(commands[..], [Command::Resume { after: 8, .. }]),
        "{commands:?}"
    );
}

#[test]
fn a_recovery_with_a_gap_is_incomplete() {
    let (mut client, a, _) = recovering();
    let gap = event::gap("a", 6, 9);
    let item = Item::Unicast {
        to: a.clone(),
        bytes: gap.len(),
        after: Some(5),
        at: Some(9),
    };
    let subscribed = Item::Subscribed { to: a, after: 5 };
    client.poll();
    let (_, outputs) = client.push("a", vec![(subscribed, ""), (item, &gap)]);
    let answers = outputs.iter().filter_map(|output| match output {
        Output::Answer { answer, .. } => Some(answer.body.as_str()),
        _ => None,
    });
    let accepted = answers.collect::<Vec<_>>().join("") + &client.poll();
    assert!(accepted.contains("40/chat,"), "{accepted}");
    let gone = client.commands("a").0;
    assert!(
        gone.iter()
            .any(|command| matches!(command, Command::Gone { .. })),
        "the client begins without its rooms: {gone:?}"
    );
}

/// A room answers a request before it has stored the batch.
#[test]
fn a_repair_that_a_room_has_lost_is_repeated() {
    let mut fixture = Fixture::new();
    let lost = Item::Lost {
        to: fixture.id.clone(),
    };
    fixture.push(vec![(lost, "")]);
    assert_eq!(fixture.resubscribed_from(), Some(3));
    let first = fixture.id.clone();
    assert!(fixture.take().is_none(), "the request has arrived");
    let commands = fixture.take_later().expect("the repair again");
    let [Command::Join { request, again, .. }] = &commands[..] else {
        panic!("not a join: {commands:?}");
    };
    assert!(*again && request.position.since == Some(3));
    fixture.id = request.connection_id.clone();
    assert_ne!(
        fixture.id, first,
        "a late answer to the first one is ignored"
    );
    for (to, gone) in [(first.clone(), vec![first]), (fixture.id.clone(), vec![])] {
        fixture.push(vec![(Item::Subscribed { to, after: 3 }, "")]);
        assert_eq!(fixture.pushed.gone, gone);
    }
    assert!(fixture.take_later().is_none(), "it is answered");
    assert_eq!(fixture.push(vec![Fixture::all(3, "four")]), ["four"]);
}

const LEFT: &str = r#"{"ack":5,"data":{"roomId":"r"}}"#;

/// The texts for an unreachable gateway are dropped; the end of the subscription is not.
#[test]
fn a_leave_whose_answer_was_lost_is_answered_when_the_subscription_ends() {
    for is_lost in [true, false] {
        let mut fixture = Fixture::new();
        fixture.leave();
        let mut items = vec![fixture.out()];
        if !is_lost {
            items.insert(0, fixture.answer(LEFT));
        }
        let left = r#"{"event":"userLeft"#;
        let sent = fixture.push(items);
        let answers = sent.iter().filter(|text| !text.starts_with(left));
        assert_eq!(answers.collect::<Vec<_>>(), [LEFT], "once");
        assert!(fixture.take_later().is_none(), "no answer is missing");
    }
}

#[test]
fn a_leave_of_an_unknown_connection_is_answered_once() {
    const ERROR: &str =
        r#"{"ack":5,"error":{"code":"internal","message":"internal error, try again"}}"#;
    for is_lost in [true, false] {
        let mut fixture = Fixture::new();
        fixture.leave();
        let lost = Item::Lost {
            to: fixture.id.clone(),
        };
        let mut items = vec![(lost, "")];
        if !is_lost {
            items.insert(0, fixture.answer(ERROR));
        }
        assert_eq!(fixture.push(items), [ERROR]);
        assert_eq!(
            fixture.resubscribed_from(),
            Some(3),
            "the client is in the room"
        );
    }
}

#[test]
fn a_leave_that_a_room_refuses_leaves_the_client_in_the_room_at_once() {
    let mut fixture = Fixture::new();
    fixture.leave();
    let refused = r#"{"ack":5,"error":{"code":"internal","message":"x"}}"#;
    let answer = fixture.answer(refused);
    assert_eq!(fixture.push(vec![answer]), [refused]);
    assert_eq!(fixture.resubscribed_from(), Some(3));
    let to = fixture.id.clone();
    fixture.push(vec![(Item::Subscribed { to, after: 3 }, "")]);
    assert_eq!(fixture.push(vec![Fixture::all(3, "four")]), ["four"]);
}

/// The memory of a room is dropped after a failure of storage, with the items that have not
/// been queued.
#[test]
fn a_join_that_fails_with_the_storage_can_be_repeated_at_once() {
    let mut fixture = Fixture::new();
    fixture.leave();
    let items = vec![fixture.answer(LEFT), fixture.out()];
    fixture.push(items);
    fixture.join(6);
    let failed = r#"{"ack":6,"error":{"code":"internal","message":"x"}}"#;
    let answer = fixture.answer(failed);
    assert_eq!(fixture.push(vec![answer]), [failed], "one error");
    fixture.join(7);
    let (to, joined) = (fixture.id.clone(), r#"{"ack":7,"data":{}}"#);
    let items = vec![
        (Item::Subscribed { to, after: 3 }, ""),
        fixture.answer(joined),
    ];
    assert_eq!(fixture.push(items), [joined]);
    assert_eq!(fixture.push(vec![Fixture::all(3, "four")]), ["four"]);
    assert!(fixture.take_later().is_none());
}

#[test]
fn the_position_of_the_last_client_of_a_room_is_forgotten_also_if_the_client_was_behind() {
    let mut fixture = Fixture::new();
    let tracked = |outputs: Vec<Output>| {
        let positions = outputs.into_iter().filter_map(|output| match output {
            Output::TrackPosition { key, at } => Some((key.to_string(), at)),
            _ => None,
        });
        positions.collect::<Vec<_>>()
    };
    fixture.number += 1;
    let mut positions = HashMap::new();
    positions.extend(tracked(fixture.outputs_of(vec![Fixture::all(4, "six")])));
    assert!(!positions.is_empty());
    assert_eq!(fixture.reported(), Some(3), "event 4 is missing");
    fixture.gateway.server.engine.closed(fixture.socket, 1006);
    positions.extend(tracked(fixture.gateway.settle(NOW)));
    assert!(fixture.take().is_some(), "the client has left");
    assert!(fixture.take().is_none());
    positions.extend(tracked(fixture.gateway.settle(NOW)));
    let kept = positions.iter().filter(|(_, at)| at.is_some());
    assert_eq!(kept.collect::<Vec<_>>(), []);
    // Nothing is left that would be stored.
    fixture.take_later();
    let outputs = fixture.gateway.settle(NOW + 60_000);
    assert!(tracked(outputs).is_empty());
}
