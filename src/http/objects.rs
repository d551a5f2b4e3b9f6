//! Requests to the objects of rooms and gateways, and their answers.

use super::entry::Handler;
use super::problem::Problem;
use super::response::{HandlerResult, internal, json_response};
use crate::runtime::headers;
use crate::runtime::room_header;
use crate::runtime::rpc::gateways::ClientRequest;
use crate::runtime::rpc::{CallError, GATEWAYS, ROOMS, Repeat, ask, call, read};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use roomcast_gateway::ConnectInfo;
use roomcast_gateway::handshake::Ask;
use roomcast_proto::error::Error;
use roomcast_proto::reader;
use roomcast_room::service::Request as ServiceRequest;
use wasm_bindgen::JsValue;
use worker::{Delay, Headers, Response};

impl Handler<'_> {
    /// Sends a request of a service to a room and responds with the room's answer.
    pub(super) async fn forward_to_room(
        &self,
        room: &str,
        request: &ServiceRequest,
    ) -> HandlerResult {
        let (status, body) = self.call_room(room, None, request).await?;
        relay_text(status, body)
    }

    /// Sends a request of a service to a room and returns the status and the text of the room's
    /// answer. Repeats an idempotent request after a transient failure. `reader` is the user who
    /// reads, for the limit of the room; `None` for a service.
    ///
    /// # Errors
    ///
    /// Returns `rateLimited` if the room is overloaded, and `internal` if it fails.
    pub(super) async fn call_room(
        &self,
        room: &str,
        reader: Option<&str>,
        request: &ServiceRequest,
    ) -> Result<(u16, String), Error> {
        let body = serde_json::to_string(request)
            .map_err(|error| CallError::from(error).into_client_error())?;
        let reader = reader.map(encode);
        let name = room_header::encode(room);
        let mut headers = vec![(headers::ROOM, &*name)];
        if let Some(reader) = &reader {
            headers.push((headers::READER, reader));
        }
        let repeat = match request.is_idempotent() {
            true => Repeat::IfTransient,
            false => Repeat::Never,
        };
        ask(self.env, ROOMS, room, &headers, body, repeat)
            .await
            .map_err(CallError::into_client_error)
    }

    /// Returns the number of a random gateway, for a new connection.
    pub(super) fn random_shard(&self) -> Result<usize, Problem> {
        let random = getrandom::u32().map_err(internal)? as usize;
        Ok(random % self.config.gateway.shards)
    }

    /// Sends the request of a client to a gateway. `ask` is its Engine.IO request, or `None` for
    /// a native socket. `body` is the body of an Engine.IO POST.
    pub(super) async fn connect_to_gateway(
        &self,
        gateway: &str,
        client: ConnectInfo,
        ask: Option<Ask>,
        body: Option<JsValue>,
    ) -> HandlerResult {
        let upgrades = matches!(ask, None | Some(Ask::WebSocket { .. }));
        let bytes = self.header("content-length");
        let bytes = bytes.and_then(|bytes| bytes.parse().ok());
        let request = ClientRequest { client, ask, bytes };
        let connect = serde_json::to_string(&request).map_err(internal)?;
        let connect = escape_non_ascii(&connect);
        let mut headers = vec![
            (headers::GATEWAY, gateway),
            (headers::GATEWAY_CONNECT, &connect),
        ];
        if upgrades {
            headers.push(("upgrade", "websocket"));
        }
        let response = self.call_object(GATEWAYS, gateway, &headers, body).await?;
        if upgrades && response.status() != 400 || response.status() >= 500 {
            return Ok(response);
        }
        let headers = Headers::new();
        let content_type = match response.status() {
            200 => "text/plain; charset=UTF-8",
            _ => "application/json",
        };
        headers
            .set("content-type", content_type)
            .map_err(internal)?;
        headers.set("cache-control", "no-store").map_err(internal)?;
        Ok(Response::from(response).with_headers(headers).into())
    }

    /// Sends the request of a client to an object and returns its answer. Repeats a request
    /// without a body once after a transient failure, because the client has received nothing.
    /// Does not limit the time: see [`call`].
    pub(super) async fn call_object(
        &self,
        binding: &str,
        name: &str,
        headers: &[(&str, &str)],
        body: Option<JsValue>,
    ) -> HandlerResult {
        let has_body = body.is_some();
        let send = |body| call(self.env, binding, name, headers, body, None);
        let mut answer = send(body).await;
        if !has_body
            && let Err(error) = &answer
            && let Some(delay) = error.retry_delay(1)
        {
            Delay::from(delay).await;
            answer = send(None).await;
        }
        answer.map_err(|error| error.into_client_error().into())
    }
}

/// Responds with the answer of an object. An error of the object becomes a problem.
pub(super) async fn relay(answer: &web_sys::Response) -> HandlerResult {
    let (status, body) = read(answer, None).await.map_err(internal)?;
    relay_text(status, body)
}

/// The characters that [`encode`] encodes: all but the unreserved ones (RFC 3986, 2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Percent-encodes a user id or the name of a room, for a header or a URL.
pub(super) fn encode(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// Does the same as [`relay`], with the status and the text of the answer.
pub(super) fn relay_text(status: u16, body: String) -> HandlerResult {
    if status < 400 {
        return json_response(status, body.into_bytes());
    }
    match reader::from_str::<Error>(&body) {
        Ok(error) => Err(error.into()),
        Err(_) => Err(internal(format!("an object answered with status {status}"))),
    }
}

/// Returns the same JSON with only ASCII characters, because headers cannot carry others.
pub(super) fn escape_non_ascii(json: &str) -> String {
    let mut ascii = String::with_capacity(json.len());
    for unit in json.encode_utf16() {
        match u8::try_from(unit) {
            Ok(byte) if byte.is_ascii() => ascii.push(char::from(byte)),
            // Only strings contain such characters, and there the escape means the same
            // (RFC 8259, 7).
            _ => ascii.push_str(&format!("\\u{unit:04x}")),
        }
    }
    ascii
}
