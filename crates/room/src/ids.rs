//! Identifiers that are valid for one instance of a room.

slotmap::new_key_type! {
    /// A connection of a room. The slot of a closed connection is reused, its key is not:
    /// each key contains the generation of its slot, so the key of a closed connection
    /// finds nothing.
    pub struct ConnId;
}

/// A request of a service that waits for its answer. The host chooses the ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CallId(pub u64);

/// Returns a key that stands for the connection `n` in tests of parts.
#[cfg(test)]
pub(crate) fn conn(n: u32) -> ConnId {
    slotmap::KeyData::from_ffi((1 << 32) | u64::from(n)).into()
}
