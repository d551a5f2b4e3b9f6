//! The Durable Object of a room.
//!
//! An event of the runtime becomes an input of [`roomcast_room::Room`], and the object carries
//! out the outputs in order. An output after a change is carried out only when the change is
//! stored. If storing fails, the object answers all waiting senders with `internal` and drops
//! its memory. The next event restores the memory from storage.
//!
//! | file | contents |
//! | --- | --- |
//! | `mod.rs` | the class that the runtime calls, the memory of the object |
//! | `restore.rs` | from storage and sockets to memory |
//! | `accept.rs` | sockets that open and close |
//! | `service.rs` | requests of services |
//! | `tokens.rs` | token checks, revocations |
//! | `batch.rs` | when a batch ends |
//! | `effects.rs` | the outputs of the core; a failure of storage |
//! | `store.rs` | SQL: batches are written here |
//! | `delivery.rs` | frames to sockets |
//! | `replay.rs`, `lines.rs` | texts that are read from the log |
//! | `pages.rs` | answers that are read from the log page by page |
//! | `gateways.rs` | requests from and to gateways |
//! | `timers.rs` | timers, the alarm, and other work after an event |

mod accept;
mod batch;
mod delivery;
mod effects;
mod gateways;
mod lines;
mod pages;
mod replay;
mod restore;
mod service;
mod store;
mod timers;
mod tokens;

use crate::config::Config;
use crate::runtime::alarm_clock::AlarmClock;
use crate::runtime::failpoint::{self, Point};
use crate::runtime::headers;
use crate::runtime::host::{Host, JsResult, promise_response};
use crate::runtime::object_state::last_ping;
use crate::runtime::room_header;
use crate::runtime::socket::{ABNORMAL_CLOSURE, Socket, Sockets};
use crate::runtime::time::now;
use pages::PageQueue;
use replay::PortionCache;
use roomcast_auth::registration::Registration;
use roomcast_proto::reader;
use roomcast_proto::time::Millis;
use roomcast_room::ConnId;
use roomcast_room::batcher::Batcher;
use roomcast_room::{ConnectRequest, Frame};
use service::PendingCalls;
use std::cell::OnceCell;
use std::rc::Rc;
use store::Store;
use tokens::PendingToken;
use wasm_bindgen::closure::Closure;
use wasm_bindgen::prelude::*;
use worker::worker_sys::DurableObjectState;
use worker::{Env, Error, Request};

/// The class of the object. The runtime calls its methods.
#[wasm_bindgen]
pub struct Room {
    object: Rc<RoomObject>,
}

/// The object, which its timers and requests share.
struct RoomObject {
    host: Host<ActiveRoom>,
    /// The callback for the next turn of the event loop. Created once, because its creation
    /// costs more than a call.
    turn: OnceCell<Closure<dyn FnMut()>>,
}

/// The memory of the object.
struct ActiveRoom {
    config: Rc<Config>,
    room: roomcast_room::Room,
    store: Store,
    /// The room's own sockets. Connections at gateways have none.
    sockets: Sockets<ConnId>,
    /// Requests of services that wait for the batch.
    calls: PendingCalls,
    pages: PageQueue,
    portions: PortionCache,
    batcher: Batcher,
    clock: AlarmClock,
    registration: Registration,
    /// Tokens that cannot be checked yet.
    pending_tokens: Vec<PendingToken>,
    /// The time at which the current event began.
    began: Millis,
    /// `true` if storing has failed, so that the memory may differ from storage.
    storage_failed: bool,
}

#[wasm_bindgen]
impl Room {
    /// Constructs the object.
    #[wasm_bindgen(constructor)]
    pub fn new(state: DurableObjectState, env: Env) -> Self {
        Room {
            object: Rc::new(RoomObject {
                host: Host::new(state, env),
                turn: OnceCell::new(),
            }),
        }
    }

    /// Handles a request of the Worker or of another object. Returns a response, or a promise
    /// of one.
    pub fn fetch(&self, request: web_sys::Request) -> JsResult<JsValue> {
        let headers = request.headers();
        let name = headers.get(headers::ROOM)?;
        let name = name.map(|name| room_header::decode(&name));
        if let Some(connect) = headers.get(headers::CONNECT)? {
            let connect: ConnectRequest = reader::from_str(&connect).map_err(Error::from)?;
            return Ok(self.object.accept(name, connect)?.into());
        }
        let is_notice = headers.has(headers::REVOKED)?;
        let is_broadcast = headers.has(headers::BROADCAST)?;
        let is_of_gateway = headers.has(headers::LINK)?;
        let object = Rc::clone(&self.object);
        let answer = promise_response(async move {
            let request = Request::from(request);
            if is_notice {
                object.revoke(name, request).await
            } else if is_broadcast {
                object.broadcast(name, request).await
            } else if is_of_gateway {
                object.handle_gateway(name, request).await
            } else {
                object.handle_service(name, request).await
            }
        });
        Ok(answer.into())
    }

    /// Handles the alarm.
    pub fn alarm(&self) -> JsResult {
        self.object.host.with_active(None, |active, state| {
            failpoint::panics(Point::Alarm);
            active.clock.alarm_fired();
            active.apply_retention();
            let sockets = &active.sockets;
            let last_ping = |conn: ConnId| last_ping(state, sockets.get(conn)?);
            let mut out = Vec::new();
            active.room.handle_alarm(last_ping, now(), &mut out);
            active.run(state, out);
            active.release_if_unused(state);
        })?;
        self.object.start_background_work();
        Ok(())
    }

    /// Handles a frame of a socket.
    #[wasm_bindgen(js_name = webSocketMessage)]
    pub fn web_socket_message(&self, socket: &Socket, message: &JsValue) -> JsResult {
        let received = self.object.host.with_active(None, |active, state| {
            let conn = socket.key()?;
            let text = message.as_string();
            let frame = text.as_deref().map_or(Frame::Binary, Frame::Text);
            let mut out = Vec::new();
            active.room.receive(conn, frame, now(), &mut out);
            failpoint::panics(Point::Frame);
            active.run(state, out);
            Some(())
        })?;
        match received {
            Some(()) => Ok(self.object.continue_batch()?),
            // The room has closed the socket, but the client still sends. The event may have
            // restored the room.
            None => {
                self.object.start_background_work();
                Ok(())
            }
        }
    }

    /// Handles the end of a socket.
    #[wasm_bindgen(js_name = webSocketClose)]
    pub fn web_socket_close(&self, socket: &Socket, code: u16) -> JsResult {
        socket.answer_close(code);
        Ok(self.object.closed(socket, code)?)
    }

    /// Handles the failure of a socket.
    #[wasm_bindgen(js_name = webSocketError)]
    pub fn web_socket_error(&self, socket: &Socket) -> JsResult {
        Ok(self.object.closed(socket, ABNORMAL_CLOSURE)?)
    }
}
