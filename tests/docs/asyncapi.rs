//! `docs/asyncapi.json`: the messages of sockets in AsyncAPI 3.0. The schemas come from
//! the types of `roomcast-proto`.

use super::json::pretty;
use roomcast_proto::answer::ErrorData;
use roomcast_proto::command::Command;
use roomcast_proto::event::{GatewayConnected, RoomConnected};
use roomcast_proto::framing::{PING, PONG};
use roomcast_proto::id::Epoch;
use roomcast_proto::schema::commands::{CommandSchema, commands};
use roomcast_proto::schema::events::server_events;
use roomcast_proto::schema::logged::{
    CustomEvent, Meta as CustomMeta, NewMessage, NewMessageEvent, Stamp,
};
use roomcast_proto::schema::values::{CustomEventName, Seq};
use roomcast_proto::schema::{definitions, deserialize, serialize};
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

// The channels.
const ROOM: &str = "room";
const GATEWAY: &str = "gateway";
const SOCKET_IO: &str = "socketio";

/// The channels of the native framing.
const NATIVE: [&str; 2] = [ROOM, GATEWAY];

/// Commands that apply to all rooms of the connection.
const ALL_ROOMS: [&str; 2] = ["setPresence", "refreshToken"];

/// Returns the document.
pub(crate) fn document() -> String {
    // The schemas of AsyncAPI are those of draft 7.
    let mut sent = serialize(SchemaSettings::draft07());
    let mut received = deserialize(SchemaSettings::draft07());
    let commands = commands(&mut received, &mut sent);
    let error = sent.subschema_for::<ErrorData<'_>>().to_value();
    let seq = received.subschema_for::<Seq>().to_value();
    let epoch = received.subschema_for::<Epoch>().to_value();

    let mut document = Document::default();
    for command in &commands {
        document.add_command(command);
    }
    document.add_refusal(&error);
    document.add_keepalive();
    for (name, mut schema) in server_events(&mut sent) {
        let summary = schema["description"].take();
        let summary = summary.as_str().unwrap_or_default();
        let data = schema["properties"]["data"].take();
        let (constant, line) = (json!({ "const": name }), event_line(&name, &data));
        if name == "connected" {
            let room = sent.subschema_for::<RoomConnected<'_>>().to_value();
            document.add_native_event(&[ROOM], &name, summary, event_line(&name, &room));
            let gateway = sent.subschema_for::<GatewayConnected<'_>>().to_value();
            let line = event_line(&name, &gateway);
            document.add_native_event(&[GATEWAY], &name, summary, line);
            document.add_socket_io_event(&name, summary, (&constant, &gateway), Meta::None);
            continue;
        }
        // The socket of a room is closed instead.
        let channels = if name == "roomClosed" {
            &[GATEWAY][..]
        } else {
            &NATIVE
        };
        document.add_native_event(channels, &name, summary, line);
        document.add_socket_io_event(&name, summary, (&constant, &data), Meta::None);
    }
    let stamp = sent.subschema_for::<Stamp>().to_value();
    let meta = sent.subschema_for::<CustomMeta>().to_value();
    let (name, summary) = ("newMessage", "A chat message.");
    let line = sent.subschema_for::<NewMessageEvent>().to_value();
    document.add_native_event(&NATIVE, name, summary, line);
    let message = sent.subschema_for::<NewMessage>().to_value();
    let data = json!({ "anyOf": [message, { "not": { "type": "object" } }] });
    let schemas = (&json!({ "const": name }), &data);
    document.add_socket_io_event(name, summary, schemas, Meta::Optional(&stamp));
    let (name, summary) = ("custom", "A custom event.");
    let line = sent.subschema_for::<CustomEvent>().to_value();
    document.add_native_event(&NATIVE, name, summary, line);
    let schemas = (
        &sent.subschema_for::<CustomEventName>().to_value(),
        &json!({}),
    );
    document.add_socket_io_event(name, summary, schemas, Meta::Required(&meta));

    let channels = channels(&document, &seq, &epoch);
    let operations = document.operations(&commands);
    pretty(json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "roomcast",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The messages of sockets. The server receives commands and sends answers and events. `src/http/openapi.json` describes the HTTP API, `docs/protocol.md` explains both.",
            "license": { "name": "MIT OR Apache-2.0" },
        },
        "defaultContentType": "application/json",
        "servers": {
            "development": {
                "host": "localhost:8787",
                "protocol": "ws",
                "description": "`make dev`.",
                "security": security(),
            },
            "deployed": {
                "host": "{host}",
                "protocol": "wss",
                "description": "A deployment.",
                "variables": { "host": { "description": "The host of the Worker." } },
                "security": security(),
            },
        },
        "channels": channels,
        "operations": operations,
        "components": {
            "messages": document.messages,
            "schemas": definitions(sent, received),
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "A token. It may also be in the subprotocol `bearer.<jwt>`, offered beside `roomcast.v1`.",
                },
                "query": {
                    "type": "httpApiKey",
                    "in": "query",
                    "name": "token",
                    "description": "The token in the URL. Prefer a ticket: URLs appear in the logs of proxies.",
                },
                "ticket": {
                    "type": "httpApiKey",
                    "in": "query",
                    "name": "ticket",
                    "description": "A ticket of `POST /tickets`. It can be used once.",
                },
            },
        },
    }))
}

