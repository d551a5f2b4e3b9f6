//! Presence: the flush of ephemeral events, and feeds for receivers that may have missed some.

use super::Room;
use crate::ephemeral::{EphemeralEvent, Except};
use crate::output::Output;
use crate::presence::{FeedReceiver, PresenceFeed, SHOWN_FOR};
use crate::presence_log::Changed;
use crate::timers::Timer;
use roomcast_proto::event;
use roomcast_proto::id::UserId;
use roomcast_proto::link::PresenceVersion;
use roomcast_proto::status::Status;
use roomcast_proto::time::Millis;

/// Maximum number of users in one text of a feed. With user ids of 36 bytes, the text has
/// about as many bytes as a portion of the log.
const FEED_USERS: usize = 2_000;

/// Size in bytes after which a text of a feed of all members ends. Reached only if users have
/// profiles.
const FEED_TEXT_BYTES: usize = 256 * 1024;

/// Maximum size in bytes of the events that tell a new connection who is typing.
const MAX_TYPING_BYTES: usize = 16 * 1024;

/// Maximum size in bytes of the output that the feeds cause at a time, for all receivers
/// together: a gateway may copy a text for each of its receivers. One text for one receiver
/// may be larger.
const FEED_BYTES: usize = 2 << 20;

/// Interval in milliseconds at which feeds send, if there is more than [`FEED_BYTES`].
const FEED_INTERVAL: Millis = 50;

impl Room {
    /// Moves the queued ephemeral events and the presence updates into the batch.
    pub(super) fn flush_presence(&mut self) {
        self.timers.stop(Timer::PresenceFlush);
        self.load_profiles();
        for event in self.presence.take_queue() {
            self.batch.announce(event);
        }
        self.presence.log.announce_members();
        for change in self.presence.roster.take_changes() {
            let log = &mut self.presence.log;
            log.announce_status(&change.user, change.before, change.status);
            let line = self.presence_update(&change.user, change.status);
            let except = Except::User(change.user);
            self.batch.announce(EphemeralEvent { except, line });
        }
    }

    /// Queues the presence of all members, and who has left, for all connections, because
    /// queued events are lost.
    pub(super) fn announce_everybody(&mut self, now: Millis) {
        self.load_profiles();
        let users: Vec<UserId> = self.members.users().cloned().collect();
        for user in users {
            let line = self.presence_update(&user, self.presence.roster.status(&user));
            self.queue_event(&user, line, now);
        }
        let departed: Vec<UserId> = self.presence.departed.users().cloned().collect();
        for user in departed {
            let line = event::user_left(&self.name, &user);
            self.queue_event(&user, line, now);
        }
    }

    fn presence_update(&self, user: &UserId, status: Status) -> String {
        let member = self.members.get(user);
        let last_seen = member
            .map(|member| member.last_seen)
            .filter(|at| status == Status::Offline && *at > 0);
        let info = self.presence.roster.info(user);
        event::presence_update(&self.name, user, status, last_seen, info)
    }

    /// Returns `userTyping`.
    pub(super) fn typing_event(&self, user: &UserId, is_typing: bool) -> String {
        let info = self.presence.roster.info(user);
        event::user_typing(&self.name, user, is_typing, info)
    }

    /// Returns who is typing, for connections that join.
    pub(super) fn typing_now(&mut self) -> Vec<(UserId, String)> {
        self.load_profiles();
        let mut bytes = 0;
        let typing = self.presence.roster.typing().iter();
        let events = typing.map(|user| (user.clone(), self.typing_event(user, true)));
        events
            .take_while(|(_, event)| {
                bytes += event.len();
                bytes <= MAX_TYPING_BYTES
            })
            .collect()
    }

    /// Sends a receiver the presence that has changed since a version, because it may have
    /// missed events.
    ///
    /// Shortly after a restart, users whose connections were lost have not returned yet. The
    /// feed waits until their grace period has ended.
    pub(super) fn feed_presence(&mut self, receiver: FeedReceiver, since: PresenceVersion) {
        let at = self.restored_at + self.config.presence_grace;
        self.presence.add_feed(receiver, since);
        self.timers.set_earliest(Timer::PresenceFeed, at);
    }

