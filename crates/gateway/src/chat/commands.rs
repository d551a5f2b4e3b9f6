//! What clients ask for.

use super::clients::Connect;
use super::{Chat, Framing, NEVER, Slot, State};
use crate::{Asked, Authentication, ClientId, Credentials, Frame, Hub, Output, SessionId, line};
use roomcast_proto::access::{Identity, Rights};
use roomcast_proto::eventlog::Entry;
use roomcast_proto::fault::{Code, Fault, Result};
use roomcast_proto::limits::{Kind, Verdict};
use roomcast_proto::link::Command as ToRoom;
use roomcast_proto::name::personal_room;
use roomcast_proto::time::{Millis, rfc3339};
use roomcast_proto::wire::command::{Command, Position};
use roomcast_proto::wire::event;
use roomcast_proto::wire::native::{self, Close, Incoming};
use std::rc::Rc;

impl Chat {
    pub(super) fn frame(&mut self, hub: &mut Hub, key: ClientId, frame: Frame, now: Millis) {
        let limit = hub.config.limits.max_frame_bytes;
        let text = match frame {
            Frame::Text(text) if text.len() <= limit => text,
            Frame::Text(_) => return self.reject(hub, key, Close::TooLarge),
            Frame::Binary(_) => return self.reject(hub, key, Close::Malformed),
        };
        if text == native::PING {
            return self.tell(hub, key, native::PONG);
        }
        match native::decode(&text) {
            Ok(incoming) => {
                for one in incoming {
                    if !self.line(hub, key, one, now) {
                        return;
                    }
                }
            }
            Err(why) => self.reject(hub, key, why),
        }
    }

    pub(super) fn reject(&mut self, hub: &mut Hub, key: ClientId, why: Close) {
        if let Some(client) = self.client(key) {
            hub.log(
                client
                    .entry(Entry::reject("malformed"))
                    .with("code", why.code()),
            );
        }
        self.close(hub, key, why);
    }

