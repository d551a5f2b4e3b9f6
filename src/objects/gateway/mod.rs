//! The Durable Object of a gateway: what the runtime calls, and when what is done.
//! `restore` builds it, `accept` lets in who comes, `effects` carries out what the
//! gateway decides, `rpc` is for what other objects have to do with it.

mod accept;
mod effects;
mod restore;
mod rpc;
mod store;

pub use accept::Visit;

use crate::config::Config;
use crate::runtime::alarm_clock::{self, AlarmClock, Due};
use crate::runtime::failpoint::{self, Point};
use crate::runtime::headers;
use crate::runtime::{self, Socket, now};
use futures_channel::oneshot;
use js_sys::{Map, Uint8Array};
use roomcast_auth::revocation::RevocationDelta;
use roomcast_gateway::Authentication;
use roomcast_gateway::{Answer, ClientId, Frame, PollId, SocketId};
use roomcast_proto::time::Millis;
use rpc::Find;
use slotmap::SecondaryMap;
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;
use store::ClientStore;
use wasm_bindgen::prelude::*;
use worker::{Delay, DurableObject, Env, Request, Response, Result, State, durable_object};

/// What is due within this time is seen to by a timer, which keeps the gateway
/// awake, what is later by the alarm, which costs a row.
const BY_TIMER: Millis = 1_500;

/// What the names of gateways for native sockets begin with: the runtime answers
/// one kind of ping an object.
pub const NATIVE: &str = "n";

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
    gateway: roomcast_gateway::Gateway,
    store: ClientStore,
    sockets: SecondaryMap<SocketId, Socket>,
    polls: HashMap<PollId, oneshot::Sender<Answer>>,
    /// Whether it can sleep between pings. One that cannot has nothing of
    /// hibernatable sockets; and workerd 1.20261117 ends the connection of such
    /// a one only when its object sleeps, if the object closes it before it has
    /// said anything.
    sleeps: bool,
    clock: AlarmClock,
    /// Whether the registry of revocations knows that there are sockets here.
    registered: bool,
    /// What cannot be done at once.
    later: VecDeque<Later>,
    began: Millis,
    /// See [`Output::TrackPosition`]: kept by JavaScript, whose memory outlives a panic.
    reached: Map,
}

enum Later {
    Forward(String),
    Find {
        client: ClientId,
        pid: String,
        user: String,
    },
    Authenticate(Authentication),
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
        if let Some(name) = headers.get(headers::LINK)? {
            let body = request.text().await?;
            return self.object.pushed(name, &body);
        }
        let name = headers.get(headers::GATEWAY)?.unwrap_or_default();
        if headers.get(headers::FIND)?.is_some() {
            let find: Find = serde_json::from_slice(&request.bytes().await?)?;
            return self.object.asked(name, &find);
        }
        if headers.get(headers::REVOKED)?.is_some() {
            let news: RevocationDelta = serde_json::from_slice(&request.bytes().await?)?;
            return self.object.revoked(name, &news);
        }
        let visit = headers.get(headers::GATEWAY_CONNECT)?.unwrap_or_default();
        let visit: Visit = serde_json::from_str(&visit)?;
        self.object.visit(name, visit, request).await
    }

    async fn alarm(&self) -> Result<Response> {
        let asleep = self.object.live.borrow().is_none();
        self.object.act(None, |live, state| {
            failpoint::panics(Point::GatewayAlarm);
            live.clock.alarm_rang();
            if asleep {
                live.gateway.woken_by_alarm(live.began);
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
            live.gateway.server.engine.set_now(live.began);
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
        if socket.place::<SocketId>().is_none() && self.live.borrow().is_some() {
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
            live.gateway.server.frame(place, frame, live.began);
            failpoint::panics(Point::GatewayFrame);
        })
    }

    fn gone(self: &Rc<Self>, socket: &Socket, code: u16) -> Result<()> {
        self.act(None, |live, _| {
            if let Some(place) = socket.place() {
                live.displace(place);
                live.gateway.server.engine.closed(place, code);
            }
        })
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
            Due::Alarm(at) => alarm_clock::set_alarm(&self.state, at).await,
            Due::AskAlarm => {
                let set = alarm_clock::alarm(&self.state).await?;
                self.act(None, |live, _| live.clock.alarm_is(set))
            }
        }
    }
}

impl Live {
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
            let socket = sockets.get(place)?;
            runtime::pinged(state, socket)
        };
        self.gateway.advance(&heard, self.began);
    }
}
