//! What a request to `/socket.io/` asks for, and the errors of Engine.IO's own:
//! <https://socket.io/docs/v4/engine-io-protocol/>.

use super::config::MAX_SHARDS;
use serde_json::json;

/// The version of the protocol, `EIO` of the query.
const VERSION: &str = "4";

/// Errors that Engine.IO numbers. Answered by a 400 with `{ code, message }`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    UnknownTransport,
    UnknownSid,
    BadMethod,
    BadRequest,
    Version,
}

impl Error {
    pub fn json(self) -> String {
        let (code, message) = match self {
            Error::UnknownTransport => (0, "Transport unknown"),
            Error::UnknownSid => (1, "Session ID unknown"),
            Error::BadMethod => (2, "Bad handshake method"),
            Error::BadRequest => (3, "Bad request"),
            Error::Version => (5, "Unsupported protocol version"),
        };
        json!({ "code": code, "message": message }).to_string()
    }
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Ask {
    /// A WebSocket: of a new session, or to upgrade the one of this `sid`.
    WebSocket {
        sid: Option<String>,
    },
    /// A new session on long-polling.
    Open,
    Poll {
        sid: String,
    },
    Post {
        sid: String,
    },
}

/// The parameters of a request's query.
#[derive(Clone, Copy, Debug, Default)]
pub struct Parameters<'a> {
    /// `EIO`: the version of the protocol.
    pub version: Option<&'a str>,
    pub transport: Option<&'a str>,
    pub sid: Option<&'a str>,
}

/// Reads a request. `upgrade` says whether it wants to become a WebSocket.
pub fn read(method: &str, query: Parameters, upgrade: bool) -> Result<Ask, Error> {
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

/// The gateway that a `sid` (or a `pid`) names: what stands before its `-`.
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
    fn every_error_of_the_handshake_has_its_code() {
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
    fn a_sid_names_its_gateway_and_a_forged_one_names_none() {
        assert_eq!(shard_of("7-0123abcd"), Some(7));
        for forged in ["", "abc", "-", "x-1", "-1-2", "99999999999-1", "1024-a"] {
            assert_eq!(shard_of(forged), None, "{forged}");
        }
    }
}
