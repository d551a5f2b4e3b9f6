//! `POST /broadcast`: sends an event to every open connection.

mod request;

#[cfg(target_arch = "wasm32")]
mod handler;

pub use request::{Broadcast, parse};
