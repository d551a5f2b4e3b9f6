//! Clients that may lack changes of the presence of a room.
//!
//! Events of presence are not in the log, so a client lacks them if a delivery was lost, while
//! it is paused, and while it is disconnected. The gateway keeps the version of the presence
//! that such a client was told, and names the client in the answer to a delivery
//! ([`roomcast_proto::link::Pushed::lacking`]). The room then sends the changes since that
//! version.

use super::delivery::Delivery;
use super::state::Chat;
use crate::ids::ClientId;
use crate::socketio::SocketIoServer;
use roomcast_proto::id::{ConnectionId, RoomName};
use roomcast_proto::link::PresenceVersion;

impl Chat {
    /// Records that a subscriber may lack changes of the presence: see
    /// [`Subscription::lacks_presence`](super::client::Subscription::lacks_presence).
    pub(super) fn lacks_presence(&mut self, key: ClientId, room: &RoomName) {
        let subscription = self.clients.subscription_mut(key, room);
        if let (Some(subscription), Some(link)) = (subscription, self.rooms.get_mut(room)) {
            subscription.lacks_presence(link.presence);
            subscription.lack_is_reported = false;
            link.lacking.insert(key);
        }
    }

    /// Handles the versions of a delivery before its items. If deliveries were missed, all
    /// subscribers may lack changes.
    pub(super) fn check_presence(
        &mut self,
        room: &RoomName,
        before: PresenceVersion,
        after: PresenceVersion,
    ) {
        let Some(link) = self.rooms.get(room) else {
            return;
        };
        // A room of an older version has no versions of the presence.
        let told = link.presence.filter(|told| after != 0 && *told != before);
        let Some(told) = told else {
            return;
        };
        for key in link.subscribers.clone() {
            let subscription = self.clients.subscription(key, room);
            let lacks = subscription.is_some_and(|one| {
                let missed = told != after || one.is_fresh;
                one.presence.is_some() || (missed && one.receives_events())
            });
            if lacks {
                self.lacks_presence(key, room);
            }
        }
    }

    /// Records that the subscribers were sent all changes so far.
    pub(super) fn presence_announced(&mut self, room: &RoomName) {
        let Some(link) = self.rooms.get(room) else {
            return;
        };
        for key in &link.subscribers {
            if let Some(subscription) = self.clients.subscription_mut(*key, room)
                && subscription.receives_events()
            {
                subscription.is_fresh = false;
            }
        }
    }

    /// Records that the subscribers were told the version after a delivery.
    pub(super) fn advance_presence(&mut self, room: &RoomName, after: PresenceVersion) {
        if let Some(link) = self.rooms.get_mut(room)
            && after != 0
        {
            link.presence = Some(after);
        }
    }

    /// Returns the connections that lack changes of the presence and that the room does not
    /// know of. With `again`, also those that were reported before.
    pub(super) fn lacking(
        &mut self,
        room: &RoomName,
        again: bool,
    ) -> Vec<(PresenceVersion, Vec<ConnectionId>)> {
        let Some(link) = self.rooms.get_mut(room) else {
            return Vec::new();
        };
        let mut lacking: Vec<(PresenceVersion, Vec<ConnectionId>)> = Vec::new();
        for key in link.lacking.iter().copied().collect::<Vec<_>>() {
            let subscription = self.clients.subscription_mut(key, room);
            let Some((subscription, since)) = subscription.and_then(|one| {
                let since = one.presence?;
                Some((one, since))
            }) else {
                link.lacking.remove(&key);
                continue;
            };
            if subscription.is_paused || !subscription.receives_events() {
                subscription.lack_is_reported = false;
                continue;
            }
            if Some(since) == link.presence {
                subscription.presence = None;
                link.lacking.remove(&key);
                continue;
            }
            if std::mem::replace(&mut subscription.lack_is_reported, true) && !again {
                continue;
            }
            let id = subscription.id.clone();
            match lacking.iter_mut().find(|(version, _)| *version == since) {
                Some((_, ids)) => ids.push(id),
                None => lacking.push((since, vec![id])),
            }
        }
        lacking
    }

    /// Handles [`roomcast_proto::link::Item::Presence`].
    pub(super) fn deliver_presence(
        &mut self,
        server: &mut SocketIoServer,
        delivery: &mut Delivery<'_>,
        to: Vec<ConnectionId>,
        text: &str,
        is_last: bool,
    ) {
        let room = delivery.room;
        for id in to {
            let Some(key) = self.clients.by_subscription(&id) else {
                delivery.gone.push(id);
                continue;
            };
            if self.clients.current_subscription(room, &id).is_none() {
                continue;
            }
            self.deliver_ephemeral(server, delivery, key, text);
            if let Some(subscription) = self.clients.subscription_mut(key, room)
                && let Some(link) = self.rooms.get_mut(room)
                // Otherwise the client has missed a part of the changes.
                && is_last
                && subscription.lack_is_reported
                && !subscription.is_paused
            {
                subscription.presence = None;
                link.lacking.remove(&key);
            }
        }
    }
}
