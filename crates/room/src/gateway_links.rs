//! The connections at gateways, and the items that wait for the gateways.

use crate::catch_up::Portion;
use crate::delivery::{CustomFrame, Delivery, utf16_length};
use crate::ids::ConnId;
use crate::outbox::{Acknowledgement, NextDelivery, Outboxes, Retry, Shed};
use crate::output::Change;
use crate::presence_link::PresenceStep;
use crate::seq_range::SeqRange;
use crate::subscriber::StoredSubscriber;
use roomcast_proto::error::Error;
use roomcast_proto::framing;
use roomcast_proto::id::{ConnectionId, Epoch, GatewayName, RoomName};
use roomcast_proto::link::{Item, PresenceVersion, Push};
use roomcast_proto::retry::Failure;
use roomcast_proto::time::{Millis, SECOND};
use slotmap::SecondaryMap;
use std::collections::{HashMap, HashSet};

/// The gateway of a connection, and the id of the connection there.
#[derive(Clone, Debug)]
pub(crate) struct Subscription {
    pub(crate) gateway: GatewayName,
    pub(crate) id: ConnectionId,
    /// The connection waits for a portion of the log.
    is_waiting: bool,
    /// The number of the last delivery when the gateway resumed the connection. A later
    /// answer that the connection is paused, to a delivery up to this one, is outdated.
    resumed_at: u64,
}

impl Subscription {
    pub(crate) fn new(gateway: GatewayName, id: ConnectionId) -> Self {
        Subscription {
            gateway,
            id,
            is_waiting: false,
            resumed_at: 0,
        }
    }
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

/// Time in milliseconds after which a client may repeat a command whose answer did not fit
/// into the outbox of its gateway. The gateway has received the answers by then, unless it is
/// out of reach.
const REFUSAL_PAUSE: Millis = SECOND;

/// Returns the error for a command whose answer does not fit into the outbox.
pub(crate) fn too_many_answers() -> Error {
    Error::rate_limited("answers wait to be sent", REFUSAL_PAUSE)
}

/// Maximum size in bytes of an answer that is sent in any case: it takes about as much memory as
/// the error in its place.
const SMALL_ANSWER: usize = 256;

/// Returns errors in place of the large answers among the lines of a text. Other lines are
/// dropped.
fn refuse_answers(text: &str) -> String {
    let error = too_many_answers();
    let answers = text.split('\n').filter(|line| framing::is_answer(line));
    let refused = answers.map(|line| match line.len() <= SMALL_ANSWER {
        true => line.to_owned(),
        false => framing::error(framing::answered(line), &error),
    });
    refused.collect::<Vec<_>>().join("\n")
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
        self.by_id.insert(subscription.id.clone(), conn);
        *self.counts.entry(subscription.gateway.clone()).or_default() += 1;
        self.subscriptions.insert(conn, subscription);
    }

