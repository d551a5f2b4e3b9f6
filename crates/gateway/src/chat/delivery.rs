//! Deliveries of rooms, and texts to clients.
//!
//! A delivery is a list of items: subscriptions that begin or end, texts for one client
//! (unicast) and texts for all clients of the room (broadcast). Each text has the range of
//! its events. A client that has missed an earlier event is repaired: it subscribes again and
//! the room replays what is missing from the log.

use super::client::{Client, Framing, HeldText, Phase, SubscriptionState};
use super::state::Chat;
use crate::ids::{ClientId, SessionId, SocketId};
use crate::output::Output;
use crate::socketio::SocketIoServer;
use crate::translate::{self, BroadcastText, EventStamp, Line, PacketGroup};
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::framing;
use roomcast_proto::id::{ConnectionId, RoomName};
use roomcast_proto::link::{Command as ToRoom, Item, Push, Pushed};
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::log_text::slice;
use roomcast_proto::position::Position;
use roomcast_proto::raw_object::MAX_SAFE_INTEGER;
use roomcast_proto::time::Millis;
use std::collections::{HashMap, HashSet};

/// Maximum size in bytes of a frame in which several unicast texts for a native client
/// are sent together.
const MAX_FRAME: usize = 256 * 1024;

/// A delivery that is being handled.
struct Delivery<'a> {
    room: &'a RoomName,
    /// Unicast texts for native clients. They are sent in one frame with the next
    /// broadcast, or at the end of the delivery.
    held: HashMap<ClientId, String>,
    /// The subscriptions that do not exist here, for the answer.
    gone: Vec<ConnectionId>,
}

/// A text for one client.
struct Unicast<'a> {
    text: &'a str,
    /// If set, the client must have received all events up to this one before the text.
    after: Option<u64>,
    /// Sequence number of the last event in the text. `None` if the text contains no logged
    /// events.
    up_to: Option<u64>,
}

/// A text for all clients of a room.
struct Broadcast<'a> {
    text: &'a str,
    /// The subscriptions that do not receive it.
    except: &'a [ConnectionId],
    /// Sequence number of the last event before those in the text.
    after: u64,
    /// Sequence number of the last event in the text. Equal to `after` if the text contains
    /// no logged events.
    up_to: u64,
}

impl Broadcast<'_> {
    fn has_events(&self) -> bool {
        self.up_to > self.after
    }
}

/// How a broadcast reaches one client.
enum Route {
    /// The client does not receive it.
    Skip,
    /// The client has missed an event.
    Repair,
    /// A repair has sent the client the events up to this one. It receives the later ones.
    RestAfter(u64),
    /// The newest token of the connection does not grant `read` on the room.
    Unauthorized,
    /// The client receives the text as it is.
    Native(SocketId),
    /// The client receives the text as packets of Socket.IO.
    SocketIo(SessionId, PacketGroup),
    /// The client is recovering. The text is held back.
    Held,
}

/// The state of the subscription that an item is for.
#[derive(Clone, Copy)]
struct Target {
    /// [`SubscriptionState::Joining`] until the room has accepted the client, even if
    /// the client is leaving the room already.
    state: SubscriptionState,
    /// The highest `seq` that was delivered; `None` during a repair.
    delivered: Option<u64>,
}

impl Chat {
    /// Handles a delivery of a room and returns the subscriptions that do not exist
    /// here.
    pub(crate) fn deliver(
        &mut self,
        server: &mut SocketIoServer,
        push: Push,
        texts: &[&str],
        now: Millis,
    ) -> Pushed {
        let Push {
            room,
            epoch,
            life,
            number,
            items,
        } = push;
        let link = self.rooms.entry(room.clone()).or_default();
        if link.is_repeated(&life, number) {
            let gone = self.missing_subscriptions(&room, items);
            self.forget_room(server, &room);
            return Pushed { gone };
        }
        link.received(life, number, epoch);
        let mut delivery = Delivery {
            room: &room,
            held: HashMap::new(),
            gone: Vec::new(),
        };
        for (item, text) in items.into_iter().zip(texts) {
            self.deliver_item(server, &mut delivery, item, text);
        }
        let Delivery { held, gone, .. } = delivery;
        for (key, text) in held {
            self.send(server, key, &text);
        }
        self.report_positions(server, &room);
        self.finish_recoveries(server, now);
        self.forget_room(server, &room);
        Pushed { gone }
    }

    /// Returns the subscriptions in a repeated delivery that do not exist here. The answer to
    /// the first delivery may have been lost.
    fn missing_subscriptions(&mut self, room: &RoomName, items: Vec<Item>) -> Vec<ConnectionId> {
        let mut missing = Vec::new();
        for item in items {
            if let Item::Subscribed { to, .. } | Item::Probe { to, .. } = item
                && self.clients.current_subscription(room, &to).is_none()
            {
                missing.push(to);
            }
        }
        missing
    }

