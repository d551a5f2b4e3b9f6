//! The state of the chat.

use super::cleaning::Cleaning;
use super::client::Client;
use super::clients::Clients;
use super::delivery_acks::DeliveryAcks;
use super::departures::Departures;
use super::pauses::Pauses;
use super::positions::DeliveryPositions;
use super::retries::Retries;
use super::room_link::RoomLink;
use crate::ids::ClientId;
use roomcast_proto::id::RoomName;
use roomcast_proto::time::{Millis, sooner};
use std::collections::{HashMap, HashSet};

/// The application of a gateway: its clients and their rooms.
#[derive(Default)]
pub(crate) struct Chat {
    pub(super) clients: Clients,
    pub(super) rooms: HashMap<RoomName, RoomLink>,
    /// The clients in [`super::client::Phase::Recovering`].
    pub(super) recovering: HashSet<ClientId>,
    pub(super) departures: Departures,
    pub(super) retries: Retries,
    pub(super) pauses: Pauses,
    pub(super) acks: DeliveryAcks,
    pub(super) positions: DeliveryPositions,
    pub(super) cleaning: Cleaning,
    /// See [`crate::Gateway::set_overloaded`].
    pub(crate) is_overloaded: bool,
    /// The clients that may wait for an answer of a room; see [`Chat::await_answer`].
    pub(super) awaiting: HashSet<ClientId>,
    /// No room has missed its time for an answer before this time.
    pub(super) next_answer: Option<Millis>,
    /// No client and no retry is due before this time.
    pub(super) next_deadline: Option<Millis>,
}

impl Chat {
    /// Makes [`Chat::next_deadline`] at most `at`.
    pub(super) fn schedule(&mut self, at: Millis) {
        sooner(&mut self.next_deadline, at);
    }

    /// Adds a client and schedules the expiry of its token.
    pub(super) fn add(&mut self, client: Client) -> ClientId {
        self.schedule(client.identity.expires);
        self.clients.insert(client)
    }
}
