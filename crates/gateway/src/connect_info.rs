//! The properties of a connection.

use roomcast_proto::access::Identity;
use roomcast_proto::error::Error;
use serde::{Deserialize, Serialize};

/// The protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// The native framing on a WebSocket.
    Native,
    /// Engine.IO without Socket.IO; for the conformance build.
    EngineIo,
    /// Socket.IO on Engine.IO.
    SocketIo,
}

/// The properties of a connection, from the request that opened it. Sockets carry them
/// over hibernation, so the names of the fields in JSON do not change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConnectInfo {
    /// The protocol.
    pub protocol: Protocol,
    /// The identity of the token of the request, if there was a valid one.
    pub identity: Option<Identity>,
    /// The error of the token of the request, if there was an invalid one.
    #[serde(rename = "fault")]
    pub error: Option<Error>,
    /// The IP address of the client, for the limits per address.
    pub address: Option<String>,
    /// The client supports connection state recovery. Other clients would pass the
    /// offsets of events to their handlers.
    pub recovers: bool,
}
