//! What rooms have for clients: who is in, and what they get.

use super::{Chat, Client, Framing, Held, NEVER, Phase, Slot, State};
use crate::eventlog::Entry;
use crate::gateway::{ClientId, Hub, Output, line, socketio};
use crate::name::personal_room;
use crate::room::link::{Command as ToRoom, Item, Push, Pushed};
use crate::room::log::slice;
use crate::time::Millis;
use crate::wire::command::Position;
use crate::wire::event;
use crate::wire::native::{self, Close};
use crate::wire::object::MAX_SAFE_INTEGER;
use std::collections::{HashMap, HashSet};

/// How long nothing must have come before the positions of rooms are stored:
/// they are needed after a sleep, which comes after 10 s of silence, so a busy
/// gateway never pays for them.
const POSITION_DELAY: Millis = 300;

/// Most bytes that are gathered into one frame of a native client.
const MAX_FRAME: usize = 256 * 1024;

impl Chat {
    /// A push of a room.
    pub(super) fn deliver(
        &mut self,
        hub: &mut Hub,
        push: Push,
        texts: &[&str],
        now: Millis,
    ) -> Pushed {
        let mut pushed = Pushed::default();
        let this = self.rooms.entry(push.room.clone()).or_default();
        let repeated = this.last.0 == push.life && push.number <= this.last.1;
        if repeated {
            // Only who is not here is said again: nobody may have heard it.
            for item in push.items {
                if let Item::In { to, .. } | Item::Is { to, .. } = item
                    && self.seated(&push.room, &to).is_none()
                {
                    pushed.gone.push(to);
                }
            }
            self.forget_room(&push.room);
            return pushed;
        }
        this.last = (push.life, push.number);
        this.epoch = push.epoch;
        // What is for single native clients, for one frame with what is for all.
        let mut held: HashMap<ClientId, String> = HashMap::new();
        for (item, text) in push.items.into_iter().zip(texts) {
            if let Item::All { not, after, at, .. } = item {
                self.all(hub, &push.room, (after, at), text, &not, &mut held);
                continue;
            }
            let Some(to) = item.to().map(str::to_owned) else {
                continue;
            };
            let Some(key) = self.client_of(&to) else {
                pushed.gone.push(to);
                continue;
            };
            let state = self.seated(&push.room, &to).map(|slot| {
                let state = match slot.version {
                    // It may be leaving already.
                    NEVER => State::Joining,
                    _ => slot.state,
                };
                (state, (!slot.repairing).then_some(slot.at))
            });
            match (item, state) {
                (Item::Close { why, .. }, state)
                    if state.is_some() || self.repairs(key, &push.room) =>
                {
                    self.close(hub, key, why);
                }
                // The memory of its join is lost: it is not told that it is in.
                (Item::One { .. }, None)
                    if pushed.gone.contains(&to) && self.slot(key, &push.room).is_none() => {}
                (Item::One { after, at, .. }, _) if at.is_none() || state.is_some() => {
                    self.one(hub, key, &push.room, (after, at), text, &mut held);
                }
                (Item::In { .. } | Item::Is { .. }, None) => pushed.gone.push(to),
                (Item::In { after, .. }, Some(_)) => self.joined(hub, key, &push.room, after),
                // One that came again by itself since, for what it missed, is meant
                // as well.
                (Item::Out { .. }, state) if state.is_some() || self.repairs(key, &push.room) => {
                    if let Some(text) = held.remove(&key) {
                        self.tell(hub, key, &text);
                    }
                    self.parted(hub, key, &push.room);
                }
                // It was let in, and the word of that was lost.
                (Item::Is { .. }, Some((State::Joining, _))) => {
                    self.join_failed(hub, key, &push.room);
                    pushed.gone.push(to);
                }
                // Of one that has asked already the answer may be lost as well.
                (Item::Is { at, .. }, Some((State::In, had))) if had.is_none_or(|had| had < at) => {
                    self.repair(hub, key, &push.room);
                }
                (Item::Lost { .. }, Some((State::Joining, _))) => {
                    self.join_failed(hub, key, &push.room);
                }
                // With it comes the word that what it asked for failed.
                (Item::Lost { .. }, Some((State::Leaving, _))) => {
                    self.leave_failed(hub, key, &push.room);
                }
                (Item::Lost { .. }, Some(_)) => self.repair(hub, key, &push.room),
                _ => {}
            }
        }
        for (key, text) in held {
            self.tell(hub, key, &text);
        }
        self.say_reached(hub, &push.room);
        for key in self.recovering.iter().copied().collect::<Vec<_>>() {
            if let Some(Client {
                phase: Phase::Recovering { pending, whole, .. },
                ..
            }) = self.client(key)
                && (pending.is_empty() || !whole)
            {
                let whole = *whole;
                self.recovered(hub, key, whole, now);
            }
        }
        self.forget_room(&push.room);
        pushed
    }

