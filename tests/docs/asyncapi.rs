//! `docs/asyncapi.json`: the messages of sockets in AsyncAPI 3.0. The schemas come from
//! the types of `roomcast-proto`.

use super::json::pretty;
use roomcast_proto::answer::ErrorData;
use roomcast_proto::command::Command;
use roomcast_proto::framing::{PING, PONG};
use roomcast_proto::id::Epoch;
use roomcast_proto::schema::commands::{CommandSchema, commands};
use roomcast_proto::schema::events::server_events;
use roomcast_proto::schema::logged::{CustomEvent, NewMessage, NewMessageEvent, Stamp};
use roomcast_proto::schema::values::{CustomEventName, Seq};
use roomcast_proto::schema::{definitions, deserialize, serialize};
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

/// The protocol in which a message is encoded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Encoding {
    /// Lines of JSON objects.
    Native,
    /// Packets of Socket.IO.
    SocketIo,
}

/// Returns the document.
pub fn document() -> String {
    // The schemas of AsyncAPI are those of draft 7.
    let mut sent = serialize(SchemaSettings::draft07());
    let mut received = deserialize(SchemaSettings::draft07());
    let commands = commands(&mut received, &mut sent);
    let error = sent.subschema_for::<ErrorData>().to_value();
    let seq = received.subschema_for::<Seq>().to_value();
    let epoch = received.subschema_for::<Epoch>().to_value();

    let mut document = Document::default();
    for command in &commands {
        document.add_command(command);
    }
    document.add_refusal(&error);
    document.add(
        Encoding::Native,
        "command.ping",
        json!({
            "title": PING,
            "summary": "Keepalive. Sent as a frame of its own.",
            "contentType": "text/plain",
            "payload": { "const": PING },
        }),
    );
    document.add(
        Encoding::Native,
        "answer.ping",
        json!({
            "title": PONG,
            "summary": "The answer to `ping`. Sent as a frame of its own.",
            "contentType": "text/plain",
            "payload": { "const": PONG },
        }),
    );
    for (name, mut schema) in server_events(&mut sent) {
        let summary = schema["description"].take();
        let data = schema["properties"]["data"].take();
        document.add_event(&name, &summary, event_line(&name, &data), &data, None);
    }
    let stamp = sent.subschema_for::<Stamp>().to_value();
    let message = sent.subschema_for::<NewMessage>().to_value();
    let line = sent.subschema_for::<NewMessageEvent>().to_value();
    let any = json!({ "anyOf": [message, { "not": { "type": "object" } }] });
    let summary = json!("A chat message.");
    document.add_event("newMessage", &summary, line, &any, Some((&stamp, false)));
    let line = sent.subschema_for::<CustomEvent>().to_value();
    let name = sent.subschema_for::<CustomEventName>().to_value();
    let summary = json!("A custom event.");
    document.add_custom_event(&name, &summary, line, &stamp);

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

/// The messages, by the channels that have them.
#[derive(Default)]
struct Document {
    messages: Map<String, Value>,
    /// The names of the native messages.
    native: Vec<String>,
    /// The names of the messages of Socket.IO.
    socket_io: Vec<String>,
}

impl Document {
    fn add(&mut self, encoding: Encoding, name: &str, message: Value) {
        let name = match encoding {
            Encoding::Native => name.to_owned(),
            Encoding::SocketIo => format!("socketio.{name}"),
        };
        match encoding {
            Encoding::Native => self.native.push(name.clone()),
            Encoding::SocketIo => self.socket_io.push(name.clone()),
        }
        self.messages.insert(name, message);
    }

    /// Adds the answer to a refused command in both encodings.
    fn add_refusal(&mut self, error: &Value) {
        let title = "Answer to a refused command";
        self.add(
            Encoding::Native,
            "answer.error",
            json!({
                "title": title,
                "summary": "Sent if the command has an `id`. Without an `id`, the event `error` is sent.",
                "correlationId": { "location": "$message.payload#/ack" },
                "payload": {
                    "type": "object",
                    "required": ["ack", "error"],
                    "properties": { "ack": ack(), "error": error },
                },
            }),
        );
        self.add(
            Encoding::SocketIo,
            "answer.error",
            json!({
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
            }),
        );
    }

    /// Adds a command and its answer in both encodings.
    fn add_command(&mut self, command: &CommandSchema) {
        let CommandSchema { name, summary, .. } = command;
        let (data, answer) = (command.data.as_value(), command.answer.as_value());
        let needs_data = Command::parse(name, None).is_err();
        let id = json!({
            "description": "Asks for an answer with this number.",
            "type": ["integer", "null"],
            "minimum": 0,
            "maximum": u32::MAX,
        });
        let required = if needs_data {
            vec!["event", "data"]
        } else {
            vec!["event"]
        };
        let examples: Vec<Value> = command
            .examples
            .iter()
            .map(|data| json!({ "payload": { "event": name, "data": data, "id": 1 } }))
            .collect();
        self.add(
            Encoding::Native,
            &format!("command.{name}"),
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
                        "data": optional(data, needs_data),
                        "id": id,
                    },
                },
                "examples": examples,
            }),
        );
        self.add(
            Encoding::Native,
            &format!("answer.{name}"),
            json!({
                "title": format!("Answer to {name}"),
                "summary": "Sent if the command has an `id`.",
                "correlationId": { "location": "$message.payload#/ack" },
                "payload": {
                    "type": "object",
                    "required": ["ack", "data"],
                    "properties": { "ack": ack(), "data": answer },
                },
            }),
        );
        let examples: Vec<Value> = command
            .examples
            .iter()
            .map(|data| json!({ "payload": [name, data] }))
            .collect();
        self.add(
            Encoding::SocketIo,
            &format!("command.{name}"),
            json!({
                "name": name,
                "title": name,
                "summary": summary,
                "payload": {
                    "description": "The arguments of the EVENT packet.",
                    "type": "array",
                    "items": [{ "const": name }, optional(data, needs_data)],
                    "minItems": if needs_data { 2 } else { 1 },
                },
                "examples": examples,
            }),
        );
        self.add(
            Encoding::SocketIo,
            &format!("answer.{name}"),
            json!({
                "title": format!("Answer to {name}"),
                "summary": "Sent if the EVENT packet has an id.",
                "payload": {
                    "description": "The arguments of the ACK packet.",
                    "type": "array",
                    "items": [answer],
                    "minItems": 1,
                    "maxItems": 1,
                },
            }),
        );
    }

    /// Adds an event of the server in both encodings. `meta` is the schema of a stamp
    /// beside the data, and whether every such event has one.
    fn add_event(
        &mut self,
        name: &str,
        summary: &Value,
        line: Value,
        data: &Value,
        meta: Option<(&Value, bool)>,
    ) {
        self.add(
            Encoding::Native,
            &format!("event.{name}"),
            json!({ "name": name, "title": name, "summary": summary, "payload": line }),
        );
        let payload = arguments(&json!({ "const": name }), data, meta);
        self.add(
            Encoding::SocketIo,
            &format!("event.{name}"),
            json!({ "name": name, "title": name, "summary": summary, "payload": payload }),
        );
    }

    /// Adds custom events in both encodings.
    fn add_custom_event(&mut self, name: &Value, summary: &Value, line: Value, stamp: &Value) {
        self.add(
            Encoding::Native,
            "event.custom",
            json!({ "title": "Custom event", "summary": summary, "payload": line }),
        );
        let payload = arguments(name, &json!({}), Some((stamp, true)));
        self.add(
            Encoding::SocketIo,
            "event.custom",
            json!({ "title": "Custom event", "summary": summary, "payload": payload }),
        );
    }

    fn messages_of(&self, channel: &str) -> &[String] {
        match channel {
            "socketio" => &self.socket_io,
            _ => &self.native,
        }
    }

    /// Returns the operations. For each channel: one for each command, and one for all
    /// events.
    fn operations(&self, commands: &[CommandSchema]) -> Value {
        let mut all = json!({});
        for channel in ["room", "gateway", "socketio"] {
            let prefix = if channel == "socketio" {
                "socketio."
            } else {
                ""
            };
            let of = |message: &str| json!({ "$ref": format!("#/channels/{channel}/messages/{message}") });
            let at = json!({ "$ref": format!("#/channels/{channel}") });
            let mut receive = |name: &str, summary: &str, answers: &[&str]| {
                let answers: Vec<Value> = answers
                    .iter()
                    .map(|answer| of(&format!("{prefix}answer.{answer}")))
                    .collect();
                all[format!("{channel}.{name}")] = json!({
                    "action": "receive",
                    "channel": at,
                    "summary": summary,
                    "messages": [of(&format!("{prefix}command.{name}"))],
                    "reply": { "channel": at, "messages": answers },
                });
            };
            for command in commands {
                receive(command.name, command.summary, &[command.name, "error"]);
            }
            if channel != "socketio" {
                let summary = "Keeps the connection open. Does not wake the room.";
                receive("ping", summary, &["ping"]);
            }
            let events: Vec<Value> = self
                .messages_of(channel)
                .iter()
                .filter(|name| name.starts_with(&format!("{prefix}event.")))
                // The room's own socket is closed instead.
                .filter(|name| channel != "room" || *name != "event.roomClosed")
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

/// Returns the schema of the data of a command, which may be left out or be `null`
/// unless it is required.
fn optional(data: &Value, required: bool) -> Value {
    match required {
        true => data.clone(),
        false => json!({ "anyOf": [data, { "type": "null" }] }),
    }
}

/// Returns the schema of the arguments of an EVENT packet of the server.
fn arguments(name: &Value, data: &Value, meta: Option<(&Value, bool)>) -> Value {
    let offset = json!({
        "type": "string",
        "description": "The offset of connection state recovery.",
    });
    // A client of connection state recovery receives the offset as the last argument.
    let (items, min, max) = match meta {
        None => (json!([name, data]), 2, 2),
        Some((meta, true)) => (json!([name, data, meta, offset]), 3, 4),
        Some((meta, false)) => {
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
    let messages = |channel: &str| -> Map<String, Value> {
        let names = document.messages_of(channel).iter();
        names
            .filter(|name| channel != "room" || *name != "event.roomClosed")
            .map(|name| {
                let message = json!({ "$ref": format!("#/components/messages/{name}") });
                (name.clone(), message)
            })
            .collect()
    };
    let query = |properties: Value| json!({ "ws": { "method": "GET", "query": { "type": "object", "properties": properties } } });
    json!({
        "room": {
            "address": "/rooms/{room}/ws",
            "title": "The socket of a room",
            "description": format!("Connecting joins the room. The first event is `connected`. `roomId` may be left out. {framing}"),
            "parameters": {
                "room": {
                    "description": "The name of the room: 1 to 128 of `A-Z a-z 0-9 . _ : - @`.",
                    "examples": ["lobby", "@alice"],
                },
            },
            "messages": messages("room"),
            "bindings": query(json!({ "since": seq, "epoch": epoch, "history": seq })),
        },
        "gateway": {
            "address": "/ws",
            "title": "A socket for many rooms",
            "description": format!("The first event is `connected`. Every command that concerns a room must have `roomId`. {framing}"),
            "messages": messages("gateway"),
            "bindings": query(json!({})),
        },
        "socketio": {
            "address": "/socket.io/",
            "title": "Socket.IO, for many rooms",
            "description": "Socket.IO 5 on Engine.IO 4, over WebSocket or long-polling. The payloads are the arguments of EVENT and ACK packets. Every command that concerns a room must have `roomId`. `docs/socketio.md` describes connecting and recovery.",
            "messages": messages("socketio"),
            "bindings": query(json!({
                "EIO": { "const": "4" },
                "transport": { "enum": ["polling", "websocket"] },
                "sid": { "type": "string" },
            })),
        },
    })
}
