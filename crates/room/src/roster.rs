//! The presence of each user: connections, status, typing indicator.

use crate::ids::ConnId;
use crate::user_order::UserOrder;
use roomcast_proto::id::UserId;
use roomcast_proto::status::Status;
use roomcast_proto::time::{Millis, sooner};
use roomcast_proto::user_info::UserInfo;
use std::collections::HashMap;

/// A connection of a user and the status that it has set.
#[derive(Debug)]
struct UserConnection {
    conn: ConnId,
    status: Status,
}

/// The presence of a user with connections or within its grace period.
#[derive(Debug, Default)]
struct UserPresence {
    /// The connections in the order in which they joined.
    connections: Vec<UserConnection>,
    /// The status that was announced last.
    announced: Option<Status>,
    /// The user had a status that was not announced. Users who joined meanwhile were shown
    /// it, so the next status is announced even if it is the announced one.
    was_shown: bool,
    /// The end of the grace period after the last connection closed, and the status that the
    /// user keeps until then.
    grace: Option<(Millis, Status)>,
    /// The time at which the typing indicator expires.
    typing_until: Option<Millis>,
    /// The profile of the user. `None` until it is known, after hibernation.
    info: Option<Option<UserInfo>>,
}

impl UserPresence {
    /// Returns the most available status of the connections.
    fn status(&self) -> Status {
        if let Some((_, status)) = self.grace {
            return status;
        }
        self.connections
            .iter()
            .map(|connection| connection.status)
            .max()
            .unwrap_or(Status::Offline)
    }

    /// Called before the status may change.
    fn note_status(&mut self) {
        self.was_shown |= self.status() != self.announced();
    }

    fn announced(&self) -> Status {
        self.announced.unwrap_or(Status::Offline)
    }

    fn add(&mut self, conn: ConnId, status: Status) {
        self.connections.push(UserConnection { conn, status });
    }
}

/// The presence of all users of a room.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    users: HashMap<UserId, UserPresence>,
    /// The users of `users`.
    order: UserOrder,
    /// Users whose status may differ from the announced one.
    changed: Vec<UserId>,
    /// Users who were restored, and whose profiles are not known yet.
    unknown: Vec<UserId>,
    /// Users who are shown as typing, in the order in which they started.
    typing: Vec<UserId>,
}

/// The consequences of a closed connection for its user.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Departure {
    /// `true` if it was the last connection of the user.
    pub(crate) was_last: bool,
    /// `true` if this has ended the typing indicator of the user.
    pub(crate) was_typing: bool,
}

/// The presence that [`Roster::remove`] removed.
#[derive(Debug)]
pub(crate) struct Removed {
    /// The connections of the user.
    pub(crate) connections: Vec<ConnId>,
    /// `true` if the user was shown as typing.
    pub(crate) was_typing: bool,
    /// The status that was announced last.
    pub(crate) announced: Status,
}

/// A status that differs from the announced one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct StatusChange {
    pub(crate) user: UserId,
    /// The status that was announced before.
    pub(crate) before: Status,
    pub(crate) status: Status,
}

/// The result of [`Roster::expire`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Expired {
    pub(crate) ended: Vec<Ended>,
    /// The time at which the next one of these states ends.
    pub(crate) next: Option<Millis>,
}

/// A state that has ended because its time is over.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Typing(UserId),
    Grace(UserId),
}

impl Roster {
    /// Returns the status of a user as the other members see it.
    pub(crate) fn status(&self, user: &UserId) -> Status {
        self.users
            .get(user)
            .map_or(Status::Offline, UserPresence::status)
    }

    /// Prepares [`Roster::present`].
    pub(crate) fn sort(&mut self) {
        self.order.sort();
    }

    /// Returns the users with connections or within their grace period in the order of their
    /// ids. [`Roster::sort`] must be called before.
    pub(crate) fn present(&self) -> &[UserId] {
        self.order.after(None)
    }

    /// Returns the connections of a user.
    pub(crate) fn connections(&self, user: &UserId) -> impl Iterator<Item = ConnId> {
        let presence = self.users.get(user).into_iter();
        presence.flat_map(|presence| presence.connections.iter().map(|one| one.conn))
    }

    /// Returns the profile of a user, if it is known: see [`Roster::take_unknown`].
    pub(crate) fn info(&self, user: &UserId) -> Option<&UserInfo> {
        self.users.get(user)?.info.as_ref()?.as_ref()
    }

    /// Returns `true` if the user has a connection, or is within its grace period.
    pub(crate) fn is_present(&self, user: &UserId) -> bool {
        self.users.contains_key(user)
    }

