//! Routes: finds the route of a request from its method and path.

use super::problem::Problem;
use roomcast_gateway::Protocol;
use roomcast_proto::error::{Error, Result};
use roomcast_proto::id::{RoomName, UserId};
use roomcast_proto::raw_object::{ROOM, USER};
use std::borrow::Cow;

/// A route, with the parameters of its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/healthz`: whether the Worker is able to handle requests.
    Health,
    /// `/openapi.json`: the description of the routes.
    OpenApi,
    /// `/publish`: publishes events.
    Publish,
    /// `/broadcast`: sends an event to every connection.
    Broadcast,
    /// `/revoke`: revokes tokens.
    Revoke,
    /// `/tickets`: issues a ticket.
    Tickets,
    /// `/dev/token`: signs a token.
    #[cfg(feature = "dev-tokens")]
    DevToken,
    /// `/ws`: a native WebSocket to a gateway.
    GatewaySocket,
    /// `/socket.io/`, or `/engine.io/` in the conformance build.
    EngineIo(Protocol),
    /// `/rooms/{room}`: the room itself.
    Room {
        /// The name of the room.
        room: RoomName,
    },
    /// `/rooms/{room}/ws`: a WebSocket to the room.
    RoomSocket {
        /// The name of the room.
        room: RoomName,
    },
    /// `/rooms/{room}/messages`: the log.
    Messages {
        /// The name of the room.
        room: RoomName,
    },
    /// `/rooms/{room}/presence`: the presence of the members.
    Presence {
        /// The name of the room.
        room: RoomName,
    },
    /// `/rooms/{room}/members`: the members.
    Members {
        /// The name of the room.
        room: RoomName,
    },
    /// `/rooms/{room}/members/{user}`: one member.
    Member {
        /// The name of the room.
        room: RoomName,
        /// The user id of the member.
        user: UserId,
    },
    /// `/rooms/{room}/connections`: the connections of a user.
    Connections {
        /// The name of the room.
        room: RoomName,
    },
}

impl Route {
    /// Returns the path as it is written in the documentation, for log records.
    pub fn path(&self) -> &'static str {
        match self {
            Route::Health => "/healthz",
            Route::OpenApi => "/openapi.json",
            Route::Publish => "/publish",
            Route::Broadcast => "/broadcast",
            Route::Revoke => "/revoke",
            Route::Tickets => "/tickets",
            #[cfg(feature = "dev-tokens")]
            Route::DevToken => "/dev/token",
            Route::GatewaySocket => "/ws",
            Route::EngineIo(Protocol::EngineIo) => "/engine.io/",
            Route::EngineIo(_) => "/socket.io/",
            Route::Room { .. } => "/rooms/{room}",
            Route::RoomSocket { .. } => "/rooms/{room}/ws",
            Route::Messages { .. } => "/rooms/{room}/messages",
            Route::Presence { .. } => "/rooms/{room}/presence",
            Route::Members { .. } => "/rooms/{room}/members",
            Route::Member { .. } => "/rooms/{room}/members/{user}",
            Route::Connections { .. } => "/rooms/{room}/connections",
        }
    }
}

/// The pages that may read the responses of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// Pages of the Worker's own origin.
    OwnOrigin,
    /// Pages of `ALLOWED_ORIGINS`.
    AllowedOrigins,
    /// All pages.
    Anyone,
}

/// Returns which pages may read the responses of a path, its errors included.
pub fn readers(path: &str) -> Readers {
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match segments.as_slice() {
        ["tickets"]
        | ["socket.io" | "engine.io"]
        | ["socket.io" | "engine.io", ""]
        | ["rooms", _, "messages" | "presence" | "members"] => Readers::AllowedOrigins,
        ["openapi.json"] => Readers::Anyone,
        _ => Readers::OwnOrigin,
    }
}

/// The protocol of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketKind {
    /// The native framing.
    Native,
    /// Socket.IO.
    SocketIo,
}

/// Returns the protocol of the sockets of a path, if it is the path of a socket.
pub fn socket_kind(path: &str) -> Option<SocketKind> {
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match segments.as_slice() {
        ["ws"] | ["rooms", _, "ws"] => Some(SocketKind::Native),
        ["socket.io"] | ["socket.io", ""] => Some(SocketKind::SocketIo),
        _ => None,
    }
}

/// The methods of a route that reads. A server must support HEAD (RFC 9110, 9.1). It is handled
/// like GET, and the runtime drops the body of the response.
const READ: &[&str] = &["GET", "HEAD"];

/// The methods of a route that pages of other origins may read.
const READ_BY_PAGES: &[&str] = &["GET", "HEAD", "OPTIONS"];

/// The method of a WebSocket upgrade (RFC 6455, 4.1).
const UPGRADE: &[&str] = &["GET"];

/// Makes a route of the segments of a path.
type Make = fn(&[&str]) -> Result<Route>;

