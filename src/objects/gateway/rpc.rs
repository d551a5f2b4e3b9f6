//! Other objects: rooms, other gateways, the registry of revocations. What they
//! ask, and what they are asked.

use super::{Later, Live, Object};
use crate::objects::revocations::{self, Place, Told};
use crate::runtime::failpoint::{self, Point};
use crate::runtime::headers;
use crate::runtime::{self, GATEWAYS, ROOMS, keys};
use roomcast_auth::revocation::RevocationDelta;
use roomcast_gateway::handshake::shard_of;
use roomcast_gateway::{Authentication, Credentials};
use roomcast_proto::error::Error as ClientError;
use roomcast_proto::link::{Push, Request as LinkRequest};
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::time::{DAY, Millis};
use roomcast_room::batcher::MAX_TURNS;
use serde::{Deserialize, Serialize};
use std::rc::Rc;
use std::time::Duration;
use worker::{Delay, Error, Response, ResponseBuilder, State};

type Result<T, E = Error> = std::result::Result<T, E>;

/// What a gateway asks another.
#[derive(Serialize, Deserialize)]
pub(super) struct Find {
    pid: String,
    user: String,
    /// The gateway that asks.
    #[serde(default)]
    by: String,
}

/// Begins what a gateway keeps under a `pid` of its own whose client is at
/// another: that one's name.
const MOVED: &str = "moved:";

/// How long it keeps that: longer than most connections last.
const MOVED_KEPT: Millis = 7 * DAY;

impl Object {
    pub(super) async fn see_to_later(self: Rc<Self>, later: Later) -> Result<()> {
        match later {
            Later::Forward(room) => loop {
                // The rule by which rooms end their ticks.
                for _ in 0..MAX_TURNS {
                    if !self.act(None, |live, _| live.gateway.is_batching(&room))? {
                        break;
                    }
                    Delay::from(Duration::ZERO).await;
                }
                let commands = self.act(None, |live, _| {
                    let gateway = &mut live.gateway;
                    gateway.take_commands(&room)
                })?;
                let Some(commands) = commands else {
                    return Ok(());
                };
                let gateway = self.act(None, |live, _| live.name.clone())?;
                let request = LinkRequest { gateway, commands };
                if let Err(error) = self.forward(&room, &request).await {
                    runtime::complain(error);
                    self.act(None, |live, _| {
                        let (gateway, commands) = (&mut live.gateway, request.commands);
                        gateway.forward_failed(&room, commands);
                    })?;
                }
            },
            Later::Register => self.register().await,
            Later::Authenticate(it) => {
                let Credentials::Token(token) = &it.credentials else {
                    return Ok(());
                };
                let config = self.act(None, |live, _| live.config.clone())?;
                let ready = keys::prepare(&self.env, &config, token).await;
                self.act(None, |live, _| live.authenticate(it, ready))
            }
            Later::Find { client, pid, user } => {
                let by = self.act(None, |live, _| live.name.clone())?;
                let find = Find { pid, user, by };
                let record = self.find(&find).await.unwrap_or_else(|error| {
                    runtime::complain(error);
                    None
                });
                self.act(None, |live, _| {
                    let (gateway, now) = (&mut live.gateway, live.began);
                    gateway.found(client, &find.pid, record, now);
                })
            }
        }
    }

    pub(super) async fn forward(&self, room: &str, request: &LinkRequest) -> Result<()> {
        let headers = [(headers::ROOM, room), (headers::LINK, "1")];
        let body = Some(serde_json::to_string(request)?.into());
        let response = runtime::call(&self.env, ROOMS, room, &headers, body).await?;
        match response.status() {
            200 => Ok(()),
            status => Err(Error::RustError(format!("a room answered {status}"))),
        }
    }

    /// A room's push.
    pub(super) fn pushed(self: &Rc<Self>, name: String, body: &str) -> Result<Response> {
        let Some((push, texts)) = Push::parse(body) else {
            return Err(Error::RustError("a push that is none".into()));
        };
        let pushed = self.act(Some(name), |live, _| {
            failpoint::panics(Point::GatewayPush);
            let gateway = &mut live.gateway;
            gateway.handle_push(push, &texts, live.began)
        })?;
        if pushed.gone.is_empty() {
            // Mostly: to read a body costs the room more than all the rest.
            return Ok(ResponseBuilder::new().with_status(204).empty());
        }
        Ok(ResponseBuilder::new().fixed(serde_json::to_vec(&pushed)?))
    }

