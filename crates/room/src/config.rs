//! The settings of a room.

use roomcast_proto::limits::ConnectionLimits;
use roomcast_proto::time::{DAY, MINUTE, Millis, SECOND};

/// The settings of a room.
#[derive(Clone, Debug)]
pub struct RoomConfig {
    /// The limits of each connection.
    pub limits: ConnectionLimits,
    /// `DEDUPE_WINDOW`: how long a `messageId` is remembered. Default 10 min.
    pub dedupe_window: Millis,
    /// `RETENTION_EVENTS`: the number of logged events that a room keeps. Default 10,000.
    pub retention_events: u64,
    /// `RETENTION_DAYS`: how long a room keeps logged events. Default 7 days.
    pub retention_age: Millis,
    /// `PRESENCE_GRACE_MS`: how long the status of a user stays after the last connection
    /// has closed. Default 5,000.
    pub presence_grace: Millis,
    /// `TYPING_TTL_MS`: the time after which a typing indicator expires. Default 5,000.
    pub typing_ttl: Millis,
    /// `MAX_CONNECTIONS_PER_USER`: the maximum number of connections of a user in a room.
    /// Default 10.
    pub max_connections_per_user: usize,
    /// `MAX_MEMBERS`: the maximum number of members of a room. Default 10,000.
    pub max_members: usize,
}

impl Default for RoomConfig {
    fn default() -> Self {
        RoomConfig {
            limits: ConnectionLimits::default(),
            dedupe_window: 10 * MINUTE,
            retention_events: 10_000,
            retention_age: 7 * DAY,
            presence_grace: 5 * SECOND,
            typing_ttl: 5 * SECOND,
            max_connections_per_user: 10,
            max_members: 10_000,
        }
    }
}
