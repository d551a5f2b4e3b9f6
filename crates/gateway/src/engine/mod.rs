//! Engine.IO 4 (<https://socket.io/docs/v4/engine-io-protocol/>) and native sockets.
//!
//! A session of Engine.IO runs on a WebSocket or on long-polling, and can upgrade from
//! long-polling to a WebSocket. [`EngineServer`] owns all sockets and sessions. It does
//! not parse messages. The layer above takes them as [`EngineEvent`]s.
//!
//! - `server`: the state, and the end of sockets and sessions
//! - `admission`: rate limits of new connections
//! - `open`: opens sockets and sessions; `sockets`, `sessions`: their tables
//! - `receive`, `send`: frames and packets, in and out; slow consumers
//! - `authentication`: the limits of sessions without a valid token
//! - `polling`: the long-polling transport, and the upgrade
//! - `last_packets`: the last packets of sessions on long-polling that have ended
//! - `memory`: the bytes that sessions hold
//! - `heartbeat`: pings, timeouts and the deadline

mod admission;
mod authentication;
mod event;
mod heartbeat;
mod last_packets;
mod memory;
mod open;
mod polling;
mod receive;
mod send;
mod server;
mod sessions;
mod sockets;

pub use authentication::UNAUTHENTICATED_BYTES;
pub(crate) use event::EngineEvent;
pub(crate) use heartbeat::{RECHECK_DELAY, TIMEOUT_EXTENSION};
pub use polling::{Polled, PostBody, PostLimits};
pub use server::EngineServer;
pub(crate) use sessions::Authentication;
