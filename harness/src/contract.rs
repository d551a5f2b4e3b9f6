//! Checks the traffic of the tests against the generated documents: sockets against
//! `docs/asyncapi.json`, HTTP against `src/http/openapi.json`. A violation panics with
//! the document, the schema and the JSON.
//!
//! The documents allow unknown fields, so that fields can be added later. This module
//! is stricter: a field that the documents do not list is a violation.

use jsonschema::{Draft, Validator};
use reqwest::header::HeaderMap;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::collections::{HashMap, VecDeque};
use std::sync::LazyLock;

static SOCKETS: LazyLock<Sockets> = LazyLock::new(Sockets::compile);
static HTTP: LazyLock<Http> = LazyLock::new(Http::compile);

/// A schema of a document, ready to validate.
#[derive(Debug)]
struct Schema {
    /// The document and the path of the schema in it, for the panic message.
    name: String,
    validator: Validator,
}

impl Schema {
    /// Compiles a schema. Its references are resolved in `components`.
    fn compile(name: String, draft: Draft, schema: &Value, components: &Value) -> Self {
        let root = json!({ "allOf": [schema], "components": { "schemas": components } });
        let validator = jsonschema::options()
            .with_draft(draft)
            .should_validate_formats(true)
            .build(&root)
            .unwrap_or_else(|error| panic!("{name} is not a schema: {error}"));
        Schema { name, validator }
    }

    /// Panics if `value` does not match the schema.
    fn check(&self, value: &Value) {
        if let Err(error) = self.validator.validate(value) {
            let path = error.instance_path().to_string();
            let error: String = error.to_string().chars().take(500).collect();
            let value: String = value.to_string().chars().take(2_000).collect();
            panic!(
                "traffic violates {}: at `{path}`: {error}\n{value}",
                self.name
            );
        }
    }
}

/// Forbids fields that the schema does not list, unless the schema sets `additionalProperties`.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(keywords) => {
            if keywords.get("type") == Some(&json!("object")) {
                keywords
                    .entry("additionalProperties")
                    .or_insert(json!(false));
            }
            for (keyword, value) in keywords {
                // A stricter schema in `not` would accept more. The other keywords
                // contain values, not schemas.
                if !["not", "const", "enum", "default", "examples"].contains(&keyword.as_str()) {
                    close(value);
                }
            }
        }
        Value::Array(schemas) => schemas.iter_mut().for_each(close),
        _ => {}
    }
}

/// Returns a copy of the schema that forbids fields that it does not list.
fn closed(schema: &Value) -> Value {
    let mut closed = schema.clone();
    close(&mut closed);
    closed
}

/// The schemas of the messages in the AsyncAPI document, by channel and message name.
struct Sockets(HashMap<(String, String), Schema>);

impl Sockets {
    fn compile() -> Self {
        let document: Value =
            serde_json::from_str(include_str!("../../docs/asyncapi.json")).expect("JSON");
        let open = &document["components"]["schemas"];
        let strict = closed(open);
        let mut all = HashMap::new();
        for (channel, item) in fields(&document["channels"]) {
            for (name, reference) in fields(&item["messages"]) {
                let reference = reference["$ref"].as_str().expect("a reference");
                let message = document.pointer(reference.trim_start_matches('#'));
                let payload = &message.expect("a message")["payload"];
                let place = format!("docs/asyncapi.json{reference}/payload");
                let schema = match name.starts_with("command.") {
                    true => Schema::compile(place, Draft::Draft7, payload, open),
                    false => Schema::compile(place, Draft::Draft7, &closed(payload), &strict),
                };
                all.insert((channel.clone(), name.clone()), schema);
            }
        }
        Sockets(all)
    }

    /// Returns the schema of a message, if the document has the message.
    fn get(&self, channel: &str, message: &str) -> Option<&Schema> {
        self.0.get(&(channel.to_owned(), message.to_owned()))
    }

    /// Panics if the document does not have the message, or if `value` does not match
    /// its schema.
    fn check(&self, channel: &str, message: &str, value: &Value) {
        self.get(channel, message)
            .unwrap_or_else(|| {
                panic!("docs/asyncapi.json does not have {message} of {channel}: {value}")
            })
            .check(value);
    }
}

