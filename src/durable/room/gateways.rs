//! The gateways: what they ask for their connections, and what is for them.

use super::{LINK_HEADER, Live, Object, Peer};
use crate::durable::runtime::{self, GATEWAYS, now};
use crate::durable::store::Kept;
use crate::eventlog::Entry;
use crate::fault::{Code, Fault};
use crate::room::Frame;
use crate::room::link::{Command as LinkCommand, Item, Push, Pushed, Request as LinkRequest};
use crate::room::links;
use crate::room::output::ConnId;
use crate::wire::native;
use js_sys::JsString;
use std::rc::Rc;
use std::time::Duration;
use worker::{Delay, Error, Request, Response, Result, State};

/// After a failure of the room's own, pushes to a gateway begin again after this.
const STOPPED: Duration = Duration::from_secs(1);

impl Object {
    /// A request of a gateway for its connections.
    pub(super) async fn link(
        self: &Rc<Self>,
        name: Option<String>,
        mut request: Request,
    ) -> Result<Response> {
        let request: LinkRequest = serde_json::from_str(&request.text().await?)?;
        let gateway: Rc<str> = request.gateway.into();
        let full = self.with(name, |live, state| {
            live.age();
            live.links.borrow_mut().spoke(&gateway);
            for command in request.commands {
                live.linked(state, &gateway, command);
            }
            live.room.is_full()
        })?;
        self.settle(full)?;
        Response::empty()
    }

    /// Sends a gateway what waits for it, until nothing does.
    pub(super) async fn push(self: &Rc<Self>, gateway: String) -> Result<()> {
        let pushed = self.push_all(&gateway).await;
        if pushed.is_err() {
            self.links.borrow_mut().stopped(&gateway);
            Delay::from(STOPPED).await;
            self.with(None, |live, _| live.look_for(&gateway))?;
            Rc::clone(self).arm();
        }
        pushed
    }

    async fn push_all(self: &Rc<Self>, gateway: &str) -> Result<()> {
        loop {
            let body = self.with(None, |live, _| live.take_push(gateway))?;
            let Some(body) = body else {
                return Ok(());
            };
            let body = JsString::from(body?.as_str());
            // Requests to other objects do not wait for what was stored, as
            // frames do.
            self.state.storage().sync().await?;
            let mut answer = self.push_once(gateway, &body).await;
            for wait in links::RETRIES {
                if answer.is_ok() {
                    break;
                }
                Delay::from(Duration::from_millis(wait)).await;
                answer = self.push_once(gateway, &body).await;
            }
            match answer {
                Ok(pushed) => self.with(None, |live, state| {
                    let reached = live.links.borrow_mut().reached(gateway);
                    for told in reached.told.iter().filter_map(Item::to) {
                        live.forget(told);
                    }
                    live.lost(state, &pushed.gone);
                    if reached.was_missed {
                        live.look_for(gateway);
                    }
                })?,
                Err(error) => {
                    runtime::complain(error);
                    let wait = self.links.borrow_mut().missed(gateway);
                    if let Some(wait) = wait {
                        Delay::from(Duration::from_millis(wait)).await;
                    }
                    self.with(None, |live, state| match wait {
                        Some(_) => live.look_for(gateway),
                        None => live.give_up(state, gateway),
                    })?;
                }
            }
            Rc::clone(self).arm();
        }
    }

    pub(super) async fn push_once(&self, gateway: &str, body: &JsString) -> Result<Pushed> {
        let headers = [(LINK_HEADER, gateway)];
        let body = Some(body.clone().into());
        let answer = runtime::call(&self.env, GATEWAYS, gateway, &headers, body).await?;
        match answer.status() {
            200 => Ok(serde_json::from_str(&runtime::read(&answer).await?.1)?),
            204 => Ok(Pushed::default()),
            status => Err(Error::RustError(format!("a gateway answered {status}"))),
        }
    }
}

