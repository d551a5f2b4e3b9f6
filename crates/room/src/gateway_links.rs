//! The connections at gateways, and the items that wait for the gateways.

use crate::catch_up::Portion;
use crate::delivery::{CustomFrame, Delivery, utf16_length};
use crate::ids::ConnId;
use crate::outbox::{Acknowledgement, Outboxes, Retry};
use crate::output::Change;
use crate::seq_range::SeqRange;
use crate::subscriber::StoredSubscriber;
use roomcast_proto::id::{ConnectionId, Epoch, GatewayName, RoomName};
use roomcast_proto::link::{Item, Push};
use roomcast_proto::retry::Failure;
use roomcast_proto::time::Millis;
use slotmap::SecondaryMap;
use std::collections::{HashMap, HashSet};

/// The gateway of a connection, and the id of the connection there.
#[derive(Clone, Debug)]
pub(crate) struct Subscription {
    pub(crate) gateway: GatewayName,
    pub(crate) id: ConnectionId,
}

/// The logged events in a text for one connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TextEvents {
    None,
    /// The next events of the log. The connection must have all earlier ones.
    Next(SeqRange),
    /// Older events, up to `upto`, that the client has requested.
    Past {
        upto: u64,
    },
}

impl TextEvents {
    /// Returns the events of a portion that was sent up to the event `last`.
    pub(crate) fn of_portion(portion: &Portion, last: u64) -> Self {
        match portion.is_past {
            true => TextEvents::Past { upto: last },
            false => TextEvents::Next(SeqRange {
                after: portion.range.after,
                upto: last,
            }),
        }
    }

    fn after(self) -> Option<u64> {
        match self {
            TextEvents::Next(range) => Some(range.after),
            TextEvents::None | TextEvents::Past { .. } => None,
        }
    }

    fn at(self) -> Option<u64> {
        match self {
            TextEvents::Next(range) => Some(range.upto),
            TextEvents::Past { upto } => Some(upto),
            TextEvents::None => None,
        }
    }
}

/// The subscriptions of gateways and their outboxes.
#[derive(Default)]
pub(crate) struct GatewayLinks {
    outboxes: Outboxes,
    subscriptions: SecondaryMap<ConnId, Subscription>,
    by_id: HashMap<ConnectionId, ConnId>,
    /// The number of connections of each gateway.
    counts: HashMap<GatewayName, usize>,
    /// Connections whose membership has ended. They are removed after the next flush.
    leaving: Vec<ConnId>,
    /// Identifies this instance of the room.
    life: String,
}

impl GatewayLinks {
    pub(crate) fn new(life: String) -> Self {
        GatewayLinks {
            life,
            ..GatewayLinks::default()
        }
    }

    /// Adds a connection.
    pub(crate) fn add(&mut self, conn: ConnId, subscription: Subscription) {
        let Subscription { gateway, id } = &subscription;
        self.by_id.insert(id.clone(), conn);
        *self.counts.entry(gateway.clone()).or_default() += 1;
        self.subscriptions.insert(conn, subscription);
    }

