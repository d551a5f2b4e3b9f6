//! The version of the presence that the clients of a gateway were told.
//!
//! Each delivery to a gateway has the version before it and the version after it. If the
//! gateway was told another version before, it has missed a delivery, or the room or the
//! gateway was restored meanwhile. Then it answers with its version and keeps it, and the
//! room feeds it the changes since that version.

use roomcast_proto::link::PresenceVersion;

/// The state of a gateway.
#[derive(Debug, Default)]
pub(crate) struct PresenceLink {
    /// The version that the gateway was told; 0 if the room is not sure of it.
    told: PresenceVersion,
    /// The version after the delivery in progress.
    sent: PresenceVersion,
    /// A feed for the gateway is waiting or in progress.
    is_fed: bool,
}

/// The versions before and after a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PresenceStep {
    pub(crate) before: PresenceVersion,
    pub(crate) after: PresenceVersion,
}

impl PresenceLink {
    /// Returns the versions for the next delivery. `version` is that of the room.
    pub(crate) fn step(&mut self, version: PresenceVersion) -> PresenceStep {
        // During a feed, the gateway keeps the version from which the feed starts.
        self.sent = match self.is_fed {
            true => self.told,
            false => version,
        };
        PresenceStep {
            before: self.told,
            after: self.sent,
        }
    }

    /// Handles the acknowledgement of the delivery. `known` is the version of the gateway, if
    /// it is not the one before the delivery. Returns the version from which a feed must
    /// start, if one must.
    pub(crate) fn acknowledged(
        &mut self,
        known: Option<PresenceVersion>,
    ) -> Option<PresenceVersion> {
        let Some(known) = known else {
            self.told = self.sent;
            return None;
        };
        if self.is_fed {
            // The feed may start from another version, so the gateway is asked again when it
            // has ended.
            self.told = 0;
            return None;
        }
        self.told = known;
        self.is_fed = true;
        Some(known)
    }

    /// Records that events for the gateway were lost.
    pub(crate) fn lost(&mut self) {
        self.told = 0;
    }

    /// Records that the feed has ended.
    pub(crate) fn feed_ended(&mut self) {
        self.is_fed = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(before: PresenceVersion, after: PresenceVersion) -> PresenceStep {
        PresenceStep { before, after }
    }

    #[test]
    fn a_gateway_that_lost_a_delivery_keeps_its_version_until_it_was_fed() {
        let mut link = PresenceLink::default();
        assert_eq!(link.step(10), step(0, 10));
        assert_eq!(link.acknowledged(None), None, "a new gateway");
        assert_eq!(link.step(12), step(10, 12));
        link.lost();
        assert_eq!(link.step(14), step(0, 14));
        assert_eq!(link.acknowledged(Some(10)), Some(10));
        assert_eq!(link.step(16), step(10, 10), "the feed has not ended");
        assert_eq!(link.acknowledged(None), None);
        link.feed_ended();
        assert_eq!(link.step(16), step(10, 16));
        assert_eq!(link.acknowledged(None), None);
        assert_eq!(link.step(16), step(16, 16));
    }

    #[test]
    fn one_feed_runs_at_a_time() {
        let mut link = PresenceLink::default();
        link.step(10);
        assert_eq!(link.acknowledged(Some(1)), Some(1));
        assert_eq!(link.step(12), step(1, 1));
        assert_eq!(link.acknowledged(Some(8)), None, "is being fed");
        link.feed_ended();
        assert_eq!(link.step(12), step(0, 12));
        assert_eq!(link.acknowledged(Some(8)), Some(8));
    }
}
