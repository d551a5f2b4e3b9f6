//! The kinds of gateways.

/// The kind of a gateway. Clients of one kind share a gateway, because the runtime answers
/// one kind of ping for each object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatewayKind {
    /// Native sockets. The names of these gateways are `n0`, `n1`, …
    Native,
    /// Engine.IO sessions. The names of these gateways are `0`, `1`, …
    EngineIo,
}

impl GatewayKind {
    const NATIVE_PREFIX: char = 'n';

    /// Returns the kind of a gateway by its name.
    pub fn of(name: &str) -> Self {
        match name.starts_with(Self::NATIVE_PREFIX) {
            true => GatewayKind::Native,
            false => GatewayKind::EngineIo,
        }
    }

    /// Returns the name of the gateway with the number `shard`.
    pub fn name(self, shard: usize) -> String {
        match self {
            GatewayKind::Native => format!("{}{shard}", Self::NATIVE_PREFIX),
            GatewayKind::EngineIo => shard.to_string(),
        }
    }
}
