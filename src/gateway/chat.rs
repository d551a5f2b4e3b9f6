//! The chat on a gateway: clients, native and Socket.IO, and the rooms they are
//! in. It decides who may join and keeps where each client stands; everything
//! else is the rooms' own: commands go to them as they came, and what they push
//! goes to the clients.

use super::engine::Door;
use super::{
    App, Frame, Heard, Hub, Output, SessionId, SocketId, Up, line, offset, seat, socketio,
};
use crate::auth::{self, Identity, Rights};
use crate::eventlog::Entry;
use crate::fault::{Code, Fault, Result};
use crate::name::personal_room;
use crate::room::Hello;
use crate::room::limits::{Bucket, Overrun, Verdict};
use crate::room::link::{Command as ToRoom, Item, Push, Pushed};
use crate::room::log::slice;
use crate::time::{Millis, SECOND, rfc3339};
use crate::wire::Object;
use crate::wire::command::{Command, Position, Status};
use crate::wire::native::{self, Close};
use crate::wire::object::{MAX_SAFE_INTEGER, TEXT};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::{HashMap, HashSet};

/// A client's place. Given out again after it has gone.
type ClientId = usize;

/// How long rooms may take to give a client that came back what it missed.
const RECOVERY_TIMEOUT: Millis = 10 * SECOND;

/// How long nothing must have come before the positions of rooms are stored:
/// they are needed after a sleep, which comes after 10 s of silence, so a busy
/// gateway never pays for them.
const POSITION_DELAY: Millis = 300;

/// Most bytes that are gathered into one frame of a native client.
const MAX_FRAME: usize = 256 * 1024;

/// One connection to the vocabulary: a native socket, or a namespace of a
/// Socket.IO session.
struct Client {
    id: String,
    framing: Framing,
    identity: Identity,
    status: Status,
    phase: Phase,
    slots: Vec<Slot>,
    /// Counts the changes of `slots`: part of every offset.
    version: u64,
    /// The id that Socket.IO shows; it outlives the connection.
    sid: String,
    /// By which the client may come back; secret.
    pid: Option<String>,
    commands: Bucket,
    joins: Bucket,
    overrun: Overrun,
}

#[derive(Clone, Debug, PartialEq)]
enum Framing {
    Native(SocketId),
    SocketIo { session: SessionId, nsp: String },
}

enum Phase {
    Connected,
    /// What was saved of it is being looked for; the offset it came with.
    Finding(Option<String>),
    /// Rooms are giving it what it missed; nothing goes to it until it is known
    /// whether that is all.
    Recovering {
        pending: HashSet<String>,
        whole: bool,
        held: Vec<String>,
        until: Millis,
    },
}

/// A room that a client is in or on its way into.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Slot {
    room: String,
    epoch: String,
    /// Where it began to read.
    from: u64,
    /// The client's version from which on its offsets tell of this room.
    version: u64,
    #[serde(skip)]
    at: u64,
    #[serde(skip)]
    state: State,
    /// It missed a delivery, and what it missed is on its way.
    #[serde(skip)]
    repairing: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum State {
    Joining,
    #[default]
    In,
    Leaving,
    /// Leaving, and then joining again.
    Rejoining,
}

/// What a client was, for after hibernation and for when it comes back.
#[derive(Serialize, Deserialize)]
struct Saved {
    id: String,
    /// The Engine.IO session and namespace, of a Socket.IO client.
    session: Option<(String, String)>,
    sid: String,
    pid: Option<String>,
    identity: Identity,
    status: Status,
    version: u64,
    slots: Vec<Slot>,
}

/// A room as the gateway sees it.
#[derive(Default)]
struct Room {
    clients: Vec<ClientId>,
    outbox: Vec<ToRoom>,
    /// Whether a request is on its way.
    busy: bool,
    /// The last push: of which waking of the room, and its number.
    last: (String, u64),
    epoch: String,
    at: u64,
    unsaved: bool,
}

/// See the module.
#[derive(Default)]
pub struct Chat {
    clients: Vec<Option<Client>>,
    by_id: HashMap<String, ClientId>,
    by_socket: HashMap<SocketId, ClientId>,
    by_nsp: HashMap<(SessionId, String), ClientId>,
    rooms: HashMap<String, Room>,
    /// Nothing is due before this.
    due: Option<Millis>,
    positions_due: Option<Millis>,
}

impl App for Chat {
    fn hear(&mut self, hub: &mut Hub, up: Up, now: Millis) {
        match up {
            Up::Opened { socket, id, door } => self.opened(hub, socket, id, door, now),
            Up::Frame { socket, frame } => {
                if let Some(key) = self.by_socket.get(&socket).copied() {
                    self.frame(hub, key, frame, now);
                }
            }
            Up::Closed { socket, code } => {
                if let Some(key) = self.by_socket.get(&socket).copied() {
                    self.gone(hub, key, code, false);
                }
            }
            Up::Connect { session, nsp, auth } => self.connect(hub, session, nsp, &auth, now),
            Up::Event {
                session,
                nsp,
                ack,
                args,
                attachments,
            } => {
                if let Some(key) = self.by_nsp.get(&(session, nsp)).copied() {
                    self.event(hub, key, ack, &args, !attachments.is_empty(), now);
                }
            }
            Up::Disconnected {
                session,
                nsp,
                by_itself,
            } => {
                if let Some(key) = self.by_nsp.get(&(session, nsp)).copied() {
                    self.gone(hub, key, 1000, !by_itself);
                }
            }
            // A bare Engine.IO session has nothing to say here.
            Up::Message { session, .. } => hub.close_session(session, Close::Malformed),
        }
    }

