//! The outboxes: the items that wait for each gateway.
//!
//! The room sends one request at a time to each gateway, which keeps the order. Items that
//! are added meanwhile go into the next request.

use crate::ids::ConnId;
use roomcast_proto::id::GatewayName;
use roomcast_proto::link::{Item, Push};
use roomcast_proto::retry::Failure;
use roomcast_proto::time::{MINUTE, Millis};
use std::collections::{HashMap, HashSet, VecDeque};

/// Maximum size in bytes of the texts that wait for a gateway. Above it, the texts with logged
/// events are dropped; the gateway receives these events from the log later.
const MAX_WAITING: usize = 32 << 20;

/// Maximum number of portions of the log (see [`crate::catch_up`]) in a delivery. Together they
/// have about 1 MiB, so that a gateway handles one delivery in a short time. Other items do not
/// count, because a busy room must not delay a catch-up.
const MAX_PORTIONS: usize = 4;

/// Delays of the retries of a failed delivery, in milliseconds.
const RETRIES: [Millis; 3] = [20, 100, 500];

/// Delays in milliseconds of the further attempts after the retries, while the gateway counts as
/// unreachable. The items for it are dropped, because it requests missing events later. After the
/// last attempt the room gives the gateway up. In total this takes about as long as the default of
/// `GHOST_TIMEOUT`.
const BACKOFF: [Millis; 5] = [5_000, 10_000, 20_000, 30_000, 30_000];

/// Interval of the probes of a gateway that was given up, until a probe arrives or the gateway
/// sends a request. The clients of the gateway receive no events until it has learned that they
/// must join again.
const PROBE_INTERVAL: Millis = MINUTE;

/// Time in milliseconds after an error in the room before the host continues to send
/// deliveries. The next event has restored the room by then.
pub const RESTART_DELAY: Millis = 1_000;

/// The next step after a failed delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The host sends the same delivery again after this time.
    Again(Millis),
    /// The gateway is unreachable. After this time the host calls
    /// [`Room::probe_gateway`](crate::Room::probe_gateway) and continues.
    Later(Millis),
    /// The gateway is given up.
    Never,
}

/// The items that wait for one gateway, and the state of the deliveries to it.
#[derive(Default)]
struct GatewayOutbox {
    items: Vec<Item>,
    /// The texts of the items, without separators.
    texts: String,
    /// Connections that catch up, in the order in which they receive a portion.
    catching_up: VecDeque<ConnId>,
    /// Number of portions in the next delivery.
    portions: usize,
    /// `true` while the host sends deliveries.
    busy: bool,
    /// The number of the last delivery.
    number: u64,
    /// The items in the current delivery that must arrive.
    unacknowledged: Vec<Item>,
    /// Number of failures of the current delivery.
    attempts: usize,
    /// Number of consecutive times that the gateway was unreachable.
    failures: usize,
    given_up: Option<GivenUp>,
}

/// State of a gateway that was given up: only items that must arrive wait for it.
#[derive(Clone, Copy)]
struct GivenUp {
    /// The time of the next probe; `None` during a probe.
    probe_at: Option<Millis>,
}

/// The result of a delivery that the gateway has acknowledged.
#[derive(Default)]
pub(crate) struct Acknowledgement {
    /// The gateway was unreachable before, and items for it were dropped, so the room must
    /// probe its connections.
    pub(crate) was_unreachable: bool,
    /// The items of the delivery that the room stores until they are acknowledged: see
    /// [`Item::must_deliver`].
    pub(crate) delivered: Vec<Item>,
}

/// The outboxes of a room by the names of the gateways. They survive a failure of storage:
/// see [`Room::take_outboxes`](crate::Room::take_outboxes).
#[derive(Default)]
pub struct Outboxes(HashMap<GatewayName, GatewayOutbox>);

impl Outboxes {
    fn outbox(&mut self, gateway: &GatewayName) -> &mut GatewayOutbox {
        self.0.entry(gateway.clone()).or_default()
    }

