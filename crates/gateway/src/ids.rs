//! The keys of sockets, sessions, clients and polling requests.

use slotmap::new_key_type;

new_key_type! {
    /// The key of a WebSocket. Slots are reused, keys are not: a key carries the
    /// generation of its slot, so the key of a closed socket finds nothing.
    pub struct SocketId;
    /// The key of an Engine.IO session; generational, as [`SocketId`].
    pub struct SessionId;
    /// The key of a client of the application; generational, as [`SocketId`].
    pub struct ClientId;
}

/// The id of a polling request that waits for its answer. Never reused by a gateway
/// while it is awake.
pub type PollId = u64;
