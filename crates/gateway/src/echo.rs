//! The application of the conformance build (`make conformance`). It sends back all
//! messages and events that it receives, so that any test suite for Engine.IO 4 and
//! Socket.IO 5 can check the protocol layers.
//!
//! - Engine.IO: every message is sent back.
//! - Socket.IO, namespaces `/` and `/custom`: a client that connects receives the event
//!   `auth` with the `auth` of its CONNECT. `message` is answered by `message-back` with
//!   the same arguments. `message-with-ack` is acknowledged with its arguments.

use crate::frame::Frame;
use crate::ids::SessionId;
use crate::socketio::{ConnectionEvent, SocketIoServer};
use bytes::Bytes;
use engineioxide_core::Packet;
use serde_json::json;
use serde_json::value::RawValue;

const NAMESPACES: [&str; 2] = ["/", "/custom"];

/// Handles an event by sending it back.
pub(crate) fn handle_event(server: &mut SocketIoServer, event: ConnectionEvent) {
    match event {
        ConnectionEvent::Message { session, frame } => {
            let packet = match frame {
                Frame::Text(text) => Packet::Message(text.into()),
                Frame::Binary(bytes) => Packet::Binary(bytes),
            };
            server.engine.send_packet(session, packet);
        }
        ConnectionEvent::Connect {
            session, nsp, auth, ..
        } => connect(server, session, &nsp, &auth),
        ConnectionEvent::Event {
            session,
            nsp,
            ack,
            args,
            attachments,
        } => echo_event(server, session, &nsp, ack, &args, attachments),
        ConnectionEvent::Opened { .. }
        | ConnectionEvent::Frame { .. }
        | ConnectionEvent::Closed { .. }
        | ConnectionEvent::Unconnected { .. }
        | ConnectionEvent::Disconnected { .. } => {}
    }
}

fn connect(server: &mut SocketIoServer, session: SessionId, nsp: &str, auth: &str) {
    if !NAMESPACES.contains(&nsp) {
        return server.refuse(session, nsp, r#"{"message":"Invalid namespace"}"#);
    }
    let sid = json!({ "sid": server.engine.new_id() }).to_string();
    if server.accept(session, nsp, None, sid) {
        server.emit(session, nsp, &format!(r#"["auth",{auth}]"#), Vec::new());
    }
}

fn echo_event(
    server: &mut SocketIoServer,
    session: SessionId,
    nsp: &str,
    ack: Option<i64>,
    args: &str,
    attachments: Vec<Bytes>,
) {
    let Ok(args) = serde_json::from_str::<Vec<&RawValue>>(args) else {
        return;
    };
    let Some((name, rest)) = args.split_first() else {
        return;
    };
    let list = |first: Option<&str>| {
        let args = first.into_iter().chain(rest.iter().map(|arg| arg.get()));
        format!("[{}]", args.collect::<Vec<_>>().join(","))
    };
    match (name.get(), ack) {
        (r#""message""#, _) => {
            let args = list(Some(r#""message-back""#));
            server.emit(session, nsp, &args, attachments);
        }
        (r#""message-with-ack""#, Some(ack)) => {
            server.acknowledge(session, nsp, ack, &list(None), attachments);
        }
        _ => {}
    }
}
