//! The shell: the room's Durable Object. Thin: it turns the runtime's events
//! into calls of [`crate::room`], and the outputs of those into SQL, frames,
//! timers and alarms. It decides nothing.

mod room;
mod runtime;
mod store;

pub use room::{HELLO_HEADER, ROOM_HEADER, fresh_id};
pub use runtime::now;
