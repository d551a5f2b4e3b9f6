//! The routes under `/rooms/{room}`, except for the socket. The Worker authorizes the request and
//! the room answers it.

use super::authorize;
use super::entry::Handler;
use super::response::HandlerResult;
use crate::runtime::ids::fresh_id;
use roomcast_proto::access::Rights;
use roomcast_proto::error::Error;
use roomcast_proto::id::{Epoch, UserId};
use roomcast_proto::name::personal_room_owner;
use roomcast_room::service::Request as ServiceRequest;

impl Handler<'_> {
    /// `GET /rooms/{room}/messages`. Users with `read` may also call it.
    pub(super) async fn messages(&self, room: &str) -> HandlerResult {
        let identity = self.authenticate(room).await?;
        let rights = identity.rights(room).with(identity.service_rights(room));
        authorize::require_read(&identity, rights, &self.config.auth.default_rooms, room)
            .map_err(|error| self.reject("auth", room, error))?;
        let range = self.query.range();
        let range = range.map_err(|error| self.reject("malformed", room, error))?;
        self.forward_to_room(room, &ServiceRequest::Messages(range))
            .await
    }

    /// `GET /rooms/{room}/presence`.
    pub(super) async fn presence(&self, room: &str) -> HandlerResult {
        self.authorize_service(room, Rights::READ).await?;
        self.forward_to_room(room, &ServiceRequest::Presence).await
    }

    /// `GET /rooms/{room}/members`.
    pub(super) async fn members(&self, room: &str) -> HandlerResult {
        self.authorize_service(room, Rights::READ).await?;
        self.forward_to_room(room, &ServiceRequest::Members).await
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
