//! Requests. A first line of a method and an address, as `POST /publish?a=b`,
//! and behind it the body.

use super::world::{self, NOW, Said, Server};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use roomcast::http::problem::Problem;
use roomcast::http::publish::{self, Addressed, Body};
use roomcast::http::revoke;
use roomcast::http::route::{self, Address, Query, Route};
use roomcast_auth::revoked::{MAX_LIFE, Registry, Revoked, Whose};
use roomcast_gateway::handshake;
use roomcast_proto::access::TokenId;
use roomcast_proto::name;
use roomcast_proto::wire::command::MAX_LIMIT;
use roomcast_proto::wire::object::MAX_SAFE_INTEGER;
use roomcast_room::service::{Publication, Request};
use serde_json::Value;
use std::collections::BTreeMap;

pub fn run(input: &[u8]) {
    world::begin();
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let (first, body) = text.split_once('\n').unwrap_or((text, ""));
    let (method, url) = first.split_once(' ').unwrap_or(("GET", first));
    path(method, Address::of(url).path);
    query(method, Address::of(url).query);
    publication(body);
    revocation(body);
}

fn path(method: &str, path: &str) {
    let route = match route::find(method, path) {
        Ok(route) => route,
        Err(problem) => return is_told(&problem),
    };
    // Written and found again it is the same.
    let written = |name: &str| utf8_percent_encode(name, NON_ALPHANUMERIC).to_string();
    let at = |room: &str, rest: &str| {
        assert!(name::is_room(room));
        format!("/rooms/{}{rest}", written(room))
    };
    let path = match &route {
        Route::Room { room } => at(room, ""),
        Route::Socket { room } => at(room, "/ws"),
        Route::Messages { room } => at(room, "/messages"),
        Route::Presence { room } => at(room, "/presence"),
        Route::Members { room } => at(room, "/members"),
        Route::Member { room, user } => {
            assert!(name::is_user(user));
            at(room, &format!("/members/{}", written(user)))
        }
        Route::Connections { room } => at(room, "/connections"),
        _ => return,
    };
    assert_eq!(route::find(method, &path), Ok(route));
}

/// A problem is JSON that says what it is.
fn is_told(problem: &Problem) {
    let json: Value = serde_json::from_str(&problem.json()).expect("JSON");
    assert_eq!(json["status"], problem.status);
    assert!((400..=500).contains(&problem.status));
}

fn query(method: &str, text: &str) {
    let query = Query::read(text);
    match query.position() {
        Ok(position) => {
            let numbers = [position.since, position.history];
            assert!(numbers.iter().flatten().all(|n| *n <= MAX_SAFE_INTEGER));
            // It goes to the room as JSON.
            let json = serde_json::to_string(&position).expect("JSON");
            assert_eq!(serde_json::from_str(&json).ok(), Some(position));
        }
        Err(fault) => is_told(&fault.into()),
    }
    match query.range() {
        Ok(range) => {
            assert!((1..=MAX_LIMIT).contains(&range.limit));
            let mut server = Server::new("r", world::config(&[]));
            server.serve(Request::Messages(range));
        }
        Err(fault) => is_told(&fault.into()),
    }
    match query.user() {
        Ok(user) => assert!(name::is_user(&user)),
        Err(fault) => is_told(&fault.into()),
    }
    for upgrade in [false, true] {
        let parameters = handshake::Parameters {
            version: query.get("EIO"),
            transport: query.get("transport"),
            sid: query.get("sid"),
        };
        match handshake::read(method, parameters, upgrade) {
            Ok(ask) => {
                let json = serde_json::to_string(&ask).expect("JSON");
                assert_eq!(serde_json::from_str(&json).ok(), Some(ask));
            }
            Err(error) => world::assert_json(&error.json()),
        }
    }
}

fn publication(body: &str) {
    let messages = match publish::parse(body) {
        Ok(Body::One(one)) => vec![Ok(one)],
        Ok(Body::Many(many)) => {
            assert!((1..=publish::MAX_BATCH).contains(&many.len()));
            many
        }
        Err(fault) => return is_told(&fault.into()),
    };
    let mut rooms: BTreeMap<String, Vec<Publication>> = BTreeMap::new();
    for message in messages {
        match message {
            Ok(Addressed { room, publication }) => {
                assert!(name::is_room(&room));
                rooms.entry(room).or_default().push(publication);
            }
            Err(fault) => is_told(&fault.into()),
        }
    }
    for (room, messages) in rooms.into_iter().take(3) {
        published(&room, messages);
    }
}

/// Publishes it, with somebody there.
fn published(room: &str, messages: Vec<Publication>) {
    let mut server = Server::new(room, world::config(&[]));
    server.connect("alice", "alice", Default::default());
    server.settle();
    let count = messages.len();
    let stored = messages.iter().filter(|message| !message.volatile).count();
    let request = Request::Publish {
        sender: "service".into(),
        messages,
    };
    // It goes to the room as JSON.
    let request = serde_json::to_string(&request).expect("JSON");
    let request = serde_json::from_str(&request).expect("is read");
    assert_eq!(replies(&mut server, request).len(), count);
    assert!(server.head() <= stored as u64);
    server.assert_sound();
    server.hibernate();
    // The next is none the worse for it.
    let head = server.head();
    let healthy = r#"{"room":"x","event":"healthy","data":{},"messageId":"healthy\u0020id"}"#;
    let Ok(Body::One(healthy)) = publish::parse(healthy) else {
        panic!("is a good one");
    };
    let request = Request::Publish {
        sender: "another".into(),
        messages: vec![healthy.publication],
    };
    assert_eq!(replies(&mut server, request)[0]["seq"], head + 1);
    assert_eq!(world::closed(&server.said(), "alice"), None);
}

fn replies(server: &mut Server, request: Request) -> Vec<Value> {
    server.said();
    assert_eq!(server.serve(request), None);
    server.settle();
    let mut said = server.said().into_iter();
    let reply = said.find_map(|said| match said {
        Said::Reply(answers) => Some(answers),
        _ => None,
    });
    serde_json::from_str(&reply.expect("an answer")).expect("a list")
}

fn revocation(body: &str) {
    let (whose, until) = match revoke::parse(body, NOW) {
        Ok(what) => what,
        Err(fault) => return is_told(&fault.into()),
    };
    let now = NOW / 1_000;
    assert!(until > now && until <= now + MAX_LIFE);
    let mut registry = Registry::default();
    registry
        .revoke(whose.clone(), now, until)
        .expect("is empty");
    // Isolates get it as JSON.
    let news = serde_json::to_string(&registry.after(0)).expect("JSON");
    let revoked = Revoked::new(true);
    revoked.caught_up(serde_json::from_str(&news).expect("is read"), NOW);
    let (user, jti) = match whose {
        Whose::User(user) => (user, None),
        Whose::Jti(jti) => ("somebody".into(), Some(jti)),
    };
    let issued = Some(now - 1);
    assert!(revoked.covers(&user, &TokenId { issued, jti }, NOW));
    assert!(
        !revoked.covers("nobody.else", &TokenId { issued, jti: None }, NOW)
            || user == "nobody.else"
    );
}
