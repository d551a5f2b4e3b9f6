//! What is asked of one room: its messages, who is there, who is a member, and
//! that somebody or everything goes. Judged here, answered by the room.

use super::Call;
use super::answer::Handled;
use crate::runtime::ids::fresh_id;
use roomcast_proto::access::Rights;
use roomcast_proto::error::Error;
use roomcast_proto::id::{Epoch, UserId};
use roomcast_room::service::Request as ServiceRequest;

impl Call<'_> {
    /// For whoever may read the room, not for services alone.
    pub(super) async fn messages(&self, room: &str) -> Handled {
        let identity = self.identity(room).await?;
        let rights = identity.rights(room).with(identity.service_rights(room));
        if !rights.has(Rights::READ) {
            let error = Error::forbidden("the token does not open this room");
            return Err(self.reject("auth", room, error));
        }
        let range = self.query.range();
        let range = range.map_err(|error| self.reject("malformed", room, error))?;
        self.serve(room, &ServiceRequest::Messages(range)).await
    }

    pub(super) async fn presence(&self, room: &str) -> Handled {
        self.service(room, Rights::READ).await?;
        self.serve(room, &ServiceRequest::Presence).await
    }

    pub(super) async fn members(&self, room: &str) -> Handled {
        self.service(room, Rights::READ).await?;
        self.serve(room, &ServiceRequest::Members).await
    }

    pub(super) async fn member(&self, room: &str, user: String) -> Handled {
        self.service(room, Rights::WRITE).await?;
        let user = UserId::trusted(user);
        let request = if self.method == "PUT" {
            if roomcast_proto::name::personal_room_owner(room).is_some_and(|owner| *owner != *user)
            {
                let error = Error::forbidden("a personal room has its own user alone");
                return Err(self.reject("auth", room, error));
            }
            ServiceRequest::AddMember { user }
        } else {
            ServiceRequest::RemoveMember { user }
        };
        self.serve(room, &request).await
    }

    pub(super) async fn kick(&self, room: &str) -> Handled {
        self.service(room, Rights::WRITE).await?;
        let user = self.query.user();
        let user = user.map_err(|error| self.reject("malformed", room, error))?;
        let user = UserId::trusted(user);
        self.serve(room, &ServiceRequest::Kick { user }).await
    }

    pub(super) async fn delete(&self, room: &str) -> Handled {
        self.service(room, Rights::WRITE).await?;
        let epoch = Epoch::trusted(fresh_id());
        self.serve(room, &ServiceRequest::Delete { epoch }).await
    }
}
