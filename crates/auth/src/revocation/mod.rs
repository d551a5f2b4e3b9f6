//! Token revocation: tokens that are rejected before their `exp`.
//!
//! One object of the server keeps the complete list ([`RevocationList`]). Every isolate has
//! a copy ([`RevocationCache`]), which is consulted whenever a token is verified. When a
//! copy is older than [`FRESH`], [`RevocationCache::step`] asks the host to fetch a
//! [`RevocationDelta`]. This module does no I/O.

mod cache;
mod list;
mod record;

pub use cache::{FRESH, RefreshStep, RevocationCache};
pub use list::{ListFull, MAX_REVOCATIONS, RevocationList};
pub use record::{MAX_JTI, MAX_LIFE, Revocation, RevocationDelta, RevocationTarget};
