//! Servers and clients for the end-to-end tests and the benchmarks.
//!
//! - [`Server`]: a real workerd that can be killed and restarted, with HTTP
//!   requests as methods.
//! - [`Token`], [`KeyPair`], [`KeyServer`]: valid and invalid tokens, and a JWKS
//!   URL.
//! - [`Client`]: a WebSocket client with the native framing. [`SocketIo`] and
//!   [`Polling`]: Socket.IO clients.
//!
//! Everything that the clients send and receive is checked against the OpenAPI and
//! AsyncAPI documents (module `contract`). A command is checked only if the server
//! accepts it, so tests may send malformed input.
//!
//! A method that waits panics when the awaited event does not arrive. The panic
//! message contains the last frames that the client received.

#![forbid(unsafe_code)]

mod client;
mod contract;
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

/// The HS256 key of every server that is started without another `JWT_SECRET`.
pub const SECRET: &str = "a secret that only the tests of roomcast use";

/// Timeout of every wait in a test. It is far above the time that any step takes on a
/// busy machine.
pub const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(15);
