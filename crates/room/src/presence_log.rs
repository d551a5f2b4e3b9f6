//! The version of the announced presence, and the latest changes of it.
//!
//! The version is a sum of hashes: one of each member, and one of each member with its status
//! if that is not `offline`. So it depends only on the presence that was announced. A room
//! that was restored after hibernation has the same version as before. If sockets were lost
//! with the memory of the room, the version differs.
//!
//! A connection or gateway that may have missed a change has the version up to which it was
//! told everything. It receives the changes since then, or the presence of all members if
//! the room no longer knows the version.

use roomcast_proto::id::UserId;
use roomcast_proto::link::PresenceVersion;
use roomcast_proto::status::Status;
use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

/// The maximum number of changes that are kept. With user ids of the maximum length they
/// have less than 300 kB.
const MAX_CHANGES: usize = 1_000;

/// The bits of a version. A version is below 2^53 and even: see [`UNKNOWN_PRESENCE`].
///
/// [`UNKNOWN_PRESENCE`]: roomcast_proto::link::UNKNOWN_PRESENCE
const VERSION_BITS: PresenceVersion = ((1 << 53) - 1) & !1;

/// The version of a room without members. Not 0, which rooms of older versions have.
const NOBODY: PresenceVersion = 2;

/// The version of the announced presence and the latest changes of it.
#[derive(Debug)]
pub(crate) struct PresenceLog {
    version: PresenceVersion,
    changes: VecDeque<Change>,
    /// Members that were added or removed, and that were not announced yet.
    pending: Vec<Change>,
}

impl Default for PresenceLog {
    /// Returns the log of a room without members.
    fn default() -> Self {
        PresenceLog {
            version: NOBODY,
            changes: VecDeque::new(),
            pending: Vec::new(),
        }
    }
}

/// A change of the announced presence.
#[derive(Debug)]
struct Change {
    /// The version before the change.
    before: PresenceVersion,
    user: UserId,
    kind: ChangeKind,
}

#[derive(Clone, Copy, Debug)]
enum ChangeKind {
    Joined,
    /// The user has left the room. Its announced status was this one.
    Left(Status),
    Status {
        before: Status,
        status: Status,
    },
}

/// The users whose presence has changed since a version.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Changed {
    /// None.
    Nothing,
    /// These users. They may have left the room. `true` for those that have joined since.
    Users(Vec<(UserId, bool)>),
    /// The version is not known, so the presence of all members may have changed.
    Everything,
}

impl PresenceLog {
    /// Returns the version of the announced presence.
    pub(crate) fn version(&self) -> PresenceVersion {
        self.version
    }

    /// Adds a member that was announced before the room was restored.
    pub(crate) fn restore_member(&mut self, user: &UserId) {
        self.advance(0, member_hash(user));
    }

    /// Changes the status of a user, which was announced before the room was restored.
    pub(crate) fn restore_status(&mut self, user: &UserId, before: Status, status: Status) {
        self.advance(status_hash(user, before), status_hash(user, status));
    }

    /// Records that a user was added to the members. [`PresenceLog::announce_members`]
    /// follows.
    pub(crate) fn joined(&mut self, user: &UserId) {
        self.pend(user, ChangeKind::Joined);
    }

    /// Records that a user with this announced status has left the room.
    /// [`PresenceLog::announce_members`] follows.
    pub(crate) fn left(&mut self, user: &UserId, announced: Status) {
        self.pend(user, ChangeKind::Left(announced));
    }

    fn pend(&mut self, user: &UserId, kind: ChangeKind) {
        self.pending.push(Change {
            before: 0,
            user: user.clone(),
            kind,
        });
    }

    /// Records that the joins and leaves since the last call are announced.
    pub(crate) fn announce_members(&mut self) {
        for change in std::mem::take(&mut self.pending) {
            self.push(change);
        }
    }

    /// Records that a status is announced.
    pub(crate) fn announce_status(&mut self, user: &UserId, before: Status, status: Status) {
        self.push(Change {
            before: 0,
            user: user.clone(),
            kind: ChangeKind::Status { before, status },
        });
    }

    fn push(&mut self, mut change: Change) {
        change.before = self.version;
        let user = &change.user;
        let (removed, added) = match change.kind {
            ChangeKind::Joined => (0, member_hash(user)),
            ChangeKind::Left(announced) => (member_hash(user) + status_hash(user, announced), 0),
            ChangeKind::Status { before, status } => {
                (status_hash(user, before), status_hash(user, status))
            }
        };
        self.advance(removed, added);
        if self.changes.len() == MAX_CHANGES {
            self.changes.pop_front();
        }
        self.changes.push_back(change);
    }

