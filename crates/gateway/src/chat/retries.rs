//! Commands that are sent again because their request to a room failed.

use roomcast_proto::id::RoomName;
use roomcast_proto::link::Command as ToRoom;
use roomcast_proto::time::Millis;

/// A command to send again.
pub(super) struct Retry {
    pub(super) at: Millis,
    pub(super) room: RoomName,
    pub(super) command: ToRoom,
}

/// All commands to send again.
#[derive(Default)]
pub(super) struct Retries(Vec<Retry>);

impl Retries {
    pub(super) fn push(&mut self, retry: Retry) {
        self.0.push(retry);
    }

    /// Returns `true` if a command for this room is sent again later.
    pub(super) fn has(&self, room: &RoomName) -> bool {
        self.0.iter().any(|retry| retry.room == *room)
    }

    /// Returns the commands that are due.
    pub(super) fn take_due(&mut self, now: Millis) -> Vec<Retry> {
        self.0.extract_if(.., |retry| retry.at <= now).collect()
    }

    /// Returns the time at which the next command is due.
    pub(super) fn deadline(&self) -> Option<Millis> {
        self.0.iter().map(|retry| retry.at).min()
    }
}
