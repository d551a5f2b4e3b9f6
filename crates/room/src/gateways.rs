//! Connections at gateways: their requests, and what goes to the gateways.
//!
//! To a room, a connection at a gateway is a connection like those of its own
//! sockets. [`Room::route`] takes what is for such connections out of the room's
//! outputs and queues it; the host sends it by one request at a time for each
//! gateway. The order of calls:
//!
//! - For each command of a gateway's request: [`Room::link`].
//! - Each output, when its turn has come: [`Room::route`], and the host carries out
//!   what is left.
//! - After each input: [`Room::start_pushes`] names the gateways to which something
//!   is to be sent and nothing is on its way. For each of them, until
//!   [`Room::take_push`] returns `None`: [`Room::next_read`] and [`Room::read`] for
//!   connections that catch up, [`Room::take_push`], the request, and then
//!   [`Room::push_reached`] or [`Room::push_failed`].
//! - After hibernation: [`Room::restore_subscriber`] for each that is stored. After
//!   a failure of storage, with [`Room::set_outboxes`] before.

use super::catch_up::Portion;
use super::links::Links;
use super::tick::utf16_length;
use super::{Attachment, Change, ConnId, Delivery, Frame, Output, Room};
use roomcast_proto::access::TokenId;
use roomcast_proto::error::{Error, ErrorCode};
use roomcast_proto::framing;
use roomcast_proto::link::{Command, Item, Push, Pushed};
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::time::Millis;
use slotmap::SecondaryMap;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// A close without a close frame (RFC 6455, 7.4.1).
const ABNORMAL: u16 = 1006;

/// What is stored of a connection at a gateway. The two forms have no field in
/// common, so either is known by its JSON.
#[derive(Debug)]
pub enum Kept {
    /// It is in the room.
    Here(Attachment),
    /// It is not, and its gateway may not know yet.
    Parted(Item),
}

impl Kept {
    pub fn json(&self) -> serde_json::Result<String> {
        match self {
            Kept::Here(attachment) => serde_json::to_string(attachment),
            Kept::Parted(word) => serde_json::to_string(word),
        }
    }

    /// Returns `None` for a form of a later version.
    pub fn parse(json: &str) -> Option<Self> {
        let here = serde_json::from_str(json).map(Kept::Here);
        here.or_else(|_| serde_json::from_str(json).map(Kept::Parted))
            .ok()
    }
}

/// What becomes of a push that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same push again, after so many milliseconds.
    Again(Millis),
    /// The gateway is out of reach. After so many milliseconds [`Room::look_for`] it
    /// and go on.
    Later(Millis),
    /// The gateway is given up.
    Never,
}

/// The gateway that holds a connection, and the connection's name there.
#[derive(Clone, Debug)]
struct Remote {
    gateway: Rc<str>,
    id: Rc<str>,
}

/// The connections at gateways, and what waits for the gateways.
#[derive(Default)]
pub(super) struct Gateways {
    outboxes: Links,
    remotes: SecondaryMap<ConnId, Remote>,
    by_id: HashMap<Rc<str>, ConnId>,
    /// Connections of each gateway.
    counts: HashMap<Rc<str>, usize>,
    /// Names this waking of the room.
    life: String,
}

impl Gateways {
    pub(super) fn new(life: String) -> Self {
        Gateways {
            life,
            ..Gateways::default()
        }
    }

    fn place(&mut self, conn: ConnId, gateway: Rc<str>, id: Rc<str>) {
        self.by_id.insert(id.clone(), conn);
        *self.counts.entry(gateway.clone()).or_default() += 1;
        self.remotes.insert(conn, Remote { gateway, id });
    }

