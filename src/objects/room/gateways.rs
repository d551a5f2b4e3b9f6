//! Requests from and to gateways. [`roomcast_room::gateways`] decides what they contain, and
//! when a failed delivery is repeated.

use super::{ActiveRoom, RoomObject};
use crate::runtime::Result;
use crate::runtime::deadline::Deadline;
use crate::runtime::headers;
use crate::runtime::log::log_error;
use crate::runtime::object_state::last_ping;
use crate::runtime::rpc::{CallError, GATEWAYS, call, read};
use crate::runtime::time::now;
use js_sys::JsString;
use roomcast_proto::access::TokenId;
use roomcast_proto::id::GatewayName;
use roomcast_proto::link::{Command, Pushed, Request as LinkRequest};
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::reader;
use roomcast_proto::retry::REQUEST_DEADLINE;
use roomcast_room::{ConnId, NextDelivery, RESTART_DELAY, Retry};
use std::rc::Rc;
use std::time::Duration;
use std::vec::IntoIter;
use worker::{Delay, Error, Request, Response, ResponseBuilder, State};

impl RoomObject {
    /// Handles the request of a gateway: commands of its connections.
    pub(super) async fn handle_gateway(
        self: &Rc<Self>,
        name: Option<String>,
        mut request: Request,
    ) -> Result<Response> {
        let request: LinkRequest = reader::from_str(&request.text().await?)?;
        let LinkRequest { gateway, commands } = request;
        let accepted = self.host.with_active(name, |active, _| {
            let accepts = active.room.accepts_request(&gateway);
            if accepts {
                active.apply_retention();
            }
            accepts
        })?;
        if !accepted {
            self.continue_batch()?;
            return Ok(ResponseBuilder::new().with_status(503).empty());
        }
        let mut commands = commands.into_iter();
        // After a failure of storage, the room is restored for the rest of the commands.
        while commands.len() > 0 {
            self.host.with_active(None, |active, state| {
                active.execute_commands(state, &gateway, &mut commands);
            })?;
        }
        self.continue_batch()?;
        Response::empty()
    }

    /// Sends deliveries to a gateway until its outbox is empty.
    pub(super) async fn deliver_to_gateway(self: &Rc<Self>, gateway: GatewayName) -> Result<()> {
        let delivered = self.empty_outbox(&gateway).await;
        if delivered.is_err() {
            let stopped = self
                .host
                .with_active(None, |active, _| active.room.deliveries_stopped(&gateway));
            // If the room cannot be restored, its outboxes are lost as well.
            if let Err(error) = stopped {
                log_error(error);
            }
            Delay::from(Duration::from_millis(RESTART_DELAY)).await;
            self.host
                .with_active(None, |active, _| active.room.probe_gateway(&gateway))?;
            self.start_background_work();
        }
        delivered
    }

    async fn empty_outbox(self: &Rc<Self>, gateway: &GatewayName) -> Result<()> {
        loop {
            let delivery = self
                .host
                .with_active(None, |active, _| active.take_delivery(gateway))?;
            let Some(NextDelivery { body, has_more }) = delivery else {
                return Ok(());
            };
            let body = JsString::from(body?.as_str());
            // Unlike frames, requests to other objects do not wait for the commit.
            self.host.state.storage().sync().await?;
            while let Err(error) = self.send_delivery(gateway, &body).await {
                let random = getrandom::u32().unwrap_or_default();
                let retry = self.host.with_active(None, |active, _| {
                    let room = &mut active.room;
                    room.delivery_failed(gateway, error.failure, random, now())
                })?;
                match retry {
                    Retry::Again(delay) => Delay::from(Duration::from_millis(delay)).await,
                    Retry::Later => {
                        log_error(error);
                        // Sets the alarm for the next attempt.
                        self.start_background_work();
                        return Ok(());
                    }
                }
            }
            self.start_background_work();
            if has_more {
                // A turn of the event loop, in which other events are handled: a request to an
                // object on the same machine needs none.
                Delay::from(Duration::ZERO).await;
            }
        }
    }

    /// Sends a delivery. Fails if the gateway does not accept it.
    async fn send_delivery(&self, gateway: &GatewayName, body: &JsString) -> Result<(), CallError> {
        let headers = [(headers::LINK, gateway.as_str())];
        let body = Some(body.clone().into());
        let slot = self.host.slots.take().await;
        let deadline = Deadline::after(REQUEST_DEADLINE)?;
        let env = &self.host.env;
        let answer = call(env, GATEWAYS, gateway, &headers, body, Some(&deadline)).await?;
        let pushed = match answer.status() {
            200 => reader::from_str(&read(&answer, Some(&deadline)).await?.1)?,
            204 => Pushed::default(),
            status => {
                let error = format!("gateway {gateway} answered with status {status}");
                return Err(Error::RustError(error).into());
            }
        };
        drop((deadline, slot));
        self.host.with_active(None, |active, state| {
            let mut out = Vec::new();
            active
                .room
                .delivery_acknowledged(gateway, &pushed, now(), &mut out);
            active.run(state, out);
        })?;
        Ok(())
    }
}

impl ActiveRoom {
    /// Executes commands of a gateway until storing fails. The memory must not be used after
    /// that.
    fn execute_commands(
        &mut self,
        state: &State,
        gateway: &GatewayName,
        commands: &mut IntoIter<Command>,
    ) {
        let now = now();
        let config = self.config.clone();
        let is_revoked = |user: &str, token: &TokenId| config.auth.revoked.covers(user, token, now);
        for command in commands {
            let mut out = Vec::new();
            let (room, sockets) = (&mut self.room, &self.sockets);
            let last_ping = |conn: ConnId| last_ping(state, sockets.get(conn)?);
            room.gateway_command(gateway, command, is_revoked, last_ping, now, &mut out);
            self.run(state, out);
            if self.storage_failed {
                break;
            }
        }
    }

    /// Returns the next delivery to a gateway, after reading the log for its connections that
    /// catch up.
    fn take_delivery(&mut self, gateway: &GatewayName) -> Option<NextDelivery> {
        while let Some(read) = self.room.next_read(gateway) {
            match self.portions.portion(&self.store, read.portion.range) {
                Ok((last, text)) => {
                    let text = String::from(text);
                    self.room.log_read(read, last, &text);
                }
                Err(error) => {
                    self.log(LogRecord::error(format!("replay failed: {error}")));
                    // The restored room starts the catch-up again.
                    self.storage_failed = true;
                    break;
                }
            }
        }
        self.room.take_delivery(gateway)
    }
}
