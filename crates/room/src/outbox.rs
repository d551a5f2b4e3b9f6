//! The outboxes: the items that wait for each gateway.
//!
//! The room sends one request at a time to each gateway, which keeps the order. Items that
//! are added meanwhile go into the next request. Texts are not a backlog: above a limit, and
//! for a gateway that does not answer, texts with logged events are dropped, because the
//! connections receive these events from the log later.

use crate::ids::ConnId;
use crate::output_limit::{Fit, MAX_OUTPUT, OutputLimit, divide, output_of};
use crate::presence_link::{PresenceLink, PresenceStep};
use roomcast_proto::event;
use roomcast_proto::id::GatewayName;
use roomcast_proto::link::{Item, PresenceVersion, Push};
use roomcast_proto::retry::{Failure, jittered};
use roomcast_proto::time::{MINUTE, Millis, SECOND};
use std::collections::{HashMap, VecDeque};

/// Maximum size in bytes of the broadcasts that wait for a gateway. As much as the portions
/// of the log in one delivery: a larger backlog is read from the log just as fast.
const MAX_BROADCASTS: usize = 1 << 20;

/// Maximum size in bytes of the answers that wait for a gateway: 500 answers to `joinRoom`
/// in a room with 100 members (about 8 KiB each). Further commands are refused.
const MAX_ANSWERS: usize = 4 << 20;

/// Maximum size in bytes of the answers that wait for all gateways together: four full
/// outboxes. Further commands of all gateways are refused. Without it, 16 gateways that do not
/// accept deliveries would hold more than the budget of an object (`MAX_OBJECT_BYTES`).
const MAX_ALL_ANSWERS: usize = 16 << 20;

/// Maximum size in bytes of the broadcasts that wait for all gateways together: eight full
/// outboxes.
const MAX_ALL_BROADCASTS: usize = 8 << 20;

/// [`MAX_BROADCASTS`] while the host is short of memory.
const MAX_BROADCASTS_OVERLOADED: usize = 64 << 10;

/// Maximum number of portions of the log (see [`crate::catch_up`]) in a delivery. Together they
/// have about 1 MiB, so that a gateway handles one delivery in a short time. Other items do not
/// count, because a busy room must not delay a catch-up.
const MAX_PORTIONS: usize = 4;

/// Maximum number of probes in one delivery. The ids of the connections have about 50 KiB.
const MAX_PROBES: usize = 1_000;

/// Longest delays of the retries of a failed delivery, in milliseconds.
const RETRIES: [Millis; 3] = [20, 100, 500];

/// Longest delays in milliseconds of the further attempts, while the gateway counts as
/// unreachable. After the last one, the room tries again at [`PROBE_INTERVAL`]. The host sets
/// an alarm for these attempts, so that the room can hibernate.
const BACKOFF: [Millis; 4] = [5 * SECOND, 10 * SECOND, 20 * SECOND, 30 * SECOND];

/// Interval of the attempts after [`BACKOFF`]. A gateway that works again usually sends a
/// request to the room earlier.
const PROBE_INTERVAL: Millis = MINUTE;

/// Time in milliseconds after an error in the room before the host continues to send
/// deliveries. The next event has restored the room by then.
pub const RESTART_DELAY: Millis = 1_000;

/// The next step after a failed delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The host sends the same delivery again after this time.
    Again(Millis),
    /// The gateway is unreachable. The host stops;
    /// [`Room::start_deliveries`](crate::Room::start_deliveries) returns the gateway again
    /// after an alarm, or when the gateway has sent a request.
    Later,
}

/// The items that wait for one gateway, and the state of the deliveries to it.
#[derive(Default)]
struct GatewayOutbox {
    items: Vec<Item>,
    /// The texts of the items, without separators.
    texts: String,
    /// Size of the texts without logged events that are for one connection.
    answers: usize,
    /// Size of the answers that the room has decided to send and that are not queued yet.
    reserved: usize,
    /// Connections that catch up, in the order in which they receive a portion.
    catching_up: VecDeque<ConnId>,
    /// Connections that receive the portion that is being read, after the first one.
    group: Vec<ConnId>,
    /// Connections to probe.
    probes: VecDeque<ConnId>,
    /// Number of portions in the next delivery.
    portions: usize,
    /// The output that these portions cause; see [`MAX_OUTPUT`].
    portion_output: usize,
    /// The last delivery has left items, because all of them would have caused too much output.
    has_rest: bool,
    /// The presence that the gateway was told.
    presence: PresenceLink,
    /// `true` while the host sends deliveries.
    busy: bool,
    /// The number of the last delivery.
    number: u64,
    /// The items in the current delivery that are kept if it fails.
    unacknowledged: Vec<Item>,
    /// Number of failures of the current delivery.
    attempts: usize,
    /// Number of consecutive times that the gateway was unreachable. Above 0, only items that
    /// are kept and probes wait.
    failures: usize,
    /// The time of the next attempt to reach the gateway.
    retry_at: Option<Millis>,
    /// The room was restored and does not know since when the gateway is unreachable.
    is_restored: bool,
    /// Items for which [`needs_alarm`] returns `true` wait, or are in the current delivery.
    needs_alarm: bool,
}

