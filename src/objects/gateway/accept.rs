//! Who comes: sockets, native and of Engine.IO, and requests of long-polling.

use super::Object;
use crate::objects::refuse;
use crate::runtime::{self, Socket};
use futures_channel::oneshot;
use futures_util::future::{Either, select};
use roomcast_gateway::handshake::{Ask, Error as HandshakeError};
use roomcast_gateway::{
    Answer, ConnectInfo, EngineServer, PollId, Polled, PostBody, PostLimits, SocketId,
};
use roomcast_proto::error::Error as ClientError;
use roomcast_proto::time::Millis;
use serde::{Deserialize, Serialize};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use wasm_bindgen::closure::Closure;
use wasm_bindgen::{JsCast, JsValue};
use worker::{Delay, Error, Request, Response, ResponseBuilder, Result, WebSocketPair};

/// Somebody at the door.
#[derive(Serialize, Deserialize)]
pub struct Visit {
    pub door: ConnectInfo,
    /// `None`: a native socket.
    pub ask: Option<Ask>,
}

impl Object {
    /// Somebody whom the Worker let through.
    pub(super) async fn visit(
        self: &Rc<Self>,
        name: String,
        visit: Visit,
        request: Request,
    ) -> Result<Response> {
        let Visit { door, ask } = visit;
        if matches!(ask, None | Some(Ask::Open | Ask::WebSocket { sid: None })) {
            let admitted = self.act(Some(name.clone()), |live, _| {
                live.be_registered();
                // The Worker that let it through may not have heard of it yet.
                if let Some(identity) = &door.identity
                    && live.config.auth.is_revoked(identity, live.began)
                {
                    return Err(ClientError::unauthorized("the token was revoked"));
                }
                live.gateway.server.engine.admit(&door, live.began)
            })?;
            if let Err(error) = admitted {
                return refuse(&error);
            }
        }
        let answer = match ask {
            None => return self.upgrade(name, |engine, now| Ok(engine.open_native(door, now))),
            Some(Ask::WebSocket { sid }) => {
                return self.upgrade(name, |engine, now| {
                    engine.open_socket(door, sid.as_deref(), now)
                });
            }
            Some(Ask::Open) => self.act(Some(name), |live, _| {
                live.gateway.server.engine.open_polling(door, live.began)
            })?,
            Some(Ask::Post { sid }) => {
                let begun = self.act(Some(name.clone()), |live, _| {
                    live.gateway.server.engine.begin_post(&sid, live.began)
                })?;
                match begun {
                    Err(answer) => answer,
                    Ok(limits) => {
                        let body = read_post(&request, limits).await;
                        self.act(Some(name), |live, _| {
                            live.gateway.server.post(&sid, body, live.began)
                        })?
                    }
                }
            }
            Some(Ask::Poll { sid }) => {
                let (sender, receiver) = oneshot::channel();
                let polled = self.act(Some(name), |live, _| {
                    let polled = live.gateway.server.engine.poll(&sid, live.began);
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
    pub(super) fn watch(self: &Rc<Self>, request: &Request, poll: PollId) -> Closure<dyn FnMut()> {
        let object = Rc::downgrade(self);
        let given_up = Closure::new(move || {
            if let Some(object) = object.upgrade()
                && let Err(error) = object.act(None, |live, _| {
                    live.polls.remove(&poll);
                    live.gateway.server.engine.cancelled(poll);
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

    pub(super) fn upgrade(
        self: &Rc<Self>,
        name: String,
        open: impl FnOnce(&mut EngineServer, Millis) -> std::result::Result<SocketId, HandshakeError>,
    ) -> Result<Response> {
        self.act(Some(name), |live, state| {
            let place = match open(&mut live.gateway.server.engine, live.began) {
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
    pub(super) fn listen(self: &Rc<Self>, socket: &Socket) -> Result<()> {
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
}

/// Reads the body of a POST request of long-polling, within its limits.
async fn read_post(request: &Request, limits: PostLimits) -> PostBody {
    let PostLimits { max_bytes, timeout } = limits;
    let reading = pin!(runtime::read_body(request.inner(), max_bytes, max_bytes));
    let delay = pin!(Delay::from(Duration::from_millis(timeout)));
    match select(reading, delay).await {
        Either::Left((Ok(Some(body)), _)) => PostBody::Complete(body),
        Either::Left((Ok(None), _)) => PostBody::TooLarge,
        Either::Left((Err(_), _)) | Either::Right(_) => PostBody::Incomplete,
    }
}