    fn remove(&mut self, conn: ConnId) -> Option<Remote> {
        let remote = self.remotes.remove(conn)?;
        self.by_id.remove(&remote.id);
        if let Some(count) = self.counts.get_mut(&remote.gateway) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&remote.gateway);
            }
        }
        Some(remote)
    }

    /// A text for one connection; see [`Item::One`].
    fn one(&mut self, conn: ConnId, text: &str, events: (Option<u64>, Option<u64>)) {
        if let Some(Remote { gateway, id }) = self.remotes.get(conn)
            && !text.is_empty()
        {
            let (after, at) = events;
            self.outboxes
                .queue_text(gateway, id.to_string(), text, after, at);
        }
    }

    fn connections_of(&self, gateway: &str) -> Vec<(ConnId, Remote)> {
        let remotes = self.remotes.iter();
        let here = remotes.filter(|(_, remote)| *remote.gateway == *gateway);
        here.map(|(conn, remote)| (conn, remote.clone())).collect()
    }

    /// Asks a gateway which connections it still has, and how far each is.
    fn probe_connections(&mut self, gateway: &str, head: u64) {
        for (_, Remote { id, .. }) in self.connections_of(gateway) {
            let (to, at) = (id.to_string(), head);
            self.outboxes.queue(gateway, Item::Is { to, at }, "");
        }
    }

    /// What the gateway must hear of a connection that is not of the room any more:
    /// stored until it has.
    fn must_deliver(&mut self, remote: &Remote, word: Item) -> Change {
        self.outboxes.queue(&remote.gateway, word.clone(), "");
        Change::PutSubscriber {
            id: remote.id.to_string(),
            gateway: remote.gateway.to_string(),
            kept: Kept::Parted(word),
        }
    }
}

impl Room {
    /// A command of a gateway for one of its connections. `is_revoked` says whether
    /// the token of a user was revoked. The outputs are carried out before the next
    /// command of the request.
    pub fn link(
        &mut self,
        gateway: &Rc<str>,
        command: Command,
        is_revoked: impl Fn(&str, &TokenId) -> bool,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        self.gateways.outboxes.spoke(gateway);
        let id: Rc<str> = command.connection().into();
        let known = self.gateways.by_id.get(&id).copied();
        match command {
            Command::Join {
                hello,
                id: answer,
                again,
            } => {
                let user = hello.user.clone();
                let joined = match is_revoked(&hello.user, &hello.token) {
                    true => Err(Error::unauthorized("the token was revoked")),
                    false => self.subscribe(hello, answer, again, now, out),
                };
                match joined {
                    Ok(conn) => self.gateways.place(conn, gateway.clone(), id),
                    Err(error) => {
                        // A connection that subscribes again by itself has asked
                        // nothing.
                        let answer = (!again).then(|| framing::error(answer, &error));
                        let remote = Remote {
                            gateway: gateway.clone(),
                            id,
                        };
                        self.refuse(&remote, &user, answer, error.code, out);
                    }
                }
            }
            Command::Frame { frame, .. } => match known {
                Some(conn) => self.receive(conn, Frame::Text(&frame), now, out),
                // It was taken for gone, or the room was deleted.
                None => {
                    let answer = framing::decode_line(&frame).id;
                    let line = framing::error(answer, &Error::internal());
                    let (outboxes, to) = (&mut self.gateways.outboxes, id.to_string());
                    outboxes.queue(gateway, Item::Lost { to: to.clone() }, "");
                    outboxes.queue_text(gateway, to, &line, None, None);
                }
            },
            Command::Gone { code, .. } => {
                if let Some(conn) = known.or_else(|| self.seat_of(&id)) {
                    self.unsubscribe(conn, code, now, out);
                }
            }
            Command::Refresh {
                rights, expires, ..
            } => {
                if let Some(conn) = known {
                    self.refreshed(conn, rights, expires, now, out);
                }
            }
        }
    }

    /// Refuses a join.
    fn refuse(
        &mut self,
        remote: &Remote,
        user: &str,
        answer: Option<String>,
        code: ErrorCode,
        out: &mut Vec<Output>,
    ) {
        let to = remote.id.to_string();
        match answer {
            // Should it be lost, that is noticed with the client's next command.
            Some(line) => {
                let outboxes = &mut self.gateways.outboxes;
                outboxes.queue_text(&remote.gateway, to.clone(), &line, None, None);
                outboxes.queue(&remote.gateway, Item::Out { to }, "");
            }
            None => {
                let change = self.gateways.must_deliver(remote, Item::Out { to });
                out.push(Output::Store(change));
            }
        }
        out.push(Output::Log(
            LogRecord::reject("rate")
                .user(user)
                .connection(&remote.id)
                .with("code", code.as_str()),
        ));
    }

    /// A connection is not of the room any more, which its gateway knows.
    pub(super) fn unsubscribe(
        &mut self,
        conn: ConnId,
        code: u16,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        if let Some(remote) = self.gateways.remove(conn) {
            let change = Change::RemoveSubscriber(remote.id.to_string());
            out.push(Output::Store(change));
        }
        self.disconnect(conn, code, now, out);
    }

