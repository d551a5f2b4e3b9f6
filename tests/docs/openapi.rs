//! `src/http/openapi.json`: the HTTP API in OpenAPI 3.1. The schemas come from the types
//! of `roomcast-proto`; paths, parameters and responses are written here.

use super::json::pretty;
use roomcast_proto::answer::{ErrorData, Page};
use roomcast_proto::http::{
    Broadcasted, EngineError, Health, Kicked, Member, MemberRemoved, Problem, Published, Refused,
    Revoked, RoomDeleted, RoomPresence, Ticket,
};
use roomcast_proto::id::{Epoch, RoomName, UserId};
use roomcast_proto::schema::requests::{Broadcast, PublishRequest, Revocation};
use roomcast_proto::schema::values::Seq;
use roomcast_proto::schema::{definitions, deserialize, serialize};
use schemars::JsonSchema;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Value, json};

const JSON: &str = "application/json";

/// Returns the document.
pub(crate) fn document() -> String {
    let mut api = Api {
        sent: serialize(SchemaSettings::draft2020_12()),
        received: deserialize(SchemaSettings::draft2020_12()),
    };
    let paths = paths(&mut api);
    let parameters = parameters(&mut api);
    let responses = problems(&mut api);
    // The codes of sockets, for readers of the document.
    api.sends::<ErrorData<'_>>();
    pretty(json!({
        "openapi": "3.1.1",
        "info": {
            "title": "roomcast",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Real-time messaging at the edge: one Durable Object per room.",
            "description": "The HTTP API for services, and the upgrades of sockets. `docs/asyncapi.json` describes the messages of sockets, `docs/protocol.md` explains both. Errors are problems (RFC 9457) with a stable `code`.",
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "security": [{ "bearer": [] }, { "query": [] }],
        "tags": [
            { "name": "events", "description": "Publishing and reading" },
            { "name": "rooms", "description": "Members and presence" },
            { "name": "access", "description": "Tickets and revocation" },
            { "name": "sockets", "description": "WebSocket upgrades and Socket.IO" },
            { "name": "server", "description": "The server itself" },
        ],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "A token. Unless the operation says otherwise, it needs `role: service` and a right on the room: `read` for operations that read, `write` for all others.",
                },
                "query": {
                    "type": "apiKey",
                    "in": "query",
                    "name": "token",
                    "description": "The token in the URL. Prefer a ticket: URLs appear in the logs of proxies.",
                },
                "ticket": {
                    "type": "apiKey",
                    "in": "query",
                    "name": "ticket",
                    "description": "A ticket of `POST /tickets`. It can be used once.",
                },
            },
            "parameters": parameters,
            "responses": responses,
            "schemas": definitions(api.sent, api.received),
        },
    }))
}

/// The generators of the schemas.
struct Api {
    sent: SchemaGenerator,
    received: SchemaGenerator,
}

impl Api {
    /// Returns the schema of a body that the server sends.
    fn sends<T: JsonSchema>(&mut self) -> Value {
        self.sent.subschema_for::<T>().to_value()
    }

    /// Returns the schema of a value that the server receives.
    fn receives<T: JsonSchema>(&mut self) -> Value {
        self.received.subschema_for::<T>().to_value()
    }

    /// Returns a response with a JSON body.
    fn response<T: JsonSchema>(&mut self, description: &str) -> Value {
        body(description, JSON, self.sends::<T>())
    }
}

fn body(description: &str, content_type: &str, schema: Value) -> Value {
    json!({ "description": description, "content": { content_type: { "schema": schema } } })
}

/// Returns the responses of an operation: its own, and the problems with these names. An operation
/// that checks a token can also be unavailable.
fn responses<const N: usize>(own: [(&str, Value); N], problems: &[&str]) -> Value {
    let mut all = json!({});
    for (status, response) in own {
        all[status] = response;
    }
    let checks_token = problems.contains(&"Unauthorized");
    for name in problems
        .iter()
        .chain(checks_token.then_some(&"Unavailable"))
    {
        let (_, status, ..) = PROBLEMS
            .iter()
            .find(|(one, ..)| one == name)
            .expect("a problem of the list");
        all[*status] = json!({ "$ref": format!("#/components/responses/{name}") });
    }
    all
}

fn parameter(name: &str) -> Value {
    json!({ "$ref": format!("#/components/parameters/{name}") })
}