    /// Replaces a hash in the sum by another one.
    fn advance(&mut self, removed: u64, added: u64) {
        let version = self.version.wrapping_sub(removed).wrapping_add(added);
        self.version = version & VERSION_BITS;
    }

    /// Returns `true` if the changes since a version are known.
    pub(crate) fn knows(&self, version: PresenceVersion) -> bool {
        version == self.version || self.changes.iter().any(|change| change.before == version)
    }

    /// Returns the users whose presence has changed since a version.
    pub(crate) fn changed_since(&self, version: PresenceVersion) -> Changed {
        if version == self.version {
            return Changed::Nothing;
        }
        let mut changes = self.changes.iter().rev();
        let since = changes.position(|change| change.before == version);
        let Some(since) = since else {
            return Changed::Everything;
        };
        let joined: HashSet<&UserId> = (self.changes.iter().rev().take(since + 1))
            .filter(|change| matches!(change.kind, ChangeKind::Joined))
            .map(|change| &change.user)
            .collect();
        let mut known = HashSet::new();
        let users = self.changes.iter().rev().take(since + 1);
        let users = users.map(|change| &change.user);
        let distinct = users.filter(|user| known.insert(*user));
        Changed::Users(
            distinct
                .map(|user| (user.clone(), joined.contains(user)))
                .collect(),
        )
    }
}

fn member_hash(user: &UserId) -> u64 {
    hash(user, None)
}

/// Returns 0 for a status that a user without connections has.
fn status_hash(user: &UserId, status: Status) -> u64 {
    match status {
        Status::Offline => 0,
        status => hash(user, Some(status)),
    }
}

/// The hash is compared only with hashes of the same version of the code. Another hash after
/// an update makes a room announce the presence once more.
fn hash(user: &UserId, status: Option<Status>) -> u64 {
    let mut hasher = DefaultHasher::new();
    (user.as_str(), status.map(Status::as_str)).hash(&mut hasher);
    hasher.finish() & VERSION_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(id: &str) -> UserId {
        UserId::trusted(id)
    }

    #[test]
    fn a_restored_room_has_the_version_of_the_same_presence() {
        let mut log = PresenceLog::default();
        for id in ["alice", "bob", "carol"] {
            log.joined(&user(id));
        }
        log.announce_members();
        log.announce_status(&user("bob"), Status::Offline, Status::Online);
        log.announce_status(&user("carol"), Status::Offline, Status::Online);
        log.announce_status(&user("bob"), Status::Online, Status::Away);
        log.left(&user("carol"), Status::Online);
        log.announce_members();
        let mut restored = PresenceLog::default();
        for id in ["bob", "alice"] {
            restored.restore_member(&user(id));
        }
        let lost = restored.version();
        restored.restore_status(&user("bob"), Status::Offline, Status::Away);
        assert_eq!(restored.version(), log.version());
        assert_ne!(lost, log.version());
        assert_eq!(restored.changed_since(lost), Changed::Everything);
    }

    #[test]
    fn the_changes_since_a_version_name_each_user_once() {
        let mut log = PresenceLog::default();
        log.joined(&user("alice"));
        log.announce_members();
        let since = log.version();
        assert_eq!(log.changed_since(since), Changed::Nothing);
        log.announce_status(&user("alice"), Status::Offline, Status::Online);
        log.joined(&user("bob"));
        assert_ne!(log.changed_since(since), Changed::Nothing);
        log.announce_members();
        log.announce_status(&user("alice"), Status::Online, Status::Away);
        let changed = vec![(user("alice"), false), (user("bob"), true)];
        assert_eq!(log.changed_since(since), Changed::Users(changed));
        log.announce_status(&user("alice"), Status::Away, Status::Offline);
        log.left(&user("bob"), Status::Offline);
        log.announce_members();
        assert_eq!(log.changed_since(since), Changed::Nothing, "as before");
    }

    #[test]
    fn a_version_that_is_too_old_is_not_known() {
        let mut log = PresenceLog::default();
        let alice = user("alice");
        let first = log.version();
        log.joined(&alice);
        log.announce_members();
        for _ in 0..MAX_CHANGES / 2 {
            log.announce_status(&alice, Status::Offline, Status::Online);
            log.announce_status(&alice, Status::Online, Status::Offline);
        }
        assert_eq!(log.changes.len(), MAX_CHANGES);
        assert_eq!(log.changed_since(first), Changed::Everything);
    }
}
