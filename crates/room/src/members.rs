//! The members of a room, and the cursors that have moved and are not stored yet.
//!
//! Moved cursors are stored together: one row of the journal for all members whose cursors
//! moved within a short time. A checkpoint writes the members themselves and deletes the
//! journal. It is due after [`MAX_JOURNAL_ROWS`] rows, and when a user joins again whose
//! earlier membership has cursors in the journal. An acknowledgement is answered when its
//! cursor is stored.

use crate::ids::ConnId;
use crate::member::{Cursor, JournalEntry, Member};
use crate::output::Change;
use crate::user_order::UserOrder;
use roomcast_proto::answer::to_json;
use roomcast_proto::error::{Error, Result};
use roomcast_proto::id::{MessageId, UserId};
use roomcast_proto::reader;
use roomcast_proto::time::Millis;
use std::collections::{HashMap, HashSet};

/// The number of rows in the journal after which a checkpoint is due.
const MAX_JOURNAL_ROWS: usize = 512;

/// The maximum number of entries in a row of the journal. It keeps a row below 1 MiB and so below
/// the platform's limit of 2 MB: an entry has a user id of at most 255 bytes, which JSON escapes
/// to at most twice as many, and three numbers of at most 16 digits.
const MAX_ROW_ENTRIES: usize = 1_500;

/// The members and their journal.
#[derive(Debug, Default)]
pub(crate) struct Members {
    map: HashMap<UserId, Member>,
    /// The users of `map`.
    order: UserOrder,
    /// Members with changes that are not in the journal yet.
    moved: HashMap<UserId, Moved>,
    /// The number of rows in the journal.
    journal_rows: usize,
    /// Users with cursors in the journal. They may have left the room since then.
    journalled: HashSet<UserId>,
    /// `true` if the next batch stores a checkpoint.
    checkpoint_due: bool,
    /// Answers that wait for the journal.
    waiting_acks: Vec<CursorAck>,
}

/// The maximum number of receipts by message id of a member that are announced at a time, the
/// last ones. A receipt includes all earlier messages.
const MAX_RECEIPTS: usize = 16;

/// The cursors of a member that have moved and must be announced.
#[derive(Clone, Debug, Default)]
struct Moved {
    delivered: bool,
    read: bool,
    /// The receipts by message id that have moved the read cursor.
    receipts: Vec<(u64, MessageId)>,
}

/// The answer to an acknowledgement.
#[derive(Debug)]
pub(crate) struct CursorAck {
    pub(crate) conn: ConnId,
    pub(crate) id: u32,
    /// The data of the answer.
    pub(crate) data: String,
}

/// The result of an acknowledgement.
#[derive(Debug)]
pub(crate) struct Acknowledged {
    /// The position of the cursor.
    pub(crate) seq: u64,
    /// `true` if a cursor has moved.
    pub(crate) moved: bool,
}

/// A moved cursor that must be announced.
#[derive(Debug)]
pub(crate) struct CursorMoved {
    pub(crate) user: UserId,
    pub(crate) cursor: Cursor,
    pub(crate) seq: u64,
    /// The id of the message, if the member has sent it.
    pub(crate) message_id: Option<MessageId>,
}

/// The result of [`Members::flush_cursors`].
#[derive(Debug)]
pub(crate) struct FlushedCursors {
    /// The changes to store.
    pub(crate) changes: Vec<Change>,
    pub(crate) moved: Vec<CursorMoved>,
    pub(crate) acks: Vec<CursorAck>,
}

impl Members {
    /// Restores the members from storage. `journal` contains the rows of the journal.
    pub(crate) fn restore(members: Vec<(UserId, Member)>, journal: &[String]) -> Self {
        let mut restored = Members {
            map: members.into_iter().collect(),
            journal_rows: journal.len(),
            ..Members::default()
        };
        for row in journal {
            // Only a later version can have written an unreadable row, so it is skipped.
            // The cursors in it fall back, and their clients receive some events again.
            let entries: Vec<JournalEntry> = reader::from_str(row).unwrap_or_default();
            for entry in entries {
                if let Some(member) = restored.map.get_mut(&entry.user) {
                    member.restore(&entry);
                }
                restored.journalled.insert(entry.user);
            }
        }
        for user in restored.map.keys() {
            restored.order.add(user.clone());
        }
        restored
    }

