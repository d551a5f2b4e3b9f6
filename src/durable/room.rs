//! The Durable Object of a room.

use super::clock::{self, Clock, Due};
use super::revocations::{self, Place, REVOKED_HEADER, Told};
use super::runtime::{self, GATEWAYS, Socket, fresh_id, now};
use super::sabotage::{self, Point};
use super::settings;
use super::store::{Kept, Store};
use crate::auth::revoked::News;
use crate::config::Config;
use crate::eventlog::Entry;
use crate::fault::Fault;
use crate::room::link::{Command as LinkCommand, Item, Push, Pushed, Request as LinkRequest};
use crate::room::links::{self, Links};
use crate::room::log::{Range, slice};
use crate::room::output::{CallId, ConnId};
use crate::room::service::{Request as ServiceRequest, Served};
use crate::room::{self, Attachment, Change, Delivery, Frame, Hello, Output};
use crate::time::Millis;
use crate::wire::native::{self, Close};
use futures_channel::oneshot;
use js_sys::JsString;
use std::cell::{OnceCell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;
use wasm_bindgen::closure::Closure;
use wasm_bindgen::prelude::*;
use worker::wasm_bindgen_futures::future_to_promise;
use worker::worker_sys::DurableObjectState;
use worker::{
    Delay, Env, Error, Request, Response, ResponseBuilder, Result, State, WebSocketPair,
    WebSocketRequestResponsePair,
};

/// Headers of the Worker's requests to the object. A request from outside never
/// reaches the object as it is, so nobody else can set them.
pub const ROOM_HEADER: &str = "x-roomcast-room";
pub const HELLO_HEADER: &str = "x-roomcast-hello";
/// Of a gateway's requests to a room, and of a room's to a gateway.
pub const LINK_HEADER: &str = "x-roomcast-link";

/// Turns of the event loop that a tick waits at the most while fewer things
/// wait than went out with the last one. Measured: see DESIGN in the README.
pub const MAX_TURNS: u32 = 4;

/// How long a tick takes at the most while frames come in, and so many more
/// connections one millisecond longer: the runtime lets timers wait as long as
/// there is something to read, so that a flood would keep all others waiting.
/// To end one takes some 20 µs a connection, which must not be all there is time
/// for.
const MAX_TICK: (Millis, usize) = (3, 5);

/// Of so many ticks that wait for nobody, one looks at the turn after it, which
/// costs a timer: more often costs a quiet room, more seldom a busy one at its
/// beginning.
const QUIET_TICKS: u32 = 4;

/// Length of a frame of replay, in UTF-16 units: large, for each frame costs,
/// but far below what WebSocket libraries take.
const REPLAY_FRAME: u32 = 256 * 1024;

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
    /// What waits for gateways: not of `live`, for it was stored.
    links: Rc<RefCell<Links>>,
}

/// Where the frames of a connection go.
#[derive(Clone)]
enum Peer {
    Socket(Socket),
    Gateway { gateway: Rc<str>, id: Rc<str> },
}

impl Peer {
    fn socket(&self) -> Option<&Socket> {
        match self {
            Peer::Socket(socket) => Some(socket),
            Peer::Gateway { .. } => None,
        }
    }
}

