//! The shell: the Durable Objects of rooms and gateways. Thin: it turns the
//! runtime's events into calls of [`crate::room`] and [`crate::gateway`], and the
//! outputs of those into SQL, frames, timers and alarms. It decides nothing.

mod clients;
mod clock;
mod gateway;
mod links;
mod room;
mod runtime;
mod sql;
mod store;

pub use gateway::{DOOR_HEADER, GATEWAY_HEADER, NATIVE, Visit};
pub use room::{HELLO_HEADER, ROOM_HEADER};
pub use runtime::{fresh_id, now};
