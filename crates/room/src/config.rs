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
    /// `RETENTION_EVENTS`: how many logged events a room keeps. Default 10,000.
    pub retention_events: u64,
    /// `RETENTION_DAYS`: for how long, in days, fractions allowed. Default 7.
    pub retention_age: Millis,
    /// `PRESENCE_GRACE_MS`: how long after its last connection a user is still
    /// shown as before. Default 5,000.
    pub presence_grace: Millis,
    /// `TYPING_TTL_MS`: when a typing indicator expires by itself. Default 5,000.
    pub typing_ttl: Millis,
    /// `MAX_CONNECTIONS_PER_USER`: connections of one user in one room. Default 10.
    pub max_connections_per_user: usize,
    /// `MAX_MEMBERS`: members of a room. Default 10,000.
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
