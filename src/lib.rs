//! roomcast: real-time messaging at the edge.
//!
//! A Worker authenticates WebSocket upgrades and routes them to one Durable
//! Object per room, which holds the room's sockets, presence, typing state and
//! a stored log, and sleeps whenever nothing happens.
//!
//! The core is in crates of its own, which do no I/O and are built and tested
//! natively:
//! - `roomcast-proto`: what clients, rooms, gateways and services send each other
//! - `roomcast-auth`: tokens, keys, revocation, tickets, origins
//! - `roomcast-room`: the state machine of a room; commands in, outputs out
//! - `roomcast-gateway`: the same of sockets with many rooms; Engine.IO and Socket.IO
//!
//! This crate adds [`http`] (routes, bodies, problem+json) and [`config`].
//!
//! The shell is there only when built for the Workers runtime (wasm32):
//! - `http::serve`: the Worker's entry point and what its routes do
//! - `objects`: the Durable Objects: runtime events to inputs of the core, its outputs to
//!   calls of the runtime
//! - `runtime`: SQL, sockets, alarms, requests to objects, settings, failpoints

#![warn(unused_qualifications)]
// The bindings that are generated for the Workers runtime need it, nobody else.
#![cfg_attr(not(target_arch = "wasm32"), forbid(unsafe_code))]

pub mod config;
pub mod http;

#[cfg(target_arch = "wasm32")]
mod objects;
#[cfg(target_arch = "wasm32")]
mod runtime;