fn security() -> Value {
    json!(
        ["bearer", "query", "ticket"]
            .map(|name| { json!({ "$ref": format!("#/components/securitySchemes/{name}") }) })
    )
}

/// Returns the schema of an event of the server as one line of the native framing.
fn event_line(name: &str, data: &Value) -> Value {
    json!({
        "type": "object",
        "required": ["event", "data"],
        "properties": { "event": { "const": name }, "data": data },
    })
}

/// The messages, and the channels that have them.
#[derive(Default)]
struct Document {
    messages: Map<String, Value>,
    /// By the channel and the name of the message: a reference to the message.
    channels: BTreeMap<&'static str, Map<String, Value>>,
}

impl Document {
    /// Adds a message of these channels. A message of one channel alone has the name of
    /// the channel before its own.
    fn add(&mut self, channels: &[&'static str], name: &str, message: Value) {
        let key = match channels {
            [channel] => format!("{channel}.{name}"),
            _ => name.to_owned(),
        };
        let reference = json!({ "$ref": format!("#/components/messages/{key}") });
        for channel in channels {
            let messages = self.channels.entry(channel).or_default();
            messages.insert(name.to_owned(), reference.clone());
        }
        self.messages.insert(key, message);
    }

    /// Adds an answer of the native framing. `field` has the content of the answer, besides
    /// the id of the command.
    fn add_native_answer(
        &mut self,
        key: &str,
        title: &str,
        summary: &str,
        field: &str,
        content: &Value,
    ) {
        let message = json!({
            "title": title,
            "summary": summary,
            "correlationId": { "location": "$message.payload#/ack" },
            "payload": {
                "type": "object",
                "required": ["ack", field],
                "properties": { "ack": ack(), field: content },
            },
        });
        self.add(&NATIVE, key, message);
    }

    /// Adds the answer to a refused command.
    fn add_refusal(&mut self, error: &Value) {
        let title = "Answer to a refused command";
        let summary =
            "Sent if the command has an `id`. Without an `id`, the event `error` is sent.";
        self.add_native_answer("answer.error", title, summary, "error", error);
        let message = json!({
            "title": title,
            "summary": "Sent if the EVENT packet has an id. Without an id, the event `error` is sent.",
            "payload": {
                "description": "The arguments of the ACK packet.",
                "type": "array",
                "items": [{
                    "type": "object",
                    "required": ["error"],
                    "properties": { "error": error },
                }],
                "minItems": 1,
                "maxItems": 1,
            },
        });
        self.add(&[SOCKET_IO], "answer.error", message);
    }

    /// Adds `ping` and `pong`.
    fn add_keepalive(&mut self) {
        for (name, text, summary) in [
            (
                "command.ping",
                PING,
                "Keepalive. Sent as a frame of its own.",
            ),
            (
                "answer.ping",
                PONG,
                "The answer to `ping`. Sent as a frame of its own.",
            ),
        ] {
            let message = json!({
                "title": text,
                "summary": summary,
                "contentType": "text/plain",
                "payload": { "const": text },
            });
            self.add(&NATIVE, name, message);
        }
    }

    /// Adds a command and its answer.
    fn add_command(&mut self, command: &CommandSchema) {
        let CommandSchema { name, summary, .. } = command;
        let (data, answer) = (command.data.as_value(), command.answer.as_value());
        let key = format!("command.{name}");
        let line = |data: &Value, required: &[&str], example: &Value| {
            json!({
                "name": name,
                "title": name,
                "summary": summary,
                "correlationId": { "location": "$message.payload#/id" },
                "payload": {
                    "type": "object",
                    "required": required,
                    "properties": {
                        "event": { "const": name },
                        "data": data,
                        "id": {
                            "description": "Asks for an answer with this number.",
                            "type": ["integer", "null"],
                            "minimum": 0,
                            "maximum": u32::MAX,
                        },
                    },
                },
                "examples": [{ "payload": { "event": name, "data": example, "id": 1 } }],
            })
        };
        // On the socket of a room, `roomId` and then all data may be left out.
        let example = command.examples.last().unwrap_or(&Value::Null);
        let (optional, required) = match Command::parse(name, None) {
            Ok(_) => (
                json!({ "anyOf": [data, { "type": "null" }] }),
                &["event"][..],
            ),
            Err(_) => (data.clone(), &["event", "data"][..]),
        };
        // On the others, `roomId` is required.
        let concerns_room = !ALL_ROOMS.contains(name);
        let (named, named_example) = match concerns_room {
            true => (in_a_room(data), with_room(example)),
            false => (data.clone(), example.clone()),
        };
        if concerns_room {
            self.add(&[ROOM], &key, line(&optional, required, example));
            let message = line(&named, &["event", "data"], &named_example);
            self.add(&[GATEWAY], &key, message);
        } else {
            self.add(&NATIVE, &key, line(&optional, required, example));
        }
        let message = json!({
            "name": name,
            "title": name,
            "summary": summary,
            "payload": {
                "description": "The arguments of the EVENT packet.",
                "type": "array",
                "items": [{ "const": name }, named],
                "minItems": 2,
            },
            "examples": [{ "payload": [name, named_example] }],
        });
        self.add(&[SOCKET_IO], &key, message);

        let (key, title) = (format!("answer.{name}"), format!("Answer to {name}"));
        let summary = "Sent if the command has an `id`.";
        self.add_native_answer(&key, &title, summary, "data", answer);
        let message = json!({
            "title": title,
            "summary": "Sent if the EVENT packet has an id.",
            "payload": {
                "description": "The arguments of the ACK packet.",
                "type": "array",
                "items": [answer],
                "minItems": 1,
                "maxItems": 1,
            },
        });
        self.add(&[SOCKET_IO], &key, message);
    }

    /// Adds an event of native channels: one line.
    fn add_native_event(
        &mut self,
        channels: &[&'static str],
        name: &str,
        summary: &str,
        line: Value,
    ) {
        let message = json!({ "title": name, "summary": summary, "payload": line });
        self.add(channels, &format!("event.{name}"), message);
    }

    /// Adds an event of Socket.IO: the schemas of its name and its data. `meta` is the
    /// schema of a stamp beside the data.
    fn add_socket_io_event(
        &mut self,
        name: &str,
        summary: &str,
        schemas: (&Value, &Value),
        meta: Meta<'_>,
    ) {
        let payload = arguments(schemas.0, schemas.1, meta);
        let message = json!({ "title": name, "summary": summary, "payload": payload });
        self.add(&[SOCKET_IO], &format!("event.{name}"), message);
    }

    /// Returns the operations. For each channel: one for each command, and one for all
    /// events.
    fn operations(&self, commands: &[CommandSchema]) -> Value {
        let mut all = json!({});
        for (channel, messages) in &self.channels {
            let of = |message: &str| json!({ "$ref": format!("#/channels/{channel}/messages/{message}") });
            let at = json!({ "$ref": format!("#/channels/{channel}") });
            let mut receive = |name: &str, summary: &str, answers: &[&str]| {
                let answers: Vec<Value> = answers
                    .iter()
                    .map(|answer| of(&format!("answer.{answer}")))
                    .collect();
                all[format!("{channel}.{name}")] = json!({
                    "action": "receive",
                    "channel": at,
                    "summary": summary,
                    "messages": [of(&format!("command.{name}"))],
                    "reply": { "channel": at, "messages": answers },
                });
            };
            for command in commands {
                receive(command.name, command.summary, &[command.name, "error"]);
            }
            if messages.contains_key("command.ping") {
                let summary = "Keeps the connection open. Does not wake the room.";
                receive("ping", summary, &["ping"]);
            }
            let events: Vec<Value> = messages
                .keys()
                .filter(|name| name.starts_with("event."))
                .map(|name| of(name))
                .collect();
            all[format!("{channel}.events")] = json!({
                "action": "send",
                "channel": at,
                "summary": "Sends events.",
                "messages": events,
            });
        }
        all
    }
}

/// Returns the schema of the number in an answer.
fn ack() -> Value {
    json!({
        "description": "The `id` of the command.",
        "type": "integer",
        "minimum": 0,
        "maximum": u32::MAX,
    })
}

/// Returns the schema of the data of a command that must name its room.
fn in_a_room(data: &Value) -> Value {
    json!({
        "allOf": [
            data,
            {
                "anyOf": [
                    { "type": "string" },
                    {
                        "type": "object",
                        "required": ["roomId"],
                        "properties": { "roomId": { "type": "string" } },
                    },
                ],
            },
        ],
    })
}

/// Returns the data of a command with a room.
fn with_room(data: &Value) -> Value {
    let mut data = data.clone();
    data["roomId"] = "lobby".into();
    data
}

/// The stamp in the messages of an event.
#[derive(Clone, Copy)]
enum Meta<'a> {
    /// No message has one.
    None,
    /// A message may have one, with this schema.
    Optional(&'a Value),
    /// Every message has one, with this schema.
    Required(&'a Value),
}

/// Returns the schema of the arguments of an EVENT packet of the server.
fn arguments(name: &Value, data: &Value, meta: Meta<'_>) -> Value {
    let offset = json!({
        "type": "string",
        "description": "The offset of connection state recovery.",
    });
    // A client of connection state recovery receives the offset as the last argument.
    let (items, min, max) = match meta {
        Meta::None => (json!([name, data]), 2, 2),
        Meta::Required(meta) => (json!([name, data, meta, offset]), 3, 4),
        Meta::Optional(meta) => {
            let third = json!({ "anyOf": [meta, offset] });
            (json!([name, data, third, offset]), 2, 4)
        }
    };
    json!({
        "description": "The arguments of the EVENT packet.",
        "type": "array",
        "items": items,
        "minItems": min,
        "maxItems": max,
    })
}

fn channels(document: &Document, seq: &Value, epoch: &Value) -> Value {
    let framing = "A frame is UTF-8 text with one or more of the JSON objects, separated by `\\n`, in both directions. `ping` and `pong` are frames of their own.";
    let messages = |channel: &str| document.channels[channel].clone();
    let query = |properties: Value| json!({ "ws": { "method": "GET", "query": { "type": "object", "properties": properties } } });
    json!({
        ROOM: {
            "address": "/rooms/{room}/ws",
            "title": "The socket of a room",
            "description": format!("Connecting joins the room. The first event is `connected`. `roomId` may be left out. {framing}"),
            "parameters": {
                "room": {
                    "description": "The name of the room: 1 to 128 of `A-Z a-z 0-9 . _ : - @`, or `@` and a user id, percent-encoded.",
                    "examples": ["lobby", "@alice"],
                },
            },
            "messages": messages(ROOM),
            "bindings": query(json!({ "since": seq, "epoch": epoch, "history": seq })),
        },
        GATEWAY: {
            "address": "/ws",
            "title": "A socket for many rooms",
            "description": format!("The first event is `connected`. Every command that concerns a room must have `roomId`. {framing}"),
            "messages": messages(GATEWAY),
            "bindings": query(json!({})),
        },
        SOCKET_IO: {
            "address": "/socket.io/",
            "title": "Socket.IO, for many rooms",
            "description": "Socket.IO 5 on Engine.IO 4, over WebSocket or long-polling. The payloads are the arguments of EVENT and ACK packets. Every command that concerns a room must have `roomId`. `docs/socketio.md` describes connecting and recovery.",
            "messages": messages(SOCKET_IO),
            "bindings": query(json!({
                "EIO": { "const": "4" },
                "transport": { "enum": ["polling", "websocket"] },
                "sid": { "type": "string" },
            })),
        },
    })
}
