//! Lists of members, for `joinRoom`, `members` and services.

use super::Room;
use crate::history::MAX_PAGE_BYTES;
use crate::member_list::MemberList;
use roomcast_proto::answer::{ListedMember, MemberPage, to_json};
use roomcast_proto::http::UserPresence;
use roomcast_proto::id::UserId;
use roomcast_proto::status::Status;
use roomcast_proto::time::rfc3339;
use roomcast_proto::user_info::UserInfo;
use serde_json::value::RawValue;

/// Maximum number of members in the answer to `joinRoom`. After a deploy all clients of a room
/// join again, so the answer must not grow with the room.
const MAX_JOIN_MEMBERS: u64 = 100;

/// Maximum size in bytes of the list in the answer to `joinRoom`. 100 members fit into it if
/// their ids have up to 120 bytes on average.
const MAX_JOIN_BYTES: usize = 16 * 1024;

/// Maximum number of members whose profiles are read from storage at once. Together they have at
/// most about 256 KiB, as much as a page.
const PROFILES_AT_ONCE: usize = 250;

impl Room {
    /// Returns the list of members for answers to `joinRoom`: first the members who are not
    /// offline, then the others, both ordered by their ids. The list is the same for all
    /// connections that join in the same batch.
    pub(super) fn join_list(&mut self) -> Box<RawValue> {
        let mut list = MemberList::new(MAX_JOIN_MEMBERS, MAX_JOIN_BYTES);
        self.load_profiles();
        self.presence.roster.sort();
        self.members.sort();
        let roster = &self.presence.roster;
        let is_online = |user: &UserId| roster.status(user) != Status::Offline;
        let online = roster.present().iter();
        let online = online.filter(|user| is_online(user) && self.members.contains(user));
        let offline = self.members.users_after(None).iter();
        let offline = offline.filter(|user| !is_online(user));
        let users: Vec<UserId> = online
            .chain(offline)
            .take(MAX_JOIN_MEMBERS as usize)
            .cloned()
            .collect();
        let mut infos = self.profiles_of(&users);
        let _ = users
            .iter()
            .all(|user| list.add(&self.listed(user, infos.remove(user))));
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
            return self.list(after, limit, Room::member_json_with);
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
        item: fn(&Room, &UserId, Option<UserInfo>) -> String,
    ) -> (String, Option<UserId>) {
        self.load_profiles();
        self.members.sort();
        let users = self.members.users_after(after);
        let mut list = MemberList::new(limit, MAX_PAGE_BYTES);
        let mut last = None;
        for users in users.chunks(PROFILES_AT_ONCE) {
            let mut infos = self.profiles_of(users);
            let listed = users
                .iter()
                .take_while(|user| list.add(&item(self, user, infos.remove(*user))));
            last = listed.last().cloned().or(last);
            if list.has_more() {
                break;
            }
        }
        let next = last.filter(|_| list.has_more());
        (list.finish(), next)
    }

    fn listed(&self, user: &UserId, info: Option<UserInfo>) -> String {
        to_json(&ListedMember {
            info,
            status: self.presence.roster.status(user),
            user_id: user,
        })
    }

    /// Returns a member as JSON, with its profile.
    pub(super) fn member_json(&mut self, user: &UserId) -> String {
        self.load_profiles();
        let mut infos = self.profiles_of(std::slice::from_ref(user));
        self.member_json_with(user, infos.remove(user))
    }

    fn member_json_with(&self, user: &UserId, info: Option<UserInfo>) -> String {
        let member = self.members.get(user);
        member.map_or("null".to_owned(), |member| {
            member.json(user, info, self.log.bounds(), &self.config)
        })
    }

    fn presence_json(&self, user: &UserId, info: Option<UserInfo>) -> String {
        let connections = self.presence.roster.connections(user).count();
        let member = self.members.get(user);
        // Connected users have no `lastSeen`.
        let last_seen = member
            .map(|member| member.last_seen)
            .filter(|at| connections == 0 && *at > 0);
        to_json(&UserPresence {
            connections,
            info,
            last_seen: last_seen.map(rfc3339),
            status: self.presence.roster.status(user),
            user_id: user,
        })
    }
}

/// Returns a list of JSON as a value.
fn raw(list: String) -> Box<RawValue> {
    // The list consists of JSON that was serialised, so it is JSON.
    RawValue::from_string(list).unwrap_or_default()
}
