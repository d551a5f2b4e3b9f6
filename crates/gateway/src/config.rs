//! The settings of gateways.

use roomcast_proto::limits::{ConnectionLimits, Rate};
use roomcast_proto::settings::{List, MILLISECONDS, PerMinute, Whole};
use roomcast_proto::time::{Millis, SECOND};

/// Maximum number of gateways of one kind. The number of a gateway, with which a `sid`
/// and a `pid` begin, is below it.
pub const MAX_SHARDS: usize = 1_024;

roomcast_proto::settings! {
    /// The settings of gateways, which hold the connections of `/ws` and `/socket.io/`.
    #[derive(Clone, Debug)]
    pub struct GatewayConfig {
        given {
            /// The limits of each connection.
            pub limits: ConnectionLimits,
        }
        /// Number of gateways of each kind (native, Socket.IO) that share the new connections. Can
        /// be changed at any time.
        pub shards: usize = 8, ["GATEWAY_SHARDS"], Whole { min: 1, max: MAX_SHARDS };
        /// Maximum number of rooms of one connection, not counting the personal room of its user.
        pub max_rooms: usize = 100, ["MAX_ROOMS_PER_CONNECTION"], Whole { min: 1, max: 1_000 };
        /// Namespaces that Socket.IO clients can connect to.
        pub namespaces: Vec<String> = vec!["/".into(), "/chat".into()],
            ["NAMESPACES"], NAMESPACES;
        /// Time in milliseconds between two pings of a Socket.IO session. With 0 the server sends
        /// no pings, so that an idle gateway hibernates. See
        /// [the effects and the cost](socketio.md#heartbeats-and-their-cost).
        pub ping_interval: Millis = 25 * SECOND, ["PING_INTERVAL_MS"], MILLISECONDS;
        /// Time in milliseconds within which a client must answer a ping.
        pub ping_timeout: Millis = 20 * SECOND, ["PING_TIMEOUT_MS"], MILLISECONDS;
        /// Time in milliseconds within which a Socket.IO session must connect to a namespace.
        /// Without a valid token it is at most 10 s. The default is that of the reference
        /// server.
        pub connect_timeout: Millis = 45 * SECOND, ["CONNECT_TIMEOUT_MS"], MILLISECONDS;
        /// Refused Socket.IO CONNECTs (without a valid token) from one address (a /64 for IPv6) per
        /// minute at a gateway. Above the limit, the gateway refuses new connections of that
        /// address.
        pub refused_connects: Rate = Rate::per_minute(300.0),
            ["REFUSED_CONNECTS_PER_MINUTE"], PerMinute;
        /// Maximum size in bytes of a message or a polling request of Socket.IO, which the
        /// handshake announces to clients. The default is that of the reference server.
        pub max_payload: usize = 1_000_000,
            ["MAX_PAYLOAD"], Whole { min: 1_024, max: 64 << 20 };
    }
}

const NAMESPACES: List<Vec<String>> = List {
    parse: |list| {
        list.split([',', ' '])
            .filter(|name| !name.is_empty())
            .map(|name| format!("/{}", name.trim_start_matches('/')))
            .collect()
    },
    #[cfg(not(target_arch = "wasm32"))]
    bounds: "a list",
    #[cfg(not(target_arch = "wasm32"))]
    show: |names| format!("`{}`", names.join(" ")),
};
