//! The events of message ids, and the message ids of events.
//!
//! An id that the server has created contains the position of its event, so one row of the log
//! is read. Other ids are searched in the newest events, at most [`MAX_SEARCH`] bytes of them.
//! The results are kept, because the members of a room usually name the same messages.

use crate::seq_range::SeqRange;
use crate::snapshot::ReadRows;
use roomcast_proto::error::{Error, Result};
use roomcast_proto::id::MessageId;
use roomcast_proto::json::push_string;
use roomcast_proto::raw_object::{RawObject, TEXT};
use std::collections::VecDeque;

/// Number of results that are kept, at most 34 kB.
const MAX_KNOWN: usize = 64;

/// Size in bytes of the newest events in which an id is searched. Searching them takes a few
/// milliseconds.
const MAX_SEARCH: usize = 1 << 20;

/// The message ids of a log.
#[derive(Default)]
pub(crate) struct MessageIds {
    read: Option<ReadRows>,
    /// The last results, the newest at the end.
    known: VecDeque<(u64, MessageId)>,
}

/// The result of [`MessageIds::search`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Searched {
    /// Sequence number of the event.
    pub(crate) seq: Option<u64>,
    /// Number of bytes that were searched.
    pub(crate) bytes: usize,
}

impl MessageIds {
    pub(crate) fn new(read: Option<ReadRows>) -> Self {
        MessageIds {
            read,
            known: VecDeque::new(),
        }
    }

    /// Removes the function that reads the log and returns it.
    pub(crate) fn take_reader(&mut self) -> Option<ReadRows> {
        self.read.take()
    }

    /// Returns the event with a message id among the `events` of the log, if it can be found
    /// without a search. `position` is the position in the id, if the server has created it.
    ///
    /// # Errors
    ///
    /// Returns `internal` if the log cannot be read.
    pub(crate) fn locate(
        &mut self,
        id: &MessageId,
        position: Option<u64>,
        events: SeqRange,
    ) -> Result<Option<u64>> {
        let is_kept = |seq: &u64| (events.after + 1..=events.upto).contains(seq);
        let known = self.known.iter().find(|(_, known)| known == id);
        if let Some((seq, _)) = known {
            return Ok(Some(*seq).filter(is_kept));
        }
        let Some(seq) = position.filter(is_kept) else {
            return Ok(None);
        };
        let found = self.id_at(seq)?.as_ref() == Some(id);
        if found {
            self.keep(seq, id);
        }
        Ok(found.then_some(seq))
    }

    /// Searches a message id in the newest of the `events` of the log.
    ///
    /// # Errors
    ///
    /// Returns `internal` if the log cannot be read.
    pub(crate) fn search(&mut self, id: &MessageId, events: SeqRange) -> Result<Searched> {
        let mut needle = r#""messageId":"#.to_owned();
        push_string(&mut needle, id);
        let mut searched = Searched {
            seq: None,
            bytes: 0,
        };
        self.rows(events, &mut |first, body| {
            searched.bytes += body.len();
            let mut seq = first + body.split('\n').count() as u64;
            let mut lines = body.rsplit('\n').map(|line| {
                seq -= 1;
                (seq, line)
            });
            let found = lines.find(|(seq, line)| {
                // The text may also be in the content of an event.
                let is_kept = *seq > events.after && *seq <= events.upto;
                is_kept && line.contains(&needle) && message_id(line).as_ref() == Some(id)
            });
            searched.seq = found.map(|(seq, _)| seq);
            searched.seq.is_none() && searched.bytes < MAX_SEARCH
        })?;
        if let Some(seq) = searched.seq {
            self.keep(seq, id);
        }
        Ok(searched)
    }

    /// Returns the message id of an event. Returns `None` if the log does not have the event,
    /// or if it cannot be read.
    pub(crate) fn id_of(&mut self, seq: u64) -> Option<MessageId> {
        let mut known = self.known.iter();
        if let Some((_, id)) = known.find(|(known, _)| *known == seq) {
            return Some(id.clone());
        }
        let id = self.id_at(seq).ok().flatten()?;
        self.keep(seq, &id);
        Some(id)
    }

    fn keep(&mut self, seq: u64, id: &MessageId) {
        if self.known.iter().any(|(known, _)| *known == seq) {
            return;
        }
        if self.known.len() == MAX_KNOWN {
            self.known.pop_front();
        }
        self.known.push_back((seq, id.clone()));
    }

    /// Reads the message id of an event.
    fn id_at(&self, seq: u64) -> Result<Option<MessageId>> {
        let mut id = None;
        let after = seq.saturating_sub(1);
        self.rows(SeqRange { after, upto: seq }, &mut |first, body| {
            let index = seq.checked_sub(first).map(|index| index as usize);
            let line = index.and_then(|index| body.split('\n').nth(index));
            id = line.and_then(message_id);
            false
        })?;
        Ok(id)
    }

