//! The vocabulary of roomcast: what clients, rooms, gateways and services say to
//! each other, and the rules that all of them share.
//!
//! No I/O, no settings, no runtime. `roomcast-auth`, `roomcast-room` and
//! `roomcast-gateway` depend on this crate alone; the Worker depends on all.
//!
//! - [`name`], [`time`]: names and times
//! - [`fault`]: errors and their codes; [`eventlog`]: records of the event log
//! - [`access`]: rights, room patterns, identities
//! - [`wire`]: commands, events and the native framing
//! - [`limits`]: rate limits, flood protection, slow consumers
//! - [`link`]: messages between rooms and gateways
//! - [`log_text`]: the text of logged events

#![forbid(unsafe_code)]

pub mod access;
pub mod eventlog;
pub mod fault;
pub mod limits;
pub mod link;
pub mod log_text;
pub mod name;
pub mod time;
pub mod wire;