    /// Says how far the clients of a room are.
    pub(super) fn say_reached(&mut self, hub: &mut Hub, room: &str) {
        let Some(this) = self.rooms.get_mut(room) else {
            return;
        };
        let all = this.at;
        if this.said.replace(all) != Some(all) {
            let (key, at) = (room.to_owned(), Some(all));
            hub.push(Output::Reached { key, at });
        }
        let lagging: Vec<_> = self.lagging.extract_if(|(of, _)| of == room).collect();
        for (room, id) in lagging {
            let client = self.by_id.get(id.as_str()).copied();
            let slot = client.and_then(|client| self.slot(client, &room));
            let behind = slot.filter(|slot| slot.repairing || slot.at < all);
            let (key, at) = (lag_key(&room, &id), behind.map(|slot| slot.at));
            hub.push(Output::Reached { key, at });
            if at.is_some() {
                self.lagging.insert((room, id));
            }
        }
    }

    /// A room has let a client in.
    pub(super) fn joined(&mut self, hub: &mut Hub, key: ClientId, room: &str, after: u64) {
        let epoch = self
            .rooms
            .get(room)
            .map_or("", |this| &this.epoch)
            .to_owned();
        if let Some(client) = self.client(key) {
            let lagging = (room.to_owned(), client.id.clone());
            self.lagging.insert(lagging);
        }
        let Some(client) = self.client_mut(key) else {
            return;
        };
        let version = client.version + 1;
        let Some(place) = client.slots.iter().position(|slot| slot.room == room) else {
            return;
        };
        if client.slots[place].state == State::Joining {
            // Offsets go by the order in which rooms let the client in.
            let slot = client.slots.remove(place);
            client.slots.push(slot);
        }
        let Some(slot) = client.slots.iter_mut().find(|slot| slot.room == room) else {
            return;
        };
        let asked = (slot.from, slot.epoch.clone());
        slot.at = after;
        if slot.repairing {
            slot.repairing = false;
            slot.epoch = epoch;
            return self.save(hub, key);
        }
        if slot.state != State::Leaving {
            slot.state = State::In;
        }
        slot.asked = None;
        slot.from = after;
        slot.epoch = epoch.clone();
        slot.version = version;
        client.version = version;
        if let Phase::Recovering { pending, whole, .. } = &mut client.phase
            && pending.remove(room)
        {
            *whole &= asked == (after, epoch);
            return;
        }
        self.save(hub, key);
    }

    /// A client is not of a room any more, or was never let in.
    pub(super) fn parted(&mut self, hub: &mut Hub, key: ClientId, room: &str) {
        let Some(Slot { state, .. }) = self.take_slot(key, room) else {
            return;
        };
        let Some(client) = self.client(key) else {
            return;
        };
        let recovers = matches!(client.phase, Phase::Recovering { .. });
        let user = client.identity.user.clone();
        if state == State::In {
            self.tell(hub, key, &event::user_left(room, &user));
        }
        let own = personal_room(&user) == room;
        if own && state == State::Joining && !recovers {
            // As many connections as the user may have are there already.
            return self.close(hub, key, Close::TooFast);
        }
        self.save(hub, key);
    }

    /// Removes a room from a client: the client gets nothing of it any more. A
    /// recovery without the room is not complete.
    pub(super) fn take_slot(&mut self, key: ClientId, room: &str) -> Option<Slot> {
        let client = self.client_mut(key)?;
        let place = client.slots.iter().position(|slot| slot.room == room)?;
        let slot = client.slots.remove(place);
        client.version += 1;
        let after = client.slots[place..].iter_mut();
        for slot in after.filter(|slot| slot.version != NEVER) {
            // Offsets of before are of another order of rooms.
            slot.from = slot.from.max(slot.at);
            slot.version = client.version;
        }
        if let Phase::Recovering { pending, whole, .. } = &mut client.phase {
            pending.remove(room);
            *whole = false;
        }
        self.strike(key, room);
        Some(slot)
    }

