//! Stream positions: where a client starts to read the log of a room.

use crate::id::Epoch;
use serde::{Deserialize, Serialize};

/// Position in the log of a room from which a client wants to receive events. Without
/// any field the client starts at its delivered cursor or, on its first join, at the
/// head of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Sequence number of the last event that the client has. The server sends the
    /// events after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// The epoch that `since` belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
    /// On a first join: the number of events before the head to send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<u64>,
}
