//! The records that are attached to sockets and survive hibernation.
//!
//! Sockets survive hibernation, memory does not. [`crate::Output::Attach`] attaches a
//! [`Record`] to a socket; [`SocketIoServer::restore_socket`] reads it. A later version
//! reads the records of an earlier one, so their JSON must not change: fields are only
//! added, with a default.
//!
//! A record contains the state of both layers: the Engine.IO session and its
//! namespaces.

use super::server::SocketIoServer;
use super::session::SocketIoSession;
use crate::connect_info::{ConnectInfo, Protocol};
use crate::ids::{SessionId, SocketId};
use crate::output::Output;
use roomcast_proto::reader;
use roomcast_proto::time::Millis;
use serde::{Deserialize, Serialize};

/// The record that is attached to a socket.
#[derive(Debug, Serialize, Deserialize)]
enum Record {
    /// A native socket.
    Native {
        /// The connection id.
        id: String,
    },
    /// A socket that is the transport of a session.
    Session(SessionRecord),
}

/// The record of a session.
#[derive(Debug, Serialize, Deserialize)]
struct SessionRecord {
    sid: String,
    #[serde(rename = "door")]
    info: Box<ConnectInfo>,
    /// The namespaces that the client is connected to.
    #[serde(rename = "nsps")]
    namespaces: Vec<String>,
    /// The time of the last packet that reached the gateway. The runtime may have
    /// received later pongs.
    #[serde(default, rename = "heard_at")]
    last_activity: Option<Millis>,
    /// See [`SocketIoSession::connect_by`].
    #[serde(default)]
    connect_by: Option<Millis>,
}

impl SocketIoServer {
    /// Restores a socket that is still open after hibernation, from the record that is
    /// attached to it. Returns `None` if the record is not valid; then the host closes
    /// the socket. A socket that was a candidate of an upgrade has no record.
    pub fn restore_socket(&mut self, record: &str, now: Millis) -> Option<SocketId> {
        match reader::from_str(record).ok()? {
            Record::Native { id } => Some(self.engine.restore_native(&id)),
            Record::Session(record) => Some(self.restore_session(record, now)),
        }
    }

    fn restore_session(&mut self, record: SessionRecord, now: Millis) -> SocketId {
        let SessionRecord {
            sid,
            info,
            namespaces,
            last_activity,
            connect_by,
        } = record;
        let state = (info.protocol == Protocol::SocketIo).then(|| {
            SocketIoSession::restore(namespaces, connect_by, &info, &self.engine.config, now)
        });
        let (socket, id) = self.engine.restore_session(sid, *info, last_activity, now);
        self.add_session(id, state);
        socket
    }

    /// Attaches the record of a session to its socket, if it has one. Called after each
    /// change of its content, except for [`SessionRecord::last_activity`].
    pub(super) fn attach(&mut self, id: SessionId) {
        let engine = &self.engine;
        let (Some(socket), Some(sid), Some(info)) = (
            engine.socket_of(id),
            engine.sid(id),
            engine.connect_info(id).cloned(),
        ) else {
            return;
        };
        let state = self.session(id);
        let namespaces = state.into_iter().flat_map(SocketIoSession::namespaces);
        let record = Record::Session(SessionRecord {
            sid,
            info: Box::new(info),
            namespaces: namespaces.map(str::to_owned).collect(),
            last_activity: engine.last_activity(id),
            connect_by: state.and_then(|state| state.connect_by),
        });
        self.attach_record(socket, &record);
    }

    pub(super) fn attach_native(&mut self, socket: SocketId, id: &str) {
        self.attach_record(socket, &Record::Native { id: id.to_owned() });
    }

    fn attach_record(&mut self, socket: SocketId, record: &Record) {
        // Cannot fail: a record consists of strings and numbers.
        let record = serde_json::to_string(record).unwrap_or_default();
        self.engine.push(Output::Attach { socket, record });
    }
}
