//! What the end-to-end tests and the benchmarks share: a real workerd that can
//! be killed and restarted, tokens good and bad, a WebSocket client and a bit
//! of HTTP.
//!
//! It panics where a test should fail, with what was seen so far.

#![forbid(unsafe_code)]

mod client;
mod http;
mod keys;
mod server;
mod socketio;
mod token;

pub use client::{Client, Refused};
pub use http::Answer;
pub use keys::{KeyPair, KeyServer};
pub use server::{Server, Worker, build};
pub use socketio::{Event, Polling, SEPARATOR, SocketIo, connect_packet};
pub use token::{Token, now};

/// The HS256 key of servers that are given no other.
pub const SECRET: &str = "a secret for tests that nobody else has";

/// How long something that must happen may take before it counts as not
/// happening. Far above what it takes on a busy machine.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(15);