    /// Sets the profile of a user who is present.
    pub(crate) fn set_info(&mut self, user: &UserId, info: Option<UserInfo>) {
        if let Some(presence) = self.users.get_mut(user) {
            presence.info = Some(info);
        }
    }

    /// Announces the status of a user again, because its profile has changed.
    pub(crate) fn announce_again(&mut self, user: &UserId) {
        if let Some(presence) = self.users.get_mut(user) {
            presence.was_shown = true;
            self.changed.push(user.clone());
        }
    }

    /// Returns the present users whose profiles are not known. The caller sets them.
    pub(crate) fn take_unknown(&mut self) -> Vec<UserId> {
        let mut unknown = std::mem::take(&mut self.unknown);
        let is_unknown = |presence: &UserPresence| presence.info.is_none();
        unknown.retain(|user| self.users.get(user).is_some_and(is_unknown));
        unknown
    }

    /// Returns the users who are shown as typing.
    pub(crate) fn typing(&self) -> &[UserId] {
        &self.typing
    }

    /// Returns the number of users with a connection, whatever their status.
    pub(crate) fn connected_users(&self) -> usize {
        let users = self.users.values();
        users
            .filter(|presence| !presence.connections.is_empty())
            .count()
    }

    fn entry(&mut self, user: &UserId) -> &mut UserPresence {
        self.users.entry(user.clone()).or_insert_with(|| {
            self.order.add(user.clone());
            UserPresence::default()
        })
    }

    /// Adds a connection that has joined. Ends a grace period.
    pub(crate) fn join(&mut self, user: &UserId, conn: ConnId, status: Status) {
        let presence = self.entry(user);
        presence.note_status();
        presence.add(conn, status);
        presence.grace = None;
        self.changed.push(user.clone());
    }

    /// Restores a connection after hibernation. Its status was announced before. Returns the
    /// announced status of the user without the connection and with it.
    pub(crate) fn restore(
        &mut self,
        user: &UserId,
        conn: ConnId,
        status: Status,
    ) -> (Status, Status) {
        let presence = self.entry(user);
        let before = presence.announced();
        presence.add(conn, status);
        let status = presence.status();
        presence.announced = Some(status);
        if presence.info.is_none() {
            self.unknown.push(user.clone());
        }
        (before, status)
    }

    /// Sets the status of a connection.
    pub(crate) fn set_status(&mut self, user: &UserId, conn: ConnId, status: Status) {
        let Some(presence) = self.users.get_mut(user) else {
            return;
        };
        presence.note_status();
        if let Some(connection) = presence.connections.iter_mut().find(|one| one.conn == conn) {
            connection.status = status;
            self.changed.push(user.clone());
        }
    }

    /// Removes a closed connection. If it was the last one of the user, ends the typing
    /// indicator and begins a grace period.
    pub(crate) fn leave(&mut self, user: &UserId, conn: ConnId, grace_until: Millis) -> Departure {
        let Some(presence) = self.users.get_mut(user) else {
            return Departure::default();
        };
        presence.note_status();
        let status = presence.status();
        presence.connections.retain(|one| one.conn != conn);
        if !presence.connections.is_empty() {
            self.changed.push(user.clone());
            return Departure::default();
        }
        presence.grace = Some((grace_until, status));
        let was_typing = presence.typing_until.take().is_some();
        self.stopped_typing(user);
        Departure {
            was_last: true,
            was_typing,
        }
    }

    /// Removes a user that has left the room.
    pub(crate) fn remove(&mut self, user: &UserId) -> Removed {
        let presence = self.users.remove(user).unwrap_or_default();
        self.order.remove(user);
        self.stopped_typing(user);
        let connections = presence.connections.into_iter();
        Removed {
            connections: connections.map(|one| one.conn).collect(),
            was_typing: presence.typing_until.is_some(),
            announced: presence.announced.unwrap_or(Status::Offline),
        }
    }

    /// Sets the time at which the typing indicator of a user expires, or ends it with
    /// `None`. Returns `true` if this starts or ends the indicator.
    pub(crate) fn set_typing(&mut self, user: &UserId, until: Option<Millis>) -> bool {
        let Some(presence) = self.users.get_mut(user) else {
            return false;
        };
        let was = presence.typing_until.is_some();
        presence.typing_until = until;
        match until {
            Some(_) if !was => self.typing.push(user.clone()),
            Some(_) => {}
            None => self.stopped_typing(user),
        }
        was != until.is_some()
    }

    fn stopped_typing(&mut self, user: &UserId) {
        self.typing.retain(|one| one != user);
    }

