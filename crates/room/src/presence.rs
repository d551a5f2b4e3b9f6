//! Presence and typing: rumours, kept in memory, rebuilt from the sockets after
//! hibernation, never stored.

use super::output::ConnId;
use roomcast_proto::name::UserId;
use roomcast_proto::status::Status;
use roomcast_proto::time::{Millis, sooner};
use std::collections::HashMap;

/// A user with sockets in the room, or one whose last socket went a moment ago.
#[derive(Debug, Default)]
pub struct Presence {
    /// Its sockets and what each says, in the order they came.
    pub sockets: Vec<(ConnId, Status)>,
    /// What the others were told last.
    told: Option<Status>,
    /// Until when it is still shown as before although its last socket went.
    grace_until: Option<Millis>,
    /// Until when it is shown as typing.
    typing_until: Option<Millis>,
}

impl Presence {
    /// The most available of its sockets.
    pub fn status(&self) -> Status {
        if self.grace_until.is_some() {
            return self.told.unwrap_or(Status::Offline);
        }
        self.sockets
            .iter()
            .map(|(_, status)| *status)
            .max()
            .unwrap_or(Status::Offline)
    }
}

/// Everybody who is or was just here.
#[derive(Debug, Default)]
pub struct Roster {
    users: HashMap<UserId, Presence>,
    /// Whose status may have changed since the others were told.
    dirty: Vec<UserId>,
    /// No grace time and no typing indicator ends before this.
    deadline: Option<Millis>,
}

/// Something that ended by itself.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    Typing(UserId),
    Grace(UserId),
}

impl Roster {
    pub fn get(&self, user: &str) -> Option<&Presence> {
        self.users.get(user)
    }

    /// How the others see a user.
    pub fn status(&self, user: &str) -> Status {
        self.get(user).map_or(Status::Offline, Presence::status)
    }

    pub fn sockets(&self, user: &str) -> impl Iterator<Item = ConnId> {
        self.get(user)
            .into_iter()
            .flat_map(|presence| presence.sockets.iter().map(|(conn, _)| *conn))
    }

    /// Users that have a socket, whatever status they show.
    pub fn connected(&self) -> usize {
        self.users
            .values()
            .filter(|presence| !presence.sockets.is_empty())
            .count()
    }

    /// A socket came, or came back within the grace time.
    pub fn arrive(&mut self, user: &UserId, conn: ConnId, status: Status) {
        let presence = self.users.entry(user.clone()).or_default();
        presence.sockets.push((conn, status));
        presence.grace_until = None;
        self.dirty.push(user.clone());
    }

    /// After hibernation: the others have been told of this one already.
    pub fn recall(&mut self, user: &UserId, conn: ConnId, status: Status) {
        let presence = self.users.entry(user.clone()).or_default();
        presence.sockets.push((conn, status));
        presence.told = Some(presence.status());
    }

    /// A socket says another status.
    pub fn set(&mut self, user: &UserId, conn: ConnId, status: Status) {
        if let Some(presence) = self.users.get_mut(user)
            && let Some(socket) = presence.sockets.iter_mut().find(|(one, _)| *one == conn)
        {
            socket.1 = status;
            self.dirty.push(user.clone());
        }
    }

    /// A socket went. Says whether it was the user's last and whether the user
    /// was typing, which ends with it.
    pub fn depart(&mut self, user: &UserId, conn: ConnId, grace_until: Millis) -> (bool, bool) {
        let Some(presence) = self.users.get_mut(user) else {
            return (false, false);
        };
        presence.sockets.retain(|(one, _)| *one != conn);
        if !presence.sockets.is_empty() {
            self.dirty.push(user.clone());
            return (false, false);
        }
        let was_typing = presence.typing_until.take().is_some();
        presence.grace_until = Some(grace_until);
        self.expect(grace_until);
        (true, was_typing)
    }

    /// Membership ended: nothing of the user is left. Answers its sockets, and
    /// whether the others take it to be typing.
    pub fn remove(&mut self, user: &str) -> (Vec<ConnId>, bool) {
        let Some(presence) = self.users.remove(user) else {
            return (Vec::new(), false);
        };
        let sockets = presence.sockets.into_iter().map(|(conn, _)| conn);
        (sockets.collect(), presence.typing_until.is_some())
    }

