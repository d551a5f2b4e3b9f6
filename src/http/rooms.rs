//! The routes under `/rooms/{room}`, except for the socket. The Worker authorizes the request and
//! the room answers it.

use super::authorize;
use super::entry::Handler;
use super::objects::{encode, relay_text};
use super::response::{HandlerResult, internal, respond};
use crate::runtime::ids::fresh_id;
use roomcast_proto::access::Rights;
use roomcast_proto::error::Error;
use roomcast_proto::id::{Epoch, UserId};
use roomcast_proto::name::personal_room_owner;
use roomcast_proto::raw_object::{RawObject, TEXT, WHOLE};
use roomcast_room::service::Request as ServiceRequest;

/// A part of a room that users may read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Resource {
    Messages,
    Members,
    Presence,
}

impl Handler<'_> {
    /// `GET /rooms/{room}/messages`, `/rooms/{room}/members` and `/rooms/{room}/presence`, and the
    /// preflight requests of browsers. Services and users with `read` may call them.
    pub(super) async fn read(&self, room: &str, resource: Resource) -> HandlerResult {
        self.check_origin(room)?;
        if self.method == "OPTIONS" {
            return self.preflight();
        }
        self.read_authorized(room, resource).await
    }

    async fn read_authorized(&self, room: &str, resource: Resource) -> HandlerResult {
        let identity = self.authenticate(room).await?;
        let rights = identity.rights(room).with(identity.service_rights(room));
        authorize::require_read(&identity, rights, &self.config.auth.default_rooms, room)
            .map_err(|error| self.reject("auth", room, error))?;
        let request = match resource {
            Resource::Messages => self.query.range().map(ServiceRequest::Messages),
            Resource::Members | Resource::Presence => {
                self.query
                    .members()
                    .map(|(after, limit)| ServiceRequest::List {
                        presence: resource == Resource::Presence,
                        after,
                        limit,
                    })
            }
        };
        let request = request.map_err(|error| self.reject("malformed", room, error))?;
        let reader = (!identity.service).then_some(&*identity.user);
        let (status, body) = self.call_room(room, reader, &request).await?;
        match request {
            ServiceRequest::List { limit, .. } if status == 200 => {
                self.list_response(room, limit, &body).map_err(internal)
            }
            _ => relay_text(status, body),
        }
    }

    /// Returns the response with a page of a list, from the answer to [`ServiceRequest::List`].
    fn list_response(
        &self,
        room: &str,
        limit: u64,
        answer: &str,
    ) -> Result<web_sys::Response, worker::Error> {
        let (head, body) = answer.split_once('\n').unwrap_or((answer, ""));
        let head = RawObject::parse(head, "the answer of a room").and_then(|head| {
            Ok((
                head.required("memberCount", WHOLE)?,
                head.get("next", TEXT)?,
            ))
        });
        let (count, next) = head.map_err(|error| error.message)?;
        let count = count.to_string();
        let mut headers = vec![
            ("content-type", "application/json"),
            ("cache-control", "no-store"),
            ("x-total-count", count.as_str()),
        ];
        let link = next.map(|next| {
            let (path, next) = (self.route.replace("{room}", &encode(room)), encode(&next));
            // RFC 8288.
            format!(r#"<{path}?after={next}&limit={limit}>; rel="next""#)
        });
        if let Some(link) = &link {
            headers.push(("link", link));
        }
        respond(200, &headers, body.as_bytes().to_vec())
    }

    /// `PUT` and `DELETE /rooms/{room}/members/{user}`.
    pub(super) async fn change_member(&self, room: &str, user: UserId) -> HandlerResult {
        self.authorize_service(room, Rights::WRITE).await?;
        let request = if self.method == "PUT" {
            if personal_room_owner(room).is_some_and(|owner| owner != &*user) {
                let error = "only its own user can be a member of a personal room";
                return Err(self.reject("auth", room, Error::forbidden(error)));
            }
            ServiceRequest::AddMember { user }
        } else {
            ServiceRequest::RemoveMember { user }
        };
        self.forward_to_room(room, &request).await
    }

    /// `DELETE /rooms/{room}/connections`.
    pub(super) async fn kick(&self, room: &str) -> HandlerResult {
        self.authorize_service(room, Rights::WRITE).await?;
        let user = self.query.user();
        let user = user.map_err(|error| self.reject("malformed", room, error))?;
        self.forward_to_room(room, &ServiceRequest::Kick { user })
            .await
    }

    /// `DELETE /rooms/{room}`.
    pub(super) async fn delete_room(&self, room: &str) -> HandlerResult {
        self.authorize_service(room, Rights::WRITE).await?;
        let epoch = Epoch::trusted(fresh_id());
        self.forward_to_room(room, &ServiceRequest::Delete { epoch })
            .await
    }
}
