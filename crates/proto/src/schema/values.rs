//! Types for the schemas of values that occur in many places.

use crate::event_name::RESERVED;
use crate::id::EventName;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};
use std::borrow::Cow;

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
    Seq, {
        "type": "integer", "minimum": 0, "maximum": 9007199254740991u64,
        "description": "A sequence number. The events of a room have consecutive numbers from 1."
    }
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
    Time, {
        "type": "string",
        "format": "date-time",
        "description": "A time by RFC 3339, with milliseconds."
    }
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
    Code, {
        "enum": [
            "badRequest", "unauthorized", "forbidden", "notFound", "notJoined", "conflict",
            "tooLarge", "rateLimited", "methodNotAllowed", "upgradeRequired", "misconfigured",
            "internal", "unavailable"
        ],
        "description": "The codes of problems. They never change their meaning."
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
        json_schema!({
            "description": "The name of a custom event, or `newMessage`.",
            "anyOf": [{ "const": "newMessage" }, custom],
        })
    }
}

fn reserved() -> Vec<&'static str> {
    RESERVED
        .iter()
        .flat_map(|names| names.iter().copied())
        .collect()
}

/// Returns a schema that requires a property that is not `null`.
fn given(name: &str) -> Value {
    json!({ "required": [name], "properties": { name: { "not": { "type": "null" } } } })
}

/// Requires exactly one of the properties `userId` and `jti`.
pub fn one_of_user_id_and_jti(schema: &mut Schema) {
    schema.insert("oneOf".into(), json!([given("userId"), given("jti")]));
}

/// Requires exactly one of the properties `room` and `userId`, and an object as the data of
/// `newMessage`.
pub fn publication(schema: &mut Schema) {
    schema.insert("oneOf".into(), json!([given("room"), given("userId")]));
    schema.insert(
        "if".into(),
        json!({ "properties": { "event": { "const": "newMessage" } } }),
    );
    schema.insert(
        "then".into(),
        json!({ "properties": { "data": { "type": "object" } } }),
    );
}