    /// Whether the others need be told that the user is (or is no more) typing.
    pub fn typing(&mut self, user: &UserId, until: Option<Millis>) -> bool {
        let Some(presence) = self.users.get_mut(user) else {
            return false;
        };
        let was = presence.typing_until.is_some();
        presence.typing_until = until;
        if let Some(until) = until {
            self.expect(until);
        }
        was != until.is_some()
    }

    fn expect(&mut self, at: Millis) {
        sooner(&mut self.deadline, at);
    }

    /// The next time something may end by itself.
    pub fn deadline(&self) -> Option<Millis> {
        self.deadline
    }

    /// Ends what is over by now.
    pub fn expire(&mut self, now: Millis) -> Vec<Ended> {
        let mut ended = Vec::new();
        if self.deadline.is_none_or(|deadline| deadline > now) {
            return ended;
        }
        let mut next: Option<Millis> = None;
        for (user, presence) in &mut self.users {
            for (until, end) in [
                (
                    &mut presence.typing_until,
                    Ended::Typing as fn(UserId) -> Ended,
                ),
                (&mut presence.grace_until, Ended::Grace),
            ] {
                match *until {
                    Some(at) if at <= now => {
                        *until = None;
                        ended.push(end(user.clone()));
                    }
                    Some(at) => sooner(&mut next, at),
                    None => {}
                }
            }
        }
        self.deadline = next;
        for end in &ended {
            if let Ended::Grace(user) = end {
                self.dirty.push(user.clone());
            }
        }
        ended
    }

    pub fn has_news(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Whose status changed since the others were told, and to what.
    pub fn news(&mut self) -> Vec<(UserId, Status)> {
        let mut news = Vec::new();
        for user in std::mem::take(&mut self.dirty) {
            let Some(presence) = self.users.get_mut(&user) else {
                continue;
            };
            let status = presence.status();
            if presence.told.unwrap_or(Status::Offline) != status {
                presence.told = Some(status);
                news.push((user.clone(), status));
            }
            if presence.sockets.is_empty() && presence.grace_until.is_none() {
                self.users.remove(&user);
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::super::output::conn;
    use super::*;

    fn roster() -> (Roster, UserId) {
        (Roster::default(), "alice".into())
    }

    #[test]
    fn the_most_available_connection_is_shown() {
        let (mut roster, alice) = roster();
        roster.arrive(&alice, conn(1), Status::Away);
        assert_eq!(roster.news(), vec![(alice.clone(), Status::Away)]);
        roster.arrive(&alice, conn(2), Status::Online);
        roster.set(&alice, conn(1), Status::Busy);
        assert_eq!(roster.news(), vec![(alice.clone(), Status::Online)]);
        roster.depart(&alice, conn(2), 99);
        assert_eq!(roster.news(), vec![(alice.clone(), Status::Busy)]);
        roster.set(&alice, conn(1), Status::Busy);
        assert_eq!(roster.news(), vec![], "only when it changes");
    }

    #[test]
    fn offline_comes_after_a_grace_time_and_a_reconnect_does_not_flicker() {
        let (mut roster, alice) = roster();
        roster.arrive(&alice, conn(1), Status::Online);
        roster.news();
        assert_eq!(roster.depart(&alice, conn(1), 5_000), (true, false));
        assert_eq!(roster.expire(4_999), vec![]);
        assert_eq!(roster.status("alice"), Status::Online);
        roster.arrive(&alice, conn(2), Status::Online);
        roster.expire(5_000);
        assert_eq!(roster.news(), vec![]);
        roster.depart(&alice, conn(2), 10_000);
        assert_eq!(roster.expire(10_000), vec![Ended::Grace(alice.clone())]);
        assert_eq!(roster.news(), vec![(alice, Status::Offline)]);
        assert!(roster.get("alice").is_none(), "nothing is kept");
    }

    #[test]
    fn typing_expires_and_ends_with_the_last_socket() {
        let (mut roster, alice) = roster();
        roster.arrive(&alice, conn(1), Status::Online);
        assert!(roster.typing(&alice, Some(5_000)));
        assert!(!roster.typing(&alice, Some(6_000)), "told already");
        assert_eq!(roster.expire(5_500), vec![]);
        assert_eq!(roster.expire(6_000), vec![Ended::Typing(alice.clone())]);
        roster.typing(&alice, Some(9_000));
        assert_eq!(roster.depart(&alice, conn(1), 99_000), (true, true));
    }
}
