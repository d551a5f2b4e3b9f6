//! Limits that protect an object from its clients. The caller passes the current time.
//!
//! - Rate limits: a [`TokenBucket`] for one client, a [`KeyedRateLimiter`] for many
//! - [`ConnectionLimits`]: the settings of one connection. [`Allowance`] enforces them:
//!   call [`Allowance::take`] before a command, and [`Allowance::refuse`] after each
//!   command that was rejected
//! - [`FloodGuard`]: one per object; bans users whose connections flood it
//! - [`SlowConsumerGuard`]: one per connection; finds clients that do not read

mod allowance;
mod connection;
mod flood;
mod rate_limit;
mod refusals;
mod slow_consumer;

pub use allowance::{Allowance, Kind, page_tokens};
pub use connection::{ConnectionLimits, Limits};
pub use flood::{FloodGuard, MAX_VIOLATION_TIME, Penalty};
pub use rate_limit::{CONNECTS, KeyedRateLimiter, Rate, TokenBucket, network_of};
pub use refusals::Refusals;
pub use slow_consumer::{MAX_UNACKED_BEFORE_FIRST_SIGN, SlowConsumerGuard};
