//! The tokens of receivers, and the check of the token before an event is sent.

use super::server::SocketIoServer;
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

impl SocketIoServer {
    /// Sets the newest valid token of a receiver.
    ///
    /// If the request that opened a Socket.IO session had a token of the same user, the
    /// new token replaces it, so that a later CONNECT does not return to older rights.
    pub fn set_identity(&mut self, receiver: Receiver<'_>, identity: Rc<Identity>) {
        match receiver {
            Receiver::Native(socket) => self.engine.set_socket_identity(socket, identity),
            Receiver::Namespace(id, nsp) => {
                if let Some(session) = self.session_mut(id) {
                    session.set_identity(nsp, identity.clone());
                }
                let info = self.engine.connect_info(id);
                let shown = info.and_then(|info| info.identity.as_ref());
                if shown.is_some_and(|shown| shown.user == identity.user) {
                    let identity = Identity::clone(&identity);
                    self.engine.replace_identity(id, identity);
                    self.attach(id);
                }
            }
        }
    }

    /// Returns `true` if the receiver belongs to `user` and its newest token grants
    /// `read` on `room`. Returns `None` if the receiver is closed.
    ///
    /// It is called immediately before an event of the room is sent. It uses the
    /// identity of the transport, not of the application's client, so an error in the
    /// tables of clients cannot send events to the connection of another user.
    pub fn opens(&self, receiver: Receiver<'_>, user: &str, room: &str) -> Option<bool> {
        let identity = match receiver {
            Receiver::Native(socket) => self.engine.socket_identity(socket)?,
            Receiver::Namespace(id, nsp) => self.session(id)?.identity(nsp)?,
        };
        Some(identity.is_some_and(|identity| {
            identity.user == user && identity.rights(room).has(Rights::READ)
        }))
    }
}