    /// Adds an item with its text; empty if the item has none.
    ///
    /// For an unreachable gateway, texts are dropped: a probe finds out which events its
    /// connections lack. A join is dropped with its answer, so that the probe finds the
    /// connection unknown and the gateway answers the join by an error.
    pub(crate) fn queue(&mut self, gateway: &GatewayName, item: Item, text: &str) {
        let outbox = self.outbox(gateway);
        let is_kept = text.is_empty() && !matches!(item, Item::Subscribed { .. });
        if outbox.failures == 0 || is_kept {
            outbox.items.push(item);
            outbox.texts.push_str(text);
        }
    }

    /// Adds a connection that catches up.
    pub(crate) fn catch_up(&mut self, gateway: &GatewayName, conn: ConnId) {
        let outbox = self.outbox(gateway);
        if !outbox.catching_up.contains(&conn) {
            outbox.catching_up.push_back(conn);
        }
    }

    /// Returns the connection that receives the next portion, if the next delivery can
    /// contain one more. The caller passes the connection to [`Outboxes::catch_up`] again
    /// unless it has caught up.
    pub(crate) fn next_portion(&mut self, gateway: &GatewayName) -> Option<ConnId> {
        let outbox = self.0.get_mut(gateway)?;
        if outbox.failures > 0 || outbox.portions >= MAX_PORTIONS {
            return None;
        }
        let conn = outbox.catching_up.pop_front()?;
        outbox.portions += 1;
        Some(conn)
    }

    /// The connection that [`Outboxes::next_portion`] returned has no events to read, so the
    /// portion does not count.
    pub(crate) fn skip_portion(&mut self, gateway: &GatewayName) {
        if let Some(outbox) = self.0.get_mut(gateway) {
            outbox.portions = outbox.portions.saturating_sub(1);
        }
    }

    /// Returns `true` if no item waits and every item that must arrive was acknowledged.
    pub(crate) fn is_idle(&self) -> bool {
        let mut outboxes = self.0.values();
        outboxes.all(|outbox| outbox.items.is_empty() && outbox.unacknowledged.is_empty())
    }

    /// Called after the room was restored. Forgets the connections that catch up, because the room
    /// probes all connections, and connections that lack events join again.
    pub(crate) fn restart(&mut self) {
        for outbox in self.0.values_mut() {
            outbox.catching_up.clear();
        }
    }

    /// Returns the gateways with waiting items to which the host is not sending, and marks them as
    /// busy.
    pub(crate) fn start(&mut self) -> Vec<GatewayName> {
        let mut gateways = Vec::new();
        for (gateway, outbox) in &mut self.0 {
            if outbox.busy || outbox.is_suspended() {
                continue;
            }
            if !outbox.items.is_empty() || !outbox.catching_up.is_empty() {
                outbox.busy = true;
                gateways.push(gateway.clone());
            }
        }
        gateways
    }

    /// Removes all waiting items of a gateway and returns them as the body of a delivery. `header`
    /// returns the delivery with this number and these items. Returns `None` if no item waits; the
    /// host then stops sending to the gateway.
    pub(crate) fn take(
        &mut self,
        gateway: &GatewayName,
        header: impl FnOnce(u64, Vec<Item>) -> Push,
    ) -> Option<serde_json::Result<String>> {
        let outbox = self.0.get_mut(gateway)?;
        if outbox.items.is_empty() || outbox.is_suspended() {
            outbox.busy = false;
            return None;
        }
        outbox.number += 1;
        outbox.portions = 0;
        let push = header(outbox.number, std::mem::take(&mut outbox.items));
        let must_deliver = push.items.iter().filter(|item| item.must_deliver());
        outbox.unacknowledged = must_deliver.cloned().collect();
        Some(push.body(&std::mem::take(&mut outbox.texts)))
    }

    /// Handles the acknowledgement of the current delivery.
    pub(crate) fn acknowledged(&mut self, gateway: &GatewayName) -> Acknowledgement {
        let outbox = self.0.get_mut(gateway);
        outbox.map_or_else(Acknowledgement::default, |outbox| {
            outbox.given_up = None;
            outbox.attempts = 0;
            Acknowledgement {
                was_unreachable: std::mem::take(&mut outbox.failures) > 0,
                delivered: std::mem::take(&mut outbox.unacknowledged),
            }
        })
    }