    pub(crate) fn get(&self, user: &UserId) -> Option<&Member> {
        self.map.get(user)
    }

    pub(crate) fn contains(&self, user: &UserId) -> bool {
        self.map.contains_key(user)
    }

    /// Returns the number of members.
    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    pub(crate) fn users(&self) -> impl Iterator<Item = &UserId> {
        self.map.keys()
    }

    /// Prepares [`Members::users_after`].
    pub(crate) fn sort(&mut self) {
        self.order.sort();
    }

    /// Returns the users with ids after `after`, or all users, in the order of their ids.
    /// [`Members::sort`] must be called before.
    pub(crate) fn users_after(&self, after: Option<&UserId>) -> &[UserId] {
        self.order.after(after)
    }

    /// Adds a member. Returns the change to store.
    pub(crate) fn add(&mut self, user: &UserId, member: Member) -> Change {
        // After a restart, the cursors of an earlier membership would apply to this one.
        self.checkpoint_due |= self.journalled.contains(user);
        if self.map.insert(user.clone(), member.clone()).is_none() {
            self.order.add(user.clone());
        }
        Change::PutMember(user.clone(), member)
    }

    /// Removes a member with its cursors. Returns the user and the change to store. The
    /// cursors in the journal stay until the next checkpoint.
    pub(crate) fn remove(&mut self, user: &UserId) -> Option<(UserId, Change)> {
        let (user, _) = self.map.remove_entry(user)?;
        self.order.remove(&user);
        self.moved.remove(&user);
        let change = Change::RemoveMember(user.clone());
        Some((user, change))
    }

    /// Moves a cursor to `seq`, never back.
    pub(crate) fn acknowledge(
        &mut self,
        user: &UserId,
        cursor: Cursor,
        seq: u64,
    ) -> Result<Acknowledged> {
        let member = self.map.get_mut(user).ok_or_else(Error::not_joined)?;
        let before = (member.delivered, member.read);
        let seq = match cursor {
            Cursor::Delivered => {
                member.deliver(seq);
                member.delivered
            }
            Cursor::Read => {
                member.read(seq);
                member.read
            }
        };
        let delivered = member.delivered != before.0;
        let read = member.read != before.1;
        let moved = delivered || read;
        if moved {
            let moved = self.moved.entry(user.clone()).or_default();
            moved.delivered |= delivered;
            moved.read |= read;
        }
        Ok(Acknowledged { seq, moved })
    }

    /// Records that the member has named a message in a receipt, before the cursor is moved.
    pub(crate) fn read_message(&mut self, user: &UserId, seq: u64, id: MessageId) {
        if self.map.get(user).is_some_and(|member| member.read < seq) {
            let receipts = &mut self.moved.entry(user.clone()).or_default().receipts;
            if receipts.len() == MAX_RECEIPTS {
                receipts.remove(0);
            }
            receipts.push((seq, id));
        }
    }

    /// Adds an answer that is sent with the next [`Members::flush_cursors`].
    pub(crate) fn wait_for_flush(&mut self, ack: CursorAck) {
        self.waiting_acks.push(ack);
    }

    /// Returns `true` if answers wait for [`Members::flush_cursors`].
    pub(crate) fn has_waiting_acks(&self) -> bool {
        !self.waiting_acks.is_empty()
    }

    /// Drops the answers to a closed connection.
    pub(crate) fn forget(&mut self, conn: ConnId) {
        self.waiting_acks.retain(|ack| ack.conn != conn);
    }

    /// Records whether the stored record of a member has a profile, and the age of its token.
    pub(crate) fn set_informed(&mut self, user: &UserId, has_info: bool, issued: u64) {
        if let Some(member) = self.map.get_mut(user) {
            member.has_info = has_info;
            member.informed = issued;
        }
    }

