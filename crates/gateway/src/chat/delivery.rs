//! Deliveries of rooms, and texts to clients.
//!
//! A delivery is a list of items: subscriptions that begin or end, texts for one client
//! (unicast), for several (multicast) and for all clients of the room (broadcast). Each text
//! has the range of its events, and the gateway knows the position of each client. A client
//! receives exactly the events that follow its position. If it lacks earlier events, or is
//! paused (see [`super::pauses`]), the answer to the delivery informs the room, which sends the
//! client the log from there.

use super::client::{Client, Framing, HeldText, Phase, SubscriptionState};
use super::clients::Clients;
use super::state::Chat;
use crate::dialect::{AnswerContext, Dialect};
use crate::ids::{ClientId, SessionId, SocketId};
use crate::output::Output;
use crate::socketio::SocketIoServer;
use crate::translate::{self, BroadcastText, EventLine, Line, PacketGroup};
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::error::Error;
use roomcast_proto::event;
use roomcast_proto::framing;
use roomcast_proto::id::{ConnectionId, RoomName};
use roomcast_proto::link::{Command as ToRoom, Item, Push, Pushed};
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::log_text::slice;
use roomcast_proto::position::Position;
use roomcast_proto::raw_object::MAX_SAFE_INTEGER;
use roomcast_proto::time::Millis;
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

/// Maximum size in bytes of a frame in which several unicast texts for a native client
/// are sent together.
const MAX_FRAME: usize = 256 * 1024;

/// A delivery that is being handled.
pub(super) struct Delivery<'a> {
    pub(super) room: &'a RoomName,
    /// Unicast texts for native clients. They are sent in one frame with the next
    /// broadcast, or at the end of the delivery.
    held: HashMap<ClientId, String>,
    /// The subscriptions that do not exist here, for the answer.
    pub(super) gone: Vec<ConnectionId>,
    /// The clients that the answer names, because they lack events or are paused.
    lagging: HashSet<ClientId>,
}

/// A text of a room with a range of events: the lines of the logged events, one each, then
/// those of ephemeral events. A `gap` stands for all events of its range.
#[derive(Clone, Copy)]
struct RoomText<'a> {
    text: &'a str,
    /// Sequence number of the last event before those in the text.
    after: u64,
    /// Sequence number of the last event in the text. Equal to `after` if the text contains
    /// no logged events.
    up_to: u64,
}

impl<'a> RoomText<'a> {
    fn has_events(&self) -> bool {
        self.up_to > self.after
    }

    /// Returns the position of a client that had received the events up to `delivered` before
    /// this text.
    fn position_after(&self, delivered: u64) -> u64 {
        match delivered < self.after {
            true => delivered,
            false => delivered.max(self.up_to),
        }
    }

    /// Returns the part of the text for a client that has received the events up to
    /// `delivered`; empty if there is none.
    fn part_after(&self, room: &RoomName, delivered: u64) -> Cow<'a, str> {
        let RoomText { text, after, up_to } = *self;
        let lacks_some = delivered > after && delivered < up_to;
        if delivered == after {
            text.into()
        } else if self.has_events() && event::is_gap(text) {
            match lacks_some {
                true => event::gap(room, delivered + 1, up_to).into(),
                false => "".into(),
            }
        } else {
            let skipped = if lacks_some { delivered } else { up_to };
            slice(after + 1, text, skipped, MAX_SAFE_INTEGER).into()
        }
    }
}

/// How a broadcast reaches one client.
enum Route<'a> {
    /// The client does not receive it.
    Skip,
    /// The client receives this part, or its recovery holds the text back.
    Part(Cow<'a, str>),
    /// The newest token of the connection does not grant `read` on the room.
    Unauthorized,
    /// The client receives the text as it is.
    Native(SocketId),
    /// The client receives the text as packets of Socket.IO.
    SocketIo(SessionId, PacketGroup),
}

/// The state of the subscription that an item is for.
#[derive(Clone, Copy)]
struct Target {
    /// [`SubscriptionState::Joining`] until the room has accepted the client, even if
    /// the client is leaving the room already.
    state: SubscriptionState,
    /// The room has not answered the request to join again.
    repairing: bool,
    /// The highest `seq` that was delivered.
    delivered: u64,
}

