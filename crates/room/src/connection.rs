//! One connection of a room.

use crate::attachment::Attachment;
use crate::catch_up::CatchUp;
use roomcast_proto::access::Rights;
use roomcast_proto::error::{Error, Result};
use roomcast_proto::id::Epoch;
use roomcast_proto::limits::{Allowance, ConnectionLimits, SlowConsumerGuard};
use roomcast_proto::link::{PresenceVersion, client_of};
use roomcast_proto::position::Position;
use roomcast_proto::time::Millis;

/// A connection: its persistent part, and the state that is lost in hibernation.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) attachment: Attachment,
    /// Number of the first batch that the connection receives. It receives earlier
    /// events from the log.
    pub(crate) live_from: u64,
    /// Number of the last batch that the connection receives, if it has left the room. The
    /// host may still have to send batches from before the leave.
    pub(crate) live_until: u64,
    /// Set while the client has left the room and its socket is open: the last event that it
    /// has received. It has received all events after [`Attachment::from`] up to this one.
    pub(crate) left_at: Option<u64>,
    /// Set while the connection catches up. Always set while a connection that has joined is
    /// stalled.
    pub(crate) catch_up: Option<CatchUp>,
    /// The time at which the connection stalled; `None` if it is not stalled. Connections at
    /// gateways do not stall.
    pub(crate) stalled_at: Option<Millis>,
    /// The version of the presence that the connection was told before it stalled, if it has
    /// stalled since it was last live.
    lost_presence: Option<PresenceVersion>,
    /// The rate limits of the connection.
    pub(crate) allowance: Allowance,
    pub(crate) slow_consumer: SlowConsumerGuard,
}

/// The part of a batch that a connection receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Receives {
    All,
    /// All events except the logged ones, which a connection that catches up receives
    /// from the log.
    Ephemeral,
    Nothing,
}

impl Connection {
    /// Creates a connection that was active at `active_at`.
    pub(crate) fn new(
        attachment: Attachment,
        limits: &ConnectionLimits,
        active_at: Millis,
        now: Millis,
    ) -> Self {
        Connection {
            live_from: 0,
            live_until: if attachment.joined { u64::MAX } else { 0 },
            attachment,
            left_at: None,
            catch_up: None,
            stalled_at: None,
            lost_presence: None,
            allowance: Allowance::full(limits, now),
            slow_consumer: SlowConsumerGuard::new(active_at),
        }
    }

    /// Returns the position from which a client reads the log that joins again on the same
    /// socket. A position among the events that the client has received moves behind them:
    /// they may have been under way when the client took its position.
    pub(crate) fn continue_after_leave(&self, position: &Position, epoch: &Epoch) -> Position {
        let mut position = position.clone();
        let is_same_log = position.epoch.as_ref().is_none_or(|it| it == epoch);
        if let (true, Some(since), Some(left_at)) = (is_same_log, position.since, self.left_at)
            && (self.attachment.from..=left_at).contains(&since)
        {
            position.since = Some(left_at);
        }
        position
    }

    /// Checks that the connection has joined and that its token grants `right`.
    pub(crate) fn require(&self, right: Rights) -> Result<()> {
        if !self.attachment.joined {
            return Err(Error::not_joined());
        }
        if !self.attachment.rights.has(right) {
            return Err(Error::forbidden(
                "the token does not allow this in the room",
            ));
        }
        Ok(())
    }

    /// Records that the connection has stalled. It was told the presence of this version.
    pub(crate) fn stall(&mut self, presence: PresenceVersion, now: Millis) {
        self.stalled_at = Some(now);
        self.lost_presence.get_or_insert(presence);
    }

    /// Returns the version of the presence that the connection was told before it stalled, if
    /// it has stalled since the last call. A connection that is live again needs the changes
    /// since then.
    pub(crate) fn take_lost_presence(&mut self) -> Option<PresenceVersion> {
        self.lost_presence.take()
    }

    /// Returns the part of a batch that the connection receives.
    pub(crate) fn receives(&self, batch: u64) -> Receives {
        let is_live = (self.live_from..=self.live_until).contains(&batch);
        if !is_live || !self.attachment.rights.has(Rights::READ) || self.stalled_at.is_some() {
            Receives::Nothing
        } else if self.catch_up.is_some() && !self.attachment.remote {
            // The gateway of a remote connection selects the events by its position.
            Receives::Ephemeral
        } else {
            Receives::All
        }
    }

    /// Returns `true` if this is a connection of a client at a gateway.
    pub(crate) fn is_of_client(&self, client: &str) -> bool {
        self.attachment.remote && client_of(&self.attachment.id) == client
    }
}
