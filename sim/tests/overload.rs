//! A room whose host is short of memory.

use roomcast_proto::position::Position;
use roomcast_room::Frame;
use roomcast_room::service::Request;
use roomcast_sim::world::{Server, config};
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
