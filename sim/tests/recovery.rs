//! Recovery of Socket.IO clients from their stored records.

use roomcast_gateway::{EngineServer, Frame, Gateway, Output, Protocol, SocketId};
use roomcast_proto::id::RoomName;
use roomcast_proto::link::Command;
use roomcast_sim::world::{NOW, config, connect_info, identity};
use serde_json::json;

/// Sends a frame of a client. Returns the outputs after its authentication.
fn send(gateway: &mut Gateway, socket: SocketId, frame: String) -> Vec<Output> {
    gateway.server.frame(socket, Frame::Text(frame), NOW);
    let mut outputs = gateway.settle(NOW);
    let authentications = outputs.extract_if(.., |it| matches!(it, Output::Authenticate(_)));
    for output in authentications.collect::<Vec<_>>() {
        if let Output::Authenticate(it) = output {
            gateway.authenticated(it.request, Ok(identity("alice")), NOW);
        }
    }
    outputs.extend(gateway.settle(NOW));
    outputs
}

/// The record has no rooms if the connection was lost before a room had accepted the client.
#[test]
fn a_client_without_rooms_is_recovered_at_once_and_joins_its_personal_room() {
    const PID: &str = "0-p";
    let engine = EngineServer::new("0".into(), config(&[]).gateway.clone(), || "id".into());
    let mut gateway = Gateway::new(engine);
    gateway.server.engine.set_now(NOW);
    let info = connect_info(Protocol::SocketIo, Some(identity("alice")));
    let socket = gateway.server.engine.open_socket(info, None, NOW);
    let socket = socket.expect("a socket");
    let auth = json!({ "pid": PID, "offset": null });
    let outputs = send(&mut gateway, socket, format!("40{auth}"));
    let find = outputs.into_iter().find_map(|output| match output {
        Output::Find { client, pid, .. } => Some((client, pid)),
        _ => None,
    });
    let (client, pid) = find.expect("the record is requested");
    assert_eq!(pid, PID);
    let record = json!({
        "id": "c1", "session": ["0-s", "/"], "sid": "shown", "pid": PID,
        "identity": identity("alice"), "status": "online", "version": 1, "tag": 1, "slots": [],
    });
    gateway.found(client, &pid, Some(record.to_string()), NOW);
    let outputs = gateway.settle(NOW);
    let accepted = outputs.iter().any(|output| {
        matches!(output, Output::Send { frame: Frame::Text(text), .. }
            if text.starts_with("40") && text.contains(PID))
    });
    assert!(
        accepted,
        "the client is recovered without a delivery of any room"
    );
    let commands = gateway.take_commands(&RoomName::trusted("@alice"));
    assert!(matches!(commands.as_deref(), Some([Command::Join { .. }])));
}