/// Checks the messages of one connection. Remembers each command until it is answered,
/// because an accepted command must match its schema and the answer depends on the
/// command.
#[derive(Debug)]
pub(crate) struct Conversation {
    /// The channel of the AsyncAPI document.
    channel: &'static str,
    /// The name and the payload of each unanswered command, by command id.
    sent: HashMap<u32, VecDeque<(String, Value)>>,
}

impl Conversation {
    /// Returns a checker for a native connection to `path`.
    pub(crate) fn native(path: &str) -> Self {
        let channel = if path.starts_with("/ws") {
            "gateway"
        } else {
            "room"
        };
        Conversation {
            channel,
            sent: HashMap::new(),
        }
    }

    /// Returns a checker for a Socket.IO connection. Its payloads are the argument
    /// lists of packets.
    pub(crate) fn socket_io() -> Self {
        Conversation {
            channel: "socketio",
            sent: HashMap::new(),
        }
    }

    /// Remembers the commands with an id in a frame that a client is about to send.
    /// They are checked when the server accepts them.
    pub(crate) fn sends_frame(&mut self, frame: &str) {
        for line in frame.split('\n') {
            let Ok(line) = serde_json::from_str::<Value>(line) else {
                continue;
            };
            let id = line["id"].as_u64().and_then(|id| u32::try_from(id).ok());
            let event = line["event"].as_str().map(str::to_owned);
            if let (Some(id), Some(event)) = (id, event) {
                self.sends(id, &event, line);
            }
        }
    }

    /// Remembers a command with an id until it is answered.
    pub(crate) fn sends(&mut self, id: u32, event: &str, payload: Value) {
        let sent = self.sent.entry(id).or_default();
        sent.push_back((event.to_owned(), payload));
    }

    /// Checks a command without an id, which the server must accept.
    pub(crate) fn sends_valid(&self, event: &str, payload: &Value) {
        SOCKETS.check(self.channel, &format!("command.{event}"), payload);
    }

    /// Checks a received line of the native framing. `value` is the parsed line, or
    /// `None` if serde_json cannot parse it.
    pub(crate) fn receives_line(&mut self, line: &str, value: Option<&Value>) {
        let Some(value) = value else {
            // serde_json cannot represent some valid JSON: very large numbers and
            // lone surrogates. Such lines are not checked.
            let is_json = || serde_json::from_str::<&RawValue>(line).is_ok();
            if !is_json() {
                SOCKETS.check(self.channel, "answer.ping", &Value::from(line));
            }
            return;
        };
        match value["ack"].as_u64().and_then(|id| u32::try_from(id).ok()) {
            Some(id) => self.receives_answer(id, value, value.get("error").is_some()),
            None => self.receives_event(value["event"].as_str(), value),
        }
    }

    /// Checks an answer. If it accepts the command, checks the command as well.
    pub(crate) fn receives_answer(&mut self, id: u32, payload: &Value, is_error: bool) {
        let sent = self.sent.get_mut(&id).and_then(VecDeque::pop_front);
        if is_error {
            return SOCKETS.check(self.channel, "answer.error", payload);
        }
        // Commands in frames that are not UTF-8 were not remembered.
        if let Some((event, command)) = sent {
            SOCKETS.check(self.channel, &format!("command.{event}"), &command);
            SOCKETS.check(self.channel, &format!("answer.{event}"), payload);
        }
    }

    /// Checks an event.
    pub(crate) fn receives_event(&self, event: Option<&str>, payload: &Value) {
        let name = format!("event.{}", event.unwrap_or_default());
        match SOCKETS.get(self.channel, &name) {
            Some(schema) => schema.check(payload),
            None => SOCKETS.check(self.channel, "event.custom", payload),
        }
    }
}

/// The operations of the OpenAPI document.
struct Http {
    operations: Vec<Operation>,
    /// The schema of each `application/problem+json`.
    problem: Schema,
}

struct Operation {
    method: String,
    path: Vec<String>,
    request: Option<Schema>,
    /// The responses by status code.
    responses: HashMap<u16, Response>,
}

struct Response {
    /// The schemas of the body by content type. Empty if there is no body.
    bodies: HashMap<String, Schema>,
    /// For each header: its name, whether it is required, and the schema of its
    /// text.
    headers: Vec<(String, bool, Schema)>,
}

