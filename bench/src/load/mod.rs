//! Loads. Each module drives one started server and returns its measurements.

pub(crate) mod bill;
pub(crate) mod fanout;
pub(crate) mod growth;
pub(crate) mod idle;
pub(crate) mod publish;
pub(crate) mod rush;
pub(crate) mod steady;
pub(crate) mod wake;

/// The room of loads that use a single room.
pub(crate) const ROOM: &str = "bench";
