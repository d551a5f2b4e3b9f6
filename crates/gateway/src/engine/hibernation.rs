//! The records that sockets carry over hibernation.
//!
//! Sockets survive hibernation, memory does not. [`crate::Output::Attach`] attaches a
//! [`Record`] to a socket; [`EngineServer::restore_socket`] reads it. Records are
//! written by one version and read by the next, so their JSON does not change: fields
//! are only added, with a default.

use super::{ConnectInfo, EngineServer, Role, Transport};
use crate::ids::{SessionId, SocketId};
use crate::output::Output;
use crate::socketio::SocketIoSession;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::time::Millis;
use serde::{Deserialize, Serialize};

/// The record that a socket carries over hibernation.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Record {
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
pub(super) struct SessionRecord {
    sid: String,
    #[serde(rename = "door")]
    info: Box<ConnectInfo>,
    /// The namespaces that the client is connected to.
    #[serde(rename = "nsps")]
    namespaces: Vec<String>,
    /// The time of the last packet that the gateway has seen. The runtime may know of
    /// later pongs.
    #[serde(default, rename = "heard_at")]
    last_activity: Option<Millis>,
    /// See [`SocketIoSession::connect_by`].
    #[serde(default)]
    connect_by: Option<Millis>,
}

impl EngineServer {
    /// Restores a socket that is still open after hibernation, from the record that is
    /// attached to it. Returns `None` if the record is not valid; then the host closes
    /// the socket. A socket that was a candidate of an upgrade has no record.
    pub fn restore_socket(&mut self, record: &str, now: Millis) -> Option<SocketId> {
        let record: Record = serde_json::from_str(record).ok()?;
        // The time of its last frame is not known.
        let socket = self.sockets.insert(Role::Native, 0);
        match record {
            Record::Native { id } => self.sockets.set_native_id(socket, &id),
            Record::Session(record) => self.restore_session(socket, record, now),
        }
        Some(socket)
    }

    fn restore_session(&mut self, socket: SocketId, record: SessionRecord, now: Millis) {
        let SessionRecord {
            sid,
            info,
            namespaces,
            last_activity,
            connect_by,
        } = record;
        let socketio = SocketIoSession::restore(namespaces, connect_by, &info, &self.config, now);
        let id = self.add_session(sid, *info, Transport::Socket(socket), socketio, now);
        if let Some(at) = last_activity
            && let Some(session) = self.sessions.get_mut(id)
        {
            session.last_activity = at;
        }
        self.schedule(id);
        self.sockets.set_role(socket, Role::Session(id));
    }

    /// Closes the native sockets for which `is_known` returns `false`.
    pub fn close_unknown_sockets(&mut self, is_known: impl Fn(SocketId) -> bool) {
        let sockets: Vec<SocketId> = self.sockets.natives().collect();
        for socket in sockets.into_iter().filter(|socket| !is_known(*socket)) {
            self.close_socket(socket, Disconnect::Failed);
        }
    }

    /// Attaches the record of a session to its socket. Called after each change of
    /// its content, except for [`SessionRecord::last_activity`].
    pub(crate) fn attach(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(id) else {
            return;
        };
        let Transport::Socket(socket) = session.transport else {
            return;
        };
        let namespaces = session.socketio.namespaces();
        let record = Record::Session(SessionRecord {
            sid: session.sid.clone(),
            info: Box::new(session.info.clone()),
            namespaces: namespaces.map(str::to_owned).collect(),
            last_activity: Some(session.last_activity),
            connect_by: session.socketio.connect_by,
        });
        self.attach_record(socket, &record);
    }

    pub(super) fn attach_native(&mut self, socket: SocketId, id: &str) {
        self.attach_record(socket, &Record::Native { id: id.to_owned() });
    }

    fn attach_record(&mut self, socket: SocketId, record: &Record) {
        // Cannot fail: a record consists of strings and numbers.
        let record = serde_json::to_string(record).unwrap_or_default();
        self.push(Output::Attach { socket, record });
    }
}

