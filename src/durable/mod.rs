//! The shell: the Durable Objects of rooms and gateways. Thin: it turns the
//! runtime's events into calls of [`crate::room`] and [`crate::gateway`], and the
//! outputs of those into SQL, frames, timers and alarms. It decides nothing.

mod clients;
mod clock;
mod gateway;
mod keys;
mod revocations;
mod room;
mod runtime;
mod sabotage;
mod settings;
mod sql;
mod store;
mod tickets;

pub use gateway::{DOOR_HEADER, GATEWAY_HEADER, NATIVE, Visit};
pub use keys::prepare;
pub use revocations::{catch_up, revoke};
pub use room::{HELLO_HEADER, ROOM_HEADER};
pub use runtime::{GATEWAYS, MAX_DRAIN, ROOMS, call, complain, fresh_id, now, read, read_body};
#[cfg(feature = "sabotage")]
pub use sabotage::plan as plan_sabotage;
pub use settings::settings;
pub use tickets::{issue as issue_ticket, redeem as redeem_ticket};

use crate::fault::Fault;
use worker::{Response, ResponseBuilder, Result};

/// An object's refusal, which the Worker makes a problem of.
fn refuse(fault: &Fault) -> Result<Response> {
    Ok(ResponseBuilder::new()
        .with_status(fault.code.status())
        .fixed(serde_json::to_vec(fault)?))
}
