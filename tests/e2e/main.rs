//! Every promise of the contract, kept by a real workerd: tests carry the name
//! of the promise they hold.
//!
//! Tests of the same settings share a server and take rooms of their own, so
//! that they run side by side.

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
mod hibernation;
mod http;
mod keys;
mod leaks;
mod limits;
mod presence;
mod retention;
mod revocation;
mod tickets;

/// A server with all settings at their defaults.
static DEFAULT: LazyLock<Server> = LazyLock::new(|| Server::start(&[]));

/// A server whose rate limits are out of the way.
static FAST: LazyLock<Server> = LazyLock::new(|| {
    Server::start(&[
        ("MESSAGES_PER_SECOND", "100000"),
        ("MESSAGES_BURST", "100000"),
    ])
});

/// A token of `user` for [`DEFAULT`] and every other server with the usual key.
fn token(user: &str) -> String {
    Token::user(user).sign(roomcast_harness::SECRET)
}

/// A token of a service that may use every room.
fn service() -> String {
    Token::service("backend").sign(roomcast_harness::SECRET)
}
