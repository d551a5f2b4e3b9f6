//! Who is at the door, and may they come in: tokens, tickets, and the origins of
//! browsers' pages.

use super::Call;
use crate::http::problem::Problem;
use crate::runtime::keys::prepare;
use crate::runtime::rpc::revocations::catch_up;
use crate::runtime::rpc::tickets;
use roomcast_auth::{Credentials, token};
use roomcast_proto::access::{Identity, Rights};
use roomcast_proto::error::Error;

impl Call<'_> {
    /// Who it is.
    pub(super) async fn identity(&self, room: &str) -> Result<Identity, Problem> {
        let identity = match token::require(self.token_given().as_deref()) {
            Ok(token) => self.verify(token).await,
            Err(error) => Err(error),
        };
        identity.map_err(|error| self.reject("auth", room, error))
    }

    /// Who wants a socket: by a token, or else by a ticket, which then is none
    /// any more.
    pub(super) async fn visitor(&self, room: &str) -> Result<Identity, Problem> {
        let Some(ticket) = self
            .query
            .get("ticket")
            .filter(|_| self.token_given().is_none())
        else {
            return self.identity(room).await;
        };
        let redeemed = match tickets::redeem(self.env, ticket).await {
            Ok(identity) => self.recheck(identity).await,
            Err(error) => Err(error),
        };
        redeemed.map_err(|error| self.reject("auth", room, error))
    }

    /// What may have changed since the token was verified.
    async fn recheck(&self, identity: Identity) -> roomcast_proto::error::Result<Identity> {
        catch_up(self.env, &self.config.auth.revoked).await?;
        self.config.auth.recheck(identity, self.now)
    }

    pub(super) async fn verify(&self, token: &str) -> roomcast_proto::error::Result<Identity> {
        prepare(self.env, &self.config, token).await?;
        self.config.auth.verify(token, self.now)
    }

    /// The token of the request, wherever it stands.
    pub(super) fn token_given(&self) -> Option<String> {
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

    /// A service that has `right` on `room`.
    pub(super) async fn service(&self, room: &str, right: Rights) -> Result<Identity, Problem> {
        let identity = self.identity(room).await?;
        identity
            .require_service(room, right)
            .map_err(|error| self.reject("auth", room, error))?;
        Ok(identity)
    }

    /// Whether a browser's page of this origin may connect.
    pub(super) fn check_origin(&self, room: &str, host: &str) -> Result<(), Problem> {
        let origin = self.header("origin");
        if self
            .config
            .worker
            .allowed_origins
            .allows(origin.as_deref(), host)
        {
            return Ok(());
        }
        let error = Error::forbidden("this origin may not connect; see ALLOWED_ORIGINS");
        Err(self.reject("origin", room, error))
    }
}
