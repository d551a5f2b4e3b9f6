//! The state that a gateway keeps for a room.

use crate::ids::ClientId;
use roomcast_proto::id::{ConnectionId, Epoch};
use roomcast_proto::link::{Command as ToRoom, PresenceVersion, UNKNOWN_PRESENCE};
use roomcast_proto::time::{MINUTE, Millis, SECOND};
use std::collections::HashSet;

/// The maximum number of turns of the event loop for which a request waits for further
/// commands: as many as a batch of a room waits.
const MAX_TURNS: u32 = 4;

/// Maximum number of commands in one request to a room. The room executes all of them in one
/// turn of its event loop, about as long as it takes to deliver a batch.
const MAX_REQUEST_COMMANDS: usize = 1_000;

/// Maximum size in bytes of the commands in one request to a room, unless a single command is
/// larger. The room reads a request as a whole.
const MAX_REQUEST_BYTES: usize = 1 << 20;

/// Size in bytes of the waiting commands from which further commands of clients are refused:
/// at most 16,384 commands, which a room that answers takes within seconds. An object has 128 MB of memory
/// (<https://developers.cloudflare.com/durable-objects/platform/limits/>).
const MAX_WAITING_BYTES: usize = 4 << 20;

/// Size in bytes that a command is counted with, in addition to its event: the ids, the names
/// and the JSON around them.
const COMMAND_BYTES: usize = 256;

/// Longest delays in milliseconds after which commands are sent again whose request has failed
/// once, twice, and so on. They are similar to those of a room for an unreachable gateway.
const RETRY_DELAYS: [Millis; 5] = [2 * SECOND, 5 * SECOND, 10 * SECOND, 30 * SECOND, MINUTE];

/// The subscribers of a room, the commands for it, and its deliveries so far.
#[derive(Default)]
pub(super) struct RoomLink {
    /// The clients that are subscribed, or being subscribed.
    pub(super) subscribers: Vec<ClientId>,
    /// The commands for the next requests.
    outbox: Vec<ToRoom>,
    /// Size in bytes of the commands in `outbox`; see [`bytes_of`].
    outbox_bytes: usize,
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

/// Returns the size in bytes that a command is counted with.
fn bytes_of(command: &ToRoom) -> usize {
    let event = match command {
        ToRoom::Execute { command, .. } => command.event_bytes(),
        _ => 0,
    };
    COMMAND_BYTES + event
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
        self.outbox_bytes += bytes_of(&command);
        self.outbox.push(command);
        !std::mem::replace(&mut self.is_forwarding, true)
    }

    /// Returns `true` if so many commands wait that further commands of clients must be refused.
    /// The commands of the gateway itself are queued in any case.
    pub(super) fn is_full(&self) -> bool {
        self.outbox_bytes >= MAX_WAITING_BYTES
    }

    /// Returns the number of waiting commands that fit into one request.
    fn next_request(&self) -> usize {
        let mut bytes = 0;
        let commands = self.outbox.iter().take(MAX_REQUEST_COMMANDS);
        let fitting = commands.take_while(|command| {
            bytes += bytes_of(command);
            bytes <= MAX_REQUEST_BYTES
        });
        fitting.count().max(1).min(self.outbox.len())
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
        let next = self.next_request();
        let commands: Vec<ToRoom> = self.outbox.drain(..next).collect();
        self.outbox_bytes -= commands.iter().map(bytes_of).sum::<usize>();
        self.sent = commands.len();
        self.is_in_flight = true;
        let departures = commands
            .iter()
            .filter(|command| matches!(command, ToRoom::Gone { .. }));
        self.sent_departures = departures
            .map(|command| command.connection().clone())
            .collect();
        Some(commands)
    }

    /// Records that the last request failed. It may have arrived. If more commands wait than
    /// fit into the next request, removes and returns them: they fail as well, so that no
    /// command waits for more than two requests to a room that does not answer.
    pub(super) fn forward_failed(&mut self) -> Vec<ToRoom> {
        self.sent_departures.clear();
        self.is_in_flight = false;
        self.failures += 1;
        if self.next_request() == self.outbox.len() {
            return Vec::new();
        }
        self.outbox_bytes = 0;
        std::mem::take(&mut self.outbox)
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
