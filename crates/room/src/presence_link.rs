//! The version of the presence that a gateway was told.
//!
//! Each delivery to a gateway has the version before it and the version after it. If the
//! gateway was told another version before, it has missed a delivery, or the room or the
//! gateway was restored meanwhile. Its answer then names the connections that may lack
//! changes ([`roomcast_proto::link::Pushed::lacking`]).

use roomcast_proto::link::PresenceVersion;

/// The state of a gateway.
#[derive(Debug, Default)]
pub(crate) struct PresenceLink {
    /// The version that the gateway was told; 0 if the room is not sure of it.
    told: PresenceVersion,
    /// The version after the delivery in progress; 0 if events that follow it were lost.
    sent: PresenceVersion,
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
        self.sent = version;
        PresenceStep {
            before: self.told,
            after: version,
        }
    }

    /// Returns the versions for a delivery with a part of the waiting items. The gateway is told
    /// the new version with the last part; until then, some changes may arrive that are not
    /// in its version.
    pub(crate) fn step_without_change(&mut self) -> PresenceStep {
        let told = self.told;
        self.step(told)
    }

    /// Handles the acknowledgement of the delivery.
    pub(crate) fn acknowledged(&mut self) {
        self.told = self.sent;
    }

    /// Records that events for the gateway were lost: those of the delivery in progress, or
    /// later ones.
    pub(crate) fn lost(&mut self) {
        self.told = 0;
        self.sent = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(before: PresenceVersion, after: PresenceVersion) -> PresenceStep {
        PresenceStep { before, after }
    }

    #[test]
    fn the_room_is_not_sure_of_the_version_after_a_loss() {
        let mut link = PresenceLink::default();
        assert_eq!(link.step(10), step(0, 10), "a new gateway");
        link.acknowledged();
        assert_eq!(link.step(12), step(10, 12));
        link.lost();
        assert_eq!(link.step(14), step(0, 14));
        link.acknowledged();
        assert_eq!(link.step(14), step(14, 14));
    }

    #[test]
    fn an_acknowledgement_does_not_hide_the_loss_of_later_events() {
        let mut link = PresenceLink::default();
        link.step(10);
        link.acknowledged();
        link.step(12);
        link.lost();
        link.acknowledged();
        assert_eq!(link.step(14), step(0, 14));
    }
}
