//! The last activity of clients, for rooms that close the connection of a user that has been
//! silent longest.

use super::client::{Client, Framing};
use super::state::Chat;
use crate::ids::SocketId;
use crate::socketio::SocketIoServer;
use roomcast_proto::id::ConnectionId;
use roomcast_proto::link::{Item, Push};
use roomcast_proto::time::Millis;

impl Chat {
    /// Returns the connections for whose activity a room asks, with the times of it.
    pub(crate) fn activity(
        &self,
        server: &SocketIoServer,
        push: &Push,
    ) -> Vec<(ConnectionId, Millis)> {
        let asked = self.asked(push);
        asked
            .map(|(id, client)| {
                let at = match &client.framing {
                    Framing::Native(socket) => server.engine.last_frame_at(*socket),
                    Framing::SocketIo { session, .. } => {
                        server.engine.last_activity(*session).unwrap_or(0)
                    }
                };
                (id.clone(), at)
            })
            .collect()
    }

    /// See [`crate::Gateway::asked_sockets`].
    pub(crate) fn asked_sockets(&self, server: &SocketIoServer, push: &Push) -> Vec<SocketId> {
        let asked = self.asked(push);
        asked
            .filter_map(|(_, client)| match &client.framing {
                Framing::Native(socket) => Some(*socket),
                Framing::SocketIo { session, .. } => server.engine.socket_of(*session),
            })
            .collect()
    }

    fn asked<'a>(&'a self, push: &'a Push) -> impl Iterator<Item = (&'a ConnectionId, &'a Client)> {
        push.items.iter().filter_map(|item| {
            let Item::Probe {
                to, activity: true, ..
            } = item
            else {
                return None;
            };
            let client = self.clients.get(self.clients.by_subscription(to)?)?;
            Some((to, client))
        })
    }
}
