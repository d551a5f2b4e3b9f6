//! Token revocation: tokens that are rejected before their `exp`.
//!
//! One object of the server keeps the complete list ([`RevocationList`]). Every isolate has
//! a copy ([`RevocationCache`]), which is consulted whenever a token is verified. When a
//! copy is older than [`FRESH`], [`RevocationCache::step`] asks the host to fetch a
//! [`RevocationDelta`]. While the object does not answer, the last copy is used for
//! `REVOCATION_MAX_AGE`; after that no token is accepted. A [`NoticePass`] delivers new
//! revocations to the objects that have sockets. This module does no I/O.

mod cache;
mod list;
mod pass;
mod record;

pub use cache::{FRESH, MAX_AGE, RefreshStep, RevocationCache};
pub use list::{ListFull, MAX_REVOCATIONS, Page, RevocationList};
pub use pass::NoticePass;
pub use record::{MAX_JTI, MAX_LIFE, Revocation, RevocationDelta, RevocationTarget};
