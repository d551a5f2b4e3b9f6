//! Token revocation: tokens that are rejected before their `exp`.
//!
//! One object of the server keeps the complete list ([`RevocationList`]). Every isolate has
//! a copy ([`RevocationCache`]), which is consulted whenever a token is verified. The
//! host refreshes a copy that is older than [`FRESH`] by a [`RevocationDelta`], when
//! [`RevocationCache::step`] says so; nothing here fetches by itself.

mod cache;
mod list;
mod record;

pub use cache::{FRESH, RefreshStep, RevocationCache};
pub use list::{ListFull, MAX_REVOCATIONS, RevocationList};
pub use record::{MAX_JTI, MAX_LIFE, Revocation, RevocationDelta, RevocationTarget};
