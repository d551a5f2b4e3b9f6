//! Paths and queries.

use super::problem::Problem;
use roomcast_gateway::Protocol;
use roomcast_proto::command::{DEFAULT_LIMIT, MAX_LIMIT};
use roomcast_proto::error::{Error, Result};
use roomcast_proto::id::Epoch;
use roomcast_proto::name;
use roomcast_proto::position::Position;
use roomcast_proto::raw_object::{ROOM, USER, whole};
use roomcast_room::history::HistoryQuery;
use std::borrow::Cow;

/// The pieces of a URL as the runtime writes it: normalised, so that they only
/// need to be cut out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address<'a> {
    /// `host` or `host:port`.
    pub authority: &'a str,
    pub path: &'a str,
    pub query: &'a str,
}

impl<'a> Address<'a> {
    pub fn of(url: &'a str) -> Self {
        let (_, rest) = url.split_once("://").unwrap_or(("", url));
        let (rest, _fragment) = rest.split_once('#').unwrap_or((rest, ""));
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        Address {
            authority,
            path,
            query,
        }
    }
}

/// What a path is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    Health,
    OpenApi,
    Publish,
    Revoke,
    Tickets,
    DevToken,
    /// A native socket at a gateway.
    Gateway,
    /// Socket.IO, or in the conformance build bare Engine.IO.
    Engine(Protocol),
    Room {
        room: String,
    },
    Socket {
        room: String,
    },
    Messages {
        room: String,
    },
    Presence {
        room: String,
    },
    Members {
        room: String,
    },
    Member {
        room: String,
        user: String,
    },
    Connections {
        room: String,
    },
}

/// Reads a route from the segments of a path that has its shape.
type Read = fn(&[&str]) -> Result<Route>;

/// What is wrong with a path: no such route, a method it does not take, or a
/// name in it that is none.
pub fn find(method: &str, path: &str) -> std::result::Result<Route, Problem> {
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let (route, methods): (Read, &[&str]) = match segments.as_slice() {
        ["healthz"] => (|_| Ok(Route::Health), &["GET"]),
        ["openapi.json"] => (|_| Ok(Route::OpenApi), &["GET"]),
        ["publish"] => (|_| Ok(Route::Publish), &["POST"]),
        ["tickets"] => (|_| Ok(Route::Tickets), &["POST", "OPTIONS"]),
        ["revoke"] => (|_| Ok(Route::Revoke), &["POST"]),
        ["dev", "token"] => (|_| Ok(Route::DevToken), &["POST"]),
        ["ws"] => (|_| Ok(Route::Gateway), &["GET"]),
        // Engine.IO has its own words for a wrong method.
        ["socket.io"] | ["socket.io", ""] => {
            return Ok(Route::Engine(Protocol::SocketIo));
        }
        #[cfg(feature = "conformance")]
        ["engine.io"] | ["engine.io", ""] => {
            return Ok(Route::Engine(Protocol::EngineIo));
        }
        ["rooms", _] => (|s| Ok(Route::Room { room: room(s[1])? }), &["DELETE"]),
        ["rooms", _, "ws"] => (|s| Ok(Route::Socket { room: room(s[1])? }), &["GET"]),
        ["rooms", _, "messages"] => (|s| Ok(Route::Messages { room: room(s[1])? }), &["GET"]),
        ["rooms", _, "presence"] => (|s| Ok(Route::Presence { room: room(s[1])? }), &["GET"]),
        ["rooms", _, "members"] => (|s| Ok(Route::Members { room: room(s[1])? }), &["GET"]),
        ["rooms", _, "members", _] => (
            |s| {
                Ok(Route::Member {
                    room: room(s[1])?,
                    user: user(s[3])?,
                })
            },
            &["PUT", "DELETE"],
        ),
        ["rooms", _, "connections"] => (
            |s| Ok(Route::Connections { room: room(s[1])? }),
            &["DELETE"],
        ),
        _ => return Err(Problem::not_found()),
    };
    if !methods.contains(&method) {
        return Err(Problem::method_not_allowed(methods));
    }
    route(&segments).map_err(Problem::from)
}

