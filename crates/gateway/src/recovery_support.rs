//! Decides which clients get connection state recovery.
//!
//! Recovery appends an offset to each logged event, as the last argument. A client that does
//! not know recovery passes it to the handler of the event. In most languages that breaks the
//! handler: Python raises a `TypeError`, Dart passes a list instead of the message. So a client
//! gets offsets only if it asks for recovery, or if its request shows that it is
//! `socket.io-client`. In JavaScript, a function ignores additional arguments.
//!
//! `socket.io-client` knows recovery since version 4.6. A request by WebSocket shows no version.
//! A request by long-polling shows it by the parameter `t`, which prevents caching: see
//! [`Timestamp`]. A `socket.io-client` of unknown version gets a `pid` but no offsets. If it
//! sends the `pid` when it reconnects, it knows recovery.

use roomcast_proto::time::{DAY, Millis};

/// The support of a client for connection state recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// The client gets no `pid` and no offsets.
    Off,
    /// The client is `socket.io-client` of an unknown version. It gets a `pid`, and offsets
    /// after it has sent one back.
    Unproven,
    /// The client gets a `pid` and offsets.
    On,
}

/// The parts of the request that opens a session by which a client is recognised.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenRequest<'a> {
    /// `recovery` of the query: `1` or `0` decides.
    pub recovery: Option<&'a str>,
    /// `t` of the query.
    pub timestamp: Option<&'a str>,
    /// The request asks to upgrade to a WebSocket.
    pub is_upgrade: bool,
    /// The header `User-Agent`.
    pub user_agent: Option<&'a str>,
    /// The header `Origin`.
    pub origin: Option<&'a str>,
    /// The header `Sec-WebSocket-Extensions`.
    pub extensions: Option<&'a str>,
}

impl OpenRequest<'_> {
    /// Returns the support of the client that sent this request at `now`.
    pub fn recovery(&self, now: Millis) -> Recovery {
        match self.recovery {
            Some("1") => return Recovery::On,
            Some("0") => return Recovery::Off,
            _ => {}
        }
        if !self.is_javascript() {
            return Recovery::Off;
        }
        match self.timestamp.map(|text| Timestamp::of(text, now)) {
            Some(Timestamp::Random) => Recovery::On,
            Some(Timestamp::Yeast) => Recovery::Unproven,
            Some(Timestamp::Other) => Recovery::Off,
            // By WebSocket, clients send it only if the application asks for it.
            None if self.is_upgrade => Recovery::On,
            None => Recovery::Unproven,
        }
    }

    /// Returns `true` if the client runs in a browser or in Node.js. React Native is not
    /// recognised: it has the user agents of Android (`okhttp/…`) and iOS (`CFNetwork/…`).
    fn is_javascript(&self) -> bool {
        match self.user_agent {
            Some("node-XMLHttpRequest") => true,
            Some(user_agent) => user_agent.starts_with("Mozilla/"),
            None => self.origin.is_none() && self.extensions.is_some_and(is_offer_of_ws),
        }
    }
}

/// Returns `true` if `extensions` is the offer of the package `ws`, which `socket.io-client` uses
/// in Node.js. The proxy of `wrangler dev` adds the default of the parameter. Python's
/// `websocket-client` sends an origin, and Rust's `tungstenite`, .NET and Starscream offer no
/// such extension.
fn is_offer_of_ws(extensions: &str) -> bool {
    matches!(
        extensions,
        "permessage-deflate; client_max_window_bits"
            | "permessage-deflate; client_max_window_bits=15"
    )
}

/// The kind of the parameter `t` of the query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timestamp {
    /// The end of the time and three random characters, in base 36: `socket.io-client` since
    /// 4.8 (`randomString` of engine.io-client 6.6).
    Random,
    /// The time in base 64, seven digits: `socket.io-client` before 4.8 (the package `yeast`).
    /// The first digit is a capital letter until the year 2046. Two requests in one millisecond
    /// have a counter besides, after a dot.
    Yeast,
    /// Another client. Dart sends the whole time in base 36, also from browsers.
    Other,
}

