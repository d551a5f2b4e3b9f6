//! The application of the conformance build (`make conformance`). It sends back what it
//! receives, so that any test suite for Engine.IO 4 and Socket.IO 5 can check the
//! protocol layers.
//!
//! - Engine.IO: every message is sent back.
//! - Socket.IO, namespaces `/` and `/custom`: a client that connects receives `auth` with
//!   what it sent as `auth`. `message` is answered by `message-back` with the same
//!   arguments. `message-with-ack` is acknowledged with its arguments.

use crate::app::App;
use crate::engine::EngineServer;
use crate::event::EngineEvent;
use crate::ids::SessionId;
use crate::output::Frame;
use bytes::Bytes;
use engineioxide_core::Packet;
use roomcast_proto::time::Millis;
use serde_json::json;
use serde_json::value::RawValue;

const NAMESPACES: [&str; 2] = ["/", "/custom"];

/// The application that sends back what it receives.
#[derive(Debug, Default)]
pub struct Echo;

impl App for Echo {
    const KEEPS_ATTACHMENTS: bool = true;

    fn handle_event(&mut self, engine: &mut EngineServer, event: EngineEvent, _now: Millis) {
        match event {
            EngineEvent::Message { session, frame } => {
                let packet = match frame {
                    Frame::Text(text) => Packet::Message(text.into()),
                    Frame::Binary(bytes) => Packet::Binary(bytes),
                };
                engine.send_packet(session, packet);
            }
            EngineEvent::Connect {
                session, nsp, auth, ..
            } => connect(engine, session, &nsp, &auth),
            EngineEvent::Event {
                session,
                nsp,
                ack,
                args,
                attachments,
            } => echo_event(engine, session, &nsp, ack, &args, attachments),
            EngineEvent::Opened { .. }
            | EngineEvent::Frame { .. }
            | EngineEvent::Closed { .. }
            | EngineEvent::Disconnected { .. } => {}
        }
    }
}

fn connect(engine: &mut EngineServer, session: SessionId, nsp: &str, auth: &str) {
    if !NAMESPACES.contains(&nsp) {
        return engine.refuse(session, nsp, r#"{"message":"Invalid namespace"}"#);
    }
    let sid = json!({ "sid": engine.new_id() }).to_string();
    if engine.accept(session, nsp, None, sid) {
        engine.emit(session, nsp, &format!(r#"["auth",{auth}]"#), Vec::new());
    }
}

fn echo_event(
    engine: &mut EngineServer,
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
            engine.emit(session, nsp, &args, attachments);
        }
        (r#""message-with-ack""#, Some(ack)) => {
            engine.acknowledge(session, nsp, ack, &list(None), attachments);
        }
        _ => {}
    }
}