fn paths(api: &mut Api) -> Value {
    let subprotocol = json!({
        "description": "The socket is open. If the client offered the subprotocol `roomcast.v1`, it is selected.",
        "headers": { "Sec-WebSocket-Protocol": { "schema": { "const": "roomcast.v1" } } },
    });
    let sockets = json!([{ "bearer": [] }, { "query": [] }, { "ticket": [] }]);
    let preflight = json!({
        "description": "A page of this origin may send the request.",
        "headers": {
            "Access-Control-Allow-Origin": { "schema": { "type": "string" } },
            "Access-Control-Allow-Credentials": { "schema": { "const": "true" } },
            "Access-Control-Allow-Methods": { "schema": { "const": "GET, HEAD, POST" } },
            "Access-Control-Allow-Headers": { "schema": { "type": "string" } },
            "Access-Control-Max-Age": { "schema": { "const": "86400" } },
            "Vary": { "schema": { "const": "Origin" } },
        },
    });
    let preflight_of = |id: &str, tag: &str| {
        json!({
            "operationId": id,
            "tags": [tag],
            "summary": "CORS preflight",
            "security": [],
            "responses": responses([("204", preflight.clone())], &["Forbidden", "Internal"]),
        })
    };
    let page = |mut response: Value| {
        response["headers"] = json!({
            "Link": {
                "description": "The URL of the next page, with `rel=\"next\"` (RFC 8288). Not set on the last page.",
                "schema": { "type": "string" },
            },
            "X-Total-Count": {
                "description": "The number of members of the room.",
                "required": true,
                "schema": { "type": "string", "pattern": "^[0-9]+$" },
            },
        });
        response
    };
    let for_users = "Tokens of users with `read` may call this operation, too, and so may pages of ALLOWED_ORIGINS. Reads of users are limited.";
    let published = published(api);
    json!({
        "/publish": {
            "post": {
                "operationId": "publish",
                "tags": ["events"],
                "summary": "Publish to a room or to a user",
                "description": "For services with `write` on the room. The response is sent once the event is durable. If a `messageId` is repeated, the response has the same `seq` and `duplicate: true`.",
                "requestBody": {
                    "required": true,
                    "content": { JSON: { "schema": api.receives::<PublishRequest>() } },
                },
                "responses": responses(
                    [("200", body(
                        "The result. For `messages`, one result for each, in the same order.",
                        JSON,
                        published,
                    ))],
                    &["BadRequest", "Unauthorized", "Forbidden", "TooLarge", "RateLimited",
                      "Internal"],
                ),
            },
        },
        "/rooms/{room}": {
            "parameters": [parameter("room")],
            "delete": {
                "operationId": "deleteRoom",
                "tags": ["rooms"],
                "summary": "Delete the log, the members and the cursors of a room, and close its sockets with 4410",
                "responses": responses(
                    [("200", api.response::<RoomDeleted<'_>>("The room is empty and has a new epoch."))],
                    &["BadRequest", "Unauthorized", "Forbidden", "Internal"],
                ),
            },
        },
        "/rooms/{room}/messages": {
            "parameters": [parameter("room")],
            "get": {
                "operationId": "readMessages",
                "tags": ["events"],
                "summary": "Read a page of a room's log",
                "description": format!("`before` without `after` returns the newest events before it. {for_users}"),
                "parameters": [parameter("after"), parameter("before"), parameter("limit")],
                "responses": responses(
                    [("200", api.response::<Page<'_>>("The events, ordered by `seq`."))],
                    &["BadRequest", "Unauthorized", "Forbidden", "RateLimited", "Internal"],
                ),
            },
            "options": preflight_of("preflightMessages", "events"),
        },
        "/rooms/{room}/presence": {
            "parameters": [parameter("room")],
            "get": {
                "operationId": "readPresence",
                "tags": ["rooms"],
                "summary": "Read a page of the presence of the members",
                "description": for_users,
                "parameters": [parameter("afterUser"), parameter("limit")],
                "responses": responses(
                    [("200", page(api.response::<RoomPresence<'_>>("The members, ordered by their ids.")))],
                    &["BadRequest", "Unauthorized", "Forbidden", "RateLimited", "Internal"],
                ),
            },
            "options": preflight_of("preflightPresence", "rooms"),
        },
        "/rooms/{room}/members": {
            "parameters": [parameter("room")],
            "get": {
                "operationId": "listMembers",
                "tags": ["rooms"],
                "summary": "Read a page of the members of a room",
                "description": for_users,
                "parameters": [parameter("afterUser"), parameter("limit")],
                "responses": responses(
                    [("200", page(api.response::<Vec<Member<'_>>>("The members, ordered by their ids.")))],
                    &["BadRequest", "Unauthorized", "Forbidden", "RateLimited", "Internal"],
                ),
            },
            "options": preflight_of("preflightMembers", "rooms"),
        },
        "/rooms/{room}/members/{user}": {
            "parameters": [parameter("room"), parameter("user")],
            "put": {
                "operationId": "addMember",
                "tags": ["rooms"],
                "summary": "Add a member without a socket",
                "responses": responses(
                    [
                        ("200", api.response::<Member<'_>>("The user was a member already.")),
                        ("201", api.response::<Member<'_>>("The user is a member now.")),
                    ],
                    &["BadRequest", "Unauthorized", "Forbidden", "Conflict", "Internal"],
                ),
            },
            "delete": {
                "operationId": "removeMember",
                "tags": ["rooms"],
                "summary": "Remove a member and its offline queue",
                "responses": responses(
                    [("200", api.response::<MemberRemoved<'_>>("The user is not a member any more."))],
                    &["BadRequest", "Unauthorized", "Forbidden", "NotFound", "Internal"],
                ),
            },
        },
        "/rooms/{room}/connections": {
            "parameters": [parameter("room")],
            "delete": {
                "operationId": "kick",
                "tags": ["rooms"],
                "summary": "Close the sockets of a user in a room with 4403",
                "parameters": [{
                    "name": "userId",
                    "in": "query",
                    "required": true,
                    "schema": api.receives::<UserId>(),
                }],
                "responses": responses(
                    [("200", api.response::<Kicked>("The sockets are closed."))],
                    &["BadRequest", "Unauthorized", "Forbidden", "Internal"],
                ),
            },
        },
        "/tickets": {
            "post": {
                "operationId": "createTicket",
                "tags": ["access"],
                "summary": "Create a ticket for one socket, valid for 30 seconds",
                "description": "For users and services. The socket has the user, the rights, the expiry and the revocation of the token. Pages of ALLOWED_ORIGINS may call this operation.",
                "security": [{ "bearer": [] }],
                "responses": responses(
                    [("201", api.response::<Ticket<'_>>("A ticket for `?ticket=` of one upgrade, instead of a token."))],
                    &["Unauthorized", "Forbidden", "RateLimited", "Internal"],
                ),
            },
            "options": preflight_of("preflightTickets", "access"),
        },
        "/broadcast": {
            "post": {
                "operationId": "broadcast",
                "tags": ["events"],
                "summary": "Send an event to every open connection",
                "description": "For services with `admin` on `*`. The event is not stored, belongs to no room and has no order with other events.",
                "requestBody": {
                    "required": true,
                    "content": { JSON: { "schema": api.receives::<Broadcast>() } },
                },
                "responses": responses(
                    [("200", api.response::<Broadcasted<'_>>("The event was sent to the connections of these numbers of rooms and gateways."))],
                    &["BadRequest", "Unauthorized", "Forbidden", "Conflict", "TooLarge", "RateLimited", "Internal"],
                ),
            },
        },
        "/revoke": {
            "post": {
                "operationId": "revoke",
                "tags": ["access"],
                "summary": "Revoke one token, or the tokens of a user",
                "description": "For services with `admin` on `*`. `userId` revokes the tokens that were issued (`iat`) up to now, and tokens without `iat`.",
                "requestBody": {
                    "required": true,
                    "content": { JSON: { "schema": api.receives::<Revocation>() } },
                },
                "responses": responses(
                    [("200", api.response::<Revoked<'_>>("The revocation is stored. Open sockets are closed with 4401. Within 5 s, requests and upgrades with the tokens are refused everywhere."))],
                    &["BadRequest", "Unauthorized", "Forbidden", "Conflict", "TooLarge", "Internal"],
                ),
            },
        },
        "/rooms/{room}/ws": {
            "parameters": [parameter("room")],
            "get": {
                "operationId": "openRoomSocket",
                "tags": ["sockets"],
                "summary": "Open a WebSocket to a room",
                "description": "Needs `Upgrade: websocket`. Joins the room. The token may also be in the subprotocol `bearer.<jwt>`, offered beside `roomcast.v1`. For users with `read` on the room.",
                "security": sockets,
                "parameters": [parameter("since"), parameter("epoch"), parameter("history")],
                "responses": responses(
                    [("101", subprotocol.clone())],
                    &["BadRequest", "Unauthorized", "Forbidden", "Conflict", "UpgradeRequired",
                      "RateLimited", "Internal"],
                ),
            },
        },
        "/ws": {
            "get": {
                "operationId": "openSocket",
                "tags": ["sockets"],
                "summary": "Open a WebSocket for many rooms",
                "description": "Needs `Upgrade: websocket`. The token may also be in the subprotocol `bearer.<jwt>`, offered beside `roomcast.v1`. For all users.",
                "security": sockets,
                "responses": responses(
                    [("101", subprotocol)],
                    &["Unauthorized", "Forbidden", "UpgradeRequired", "RateLimited",
                      "Internal"],
                ),
            },
        },
        "/socket.io/": socket_io(api, &preflight),
        "/healthz": {
            "get": {
                "operationId": "health",
                "tags": ["server"],
                "summary": "Check that the server can handle requests",
                "security": [],
                "responses": responses(
                    [("200", api.response::<Health<'_>>("The server can handle requests."))],
                    &["Misconfigured"],
                ),
            },
        },
        "/openapi.json": {
            "get": {
                "operationId": "openapi",
                "tags": ["server"],
                "summary": "Read this document",
                "security": [],
                "responses": responses(
                    [("200", body("OpenAPI 3.1.", JSON, json!({ "type": "object", "additionalProperties": true })))],
                    &[],
                ),
            },
        },
        "/": {
            "get": {
                "operationId": "demo",
                "tags": ["server"],
                "summary": "The demo page",
                "security": [],
                "responses": responses(
                    [("200", body("An HTML page.", "text/html", json!({ "type": "string" })))],
                    &[],
                ),
            },
        },
    })
}

/// Returns the schema of the response of `POST /publish`.
fn published(api: &mut Api) -> Value {
    let (published, refused) = (api.sends::<Published<'_>>(), api.sends::<Refused<'_>>());
    json!({
        "anyOf": [
            published,
            {
                "type": "object",
                "required": ["results"],
                "properties": {
                    "results": { "type": "array", "items": { "anyOf": [published, refused] } },
                },
            },
        ],
    })
}

fn socket_io(api: &mut Api, preflight: &Value) -> Value {
    // A client may also send CONNECT with the token.
    let security = json!([{ "bearer": [] }, { "query": [] }, { "ticket": [] }, {}]);
    let parameters = json!([
        { "name": "EIO", "in": "query", "required": true, "schema": { "const": "4" } },
        {
            "name": "transport",
            "in": "query",
            "required": true,
            "schema": { "enum": ["polling", "websocket"] },
        },
        {
            "name": "sid",
            "in": "query",
            "description": "The session. Not set in the request that opens it.",
            "schema": { "type": "string" },
        },
    ]);
    let text = |description: &str, schema: Value| body(description, "text/plain", schema);
    let bad_request = api.response::<EngineError<'_>>("An error of Engine.IO, with its number.");
    let problems = ["Unauthorized", "Forbidden", "RateLimited", "Internal"];
    json!({
        "get": {
            "operationId": "engineGet",
            "tags": ["sockets"],
            "summary": "Socket.IO: open a session, poll, or upgrade to a WebSocket",
            "description": "The protocol is Engine.IO 4 and Socket.IO 5. The token may also be in `auth.token` of CONNECT. 401 is the answer to an invalid, used or expired ticket.",
            "security": security,
            "parameters": parameters,
            "responses": responses(
                [
                    ("101", json!({ "description": "The WebSocket of a session." })),
                    ("200", text("Packets of Engine.IO 4.", json!({ "type": "string" }))),
                    ("400", bad_request.clone()),
                ],
                &problems,
            ),
        },
        "post": {
            "operationId": "enginePost",
            "tags": ["sockets"],
            "summary": "Socket.IO: send packets of a session on long-polling",
            "security": security,
            "parameters": parameters,
            "requestBody": {
                "required": true,
                "content": { "text/plain": { "schema": { "type": "string" } } },
            },
            "responses": responses(
                [
                    ("200", text("The packets are accepted.", json!({ "const": "ok" }))),
                    ("400", bad_request),
                    ("413", api.response::<EngineError<'_>>("The body is larger than MAX_PAYLOAD.")),
                ],
                &problems,
            ),
        },
        "options": {
            "operationId": "enginePreflight",
            "tags": ["sockets"],
            "summary": "CORS preflight",
            "security": [],
            "responses": responses([("204", preflight.clone())], &["Forbidden", "Internal"]),
        },
    })
}

fn parameters(api: &mut Api) -> Value {
    let seq = api.receives::<Seq>();
    let path = |name: &str, schema: Value| json!({ "name": name, "in": "path", "required": true, "schema": schema });
    let query = |name: &str, description: &str, schema: &Value| json!({ "name": name, "in": "query", "description": description, "schema": schema });
    json!({
        "room": path("room", api.receives::<RoomName>()),
        "user": path("user", api.receives::<UserId>()),
        "after": query("after", "The page starts after this event.", &seq),
        "afterUser": query(
            "after",
            "The page starts after this user.",
            &api.receives::<UserId>(),
        ),
        "before": query("before", "The page ends before this event.", &seq),
        "limit": query(
            "limit",
            "The maximum number of events or members.",
            &json!({ "type": "integer", "minimum": 1, "maximum": 1000, "default": 100 }),
        ),
        "since": query(
            "since",
            "The replay starts after this event. Without it, the replay starts after the delivered cursor.",
            &seq,
        ),
        "epoch": query("epoch", "The epoch that `since` belongs to.", &api.receives::<Epoch>()),
        "history": query(
            "history",
            "On a first join: the number of events before the head to send.",
            &seq,
        ),
    })
}

/// The problems: name, status, description.
const PROBLEMS: &[(&str, &str, &str)] = &[
    (
        "Misconfigured",
        "503",
        "`misconfigured`: a setting is not valid. `detail` names it.",
    ),
    (
        "BadRequest",
        "400",
        "`badRequest`. `field` names the field that is wrong.",
    ),
    (
        "Unauthorized",
        "401",
        "`unauthorized`: there is no token or ticket, or it is not valid.",
    ),
    (
        "Forbidden",
        "403",
        "`forbidden`: the token does not allow this, or the origin may not send requests.",
    ),
    ("NotFound", "404", "`notFound`: the user is not a member."),
    (
        "Conflict",
        "409",
        "`conflict`: the room or the list of revocations is full, or revocation is switched off.",
    ),
    (
        "TooLarge",
        "413",
        "`tooLarge`: the body is larger than MAX_BODY_BYTES, or `data` is larger than MAX_FRAME_BYTES.",
    ),
    (
        "UpgradeRequired",
        "426",
        "`upgradeRequired`: the request is not an upgrade to a WebSocket.",
    ),
    (
        "RateLimited",
        "429",
        "`rateLimited`: too many connections or requests, or a ban after a flood.",
    ),
    (
        "Internal",
        "500",
        "`internal`: the request may be repeated. `misconfigured`: `detail` names the setting.",
    ),
    (
        "Unavailable",
        "503",
        "`unavailable`: the revocations could not be fetched, so the token cannot be checked, or the server is short of memory.",
    ),
];

fn problems(api: &mut Api) -> Value {
    let mut all = json!({});
    for (name, _, description) in PROBLEMS {
        let schema = api.sends::<Problem<'_>>();
        let mut response = body(description, "application/problem+json", schema);
        let header = match *name {
            "Unauthorized" => {
                json!({ "WWW-Authenticate": { "required": true, "schema": { "const": "Bearer" } } })
            }
            // Not required: workerd removes the header, which is hop-by-hop.
            "UpgradeRequired" => json!({ "Upgrade": { "schema": { "const": "websocket" } } }),
            "RateLimited" | "Unavailable" => json!({ "Retry-After": {
                "description": "Seconds.",
                "required": true,
                "schema": { "type": "integer" },
            } }),
            _ => Value::Null,
        };
        if !header.is_null() {
            response["headers"] = header;
        }
        all[*name] = response;
    }
    all
}
