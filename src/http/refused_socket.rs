//! Sockets that are refused. A browser hides the response to an upgrade from the page, so a page
//! cannot tell an expired token from a rate limit. The Worker therefore accepts the socket of a
//! page, tells the reason, and closes the socket. No object is involved, and nothing is stored.
//!
//! A request comes from a page if it has an `Origin`. Other clients receive the HTTP response.

use super::entry::Handler;
use super::problem::Problem;
use super::response::{HandlerResult, internal};
use super::route::SocketKind;
use crate::runtime::socket::{Socket, upgrade_response};
use roomcast_gateway::handshake::{self, Ask};
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::time::SECOND;
use std::cell::Cell;
use std::time::Duration;
use wasm_bindgen::closure::Closure;
use wasm_bindgen::{JsCast, JsValue};
use worker::{Context, Delay, Error, WebSocketPair};

/// Time in milliseconds for which a refused Socket.IO client may send its CONNECT.
const CONNECT_TIMEOUT: u64 = 10 * SECOND;

/// Maximum number of refused Socket.IO clients that may send their CONNECT, in an isolate. Further
/// clients receive the HTTP response. Each takes about 2 KiB.
const MAX_REFUSED: usize = 500;

thread_local! {
    /// The number of these clients.
    static REFUSED: Cell<usize> = const { Cell::new(0) };
}

impl Handler<'_> {
    /// Refuses a request to the path of a socket. Accepts the socket if the request is an upgrade
    /// of a page of an allowed origin. Otherwise returns the problem.
    pub(super) fn refuse_socket(
        &self,
        kind: SocketKind,
        problem: Problem,
        ctx: &Context,
    ) -> HandlerResult {
        let origin = self.header("origin");
        let is_of_page = origin.is_some() && self.is_allowed_origin(origin.as_deref());
        // The session of a client that upgrades from long-polling goes on.
        let parameters = handshake::Parameters {
            version: self.query.get("EIO"),
            transport: self.query.get("transport"),
            sid: self.query.get("sid"),
        };
        let opens = match kind {
            SocketKind::Native => true,
            SocketKind::SocketIo => {
                let ask = handshake::read(&self.method, parameters, true);
                ask == Ok(Ask::WebSocket { sid: None })
            }
        };
        let is_full = kind == SocketKind::SocketIo && REFUSED.get() >= MAX_REFUSED;
        if !(self.is_upgrade() && self.method == "GET" && is_of_page && opens) || is_full {
            return Err(problem);
        }
        let pair = WebSocketPair::new().map_err(internal)?;
        pair.server.accept().map_err(internal)?;
        let socket: Socket = pair.server.as_ref().clone().unchecked_into();
        match kind {
            SocketKind::Native => close(&socket, &problem),
            SocketKind::SocketIo => self.refuse_connect(socket, problem, ctx)?,
        }
        let response = upgrade_response(pair.client.as_ref()).map_err(internal)?;
        self.with_subprotocol(response)
    }

    /// Opens a session of Engine.IO on a socket, answers the CONNECT of the client with a
    /// CONNECT_ERROR, and closes the socket. The client reports `connect_error`, and does not
    /// connect again by itself.
    fn refuse_connect(
        &self,
        socket: Socket,
        problem: Problem,
        ctx: &Context,
    ) -> Result<(), Problem> {
        let opened = handshake::open_packet("refused", &[], &self.config.gateway);
        let failed = |error: JsValue| internal(Error::from(error));
        socket.send_with_str(&opened).map_err(failed)?;
        let listener = {
            let socket = socket.clone();
            Closure::<dyn FnMut(JsValue)>::new(move |event: JsValue| {
                let event: &web_sys::MessageEvent = event.unchecked_ref();
                let text = event.data().as_string().unwrap_or_default();
                if let Some(nsp) = handshake::namespace_of_connect(&text) {
                    let error = problem.connect_error();
                    // Fails only on a socket that is closed already.
                    let _ = socket.send_with_str(&format!("44{nsp}{error}"));
                }
                close(&socket, &problem);
            })
        };
        socket
            .add_event_listener_with_callback("message", listener.into_js_value().unchecked_ref())
            .map_err(failed)?;
        REFUSED.set(REFUSED.get() + 1);
        ctx.wait_until(async move {
            Delay::from(Duration::from_millis(CONNECT_TIMEOUT)).await;
            let why = Disconnect::NoHandshake;
            socket.close_with(why.code(), why.reason());
            REFUSED.set(REFUSED.get() - 1);
        });
        Ok(())
    }
}

fn close(socket: &Socket, problem: &Problem) {
    socket.close_with(problem.close_code(), &problem.close_reason());
}
