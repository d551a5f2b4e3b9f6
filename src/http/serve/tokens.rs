//! What is asked for tokens themselves: a ticket in place of one, that they count
//! no more, and, in development, a new one.

use super::Call;
use super::answer::{Handled, answer_json, answer_problem, failed};
use crate::http::problem::Problem;
use crate::runtime::rpc::revocations::revoke;
use crate::runtime::rpc::tickets;
use roomcast_auth::Credentials;
use roomcast_auth::revocation::RevocationTarget;
use roomcast_proto::error::Error;
use roomcast_proto::log_record::LogRecord;
use serde_json::json;
use worker::ResponseBuilder;

impl Call<'_> {
    /// A ticket for the socket of who shows a token.
    pub(super) async fn ticket(self, host: &str) -> Handled {
        self.check_origin("", host)?;
        if self.method == "OPTIONS" {
            return self.with_cors(ResponseBuilder::new().with_status(204).empty());
        }
        let made = match self.make_ticket().await {
            Ok(made) => made,
            Err(problem) => answer_problem(&problem).map_err(failed)?,
        };
        self.with_cors(made)
    }

    async fn make_ticket(&self) -> Handled {
        let authorization = self.header("authorization");
        let credentials = Credentials {
            authorization: authorization.as_deref(),
            ..Credentials::default()
        };
        let Some(token) = credentials.token() else {
            let error = Error::unauthorized("send a token: Authorization: Bearer");
            return Err(self.reject("auth", "", error));
        };
        let identity = self.verify(token).await;
        let identity = identity.map_err(|error| self.reject("auth", "", error))?;
        let issued = tickets::issue(self.env, identity).await;
        let (ticket, until) = issued.map_err(|error| self.reject("rate", "", error))?;
        let answer = json!({ "ticket": ticket, "expiresAt": roomcast_proto::time::rfc3339(until) });
        answer_json(201, answer.to_string().into_bytes())
    }

    /// Lets tokens count no more.
    pub(super) async fn revoke(self) -> Handled {
        let identity = self.identity("").await?;
        if !self.config.auth.revoked.is_on() {
            return Err(Problem::new(
                409,
                "conflict",
                "tokens cannot be revoked here: REVOCATION is false",
            ));
        }
        if !identity.is_service_of_all() {
            let error = "this needs a token with role `service` and `admin` on `*`";
            return Err(self.reject("auth", "", Error::forbidden(error)));
        }
        let body = self.body().await;
        let (whose, until) = body
            .and_then(|body| crate::http::revoke::parse(&body, self.now))
            .map_err(|error| self.reject("malformed", "", error))?;
        let revocation = revoke(self.env, &self.config.auth.revoked, whose, until).await?;
        let entry = LogRecord::info("revoke").with("by", identity.user.as_str());
        let (entry, mut answer) = match revocation.target {
            RevocationTarget::User(user) => (entry.user(&user), json!({ "userId": user })),
            RevocationTarget::Jti(jti) => (entry.with("jti", jti.as_str()), json!({ "jti": jti })),
        };
        self.log(entry);
        answer["revokedAt"] = revocation.at.into();
        answer["until"] = revocation.until.into();
        answer_json(200, answer.to_string().into_bytes())
    }
}

#[cfg(not(feature = "dev-tokens"))]
pub(super) async fn dev_token(_call: Call<'_>) -> Handled {
    Err(Problem::not_found())
}

/// A token for the demo page. Development builds only, and only with
/// `DEV_TOKENS=true`.
#[cfg(feature = "dev-tokens")]
pub(super) async fn dev_token(call: Call<'_>) -> Handled {
    use roomcast_proto::raw_object::{Field, RawObject, USER, WHOLE};
    use roomcast_proto::time::{DAY, HOUR, SECOND, rfc3339};

    const ROOMS: Field<Vec<String>> = Field {
        expected: "a list of room patterns",
        read: |json| serde_json::from_str(json).ok(),
    };
    if !call.config.worker.dev_tokens {
        return Err(Problem::not_found());
    }
    let body = call.body().await?;
    let object = RawObject::parse(&body, "the body")?;
    let user = object.required("user", USER)?;
    let rooms = object.get("rooms", ROOMS)?;
    let ttl = object.get("ttl", WHOLE)?.map_or(HOUR, |ttl| ttl * SECOND);
    let expires = call.now + ttl.min(DAY);
    let token = call.config.auth.issue(&user, rooms.as_deref(), expires)?;
    let answer = json!({ "token": token, "expiresAt": rfc3339(expires) });
    answer_json(200, answer.to_string().into_bytes())
}
