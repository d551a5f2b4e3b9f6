//! Requests of clients: native sockets, sockets of Engine.IO, and long-polling.

use super::{ActiveGateway, GatewayObject};
use crate::runtime::Result;
use crate::runtime::abort::OnAbort;
use crate::runtime::body::read_body;
use crate::runtime::failpoint::{self, Point};
use crate::runtime::log::log_error;
use crate::runtime::memory::{self, Reservation};
use crate::runtime::rpc::gateways::ClientRequest;
use crate::runtime::rpc::refuse;
use crate::runtime::socket::{ABNORMAL_CLOSURE, Socket};
use futures_channel::oneshot;
use futures_util::future::{Either, select};
use roomcast_gateway::handshake::{Ask, Error as HandshakeError};
use roomcast_gateway::{Answer, EngineServer, PollId, Polled, PostBody, PostLimits, SocketId};
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::error::Error as ClientError;
use roomcast_proto::time::Millis;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use wasm_bindgen::closure::Closure;
use wasm_bindgen::{JsCast, JsValue};
use worker::{Delay, Request, Response, ResponseBuilder, State, WebSocketPair};

/// Completes the error "too many …" for a gateway at the platform's limit of sockets.
const SOCKETS: &str = "sockets at this gateway";

/// Time in milliseconds after which a refused client can try again, probably at another
/// gateway.
const SOCKETS_RETRY: Millis = 1_000;

