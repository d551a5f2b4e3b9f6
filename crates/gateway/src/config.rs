//! The settings of gateways.

use crate::dialect::Dialect;
use roomcast_proto::limits::{ConnectionLimits, Rate};
use roomcast_proto::settings::{Kind, MILLISECONDS, PerMinute, SettingError, Variables, Whole};
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
        /// Namespaces that Socket.IO clients can connect to: `name`, or `name=dialect` with one of
        /// the [dialects](protocol.md#dialects-of-socketio) `roomcast`, `module` and `relay`.
        pub namespaces: Vec<Namespace> = default_namespaces(), ["NAMESPACES"], Namespaces;
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
        pub refused_connects: Rate = Rate::per_minute(60.0),
            ["REFUSED_CONNECTS_PER_MINUTE"], PerMinute;
        /// Maximum size in bytes of a message or a polling request of Socket.IO, which the
        /// handshake announces to clients. The default is that of the reference server.
        pub max_payload: usize = 1_000_000,
            ["MAX_PAYLOAD"], Whole { min: 1_024, max: 64 << 20 };
    }
}

/// A namespace and the vocabulary that its clients speak.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// The name, which begins with `/`.
    pub name: String,
    /// The vocabulary.
    pub dialect: Dialect,
}

impl Namespace {
    /// Parses `name` or `name=dialect`. Returns `None` if there is no such dialect.
    fn parse(text: &str) -> Option<Self> {
        let (name, dialect) = match text.split_once('=') {
            Some((name, dialect)) => (name, Dialect::parse(dialect)?),
            None => (text, Dialect::default()),
        };
        Some(Namespace {
            name: format!("/{}", name.trim_start_matches('/')),
            dialect,
        })
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn show(&self) -> String {
        let Namespace { name, dialect } = self;
        match *dialect == Dialect::default() {
            true => name.clone(),
            false => format!("{name}={}", dialect.name()),
        }
    }
}

fn default_namespaces() -> Vec<Namespace> {
    let default = ["/", "/chat=module"];
    default.into_iter().filter_map(Namespace::parse).collect()
}

impl GatewayConfig {
    /// Returns the dialect of a namespace, or `None` if clients cannot connect to it.
    pub(crate) fn dialect_of(&self, nsp: &str) -> Option<Dialect> {
        let mut namespaces = self.namespaces.iter();
        namespaces
            .find(|namespace| namespace.name == nsp)
            .map(|namespace| namespace.dialect)
    }
}

/// A list of [`Namespace`]s, each at most once.
struct Namespaces;

impl Kind for Namespaces {
    type Value = Vec<Namespace>;

    fn read(
        &self,
        variables: &Variables<'_>,
        names: &[&'static str],
        default: Vec<Namespace>,
    ) -> Result<Vec<Namespace>, SettingError> {
        variables.parse(names[0], default, |list| {
            let mut namespaces: Vec<Namespace> = Vec::new();
            for text in list.split([',', ' ']).filter(|text| !text.is_empty()) {
                match Namespace::parse(text) {
                    Some(one) if namespaces.iter().all(|other| other.name != one.name) => {
                        namespaces.push(one);
                    }
                    _ => {
                        let dialects: Vec<&str> = Dialect::all().map(Dialect::name).collect();
                        return Err(format!(
                            "a list of different namespaces, each `name` or `name=dialect`; the dialects are {}",
                            dialects.join(", ")
                        ));
                    }
                }
            }
            Ok(namespaces)
        })
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn bounds(&self) -> String {
        "a list".to_owned()
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn show(&self, value: &Vec<Namespace>) -> String {
        let names: Vec<String> = value.iter().map(Namespace::show).collect();
        format!("`{}`", names.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(list: Option<&str>) -> Result<Vec<Namespace>, SettingError> {
        let get = |_: &str| list.map(str::to_owned);
        Namespaces.read(&Variables::new(&get), &["NAMESPACES"], default_namespaces())
    }

    #[test]
    fn namespaces_have_the_dialect_that_the_setting_names() {
        for (list, expected) in [
            (None, "`/ /chat=module`"),
            (Some("/ /chat"), "`/ /chat`"),
            (Some("app=relay, x=roomcast"), "`/app=relay /x`"),
        ] {
            let namespaces = read(list).expect("a valid list");
            assert_eq!(Namespaces.show(&namespaces), expected);
        }
        let config = GatewayConfig::default();
        assert_eq!(config.dialect_of("/"), Some(Dialect::default()));
        assert_eq!(config.dialect_of("/chat"), Dialect::parse("module"));
        assert_eq!(config.dialect_of("/other"), None);
    }

    #[test]
    fn an_unknown_dialect_or_a_repeated_namespace_is_an_error() {
        for list in ["/chat=klingon", "/chat=", "/a /a=module"] {
            let error = read(Some(list)).expect_err(list).to_string();
            assert!(error.contains("roomcast, module, relay"), "{error}");
        }
    }
}