    /// Ends typing indicators and grace periods with a time up to `now`.
    pub(crate) fn expire(&mut self, now: Millis) -> Expired {
        let mut ended = Vec::new();
        let mut next = None;
        for (user, presence) in &mut self.users {
            if has_ended(&mut presence.typing_until, now, &mut next) {
                self.typing.retain(|one| one != user);
                ended.push(Ended::Typing(user.clone()));
            }
            let mut grace_until = presence.grace.map(|(until, _)| until);
            if has_ended(&mut grace_until, now, &mut next) {
                presence.note_status();
                presence.grace = None;
                ended.push(Ended::Grace(user.clone()));
                self.changed.push(user.clone());
            }
        }
        Expired { ended, next }
    }

    /// Returns `true` if the status of a user may have changed.
    pub(crate) fn has_changes(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Returns the statuses that differ from the announced ones. Marks them as announced.
    pub(crate) fn take_changes(&mut self) -> Vec<StatusChange> {
        let mut changes = Vec::new();
        for user in std::mem::take(&mut self.changed) {
            let Some(presence) = self.users.get_mut(&user) else {
                continue;
            };
            let status = presence.status();
            let before = presence.announced();
            if std::mem::take(&mut presence.was_shown) || before != status {
                presence.announced = Some(status);
                changes.push(StatusChange {
                    user: user.clone(),
                    before,
                    status,
                });
            }
            if presence.connections.is_empty() && presence.grace.is_none() {
                self.users.remove(&user);
                self.order.remove(&user);
            }
        }
        changes
    }
}

/// Clears a deadline that is over and returns `true`. Otherwise lowers `next` to the
/// deadline.
fn has_ended(until: &mut Option<Millis>, now: Millis, next: &mut Option<Millis>) -> bool {
    match *until {
        Some(at) if at <= now => {
            *until = None;
            true
        }
        Some(at) => {
            sooner(next, at);
            false
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::conn;

    fn roster() -> (Roster, UserId) {
        (Roster::default(), UserId::trusted("alice"))
    }

    fn changes(roster: &mut Roster) -> Vec<Status> {
        let changes = roster.take_changes().into_iter();
        changes.map(|change| change.status).collect()
    }

    fn expired(ended: Vec<Ended>, next: Option<Millis>) -> Expired {
        Expired { ended, next }
    }

    #[test]
    fn the_status_is_that_of_the_most_available_connection() {
        let (mut roster, alice) = roster();
        roster.join(&alice, conn(1), Status::Away);
        assert_eq!(changes(&mut roster), [Status::Away]);
        roster.join(&alice, conn(2), Status::Online);
        roster.set_status(&alice, conn(1), Status::Busy);
        assert_eq!(changes(&mut roster), [Status::Online]);
        roster.leave(&alice, conn(2), 99);
        assert_eq!(changes(&mut roster), [Status::Busy]);
        roster.set_status(&alice, conn(1), Status::Busy);
        assert_eq!(changes(&mut roster), [], "only when it changes");
    }

    #[test]
    fn a_user_is_offline_after_a_grace_period_in_which_it_can_reconnect() {
        let (mut roster, alice) = roster();
        roster.join(&alice, conn(1), Status::Online);
        roster.take_changes();
        let departure = roster.leave(&alice, conn(1), 5_000);
        assert!(departure.was_last && !departure.was_typing);
        assert_eq!(roster.expire(4_999), expired(vec![], Some(5_000)));
        assert_eq!(roster.status(&alice), Status::Online);
        roster.join(&alice, conn(2), Status::Online);
        roster.expire(5_000);
        assert_eq!(changes(&mut roster), []);
        roster.leave(&alice, conn(2), 10_000);
        let ended = vec![Ended::Grace(alice.clone())];
        assert_eq!(roster.expire(10_000), expired(ended, None));
        assert_eq!(changes(&mut roster), [Status::Offline]);
        assert!(roster.users.is_empty(), "nothing is kept");
    }

    #[test]
    fn typing_expires_and_ends_with_the_last_connection() {
        let (mut roster, alice) = roster();
        roster.join(&alice, conn(1), Status::Online);
        assert!(roster.set_typing(&alice, Some(5_000)));
        assert!(!roster.set_typing(&alice, Some(6_000)), "announced before");
        assert_eq!(roster.expire(5_500), expired(vec![], Some(6_000)));
        let ended = vec![Ended::Typing(alice.clone())];
        assert_eq!(roster.expire(6_000), expired(ended, None));
        roster.set_typing(&alice, Some(9_000));
        assert!(roster.leave(&alice, conn(1), 99_000).was_typing);
    }
}