/// Returns `true` for items that the gateway must receive soon even if the room loses its
/// memory: items with logged events, and items that are stored until they are acknowledged.
/// Ephemeral events and answers may be lost.
fn needs_alarm(item: &Item) -> bool {
    match item {
        Item::Broadcast { after, at, .. } => at > after,
        Item::Unicast { at, .. } => at.is_some(),
        Item::Multicast { .. } => true,
        item => item.must_deliver(),
    }
}

/// Returns `true` for items that are kept for an unreachable gateway. A connection must be
/// subscribed before any answer to it, and a gateway ignores a second subscription.
fn is_kept(item: &Item) -> bool {
    item.must_deliver() || matches!(item, Item::Subscribed { .. })
}

/// Returns `true` for items with a text without logged events for one connection.
fn is_answer(item: &Item) -> bool {
    matches!(item, Item::Unicast { at: None, .. })
}

/// The next delivery to a gateway.
pub struct NextDelivery {
    /// The body of the request.
    pub body: serde_json::Result<String>,
    /// The delivery after it can follow at once. The host lets other events be handled before.
    pub has_more: bool,
}

/// The result of a delivery that the gateway has acknowledged.
#[derive(Default)]
pub(crate) struct Acknowledgement {
    /// The gateway was unreachable before, and items for it were dropped, so the room must
    /// probe its connections.
    pub(crate) was_unreachable: bool,
    /// The number of the delivery.
    pub(crate) number: u64,
    /// The items of the delivery that the room stores until they are acknowledged: see
    /// [`Item::must_deliver`].
    pub(crate) delivered: Vec<Item>,
}

