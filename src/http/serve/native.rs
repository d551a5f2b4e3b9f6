//! Native WebSockets: to a room, or to a gateway for many rooms.

use super::Call;
use super::answer::{Handled, failed};
use super::objects::{ascii_json, relay};
use crate::http::problem::Problem;
use crate::runtime::headers;
use crate::runtime::ids::fresh_id;
use crate::runtime::rpc::ROOMS;
use crate::runtime::rpc::gateways::GatewayKind;
use roomcast_auth::{Credentials, SUBPROTOCOL};
use roomcast_gateway::{ConnectInfo, Protocol};
use roomcast_proto::access::Rights;
use roomcast_proto::error::Error;
use roomcast_proto::id::ConnectionId;
use roomcast_proto::link::Hello;
use roomcast_proto::status::Status;
use worker::{Headers, Response};

impl Call<'_> {
    /// A WebSocket to a room.
    pub(super) async fn upgrade(&self, room: &str, host: &str) -> Handled {
        if !self.is_upgrade() {
            return Err(Problem::upgrade_required());
        }
        self.check_origin(room, host)?;
        let identity = self.visitor(room).await?;
        let rights = identity.rights(room);
        if !rights.has(Rights::READ) {
            let error = Error::forbidden("the token does not open this room");
            return Err(self.reject("auth", room, error));
        }
        let position = self
            .query
            .position()
            .map_err(|error| self.reject("malformed", room, error))?;
        let hello = Hello {
            connection_id: ConnectionId::trusted(fresh_id()),
            user: identity.user,
            rights,
            expires: identity.expires,
            address: self.header("cf-connecting-ip"),
            position,
            status: Status::Online,
            token: identity.token,
        };
        let hello = ascii_json(&hello).map_err(failed)?;
        let headers = [
            ("upgrade", "websocket"),
            (headers::ROOM, room),
            (headers::CONNECT, &hello),
        ];
        let response = self.object(ROOMS, room, &headers, None).await?;
        if response.status() != 101 {
            return relay(&response).await;
        }
        self.with_subprotocol(response)
    }

    /// A native WebSocket to a gateway.
    pub(super) async fn gateway(&self, host: &str) -> Handled {
        if !self.is_upgrade() {
            return Err(Problem::upgrade_required());
        }
        self.check_origin("", host)?;
        let door = ConnectInfo {
            protocol: Protocol::Native,
            identity: Some(self.visitor("").await?),
            error: None,
            address: self.header("cf-connecting-ip"),
            recovers: false,
        };
        let name = GatewayKind::Native.name(self.any_shard()?);
        let response = self.visit(&name, door, None, None).await?;
        if response.status() != 101 {
            return relay(&response).await;
        }
        self.with_subprotocol(response)
    }

    /// Selects the subprotocol that a client offered.
    fn with_subprotocol(&self, response: web_sys::Response) -> Handled {
        let offered = self.header("sec-websocket-protocol");
        let credentials = Credentials {
            protocols: offered.as_deref(),
            ..Credentials::default()
        };
        if !credentials.offers_subprotocol() {
            return Ok(response);
        }
        // The answer of an object cannot be changed, so it is made again.
        let socket = Response::from(response).websocket();
        let socket = socket.ok_or_else(|| failed("no socket"))?;
        let headers = Headers::new();
        headers
            .set("sec-websocket-protocol", SUBPROTOCOL)
            .map_err(failed)?;
        Ok(Response::from_websocket(socket)
            .map_err(failed)?
            .with_headers(headers)
            .into())
    }
}