impl GatewayObject {
    /// Handles a request that the Worker has accepted.
    pub(super) async fn accept(
        self: &Rc<Self>,
        name: String,
        connect: ClientRequest,
        request: Request,
    ) -> Result<Response> {
        let ClientRequest { client, ask, bytes } = connect;
        if matches!(ask, None | Some(Ask::Open | Ask::WebSocket { sid: None })) {
            let admitted = self.with_active(Some(name.clone()), |active, _| {
                // The registry delivers revocations only to registered gateways.
                if active.config.auth.revoked.is_on() {
                    active.registration.cover(Millis::MAX, active.began);
                }
                // The gateway may know revocations that the Worker has not fetched yet.
                if let Some(identity) = &client.identity
                    && active.config.auth.is_revoked(identity, active.began)
                {
                    return Err(ClientError::unauthorized("the token was revoked"));
                }
                memory::admit(active.config.worker.max_object_bytes)?;
                active.gateway.server.engine.admit(&client, active.began)
            })?;
            if let Err(error) = admitted {
                return refuse(&error);
            }
        }
        let answer = match ask {
            None => return self.upgrade(name, |engine, now| Ok(engine.open_native(client, now))),
            Some(Ask::WebSocket { sid }) => {
                return self.upgrade(name, |engine, now| {
                    engine.open_socket(client, sid.as_deref(), now)
                });
            }
            Some(Ask::Open) => self.with_active(Some(name), |active, _| {
                active
                    .gateway
                    .server
                    .engine
                    .open_polling(client, active.began)
            })?,
            Some(Ask::Post { sid }) => {
                let begun = self.with_active(Some(name.clone()), |active, _| {
                    let budget = active.config.worker.max_object_bytes;
                    let is_short = memory::is_short(budget);
                    let engine = &mut active.gateway.server.engine;
                    let limits = engine.begin_post(&sid, bytes, is_short, active.began)?;
                    Ok((limits, Reservation::new(limits.max_bytes)))
                })?;
                match begun {
                    Err(answer) => answer,
                    Ok((limits, reservation)) => {
                        let body = read_post(&request, &limits).await;
                        drop(reservation);
                        self.with_active(Some(name), |active, _| {
                            active.gateway.server.engine.post_read(&limits);
                            active.gateway.server.post(&sid, body, active.began)
                        })?
                    }
                }
            }
            Some(Ask::Poll { sid }) => {
                let (sender, receiver) = oneshot::channel();
                let polled = self.with_active(Some(name), |active, _| {
                    let polled = active.gateway.server.engine.poll(&sid, active.began);
                    if let Polled::Later(poll) = polled {
                        active.polls.insert(poll, sender);
                    }
                    polled
                })?;
                match polled {
                    Polled::Now(answer) => answer,
                    Polled::Later(poll) => {
                        let _on_abort = self.end_when_aborted(&request, poll);
                        // The sender is dropped only if the session ends.
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

    /// Ends the session of a polling request when the client aborts the request.
    fn end_when_aborted(self: &Rc<Self>, request: &Request, poll: PollId) -> OnAbort {
        let object = Rc::downgrade(self);
        OnAbort::new(request.inner(), move || {
            if let Some(object) = object.upgrade()
                && let Err(error) = object.with_active(None, |active, _| {
                    active.polls.remove(&poll);
                    active.gateway.server.engine.cancelled(poll);
                })
            {
                log_error(error);
            }
        })
    }

    /// Accepts a socket.
    fn upgrade(
        self: &Rc<Self>,
        name: String,
        open: impl FnOnce(&mut EngineServer, Millis) -> Result<SocketId, HandshakeError>,
    ) -> Result<Response> {
        self.with_active(Some(name), |active, state| {
            // An object has a maximum number of sockets. So the socket is accepted before the
            // core opens a session on it, because a session without a socket would stay open.
            let pair = WebSocketPair::new()?;
            let socket: Socket = pair.server.as_ref().clone().unchecked_into();
            if let Err(error) = self.accept_socket(active, state, &pair, &socket) {
                log_error(error);
                return refuse(&ClientError::rate_limited(SOCKETS, SOCKETS_RETRY));
            }
            match open(&mut active.gateway.server.engine, active.began) {
                Ok(key) => active.sockets.add(key, socket),
                Err(error) => {
                    socket.close_with(Disconnect::Normal.code(), Disconnect::Normal.reason());
                    let body = error.json().into_bytes();
                    return Ok(ResponseBuilder::new().with_status(400).fixed(body));
                }
            }
            Response::from_websocket(pair.client)
        })?
    }

    fn accept_socket(
        self: &Rc<Self>,
        active: &ActiveGateway,
        state: &State,
        pair: &WebSocketPair,
        socket: &Socket,
    ) -> Result<()> {
        failpoint::fails(Point::GatewayAccept)?;
        if active.hibernates {
            return Ok(state.as_raw().accept_websocket(socket)?);
        }
        pair.server.accept()?;
        self.listen(socket)
    }

    /// Handles the events of a socket that is not hibernatable.
    fn listen(self: &Rc<Self>, socket: &Socket) -> Result<()> {
        socket.set_binary_type(web_sys::BinaryType::Arraybuffer);
        let listen =
            |event: &str, handle: fn(&Rc<GatewayObject>, &Socket, &JsValue) -> Result<()>| {
                let (object, this) = (Rc::downgrade(self), socket.clone());
                let listener = Closure::<dyn FnMut(JsValue)>::new(move |event: JsValue| {
                    if let Some(object) = object.upgrade()
                        && let Err(error) = handle(&object, &this, &event)
                    {
                        log_error(error);
                    }
                });
                let listener = listener.into_js_value();
                socket.add_event_listener_with_callback(event, listener.unchecked_ref())
            };
        listen("message", |object, socket, event| {
            let event: &web_sys::MessageEvent = event.unchecked_ref();
            object.receive(socket, &event.data())
        })?;
        listen("close", |object, socket, event| {
            let code = event.unchecked_ref::<web_sys::CloseEvent>().code();
            socket.answer_close(code);
            object.closed(socket, code)
        })?;
        listen("error", |object, socket, _| {
            object.closed(socket, ABNORMAL_CLOSURE)
        })?;
        Ok(())
    }
}

/// Reads the body of a POST request of long-polling, within its limits.
async fn read_post(request: &Request, limits: &PostLimits) -> PostBody {
    let PostLimits {
        max_bytes, timeout, ..
    } = *limits;
    let reading = pin!(read_body(request.inner().body(), max_bytes, max_bytes));
    let delay = pin!(Delay::from(Duration::from_millis(timeout)));
    match select(reading, delay).await {
        Either::Left((Ok(Some(body)), _)) => PostBody::Complete(body),
        Either::Left((Ok(None), _)) => PostBody::TooLarge,
        Either::Left((Err(_), _)) | Either::Right(_) => PostBody::Incomplete,
    }
}
