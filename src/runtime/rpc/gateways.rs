//! Requests to gateways.

use roomcast_gateway::ConnectInfo;
use roomcast_gateway::handshake::Ask;
use roomcast_proto::id::UserId;
use serde::{Deserialize, Serialize};

/// A request of a client, as the Worker sends it to a gateway.
#[derive(Serialize, Deserialize)]
pub(crate) struct ClientRequest {
    /// The client.
    #[serde(rename = "door")]
    pub client: ConnectInfo,
    /// The Engine.IO request. `None` for a native socket.
    pub ask: Option<Ask>,
    /// The size of the body, if the client announces it.
    #[serde(default)]
    pub bytes: Option<usize>,
}

/// The request of a gateway for the record of a client that resumes. The record then belongs
/// to the gateway that requests it.
#[derive(Serialize, Deserialize)]
pub(crate) struct FindRequest {
    /// The private session id of the client.
    pub pid: String,
    /// The user of the client.
    pub user: UserId,
    /// The name of the gateway that requests the record.
    #[serde(default)]
    pub by: String,
}
