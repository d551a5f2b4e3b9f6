//! Sends an event to the registered rooms and gateways.

use super::parse;
use crate::http::entry::Handler;
use crate::http::problem::Problem;
use crate::http::response::{HandlerResult, json_response};
use crate::runtime::ids::fresh_id;
use crate::runtime::rpc::broadcast::broadcast;
use roomcast_proto::answer::to_json;
use roomcast_proto::envelope::{self, Stamp};
use roomcast_proto::error::Error;
use roomcast_proto::http::Broadcasted;
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::time::rfc3339;

impl Handler<'_> {
    /// `POST /broadcast`.
    pub(in crate::http) async fn broadcast(&self) -> HandlerResult {
        let identity = self.authenticate("").await?;
        if !self.config.auth.revoked.is_on() {
            // The registry of revocations knows the rooms and gateways with connections.
            let error = "events cannot be broadcast, because REVOCATION is false";
            return Err(Problem::new(409, "conflict", error));
        }
        if !identity.is_service_of_all() {
            let error = "a token with role `service` and `admin` on `*` is required";
            return Err(self.reject("auth", "", Error::forbidden(error)));
        }
        let max_bytes = self.config.gateway.limits.max_frame_bytes;
        let body = self.body().await;
        let event = body
            .and_then(|body| parse(&body, max_bytes))
            .map_err(|error| self.reject("malformed", "", error))?;
        let message_id = event.message_id.map_or_else(fresh_id, |id| id.to_string());
        let timestamp = rfc3339(self.now);
        let stamp = Stamp {
            room: "",
            message_id: &message_id,
            sender: &identity.user,
            seq: None,
            timestamp: &timestamp,
            info: identity
                .info
                .as_ref()
                .filter(|_| self.config.room.sender_info),
        };
        let line = envelope::broadcast(&event.event, &event.data, stamp);
        let sent = broadcast(self.env, line).await?;
        let record = LogRecord::info("broadcast")
            .user(&identity.user)
            .with("rooms", sent.rooms)
            .with("gateways", sent.gateways)
            .with("failed", sent.failed);
        self.log(record);
        let answer = Broadcasted {
            failed: sent.failed,
            gateways: sent.gateways,
            message_id: &message_id,
            rooms: sent.rooms,
            timestamp: &timestamp,
        };
        json_response(200, to_json(&answer).into_bytes())
    }
}
