//! Token checks and revocations.

use super::{ActiveRoom, RoomObject};
use crate::runtime::Result;
use crate::runtime::keys;
use crate::runtime::rpc::revocations::{NoticeAnswer, RegisteredObject, register};
use crate::runtime::time::now;
use roomcast_auth::revocation::RevocationDelta;
use roomcast_proto::access::TokenId;
use roomcast_proto::id::ConnectionId;
use roomcast_proto::reader;
use roomcast_proto::time::Millis;
use std::rc::Rc;
use worker::{Error, Request, Response, ResponseBuilder, State};

/// The token of a `refreshToken` that cannot be checked before keys or revocations are
/// fetched.
pub(super) struct PendingToken {
    pub(super) connection: ConnectionId,
    pub(super) id: Option<u32>,
    pub(super) token: String,
}

impl RoomObject {
    /// Handles a notice of the revocation registry.
    pub(super) async fn revoke(
        self: &Rc<Self>,
        name: Option<String>,
        mut request: Request,
    ) -> Result<Response> {
        let delta: RevocationDelta = reader::from_str(&request.text().await?)?;
        let has_sockets = self.host.with_active(name, |active, state| {
            active.config.auth.revoked.learn(&delta.revocations);
            let has_sockets = active.close_revoked(state);
            if !has_sockets {
                active.registration.end();
                active.store.set_registered(0)?;
            }
            Ok::<_, Error>(has_sockets)
        })??;
        self.continue_batch()?;
        let answer = serde_json::to_vec(&NoticeAnswer { has_sockets })?;
        Ok(ResponseBuilder::new().fixed(answer))
    }

    /// Registers the room with the revocation registry.
    pub(super) async fn register(self: Rc<Self>, until: Millis) -> Result<()> {
        let (config, name) = self.host.with_active(None, |active, _| {
            (active.config.clone(), active.room.name().clone())
        })?;
        let (revoked, object) = (
            &config.auth.revoked,
            RegisteredObject::Room(name.to_string()),
        );
        let registered = register(&self.host.env, revoked, object, until).await;
        self.host.with_active(None, |active, state| {
            if registered.is_err() {
                active.registration.end();
            }
            active.store.set_registered(active.registration.until())?;
            active.close_revoked(state);
            registered
        })??;
        self.continue_batch()
    }

    /// Fetches the keys and revocations that the check of a token requires, then continues
    /// the command.
    pub(super) async fn prepare(self: Rc<Self>, pending: PendingToken) -> Result<()> {
        let config = self
            .host
            .with_active(None, |active, _| active.config.clone())?;
        keys::prepare(&self.host.env, &config, &pending.token).await;
        self.host.with_active(None, |active, state| {
            active.authenticate(state, pending);
        })?;
        self.continue_batch()
    }
}

impl ActiveRoom {
    /// Checks the token of a `refreshToken`.
    pub(super) fn authenticate(&mut self, state: &State, pending: PendingToken) {
        let now = now();
        let identity = self.config.auth.verify(&pending.token, now);
        let mut out = Vec::new();
        let (connection, id) = (&pending.connection, pending.id);
        self.room
            .authenticated(connection, id, identity, now, &mut out);
        self.run(state, out);
    }

    /// Closes the connections whose token was revoked. Returns `true` if the room still has
    /// sockets.
    pub(super) fn close_revoked(&mut self, state: &State) -> bool {
        let mut out = Vec::new();
        let (now, revoked) = (now(), &self.config.auth.revoked);
        let is_revoked = |user: &str, token: &TokenId| revoked.covers(user, token, now);
        let has_sockets = self.room.close_revoked(is_revoked, now, &mut out);
        self.run(state, out);
        has_sockets
    }
}
