//! The settings of a room.

use roomcast_proto::limits::{ConnectionLimits, Rate};
use roomcast_proto::settings::{Days, Duration, Flag, MILLISECONDS, PerSecond, Whole};
use roomcast_proto::time::{DAY, MINUTE, Millis, SECOND};

roomcast_proto::settings! {
    /// The settings of a room.
    #[derive(Clone, Debug)]
    pub struct RoomConfig {
        given {
            /// The limits of each connection.
            pub limits: ConnectionLimits,
        }
        /// Maximum number of logged events that a room keeps.
        pub retention_events: u64 = 10_000,
            ["RETENTION_EVENTS"], Whole { min: 1, max: 10_000_000 };
        /// Time for which a room keeps logged events, in days.
        pub retention_age: Millis = 7 * DAY, ["RETENTION_DAYS"], Days { max: 36_500.0 };
        /// Maximum size in bytes of the logged events that a room keeps. The platform limits
        /// the storage of a room to 10 GB.
        pub retention_bytes: u64 = 1 << 30, ["RETENTION_BYTES"],
            Whole { min: 1u64 << 20, max: 8 << 30 };
        /// Time for which a room remembers each `messageId`. It remembers at most the latest
        /// 250,000.
        pub dedupe_window: Millis = 10 * MINUTE, ["DEDUPE_WINDOW"], Duration { min: 0 };
        /// Time in milliseconds after a user's last connection until the user is shown as
        /// offline.
        pub presence_grace: Millis = 5 * SECOND, ["PRESENCE_GRACE_MS"], MILLISECONDS;
        /// Time in milliseconds until a typing indicator expires.
        pub typing_ttl: Millis = 5 * SECOND, ["TYPING_TTL_MS"], MILLISECONDS;
        /// Bytes of the events that clients and services send to a room, together.
        pub bytes: Rate = Rate { per_second: 4.0 * 1024.0 * 1024.0, burst: 8.0 * 1024.0 * 1024.0 },
            ["ROOM_BYTES_PER_SECOND", "ROOM_BYTES_BURST"], PerSecond;
        /// Maximum number of members of a room.
        pub max_members: usize = 10_000, ["MAX_MEMBERS"], Whole { min: 1, max: 1_000_000 };
        /// With `true`, the room adds the profile of the sender (the claim `info` of the token) to
        /// messages and custom events as `sender`. Makes each stored event longer by up to 1 KiB.
        pub sender_info: bool = false, ["SENDER_INFO"], Flag;
        /// Maximum number of connections of one user in one room. Sockets of the room that
        /// have left it count as well. Above the limit, the connection that has been silent
        /// longest is closed with 4409.
        pub max_connections_per_user: usize = 10,
            ["MAX_CONNECTIONS_PER_USER"], Whole { min: 1, max: 32_768 };
    }
}
