//! The settings of gateways.

use roomcast_proto::limits::{ConnectionLimits, Rate};
use roomcast_proto::time::{Millis, SECOND};

/// The most gateways of a kind: the number of a gateway in a `sid` is below.
pub const MAX_SHARDS: usize = 1_024;

/// The settings of gateways, which hold the connections of `/ws` and `/socket.io/`.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// The limits of each connection.
    pub limits: ConnectionLimits,
    /// `GATEWAY_SHARDS`: how many gateways new connections are spread over. May be
    /// changed at any time. Default 8.
    pub shards: usize,
    /// `MAX_ROOMS_PER_CONNECTION`: rooms that one connection may be in. Default
    /// 100.
    pub max_rooms: usize,
    /// `PING_INTERVAL_MS`: how often Engine.IO sessions are pinged. 0 stands for
    /// never: clients are told the longest interval that their timers hold, so that
    /// an idle gateway sleeps. Default 25,000.
    pub ping_interval: Millis,
    /// `PING_TIMEOUT_MS`: how long a pong may take. Default 20,000.
    pub ping_timeout: Millis,
    /// `CONNECT_TIMEOUT_MS`: how long a session may be without a namespace.
    /// Default 45,000, as in Socket.IO's own server.
    pub connect_timeout: Millis,
    /// `REFUSED_CONNECTS_PER_MINUTE` (300): CONNECTs without a valid token that one
    /// gateway refuses one address (a /64 for IPv6) before it refuses new
    /// connections of that address.
    pub refused_connects: Rate,
    /// `NAMESPACES`: the namespaces that Socket.IO clients may connect to. Default
    /// `/` and `/chat`.
    pub namespaces: Vec<String>,
    /// `MAX_PAYLOAD`: the most bytes of one message or one polling request of
    /// Engine.IO, as clients are told. Default 1,000,000, as in its own server.
    pub max_payload: usize,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        GatewayConfig {
            limits: ConnectionLimits::default(),
            shards: 8,
            max_rooms: 100,
            ping_interval: 25 * SECOND,
            ping_timeout: 20 * SECOND,
            connect_timeout: 45 * SECOND,
            refused_connects: Rate::per_minute(300.0),
            namespaces: vec!["/".into(), "/chat".into()],
            max_payload: 1_000_000,
        }
    }
}