    fn rows(&self, events: SeqRange, take: &mut dyn FnMut(u64, &str) -> bool) -> Result<()> {
        match &self.read {
            Some(read) if !events.is_empty() => read(events, take).map_err(|_| Error::internal()),
            _ => Ok(()),
        }
    }
}

/// Returns the message id of a stored event.
fn message_id(line: &str) -> Option<MessageId> {
    // A sender's strings may contain a lone surrogate, so only the id is decoded.
    let envelope = RawObject::parse(line, "an envelope").ok()?;
    let stamp = envelope.raw("meta").or_else(|| envelope.raw("data"))?;
    let stamp = RawObject::parse(stamp.get(), "a stamp").ok()?;
    stamp
        .required("messageId", TEXT)
        .ok()
        .map(MessageId::trusted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::rc::Rc;

    fn id(text: &str) -> MessageId {
        MessageId::trusted(text)
    }

    fn line(seq: u64, id: &str) -> String {
        format!(
            r#"{{"event":"newMessage","data":{{"x":{{"messageId":"quoted"}},"messageId":"{id}","seq":{seq}}}}}"#
        )
    }

    /// Returns the ids of a log with two rows of two events, and the number of rows that were
    /// read.
    fn ids() -> (MessageIds, Rc<Cell<usize>>) {
        let reads = Rc::new(Cell::new(0));
        let count = reads.clone();
        let custom = r#"{"event":"x","data":{"messageId":"b"},"meta":{"messageId":"c","seq":3}}"#;
        let rows = [
            (3, [custom.to_owned(), line(4, "d")].join("\n")),
            (1, [line(1, "a"), line(2, "b")].join("\n")),
        ];
        let read: ReadRows = Box::new(move |range, take| {
            for (first, body) in &rows {
                if *first <= range.upto && first + 1 > range.after {
                    count.set(count.get() + 1);
                    if !take(*first, body) {
                        break;
                    }
                }
            }
            Ok(())
        });
        (MessageIds::new(Some(read)), reads)
    }

    const ALL: SeqRange = SeqRange { after: 0, upto: 4 };

    #[test]
    fn an_id_is_found_by_its_position_or_among_the_newest_events() {
        let (mut ids, reads) = ids();
        for (text, position, seq) in [("d", Some(4), 4), ("a", Some(1), 1)] {
            assert_eq!(
                ids.locate(&id(text), position, ALL),
                Ok(Some(seq)),
                "{text}"
            );
        }
        for (text, seq) in [("b", 2), ("c", 3)] {
            assert_eq!(ids.locate(&id(text), None, ALL), Ok(None));
            let searched = ids.search(&id(text), ALL).expect("the log can be read");
            assert_eq!(searched.seq, Some(seq), "{text}");
            assert!(searched.bytes > 0);
        }
        let before = reads.get();
        assert_eq!(ids.locate(&id("b"), None, ALL), Ok(Some(2)));
        assert_eq!(ids.id_of(2), Some(id("b")));
        assert_eq!(reads.get(), before, "kept");
    }

    #[test]
    fn an_id_of_no_event_or_of_an_expired_one_is_not_found() {
        let (mut ids, _) = ids();
        let late = SeqRange { after: 1, upto: 4 };
        // The second is the position of another event.
        for (text, position) in [
            ("quoted", None),
            ("x", Some(2)),
            ("a", Some(9)),
            ("a", Some(1)),
        ] {
            assert_eq!(ids.locate(&id(text), position, late), Ok(None), "{text}");
            let searched = ids.search(&id(text), late).expect("the log can be read");
            assert_eq!(searched.seq, None, "{text}");
        }
        assert_eq!(ids.locate(&id("a"), Some(1), ALL), Ok(Some(1)));
        assert_eq!(
            ids.locate(&id("a"), Some(1), late),
            Ok(None),
            "expired since"
        );
    }

    #[test]
    fn the_id_of_an_event_is_read_from_the_log() {
        let (mut ids, _) = ids();
        for (seq, expected) in [(1, "a"), (2, "b"), (3, "c"), (4, "d")] {
            assert_eq!(ids.id_of(seq), Some(id(expected)));
        }
        assert_eq!(MessageIds::default().id_of(1), None);
        for seq in 5..500 {
            ids.keep(seq, &id("z"));
        }
        assert_eq!(ids.known.len(), MAX_KNOWN);
    }

    #[test]
    fn the_search_for_an_id_ends_after_its_limit() {
        let rows = Rc::new(Cell::new(0));
        let count = rows.clone();
        let read: ReadRows = Box::new(move |_, take| {
            let body = "x".repeat(MAX_SEARCH / 4);
            while take(1, &body) {
                count.set(count.get() + 1);
            }
            Ok(())
        });
        let mut ids = MessageIds::new(Some(read));
        let searched = ids.search(&id("m"), ALL).expect("the log can be read");
        assert_eq!(searched.seq, None);
        assert_eq!((searched.bytes, rows.get()), (MAX_SEARCH, 3));
    }
}
