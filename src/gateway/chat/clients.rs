//! Who comes and goes.

use super::recovery::saved;
use super::{Chat, Client, Departed, Framing, Phase, Slot};
use crate::auth;
use crate::eventlog::Entry;
use crate::fault::{Code, Fault};
use crate::gateway::{Asked, ClientId, Door, Hub, Output, SessionId, SocketId, Waiting};
use crate::name::personal_room;
use crate::room::link::{self, Command as ToRoom};
use crate::time::{Millis, rfc3339};
use crate::wire::Object;
use crate::wire::command::Position;
use crate::wire::native::Close;
use crate::wire::object::TEXT;
use serde_json::json;
use std::rc::Rc;

/// When a token is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judge {
    /// Once all is there that it takes.
    WhenReady,
    /// By what there is.
    Now,
    /// What it takes cannot be had.
    Never,
}

/// A CONNECT of a Socket.IO session.
pub(super) struct Connect<'a> {
    pub(super) session: SessionId,
    pub(super) nsp: String,
    /// See [`Hub::is_connecting`].
    pub(super) number: u64,
    /// A JSON object.
    pub(super) auth: &'a str,
}

impl Chat {
    /// A native socket: the Worker has let in only who has a token.
    pub(super) fn opened(
        &mut self,
        hub: &mut Hub,
        socket: SocketId,
        id: String,
        door: Door,
        now: Millis,
    ) {
        let Some(identity) = door.identity else {
            return hub.close_socket(socket, Close::Expired);
        };
        // The Worker that let it through may not have heard of it yet.
        if identity.is_revoked(&hub.config.revoked, now) {
            hub.log(Entry::reject("auth").user(&identity.user));
            return hub.close_socket(socket, Close::Revoked);
        }
        let framing = Framing::Native(socket);
        let key = self.add(Client::new(hub, id, framing, Rc::new(identity), now));
        self.expect(now + hub.config.room.ghost_timeout);
        self.welcome(hub, key, now);
    }