    /// A text of a room for one client, with events after the first number (if
    /// that is said) up to the second.
    pub(super) fn one(
        &mut self,
        hub: &mut Hub,
        key: ClientId,
        room: &str,
        events: (Option<u64>, Option<u64>),
        text: &str,
        held: &mut HashMap<ClientId, String>,
    ) {
        if let (after, Some(at)) = events {
            // One that is not of the room here, for the memory of its join is
            // lost, is about to be told to the room.
            let Some(slot) = self.slot_mut(key, room) else {
                return;
            };
            if after.is_some_and(|after| after > slot.at) {
                return self.repair(hub, key, room);
            }
            slot.at = slot.at.max(at);
            self.moved(room, at, hub);
        }
        if self.slot(key, room).is_none() {
            // It has left the room since, and waits for answers alone.
            let answers = text.split('\n').filter(|line| native::is_answer(line));
            for answer in answers {
                self.tell(hub, key, answer);
            }
            return;
        }
        let native = matches!(
            self.client(key),
            Some(Client {
                framing: Framing::Native(_),
                phase: Phase::Connected,
                ..
            })
        );
        if !native {
            return self.tell_of_room(hub, key, room, text);
        }
        if !self.may_receive(hub, key, room) {
            return;
        }
        let waiting = held.entry(key).or_default();
        if !waiting.is_empty() {
            waiting.push('\n');
        }
        waiting.push_str(text);
        if waiting.len() > MAX_FRAME
            && let Some(text) = held.remove(&key)
        {
            self.tell(hub, key, &text);
        }
    }

    /// A text of a room for all but some.
    pub(super) fn all(
        &mut self,
        hub: &mut Hub,
        room: &str,
        (after, at): (u64, u64),
        text: &str,
        not: &[String],
        held: &mut HashMap<ClientId, String>,
    ) {
        let mut excepted = HashSet::new();
        for seat in not {
            if self.seated(room, seat).is_some() {
                excepted.extend(self.client_of(seat));
            }
        }
        let Some(this) = self.rooms.get(room) else {
            return;
        };
        let (mut sockets, mut wrong) = (Vec::new(), Vec::new());
        let mut stamped = line::Stamped::new(text);
        for key in this.clients.clone() {
            if excepted.contains(&key) {
                continue;
            }
            let Some(client) = self.client_mut(key) else {
                continue;
            };
            let Some(place) = client.slots.iter().position(|slot| slot.room == room) else {
                continue;
            };
            let slot = &mut client.slots[place];
            // One that was never let in may be leaving already.
            if slot.state == State::Joining || slot.version == NEVER || slot.repairing {
                continue;
            }
            let had = slot.at;
            if at > after && had < after {
                self.repair(hub, key, room);
                continue;
            }
            if at > after {
                if had >= at {
                    continue;
                }
                slot.at = at;
            }
            if had > after && at > after {
                // It has some of it by a repair already.
                let rest = slice(after + 1, text, had, MAX_SAFE_INTEGER).to_owned();
                self.tell_of_room(hub, key, room, &rest);
                continue;
            }
            if matches!(client.phase, Phase::Connected) {
                match hub.opens(client.receiver(), &client.identity.user, room) {
                    Some(true) => {}
                    Some(false) => {
                        wrong.push(key);
                        continue;
                    }
                    // Its socket has been closed just now.
                    None => continue,
                }
            }
            match (&client.framing, &client.phase) {
                (Framing::Native(socket), _) => match held.remove(&key) {
                    Some(mut own) => {
                        let socket = *socket;
                        own.push('\n');
                        own.push_str(text);
                        hub.send(socket, own);
                    }
                    None => sockets.push(*socket),
                },
                (Framing::SocketIo { session, nsp }, Phase::Connected) => {
                    let offset = client.pid.is_some().then(|| client.offset_around(place));
                    stamped.add(*session, nsp, offset);
                }
                (Framing::SocketIo { .. }, _) => self.tell_of_room(hub, key, room, text),
            }
        }
        for key in wrong {
            self.close_wrong(hub, key, room);
        }
        if at > after {
            self.moved(room, at, hub);
        }
        if !sockets.is_empty() {
            hub.push(Output::Broadcast {
                sockets,
                text: text.to_owned(),
            });
        }
        for (sessions, message) in stamped.messages() {
            hub.messages(&sessions, &message);
        }
    }

    /// The room's sockets have had its events up to `at`.
    pub(super) fn moved(&mut self, room: &str, at: u64, hub: &Hub) {
        if let Some(this) = self.rooms.get_mut(room)
            && at > this.at
        {
            this.at = at;
            this.unsaved = true;
            self.positions_due = Some(hub.now() + POSITION_DELAY);
        }
    }

