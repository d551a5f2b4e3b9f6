//! Events that are not stored: presence, typing, receipts, volatile messages.

use crate::ids::ConnId;
use roomcast_proto::id::UserId;

/// One line for all connections except some.
#[derive(Clone, Debug)]
pub(crate) struct EphemeralEvent {
    pub(crate) except: Except,
    pub(crate) line: String,
}

/// The connections that do not receive an event.
#[derive(Clone, Debug)]
pub(crate) enum Except {
    /// All connections of a user.
    User(UserId),
    /// One connection.
    Connection(ConnId),
    Nobody,
}

impl EphemeralEvent {
    /// Returns `true` if the event came from this connection.
    pub(crate) fn is_from(&self, conn: ConnId) -> bool {
        matches!(self.except, Except::Connection(one) if one == conn)
    }
}
