//! The settings of gateways.

use roomcast_proto::limits::{ConnectionLimits, Rate};
use roomcast_proto::time::{Millis, SECOND};

/// Maximum number of gateways of one kind. The number of a gateway, with which a `sid`
/// and a `pid` begin, is below it.
pub const MAX_SHARDS: usize = 1_024;

/// The settings of gateways, which hold the connections of `/ws` and `/socket.io/`.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// The limits of each connection.
    pub limits: ConnectionLimits,
    /// `GATEWAY_SHARDS`: number of gateways over which new connections are spread. Can
    /// be changed at any time. Default 8.
    pub shards: usize,
    /// `MAX_ROOMS_PER_CONNECTION`: maximum number of rooms that one connection can be
    /// in, without the personal room of its user. Default 100.
    pub max_rooms: usize,
    /// `PING_INTERVAL_MS`: time between two pings of an Engine.IO session. 0 turns
    /// pings off, so that an idle gateway hibernates; clients are then told the longest
    /// interval that their timers can hold. Default 25,000.
    pub ping_interval: Millis,
    /// `PING_TIMEOUT_MS`: time within which a client has to answer a ping. Default
    /// 20,000.
    pub ping_timeout: Millis,
    /// `CONNECT_TIMEOUT_MS`: time within which a session with a valid token has to
    /// connect to a namespace. Default 45,000, as in the reference server.
    pub connect_timeout: Millis,
    /// `REFUSED_CONNECTS_PER_MINUTE` (300): CONNECTs without a valid token that one
    /// gateway refuses to one address (a /64 for IPv6) before it refuses new
    /// connections of that address.
    pub refused_connects: Rate,
    /// `NAMESPACES`: the namespaces that Socket.IO clients can connect to. Default `/`
    /// and `/chat`.
    pub namespaces: Vec<String>,
    /// `MAX_PAYLOAD`: maximum size of one message or one polling request of Engine.IO
    /// in bytes, as announced to clients. Default 1,000,000, as in the reference
    /// server.
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
