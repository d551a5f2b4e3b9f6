//! What is kept of clients over a sleep and over a lost connection, and how they
//! come back.

use super::delivery::lag_key;
use super::{Chat, Client, Departed, Framing, Held, NEVER, Phase, Slot, State};
use crate::{ClientId, Hub, Output, SETTLES, offset};
use roomcast_proto::access::{Identity, Rights};
use roomcast_proto::link::Command as ToRoom;
use roomcast_proto::time::{Millis, SECOND};
use roomcast_proto::wire::command::{Position, Status};
use roomcast_proto::wire::native::Close;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::rc::Rc;

/// How long rooms may take to give a client that came back what it missed.
const RECOVERY_TIMEOUT: Millis = 10 * SECOND;

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
    tag: u64,
    slots: Vec<Slot>,
}

impl Chat {
    /// What was kept of a client that comes back, if anything.
    pub(super) fn come_back(
        &mut self,
        hub: &mut Hub,
        key: ClientId,
        pid: &str,
        record: Option<String>,
        now: Millis,
    ) {
        let saved = record
            .as_deref()
            .and_then(|record| serde_json::from_str::<Saved>(record).ok());
        let Some(Client {
            phase: Phase::Finding { pid: asked, offset },
            framing: Framing::SocketIo { nsp, .. },
            identity,
            ..
        }) = self.client(key).filter(
            |client| matches!(&client.phase, Phase::Finding { pid: asked, .. } if asked == pid),
        )
        else {
            // The client is gone. It may come back once more, to what was found.
            if let (Some(saved), Some(record)) = (saved, record) {
                hub.push(Output::Save {
                    client: pid.to_owned(),
                    user: saved.identity.user,
                    gone: true,
                    record,
                });
            }
            return;
        };
        let saved = saved.filter(|saved| {
            saved.session.as_ref().is_some_and(|(_, at)| at == nsp)
                && saved.pid.as_ref() == Some(asked)
                && saved.identity.user == identity.user
        });
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

    /// A client has come back: its rooms are asked for what it missed.
    fn recover(
        &mut self,
        hub: &mut Hub,
        key: ClientId,
        saved: Saved,
        positions: &[u64],
        now: Millis,
    ) {
        // An offset of an earlier life says nothing: from where it began, then.
        let (seen, positions) = match positions {
            [tag, version, positions @ ..] if *tag == saved.tag => (*version, positions),
            _ => (0, &[][..]),
        };
        let Some(client) = self.client_mut(key) else {
            return;
        };
        client.sid = saved.sid;
        client.pid = saved.pid;
        client.status = saved.status;
        client.version = saved.version;
        client.tag = saved.tag;
        let mut joins = Vec::new();
        for (place, mut slot) in saved.slots.into_iter().enumerate() {
            if let Some(at) = positions.get(place)
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
            slot.repairing = false;
            slot.seat = client.seat(hub);
            let hello = client.hello(slot.seat.clone(), rights, position);
            joins.push((slot.room.clone(), hello, rights));
            client.slots.push(slot);
        }
        let nothing_missed = joins.is_empty();
        let until = now + RECOVERY_TIMEOUT;
        client.phase = Phase::Recovering {
            pending: joins.iter().map(|(room, ..)| room.clone()).collect(),
            // Rooms that the token of today does not open are not given back.
            whole: joins.iter().all(|(_, _, rights)| rights.has(Rights::READ)),
            held: Vec::new(),
            until,
        };
        self.recovering.insert(key);
        self.expect(now + SETTLES);
        let Some(Client {
            phase: Phase::Recovering { whole: true, .. },
            ..
        }) = self.client(key)
        else {
            return self.recovered(hub, key, false, now);
        };
        if nothing_missed {
            return self.recovered(hub, key, true, now);
        }
        for (room, hello, _) in joins {
            let this = self.rooms.entry(room.clone()).or_default();
            this.clients.push(key);
            let (id, again) = (None, true);
            self.forward(hub, &room, ToRoom::Join { hello, id, again });
        }
    }

    /// It is known whether a client that came back has missed nothing. If it
    /// has, it begins anew.
    pub(super) fn recovered(&mut self, hub: &mut Hub, key: ClientId, whole: bool, now: Millis) {
        self.recovering.remove(&key);
        let Some(client) = self.client_mut(key) else {
            return;
        };
        let phase = std::mem::replace(&mut client.phase, Phase::Connected);
        let Phase::Recovering { held, .. } = phase else {
            client.phase = phase;
            return;
        };
        if whole {
            if !self.let_in(hub, key) {
                return;
            }
            self.save(hub, key);
            for Held { room, text } in held {
                match room {
                    Some(room) => self.tell_of_room(hub, key, &room, &text),
                    None => self.tell(hub, key, &text),
                }
            }
            return self.join_own(hub, key, now);
        }
        client.sid = hub.fresh_id();
        let (id, slots) = (client.id.clone(), std::mem::take(&mut client.slots));
        // A new name in the rooms, so that nothing of before is for it.
        client.id = hub.fresh_id();
        let renamed = client.id.clone();
        self.by_id.remove(&id);
        self.by_id.insert(renamed, key);
        self.withdraw(hub, key, slots, 1000);
        self.welcome(hub, key, now);
    }

    /// A client of this `pid` comes back elsewhere: it is here no more.
    pub(super) fn give_away(&mut self, hub: &mut Hub, pid: &str, user: &str) {
        let live = self.clients.iter().find(|(_, client)| {
            client.pid.as_deref() == Some(pid)
                && client.identity.user == user
                && !matches!(client.phase, Phase::Finding { .. })
        });
        let live = live.map(|(key, _)| key);
        if let Some(key) = live
            && let Some(client) = self.clients.get_mut(key)
        {
            if matches!(client.phase, Phase::Recovering { .. }) {
                // It goes on elsewhere, from what it began with.
                client.abandon_recovery();
                hub.push(saved(hub, client, true));
            }
            // What is saved of it is given away, and not to be saved again once its
            // rooms know that it is gone.
            client.pid = None;
            self.close(hub, key, Close::Normal);
        }
        let departed = self
            .departed
            .extract_if(|_, departed| departed.key == pid && departed.user == user);
        for (_, Departed { then, .. }) in departed {
            hub.push(then);
        }
    }

    /// After a sleep: the clients that were not gone.
    pub(super) fn wake(
        &mut self,
        hub: &mut Hub,
        records: Vec<String>,
        positions: HashMap<String, u64>,
        panicked: bool,
        now: Millis,
    ) {
        for record in records {
            let Ok(saved) = serde_json::from_str::<Saved>(&record) else {
                continue;
            };
            // The null key, which finds nothing, where the socket has gone
            // meanwhile: the client is removed at once, below.
            let (framing, lives) = match &saved.session {
                None => {
                    let socket = hub.native(&saved.id);
                    let framing = Framing::Native(socket.unwrap_or_default());
                    (framing, socket.is_some())
                }
                Some((sid, nsp)) => {
                    let session = hub.session_with(sid, nsp);
                    let framing = Framing::SocketIo {
                        session: session.unwrap_or_default(),
                        nsp: nsp.clone(),
                    };
                    (framing, session.is_some())
                }
            };
            let id = saved.id.clone();
            let identity = Rc::new(saved.identity);
            let client = Client {
                status: saved.status,
                slots: saved.slots,
                version: saved.version,
                tag: saved.tag,
                sid: saved.sid,
                pid: saved.pid,
                ..Client::new(hub, saved.id, framing, identity.clone(), now)
            };
            hub.set_identity(client.receiver(), identity.clone());
            let key = self.add(client);
            for slot in 0..self.client(key).map_or(0, |client| client.slots.len()) {
                let slot = &mut self.clients[key].slots[slot];
                if slot.seat.is_empty() {
                    // Of a build in which connections had the ids of clients.
                    slot.seat.clone_from(&id);
                }
                let behind = positions.get(&lag_key(&slot.room, &id));
                slot.at = match (behind, positions.get(&slot.room)) {
                    (Some(behind), _) => *behind,
                    (None, at) => slot.from.max(at.copied().unwrap_or(0)),
                };
                if behind.is_some() {
                    self.lagging.insert((slot.room.clone(), id.clone()));
                }
                let (room, at, epoch) = (slot.room.clone(), slot.at, slot.epoch.clone());
                let this = self.rooms.entry(room).or_default();
                this.clients.push(key);
                this.at = this.at.max(at);
                this.epoch = epoch;
            }
            if !lives {
                self.gone(hub, key, 1006, saved.session.is_some());
                continue;
            }
            // Of a build that did not apply refreshed tokens to rooms.
            self.close_rooms(hub, key);
            let slots = self.client(key).map_or(&[][..], |client| &client.slots);
            // What waited in the memory for the rooms, and what they had for the
            // client, is known to nobody after a panic.
            let missed = slots.iter().filter(|slot| panicked || slot.repairing);
            for room in missed.map(|slot| slot.room.clone()).collect::<Vec<_>>() {
                self.repair(hub, key, &room);
            }
            if panicked {
                self.join_own(hub, key, now);
            }
        }
        for room in self.rooms.keys().cloned().collect::<Vec<_>>() {
            self.say_reached(hub, &room);
        }
        hub.close_strangers(|socket| self.by_socket.contains_key(&socket));
        self.expect(now + hub.config.limits.ghost_timeout);
    }

    /// Keeps what a client is.
    pub(super) fn save(&self, hub: &mut Hub, key: ClientId) {
        if let Some(client) = self.client(key) {
            hub.push(saved(hub, client, false));
        }
    }
}

impl Client {
    /// Ends a recovery that is not complete: the client has received nothing of
    /// it. The order of its rooms may have changed, so its offset, which is of
    /// the order before, does not count any more; [`Slot::from`] has taken it in.
    pub(super) fn abandon_recovery(&mut self) {
        self.version += 1;
        for slot in &mut self.slots {
            slot.version = self.version;
            slot.state = State::In;
        }
    }
}

/// What is kept of a client, to be saved.
pub(super) fn saved(hub: &Hub, client: &Client, gone: bool) -> Output {
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
        identity: Identity::clone(&client.identity),
        status: client.status,
        version: client.version,
        tag: client.tag,
        slots: client
            .slots
            .iter()
            .filter(|slot| slot.state != State::Joining && slot.version != NEVER)
            .cloned()
            .collect(),
    };
    Output::Save {
        client: client.key(),
        user: saved.identity.user.clone(),
        gone,
        // Strings and numbers alone, so it is JSON.
        record: serde_json::to_string(&saved).unwrap_or_default(),
    }
}
