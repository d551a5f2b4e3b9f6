//! Checks the traffic of the tests against the generated documents: sockets against
//! `docs/asyncapi.json`, HTTP against `src/http/openapi.json`. A violation panics with
//! the document, the schema and the JSON.
//!
//! The documents allow further fields, so that they can be added later. Here, the server
//! must not send any field that the documents do not have.

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
    /// The document and the place in it, for the message of a violation.
    name: String,
    validator: Validator,
}

impl Schema {
    /// Compiles a schema whose references lead to `components`.
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

/// Forbids fields that the schema does not list, unless it says that it allows them.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(keywords) => {
            if keywords.get("type") == Some(&json!("object")) {
                keywords
                    .entry("additionalProperties")
                    .or_insert(json!(false));
            }
            for (keyword, value) in keywords {
                // `not` would accept more, and the others contain values.
                if !["not", "const", "enum", "default", "examples"].contains(&keyword.as_str()) {
                    close(value);
                }
            }
        }
        Value::Array(schemas) => schemas.iter_mut().for_each(close),
        _ => {}
    }
}

fn closed(schema: &Value) -> Value {
    let mut closed = schema.clone();
    close(&mut closed);
    closed
}

/// The messages of the AsyncAPI document, by their channels and their names.
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

    fn get(&self, channel: &str, message: &str) -> Option<&Schema> {
        self.0.get(&(channel.to_owned(), message.to_owned()))
    }

    /// Panics if there is no such message, or if `value` does not match it.
    fn check(&self, channel: &str, message: &str, value: &Value) {
        self.get(channel, message)
            .unwrap_or_else(|| {
                panic!("docs/asyncapi.json does not have {message} of {channel}: {value}")
            })
            .check(value);
    }
}

/// The messages of one connection. It remembers the commands that are not answered yet,
/// because an accepted command must match its schema, and an answer that of its command.
#[derive(Debug)]
pub(crate) struct Conversation {
    /// The channel of the AsyncAPI document.
    channel: &'static str,
    /// The commands with an id that are not answered, by their ids.
    sent: HashMap<u32, VecDeque<(String, Value)>>,
}

impl Conversation {
    /// A native connection to a path.
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

    /// A connection of Socket.IO. Its payloads are the arguments of packets.
    pub(crate) fn socket_io() -> Self {
        Conversation {
            channel: "socketio",
            sent: HashMap::new(),
        }
    }

    /// Checks a frame of the native framing that a client is about to send. Lines with an
    /// id are checked when the server accepts them.
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

    /// Checks a line of the native framing. `value` is the parsed line, if it can be
    /// parsed.
    pub(crate) fn receives_line(&mut self, line: &str, value: Option<&Value>) {
        let Some(value) = value else {
            // JSON may have numbers and lone surrogates that serde_json does not hold.
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

    /// Checks an answer, and the command if it was accepted.
    pub(crate) fn receives_answer(&mut self, id: u32, payload: &Value, is_error: bool) {
        let sent = self.sent.get_mut(&id).and_then(VecDeque::pop_front);
        if is_error {
            return SOCKETS.check(self.channel, "answer.error", payload);
        }
        // Frames that are not UTF-8 are not remembered.
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
    /// By the status.
    responses: HashMap<u16, Response>,
}

struct Response {
    /// By the content type.
    bodies: HashMap<String, Schema>,
    /// Name, whether it is required, and schema of its text.
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
                        // The text of an integer is compared as text.
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

/// Checks a response, and the body of the request if the server accepted it. Routes that
/// the document does not have may answer anything but a malformed problem.
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
    // JSON that serde_json does not hold is not checked.
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
    // An upgrade has no body, nor has the answer to a preflight request.
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

/// Replaces the messages of a batch that the server refused by one that it accepted.
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
        // A command that is refused need not match its schema.
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
    fn an_answer_must_be_that_of_its_command() {
        let mut native = Conversation::native("/rooms/r/ws");
        native.sends_frame(r#"{"event":"setPresence","data":{"status":"away"},"id":1}"#);
        receive(&mut native, r#"{"ack":1,"data":{"seq":1}}"#);
    }

    #[test]
    #[should_panic(expected = "messages/command.setPresence/payload")]
    fn a_command_that_is_accepted_must_match_its_schema() {
        let mut native = Conversation::native("/rooms/r/ws");
        native.sends_frame(r#"{"event":"setPresence","data":{"status":"gone"},"id":1}"#);
        receive(&mut native, r#"{"ack":1,"data":{"status":"away"}}"#);
    }

    #[test]
    #[should_panic(expected = "does not have 418 of GET /healthz")]
    fn a_status_that_is_not_documented_is_a_violation() {
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
