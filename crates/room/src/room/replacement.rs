//! Users with too many connections: the connection that has been silent longest is closed.
//!
//! The room knows the activity on its own sockets. Of a connection at a gateway it knows only the
//! commands in this room, and in the personal room there are none. So it asks the gateways, and
//! closes a connection when they have answered.

use super::Room;
use crate::ids::ConnId;
use crate::output::Output;
use crate::timers::Timer;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::id::{ConnectionId, UserId};
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::time::Millis;

impl Room {
    /// Closes the connections that have been silent longest, if the user of the new connection
    /// `conn` has too many. If some of them are at gateways, asks these first.
    ///
    /// The new connection has a slot already. Otherwise it could get the slot of a closed
    /// one, for which the host has outputs to carry out.
    pub(super) fn replace_silent(
        &mut self,
        conn: ConnId,
        pinged: impl Fn(ConnId) -> Option<Millis>,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let Some(connection) = self.connections.get(conn) else {
            return;
        };
        let user = connection.attachment.user.clone();
        let excess = self.excess_connections(&user);
        if excess == 0 {
            return;
        }
        // The pings on the room's own sockets count when the gateways have answered.
        let mut remote = Vec::new();
        let mut seen = Vec::new();
        for (one, connection) in self.connections.of_user(&user) {
            match connection.attachment.remote {
                // The gateway does not know yet that the room has accepted an arriving one.
                true if one != conn && !self.batch.is_arriving(one) => remote.push(one),
                true => {}
                false => seen.extend(pinged(one).map(|at| (one, at))),
            }
        }
        for (one, at) in seen {
            if let Some(connection) = self.connections.get_mut(one) {
                connection.slow_consumer.seen_at(at);
            }
        }
        // A user who opens many connections while the gateways answer does not get them.
        if remote.is_empty() || excess > self.config.max_connections_per_user {
            self.replacements.remove(&user);
            return self.close_silent_longest(&user, conn, now, out);
        }
        for one in &remote {
            self.gateways.ask_activity(*one, self.log.head());
        }
        let deadline = self.replacements.ask(&user, conn, remote, now);
        self.timers.set_earliest(Timer::Replacement, deadline);
    }

    /// Takes the answers of a gateway to the question when its connections were last active.
    pub(super) fn activity_answered(&mut self, active: &[(ConnectionId, Millis)], now: Millis) {
        for (id, at) in active {
            let Some(conn) = self.gateways.find(id) else {
                continue;
            };
            if let Some(connection) = self.connections.get_mut(conn) {
                connection.slow_consumer.seen_at((*at).min(now));
            }
            self.replacements.answered(conn);
        }
    }

    /// Closes connections of the users for which all gateways have answered, or have not answered
    /// in time.
    pub(super) fn finish_replacements(&mut self, now: Millis, out: &mut Vec<Output>) {
        while let Some((user, newest)) = self.replacements.take_due(now) {
            self.close_silent_longest(&user, newest, now, out);
        }
        self.timers
            .set(Timer::Replacement, self.replacements.next());
    }

    /// Returns the number of connections of a user above the limit.
    fn excess_connections(&self, user: &UserId) -> usize {
        let connections = self.connections.of_user(user).count();
        connections.saturating_sub(self.config.max_connections_per_user)
    }

    /// Closes as many connections of a user as are too many, except for `newest`.
    fn close_silent_longest(
        &mut self,
        user: &UserId,
        newest: ConnId,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let excess = self.excess_connections(user);
        let connections = self.connections.of_user(user);
        let mut others: Vec<(Millis, ConnId)> = connections
            .filter(|(conn, _)| *conn != newest)
            .map(|(conn, connection)| (connection.slow_consumer.active_at(), conn))
            .collect();
        others.sort_by_key(|(active_at, _)| *active_at);
        for (_, silent) in others.into_iter().take(excess) {
            if let Some(connection) = self.connections.get(silent) {
                let record = LogRecord::reject("rate")
                    .user(&connection.attachment.user)
                    .connection(&connection.attachment.id)
                    .with("code", Disconnect::Replaced.code());
                out.push(Output::Log(record));
            }
            self.close_silent(silent, Disconnect::Replaced, None, now, out);
        }
    }
}
