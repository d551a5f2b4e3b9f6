//! Connections at gateways: requests of the gateways, and deliveries to them.
//!
//! A room treats a connection at a gateway like a connection of its own sockets.
//! [`Room::route`] queues the outputs for connections at gateways as items; the host sends
//! one request with items at a time to each gateway.
//!
//! The gateway knows the position of each of its connections. It drops logged events that do
//! not follow the position, and reports the position in its answer. The room then sends the
//! connection the log from there. So texts can be lost or dropped at any time, and a gateway
//! that was out of reach keeps its subscriptions: the room probes them when it answers again.

use super::Room;
use super::connect::{ABNORMAL, Shared};
use crate::batch::{Arrival, Welcome};
use crate::catch_up::{CatchUp, LogRead, Portion};
use crate::connection::Connection;
use crate::frame::Frame;
use crate::gateway_links::{Subscription, TextEvents, too_many_answers};
use crate::ids::ConnId;
use crate::outbox::{NextDelivery, Outboxes, Retry};
use crate::output::{Change, Output};
use crate::presence::FeedReceiver;
use crate::seq_range::SeqRange;
use crate::subscriber::StoredSubscriber;
use crate::timers::Timer;
use roomcast_proto::access::{Rights, TokenId};
use roomcast_proto::command::Command as ClientCommand;
use roomcast_proto::error::{Error, ErrorCode, Result};
use roomcast_proto::id::{ConnectionId, GatewayName, UserId};
use roomcast_proto::link::{Command, ConnectRequest, Item, Pushed, client_of};
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::retry::Failure;
use roomcast_proto::time::{MINUTE, Millis};
use roomcast_proto::{event, framing};

/// Close code of a normal closure (RFC 6455, 7.4.1).
const NORMAL: u16 = 1000;

/// Close code of a restart of the service (IANA WebSocket Close Code Number Registry).
const SERVICE_RESTART: u16 = 1012;

/// Time in milliseconds after a failed delivery at which an alarm restores the room, if it has
/// lost its memory. Other deliveries have the time of a minute: setting the alarm writes a row,
/// and a busy room must not do it more often.
const DELIVERY_RETRY_ALARM: Millis = 5_000;

/// Why a connection at a gateway joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JoinCause {
    /// The client has sent `joinRoom`.
    Client,
    /// The gateway subscribes the client again, after a missed delivery.
    Gateway,
}