/// The object awake: the room and what it is connected to.
struct Live {
    config: Rc<Config>,
    room: room::Room,
    store: Store,
    peers: Vec<Option<Peer>>,
    /// Connections at gateways, by their ids.
    remote: HashMap<Rc<str>, ConnId>,
    /// How many connections each gateway has.
    gateways: HashMap<Rc<str>, usize>,
    links: Rc<RefCell<Links>>,
    /// Which waking this is.
    life: String,
    calls: HashMap<CallId, oneshot::Sender<Result<String, Fault>>>,
    /// Pages that were asked for, with the ids of the answers.
    pages: VecDeque<(ConnId, u32, Range)>,
    last_call: CallId,
    /// When what is being done began.
    began: Millis,
    /// Turns of the event loop that the tick may still take; 0 when none is on
    /// its way.
    turns: u32,
    /// Whether the next turn is awaited, for the tick or for [`Live::pages`].
    awaits_turn: bool,
    /// When it began.
    tick_began: Millis,
    /// How many things went out with the last one.
    last_tick: usize,
    /// Ticks that waited for nobody.
    quiet_ticks: u32,
    clock: Clock,
    /// The replay that was sent last: after an outage all ask for the same.
    replay: Option<(u64, u64, Rc<Vec<Portion>>)>,
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
                links: Rc::default(),
            }),
        }
    }

    /// A response, or a promise of one.
    pub fn fetch(&self, request: web_sys::Request) -> JsResult<JsValue> {
        let headers = request.headers();
        let room = headers.get(ROOM_HEADER)?;
        if let Some(hello) = headers.get(HELLO_HEADER)? {
            let hello: Hello = serde_json::from_str(&hello).map_err(Error::from)?;
            return Ok(self.object.connect(room, hello)?.into());
        }
        let revoked = headers.has(REVOKED_HEADER)?;
        let of_gateway = headers.has(LINK_HEADER)?;
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
            sabotage::panics(Point::Alarm);
            live.clock.alarm_rang();
            live.age();
            let peers = &live.peers;
            let pinged = |conn: ConnId| {
                let socket = peers.get(conn)?.as_ref()?.socket()?;
                runtime::pinged(state, socket)
            };
            let mut out = Vec::new();
            live.room.alarm(pinged, now(), &mut out);
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
            sabotage::panics(Point::Frame);
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
                self.links.clone(),
            )?),
        };
        live.began = now();
        let done = what(live, &self.state);
        if live.broken {
            *slot = None;
        }
        Ok(done)
    }

    fn connect(self: &Rc<Self>, name: Option<String>, hello: Hello) -> Result<web_sys::Response> {
        let admitted = self.with(name, |live, state| {
            live.age();
            let now = now();
            if let Err(fault) = live.room.admit(&hello, now) {
                live.log(
                    Entry::reject("rate")
                        .user(&hello.user)
                        .with("code", fault.code.as_str()),
                );
                return Ok(super::refuse(&fault)?.into());
            }
            let pair = WebSocketPair::new()?;
            state
                .as_raw()
                .accept_websocket(pair.server.as_ref())
                .map_err(Error::from)?;
            let mut out = Vec::new();
            let conn = live.room.connect(hello, now, &mut out);
            live.place(
                conn,
                Peer::Socket(pair.server.as_ref().clone().unchecked_into()),
            );
            live.run(state, out);
            runtime::switch(pair.client.as_ref())
        })??;
        self.settle(false)?;
        Ok(admitted)
    }

    /// A request of a gateway for its connections.
    async fn link(self: &Rc<Self>, name: Option<String>, mut request: Request) -> Result<Response> {
        let request: LinkRequest = serde_json::from_str(&request.text().await?)?;
        let gateway: Rc<str> = request.gateway.into();
        let full = self.with(name, |live, state| {
            live.age();
            for command in request.commands {
                live.linked(state, &gateway, command);
            }
            live.room.is_full()
        })?;
        self.settle(full)?;
        Response::empty()
    }

    /// Tokens were revoked: sockets that are there by one of them are closed.
    async fn revoked(
        self: &Rc<Self>,
        name: Option<String>,
        mut request: Request,
    ) -> Result<Response> {
        let news: News = serde_json::from_slice(&request.bytes().await?)?;
        let here = self.with(name, |live, state| {
            live.config.revoked.learn(&news.revocations);
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
        let revoked = &config.revoked;
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

    /// Sends a gateway what waits for it, until nothing does.
    async fn push(self: &Rc<Self>, gateway: String) -> Result<()> {
        loop {
            let body = self.with(None, |live, _| live.take_push(&gateway))?;
            let Some(body) = body else {
                return Ok(());
            };
            let body = JsString::from(body?.as_str());
            // Requests to other objects do not wait for what was stored, as
            // frames do.
            self.state.storage().sync().await?;
            let mut answer = self.push_once(&gateway, &body).await;
            for wait in links::RETRIES {
                if answer.is_ok() {
                    break;
                }
                Delay::from(Duration::from_millis(wait)).await;
                answer = self.push_once(&gateway, &body).await;
            }
            match answer {
                Ok(pushed) => self.with(None, |live, state| {
                    let reached = live.links.borrow_mut().reached(&gateway);
                    for told in reached.told.iter().filter_map(Item::to) {
                        live.forget(told);
                    }
                    live.lost(state, &pushed.gone);
                    if reached.was_missed {
                        live.look_for(&gateway);
                    }
                })?,
                Err(error) => {
                    runtime::complain(error);
                    let wait = self.links.borrow_mut().missed(&gateway);
                    if let Some(wait) = wait {
                        Delay::from(Duration::from_millis(wait)).await;
                    }
                    self.with(None, |live, state| match wait {
                        Some(_) => live.look_for(&gateway),
                        None => live.give_up(state, &gateway),
                    })?;
                }
            }
            Rc::clone(self).arm();
        }
    }

    async fn push_once(&self, gateway: &str, body: &JsString) -> Result<Pushed> {
        let headers = [(LINK_HEADER, gateway)];
        let body = Some(body.clone().into());
        let answer = runtime::call(&self.env, GATEWAYS, gateway, &headers, body).await?;
        match answer.status() {
            200 => Ok(serde_json::from_str(&runtime::read(&answer).await?.1)?),
            204 => Ok(Pushed::default()),
            status => Err(Error::RustError(format!("a gateway answered {status}"))),
        }
    }

    /// A request of the Worker for a service.
    async fn call(self: &Rc<Self>, name: Option<String>, mut request: Request) -> Result<Response> {
        let request: ServiceRequest = serde_json::from_slice(&request.bytes().await?)?;
        let (sender, receiver) = oneshot::channel();
        let served = self.with(name, |live, state| {
            live.age();
            live.last_call += 1;
            let call = live.last_call;
            let mut out = Vec::new();
            let served = live.room.serve(request, call, now(), &mut out);
            live.run(state, out);
            match served {
                Ok(_) if live.broken => Ok(Err(Fault::internal())),
                Ok(Served::Page(range)) => {
                    let page = live.store.page(range, live.room.floor())?;
                    let page = page.finish(live.room.bounds().head, live.room.epoch());
                    Ok::<_, Error>(Ok(Served::Now(page, false)))
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
            Ok(Served::Now(json, new)) => Ok((json, if new { 201 } else { 200 })),
            // Dropped unanswered only when storing failed.
            Ok(_) => receiver
                .await
                .unwrap_or_else(|_| Err(Fault::internal()))
                .map(|json| (json, 200)),
            Err(fault) => Err(fault),
        };
        match answer {
            Ok((json, status)) => Ok(ResponseBuilder::new()
                .with_status(status)
                .fixed(json.into_bytes())),
            Err(fault) => super::refuse(&fault),
        }
    }

    fn gone(self: &Rc<Self>, socket: &Socket, code: u16) -> Result<()> {
        self.with(None, |live, state| {
            // One that went while the object slept is not among the open ones
            // that were found when it woke.
            let conn = socket.place().or_else(|| {
                let conn = live.room.recall(attachment(socket)?, now());
                live.place(conn, Peer::Socket(socket.clone()));
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

    /// Sees to it that what waits goes out, at the end of a tick; begins one if
    /// none is on its way.
    ///
    /// A tick ends by turns of the event loop: with the next turn, so that
    /// frames that have already arrived are taken in, and a few more while
    /// fewer things wait than went out last time. Where the last tick had but
    /// one thing, nobody is waited for: what waits goes out at once. Every few
    /// such ticks the next turn is looked at all the same: what came with it
    /// shows that the room has become busy. So a quiet room answers without
    /// delay, and a busy one gathers.
    fn settle(self: &Rc<Self>, at_once: bool) -> Result<()> {
        let begins = self.with(None, |live, state| {
            let idle = live.room.waiting() > 0 && live.turns == 0;
            let quiet = idle && live.last_tick <= 1;
            let max_tick = MAX_TICK.0 + (live.peers.len() / MAX_TICK.1) as Millis;
            let overdue = live.turns > 0 && live.began >= live.tick_began + max_tick;
            if at_once || quiet || overdue {
                live.flush(state);
            }
            if idle || overdue {
                live.tick_began = live.began;
            }
            if quiet {
                live.quiet_ticks = live.quiet_ticks.wrapping_add(1);
                live.turns = u32::from(live.quiet_ticks % QUIET_TICKS == 0);
            } else if idle {
                live.turns = MAX_TURNS;
            }
            if live.awaits_turn {
                return false;
            }
            live.next_page(state);
            live.awaits_turn = live.turns > 0 || !live.pages.is_empty();
            live.awaits_turn
        })?;
        if begins {
            self.await_turn();
        }
        Rc::clone(self).arm();
        Ok(())
    }

    /// Calls [`Object::turn`] with the next turn of the event loop.
    fn await_turn(self: &Rc<Self>) {
        let turn = self.turn.get_or_init(|| {
            let object = Rc::downgrade(self);
            Closure::new(move || {
                if let Some(object) = object.upgrade()
                    && let Err(error) = object.turn()
                {
                    runtime::complain(error);
                }
            })
        });
        runtime::set_timeout(turn, 0);
    }

    fn turn(self: Rc<Self>) -> Result<()> {
        let more = self.with(None, |live, state| {
            if live.turns > 0 {
                live.turns -= 1;
                if live.room.waiting() >= live.last_tick.max(1) {
                    live.turns = 0;
                }
                if live.turns == 0 {
                    live.flush(state);
                }
            }
            live.next_page(state);
            live.awaits_turn = live.turns > 0 || !live.pages.is_empty();
            live.awaits_turn
        })?;
        if more {
            self.await_turn();
        }
        self.arm();
        Ok(())
    }

    /// Sets the timer and the alarm for what is due next, and sees to it that
    /// gateways get what waits for them.
    fn arm(self: Rc<Self>) {
        let overfull = self.links.borrow().overfull();
        if let Some(gateway) = overfull {
            let given_up = self.with(None, |live, state| live.give_up(state, &gateway));
            if let Err(error) = given_up {
                runtime::complain(error);
            }
        }
        let gateways = self.links.borrow_mut().start();
        for gateway in gateways {
            let object = Rc::clone(&self);
            runtime::spawn(&self.state, async move { object.push(gateway).await });
        }
        let (due, unready, unregistered) =
            self.live
                .borrow_mut()
                .as_mut()
                .map_or_else(Default::default, |live| {
                    let unready = std::mem::take(&mut live.unready);
                    (live.arm(), unready, live.unregistered.take())
                });
        if let Some(until) = unregistered {
            let object = Rc::clone(&self);
            runtime::spawn(&self.state, object.register(until));
        }
        for unready in unready {
            let object = Rc::clone(&self);
            runtime::spawn(&self.state, object.prepare(unready));
        }
        for due in due {
            let object = Rc::clone(&self);
            runtime::spawn(&self.state, object.see_to(due));
        }
    }

    /// Fetches what a token takes to be judged, and goes on.
    async fn prepare(self: Rc<Self>, unready: Unready) -> Result<()> {
        let config = self.with(None, |live, _| live.config.clone())?;
        let ready = super::prepare(&self.env, &config, &unready.token).await;
        self.with(None, |live, state| {
            let Unready {
                connection,
                id,
                token,
            } = unready;
            let mut out = Vec::new();
            live.room
                .prepared(&connection, id, &token, ready.is_ok(), now(), &mut out);
            live.run(state, out);
        })?;
        self.settle(false)
    }

    async fn see_to(self: Rc<Self>, due: Due) -> Result<()> {
        match due {
            Due::Timer(at) => {
                Delay::from(Duration::from_millis(at.saturating_sub(now()))).await;
                self.with(None, |live, state| {
                    live.clock.timer_ran(at);
                    live.advance(state);
                })?;
            }
            Due::Alarm(at) => return clock::set_alarm(&self.state, at).await,
            Due::AskAlarm => {
                let set = clock::alarm(&self.state).await?;
                self.with(None, |live, _| live.clock.alarm_is(set))?;
            }
        }
        self.arm();
        Ok(())
    }
}

impl Live {
    /// Builds the room from its storage and its sockets.
    fn wake(
        state: &State,
        env: &Env,
        name: Option<String>,
        links: Rc<RefCell<Links>>,
    ) -> Result<Self> {
        let began = now();
        let config = settings::of_object(env)?;
        let name = || name.or_else(|| state.id().name());
        let (store, name) = Store::open(&state.storage(), name, fresh_id)?;
        let (snapshot, subscribers) = store.load()?;
        state.set_websocket_auto_response(&WebSocketRequestResponsePair::new(
            native::PING,
            native::PONG,
        )?);
        let mut live = Live {
            room: room::Room::new(name, config.clone(), snapshot),
            config,
            store,
            peers: Vec::new(),
            remote: HashMap::new(),
            gateways: HashMap::new(),
            links,
            life: fresh_id(),
            calls: HashMap::new(),
            last_call: 0,
            began,
            turns: 0,
            awaits_turn: false,
            pages: VecDeque::new(),
            tick_began: 0,
            last_tick: 0,
            quiet_ticks: 0,
            clock: Clock::default(),
            replay: None,
            line_break: JsString::from("\n"),
            registered: 0,
            unregistered: None,
            unready: Vec::new(),
            broken: false,
        };
        // What is known of revocations is lost with the isolate's memory: without
        // that the registry is asked again with the next who connects.
        if live.config.revoked.is_known() {
            live.registered = live.store.registered();
        }
        for ws in state.get_websockets() {
            let socket: Socket = ws.as_ref().clone().unchecked_into();
            socket.forget_place();
            if socket.ready_state() != web_sys::WebSocket::OPEN {
                continue;
            }
            match attachment(&socket) {
                Some(attachment) => {
                    let conn = live.room.recall(attachment, began);
                    live.place(conn, Peer::Socket(socket));
                }
                // Accepted just when storing failed.
                None => runtime::close(&socket, Close::Failed.code(), Close::Failed.reason()),
            }
        }
        for (gateway, kept) in subscribers {
            let attachment = match kept {
                Kept::Here(attachment) => attachment,
                Kept::Parted(word) => {
                    live.links.borrow_mut().queue(&gateway, word, "");
                    continue;
                }
            };
            let id: Rc<str> = attachment.id.as_str().into();
            let conn = live.room.recall(attachment, began);
            let gateway: Rc<str> = gateway.into();
            // It may have gone while the room slept or was down.
            let (to, at) = (id.to_string(), live.room.bounds().head);
            let is = Item::Is { to, at };
            live.links.borrow_mut().queue(&gateway, is, "");
            live.place(conn, Peer::Gateway { gateway, id });
        }
        // All have been sent what there is, unless the memory of that was lost.
        let head = live.room.bounds().head;
        let told = runtime::ext(state).told().as_f64();
        runtime::ext(state).set_told(&(head as f64).into());
        if let Some(told) = told {
            let mut out = Vec::new();
            live.room.recover(told as u64, began, &mut out);
            live.run(state, out);
        }
        live.log(
            Entry::info("wake")
                .with("connections", live.peers.len())
                .with("seq", live.room.bounds().head)
                .took(now().saturating_sub(began)),
        );
        Ok(live)
    }

    fn place(&mut self, conn: ConnId, peer: Peer) {
        match &peer {
            Peer::Socket(socket) => socket.set_place(conn),
            Peer::Gateway { gateway, id } => {
                self.remote.insert(id.clone(), conn);
                *self.gateways.entry(gateway.clone()).or_default() += 1;
            }
        }
        if self.peers.len() <= conn {
            self.peers.resize_with(conn + 1, || None);
        }
        self.peers[conn] = Some(peer);
    }

    fn displace(&mut self, conn: ConnId) -> Option<Peer> {
        let peer = self.peers.get_mut(conn)?.take()?;
        self.pages.retain(|(one, ..)| *one != conn);
        match &peer {
            Peer::Socket(socket) => socket.disown(),
            Peer::Gateway { gateway, id } => {
                self.remote.remove(id);
                if let Some(connections) = self.gateways.get_mut(gateway) {
                    *connections -= 1;
                    if *connections == 0 {
                        self.gateways.remove(gateway);
                    }
                }
            }
        }
        Some(peer)
    }

    /// Nothing need be known any more of a connection at a gateway.
    fn forget(&mut self, id: &str) {
        if let Err(error) = self.store.remove_subscriber(id) {
            self.log(Entry::error(format!("storing failed: {error}")));
        }
    }

    /// The last word to a connection that is of the room no more. Its gateway must
    /// hear it, so it is kept until it has.
    fn last_word(&mut self, conn: ConnId, word: impl FnOnce(String) -> Item) {
        let Some(Peer::Gateway { gateway, id }) = self.displace(conn) else {
            return;
        };
        let word = word(id.to_string());
        let kept = Kept::Parted(word.clone());
        if let Err(error) = self.store.put_subscriber(&id, &gateway, &kept) {
            self.log(Entry::error(format!("storing failed: {error}")));
        }
        self.links.borrow_mut().queue(&gateway, word, "");
    }

    /// Closes the socket of a connection that is of the room no more.
    fn close(&mut self, conn: ConnId, why: Close) {
        if let Some(Some(Peer::Gateway { .. })) = self.peers.get(conn) {
            self.last_word(conn, |to| Item::Close { to, why });
        } else if let Some(Peer::Socket(socket)) = self.displace(conn) {
            runtime::close(&socket, why.code(), why.reason());
        }
    }

    /// What a gateway asks for one of its connections.
    fn linked(&mut self, state: &State, gateway: &Rc<str>, command: LinkCommand) {
        let known = self.remote.get(command.connection()).copied();
        let now = now();
        let mut out = Vec::new();
        match command {
            LinkCommand::Join { hello, id } => {
                let connection: Rc<str> = hello.connection_id.as_str().into();
                let user = hello.user.clone();
                match self.room.subscribe(hello, id, now, &mut out) {
                    Ok(conn) => self.place(
                        conn,
                        Peer::Gateway {
                            gateway: gateway.clone(),
                            id: connection,
                        },
                    ),
                    Err(fault) => self.refuse(gateway, &connection, &user, id, &fault),
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
                if let Some(conn) = known {
                    self.displace(conn);
                    self.forget(&connection);
                    self.room.disconnect(conn, code, now, &mut out);
                }
            }
            LinkCommand::Refresh {
                rights, expires, ..
            } => {
                if let Some(conn) = known {
                    self.room.refreshed(conn, rights, expires, &mut out);
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
        id: Option<u32>,
        fault: &Fault,
    ) {
        let line = native::fault(id, fault);
        let mut links = self.links.borrow_mut();
        let to = connection.to_owned();
        links.queue_text(gateway, to.clone(), &line, None, None);
        links.queue(gateway, Item::Out { to }, "");
        drop(links);
        self.log(
            Entry::reject("rate")
                .user(user)
                .connection(connection)
                .with("code", fault.code.as_str()),
        );
    }

    fn take_push(&mut self, gateway: &str) -> Option<serde_json::Result<String>> {
        let head = || Push {
            room: self.room.name().to_owned(),
            epoch: self.room.epoch().to_owned(),
            life: self.life.clone(),
            ..Push::default()
        };
        self.links.borrow_mut().take(gateway, head)
    }

    /// Connections that a gateway does not have any more.
    fn lost(&mut self, state: &State, gone: &[String]) {
        let mut out = Vec::new();
        for id in gone {
            if let Some(conn) = self.remote.get(id.as_str()).copied() {
                self.displace(conn);
                self.forget(id);
                // 1006: abnormal closure (RFC 6455, 7.4.1).
                self.room.disconnect(conn, 1006, now(), &mut out);
            }
        }
        self.run(state, out);
    }

    /// Asks a gateway that was out of reach what it still has.
    fn look_for(&mut self, gateway: &str) {
        let at = self.room.bounds().head;
        for to in self.connections_of(gateway) {
            self.links
                .borrow_mut()
                .queue(gateway, Item::Is { to, at }, "");
        }
    }

    /// A gateway that stays out of reach: the link is dropped, and presence
    /// follows.
    fn give_up(&mut self, state: &State, gateway: &str) {
        self.links.borrow_mut().forget(gateway);
        let gone = self.connections_of(gateway);
        self.lost(state, &gone);
    }

    fn connections_of(&self, gateway: &str) -> Vec<String> {
        let peers = self.peers.iter().flatten();
        peers
            .filter_map(|peer| match peer {
                Peer::Gateway { gateway: at, id } if **at == *gateway => Some(id.to_string()),
                _ => None,
            })
            .collect()
    }

    /// Answers one of those who asked for a page. To read it may take as long as
    /// a hundred messages do, so who asks for many at once gets one a turn.
    fn next_page(&mut self, state: &State) {
        let Some((conn, id, range)) = self.pages.pop_front() else {
            return;
        };
        let answer = if !self.room.is_joined(conn) {
            native::fault(Some(id), &Fault::not_joined())
        } else {
            match self.store.page(range, self.room.floor()) {
                Ok(page) => {
                    let page = page.finish(self.room.bounds().head, self.room.epoch());
                    self.room.paged(conn, page.len());
                    native::ack(id, &page)
                }
                Err(error) => {
                    self.log(Entry::error(format!("reading failed: {error}")));
                    native::fault(Some(id), &Fault::internal())
                }
            }
        };
        self.send(state, conn, &JsString::from(answer.as_str()), answer.len());
    }

    /// Ends the tick, if anything waits for that.
    fn flush(&mut self, state: &State) {
        let waiting = self.room.waiting();
        if waiting > 0 {
            self.last_tick = waiting;
            self.advance(state);
        }
    }

    fn advance(&mut self, state: &State) {
        let mut out = Vec::new();
        self.room.advance(now(), &mut out);
        sabotage::panics(Point::Tick);
        self.run(state, out);
    }

    /// Hides what is past retention by age.
    fn age(&mut self) {
        if let Some(limit) = self.room.age_limit(now()) {
            match self.store.aged(limit) {
                Ok((aged, oldest_at)) => self.room.aged(aged, oldest_at),
                Err(error) => self.log(Entry::error(error.to_string())),
            }
        }
    }

    /// Closes what is there by a token that was revoked. Whether any sockets
    /// are left.
    fn enforce(&mut self, state: &State) -> bool {
        let mut out = Vec::new();
        let left = self.room.enforce(now(), &mut out);
        self.run(state, out);
        left
    }

    fn arm(&mut self) -> Vec<Due> {
        self.clock.due(self.room.timer(), self.room.alarm_at())
    }

    fn log(&mut self, entry: Entry) {
        if entry.level < self.config.log_level {
            return;
        }
        let rows = self.store.take_rows_written();
        let entry = if rows > 0 {
            entry.with("rowsWritten", rows)
        } else {
            entry
        };
        let now = now();
        let entry = entry
            .room(self.room.name())
            .took(now.saturating_sub(self.began));
        worker::console_log!("{}", entry.line(now));
    }

    /// Carries out what the room wants done, in order.
    fn run(&mut self, state: &State, out: Vec<Output>) {
        let mut stored: Option<(String, JsString)> = None;
        let mut outputs = out.into_iter();
        while let Some(output) = outputs.next() {
            match output {
                Output::Store(change) => {
                    let body = match &change {
                        Change::Append(row) => JsString::from(row.body.as_str()),
                        _ => JsString::from(""),
                    };
                    if let Err(error) = self.store.apply(&change, &body) {
                        self.log(Entry::error(format!("storing failed: {error}")));
                        return self.fail(outputs);
                    }
                    if let Change::Wipe { .. } = change {
                        runtime::ext(state).set_told(&0.into());
                    }
                    if let Change::Append(row) = change {
                        sabotage::panics(Point::Stored);
                        stored = Some((row.body, body));
                    }
                }
                Output::Send { conn, frame } => {
                    self.send(state, conn, &JsString::from(frame.as_str()), frame.len());
                }
                Output::Deliver(delivery) => self.deliver(state, delivery, stored.take()),
                Output::Replay { conn, after, upto } => {
                    if let Err(error) = self.replay(state, conn, after, upto) {
                        self.log(Entry::error(format!("replay failed: {error}")));
                        return self.fail(outputs);
                    }
                }
                Output::Page { conn, id, range } => self.pages.push_back((conn, id, range)),
                Output::Attach { conn } => self.attach(conn),
                Output::Joined { conn, after } => {
                    self.tell_gateway(conn, |to| Item::In { to, after });
                }
                Output::Parted { conn } => self.last_word(conn, |to| Item::Out { to }),
                Output::Close { conn, why } => self.close(conn, why),
                Output::Reply { call, answers } => {
                    if let Some(call) = self.calls.remove(&call) {
                        // A caller that went away needs no answer.
                        let _ = call.send(Ok(answers));
                    }
                }
                Output::Prepare {
                    connection,
                    id,
                    token,
                } => self.unready.push(Unready {
                    connection,
                    id,
                    token,
                }),
                Output::Log(entry) => self.log(entry),
            }
        }
    }

    /// Storing failed: nothing that waited for it is true. Says so to all that
    /// wait; the room is read from storage again (`broken`).
    fn fail(&mut self, rest: impl Iterator<Item = Output>) {
        for output in rest {
            match output {
                Output::Deliver(delivery) => {
                    for (conn, id) in delivery.acked {
                        let answer = native::fault(Some(id), &Fault::internal());
                        match self.peers.get(conn) {
                            Some(Some(Peer::Socket(socket))) => {
                                // One that is gone needs no answer.
                                let _ = socket.send_string(&JsString::from(answer.as_str()));
                            }
                            Some(Some(Peer::Gateway { .. })) => self.one(conn, &answer, None, None),
                            _ => {}
                        }
                    }
                }
                Output::Close { conn, why } => self.close(conn, why),
                _ => {}
            }
        }
        self.calls.clear();
        self.broken = true;
    }

    fn attach(&mut self, conn: ConnId) {
        let (Some(attachment), Some(Some(peer))) =
            (self.room.attachment(conn), self.peers.get(conn))
        else {
            return;
        };
        // Who has sockets is told of revocations.
        let until = attachment.expires;
        if matches!(peer, Peer::Socket(_)) && self.config.revoked.is_on() && self.registered < until
        {
            self.registered = revocations::registration(until);
            self.unregistered = Some(self.registered);
        }
        let attached = match peer {
            Peer::Socket(socket) => serde_json::to_string(&attachment)
                .map_err(Error::from)
                .and_then(|json| Ok(socket.attach(&JsString::from(json.as_str()))?)),
            Peer::Gateway { gateway, id } => {
                let kept = Kept::Here(attachment);
                self.store.put_subscriber(id, gateway, &kept)
            }
        };
        if let Err(error) = attached {
            self.log(Entry::error(format!("attachment failed: {error}")));
        }
    }

    /// A word to a gateway about one of its connections.
    fn tell_gateway(&self, conn: ConnId, item: impl FnOnce(String) -> Item) {
        if let Some(Some(Peer::Gateway { gateway, id })) = self.peers.get(conn) {
            let mut links = self.links.borrow_mut();
            links.queue(gateway, item(id.to_string()), "");
        }
    }

    /// A text for one connection at a gateway; see [`Item::One`].
    fn one(&self, conn: ConnId, text: &str, after: Option<u64>, at: Option<u64>) {
        if let Some(Some(Peer::Gateway { gateway, id })) = self.peers.get(conn) {
            let mut links = self.links.borrow_mut();
            links.queue_text(gateway, id.to_string(), text, after, at);
        }
    }

    fn send(&mut self, state: &State, conn: ConnId, frame: &JsString, bytes: usize) {
        let socket = match self.peers.get(conn) {
            Some(Some(Peer::Socket(socket))) => socket,
            Some(Some(Peer::Gateway { .. })) => {
                return self.one(conn, &String::from(frame), None, None);
            }
            _ => return,
        };
        let mut out = Vec::new();
        if socket.send_string(frame).is_err() {
            // Closed under our hands: its close event is on the way.
            self.displace(conn);
            self.room.disconnect(conn, 1006, now(), &mut out);
        } else if self.room.sent(conn, bytes) {
            let pinged = runtime::pinged(state, socket);
            self.room.judge_slow(conn, pinged, now(), &mut out);
        }
        if !out.is_empty() {
            self.run(state, out);
        }
    }

    fn deliver(&mut self, state: &State, delivery: Delivery, stored: Option<(String, JsString)>) {
        let text = delivery.shared;
        // Mostly it is the very row that was stored: the same string serves.
        let shared = text.as_ref().map(|shared| match stored {
            Some((body, frame)) if body == *shared => (frame, shared.len()),
            _ => (JsString::from(shared.as_str()), shared.len()),
        });
        let whole = shared.as_ref().map_or(0, |(frame, _)| frame.length()) as usize;
        let (after, at) = delivery.events;
        let mut served = HashSet::with_capacity(delivery.custom.len());
        for custom in delivery.custom {
            let remote = matches!(
                self.peers.get(custom.conn),
                Some(Some(Peer::Gateway { .. }))
            );
            let runs = custom.shared.as_deref().unwrap_or_default();
            if remote && matches!(runs, [all] if *all == (0..whole)) {
                // Gets what all get, and its own before it.
                self.one(custom.conn, &custom.private, None, None);
                continue;
            }
            served.insert(custom.conn);
            let mut frame = JsString::from(custom.private.as_str());
            if let Some((shared, _)) = &shared {
                for run in custom.shared.iter().flatten() {
                    let part = shared.slice(run.start as u32, run.end as u32);
                    frame = if frame.length() == 0 {
                        part
                    } else {
                        frame.concat(&self.line_break).concat(&part)
                    };
                }
            }
            let length = frame.length() as usize;
            if length > 0 && remote {
                let with_events = at > after && !runs.is_empty();
                let events = (with_events.then_some(after), with_events.then_some(at));
                self.one(custom.conn, &String::from(&frame), events.0, events.1);
            } else if length > 0 {
                self.send(state, custom.conn, &frame, length);
            }
        }
        let (Some((frame, bytes)), Some(text)) = (shared, text) else {
            return;
        };
        for gateway in self.gateways.keys() {
            let not = served
                .iter()
                .filter_map(|conn| match self.peers.get(*conn) {
                    Some(Some(Peer::Gateway { gateway: at, id })) if at == gateway => {
                        Some(id.to_string())
                    }
                    _ => None,
                });
            let item = Item::All {
                bytes: text.len(),
                not: not.collect(),
                after,
                at,
            };
            self.links.borrow_mut().queue(gateway, item, &text);
        }
        for conn in 0..self.peers.len() {
            if matches!(self.peers[conn], Some(Peer::Socket(_)))
                && !served.contains(&conn)
                && self.room.receives(conn, delivery.tick)
            {
                self.send(state, conn, &frame, bytes);
            }
        }
        if at > after {
            runtime::ext(state).set_told(&(at as f64).into());
        }
    }

    /// Sends what is stored as it is stored, in large frames.
    fn replay(&mut self, state: &State, conn: ConnId, after: u64, upto: u64) -> Result<()> {
        let frames = match &self.replay {
            Some((from, to, frames)) if (*from, *to) == (after, upto) => frames.clone(),
            _ => {
                let frames = Rc::new(self.frames(after, upto)?);
                self.replay = Some((after, upto, frames.clone()));
                frames
            }
        };
        for (last, frame) in frames.iter() {
            if let Some(Some(Peer::Gateway { .. })) = self.peers.get(conn) {
                self.one(conn, &String::from(frame), None, Some(*last));
            } else {
                self.send(state, conn, frame, frame.length() as usize);
            }
        }
        Ok(())
    }

    fn frames(&self, after: u64, upto: u64) -> Result<Vec<Portion>> {
        let mut frames = Vec::new();
        let mut frame: Option<JsString> = None;
        self.store.rows(after, upto, |first, last, body| {
            let body = if first > after && last <= upto {
                body
            } else {
                let text = String::from(&body);
                JsString::from(slice(first, &text, after, upto))
            };
            let joined = match frame.take() {
                Some(frame) => frame.concat(&self.line_break).concat(&body),
                None => body,
            };
            if joined.length() >= REPLAY_FRAME {
                frames.push((last.min(upto), joined));
            } else {
                frame = Some(joined);
            }
        })?;
        frames.extend(frame.map(|frame| (upto, frame)));
        Ok(frames)
    }
}

fn attachment(socket: &Socket) -> Option<Attachment> {
    let json = socket.attachment().ok()?.as_string()?;
    serde_json::from_str(&json).ok()
}
