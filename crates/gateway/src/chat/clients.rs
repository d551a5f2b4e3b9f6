//! The table of clients.

use super::client::{Client, Framing, Phase, Subscription};
use crate::ids::ClientId;
use roomcast_proto::id::{ConnectionId, RoomName, UserId};
use roomcast_proto::link;
use slotmap::SlotMap;
use std::collections::HashMap;

/// All clients of a gateway, by key, by connection id, and by socket or namespace.
#[derive(Default)]
pub(super) struct Clients {
    slots: SlotMap<ClientId, Client>,
    by_id: HashMap<ConnectionId, ClientId>,
    by_framing: HashMap<Framing, ClientId>,
}

impl Clients {
    pub(super) fn insert(&mut self, client: Client) -> ClientId {
        let (id, framing) = (client.id.clone(), client.framing.clone());
        let key = self.slots.insert(client);
        self.by_id.insert(id, key);
        self.by_framing.insert(framing, key);
        key
    }

    pub(super) fn remove(&mut self, key: ClientId) -> Option<Client> {
        let client = self.slots.remove(key)?;
        self.by_id.remove(&client.id);
        self.by_framing.remove(&client.framing);
        Some(client)
    }

    /// Replaces the connection id of a client.
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

    /// Returns the client on this socket or in this namespace.
    pub(super) fn by_framing(&self, framing: &Framing) -> Option<ClientId> {
        self.by_framing.get(framing).copied()
    }

    /// Returns the client whose id this subscription id begins with. The subscription
    /// may have ended.
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
