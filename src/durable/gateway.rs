//! The Durable Object of a gateway.

use super::clients::Clients;
use super::clock::{self, Clock, Due};
use super::revocations::{self, Place, REVOKED_HEADER, Told};
use super::room::{LINK_HEADER, MAX_TURNS, ROOM_HEADER};
use super::runtime::{self, GATEWAYS, ROOMS, Socket, fresh_id, now};
use super::sabotage::{self, Point};
use super::settings;
use crate::auth::revoked::News;
use crate::config::Config;
use crate::eventlog::Entry;
use crate::gateway::handshake::{Ask, Error as HandshakeError, shard_of};
use crate::gateway::{Answer, App, Door, Frame, Hub, Output, PollId, Polled, SocketId, Waiting};
use crate::room::link::{Push, Request as LinkRequest};
use crate::time::{Millis, SECOND};
use crate::wire::native::{self, Close};
use futures_channel::oneshot;
use js_sys::{JsString, Map, Uint8Array};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;
use wasm_bindgen::prelude::*;
use worker::{
    Delay, DurableObject, Env, Error, Request, Response, ResponseBuilder, Result, State,
    WebSocketPair, WebSocketRequestResponsePair, durable_object,
};

#[cfg(not(feature = "conformance"))]
type Application = crate::gateway::chat::Chat;
#[cfg(feature = "conformance")]
type Application = crate::gateway::echo::Echo;

/// Of the Worker's requests: who is at the door, and what is asked for.
pub const DOOR_HEADER: &str = "x-roomcast-door";
/// The gateway's name, in all requests but those of rooms.
pub const GATEWAY_HEADER: &str = "x-roomcast-gateway";
/// Of another gateway's: what was saved under a `pid`.
const FIND_HEADER: &str = "x-roomcast-find";

/// What is due within this time is seen to by a timer, which keeps the gateway
/// awake, what is later by the alarm, which costs a row.
const BY_TIMER: Millis = 1_500;

/// How long a client that is gone may come back to what it was.
const RECOVERY_WINDOW: Millis = 24 * 60 * 60 * SECOND;

/// A client's answer to a ping of Engine.IO. The runtime answers it by itself
/// without waking the object, by a packet that clients ignore, and remembers when.
const PONG: &str = "3";
const NOOP: &str = "6";

/// What the names of gateways for native sockets begin with: the runtime answers
/// one kind of ping an object.
pub const NATIVE: &str = "n";

/// The longest attachment in characters, of which each may take two of the
/// platform's 16,384 bytes. What is longer goes to storage.
const MAX_ATTACHMENT: usize = 8_000;
const SPILLED: &str = "spilled:";

/// Somebody at the door.
#[derive(Serialize, Deserialize)]
pub struct Visit {
    pub door: Door,
    /// `None`: a native socket.
    pub ask: Option<Ask>,
}

/// What a gateway asks another.
#[derive(Serialize, Deserialize)]
struct Find {
    pid: String,
    user: String,
}

#[durable_object(alarm)]
pub struct Gateway {
    object: Rc<Object>,
}

struct Object {
    state: State,
    env: Env,
    live: RefCell<Option<Live>>,
}

/// The object awake.
struct Live {
    config: Rc<Config>,
    name: String,
    gateway: crate::gateway::Gateway<Application>,
    store: Clients,
    sockets: Vec<Option<Socket>>,
    polls: HashMap<PollId, oneshot::Sender<Answer>>,
    /// Whether it can sleep between pings. One that cannot has nothing of
    /// hibernatable sockets; and workerd 1.20261117 ends the connection of such
    /// a one only when its object sleeps, if the object closes it before it has
    /// said anything.
    sleeps: bool,
    clock: Clock,
    /// Whether the registry of revocations knows that there are sockets here.
    registered: bool,
    /// What cannot be done at once.
    later: VecDeque<Later>,
    began: Millis,
    /// See [`Output::Reached`]: kept by JavaScript, whose memory outlives a panic.
    reached: Map,
}

