//! JSON Schemas of everything that clients and services exchange with the server. The
//! OpenAPI and AsyncAPI documents are generated from them by `cargo xtask docs`.
//!
//! Only for native tools: the Worker is built without the feature `schema`.
//!
//! | module | contents |
//! | --- | --- |
//! | [`commands`] | the data of each command, and of its answer |
//! | [`requests`] | the bodies of HTTP requests |
//! | this module | values that occur in many places, events, generation |

use crate::event::ServerEvent;
use crate::event_name::RESERVED;
use crate::id::{EventName, MessageId, RoomName, UserId};
use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema, json_schema};
use serde_json::{Map, Value, json};
use std::borrow::Cow;

pub mod commands;
pub mod requests;

/// Defines a type that stands for a JSON value with this schema.
macro_rules! value {
    ($(#[$doc:meta])* $name:ident, $schema:tt) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name;

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
    ($(#[$doc:meta])* inline $name:ident, $schema:tt) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name;

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

value!(
    /// A sequence number.
    Seq, { "type": "integer", "minimum": 0, "maximum": 9007199254740991u64 }
);

value!(
    /// A number of things, or a duration.
    inline Count, { "type": "integer", "minimum": 0 }
);

value!(
    /// A flag that is sent only if it is set.
    inline True, { "const": true }
);

value!(
    /// A time by RFC 3339.
    Time, { "type": "string", "format": "date-time" }
);

value!(
    /// A time in seconds since 1970.
    UnixTime, {
        "type": "integer",
        "minimum": 0,
        "description": "Seconds since 1970-01-01T00:00:00Z."
    }
);

value!(
    /// The id of a token.
    Jti, {
        "type": "string",
        "minLength": 1,
        "maxLength": 256,
        "description": "The claim `jti` of a token: 1 to 256 bytes."
    }
);

value!(
    /// Any JSON.
    inline Any, {}
);

value!(
    /// Any JSON but `null`.
    inline NotNull, { "not": { "type": "null" } }
);

value!(
    /// The codes of problems.
    ProblemCode, {
        "enum": [
            "badRequest", "unauthorized", "forbidden", "notFound", "notJoined", "conflict",
            "tooLarge", "rateLimited", "methodNotAllowed", "upgradeRequired", "misconfigured",
            "internal"
        ]
    }
);

/// The name of a custom event: one that is not reserved.
#[derive(Debug)]
pub struct CustomEventName;

impl JsonSchema for CustomEventName {
    fn schema_name() -> Cow<'static, str> {
        "CustomEventName".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = EventName::json_schema(generator);
        schema.insert("not".into(), json!({ "enum": reserved() }));
        schema.insert(
            "description".into(),
            "The name of a custom event. It is not the name of a command or of an event of this protocol.".into(),
        );
        schema
    }
}

/// The name of an event that a service publishes: a custom event, or `newMessage`.
#[derive(Debug)]
pub struct PublishedEventName;

impl JsonSchema for PublishedEventName {
    fn schema_name() -> Cow<'static, str> {
        "PublishedEventName".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let custom = generator.subschema_for::<CustomEventName>();
        json_schema!({ "anyOf": [{ "const": "newMessage" }, custom] })
    }
}

fn reserved() -> Vec<&'static str> {
    RESERVED
        .iter()
        .flat_map(|names| names.iter().copied())
        .collect()
}

/// The fields that the server adds to an event of a client or a service.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[allow(dead_code, reason = "describes the JSON that `push_envelope` writes")]
pub struct Stamp {
    /// The room.
    room_id: RoomName,
    /// The id of the event.
    message_id: MessageId,
    /// The sender.
    sender_id: UserId,
    /// The sequence number. Not set for a volatile event.
    #[schemars(default, with = "Seq")]
    seq: Option<u64>,
    /// The time at which the room accepted the event.
    #[schemars(with = "Time")]
    timestamp: String,
}

/// A chat message: the fields of the sender and the stamp of the server.
#[derive(Debug, JsonSchema)]
#[allow(dead_code, reason = "describes the JSON that `push_envelope` writes")]
pub struct NewMessage {
    /// The stamp of the server.
    #[schemars(flatten)]
    stamp: Stamp,
    /// The content of the message, any JSON.
    #[schemars(default, with = "Any")]
    content: Option<()>,
}

/// A chat message, as one object of the native framing.
#[derive(Debug)]
pub struct NewMessageEvent;

impl JsonSchema for NewMessageEvent {
    fn schema_name() -> Cow<'static, str> {
        "NewMessageEvent".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let data = generator.subschema_for::<NewMessage>();
        let meta = generator.subschema_for::<Stamp>();
        json_schema!({
            "description": "A chat message. It has `meta` if a service published it. A service may publish data that is not an object; then only `meta` has the stamp.",
            "type": "object",
            "required": ["event", "data"],
            "properties": { "event": { "const": "newMessage" }, "meta": meta },
            "anyOf": [
                { "properties": { "data": data } },
                {
                    "required": ["meta"],
                    "properties": { "data": { "not": { "type": "object" } } },
                },
            ],
        })
    }
}

/// A custom event, as one object of the native framing.
#[derive(Debug, JsonSchema)]
#[allow(dead_code, reason = "describes the JSON that `push_envelope` writes")]
pub struct CustomEvent {
    /// The name.
    #[schemars(with = "CustomEventName")]
    event: String,
    /// The data of the sender, any JSON.
    #[schemars(with = "Any")]
    data: (),
    /// The stamp of the server.
    meta: Stamp,
}

/// An event of a room's log.
#[derive(Debug, JsonSchema)]
#[schemars(untagged)]
#[allow(dead_code, reason = "describes the JSON that `push_envelope` writes")]
pub enum LoggedEvent {
    /// A chat message.
    Message(#[schemars(with = "NewMessageEvent")] ()),
    /// A custom event.
    Custom(CustomEvent),
}

/// Requires exactly one of the properties `userId` and `jti`.
pub fn one_of_user_id_and_jti(schema: &mut Schema) {
    schema.insert(
        "oneOf".into(),
        json!([{ "required": ["userId"] }, { "required": ["jti"] }]),
    );
}

/// Requires exactly one of the properties `room` and `userId`.
pub fn one_of_room_and_user_id(schema: &mut Schema) {
    schema.insert(
        "oneOf".into(),
        json!([{ "required": ["room"] }, { "required": ["userId"] }]),
    );
}

/// Returns the schema of each event of the server, by its name: an object with `event`
/// and `data`, and its description.
pub fn server_events(generator: &mut SchemaGenerator) -> Vec<(String, Value)> {
    let all = ServerEvent::json_schema(generator).to_value();
    let events = all["oneOf"].as_array().cloned().unwrap_or_default();
    events
        .into_iter()
        .map(|event| {
            let name = event["properties"]["event"]["const"].as_str();
            (name.unwrap_or_default().to_owned(), event)
        })
        .collect()
}

/// Returns the names of the events of the server.
pub fn server_event_names() -> Vec<String> {
    let mut generator = serialize(SchemaSettings::draft2020_12());
    server_events(&mut generator)
        .into_iter()
        .map(|(name, _)| name)
        .collect()
}

/// Creates a generator for what the server sends. References lead to
/// `#/components/schemas`.
pub fn serialize(settings: SchemaSettings) -> SchemaGenerator {
    let mut settings = settings.for_serialize();
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    settings.into_generator()
}

/// Creates a generator for what clients and services send. References lead to
/// `#/components/schemas`.
pub fn deserialize(settings: SchemaSettings) -> SchemaGenerator {
    let mut settings = settings.for_deserialize();
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    settings.into_generator()
}

/// Merges the definitions of both generators.
///
/// # Panics
///
/// Panics if both define a type differently.
pub fn definitions(mut sent: SchemaGenerator, mut received: SchemaGenerator) -> Map<String, Value> {
    let mut all = sent.take_definitions(true);
    for (name, schema) in received.take_definitions(true) {
        if let Some(other) = all.get(&name) {
            assert_eq!(other, &schema, "{name} has two schemas");
        }
        all.insert(name, schema);
    }
    all
}