/// The texts that were dropped because too many waited.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shed {
    pub(crate) gateway: GatewayName,
    /// The last event before the dropped ones. `None` if no logged event was dropped.
    pub(crate) after: Option<u64>,
    /// Ephemeral events were dropped, which the log does not have.
    pub(crate) lost_ephemeral: bool,
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
    /// connections lack, and which have not received the answer to their join.
    pub(crate) fn queue(&mut self, gateway: &GatewayName, item: Item, text: &str) {
        let outbox = self.outbox(gateway);
        if outbox.failures > 0 && !is_kept(&item) {
            outbox.presence.lost();
            return;
        }
        if is_answer(&item) {
            outbox.answers += text.len();
        }
        outbox.needs_alarm |= needs_alarm(&item);
        outbox.items.push(item);
        outbox.texts.push_str(text);
    }

    /// Returns `true` if so many answers wait for a gateway, or for all gateways together, that
    /// the room must not execute further commands of it.
    pub(crate) fn is_full(&self, gateway: &GatewayName) -> bool {
        let size = |outbox: &GatewayOutbox| outbox.answers + outbox.reserved;
        self.exceeds(gateway, size, MAX_ANSWERS, MAX_ALL_ANSWERS)
    }

    /// Returns `true` if an answer to a gateway must be replaced by an error. Answers with
    /// reserved space fit in any case.
    pub(crate) fn refuses_answer(&self, gateway: &GatewayName) -> bool {
        self.exceeds(
            gateway,
            |outbox| outbox.answers,
            MAX_ANSWERS,
            MAX_ALL_ANSWERS,
        )
    }

    /// Returns `true` if so many answers wait for a gateway, or for all gateways together, that
    /// the room must not accept further requests of it. Even the refusals of commands do not
    /// fit.
    pub(crate) fn is_congested(&self, gateway: &GatewayName) -> bool {
        let all = MAX_ALL_ANSWERS + 2 * MAX_ANSWERS;
        self.exceeds(gateway, |outbox| outbox.answers, 2 * MAX_ANSWERS, all)
    }

    /// Returns `true` if the size of the outbox of a gateway is at least `one`, or the sum over
    /// all outboxes is at least `all`.
    fn exceeds(
        &self,
        gateway: &GatewayName,
        size: fn(&GatewayOutbox) -> usize,
        one: usize,
        all: usize,
    ) -> bool {
        let outbox = self.0.get(gateway);
        outbox.is_some_and(|outbox| size(outbox) >= one)
            || self.0.values().map(size).sum::<usize>() >= all
    }

    /// Reserves space for an answer that the caller queues later in the same input. Returns
    /// `false` if there is none.
    pub(crate) fn reserve(&mut self, gateway: &GatewayName, bytes: usize) -> bool {
        let is_full = self.is_full(gateway);
        if !is_full {
            self.outbox(gateway).reserved += bytes;
        }
        !is_full
    }

    /// Adds a connection that catches up, which is not in the list.
    pub(crate) fn catch_up(&mut self, gateway: &GatewayName, conn: ConnId) {
        self.outbox(gateway).catching_up.push_back(conn);
    }

    /// Adds connections to probe, in place of all that are left from an earlier probe.
    pub(crate) fn probe(&mut self, gateway: &GatewayName, conns: Vec<ConnId>) {
        self.outbox(gateway).probes = conns.into();
    }

    /// Adds one connection to probe after the room was restored.
    pub(crate) fn probe_restored(&mut self, gateway: &GatewayName, conn: ConnId) {
        let outbox = self.outbox(gateway);
        outbox.probes.push_back(conn);
        outbox.is_restored = outbox.number == 0;
    }

    /// Returns the connection that receives the next portion, if the next delivery can
    /// contain one more. The caller passes the connection to [`Outboxes::catch_up`] again
    /// unless it has caught up.
    pub(crate) fn next_portion(&mut self, gateway: &GatewayName) -> Option<ConnId> {
        let outbox = self.0.get_mut(gateway)?;
        // The rest may have been dropped.
        let has_rest = outbox.has_rest && !outbox.items.is_empty();
        if outbox.failures > 0
            || has_rest
            || outbox.portions >= MAX_PORTIONS
            || outbox.portion_output >= MAX_OUTPUT
        {
            return None;
        }
        let conn = outbox.catching_up.pop_front()?;
        outbox.group.clear();
        outbox.portions += 1;
        Some(conn)
    }

    /// Removes the connections for which `matches` returns `true` from those that catch up.
    /// They receive the same portion as the connection that [`Outboxes::next_portion`] has
    /// returned.
    pub(crate) fn share_portion(
        &mut self,
        gateway: &GatewayName,
        matches: impl Fn(ConnId) -> bool,
    ) {
        if let Some(outbox) = self.0.get_mut(gateway) {
            let GatewayOutbox {
                catching_up, group, ..
            } = outbox;
            catching_up.retain(|conn| {
                let joins = matches(*conn);
                if joins {
                    group.push(*conn);
                }
                !joins
            });
        }
    }

    /// Returns the connections of [`Outboxes::share_portion`] that receive the portion `text` with
    /// this delivery. The others receive it with a later one.
    pub(crate) fn take_group(&mut self, gateway: &GatewayName, text: &str) -> Vec<ConnId> {
        let Some(outbox) = self.0.get_mut(gateway) else {
            return Vec::new();
        };
        let mut group = std::mem::take(&mut outbox.group);
        let output = output_of(gateway, text);
        let left = MAX_OUTPUT.saturating_sub(outbox.portion_output + output);
        let fitting = (left / output).min(group.len());
        outbox.catching_up.extend(group.drain(fitting..));
        outbox.portion_output += output * (group.len() + 1);
        group
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

    /// Called after the room was restored. Forgets the connections that catch up or are to be
    /// probed, because their keys are no longer valid and the room probes all connections. The
    /// ephemeral events that waited in the room are lost.
    pub(crate) fn restart(&mut self) {
        for outbox in self.0.values_mut() {
            outbox.catching_up.clear();
            outbox.probes.clear();
            outbox.presence.lost();
        }
    }

    /// Returns `true` if an alarm must restore the room in case that it loses its memory,
    /// because a gateway has not acknowledged logged events, for example. Unreachable gateways
    /// do not count, because [`Outboxes::retry_at`] has the time of their next attempt.
    pub(crate) fn needs_alarm(&self) -> bool {
        let mut outboxes = self.0.values();
        outboxes.any(|outbox| outbox.needs_alarm && outbox.retry_at.is_none())
    }

    /// Returns the gateways with waiting items to which the host is not sending, and marks them as
    /// busy.
    pub(crate) fn start(&mut self) -> Vec<GatewayName> {
        let mut gateways = Vec::new();
        for (gateway, outbox) in &mut self.0 {
            if !outbox.busy && outbox.retry_at.is_none() && !outbox.is_empty() {
                outbox.busy = true;
                gateways.push(gateway.clone());
            }
        }
        gateways
    }

    /// Removes the connections to probe with the next delivery and returns them.
    pub(crate) fn take_probes(&mut self, gateway: &GatewayName) -> Vec<ConnId> {
        let outbox = self.0.get_mut(gateway);
        outbox.map_or_else(Vec::new, |outbox| {
            let n = outbox.probes.len().min(MAX_PROBES);
            outbox.probes.drain(..n).collect()
        })
    }

    /// Removes the items of the next delivery to a gateway, which has this number of
    /// `connections`: all that wait, up to [`MAX_OUTPUT`]. Adds `probes` at the end before.
    /// `version` is that of the room's presence. `header` returns the delivery with this number,
    /// this step of the presence and these items.
    /// Returns `None` if no item waits; the host then stops sending to the gateway.
    pub(crate) fn take(
        &mut self,
        gateway: &GatewayName,
        connections: usize,
        probes: Vec<Item>,
        version: PresenceVersion,
        header: impl FnOnce(u64, PresenceStep, Vec<Item>) -> Push,
    ) -> Option<NextDelivery> {
        let outbox = self.0.get_mut(gateway)?;
        outbox.items.extend(probes);
        if outbox.items.is_empty() {
            outbox.busy = false;
            outbox.needs_alarm = false;
            // An unreachable gateway has no connections left.
            outbox.failures = 0;
            return None;
        }
        outbox.number += 1;
        outbox.portions = 0;
        outbox.portion_output = 0;
        let (items, texts) = outbox.take_front(OutputLimit::new(gateway, connections));
        outbox.has_rest = !outbox.items.is_empty();
        let step = match outbox.has_rest {
            true => outbox.presence.step_without_change(),
            false => outbox.presence.step(version),
        };
        let push = header(outbox.number, step, items);
        let kept = push.items.iter().filter(|item| is_kept(item));
        outbox.unacknowledged = kept.cloned().collect();
        Some(NextDelivery {
            body: push.body(&texts),
            has_more: !outbox.is_empty(),
        })
    }

    /// Returns `true` if so many texts wait for a gateway that texts which can wait should not
    /// be added: half of those that [`Outboxes::shed`] permits.
    pub(crate) fn has_backlog(&self, gateway: &GatewayName) -> bool {
        let outbox = self.0.get(gateway);
        outbox.is_some_and(|outbox| outbox.broadcasts() > MAX_BROADCASTS / 2)
    }

    /// Returns the number of the last delivery to a gateway.
    pub(crate) fn number(&self, gateway: &GatewayName) -> u64 {
        self.0.get(gateway).map_or(0, |outbox| outbox.number)
    }

    /// Handles the acknowledgement of the current delivery.
    pub(crate) fn acknowledged(&mut self, gateway: &GatewayName) -> Acknowledgement {
        let outbox = self.0.get_mut(gateway);
        outbox.map_or_else(Acknowledgement::default, |outbox| {
            outbox.attempts = 0;
            outbox.is_restored = false;
            outbox.presence.acknowledged();
            let mut delivered = std::mem::take(&mut outbox.unacknowledged);
            delivered.retain(Item::must_deliver);
            Acknowledgement {
                was_unreachable: std::mem::take(&mut outbox.failures) > 0,
                number: outbox.number,
                delivered,
            }
        })
    }

    /// Handles the failure of the current delivery. An overloaded gateway counts as unreachable
    /// at once, because the short retries would make the overload worse. `random` is a random
    /// number for the delay.
    pub(crate) fn failed(
        &mut self,
        gateway: &GatewayName,
        failure: Failure,
        random: u32,
        now: Millis,
    ) -> Retry {
        let Some(outbox) = self.0.get_mut(gateway) else {
            return Retry::Later;
        };
        let again = RETRIES
            .get(outbox.attempts)
            .filter(|_| failure != Failure::Overloaded);
        if let Some(delay) = again {
            outbox.attempts += 1;
            return Retry::Again(jittered(*delay, random));
        }
        let delay = match BACKOFF.get(outbox.failures) {
            Some(delay) if outbox.failures == 0 || !outbox.is_restored => *delay,
            _ => PROBE_INTERVAL,
        };
        outbox.drop_texts();
        outbox.failures += 1;
        outbox.retry_at = Some(now + jittered(delay, random));
        Retry::Later
    }

    /// Records that the host has stopped sending to a gateway because of an error in the room.
    pub(crate) fn stopped(&mut self, gateway: &GatewayName) {
        if let Some(outbox) = self.0.get_mut(gateway) {
            outbox.drop_texts();
        }
    }

    /// Drops broadcasts for gateways for which too many wait, and unicast texts with the same
    /// events. If too many wait for all gateways together, drops those for the gateways for
    /// which more than an equal share waits. Answers are kept. The connections must receive the
    /// dropped events from the log. `is_overloaded` is `true` if the host is short of memory.
    /// Called after each input.
    pub(crate) fn shed(&mut self, is_overloaded: bool) -> Vec<Shed> {
        let sizes = self.0.values().map(GatewayOutbox::broadcasts);
        let (mut all, mut gateways) = (0, 0);
        for size in sizes.filter(|size| *size > 0) {
            all += size;
            gateways += 1;
        }
        let limit = match is_overloaded {
            true => MAX_BROADCASTS_OVERLOADED,
            false if all > MAX_ALL_BROADCASTS => MAX_ALL_BROADCASTS / gateways,
            false => MAX_BROADCASTS,
        };
        let mut slow = Vec::new();
        for (gateway, outbox) in &mut self.0 {
            outbox.reserved = 0;
            if outbox.broadcasts() > limit {
                let shed = outbox.shed(gateway);
                if shed.after.is_some() || shed.lost_ephemeral {
                    slow.push(shed);
                }
            }
        }
        slow
    }

    /// Handles a request of the gateway: it is no longer unreachable. Returns `true` if it was;
    /// the room must then probe its connections.
    pub(crate) fn active(&mut self, gateway: &GatewayName) -> bool {
        let Some(outbox) = self.0.get_mut(gateway) else {
            return false;
        };
        outbox.retry_at = None;
        // The answer to the request waits like any other.
        std::mem::take(&mut outbox.failures) > 0
    }

    /// Returns the time at which [`Outboxes::retry`] must be called. An unreachable gateway for
    /// which nothing waits needs no attempt.
    pub(crate) fn retry_at(&self) -> Option<Millis> {
        let outboxes = self.0.values().filter(|outbox| !outbox.is_empty());
        outboxes.filter_map(|outbox| outbox.retry_at).min()
    }

    /// Starts the attempts to reach gateways that are due. Returns these gateways; the room
    /// must probe their connections.
    pub(crate) fn retry(&mut self, now: Millis) -> Vec<GatewayName> {
        let due = self.0.iter_mut().filter_map(|(gateway, outbox)| {
            let is_due = outbox.retry_at.is_some_and(|at| at <= now);
            if is_due {
                outbox.retry_at = None;
            }
            is_due.then(|| gateway.clone())
        });
        due.collect()
    }
}

