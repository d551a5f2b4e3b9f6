//! The table of clients.

use super::client::{Client, Framing, Phase, Subscription};
use crate::ids::{ClientId, SessionId, SocketId};
use roomcast_proto::id::{ConnectionId, RoomName, UserId};
use roomcast_proto::link;
use slotmap::SlotMap;
use std::collections::HashMap;

/// All clients of a gateway, by key, by connection id, by socket and by namespace.
#[derive(Default)]
pub(super) struct Clients {
    slots: SlotMap<ClientId, Client>,
    by_id: HashMap<ConnectionId, ClientId>,
    by_socket: HashMap<SocketId, ClientId>,
    by_namespace: HashMap<(SessionId, String), ClientId>,
}

impl Clients {
    pub(super) fn insert(&mut self, client: Client) -> ClientId {
        let (id, framing) = (client.id.clone(), client.framing.clone());
        let key = self.slots.insert(client);
        self.by_id.insert(id, key);
        match framing {
            Framing::Native(socket) => self.by_socket.insert(socket, key),
            Framing::SocketIo { session, nsp } => self.by_namespace.insert((session, nsp), key),
        };
        key
    }

    pub(super) fn remove(&mut self, key: ClientId) -> Option<Client> {
        let client = self.slots.remove(key)?;
        self.by_id.remove(&client.id);
        match &client.framing {
            Framing::Native(socket) => self.by_socket.remove(socket),
            Framing::SocketIo { session, nsp } => {
                self.by_namespace.remove(&(*session, nsp.clone()))
            }
        };
        Some(client)
    }

    /// Gives a client a new connection id.
    pub(super) fn rename(&mut self, key: ClientId, id: ConnectionId) {
        if let Some(client) = self.slots.get_mut(key) {
            let before = std::mem::replace(&mut client.id, id.clone());
            self.by_id.remove(&before);
            self.by_id.insert(id, key);
        }
    }

    pub(super) fn get(&self, key: ClientId) -> Option<&Client> {
        self.slots.get(key)
    }

    pub(super) fn get_mut(&mut self, key: ClientId) -> Option<&mut Client> {
        self.slots.get_mut(key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (ClientId, &Client)> {
        self.slots.iter()
    }

    pub(super) fn keys(&self) -> Vec<ClientId> {
        self.slots.keys().collect()
    }

    pub(super) fn by_id(&self, id: &str) -> Option<ClientId> {
        self.by_id.get(id).copied()
    }

    pub(super) fn by_socket(&self, socket: SocketId) -> Option<ClientId> {
        self.by_socket.get(&socket).copied()
    }

    pub(super) fn by_namespace(&self, session: SessionId, nsp: String) -> Option<ClientId> {
        self.by_namespace.get(&(session, nsp)).copied()
    }

    /// Returns the client that has, or had, this subscription.
    pub(super) fn by_subscription(&self, id: &ConnectionId) -> Option<ClientId> {
        self.by_id(link::client_of(id))
    }

    /// Returns the accepted client with this `pid` and user.
    pub(super) fn by_pid(&self, pid: &str, user: &UserId) -> Option<ClientId> {
        let mut clients = self.slots.iter();
        let found = clients.find(|(_, client)| {
            client.pid.as_deref() == Some(pid)
                && client.identity.user == *user
                && !matches!(client.phase, Phase::Finding { .. })
        });
        found.map(|(key, _)| key)
    }

    pub(super) fn subscription(&self, key: ClientId, room: &RoomName) -> Option<&Subscription> {
        self.get(key)?.subscription(room)
    }

    pub(super) fn subscription_mut(
        &mut self,
        key: ClientId,
        room: &RoomName,
    ) -> Option<&mut Subscription> {
        self.get_mut(key)?.subscription_mut(room)
    }

    /// Returns the subscription to `room` with this id. Returns `None` if the client has
    /// left the room or joined it again since.
    pub(super) fn current_subscription(
        &mut self,
        room: &RoomName,
        id: &ConnectionId,
    ) -> Option<&mut Subscription> {
        let key = self.by_subscription(id)?;
        let subscription = self.subscription_mut(key, room)?;
        (subscription.id == *id).then_some(subscription)
    }
}
