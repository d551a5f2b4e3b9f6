//! `POST /tickets`: issues tickets. With a ticket, a client connects without a token in the
//! URL.

use super::entry::Handler;
use super::response::{HandlerResult, json_response};
use crate::runtime::rpc::tickets;
use roomcast_auth::Credentials;
use roomcast_proto::answer::to_json;
use roomcast_proto::error::Error;
use roomcast_proto::http::Ticket;
use roomcast_proto::time::rfc3339;

impl Handler<'_> {
    /// `POST /tickets`, and the preflight request of browsers.
    pub(super) async fn issue_ticket(&self) -> HandlerResult {
        self.check_origin("")?;
        if self.method == "OPTIONS" {
            return self.preflight();
        }
        self.issue_ticket_to_token().await
    }

    async fn issue_ticket_to_token(&self) -> HandlerResult {
        // Tickets keep tokens out of URLs, so a token in the query does not count.
        let authorization = self.header("authorization");
        let credentials = Credentials {
            authorization: authorization.as_deref(),
            ..Credentials::default()
        };
        let Some(token) = credentials.token() else {
            let error = "a token is required: send Authorization: Bearer <jwt>";
            return Err(self.reject("auth", "", Error::unauthorized(error)));
        };
        let identity = self.verify(token).await;
        let identity = identity.map_err(|error| self.reject("auth", "", error))?;
        let issued = tickets::issue(self.env, &self.config.auth.signer, identity).await;
        let (ticket, until) = issued.map_err(|error| self.reject("rate", "", error))?;
        let answer = Ticket {
            expires_at: &rfc3339(until),
            ticket: &ticket,
        };
        json_response(201, to_json(&answer).into_bytes())
    }
}
