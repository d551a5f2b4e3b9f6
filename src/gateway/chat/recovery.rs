//! What is kept of clients over a sleep and over a lost connection, and how they
//! come back.

use super::delivery::lag_key;
use super::{Chat, Client, ClientId, Departed, Framing, NEVER, Phase, Slot, State};
use crate::auth::{Identity, Rights};
use crate::gateway::{Hub, Output, SETTLES, offset};
use crate::room::link::Command as ToRoom;
use crate::time::{Millis, SECOND};
use crate::wire::command::{Position, Status};
use crate::wire::native::Close;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

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
        record: Option<String>,
        now: Millis,
    ) {
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
            self.let_in(hub, key);
            self.save(hub, key);
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
        self.withdraw(hub, key, slots, 1000);
        self.welcome(hub, key, now);
    }

    /// A client of this `pid` comes back elsewhere: it is here no more.
    pub(super) fn give_away(&mut self, hub: &mut Hub, pid: &str, user: &str) {
        let live = self.clients.iter().position(|client| {
            client.as_ref().is_some_and(|client| {
                client.pid.as_deref() == Some(pid)
                    && client.identity.user == user
                    && matches!(client.phase, Phase::Connected)
            })
        });
        if let Some(key) = live {
            // What is saved of it is given away, and not to be saved again once its
            // rooms know that it is gone.
            if let Some(client) = self.client_mut(key) {
                client.pid = None;
            }
            self.close(hub, key, Close::Normal);
        }
        let departed = self
            .departed
            .extract_if(|_, departed| departed.key == pid && departed.user == user);
        for (_, Departed { then, .. }) in departed {
            // Of one that went by its own will nothing is to be found.
            if matches!(then, Output::Forget { .. }) {
                hub.push(then);
            }
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
            let id = saved.id.clone();
            let client = Client {
                status: saved.status,
                slots: saved.slots,
                version: saved.version,
                tag: saved.tag,
                sid: saved.sid,
                pid: saved.pid,
                ..Client::new(hub, saved.id, framing, saved.identity, now)
            };
            let key = self.add(client);
            for slot in 0..self.client(key).map_or(0, |client| client.slots.len()) {
                let Some(slot) = self.clients[key].as_mut().map(|c| &mut c.slots[slot]) else {
                    continue;
                };
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
        self.expect(now + hub.config.room.ghost_timeout);
    }

    /// Keeps what a client is.
    pub(super) fn save(&self, hub: &mut Hub, key: ClientId) {
        if let Some(client) = self.client(key) {
            hub.push(self.saved(hub, client, false));
        }
    }

    pub(super) fn saved(&self, hub: &Hub, client: &Client, gone: bool) -> Output {
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
}
