//! roomcast: real-time messaging at the edge.
//!
//! A Worker authenticates requests and sends them to Durable Objects. Each room is an object
//! with the room's sockets, presence and log. Gateways are objects with sockets that can be in
//! many rooms. Objects hibernate while they receive no events.
//!
//! This crate is the Worker. It contains no logic of rooms and gateways. The core crates
//! contain it; they do no I/O and are tested natively: [`roomcast_proto`], [`roomcast_auth`],
//! [`roomcast_room`] and [`roomcast_gateway`].
//!
//! | folder or file | contents |
//! | --- | --- |
//! | [`config`] | the environment variables, and the settings that they become |
//! | [`http`] | the entry point `fetch`, routes, authentication of requests, `application/problem+json` |
//! | `objects/room` | the Durable Object of a room. `store.rs` writes batches to SQL, `batch.rs` ends them, `timers.rs` sets timers and the alarm |
//! | `objects/gateway` | the Durable Object of a gateway |
//! | `objects/revocations.rs` | the revocation registry |
//! | `objects/tickets.rs` | the objects that store tickets |
//! | [`slots`] | the limit of the requests that an object has in progress |
//! | `runtime` | the Workers runtime: SQL, sockets, alarms, requests between objects. Imports neither `objects` nor `http` |
//!
//! `objects`, `runtime` and the handlers of `http` exist only in builds for the Workers runtime
//! (wasm32).

#![warn(unused_qualifications)]
// The bindings that are generated for the Workers runtime contain unsafe code.
#![cfg_attr(not(target_arch = "wasm32"), forbid(unsafe_code))]

pub mod config;
pub mod http;
pub mod slots;

#[cfg(target_arch = "wasm32")]
pub mod objects;
#[cfg(target_arch = "wasm32")]
mod runtime;