impl Chat {
    /// Handles a delivery of a room. Returns the subscriptions that do not exist here, lack
    /// events or are paused.
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
            presence_before,
            presence,
            items,
        } = push;
        let link = self.rooms.entry(room.clone()).or_default();
        if link.is_repeated(&life, number) {
            let mut pushed = self.answer_to_repeated(&room, items);
            pushed.lacking = self.lacking(&room, true);
            self.forget_room(server, &room);
            return pushed;
        }
        link.received(life, number, epoch);
        self.check_presence(&room, presence_before, presence);
        let mut delivery = Delivery {
            room: &room,
            held: HashMap::new(),
            gone: Vec::new(),
            lagging: HashSet::new(),
        };
        for (item, text) in items.into_iter().zip(texts) {
            self.deliver_item(server, &mut delivery, item, text);
        }
        let Delivery {
            held,
            gone,
            lagging,
            ..
        } = delivery;
        for (key, text) in held {
            self.send(server, key, &text);
        }
        let mut pushed = self.pushed(&room, gone, lagging);
        self.advance_presence(&room, presence);
        pushed.lacking = self.lacking(&room, false);
        self.report_positions(server, &room);
        self.finish_recoveries(server, now);
        self.forget_room(server, &room);
        pushed
    }

    /// Returns the answer to a delivery. `lagging` are the clients that lack events or are
    /// paused.
    fn pushed(
        &mut self,
        room: &RoomName,
        gone: Vec<ConnectionId>,
        lagging: HashSet<ClientId>,
    ) -> Pushed {
        let mut pushed = Pushed {
            gone,
            ..Pushed::default()
        };
        for key in lagging {
            let subscription = self.clients.subscription_mut(key, room);
            let Some(subscription) = subscription.filter(|one| one.receives_events()) else {
                continue;
            };
            let id = subscription.id.clone();
            if subscription.is_paused {
                pushed.paused.push(id);
            } else {
                subscription.is_reported = true;
                pushed.behind.push((id, subscription.delivered));
            }
            if let Some(client) = self.clients.get(key) {
                self.positions.mark_lagging(room, &client.id);
            }
        }
        pushed
    }

    /// Returns the answer to a repeated delivery. The answer to the first one may have been
    /// lost.
    fn answer_to_repeated(&mut self, room: &RoomName, items: Vec<Item>) -> Pushed {
        let (mut gone, mut lagging) = (Vec::new(), HashSet::new());
        let mut check = |key: ClientId, clients: &Clients, at: u64| {
            let subscription = clients.subscription(key, room);
            if subscription.is_some_and(|one| one.is_paused || one.delivered < at) {
                lagging.insert(key);
            }
        };
        for item in items {
            match item {
                Item::Broadcast { at, .. } => {
                    let subscribers = self.rooms.get(room).map(|link| &link.subscribers);
                    for key in subscribers.into_iter().flatten() {
                        check(*key, &self.clients, at);
                    }
                }
                Item::Multicast { to, at, .. } => {
                    for key in to.iter().filter_map(|id| self.clients.by_subscription(id)) {
                        check(key, &self.clients, at);
                    }
                }
                item => {
                    let Some(to) = item.to() else {
                        continue;
                    };
                    let at = match &item {
                        Item::Unicast { at, .. } => at.unwrap_or(0),
                        Item::Probe { at, .. } => *at,
                        _ => 0,
                    };
                    let is_current = self.clients.current_subscription(room, to).is_some();
                    match self.clients.by_subscription(to) {
                        Some(key) if is_current => check(key, &self.clients, at),
                        _ if matches!(item, Item::Subscribed { .. } | Item::Probe { .. }) => {
                            gone.push(to.clone());
                        }
                        _ => {}
                    }
                }
            }
        }
        self.pushed(room, gone, lagging)
    }

    fn deliver_item(
        &mut self,
        server: &mut SocketIoServer,
        delivery: &mut Delivery<'_>,
        item: Item,
        text: &str,
    ) {
        let to = match item {
            Item::Broadcast {
                not,
                after,
                at,
                presence,
                ..
            } => {
                let up_to = at;
                let text = RoomText { text, after, up_to };
                self.deliver_broadcast(server, delivery, text, &not);
                if presence {
                    self.presence_announced(delivery.room);
                }
                return;
            }
            Item::Multicast { to, after, at, .. } => {
                let up_to = at;
                let text = RoomText { text, after, up_to };
                for id in to {
                    match self.clients.by_subscription(&id) {
                        Some(key) if self.target(delivery.room, &id).is_some() => {
                            self.deliver_events(server, delivery, key, text);
                        }
                        Some(_) => {}
                        None => delivery.gone.push(id),
                    }
                }
                return;
            }
            Item::Presence { to, is_last, .. } => {
                return self.deliver_presence(server, delivery, to, text, is_last);
            }
            _ => item.to().cloned(),
        };
        let Some(to) = to else {
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
            (
                Item::Unicast {
                    after: Some(after),
                    at: Some(up_to),
                    ..
                },
                Some(_),
            ) => {
                let text = RoomText { text, after, up_to };
                self.deliver_events(server, delivery, key, text);
            }
            (Item::Unicast { at, .. }, target) if at.is_none() || target.is_some() => {
                let failed = match target {
                    Some(_) => self.command_answered(key, room, text),
                    None => false,
                };
                self.deliver_unicast(server, delivery, key, text);
                if failed {
                    if let Some(text) = delivery.held.remove(&key) {
                        self.send(server, key, &text);
                    }
                    self.change_refused(server, key, room);
                }
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
                self.probed(server, delivery, key, to, &target, at);
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
            repairing: subscription.repairing,
            delivered: subscription.delivered,
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
        target: &Target,
        at: u64,
    ) {
        match target.state {
            // The room has accepted the client, and the delivery with the acceptance was
            // lost.
            SubscriptionState::Joining => {
                self.join_failed(server, key, delivery.room);
                delivery.gone.push(id);
            }
            // As before, for a client that joins again.
            SubscriptionState::Joined if target.repairing => {
                self.repair(server, key, delivery.room);
            }
            SubscriptionState::Joined | SubscriptionState::Leaving => {
                let subscription = self.clients.subscription(key, delivery.room);
                if target.delivered < at || subscription.is_some_and(|one| one.is_paused) {
                    delivery.lagging.insert(key);
                }
                self.request_join_answer(server, key, delivery.room);
            }
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
            SubscriptionState::Leaving => {
                let subscription = self.clients.subscription_mut(key, room);
                let id = subscription.and_then(|one| one.leave_command.take());
                if id.is_some() {
                    // The answer of the room was lost.
                    self.send(server, key, &framing::error(id, &Error::internal()));
                }
                self.leave_failed(server, key, room);
            }
        }
    }

    /// Handles a text with events for one client: sends the events that follow its position.
    fn deliver_events(
        &mut self,
        server: &mut SocketIoServer,
        delivery: &mut Delivery<'_>,
        key: ClientId,
        text: RoomText<'_>,
    ) {
        let room = delivery.room;
        let is_gap = event::is_gap(text.text);
        if is_gap {
            self.mark_incomplete(key);
        }
        let subscription = self.clients.subscription(key, room);
        if !subscription.is_some_and(|one| one.receives_events()) {
            return;
        }
        if self.drops_text(server, &mut delivery.lagging, key, room) {
            // The room learns again that the client is paused, because it still sends events.
            delivery.lagging.insert(key);
            return;
        }
        let Some(subscription) = self.clients.subscription_mut(key, room) else {
            return;
        };
        let before = subscription.delivered;
        let part = text.part_after(room, before);
        subscription.delivered = text.position_after(before);
        if before < text.after {
            delivery.lagging.insert(key);
        }
        if subscription.delivered > before {
            let at = subscription.delivered;
            self.advance_position(room, at, server.engine.now());
            let client = self.clients.get(key);
            if client.is_some_and(|client| client.dialect.acknowledges()) {
                self.acks.sent(key, server.engine.now());
            }
        }
        if !part.is_empty() {
            self.deliver_unicast(server, delivery, key, &part);
        }
    }

    /// Handles a text without logged events for one client.
    pub(super) fn deliver_ephemeral(
        &mut self,
        server: &mut SocketIoServer,
        delivery: &mut Delivery<'_>,
        key: ClientId,
        text: &str,
    ) {
        let text = RoomText {
            text,
            after: 0,
            up_to: 0,
        };
        self.deliver_events(server, delivery, key, text);
    }

    /// Handles a text for one client.
    fn deliver_unicast(
        &mut self,
        server: &mut SocketIoServer,
        delivery: &mut Delivery<'_>,
        key: ClientId,
        text: &str,
    ) {
        let Some(client) = self.clients.get(key) else {
            return;
        };
        if client.subscription(delivery.room).is_none() {
            // The client has left the room since then. It still receives answers.
            for answer in text.split('\n').filter(|line| framing::is_answer(line)) {
                self.send_text(server, key, Some(delivery.room), answer);
            }
            return;
        }
        match (&client.framing, &client.phase) {
            (Framing::Native(_), Phase::Connected) => self.hold(server, delivery, key, text),
            _ => self.send_room_text(server, key, delivery.room, text),
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
        broadcast: RoomText<'_>,
        not: &[ConnectionId],
    ) {
        let (room, text) = (delivery.room, broadcast.text);
        let mut except = HashSet::new();
        for id in not {
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
            match self.route(server, delivery, key, broadcast) {
                Route::Skip => {}
                Route::Part(part) => self.deliver_unicast(server, delivery, key, &part),
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
        for packet in packets.packets(broadcast.up_to, server.engine.now()) {
            server
                .engine
                .broadcast_message(&packet.sessions, &packet.message);
        }
    }

    /// Sends an event that belongs to no room to all clients that were accepted and read.
    pub(crate) fn broadcast(&mut self, server: &mut SocketIoServer, line: &str) {
        let Some(event) = EventLine::parse(line) else {
            return;
        };
        let now = server.engine.now();
        // A client with recovery takes a string for an offset, so it needs its own.
        let needs_offset: Vec<Dialect> = Dialect::all()
            .filter(|dialect| {
                let open_args = dialect.event(&event, now);
                open_args.is_some_and(|open_args| translate::ends_with_string(&open_args))
            })
            .collect();
        let mut sockets = Vec::new();
        let mut packets = BroadcastText::new(line);
        let mut others = Vec::new();
        for (key, client) in self.clients.iter() {
            let is_connected = matches!(client.phase, Phase::Connected);
            if !is_connected || client.paused_at.is_some() || self.is_congested(server, client) {
                continue;
            }
            match &client.framing {
                Framing::Native(socket) => sockets.push(*socket),
                Framing::SocketIo { .. }
                    if client.pid.is_some() && needs_offset.contains(&client.dialect) =>
                {
                    others.push(key);
                }
                Framing::SocketIo { session, nsp } => {
                    let group = PacketGroup {
                        nsp: nsp.clone(),
                        dialect: client.dialect,
                        offset: None,
                    };
                    packets.add(*session, group);
                }
            }
        }
        for key in others {
            self.send(server, key, line);
        }
        if !sockets.is_empty() {
            let text = line.to_owned();
            server.engine.push(Output::Broadcast { sockets, text });
        }
        for packet in packets.packets(0, now) {
            server
                .engine
                .broadcast_message(&packet.sessions, &packet.message);
        }
    }

    /// Decides how a broadcast reaches one client, and updates the position of
    /// its subscription.
    fn route<'a>(
        &mut self,
        server: &SocketIoServer,
        delivery: &mut Delivery<'_>,
        key: ClientId,
        broadcast: RoomText<'a>,
    ) -> Route<'a> {
        let room = delivery.room;
        let subscription = self.clients.subscription(key, room);
        if !subscription.is_some_and(|one| one.receives_events())
            || self.drops_text(server, &mut delivery.lagging, key, room)
        {
            return Route::Skip;
        }
        let Some(client) = self.clients.get_mut(key) else {
            return Route::Skip;
        };
        let Some(index) = client.index_of(room) else {
            return Route::Skip;
        };
        let subscription = &mut client.subscriptions[index];
        let delivered = subscription.delivered;
        subscription.delivered = broadcast.position_after(delivered);
        if subscription.delivered > delivered && client.dialect.acknowledges() {
            self.acks.sent(key, server.engine.now());
        }
        let subscription = &mut client.subscriptions[index];
        if delivered < broadcast.after && !std::mem::replace(&mut subscription.is_reported, true) {
            delivery.lagging.insert(key);
        }
        if delivered == broadcast.after {
            subscription.is_reported = false;
        } else {
            let part = broadcast.part_after(room, delivered);
            return match part.is_empty() {
                true => Route::Skip,
                false => Route::Part(part),
            };
        }
        let is_connected = matches!(client.phase, Phase::Connected);
        if !is_connected {
            return Route::Part(broadcast.text.into());
        }
        match server.opens(client.receiver(), &client.identity.user, room) {
            Some(true) => {}
            Some(false) => return Route::Unauthorized,
            // An earlier item of the same delivery has closed the connection.
            None => return Route::Skip,
        }
        match &client.framing {
            Framing::Native(socket) => Route::Native(*socket),
            Framing::SocketIo { session, nsp } => {
                let offset = client.pid.is_some().then(|| client.offset_template(index));
                let nsp = nsp.clone();
                let dialect = client.dialect;
                let group = PacketGroup {
                    nsp,
                    dialect,
                    offset,
                };
                Route::SocketIo(*session, group)
            }
        }
    }

    /// Subscribes a client again whose subscription the room may have lost. The room replays
    /// the missed events from the log. The subscription gets a new id, so that deliveries in
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
        subscription.lagging_at = Some(subscription.delivered);
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
        // Until the room answers, the client is told no presence.
        self.lacks_presence(key, room);
        let (id, again) = (None, true);
        self.forward(server, room, ToRoom::Join { request, id, again });
        self.await_answer(key, room, server.engine.now());
        self.save(server, key);
    }

    /// Returns `true` if a client waits for a replay of a room.
    fn repairs(&self, key: ClientId, room: &RoomName) -> bool {
        let subscription = self.clients.subscription(key, room);
        subscription.is_some_and(|subscription| subscription.repairing)
    }

    /// Records that events are missing that the recovery of a client should have sent.
    fn mark_incomplete(&mut self, key: ClientId) {
        if let Some(Client {
            phase: Phase::Recovering { complete, .. },
            ..
        }) = self.clients.get_mut(key)
        {
            *complete = false;
        }
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
            phase: Phase::Recovering { held, .. },
            ..
        }) = self.clients.get_mut(key)
        {
            return held.push(HeldText {
                room: Some(room.clone()),
                text: text.to_owned(),
            });
        }
        if self.may_receive(server, key, room) {
            self.send_text(server, key, Some(room), text);
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

    /// Sends lines of the gateway to a client, in its framing.
    pub(super) fn send(&mut self, server: &mut SocketIoServer, key: ClientId, text: &str) {
        self.send_text(server, key, None, text);
    }

    /// Sends lines to a client, in its framing. `room` is the room that wrote them.
    fn send_text(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        room: Option<&RoomName>,
        text: &str,
    ) {
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
                send_packets(server, client, *session, nsp, room, text);
            }
        }
    }
}

