//! `GET /rooms/{room}/ws`: a WebSocket to one room, which the object of the room accepts.

use super::authorize;
use super::entry::Handler;
use super::objects::{escape_non_ascii, relay};
use super::problem::Problem;
use super::response::{HandlerResult, internal};
use crate::runtime::headers;
use crate::runtime::ids::fresh_id;
use crate::runtime::room_header;
use crate::runtime::rpc::ROOMS;
use roomcast_auth::{Credentials, SUBPROTOCOL};
use roomcast_proto::id::ConnectionId;
use roomcast_proto::status::Status;
use roomcast_room::ConnectRequest;
use worker::{Headers, Response};

impl Handler<'_> {
    /// `GET /rooms/{room}/ws`.
    pub(super) async fn connect_to_room(&self, room: &str) -> HandlerResult {
        if !self.is_upgrade() {
            return Err(Problem::upgrade_required());
        }
        self.check_origin(room)?;
        let identity = self.authenticate_socket(room).await?;
        let rights = identity.rights(room);
        authorize::require_read(&identity, rights, &self.config.auth.default_rooms, room)
            .map_err(|error| self.reject("auth", room, error))?;
        let position = self
            .query
            .position()
            .map_err(|error| self.reject("malformed", room, error))?;
        let request = ConnectRequest {
            connection_id: ConnectionId::trusted(fresh_id()),
            user: identity.user,
            rights,
            expires: identity.expires,
            address: self.header("cf-connecting-ip"),
            position,
            status: Status::Online,
            token: identity.token,
            info: identity.info,
            needs_message_ids: false,
        };
        let request = serde_json::to_string(&request).map_err(internal)?;
        let request = escape_non_ascii(&request);
        let name = room_header::encode(room);
        let headers = [
            ("upgrade", "websocket"),
            (headers::ROOM, &name),
            (headers::CONNECT, &request),
        ];
        let response = self.call_object(ROOMS, room, &headers, None).await?;
        self.upgrade_response(response).await
    }

    /// Returns the response to a native upgrade, from the answer of the object.
    pub(super) async fn upgrade_response(&self, answer: web_sys::Response) -> HandlerResult {
        if answer.status() != 101 {
            return relay(&answer).await;
        }
        self.with_subprotocol(answer)
    }

    /// Selects the subprotocol in a response with a socket, if the client offered it. A browser
    /// closes the socket otherwise.
    pub(super) fn with_subprotocol(&self, answer: web_sys::Response) -> HandlerResult {
        let offered = self.header("sec-websocket-protocol");
        let credentials = Credentials {
            protocols: offered.as_deref(),
            ..Credentials::default()
        };
        if !credentials.offers_subprotocol() {
            return Ok(answer);
        }
        // The headers of an object's answer are immutable, so a new response takes its socket.
        let socket = Response::from(answer).websocket();
        let socket = socket.ok_or_else(|| internal("an upgrade without a socket"))?;
        let headers = Headers::new();
        headers
            .set("sec-websocket-protocol", SUBPROTOCOL)
            .map_err(internal)?;
        Ok(Response::from_websocket(socket)
            .map_err(internal)?
            .with_headers(headers)
            .into())
    }
}
