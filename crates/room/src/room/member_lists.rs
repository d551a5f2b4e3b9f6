//! Lists of members, for `joinRoom`, `members` and services.

use super::Room;
use crate::history::MAX_PAGE_BYTES;
use crate::member_list::MemberList;
use roomcast_proto::answer::{ListedMember, MemberPage, to_json};
use roomcast_proto::id::UserId;
use roomcast_proto::status::Status;
use roomcast_proto::time::rfc3339;
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// Maximum number of members in the answer to `joinRoom`. After a deploy all clients of a room
/// join again, so the answer must not grow with the room.
const MAX_JOIN_MEMBERS: u64 = 100;

/// Maximum size in bytes of the list in the answer to `joinRoom`. 100 members fit into it if
/// their ids have up to 120 bytes on average.
const MAX_JOIN_BYTES: usize = 16 * 1024;

impl Room {
    /// Returns the list of members for answers to `joinRoom`: first the members who are not
    /// offline, then the others, both ordered by their ids. The list is the same for all
    /// connections that join in the same batch.
    pub(super) fn join_list(&mut self) -> Box<RawValue> {
        let mut list = MemberList::new(MAX_JOIN_MEMBERS, MAX_JOIN_BYTES);
        self.presence.roster.sort();
        self.members.sort();
        let roster = &self.presence.roster;
        let is_online = |user: &UserId| roster.status(user) != Status::Offline;
        let online = roster.present().iter();
        let online = online.filter(|user| is_online(user) && self.members.contains(user));
        let offline = self.members.users_after(None).iter();
        let offline = offline.filter(|user| !is_online(user));
        let _ = online
            .chain(offline)
            .all(|user| list.add(&self.listed(user)));
        raw(list.finish())
    }

    /// Returns the answer to the command `members`.
    pub(super) fn member_page(&mut self, after: Option<&UserId>, limit: u64) -> String {
        let (list, next) = self.list(after, limit, Room::listed);
        to_json(&MemberPage {
            member_count: self.members.len(),
            members: &raw(list),
            more: next.is_some(),
            room_id: &self.name,
        })
    }

    /// Returns a page of the members, or of their presence, for HTTP: the body of the response
    /// and the user id after which the next page starts. It is `None` on the last page.
    pub(super) fn http_list(
        &mut self,
        presence: bool,
        after: Option<&UserId>,
        limit: u64,
    ) -> (String, Option<UserId>) {
        if !presence {
            return self.list(after, limit, |room, user| to_json(&room.member_json(user)));
        }
        let (users, next) = self.list(after, limit, Room::presence_json);
        let body = format!(
            r#"{{"memberCount":{},"more":{},"users":{users}}}"#,
            self.members.len(),
            next.is_some(),
        );
        (body, next)
    }

    /// Returns a list with an item for each member after `after`, and the user id after which
    /// the next page starts.
    fn list(
        &mut self,
        after: Option<&UserId>,
        limit: u64,
        item: fn(&Room, &UserId) -> String,
    ) -> (String, Option<UserId>) {
        self.members.sort();
        let users = self.members.users_after(after);
        let mut list = MemberList::new(limit, MAX_PAGE_BYTES);
        let listed = users.iter().take_while(|user| list.add(&item(self, user)));
        let last = listed.last().cloned();
        let next = last.filter(|_| list.has_more());
        (list.finish(), next)
    }

    fn listed(&self, user: &UserId) -> String {
        to_json(&ListedMember {
            status: self.presence.roster.status(user),
            user_id: user,
        })
    }

    pub(super) fn member_json(&self, user: &UserId) -> Value {
        let member = self.members.get(user);
        member.map_or(Value::Null, |member| {
            member.json(user, self.log.bounds(), &self.config)
        })
    }

    fn presence_json(&self, user: &UserId) -> String {
        let connections = self.presence.roster.connections(user).count();
        let member = self.members.get(user);
        // Connected users have no `lastSeen`.
        let last_seen = member
            .map(|member| member.last_seen)
            .filter(|at| connections == 0 && *at > 0);
        to_json(&json!({
            "userId": user,
            "status": self.presence.roster.status(user),
            "connections": connections,
            "lastSeen": last_seen.map(rfc3339),
        }))
    }
}

/// Returns a list of JSON as a value.
fn raw(list: String) -> Box<RawValue> {
    // The list consists of JSON that was serialised, so it is JSON.
    RawValue::from_string(list).unwrap_or_default()
}
