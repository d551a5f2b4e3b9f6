//! The types that the host passes to a gateway.

use crate::ids::SocketId;
use crate::output::PositionKey;
use roomcast_proto::access::TokenId;
use roomcast_proto::time::Millis;
use std::collections::HashMap;

/// Returns `true` if this token of this user was revoked.
pub type IsRevoked<'a> = &'a dyn Fn(&str, &TokenId) -> bool;

/// Returns the time of the last ping of a socket that the runtime answered by itself,
/// without waking the gateway.
pub type LastSeen<'a> = &'a dyn Fn(SocketId) -> Option<Millis>;

/// The state that survived a hibernation or a panic. Input of
/// [`crate::Gateway::restore`].
#[derive(Debug, Default)]
pub struct Stored {
    /// The records of [`crate::Output::Save`] that are not marked `gone`.
    pub clients: Vec<String>,
    /// The positions of [`crate::Output::TrackPosition`] after a panic, otherwise those
    /// of [`crate::Output::StorePosition`].
    pub positions: HashMap<PositionKey, u64>,
    /// `true` after a panic: commands and deliveries in memory are lost.
    pub panicked: bool,
}