/// Finds the route of a request. `path` is still percent-encoded.
///
/// # Errors
///
/// Returns a 404 problem if there is no such route, a 405 problem if the route does not accept
/// the method, and a 400 problem if the name of a room or a user in the path is not valid.
pub fn find(method: &str, path: &str) -> std::result::Result<Route, Problem> {
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let (make, methods): (Make, &[&str]) = match segments.as_slice() {
        ["healthz"] => (|_| Ok(Route::Health), READ),
        ["openapi.json"] => (|_| Ok(Route::OpenApi), READ),
        ["publish"] => (|_| Ok(Route::Publish), &["POST"]),
        ["broadcast"] => (|_| Ok(Route::Broadcast), &["POST"]),
        ["tickets"] => (|_| Ok(Route::Tickets), &["POST", "OPTIONS"]),
        ["revoke"] => (|_| Ok(Route::Revoke), &["POST"]),
        #[cfg(feature = "dev-tokens")]
        ["dev", "token"] => (|_| Ok(Route::DevToken), &["POST"]),
        ["ws"] => (|_| Ok(Route::GatewaySocket), UPGRADE),
        // Engine.IO has an error of its own for wrong methods.
        ["socket.io"] | ["socket.io", ""] => {
            return Ok(Route::EngineIo(Protocol::SocketIo));
        }
        #[cfg(feature = "conformance")]
        ["engine.io"] | ["engine.io", ""] => {
            return Ok(Route::EngineIo(Protocol::EngineIo));
        }
        ["rooms", _] => (|s| Ok(Route::Room { room: room(s[1])? }), &["DELETE"]),
        ["rooms", _, "ws"] => (|s| Ok(Route::RoomSocket { room: room(s[1])? }), UPGRADE),
        ["rooms", _, "messages"] => (|s| Ok(Route::Messages { room: room(s[1])? }), READ_BY_PAGES),
        ["rooms", _, "presence"] => (|s| Ok(Route::Presence { room: room(s[1])? }), READ_BY_PAGES),
        ["rooms", _, "members"] => (|s| Ok(Route::Members { room: room(s[1])? }), READ_BY_PAGES),
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
    make(&segments).map_err(Problem::from)
}

fn room(segment: &str) -> Result<RoomName> {
    decoded(segment)
        .and_then(|room| RoomName::parse(&room))
        .ok_or_else(|| Error::bad_field("room", ROOM.expected))
}

fn user(segment: &str) -> Result<UserId> {
    decoded(segment)
        .and_then(|user| UserId::parse(&user))
        .ok_or_else(|| Error::bad_field("user", USER.expected))
}

/// Decodes a segment of a path. Returns `None` if the result is not UTF-8.
fn decoded(segment: &str) -> Option<Cow<'_, str>> {
    percent_encoding::percent_decode_str(segment)
        .decode_utf8()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use roomcast_proto::error::ErrorCode;

    /// All routes, except for those of development builds. HEAD is accepted where GET is, and is
    /// not described.
    const ROUTES: [(&str, &str); 26] = [
        ("GET", "/healthz"),
        ("GET", "/openapi.json"),
        ("POST", "/publish"),
        ("POST", "/broadcast"),
        ("POST", "/revoke"),
        ("POST", "/tickets"),
        ("OPTIONS", "/tickets"),
        ("GET", "/ws"),
        ("GET", "/socket.io/"),
        ("POST", "/socket.io/"),
        ("OPTIONS", "/socket.io/"),
        ("GET", "/rooms/{room}/ws"),
        ("GET", "/rooms/{room}/messages"),
        ("OPTIONS", "/rooms/{room}/messages"),
        ("GET", "/rooms/{room}/presence"),
        ("OPTIONS", "/rooms/{room}/presence"),
        ("GET", "/rooms/{room}/members"),
        ("OPTIONS", "/rooms/{room}/members"),
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
    fn every_documented_route_is_found() {
        for (method, path) in ROUTES {
            let path = path.replace("{room}", "a").replace("{user}", "bob");
            assert!(find(method, &path).is_ok(), "{method} {path}");
        }
    }

    #[test]
    fn openapi_json_describes_every_route_and_no_other() {
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
            .filter(|(_, path)| path != "/") // A static asset.
            .collect();
        // The last four are other spellings of routes before them.
        let routes = &ROUTES[..ROUTES.len() - 4];
        for (method, path) in routes {
            let is_same = |(m, p): &(String, String)| m == method && p == path;
            assert!(described.iter().any(is_same), "{method} {path} is missing");
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
            ErrorCode::Unavailable,
        ] {
            let codes = &api["components"]["schemas"]["Code"]["enum"];
            let codes = codes.as_array().expect("a list");
            assert!(codes.iter().any(|one| *one == code.as_str()), "{code:?}");
        }
    }

    #[test]
    fn a_wrong_path_or_method_has_its_status() {
        for (method, path, status) in [
            ("GET", "/nothing", 404),
            ("GET", "/rooms", 404),
            ("GET", "/rooms/a/ws/x", 404),
            ("GET", "/socket.io/x", 404),
            ("GET", "/ws/", 404),
            ("POST", "/ws", 405),
            ("POST", "/healthz", 405),
            ("HEAD", "/publish", 405),
            ("HEAD", "/ws", 405),
            ("HEAD", "/rooms/a/ws", 405),
            ("GET", "/publish", 405),
            ("GET", "/rooms/a", 405),
            ("DELETE", "/rooms/a%2fb", 400),
            ("DELETE", "/rooms/..", 200),
            ("DELETE", "/rooms/a%20b", 400),
            ("DELETE", "/rooms/%ff", 400),
            ("DELETE", "/rooms/", 400),
            ("PUT", "/rooms/a/members/bob%0a", 400),
            ("PUT", "/rooms/a/members/%20bob", 400),
            ("GET", "/rooms/@a%00/messages", 400),
        ] {
            let found = find(method, path).map_or_else(|problem| problem.status, |_| 200);
            assert_eq!(found, status, "{method} {path}");
        }
        let problem = find("POST", "/rooms/a/members/b").expect_err("wrong method");
        assert_eq!(problem.headers, vec![("Allow", "PUT, DELETE".to_owned())]);
    }

    #[test]
    fn ids_of_identity_providers_are_found_percent_encoded() {
        for (encoded, id) in [
            ("auth0%7C5f7c", "auth0|5f7c"),
            ("alice@example.com", "alice@example.com"),
            ("Jos%C3%A9", "José"),
            ("a%2Fb%3Fc%23d%25e", "a/b?c#d%e"),
            ("a%20b", "a b"),
        ] {
            let user = UserId::parse(id).expect(id);
            let path = format!("/rooms/a/members/{encoded}");
            let room = RoomName::parse("a").expect("a name");
            let found = find("PUT", &path).expect(encoded);
            assert_eq!(
                found,
                Route::Member {
                    room,
                    user: user.clone()
                }
            );
            let room = RoomName::personal(&user);
            let path = format!("/rooms/%40{encoded}/messages");
            let found = find("GET", &path).expect(encoded);
            assert_eq!(found, Route::Messages { room });
        }
    }

    #[test]
    fn routes_that_read_accept_head_and_list_it_in_allow() {
        for (path, allow) in [
            ("/healthz", "GET, HEAD"),
            ("/openapi.json", "GET, HEAD"),
            ("/rooms/a/messages", "GET, HEAD, OPTIONS"),
            ("/rooms/a/presence", "GET, HEAD, OPTIONS"),
            ("/rooms/a/members", "GET, HEAD, OPTIONS"),
        ] {
            assert_eq!(find("HEAD", path), find("GET", path));
            let problem = find("PATCH", path).expect_err("wrong method");
            assert_eq!(problem.headers, vec![("Allow", allow.to_owned())]);
        }
    }

    #[test]
    fn pages_of_other_origins_read_the_routes_that_users_may_call() {
        for (path, expected) in [
            ("/rooms/a/messages", Readers::AllowedOrigins),
            ("/rooms/a%20b/members", Readers::AllowedOrigins),
            ("/rooms/@bob/presence", Readers::AllowedOrigins),
            ("/tickets", Readers::AllowedOrigins),
            ("/socket.io/", Readers::AllowedOrigins),
            ("/socket.io", Readers::AllowedOrigins),
            ("/openapi.json", Readers::Anyone),
            ("/publish", Readers::OwnOrigin),
            ("/revoke", Readers::OwnOrigin),
            ("/rooms/a", Readers::OwnOrigin),
            ("/rooms/a/members/bob", Readers::OwnOrigin),
            ("/dev/token", Readers::OwnOrigin),
            ("/healthz", Readers::OwnOrigin),
        ] {
            assert_eq!(readers(path), expected, "{path}");
        }
        // A preflight request is answered where another origin may read.
        for (method, path) in ROUTES {
            if method == "OPTIONS" {
                assert_eq!(readers(path), Readers::AllowedOrigins, "{path}");
            }
        }
        for (path, expected) in [
            ("/ws", Some(SocketKind::Native)),
            ("/rooms/a%20b/ws", Some(SocketKind::Native)),
            ("/socket.io/", Some(SocketKind::SocketIo)),
            ("/rooms/a/messages", None),
        ] {
            assert_eq!(socket_kind(path), expected, "{path}");
        }
    }

    #[test]
    fn the_path_of_a_route_leads_to_the_route() {
        for (method, path) in &ROUTES[..ROUTES.len() - 4] {
            let actual = path.replace("{room}", "a").replace("{user}", "bob");
            let route = find(method, &actual).expect("a route");
            assert_eq!(route.path(), *path);
        }
    }
}