    fn deliver_item(
        &mut self,
        server: &mut SocketIoServer,
        delivery: &mut Delivery<'_>,
        item: Item,
        text: &str,
    ) {
        if let Item::Broadcast { not, after, at, .. } = item {
            let broadcast = Broadcast {
                text,
                except: &not,
                after,
                up_to: at,
            };
            return self.deliver_broadcast(server, delivery, &broadcast);
        }
        let Some(to) = item.to().cloned() else {
            return;
        };
        match self.clients.by_subscription(&to) {
            Some(key) => self.deliver_to_client(server, delivery, key, to, item, text),
            None => delivery.gone.push(to),
        }
    }

    /// Handles an item for the subscription `to` of this client.
    fn deliver_to_client(
        &mut self,
        server: &mut SocketIoServer,
        delivery: &mut Delivery<'_>,
        key: ClientId,
        to: ConnectionId,
        item: Item,
        text: &str,
    ) {
        let room = delivery.room;
        let target = self.target(room, &to);
        match (item, target) {
            (Item::Close { why, .. }, target) if target.is_some() || self.repairs(key, room) => {
                self.close(server, key, why);
            }
            // The gateway has lost the join in a panic, so the client was not told that it
            // joined.
            (Item::Unicast { .. }, None)
                if delivery.gone.contains(&to)
                    && self.clients.subscription(key, room).is_none() => {}
            (Item::Unicast { after, at, .. }, target) if at.is_none() || target.is_some() => {
                let unicast = Unicast {
                    text,
                    after,
                    up_to: at,
                };
                self.deliver_unicast(server, delivery, key, &unicast);
            }
            (Item::Subscribed { .. } | Item::Probe { .. }, None) => delivery.gone.push(to),
            (Item::Subscribed { after, .. }, Some(_)) => self.subscribed(server, key, room, after),
            // Also applies to a client that has subscribed again for a repair since then.
            (Item::Unsubscribed { .. }, target) if target.is_some() || self.repairs(key, room) => {
                if let Some(text) = delivery.held.remove(&key) {
                    self.send(server, key, &text);
                }
                self.unsubscribed(server, key, room);
            }
            (Item::Probe { at, .. }, Some(target)) => {
                self.probed(server, delivery, key, to, target, at);
            }
            (Item::Lost { .. }, Some(target)) => {
                self.subscription_lost(server, key, room, target.state);
            }
            _ => {}
        }
    }

    fn target(&mut self, room: &RoomName, id: &ConnectionId) -> Option<Target> {
        let subscription = self.clients.current_subscription(room, id)?;
        Some(Target {
            state: match subscription.is_accepted() {
                true => subscription.state,
                false => SubscriptionState::Joining,
            },
            delivered: (!subscription.repairing).then_some(subscription.delivered),
        })
    }

    /// Handles a probe: the room asks whether a subscription exists and has received the
    /// events up to `at`.
    fn probed(
        &mut self,
        server: &mut SocketIoServer,
        delivery: &mut Delivery<'_>,
        key: ClientId,
        id: ConnectionId,
        target: Target,
        at: u64,
    ) {
        match target.state {
            // The room has accepted the client, and the delivery with the acceptance was
            // lost.
            SubscriptionState::Joining => {
                self.join_failed(server, key, delivery.room);
                delivery.gone.push(id);
            }
            // During a repair, the answer to the request may be lost as well.
            SubscriptionState::Joined if target.delivered.is_none_or(|seq| seq < at) => {
                self.repair(server, key, delivery.room);
            }
            SubscriptionState::Joined | SubscriptionState::Leaving => {}
        }
    }

    /// Handles [`Item::Lost`]: the room does not have a subscription.
    fn subscription_lost(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        room: &RoomName,
        state: SubscriptionState,
    ) {
        match state {
            SubscriptionState::Joining => self.join_failed(server, key, room),
            SubscriptionState::Joined => self.repair(server, key, room),
            // The `leaveRoom` command has failed as well.
            SubscriptionState::Leaving => self.leave_failed(server, key, room),
        }
    }

