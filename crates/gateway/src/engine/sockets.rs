//! The table of WebSockets.

use crate::ids::{SessionId, SocketId};
use roomcast_proto::access::Identity;
use roomcast_proto::limits::SlowConsumerGuard;
use roomcast_proto::time::Millis;
use slotmap::SlotMap;
use std::collections::HashMap;
use std::rc::Rc;

/// The state of a WebSocket.
#[derive(Debug)]
pub(super) struct SocketState {
    pub(super) role: Role,
    /// Detects that the client does not read.
    pub(super) consumer: SlowConsumerGuard,
    /// The client has sent a frame or a ping since it connected. `true` for a restored socket.
    pub(super) has_been_active: bool,
    /// The connection id of a native socket.
    native_id: Option<String>,
    /// The newest valid token of a native socket.
    pub(super) identity: Option<Rc<Identity>>,
}

/// The use of a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It speaks the native framing.
    Native,
    /// It is the transport of a session.
    Session(SessionId),
    /// It may become the transport of a session that is on long-polling.
    Candidate(SessionId),
}

/// All open WebSockets.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    slots: SlotMap<SocketId, SocketState>,
    native_by_id: HashMap<String, SocketId>,
}

impl Sockets {
    /// Adds a socket. `last_frame_at` is 0 if it is not known.
    pub(super) fn insert(&mut self, role: Role, last_frame_at: Millis) -> SocketId {
        self.slots.insert(SocketState {
            role,
            consumer: SlowConsumerGuard::new(last_frame_at),
            has_been_active: last_frame_at == 0,
            native_id: None,
            identity: None,
        })
    }

    /// Removes a socket. Returns `None` if it was removed before.
    pub(super) fn remove(&mut self, socket: SocketId) -> Option<SocketState> {
        let state = self.slots.remove(socket)?;
        if let Some(id) = &state.native_id {
            self.native_by_id.remove(id);
        }
        Some(state)
    }

    pub(super) fn get(&self, socket: SocketId) -> Option<&SocketState> {
        self.slots.get(socket)
    }

    pub(super) fn get_mut(&mut self, socket: SocketId) -> Option<&mut SocketState> {
        self.slots.get_mut(socket)
    }

    pub(super) fn set_role(&mut self, socket: SocketId, role: Role) {
        if let Some(state) = self.slots.get_mut(socket) {
            state.role = role;
        }
    }

    /// Sets the connection id of a native socket.
    pub(super) fn set_native_id(&mut self, socket: SocketId, id: &str) {
        self.native_by_id.insert(id.to_owned(), socket);
        if let Some(state) = self.slots.get_mut(socket) {
            state.native_id = Some(id.to_owned());
        }
    }

    /// Returns the native socket with this connection id.
    pub(super) fn native(&self, id: &str) -> Option<SocketId> {
        self.native_by_id.get(id).copied()
    }

    pub(super) fn has_native(&self) -> bool {
        !self.native_by_id.is_empty()
    }

    /// Returns all native sockets.
    pub(super) fn natives(&self) -> impl Iterator<Item = SocketId> {
        self.native_by_id.values().copied()
    }
}
