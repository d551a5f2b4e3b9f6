//! Loads. Each module drives one started server and returns its measurements.

pub mod bill;
pub mod fanout;
pub mod growth;
pub mod idle;
pub mod publish;
pub mod rush;
pub mod steady;
pub mod wake;

/// The room of loads that use a single room.
pub const ROOM: &str = "bench";