    fn deliver_unicast(
        &mut self,
        server: &mut SocketIoServer,
        delivery: &mut Delivery<'_>,
        key: ClientId,
        unicast: &Unicast<'_>,
    ) {
        let (room, text) = (delivery.room, unicast.text);
        if let Some(up_to) = unicast.up_to {
            // Without a subscription, the gateway has lost the join in a panic. The answer to
            // the delivery names the subscription as gone.
            let Some(subscription) = self.clients.subscription_mut(key, room) else {
                return;
            };
            if unicast
                .after
                .is_some_and(|after| after > subscription.delivered)
            {
                return self.repair(server, key, room);
            }
            subscription.delivered = subscription.delivered.max(up_to);
            self.advance_position(room, up_to, server.engine.now());
        }
        let Some(client) = self.clients.get(key) else {
            return;
        };
        if client.subscription(room).is_none() {
            // The client has left the room since then. It still receives answers.
            for answer in text.split('\n').filter(|line| framing::is_answer(line)) {
                self.send(server, key, answer);
            }
            return;
        }
        match (&client.framing, &client.phase) {
            (Framing::Native(_), Phase::Connected) => self.hold(server, delivery, key, text),
            _ => self.send_room_text(server, key, room, text),
        }
    }

    /// Holds a text for a native client back, to send it together with others.
    fn hold(
        &mut self,
        server: &mut SocketIoServer,
        delivery: &mut Delivery<'_>,
        key: ClientId,
        text: &str,
    ) {
        if !self.may_receive(server, key, delivery.room) {
            return;
        }
        let held = delivery.held.entry(key).or_default();
        if !held.is_empty() {
            held.push('\n');
        }
        held.push_str(text);
        if held.len() > MAX_FRAME
            && let Some(text) = delivery.held.remove(&key)
        {
            self.send(server, key, &text);
        }
    }

    fn deliver_broadcast(
        &mut self,
        server: &mut SocketIoServer,
        delivery: &mut Delivery<'_>,
        broadcast: &Broadcast<'_>,
    ) {
        let (room, text) = (delivery.room, broadcast.text);
        let mut except = HashSet::new();
        for id in broadcast.except {
            if self.clients.current_subscription(room, id).is_some() {
                except.extend(self.clients.by_subscription(id));
            }
        }
        let Some(link) = self.rooms.get(room) else {
            return;
        };
        let (mut sockets, mut unauthorized) = (Vec::new(), Vec::new());
        let mut packets = BroadcastText::new(text);
        for key in link.subscribers.clone() {
            if except.contains(&key) {
                continue;
            }
            match self.route(server, key, room, broadcast) {
                Route::Skip => {}
                Route::Repair => self.repair(server, key, room),
                Route::RestAfter(seq) => {
                    let rest = slice(broadcast.after + 1, text, seq, MAX_SAFE_INTEGER);
                    self.send_room_text(server, key, room, rest);
                }
                Route::Unauthorized => unauthorized.push(key),
                Route::Native(socket) => match delivery.held.remove(&key) {
                    Some(mut held) => {
                        held.push('\n');
                        held.push_str(text);
                        server.engine.send(socket, held);
                    }
                    None => sockets.push(socket),
                },
                Route::SocketIo(session, group) => packets.add(session, group),
                Route::Held => self.send_room_text(server, key, room, text),
            }
        }
        for key in unauthorized {
            self.close_unauthorized(server, key, room);
        }
        if broadcast.has_events() {
            self.advance_position(room, broadcast.up_to, server.engine.now());
        }
        if !sockets.is_empty() {
            server.engine.push(Output::Broadcast {
                sockets,
                text: text.to_owned(),
            });
        }
        for packet in packets.packets() {
            server
                .engine
                .broadcast_message(&packet.sessions, &packet.message);
        }
    }

    /// Decides how a broadcast reaches one client, and updates the position of
    /// its subscription.
    fn route(
        &mut self,
        server: &SocketIoServer,
        key: ClientId,
        room: &RoomName,
        broadcast: &Broadcast<'_>,
    ) -> Route {
        let Some(client) = self.clients.get_mut(key) else {
            return Route::Skip;
        };
        let Some(index) = client.index_of(room) else {
            return Route::Skip;
        };
        let subscription = &mut client.subscriptions[index];
        if subscription.state == SubscriptionState::Joining
            || !subscription.is_accepted()
            || subscription.repairing
        {
            return Route::Skip;
        }
        if broadcast.has_events() {
            let delivered = subscription.delivered;
            if delivered < broadcast.after {
                return Route::Repair;
            }
            if delivered >= broadcast.up_to {
                return Route::Skip;
            }
            subscription.delivered = broadcast.up_to;
            if delivered > broadcast.after {
                return Route::RestAfter(delivered);
            }
        }
        let is_connected = matches!(client.phase, Phase::Connected);
        if is_connected {
            match server.opens(client.receiver(), &client.identity.user, room) {
                Some(true) => {}
                Some(false) => return Route::Unauthorized,
                // An earlier item of the same delivery has closed the connection.
                None => return Route::Skip,
            }
        }
        match &client.framing {
            Framing::Native(socket) => Route::Native(*socket),
            Framing::SocketIo { session, nsp } if is_connected => {
                let offset = client.pid.is_some().then(|| client.offset_template(index));
                let nsp = nsp.clone();
                Route::SocketIo(*session, PacketGroup { nsp, offset })
            }
            Framing::SocketIo { .. } => Route::Held,
        }
    }

