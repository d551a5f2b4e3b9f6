//! Rate limits of new connections.

use super::{ConnectInfo, EngineServer};
use roomcast_proto::error::Error;
use roomcast_proto::limits::{
    CONNECTS, ConnectionLimits, FloodGuard, KeyedRateLimiter, network_of,
};
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::time::Millis;

/// The subject of the `rateLimited` error for an address with too many refused
/// CONNECTs.
const REFUSED_CONNECTS: &str = "refused connects from this address";

/// The limits that all connections of a gateway share.
pub(crate) struct Admission {
    /// New connections, by network.
    connects: KeyedRateLimiter,
    /// Refused CONNECTs, by network.
    refused_connects: KeyedRateLimiter,
    /// Refused commands of all connections, and the users that are banned for them.
    pub(crate) flood_guard: FloodGuard,
}

impl Admission {
    pub(super) fn new(limits: &ConnectionLimits) -> Self {
        Admission {
            connects: KeyedRateLimiter::default(),
            refused_connects: KeyedRateLimiter::default(),
            flood_guard: FloodGuard::new(limits, 0),
        }
    }
}

impl EngineServer {
    /// Counts a new connection of this address and user. Returns an error if there were
    /// too many, or if the user is banned. Not called for an upgrade of an existing
    /// session.
    pub fn admit(&mut self, info: &ConnectInfo, now: Millis) -> Result<(), Error> {
        let address = info
            .address
            .as_deref()
            .map_or(Ok(()), |address| self.admit_address(info, address, now));
        let user = info.identity.as_ref().map_or(Ok(()), |identity| {
            self.admission.flood_guard.admit(&identity.user, now)
        });
        address.and(user).inspect_err(|error| {
            self.log(LogRecord::reject("rate").with("code", error.code.as_str()));
        })
    }

    fn admit_address(
        &mut self,
        info: &ConnectInfo,
        address: &str,
        now: Millis,
    ) -> Result<(), Error> {
        let network = network_of(address);
        let Admission {
            connects,
            refused_connects,
            ..
        } = &mut self.admission;
        if info.identity.is_none() {
            let rate = self.config.refused_connects;
            refused_connects.check(&network, REFUSED_CONNECTS, rate, now)?;
        }
        connects.admit(&network, CONNECTS, self.config.limits.connects, now)
    }

    /// Counts a refused CONNECT of this address.
    pub(crate) fn count_refused_connect(&mut self, address: &str) {
        let (network, rate) = (network_of(address), self.config.refused_connects);
        // Over the limit, `admit` refuses the next connection.
        let counts = &mut self.admission.refused_connects;
        let _ = counts.admit(&network, REFUSED_CONNECTS, rate, self.now);
    }
}