    /// Takes an output whose turn has come. What is for connections at gateways is
    /// queued for those. Returns what the host is to carry out.
    pub fn route(&mut self, output: Output) -> Option<Output> {
        let remote = output
            .connection()
            .and_then(|conn| self.gateways.remotes.get(conn))
            .cloned();
        match (output, remote) {
            (Output::Deliver(delivery), _) => Some(Output::Deliver(self.route_delivery(delivery))),
            (Output::Send { conn, frame }, Some(_)) => {
                self.gateways.one(conn, &frame, (None, None));
                None
            }
            (Output::Attach { conn }, Some(Remote { gateway, id })) => {
                let kept = Kept::Here(self.attachment(conn)?);
                Some(Output::Store(Change::PutSubscriber {
                    id: id.to_string(),
                    gateway: gateway.to_string(),
                    kept,
                }))
            }
            (Output::Joined { after, .. }, Some(Remote { gateway, id })) => {
                let to = id.to_string();
                let joined = Item::In { to, after };
                self.gateways.outboxes.queue(&gateway, joined, "");
                None
            }
            (Output::CatchUp { conn }, Some(Remote { gateway, .. })) => {
                self.announce_gap(conn);
                if self.next_portion(conn).is_some() {
                    self.gateways.outboxes.catch_up(&gateway, conn);
                }
                None
            }
            (Output::Parted { conn }, Some(remote)) => {
                let to = remote.id.to_string();
                self.leave_gateway(conn, Item::Out { to })
            }
            (Output::Close { conn, why }, Some(remote)) => {
                let to = remote.id.to_string();
                self.leave_gateway(conn, Item::Close { to, why })
            }
            (Output::Joined { .. } | Output::CatchUp { .. } | Output::Parted { .. }, None) => None,
            (output, _) => Some(output),
        }
    }

    /// A connection is not of the room any more, which its gateway must hear.
    fn leave_gateway(&mut self, conn: ConnId, word: Item) -> Option<Output> {
        let remote = self.gateways.remove(conn)?;
        Some(Output::Store(self.gateways.must_deliver(&remote, word)))
    }

    /// Queues a delivery for the gateways. What is left is for the room's own
    /// sockets.
    fn route_delivery(&mut self, mut delivery: Delivery) -> Delivery {
        if self.gateways.counts.is_empty() {
            return delivery;
        }
        let (after, at) = delivery.events;
        let shared = delivery.shared.as_deref().unwrap_or_default();
        let units = utf16_length(shared);
        // Connections that get something else than all get.
        let mut served = HashSet::new();
        let (remote, own) = std::mem::take(&mut delivery.custom)
            .into_iter()
            .partition(|custom| self.gateways.remotes.contains_key(custom.conn));
        delivery.custom = own;
        let remote: Vec<super::Custom> = remote;
        for custom in remote {
            let runs = custom.shared.as_deref().unwrap_or_default();
            if matches!(runs, [all] if *all == (0..units)) {
                // It gets what all get, and its own lines before that.
                self.gateways
                    .one(custom.conn, &custom.private, (None, None));
                continue;
            }
            served.insert(custom.conn);
            let with_events = custom.with_events && !runs.is_empty();
            let events = (with_events.then_some(after), with_events.then_some(at));
            let text = custom.text(shared);
            self.gateways.one(custom.conn, &text, events);
        }
        let Some(text) = &delivery.shared else {
            return delivery;
        };
        let gateways: Vec<Rc<str>> = self.gateways.counts.keys().cloned().collect();
        for gateway in gateways {
            let remotes = served
                .iter()
                .filter_map(|conn| self.gateways.remotes.get(*conn));
            let not = remotes.filter(|remote| remote.gateway == gateway);
            let item = Item::All {
                bytes: text.len(),
                not: not.map(|remote| remote.id.to_string()).collect(),
                after,
                at,
            };
            self.gateways.outboxes.queue(&gateway, item, text);
        }
        delivery
    }

    /// Names the gateways to which something is to be sent and nothing is on its
    /// way. Sending begins with the call.
    pub fn start_pushes(&mut self, out: &mut Vec<Output>) -> Vec<String> {
        let head = self.bounds.head;
        for gateway in self.gateways.outboxes.shed() {
            let entry = LogRecord::reject("slow").with("gateway", gateway.as_str());
            out.push(Output::Log(entry));
            self.gateways.probe_connections(&gateway, head);
        }
        self.gateways.outboxes.start()
    }