    fn deadline(&self) -> Option<Millis> {
        [self.due, self.positions_due].into_iter().flatten().min()
    }

    fn advance(&mut self, hub: &mut Hub, heard: Heard, now: Millis) {
        if self.positions_due.is_some_and(|at| at <= now) {
            self.positions_due = None;
            for (room, this) in &mut self.rooms {
                if std::mem::take(&mut this.unsaved) {
                    hub.push(Output::Position {
                        room: room.clone(),
                        at: this.at,
                    });
                }
            }
        }
        if self.due.is_none_or(|at| at > now) {
            return;
        }
        self.due = None;
        let ghost_timeout = hub.config.room.ghost_timeout;
        for key in 0..self.clients.len() {
            let Some(client) = self.client(key) else {
                continue;
            };
            if client.identity.expires <= now {
                self.close(hub, key, Close::Expired);
                continue;
            }
            let mut due = client.identity.expires;
            if let Phase::Recovering { until, .. } = client.phase {
                if until <= now {
                    self.recovered(hub, key, false, now);
                }
                due = due.min(until);
            }
            // Who never pings has not promised to.
            if let Some(Client {
                framing: Framing::Native(socket),
                ..
            }) = self.client(key)
                && let Some(pinged) = heard(*socket)
            {
                let gone_at = pinged.max(hub.heard_at(*socket)) + ghost_timeout;
                if gone_at <= now {
                    self.close(hub, key, Close::Ghost);
                    continue;
                }
                due = due.min(gone_at);
            }
            self.expect(due);
        }
    }

    fn take(&mut self, room: &str) -> Option<Vec<ToRoom>> {
        let this = self.rooms.get_mut(room)?;
        if this.outbox.is_empty() {
            this.busy = false;
            self.forget_room(room);
            return None;
        }
        Some(std::mem::take(&mut this.outbox))
    }

    fn failed(&mut self, hub: &mut Hub, room: &str, commands: Vec<ToRoom>, now: Millis) {
        let fault = Fault::internal();
        for command in commands {
            let Some(key) = self.by_id.get(command.connection()).copied() else {
                continue;
            };
            match command {
                ToRoom::Join { id, .. } => {
                    self.tell(hub, key, &native::fault(id, &fault));
                    self.parted(hub, key, room, now);
                }
                ToRoom::Frame { frame, .. } => {
                    let id = native::decode_line(&frame).id;
                    self.tell(hub, key, &native::fault(id, &fault));
                }
                ToRoom::Gone { .. } | ToRoom::Refresh { .. } => {}
            }
        }
    }

