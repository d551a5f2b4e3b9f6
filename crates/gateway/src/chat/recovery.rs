//! Connection state recovery: a Socket.IO client reconnects and receives the missed
//! events.
//!
//! 1. A CONNECT with a `pid` makes the host look for the record that was saved under it
//!    ([`Output::Find`]).
//! 2. If the record has the same user and namespace, the client gets the `sid`, the status
//!    and the subscriptions of the record. The gateway asks each room to replay the events
//!    after the offset that the client sent.
//! 3. When all rooms have accepted the client and none of them has announced that events
//!    have expired, the client is accepted with the same `pid`. The missed events then arrive
//!    like all others. Otherwise the client is accepted with a new `pid` and without
//!    recovery.

use super::client::{Client, Framing, HeldText, Phase, SubscriptionState};
use super::record::{ClientRecord, RecordOf, save_output};
use super::state::Chat;
use crate::engine::RECHECK_DELAY;
use crate::ids::ClientId;
use crate::output::Output;
use crate::recovery_offset;
use crate::socketio::SocketIoServer;
use roomcast_proto::access::Rights;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::id::{ConnectionId, RoomName, UserId};
use roomcast_proto::link::{Command as ToRoom, ConnectRequest};
use roomcast_proto::position::Position;
use roomcast_proto::reader;
use roomcast_proto::time::{DAY, Millis, SECOND};

/// Time after a disconnect within which a client can resume. The host then deletes its
/// record.
pub const RECOVERY_WINDOW: Millis = DAY;

/// Time within which the rooms must replay the missed events of a client.
const RECOVERY_TIMEOUT: Millis = 10 * SECOND;

impl Chat {
    /// Handles the result of [`Output::Find`]: the record that was saved under `pid`.
    pub(crate) fn record_found(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        pid: &str,
        record: Option<String>,
        now: Millis,
    ) {
        let parsed = record
            .as_deref()
            .and_then(|record| reader::from_str::<ClientRecord>(record).ok());
        let client = self.clients.get(key).filter(
            |client| matches!(&client.phase, Phase::Finding { pid: asked, .. } if asked == pid),
        );
        let Some(client) = client else {
            // The client has disconnected. Its record is saved again, so that it can
            // resume later.
            if let (Some(parsed), Some(record)) = (parsed, record) {
                server.engine.push(Output::Save {
                    client: pid.to_owned(),
                    user: parsed.identity.user,
                    gone: true,
                    record,
                });
            }
            return;
        };
        let resumed = parsed
            .filter(|record| can_resume(client, pid, record))
            .and_then(|record| Some((record, offset_of(client)?)));
        match resumed {
            Some((record, offset)) => self.resume(server, key, record, &offset, now),
            None => self.begin(server, key, now),
        }
    }

