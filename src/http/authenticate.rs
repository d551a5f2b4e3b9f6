//! Authenticates requests by their token or ticket, and checks the origin of the page that
//! sends them.

use super::authorize;
use super::entry::Handler;
use super::problem::Problem;
use crate::runtime::keys::prepare;
use crate::runtime::rpc::revocations::catch_up;
use crate::runtime::rpc::tickets;
use crate::runtime::time::now;
use roomcast_auth::{Credentials, token};
use roomcast_proto::access::{Identity, Rights};
use roomcast_proto::error::{Error, Result as ClientResult};

// In these functions `room` is used for the log record of a refusal. It is empty for routes that
// do not belong to a single room.
impl Handler<'_> {
    /// Authenticates the request by its token.
    ///
    /// # Errors
    ///
    /// Returns a 401 problem if the token is missing or not valid, and a 503 problem if it cannot
    /// be checked.
    pub(super) async fn authenticate(&self, room: &str) -> Result<Identity, Problem> {
        let identity = match token::require(self.token().as_deref()) {
            Ok(token) => self.verify(token).await,
            Err(error) => Err(error),
        };
        identity.map_err(|error| self.reject("auth", room, error))
    }

    /// Authenticates the request for a socket by its token or, if it has none, by its ticket. The
    /// ticket cannot be used again.
    ///
    /// # Errors
    ///
    /// Returns a 401 problem if the request has neither, or if it is not valid.
    pub(super) async fn authenticate_socket(&self, room: &str) -> Result<Identity, Problem> {
        let ticket = match self.token() {
            None => self.query.get("ticket"),
            Some(_) => None,
        };
        let Some(ticket) = ticket else {
            return self.authenticate(room).await;
        };
        let identity = match tickets::redeem(self.env, &self.config.auth.signer, ticket).await {
            Ok(identity) => self.recheck(identity).await,
            Err(error) => Err(error),
        };
        identity.map_err(|error| self.reject("auth", room, error))
    }

    /// Checks the identity of a ticket. The token with which the ticket was requested may have
    /// expired or been revoked since then.
    async fn recheck(&self, identity: Identity) -> ClientResult<Identity> {
        catch_up(self.env, &self.config.auth.revoked).await;
        self.config.auth.recheck(identity, now())
    }

    /// Verifies a token and returns its identity.
    ///
    /// # Errors
    ///
    /// Returns `unauthorized` if the token is not valid, `internal` if no keys could be fetched
    /// yet, and `unavailable` if the list of revocations is missing or too old.
    pub(super) async fn verify(&self, token: &str) -> ClientResult<Identity> {
        prepare(self.env, &self.config, token).await;
        self.config.auth.verify(token, now())
    }

    /// Returns the token of the request, from the first part of it that has one.
    pub(super) fn token(&self) -> Option<String> {
        let (authorization, protocols) = (
            self.header("authorization"),
            self.header("sec-websocket-protocol"),
        );
        let credentials = Credentials {
            authorization: authorization.as_deref(),
            protocols: protocols.as_deref(),
            query: self.query.get("token"),
        };
        credentials.token().map(str::to_owned)
    }

    /// Authenticates the request and checks that it comes from a service with `right` on `room`.
    ///
    /// # Errors
    ///
    /// Returns a 401 or a 403 problem.
    pub(super) async fn authorize_service(
        &self,
        room: &str,
        right: Rights,
    ) -> Result<Identity, Problem> {
        let identity = self.authenticate(room).await?;
        authorize::require_service(&identity, right, &self.config.auth.default_rooms, room)
            .map_err(|error| self.reject("auth", room, error))?;
        Ok(identity)
    }

    /// Returns `true` if pages of this origin may connect, or if there is no origin.
    pub(super) fn is_allowed_origin(&self, origin: Option<&str>) -> bool {
        let allowed = &self.config.worker.allowed_origins;
        allowed.allows(origin, self.host)
    }

    /// Checks that pages of the request's origin may connect.
    ///
    /// # Errors
    ///
    /// Returns a 403 problem if they may not.
    pub(super) fn check_origin(&self, room: &str) -> Result<(), Problem> {
        if self.is_allowed_origin(self.header("origin").as_deref()) {
            return Ok(());
        }
        let error = Error::forbidden("this origin may not connect; see ALLOWED_ORIGINS");
        Err(self.reject("origin", room, error))
    }
}
