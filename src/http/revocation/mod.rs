//! `POST /revoke`: revokes tokens.

mod request;

#[cfg(target_arch = "wasm32")]
mod handler;

pub use request::parse;
