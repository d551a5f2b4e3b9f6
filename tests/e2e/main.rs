//! End-to-end tests against a real workerd. Each test name states the behaviour that
//! the test checks.
//!
//! Tests with the same settings share a server and use separate rooms, so that
//! they can run in parallel.

use roomcast_harness::{Server, Token};
use std::sync::LazyLock;

mod attacks;
mod auth;
mod crash;
mod delivery;
mod eventlog;
mod failures;
mod framing;
mod gateway;
/// The internal headers of the Worker. The tests send them to check that it ignores
/// them.
#[path = "../../src/runtime/headers.rs"]
mod headers;
mod hibernation;
mod http;
mod keys;
mod leaks;
mod limits;
mod links;
mod memory;
mod old_data;
mod pages;
mod presence;
mod retention;
mod revocation;
mod storage;
mod tickets;
mod users;

/// A server with all settings at their defaults.
static DEFAULT: LazyLock<Server> = LazyLock::new(|| Server::start(&[]));

/// A server with message rate limits that no test reaches.
static FAST: LazyLock<Server> = LazyLock::new(|| {
    Server::start(&[
        ("MESSAGES_PER_SECOND", "100000"),
        ("MESSAGES_BURST", "100000"),
    ])
});

/// Returns a token of `user` for every server with the default secret.
fn token(user: &str) -> String {
    Token::user(user).sign(roomcast_harness::SECRET)
}

/// Returns a token of a service with access to every room.
fn service() -> String {
    Token::service("backend").sign(roomcast_harness::SECRET)
}

/// Returns the number of connections of a user in a room.
async fn connections(server: &Server, room: &str, user: &str) -> u64 {
    let path = format!("/rooms/{room}/presence");
    let presence = server.get(&path, &service()).await.ok();
    let users = presence["users"].as_array().expect("a list");
    let user = users.iter().find(|one| one["userId"] == user);
    user.map_or(0, |user| user["connections"].as_u64().expect("a number"))
}
