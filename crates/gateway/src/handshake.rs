//! Parses requests to `/socket.io/`, and the errors that Engine.IO numbers:
//! <https://socket.io/docs/v4/engine-io-protocol/>.

use crate::config::MAX_SHARDS;
use roomcast_proto::answer::to_json;
use serde_json::json;

/// The supported version of the protocol: `EIO` of the query.
const VERSION: &str = "4";

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

/// Returns the number of the gateway that created a `sid` or a `pid`: the part before
/// its `-`. Returns `None` if that part is not the number of a gateway.
pub fn shard_of(id: &str) -> Option<usize> {
    let (shard, _) = id.split_once('-')?;
    shard.parse().ok().filter(|shard| *shard < MAX_SHARDS)
}

#[cfg(test)]
mod tests {
    use super::*;

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
