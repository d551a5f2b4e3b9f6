//! Requests to gateways.

use roomcast_gateway::ConnectInfo;
use roomcast_gateway::handshake::Ask;
use roomcast_proto::id::UserId;
use serde::{Deserialize, Serialize};

/// The kind of a gateway. Clients of one kind share a gateway, because the runtime answers
/// one kind of ping for each object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GatewayKind {
    /// Native sockets. The names of these gateways are `n0`, `n1`, …
    Native,
    /// Engine.IO sessions. The names of these gateways are `0`, `1`, …
    EngineIo,
}

impl GatewayKind {
    const NATIVE_PREFIX: char = 'n';

    /// Returns the kind of a gateway by its name.
    pub(crate) fn of(name: &str) -> Self {
        match name.starts_with(Self::NATIVE_PREFIX) {
            true => GatewayKind::Native,
            false => GatewayKind::EngineIo,
        }
    }

    /// Returns the name of the gateway with the number `shard`.
    pub(crate) fn name(self, shard: usize) -> String {
        match self {
            GatewayKind::Native => format!("{}{shard}", Self::NATIVE_PREFIX),
            GatewayKind::EngineIo => shard.to_string(),
        }
    }
}

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