    /// Returns `true` if no item waits for a gateway.
    pub(crate) fn is_idle(&self) -> bool {
        self.outboxes.is_idle()
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
        let refused;
        let text = match events {
            TextEvents::None if self.outboxes.refuses_answer(&subscription.gateway) => {
                refused = refuse_answers(text);
                &refused
            }
            _ => text,
        };
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
    /// events.
    pub(crate) fn probe_connections(&mut self, gateway: &GatewayName) {
        let conns = self.connections_of(gateway);
        self.outboxes.probe(gateway, conns);
    }

    /// Asks the gateway of a connection when it was last active.
    pub(crate) fn ask_activity(&mut self, conn: ConnId, head: u64) {
        if let Some(subscription) = self.subscriptions.get(conn) {
            let item = Item::Probe {
                to: subscription.id.clone(),
                at: head,
                activity: true,
            };
            self.outboxes.queue(&subscription.gateway, item, "");
        }
    }

    /// Probes one connection after the room was restored.
    pub(crate) fn probe_restored(&mut self, gateway: &GatewayName, conn: ConnId) {
        self.outboxes.probe_restored(gateway, conn);
    }

    /// Returns `true` if the room must not execute further commands of a gateway.
    pub(crate) fn is_full(&self, gateway: &GatewayName) -> bool {
        self.outboxes.is_full(gateway)
    }

    /// Returns `true` if the room must not accept further requests of a gateway.
    pub(crate) fn is_congested(&self, gateway: &GatewayName) -> bool {
        self.outboxes.is_congested(gateway)
    }

    /// Reserves space for an answer to a connection. Returns `false` if there is none.
    pub(crate) fn reserve(&mut self, conn: ConnId, bytes: usize) -> bool {
        let subscription = self.subscriptions.get(conn);
        subscription.is_none_or(|subscription| self.outboxes.reserve(&subscription.gateway, bytes))
    }

    /// Queues the frames of a batch for the gateways. Returns the rest, for the room's own
    /// sockets.
    pub(crate) fn route_delivery(&mut self, mut delivery: Delivery) -> Delivery {
        if self.counts.is_empty() {
            return delivery;
        }
        let events = TextEvents::Next(delivery.events);
        let shared = delivery.shared.as_deref().map_or("", String::as_str);
        let length = utf16_length(shared);
        let (remote, own): (Vec<CustomFrame>, Vec<CustomFrame>) =
            std::mem::take(&mut delivery.custom)
                .into_iter()
                .partition(|custom| self.subscriptions.contains_key(custom.conn));
        delivery.custom = own;
        // Connections that do not receive the broadcast.
        let mut excluded = HashSet::new();
        for mut custom in remote {
            // The private lines come first, then the broadcast.
            let private = std::mem::take(&mut custom.private);
            self.unicast(custom.conn, &private, TextEvents::None);
            if !matches!(&*custom.shared, [all] if *all == (0..length)) {
                excluded.insert(custom.conn);
                self.unicast(custom.conn, &custom.text(shared), events);
            }
        }
        if let Some(text) = &delivery.shared {
            self.broadcast(text, &delivery, &excluded);
        }
        delivery
    }

    /// Queues changes of the presence for connections of a gateway that lack them.
    pub(crate) fn send_presence(
        &mut self,
        gateway: &GatewayName,
        conns: &[ConnId],
        text: &str,
        is_last: bool,
    ) {
        let subscriptions = conns
            .iter()
            .filter_map(|conn| self.subscriptions.get(*conn));
        let item = Item::Presence {
            to: subscriptions.map(|one| one.id.clone()).collect(),
            bytes: text.len(),
            is_last,
        };
        self.outboxes.queue(gateway, item, text);
    }

    /// Queues a text for all connections except `excluded`.
    fn broadcast(&mut self, text: &str, delivery: &Delivery, excluded: &HashSet<ConnId>) {
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
                after: delivery.events.after,
                at: delivery.events.upto,
                presence: delivery.announces,
            };
            self.outboxes.queue(gateway, item, text);
        }
    }

    /// Starts or continues the catch-up of a connection: it receives portions of the log with
    /// the deliveries.
    pub(crate) fn catch_up(&mut self, conn: ConnId) {
        if let Some(subscription) = self.subscriptions.get_mut(conn)
            && !std::mem::replace(&mut subscription.is_waiting, true)
        {
            self.outboxes.catch_up(&subscription.gateway, conn);
        }
    }

    /// Records that the gateway resumes a connection.
    pub(crate) fn resume(&mut self, conn: ConnId) {
        if let Some(subscription) = self.subscriptions.get_mut(conn) {
            subscription.resumed_at = self.outboxes.number(&subscription.gateway);
        }
    }

    /// Records that a connection is paused, by the answer to the delivery `number`. It
    /// receives no portions until the gateway resumes it.
    pub(crate) fn pause(&mut self, conn: ConnId, number: u64) {
        if let Some(subscription) = self.subscriptions.get_mut(conn) {
            subscription.is_waiting &= subscription.resumed_at >= number;
        }
    }

    /// Returns the connection that receives the next portion: see
    /// [`Outboxes::next_portion`].
    pub(crate) fn next_portion(&mut self, gateway: &GatewayName) -> Option<ConnId> {
        loop {
            let conn = self.outboxes.next_portion(gateway)?;
            // The connection may be paused or removed.
            if let Some(subscription) = self.subscriptions.get_mut(conn)
                && std::mem::take(&mut subscription.is_waiting)
            {
                return Some(conn);
            }
            self.outboxes.skip_portion(gateway);
        }
    }

    /// Lets the connections for which `matches` returns `true` share the next portion.
    pub(crate) fn share_portion(
        &mut self,
        gateway: &GatewayName,
        matches: impl Fn(ConnId) -> bool,
    ) {
        let is_waiting = |conn: ConnId| {
            let subscription = self.subscriptions.get(conn);
            subscription.is_some_and(|subscription| subscription.is_waiting)
        };
        let joins = |conn: ConnId| is_waiting(conn) && matches(conn);
        self.outboxes.share_portion(gateway, joins);
    }

    /// Queues a portion of the log for `conn` and the connections that share it, if they are
    /// not too many. Returns all that receive it.
    pub(crate) fn queue_portion(
        &mut self,
        conn: ConnId,
        text: &str,
        events: TextEvents,
    ) -> Vec<ConnId> {
        let Some(Subscription { gateway, .. }) = self.subscriptions.get(conn) else {
            return Vec::new();
        };
        let gateway = gateway.clone();
        let mut conns = self.outboxes.take_group(&gateway, text);
        conns.push(conn);
        let mut to = Vec::with_capacity(conns.len());
        for conn in &conns {
            if let Some(subscription) = self.subscriptions.get_mut(*conn) {
                subscription.is_waiting = false;
                to.push(subscription.id.clone());
            }
        }
        match events {
            TextEvents::Next(range) => {
                let item = Item::Multicast {
                    to,
                    bytes: text.len(),
                    after: range.after,
                    at: range.upto,
                };
                self.outboxes.queue(&gateway, item, text);
            }
            TextEvents::None | TextEvents::Past { .. } => self.unicast(conn, text, events),
        }
        conns
    }

    /// See [`Outboxes::skip_portion`].
    pub(crate) fn skip_portion(&mut self, gateway: &GatewayName) {
        self.outboxes.skip_portion(gateway);
    }

    /// See [`Outboxes::shed`].
    pub(crate) fn shed(&mut self, is_overloaded: bool) -> Vec<Shed> {
        self.outboxes.shed(is_overloaded)
    }

    /// Returns `true` if an alarm is needed: see [`Outboxes::needs_alarm`].
    pub(crate) fn needs_alarm(&self) -> bool {
        self.outboxes.needs_alarm()
    }

    /// Returns the gateways to which deliveries start: see [`Outboxes::start`].
    pub(crate) fn start_deliveries(&mut self) -> Vec<GatewayName> {
        self.outboxes.start()
    }

    /// Returns the next delivery: see [`Outboxes::take`]. The connections should
    /// have received all events up to `head` with it, and the presence of this version.
    pub(crate) fn take_delivery(
        &mut self,
        gateway: &GatewayName,
        room: &RoomName,
        epoch: &Epoch,
        head: u64,
        version: PresenceVersion,
    ) -> Option<NextDelivery> {
        let probe = |conn: ConnId| {
            let to = self.subscriptions.get(conn)?.id.clone();
            Some(Item::Probe {
                to,
                at: head,
                activity: false,
            })
        };
        let probes = loop {
            let conns = self.outboxes.take_probes(gateway);
            let is_last = conns.is_empty();
            let probes: Vec<Item> = conns.into_iter().filter_map(probe).collect();
            // All of these connections may have ended.
            if is_last || !probes.is_empty() {
                break probes;
            }
        };
        let header = |number, step: PresenceStep, items| Push {
            room: room.clone(),
            epoch: epoch.clone(),
            life: self.life.clone(),
            number,
            presence_before: step.before,
            presence: step.after,
            items,
        };
        let connections = self.counts.get(gateway).copied().unwrap_or(0);
        self.outboxes
            .take(gateway, connections, probes, version, header)
    }

    /// Handles the acknowledgement of a delivery.
    pub(crate) fn acknowledged(&mut self, gateway: &GatewayName) -> Acknowledgement {
        self.outboxes.acknowledged(gateway)
    }

    /// See [`Outboxes::has_backlog`].
    pub(crate) fn has_backlog(&self, gateway: &GatewayName) -> bool {
        self.outboxes.has_backlog(gateway)
    }

    /// Handles the failure of a delivery: see [`Outboxes::failed`].
    pub(crate) fn failed(
        &mut self,
        gateway: &GatewayName,
        failure: Failure,
        random: u32,
        now: Millis,
    ) -> Retry {
        let retry = self.outboxes.failed(gateway, failure, random, now);
        if retry == Retry::Later {
            self.probe_connections(gateway);
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
        if self.outboxes.active(gateway) {
            self.probe_connections(gateway);
        }
    }

    /// Returns the time of the next attempt to reach an unreachable gateway.
    pub(crate) fn retry_at(&self) -> Option<Millis> {
        self.outboxes.retry_at()
    }

    /// Starts the attempts to reach gateways that are due.
    pub(crate) fn retry(&mut self, now: Millis) {
        for gateway in self.outboxes.retry(now) {
            self.probe_connections(&gateway);
        }
    }

    pub(crate) fn take_outboxes(&mut self) -> Outboxes {
        std::mem::take(&mut self.outboxes)
    }

    pub(crate) fn set_outboxes(&mut self, outboxes: Outboxes) {
        self.outboxes = outboxes;
        self.outboxes.restart();
    }
}
