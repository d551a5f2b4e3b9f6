//! The Durable Object of a room: what the runtime calls, and what is asked of it.
//! `restore` builds it, `effects` carries out what the room decides, `timers` says
//! when, `gateways` is for connections whose sockets are elsewhere.

mod effects;
mod gateways;
mod restore;
mod store;
mod timers;

use super::revocations::{self, Place, Told};
use crate::config::Config;
use crate::runtime::alarm_clock::AlarmClock;
use crate::runtime::failpoint::{self, Point};
use crate::runtime::headers;
use crate::runtime::{self, Socket, keys, now};
use futures_channel::oneshot;
use js_sys::JsString;
use roomcast_auth::revocation::RevocationDelta;
use roomcast_proto::error::Error as ClientError;
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::time::Millis;
use roomcast_room::batcher::Batcher;
use roomcast_room::history::HistoryQuery;
use roomcast_room::service::{Request as ServiceRequest, Served};
use roomcast_room::{self as room, CallId, ConnId, ConnectRequest, Frame, Outboxes, SeqRange};
use slotmap::SecondaryMap;
use std::cell::{OnceCell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use store::Store;
use wasm_bindgen::closure::Closure;
use wasm_bindgen::prelude::*;
use worker::wasm_bindgen_futures::future_to_promise;
use worker::worker_sys::DurableObjectState;
use worker::{Env, Error, Request, Response, ResponseBuilder, Result, State, WebSocketPair};

#[wasm_bindgen]
pub struct Room {
    object: Rc<Object>,
}

struct Object {
    state: State,
    env: Env,
    live: RefCell<Option<Live>>,
    /// Ends ticks. Made once, for a closure costs more than its call.
    turn: OnceCell<Closure<dyn FnMut()>>,
    /// What waits for gateways, while the room is read again after a failure of
    /// storage.
    outboxes: RefCell<Option<Outboxes>>,
}

/// The object awake: the room and what it is connected to.
struct Live {
    config: Rc<Config>,
    room: room::Room,
    store: Store,
    /// The room's own sockets.
    sockets: SecondaryMap<ConnId, Socket>,
    calls: HashMap<CallId, oneshot::Sender<Result<String, ClientError>>>,
    /// Pages that were asked for, with the ids of the answers.
    pages: VecDeque<(ConnId, u32, HistoryQuery)>,
    last_call: CallId,
    /// When what is being done began.
    began: Millis,
    batcher: Batcher,
    clock: AlarmClock,
    /// The replay that was sent last: after an outage all ask for the same.
    replay: Option<(SeqRange, Rc<Vec<Portion>>)>,
    line_break: JsString,
    /// Until when the registry of revocations knows that there are sockets of
    /// the room's own, and until when it should.
    registered: Millis,
    unregistered: Option<Millis>,
    /// What waits for its token to be judged.
    unready: Vec<Unready>,
    /// Storing failed: what is in memory is not what is stored.
    broken: bool,
}

/// A `refreshToken` whose token can be judged only after something was fetched.
struct Unready {
    connection: String,
    id: Option<u32>,
    token: String,
}

/// A frame of replay, and the last event in it.
type Portion = (u64, JsString);

/// What the runtime calls. `worker` would make a promise of each call, whose way
/// through the microtask queue costs about as much as all else that a message
/// does; what need not wait for anything does not.
#[wasm_bindgen]
impl Room {
    #[wasm_bindgen(constructor)]
    pub fn new(state: DurableObjectState, env: Env) -> Self {
        console_error_panic_hook::set_once();
        Room {
            object: Rc::new(Object {
                state: state.into(),
                env,
                live: RefCell::new(None),
                turn: OnceCell::new(),
                outboxes: RefCell::default(),
            }),
        }
    }

    /// A response, or a promise of one.
    pub fn fetch(&self, request: web_sys::Request) -> JsResult<JsValue> {
        let headers = request.headers();
        let room = headers.get(headers::ROOM)?;
        if let Some(hello) = headers.get(headers::CONNECT)? {
            let hello: ConnectRequest = serde_json::from_str(&hello).map_err(Error::from)?;
            return Ok(self.object.connect(room, hello)?.into());
        }
        let revoked = headers.has(headers::REVOKED)?;
        let of_gateway = headers.has(headers::LINK)?;
        let object = Rc::clone(&self.object);
        let answer = async move {
            let request = Request::from(request);
            let response = if revoked {
                object.revoked(room, request).await?
            } else if of_gateway {
                object.link(room, request).await?
            } else {
                object.call(room, request).await?
            };
            Ok(web_sys::Response::from(response).into())
        };
        Ok(future_to_promise(answer).into())
    }

    pub fn alarm(&self) -> JsResult {
        self.object.with(None, |live, state| {
            failpoint::panics(Point::Alarm);
            live.clock.alarm_rang();
            live.age();
            let sockets = &live.sockets;
            let pinged = |conn: ConnId| runtime::pinged(state, sockets.get(conn)?);
            let mut out = Vec::new();
            live.room.handle_alarm(pinged, now(), &mut out);
            live.run(state, out);
        })?;
        Rc::clone(&self.object).arm();
        Ok(())
    }

    #[wasm_bindgen(js_name = webSocketMessage)]
    pub fn web_socket_message(&self, socket: &Socket, message: &JsValue) -> JsResult {
        let full = self.object.with(None, |live, state| {
            let conn = socket.place()?;
            let text = message.as_string();
            let frame = text.as_deref().map_or(Frame::Binary, Frame::Text);
            let mut out = Vec::new();
            live.room.receive(conn, frame, now(), &mut out);
            failpoint::panics(Point::Frame);
            live.run(state, out);
            Some(live.room.is_full())
        })?;
        match full {
            Some(full) => Ok(self.object.settle(full)?),
            // Closed already, and it does not stop talking.
            None => Ok(()),
        }
    }

    #[wasm_bindgen(js_name = webSocketClose)]
    pub fn web_socket_close(&self, socket: &Socket, code: u16) -> JsResult {
        runtime::answer_close(socket, code);
        Ok(self.object.gone(socket, code)?)
    }

    #[wasm_bindgen(js_name = webSocketError)]
    pub fn web_socket_error(&self, socket: &Socket) -> JsResult {
        // 1006: abnormal closure (RFC 6455, 7.4.1).
        Ok(self.object.gone(socket, 1006)?)
    }
}

type JsResult<T = ()> = std::result::Result<T, JsValue>;

impl Object {
    /// Does something with the room, which is read from storage if it is not in
    /// memory, and again should storing have failed.
    fn with<T>(
        &self,
        name: Option<String>,
        what: impl FnOnce(&mut Live, &State) -> T,
    ) -> Result<T> {
        let mut slot = self.live.borrow_mut();
        let live = match &mut *slot {
            Some(live) => live,
            empty => empty.insert(Live::wake(
                &self.state,
                &self.env,
                name,
                self.outboxes.borrow_mut().take(),
            )?),
        };
        live.began = now();
        let done = what(live, &self.state);
        if live.broken {
            *self.outboxes.borrow_mut() = Some(live.room.take_outboxes());
            *slot = None;
        }
        Ok(done)
    }

    fn connect(
        self: &Rc<Self>,
        name: Option<String>,
        hello: ConnectRequest,
    ) -> Result<web_sys::Response> {
        let admitted = self.with(name, |live, state| {
            live.age();
            let now = now();
            // The Worker that let it through may not have heard of it yet.
            let revoked = &live.config.auth.revoked;
            let admitted = match revoked.covers(&hello.user, &hello.token, now) {
                true => Err(ClientError::unauthorized("the token was revoked")),
                false => live.room.admit(&hello, now),
            };
            if let Err(error) = admitted {
                live.log(
                    LogRecord::reject("rate")
                        .user(&hello.user)
                        .with("code", error.code.as_str()),
                );
                return Ok(super::refuse(&error)?.into());
            }
            let pair = WebSocketPair::new()?;
            state
                .as_raw()
                .accept_websocket(pair.server.as_ref())
                .map_err(Error::from)?;
            let mut out = Vec::new();
            let conn = live.room.connect(hello, now, &mut out);
            live.place(conn, pair.server.as_ref().clone().unchecked_into());
            live.run(state, out);
            runtime::switch(pair.client.as_ref())
        })??;
        self.settle(false)?;
        Ok(admitted)
    }

    /// A request of the Worker for a service.
    async fn call(self: &Rc<Self>, name: Option<String>, mut request: Request) -> Result<Response> {
        let request: ServiceRequest = serde_json::from_slice(&request.bytes().await?)?;
        let (sender, receiver) = oneshot::channel();
        let served = self.with(name, |live, state| {
            live.age();
            live.last_call.0 += 1;
            let call = live.last_call;
            let mut out = Vec::new();
            let served = live.room.serve(request, call, now(), &mut out);
            live.run(state, out);
            match served {
                Ok(_) if live.broken => Ok(Err(ClientError::internal())),
                Ok(Served::Page(query)) => {
                    let page = live.store.page(query, live.room.floor())?;
                    let page = page.finish(live.room.bounds().head, live.room.epoch());
                    Ok::<_, Error>(Ok(Served::Now(page)))
                }
                Ok(Served::Later) => {
                    live.calls.insert(call, sender);
                    Ok(Ok(Served::Later))
                }
                served => Ok(served),
            }
        })??;
        let full = self.with(None, |live, _| live.room.is_full())?;
        self.settle(full)?;
        let answer = match served {
            Ok(Served::Now(json)) => Ok((json, 200)),
            Ok(Served::Created(json)) => Ok((json, 201)),
            // Dropped unanswered only when storing failed.
            Ok(_) => receiver
                .await
                .unwrap_or_else(|_| Err(ClientError::internal()))
                .map(|json| (json, 200)),
            Err(error) => Err(error),
        };
        match answer {
            Ok((json, status)) => Ok(ResponseBuilder::new()
                .with_status(status)
                .fixed(json.into_bytes())),
            Err(error) => super::refuse(&error),
        }
    }

    fn gone(self: &Rc<Self>, socket: &Socket, code: u16) -> Result<()> {
        self.with(None, |live, state| {
            // One that went while the object slept is not among the open ones
            // that were found when it woke.
            let conn = socket.place().or_else(|| {
                let conn = live
                    .room
                    .restore_connection(restore::attachment(socket)?, now());
                live.place(conn, socket.clone());
                Some(conn)
            });
            if let Some(conn) = conn {
                live.displace(conn);
                let mut out = Vec::new();
                live.room.disconnect(conn, code, now(), &mut out);
                live.run(state, out);
            }
        })?;
        Rc::clone(self).arm();
        Ok(())
    }

    /// Tokens were revoked: sockets that are there by one of them are closed.
    async fn revoked(
        self: &Rc<Self>,
        name: Option<String>,
        mut request: Request,
    ) -> Result<Response> {
        let news: RevocationDelta = serde_json::from_slice(&request.bytes().await?)?;
        let here = self.with(name, |live, state| {
            live.config.auth.revoked.learn(&news.revocations);
            let here = live.enforce(state);
            if !here {
                live.registered = 0;
                live.store.set_registered(0)?;
            }
            Ok::<_, Error>(here)
        })??;
        self.settle(false)?;
        Ok(ResponseBuilder::new().fixed(serde_json::to_vec(&Told { here })?))
    }

    /// Says that there are sockets here, that they be told of revocations.
    async fn register(self: Rc<Self>, until: Millis) -> Result<()> {
        let (config, name) = self.with(None, |live, _| {
            (live.config.clone(), live.room.name().to_owned())
        })?;
        let revoked = &config.auth.revoked;
        let registered = revocations::register(&self.env, revoked, Place::Room(name), until).await;
        self.with(None, |live, state| {
            // Where that failed the next who comes tries again.
            if registered.is_err() {
                live.registered = 0;
            }
            live.store.set_registered(live.registered)?;
            live.enforce(state);
            registered
        })??;
        self.settle(false)
    }

    /// Fetches what a token takes to be judged, and goes on.
    async fn prepare(self: Rc<Self>, unready: Unready) -> Result<()> {
        let config = self.with(None, |live, _| live.config.clone())?;
        let ready = keys::prepare(&self.env, &config, &unready.token).await;
        self.with(None, |live, state| live.authenticate(state, unready, ready))?;
        self.settle(false)
    }
}
