//! JSON Schemas of all messages between clients or services and the server. The OpenAPI
//! and AsyncAPI documents are generated from them by `cargo xtask docs`.
//!
//! Only for native tools: the Worker is built without the feature `schema`.
//!
//! | module | contents |
//! | --- | --- |
//! | [`values`] | values that occur in many places |
//! | [`logged`] | the events of a room's log |
//! | [`events`] | the events that the server writes itself |
//! | [`commands`] | the data of each command, and of its answer |
//! | [`requests`] | the bodies of HTTP requests |
//! | this module | generation |

use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value};

pub mod commands;
pub mod events;
pub mod logged;
pub mod requests;
pub mod values;

/// Creates a generator for the messages that the server sends. References lead to
/// `#/components/schemas`.
pub fn serialize(settings: SchemaSettings) -> SchemaGenerator {
    let mut settings = settings.for_serialize();
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    settings.into_generator()
}

/// Creates a generator for the messages that clients and services send. References lead
/// to `#/components/schemas`.
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
