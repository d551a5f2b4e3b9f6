//! A room whose host is short of memory.

use roomcast_proto::framing;
use roomcast_proto::id::ConnectionId;
use roomcast_proto::link::{Command, Push, Pushed};
use roomcast_proto::position::Position;
use roomcast_room::Frame;
use roomcast_room::service::Request;
use roomcast_sim::world::{self, Server, config};
use serde_json::json;

/// Returns the answer of a room to a publication. Returns `None` if the answer follows the
/// batch.
fn publish(server: &mut Server) -> Option<String> {
    let message = json!({ "event": "newMessage", "data": { "content": "x" } });
    let request = json!({ "Publish": { "sender": "s", "messages": [message] } });
    let request: Request = serde_json::from_value(request).expect("a request");
    server.serve(request)
}

#[test]
fn events_are_refused_while_the_host_is_short_of_memory() {
    let mut server = Server::new("r", config(&[]));
    server.connect("c", "alice", Position::default());
    server.settle();
    let command = r#"{"event":"sendMessage","data":{"content":"x"},"id":1}"#;

    server.room.set_overloaded(true);
    server.receive("c", Frame::Text(command));
    server.settle();
    assert_eq!(server.room.bounds().head, 0);
    let refused = publish(&mut server).expect("an error");
    assert!(refused.contains(r#""code":"unavailable""#), "{refused}");
    assert!(refused.contains("retryAfterMs"), "{refused}");

    server.room.set_overloaded(false);
    server.receive("c", Frame::Text(command));
    assert_eq!(publish(&mut server), None);
    server.settle();
    assert_eq!(server.room.bounds().head, 2);
}

#[test]
fn commands_of_gateways_are_refused_while_the_host_is_short_of_memory() {
    const GATEWAY: &str = "n0";
    let mut server = Server::new("r", config(&[]));
    let join = |user: &str| Command::Join {
        request: world::connect_request(user, user, Position::default()),
        id: Some(1),
        again: false,
    };
    let execute = |event: &str| {
        let line = json!({ "event": event, "data": {}, "id": 2 }).to_string();
        let incoming = framing::decode_line(&line);
        Command::Execute {
            connection: ConnectionId::trusted("alice"),
            id: incoming.id,
            command: incoming.command.expect("a command"),
        }
    };
    // Returns the texts of the next delivery.
    let answer = |server: &mut Server, commands: Vec<Command>| {
        server.handle_gateway(GATEWAY, commands);
        server.settle();
        server.start_deliveries();
        let body = server.take_delivery(GATEWAY, 0).expect("an answer");
        server.delivery_acknowledged(GATEWAY, &Pushed::default());
        Push::parse(&body).expect("a push").1.concat()
    };
    let joined = answer(&mut server, vec![join("alice")]);
    assert!(joined.contains(r#"{"ack":1,"data""#), "{joined}");

    server.room.set_overloaded(true);
    let refused = answer(&mut server, vec![join("bob"), execute("members")]);
    assert_eq!(refused.matches("rateLimited").count(), 2, "{refused}");
    assert_eq!(refused.matches("retryAfterMs").count(), 2, "{refused}");
    let left = answer(&mut server, vec![execute("leaveRoom")]);
    assert!(left.contains(r#"{"ack":2,"data""#), "{left}");

    server.room.set_overloaded(false);
    let joined = answer(&mut server, vec![join("bob")]);
    assert!(joined.contains(r#"{"ack":1,"data""#), "{joined}");
}
