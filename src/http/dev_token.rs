//! `POST /dev/token`: signs tokens for the demo page. In development builds only, and only with
//! `DEV_TOKENS=true`.

use super::entry::Handler;
use super::problem::Problem;
use super::response::{HandlerResult, json_response};
use roomcast_proto::raw_object::{Field, RawObject, USER, WHOLE};
use roomcast_proto::time::{DAY, HOUR, SECOND, rfc3339};
use roomcast_proto::user_info::UserInfo;
use serde_json::json;

const ROOMS: Field<Vec<String>> = Field {
    expected: "a list of room patterns",
    read: |json| serde_json::from_str(json).ok(),
};

const INFO: Field<UserInfo> = Field {
    expected: "a JSON object of at most 1024 bytes",
    read: UserInfo::parse,
};

impl Handler<'_> {
    /// `POST /dev/token { user, info?, rooms?, ttl? }`. `ttl` is in seconds: an hour by default, a day at
    /// most.
    pub(super) async fn issue_dev_token(&self) -> HandlerResult {
        if !self.config.worker.dev_tokens {
            return Err(Problem::not_found());
        }
        let body = self.body().await?;
        let object = RawObject::parse(&body, "the body")?;
        let user = object.required("user", USER)?;
        let info = object.get("info", INFO)?;
        let rooms = object.get("rooms", ROOMS)?;
        let ttl = object.get("ttl", WHOLE)?.map_or(HOUR, |ttl| ttl * SECOND);
        let expires = self.now + ttl.min(DAY);
        let auth = &self.config.auth;
        let token = auth.issue(&user, info.as_ref(), rooms.as_deref(), expires)?;
        let answer = json!({ "token": token, "expiresAt": rfc3339(expires) });
        json_response(200, answer.to_string().into_bytes())
    }
}