    fn pushed(&mut self, hub: &mut Hub, push: Push, texts: &[&str], now: Millis) -> Pushed {
        let mut pushed = Pushed::default();
        let this = self.rooms.entry(push.room.clone()).or_default();
        if this.last.0 == push.life && push.number <= this.last.1 {
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
            let to = match &item {
                Item::In { to, .. }
                | Item::Out { to }
                | Item::Is { to }
                | Item::Close { to, .. }
                | Item::One { to, .. } => to,
                Item::All { .. } => continue,
            };
            let Some(key) = self.by_id.get(to).copied() else {
                pushed.gone.push(to.clone());
                continue;
            };
            match item {
                Item::In { after, .. } => self.joined(hub, key, &push.room, after),
                Item::Out { .. } => self.parted(hub, key, &push.room, now),
                Item::Close { code, .. } => self.close(hub, key, Close::of(code)),
                Item::One { after, at, .. } => {
                    self.one(hub, key, &push.room, (after, at), text, &mut held);
                }
                Item::Is { to } => {
                    if self.slot(key, &push.room).is_none() {
                        pushed.gone.push(to);
                    }
                }
                Item::All { .. } => {}
            }
        }
        for (key, text) in held {
            self.tell(hub, key, &text);
        }
        for key in 0..self.clients.len() {
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

    fn found(&mut self, hub: &mut Hub, key: ClientId, record: Option<String>, now: Millis) {
        let Some(Client {
            phase: Phase::Finding(offset),
            framing: Framing::SocketIo { nsp, .. },
            ..
        }) = self.client(key)
        else {
            return;
        };
        let saved = record
            .and_then(|record| serde_json::from_str::<Saved>(&record).ok())
            .filter(|saved| saved.session.as_ref().is_some_and(|(_, at)| at == nsp));
        // Without an offset it saw nothing yet: from where it began.
        let positions = match offset {
            Some(offset) => offset::parse(offset),
            None => Some(Vec::new()),
        };
        match (saved, positions) {
            (Some(saved), Some(positions)) => self.recover(hub, key, saved, &positions, now),
            _ => self.welcome(hub, key, now),
        }
    }

    fn evict(&mut self, hub: &mut Hub, pid: &str, user: &str) {
        let live = self.clients.iter().position(|client| {
            client.as_ref().is_some_and(|client| {
                client.pid.as_deref() == Some(pid)
                    && client.identity.user == user
                    && matches!(client.phase, Phase::Connected)
            })
        });
        if let Some(key) = live {
            self.close(hub, key, Close::Normal);
        }
    }

    fn recall(
        &mut self,
        hub: &mut Hub,
        records: Vec<String>,
        positions: HashMap<String, u64>,
        now: Millis,
    ) {
        for record in records {
            let Ok(saved) = serde_json::from_str::<Saved>(&record) else {
                continue;
            };
            // One whose socket went while nobody looked is at no place at all.
            let framing = match &saved.session {
                None => Framing::Native(hub.native(&saved.id).unwrap_or(usize::MAX)),
                Some((sid, nsp)) => Framing::SocketIo {
                    session: hub.session_with(sid, nsp).unwrap_or(usize::MAX),
                    nsp: nsp.clone(),
                },
            };
            let lives = match &framing {
                Framing::Native(place) | Framing::SocketIo { session: place, .. } => {
                    *place != usize::MAX
                }
            };
            let client = Client {
                id: saved.id,
                framing,
                identity: saved.identity,
                status: saved.status,
                phase: Phase::Connected,
                slots: saved.slots,
                version: saved.version,
                sid: saved.sid,
                pid: saved.pid,
                commands: Bucket::full(hub.config.room.commands, now),
                joins: Bucket::full(hub.config.room.joins, now),
                overrun: Overrun::default(),
            };
            let key = self.add(client);
            for slot in 0..self.client(key).map_or(0, |client| client.slots.len()) {
                let Some(slot) = self.clients[key].as_mut().map(|c| &mut c.slots[slot]) else {
                    continue;
                };
                slot.at = positions
                    .get(&slot.room)
                    .map_or(slot.from, |at| slot.from.max(*at));
                let (room, at, epoch) = (slot.room.clone(), slot.at, slot.epoch.clone());
                let this = self.rooms.entry(room).or_default();
                this.clients.push(key);
                this.at = this.at.max(at);
                this.epoch = epoch;
            }
            if !lives {
                self.gone(hub, key, 1006, saved.session.is_some());
            }
        }
        hub.close_strangers(|socket| self.by_socket.contains_key(&socket));
        self.expect(now + hub.config.room.ghost_timeout);
    }
}

impl Chat {
    fn client(&self, key: ClientId) -> Option<&Client> {
        self.clients.get(key)?.as_ref()
    }

    fn client_mut(&mut self, key: ClientId) -> Option<&mut Client> {
        self.clients.get_mut(key)?.as_mut()
    }

    fn slot(&self, key: ClientId, room: &str) -> Option<&Slot> {
        self.client(key)?
            .slots
            .iter()
            .find(|slot| slot.room == room)
    }

    fn slot_mut(&mut self, key: ClientId, room: &str) -> Option<&mut Slot> {
        let client = self.clients.get_mut(key)?.as_mut()?;
        client.slots.iter_mut().find(|slot| slot.room == room)
    }

    fn expect(&mut self, at: Millis) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    fn add(&mut self, client: Client) -> ClientId {
        let (id, framing) = (client.id.clone(), client.framing.clone());
        self.expect(client.identity.expires);
        let key = seat(&mut self.clients, client);
        self.by_id.insert(id, key);
        match framing {
            Framing::Native(socket) => self.by_socket.insert(socket, key),
            Framing::SocketIo { session, nsp } => self.by_nsp.insert((session, nsp), key),
        };
        key
    }

    /// A native socket: the Worker has let in only who has a token.
    fn opened(&mut self, hub: &mut Hub, socket: SocketId, id: String, door: Door, now: Millis) {
        let Some(identity) = door.identity else {
            return hub.close_socket(socket, Close::Expired);
        };
        let key = self.add(Client::new(hub, id, Framing::Native(socket), identity, now));
        self.expect(now + hub.config.room.ghost_timeout);
        self.welcome(hub, key, now);
    }

    /// Wants into a namespace.
    fn connect(&mut self, hub: &mut Hub, session: SessionId, nsp: String, auth: &str, now: Millis) {
        let refuse = |hub: &mut Hub, message: &str, data: Option<&Fault>| {
            let mut answer = json!({ "message": message });
            if let Some(fault) = data {
                answer["data"] = json!({ "code": fault.code.as_str(), "message": fault.message });
            }
            hub.refuse(session, &nsp, &answer.to_string());
        };
        if !hub.config.gateway.namespaces.contains(&nsp) {
            return refuse(hub, "Invalid namespace", None);
        }
        let Some(door) = hub.door(session).cloned() else {
            return;
        };
        let framing = Framing::SocketIo {
            session,
            nsp: nsp.clone(),
        };
        // Asked twice while the first is looked after.
        if self.by_nsp.contains_key(&(session, nsp.clone())) {
            return;
        }
        let auth = Object::parse(auth, "`auth`").unwrap_or_default();
        let text = |name| auth.get(name, TEXT).ok().flatten();
        let identity = match (door.identity, door.fault) {
            (Some(identity), _) => Ok(identity),
            (None, Some(fault)) => Err(fault),
            (None, None) => auth::token::require(text("token").as_deref())
                .and_then(|token| auth::verify(&hub.config, token, now)),
        };
        // The token of the request may have expired since.
        let identity = identity.and_then(|identity| {
            if identity.expires <= now {
                return Err(Fault::unauthorized("the token has expired"));
            }
            Ok(identity)
        });
        let identity = match identity {
            Ok(identity) => identity,
            Err(fault) => {
                hub.log(Entry::reject("auth").with("code", fault.code.as_str()));
                return refuse(hub, &fault.message, Some(&fault));
            }
        };
        let user = identity.user.clone();
        let key = self.add(Client::new(hub, hub.fresh_id(), framing, identity, now));
        match text("pid").filter(|_| door.recovers) {
            None => self.welcome(hub, key, now),
            Some(pid) => {
                if let Some(client) = self.client_mut(key) {
                    client.phase = Phase::Finding(text("offset"));
                }
                hub.push(Output::Find {
                    client: key,
                    pid,
                    user,
                });
            }
        }
    }

    /// Lets a client in that begins anew.
    fn welcome(&mut self, hub: &mut Hub, key: ClientId, now: Millis) {
        let Some(client) = self.client_mut(key) else {
            return;
        };
        if let Framing::SocketIo { session, .. } = client.framing
            && hub.door(session).is_some_and(|door| door.recovers)
        {
            client.pid = Some(format!(
                "{}-{}{}",
                hub.name(),
                hub.fresh_id(),
                hub.fresh_id()
            ));
        }
        self.let_in(hub, key);
        if let Some(client) = self.client(key) {
            let own = personal_room(&client.identity.user);
            // Its own room takes everybody who has a token.
            let _ = self.join(hub, key, &own, Position::default(), None, now);
        }
    }

    /// The first things on a connection.
    fn let_in(&mut self, hub: &mut Hub, key: ClientId) {
        let Some(client) = self.client_mut(key) else {
            return;
        };
        client.phase = Phase::Connected;
        hub.log(
            Entry::info("connect")
                .user(&client.identity.user)
                .connection(&client.id),
        );
        if let Framing::SocketIo { session, nsp } = &client.framing {
            let mut data = json!({ "sid": client.sid });
            if let Some(pid) = &client.pid {
                data["pid"] = pid.as_str().into();
            }
            hub.accept(*session, nsp, data.to_string());
        }
        let connected = json!({
            "event": "connected",
            "data": {
                "connectionId": client.id,
                "userId": client.identity.user,
                "expiresAt": rfc3339(client.identity.expires),
                "limits": crate::room::limits_json(&hub.config.room),
            },
        });
        self.tell(hub, key, &connected.to_string());
    }

    /// A client is gone. One that did not want that may come back.
    fn gone(&mut self, hub: &mut Hub, key: ClientId, code: u16, comes_back: bool) {
        let Some(client) = self.client(key) else {
            return;
        };
        if matches!(client.phase, Phase::Connected) {
            hub.log(
                Entry::info("disconnect")
                    .user(&client.identity.user)
                    .connection(&client.id)
                    .with("code", code),
            );
        }
        if comes_back && client.pid.is_some() {
            self.save(hub, key, true);
        } else {
            hub.push(Output::Forget {
                client: client.key(),
            });
        }
        let Some(client) = self.clients[key].take() else {
            return;
        };
        self.by_id.remove(&client.id);
        match client.framing {
            Framing::Native(socket) => self.by_socket.remove(&socket),
            Framing::SocketIo { session, nsp } => self.by_nsp.remove(&(session, nsp)),
        };
        for slot in client.slots {
            if let Some(this) = self.rooms.get_mut(&slot.room) {
                this.clients.retain(|one| *one != key);
            }
            let connection = client.id.clone();
            self.forward(hub, &slot.room, ToRoom::Gone { connection, code });
        }
    }

    /// Closes a client's connection, whatever it is.
    fn close(&mut self, hub: &mut Hub, key: ClientId, why: Close) {
        let Some(client) = self.client(key) else {
            return;
        };
        match client.framing.clone() {
            Framing::Native(socket) => hub.close_socket(socket, why),
            // Told to go, a Socket.IO client does not come back by itself; it
            // does after a plain close.
            Framing::SocketIo { session, nsp }
                if matches!(why, Close::Expired | Close::Kicked | Close::Forbidden) =>
            {
                hub.expel(session, &nsp, why);
                self.gone(hub, key, why.code(), false);
            }
            Framing::SocketIo { session, .. } => hub.close_session(session, why),
        }
    }

    fn save(&mut self, hub: &mut Hub, key: ClientId, gone: bool) {
        let Some(client) = self.client(key) else {
            return;
        };
        let session = match &client.framing {
            Framing::Native(_) => None,
            Framing::SocketIo { session, nsp } => {
                Some((hub.sid(*session).unwrap_or_default(), nsp.clone()))
            }
        };
        let saved = Saved {
            id: client.id.clone(),
            session,
            sid: client.sid.clone(),
            pid: client.pid.clone(),
            identity: client.identity.clone(),
            status: client.status,
            version: client.version,
            slots: client
                .slots
                .iter()
                .filter(|slot| slot.state != State::Joining)
                .cloned()
                .collect(),
        };
        hub.push(Output::Save {
            client: client.key(),
            user: saved.identity.user.clone(),
            gone,
            // Strings and numbers alone, so it is JSON.
            record: serde_json::to_string(&saved).unwrap_or_default(),
        });
    }

    fn forward(&mut self, hub: &mut Hub, room: &str, command: ToRoom) {
        let this = self.rooms.entry(room.to_owned()).or_default();
        this.outbox.push(command);
        if !this.busy {
            this.busy = true;
            hub.push(Output::Forward {
                room: room.to_owned(),
            });
        }
    }

    /// A room that nobody is in is nothing to remember.
    fn forget_room(&mut self, room: &str) {
        if let Some(this) = self.rooms.get(room)
            && this.clients.is_empty()
            && this.outbox.is_empty()
            && !this.busy
        {
            self.rooms.remove(room);
        }
    }

    fn frame(&mut self, hub: &mut Hub, key: ClientId, frame: Frame, now: Millis) {
        let limit = hub.config.room.max_frame_bytes;
        let text = match frame {
            Frame::Text(text) if text.len() <= limit => text,
            Frame::Text(_) => return self.reject(hub, key, Close::TooLarge),
            Frame::Binary(_) => return self.reject(hub, key, Close::Malformed),
        };
        if text == native::PING {
            return self.tell(hub, key, native::PONG);
        }
        if !native::is_framing(&text) {
            return self.reject(hub, key, Close::Malformed);
        }
        for line in text.split('\n').filter(|line| !line.trim().is_empty()) {
            if !self.line(hub, key, line, now) {
                return;
            }
        }
    }

    fn reject(&mut self, hub: &mut Hub, key: ClientId, why: Close) {
        if let Some(client) = self.client(key) {
            hub.log(
                Entry::reject("malformed")
                    .user(&client.identity.user)
                    .connection(&client.id)
                    .with("code", why.code()),
            );
        }
        self.close(hub, key, why);
    }

    /// An event of a Socket.IO client, as a line of the native framing.
    fn event(
        &mut self,
        hub: &mut Hub,
        key: ClientId,
        ack: Option<i64>,
        args: &str,
        binary: bool,
        now: Millis,
    ) {
        let limit = hub.config.room.max_frame_bytes;
        let id = ack.and_then(|ack| u32::try_from(ack).ok());
        let fault = if args.len() > limit {
            Some(native::too_large(limit))
        } else if binary {
            Some(Fault::bad_request(
                "rooms hold JSON: send binary data as text, or a link to it",
            ))
        } else if ack.is_some() && id.is_none() {
            Some(Fault::bad_field("id", "a whole number below 2^32"))
        } else {
            None
        };
        match fault {
            Some(fault) => {
                if self.may(hub, key, id, now) {
                    self.tell(hub, key, &native::fault(id, &fault));
                }
            }
            None => {
                if let Some(line) = line::from_event(args, id) {
                    self.line(hub, key, &line, now);
                }
            }
        }
    }

    /// Whether a client may ask for anything at all just now.
    fn may(&mut self, hub: &mut Hub, key: ClientId, id: Option<u32>, now: Millis) -> bool {
        let rate = hub.config.room.commands;
        let Some(client) = self.client_mut(key) else {
            return false;
        };
        match client.commands.take(rate, now) {
            Ok(()) => true,
            Err(wait) => {
                let fault = Fault::rate_limited("commands", wait);
                self.tell(hub, key, &native::fault(id, &fault));
                self.patience(hub, key, now);
                false
            }
        }
    }

    fn patience(&mut self, hub: &mut Hub, key: ClientId, now: Millis) {
        let Some(client) = self.client_mut(key) else {
            return;
        };
        let verdict = client.overrun.refuse(now);
        if verdict != Verdict::Again {
            hub.log(
                Entry::reject("rate")
                    .user(&client.identity.user)
                    .connection(&client.id)
                    .with("closed", verdict == Verdict::Enough),
            );
        }
        if verdict == Verdict::Enough {
            self.close(hub, key, Close::TooFast);
        }
    }

    /// A line of the native framing. Whether the rest of the frame counts.
    fn line(&mut self, hub: &mut Hub, key: ClientId, line: &str, now: Millis) -> bool {
        let incoming = native::decode_line(line);
        let id = incoming.id;
        if !self.may(hub, key, id, now) {
            return false;
        }
        let done = incoming
            .command
            .and_then(|command| self.command(hub, key, id, command, line, now));
        if let Err(fault) = done {
            self.tell(hub, key, &native::fault(id, &fault));
            if fault.code == Code::RateLimited {
                self.patience(hub, key, now);
            }
        }
        // A command may have closed the connection.
        self.client(key).is_some()
    }

    fn command(
        &mut self,
        hub: &mut Hub,
        key: ClientId,
        id: Option<u32>,
        command: Command,
        line: &str,
        now: Millis,
    ) -> Result<()> {
        let missing = || Fault::bad_field("roomId", "there: this connection is not of one room");
        match command {
            Command::Presence { status } => {
                let client = self.client_mut(key).ok_or_else(Fault::internal)?;
                client.status = status;
                let status = status.as_str();
                let told = format!(r#"{{"event":"setPresence","data":{{"status":"{status}"}}}}"#);
                self.all_rooms(hub, key, |connection| ToRoom::Frame {
                    connection,
                    frame: told.clone(),
                });
                self.save(hub, key, false);
                self.answer(hub, key, id, &format!(r#"{{"status":"{status}"}}"#));
                Ok(())
            }
            Command::Refresh { token } => self.refresh(hub, key, id, &token, now),
            Command::Join { room, position } => {
                let room = room.ok_or_else(missing)?;
                match self.slot(key, &room).map(|slot| slot.state) {
                    Some(State::Joining | State::In | State::Rejoining) => {
                        self.pass_on(hub, key, &room, line);
                        Ok(())
                    }
                    Some(State::Leaving) | None => self.join(hub, key, &room, position, id, now),
                }
            }
            Command::Leave { .. } => {
                let room = command.room().ok_or_else(missing)?;
                let slot = self.slot_mut(key, room).ok_or_else(Fault::not_joined)?;
                slot.state = State::Leaving;
                self.pass_on(hub, key, room, line);
                Ok(())
            }
            command => {
                let room = command.room().ok_or_else(missing)?;
                self.slot(key, room).ok_or_else(Fault::not_joined)?;
                self.pass_on(hub, key, room, line);
                Ok(())
            }
        }
    }

    fn answer(&mut self, hub: &mut Hub, key: ClientId, id: Option<u32>, data: &str) {
        if let Some(id) = id {
            self.tell(hub, key, &native::ack(id, data));
        }
    }

    fn pass_on(&mut self, hub: &mut Hub, key: ClientId, room: &str, line: &str) {
        if let Some(client) = self.client(key) {
            let command = ToRoom::Frame {
                connection: client.id.clone(),
                frame: line.to_owned(),
            };
            self.forward(hub, room, command);
        }
    }

    /// The same to all rooms of a client.
    fn all_rooms(&mut self, hub: &mut Hub, key: ClientId, command: impl Fn(String) -> ToRoom) {
        let Some(client) = self.client(key) else {
            return;
        };
        let id = client.id.clone();
        let rooms: Vec<String> = client.slots.iter().map(|slot| slot.room.clone()).collect();
        for room in rooms {
            self.forward(hub, &room, command(id.clone()));
        }
    }

    fn join(
        &mut self,
        hub: &mut Hub,
        key: ClientId,
        room: &str,
        position: Position,
        id: Option<u32>,
        now: Millis,
    ) -> Result<()> {
        let (max, rate) = (hub.config.gateway.max_rooms, hub.config.room.joins);
        let client = self.client_mut(key).ok_or_else(Fault::internal)?;
        let own = personal_room(&client.identity.user);
        let known = client.slots.iter().position(|slot| slot.room == room);
        let others = client.slots.iter().filter(|slot| slot.room != own).count();
        if known.is_none() && room != own && others >= max {
            return Err(Fault::new(
                Code::Conflict,
                format!("a connection may be in up to {max} rooms"),
            ));
        }
        client
            .joins
            .take(rate, now)
            .map_err(|wait| Fault::rate_limited("joins", wait))?;
        let rights = client.identity.rights(room);
        if !rights.has(Rights::READ) {
            hub.log(
                Entry::reject("auth")
                    .room(room)
                    .user(&client.identity.user)
                    .connection(&client.id),
            );
            return Err(Fault::forbidden("the token does not open this room"));
        }
        match known {
            Some(slot) => client.slots[slot].state = State::Rejoining,
            None => client.slots.push(Slot {
                room: room.to_owned(),
                epoch: String::new(),
                from: 0,
                version: u64::MAX,
                at: 0,
                state: State::Joining,
                repairing: false,
            }),
        }
        let hello = client.hello(room, rights, position);
        if known.is_none() {
            let this = self.rooms.entry(room.to_owned()).or_default();
            this.clients.push(key);
        }
        self.forward(hub, room, ToRoom::Join { hello, id });
        Ok(())
    }

    fn refresh(
        &mut self,
        hub: &mut Hub,
        key: ClientId,
        id: Option<u32>,
        token: &str,
        now: Millis,
    ) -> Result<()> {
        let joins = hub.config.room.joins;
        let client = self.client_mut(key).ok_or_else(Fault::internal)?;
        client
            .joins
            .take(joins, now)
            .map_err(|wait| Fault::rate_limited("requests", wait))?;
        let identity = auth::verify(&hub.config, token, now)?;
        if identity.user != client.identity.user {
            hub.log(
                Entry::reject("auth")
                    .user(&client.identity.user)
                    .connection(&client.id),
            );
            self.close(hub, key, Close::Forbidden);
            return Ok(());
        }
        client.identity = identity.clone();
        let rooms: Vec<String> = client.slots.iter().map(|slot| slot.room.clone()).collect();
        let connection = client.id.clone();
        for room in rooms {
            let command = ToRoom::Refresh {
                connection: connection.clone(),
                rights: identity.rights(&room),
                expires: identity.expires,
            };
            self.forward(hub, &room, command);
        }
        self.expect(identity.expires);
        self.save(hub, key, false);
        let expires = rfc3339(identity.expires);
        self.answer(hub, key, id, &format!(r#"{{"expiresAt":"{expires}"}}"#));
        Ok(())
    }

    /// A room has let a client in.
    fn joined(&mut self, hub: &mut Hub, key: ClientId, room: &str, after: u64) {
        let epoch = self
            .rooms
            .get(room)
            .map_or("", |this| &this.epoch)
            .to_owned();
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
            return;
        }
        if slot.state != State::Leaving {
            slot.state = State::In;
        }
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
        self.save(hub, key, false);
    }

    /// A client is not of a room any more, or was never let in.
    fn parted(&mut self, hub: &mut Hub, key: ClientId, room: &str, _now: Millis) {
        let Some(client) = self.client_mut(key) else {
            return;
        };
        let Some(place) = client.slots.iter().position(|slot| slot.room == room) else {
            return;
        };
        if client.slots[place].state == State::Rejoining {
            client.slots[place].state = State::Joining;
            return;
        }
        let state = client.slots.remove(place).state;
        client.version += 1;
        for slot in &mut client.slots[place..] {
            // Offsets of before tell of other places.
            slot.from = slot.at;
            slot.version = client.version;
        }
        if let Phase::Recovering { pending, whole, .. } = &mut client.phase {
            pending.remove(room);
            *whole = false;
        }
        let own = personal_room(&client.identity.user) == room;
        if let Some(this) = self.rooms.get_mut(room) {
            this.clients.retain(|one| *one != key);
        }
        if own && state == State::Joining {
            // As many connections as the user may have are there already.
            return self.close(hub, key, Close::TooFast);
        }
        self.save(hub, key, false);
    }

    /// A text of a room for one client, with events after the first number (if
    /// that is said) up to the second.
    fn one(
        &mut self,
        hub: &mut Hub,
        key: ClientId,
        room: &str,
        events: (Option<u64>, Option<u64>),
        text: &str,
        held: &mut HashMap<ClientId, String>,
    ) {
        if let (after, Some(at)) = events
            && let Some(slot) = self.slot_mut(key, room)
        {
            if after.is_some_and(|after| after > slot.at) {
                return self.repair(hub, key, room);
            }
            slot.at = slot.at.max(at);
            self.moved(room, at, hub);
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
            return self.tell(hub, key, text);
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
    fn all(
        &mut self,
        hub: &mut Hub,
        room: &str,
        (after, at): (u64, u64),
        text: &str,
        not: &[String],
        held: &mut HashMap<ClientId, String>,
    ) {
        let Some(this) = self.rooms.get(room) else {
            return;
        };
        let not: HashSet<ClientId> = not
            .iter()
            .filter_map(|id| self.by_id.get(id).copied())
            .collect();
        let mut sockets = Vec::new();
        let mut stamped = line::Stamped::new(text);
        for key in this.clients.clone() {
            if not.contains(&key) {
                continue;
            }
            let Some(client) = self.client_mut(key) else {
                continue;
            };
            let Some(place) = client.slots.iter().position(|slot| slot.room == room) else {
                continue;
            };
            let slot = &mut client.slots[place];
            if slot.state == State::Joining || slot.repairing {
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
                self.tell(hub, key, &rest);
                continue;
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
                (Framing::SocketIo { .. }, _) => self.tell(hub, key, text),
            }
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
    fn moved(&mut self, room: &str, at: u64, hub: &Hub) {
        if let Some(this) = self.rooms.get_mut(room)
            && at > this.at
        {
            this.at = at;
            this.unsaved = true;
            self.positions_due = Some(hub.now() + POSITION_DELAY);
        }
    }

    /// A client missed a delivery: what came since comes from the log.
    fn repair(&mut self, hub: &mut Hub, key: ClientId, room: &str) {
        let Some(client) = self.client_mut(key) else {
            return;
        };
        let rights = client.identity.rights(room);
        let Some(slot) = client.slots.iter_mut().find(|slot| slot.room == room) else {
            return;
        };
        if std::mem::replace(&mut slot.repairing, true) {
            return;
        }
        let position = Position {
            since: Some(slot.at),
            epoch: Some(slot.epoch.clone()),
            history: None,
        };
        let hello = client.hello(room, rights, position);
        hub.log(Entry::info("repair").room(room).connection(&client.id));
        self.forward(hub, room, ToRoom::Join { hello, id: None });
    }

    /// Lines to a client, in its framing.
    fn tell(&mut self, hub: &mut Hub, key: ClientId, text: &str) {
        let Some(client) = self.client_mut(key) else {
            return;
        };
        match (&client.framing, &mut client.phase) {
            (Framing::Native(socket), _) => hub.send(*socket, text.to_owned()),
            (_, Phase::Recovering { held, whole, .. }) => {
                *whole &= !text.split('\n').any(line::is_gap);
                held.push(text.to_owned());
            }
            (_, Phase::Finding(_)) => {}
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

    /// A client has come back: its rooms are asked for what it missed.
    fn recover(
        &mut self,
        hub: &mut Hub,
        key: ClientId,
        saved: Saved,
        positions: &[u64],
        now: Millis,
    ) {
        let seen = positions.first().copied().unwrap_or(0);
        let Some(client) = self.client_mut(key) else {
            return;
        };
        client.sid = saved.sid;
        client.pid = saved.pid;
        client.status = saved.status;
        client.version = saved.version;
        let mut joins = Vec::new();
        for (place, mut slot) in saved.slots.into_iter().enumerate() {
            if let Some(at) = positions.get(place + 1)
                && seen >= slot.version
            {
                slot.from = slot.from.max(*at);
            }
            let rights = client.identity.rights(&slot.room);
            let position = Position {
                since: Some(slot.from),
                epoch: Some(slot.epoch.clone()),
                history: None,
            };
            slot.state = State::Joining;
            joins.push((
                slot.room.clone(),
                client.hello(&slot.room, rights, position),
                rights,
            ));
            client.slots.push(slot);
        }
        let until = now + RECOVERY_TIMEOUT;
        client.phase = Phase::Recovering {
            pending: joins.iter().map(|(room, ..)| room.clone()).collect(),
            // Rooms that the token of today does not open are not given back.
            whole: joins.iter().all(|(_, _, rights)| rights.has(Rights::READ)),
            held: Vec::new(),
            until,
        };
        self.expect(until);
        let Some(Client {
            phase: Phase::Recovering { whole: true, .. },
            ..
        }) = self.client(key)
        else {
            return self.recovered(hub, key, false, now);
        };
        for (room, hello, _) in joins {
            let this = self.rooms.entry(room.clone()).or_default();
            this.clients.push(key);
            self.forward(hub, &room, ToRoom::Join { hello, id: None });
        }
    }

    /// It is known whether a client that came back has missed nothing. If it
    /// has, it begins anew.
    fn recovered(&mut self, hub: &mut Hub, key: ClientId, whole: bool, now: Millis) {
        let Some(client) = self.client_mut(key) else {
            return;
        };
        let phase = std::mem::replace(&mut client.phase, Phase::Connected);
        let Phase::Recovering { held, .. } = phase else {
            client.phase = phase;
            return;
        };
        if whole {
            self.let_in(hub, key);
            self.save(hub, key, false);
            for text in held {
                self.tell(hub, key, &text);
            }
            return;
        }
        client.sid = hub.fresh_id();
        let (id, slots) = (client.id.clone(), std::mem::take(&mut client.slots));
        // A new name in the rooms, so that nothing of before is for it.
        client.id = hub.fresh_id();
        let renamed = client.id.clone();
        self.by_id.remove(&id);
        self.by_id.insert(renamed, key);
        for slot in slots {
            if let Some(this) = self.rooms.get_mut(&slot.room) {
                this.clients.retain(|one| *one != key);
            }
            let connection = id.clone();
            self.forward(
                hub,
                &slot.room,
                ToRoom::Gone {
                    connection,
                    code: 1000,
                },
            );
        }
        self.welcome(hub, key, now);
    }
}

impl Client {
    fn new(hub: &Hub, id: String, framing: Framing, identity: Identity, now: Millis) -> Self {
        let room = &hub.config.room;
        Client {
            sid: id.clone(),
            id,
            framing,
            identity,
            status: Status::Online,
            phase: Phase::Connected,
            slots: Vec::new(),
            version: 0,
            pid: None,
            commands: Bucket::full(room.commands, now),
            joins: Bucket::full(room.joins, now),
            overrun: Overrun::default(),
        }
    }

    fn hello(&self, _room: &str, rights: Rights, position: Position) -> Hello {
        Hello {
            connection_id: self.id.clone(),
            user: self.identity.user.clone(),
            rights,
            expires: self.identity.expires,
            address: None,
            position,
            status: self.status,
        }
    }

    /// Under what it is saved.
    fn key(&self) -> String {
        self.pid.clone().unwrap_or_else(|| self.id.clone())
    }

    /// What stands before and after the position in one room in the offsets of
    /// this client.
    fn offset_around(&self, place: usize) -> line::Offset {
        let (mut before, mut after) = (String::new(), String::new());
        offset::push(&mut before, self.version);
        for (index, slot) in self.slots.iter().enumerate() {
            if slot.state == State::Joining || index == place {
                continue;
            }
            offset::push(
                if index < place {
                    &mut before
                } else {
                    &mut after
                },
                slot.at,
            );
        }
        line::Offset { before, after }
    }
}
