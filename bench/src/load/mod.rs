//! The loads: each puts one started server to work and says what that gave.

pub mod bill;
pub mod fanout;
pub mod growth;
pub mod idle;
pub mod publish;
pub mod rush;
pub mod steady;
pub mod wake;

/// The room that load goes to where one is enough.
pub const ROOM: &str = "bench";
