//! Limits on new connections: the rate per address, and bans after a flood.
//!
//! They are kept in memory only, because a flooded room does not hibernate.

use crate::connection::Connection;
use roomcast_proto::error::Result;
use roomcast_proto::limits::{
    CONNECTS, ConnectionLimits, FloodGuard, KeyedRateLimiter, Penalty, network_of,
};
use roomcast_proto::link::ConnectRequest;
use roomcast_proto::time::Millis;

/// The limits on new connections of a room. They survive the deletion of the log.
#[derive(Debug)]
pub(crate) struct Admission {
    by_address: KeyedRateLimiter,
    floods: FloodGuard,
}

impl Admission {
    pub(crate) fn new(limits: &ConnectionLimits) -> Self {
        Admission {
            by_address: KeyedRateLimiter::default(),
            floods: FloodGuard::new(limits, 0),
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
