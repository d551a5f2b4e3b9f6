//! What runs on the protocol layers in the conformance build (`make
//! conformance`), in place of the chat: it sends back what it gets, so that any
//! suite for Engine.IO 4 and Socket.IO 5 can look at the layers that ship.
//!
//! - Engine.IO: every message is sent back
//! - Socket.IO, namespaces `/` and `/custom`: on connecting, `auth` with what the
//!   client showed; `message` is answered by `message-back` with the same
//!   arguments, `message-with-ack` is acknowledged with its arguments

use super::{App, Frame, Hub, Up};
use engineioxide_core::Packet;
use roomcast_proto::time::Millis;
use serde_json::json;
use serde_json::value::RawValue;

const NAMESPACES: [&str; 2] = ["/", "/custom"];

#[derive(Default)]
pub struct Echo;

impl App for Echo {
    const KEEPS_ATTACHMENTS: bool = true;

    fn hear(&mut self, hub: &mut Hub, up: Up, _now: Millis) {
        match up {
            Up::Message { session, frame } => {
                let packet = match frame {
                    Frame::Text(text) => Packet::Message(text.into()),
                    Frame::Binary(bytes) => Packet::Binary(bytes),
                };
                hub.packet(session, packet);
            }
            Up::Connect {
                session, nsp, auth, ..
            } => {
                if !NAMESPACES.contains(&nsp.as_str()) {
                    return hub.refuse(session, &nsp, r#"{"message":"Invalid namespace"}"#);
                }
                let sid = json!({ "sid": hub.fresh_id() }).to_string();
                if !hub.accept(session, &nsp, None, sid) {
                    return;
                }
                hub.emit(session, &nsp, &format!(r#"["auth",{auth}]"#), Vec::new());
            }
            Up::Event {
                session,
                nsp,
                ack,
                args,
                attachments,
            } => {
                let Ok(args) = serde_json::from_str::<Vec<&RawValue>>(&args) else {
                    return;
                };
                let (Some(name), rest) = (args.first(), args.get(1..).unwrap_or_default()) else {
                    return;
                };
                let list = |first: Option<&str>| {
                    let args = first.into_iter().chain(rest.iter().map(|arg| arg.get()));
                    format!("[{}]", args.collect::<Vec<_>>().join(","))
                };
                match (name.get(), ack) {
                    (r#""message""#, _) => {
                        let args = list(Some(r#""message-back""#));
                        hub.emit(session, &nsp, &args, attachments);
                    }
                    (r#""message-with-ack""#, Some(ack)) => {
                        hub.acknowledge(session, &nsp, ack, &list(None), attachments);
                    }
                    _ => {}
                }
            }
            Up::Opened { .. } | Up::Frame { .. } | Up::Closed { .. } | Up::Disconnected { .. } => {}
        }
    }
}
