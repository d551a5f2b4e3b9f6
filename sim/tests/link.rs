//! The link between a room and a gateway, natively: deliveries that are missed
//! or come twice.

use roomcast::config::Config;
use roomcast_gateway::chat::Chat;
use roomcast_gateway::{App, Asked, Credentials, Door, Gateway, Hub, Output, Protocol, SocketId};
use roomcast_harness::{SECRET, Token};
use roomcast_proto::access::{Identity, TokenId};
use roomcast_proto::fault::Fault;
use roomcast_proto::link::{Command, Item, Push};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

const NOW: u64 = 1_800_000_000_000;

fn fresh() -> String {
    static LAST: AtomicU32 = AtomicU32::new(0);
    format!("id{}", LAST.fetch_add(1, Ordering::Relaxed))
}

/// A gateway with one native client, `alice`, in the room `r` at event 3.
struct Bench {
    socket: SocketId,
    gateway: Gateway<Chat>,
    id: String,
    number: u64,
}

fn config() -> Rc<Config> {
    let vars = |name: &str| match name {
        "JWT_SECRET" => Some(SECRET.to_owned()),
        "DEFAULT_ROOMS" => Some("*".to_owned()),
        _ => None,
    };
    Rc::new(Config::read(vars).expect("settings"))
}

fn identity(config: &Config) -> Identity {
    let token = Token::user("alice").ttl(1_000_000_000).sign(SECRET);
    let now = roomcast_harness::now() as u64 * 1_000;
    config.auth.verify(&token, now).expect("a token")
}

impl Bench {
    fn new() -> Self {
        let config = config();
        let door = Door {
            protocol: Protocol::Native,
            identity: Some(identity(&config)),
            fault: None,
            address: None,
            recovers: false,
        };
        let hub = Hub::new("n0".into(), config.gateway.clone(), fresh);
        let mut gateway = Gateway::new(hub, Chat::default());
        let socket = gateway.hub.open_native(door, NOW);
        gateway.settle(NOW);
        let join = r#"{"event":"joinRoom","data":"r"}"#.to_owned();
        gateway
            .hub
            .frame(socket, roomcast_gateway::Frame::Text(join), NOW);
        gateway.settle(NOW);
        let commands = gateway.app.take(&mut gateway.hub, "r").expect("a join");
        let Command::Join { hello, .. } = &commands[0] else {
            panic!("not a join: {commands:?}");
        };
        let mut bench = Bench {
            id: hello.connection_id.clone(),
            gateway,
            socket,
            number: 0,
        };
        let to = bench.id.clone();
        bench.push(vec![(Item::In { to, after: 3 }, "")]);
        assert!(bench.take().is_none());
        bench
    }

    /// A push; what its clients are sent.
    fn push(&mut self, items: Vec<(Item, &str)>) -> Vec<String> {
        self.number += 1;
        self.push_again(items)
    }

    /// The same push once more.
    fn push_again(&mut self, items: Vec<(Item, &str)>) -> Vec<String> {
        let (items, texts): (Vec<Item>, Vec<&str>) = items.into_iter().unzip();
        let push = Push {
            room: "r".into(),
            epoch: "e".into(),
            life: "l".into(),
            number: self.number,
            items,
        };
        let (app, hub) = (&mut self.gateway.app, &mut self.gateway.hub);
        app.pushed(hub, push, &texts, NOW);
        let sent = self.gateway.settle(NOW).into_iter();
        sent.filter_map(|output| match output {
            Output::Broadcast { text, .. } => Some(text),
            Output::Send {
                frame: roomcast_gateway::Frame::Text(text),
                ..
            } => Some(text),
            _ => None,
        })
        .collect()
    }

    fn all(after: u64, text: &str) -> (Item, &str) {
        let at = after + text.split('\n').count() as u64;
        let (bytes, not) = (text.len(), Vec::new());
        (
            Item::All {
                bytes,
                not,
                after,
                at,
            },
            text,
        )
    }

    fn one<'a>(&self, at: u64, text: &'a str) -> (Item, &'a str) {
        let to = self.id.clone();
        let item = Item::One {
            to,
            bytes: text.len(),
            after: None,
            at: Some(at),
        };
        (item, text)
    }

    /// What waits for the room.
    fn take(&mut self) -> Option<Vec<Command>> {
        let Gateway { hub, app } = &mut self.gateway;
        app.take(hub, "r")
    }

    /// From where the gateway asks for the log again, if it does.
    fn asks_again(&mut self) -> Option<u64> {
        match &self.take()?[..] {
            [
                Command::Join {
                    hello,
                    id: None,
                    again: true,
                },
            ] => {
                self.id.clone_from(&hello.connection_id);
                hello.position.since
            }
            other => panic!("not a repair: {other:?}"),
        }
    }
}

#[test]
fn a_delivery_that_comes_twice_goes_out_once() {
    let mut bench = Bench::new();
    assert_eq!(bench.push(vec![Bench::all(3, "four")]), ["four"]);
    assert!(bench.push_again(vec![Bench::all(3, "four")]).is_empty());
    // From another waking of the room, whose pushes count anew.
    assert!(bench.push(vec![Bench::all(3, "four")]).is_empty());
    assert_eq!(bench.push(vec![Bench::all(4, "five")]), ["five"]);
    assert_eq!(bench.asks_again(), None);
}

/// Found by `make chaos`: a gateway that had lost the memory of a join in a panic
/// passed on what the room had for it, without what came before.
#[test]
fn events_for_who_is_not_of_the_room_here_go_nowhere() {
    let mut bench = Bench::new();
    let out = Item::Out {
        to: bench.id.clone(),
    };
    bench.push(vec![(out, "")]);
    let (item, text) = bench.one(5, "five");
    assert!(bench.push(vec![(item, text)]).is_empty());
}

