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

/// The properties of a connection, from the request that opened it. The attachments of
/// sockets contain them, so the names of the fields in JSON must not change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConnectInfo {
    /// The protocol.
    pub protocol: Protocol,
    /// The identity of the request's token, if the request had a valid one.
    pub identity: Option<Identity>,
    /// The error of the request's token, if the request had an invalid one.
    #[serde(rename = "fault")]
    pub error: Option<Error>,
    /// The IP address of the client, for the limits per address.
    pub address: Option<String>,
    /// The client supports connection state recovery. Other clients would pass the
    /// offsets of events to their handlers.
    pub recovers: bool,
    /// The client gets a `pid`, and supports recovery if it sends one back: see
    /// [`crate::Recovery::Unproven`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub may_recover: bool,
}
