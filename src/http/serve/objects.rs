//! Requests to the objects of rooms and gateways, and what becomes of the answers.

use super::Call;
use super::answer::{Handled, answer_json, failed};
use crate::http::problem::Problem;
use crate::runtime::headers;
use crate::runtime::rpc::gateways::ConnectRequest;
use crate::runtime::rpc::{GATEWAYS, ROOMS, call, read};
use roomcast_gateway::ConnectInfo;
use roomcast_gateway::handshake::Ask;
use roomcast_proto::error::Error;
use roomcast_room::service::Request as ServiceRequest;
use wasm_bindgen::JsValue;
use worker::{Headers, Response};

impl Call<'_> {
    /// Lets the room do what a service asks, and relays its answer.
    pub(super) async fn serve(&self, room: &str, request: &ServiceRequest) -> Handled {
        relay(&self.ask(room, request).await?).await
    }

    pub(super) async fn ask(&self, room: &str, request: &ServiceRequest) -> Handled {
        let body = serde_json::to_string(request).map_err(failed)?;
        let headers = [(headers::ROOM, room)];
        self.object(ROOMS, room, &headers, Some(body.into())).await
    }

    /// One of the gateways; any will do.
    pub(super) fn any_shard(&self) -> Result<usize, Problem> {
        let random = getrandom::u32().map_err(failed)? as usize;
        Ok(random % self.config.gateway.shards)
    }

    /// Sends somebody on to a gateway.
    pub(super) async fn visit(
        &self,
        gateway: &str,
        door: ConnectInfo,
        ask: Option<Ask>,
        body: Option<JsValue>,
    ) -> Handled {
        let upgrades = matches!(ask, None | Some(Ask::WebSocket { .. }));
        let visit = ascii_json(&ConnectRequest { client: door, ask }).map_err(failed)?;
        let mut headers = vec![
            (headers::GATEWAY, gateway),
            (headers::GATEWAY_CONNECT, &visit),
        ];
        if upgrades {
            headers.push(("upgrade", "websocket"));
        }
        let response = self.object(GATEWAYS, gateway, &headers, body).await?;
        if upgrades && response.status() != 400 || response.status() >= 500 {
            return Ok(response);
        }
        let headers = Headers::new();
        let kind = match response.status() {
            200 => "text/plain; charset=UTF-8",
            _ => "application/json",
        };
        headers.set("content-type", kind).map_err(failed)?;
        headers.set("cache-control", "no-store").map_err(failed)?;
        Ok(Response::from(response).with_headers(headers).into())
    }

    /// A request to an object.
    pub(super) async fn object(
        &self,
        binding: &str,
        name: &str,
        headers: &[(&str, &str)],
        body: Option<JsValue>,
    ) -> Handled {
        call(self.env, binding, name, headers, body)
            .await
            .map_err(failed)
    }
}

/// An object's answer, its faults made problems.
pub(super) async fn relay(response: &web_sys::Response) -> Handled {
    let (status, body) = read(response).await.map_err(failed)?;
    if status < 400 {
        return answer_json(status, body.into_bytes());
    }
    match serde_json::from_str::<Error>(&body) {
        Ok(error) => Err(error.into()),
        Err(_) => Err(failed("the object failed")),
    }
}

/// JSON in ASCII alone, so that it fits a header.
pub(super) fn ascii_json(what: &impl serde::Serialize) -> serde_json::Result<String> {
    let json = serde_json::to_string(what)?;
    let mut ascii = String::with_capacity(json.len());
    for unit in json.encode_utf16() {
        match u8::try_from(unit) {
            Ok(byte) if byte.is_ascii() => ascii.push(char::from(byte)),
            // Outside ASCII only strings have anything, where this is the same.
            _ => ascii.push_str(&format!("\\u{unit:04x}")),
        }
    }
    Ok(ascii)
}