    /// What was saved under a `pid`, here or at another gateway. The one that gave
    /// it knows where the client went since.
    pub(super) async fn find(self: &Rc<Self>, find: &Find) -> Result<Option<String>> {
        let Some(home) = shard_of(&find.pid) else {
            return Ok(None);
        };
        let record = self.find_at(&home.to_string(), find).await?;
        match record.as_deref().and_then(|at| at.strip_prefix(MOVED)) {
            Some(at) => self.find_at(at, find).await,
            None => Ok(record),
        }
    }

    async fn find_at(self: &Rc<Self>, name: &str, find: &Find) -> Result<Option<String>> {
        let here = self.act(None, |live, state| {
            (live.name == name).then(|| live.give(state, find))
        })?;
        if let Some(record) = here {
            return Ok(record);
        }
        let headers = [(headers::GATEWAY, name), (headers::FIND, "1")];
        let find = serde_json::to_string(find)?;
        let (_, record) = runtime::ask(&self.env, GATEWAYS, name, &headers, find).await?;
        Ok(Some(record).filter(|record| !record.is_empty()))
    }

    /// Another gateway's question: what was saved under a `pid`, which is from
    /// now on its own.
    pub(super) fn asked(self: &Rc<Self>, name: String, find: &Find) -> Result<Response> {
        let record = self.act(Some(name), |live, state| live.give(state, find))?;
        Ok(ResponseBuilder::new().fixed(record.unwrap_or_default().into_bytes()))
    }

    /// Says that there are sockets here, that they be told of revocations.
    pub(super) async fn register(self: Rc<Self>) -> Result<()> {
        let (config, name) = self.act(None, |live, _| (live.config.clone(), live.name.clone()))?;
        let revoked = &config.auth.revoked;
        let place = Place::Gateway(name);
        let registered = revocations::register(&self.env, revoked, place, Millis::MAX).await;
        self.act(None, |live, state| {
            // Where that failed the next who comes tries again.
            live.registered = registered.is_ok();
            live.store.set_registered(live.registered)?;
            live.enforce(state);
            registered
        })?
    }

    /// Tokens were revoked: what is there by one of them is closed.
    pub(super) fn revoked(
        self: &Rc<Self>,
        name: String,
        news: &RevocationDelta,
    ) -> Result<Response> {
        let here = self.act(Some(name), |live, state| {
            live.config.auth.revoked.learn(&news.revocations);
            live.enforce(state);
            let here = !live.gateway.server.engine.is_empty();
            if !here {
                live.registered = false;
                live.store.set_registered(false)?;
            }
            Ok::<_, Error>(here)
        })??;
        Ok(ResponseBuilder::new().fixed(serde_json::to_vec(&Told { here })?))
    }
}

impl Live {
    /// Who has sockets is told of revocations.
    pub(super) fn be_registered(&mut self) {
        if self.config.auth.revoked.is_on() && !self.registered {
            self.registered = true;
            self.later.push_back(Later::Register);
        }
    }

    pub(super) fn enforce(&mut self, state: &State) {
        let (gateway, now) = (&mut self.gateway, self.began);
        let revoked = &self.config.auth.revoked;
        gateway.close_revoked(&|user, token| revoked.covers(user, token, now));
        self.settle(state);
    }

    /// Judges a token; `ready` is an error where what it takes cannot be had.
    pub(super) fn authenticate(&mut self, it: Authentication, ready: Result<(), ClientError>) {
        let (auth, now) = (&self.config.auth, self.began);
        let identity = ready.and_then(|()| match it.credentials {
            Credentials::Token(token) => auth.verify(&token, now),
            Credentials::Identity(identity) => auth.recheck(*identity, now),
        });
        let gateway = &mut self.gateway;
        gateway.authenticated(it.request, identity, now);
    }

    /// What was saved under a `pid`. Whoever still has it is here no more.
    pub(super) fn give(&mut self, state: &State, find: &Find) -> Option<String> {
        let gateway = &mut self.gateway;
        gateway.evict(&find.pid, &find.user);
        self.settle(state);
        let taken = self.store.take(&find.pid, &find.user);
        let moves = !find.by.is_empty() && find.by != self.name;
        let is_home = shard_of(&find.pid).is_some_and(|home| self.name == home.to_string());
        match taken {
            Ok(Some(record)) if moves && is_home => {
                let moved = format!("{MOVED}{}", find.by);
                let gone = Some(self.began + MOVED_KEPT);
                if let Err(error) = self.store.save(&find.pid, &find.user, gone, &moved) {
                    self.log(LogRecord::error(format!("storing failed: {error}")));
                }
                Some(record)
            }
            Ok(record) => record,
            Err(error) => {
                self.log(LogRecord::error(format!("reading failed: {error}")));
                None
            }
        }
    }
}