    /// Sets the time of the last sign of life of a member whose last connection has ended.
    /// Never moves it back. Returns `false` if the user is not a member.
    pub(crate) fn set_last_seen(&mut self, user: &UserId, seen: Millis) -> bool {
        let Some(member) = self.map.get_mut(user) else {
            return false;
        };
        member.last_seen = member.last_seen.max(seen);
        self.moved.entry(user.clone()).or_default();
        true
    }

    /// Ends the collection of moved cursors. Returns the changes to store, the cursors to
    /// announce and the answers to send.
    pub(crate) fn flush_cursors(&mut self) -> FlushedCursors {
        let moved = std::mem::take(&mut self.moved);
        let mut entries = Vec::with_capacity(moved.len());
        let mut announced = Vec::with_capacity(moved.len());
        for (user, moved) in moved {
            let Some(member) = self.map.get(&user) else {
                continue;
            };
            entries.push(JournalEntry {
                user: user.clone(),
                delivered: member.delivered,
                read: member.read,
                last_seen: member.last_seen,
            });
            let mut announce = |cursor, seq, message_id| {
                announced.push(CursorMoved {
                    user: user.clone(),
                    cursor,
                    seq,
                    message_id,
                });
            };
            if moved.delivered {
                announce(Cursor::Delivered, member.delivered, None);
            }
            let last = moved.receipts.last().map_or(0, |(seq, _)| *seq);
            for (seq, id) in moved.receipts {
                announce(Cursor::Read, seq, Some(id));
            }
            if moved.read && member.read > last {
                announce(Cursor::Read, member.read, None);
            }
            self.journalled.insert(user);
        }
        FlushedCursors {
            changes: (entries.chunks(MAX_ROW_ENTRIES))
                .map(|entries| self.store(entries))
                .collect(),
            moved: announced,
            acks: std::mem::take(&mut self.waiting_acks),
        }
    }

    fn store(&mut self, entries: &[JournalEntry]) -> Change {
        self.journal_rows += 1;
        self.checkpoint_due |= self.journal_rows > MAX_JOURNAL_ROWS;
        Change::AppendJournal(to_json(&entries))
    }

    /// Returns the checkpoint if one is due. Its change must be stored after the changes of
    /// [`Members::add`] and [`Members::remove`], which contain older cursors, and together
    /// with them.
    pub(crate) fn take_checkpoint(&mut self) -> Option<Change> {
        if !std::mem::take(&mut self.checkpoint_due) {
            return None;
        }
        self.journal_rows = 0;
        let journalled = std::mem::take(&mut self.journalled).into_iter();
        let members =
            journalled.filter_map(|user| Some((user.clone(), self.map.get(&user)?.clone())));
        Some(Change::Checkpoint(members.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the id of a user, as long as an id may be.
    fn user(n: usize) -> UserId {
        UserId::trusted(format!("{n:0>255}"))
    }

    #[test]
    fn many_moved_cursors_are_stored_in_rows_below_the_limit_of_the_platform() {
        let users = 11_000;
        let member = Member::new(1_800_000_000_000, 0);
        let all = (0..users).map(|n| (user(n), member.clone()));
        let mut members = Members::restore(all.collect(), &[]);
        for n in 0..users {
            let head = roomcast_proto::raw_object::MAX_SAFE_INTEGER - n as u64;
            let moved = members.acknowledge(&user(n), Cursor::Read, head);
            assert!(moved.expect("a member").moved);
        }
        let flushed = members.flush_cursors();
        assert_eq!(flushed.moved.len(), 2 * users);
        let rows: Vec<String> = flushed
            .changes
            .into_iter()
            .map(|change| match change {
                Change::AppendJournal(row) => row,
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(rows.len() > 1 && rows.iter().all(|row| row.len() <= 1 << 20));
        // All of them are restored.
        let all = (0..users).map(|n| (user(n), member.clone()));
        let restored = Members::restore(all.collect(), &rows);
        for n in 0..users {
            assert_eq!(restored.get(&user(n)), members.get(&user(n)));
        }
    }
}