    /// The part of the log that the next push to a gateway can take for a connection
    /// that catches up. The host reads it and calls [`Room::read`].
    pub fn next_read(&mut self, gateway: &str) -> Option<(ConnId, Portion)> {
        loop {
            let conn = self.gateways.outboxes.next_portion(gateway)?;
            self.announce_gap(conn);
            if let Some(portion) = self.next_portion(conn) {
                return Some((conn, portion));
            }
            // The connection is gone, or the events that it missed have expired.
            self.gateways.outboxes.skip_portion(gateway);
        }
    }

    /// The log of [`Room::next_read`] has been read up to the event `last`.
    pub fn read(&mut self, gateway: &str, conn: ConnId, portion: Portion, last: u64, text: &str) {
        self.gateways.one(conn, text, portion.events(last));
        self.given(conn, last);
        if self.next_portion(conn).is_some() {
            self.gateways.outboxes.catch_up(gateway, conn);
        }
    }

    fn announce_gap(&mut self, conn: ConnId) {
        while let Some((skipped, line)) = self.gap(conn) {
            self.gateways.one(conn, &line, skipped.events(skipped.upto));
        }
    }

    /// The body of the next push to a gateway. `None`: nothing more is on its way.
    pub fn take_push(&mut self, gateway: &str) -> Option<serde_json::Result<String>> {
        let head = || Push {
            room: self.name.clone(),
            epoch: self.epoch.clone(),
            life: self.gateways.life.clone(),
            ..Push::default()
        };
        self.gateways.outboxes.take(gateway, head)
    }

    /// A gateway has taken a push; its answer names connections that it does not
    /// have.
    pub fn push_reached(
        &mut self,
        gateway: &str,
        pushed: &Pushed,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let reached = self.gateways.outboxes.reached(gateway);
        for told in reached.told.iter().filter_map(Item::to) {
            let change = Change::RemoveSubscriber(told.to_owned());
            out.push(Output::Store(change));
        }
        for id in &pushed.gone {
            if let Some(conn) = self.gateways.by_id.get(id.as_str()).copied() {
                self.unsubscribe(conn, ABNORMAL, now, out);
            }
        }
        if reached.was_missed {
            self.look_for(gateway);
        }
    }

    /// A push did not reach its gateway. A gateway that stays out of reach is given
    /// up: its connections are taken for gone, and presence follows. Should it answer
    /// again, it learns that they have to join again.
    pub fn push_failed(&mut self, gateway: &str, now: Millis, out: &mut Vec<Output>) -> Retry {
        let retry = self.gateways.outboxes.failed(gateway);
        if retry == Retry::Never {
            self.gateways.outboxes.give_up(gateway, now);
            for (conn, remote) in self.gateways.connections_of(gateway) {
                let to = remote.id.to_string();
                out.extend(self.leave_gateway(conn, Item::Lost { to }));
                self.disconnect(conn, ABNORMAL, now, out);
            }
        }
        retry
    }

    /// Asks a gateway that was out of reach what it still has.
    pub fn look_for(&mut self, gateway: &str) {
        let head = self.bounds.head;
        self.gateways.probe_connections(gateway, head);
    }

    /// Pushes to a gateway have stopped because of an error in the room. The host waits,
    /// calls [`Room::look_for`] and goes on.
    pub fn pushes_stopped(&mut self, gateway: &str) {
        self.gateways.outboxes.stopped(gateway);
    }

    /// A connection at a gateway, as it was stored.
    pub fn restore_subscriber(&mut self, gateway: &str, kept: Kept, now: Millis) {
        match kept {
            Kept::Parted(word) => self.gateways.outboxes.queue(gateway, word, ""),
            Kept::Here(attachment) => {
                let id: Rc<str> = attachment.id.as_str().into();
                let conn = self.recall(attachment, now);
                self.gateways.place(conn, gateway.into(), id.clone());
                // It may have gone while the room slept or was down.
                let (to, at) = (id.to_string(), self.bounds.head);
                self.gateways
                    .outboxes
                    .queue(gateway, Item::Is { to, at }, "");
            }
        }
    }

    /// What waits for gateways: it was stored, so it outlives a failure of storage,
    /// after which the room is read again.
    pub fn take_outboxes(&mut self) -> Links {
        std::mem::take(&mut self.gateways.outboxes)
    }

    pub fn set_outboxes(&mut self, outboxes: Links) {
        self.gateways.outboxes = outboxes;
        self.gateways.outboxes.restart();
    }

    /// When a gateway that was given up is tried again.
    pub(super) fn probe_at(&self) -> Option<Millis> {
        self.gateways.outboxes.probe_at()
    }

    pub(super) fn probe_gateways(&mut self, now: Millis) {
        self.gateways.outboxes.probe(now);
    }
}
