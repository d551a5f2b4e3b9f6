//! HTTP requests. The input is a line with method and URL, such as `POST /publish?a=b`,
//! and then the body.

use super::world::{self, NOW, RoomOutput, Server};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use roomcast::http::address::Address;
use roomcast::http::problem::Problem;
use roomcast::http::publish::{self, AddressedPublication, PublishRequest};
use roomcast::http::query::Query;
use roomcast::http::revocation;
use roomcast::http::route::{self, Route};
use roomcast_auth::revocation::{MAX_LIFE, RevocationCache, RevocationList, RevocationTarget};
use roomcast_gateway::handshake;
use roomcast_proto::access::TokenId;
use roomcast_proto::command::MAX_LIMIT;
use roomcast_proto::id::{RoomName, UserId};
use roomcast_proto::name;
use roomcast_proto::raw_object::MAX_SAFE_INTEGER;
use roomcast_room::service::{Publication, Request};
use serde_json::Value;
use std::collections::BTreeMap;

/// Runs the target on an input. Panics if a promise is broken.
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
    revoke(body);
}

fn path(method: &str, path: &str) {
    let route = match route::find(method, path) {
        Ok(route) => route,
        Err(problem) => return assert_problem(&problem),
    };
    // The path of a route leads to the same route.
    let written = |name: &str| utf8_percent_encode(name, NON_ALPHANUMERIC).to_string();
    let at = |room: &str, rest: &str| {
        assert!(name::is_room(room));
        format!("/rooms/{}{rest}", written(room))
    };
    let path = match &route {
        Route::Room { room } => at(room, ""),
        Route::RoomSocket { room } => at(room, "/ws"),
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

/// Asserts that a problem is valid JSON with its status.
fn assert_problem(problem: &Problem) {
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
            // It is sent to the room as JSON.
            let json = serde_json::to_string(&position).expect("JSON");
            assert_eq!(serde_json::from_str(&json).ok(), Some(position));
        }
        Err(error) => assert_problem(&error.into()),
    }
    match query.range() {
        Ok(range) => {
            assert!((1..=MAX_LIMIT).contains(&range.limit));
            let mut server = Server::new("r", world::config(&[]));
            server.serve(Request::Messages(range));
        }
        Err(error) => assert_problem(&error.into()),
    }
    match query.user() {
        Ok(user) => assert!(name::is_user(&user)),
        Err(error) => assert_problem(&error.into()),
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
        Ok(PublishRequest::One(one)) => vec![Ok(one)],
        Ok(PublishRequest::Many(many)) => {
            assert!((1..=publish::MAX_BATCH).contains(&many.len()));
            many
        }
        Err(error) => return assert_problem(&error.into()),
    };
    let mut rooms: BTreeMap<RoomName, Vec<Publication>> = BTreeMap::new();
    for message in messages {
        match message {
            Ok(AddressedPublication { room, publication }) => {
                assert!(name::is_room(&room));
                rooms.entry(room).or_default().push(publication);
            }
            Err(error) => assert_problem(&error.into()),
        }
    }
    for (room, messages) in rooms.into_iter().take(3) {
        published(&room, messages);
    }
}

/// Publishes messages to a room with one connection.
fn published(room: &str, messages: Vec<Publication>) {
    let mut server = Server::new(room, world::config(&[]));
    server.connect("alice", "alice", Default::default());
    server.settle();
    let count = messages.len();
    let stored = messages.iter().filter(|message| !message.volatile).count();
    let request = Request::Publish {
        sender: UserId::trusted("service"),
        info: None,
        messages,
    };
    // It is sent to the room as JSON.
    let request = serde_json::to_string(&request).expect("JSON");
    let request = serde_json::from_str(&request).expect("valid JSON");
    assert_eq!(replies(&mut server, request).len(), count);
    assert!(server.head() <= stored as u64);
    server.assert_sound();
    server.hibernate();
    // A valid publication must work afterwards.
    let head = server.head();
    let healthy = r#"{"room":"x","event":"healthy","data":{},"messageId":"healthy\u0020id"}"#;
    let Ok(PublishRequest::One(healthy)) = publish::parse(healthy) else {
        panic!("a valid publication");
    };
    let request = Request::Publish {
        sender: UserId::trusted("another"),
        info: None,
        messages: vec![healthy.publication],
    };
    assert_eq!(
        replies(&mut server, request)[0]["accepted"]["seq"],
        head + 1
    );
    assert_eq!(world::closed(&server.take_outputs(), "alice"), None);
}

/// Returns the answers to a publication.
fn replies(server: &mut Server, request: Request) -> Vec<Value> {
    server.take_outputs();
    assert_eq!(server.serve(request), None);
    server.settle();
    let mut outputs = server.take_outputs().into_iter();
    let reply = outputs.find_map(|output| match output {
        RoomOutput::Reply(answers) => Some(answers),
        _ => None,
    });
    serde_json::from_str(&reply.expect("an answer")).expect("a list")
}

fn revoke(body: &str) {
    let now = NOW / 1_000;
    let (whose, until) = match revocation::parse(body, now + MAX_LIFE, NOW) {
        Ok(revocation) => revocation,
        Err(error) => return assert_problem(&error.into()),
    };
    assert!(until > now && until <= now + MAX_LIFE);
    let mut registry = RevocationList::default();
    registry
        .revoke(whose.clone(), now, until)
        .expect("the registry is empty");
    // It is sent to isolates as JSON.
    let page = serde_json::from_str(&registry.page(0).json).expect("valid JSON");
    let revoked = RevocationCache::new(true, 0);
    assert!(revoked.add(page, 0, NOW), "there is one page");
    let (user, jti) = match whose {
        RevocationTarget::User(user) => (user, None),
        RevocationTarget::Jti(jti) => ("alice".into(), Some(jti)),
    };
    let issued = Some(now - 1);
    assert!(revoked.covers(&user, &TokenId { issued, jti }, NOW));
    assert!(
        !revoked.covers("another.user", &TokenId { issued, jti: None }, NOW)
            || user == "another.user"
    );
}