    /// Subscribes a client that has missed a delivery again, so that the room replays the
    /// missed events from the log. The subscription gets a new id, so that deliveries in
    /// flight are not taken for the replay.
    pub(super) fn repair(&mut self, server: &mut SocketIoServer, key: ClientId, room: &RoomName) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        let rights = client.identity.rights(room);
        let id = client.new_subscription_id(server);
        let subscription = client
            .subscription_mut(room)
            .filter(|subscription| subscription.state == SubscriptionState::Joined);
        let Some(subscription) = subscription else {
            // A client that is leaving receives no further events.
            return;
        };
        subscription.repairing = true;
        subscription.id.clone_from(&id);
        let position = Position {
            since: Some(subscription.delivered),
            epoch: Some(subscription.epoch.clone()),
            history: None,
        };
        let request = client.join_request(id, rights, position);
        server
            .engine
            .log(LogRecord::info("repair").room(room).connection(&client.id));
        self.positions.mark_lagging(room, &client.id);
        let (id, again) = (None, true);
        self.forward(server, room, ToRoom::Join { request, id, again });
        self.save(server, key);
    }

    /// Returns `true` if a client waits for a replay of a room.
    fn repairs(&self, key: ClientId, room: &RoomName) -> bool {
        let subscription = self.clients.subscription(key, room);
        subscription.is_some_and(|subscription| subscription.repairing)
    }

    /// Sends lines of a room to a client. They are held back during a recovery.
    pub(super) fn send_room_text(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        room: &RoomName,
        text: &str,
    ) {
        if let Some(Client {
            phase: Phase::Recovering { held, complete, .. },
            ..
        }) = self.clients.get_mut(key)
        {
            *complete &= !text.split('\n').any(translate::is_gap);
            return held.push(HeldText {
                room: Some(room.clone()),
                text: text.to_owned(),
            });
        }
        if self.may_receive(server, key, room) {
            self.send(server, key, text);
        }
    }

    /// Checks the token of a client before lines of a room are sent to it; see
    /// [`SocketIoServer::opens`]. If the token does not grant `read` on the room, closes the
    /// connection and returns `false`. Also returns `false` if the connection is closed.
    fn may_receive(&mut self, server: &mut SocketIoServer, key: ClientId, room: &RoomName) -> bool {
        let opens = self
            .clients
            .get(key)
            .and_then(|client| server.opens(client.receiver(), &client.identity.user, room));
        if opens == Some(false) {
            self.close_unauthorized(server, key, room);
        }
        opens == Some(true)
    }

    /// Closes a connection that would have received events of a room on which its token does
    /// not grant `read`. Only a bug can cause this, so it is logged as an error.
    fn close_unauthorized(&mut self, server: &mut SocketIoServer, key: ClientId, room: &RoomName) {
        if let Some(client) = self.clients.get(key) {
            let record = LogRecord::error("event not sent: the token does not open its room");
            server.engine.log(client.log_record(record).room(room));
        }
        self.close(server, key, Disconnect::Failed);
    }

    /// Sends lines to a client, in its framing.
    pub(super) fn send(&mut self, server: &mut SocketIoServer, key: ClientId, text: &str) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        match (&client.framing, &mut client.phase) {
            (Framing::Native(socket), _) => server.engine.send(*socket, text.to_owned()),
            (_, Phase::Recovering { held, .. }) => held.push(HeldText {
                room: None,
                text: text.to_owned(),
            }),
            (_, Phase::Finding { .. }) => {}
            (Framing::SocketIo { session, nsp }, Phase::Connected) => {
                send_packets(server, client, *session, nsp, text);
            }
        }
    }
}

/// Sends lines to a Socket.IO client, one packet each. Malformed lines are dropped.
fn send_packets(
    server: &mut SocketIoServer,
    client: &Client,
    session: SessionId,
    nsp: &str,
    text: &str,
) {
    for line in text.split('\n') {
        match translate::parse_line(line) {
            Some(Line::Ack { id, args }) => {
                server.acknowledge(session, nsp, id, &args, Vec::new());
            }
            Some(Line::Event { open_args, stamp }) => {
                let offset = match (&client.pid, &stamp) {
                    (Some(_), Some(EventStamp { room, seq })) => client
                        .index_of(room)
                        .map(|index| client.offset_template(index).at(*seq)),
                    _ => None,
                };
                let args = translate::finish_args(open_args, offset.as_deref());
                let message = crate::socketio::event_message(nsp, &args);
                server.engine.broadcast_message(&[session], &message);
            }
            None => {}
        }
    }
}