impl Http {
    fn compile() -> Self {
        let document: Value =
            serde_json::from_str(include_str!("../../src/http/openapi.json")).expect("JSON");
        let open = &document["components"]["schemas"];
        let strict = closed(open);
        let compile = |place: &str, schema: &Value, components: &Value| {
            let name = format!("src/http/openapi.json: {place}");
            Schema::compile(name, Draft::Draft202012, schema, components)
        };
        let mut operations = Vec::new();
        for (path, item) in fields(&document["paths"]) {
            for (method, operation) in fields(item) {
                if method == "parameters" {
                    continue;
                }
                let method = method.to_uppercase();
                let content = &operation["requestBody"]["content"]["application/json"];
                let request = content
                    .get("schema")
                    .map(|schema| compile(&format!("body of {method} {path}"), schema, open));
                let mut responses = HashMap::new();
                for (status, response) in fields(&operation["responses"]) {
                    let response = match response["$ref"].as_str() {
                        Some(reference) => document
                            .pointer(reference.trim_start_matches('#'))
                            .expect("a response"),
                        None => response,
                    };
                    let place = format!("{status} of {method} {path}");
                    let bodies = fields(&response["content"]).map(|(kind, content)| {
                        let schema = closed(&content["schema"]);
                        (kind.clone(), compile(&place, &schema, &strict))
                    });
                    let headers = fields(&response["headers"]).map(|(name, header)| {
                        let mut schema = header["schema"].clone();
                        // A header is text, so an integer is checked by a pattern.
                        if schema["type"] == "integer" {
                            schema = json!({ "type": "string", "pattern": "^[0-9]+$" });
                        }
                        let schema = compile(&format!("{name}, {place}"), &schema, &strict);
                        (name.clone(), header["required"] == true, schema)
                    });
                    let response = Response {
                        bodies: bodies.collect(),
                        headers: headers.collect(),
                    };
                    responses.insert(status.parse().expect("a status"), response);
                }
                operations.push(Operation {
                    method,
                    path: path.split('/').map(str::to_owned).collect(),
                    request,
                    responses,
                });
            }
        }
        let problem = compile("Problem", &strict["Problem"], &strict);
        Http {
            operations,
            problem,
        }
    }

    /// Returns the operation of a request, if the document has one.
    fn operation(&self, method: &str, path: &str) -> Option<&Operation> {
        let (path, _query) = path.split_once('?').unwrap_or((path, ""));
        let segments: Vec<&str> = path.split('/').collect();
        self.operations.iter().find(|operation| {
            let template = &operation.path;
            operation.method == method
                && template.len() == segments.len()
                && template
                    .iter()
                    .zip(&segments)
                    .all(|(expected, segment)| expected.starts_with('{') || expected == segment)
        })
    }
}