fn room(segment: &str) -> Result<String> {
    decoded(segment)
        .filter(|room| name::is_room(room))
        .map(Cow::into_owned)
        .ok_or_else(|| Error::bad_field("room", ROOM.expected))
}

fn user(segment: &str) -> Result<String> {
    decoded(segment)
        .filter(|user| name::is_user(user))
        .map(Cow::into_owned)
        .ok_or_else(|| Error::bad_field("user", USER.expected))
}

fn decoded(segment: &str) -> Option<Cow<'_, str>> {
    percent_encoding::percent_decode_str(segment)
        .decode_utf8()
        .ok()
}

/// The parameters of a query. Of a name given twice the first counts.
#[derive(Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn new(pairs: Vec<(String, String)>) -> Self {
        Query(pairs)
    }

    /// `name=value&…`, as in a URL.
    pub fn read(query: &str) -> Self {
        let pairs = form_urlencoded::parse(query.as_bytes());
        Query::new(pairs.into_owned().collect())
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    fn whole(&self, name: &str, min: u64, max: u64, expected: &str) -> Result<Option<u64>> {
        self.get(name)
            .map(|value| {
                whole(value)
                    .filter(|number| (min..=max).contains(number))
                    .ok_or_else(|| Error::bad_field(name, expected))
            })
            .transpose()
    }

    fn seq(&self, name: &str) -> Result<Option<u64>> {
        self.whole(name, 0, u64::MAX, "a whole number from 0 to 2^53-1")
    }

    /// `since`, `epoch` and `history`.
    pub fn position(&self) -> Result<Position> {
        Ok(Position {
            since: self.seq("since")?,
            epoch: self.get("epoch").map(Epoch::trusted),
            history: self.seq("history")?,
        })
    }

    /// `after`, `before` and `limit`: from `after` on, or, with `before`
    /// alone, the newest before it.
    pub fn range(&self) -> Result<HistoryQuery> {
        let (after, before) = (self.seq("after")?, self.seq("before")?);
        Ok(HistoryQuery {
            after: after.unwrap_or(0),
            before: before.unwrap_or(u64::MAX),
            limit: self
                .whole("limit", 1, MAX_LIMIT, "a whole number from 1 to 1000")?
                .unwrap_or(DEFAULT_LIMIT),
            newest: before.is_some() && after.is_none(),
        })
    }

    /// `userId`, which must be there.
    pub fn user(&self) -> Result<String> {
        self.get("userId")
            .filter(|user| name::is_user(user))
            .map(str::to_owned)
            .ok_or_else(|| Error::bad_field("userId", USER.expected))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use roomcast_proto::error::ErrorCode;

    /// All but those of development builds.
    const ROUTES: [(&str, &str); 22] = [
        ("GET", "/healthz"),
        ("GET", "/openapi.json"),
        ("POST", "/publish"),
        ("POST", "/revoke"),
        ("POST", "/tickets"),
        ("OPTIONS", "/tickets"),
        ("GET", "/ws"),
        ("GET", "/socket.io/"),
        ("POST", "/socket.io/"),
        ("OPTIONS", "/socket.io/"),
        ("GET", "/rooms/{room}/ws"),
        ("GET", "/rooms/{room}/messages"),
        ("GET", "/rooms/{room}/presence"),
        ("GET", "/rooms/{room}/members"),
        ("PUT", "/rooms/{room}/members/{user}"),
        ("DELETE", "/rooms/{room}/members/{user}"),
        ("DELETE", "/rooms/{room}/connections"),
        ("DELETE", "/rooms/{room}"),
        ("GET", "/socket.io"),
        ("POST", "/socket.io"),
        ("GET", "/rooms/%40{user}/presence"),
        ("DELETE", "/rooms/..%40/members/{user}"),
    ];

    #[test]
    fn a_url_is_cut_into_its_pieces() {
        let pieces = |url| {
            let Address {
                authority,
                path,
                query,
            } = Address::of(url);
            (authority, path, query)
        };
        assert_eq!(pieces("https://a.b/"), ("a.b", "/", ""));
        assert_eq!(
            pieces("http://a.b:87/rooms/x%2Fy/ws?since=1&e=/?x#y?z"),
            ("a.b:87", "/rooms/x%2Fy/ws", "since=1&e=/?x")
        );
        assert_eq!(pieces("http://a?q"), ("a", "", "q"));
        let query = Query::read("a=%20+b&c&a=2");
        assert_eq!((query.get("a"), query.get("c")), (Some("  b"), Some("")));
    }

    #[test]
    fn every_route_of_the_contract_is_found() {
        for (method, path) in ROUTES {
            let path = path.replace("{room}", "a").replace("{user}", "bob");
            assert!(find(method, &path).is_ok(), "{method} {path}");
        }
    }

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let api: serde_json::Value =
            serde_json::from_str(include_str!("openapi.json")).expect("JSON");
        assert_eq!(api["info"]["version"], env!("CARGO_PKG_VERSION"));
        let described: Vec<(String, String)> = api["paths"]
            .as_object()
            .expect("paths")
            .iter()
            .flat_map(|(path, item)| {
                let methods = item.as_object().expect("operations").keys();
                methods
                    .filter(|method| *method != "parameters")
                    .map(move |method| (method.to_uppercase(), path.clone()))
            })
            .filter(|(_, path)| path != "/") // An asset.
            .collect();
        // The last four are other ways to write some of the others.
        let routes = &ROUTES[..ROUTES.len() - 4];
        for (method, path) in routes {
            let is_it = |(m, p): &(String, String)| m == method && p == path;
            assert!(described.iter().any(is_it), "{method} {path} is missing");
        }
        assert_eq!(described.len(), routes.len(), "{described:?}");
        for code in [
            ErrorCode::BadRequest,
            ErrorCode::Unauthorized,
            ErrorCode::Forbidden,
            ErrorCode::NotFound,
            ErrorCode::NotJoined,
            ErrorCode::TooLarge,
            ErrorCode::RateLimited,
            ErrorCode::Conflict,
            ErrorCode::Internal,
        ] {
            let codes = &api["components"]["schemas"]["Code"]["enum"];
            let codes = codes.as_array().expect("a list");
            assert!(codes.iter().any(|one| *one == code.as_str()), "{code:?}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_path_is_said() {
        for (method, path, status) in [
            ("GET", "/nothing", 404),
            ("GET", "/rooms", 404),
            ("GET", "/rooms/a/ws/x", 404),
            ("GET", "/socket.io/x", 404),
            ("GET", "/ws/", 404),
            ("POST", "/ws", 405),
            ("POST", "/healthz", 405),
            ("GET", "/publish", 405),
            ("GET", "/rooms/a", 405),
            ("DELETE", "/rooms/a%2fb", 400),
            ("DELETE", "/rooms/..", 200),
            ("DELETE", "/rooms/a%20b", 400),
            ("DELETE", "/rooms/%ff", 400),
            ("DELETE", "/rooms/", 400),
            ("PUT", "/rooms/a/members/@bob", 400),
        ] {
            let found = find(method, path).map_or_else(|problem| problem.status, |_| 200);
            assert_eq!(found, status, "{method} {path}");
        }
        let problem = find("POST", "/rooms/a/members/b").expect_err("wrong method");
        assert_eq!(problem.headers, vec![("Allow", "PUT, DELETE".to_owned())]);
    }

    #[test]
    fn a_since_that_is_no_whole_number_is_refused() {
        for bad in ["-1", "1.5", "", "x", "9007199254740992"] {
            let query = Query::new(vec![("since".into(), bad.into())]);
            assert_eq!(
                query.position().expect_err(bad).field.as_deref(),
                Some("since")
            );
        }
    }
}