impl Room {
    /// Executes a command of a gateway for one of its connections. `is_revoked` returns
    /// `true` if the token of a user was revoked, `pinged` the time of the last ping on a
    /// socket of the room. The host carries the outputs out before
    /// the next command of the request.
    pub fn gateway_command(
        &mut self,
        gateway: &GatewayName,
        command: Command,
        is_revoked: impl Fn(&str, &TokenId) -> bool,
        pinged: impl Fn(ConnId) -> Option<Millis>,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        self.gateways.active(gateway);
        let subscription = Subscription::new(gateway.clone(), command.connection().clone());
        let known = self.gateways.find(&subscription.id);
        let is_full = self.is_overloaded || self.gateways.is_full(gateway);
        match command {
            Command::Join {
                request,
                id,
                again: false,
            } if is_full => {
                let error = too_many_answers();
                let answer = Some(framing::error(id, &error));
                self.refuse(&subscription, &request.user, answer, error.code, out);
            }
            // A leave frees memory, and its answer is short.
            Command::Execute { id, command, .. }
                if is_full && !matches!(command, ClientCommand::Leave { .. }) =>
            {
                let answer = framing::error(id, &too_many_answers());
                self.gateways
                    .queue_text(&subscription, &answer, TextEvents::None);
            }
            Command::Join { request, id, again } => {
                let user = request.user.clone();
                let cause = match again {
                    true => JoinCause::Gateway,
                    false => JoinCause::Client,
                };
                let joined = match is_revoked(&request.user, &request.token) {
                    true => Err(Error::unauthorized("the token was revoked")),
                    false => self.subscribe(request, id, cause, pinged, now, out),
                };
                match joined {
                    Ok(conn) => self.gateways.add(conn, subscription),
                    Err(error) => {
                        // If the gateway subscribes the client again, the client has sent no
                        // command that expects an answer.
                        let answer =
                            (cause == JoinCause::Client).then(|| framing::error(id, &error));
                        self.refuse(&subscription, &user, answer, error.code, out);
                    }
                }
            }
            Command::Execute { id, command, .. } => match known {
                Some(conn) => self.receive_command(conn, id, command, now, out),
                None => self.answer_lost(&subscription, id),
            },
            Command::Frame { frame, .. } => match known {
                Some(conn) => self.receive(conn, Frame::Text(&frame), now, out),
                None => self.answer_lost(&subscription, framing::decode_line(&frame).id),
            },
            Command::Gone { code, seen, .. } => {
                if let Some(conn) = known.or_else(|| self.connection_of(&subscription.id)) {
                    let seen = seen.map_or(now, |seen| seen.min(now));
                    self.unsubscribe(conn, code, seen, now, out);
                }
            }
            Command::Refresh {
                rights,
                expires,
                profile,
                ..
            } => {
                if let Some(conn) = known {
                    let user = self
                        .connections
                        .get(conn)
                        .map(|one| one.attachment.user.clone());
                    if let (Some(user), Some(profile)) = (user, profile) {
                        self.set_profile(&user, profile, now);
                    }
                    self.set_rights(conn, rights, expires, now, out);
                }
            }
            Command::Resume { after, .. } => match known {
                Some(conn) => {
                    self.gateways.resume(conn);
                    self.feed(conn, after);
                    // The answer says whether the connection lacks presence.
                    let (to, at) = (subscription.id, self.log.head());
                    self.gateways.queue(
                        gateway,
                        Item::Probe {
                            to,
                            at,
                            activity: false,
                        },
                    );
                }
                None => self.report_lost(&subscription),
            },
        }
    }

    /// Returns `true` if the room accepts a request of a gateway. Otherwise the host answers
    /// it with an error, because too many answers wait for the gateway.
    pub fn accepts_request(&self, gateway: &GatewayName) -> bool {
        !self.gateways.is_congested(gateway)
    }

    /// Informs a gateway that a connection does not exist in the room, for example because its
    /// token has expired while the gateway was unreachable.
    fn report_lost(&mut self, subscription: &Subscription) {
        let to = subscription.id.clone();
        self.gateways
            .queue(&subscription.gateway, Item::Lost { to });
    }

    /// Answers a command of a connection that does not exist in the room.
    fn answer_lost(&mut self, subscription: &Subscription, id: Option<u32>) {
        let answer = framing::error(id, &Error::internal());
        self.gateways
            .queue_text(subscription, &answer, TextEvents::None);
        self.report_lost(subscription);
    }

    /// Sends a connection at a gateway the events after `after`, up to which it has received
    /// all events.
    fn feed(&mut self, conn: ConnId, after: u64) {
        let head = self.log.head();
        let Some(connection) = self.connections.get_mut(conn) else {
            return;
        };
        let catch_up = connection.catch_up.get_or_insert_with(CatchUp::default);
        if catch_up.continue_after(after, head) {
            connection.catch_up = None;
        }
        self.continue_catch_up(conn);
    }

    /// Announces expired events and queues the connection for its next portion.
    fn continue_catch_up(&mut self, conn: ConnId) {
        self.announce_gaps(conn);
        if self.next_portion(conn).is_some() {
            self.gateways.catch_up(conn);
        }
    }