    /// Removes a connection.
    pub(crate) fn remove(&mut self, conn: ConnId) -> Option<Subscription> {
        let subscription = self.subscriptions.remove(conn)?;
        self.by_id.remove(&subscription.id);
        if let Some(count) = self.counts.get_mut(&subscription.gateway) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&subscription.gateway);
            }
        }
        Some(subscription)
    }

    pub(crate) fn get(&self, conn: ConnId) -> Option<&Subscription> {
        self.subscriptions.get(conn)
    }

    /// Returns the connection with this id.
    pub(crate) fn find(&self, id: &ConnectionId) -> Option<ConnId> {
        self.by_id.get(id).copied()
    }

    /// Returns the connections of a gateway.
    pub(crate) fn connections_of(&self, gateway: &GatewayName) -> Vec<ConnId> {
        let subscriptions = self.subscriptions.iter();
        subscriptions
            .filter(|(_, subscription)| subscription.gateway == *gateway)
            .map(|(conn, _)| conn)
            .collect()
    }

    /// Records that the membership of the connection has ended. The connection is removed
    /// after the next flush.
    pub(crate) fn start_leave(&mut self, conn: ConnId) {
        self.leaving.push(conn);
    }

    /// Undoes [`GatewayLinks::start_leave`], because the connection has joined again or was
    /// removed.
    pub(crate) fn cancel_leave(&mut self, conn: ConnId) {
        self.leaving.retain(|one| *one != conn);
    }

    /// Returns the connections whose membership has ended.
    pub(crate) fn leaving(&self) -> &[ConnId] {
        &self.leaving
    }

    /// Removes the connections whose membership has ended from the list, and returns them.
    pub(crate) fn take_leaving(&mut self) -> Vec<ConnId> {
        std::mem::take(&mut self.leaving)
    }

    /// Queues an item without a text.
    pub(crate) fn queue(&mut self, gateway: &GatewayName, item: Item) {
        self.outboxes.queue(gateway, item, "");
    }

    /// Queues a text for one connection. The connection need not be in the room.
    pub(crate) fn queue_text(
        &mut self,
        subscription: &Subscription,
        text: &str,
        events: TextEvents,
    ) {
        let item = Item::Unicast {
            to: subscription.id.clone(),
            bytes: text.len(),
            after: events.after(),
            at: events.at(),
        };
        self.outboxes.queue(&subscription.gateway, item, text);
    }

    /// Queues a text for one connection in the room, unless the text is empty.
    pub(crate) fn unicast(&mut self, conn: ConnId, text: &str, events: TextEvents) {
        if let Some(subscription) = self.subscriptions.get(conn).cloned()
            && !text.is_empty()
        {
            self.queue_text(&subscription, text, events);
        }
    }

    /// Queues an item that must arrive. Returns the change that stores it until the gateway
    /// acknowledges it.
    pub(crate) fn must_deliver(&mut self, subscription: &Subscription, item: Item) -> Change {
        self.queue(&subscription.gateway, item.clone());
        Change::PutSubscriber {
            id: subscription.id.clone(),
            gateway: subscription.gateway.clone(),
            subscriber: StoredSubscriber::Ended(item),
        }
    }

    /// Removes a connection and queues the item that `item` returns for its id. Returns the
    /// change to store.
    pub(crate) fn end(
        &mut self,
        conn: ConnId,
        item: impl FnOnce(ConnectionId) -> Item,
    ) -> Option<Change> {
        let subscription = self.remove(conn)?;
        let item = item(subscription.id.clone());
        Some(self.must_deliver(&subscription, item))
    }

    /// Asks a gateway which of its connections still exist, and whether they have all
    /// events up to `head`.
    pub(crate) fn probe_connections(&mut self, gateway: &GatewayName, head: u64) {
        for conn in self.connections_of(gateway) {
            if let Some(subscription) = self.subscriptions.get(conn) {
                let to = subscription.id.clone();
                self.outboxes
                    .queue(gateway, Item::Probe { to, at: head }, "");
            }
        }
    }

    /// Queues the frames of a batch for the gateways. Returns the rest, for the room's own
    /// sockets.
    pub(crate) fn route_delivery(&mut self, mut delivery: Delivery) -> Delivery {
        if self.counts.is_empty() {
            return delivery;
        }
        let events = delivery.events;
        let shared = delivery.shared.as_deref().map_or("", String::as_str);
        let length = utf16_length(shared);
        let (remote, own): (Vec<CustomFrame>, Vec<CustomFrame>) =
            std::mem::take(&mut delivery.custom)
                .into_iter()
                .partition(|custom| self.subscriptions.contains_key(custom.conn));
        delivery.custom = own;
        // Connections that do not receive the broadcast.
        let mut excluded = HashSet::new();
        for custom in remote {
            if matches!(&*custom.shared, [all] if *all == (0..length)) {
                // The private lines come first, then the broadcast.
                self.unicast(custom.conn, &custom.private, TextEvents::None);
                continue;
            }
            excluded.insert(custom.conn);
            let events = match custom.with_events && !custom.shared.is_empty() {
                true => TextEvents::Next(events),
                false => TextEvents::None,
            };
            self.unicast(custom.conn, &custom.text(shared), events);
        }
        if let Some(text) = &delivery.shared {
            self.broadcast(text, events, &excluded);
        }
        delivery
    }

    /// Queues a text without logged events for all connections of a gateway.
    pub(crate) fn send_to_all(&mut self, gateway: &GatewayName, text: &str) {
        let item = Item::Broadcast {
            bytes: text.len(),
            not: Vec::new(),
            after: 0,
            at: 0,
        };
        self.outboxes.queue(gateway, item, text);
    }

    /// Queues a text for all connections except `excluded`.
    fn broadcast(&mut self, text: &str, events: SeqRange, excluded: &HashSet<ConnId>) {
        for gateway in self.counts.keys() {
            let excluded = excluded
                .iter()
                .filter_map(|conn| self.subscriptions.get(*conn))
                .filter(|subscription| subscription.gateway == *gateway);
            let item = Item::Broadcast {
                bytes: text.len(),
                not: excluded
                    .map(|subscription| subscription.id.clone())
                    .collect(),
                after: events.after,
                at: events.upto,
            };
            self.outboxes.queue(gateway, item, text);
        }
    }

    /// Starts the catch-up of a connection: it receives portions of the log with the
    /// deliveries.
    pub(crate) fn catch_up(&mut self, conn: ConnId) {
        if let Some(subscription) = self.subscriptions.get(conn) {
            self.outboxes.catch_up(&subscription.gateway, conn);
        }
    }

    /// Returns the connection that receives the next portion: see
    /// [`Outboxes::next_portion`].
    pub(crate) fn next_portion(&mut self, gateway: &GatewayName) -> Option<ConnId> {
        self.outboxes.next_portion(gateway)
    }

    /// See [`Outboxes::skip_portion`].
    pub(crate) fn skip_portion(&mut self, gateway: &GatewayName) {
        self.outboxes.skip_portion(gateway);
    }

    /// Drops items for slow gateways and probes the connections of these gateways. Returns
    /// the gateways.
    pub(crate) fn shed(&mut self, head: u64) -> Vec<GatewayName> {
        let slow = self.outboxes.shed();
        for gateway in &slow {
            self.probe_connections(gateway, head);
        }
        slow
    }

    /// Returns the gateways to which deliveries start: see [`Outboxes::start`].
    pub(crate) fn start_deliveries(&mut self) -> Vec<GatewayName> {
        self.outboxes.start()
    }

    /// Returns the body of the next delivery: see [`Outboxes::take`].
    pub(crate) fn take_delivery(
        &mut self,
        gateway: &GatewayName,
        room: &RoomName,
        epoch: &Epoch,
    ) -> Option<serde_json::Result<String>> {
        let header = |number, items| Push {
            room: room.clone(),
            epoch: epoch.clone(),
            life: self.life.clone(),
            number,
            items,
        };
        self.outboxes.take(gateway, header)
    }

    /// Handles the acknowledgement of a delivery.
    pub(crate) fn acknowledged(&mut self, gateway: &GatewayName) -> Acknowledgement {
        self.outboxes.acknowledged(gateway)
    }

    /// Handles the failure of a delivery. With [`Retry::Never`] the gateway is given up.
    pub(crate) fn failed(&mut self, gateway: &GatewayName, failure: Failure, now: Millis) -> Retry {
        let retry = self.outboxes.failed(gateway, failure);
        if retry == Retry::Never {
            self.outboxes.give_up(gateway, now);
        }
        retry
    }

    /// Records that the host has stopped sending to a gateway because of an error in the
    /// room.
    pub(crate) fn stopped(&mut self, gateway: &GatewayName) {
        self.outboxes.stopped(gateway);
    }

    /// Records that the gateway has sent a request.
    pub(crate) fn active(&mut self, gateway: &GatewayName) {
        self.outboxes.active(gateway);
    }

    /// Returns the time of the next probe of a gateway that was given up.
    pub(crate) fn probe_at(&self) -> Option<Millis> {
        self.outboxes.probe_at()
    }

    /// Starts the probes that are due.
    pub(crate) fn probe(&mut self, now: Millis) {
        self.outboxes.probe(now);
    }

    pub(crate) fn take_outboxes(&mut self) -> Outboxes {
        std::mem::take(&mut self.outboxes)
    }

    pub(crate) fn set_outboxes(&mut self, outboxes: Outboxes) {
        self.outboxes = outboxes;
        self.outboxes.restart();
    }
}