    /// Sends the next texts of the feeds.
    pub(super) fn run_presence_feeds(&mut self, now: Millis, out: &mut Vec<Output>) {
        self.timers.stop(Timer::PresenceFeed);
        // The changes that wait are announced first, so that all receivers have the version
        // that the texts describe.
        self.flush_presence();
        self.members.sort();
        let mut bytes = 0;
        let mut text: Option<(PresenceFeed, FeedText)> = None;
        for mut feed in std::mem::take(&mut self.presence.feeds) {
            if bytes >= FEED_BYTES || self.has_backlog(&feed.receiver) {
                self.presence.feeds.push_back(feed);
                continue;
            }
            // Receivers with the same position share a text.
            let next = match text.take() {
                Some((last, next)) if last.has_same_text(&feed) => next,
                _ => self.feed_text(&feed, now),
            };
            let receivers = (FEED_BYTES - bytes) / next.text.len().max(1);
            let rest = feed.receiver.split_off(receivers.max(1));
            bytes += self.send_feed_text(&feed.receiver, &next, out);
            if let Some(receiver) = rest {
                let feed = feed.clone();
                self.presence
                    .feeds
                    .push_back(PresenceFeed { receiver, ..feed });
            }
            if let Some(after) = &next.more_after {
                self.presence.feeds.push_back(PresenceFeed {
                    after: Some(after.clone()),
                    ..feed.clone()
                });
            }
            text = Some((feed, next));
        }
        if !self.presence.feeds.is_empty() {
            let at = now + FEED_INTERVAL;
            self.timers.set_earliest(Timer::PresenceFeed, at);
        }
    }

    /// Returns `true` if the receiver must not be sent more at present.
    fn has_backlog(&self, receiver: &FeedReceiver) -> bool {
        match receiver {
            FeedReceiver::Remote(gateway, _) => self.gateways.has_backlog(gateway),
            FeedReceiver::Own(conn) => self.is_stalled(*conn),
        }
    }

    /// Returns the next text of a feed.
    fn feed_text(&self, feed: &PresenceFeed, now: Millis) -> FeedText {
        let mut lines = Vec::new();
        let changed = match feed.after {
            // A feed of all members goes on.
            Some(_) => Changed::Everything,
            None => self.presence.log.changed_since(feed.since),
        };
        let mut more_after = None;
        match changed {
            Changed::Nothing => {}
            Changed::Users(users) => {
                for (user, has_joined) in users {
                    if !self.members.contains(&user) {
                        lines.push(event::user_left(&self.name, &user));
                        continue;
                    }
                    if has_joined {
                        lines.push(event::user_joined(&self.name, &user));
                    }
                    lines.push(self.presence_update(&user, self.presence.roster.status(&user)));
                }
            }
            Changed::Everything => {
                if feed.after.is_none() {
                    let departed = self.presence.departed.users();
                    lines.extend(departed.map(|user| event::user_left(&self.name, user)));
                }
                let users = self.members.users_after(feed.after.as_ref());
                let (users, more) = users.split_at(users.len().min(FEED_USERS));
                more_after = more.first().and(users.last()).cloned();
                let mut bytes = 0;
                for user in users {
                    if bytes > FEED_TEXT_BYTES {
                        break;
                    }
                    let status = self.presence.roster.status(user);
                    let last_seen = self.members.get(user).map_or(0, |member| member.last_seen);
                    if status != Status::Offline || last_seen + SHOWN_FOR >= now {
                        let line = self.presence_update(user, status);
                        bytes += line.len();
                        lines.push(line);
                        let is_last = users.last() == Some(user);
                        if bytes > FEED_TEXT_BYTES && !is_last {
                            more_after = Some(user.clone());
                        }
                    }
                }
            }
        }
        FeedText {
            text: lines.join("\n"),
            more_after,
        }
    }

    /// Sends a text of a feed. Returns the number of bytes for all receivers together.
    fn send_feed_text(
        &mut self,
        receiver: &FeedReceiver,
        next: &FeedText,
        out: &mut Vec<Output>,
    ) -> usize {
        let FeedText { text, more_after } = next;
        match receiver {
            FeedReceiver::Remote(gateway, conns) => {
                self.gateways
                    .send_presence(gateway, conns, text, more_after.is_none());
                return text.len() * conns.len();
            }
            FeedReceiver::Own(conn) if self.connections.is_joined(*conn) && !text.is_empty() => {
                let (conn, frame) = (*conn, text.clone());
                out.push(Output::Send { conn, frame });
            }
            FeedReceiver::Own(_) => return 0,
        }
        text.len()
    }
}

/// The next text of a feed.
struct FeedText {
    text: String,
    /// The last user of the text, if further users follow.
    more_after: Option<UserId>,
}
