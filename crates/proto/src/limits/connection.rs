//! The limits of one connection.

use super::rate_limit::Rate;
use crate::time::{Millis, SECOND};
use serde::Serialize;

/// The limits of one connection, the same at rooms and at gateways. Each field names its
/// setting and default.
#[derive(Clone, Debug)]
pub struct ConnectionLimits {
    /// `MAX_FRAME_BYTES`: the largest frame a client may send. Default 64 KiB.
    pub max_frame_bytes: usize,
    /// `MESSAGES_PER_SECOND` (20), `MESSAGES_BURST` (40): `sendMessage` and
    /// `emit`, per connection.
    pub messages: Rate,
    /// `SIGNALS_PER_SECOND` (5), `SIGNALS_BURST` (20): `typingIndicator` and
    /// `setPresence`, per connection.
    pub signals: Rate,
    /// `JOINS_PER_SECOND` (5), `JOINS_BURST` (100): `joinRoom`, `leaveRoom`,
    /// `sync` and `refreshToken`, per connection.
    pub joins: Rate,
    /// `COMMANDS_PER_SECOND` (1,000), `COMMANDS_BURST` (2,000): all commands
    /// together, per connection. Bounds acknowledgements and errors as well.
    pub commands: Rate,
    /// `REFUSALS_PER_SECOND` (2,000), `REFUSALS_BURST` (1,000): rejected commands of
    /// all connections of a room or a gateway together. Above it, connections that
    /// are rejected repeatedly are closed at once.
    pub refusals: Rate,
    /// `FLOOD_BAN`: length of the ban after a flood disconnect. Doubles on each
    /// repeat. Default 10 s.
    pub flood_ban: Millis,
    /// `CONNECTS_PER_MINUTE` (600): connections from one address (a /64 for IPv6).
    pub connects: Rate,
    /// `GHOST_TIMEOUT`: keepalive timeout of a connection that has pinged at least
    /// once. Default 90 s.
    pub ghost_timeout: Millis,
    /// `MAX_UNACKED_BYTES`: output since the client's last activity (a frame or a
    /// ping) after which it counts as a slow consumer. Default 32 MiB.
    pub max_unacked_bytes: usize,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        let rate = |per_second, burst| Rate { per_second, burst };
        ConnectionLimits {
            max_frame_bytes: 64 * 1024,
            messages: rate(20.0, 40.0),
            signals: rate(5.0, 20.0),
            joins: rate(5.0, 100.0),
            commands: rate(1_000.0, 2_000.0),
            refusals: rate(2_000.0, 1_000.0),
            flood_ban: 10 * SECOND,
            connects: Rate::per_minute(600.0),
            ghost_timeout: 90 * SECOND,
            max_unacked_bytes: 32 * 1024 * 1024,
        }
    }
}

/// The limits that the event `connected` announces, so that a client can stay within
/// them.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    max_frame_bytes: usize,
    messages_per_second: f64,
    messages_burst: f64,
    signals_per_second: f64,
    signals_burst: f64,
    joins_per_second: f64,
    joins_burst: f64,
}

impl Limits {
    /// Returns the announced part of the limits.
    pub fn of(limits: &ConnectionLimits) -> Self {
        Limits {
            max_frame_bytes: limits.max_frame_bytes,
            messages_per_second: limits.messages.per_second,
            messages_burst: limits.messages.burst,
            signals_per_second: limits.signals.per_second,
            signals_burst: limits.signals.burst,
            joins_per_second: limits.joins.per_second,
            joins_burst: limits.joins.burst,
        }
    }
}
