//! Events and acknowledgements to clients.

use super::packet::value;
use super::server::SocketIoServer;
use crate::ids::SessionId;
use bytes::Bytes;
use engineioxide_core::Packet as EnginePacket;
use socketioxide_core::Value;
use socketioxide_core::packet::Packet;
use socketioxide_core::parser::Parse;
use socketioxide_parser_common::CommonParser;

impl SocketIoServer {
    /// Sends an event. `args` is a JSON list that begins with the name of the event.
    pub fn emit(&mut self, id: SessionId, nsp: &str, args: &str, attachments: Vec<Bytes>) {
        let value = value(args, attachments);
        self.encode_and_send(id, Packet::event(nsp.to_owned(), value));
    }

    /// Sends an acknowledgement: the answer to the event with this `ack` id. `args` is a
    /// JSON list.
    pub fn acknowledge(
        &mut self,
        id: SessionId,
        nsp: &str,
        ack: i64,
        args: &str,
        attachments: Vec<Bytes>,
    ) {
        let value = value(args, attachments);
        self.encode_and_send(id, Packet::ack(nsp.to_owned(), value, ack));
    }

    pub(super) fn encode_and_send(&mut self, id: SessionId, packet: Packet) {
        if let Value::Str(text, attachments) = CommonParser.encode(packet) {
            self.engine.send_packet(id, EnginePacket::Message(text));
            for bytes in attachments.into_iter().flatten() {
                self.engine.send_packet(id, EnginePacket::Binary(bytes));
            }
        }
    }
}
