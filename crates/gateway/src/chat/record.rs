//! The records of clients that the host stores.
//!
//! A record has two uses: to restore the client after hibernation, and to resume it when
//! it reconnects. Records are written by one version and read by the next, so their JSON
//! does not change: fields are only added, with a default.

use super::client::{Client, Framing, Subscription, SubscriptionState};
use super::state::Chat;
use crate::dialect::Dialect;
use crate::ids::ClientId;
use crate::output::Output;
use crate::socketio::SocketIoServer;
use roomcast_proto::access::Identity;
use roomcast_proto::id::ConnectionId;
use roomcast_proto::status::Status;
use serde::{Deserialize, Serialize};

/// The Engine.IO session and the namespace of a Socket.IO client. Stored as an array.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "(String, String)", into = "(String, String)")]
pub(super) struct SessionRecord {
    pub(super) sid: String,
    pub(super) nsp: String,
}

impl From<(String, String)> for SessionRecord {
    fn from((sid, nsp): (String, String)) -> Self {
        SessionRecord { sid, nsp }
    }
}

impl From<SessionRecord> for (String, String) {
    fn from(record: SessionRecord) -> Self {
        (record.sid, record.nsp)
    }
}

/// The connection state of the client of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordOf {
    ConnectedClient,
    /// The client is disconnected and can resume.
    DisconnectedClient,
}

/// The record of a client.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ClientRecord {
    pub(super) id: ConnectionId,
    /// `None` for a native client.
    pub(super) session: Option<SessionRecord>,
    pub(super) sid: String,
    pub(super) pid: Option<String>,
    pub(super) identity: Identity,
    pub(super) status: Status,
    pub(super) version: u64,
    pub(super) tag: u64,
    /// The name of the dialect, unless it is the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) dialect: Option<String>,
    /// The subscriptions that rooms have accepted.
    #[serde(rename = "slots")]
    pub(super) subscriptions: Vec<Subscription>,
}

impl ClientRecord {
    fn new(server: &SocketIoServer, client: &Client) -> Self {
        let session = match &client.framing {
            Framing::Native(_) => None,
            Framing::SocketIo { session, nsp } => Some(SessionRecord {
                sid: server.engine.sid(*session).unwrap_or_default(),
                nsp: nsp.clone(),
            }),
        };
        let is_saved = |one: &&Subscription| one.state != SubscriptionState::Joining;
        let subscriptions = client.subscriptions.iter().filter(is_saved);
        ClientRecord {
            id: client.id.clone(),
            session,
            sid: client.sid.clone(),
            pid: client.pid.clone(),
            identity: Identity::clone(&client.identity),
            status: client.status,
            version: client.version,
            tag: client.tag,
            dialect: (client.dialect != Dialect::default())
                .then(|| client.dialect.name().to_owned()),
            subscriptions: subscriptions.cloned().collect(),
        }
    }
}

impl ClientRecord {
    /// Returns the dialect of the client. Clients of versions without dialects have the default.
    pub(super) fn dialect(&self) -> Dialect {
        let dialect = self.dialect.as_deref().and_then(Dialect::parse);
        dialect.unwrap_or_default()
    }
}

impl Chat {
    /// Saves the record of a client. Called after each change of its content.
    pub(super) fn save(&self, server: &mut SocketIoServer, key: ClientId) {
        if let Some(client) = self.clients.get(key) {
            let output = save_output(server, client, RecordOf::ConnectedClient);
            server.engine.push(output);
        }
    }
}

