//! The tokens of receivers, and the last check before an event is sent.

use super::EngineServer;
use crate::ids::{SessionId, SocketId};
use roomcast_proto::access::{Identity, Rights};
use std::rc::Rc;

/// A connection to which events of rooms are sent.
#[derive(Clone, Copy, Debug)]
pub enum Receiver<'a> {
    /// A native socket.
    Native(SocketId),
    /// A namespace of a Socket.IO session.
    Namespace(SessionId, &'a str),
}

impl EngineServer {
    /// Sets the newest valid token of a receiver.
    ///
    /// If the request that opened a Socket.IO session had a token of the same user, the
    /// new token replaces it, so that a later CONNECT does not return to older rights.
    pub fn set_identity(&mut self, receiver: Receiver, identity: Rc<Identity>) {
        match receiver {
            Receiver::Native(socket) => {
                if let Some(state) = self.sockets.get_mut(socket) {
                    state.identity = Some(identity);
                }
            }
            Receiver::Namespace(id, nsp) => {
                let Some(session) = self.sessions.get_mut(id) else {
                    return;
                };
                session.socketio.set_identity(nsp, identity.clone());
                let shown = session.info.identity.as_mut();
                if let Some(shown) = shown.filter(|shown| shown.user == identity.user) {
                    *shown = Identity::clone(&identity);
                    self.attach(id);
                }
            }
        }
    }

    /// Returns `true` if the receiver belongs to `user` and its newest token grants
    /// `read` on `room`. Returns `None` if the receiver is closed.
    ///
    /// This is the last check before an event of the room is sent. It asks the
    /// transport and not the client of the application, so a mistake in the tables of
    /// clients cannot send events to the connection of another user.
    pub fn opens(&self, receiver: Receiver, user: &str, room: &str) -> Option<bool> {
        let identity = match receiver {
            Receiver::Native(socket) => self.sockets.get(socket)?.identity.as_deref(),
            Receiver::Namespace(id, nsp) => self.sessions.get(id)?.socketio.identity(nsp)?,
        };
        Some(identity.is_some_and(|identity| {
            identity.user == user && identity.rights(room).has(Rights::READ)
        }))
    }
}
