//! The events that the server writes itself.

use super::serialize;
use crate::event::ServerEvent;
use schemars::JsonSchema;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::Value;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event_name::is_reserved;

    #[test]
    fn custom_events_cannot_have_the_name_of_an_event_of_the_server() {
        let names = server_event_names();
        assert_eq!(names.len(), 10, "{names:?}");
        for name in names {
            assert!(is_reserved(&name), "{name}");
        }
    }
}