#[cfg(test)]
mod tests {
    use super::super::heartbeat::tests::{NOW, engine};
    use super::*;

    /// Restores a record and returns the server with its only session.
    fn restored(record: &str) -> (EngineServer, SessionId) {
        let mut engine = engine();
        let socket = engine.restore_socket(record, NOW);
        socket.expect("the record is valid");
        let sid = engine.session_by_sid("0-s").expect("the session");
        (engine, sid)
    }

    /// Returns the record that is attached to the socket of a session.
    fn attached(mut engine: EngineServer, id: SessionId) -> String {
        engine.take_outputs();
        engine.attach(id);
        let record = engine.take_outputs().into_iter().next();
        let Some(Output::Attach { record, .. }) = record else {
            panic!("no record: {record:?}");
        };
        record
    }

    // The records of these tests have the form of commit a5565a6.

    #[test]
    fn session_record_of_an_older_version_is_restored_and_written_as_before() {
        let record = r#"{"Session":{"sid":"0-s","door":{"protocol":"SocketIo","identity":{"user":"alice","expires":1900000000000,"service":false,"patterns":[["*",7],["team-*",1]],"token":{"issued":1700000000,"jti":"j"}},"fault":null,"address":"192.0.2.1","recovers":true},"nsps":["/","/chat"],"heard_at":1799999990000,"connect_by":null}}"#;
        let (engine, id) = restored(record);
        assert_eq!(engine.session_in_namespace("0-s", "/chat"), Some(id));
        assert_eq!(engine.session_in_namespace("0-s", "/other"), None);
        let session = engine.sessions.get(id).expect("the session");
        assert_eq!(session.last_activity, 1_799_999_990_000);
        assert_eq!(session.socketio.connect_by, None);
        let info = &session.info;
        assert!(info.recovers && info.error.is_none());
        assert_eq!(info.address.as_deref(), Some("192.0.2.1"));
        let identity = info.identity.as_ref().expect("an identity");
        assert_eq!(&*identity.user, "alice");
        assert_eq!(identity.expires, 1_900_000_000_000);
        assert_eq!(attached(engine, id), record);
    }

    #[test]
    fn record_of_a_session_without_namespace_keeps_its_error_and_deadline() {
        let record = r#"{"Session":{"sid":"0-s","door":{"protocol":"SocketIo","identity":null,"fault":{"code":"unauthorized","message":"the token has expired","field":null,"retry_after":null},"address":null,"recovers":false},"nsps":[],"heard_at":1800000000000,"connect_by":1800000010000}}"#;
        let (engine, id) = restored(record);
        let session = engine.sessions.get(id).expect("the session");
        assert_eq!(session.socketio.connect_by, Some(NOW + 10_000));
        let error = session.info.error.as_ref().expect("an error");
        assert_eq!(error.message, "the token has expired");
        assert_eq!(attached(engine, id), record);
    }

    #[test]
    fn session_record_without_later_fields_is_restored() {
        let record = r#"{"Session":{"sid":"0-s","door":{"protocol":"EngineIo","identity":null,"fault":null,"address":null,"recovers":false},"nsps":[]}}"#;
        let (engine, id) = restored(record);
        let session = engine.sessions.get(id).expect("the session");
        assert_eq!(session.last_activity, NOW);
    }

    #[test]
    fn native_record_of_an_older_version_is_restored_and_written_as_before() {
        let mut engine = engine();
        let record = r#"{"Native":{"id":"c1"}}"#;
        let socket = engine.restore_socket(record, NOW);
        assert_eq!(engine.native_socket("c1"), socket);
        engine.attach_native(socket.expect("the record is valid"), "c1");
        let attached = engine.take_outputs().into_iter().next();
        let Some(Output::Attach { record: after, .. }) = attached else {
            panic!("no record: {attached:?}");
        };
        assert_eq!(after, record);
    }

    #[test]
    fn invalid_record_is_not_restored() {
        for record in ["", "{}", r#"{"Other":{}}"#, "spilled:x"] {
            assert!(engine().restore_socket(record, NOW).is_none(), "{record}");
        }
    }
}
