//! Sends revocations to the registry.

use super::parse;
use crate::http::entry::Handler;
use crate::http::problem::Problem;
use crate::http::response::{HandlerResult, json_response};
use crate::runtime::rpc::revocations::revoke;
use roomcast_auth::revocation::RevocationTarget;
use roomcast_proto::answer::to_json;
use roomcast_proto::error::Error;
use roomcast_proto::http::Revoked;
use roomcast_proto::log_record::LogRecord;

impl Handler<'_> {
    /// `POST /revoke`.
    pub(in crate::http) async fn revoke(&self) -> HandlerResult {
        let identity = self.authenticate("").await?;
        if !self.config.auth.revoked.is_on() {
            let error = "tokens cannot be revoked, because REVOCATION is false";
            return Err(Problem::new(409, "conflict", error));
        }
        if !identity.is_service_of_all() {
            let error = "a token with role `service` and `admin` on `*` is required";
            return Err(self.reject("auth", "", Error::forbidden(error)));
        }
        let body = self.body().await;
        let (target, until) = body
            .and_then(|body| parse(&body, self.config.auth.default_until(self.now), self.now))
            .map_err(|error| self.reject("malformed", "", error))?;
        let revocation = revoke(self.env, &self.config.auth.revoked, target, until).await?;
        let record = LogRecord::info("revoke").with("by", identity.user.as_str());
        let mut answer = Revoked {
            jti: None,
            revoked_at: revocation.at,
            until: revocation.until,
            user_id: None,
        };
        let record = match &revocation.target {
            RevocationTarget::User(user) => {
                answer.user_id = Some(user);
                record.user(user)
            }
            RevocationTarget::Jti(jti) => {
                answer.jti = Some(jti);
                record.with("jti", jti.as_str())
            }
        };
        self.log(record);
        json_response(200, to_json(&answer).into_bytes())
    }
}