/// Sends lines to a Socket.IO client as packets in its dialect. Malformed lines are dropped.
fn send_packets(
    server: &mut SocketIoServer,
    client: &Client,
    session: SessionId,
    nsp: &str,
    room: Option<&RoomName>,
    text: &str,
) {
    let now = server.engine.now();
    let (dialect, user) = (client.dialect, &client.identity.user);
    for line in text.split('\n') {
        match translate::parse_line(line) {
            Some(Line::Ack { id, outcome }) => {
                let context = AnswerContext::new(dialect, user, room, now);
                let answer = dialect.answer(id, outcome, &context);
                for open_args in answer.events {
                    send_event(server, client, session, nsp, open_args, None);
                }
                if let Some(ack) = answer.ack {
                    server.acknowledge(session, nsp, ack, &answer.args, Vec::new());
                }
            }
            Some(Line::Event(event)) => {
                if let Some(open_args) = dialect.event(&event, now) {
                    let stamp = event.stamp.filter(|_| client.pid.is_some());
                    let offset = stamp.and_then(|stamp| {
                        let index = client.index_of(&stamp.room)?;
                        Some(client.offset_template(index).at(stamp.seq))
                    });
                    send_event(server, client, session, nsp, open_args, offset);
                }
            }
            None => {}
        }
    }
}

/// Sends an event to a Socket.IO client. `offset` is the position of a logged event.
fn send_event(
    server: &mut SocketIoServer,
    client: &Client,
    session: SessionId,
    nsp: &str,
    open_args: String,
    offset: Option<String>,
) {
    let offset = offset.or_else(|| match translate::ends_with_string(&open_args) {
        true => client.current_offset(),
        false => None,
    });
    let args = translate::finish_args(open_args, offset.as_deref());
    let message = crate::socketio::event_message(nsp, &args);
    server.engine.broadcast_message(&[session], &message);
}
