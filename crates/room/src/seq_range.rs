//! Ranges of sequence numbers.

/// The events after `after`, up to `upto` and including it. Empty if `after >= upto`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeqRange {
    /// Sequence number of the last event before the range.
    pub after: u64,
    /// Sequence number of the last event in the range.
    pub upto: u64,
}

impl SeqRange {
    /// Returns `true` if there is no event in the range.
    pub fn is_empty(&self) -> bool {
        self.after >= self.upto
    }

    /// Returns the number of events in the range.
    pub fn len(&self) -> u64 {
        self.upto.saturating_sub(self.after)
    }
}
