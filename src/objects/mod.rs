//! The Durable Objects. Each turns events of the runtime into inputs of the core
//! ([`roomcast_room`], [`roomcast_gateway`], [`roomcast_auth`]) and carries out the
//! outputs: SQL, frames, timers, alarms, requests to other objects.

pub mod gateway;
pub mod revocations;
mod room;
pub mod tickets;

use roomcast_proto::error::Error;
use worker::{Response, ResponseBuilder, Result};

/// An object's refusal, which the Worker makes a problem of.
fn refuse(error: &Error) -> Result<Response> {
    Ok(ResponseBuilder::new()
        .with_status(error.code.status())
        .fixed(serde_json::to_vec(error)?))
}
