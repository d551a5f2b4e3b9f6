//! The link between a room and a gateway, natively: deliveries that are missed
//! or come twice.

use roomcast::auth::revoked::{Revocation, Whose};
use roomcast::auth::{self, Identity};
use roomcast::config::{Config, Level};
use roomcast::gateway::chat::Chat;
use roomcast::gateway::{App, Door, Gateway, Hub, Output, Protocol, SocketId};
use roomcast::room::link::{Command, Item, Push};
use roomcast_harness::{SECRET, Token};
use serde_json::json;
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
        _ => None,
    };
    Rc::new(Config::read(vars).expect("settings"))
}

/// A token of alice for the room `r` with these rights, or for no room.
fn token(rights: Option<&[&str]>) -> String {
    let rooms = rights.map_or(json!({}), |rights| json!({"r": rights}));
    let token = Token::user("alice").ttl(1_000_000_000);
    token.claim("rooms", rooms).sign(SECRET)
}

const MEMBER: Option<&[&str]> = Some(&["read", "write"]);

fn refresh(token: &str) -> String {
    format!(r#"{{"event":"refreshToken","data":{{"token":"{token}"}},"id":7}}"#)
}

fn identity(config: &Config) -> Identity {
    let token = token(MEMBER);
    let now = roomcast_harness::now() as u64 * 1_000;
    auth::verify(config, &token, now).expect("a token")
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
        let hub = Hub::new("n0".into(), config, fresh);
        let mut gateway = Gateway::new(hub, Chat::default());
        let socket = gateway.hub.open_native(door, NOW);
        gateway.settle(NOW);
        let join = r#"{"event":"joinRoom","data":"r"}"#.to_owned();
        gateway
            .hub
            .frame(socket, roomcast::gateway::Frame::Text(join), NOW);
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

    /// What follows a frame of the client.
    fn say(&mut self, text: String) -> Vec<Output> {
        let frame = roomcast::gateway::Frame::Text(text);
        self.gateway.hub.frame(self.socket, frame, NOW);
        self.gateway.settle(NOW)
    }

    /// The client's token becomes this one.
    fn refresh(&mut self, token: &str) {
        let mut out = self.say(refresh(token)).into_iter();
        let waiting = out.find_map(|output| match output {
            Output::Prepare(waiting) => Some(waiting),
            _ => None,
        });
        if let Some(waiting) = waiting {
            let (app, hub) = (&mut self.gateway.app, &mut self.gateway.hub);
            app.prepared(hub, waiting, true, NOW);
            self.gateway.settle(NOW);
        }
    }

    /// The room could not be asked.
    fn fail(&mut self, commands: Vec<Command>) {
        let (app, hub) = (&mut self.gateway.app, &mut self.gateway.hub);
        app.failed(hub, "r", commands);
        assert!(self.take().is_none(), "not at once");
    }

    /// What the room is asked a minute later.
    fn asked_later(&mut self) -> Option<Vec<Command>> {
        let later = NOW + 60_000;
        self.gateway.hub.set_now(later);
        self.gateway.advance(&|_| None, later);
        self.gateway.settle(later);
        self.take()
    }

    /// A push; what its clients are sent.
    fn push(&mut self, items: Vec<(Item, &str)>) -> Vec<String> {
        self.number += 1;
        self.push_again(items)
    }

    /// The same push once more.
    fn push_again(&mut self, items: Vec<(Item, &str)>) -> Vec<String> {
        let sent = self.outputs_of(items).into_iter();
        sent.filter_map(|output| match output {
            Output::Broadcast { text, .. } => Some(text),
            Output::Send {
                frame: roomcast::gateway::Frame::Text(text),
                ..
            } => Some(text),
            _ => None,
        })
        .collect()
    }

    /// What follows a push by the number of the last.
    fn outputs_of(&mut self, items: Vec<(Item, &str)>) -> Vec<Output> {
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
        self.gateway.settle(NOW)
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

/// A token that cannot be judged yet, for the list of what was revoked is not
/// there, is asked for by an output; what comes meanwhile is served.
#[test]
fn a_refresh_waits_for_what_its_token_takes_and_nothing_else_does() {
    let mut bench = Bench::new();
    let answers = |out: &[Output], part: &str| {
        out.iter().any(|output| match output {
            Output::Send {
                frame: roomcast::gateway::Frame::Text(text),
                ..
            }
            | Output::Broadcast { text, .. } => text.contains(part),
            _ => false,
        })
    };
    let token = token(MEMBER);
    for ready in [false, true] {
        let out = bench.say(refresh(&token));
        assert!(!answers(&out, r#""ack":7"#), "{out:?}");
        let waiting = out.into_iter().find_map(|output| match output {
            Output::Prepare(waiting) => Some(waiting),
            _ => None,
        });
        let waiting = waiting.expect("asks for what it takes");
        assert_eq!(waiting.token, token);
        let presence = r#"{"event":"setPresence","data":{"status":"away"},"id":8}"#;
        let out = bench.say(presence.to_owned());
        assert!(answers(&out, r#""ack":8"#), "{out:?}");
        let gateway = &mut bench.gateway;
        gateway
            .app
            .prepared(&mut gateway.hub, waiting.clone(), ready, NOW);
        let out = gateway.settle(NOW);
        let expected = if ready { "expiresAt" } else { "internal" };
        assert!(answers(&out, expected), "{out:?}");
        // Somebody who has gone meanwhile gets no answer, nor who came after.
        let mut gone = waiting;
        if let roomcast::gateway::Asked::Refresh { connection, .. } = &mut gone.asked {
            *connection = "somebody else".into();
        }
        gateway.app.prepared(&mut gateway.hub, gone, true, NOW);
        assert!(gateway.settle(NOW).is_empty());
    }
    // What was told of revocations closes what it concerns.
    let gateway = &mut bench.gateway;
    let revoked = Revocation {
        n: 1,
        whose: Whose::User("alice".into()),
        at: NOW / 1_000,
        until: NOW / 1_000 + 60,
    };
    gateway.hub.config.revoked.learn(&[revoked]);
    gateway.app.enforce(&mut gateway.hub, NOW);
    let closed = gateway.settle(NOW);
    let closed = closed
        .iter()
        .any(|output| matches!(output, Output::Close { code: 4401, .. }));
    assert!(closed);
}

#[test]
fn a_leave_that_failed_is_not_sent_again_after_the_next_join() {
    let mut bench = Bench::new();
    let (wide, narrow) = (token(MEMBER), token(None));
    bench.refresh(&narrow);
    let gone = bench.take().expect("the room is left");
    assert!(matches!(&gone[..], [Command::Gone { .. }]), "{gone:?}");
    bench.fail(gone);
    bench.refresh(&wide);
    bench.say(r#"{"event":"joinRoom","data":"r"}"#.to_owned());
    let join = bench.take().expect("a join");
    let Some(Command::Join { hello, .. }) = join.last() else {
        panic!("not a join: {join:?}");
    };
    assert!(bench.take().is_none());
    let to = hello.connection_id.clone();
    bench.push(vec![(Item::In { to, after: 3 }, "")]);
    let sent = bench.asked_later();
    assert!(sent.is_none(), "{sent:?}");
}

#[test]
fn a_refresh_that_failed_is_sent_again_with_the_newest_rights() {
    let mut bench = Bench::new();
    bench.refresh(&token(MEMBER));
    let first = bench.take().expect("the room is told");
    bench.fail(first);
    bench.refresh(&token(Some(&["read"])));
    let newest = bench.take().expect("the room is told");
    let Some(Command::Refresh { rights: newest, .. }) = newest.last() else {
        panic!("not a refresh: {newest:?}");
    };
    assert!(bench.take().is_none());
    for command in bench.asked_later().into_iter().flatten() {
        let Command::Refresh { rights, .. } = &command else {
            panic!("not a refresh: {command:?}");
        };
        assert_eq!(rights, newest);
    }
}

#[test]
fn an_event_behind_the_end_of_its_only_receiver_closes_nothing_else() {
    let mut bench = Bench::new();
    let line = r#"{"event":"userLeft","data":{"roomId":"r","userId":"bob"}}"#;
    let (bytes, not) = (line.len(), Vec::new());
    let end = Item::Close {
        to: bench.id.clone(),
        why: roomcast::wire::native::Close::Kicked,
    };
    let (after, at) = (0, 0);
    let event = Item::All {
        bytes,
        not,
        after,
        at,
    };
    bench.number += 1;
    let outputs = bench.outputs_of(vec![(end, ""), (event, line)]);
    let is_error =
        |output: &Output| matches!(output, Output::Log(entry) if entry.level == Level::Error);
    assert!(!outputs.iter().any(is_error), "{outputs:?}");
}