    /// Joins a connection of a gateway. Another connection of the same client is replaced.
    fn subscribe(
        &mut self,
        request: ConnectRequest,
        id: Option<u32>,
        cause: JoinCause,
        pinged: impl Fn(ConnId) -> Option<Millis>,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> Result<ConnId> {
        if !request.rights.has(Rights::READ) {
            return Err(Error::forbidden(
                "the token does not allow access to this room",
            ));
        }
        let client = client_of(&request.connection_id);
        let mut connections = self.presence.roster.connections(&request.user);
        let replaced = connections.find(|conn| self.is_of_client(*conn, client));
        drop(connections);
        if let Some(conn) = replaced {
            self.unsubscribe(conn, SERVICE_RESTART, now, now, out);
        }
        match cause {
            JoinCause::Client => self.admit(&request, now)?,
            JoinCause::Gateway => {
                // Refused if the user has left the room since then.
                let mut leaving = self.gateways.leaving().iter();
                let has_left = leaving.any(|conn| self.is_of_client(*conn, client));
                if has_left || !self.members.contains(&request.user) {
                    return Err(Error::not_joined());
                }
                self.admit_member(&request.user)?;
            }
        }
        Ok(self.add_connection(request, Welcome::JoinAnswer(id), pinged, now, out))
    }

    /// Returns the current connection of the client that `connection` belongs to. It may
    /// have another id than `connection`.
    fn connection_of(&self, connection: &ConnectionId) -> Option<ConnId> {
        let client = client_of(connection);
        self.connections
            .find(|connection| connection.is_of_client(client))
    }

    fn is_of_client(&self, conn: ConnId, client: &str) -> bool {
        self.connections
            .get(conn)
            .is_some_and(|connection| connection.is_of_client(client))
    }

    /// Refuses a join.
    fn refuse(
        &mut self,
        subscription: &Subscription,
        user: &UserId,
        answer: Option<String>,
        code: ErrorCode,
        out: &mut Vec<Output>,
    ) {
        let to = subscription.id.clone();
        match answer {
            // If the answer is lost, the gateway learns of the refusal with the client's
            // next command.
            Some(line) => {
                self.gateways
                    .queue_text(subscription, &line, TextEvents::None);
                self.gateways
                    .queue(&subscription.gateway, Item::Unsubscribed { to });
            }
            None => {
                let change = self
                    .gateways
                    .must_deliver(subscription, Item::Unsubscribed { to });
                out.push(Output::Store(change));
            }
        }
        out.push(Output::Log(
            LogRecord::reject("rate")
                .user(user)
                .connection(&subscription.id)
                .with("code", code.as_str()),
        ));
    }

    /// Removes a connection that its gateway has ended. `seen` is the time of its last sign of
    /// life.
    fn unsubscribe(
        &mut self,
        conn: ConnId,
        code: u16,
        seen: Millis,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        if let Some(subscription) = self.gateways.remove(conn) {
            let change = Change::RemoveSubscriber(subscription.id.clone());
            out.push(Output::Store(change));
        }
        self.remove_connection(conn, code, seen, now, out);
    }

    /// Removes connections at gateways whose membership has ended. Their last frame is
    /// part of the batch.
    pub(super) fn finish_leave(&mut self, now: Millis, out: &mut Vec<Output>) {
        for conn in self.gateways.take_leaving() {
            // The connection may have joined again.
            let connection = self.connections.get(conn);
            if connection.is_some_and(|connection| !connection.attachment.joined) {
                out.push(Output::Unsubscribed { conn });
                self.remove_connection(conn, NORMAL, now, now, out);
            }
        }
    }

    /// Sends the answer to `joinRoom` and starts the catch-up. See [`Room::welcome`].
    pub(super) fn welcome_remote(
        &mut self,
        arrival: &Arrival,
        id: Option<u32>,
        shared: &mut Shared,
        head: u64,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let (conn, start) = (arrival.conn, arrival.start);
        let is_joined = |connection: &&Connection| connection.attachment.joined;
        let Some(connection) = self.connections.get(conn).filter(is_joined) else {
            return;
        };
        let user = connection.attachment.user.clone();
        let answer = id.map(|id| {
            let members = shared.members.get_or_insert_with(|| self.join_list());
            framing::ack(id, &self.join_answer(&user, members, head, start))
        });
        let bytes = answer.as_ref().map_or(0, String::len);
        if !self.gateways.reserve(conn, bytes) {
            out.push(Output::Send {
                conn,
                frame: framing::error(id, &too_many_answers()),
            });
            out.push(Output::Unsubscribed { conn });
            return self.remove_connection(conn, NORMAL, now, now, out);
        }
        out.push(Output::Attach { conn });
        out.push(Output::Subscribed {
            conn,
            after: start.after,
        });
        out.extend(answer.map(|frame| Output::Send { conn, frame }));
        self.send_typing(conn, &user, shared, out);
        let range = SeqRange {
            after: start.after,
            upto: head,
        };
        if !range.is_empty() {
            self.log_replay(conn, range, out);
            self.start_catch_up(conn, start.after, out);
        }
    }

    /// Starts the catch-up of a connection at a gateway that has received the events up to
    /// `after`.
    pub(super) fn start_catch_up(&mut self, conn: ConnId, after: u64, out: &mut Vec<Output>) {
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.catch_up = Some(CatchUp::new(after));
            out.push(Output::CatchUp { conn });
        }
    }

