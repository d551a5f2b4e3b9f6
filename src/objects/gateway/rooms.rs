//! Commands to rooms, and deliveries of rooms.

use super::GatewayObject;
use crate::runtime::Result;
use crate::runtime::deadline::Deadline;
use crate::runtime::failpoint::{self, Point};
use crate::runtime::headers;
use crate::runtime::log::log_error;
use crate::runtime::object_state::last_ping;
use crate::runtime::room_header;
use crate::runtime::rpc::{ROOMS, call};
use roomcast_proto::id::{GatewayName, RoomName};
use roomcast_proto::link::{Push, Pushed, Request as LinkRequest};
use roomcast_proto::retry::REQUEST_DEADLINE;
use std::rc::Rc;
use std::time::Duration;
use worker::{Delay, Error, Response, ResponseBuilder};

impl GatewayObject {
    /// Sends the commands that wait for a room, until there are none.
    pub(super) async fn forward(self: &Rc<Self>, room: &RoomName) -> Result<()> {
        loop {
            while self.with_active(None, |active, _| active.gateway.awaits_turn(room))? {
                Delay::from(Duration::ZERO).await;
            }
            let (gateway, commands) = self.with_active(None, |active, _| {
                let gateway = &mut active.gateway;
                let commands = gateway.take_commands(room);
                (GatewayName::trusted(active.name.as_str()), commands)
            })?;
            let Some(commands) = commands else {
                return Ok(());
            };
            let request = LinkRequest { gateway, commands };
            if let Err(error) = self.send_commands(room, &request).await {
                log_error(error);
                self.with_active(None, |active, _| {
                    let (gateway, commands) = (&mut active.gateway, request.commands);
                    gateway.forward_failed(room, commands);
                })?;
            }
        }
    }

    async fn send_commands(&self, room: &str, request: &LinkRequest) -> Result<()> {
        let name = room_header::encode(room);
        let headers = [(headers::ROOM, &*name), (headers::LINK, "1")];
        let body = Some(serde_json::to_string(request)?.into());
        let _slot = self.host.slots.take().await;
        // Not repeated here: the core knows which commands it sends again.
        let deadline = Some(&Deadline::after(REQUEST_DEADLINE)?);
        let response = call(&self.host.env, ROOMS, room, &headers, body, deadline).await?;
        match response.status() {
            200 => Ok(()),
            status => Err(Error::RustError(format!(
                "a room answered with status {status}"
            ))),
        }
    }

    /// Handles a delivery of a room.
    pub(super) fn handle_delivery(self: &Rc<Self>, name: String, body: &str) -> Result<Response> {
        if failpoint::is_stopped() {
            return Err(Error::RustError("failpoint: stopped".into()));
        }
        let Some((push, texts)) = Push::parse(body) else {
            return Err(Error::RustError("malformed delivery of a room".into()));
        };
        let pushed = self.with_active(Some(name), |active, state| {
            failpoint::panics(Point::GatewayPush);
            let (gateway, now) = (&mut active.gateway, active.began);
            for key in gateway.asked_sockets(&push) {
                let socket = active.sockets.get(key);
                if let Some(at) = socket.and_then(|socket| last_ping(state, socket)) {
                    gateway.server.engine.saw(key, at);
                }
            }
            gateway.handle_push(push, &texts, now)
        })?;
        if pushed == Pushed::default() {
            // The usual answer has no body, because reading one costs the room more than the
            // rest of the answer.
            return Ok(ResponseBuilder::new().with_status(204).empty());
        }
        Ok(ResponseBuilder::new().fixed(serde_json::to_vec(&pushed)?))
    }
}
