//! Messages of sessions: packets and their attachments.

use super::event::{ConnectionEvent, DisconnectCause};
use super::packet::{decode, is_event};
use super::server::{Attachments, SocketIoServer};
use super::session::{PartialPacket, SocketIoSession};
use crate::frame::Frame;
use crate::ids::SessionId;
use crate::unsupported;
use bytes::Bytes;
use engineioxide_core::Packet as EnginePacket;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::error::Error;
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::time::Millis;
use serde::de::IgnoredAny;
use socketioxide_core::Value;
use socketioxide_core::packet::{Packet, PacketData};

/// Maximum number of characters of the name of a namespace in the log.
const MAX_LOGGED_NAMESPACE: usize = 64;

/// A packet that violates the protocol. Its session is closed.
pub(super) struct Malformed;

impl SocketIoServer {
    /// Handles a message of a session.
    pub(super) fn receive_message(&mut self, id: SessionId, frame: Frame, now: Millis) {
        if !self.sessions.contains_key(id) {
            // The session uses bare Engine.IO, or was closed.
            return self.push_event(ConnectionEvent::Message { session: id, frame });
        }
        let handled = match frame {
            Frame::Text(text) => self.receive_text(id, &text, now),
            Frame::Binary(bytes) => self.receive_attachment(id, bytes, now),
        };
        if let Err(Malformed) = handled {
            self.engine.close_session(id, Disconnect::Malformed);
        }
    }

    fn receive_text(&mut self, id: SessionId, text: &str, now: Millis) -> Result<(), Malformed> {
        let (packet, missing) = decode(text).ok_or(Malformed)?;
        let session = self.session_mut(id).ok_or(Malformed)?;
        if session.partial.is_some() {
            return Err(Malformed);
        }
        if missing == 0 {
            return self.receive_complete(id, packet, Vec::new(), now);
        }
        // Only connected namespaces receive events, so no attachments are collected for
        // other namespaces.
        if !session.is_connected(&packet.ns) {
            return self.unconnected(id, &packet.ns);
        }
        session.partial = Some(PartialPacket::new(packet, missing, now));
        self.schedule_recheck(id, now);
        Ok(())
    }

    fn receive_attachment(
        &mut self,
        id: SessionId,
        bytes: Bytes,
        now: Millis,
    ) -> Result<(), Malformed> {
        let limit = self.engine.config.max_payload;
        let keeps = self.attachments;
        let session = self.session_mut(id).ok_or(Malformed)?;
        let Some(partial) = session.partial.as_mut() else {
            return self.refuse_binary(id, now);
        };
        partial.bytes += bytes.len();
        partial.missing -= 1;
        if partial.bytes > limit {
            return Err(Malformed);
        }
        // Empty attachments are kept, because the application refuses events with
        // attachments.
        let kept = match keeps {
            Attachments::Keep => bytes,
            Attachments::Drop => Bytes::new(),
        };
        partial.attachments.push(kept);
        if partial.missing > 0 {
            return Ok(());
        }
        let complete = session.partial.take().ok_or(Malformed)?;
        self.receive_complete(id, complete.packet, complete.attachments, now)
    }

    /// Refuses a binary message that is not an attachment. A client with another parser sends
    /// its CONNECT like that. It receives an error that its parser can read, for all namespaces,
    /// because the name in its packet is not decoded.
    fn refuse_binary(&mut self, id: SessionId, now: Millis) -> Result<(), Malformed> {
        let session = self.session(id).ok_or(Malformed)?;
        if !session.namespaces.is_empty() || !session.connecting.is_empty() {
            return Err(Malformed);
        }
        if !self.count_connect(id, now)? {
            return Ok(());
        }
        let record = LogRecord::rejected(&Error::bad_request(unsupported::MSGPACK));
        self.engine.log_refusal(id, record);
        let config = self.engine.config.clone();
        let packets = config.namespaces.iter();
        for packet in
            packets.filter_map(|namespace| unsupported::msgpack_connect_error(&namespace.name))
        {
            let packet = EnginePacket::Binary(packet.into());
            self.engine.send_packet(id, packet);
        }
        Ok(())
    }

    /// Handles a packet whose attachments have all arrived.
    fn receive_complete(
        &mut self,
        id: SessionId,
        packet: Packet,
        attachments: Vec<Bytes>,
        now: Millis,
    ) -> Result<(), Malformed> {
        let nsp = packet.ns.to_string();
        match packet.inner {
            PacketData::Connect(auth) => {
                let auth = match auth {
                    Some(Value::Str(auth, _)) => auth.to_string(),
                    _ => "{}".into(),
                };
                self.receive_connect(id, nsp, auth, now)
            }
            PacketData::Disconnect => self.receive_disconnect(id, nsp),
            PacketData::Event(Value::Str(args, _), ack)
            | PacketData::BinaryEvent(Value::Str(args, _), ack) => {
                self.check_connected(id, &nsp)?;
                if !is_event(&args) {
                    return Err(Malformed);
                }
                self.push_event(ConnectionEvent::Event {
                    session: id,
                    nsp,
                    ack,
                    args: args.to_string(),
                    attachments,
                });
                Ok(())
            }
            // The gateway never requests acknowledgements, so they are dropped.
            PacketData::EventAck(Value::Str(args, _), _)
            | PacketData::BinaryAck(Value::Str(args, _), _) => {
                self.check_connected(id, &nsp)?;
                if self.engine.count_overhead(id, now) {
                    serde_json::from_str::<Vec<IgnoredAny>>(&args).map_err(|_| Malformed)?;
                }
                Ok(())
            }
            _ => Err(Malformed),
        }
    }

    /// Returns an error if the client is not connected to the namespace.
    fn check_connected(&mut self, id: SessionId, nsp: &str) -> Result<(), Malformed> {
        let session = self.session(id).ok_or(Malformed)?;
        match session.is_connected(nsp) {
            true => Ok(()),
            false => self.unconnected(id, nsp),
        }
    }

    /// Reports a packet to a namespace that the client is not connected to. The application logs
    /// it, because it knows the client.
    fn unconnected(&mut self, id: SessionId, nsp: &str) -> Result<(), Malformed> {
        if self.engine.mark_refusal_logged(id) {
            let nsp = nsp.chars().take(MAX_LOGGED_NAMESPACE).collect();
            self.push_event(ConnectionEvent::Unconnected { session: id, nsp });
        }
        Err(Malformed)
    }

    fn receive_disconnect(&mut self, id: SessionId, nsp: String) -> Result<(), Malformed> {
        let session = self.session_mut(id).ok_or(Malformed)?;
        let SocketIoSession {
            namespaces,
            connecting,
            ..
        } = session;
        if let Some(index) = namespaces.iter().position(|one| one.name == nsp) {
            namespaces.remove(index);
            self.authentication_changed(id);
            self.attach(id);
        } else {
            // The client cancels its CONNECT before it was answered.
            let index = connecting.iter().position(|connect| connect.nsp == nsp);
            connecting.remove(index.ok_or(Malformed)?);
            self.start_connects(id);
        }
        self.push_event(ConnectionEvent::Disconnected {
            session: id,
            nsp,
            cause: DisconnectCause::Packet,
        });
        Ok(())
    }
}