    /// Sends older events to a connection, before the events that it still lacks. All events up to the head have been delivered.
    pub(super) fn send_past(&mut self, conn: ConnId, range: SeqRange, out: &mut Vec<Output>) {
        if !range.is_empty() && self.connections.contains(conn) {
            let head = self.log.head();
            let connection = self.connections.get(conn);
            if connection.is_some_and(|connection| !connection.attachment.remote) {
                self.log_replay(conn, range, out);
                self.start_replay(conn, head);
                return self.connections.request_past(conn, range, head);
            }
            self.connections.request_past(conn, range, head);
            out.push(Output::CatchUp { conn });
        }
    }

    /// Queues an output for the gateway of its connection. Returns the output that the host
    /// carries out instead, if there is one. The host calls this for each output, just
    /// before it would carry it out.
    pub fn route(&mut self, output: Output) -> Option<Output> {
        match output {
            Output::Deliver(delivery) => {
                self.sent_upto = delivery.events.upto;
                self.sent_presence = delivery.presence;
                if delivery.announces {
                    self.sent_announcement = delivery.batch;
                }
                let mut delivery = self.gateways.route_delivery(delivery);
                if !self.catch_ups.stalled().is_empty() {
                    self.cut_frames_of_stalled(&mut delivery);
                }
                return Some(Output::Deliver(delivery));
            }
            Output::Store(Change::Wipe { .. }) => self.sent_upto = 0,
            _ => {}
        }
        let conn = output.connection();
        let Some(subscription) = conn.and_then(|conn| self.gateways.get(conn)).cloned() else {
            return match output {
                // The connection has ended meanwhile.
                Output::Subscribed { .. }
                | Output::CatchUp { .. }
                | Output::Unsubscribed { .. } => None,
                output => Some(output),
            };
        };
        match output {
            Output::Send { conn, frame } => {
                self.gateways.unicast(conn, &frame, TextEvents::None);
                None
            }
            Output::Attach { conn } => Some(Output::Store(Change::PutSubscriber {
                id: subscription.id.clone(),
                gateway: subscription.gateway.clone(),
                subscriber: StoredSubscriber::Subscribed(self.attachment(conn)?),
            })),
            Output::Subscribed { after, .. } => {
                let to = subscription.id.clone();
                self.gateways
                    .queue(&subscription.gateway, Item::Subscribed { to, after });
                None
            }
            Output::CatchUp { conn } => {
                self.continue_catch_up(conn);
                None
            }
            Output::Unsubscribed { conn } => {
                let change = self.gateways.end(conn, |to| Item::Unsubscribed { to });
                change.map(Output::Store)
            }
            Output::Close { conn, reason } => {
                let item = |to| Item::Close { to, why: reason };
                self.gateways.end(conn, item).map(Output::Store)
            }
            output => Some(output),
        }
    }