impl Live {
    /// What a gateway asks for one of its connections.
    pub(super) fn linked(&mut self, state: &State, gateway: &Rc<str>, command: LinkCommand) {
        let known = self.remote.get(command.connection()).copied();
        let now = now();
        let mut out = Vec::new();
        match command {
            LinkCommand::Join { hello, id, again } => {
                let connection: Rc<str> = hello.connection_id.as_str().into();
                let user = hello.user.clone();
                let joined = self.room.subscribe(hello, id, again, now, &mut out);
                // It may have taken the place of another.
                self.run(state, std::mem::take(&mut out));
                match joined {
                    Ok(conn) => self.place(
                        conn,
                        Peer::Gateway {
                            gateway: gateway.clone(),
                            id: connection,
                        },
                    ),
                    Err(fault) => {
                        // Who comes again by itself has asked nothing.
                        let answer = (!again).then(|| native::fault(id, &fault));
                        self.refuse(gateway, &connection, &user, answer, fault.code);
                    }
                }
            }
            LinkCommand::Frame { connection, frame } => match known {
                Some(conn) => self.room.receive(conn, Frame::Text(&frame), now, &mut out),
                // It was taken for gone, or the room was deleted.
                None => {
                    let id = native::decode_line(&frame).id;
                    let line = native::fault(id, &Fault::internal());
                    let mut links = self.links.borrow_mut();
                    let to = connection.clone();
                    links.queue(gateway, Item::Lost { to }, "");
                    links.queue_text(gateway, connection, &line, None, None);
                }
            },
            LinkCommand::Gone { connection, code } => {
                if let Some(conn) = known.or_else(|| self.room.seat_of(&connection)) {
                    self.abandon(conn);
                    self.room.disconnect(conn, code, now, &mut out);
                }
            }
            LinkCommand::Refresh {
                rights, expires, ..
            } => {
                if let Some(conn) = known {
                    self.room.refreshed(conn, rights, expires, now, &mut out);
                }
            }
        }
        self.run(state, out);
    }

    /// A join that may not be.
    fn refuse(
        &mut self,
        gateway: &str,
        connection: &str,
        user: &str,
        answer: Option<String>,
        code: Code,
    ) {
        let to = connection.to_owned();
        match answer {
            // Should it be lost, that is noticed with what the client says next.
            Some(line) => {
                let mut links = self.links.borrow_mut();
                links.queue_text(gateway, to.clone(), &line, None, None);
                links.queue(gateway, Item::Out { to }, "");
            }
            None => self.last_word(gateway, connection, Item::Out { to }),
        }
        self.log(
            Entry::reject("rate")
                .user(user)
                .connection(connection)
                .with("code", code.as_str()),
        );
    }

    pub(super) fn take_push(&mut self, gateway: &str) -> Option<serde_json::Result<String>> {
        self.add_portions(gateway);
        let head = || Push {
            room: self.room.name().to_owned(),
            epoch: self.room.epoch().to_owned(),
            life: self.life.clone(),
            ..Push::default()
        };
        self.links.borrow_mut().take(gateway, head)
    }

    /// Adds portions of the log to the next push for connections that catch up,
    /// one for each in turn, as long as the push can take them.
    fn add_portions(&mut self, gateway: &str) {
        loop {
            let next = self.links.borrow_mut().next_portion(gateway);
            let Some(conn) = next else {
                return;
            };
            self.announce_gap(conn);
            // It is gone, or what was missing was past retention.
            let Some(portion) = self.room.next_portion(conn) else {
                self.links.borrow_mut().skip_portion(gateway);
                continue;
            };
            match self.portion(portion.after, portion.upto) {
                Ok((last, text)) => {
                    let (after, at) = portion.events(last);
                    self.one(conn, &String::from(text), after, at);
                    self.room.given(conn, last);
                }
                Err(error) => {
                    self.log(Entry::error(format!("replay failed: {error}")));
                    // What the connection lacks is found out when the room is
                    // read again.
                    self.broken = true;
                    return;
                }
            }
            if self.room.next_portion(conn).is_some() {
                self.links.borrow_mut().catch_up(gateway, conn);
            }
        }
    }

