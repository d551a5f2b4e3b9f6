//! roomcast: real-time messaging at the edge.
//!
//! A Worker authenticates WebSocket upgrades and routes them to one Durable
//! Object per room, which holds the room's sockets, presence, typing state and
//! a stored log, and sleeps whenever nothing happens.
//!
//! The core does no I/O and is built and tested natively:
//! - [`auth`]: a token becomes an identity; an identity answers "may it?"
//! - [`wire`]: what goes over a socket
//! - [`room`]: the state machine of a room; commands in, outputs out
//! - [`gateway`]: the same of sockets with many rooms; Engine.IO and Socket.IO
//! - [`http`]: routes, bodies, problem+json
//! - [`config`], [`fault`], [`eventlog`], [`name`], [`time`]: what they share
//!
//! The shell is there only when built for the Workers runtime (wasm32):
//! - `http::serve`: the Worker's entry point and what its routes do
//! - `durable`: the Durable Object, its SQLite store, sockets, timers, alarms

#![warn(unused_qualifications)]
// The bindings that are generated for the Workers runtime need it, nobody else.
#![cfg_attr(not(target_arch = "wasm32"), forbid(unsafe_code))]

pub mod config;
pub mod http;

#[cfg(target_arch = "wasm32")]
mod durable;
