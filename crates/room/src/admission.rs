//! Limits that all connections of a room share: the rate of connections per address, bans
//! after a flood, the bytes of events, and the rate at which users read over HTTP.
//!
//! They are kept in memory only, because a flooded room does not hibernate.

use crate::config::RoomConfig;
use crate::connection::Connection;
use roomcast_proto::error::{Error, Result};
use roomcast_proto::limits::{
    CONNECTS, ConnectionLimits, FloodGuard, KeyedRateLimiter, Penalty, TokenBucket, network_of,
    page_tokens,
};
use roomcast_proto::link::ConnectRequest;
use roomcast_proto::time::Millis;

/// The limits of a room. They survive the deletion of the log.
#[derive(Debug)]
pub(crate) struct Admission {
    by_address: KeyedRateLimiter,
    floods: FloodGuard,
    /// The reads of each user over HTTP.
    reads: KeyedRateLimiter,
    /// The bytes of the events of clients and services.
    bytes: TokenBucket,
}

impl Admission {
    pub(crate) fn new(config: &RoomConfig) -> Self {
        Admission {
            by_address: KeyedRateLimiter::default(),
            floods: FloodGuard::new(&config.limits, 0),
            bytes: TokenBucket::full(config.bytes, 0),
            reads: KeyedRateLimiter::default(),
        }
    }

    /// Checks the rate of connections from the address, and that the user is not banned.
    pub(crate) fn admit(
        &mut self,
        request: &ConnectRequest,
        limits: &ConnectionLimits,
        now: Millis,
    ) -> Result<()> {
        if let Some(address) = &request.address {
            let network = network_of(address);
            self.by_address
                .admit(&network, CONNECTS, limits.connects, now)?;
        }
        self.floods.admit(&request.user, now)
    }

    /// Checks the rate at which a user reads over HTTP.
    pub(crate) fn admit_reader(
        &mut self,
        reader: &str,
        limits: &ConnectionLimits,
        now: Millis,
    ) -> Result<()> {
        self.reads.admit(reader, "reads", limits.joins, now)
    }

    /// Counts a large answer as several reads.
    pub(crate) fn reader_answered(
        &mut self,
        reader: &str,
        bytes: usize,
        limits: &ConnectionLimits,
    ) {
        self.reads.charge(reader, page_tokens(bytes), limits.joins);
    }

    /// Counts an event of this number of bytes. A resend counts as well.
    ///
    /// # Errors
    ///
    /// Returns `rateLimited` if the room has received too many bytes.
    pub(crate) fn take_bytes(
        &mut self,
        bytes: usize,
        config: &RoomConfig,
        now: Millis,
    ) -> Result<()> {
        let taken = self.bytes.take_many(bytes, config.bytes, now);
        taken.map_err(|wait| Error::rate_limited("bytes in this room", wait))
    }

    /// Counts a rejected command of a connection and returns the penalty.
    pub(crate) fn penalize(
        &mut self,
        connection: &mut Connection,
        limits: &ConnectionLimits,
        now: Millis,
    ) -> Penalty {
        let user = &connection.attachment.user;
        connection
            .allowance
            .refuse(&mut self.floods, user, limits, now)
    }
}