    /// Handles the failure of the current delivery. An overloaded gateway counts as unreachable
    /// at once, because the short retries would make the overload worse.
    pub(crate) fn failed(&mut self, gateway: &GatewayName, failure: Failure) -> Retry {
        let Some(outbox) = self.0.get_mut(gateway) else {
            return Retry::Never;
        };
        let again = RETRIES
            .get(outbox.attempts)
            .copied()
            .filter(|_| failure != Failure::Overloaded);
        outbox.attempts += 1;
        match again {
            Some(delay) => Retry::Again(delay),
            None => self.unreachable(gateway).map_or(Retry::Never, Retry::Later),
        }
    }

    /// Handles an unreachable gateway: drops the items that may be lost. Returns the delay of the
    /// next attempt, or `None` if the gateway must be given up.
    fn unreachable(&mut self, gateway: &GatewayName) -> Option<Millis> {
        let outbox = self.0.get_mut(gateway)?;
        let delay = BACKOFF.get(outbox.failures).copied();
        outbox.attempts = 0;
        outbox.failures += 1;
        outbox.texts.clear();
        outbox.items.retain(Item::must_deliver);
        let unacknowledged = std::mem::take(&mut outbox.unacknowledged);
        outbox.items.splice(0..0, unacknowledged);
        delay.filter(|_| outbox.given_up.is_none())
    }

    /// Records that the host has stopped sending to a gateway because of an error in the room.
    pub(crate) fn stopped(&mut self, gateway: &GatewayName) {
        self.unreachable(gateway);
        if let Some(outbox) = self.0.get_mut(gateway) {
            outbox.busy = false;
            outbox.failures = 0;
        }
    }

    /// Drops items for slow gateways: texts with logged events, which are read from the log later,
    /// and then answers if they do not fit. Returns the gateways; the room must probe their
    /// connections.
    pub(crate) fn shed(&mut self) -> Vec<GatewayName> {
        let mut slow = Vec::new();
        for (gateway, outbox) in &mut self.0 {
            if outbox.texts.len() > MAX_WAITING {
                outbox.shed();
                slow.push(gateway.clone());
            }
        }
        slow
    }

    /// Gives a gateway up. The number of the last delivery stays, because the gateway may still
    /// work, and a delivery may be in progress. Items that must arrive wait until the gateway
    /// sends a request or is probed.
    pub(crate) fn give_up(&mut self, gateway: &GatewayName, now: Millis) {
        let Some(outbox) = self.0.get_mut(gateway) else {
            return;
        };
        let mut items = std::mem::take(&mut outbox.items);
        items.retain(Item::must_deliver);
        *outbox = GatewayOutbox {
            items,
            busy: outbox.busy,
            number: outbox.number,
            given_up: Some(GivenUp {
                probe_at: Some(now + PROBE_INTERVAL),
            }),
            ..GatewayOutbox::default()
        };
    }

    /// Handles a request of the gateway: it is no longer given up.
    pub(crate) fn active(&mut self, gateway: &GatewayName) {
        if let Some(outbox) = self.0.get_mut(gateway) {
            outbox.given_up = None;
        }
    }

    /// Returns the time at which [`Outboxes::probe`] must be called.
    pub(crate) fn probe_at(&self) -> Option<Millis> {
        let outboxes = self.0.values().filter(|outbox| !outbox.items.is_empty());
        outboxes
            .filter_map(|outbox| outbox.given_up?.probe_at)
            .min()
    }

    /// Starts the probes that are due, of gateways that were given up.
    pub(crate) fn probe(&mut self, now: Millis) {
        let outboxes = self.0.values_mut();
        for given_up in outboxes.filter_map(|outbox| outbox.given_up.as_mut()) {
            given_up.probe_at = given_up.probe_at.filter(|at| *at > now);
        }
    }
}

impl GatewayOutbox {
    /// Returns `true` if the gateway was given up and is not being probed.
    fn is_suspended(&self) -> bool {
        self.given_up
            .is_some_and(|given_up| given_up.probe_at.is_some())
    }