impl GatewayOutbox {
    fn is_empty(&self) -> bool {
        self.items.is_empty() && self.catching_up.is_empty() && self.probes.is_empty()
    }

    /// Returns the size of the texts that are not answers.
    fn broadcasts(&self) -> usize {
        self.texts.len() - self.answers
    }

    /// Removes the items of the next delivery and their texts.
    fn take_front(&mut self, mut limit: OutputLimit<'_>) -> (Vec<Item>, String) {
        let (mut whole, mut length, mut part) = (0, 0, None);
        for item in &mut self.items {
            let text = &self.texts[length..];
            let text = text.get(..item.bytes()).unwrap_or(text);
            match limit.take(item, text) {
                Fit::Whole => length += text.len(),
                Fit::Lines(lines) => {
                    part = Some(divide(item, text, lines));
                    break;
                }
                Fit::Nothing => break,
            }
            whole += 1;
        }
        let rest = self.items.split_off(whole);
        let mut items = std::mem::replace(&mut self.items, rest);
        let mut end = length;
        if let Some((item, bytes)) = part {
            items.push(item);
            // The line break between the parts is dropped.
            (length, end) = (length + bytes, length + bytes + 1);
        }
        let rest = self.texts.split_off(end);
        let mut texts = std::mem::replace(&mut self.texts, rest);
        texts.truncate(length);
        let answers = items.iter().filter(|item| is_answer(item));
        self.answers -= answers.map(Item::bytes).sum::<usize>();
        (items, texts)
    }

