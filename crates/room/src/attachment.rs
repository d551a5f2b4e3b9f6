//! The persistent part of a connection.

use roomcast_proto::access::{Rights, TokenId};
use roomcast_proto::id::{ConnectionId, UserId};
use roomcast_proto::status::Status;
use roomcast_proto::time::Millis;
use serde::{Deserialize, Serialize};

/// The persistent part of a connection: attached to its socket, or stored for a connection
/// at a gateway. The room restores the connection from it after hibernation.
///
/// Attachments of older versions must stay readable: fields are only added, with a default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    /// The id of the connection, unique for each connection.
    pub id: ConnectionId,
    /// The user.
    pub user: UserId,
    /// The rights of the user in the room.
    pub rights: Rights,
    /// The time at which the token expires.
    pub expires: Millis,
    /// The presence status that the client has set.
    pub status: Status,
    /// `true` while the connection receives the events of the room. Becomes `false` when
    /// the user leaves.
    pub joined: bool,
    /// Sequence number after which the connection has been sent every event, or will be if
    /// it catches up.
    pub from: u64,
    /// `true` if the socket is at a gateway.
    #[serde(default)]
    pub remote: bool,
    /// The claims by which the token can be revoked.
    #[serde(default)]
    pub token: TokenId,
    /// Sequence number up to which a connection of the room's own sockets that catches up has
    /// received the log. `None` for a live connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caught_up_to: Option<u64>,
    /// `true` while the connection waits for older events that it has requested by
    /// `joinRoom`. They cannot be restored, so the host closes the socket instead.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub requested_past: bool,
    /// `true` if receipts for the connection must name messages by their ids.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub needs_message_ids: bool,
}
