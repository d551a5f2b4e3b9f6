//! The table of Engine.IO sessions.

use crate::connect_info::ConnectInfo;
use crate::ids::{PollId, SessionId, SocketId};
use engineioxide_core::Packet;
use roomcast_proto::limits::TokenBucket;
use roomcast_proto::time::Millis;
use slotmap::SlotMap;
use std::collections::HashMap;

/// An Engine.IO session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) sid: String,
    pub(super) info: ConnectInfo,
    pub(super) transport: Transport,
    /// A WebSocket that may become the transport.
    pub(super) candidate: Option<Candidate>,
    pub(super) next_ping: Option<Millis>,
    /// The time of the first ping that was not answered. If pings are sent by alarm, the time
    /// of the last ping, or `None` if it is not known.
    pub(super) pinged_at: Option<Millis>,
    /// The time of the last packet or polling request of the client.
    pub(super) last_activity: Millis,
    /// Limits the packets that the layer above does not limit as commands; see
    /// [`super::EngineServer::count_overhead`].
    pub(super) overhead: TokenBucket,
    /// The body of a POST request is being read.
    pub(super) is_posting: bool,
    /// A refusal was logged. Each connection logs at most one.
    pub(super) refusal_logged: bool,
    pub(super) authentication: Authentication,
}

impl Session {
    /// Returns `true` if the client has sent a valid token, or needs none.
    pub(super) fn is_authenticated(&self) -> bool {
        self.info.identity.is_some() || self.authentication == Authentication::Done
    }

    /// Returns the number of bytes that the layer above holds until a token is verified.
    pub(super) fn held_bytes(&self) -> usize {
        match self.authentication {
            Authentication::Pending { held_bytes } => held_bytes,
            Authentication::Done => 0,
        }
    }
}

/// The authentication of the client of a session. The layer above sets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Authentication {
    /// The client has sent no valid token yet.
    Pending {
        /// Size of the messages that the layer above holds until a token is verified.
        held_bytes: usize,
    },
    /// The client has sent a valid token, or needs none.
    Done,
}

/// How packets reach the client of a session.
#[derive(Debug)]
pub(super) enum Transport {
    /// Long-polling.
    Polling {
        /// The request that waits for packets.
        get: Option<PollId>,
        /// The packets for the next request.
        waiting: Vec<Packet>,
        /// The size of `waiting`.
        bytes: usize,
    },
    /// A WebSocket.
    Socket(SocketId),
}

/// A WebSocket that may become the transport of a session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) socket: SocketId,
    /// The time at which the upgrade must be complete.
    pub(super) deadline: Millis,
    /// The deadline was extended; see [`super::heartbeat::TIMEOUT_EXTENSION`].
    pub(super) extended: bool,
    /// The probe was answered: the client waits for its last poll to end, and then
    /// upgrades.
    pub(super) probed: bool,
}

/// All open sessions.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    slots: SlotMap<SessionId, Session>,
    by_sid: HashMap<String, SessionId>,
}

impl Sessions {
    pub(super) fn insert(&mut self, session: Session) -> SessionId {
        let sid = session.sid.clone();
        let id = self.slots.insert(session);
        self.by_sid.insert(sid, id);
        id
    }

    /// Removes a session. Returns `None` if it was removed before.
    pub(super) fn remove(&mut self, id: SessionId) -> Option<Session> {
        let session = self.slots.remove(id)?;
        self.by_sid.remove(&session.sid);
        Some(session)
    }

    pub(super) fn get(&self, id: SessionId) -> Option<&Session> {
        self.slots.get(id)
    }

    pub(super) fn get_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        self.slots.get_mut(id)
    }

    pub(super) fn by_sid(&self, sid: &str) -> Option<SessionId> {
        self.by_sid.get(sid).copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_sid.is_empty()
    }

    pub(super) fn ids(&self) -> Vec<SessionId> {
        self.slots.keys().collect()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Session> {
        self.slots.values()
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Session> {
        self.slots.values_mut()
    }

    /// Returns the session in which this polling request waits.
    pub(super) fn by_poll(&self, poll: PollId) -> Option<SessionId> {
        let waits = |session: &Session| matches!(session.transport, Transport::Polling { get: Some(get), .. } if get == poll);
        let mut sessions = self.slots.iter();
        sessions.find_map(|(id, session)| waits(session).then_some(id))
    }
}
