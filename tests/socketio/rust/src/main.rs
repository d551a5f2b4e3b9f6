//! The agent of `rust_socketio`. tests/socketio/clients/agents.mjs describes agents.
//!
//! The library connects to one namespace per connection, and does not connect again after the
//! server has disconnected it; then the agent opens a new client.

use rust_socketio::client::Client;
use rust_socketio::{ClientBuilder, Event, Payload, TransportType};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::BufRead;
use std::time::Duration;

/// How long the library waits for an answer.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A client of the tests: its namespaces with their connections.
struct Connections {
    open: Value,
    clients: HashMap<String, Client>,
}

fn main() {
    let mut connections: HashMap<u64, Connections> = HashMap::new();
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("a line of the test");
        let mut operation: Value = serde_json::from_str(&line).expect("JSON");
        let number = operation["client"]
            .as_u64()
            .expect("the number of a client");
        match operation["op"].as_str().expect("an operation") {
            "open" => {
                let clients = connect(number, &operation);
                let open = operation;
                connections.insert(number, Connections { open, clients });
            }
            "token" => {
                let own = connections.get_mut(&number).expect("an open client");
                own.open["token"] = operation["token"].take();
            }
            "connect" => {
                let own = connections.get_mut(&number).expect("an open client");
                own.clients = connect(number, &own.open);
            }
            "request" => request(number, &connections[&number], &operation),
            "emit" => {
                let client = client_of(&connections[&number], &operation);
                let sent = client.emit(event(&operation), data(&operation));
                warn("emit", sent);
            }
            "close" => {
                let own = connections.remove(&number).expect("an open client");
                for client in own.clients.into_values() {
                    warn("close", client.disconnect());
                }
            }
            other => panic!("unknown operation {other}"),
        }
    }
}

/// Connects to the namespaces of an `open` operation.
fn connect(number: u64, open: &Value) -> HashMap<String, Client> {
    let namespaces = open["nsps"].as_array().expect("namespaces");
    let mut clients = HashMap::new();
    for nsp in namespaces.iter().filter_map(Value::as_str) {
        match builder(number, open, nsp).connect() {
            Ok(client) => {
                clients.insert(nsp.to_owned(), client);
            }
            Err(error) => report(json!({
                "client": number, "nsp": nsp, "state": "error", "message": error.to_string(),
            })),
        }
    }
    clients
}

fn builder(number: u64, open: &Value, nsp: &str) -> ClientBuilder {
    let mut url = open["url"].as_str().expect("a URL").to_owned();
    for (name, value) in open["query"].as_object().into_iter().flatten() {
        let separator = if url.contains('?') { '&' } else { '?' };
        url += &format!("{separator}{name}={}", value.as_str().expect("text"));
    }
    let transport = match open["transports"].as_array().map(Vec::as_slice) {
        None => TransportType::Any,
        Some([only]) if only == "websocket" => TransportType::Websocket,
        Some([only]) if only == "polling" => TransportType::Polling,
        Some(other) => panic!("unknown transports {other:?}"),
    };
    let state = {
        let nsp = nsp.to_owned();
        move |name: &'static str| {
            let nsp = nsp.clone();
            move |payload: Payload, _: rust_socketio::RawClient| {
                let message = arguments(payload);
                report(json!({
                    "client": number, "nsp": nsp, "state": name, "message": message,
                }));
            }
        }
    };
    let received = nsp.to_owned();
    ClientBuilder::new(url)
        .namespace(nsp)
        .auth(json!({ "token": open["token"] }))
        .transport_type(transport)
        .reconnect(true)
        .reconnect_delay(50, 200)
        .on(Event::Connect, state("connect"))
        .on(Event::Close, state("disconnect"))
        .on(Event::Error, state("error"))
        .on_any(move |event, payload, _| {
            report(json!({
                "client": number, "nsp": received, "event": event.as_str(),
                "args": arguments(payload),
            }));
        })
}

fn client_of<'a>(connections: &'a Connections, operation: &Value) -> &'a Client {
    &connections.clients[operation["nsp"].as_str().expect("a namespace")]
}

fn request(number: u64, connections: &Connections, operation: &Value) {
    let id = operation["id"].clone();
    let answered = move |payload: Payload, _: rust_socketio::RawClient| {
        // The library passes the list of arguments as one argument.
        let answer = arguments(payload);
        report(json!({ "client": number, "id": id, "answer": answer[0] }));
    };
    let client = client_of(connections, operation);
    let sent = client.emit_with_ack(event(operation), data(operation), TIMEOUT, answered);
    warn("request", sent);
}

fn event(operation: &Value) -> &str {
    operation["event"].as_str().expect("the name of an event")
}

fn data(operation: &Value) -> Payload {
    Payload::Text(vec![operation["data"].clone()])
}

fn arguments(payload: Payload) -> Vec<Value> {
    match payload {
        Payload::Text(values) => values,
        other => vec![json!(format!("{other:?}"))],
    }
}

fn report(fields: Value) {
    println!("{fields}");
}

fn warn<E: std::fmt::Display>(what: &str, result: Result<(), E>) {
    if let Err(error) = result {
        eprintln!("{what}: {error}");
    }
}
