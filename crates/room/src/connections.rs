//! The connections of a room: those of its own sockets and those at gateways.

use crate::catch_up::{CatchUp, Portion};
use crate::connection::{Connection, Receives};
use crate::ids::ConnId;
use crate::seq_range::SeqRange;
use roomcast_proto::access::Rights;
use roomcast_proto::error::{Error, Result};
use roomcast_proto::id::UserId;
use roomcast_proto::limits::{ConnectionLimits, Kind};
use roomcast_proto::time::Millis;
use slotmap::SlotMap;
use std::collections::HashMap;

/// All connections of a room.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    slots: SlotMap<ConnId, Connection>,
    /// The connections of each user.
    by_user: HashMap<UserId, Vec<ConnId>>,
}

impl Connections {
    pub(crate) fn insert(&mut self, connection: Connection) -> ConnId {
        let user = connection.attachment.user.clone();
        let conn = self.slots.insert(connection);
        self.by_user.entry(user).or_default().push(conn);
        conn
    }

    pub(crate) fn remove(&mut self, conn: ConnId) -> Option<Connection> {
        let connection = self.slots.remove(conn)?;
        let user = &connection.attachment.user;
        if let Some(conns) = self.by_user.get_mut(user) {
            conns.retain(|one| *one != conn);
            if conns.is_empty() {
                self.by_user.remove(user);
            }
        }
        Some(connection)
    }

    pub(crate) fn get(&self, conn: ConnId) -> Option<&Connection> {
        self.slots.get(conn)
    }

    pub(crate) fn get_mut(&mut self, conn: ConnId) -> Option<&mut Connection> {
        self.slots.get_mut(conn)
    }

    pub(crate) fn contains(&self, conn: ConnId) -> bool {
        self.slots.contains_key(conn)
    }

    /// Returns the number of connections.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Returns the connections of a user, except those at gateways whose membership has
    /// ended and that the end of the batch removes.
    pub(crate) fn of_user(&self, user: &UserId) -> impl Iterator<Item = (ConnId, &Connection)> {
        let conns = self.by_user.get(user).into_iter().flatten();
        let connections = conns.filter_map(|conn| Some((*conn, self.get(*conn)?)));
        connections.filter(|(_, connection)| {
            let attachment = &connection.attachment;
            attachment.joined || !attachment.remote
        })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (ConnId, &Connection)> {
        self.slots.iter()
    }

    /// Returns the first connection that matches.
    pub(crate) fn find(&self, matches: impl Fn(&Connection) -> bool) -> Option<ConnId> {
        let mut slots = self.slots.iter();
        slots.find_map(|(conn, connection)| matches(connection).then_some(conn))
    }

    /// Returns the connections that match. The list is independent of `self`, so that the
    /// caller can close them.
    pub(crate) fn filter(&self, matches: impl Fn(&Connection) -> bool) -> Vec<ConnId> {
        let slots = self.slots.iter();
        slots
            .filter(|(_, connection)| matches(connection))
            .map(|(conn, _)| conn)
            .collect()
    }

    /// Returns `true` if the connection has joined the room.
    pub(crate) fn is_joined(&self, conn: ConnId) -> bool {
        self.get(conn)
            .is_some_and(|connection| connection.attachment.joined)
    }

    /// Returns the part of a batch that a connection receives.
    pub(crate) fn receives(&self, conn: ConnId, batch: u64) -> Receives {
        self.get(conn)
            .map_or(Receives::Nothing, |connection| connection.receives(batch))
    }

    /// Returns the user of a connection that has joined and whose token grants `right`.
    pub(crate) fn require(&self, conn: ConnId, right: Rights) -> Result<UserId> {
        let connection = self.get(conn).ok_or_else(Error::internal)?;
        connection.require(right)?;
        Ok(connection.attachment.user.clone())
    }

    /// Takes a token of the connection's rate limit.
    pub(crate) fn take_token(
        &mut self,
        conn: ConnId,
        kind: Kind,
        limits: &ConnectionLimits,
        now: Millis,
    ) -> Result<()> {
        let connection = self.get_mut(conn).ok_or_else(Error::internal)?;
        connection.allowance.take(kind, limits, now)
    }

    /// Returns the time at which the next token expires.
    pub(crate) fn next_token_expiry(&self) -> Option<Millis> {
        let slots = self.slots.values();
        slots.map(|connection| connection.attachment.expires).min()
    }

    /// Adds older events that a connection has requested. All events from `range.upto` to
    /// `head` were sent to it, or are being sent.
    pub(crate) fn request_past(&mut self, conn: ConnId, range: SeqRange, head: u64) {
        if let Some(connection) = self.get_mut(conn) {
            let catch_up = &mut connection.catch_up;
            catch_up
                .get_or_insert_with(|| CatchUp::new(head))
                .add_past(range);
        }
    }

    /// Returns the next portion of the log for a connection that catches up. Returns `None`
    /// if the connection is live or closed.
    pub(crate) fn next_portion(&self, conn: ConnId, head: u64) -> Option<Portion> {
        let catch_up = self.get(conn)?.catch_up.as_ref()?;
        Some(catch_up.next_portion(head))
    }

    /// Records that the next portion of a connection was sent, up to the event `last`.
    pub(crate) fn portion_sent(&mut self, conn: ConnId, last: u64, head: u64) {
        if let Some(connection) = self.get_mut(conn)
            && let Some(catch_up) = &mut connection.catch_up
            && catch_up.sent(last, head)
        {
            connection.catch_up = None;
        }
    }
}
