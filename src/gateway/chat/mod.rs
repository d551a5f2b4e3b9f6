//! The chat on a gateway: clients, native and Socket.IO, and the rooms they are
//! in. It decides who may join and keeps where each client stands; everything
//! else is the rooms' own: commands go to them as they came, and what they push
//! goes to the clients.

mod clients;
mod commands;
mod delivery;
mod recovery;

use super::{
    App, ClientId, Heard, Hub, Output, Receiver, SessionId, SocketId, Up, Waiting, line, offset,
};
use crate::auth::{Identity, Rights};
use crate::eventlog::Entry;
use crate::fault::Fault;
use crate::name::personal_room;
use crate::room::Hello;
use crate::room::limits::Allowance;
use crate::room::link::{self, Command as ToRoom, Push, Pushed};
use crate::time::{Millis, SECOND, sooner};
use crate::wire::command::{Command, Position, Status};
use crate::wire::native::{self, Close};
use serde::{Deserialize, Serialize};
use slotmap::SlotMap;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// How long after a room could not be told of a connection's end it is tried
/// again.
const RETRY_AFTER: Millis = 5 * SECOND;

/// The version of a slot whose room has not let the client in yet.
const NEVER: u64 = u64::MAX;

/// One connection to the vocabulary: a native socket, or a namespace of a
/// Socket.IO session.
struct Client {
    id: String,
    framing: Framing,
    identity: Rc<Identity>,
    status: Status,
    phase: Phase,
    slots: Vec<Slot>,
    /// Counts the changes of `slots`: part of every offset.
    version: u64,
    /// Begins its offsets: a client library keeps the last one it saw, and may
    /// show it with a `pid` that it was given later.
    tag: u64,
    /// The id that Socket.IO shows; it outlives the connection.
    sid: String,
    /// By which the client may come back; secret.
    pid: Option<String>,
    allowance: Allowance,
}

#[derive(Clone, Debug, PartialEq)]
enum Framing {
    Native(SocketId),
    SocketIo { session: SessionId, nsp: String },
}

enum Phase {
    Connected,
    /// What was saved of it under `pid` is being looked for.
    Finding {
        pid: String,
        offset: Option<String>,
    },
    /// Rooms are giving it what it missed; nothing goes to it until it is known
    /// whether that is all.
    Recovering {
        pending: HashSet<String>,
        whole: bool,
        held: Vec<Held>,
        until: Millis,
    },
}

/// Lines that wait until a recovery is complete.
#[derive(Debug)]
struct Held {
    /// The room whose lines they are; `None` for answers.
    room: Option<String>,
    text: String,
}

/// A room that a client is in or on its way into.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Slot {
    room: String,
    /// The connection that the room knows: another with each join, so that what
    /// is late of one is not taken for the next. See [`Client::seat`].
    #[serde(default)]
    seat: String,
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
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    repairing: bool,
    /// By which id it asked to be let in, as long as that is open.
    #[serde(skip)]
    asked: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum State {
    Joining,
    #[default]
    In,
    Leaving,
}

/// A client that is gone.
struct Departed {
    /// The connections to rooms of whose end the rooms have not heard.
    unheard: HashSet<String>,
    /// Under what it is saved, and for whom.
    key: String,
    user: String,
    /// What becomes of that.
    then: Output,
}

/// A room as the gateway sees it.
#[derive(Default)]
struct Room {
    clients: Vec<ClientId>,
    outbox: Vec<ToRoom>,
    /// Whether a request is on its way.
    busy: bool,
    /// How many commands it has.
    taken: usize,
    /// Of which connections it says that they are gone.
    gone: Vec<String>,
    /// The last push: of which waking of the room, and its number.
    last: (String, u64),
    epoch: String,
    at: u64,
    /// What of that [`Output::Reached`] said last.
    said: Option<u64>,
    unsaved: bool,
}

/// See the module.
#[derive(Default)]
pub struct Chat {
    clients: SlotMap<ClientId, Client>,
    by_id: HashMap<String, ClientId>,
    by_socket: HashMap<SocketId, ClientId>,
    by_nsp: HashMap<(SessionId, String), ClientId>,
    rooms: HashMap<String, Room>,
    /// Clients whose rooms are giving them what they missed.
    recovering: HashSet<ClientId>,
    /// Clients that are gone and whose rooms have not all heard of it, by their
    /// ids: until then they are kept as if they were here, so that a panic does
    /// not lose the word of it.
    departed: HashMap<String, Departed>,
    /// What a room could not be told, and when it is tried again.
    retries: Vec<(Millis, String, ToRoom)>,
    /// Nothing is due before this.
    due: Option<Millis>,
    positions_due: Option<Millis>,
    /// Rooms and the ids of clients that lack what the others there have, or did
    /// when that was said last.
    lagging: HashSet<(String, String)>,
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
            Up::Connect {
                session,
                nsp,
                number,
                auth,
            } => {
                let asked = clients::Connect {
                    session,
                    nsp,
                    number,
                    auth: &auth,
                };
                self.connect(hub, asked, clients::Judge::WhenReady, now);
            }
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