impl Timestamp {
    fn of(text: &str, now: Millis) -> Self {
        let is_base36 = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_lowercase();
        let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let digits = text.split('.').next().unwrap_or_default();
        if digits.len() == 7
            && digits.starts_with(|first: char| first.is_ascii_uppercase())
            && digits.bytes().all(is_base64)
        {
            return Timestamp::Yeast;
        }
        // The random part is shorter than three characters if the number ends early.
        if (5..=8).contains(&text.len()) && text.bytes().all(is_base36) {
            let time = Millis::from_str_radix(text, 36).unwrap_or_default();
            // The clock of a client may be wrong.
            return match time.abs_diff(now) < DAY {
                true => Timestamp::Other,
                false => Timestamp::Random,
            };
        }
        Timestamp::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The time at which the requests below were recorded.
    const NOW: Millis = 1_795_756_483_000;
    const CHROMIUM: &str = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36";
    const WS: &str = "permessage-deflate; client_max_window_bits";

    fn websocket<'a>(
        user_agent: Option<&'a str>,
        origin: Option<&'a str>,
        extensions: Option<&'a str>,
    ) -> OpenRequest<'a> {
        OpenRequest {
            is_upgrade: true,
            user_agent,
            origin,
            extensions,
            ..OpenRequest::default()
        }
    }

    fn polling<'a>(user_agent: Option<&'a str>, timestamp: Option<&'a str>) -> OpenRequest<'a> {
        OpenRequest {
            user_agent,
            timestamp,
            ..OpenRequest::default()
        }
    }

    /// The requests were recorded from the clients that tests/socketio runs; those of the other
    /// clients are in tests/socketio/clients/recordings.mjs, with their sources.
    #[test]
    fn only_socketio_client_in_browsers_and_node_gets_offsets() {
        let origin = Some("http://127.0.0.1:8787");
        for (client, request) in [
            ("Node, WebSocket", websocket(None, None, Some(WS))),
            (
                "Node, WebSocket, through wrangler",
                websocket(
                    None,
                    None,
                    Some("permessage-deflate; client_max_window_bits=15"),
                ),
            ),
            (
                "Chromium, WebSocket",
                websocket(Some(CHROMIUM), origin, Some(WS)),
            ),
            (
                "Node, 4.8, polling",
                polling(Some("node-XMLHttpRequest"), Some("j1kwour4")),
            ),
            (
                "Chromium, 4.8, polling",
                polling(Some(CHROMIUM), Some("j1kx5vos")),
            ),
        ] {
            assert_eq!(request.recovery(NOW), Recovery::On, "{client}");
        }
        for (client, request) in [
            (
                "Node, 4.0 to 4.7, polling",
                polling(Some("node-XMLHttpRequest"), Some("Q8RRK5B")),
            ),
            (
                "Chromium, 4.0 to 4.7, polling",
                polling(Some(CHROMIUM), Some("Q8RRK5B.0")),
            ),
            (
                "Chromium, timestampRequests: false",
                polling(Some(CHROMIUM), None),
            ),
        ] {
            assert_eq!(request.recovery(NOW), Recovery::Unproven, "{client}");
        }
        let time = "1795756483.085994";
        for (client, request) in [
            (
                "python-socketio Client, WebSocket",
                websocket(None, origin, None),
            ),
            (
                "python-socketio Client, polling",
                polling(Some("python-requests/2.34.2"), Some(time)),
            ),
            (
                "python-socketio AsyncClient, WebSocket",
                websocket(Some("Python/3.11 aiohttp/3.14.5"), None, None),
            ),
            (
                "python-socketio AsyncClient, polling",
                polling(Some("Python/3.11 aiohttp/3.14.5"), Some(time)),
            ),
            ("rust_socketio, WebSocket", websocket(None, None, None)),
            ("rust_socketio, polling", polling(None, None)),
            (
                "Java, WebSocket",
                websocket(Some("okhttp/3.12.12"), None, Some("permessage-deflate")),
            ),
            (
                "Java, polling",
                polling(Some("okhttp/3.12.12"), Some("Q8RRK5B")),
            ),
            ("Swift, WebSocket", websocket(None, origin, None)),
            (
                "Dart VM, WebSocket",
                websocket(Some("Dart/3.5 (dart:io)"), None, Some(WS)),
            ),
            (
                "Dart in Chromium, polling",
                polling(Some(CHROMIUM), Some("mwyj1m7s")),
            ),
            (".NET, WebSocket", websocket(None, None, None)),
            (
                "Go, WebSocket",
                websocket(Some("Go-http-client/1.1"), None, None),
            ),
            (
                "React Native for Android",
                websocket(Some("okhttp/4.9.2"), origin, Some("permessage-deflate")),
            ),
            (
                "React Native for iOS",
                polling(
                    Some("App/1 CFNetwork/1410.0.3 Darwin/22.6.0"),
                    Some("j1kwour4"),
                ),
            ),
            ("no header at all", polling(None, Some("j1kwour4"))),
        ] {
            assert_eq!(request.recovery(NOW), Recovery::Off, "{client}");
        }
    }

    #[test]
    fn query_decides_before_the_headers() {
        let unknown = polling(None, None);
        let browser = websocket(Some(CHROMIUM), None, Some(WS));
        for (request, recovery, expected) in [
            (unknown, "1", Recovery::On),
            (browser, "0", Recovery::Off),
            (browser, "yes", Recovery::On),
            (unknown, "yes", Recovery::Off),
        ] {
            let recovery = Some(recovery);
            let request = OpenRequest {
                recovery,
                ..request
            };
            assert_eq!(request.recovery(NOW), expected, "{recovery:?}");
        }
    }
}