enum Later {
    Forward(String),
    Find {
        client: usize,
        pid: String,
        user: String,
    },
    Prepare(Waiting),
    Register,
}

impl DurableObject for Gateway {
    fn new(state: State, env: Env) -> Self {
        console_error_panic_hook::set_once();
        Gateway {
            object: Rc::new(Object {
                state,
                env,
                live: RefCell::new(None),
            }),
        }
    }

    async fn fetch(&self, mut request: Request) -> Result<Response> {
        let headers = request.headers();
        if let Some(name) = headers.get(LINK_HEADER)? {
            let body = request.text().await?;
            return self.object.pushed(name, &body);
        }
        let name = headers.get(GATEWAY_HEADER)?.unwrap_or_default();
        if headers.get(FIND_HEADER)?.is_some() {
            let find: Find = serde_json::from_slice(&request.bytes().await?)?;
            return self.object.asked(name, &find);
        }
        if headers.get(REVOKED_HEADER)?.is_some() {
            let news: News = serde_json::from_slice(&request.bytes().await?)?;
            return self.object.revoked(name, &news);
        }
        let visit = headers.get(DOOR_HEADER)?.unwrap_or_default();
        let visit: Visit = serde_json::from_str(&visit)?;
        self.object.visit(name, visit, request).await
    }

    async fn alarm(&self) -> Result<Response> {
        let asleep = self.object.live.borrow().is_none();
        self.object.act(None, |live, state| {
            sabotage::panics(Point::GatewayAlarm);
            live.clock.alarm_rang();
            if asleep {
                live.gateway.hub.woken_by_alarm(live.began);
            }
            live.advance(state);
        })?;
        Response::empty()
    }
}