    /// Returns the gateways to which the host must start to send deliveries. Drops broadcasts
    /// for slow gateways; their connections then receive the events from the log. The host
    /// calls this after each input, and sets the alarm for [`Room::alarm_at`] before it sends
    /// the deliveries.
    pub fn start_deliveries(&mut self, now: Millis, out: &mut Vec<Output>) -> Vec<GatewayName> {
        for shed in self.gateways.shed(self.is_overloaded) {
            for conn in self.gateways.connections_of(&shed.gateway) {
                let connection = self.connections.get(conn);
                // A connection that catches up is at an earlier event.
                if let Some(after) = shed.after
                    && connection.is_some_and(|connection| connection.catch_up.is_none())
                {
                    self.feed(conn, after);
                }
            }
            let record = LogRecord::reject("slow").with("gateway", shed.gateway.as_str());
            out.push(Output::Log(
                record.with("lostEphemeral", shed.lost_ephemeral),
            ));
        }
        if self.gateways.needs_alarm() {
            self.timers.start(Timer::DeliveryRetry, now + MINUTE);
        }
        self.gateways.start_deliveries()
    }

    /// Returns the part of the log that the host must read for the next delivery to a
    /// gateway. The host calls [`Room::log_read`] and asks again, until the result is
    /// `None`.
    pub fn next_read(&mut self, gateway: &GatewayName) -> Option<LogRead> {
        loop {
            let conn = self.gateways.next_portion(gateway)?;
            self.announce_gaps(conn);
            if let Some(portion) = self.next_portion(conn) {
                if !portion.is_past {
                    let (connections, head) = (&self.connections, self.log.head());
                    let lacks_same = |one| connections.next_portion(one, head) == Some(portion);
                    self.gateways.share_portion(gateway, lacks_same);
                }
                return Some(LogRead { conn, portion });
            }
            // The connection is closed, or the events that it lacks have expired.
            self.gateways.skip_portion(gateway);
        }
    }

    /// Queues the part of the log that [`Room::next_read`] returned and the host has read,
    /// up to the event `last`, for all connections that lack the same events. `text` contains
    /// the events.
    pub fn log_read(&mut self, read: LogRead, last: u64, text: &str) {
        let LogRead { conn, portion } = read;
        let events = TextEvents::of_portion(&portion, last);
        let head = self.log.head();
        for conn in self.gateways.queue_portion(conn, text, events) {
            self.connections.portion_sent(conn, last, head);
            if self.next_portion(conn).is_some() {
                self.gateways.catch_up(conn);
            }
        }
    }

    fn next_portion(&self, conn: ConnId) -> Option<Portion> {
        self.connections.next_portion(conn, self.log.head())
    }

    /// Skips the expired events of the next portions, and announces them by `gap`.
    fn announce_gaps(&mut self, conn: ConnId) {
        let (head, floor) = (self.log.head(), self.floor());
        while let Some(portion) = self.next_portion(conn) {
            let floor = floor.min(portion.range.upto);
            if portion.range.after >= floor {
                break;
            }
            self.connections.portion_sent(conn, floor, head);
            let line = event::gap(&self.name, portion.range.after + 1, floor);
            let events = TextEvents::of_portion(&portion, floor);
            self.gateways.unicast(conn, &line, events);
        }
    }

    /// Returns the next delivery to a gateway. Returns `None` if no item waits; the host then
    /// stops sending to the gateway.
    pub fn take_delivery(&mut self, gateway: &GatewayName) -> Option<NextDelivery> {
        let (epoch, head) = (self.log.epoch(), self.log.head());
        let version = self.presence.log.version();
        let delivery = self
            .gateways
            .take_delivery(gateway, &self.name, epoch, head, version);
        if !self.gateways.needs_alarm() {
            self.timers.stop(Timer::DeliveryRetry);
        }
        delivery
    }