#[test]
fn a_delivery_that_was_missed_is_noticed_and_comes_from_the_log() {
    let mut bench = Bench::new();
    assert!(
        bench.push(vec![Bench::all(5, "six")]).is_empty(),
        "4 and 5 come first"
    );
    assert_eq!(bench.asks_again(), Some(3));
    assert!(bench.push(vec![Bench::all(6, "seven")]).is_empty());
    assert_eq!(bench.asks_again(), None, "asked already");
    let to = bench.id.clone();
    let replay = bench.one(7, "four\nfive\nsix\nseven");
    let repaired = bench.push(vec![(Item::In { to, after: 3 }, ""), replay]);
    assert_eq!(repaired, ["four\nfive\nsix\nseven"]);
    assert_eq!(bench.push(vec![Bench::all(7, "eight")]), ["eight"]);
}

#[test]
fn what_is_had_in_part_is_completed() {
    let mut bench = Bench::new();
    let replay = bench.one(5, "four\nfive");
    assert_eq!(bench.push(vec![replay]), ["four\nfive"]);
    assert_eq!(bench.push(vec![Bench::all(3, "four\nfive\nsix")]), ["six"]);
    assert_eq!(bench.asks_again(), None);
}

#[test]
fn an_answer_and_its_event_are_one_frame() {
    let mut bench = Bench::new();
    let to = bench.id.clone();
    let answer = Item::One {
        to,
        bytes: 3,
        after: None,
        at: None,
    };
    let frames = bench.push(vec![(answer, "ack"), Bench::all(3, "four")]);
    assert_eq!(frames, ["ack\nfour"]);
}

#[test]
fn who_is_not_here_is_said_to_be_gone() {
    let mut bench = Bench::new();
    let push = Push {
        room: "r".into(),
        life: "another".into(),
        number: 1,
        items: vec![
            Item::Is {
                to: "nobody".into(),
                at: 3,
            },
            Item::Is {
                to: bench.id.clone(),
                at: 3,
            },
        ],
        ..Push::default()
    };
    let (app, hub) = (&mut bench.gateway.app, &mut bench.gateway.hub);
    assert_eq!(app.pushed(hub, push, &["", ""], NOW).gone, ["nobody"]);
}

#[test]
fn who_is_behind_or_lost_joins_again_from_where_it_stood() {
    for item in [|to| Item::Is { to, at: 4 }, |to| Item::Lost { to }] {
        let mut bench = Bench::new();
        let item = item(bench.id.clone());
        assert!(bench.push(vec![(item, "")]).is_empty());
        assert_eq!(bench.asks_again(), Some(3));
    }
}

/// The host judges the token of a refresh. Commands that come meanwhile are executed.
#[test]
fn a_refresh_waits_for_what_its_token_takes_and_nothing_else_does() {
    let mut bench = Bench::new();
    let socket = bench.socket;
    let frame = |bench: &mut Bench, text: String| {
        let hub = &mut bench.gateway.hub;
        hub.frame(socket, roomcast_gateway::Frame::Text(text), NOW);
        bench.gateway.settle(NOW)
    };
    let answers = |out: &[Output], part: &str| {
        out.iter().any(|output| match output {
            Output::Send {
                frame: roomcast_gateway::Frame::Text(text),
                ..
            }
            | Output::Broadcast { text, .. } => text.contains(part),
            _ => false,
        })
    };
    let token = Token::user("alice").ttl(2_000_000_000).sign(SECRET);
    let refresh = format!(r#"{{"event":"refreshToken","data":{{"token":"{token}"}},"id":7}}"#);
    for ready in [false, true] {
        let out = frame(&mut bench, refresh.clone());
        assert!(!answers(&out, r#""ack":7"#), "{out:?}");
        let waiting = out.into_iter().find_map(|output| match output {
            Output::Authenticate(it) => Some(it),
            _ => None,
        });
        let waiting = waiting.expect("asks for what it takes");
        assert!(matches!(&waiting.credentials, Credentials::Token(it) if *it == token));
        let presence = r#"{"event":"setPresence","data":{"status":"away"},"id":8}"#;
        let out = frame(&mut bench, presence.to_owned());
        assert!(answers(&out, r#""ack":8"#), "{out:?}");
        let gateway = &mut bench.gateway;
        let identity = match ready {
            true => config().auth.verify(&token, NOW),
            false => Err(Fault::internal()),
        };
        let asked = waiting.asked.clone();
        gateway
            .app
            .authenticated(&mut gateway.hub, asked, identity.clone(), NOW);
        let out = gateway.settle(NOW);
        let expected = if ready { "expiresAt" } else { "internal" };
        assert!(answers(&out, expected), "{out:?}");
        // Somebody who has gone meanwhile gets no answer, nor who came after.
        let gone = Asked::Refresh {
            connection: "another".into(),
            id: None,
        };
        gateway
            .app
            .authenticated(&mut gateway.hub, gone, identity, NOW);
        assert!(gateway.settle(NOW).is_empty());
    }
    // A connection whose token was revoked is closed.
    let gateway = &mut bench.gateway;
    let is_revoked = |user: &str, _: &TokenId| user == "alice";
    gateway.app.close_revoked(&mut gateway.hub, &is_revoked);
    let closed = gateway.settle(NOW);
    let closed = closed
        .iter()
        .any(|output| matches!(output, Output::Close { code: 4401, .. }));
    assert!(closed);
}