    /// A session wants into a namespace.
    pub(super) fn connect(&mut self, hub: &mut Hub, asked: Connect, judge: Judge, now: Millis) {
        let Connect {
            session,
            nsp,
            number,
            auth: given,
        } = asked;
        // The client did not wait for the answer, or its session is over.
        if !hub.is_connecting(session, number) {
            return;
        }
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
        let shown = Object::parse(given, "`auth`").unwrap_or_default();
        let text = |name| shown.get(name, TEXT).ok().flatten();
        let shown_now = door.identity.is_none();
        let identity = match (door.identity, door.fault) {
            (Some(identity), _) => Ok(identity),
            (None, Some(fault)) => Err(fault),
            (None, None) => {
                let token = text("token");
                match (auth::token::require(token.as_deref()), judge) {
                    (Err(fault), _) => Err(fault),
                    (Ok(_), Judge::Never) => Err(Fault::internal()),
                    (Ok(token), Judge::WhenReady) if !auth::is_ready(&hub.config, token, now) => {
                        let Some(sid) = hub.sid(session) else {
                            return;
                        };
                        return hub.push(Output::Prepare(Waiting {
                            token: token.to_owned(),
                            asked: Asked::Connect {
                                sid,
                                nsp,
                                number,
                                auth: given.to_owned(),
                            },
                        }));
                    }
                    (Ok(token), _) => auth::verify(&hub.config, token, now),
                }
            }
        };
        // The token of the request may have expired since.
        let identity = identity.and_then(|identity| {
            hub.floods.admit(&identity.user, now)?;
            if identity.expires <= now {
                return Err(Fault::unauthorized("the token has expired"));
            }
            if identity.is_revoked(&hub.config.revoked, now) {
                return Err(Fault::unauthorized("the token was revoked"));
            }
            Ok(identity)
        });
        let identity = match identity {
            Ok(identity) => identity,
            Err(fault) => {
                let kind = match fault.code {
                    Code::RateLimited => "rate",
                    _ => "auth",
                };
                let entry = Entry::reject(kind).with("code", fault.code.as_str());
                hub.log_refusal(session, entry);
                return refuse(hub, &fault.message, Some(&fault));
            }
        };
        let identity = Rc::new(identity);
        if shown_now {
            self.show_token(hub, session, &identity);
        }
        let user = identity.user.clone();
        let key = self.add(Client::new(hub, hub.fresh_id(), framing, identity, now));
        match text("pid").filter(|_| door.recovers) {
            None => self.welcome(hub, key, now),
            Some(pid) => {
                if let Some(client) = self.client_mut(key) {
                    client.phase = Phase::Finding {
                        pid: pid.clone(),
                        offset: text("offset"),
                    };
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
    pub(super) fn welcome(&mut self, hub: &mut Hub, key: ClientId, now: Millis) {
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
        if self.let_in(hub, key) {
            self.save(hub, key);
            self.join_own(hub, key, now);
        }
    }

    /// Joins the user's own room, unless it did.
    pub(super) fn join_own(&mut self, hub: &mut Hub, key: ClientId, now: Millis) {
        let own = self
            .client(key)
            .map(|client| personal_room(&client.identity.user));
        if let Some(own) = own.filter(|own| self.slot(key, own).is_none()) {
            // It takes everybody who has a token.
            let _ = self.join(hub, key, &own, Position::default(), None, now);
        }
    }

    /// Sends the first things on a connection. Returns `false` if the connection
    /// does not wait for them any more: then the client is gone.
    pub(super) fn let_in(&mut self, hub: &mut Hub, key: ClientId) -> bool {
        let Some(client) = self.client_mut(key) else {
            return false;
        };
        if let Framing::SocketIo { session, nsp } = &client.framing {
            let mut data = json!({ "sid": client.sid });
            if let Some(pid) = &client.pid {
                data["pid"] = pid.as_str().into();
            }
            let identity = Some(client.identity.clone());
            if !hub.accept(*session, nsp, identity, data.to_string()) {
                self.gone(hub, key, 1006, true);
                return false;
            }
        }
        client.phase = Phase::Connected;
        hub.log(client.entry(Entry::info("connect")));
        let connected = json!({
            "event": "connected",
            "data": {
                "connectionId": client.id,
                "userId": client.identity.user,
                "expiresAt": rfc3339(client.identity.expires),
                "limits": crate::room::Limits::of(&hub.config.room),
            },
        });
        self.tell(hub, key, &connected.to_string());
        true
    }

    /// A client is gone. One that did not want that may come back.
    pub(super) fn gone(&mut self, hub: &mut Hub, key: ClientId, code: u16, comes_back: bool) {
        let Some(client) = self.client_mut(key) else {
            return;
        };
        match client.phase {
            Phase::Connected => {
                hub.log(client.entry(Entry::info("disconnect")).with("code", code));
            }
            Phase::Recovering { .. } => client.abandon_recovery(),
            Phase::Finding { .. } => {}
        }
        let client = &*client;
        let then = match comes_back && client.pid.is_some() {
            true => saved(hub, client, true),
            false => Output::Forget {
                client: client.key(),
            },
        };
        let Some(client) = self.clients.remove(key) else {
            return;
        };
        let departed = Departed {
            unheard: client.slots.iter().map(|slot| slot.seat.clone()).collect(),
            key: client.key(),
            user: client.identity.user.clone(),
            then,
        };
        match departed.unheard.is_empty() {
            true => hub.push(departed.then),
            false => {
                self.departed.insert(client.id.clone(), departed);
            }
        }
        self.recovering.remove(&key);
        self.by_id.remove(&client.id);
        match client.framing {
            Framing::Native(socket) => self.by_socket.remove(&socket),
            Framing::SocketIo { session, nsp } => self.by_nsp.remove(&(session, nsp)),
        };
        self.withdraw(hub, key, client.slots, code);
    }

    /// A room knows that a connection is gone.
    pub(super) fn heard_of(&mut self, hub: &mut Hub, seat: &str) {
        let client = link::client_of(seat);
        let Some(departed) = self.departed.get_mut(client) else {
            return;
        };
        departed.unheard.remove(seat);
        if departed.unheard.is_empty()
            && let Some(departed) = self.departed.remove(client)
        {
            hub.push(departed.then);
        }
    }

    /// Takes a client out of these rooms, which are told that it is gone.
    pub(super) fn withdraw(&mut self, hub: &mut Hub, key: ClientId, slots: Vec<Slot>, code: u16) {
        for slot in slots {
            self.strike(key, &slot.room);
            let connection = slot.seat;
            self.forward(hub, &slot.room, ToRoom::Gone { connection, code });
        }
    }

    /// A client gets nothing of a room any more.
    pub(super) fn strike(&mut self, key: ClientId, room: &str) {
        if let Some(this) = self.rooms.get_mut(room) {
            this.clients.retain(|one| *one != key);
        }
    }

    /// Closes a client's connection, whatever it is.
    pub(super) fn close(&mut self, hub: &mut Hub, key: ClientId, why: Close) {
        let Some(client) = self.client(key) else {
            return;
        };
        match client.framing.clone() {
            Framing::Native(socket) => hub.close_socket(socket, why),
            // Told to go, a Socket.IO client does not come back by itself; it
            // does after a plain close.
            Framing::SocketIo { session, nsp }
                if matches!(
                    why,
                    Close::Expired | Close::Revoked | Close::Kicked | Close::Forbidden
                ) =>
            {
                hub.expel(session, &nsp, why);
                self.gone(hub, key, why.code(), false);
            }
            Framing::SocketIo { session, .. } => hub.close_session(session, why),
        }
    }

    pub(super) fn forward(&mut self, hub: &mut Hub, room: &str, command: ToRoom) {
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
    pub(super) fn forget_room(&mut self, room: &str) {
        if let Some(this) = self.rooms.get(room)
            && this.clients.is_empty()
            && this.outbox.is_empty()
            && !this.busy
        {
            self.rooms.remove(room);
        }
    }
}