    /// Handles the acknowledgement of a delivery. The answer names the connections that do
    /// not exist at the gateway, lack events or are paused.
    pub fn delivery_acknowledged(
        &mut self,
        gateway: &GatewayName,
        answer: &Pushed,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let acknowledgement = self.gateways.acknowledged(gateway);
        for id in acknowledgement.delivered.iter().filter_map(Item::to) {
            let change = Change::RemoveSubscriber(id.clone());
            out.push(Output::Store(change));
        }
        for id in &answer.gone {
            if let Some(conn) = self.gateways.find(id) {
                self.unsubscribe(conn, ABNORMAL, now, now, out);
            }
        }
        for (id, after) in &answer.behind {
            if let Some(conn) = self.gateways.find(id) {
                self.feed(conn, *after);
            }
        }
        for id in &answer.paused {
            if let Some(conn) = self.gateways.find(id) {
                self.gateways.pause(conn, acknowledgement.number);
            }
        }
        for (since, ids) in &answer.lacking {
            let conns: Vec<ConnId> = ids.iter().filter_map(|id| self.gateways.find(id)).collect();
            if !conns.is_empty() {
                self.feed_presence(FeedReceiver::Remote(gateway.clone(), conns), *since);
            }
        }
        self.activity_answered(&answer.active, now);
        self.finish_replacements(now, out);
        if acknowledgement.was_unreachable {
            self.probe_gateway(gateway);
        }
    }

    /// Handles the failure of a delivery. The connections of an unreachable gateway stay in the
    /// room until their tokens expire, and receive the log when the gateway answers again.
    /// `random` is a random number, which selects the delay of the next attempt.
    pub fn delivery_failed(
        &mut self,
        gateway: &GatewayName,
        failure: Failure,
        random: u32,
        now: Millis,
    ) -> Retry {
        let retry = self.gateways.failed(gateway, failure, random, now);
        match retry {
            Retry::Again(_) => {
                let at = now + DELIVERY_RETRY_ALARM;
                self.timers.set_earliest(Timer::DeliveryRetry, at);
            }
            // The next attempt has its own alarm.
            _ => self.timers.stop(Timer::DeliveryRetry),
        }
        retry
    }

    /// Probes the connections of a gateway that was unreachable.
    pub fn probe_gateway(&mut self, gateway: &GatewayName) {
        self.gateways.probe_connections(gateway);
    }

    /// Records that the host has stopped sending to a gateway because of an error in the
    /// room. The host then waits for [`RESTART_DELAY`](crate::RESTART_DELAY), calls
    /// [`Room::probe_gateway`] and continues.
    pub fn deliveries_stopped(&mut self, gateway: &GatewayName) {
        self.gateways.stopped(gateway);
    }

    /// Restores a connection at a gateway from its stored record.
    pub fn restore_subscriber(
        &mut self,
        gateway: &GatewayName,
        subscriber: StoredSubscriber,
        now: Millis,
    ) {
        match subscriber {
            StoredSubscriber::Ended(item) => self.gateways.queue(gateway, item),
            StoredSubscriber::Subscribed(attachment) => {
                self.restored_at = now;
                let subscription = Subscription::new(gateway.clone(), attachment.id.clone());
                let conn = self.restore_connection(attachment, now);
                self.gateways.add(conn, subscription);
                // The connection may have ended while the room was not in memory.
                self.gateways.probe_restored(gateway, conn);
            }
        }
    }

    /// Removes the outboxes and returns them. Everything in them was stored, so they survive
    /// a failure of storage, after which the host creates the room again.
    pub fn take_outboxes(&mut self) -> Outboxes {
        self.gateways.take_outboxes()
    }

    /// Sets the outboxes that [`Room::take_outboxes`] returned.
    pub fn set_outboxes(&mut self, outboxes: Outboxes) {
        self.gateways.set_outboxes(outboxes);
    }
}
