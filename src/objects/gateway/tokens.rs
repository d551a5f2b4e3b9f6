//! Token checks and revocations.

use super::{ActiveGateway, GatewayObject};
use crate::runtime::Result;
use crate::runtime::keys;
use crate::runtime::rpc::revocations::{NoticeAnswer, RegisteredObject, register};
use roomcast_auth::revocation::RevocationDelta;
use roomcast_gateway::{Authentication, Credentials};
use roomcast_proto::time::Millis;
use std::rc::Rc;
use worker::{Error, Response, ResponseBuilder, State};

impl GatewayObject {
    /// Fetches the keys and revocations that a token check requires, then authenticates.
    pub(super) async fn prepare(self: &Rc<Self>, request: Authentication) -> Result<()> {
        let Credentials::Token(token) = &request.credentials else {
            return Ok(());
        };
        let config = self.with_active(None, |active, _| active.config.clone())?;
        keys::prepare(&self.host.env, &config, token).await;
        self.with_active(None, |active, _| active.authenticate(request))
    }

    /// Registers the gateway with the revocation registry.
    pub(super) async fn register(self: Rc<Self>, until: Millis) -> Result<()> {
        let (config, name) = self.with_active(None, |active, _| {
            (active.config.clone(), active.name.clone())
        })?;
        let (revoked, object) = (&config.auth.revoked, RegisteredObject::Gateway(name));
        let registered = register(&self.host.env, revoked, object, until).await;
        self.with_active(None, |active, state| {
            if registered.is_err() {
                active.registration.end();
            }
            let is_registered = active.registration.until() > 0;
            active.store.set_registered(is_registered)?;
            active.close_revoked(state);
            registered
        })?
    }

    /// Handles a notice of the revocation registry.
    pub(super) fn revoke(
        self: &Rc<Self>,
        name: String,
        delta: &RevocationDelta,
    ) -> Result<Response> {
        let has_sockets = self.with_active(Some(name), |active, state| {
            active.config.auth.revoked.learn(&delta.revocations);
            active.close_revoked(state);
            let has_sockets = !active.gateway.server.engine.is_empty();
            if !has_sockets {
                active.registration.end();
                active.store.set_registered(false)?;
            }
            Ok::<_, Error>(has_sockets)
        })??;
        let answer = serde_json::to_vec(&NoticeAnswer { has_sockets })?;
        Ok(ResponseBuilder::new().fixed(answer))
    }
}

impl ActiveGateway {
    /// Closes the connections whose token was revoked.
    fn close_revoked(&mut self, state: &State) {
        let (gateway, now) = (&mut self.gateway, self.began);
        let revoked = &self.config.auth.revoked;
        gateway.close_revoked(&|user, token| revoked.covers(user, token, now));
        self.drain_events(state);
    }

    /// Checks credentials.
    pub(super) fn authenticate(&mut self, request: Authentication) {
        let (auth, now) = (&self.config.auth, self.began);
        let identity = match request.credentials {
            Credentials::Token(token) => auth.verify(&token, now),
            Credentials::Identity(identity) => auth.recheck(*identity, now),
        };
        let gateway = &mut self.gateway;
        gateway.authenticated(request.request, identity, now);
    }
}
