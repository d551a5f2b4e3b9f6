//! The Durable Object of a gateway.
//!
//! An event of the runtime becomes an input of [`roomcast_gateway::Gateway`]. After each
//! input the object carries out all outputs and starts the work that they cause.
//!
//! | file | contents |
//! | --- | --- |
//! | `mod.rs` | the class that the runtime calls, the memory of the object |
//! | `restore.rs` | from storage and sockets to memory |
//! | `accept.rs` | requests of clients: sockets and long-polling |
//! | `effects.rs` | the outputs of the core, frames to sockets |
//! | `work.rs` | work after an event: timers and the alarm, requests to other objects |
//! | `rooms.rs` | commands to rooms, deliveries of rooms |
//! | `find.rs` | records of clients that resume at another gateway |
//! | `tokens.rs` | token checks, revocations |
//! | `attachment.rs` | attachments of sockets |
//! | `store.rs` | SQL |

mod accept;
mod attachment;
mod effects;
mod find;
mod restore;
mod rooms;
mod store;
mod tokens;
mod work;

use crate::config::Config;
use crate::runtime::Result;
use crate::runtime::alarm_clock::AlarmClock;
use crate::runtime::failpoint::{self, Point};
use crate::runtime::headers;
use crate::runtime::host::{Host, JsResult, promise_response};
use crate::runtime::object_state::last_ping;
use crate::runtime::rpc::gateways::{ClientRequest, FindRequest};
use crate::runtime::socket::{ABNORMAL_CLOSURE, Socket, Sockets};
use futures_channel::oneshot;
use js_sys::{Map, Promise, Uint8Array};
use roomcast_auth::registration::Registration;
use roomcast_auth::revocation::RevocationDelta;
use roomcast_gateway::{Answer, Frame, PollId, SocketId};
use roomcast_proto::reader;
use roomcast_proto::time::Millis;
use slotmap::SecondaryMap;
use std::collections::HashMap;
use std::rc::Rc;
use store::ClientStore;
use wasm_bindgen::prelude::*;
use work::Work;
use worker::worker_sys::DurableObjectState;
use worker::{Env, Request, Response};

/// The class of the object. The runtime calls its methods.
#[wasm_bindgen]
pub struct Gateway {
    object: Rc<GatewayObject>,
}

/// The object, which its timers and requests share.
struct GatewayObject {
    host: Host<ActiveGateway>,
}

/// The memory of the object.
struct ActiveGateway {
    config: Rc<Config>,
    name: String,
    gateway: roomcast_gateway::Gateway,
    store: ClientStore,
    sockets: Sockets<SocketId>,
    /// The keys of the attachments that are in storage.
    spills: SecondaryMap<SocketId, String>,
    /// Polling requests that wait for a message.
    polls: HashMap<PollId, oneshot::Sender<Answer>>,
    /// `true` if the sockets are hibernatable, because the gateway can hibernate between
    /// pings. Otherwise hibernatable sockets have no advantage, and workerd 1.20261117 delays
    /// the end of a hibernatable socket that the object closes before the client has sent a
    /// frame.
    hibernates: bool,
    clock: AlarmClock,
    registration: Registration,
    /// Work that the current event has caused.
    work: Vec<Work>,
    /// The time at which the current event began.
    began: Millis,
    /// See [`roomcast_gateway::Output::TrackPosition`]. A JavaScript map survives a panic.
    positions: Map,
}

#[wasm_bindgen]
impl Gateway {
    /// Constructs the object.
    #[wasm_bindgen(constructor)]
    pub fn new(state: DurableObjectState, env: Env) -> Self {
        Gateway {
            object: Rc::new(GatewayObject {
                host: Host::new(state, env),
            }),
        }
    }

    /// Handles a request of the Worker or of another object.
    pub fn fetch(&self, request: web_sys::Request) -> Promise {
        promise_response(handle(Rc::clone(&self.object), request.into()))
    }

    /// Handles the alarm.
    pub fn alarm(&self) -> JsResult {
        self.object.with_active(None, |active, state| {
            failpoint::panics(Point::GatewayAlarm);
            active.clock.alarm_fired();
            active.gateway.alarm_fired(active.began);
            active.advance(state);
        })?;
        Ok(())
    }

    /// Handles a frame of a socket.
    #[wasm_bindgen(js_name = webSocketMessage)]
    pub fn web_socket_message(&self, socket: &Socket, message: &JsValue) -> JsResult {
        Ok(self.object.receive(socket, message)?)
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

async fn handle(object: Rc<GatewayObject>, mut request: Request) -> Result<Response> {
    let headers = request.headers();
    if let Some(name) = headers.get(headers::LINK)? {
        let body = request.text().await?;
        return object.handle_delivery(name, &body);
    }
    let name = headers.get(headers::GATEWAY)?.unwrap_or_default();
    if headers.get(headers::FIND)?.is_some() {
        let find: FindRequest = reader::from_str(&request.text().await?)?;
        return object.handle_find(name, &find);
    }
    if headers.get(headers::BROADCAST)?.is_some() {
        let line = request.text().await?;
        object.with_active(Some(name), |active, _| active.gateway.broadcast(&line))?;
        return Response::empty();
    }
    if headers.get(headers::REVOKED)?.is_some() {
        let delta: RevocationDelta = reader::from_str(&request.text().await?)?;
        return object.revoke(name, &delta);
    }
    let connect = headers.get(headers::GATEWAY_CONNECT)?.unwrap_or_default();
    let connect: ClientRequest = reader::from_str(&connect)?;
    object.accept(name, connect, request).await
}

impl GatewayObject {
    /// Handles a frame of a socket.
    fn receive(self: &Rc<Self>, socket: &Socket, message: &JsValue) -> Result<()> {
        if socket.key::<SocketId>().is_none() && self.host.is_active() {
            // The gateway has closed the socket, but the client still sends.
            return Ok(());
        }
        self.with_active(None, |active, _| {
            let Some(socket) = socket.key() else {
                return;
            };
            let frame = match message.as_string() {
                Some(text) => Frame::Text(text),
                None => Frame::Binary(Uint8Array::new(message).to_vec().into()),
            };
            active.gateway.server.frame(socket, frame, active.began);
            failpoint::panics(Point::GatewayFrame);
        })
    }

    /// Handles the end of a socket.
    fn closed(self: &Rc<Self>, socket: &Socket, code: u16) -> Result<()> {
        self.with_active(None, |active, state| {
            if let Some(key) = socket.key() {
                let pinged = last_ping(state, socket);
                let removed = active.remove_socket(key);
                let engine = &mut active.gateway.server.engine;
                if let Some(pinged) = pinged {
                    engine.saw(key, pinged);
                }
                engine.closed(key, code);
                removed?;
            }
            Ok(())
        })?
    }
}