    fn woken_by_alarm(&mut self, now: Millis) {
        // What was due is forgotten. Pings alone count for who is silent then, for
        // of what else was heard the memory is gone; woken by somebody who speaks,
        // it need not be looked at yet.
        self.expect(now);
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
        for (at, room, command) in std::mem::take(&mut self.retries) {
            if at <= now {
                self.again(hub, &room, command);
            } else {
                self.expect(at);
                self.retries.push((at, room, command));
            }
        }
        let ghost_timeout = hub.config.room.ghost_timeout;
        for key in self.clients.keys().collect::<Vec<_>>() {
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

    fn gathers(&self, room: &str) -> bool {
        let room = self.rooms.get(room);
        room.is_some_and(|room| (1..room.taken).contains(&room.outbox.len()))
    }

    fn take(&mut self, hub: &mut Hub, room: &str) -> Option<Vec<ToRoom>> {
        let this = self.rooms.get_mut(room)?;
        for seat in std::mem::take(&mut this.gone) {
            self.heard_of(hub, &seat);
        }
        let this = self.rooms.get_mut(room)?;
        if this.outbox.is_empty() {
            this.busy = false;
            self.forget_room(room);
            return None;
        }
        this.taken = this.outbox.len();
        this.gone = this
            .outbox
            .iter()
            .filter(|command| matches!(command, ToRoom::Gone { .. }))
            .map(|command| command.connection().to_owned())
            .collect();
        Some(std::mem::take(&mut this.outbox))
    }

    fn failed(&mut self, hub: &mut Hub, room: &str, commands: Vec<ToRoom>) {
        if let Some(this) = self.rooms.get_mut(room) {
            this.gone.clear();
        }
        let fault = Fault::internal();
        for command in commands {
            let key = self.client_of(command.connection());
            match (command, key) {
                (ToRoom::Frame { frame, connection }, Some(key)) => {
                    let incoming = native::decode_line(&frame);
                    if matches!(incoming.command, Ok(Command::Leave { .. }))
                        && self.seated(room, &connection).is_some()
                    {
                        self.leave_failed(hub, key, room);
                    }
                    self.tell(hub, key, &native::fault(incoming.id, &fault));
                }
                (command @ ToRoom::Join { .. }, Some(key)) => {
                    let seat = command.connection().to_owned();
                    match self.seated(room, &seat) {
                        Some(slot) if slot.repairing => self.retry(hub, room, command),
                        Some(slot) if slot.state == State::Joining || slot.version == NEVER => {
                            self.join_failed(hub, key, room);
                        }
                        _ => {}
                    }
                }
                // Nobody else tells the room.
                (command @ (ToRoom::Gone { .. } | ToRoom::Refresh { .. }), _) => {
                    self.retry(hub, room, command);
                }
                (_, None) => {}
            }
        }
    }

    fn pushed(&mut self, hub: &mut Hub, push: Push, texts: &[&str], now: Millis) -> Pushed {
        self.deliver(hub, push, texts, now)
    }

    fn prepared(&mut self, hub: &mut Hub, waiting: Waiting, ready: bool, now: Millis) {
        self.go_on(hub, waiting, ready, now);
    }

    fn enforce(&mut self, hub: &mut Hub, now: Millis) {
        for key in self.clients.keys().collect::<Vec<_>>() {
            let revoked = self
                .client(key)
                .filter(|client| client.identity.is_revoked(&hub.config.revoked, now));
            if let Some(client) = revoked {
                hub.log(client.entry(Entry::info("revoke")));
                self.close(hub, key, Close::Revoked);
            }
        }
    }

    fn found(
        &mut self,
        hub: &mut Hub,
        key: ClientId,
        pid: &str,
        record: Option<String>,
        now: Millis,
    ) {
        self.come_back(hub, key, pid, record, now);
    }

    fn evict(&mut self, hub: &mut Hub, pid: &str, user: &str) {
        self.give_away(hub, pid, user);
    }

    fn recall(
        &mut self,
        hub: &mut Hub,
        records: Vec<String>,
        positions: HashMap<String, u64>,
        panicked: bool,
        now: Millis,
    ) {
        self.wake(hub, records, positions, panicked, now);
    }
}

impl Chat {
    /// What a room could not be told is to be tried again.
    fn retry(&mut self, hub: &Hub, room: &str, command: ToRoom) {
        let at = hub.now() + RETRY_AFTER;
        self.retries.push((at, room.to_owned(), command));
        self.expect(at);
    }

    /// A client is told that it was not let in. Should it have been, which cannot
    /// be known where the word of it is lost, the room will hear that its
    /// connection is none.
    fn join_failed(&mut self, hub: &mut Hub, key: ClientId, room: &str) {
        let own = self
            .client(key)
            .map(|one| personal_room(&one.identity.user));
        if own.is_some_and(|own| own == room) {
            // Nobody asked for that one, so nobody would ask again.
            return self.close(hub, key, Close::Failed);
        }
        let asked = self.slot_mut(key, room).and_then(|slot| slot.asked.take());
        self.tell(hub, key, &native::fault(asked, &Fault::internal()));
        self.parted(hub, key, room);
    }

    /// A client is told that it has not left. It may have, so it joins anew.
    fn leave_failed(&mut self, hub: &mut Hub, key: ClientId, room: &str) {
        match self.slot_mut(key, room) {
            Some(slot) if slot.version == NEVER => self.join_failed(hub, key, room),
            Some(slot) if slot.state == State::Leaving => {
                slot.state = State::In;
                self.repair(hub, key, room);
            }
            _ => {}
        }
    }

    /// The time of a retry has come.
    fn again(&mut self, hub: &mut Hub, room: &str, command: ToRoom) {
        let connection = command.connection().to_owned();
        let key = self.client_of(&connection);
        let is_current = self.seated(room, &connection).is_some();
        match (command, key) {
            // From where it is by now.
            (ToRoom::Join { .. }, Some(key)) if is_current => self.repair(hub, key, room),
            (ToRoom::Join { .. }, _) => {}
            // With the rights that it has by now.
            (ToRoom::Refresh { .. }, Some(key)) if is_current => {
                if let Some(client) = self.client(key) {
                    let refresh = ToRoom::Refresh {
                        connection,
                        rights: client.identity.rights(room),
                        expires: client.identity.expires,
                    };
                    self.forward(hub, room, refresh);
                }
            }
            (ToRoom::Refresh { .. }, _) => {}
            // It has joined again since: that has taken the place of this one.
            (ToRoom::Gone { .. }, Some(key)) if self.slot(key, room).is_some() => {}
            (command, _) => self.forward(hub, room, command),
        }
    }

    fn client(&self, key: ClientId) -> Option<&Client> {
        self.clients.get(key)
    }

    fn client_mut(&mut self, key: ClientId) -> Option<&mut Client> {
        self.clients.get_mut(key)
    }

    fn slot(&self, key: ClientId, room: &str) -> Option<&Slot> {
        self.client(key)?
            .slots
            .iter()
            .find(|slot| slot.room == room)
    }

    fn slot_mut(&mut self, key: ClientId, room: &str) -> Option<&mut Slot> {
        let client = self.clients.get_mut(key)?;
        client.slots.iter_mut().find(|slot| slot.room == room)
    }

    /// Whose connection to a room this is, or was.
    fn client_of(&self, seat: &str) -> Option<ClientId> {
        self.by_id.get(link::client_of(seat)).copied()
    }

    /// The slot of this connection to a room, if it is still the one.
    fn seated(&mut self, room: &str, seat: &str) -> Option<&mut Slot> {
        let slot = self.slot_mut(self.client_of(seat)?, room)?;
        (slot.seat == seat).then_some(slot)
    }

    fn expect(&mut self, at: Millis) {
        sooner(&mut self.due, at);
    }

    fn add(&mut self, client: Client) -> ClientId {
        let (id, framing) = (client.id.clone(), client.framing.clone());
        self.expect(client.identity.expires);
        let key = self.clients.insert(client);
        self.by_id.insert(id, key);
        match framing {
            Framing::Native(socket) => self.by_socket.insert(socket, key),
            Framing::SocketIo { session, nsp } => self.by_nsp.insert((session, nsp), key),
        };
        key
    }
}

impl Client {
    /// Where its events are sent to.
    fn receiver(&self) -> Receiver<'_> {
        match &self.framing {
            Framing::Native(socket) => Receiver::Native(*socket),
            Framing::SocketIo { session, nsp } => Receiver::Namespace(*session, nsp),
        }
    }

    /// A line of the event log about it.
    fn entry(&self, entry: Entry) -> Entry {
        entry.user(&self.identity.user).connection(&self.id)
    }

    fn new(hub: &Hub, id: String, framing: Framing, identity: Rc<Identity>, now: Millis) -> Self {
        Client {
            sid: id.clone(),
            id,
            framing,
            identity,
            status: Status::Online,
            phase: Phase::Connected,
            slots: Vec::new(),
            version: 0,
            tag: u64::from_str_radix(&hub.fresh_id(), 16).unwrap_or_default() >> 32,
            pid: None,
            allowance: Allowance::full(&hub.config.room, now),
        }
    }

    /// A connection for a room: one that nobody had before.
    fn seat(&self, hub: &Hub) -> String {
        format!("{}{}{}", self.id, link::SEAT, hub.fresh_id())
    }

    fn hello(&self, seat: String, rights: Rights, position: Position) -> Hello {
        Hello {
            connection_id: seat,
            user: self.identity.user.clone(),
            rights,
            expires: self.identity.expires,
            address: None,
            position,
            status: self.status,
            token: self.identity.token.clone(),
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
        offset::push(&mut before, self.tag);
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