/// What sockets call, without the promises that `worker` would make of it; see
/// the room's object.
#[wasm_bindgen]
impl Gateway {
    #[wasm_bindgen(js_name = webSocketMessage)]
    pub fn web_socket_message(&self, socket: &Socket, message: &JsValue) -> JsResult {
        Ok(self.object.message(socket, message)?)
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

type JsResult = std::result::Result<(), JsValue>;

impl Object {
    /// Does something with the gateway, and then all that comes of it.
    fn act<T>(
        self: &Rc<Self>,
        name: Option<String>,
        what: impl FnOnce(&mut Live, &State) -> T,
    ) -> Result<T> {
        let (done, later, due) = {
            let mut slot = self.live.borrow_mut();
            let live = match &mut *slot {
                Some(live) => live,
                empty => empty.insert(Live::wake(&self.state, &self.env, name)?),
            };
            live.began = now();
            live.gateway.hub.set_now(live.began);
            let done = what(live, &self.state);
            live.settle(&self.state);
            let due = live.due();
            (done, std::mem::take(&mut live.later), due)
        };
        for later in later {
            let object = Rc::clone(self);
            runtime::spawn(&self.state, object.see_to_later(later));
        }
        for due in due {
            let object = Rc::clone(self);
            runtime::spawn(&self.state, object.see_to(due));
        }
        Ok(done)
    }

    fn message(self: &Rc<Self>, socket: &Socket, message: &JsValue) -> Result<()> {
        if socket.place().is_none() && self.live.borrow().is_some() {
            // Closed already, and it does not stop talking.
            return Ok(());
        }
        self.act(None, |live, _| {
            let Some(place) = socket.place() else {
                return;
            };
            let frame = match message.as_string() {
                Some(text) => Frame::Text(text),
                None => Frame::Binary(Uint8Array::new(message).to_vec().into()),
            };
            live.gateway.hub.frame(place, frame, live.began);
            sabotage::panics(Point::GatewayFrame);
        })
    }

    fn gone(self: &Rc<Self>, socket: &Socket, code: u16) -> Result<()> {
        self.act(None, |live, _| {
            if let Some(place) = socket.place() {
                live.displace(place);
                live.gateway.hub.closed(place, code);
            }
        })
    }

    /// Somebody whom the Worker let through.
    async fn visit(
        self: &Rc<Self>,
        name: String,
        visit: Visit,
        mut request: Request,
    ) -> Result<Response> {
        let Visit { door, ask } = visit;
        if matches!(ask, None | Some(Ask::Open | Ask::WebSocket { sid: None })) {
            let admitted = self.act(Some(name.clone()), |live, _| {
                live.be_registered();
                live.gateway.hub.admit(&door, live.began)
            })?;
            if let Err(fault) = admitted {
                return super::refuse(&fault);
            }
        }
        let answer = match ask {
            None => return self.upgrade(name, |hub, now| Ok(hub.open_native(door, now))),
            Some(Ask::WebSocket { sid }) => {
                return self.upgrade(name, |hub, now| hub.open_socket(door, sid.as_deref(), now));
            }
            Some(Ask::Open) => self.act(Some(name), |live, _| {
                live.gateway.hub.open_polling(door, live.began)
            })?,
            Some(Ask::Post { sid }) => {
                let body = request.bytes().await?;
                self.act(Some(name), |live, _| {
                    live.gateway.hub.post(&sid, &body, live.began)
                })?
            }
            Some(Ask::Poll { sid }) => {
                let (sender, receiver) = oneshot::channel();
                let polled = self.act(Some(name), |live, _| {
                    let polled = live.gateway.hub.poll(&sid, live.began);
                    if let Polled::Later(poll) = polled {
                        live.polls.insert(poll, sender);
                    }
                    polled
                })?;
                match polled {
                    Polled::Now(answer) => answer,
                    Polled::Later(poll) => {
                        let _watch = self.watch(&request, poll);
                        // Dropped unanswered only with the whole session.
                        receiver
                            .await
                            .unwrap_or_else(|_| Answer::error(HandshakeError::UnknownSid))
                    }
                }
            }
        };
        Ok(ResponseBuilder::new()
            .with_status(answer.status)
            .fixed(answer.body.into_bytes()))
    }

    /// Notices when the client gives up a request that waits.
    fn watch(self: &Rc<Self>, request: &Request, poll: PollId) -> Closure<dyn FnMut()> {
        let object = Rc::downgrade(self);
        let given_up = Closure::new(move || {
            if let Some(object) = object.upgrade()
                && let Err(error) = object.act(None, |live, _| {
                    live.polls.remove(&poll);
                    live.gateway.hub.cancelled(poll);
                })
            {
                runtime::complain(error);
            }
        });
        let listens = request
            .inner()
            .signal()
            .add_event_listener_with_callback("abort", given_up.as_ref().unchecked_ref());
        if listens.is_err() {
            runtime::complain("no abort signal");
        }
        given_up
    }

    fn upgrade(
        self: &Rc<Self>,
        name: String,
        open: impl FnOnce(&mut Hub, Millis) -> std::result::Result<SocketId, HandshakeError>,
    ) -> Result<Response> {
        self.act(Some(name), |live, state| {
            let place = match open(&mut live.gateway.hub, live.began) {
                Ok(place) => place,
                Err(error) => {
                    let body = error.json().into_bytes();
                    return Ok(ResponseBuilder::new().with_status(400).fixed(body));
                }
            };
            let pair = WebSocketPair::new()?;
            let socket: Socket = pair.server.as_ref().clone().unchecked_into();
            if live.sleeps {
                state
                    .as_raw()
                    .accept_websocket(&socket)
                    .map_err(Error::from)?;
            } else {
                pair.server.accept()?;
                self.listen(&socket)?;
            }
            live.place(place, socket);
            Response::from_websocket(pair.client)
        })?
    }

    /// Hears a socket that is not hibernatable.
    fn listen(self: &Rc<Self>, socket: &Socket) -> Result<()> {
        socket.set_binary_type(web_sys::BinaryType::Arraybuffer);
        let hear = |what: &str, then: fn(&Rc<Object>, &Socket, &JsValue) -> Result<()>| {
            let (object, this) = (Rc::downgrade(self), socket.clone());
            let heard = Closure::<dyn FnMut(JsValue)>::new(move |event: JsValue| {
                if let Some(object) = object.upgrade()
                    && let Err(error) = then(&object, &this, &event)
                {
                    runtime::complain(error);
                }
            });
            let heard = heard.into_js_value();
            socket.add_event_listener_with_callback(what, heard.unchecked_ref())
        };
        hear("message", |object, socket, event| {
            let event: &web_sys::MessageEvent = event.unchecked_ref();
            object.message(socket, &event.data())
        })?;
        hear("close", |object, socket, event| {
            let code = event.unchecked_ref::<web_sys::CloseEvent>().code();
            runtime::answer_close(socket, code);
            object.gone(socket, code)
        })?;
        hear("error", |object, socket, _| object.gone(socket, 1006))?;
        Ok(())
    }

    /// A room's push.
    fn pushed(self: &Rc<Self>, name: String, body: &str) -> Result<Response> {
        let Some((push, texts)) = Push::parse(body) else {
            return Err(Error::RustError("a push that is none".into()));
        };
        let pushed = self.act(Some(name), |live, _| {
            sabotage::panics(Point::GatewayPush);
            let gateway = &mut live.gateway;
            gateway
                .app
                .pushed(&mut gateway.hub, push, &texts, live.began)
        })?;
        if pushed.gone.is_empty() {
            // Mostly: to read a body costs the room more than all the rest.
            return Ok(ResponseBuilder::new().with_status(204).empty());
        }
        Ok(ResponseBuilder::new().fixed(serde_json::to_vec(&pushed)?))
    }

    /// Another gateway's question: what was saved under a `pid`, which is from
    /// now on its own.
    fn asked(self: &Rc<Self>, name: String, find: &Find) -> Result<Response> {
        let record = self.act(Some(name), |live, state| live.give(state, find))?;
        Ok(ResponseBuilder::new().fixed(record.unwrap_or_default().into_bytes()))
    }

    /// Tokens were revoked: what is there by one of them is closed.
    fn revoked(self: &Rc<Self>, name: String, news: &News) -> Result<Response> {
        let here = self.act(Some(name), |live, state| {
            live.config.revoked.learn(&news.revocations);
            live.enforce(state);
            let here = !live.gateway.hub.is_empty();
            if !here {
                live.registered = false;
                live.store.set_registered(false)?;
            }
            Ok::<_, Error>(here)
        })??;
        Ok(ResponseBuilder::new().fixed(serde_json::to_vec(&Told { here })?))
    }

    /// Says that there are sockets here, that they be told of revocations.
    async fn register(self: Rc<Self>) -> Result<()> {
        let (config, name) = self.act(None, |live, _| (live.config.clone(), live.name.clone()))?;
        let revoked = &config.revoked;
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

    async fn see_to_later(self: Rc<Self>, later: Later) -> Result<()> {
        match later {
            Later::Forward(room) => loop {
                // The rule by which rooms end their ticks.
                for _ in 0..MAX_TURNS {
                    if !self.act(None, |live, _| live.gateway.app.gathers(&room))? {
                        break;
                    }
                    Delay::from(Duration::ZERO).await;
                }
                let commands = self.act(None, |live, _| {
                    let gateway = &mut live.gateway;
                    gateway.app.take(&mut gateway.hub, &room)
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
                        gateway.app.failed(&mut gateway.hub, &room, commands);
                    })?;
                }
            },
            Later::Register => self.register().await,
            Later::Prepare(waiting) => {
                let config = self.act(None, |live, _| live.config.clone())?;
                let ready = super::prepare(&self.env, &config, &waiting.token).await;
                self.act(None, |live, _| {
                    let (gateway, now) = (&mut live.gateway, live.began);
                    let hub = &mut gateway.hub;
                    gateway.app.prepared(hub, waiting, ready.is_ok(), now);
                })
            }
            Later::Find { client, pid, user } => {
                let find = Find { pid, user };
                let record = self.find(&find).await.unwrap_or_else(|error| {
                    runtime::complain(error);
                    None
                });
                self.act(None, |live, _| {
                    let (gateway, now) = (&mut live.gateway, live.began);
                    gateway.app.found(&mut gateway.hub, client, record, now);
                })
            }
        }
    }

    async fn forward(&self, room: &str, request: &LinkRequest) -> Result<()> {
        let headers = [(ROOM_HEADER, room), (LINK_HEADER, "1")];
        let body = Some(serde_json::to_string(request)?.into());
        let response = runtime::call(&self.env, ROOMS, room, &headers, body).await?;
        match response.status() {
            200 => Ok(()),
            status => Err(Error::RustError(format!("a room answered {status}"))),
        }
    }

    /// What was saved under a `pid`, here or at another gateway.
    async fn find(self: &Rc<Self>, find: &Find) -> Result<Option<String>> {
        let Some(shard) = shard_of(&find.pid) else {
            return Ok(None);
        };
        let here = self.act(None, |live, state| {
            (live.name == shard.to_string()).then(|| live.give(state, find))
        })?;
        if let Some(record) = here {
            return Ok(record);
        }
        let name = shard.to_string();
        let headers = [(GATEWAY_HEADER, name.as_str()), (FIND_HEADER, "1")];
        let find = serde_json::to_string(find)?;
        let (_, record) = runtime::ask(&self.env, GATEWAYS, &name, &headers, find).await?;
        Ok(Some(record).filter(|record| !record.is_empty()))
    }

    async fn see_to(self: Rc<Self>, due: Due) -> Result<()> {
        match due {
            Due::Timer(at) => {
                Delay::from(Duration::from_millis(at.saturating_sub(now()))).await;
                self.act(None, |live, state| {
                    live.clock.timer_ran(at);
                    live.advance(state);
                })
            }
            Due::Alarm(at) => clock::set_alarm(&self.state, at).await,
            Due::AskAlarm => {
                let set = clock::alarm(&self.state).await?;
                self.act(None, |live, _| live.clock.alarm_is(set))
            }
        }
    }
}

impl Live {
    /// Builds the gateway from its storage and its sockets.
    fn wake(state: &State, env: &Env, name: Option<String>) -> Result<Self> {
        let began = now();
        let config = settings::of_object(env)?;
        let (store, name) = Clients::open(&state.storage(), || name.or_else(|| state.id().name()))?;
        // Native clients ping by a text of their own; Engine.IO is pinged, and
        // where that is so often that a timer is needed, nothing is gained.
        let is_native = name.starts_with(NATIVE);
        let hub = Hub::new(name.clone(), config.clone(), fresh_id);
        let sleeps = is_native || hub.pings_by_alarm();
        if sleeps {
            let (ping, pong) = match is_native {
                true => (native::PING, native::PONG),
                false => (PONG, NOOP),
            };
            state.set_websocket_auto_response(&WebSocketRequestResponsePair::new(ping, pong)?);
        }
        // What is known of revocations is lost with the isolate's memory: without
        // that the registry is asked again with the next who connects.
        let registered = store.registered() && config.revoked.is_known();
        let known: Option<Map> = runtime::ext(state).told().dyn_into().ok();
        let mut live = Live {
            gateway: crate::gateway::Gateway {
                hub,
                app: Application::default(),
            },
            config,
            name,
            sockets: Vec::new(),
            polls: HashMap::new(),
            clock: Clock::default(),
            registered,
            sleeps,
            later: VecDeque::new(),
            began,
            store,
            reached: known.clone().unwrap_or_default(),
        };
        runtime::ext(state).set_told(&live.reached);
        let mut connections = 0;
        let mut spills = Vec::new();
        for ws in state.get_websockets() {
            let socket: Socket = ws.as_ref().clone().unchecked_into();
            socket.forget_place();
            if socket.ready_state() != web_sys::WebSocket::OPEN {
                continue;
            }
            let record = socket
                .attachment()
                .ok()
                .and_then(|record| record.as_string());
            let record = record.and_then(|record| match record.strip_prefix(SPILLED) {
                Some(key) => {
                    spills.push(key.to_owned());
                    live.store.spilled(key).ok().flatten()
                }
                None => Some(record),
            });
            match record.and_then(|record| live.gateway.hub.recall(&record, began)) {
                Some(place) => live.place(place, socket),
                // One that was on its way to become a session's.
                None => runtime::close(&socket, Close::Failed.code(), Close::Failed.reason()),
            }
            connections += 1;
        }
        live.store
            .clean(began.saturating_sub(RECOVERY_WINDOW), &spills)?;
        let records = live.store.clients()?;
        // After a panic it is known better than stored.
        let positions = match &known {
            Some(known) => {
                let mut positions = HashMap::new();
                known.for_each(&mut |at, key| {
                    if let (Some(key), Some(at)) = (key.as_string(), at.as_f64()) {
                        positions.insert(key, at as u64);
                    }
                });
                // It may sleep before anything else comes. Those of single
                // clients, with a space, are for who is behind in this life.
                for (room, at) in positions.iter().filter(|(key, _)| !key.contains(' ')) {
                    live.store.set_position(room, *at)?;
                }
                positions
            }
            None => live.store.positions()?,
        };
        let gateway = &mut live.gateway;
        gateway
            .app
            .recall(&mut gateway.hub, records, positions, known.is_some(), began);
        live.settle(state);
        live.log(
            Entry::info("wake")
                .with("connections", connections)
                .took(now().saturating_sub(began)),
        );
        Ok(live)
    }

    /// Who has sockets is told of revocations.
    fn be_registered(&mut self) {
        if self.config.revoked.is_on() && !self.registered {
            self.registered = true;
            self.later.push_back(Later::Register);
        }
    }

    fn enforce(&mut self, state: &State) {
        let (gateway, now) = (&mut self.gateway, self.began);
        gateway.app.enforce(&mut gateway.hub, now);
        self.settle(state);
    }

    fn place(&mut self, place: SocketId, socket: Socket) {
        socket.set_place(place);
        if self.sockets.len() <= place {
            self.sockets.resize_with(place + 1, || None);
        }
        self.sockets[place] = Some(socket);
    }

    fn displace(&mut self, place: SocketId) -> Option<Socket> {
        let socket = self.sockets.get_mut(place)?.take()?;
        socket.disown();
        Some(socket)
    }

    fn due(&mut self) -> Vec<Due> {
        let Some(at) = self.gateway.deadline() else {
            return Vec::new();
        };
        if !self.sleeps || at <= self.began + BY_TIMER {
            self.clock.due(Some(at), None)
        } else {
            self.clock.due(None, Some(at))
        }
    }

    fn advance(&mut self, state: &State) {
        let sockets = &self.sockets;
        let heard = |place: SocketId| {
            let socket = sockets.get(place)?.as_ref()?;
            runtime::pinged(state, socket)
        };
        self.gateway.advance(&heard, self.began);
    }

    /// What was saved under a `pid`. Whoever still has it is here no more.
    fn give(&mut self, state: &State, find: &Find) -> Option<String> {
        let gateway = &mut self.gateway;
        gateway.app.evict(&mut gateway.hub, &find.pid, &find.user);
        self.settle(state);
        match self.store.take(&find.pid, &find.user) {
            Ok(record) => record,
            Err(error) => {
                self.log(Entry::error(format!("reading failed: {error}")));
                None
            }
        }
    }

    fn log(&self, entry: Entry) {
        if entry.level >= self.config.log_level {
            let now = now();
            let entry = entry.with("gateway", self.name.as_str());
            let entry = entry.took(now.saturating_sub(self.began));
            worker::console_log!("{}", entry.line(now));
        }
    }

    /// Carries out what is to be done, and what comes of that.
    fn settle(&mut self, state: &State) {
        loop {
            let out = self.gateway.settle(self.began);
            if out.is_empty() {
                return;
            }
            for output in out {
                if let Err(error) = self.run(state, output) {
                    self.log(Entry::error(error.to_string()));
                }
            }
        }
    }

    fn run(&mut self, state: &State, output: Output) -> Result<()> {
        match output {
            Output::Send { socket, frame } => match frame {
                Frame::Text(text) => {
                    self.send(state, socket, &JsString::from(text.as_str()), text.len());
                }
                Frame::Binary(bytes) => self.send_bytes(state, socket, &bytes),
            },
            Output::Broadcast { sockets, text } => {
                let frame = JsString::from(text.as_str());
                for socket in sockets {
                    self.send(state, socket, &frame, text.len());
                }
            }
            Output::Close {
                socket,
                code,
                reason,
            } => {
                if let Some(socket) = self.displace(socket) {
                    runtime::close(&socket, code, reason);
                }
            }
            Output::Attach { socket, record } => self.attach(socket, &record)?,
            Output::Answer { poll, answer } => {
                if let Some(poll) = self.polls.remove(&poll) {
                    // A client that went away needs no answer.
                    let _ = poll.send(answer);
                }
            }
            Output::Forward { room } => self.later.push_back(Later::Forward(room)),
            Output::Save {
                client,
                user,
                gone,
                record,
            } => {
                let gone = gone.then_some(self.began);
                self.store.save(&client, &user, gone, &record)?;
            }
            Output::Forget { client } => self.store.forget(&client)?,
            Output::Reached { key, at: Some(at) } => {
                self.reached.set(&key.into(), &(at as f64).into());
            }
            Output::Reached { key, at: None } => {
                self.reached.delete(&key.into());
            }
            Output::Position { room, at } => self.store.set_position(&room, at)?,
            Output::Find { client, pid, user } => {
                self.later.push_back(Later::Find { client, pid, user });
            }
            Output::Prepare(waiting) => self.later.push_back(Later::Prepare(waiting)),
            Output::Log(entry) => self.log(entry),
        }
        Ok(())
    }

    fn attach(&mut self, place: SocketId, record: &str) -> Result<()> {
        let Some(Some(socket)) = self.sockets.get(place) else {
            return Ok(());
        };
        if record.len() <= MAX_ATTACHMENT {
            return Ok(socket.attach(&JsString::from(record))?);
        }
        let key = fresh_id();
        self.store.spill(&key, record)?;
        Ok(socket.attach(&JsString::from(format!("{SPILLED}{key}").as_str()))?)
    }

    fn send(&mut self, state: &State, place: SocketId, frame: &JsString, bytes: usize) {
        if let Some(Some(socket)) = self.sockets.get(place) {
            let sent = socket.send_string(frame);
            self.sent(state, place, sent.is_ok(), bytes);
        }
    }

    fn send_bytes(&mut self, state: &State, place: SocketId, bytes: &[u8]) {
        if let Some(Some(socket)) = self.sockets.get(place) {
            let sent = socket.send_with_u8_array(bytes);
            self.sent(state, place, sent.is_ok(), bytes.len());
        }
    }

    fn sent(&mut self, state: &State, place: SocketId, sent: bool, bytes: usize) {
        if !sent {
            // Closed under our hands: its close event is on the way.
            self.displace(place);
            self.gateway.hub.closed(place, 1006);
        } else if self.gateway.hub.sent(place, bytes)
            && let Some(Some(socket)) = self.sockets.get(place)
        {
            let heard = runtime::pinged(state, socket);
            self.gateway.hub.judge_slow(place, heard, self.began);
        }
    }
}
