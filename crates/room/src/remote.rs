//! Connections whose sockets are at gateways: they join, refresh their tokens and
//! leave by requests of the gateway ([`roomcast_proto::link`]).

use super::connections::Start;
use super::output::{ConnId, Output};
use super::tick::{Arrival, Greeting};
use super::{Hello, Room};
use roomcast_proto::access::Rights;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::error::{Error, Result};
use roomcast_proto::framing;
use roomcast_proto::link::client_of;
use roomcast_proto::status::Status;
use roomcast_proto::time::{Millis, sooner};

impl Room {
    /// A connection at a gateway joins; see [`roomcast_proto::link::Command::Join`].
    pub fn subscribe(
        &mut self,
        hello: Hello,
        id: Option<u32>,
        again: bool,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> Result<ConnId> {
        if !hello.rights.has(Rights::READ) {
            return Err(Error::forbidden("the token does not open this room"));
        }
        let client = client_of(&hello.connection_id);
        let mut here = self.roster.sockets(&hello.user);
        let before = here.find(|conn| self.is_of(*conn, client));
        drop(here);
        if let Some(conn) = before {
            // 1012: the service restarts (IANA).
            self.unsubscribe(conn, 1012, now, out);
        }
        if again {
            let left = self.parting.iter().any(|conn| self.is_of(*conn, client));
            if left || !self.members.contains_key(hello.user.as_str()) {
                return Err(Error::not_joined());
            }
            self.admit_user(&hello)?;
        } else {
            self.admit(&hello, now)?;
        }
        Ok(self.arrive(hello, Greeting::Joined(id), now, out))
    }

    /// The connection that the client at a gateway has here, whichever of its
    /// connections is named.
    pub fn seat_of(&self, connection: &str) -> Option<ConnId> {
        let client = client_of(connection);
        self.conns.keys().find(|conn| self.is_of(*conn, client))
    }

    /// Whether a connection is one of this client at a gateway.
    fn is_of(&self, conn: ConnId, client: &str) -> bool {
        self.conn(conn)
            .is_some_and(|conn| conn.remote && client_of(&conn.id) == client)
    }

    /// A connection showed another token, and has the rights of this one now. A
    /// connection at a gateway that may not read any more leaves the room: a
    /// gateway of this version does not ask for that, one of an older does.
    pub fn refreshed(
        &mut self,
        conn: ConnId,
        rights: Rights,
        expires: Millis,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let Some(this) = self.conn_mut(conn) else {
            return;
        };
        if this.remote && !rights.has(Rights::READ) {
            out.push(Output::Parted { conn });
            return self.disconnect(conn, Disconnect::Forbidden.code(), now, out);
        }
        this.rights = rights;
        this.expires = expires;
        let shows_status = rights.has(Rights::PRESENCE) || this.status == Status::default();
        if !shows_status {
            this.status = Status::default();
            let user = this.user.clone();
            self.roster.set(&user, conn, Status::default());
            self.expect_news(now);
        }
        sooner(&mut self.expiry, expires);
        out.push(Output::Attach { conn });
    }

    /// The answer to `joinRoom` and what was missed.
    pub(super) fn welcome_remote(
        &mut self,
        arrival: &Arrival,
        id: Option<u32>,
        head: u64,
        out: &mut Vec<Output>,
    ) {
        let conn = arrival.conn;
        let Some(this) = self.conn(conn).filter(|conn| conn.joined) else {
            return;
        };
        let user = this.user.clone();
        out.push(Output::Attach { conn });
        out.push(Output::Joined {
            conn,
            after: arrival.after,
        });
        if let Some(id) = id {
            let start = Start {
                after: arrival.after,
                reset: arrival.reset,
            };
            out.push(Output::Send {
                conn,
                frame: framing::ack(id, &self.joined_json(&user, head, start)),
            });
        }
        if arrival.after < head {
            self.log_replay(conn, arrival.after, head, out);
            self.fall_behind(conn, arrival.after, out);
        }
    }

    /// Connections at gateways whose membership ended have been told so: they
    /// are of the room no more.
    pub(super) fn part(&mut self, now: Millis, out: &mut Vec<Output>) {
        for conn in std::mem::take(&mut self.parting) {
            // It may have joined again.
            if self.conn(conn).is_some_and(|conn| !conn.joined) {
                out.push(Output::Parted { conn });
                self.disconnect(conn, 1000, now, out);
            }
        }
    }
}