    /// An event of a Socket.IO client, as a line of the native framing.
    pub(super) fn event(
        &mut self,
        hub: &mut Hub,
        key: ClientId,
        ack: Option<i64>,
        args: &str,
        binary: bool,
        now: Millis,
    ) {
        let limit = hub.config.limits.max_frame_bytes;
        let id = ack.and_then(|ack| u32::try_from(ack).ok());
        let line = match args.len() <= limit {
            true => line::from_event(args, id),
            false => None,
        };
        // A room takes the line for a frame, and it is longer than the event.
        let length = line.as_ref().map_or(0, String::len).max(args.len());
        let fault = if length > limit {
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
                if let Some(line) = line {
                    self.line(hub, key, native::decode_line(&line), now);
                }
            }
        }
    }

    /// Whether a client may ask for anything at all just now.
    pub(super) fn may(
        &mut self,
        hub: &mut Hub,
        key: ClientId,
        id: Option<u32>,
        now: Millis,
    ) -> bool {
        let Some(client) = self.client_mut(key) else {
            return false;
        };
        match client
            .allowance
            .take(Kind::Command, &hub.config.limits, now)
        {
            Ok(()) => true,
            Err(fault) => {
                self.tell(hub, key, &native::fault(id, &fault));
                self.patience(hub, key, now);
                false
            }
        }
    }

    /// After a refusal: whether the client may go on.
    pub(super) fn patience(&mut self, hub: &mut Hub, key: ClientId, now: Millis) -> bool {
        let Some(client) = self.client_mut(key) else {
            return false;
        };
        let user = &client.identity.user;
        let limits = &hub.config.limits;
        let verdict = client.allowance.refuse(&mut hub.floods, user, limits, now);
        if verdict != Verdict::Again {
            hub.log(
                client
                    .entry(Entry::reject("rate"))
                    .with("closed", verdict.is_final()),
            );
        }
        if verdict.is_final() {
            self.close(hub, key, Close::TooFast);
        }
        !verdict.is_final()
    }

    /// A line of a frame. Whether the rest of the frame counts.
    pub(super) fn line(
        &mut self,
        hub: &mut Hub,
        key: ClientId,
        incoming: Incoming,
        now: Millis,
    ) -> bool {
        let Incoming { line, id, command } = incoming;
        if !self.may(hub, key, id, now) {
            return false;
        }
        let done = command.and_then(|command| self.command(hub, key, id, command, line, now));
        if let Err(fault) = done {
            self.tell(hub, key, &native::fault(id, &fault));
            if fault.code == Code::RateLimited && !self.patience(hub, key, now) {
                return false;
            }
        }
        // A command may have closed the connection.
        self.client(key).is_some()
    }

    pub(super) fn command(
        &mut self,
        hub: &mut Hub,
        key: ClientId,
        id: Option<u32>,
        command: Command,
        line: &str,
        now: Millis,
    ) -> Result<()> {
        let config = hub.config.clone();
        let limits = &config.limits;
        let missing = || Fault::bad_field("roomId", "there: this connection is not of one room");
        match command {
            Command::Presence { status } => {
                let client = self.client_mut(key).ok_or_else(Fault::internal)?;
                client.allowance.take(Kind::Signal, limits, now)?;
                client.status = status;
                let status = status.as_str();
                let told = format!(r#"{{"event":"setPresence","data":{{"status":"{status}"}}}}"#);
                self.all_rooms(hub, key, |_, connection| ToRoom::Frame {
                    connection,
                    frame: told.clone(),
                });
                self.save(hub, key);
                self.answer(hub, key, id, &format!(r#"{{"status":"{status}"}}"#));
                Ok(())
            }
            Command::Refresh { token } => self.refresh(hub, key, id, &token, now),
            Command::Join { room, position } => {
                let room = room.ok_or_else(missing)?;
                match self.slot(key, &room).map(|slot| slot.state) {
                    Some(State::Joining | State::In) => {
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
                // The rooms count too, but each only what is its own.
                let client = self.client_mut(key).ok_or_else(Fault::internal)?;
                match command {
                    Command::Send(_) => {
                        client.allowance.take(Kind::Message, limits, now)?;
                    }
                    Command::Typing { .. } => {
                        client.allowance.take(Kind::Signal, limits, now)?;
                    }
                    _ => {}
                }
                self.pass_on(hub, key, room, line);
                Ok(())
            }
        }
    }

    pub(super) fn answer(&mut self, hub: &mut Hub, key: ClientId, id: Option<u32>, data: &str) {
        if let Some(id) = id {
            self.tell(hub, key, &native::ack(id, data));
        }
    }

    pub(super) fn pass_on(&mut self, hub: &mut Hub, key: ClientId, room: &str, line: &str) {
        if let Some(slot) = self.slot(key, room) {
            let command = ToRoom::Frame {
                connection: slot.seat.clone(),
                frame: line.to_owned(),
            };
            self.forward(hub, room, command);
        }
    }

    /// To all rooms of a client, each by its name and the connection to it.
    pub(super) fn all_rooms(
        &mut self,
        hub: &mut Hub,
        key: ClientId,
        command: impl Fn(&str, String) -> ToRoom,
    ) {
        let Some(client) = self.client(key) else {
            return;
        };
        let slots = client.slots.iter();
        let seats: Vec<_> = slots
            .map(|slot| (slot.room.clone(), slot.seat.clone()))
            .collect();
        for (room, seat) in seats {
            self.forward(hub, &room, command(&room, seat));
        }
    }

    pub(super) fn join(
        &mut self,
        hub: &mut Hub,
        key: ClientId,
        room: &str,
        position: Position,
        id: Option<u32>,
        now: Millis,
    ) -> Result<()> {
        let max = hub.config.max_rooms;
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
        // Its own room it has not asked for.
        if room != own {
            client.allowance.take(Kind::Join, &hub.config.limits, now)?;
        }
        let rights = client.identity.rights(room);
        if !rights.has(Rights::READ) {
            hub.log(client.entry(Entry::reject("auth").room(room)));
            return Err(Fault::forbidden("the token does not open this room"));
        }
        let seat = client.seat(hub);
        match known {
            // It is leaving. What that comes to is not for this join.
            Some(slot) => {
                let slot = &mut client.slots[slot];
                slot.state = State::Joining;
                slot.seat = seat.clone();
                slot.asked = id;
                slot.repairing = false;
            }
            None => client.slots.push(Slot {
                room: room.to_owned(),
                seat: seat.clone(),
                epoch: String::new(),
                from: 0,
                version: NEVER,
                at: 0,
                state: State::Joining,
                repairing: false,
                asked: id,
            }),
        }
        let hello = client.hello(seat, rights, position);
        if known.is_none() {
            let this = self.rooms.entry(room.to_owned()).or_default();
            this.clients.push(key);
        }
        let again = false;
        self.forward(hub, room, ToRoom::Join { hello, id, again });
        Ok(())
    }

    pub(super) fn refresh(
        &mut self,
        hub: &mut Hub,
        key: ClientId,
        id: Option<u32>,
        token: &str,
        now: Millis,
    ) -> Result<()> {
        let client = self.client_mut(key).ok_or_else(Fault::internal)?;
        client
            .allowance
            .take(Kind::Request, &hub.config.limits, now)?;
        let connection = client.id.clone();
        hub.push(Output::Authenticate(Authentication {
            credentials: Credentials::Token(token.to_owned()),
            asked: Asked::Refresh { connection, id },
        }));
        Ok(())
    }

    /// The host has judged a token.
    pub(super) fn go_on(
        &mut self,
        hub: &mut Hub,
        asked: Asked,
        identity: Result<Identity>,
        now: Millis,
    ) {
        match asked {
            Asked::Refresh { connection, id } => {
                let Some(key) = self.by_id.get(&connection).copied() else {
                    return;
                };
                let done = identity.and_then(|it| self.refreshed(hub, key, id, it));
                if let Err(fault) = done {
                    self.tell(hub, key, &native::fault(id, &fault));
                }
            }
            Asked::Connect {
                sid,
                nsp,
                number,
                auth,
            } => {
                if let Some(session) = hub.session_of(&sid) {
                    let asked = Connect {
                        session,
                        nsp,
                        number,
                        auth: &auth,
                    };
                    self.connected(hub, asked, identity, now);
                }
            }
        }
    }

    fn refreshed(
        &mut self,
        hub: &mut Hub,
        key: ClientId,
        id: Option<u32>,
        identity: Identity,
    ) -> Result<()> {
        let client = self.client_mut(key).ok_or_else(Fault::internal)?;
        if identity.user != client.identity.user {
            hub.log(client.entry(Entry::reject("auth")));
            self.close(hub, key, Close::Forbidden);
            return Ok(());
        }
        let identity = Rc::new(identity);
        let expires = rfc3339(identity.expires);
        match client.framing {
            Framing::Native(_) => self.apply_token(hub, key, &identity),
            Framing::SocketIo { session, .. } => self.show_token(hub, session, &identity),
        }
        self.answer(hub, key, id, &format!(r#"{{"expiresAt":"{expires}"}}"#));
        Ok(())
    }

    /// A session has shown a valid token: it is the newest of its user there, so
    /// it counts in all namespaces in which the session is that user.
    pub(super) fn show_token(
        &mut self,
        hub: &mut Hub,
        session: SessionId,
        identity: &Rc<Identity>,
    ) {
        let of_session = self.clients.iter().filter(|(_, client)| {
            matches!(client.framing, Framing::SocketIo { session: of, .. } if of == session)
                && client.identity.user == identity.user
        });
        for key in of_session.map(|(key, _)| key).collect::<Vec<_>>() {
            self.apply_token(hub, key, identity);
        }
    }

    /// A client has exactly the rights of its newest token: rooms that the token
    /// does not open are left at once, the others learn of it.
    fn apply_token(&mut self, hub: &mut Hub, key: ClientId, identity: &Rc<Identity>) {
        let Some(client) = self.client_mut(key) else {
            return;
        };
        client.identity = identity.clone();
        hub.set_identity(client.receiver(), identity.clone());
        self.close_rooms(hub, key);
        self.all_rooms(hub, key, |room, connection| ToRoom::Refresh {
            connection,
            rights: identity.rights(room),
            expires: identity.expires,
        });
        self.expect(identity.expires);
        self.save(hub, key);
    }

    /// A client leaves the rooms that its token does not open. Membership, which
    /// is the user's and not the connection's, stays.
    pub(super) fn close_rooms(&mut self, hub: &mut Hub, key: ClientId) {
        let Some(client) = self.client(key) else {
            return;
        };
        let opens = |slot: &&Slot| client.identity.rights(&slot.room).has(Rights::READ);
        let closed = client.slots.iter().filter(|slot| !opens(slot));
        for room in closed.map(|slot| slot.room.clone()).collect::<Vec<_>>() {
            self.close_room(hub, key, &room);
        }
    }

    fn close_room(&mut self, hub: &mut Hub, key: ClientId, room: &str) {
        let fault = Fault::forbidden("the token does not open this room");
        let asked = self.slot_mut(key, room).and_then(|slot| slot.asked.take());
        let Some(slot) = self.take_slot(key, room) else {
            return;
        };
        if asked.is_some() {
            self.tell(hub, key, &native::fault(asked, &fault));
        }
        if slot.version != NEVER {
            self.tell(hub, key, &event::room_closed(room, fault.code.as_str()));
        }
        let code = Close::Forbidden.code();
        self.withdraw(hub, key, vec![slot], code);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GatewayConfig;
    use crate::{App, Door, Gateway, Protocol};
    use roomcast_proto::access::{Patterns, TokenId};
    use roomcast_proto::limits::ConnectionLimits;
    use std::rc::Rc;

    /// Whether an event with so much content is answered by `tooLarge`, and
    /// what goes to the room of it.
    fn send(content: usize) -> (bool, Vec<String>) {
        let config = Rc::new(GatewayConfig {
            limits: ConnectionLimits {
                max_frame_bytes: 1_000,
                ..ConnectionLimits::default()
            },
            ..GatewayConfig::default()
        });
        let now = 1_800_000_000_000;
        let identity = Identity {
            user: "alice".into(),
            expires: now + 1_000,
            service: false,
            patterns: Patterns::from_list("*"),
            token: TokenId::default(),
        };
        let door = Door {
            protocol: Protocol::SocketIo,
            identity: Some(identity.clone()),
            fault: None,
            address: None,
            recovers: false,
        };
        let hub = Hub::new("0".into(), config, || "id".into());
        let mut gateway = Gateway::new(hub, Chat::default());
        let socket = gateway.hub.open_socket(door, None, now).expect("let in");
        let content = "x".repeat(content);
        let mut sent = Vec::new();
        for packet in [
            "40".to_owned(),
            r#"42["joinRoom","r"]"#.to_owned(),
            format!(r#"427["sendMessage",{{"roomId":"r","content":"{content}"}}]"#),
        ] {
            gateway.hub.frame(socket, Frame::Text(packet), now);
            sent = gateway.settle(now);
            // The host judges the token of the CONNECT.
            if let Some(Output::Authenticate(it)) = sent.last() {
                let asked = it.asked.clone();
                let Gateway { hub, app } = &mut gateway;
                app.authenticated(hub, asked, Ok(identity.clone()), now);
                gateway.settle(now);
            }
        }
        let refused = sent.iter().any(|output| match output {
            Output::Send {
                frame: Frame::Text(text),
                ..
            } => text.starts_with(r#"437[{"error":{"code":"tooLarge""#),
            _ => false,
        });
        let commands = gateway.app.take(&mut gateway.hub, "r").expect("a join");
        let frames = commands.into_iter().filter_map(|command| match command {
            ToRoom::Frame { frame, .. } => Some(frame),
            _ => None,
        });
        (refused, frames.collect())
    }

    #[test]
    fn an_event_that_is_too_large_for_its_room_is_answered_and_closes_nothing() {
        // Of any length an event is either refused here or taken by the room.
        for content in 900..=1_000 {
            let (refused, frames) = send(content);
            assert_eq!(refused, frames.is_empty(), "{content}");
            assert!(frames.iter().all(|frame| frame.len() <= 1_000), "{content}");
        }
        assert!(!send(900).0 && send(1_000).0);
    }
}