/// Returns the fields of an object. Empty for any other value.
fn fields(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

impl Operation {
    /// Returns the response with this status. Panics if the document has none.
    fn response(&self, status: u16) -> &Response {
        self.responses.get(&status).unwrap_or_else(|| {
            let (method, path) = (&self.method, self.path.join("/"));
            panic!("src/http/openapi.json does not have {status} of {method} {path}")
        })
    }
}

/// Checks the status of a response whose body is not known.
pub(crate) fn check_status(method: &str, path: &str, status: u16) {
    if let Some(operation) = HTTP.operation(method, path) {
        operation.response(status);
    }
}

/// Checks a response. If the server accepted the request, checks the body of the
/// request as well. For a route that the document does not have, checks only
/// `application/problem+json` bodies.
pub(crate) fn check_exchange(
    method: &str,
    path: &str,
    request: Option<&[u8]>,
    status: u16,
    headers: &HeaderMap,
    text: &str,
) {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let kind = header("content-type").unwrap_or_default();
    let (kind, _charset) = kind.split_once(';').unwrap_or((kind, ""));
    // Valid JSON that serde_json cannot represent is not checked.
    let body = match kind.ends_with("json") {
        true => serde_json::from_str(text).ok(),
        false => Some(Value::from(text)),
    };
    let Some(operation) = HTTP.operation(method, path) else {
        if let ("application/problem+json", Some(body)) = (kind, &body) {
            HTTP.problem.check(body);
        }
        return;
    };
    let response = operation.response(status);
    for (name, required, schema) in &response.headers {
        match header(name) {
            Some(value) => schema.check(&Value::from(value)),
            None => assert!(!required, "{} is missing", schema.name),
        }
    }
    // Responses to upgrades and to preflight requests have no body.
    if response.bodies.is_empty() {
        return;
    }
    let schema = response.bodies.get(kind).unwrap_or_else(|| {
        panic!(
            "src/http/openapi.json does not have `{kind}` for {status} of {method} {path}: {text}"
        )
    });
    if let Some(body) = &body {
        schema.check(body);
    }
    let request = request.and_then(|bytes| serde_json::from_slice(bytes).ok());
    if let (200..300, Some(schema), Some(mut request)) = (status, &operation.request, request) {
        if let Some(results) = body.as_ref().and_then(|body| body["results"].as_array()) {
            remove_refused(&mut request, results);
        }
        schema.check(&request);
    }
}

/// Replaces each refused message of a batch by a valid message, because only the
/// accepted messages must match the schema.
fn remove_refused(request: &mut Value, results: &[Value]) {
    let valid = json!({ "event": "x", "data": null, "room": "x" });
    let messages = request["messages"].as_array_mut().into_iter().flatten();
    for (message, result) in messages.zip(results) {
        if result.get("error").is_some() {
            *message = valid.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(conversation: &mut Conversation, line: &str) {
        let value: Option<Value> = serde_json::from_str(line).ok();
        conversation.receives_line(line, value.as_ref());
    }

    #[test]
    fn valid_traffic_passes() {
        let mut native = Conversation::native("/rooms/r/ws");
        native.sends_frame(
            "ping\n{\"event\":\"setPresence\",\"data\":{\"status\":\"away\"},\"id\":1}",
        );
        receive(&mut native, "pong");
        receive(&mut native, r#"{"ack":1,"data":{"status":"away"}}"#);
        receive(
            &mut native,
            r#"{"event":"userLeft","data":{"roomId":"r","userId":"u"}}"#,
        );
        // A refused command need not match its schema.
        native.sends_frame(r#"{"event":"setPresence","data":7,"id":2}"#);
        let refused = r#"{"ack":2,"error":{"code":"badRequest","message":"m"}}"#;
        receive(&mut native, refused);
    }

    #[test]
    #[should_panic(expected = "docs/asyncapi.json#/components/messages/event.userLeft/payload")]
    fn an_event_with_an_unknown_field_is_a_violation() {
        let line = r#"{"event":"userLeft","data":{"roomId":"r","userId":"u","x":1}}"#;
        receive(&mut Conversation::native("/rooms/r/ws"), line);
    }

    #[test]
    #[should_panic(expected = "messages/event.custom/payload")]
    fn an_event_without_a_stamp_is_a_violation() {
        receive(
            &mut Conversation::native("/rooms/r/ws"),
            r#"{"event":"news","data":1}"#,
        );
    }

    #[test]
    #[should_panic(expected = "messages/answer.setPresence/payload")]
    fn an_answer_must_match_the_answer_schema_of_its_command() {
        let mut native = Conversation::native("/rooms/r/ws");
        native.sends_frame(r#"{"event":"setPresence","data":{"status":"away"},"id":1}"#);
        receive(&mut native, r#"{"ack":1,"data":{"seq":1}}"#);
    }

    #[test]
    #[should_panic(expected = "messages/command.setPresence/payload")]
    fn an_accepted_command_must_match_its_schema() {
        let mut native = Conversation::native("/rooms/r/ws");
        native.sends_frame(r#"{"event":"setPresence","data":{"status":"gone"},"id":1}"#);
        receive(&mut native, r#"{"ack":1,"data":{"status":"away"}}"#);
    }

    #[test]
    #[should_panic(expected = "does not have 418 of GET /healthz")]
    fn an_undocumented_status_is_a_violation() {
        check_status("GET", "/healthz?x=1", 418);
    }

    #[test]
    #[should_panic(expected = "201 of PUT /rooms/{room}/members/{user}")]
    fn a_response_must_match_its_schema() {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", "application/json".parse().expect("a type"));
        let text = r#"{"delivered":0}"#;
        check_exchange("PUT", "/rooms/a/members/b", None, 201, &headers, text);
    }
}