    /// Resumes a client: asks its rooms to replay the missed events. `offset` has the
    /// numbers of the last offset that it received, and is empty if it received none.
    fn resume(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        record: ClientRecord,
        offset: &[u64],
        now: Millis,
    ) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        let joins = client.take_over(server, record, offset);
        let can_read = |join: &ConnectRequest| join.rights.has(Rights::READ);
        let complete = joins.iter().all(|(_, join)| can_read(join));
        let deadline = now + RECOVERY_TIMEOUT;
        client.phase = Phase::Recovering {
            pending: joins.iter().map(|(room, _)| room.clone()).collect(),
            complete,
            held: Vec::new(),
            deadline,
        };
        self.recovering.insert(key);
        self.schedule(now + RECHECK_DELAY);
        // If the current token does not open a room, the recovery is incomplete.
        if !complete {
            return self.fail_recovery(server, key, now);
        }
        if joins.is_empty() {
            return self.complete_recovery(server, key, now);
        }
        for (room, request) in joins {
            let link = self.rooms.entry(room.clone()).or_default();
            link.subscribers.push(key);
            let (id, again) = (None, true);
            self.forward(server, &room, ToRoom::Join { request, id, again });
        }
    }

    /// Finishes the recoveries for which all rooms have answered, or that are known to
    /// be incomplete.
    pub(super) fn finish_recoveries(&mut self, server: &mut SocketIoServer, now: Millis) {
        for key in self.recovering.iter().copied().collect::<Vec<_>>() {
            let Some(Client {
                phase:
                    Phase::Recovering {
                        pending, complete, ..
                    },
                ..
            }) = self.clients.get(key)
            else {
                continue;
            };
            if !complete {
                self.fail_recovery(server, key, now);
            } else if pending.is_empty() {
                self.complete_recovery(server, key, now);
            }
        }
    }

    /// Ends [`Phase::Recovering`]. Returns the texts that were held back, or `None` if the
    /// client is not in that phase.
    fn end_recovery(&mut self, key: ClientId) -> Option<Vec<HeldText>> {
        self.recovering.remove(&key);
        let client = self.clients.get_mut(key)?;
        match std::mem::replace(&mut client.phase, Phase::Connected) {
            Phase::Recovering { held, .. } => Some(held),
            phase => {
                client.phase = phase;
                None
            }
        }
    }

    /// No event is missing: accepts the client and sends it the missed events.
    fn complete_recovery(&mut self, server: &mut SocketIoServer, key: ClientId, now: Millis) {
        let Some(held) = self.end_recovery(key) else {
            return;
        };
        if !self.accept(server, key) {
            return;
        }
        self.save(server, key);
        for HeldText { room, text } in held {
            match room {
                Some(room) => self.send_room_text(server, key, &room, &text),
                None => self.send(server, key, &text),
            }
        }
        self.join_personal_room(server, key, now);
    }

    /// An event is missing, or the rooms did not answer in time: accepts the client
    /// without recovery.
    pub(super) fn fail_recovery(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        now: Millis,
    ) {
        if self.end_recovery(key).is_none() {
            return;
        }
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        client.sid = server.engine.new_id();
        let subscriptions = std::mem::take(&mut client.subscriptions);
        // A new id in all rooms, so that deliveries for the recovery do not reach the
        // client.
        let id = ConnectionId::trusted(server.engine.new_id());
        self.clients.rename(key, id);
        self.leave_rooms(server, key, subscriptions, 1000, now);
        self.begin(server, key, now);
    }

    /// Closes the connection of a client that resumes on another connection with this
    /// `pid`.
    pub(crate) fn evict_client(&mut self, server: &mut SocketIoServer, pid: &str, user: &UserId) {
        if let Some(key) = self.clients.by_pid(pid, user)
            && let Some(client) = self.clients.get_mut(key)
        {
            if matches!(client.phase, Phase::Recovering { .. }) {
                // The other connection resumes from the position from which this one would
                // have resumed.
                client.abandon_recovery();
                let output = save_output(server, client, RecordOf::DisconnectedClient);
                server.engine.push(output);
            }
            // The host takes the record of the `pid`. It must not be saved again when the
            // rooms have acknowledged the disconnect.
            client.pid = None;
            self.close(server, key, Disconnect::Normal);
        }
        for output in self.departures.take(pid, user) {
            server.engine.push(output);
        }
    }
}

/// Returns `true` if a client can resume from a record.
fn can_resume(client: &Client, pid: &str, record: &ClientRecord) -> bool {
    let Framing::SocketIo { nsp, .. } = &client.framing else {
        return false;
    };
    record
        .session
        .as_ref()
        .is_some_and(|session| session.nsp == *nsp)
        && record.pid.as_deref() == Some(pid)
        && record.identity.user == client.identity.user
        && record.dialect() == client.dialect
}

/// Returns the numbers of the offset that a client has sent. Returns an empty list if it
/// sent none, because it has received no event, and `None` if the offset is malformed.
fn offset_of(client: &Client) -> Option<Vec<u64>> {
    match &client.phase {
        Phase::Finding {
            offset: Some(offset),
            ..
        } => recovery_offset::parse(offset),
        _ => Some(Vec::new()),
    }
}

impl Client {
    /// Copies the state in a record to the client. Returns the requests to join the rooms,
    /// with the names of the rooms.
    fn take_over(
        &mut self,
        server: &SocketIoServer,
        record: ClientRecord,
        offset: &[u64],
    ) -> Vec<(RoomName, ConnectRequest)> {
        // An offset with another tag belongs to an earlier `pid`, so its positions do not
        // apply.
        let (version, positions) = match offset {
            [tag, version, positions @ ..] if *tag == record.tag => (*version, positions),
            _ => (0, &[][..]),
        };
        self.sid = record.sid;
        self.pid = record.pid;
        self.status = record.status;
        self.version = record.version;
        self.tag = record.tag;
        let mut joins = Vec::new();
        for (index, mut subscription) in record.subscriptions.into_iter().enumerate() {
            let is_in_offset = subscription
                .offset_version
                .is_some_and(|since| since <= version);
            if let Some(at) = positions.get(index)
                && is_in_offset
            {
                subscription.from = subscription.from.max(*at);
            }
            if subscription.state == SubscriptionState::Leaving {
                continue;
            }
            let rights = self.identity.rights(&subscription.room);
            let position = Position {
                since: Some(subscription.from),
                epoch: Some(subscription.epoch.clone()),
                history: None,
            };
            subscription.state = SubscriptionState::Joining;
            subscription.repairing = false;
            subscription.lagging_at = None;
            subscription.id = self.new_subscription_id(server);
            let id = subscription.id.clone();
            let join = self.join_request(id, rights, position);
            joins.push((subscription.room.clone(), join));
            self.subscriptions.push(subscription);
        }
        joins
    }
}
