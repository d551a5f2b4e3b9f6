//! What goes over a socket: the vocabulary, the native framing, and the JSON
//! that both are made of. Knows nothing of rooms, storage or the runtime.

pub mod command;
pub mod event;
pub mod native;
pub mod object;

pub use command::Command;
pub use object::Object;