    /// Drops all texts and probes, also those of the current delivery.
    fn drop_texts(&mut self) {
        self.busy = false;
        self.attempts = 0;
        self.answers = 0;
        self.presence.lost();
        self.texts.clear();
        self.items.retain(is_kept);
        let unacknowledged = std::mem::take(&mut self.unacknowledged);
        self.items.splice(0..0, unacknowledged);
    }

    /// See [`Outboxes::shed`].
    fn shed(&mut self, gateway: &GatewayName) -> Shed {
        let mut shed = Shed {
            gateway: gateway.clone(),
            after: None,
            lost_ephemeral: false,
        };
        let texts = std::mem::take(&mut self.texts);
        let mut rest = texts.as_str();
        for item in std::mem::take(&mut self.items) {
            let (text, after) = rest.split_at_checked(item.bytes()).unwrap_or((rest, ""));
            rest = after;
            match &item {
                Item::Broadcast { after, at, .. } => {
                    let events = (at - after) as usize;
                    let lines = text.split('\n').count();
                    if lines > events {
                        shed.lost_ephemeral = true;
                        self.presence.lost();
                    }
                    if events > 0 {
                        shed.after.get_or_insert(*after);
                    }
                }
                // The events are those of a broadcast.
                Item::Unicast { after: Some(_), .. } if !event::is_gap(text) => {}
                _ => {
                    self.texts.push_str(text);
                    self.items.push(item);
                }
            }
        }
        shed
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

    fn text(outboxes: &mut Outboxes, to: &str, text: &str, after: Option<u64>) {
        let item = Item::Unicast {
            to: connection(to),
            bytes: text.len(),
            after,
            at: after.map(|after| after + 1),
        };
        outboxes.queue(&gateway(), item, text);
    }

    /// Queues a broadcast of one event after `after`, with `more` lines.
    fn broadcast(outboxes: &mut Outboxes, after: u64, bytes: usize, more: &str) {
        let text = format!("{}{more}", "x".repeat(bytes));
        broadcast_to(outboxes, &gateway(), after, &text);
    }

    /// Queues a broadcast of one event after `after` for a gateway.
    fn broadcast_to(outboxes: &mut Outboxes, gateway: &GatewayName, after: u64, text: &str) {
        let item = Item::Broadcast {
            bytes: text.len(),
            not: Vec::new(),
            after,
            at: after + 1,
            presence: false,
        };
        outboxes.queue(gateway, item, text);
    }

    fn out(id: &str) -> Item {
        let to = connection(id);
        Item::Unsubscribed { to }
    }

    fn header(number: u64, step: PresenceStep, items: Vec<Item>) -> Push {
        Push {
            room: RoomName::trusted("r"),
            epoch: Epoch::default(),
            life: String::new(),
            number,
            presence_before: step.before,
            presence: step.after,
            items,
        }
    }

    fn take(outboxes: &mut Outboxes, probes: Vec<Item>) -> Option<Vec<Item>> {
        let delivery = outboxes.take(&gateway(), 1, probes, 0, header)?;
        let body = delivery.body.expect("JSON");
        Some(Push::parse(&body).expect("a push").0.items)
    }

    fn items(outboxes: &mut Outboxes) -> Vec<Item> {
        take(outboxes, Vec::new()).expect("something waits")
    }

    /// Lets the current delivery fail until the gateway counts as unreachable. Returns the
    /// delay of the next attempt.
    fn fail(outboxes: &mut Outboxes, now: Millis) -> Millis {
        while let Retry::Again(_) = outboxes.failed(&gateway(), Failure::Other, 0, now) {}
        let outbox = &outboxes.0[&gateway()];
        outbox.retry_at.expect("the next attempt") - now
    }

    #[test]
    fn a_backlog_drops_broadcasts_and_keeps_answers_and_items_that_must_arrive() {
        let mut outboxes = Outboxes::default();
        text(&mut outboxes, "c:1", "answer", None);
        text(&mut outboxes, "d:1", "an event", Some(7));
        let gap = event::gap("r", 1, 2);
        text(&mut outboxes, "e:1", &gap, Some(0));
        broadcast(&mut outboxes, 7, MAX_BROADCASTS / 2, "");
        broadcast(&mut outboxes, 8, MAX_BROADCASTS / 2, "");
        outboxes.queue(&gateway(), out("f:1"), "");
        let shed = Shed {
            gateway: gateway(),
            after: Some(7),
            lost_ephemeral: false,
        };
        assert_eq!(outboxes.shed(false), [shed]);
        assert!(outboxes.shed(false).is_empty(), "once");
        let kept = items(&mut outboxes);
        let to: Vec<_> = kept.iter().filter_map(Item::to).collect();
        assert_eq!(to, ["c:1", "e:1", "f:1"]);
        assert_eq!(kept.len(), 3, "{kept:?}");
    }

    #[test]
    fn a_backlog_reports_dropped_ephemeral_events() {
        let mut outboxes = Outboxes::default();
        broadcast(&mut outboxes, 1, MAX_BROADCASTS, "\ntyping");
        let [shed] = &outboxes.shed(false)[..] else {
            panic!("nothing was dropped");
        };
        assert_eq!((shed.after, shed.lost_ephemeral), (Some(1), true));
    }

    #[test]
    fn the_waiting_texts_for_a_gateway_have_a_limit() {
        let mut outboxes = Outboxes::default();
        for after in 0..100 {
            broadcast(&mut outboxes, after, 100_000, "");
            text(&mut outboxes, "c:1", "an event", Some(after));
            outboxes.shed(false);
            let texts = outboxes.0[&gateway()].texts.len();
            assert!(texts <= MAX_BROADCASTS, "{texts} bytes");
        }
    }

    #[test]
    fn an_outbox_is_full_when_too_many_answers_wait_or_are_reserved() {
        let mut outboxes = Outboxes::default();
        let half = "x".repeat(MAX_ANSWERS / 2);
        text(&mut outboxes, "c:1", &half, None);
        assert!(!outboxes.is_full(&gateway()));
        assert!(outboxes.reserve(&gateway(), half.len()));
        assert!(outboxes.is_full(&gateway()));
        assert!(!outboxes.refuses_answer(&gateway()), "it was reserved");
        assert!(!outboxes.reserve(&gateway(), 1));
        outboxes.shed(false);
        assert!(!outboxes.is_full(&gateway()), "the input has ended");
        for n in 1..4 {
            text(&mut outboxes, "c:1", &half, None);
            assert_eq!(outboxes.is_congested(&gateway()), n == 3, "{n}");
        }
        while take(&mut outboxes, Vec::new()).is_some() {}
        assert!(!outboxes.is_full(&gateway()), "the answers were sent");
    }

    fn gateways() -> Vec<GatewayName> {
        let names = (0..16).map(|n| GatewayName::trusted(format!("n{n}")));
        names.collect()
    }

    #[test]
    fn the_answers_for_all_gateways_together_have_a_limit() {
        let mut outboxes = Outboxes::default();
        let answer = "x".repeat(64 << 10);
        let item = Item::Unicast {
            to: connection("c:1"),
            bytes: answer.len(),
            after: None,
            at: None,
        };
        let mut bytes = 0;
        // As many as fit into the outboxes if each has a limit of its own.
        for _ in 0..MAX_ANSWERS / answer.len() {
            for gateway in gateways() {
                if !outboxes.is_full(&gateway) {
                    outboxes.queue(&gateway, item.clone(), &answer);
                    bytes += answer.len();
                }
            }
        }
        assert_eq!(bytes, MAX_ALL_ANSWERS);
        let [first, others @ ..] = &gateways()[..] else {
            panic!("no gateways");
        };
        assert!(outboxes.is_full(first) && outboxes.refuses_answer(first));
        assert!(!outboxes.reserve(first, 1) && !outboxes.is_congested(first));
        for gateway in others {
            outboxes.0.remove(gateway);
        }
        assert!(!outboxes.is_full(first) && !outboxes.refuses_answer(first));
    }

    #[test]
    fn the_broadcasts_for_all_gateways_together_have_a_limit() {
        let mut outboxes = Outboxes::default();
        let text = "x".repeat(10_000);
        let (mut peak, mut shed) = (0, 0);
        for after in 0..200 {
            for gateway in gateways() {
                broadcast_to(&mut outboxes, &gateway, after, &text);
            }
            shed += outboxes.shed(false).len();
            let all = outboxes.0.values().map(|outbox| outbox.texts.len()).sum();
            peak = peak.max(all);
        }
        assert!(peak <= MAX_ALL_BROADCASTS, "{peak} bytes");
        assert!(peak > MAX_ALL_BROADCASTS / 2 && shed >= 16, "{peak} {shed}");
    }

    #[test]
    fn a_room_short_of_memory_drops_broadcasts() {
        let mut outboxes = Outboxes::default();
        broadcast(&mut outboxes, 7, MAX_BROADCASTS_OVERLOADED + 1, "");
        assert!(outboxes.shed(false).is_empty());
        let [shed] = &outboxes.shed(true)[..] else {
            panic!("nothing was dropped");
        };
        assert_eq!(shed.after, Some(7));
    }

    #[test]
    fn an_unreachable_gateway_is_tried_again_by_alarm_at_growing_intervals() {
        let mut outboxes = Outboxes::default();
        let mut now = 0;
        outboxes.queue(&gateway(), out("c:1"), "");
        for longest in BACKOFF.into_iter().chain([PROBE_INTERVAL; 3]) {
            assert_eq!(outboxes.start(), [gateway()]);
            assert_eq!(items(&mut outboxes), [out("c:1")]);
            let delay = fail(&mut outboxes, now);
            assert_eq!(delay, longest / 2, "the shortest delay");
            assert!(outboxes.start().is_empty(), "until the alarm");
            assert_eq!(outboxes.retry_at(), Some(now + delay));
            assert!(outboxes.retry(now + delay - 1).is_empty());
            now += delay;
            assert_eq!(outboxes.retry(now), [gateway()]);
        }
        assert_eq!(outboxes.start(), [gateway()]);
        items(&mut outboxes);
        let acknowledged = outboxes.acknowledged(&gateway());
        assert!(acknowledged.was_unreachable);
        assert_eq!(acknowledged.delivered, [out("c:1")]);
        assert_eq!(outboxes.retry_at(), None);
    }

    #[test]
    fn a_restored_room_tries_an_unreachable_gateway_once_a_minute() {
        let mut outboxes = Outboxes::default();
        outboxes.probe_restored(&gateway(), conn(1));
        outboxes.queue(&gateway(), out("c:1"), "");
        items(&mut outboxes);
        assert_eq!(fail(&mut outboxes, 0), BACKOFF[0] / 2);
        items(&mut outboxes);
        assert_eq!(fail(&mut outboxes, 0), PROBE_INTERVAL / 2);
    }

    #[test]
    fn only_items_without_texts_wait_for_an_unreachable_gateway() {
        let mut outboxes = Outboxes::default();
        outboxes.queue(&gateway(), out("c:1"), "");
        text(&mut outboxes, "c:1", "answer", None);
        items(&mut outboxes);
        broadcast(&mut outboxes, 1, 1, "");
        fail(&mut outboxes, 0);
        let to = connection("d:1");
        let subscribed = Item::Subscribed { to, after: 0 };
        outboxes.queue(&gateway(), subscribed.clone(), "");
        text(&mut outboxes, "d:1", "answer", None);
        broadcast(&mut outboxes, 2, 1, "");
        outboxes.queue(&gateway(), out("d:1"), "");
        let kept = [out("c:1"), subscribed, out("d:1")];
        assert_eq!(items(&mut outboxes), kept);
        let acknowledged = outboxes.acknowledged(&gateway());
        assert_eq!(acknowledged.delivered, [out("c:1"), out("d:1")]);
    }

    #[test]
    fn a_request_of_an_unreachable_gateway_starts_the_next_attempt_with_its_answer() {
        let mut outboxes = Outboxes::default();
        outboxes.queue(&gateway(), out("c:1"), "");
        items(&mut outboxes);
        fail(&mut outboxes, 0);
        assert!(outboxes.active(&gateway()));
        assert!(!outboxes.active(&gateway()), "once");
        text(&mut outboxes, "d:1", "answer", None);
        assert_eq!(outboxes.start(), [gateway()]);
        assert_eq!(items(&mut outboxes).len(), 2);
    }

    #[test]
    fn connections_take_turns_until_the_delivery_has_all_its_portions() {
        let mut outboxes = Outboxes::default();
        let conns = [conn(1), conn(2)];
        for conn in conns {
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
        text(&mut outboxes, "c:1", &"x".repeat(1 << 20), Some(1));
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
    fn connections_that_match_share_a_portion() {
        let mut outboxes = Outboxes::default();
        let conns: Vec<ConnId> = (0..20).map(conn).collect();
        for conn in &conns {
            outboxes.catch_up(&gateway(), *conn);
        }
        let first = outboxes.next_portion(&gateway()).expect("a connection");
        outboxes.share_portion(&gateway(), |one| one != conns[5]);
        let group = outboxes.take_group(&gateway(), "x");
        assert_eq!(group.len() + 2, conns.len());
        assert!(!group.contains(&first) && !group.contains(&conns[5]));
        assert_eq!(outboxes.next_portion(&gateway()), Some(conns[5]));
        assert!(outboxes.take_group(&gateway(), "x").is_empty());
    }

    #[test]
    fn the_portions_of_a_delivery_cause_a_limited_output() {
        let mut outboxes = Outboxes::default();
        let conns: Vec<ConnId> = (0..10).map(conn).collect();
        for conn in &conns {
            outboxes.catch_up(&gateway(), *conn);
        }
        let quarter = "x".repeat(MAX_OUTPUT / 4 - 5_000);
        assert_eq!(outboxes.next_portion(&gateway()), Some(conns[0]));
        outboxes.share_portion(&gateway(), |_| true);
        assert_eq!(outboxes.take_group(&gateway(), &quarter), conns[1..4]);
        text(&mut outboxes, "c:1", &quarter, Some(1));
        items(&mut outboxes);
        // The others follow with the next delivery. A portion that is too large goes alone.
        assert_eq!(outboxes.next_portion(&gateway()), Some(conns[4]));
        outboxes.share_portion(&gateway(), |_| true);
        let alone = outboxes.take_group(&gateway(), &"x".repeat(MAX_OUTPUT + 1));
        assert!(alone.is_empty(), "{alone:?}");
        assert_eq!(outboxes.next_portion(&gateway()), None);
    }

    #[test]
    fn a_delivery_with_too_much_output_is_divided_and_changes_the_presence_at_its_end() {
        let gateway = GatewayName::trusted("0");
        let mut outboxes = Outboxes::default();
        let lines: Vec<String> = (0..1_000).map(|n| format!("line {n}")).collect();
        let text = lines.join("\n");
        let item = Item::Broadcast {
            bytes: text.len(),
            not: Vec::new(),
            after: 0,
            at: 600,
            presence: true,
        };
        outboxes.queue(&gateway, item, &text);
        let (mut received, mut deliveries, mut last) = (Vec::new(), 0, 0);
        while let Some(delivery) = outboxes.take(&gateway, 10, Vec::new(), 8, header) {
            deliveries += 1;
            let body = delivery.body.expect("JSON");
            let (push, texts) = Push::parse(&body).expect("a push");
            let [
                Item::Broadcast {
                    after,
                    at,
                    presence,
                    ..
                },
            ] = push.items[..]
            else {
                panic!("{:?}", push.items);
            };
            assert_eq!(after, last);
            last = at;
            received.extend(texts[0].split('\n').map(str::to_owned));
            let is_last = received.len() == lines.len();
            assert_eq!((presence, delivery.has_more), (is_last, !is_last));
            assert_eq!(push.presence, if is_last { 8 } else { 0 });
            outboxes.acknowledged(&gateway);
        }
        assert!(deliveries > 5, "{deliveries}");
        assert_eq!((last, received), (600, lines));
        assert!(outboxes.0[&gateway].texts.is_empty());
    }

    #[test]
    fn a_catch_up_continues_after_the_rest_of_a_divided_delivery_was_dropped() {
        let mut outboxes = Outboxes::default();
        for after in 0..2 {
            broadcast(&mut outboxes, after, MAX_OUTPUT / 2, "");
        }
        items(&mut outboxes);
        outboxes.catch_up(&gateway(), conn(1));
        assert_eq!(
            outboxes.next_portion(&gateway()),
            None,
            "the rest goes first"
        );
        outboxes.stopped(&gateway());
        assert_eq!(outboxes.next_portion(&gateway()), Some(conn(1)));
    }

    #[test]
    fn a_delivery_has_a_limited_number_of_probes() {
        let mut outboxes = Outboxes::default();
        let conns: Vec<ConnId> = (0..MAX_PROBES as u32 + 1).map(conn).collect();
        outboxes.probe(&gateway(), conns.clone());
        assert_eq!(outboxes.start(), [gateway()]);
        assert_eq!(outboxes.take_probes(&gateway()).len(), MAX_PROBES);
        assert_eq!(outboxes.take_probes(&gateway()), conns[MAX_PROBES..]);
        assert!(take(&mut outboxes, Vec::new()).is_none(), "none is left");
        let probe = Item::Probe {
            to: connection("c:1"),
            at: 1,
            activity: false,
        };
        assert_eq!(take(&mut outboxes, vec![probe.clone()]), Some(vec![probe]));
    }

    #[test]
    fn an_overloaded_gateway_gets_no_short_retries() {
        for failure in [Failure::Other, Failure::Transient] {
            let mut outboxes = Outboxes::default();
            outboxes.outbox(&gateway());
            let retry = outboxes.failed(&gateway(), failure, 0, 0);
            assert_eq!(retry, Retry::Again(RETRIES[0] / 2));
        }
        let mut outboxes = Outboxes::default();
        outboxes.outbox(&gateway());
        let retry = outboxes.failed(&gateway(), Failure::Overloaded, 0, 0);
        assert_eq!(retry, Retry::Later);
    }
}
