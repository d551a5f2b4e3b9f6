//! Requests between the room and the gateways. What they say is decided by
//! [`roomcast_room::Room`].

use super::{Live, Object};
use crate::runtime::headers;
use crate::runtime::{self, GATEWAYS, now};
use js_sys::JsString;
use roomcast_proto::access::TokenId;
use roomcast_proto::link::{Pushed, Request as LinkRequest};
use roomcast_proto::log_record::LogRecord;
use roomcast_room::Retry;
use std::rc::Rc;
use std::time::Duration;
use worker::{Delay, Error, Request, Response, Result};

/// Delay after an error in the room before pushes to a gateway start again.
const STOPPED: Duration = Duration::from_secs(1);

impl Object {
    /// A request of a gateway for its connections.
    pub(super) async fn link(
        self: &Rc<Self>,
        name: Option<String>,
        mut request: Request,
    ) -> Result<Response> {
        let request: LinkRequest = serde_json::from_str(&request.text().await?)?;
        let full = self.with(name, |live, state| {
            live.age();
            let (gateway, now) = (Rc::from(request.gateway), now());
            let config = live.config.clone();
            let is_revoked =
                |user: &str, token: &TokenId| config.auth.revoked.covers(user, token, now);
            for command in request.commands {
                let mut out = Vec::new();
                live.room
                    .gateway_command(&gateway, command, is_revoked, now, &mut out);
                live.run(state, out);
            }
            live.room.is_full()
        })?;
        self.settle(full)?;
        Response::empty()
    }

    /// Sends a gateway what waits for it, until nothing does.
    pub(super) async fn push(self: &Rc<Self>, gateway: String) -> Result<()> {
        let pushed = self.push_all(&gateway).await;
        if pushed.is_err() {
            let stopped = self.with(None, |live, _| live.room.deliveries_stopped(&gateway));
            // If the room cannot be read, its memory of pushes is lost as well.
            if let Err(error) = stopped {
                runtime::complain(error);
            }
            Delay::from(STOPPED).await;
            self.with(None, |live, _| live.room.probe_gateway(&gateway))?;
            Rc::clone(self).arm();
        }
        pushed
    }

    async fn push_all(self: &Rc<Self>, gateway: &str) -> Result<()> {
        loop {
            let body = self.with(None, |live, _| live.take_push(gateway))?;
            let Some(body) = body else {
                return Ok(());
            };
            let body = JsString::from(body?.as_str());
            // Requests to other objects do not wait for what was stored, as
            // frames do.
            self.state.storage().sync().await?;
            while let Err(error) = self.push_once(gateway, &body).await {
                let retry = self.with(None, |live, state| {
                    let mut out = Vec::new();
                    let retry = live.room.delivery_failed(gateway, now(), &mut out);
                    live.run(state, out);
                    retry
                })?;
                if let Retry::Again(wait) = retry {
                    Delay::from(Duration::from_millis(wait)).await;
                    continue;
                }
                runtime::complain(error);
                if let Retry::Later(wait) = retry {
                    Delay::from(Duration::from_millis(wait)).await;
                    self.with(None, |live, _| live.room.probe_gateway(gateway))?;
                }
                break;
            }
            Rc::clone(self).arm();
        }
    }

    /// Sends a push. Fails if the gateway does not take it.
    async fn push_once(&self, gateway: &str, body: &JsString) -> Result<()> {
        let headers = [(headers::LINK, gateway)];
        let body = Some(body.clone().into());
        let answer = runtime::call(&self.env, GATEWAYS, gateway, &headers, body).await?;
        let pushed = match answer.status() {
            200 => serde_json::from_str(&runtime::read(&answer).await?.1)?,
            204 => Pushed::default(),
            status => return Err(Error::RustError(format!("a gateway answered {status}"))),
        };
        self.with(None, |live, state| {
            let mut out = Vec::new();
            live.room
                .delivery_acknowledged(gateway, &pushed, now(), &mut out);
            live.run(state, out);
        })
    }
}

impl Live {
    /// The next push to a gateway, with what is read of the log for it.
    fn take_push(&mut self, gateway: &str) -> Option<serde_json::Result<String>> {
        while let Some(read) = self.room.next_read(gateway) {
            match self.portion(read.portion.range) {
                Ok((last, text)) => {
                    let text = String::from(text);
                    self.room.log_read(read, last, &text);
                }
                Err(error) => {
                    self.log(LogRecord::error(format!("replay failed: {error}")));
                    // What the connection lacks is found out when the room is read
                    // again.
                    self.broken = true;
                    break;
                }
            }
        }
        self.room.take_delivery(gateway)
    }
}
