//! The stored state from which a room is restored.

use crate::dedupe::Secret;
use crate::log::{LogBounds, StoredSends};
use crate::member::Member;
use crate::seq_range::SeqRange;
use roomcast_proto::id::{Epoch, UserId};
use roomcast_proto::time::Millis;
use roomcast_proto::user_info::UserInfo;

/// The stored state of a room.
#[derive(Default)]
pub struct Snapshot {
    /// Identifies this instance of the room. A new one for each restart.
    pub life: String,
    /// The epoch of the log.
    pub epoch: Epoch,
    /// The key of the hashes by which the room recognises repeated sends.
    pub secret: Secret,
    /// The bounds of the log.
    pub bounds: LogBounds,
    /// The members as of the last checkpoint.
    pub members: Vec<(UserId, Member)>,
    /// The users who have left lately, with the times.
    pub departed: Vec<(UserId, Millis)>,
    /// The rows of the journal since the checkpoint.
    pub journal: Vec<String>,
    /// Reads the recent sends, if there is a log.
    pub recent: Option<ReadRecent>,
    /// Reads the profiles of members.
    pub profiles: Option<ReadProfiles>,
    /// Reads the log.
    pub rows: Option<ReadRows>,
}

/// Reads the profiles of these members and passes each to the function.
pub type ReadProfiles =
    Box<dyn Fn(&[UserId], &mut dyn FnMut(UserId, UserInfo)) -> Result<(), ReadFailed>>;

/// Reads the rows with events of a range, newest first, and passes the sequence number of the
/// first event and the body of each row to the function until it returns `false`. The room calls
/// it for ranges of stored events only.
pub type ReadRows =
    Box<dyn Fn(SeqRange, &mut dyn FnMut(u64, &str) -> bool) -> Result<(), ReadFailed>>;

/// Reads the sends of the rows that were stored at or after a time, newest first, and passes
/// each row to the function until it returns `false`. The room calls it once, with the first
/// send that has a message id of the sender. It is not called at every restart, because most
/// restarts do not need these sends.
pub type ReadRecent =
    Box<dyn Fn(Millis, &mut dyn FnMut(&StoredSends) -> bool) -> Result<(), ReadFailed>>;

/// Storage could not be read. The host has logged the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadFailed;
