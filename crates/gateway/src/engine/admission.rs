//! Rate limits of new connections.

use crate::config::GatewayConfig;
use crate::connect_info::ConnectInfo;
use roomcast_proto::error::Error;
use roomcast_proto::limits::{
    CONNECTS, ConnectionLimits, FloodGuard, KeyedRateLimiter, network_of,
};
use roomcast_proto::time::Millis;

/// Completes the error "too many …" for an address with too many refused CONNECTs.
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

    /// See [`super::EngineServer::admit`].
    pub(super) fn admit(
        &mut self,
        info: &ConnectInfo,
        config: &GatewayConfig,
        now: Millis,
    ) -> Result<(), Error> {
        let address = match &info.address {
            Some(address) => self.admit_address(info, address, config, now),
            None => Ok(()),
        };
        let user = match &info.identity {
            Some(identity) => self.flood_guard.admit(&identity.user, now),
            None => Ok(()),
        };
        address.and(user)
    }

    fn admit_address(
        &mut self,
        info: &ConnectInfo,
        address: &str,
        config: &GatewayConfig,
        now: Millis,
    ) -> Result<(), Error> {
        let network = network_of(address);
        if info.identity.is_none() {
            let rate = config.refused_connects;
            self.refused_connects
                .check(&network, REFUSED_CONNECTS, rate, now)?;
        }
        self.connects
            .admit(&network, CONNECTS, config.limits.connects, now)
    }

    /// Counts a refused CONNECT of this address.
    pub(super) fn count_refused_connect(
        &mut self,
        address: &str,
        config: &GatewayConfig,
        now: Millis,
    ) {
        let (network, rate) = (network_of(address), config.refused_connects);
        // If the limit is exceeded, `admit` refuses the next connection.
        let _ = self
            .refused_connects
            .admit(&network, REFUSED_CONNECTS, rate, now);
    }
}
