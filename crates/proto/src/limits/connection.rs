//! The limits of one connection.

use super::rate_limit::Rate;
use crate::settings::{Duration, PerMinute, PerSecond, Whole};
use crate::time::{MINUTE, Millis, SECOND};
use serde::Serialize;

crate::settings! {
    /// The limits of one connection, the same at rooms and at gateways.
    #[derive(Clone, Debug)]
    pub struct ConnectionLimits {
        given {}
        /// `sendMessage` and `emit`, per connection.
        pub messages: Rate = rate(20.0, 40.0),
            ["MESSAGES_PER_SECOND", "MESSAGES_BURST"], PerSecond;
        /// `typingIndicator` and `setPresence`, per connection.
        pub signals: Rate = rate(5.0, 20.0), ["SIGNALS_PER_SECOND", "SIGNALS_BURST"], PerSecond;
        /// `joinRoom`, `leaveRoom`, `sync`, `members` and `refreshToken`, per connection. The same
        /// limit applies to the reads of a user from a room over HTTP. A page counts once more for
        /// each 32 KiB.
        pub joins: Rate = rate(5.0, 100.0), ["JOINS_PER_SECOND", "JOINS_BURST"], PerSecond;
        /// All commands together, per connection. This limits acknowledgements and errors
        /// as well.
        pub commands: Rate = rate(1_000.0, 2_000.0),
            ["COMMANDS_PER_SECOND", "COMMANDS_BURST"], PerSecond;
        /// Bytes of the commands of a connection, including those that are rejected.
        pub bytes: Rate = rate(256.0 * 1024.0, 1024.0 * 1024.0),
            ["BYTES_PER_SECOND", "BYTES_BURST"], PerSecond;
        /// Rejected commands of all connections of a room or a gateway together. Above the limit, a
        /// connection is closed at once if it was rejected 100 times with at most 2 s between two
        /// rejections.
        pub refusals: Rate = rate(2_000.0, 1_000.0),
            ["REFUSALS_PER_SECOND", "REFUSALS_BURST"], PerSecond;
        /// Length of the ban of the user after such a close. Doubles on each repeat, up to 64 times
        /// this value.
        pub flood_ban: Millis = 10 * SECOND, ["FLOOD_BAN"], Duration { min: 0 };
        /// New connections to a room or a gateway from one address (a /64 for IPv6), per minute.
        pub connects: Rate = Rate::per_minute(600.0), ["CONNECTS_PER_MINUTE"], PerMinute;
        // A row holds 2 MB, and an event with its envelope must fit into one.
        /// Maximum size in bytes of a frame of a client, and of `data` that a service publishes.
        pub max_frame_bytes: usize = 64 * 1024,
            ["MAX_FRAME_BYTES"], Whole { min: 256, max: 1 << 20 };
        /// Maximum number of bytes sent to a connection since its last frame or ping; at most 1 MiB
        /// before its first one. Above it, nothing more is sent to the connection until it sends a
        /// frame or a ping. It then continues from the log.
        pub max_unacked_bytes: usize = 8 << 20,
            ["MAX_UNACKED_BYTES"], Whole { min: 1_024, max: 64 << 20 };
        /// Time without a frame or a ping after which a connection that has reached
        /// `MAX_UNACKED_BYTES` is closed with 4503.
        pub catch_up_timeout: Millis = MINUTE, ["CATCH_UP_TIMEOUT"], Duration { min: 1_000 };
        /// Keepalive timeout: a connection that has pinged at least once is closed after this time
        /// without a ping or another frame.
        pub ghost_timeout: Millis = 90 * SECOND, ["GHOST_TIMEOUT"], Duration { min: 1 };
    }
}

fn rate(per_second: f64, burst: f64) -> Rate {
    Rate { per_second, burst }
}

/// The limits that the event `connected` announces, so that a client can stay within
/// them.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// `MAX_FRAME_BYTES`: bytes of a frame.
    max_frame_bytes: usize,
    /// `MESSAGES_PER_SECOND`: the rate of `sendMessage` and `emit`.
    messages_per_second: f64,
    /// `MESSAGES_BURST`.
    messages_burst: f64,
    /// `SIGNALS_PER_SECOND`: the rate of `typingIndicator` and `setPresence`.
    signals_per_second: f64,
    /// `SIGNALS_BURST`.
    signals_burst: f64,
    /// `JOINS_PER_SECOND`: the rate of `joinRoom`, `leaveRoom`, `sync`, `members` and
    /// `refreshToken`.
    joins_per_second: f64,
    /// `JOINS_BURST`.
    joins_burst: f64,
    /// `BYTES_PER_SECOND`: the rate of the bytes of all commands.
    bytes_per_second: f64,
    /// `BYTES_BURST`.
    bytes_burst: f64,
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
            bytes_per_second: limits.bytes.per_second,
            bytes_burst: limits.bytes.burst,
        }
    }
}