    /// See [`Outboxes::shed`].
    fn shed(&mut self) {
        let texts = std::mem::take(&mut self.texts);
        let mut rest = texts.as_str();
        let mut kept = Vec::with_capacity(self.items.len());
        // A join is dropped with its answer.
        let mut unanswered = HashSet::new();
        for item in std::mem::take(&mut self.items) {
            let (text, after) = rest.split_at_checked(item.bytes()).unwrap_or((rest, ""));
            rest = after;
            match &item {
                Item::Broadcast { .. } | Item::Unicast { at: Some(_), .. } => continue,
                Item::Unicast { to, .. } if self.texts.len() + text.len() > MAX_WAITING / 2 => {
                    unanswered.insert(to.clone());
                    continue;
                }
                _ => {}
            }
            self.texts.push_str(text);
            kept.push(item);
        }
        kept.retain(|item| match item {
            Item::Subscribed { to, .. } => !unanswered.contains(to),
            _ => true,
        });
        self.items = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::conn;
    use roomcast_proto::id::{ConnectionId, Epoch, RoomName};

    fn gateway() -> GatewayName {
        GatewayName::trusted("n0")
    }

    fn connection(id: &str) -> ConnectionId {
        ConnectionId::trusted(id)
    }

    fn joined(to: &ConnectionId) -> Item {
        Item::Subscribed {
            to: to.clone(),
            after: 0,
        }
    }

    fn text(outboxes: &mut Outboxes, to: &ConnectionId, text: &str, at: Option<u64>) {
        let item = Item::Unicast {
            to: to.clone(),
            bytes: text.len(),
            after: None,
            at,
        };
        outboxes.queue(&gateway(), item, text);
    }

    fn items(outboxes: &mut Outboxes) -> Vec<Item> {
        let body = outboxes.take(&gateway(), |number, items| Push {
            room: RoomName::trusted("r"),
            epoch: Epoch::default(),
            life: String::new(),
            number,
            items,
        });
        let body = body.expect("something waits");
        let body = body.expect("JSON");
        Push::parse(&body).expect("a push").0.items
    }

    #[test]
    fn a_backlog_drops_events_and_keeps_answers_and_items_that_must_arrive() {
        let mut outboxes = Outboxes::default();
        let (one, other) = (connection("c:1"), connection("d:1"));
        outboxes.queue(&gateway(), joined(&one), "");
        text(&mut outboxes, &one, "answer", None);
        let large = "x".repeat(MAX_WAITING);
        let all = Item::Broadcast {
            bytes: large.len(),
            not: Vec::new(),
            after: 0,
            at: 1,
        };
        outboxes.queue(&gateway(), all, &large);
        outboxes.queue(&gateway(), Item::Unsubscribed { to: other.clone() }, "");
        assert_eq!(outboxes.shed(), [gateway()]);
        assert!(outboxes.shed().is_empty(), "once");
        let kept = [
            Item::Subscribed {
                to: one.clone(),
                after: 0,
            },
            Item::Unicast {
                to: one,
                bytes: "answer".len(),
                after: None,
                at: None,
            },
            Item::Unsubscribed { to: other },
        ];
        assert_eq!(items(&mut outboxes), kept);
    }

    #[test]
    fn a_join_whose_answer_is_too_large_to_keep_is_dropped_with_it() {
        let mut outboxes = Outboxes::default();
        let to = connection("c:1");
        outboxes.queue(&gateway(), joined(&to), "");
        text(&mut outboxes, &to, &"x".repeat(MAX_WAITING + 1), None);
        outboxes.shed();
        outboxes.queue(
            &gateway(),
            Item::Probe {
                to: to.clone(),
                at: 1,
            },
            "",
        );
        // The gateway answers the join by an error when it is probed.
        assert_eq!(items(&mut outboxes), [Item::Probe { to, at: 1 }]);
    }

    #[test]
    fn a_gateway_that_was_given_up_gets_items_that_must_arrive_when_it_sends_a_request() {
        let mut outboxes = Outboxes::default();
        let lost = Item::Lost {
            to: connection("c:1"),
        };
        text(&mut outboxes, &connection("c:1"), "answer", None);
        outboxes.give_up(&gateway(), 0);
        outboxes.queue(&gateway(), lost.clone(), "");
        assert!(outboxes.start().is_empty(), "it is suspended");
        outboxes.active(&gateway());
        assert_eq!(outboxes.start(), [gateway()]);
        assert_eq!(items(&mut outboxes)[0], lost);
        // If this delivery fails as well, no item is lost, and the gateway is not given up
        // immediately.
        assert_eq!(outboxes.unreachable(&gateway()), Some(BACKOFF[0]));
        assert_eq!(items(&mut outboxes)[0], lost);
    }

    #[test]
    fn a_gateway_that_was_given_up_is_probed_after_the_interval() {
        let mut outboxes = Outboxes::default();
        outboxes.queue(
            &gateway(),
            Item::Lost {
                to: connection("c:1"),
            },
            "",
        );
        outboxes.give_up(&gateway(), 0);
        assert_eq!(outboxes.probe_at(), Some(MINUTE));
        outboxes.probe(MINUTE - 1);
        assert!(outboxes.start().is_empty());
        outboxes.probe(MINUTE);
        assert_eq!(outboxes.start(), [gateway()]);
        items(&mut outboxes);
        outboxes.acknowledged(&gateway());
        assert_eq!(outboxes.probe_at(), None);
    }

    #[test]
    fn connections_take_turns_until_the_delivery_has_all_its_portions() {
        let mut outboxes = Outboxes::default();
        let conns = [conn(1), conn(2)];
        for conn in conns {
            outboxes.catch_up(&gateway(), conn);
            outboxes.catch_up(&gateway(), conn);
        }
        assert_eq!(outboxes.start(), [gateway()]);
        for n in 0..MAX_PORTIONS {
            let conn = outboxes
                .next_portion(&gateway())
                .expect("there is room for one more");
            assert_eq!(conn, conns[n % 2]);
            outboxes.catch_up(&gateway(), conn);
        }
        assert_eq!(
            outboxes.next_portion(&gateway()),
            None,
            "the delivery is full"
        );
        // Other items do not count.
        text(
            &mut outboxes,
            &connection("c:1"),
            &"x".repeat(1 << 20),
            Some(1),
        );
        items(&mut outboxes);
        assert_eq!(outboxes.next_portion(&gateway()), Some(conns[0]));
    }

    #[test]
    fn connections_without_a_portion_do_not_count() {
        let mut outboxes = Outboxes::default();
        for _ in 0..=MAX_PORTIONS {
            outboxes.catch_up(&gateway(), conn(1));
            assert!(outboxes.next_portion(&gateway()).is_some());
            outboxes.skip_portion(&gateway());
        }
    }

    #[test]
    fn a_join_at_an_unreachable_gateway_is_dropped_with_its_answer() {
        let mut outboxes = Outboxes::default();
        let to = connection("c:1");
        outboxes.queue(
            &gateway(),
            Item::Unsubscribed {
                to: connection("d:1"),
            },
            "",
        );
        items(&mut outboxes);
        outboxes.unreachable(&gateway());
        outboxes.queue(&gateway(), joined(&to), "");
        text(&mut outboxes, &to, "answer", None);
        outboxes.queue(
            &gateway(),
            Item::Probe {
                to: to.clone(),
                at: 1,
            },
            "",
        );
        let out = Item::Unsubscribed {
            to: connection("d:1"),
        };
        assert_eq!(items(&mut outboxes), [out, Item::Probe { to, at: 1 }]);
    }

    #[test]
    fn an_overloaded_gateway_gets_no_short_retries() {
        let gateway = GatewayName::trusted("0");
        for failure in [Failure::Other, Failure::Transient] {
            let mut outboxes = Outboxes::default();
            outboxes.outbox(&gateway);
            assert_eq!(outboxes.failed(&gateway, failure), Retry::Again(RETRIES[0]));
        }
        let mut outboxes = Outboxes::default();
        outboxes.outbox(&gateway);
        for delay in BACKOFF {
            let retry = outboxes.failed(&gateway, Failure::Overloaded);
            assert_eq!(retry, Retry::Later(delay));
        }
        let retry = outboxes.failed(&gateway, Failure::Overloaded);
        assert_eq!(retry, Retry::Never);
    }
}