/// Returns the output that saves the record of a client.
pub(super) fn save_output(server: &SocketIoServer, client: &Client, of: RecordOf) -> Output {
    let record = ClientRecord::new(server, client);
    Output::Save {
        client: client.storage_key(),
        user: client.identity.user.clone(),
        gone: of == RecordOf::DisconnectedClient,
        // Cannot fail: a record consists of strings and numbers.
        record: serde_json::to_string(&record).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineServer;
    use crate::{ClientId, Frame, Gateway, Stored};
    use roomcast_proto::id::RoomName;
    use roomcast_proto::link::Command as ToRoom;
    use roomcast_proto::reader;
    use roomcast_proto::time::Millis;
    use std::rc::Rc;

    const NOW: Millis = 1_800_000_000_000;

    // The records have the form of commit a5565a6.

    const SESSION: &str = r#"{"Session":{"sid":"0-s","door":{"protocol":"SocketIo","identity":{"user":"alice","expires":1900000000000,"service":false,"patterns":[["*",7]],"token":{}},"fault":null,"address":null,"recovers":true},"nsps":["/"],"heard_at":1799999990000,"connect_by":null}}"#;

    const SOCKET_IO: &str = r#"{"id":"c1","session":["0-s","/"],"sid":"shown","pid":"0-p","identity":{"user":"alice","expires":1900000000000,"service":false,"patterns":[["*",7]],"token":{"issued":1700000000}},"status":"away","version":2,"tag":5,"slots":[{"room":"@alice","seat":"c1:a","epoch":"e1","from":3,"version":1},{"room":"r","seat":"c1:b","epoch":"e2","from":7,"version":2}]}"#;

    const NATIVE: &str = r#"{"id":"c2","session":null,"sid":"c2","pid":null,"identity":{"user":"bob","expires":1900000000000,"service":false,"patterns":[["r",1]],"token":{"jti":"j"}},"status":"online","version":1,"tag":9,"slots":[{"room":"r","seat":"c2:a","epoch":"e2","from":0,"version":1,"repairing":true}]}"#;

    fn gateway() -> Gateway {
        let engine = EngineServer::new("0".into(), Rc::default(), || "id".into());
        Gateway::new(engine)
    }

    /// Restores a socket and the client of a record.
    fn restored(socket: &str, client: &str) -> (Gateway, ClientId) {
        let mut gateway = gateway();
        gateway.server.engine.set_now(NOW);
        let socket = gateway.restore_socket(socket, NOW);
        socket.expect("the record is valid");
        let stored = Stored {
            clients: vec![client.to_owned()],
            positions: [(crate::PositionKey::Room(RoomName::trusted("r")), 12)].into(),
            panicked: false,
        };
        gateway.restore(stored, NOW);
        let keys = gateway.chat.clients.keys();
        let key = *keys.first().expect("the client");
        (gateway, key)
    }

    /// Returns the record that is saved for a client.
    fn saved(gateway: &mut Gateway, key: ClientId) -> String {
        gateway.settle(NOW);
        gateway.chat.save(&mut gateway.server, key);
        match gateway.settle(NOW).pop() {
            Some(Output::Save { record, .. }) => record,
            output => panic!("no record: {output:?}"),
        }
    }

    #[test]
    fn record_of_an_older_version_is_written_as_before() {
        for text in [SOCKET_IO, NATIVE] {
            let record: ClientRecord = reader::from_str(text).expect("a record");
            let written = serde_json::to_string(&record).expect("JSON");
            assert_eq!(written, text);
        }
    }

    #[test]
    fn socketio_client_of_an_older_version_is_restored() {
        let (mut gateway, key) = restored(SESSION, SOCKET_IO);
        let client = gateway.chat.clients.get(key).expect("the client");
        assert_eq!((&*client.id, &*client.sid), ("c1", "shown"));
        assert_eq!(client.pid.as_deref(), Some("0-p"));
        assert_eq!((client.version, client.tag), (2, 5));
        let delivered = |room| {
            client
                .subscription(&RoomName::trusted(room))
                .map(|one| one.delivered)
        };
        assert_eq!(delivered("@alice"), Some(3), "from the record");
        assert_eq!(delivered("r"), Some(12), "from the stored position");
        let template = client.offset_template(1);
        assert_eq!(template.at(13), "5.2.3.d");
        assert_eq!(saved(&mut gateway, key), SOCKET_IO);
    }

    #[test]
    fn a_client_keeps_the_dialect_of_its_record() {
        // `/chat` speaks the dialect `module` by default, but not for a client that connected
        // before.
        let (session, record) = (
            SESSION.replace(r#"["/"]"#, r#"["/chat"]"#),
            SOCKET_IO.replace(r#"["0-s","/"]"#, r#"["0-s","/chat"]"#),
        );
        let (mut gateway, key) = restored(&session, &record);
        let dialect = |gateway: &Gateway| {
            let client = gateway.chat.clients.get(key).expect("the client");
            client.dialect
        };
        assert_eq!(dialect(&gateway), Dialect::default());
        assert_eq!(saved(&mut gateway, key), record);
        let record = record.replace(r#""tag":5,"#, r#""tag":5,"dialect":"module","#);
        let (mut gateway, _) = restored(&session, &record);
        assert_eq!(Some(dialect(&gateway)), Dialect::parse("module"));
        assert_eq!(saved(&mut gateway, key), record);
    }

    #[test]
    fn native_client_of_an_older_version_is_restored_and_repaired() {
        let (mut gateway, key) = restored(r#"{"Native":{"id":"c2"}}"#, NATIVE);
        let commands = gateway
            .take_commands(&RoomName::trusted("r"))
            .expect("a join");
        let [ToRoom::Join { request, again, .. }] = &commands[..] else {
            panic!("no join: {commands:?}");
        };
        assert_eq!(&*request.user, "bob");
        assert!(*again);
        assert_eq!(request.position.since, Some(12));
        assert_eq!(request.position.epoch.as_deref(), Some("e2"));
        let expected = NATIVE.replace("c2:a", &request.connection_id).replace(
            r#""repairing":true"#,
            r#""presence":1,"repairing":true,"lagging_at":12"#,
        );
        assert_eq!(saved(&mut gateway, key), expected);
    }

    #[test]
    fn subscription_without_id_takes_that_of_the_client() {
        let record = SOCKET_IO.replace(r#""seat":"c1:b","#, "");
        let (gateway, key) = restored(SESSION, &record);
        let subscription = gateway
            .chat
            .clients
            .subscription(key, &RoomName::trusted("r"));
        assert_eq!(subscription.map(|one| &*one.id), Some("c1"));
    }

    #[test]
    fn client_resumes_from_a_record_of_an_older_version() {
        let mut gateway = gateway();
        gateway.server.engine.set_now(NOW);
        let session = SESSION.replace(r#"["/"]"#, "[]").replace("0-s", "0-t");
        let socket = gateway.restore_socket(&session, NOW);
        let socket = socket.expect("the record is valid");
        // The client has received event 4 of `@alice` and event 9 of `r`.
        let connect = r#"40{"pid":"0-p","offset":"5.2.4.9"}"#;
        let frame = Frame::Text(connect.to_owned());
        gateway.server.frame(socket, frame, NOW);
        let outputs = gateway.settle(NOW);
        let Some(Output::Authenticate(authentication)) = outputs.last() else {
            panic!("no authentication: {outputs:?}");
        };
        let record: ClientRecord = reader::from_str(SOCKET_IO).expect("a record");
        let request = authentication.request.clone();
        gateway.authenticated(request, Ok(record.identity), NOW);
        let outputs = gateway.settle(NOW);
        let Some(Output::Find { client, pid, .. }) = outputs.last() else {
            panic!("no request for the record: {outputs:?}");
        };
        gateway.found(*client, pid, Some(SOCKET_IO.to_owned()), NOW);
        for (room, since, epoch) in [("@alice", 4, "e1"), ("r", 9, "e2")] {
            let commands = gateway
                .take_commands(&RoomName::trusted(room))
                .expect("a join");
            let [ToRoom::Join { request, again, .. }] = &commands[..] else {
                panic!("no join: {commands:?}");
            };
            assert!(*again);
            assert_eq!(request.position.since, Some(since), "{room}");
            assert_eq!(request.position.epoch.as_deref(), Some(epoch), "{room}");
        }
    }
}
