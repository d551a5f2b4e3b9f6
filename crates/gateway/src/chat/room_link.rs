//! The state that a gateway keeps for a room.

use crate::ids::ClientId;
use roomcast_proto::id::{ConnectionId, Epoch};
use roomcast_proto::link::{Command as ToRoom, PresenceVersion, UNKNOWN_PRESENCE};
use roomcast_proto::time::{MINUTE, Millis, SECOND};
use std::collections::HashSet;

/// The maximum number of turns of the event loop for which a request waits for further
/// commands: as many as a batch of a room waits.
const MAX_TURNS: u32 = 4;

/// Longest delays in milliseconds after which commands are sent again whose request has failed
/// once, twice, and so on. They are similar to those of a room for an unreachable gateway.
const RETRY_DELAYS: [Millis; 5] = [2 * SECOND, 5 * SECOND, 10 * SECOND, 30 * SECOND, MINUTE];

/// The subscribers of a room, the commands for it, and its deliveries so far.
#[derive(Default)]
pub(super) struct RoomLink {
    /// The clients that are subscribed, or being subscribed.
    pub(super) subscribers: Vec<ClientId>,
    /// The commands for the next request.
    outbox: Vec<ToRoom>,
    /// [`crate::Output::Forward`] was sent, and the host has not taken all commands yet.
    is_forwarding: bool,
    /// Number of commands in the request in progress.
    sent: usize,
    /// Number of turns for which the next request has waited.
    turns: u32,
    /// The subscriptions that the request in progress ends.
    sent_departures: Vec<ConnectionId>,
    /// The result of the last request is not known.
    is_in_flight: bool,
    /// Number of consecutive requests that failed.
    failures: usize,
    last_delivery: LastDelivery,
    /// The version of the room's presence that the subscribers were told, except for those in
    /// `lacking`; [`UNKNOWN_PRESENCE`] after the gateway was restored without it. `None` before
    /// the first delivery.
    pub(super) presence: Option<PresenceVersion>,
    /// The subscribers that may lack changes of the presence: see [`super::presence`].
    pub(super) lacking: HashSet<ClientId>,
    /// The version in the last [`crate::Output::TrackPosition`].
    pub(super) reported_presence: Option<PresenceVersion>,
    /// The epoch of the log of the room.
    pub(super) epoch: Epoch,
    /// The highest `seq` that was delivered to all subscribers, except for those that
    /// lag.
    pub(super) delivered: u64,
    /// The value of `delivered` in the last [`crate::Output::TrackPosition`].
    pub(super) reported: Option<u64>,
    /// `delivered` or `presence` has changed since the last [`crate::Output::StorePosition`].
    pub(super) is_unsaved: bool,
    /// The host has stored a position of the room.
    pub(super) is_stored: bool,
}

/// The last delivery of a room.
#[derive(Default)]
struct LastDelivery {
    /// The id of the room's instance; see [`roomcast_proto::link::Push::life`].
    life: String,
    /// The number of the delivery; see [`roomcast_proto::link::Push::number`].
    number: u64,
}

impl RoomLink {
    /// Adds a command for the room. Returns `true` if the caller must push
    /// [`crate::Output::Forward`].
    pub(super) fn push(&mut self, command: ToRoom) -> bool {
        self.outbox.push(command);
        !std::mem::replace(&mut self.is_forwarding, true)
    }

    /// Returns `true` if the host must wait for the next turn of the event loop before it
    /// takes the commands. Under constant load, each request has about as many commands
    /// as the last one. While fewer commands wait, more are likely to arrive.
    pub(super) fn awaits_turn(&mut self) -> bool {
        let awaits = (1..self.sent).contains(&self.outbox.len()) && self.turns < MAX_TURNS;
        self.turns = if awaits { self.turns + 1 } else { 0 };
        awaits
    }

    /// Returns the subscriptions that the last request has ended. Called when the request
    /// has arrived.
    pub(super) fn take_departures(&mut self) -> Vec<ConnectionId> {
        std::mem::take(&mut self.sent_departures)
    }

    /// Returns the commands for a request, or `None` if there are none.
    pub(super) fn take_commands(&mut self) -> Option<Vec<ToRoom>> {
        if std::mem::take(&mut self.is_in_flight) {
            self.failures = 0;
        }
        if self.outbox.is_empty() {
            self.is_forwarding = false;
            return None;
        }
        self.sent = self.outbox.len();
        self.is_in_flight = true;
        let departures = self
            .outbox
            .iter()
            .filter(|command| matches!(command, ToRoom::Gone { .. }));
        self.sent_departures = departures
            .map(|command| command.connection().clone())
            .collect();
        Some(std::mem::take(&mut self.outbox))
    }

    /// Records that the last request failed. It may have arrived.
    pub(super) fn forward_failed(&mut self) {
        self.sent_departures.clear();
        self.is_in_flight = false;
        self.failures += 1;
    }

    /// Returns the longest delay until a command of the last request is sent again.
    pub(super) fn retry_delay(&self) -> Millis {
        let last = RETRY_DELAYS.len() - 1;
        RETRY_DELAYS[self.failures.saturating_sub(1).min(last)]
    }

    /// Returns `true` if the delivery with this life and number was received before. The
    /// room repeats deliveries whose answer was lost.
    pub(super) fn is_repeated(&self, life: &str, number: u64) -> bool {
        let last = &self.last_delivery;
        last.life == life && number <= last.number
    }

    /// Records a delivery.
    pub(super) fn received(&mut self, life: String, number: u64, epoch: Epoch) {
        self.last_delivery = LastDelivery { life, number };
        self.epoch = epoch;
    }

    /// Returns the version of the presence to restore after hibernation or a panic. While some
    /// subscribers lack changes, it is [`UNKNOWN_PRESENCE`], because their versions are not
    /// stored.
    pub(super) fn presence_to_store(&self) -> Option<PresenceVersion> {
        let complete = self.lacking.is_empty();
        self.presence
            .map(|presence| if complete { presence } else { UNKNOWN_PRESENCE })
    }

    /// Returns `true` if the room has no subscribers and no commands in progress.
    pub(super) fn is_unused(&self) -> bool {
        self.subscribers.is_empty() && self.outbox.is_empty() && !self.is_forwarding
    }
}
