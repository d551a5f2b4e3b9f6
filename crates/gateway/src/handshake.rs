//! Parses requests to `/socket.io/`, and the errors that Engine.IO numbers:
//! <https://socket.io/docs/v4/engine-io-protocol/>.

use crate::config::{GatewayConfig, MAX_SHARDS};
use roomcast_proto::answer::to_json;
use roomcast_proto::time::Millis;
use serde_json::json;

/// The supported version of the protocol: `EIO` of the query.
const VERSION: &str = "4";

/// Longest duration of a JavaScript timer in milliseconds: a signed 32-bit integer
/// (`setTimeout` in the HTML Standard). Clients set a timer to the sum of ping interval
/// and ping timeout.
const MAX_TIMER: Millis = i32::MAX as Millis;

/// An error that Engine.IO numbers. Answered with HTTP 400 and `{ code, message }`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// `transport` is neither `polling` nor `websocket`.
    UnknownTransport,
    /// There is no session with this `sid`.
    UnknownSid,
    /// The HTTP method is neither GET nor, with a `sid`, POST.
    BadMethod,
    /// The combination of method, transport, `sid` and upgrade is not valid, or a
    /// packet is malformed.
    BadRequest,
    /// `EIO` is not 4.
    Version,
}

impl Error {
    /// Returns the body of the answer.
    pub fn json(self) -> String {
        let (code, message) = match self {
            Error::UnknownTransport => (0, "Transport unknown"),
            Error::UnknownSid => (1, "Session ID unknown"),
            Error::BadMethod => (2, "Bad handshake method"),
            Error::BadRequest => (3, "Bad request"),
            Error::Version => (5, "Unsupported protocol version"),
        };
        to_json(&json!({ "code": code, "message": message }))
    }
}

/// The operation that a request asks for.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Ask {
    /// Opens a WebSocket.
    WebSocket {
        /// The session to upgrade; `None` for a new session.
        sid: Option<String>,
    },
    /// Opens a session on long-polling.
    Open,
    /// Waits for packets.
    Poll {
        /// The session.
        sid: String,
    },
    /// Sends packets.
    Post {
        /// The session.
        sid: String,
    },
}

impl Ask {
    /// Returns the id of the session; `None` if the request opens a session.
    pub fn session(&self) -> Option<&str> {
        match self {
            Ask::WebSocket { sid } => sid.as_deref(),
            Ask::Poll { sid } | Ask::Post { sid } => Some(sid),
            Ask::Open => None,
        }
    }
}

/// The parameters of the query of a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Parameters<'a> {
    /// `EIO`: the version of the protocol.
    pub version: Option<&'a str>,
    /// `transport`: `polling` or `websocket`.
    pub transport: Option<&'a str>,
    /// `sid`: the session.
    pub sid: Option<&'a str>,
}

/// Parses a request. `upgrade` is `true` if the request asks to upgrade to a WebSocket.
pub fn read(method: &str, query: Parameters<'_>, upgrade: bool) -> Result<Ask, Error> {
    let transport = query.transport;
    if !matches!(transport, Some("polling" | "websocket")) {
        return Err(Error::UnknownTransport);
    }
    if query.version != Some(VERSION) {
        return Err(Error::Version);
    }
    let sid = query.sid.filter(|sid| !sid.is_empty());
    match (transport, method, upgrade, sid) {
        (Some("websocket"), "GET", true, sid) => Ok(Ask::WebSocket {
            sid: sid.map(str::to_owned),
        }),
        (Some("polling"), "GET", false, None) => Ok(Ask::Open),
        (Some("polling"), "GET", false, Some(sid)) => Ok(Ask::Poll { sid: sid.into() }),
        (Some("polling"), "POST", false, Some(sid)) => Ok(Ask::Post { sid: sid.into() }),
        (Some("polling"), _, false, None) => Err(Error::BadMethod),
        _ => Err(Error::BadRequest),
    }
}