    /// Tells a connection that catches up what is past retention.
    pub(super) fn announce_gap(&mut self, conn: ConnId) {
        while let Some((skipped, line)) = self.room.gap(conn) {
            let (after, at) = skipped.events(skipped.upto);
            self.one(conn, &line, after, at);
        }
    }

    /// Connections that a gateway does not have any more.
    pub(super) fn lost(&mut self, state: &State, gone: &[String]) {
        let mut out = Vec::new();
        for id in gone {
            if let Some(conn) = self.remote.get(id.as_str()).copied() {
                self.abandon(conn);
                // 1006: abnormal closure (RFC 6455, 7.4.1).
                self.room.disconnect(conn, 1006, now(), &mut out);
            }
        }
        self.run(state, out);
    }

    /// Asks a gateway that was out of reach what it still has.
    pub(super) fn look_for(&mut self, gateway: &str) {
        let at = self.room.bounds().head;
        for to in self.connections_of(gateway) {
            self.links
                .borrow_mut()
                .queue(gateway, Item::Is { to, at }, "");
        }
    }

    /// A gateway stays out of reach: its connections are taken for gone, and
    /// presence follows. Should it answer again, it learns that they have to join
    /// again.
    pub(super) fn give_up(&mut self, state: &State, gateway: &str) {
        self.links.borrow_mut().give_up(gateway, now());
        let mut out = Vec::new();
        for id in self.connections_of(gateway) {
            if let Some(conn) = self.remote.get(id.as_str()).copied() {
                self.part(conn, |to| Item::Lost { to });
                // 1006: abnormal closure (RFC 6455, 7.4.1).
                self.room.disconnect(conn, 1006, now(), &mut out);
            }
        }
        self.run(state, out);
    }

    fn connections_of(&self, gateway: &str) -> Vec<String> {
        self.peers
            .values()
            .filter_map(|peer| match peer {
                Peer::Gateway { gateway: at, id } if **at == *gateway => Some(id.to_string()),
                _ => None,
            })
            .collect()
    }

    /// A connection is of the room no more, which its gateway must hear.
    pub(super) fn part(&mut self, conn: ConnId, word: impl FnOnce(String) -> Item) {
        if let Some(Peer::Gateway { gateway, id }) = self.displace(conn) {
            self.last_word(&gateway, &id, word(id.to_string()));
        }
    }

    /// A connection is of the room no more, which its gateway knows.
    pub(super) fn abandon(&mut self, conn: ConnId) {
        if let Some(Peer::Gateway { id, .. }) = self.displace(conn) {
            self.forget(&id);
        }
    }

    /// What a gateway must hear, so it is kept until it has.
    fn last_word(&mut self, gateway: &str, id: &str, word: Item) {
        let kept = Kept::Parted(word.clone());
        if let Err(error) = self.store.put_subscriber(id, gateway, &kept) {
            self.log(Entry::error(format!("storing failed: {error}")));
        }
        self.links.borrow_mut().queue(gateway, word, "");
    }

    /// Nothing need be known any more of a connection at a gateway.
    fn forget(&mut self, id: &str) {
        if let Err(error) = self.store.remove_subscriber(id) {
            self.log(Entry::error(format!("storing failed: {error}")));
        }
    }

    /// A word to a gateway about one of its connections.
    pub(super) fn tell_gateway(&self, conn: ConnId, item: impl FnOnce(String) -> Item) {
        if let Some(Peer::Gateway { gateway, id }) = self.peers.get(conn) {
            let mut links = self.links.borrow_mut();
            links.queue(gateway, item(id.to_string()), "");
        }
    }

    /// A text for one connection at a gateway; see [`Item::One`].
    pub(super) fn one(&self, conn: ConnId, text: &str, after: Option<u64>, at: Option<u64>) {
        if let Some(Peer::Gateway { gateway, id }) = self.peers.get(conn) {
            let mut links = self.links.borrow_mut();
            links.queue_text(gateway, id.to_string(), text, after, at);
        }
    }
}