    /// A client missed a delivery: what came since comes from the log. It joins
    /// anew for that, so that whatever is still on its way to it is not taken
    /// for the answer.
    pub(super) fn repair(&mut self, hub: &mut Hub, key: ClientId, room: &str) {
        let Some(client) = self.client_mut(key) else {
            return;
        };
        let rights = client.identity.rights(room);
        let seat = client.seat(hub);
        let mut slots = client.slots.iter_mut();
        let slot = slots.find(|slot| slot.room == room && slot.state == State::In);
        let Some(slot) = slot else {
            // Who is leaving needs nothing more.
            return;
        };
        slot.repairing = true;
        slot.seat.clone_from(&seat);
        let position = Position {
            since: Some(slot.at),
            epoch: Some(slot.epoch.clone()),
            history: None,
        };
        let hello = client.hello(seat, rights, position);
        hub.log(Entry::info("repair").room(room).connection(&client.id));
        let lagging = (room.to_owned(), client.id.clone());
        self.lagging.insert(lagging);
        let (id, again) = (None, true);
        self.forward(hub, room, ToRoom::Join { hello, id, again });
        self.save(hub, key);
    }

    /// Whether a client waits for what it missed in a room.
    fn repairs(&self, key: ClientId, room: &str) -> bool {
        self.slot(key, room).is_some_and(|slot| slot.repairing)
    }

    /// Lines of a room to a client, in its framing.
    pub(super) fn tell_of_room(&mut self, hub: &mut Hub, key: ClientId, room: &str, text: &str) {
        if let Some(Client {
            phase: Phase::Recovering { held, whole, .. },
            ..
        }) = self.client_mut(key)
        {
            *whole &= !text.split('\n').any(line::is_gap);
            return held.push(Held {
                room: Some(room.to_owned()),
                text: text.to_owned(),
            });
        }
        if self.may_receive(hub, key, room) {
            self.tell(hub, key, text);
        }
    }

    /// The last check before lines of a room go to a client; see [`Hub::opens`].
    /// A connection that may not receive them is closed.
    fn may_receive(&mut self, hub: &mut Hub, key: ClientId, room: &str) -> bool {
        let opens = self
            .client(key)
            .and_then(|client| hub.opens(client.receiver(), &client.identity.user, room));
        if opens == Some(false) {
            self.close_wrong(hub, key, room);
        }
        opens == Some(true)
    }

    /// Events of a room were about to go to a connection that its token does not
    /// open it for. That is a mistake of ours, so it is logged as an error.
    fn close_wrong(&mut self, hub: &mut Hub, key: ClientId, room: &str) {
        if let Some(client) = self.client(key) {
            let entry = Entry::error("the connection's token does not open the room of an event");
            hub.log(client.entry(entry).room(room));
        }
        self.close(hub, key, Close::Failed);
    }

    /// Lines to a client, in its framing.
    pub(super) fn tell(&mut self, hub: &mut Hub, key: ClientId, text: &str) {
        let Some(client) = self.client_mut(key) else {
            return;
        };
        match (&client.framing, &mut client.phase) {
            (Framing::Native(socket), _) => hub.send(*socket, text.to_owned()),
            (_, Phase::Recovering { held, .. }) => held.push(Held {
                room: None,
                text: text.to_owned(),
            }),
            (_, Phase::Finding { .. }) => {}
            (Framing::SocketIo { session, nsp }, Phase::Connected) => {
                for line in text.split('\n') {
                    match line::read(line) {
                        Some(line::Line::Answer { id, args }) => {
                            hub.acknowledge(*session, nsp, id, &args, Vec::new());
                        }
                        Some(line::Line::Event { open, stamp }) => {
                            let offset = match (&client.pid, &stamp) {
                                (Some(_), Some((room, seq))) => client
                                    .slots
                                    .iter()
                                    .position(|slot| slot.room == *room)
                                    .map(|place| client.offset_around(place).at(*seq)),
                                _ => None,
                            };
                            let args = line::close(open, offset.as_deref());
                            let message = socketio::event(nsp, &args);
                            hub.messages(&[*session], &message);
                        }
                        None => {}
                    }
                }
            }
        }
    }
}

/// The key of a client that is behind the others in a room. No room has a space
/// in its name.
pub(super) fn lag_key(room: &str, client: &str) -> String {
    format!("{room} {client}")
}