/// Returns the first packet of a session, with exactly the fields of the protocol. Not written by
/// the library, because its session ids do not begin with the name of the gateway. `upgrades` are
/// the transports to which the client can change.
pub fn open_packet(sid: &str, upgrades: &[&str], config: &GatewayConfig) -> String {
    let interval = match config.ping_interval {
        0 => MAX_TIMER - config.ping_timeout,
        interval => interval,
    };
    let open = json!({
        "sid": sid,
        "upgrades": upgrades,
        "pingInterval": interval,
        "pingTimeout": config.ping_timeout,
        "maxPayload": config.max_payload,
    });
    format!("0{}", to_json(&open))
}

/// Returns the namespace of a CONNECT as the answer repeats it: empty for `/`, otherwise with a
/// comma. Returns `None` if the packet is not a CONNECT.
pub fn namespace_of_connect(packet: &str) -> Option<String> {
    // A message of Engine.IO (4) with a CONNECT of Socket.IO (0).
    let connect = packet.strip_prefix("40")?;
    if !connect.starts_with('/') {
        return Some(String::new());
    }
    let end = connect.find([',', '?']).unwrap_or(connect.len());
    Some(format!("{},", &connect[..end]))
}

/// Returns the number of the gateway that created a `sid` or a `pid`: the part before
/// its `-`. Returns `None` if that part is not the number of a gateway.
pub fn shard_of(id: &str) -> Option<usize> {
    let (shard, _) = id.split_once('-')?;
    shard.parse().ok().filter(|shard| *shard < MAX_SHARDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_a_connect_repeats_its_namespace() {
        for (packet, expected) in [
            ("40", Some("")),
            ("40{}", Some("")),
            (r#"40{"token":"a,b"}"#, Some("")),
            ("40/chat,", Some("/chat,")),
            (r#"40/chat,{"token":"x"}"#, Some("/chat,")),
            ("40/custom", Some("/custom,")),
            ("40/chat?a=b,", Some("/chat,")),
            (r#"42["x"]"#, None),
            ("3", None),
            ("", None),
        ] {
            assert_eq!(
                namespace_of_connect(packet).as_deref(),
                expected,
                "{packet}"
            );
        }
    }

    fn ask(method: &str, query: &str, upgrade: bool) -> Result<Ask, Error> {
        let get = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find_map(|(key, value)| (key == name).then_some(value))
        };
        let query = Parameters {
            version: get("EIO"),
            transport: get("transport"),
            sid: get("sid"),
        };
        read(method, query, upgrade)
    }

    #[test]
    fn invalid_request_is_answered_with_its_error() {
        use Error::*;
        for (method, query, upgrade, error) in [
            ("GET", "EIO=4", false, UnknownTransport),
            ("GET", "EIO=4&transport=abc", false, UnknownTransport),
            ("GET", "transport=polling", false, Version),
            ("GET", "EIO=3&transport=polling", false, Version),
            ("GET", "EIO=abc&transport=websocket", true, Version),
            ("POST", "EIO=4&transport=polling", false, BadMethod),
            ("PUT", "EIO=4&transport=polling", false, BadMethod),
            ("PUT", "EIO=4&transport=polling&sid=0-a", false, BadRequest),
            ("GET", "EIO=4&transport=websocket", false, BadRequest),
            ("GET", "EIO=4&transport=polling&sid=0-a", true, BadRequest),
        ] {
            assert_eq!(ask(method, query, upgrade), Err(error), "{method} {query}");
        }
        assert_eq!(ask("GET", "EIO=4&transport=polling", false), Ok(Ask::Open));
        let sid = "0-a".to_owned();
        assert_eq!(
            ask("POST", "EIO=4&transport=polling&sid=0-a", false),
            Ok(Ask::Post { sid })
        );
    }

    #[test]
    fn shard_of_returns_the_gateway_and_rejects_forged_ids() {
        assert_eq!(shard_of("7-0123abcd"), Some(7));
        for forged in ["", "abc", "-", "x-1", "-1-2", "99999999999-1", "1024-a"] {
            assert_eq!(shard_of(forged), None, "{forged}");
        }
    }
}
