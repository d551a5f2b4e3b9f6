//! What sockets carry over hibernation, and their sessions again after it.

use super::{Bucket, Door, Role, Session, Transport, socketio};
use crate::gateway::{Hub, Output, SessionId, SocketId};
use crate::time::Millis;
use crate::wire::native::Close;
use serde::{Deserialize, Serialize};

/// What a socket carries over hibernation.
#[derive(Serialize, Deserialize)]
pub(super) enum Record {
    Native {
        id: String,
    },
    Session {
        sid: String,
        door: Box<Door>,
        nsps: Vec<String>,
        /// When the client was heard last, as far as that is known: the runtime
        /// knows of later pongs.
        #[serde(default)]
        heard_at: Option<Millis>,
        /// See [`socketio::Io`].
        #[serde(default)]
        connect_by: Option<Millis>,
    },
}

impl Hub {
    /// After hibernation: a socket that is still there, with what it carries.
    /// `None` where that is nothing of ours.
    pub fn recall(&mut self, record: &str, now: Millis) -> Option<SocketId> {
        let record: Record = serde_json::from_str(record).ok()?;
        let socket = self.socket(Role::Native, 0);
        let (sid, door, nsps, heard_at, connect_by) = match record {
            Record::Native { id } => {
                self.name_native(socket, &id);
                return Some(socket);
            }
            Record::Session {
                sid,
                door,
                nsps,
                heard_at,
                connect_by,
            } => (sid, door, nsps, heard_at, connect_by),
        };
        let io = socketio::Io::recall(nsps, connect_by, &door, &self.config.gateway, now);
        let session = Session {
            sid: sid.clone(),
            door: *door,
            transport: Transport::Socket(socket),
            candidate: None,
            next_ping: self.ping_after(now),
            pinged_at: None,
            // Of a build that did not say it is not known.
            heard_at: heard_at.unwrap_or(now),
            overhead: Bucket::full(self.config.room.commands, now),
            posting: false,
            refusal_logged: false,
            io,
        };
        let place = self.sessions.insert(session);
        self.by_sid.insert(sid, place);
        self.expect(place);
        self.set_role(socket, Role::Session(place));
        Some(socket)
    }

    /// Closes native sockets that the application does not know.
    pub fn close_strangers(&mut self, known: impl Fn(SocketId) -> bool) {
        let strangers: Vec<SocketId> = self.natives.values().copied().collect();
        for socket in strangers.into_iter().filter(|socket| !known(*socket)) {
            self.close_socket(socket, Close::Failed);
        }
    }

    /// What must be known of a session after hibernation has changed.
    pub(in crate::gateway) fn attach(&mut self, place: SessionId) {
        let Some(session) = self.session(place) else {
            return;
        };
        let Transport::Socket(socket) = session.transport else {
            return;
        };
        let record = Record::Session {
            sid: session.sid.clone(),
            door: Box::new(session.door.clone()),
            nsps: session.io.namespaces().map(str::to_owned).collect(),
            heard_at: Some(session.heard_at),
            connect_by: session.io.connect_by,
        };
        self.attach_record(socket, &record);
    }

    pub(super) fn attach_record(&mut self, socket: SocketId, record: &Record) {
        // Strings and numbers alone, so it is JSON.
        let record = serde_json::to_string(record).unwrap_or_default();
        self.out.push(Output::Attach { socket, record });
    }
}
