//! Acknowledgement of delivery by the server, for clients of dialects that do not acknowledge.
//!
//! An event counts as delivered when the client shows a sign of life after the event was sent:
//! a packet, a poll, or the pong to a ping. The runtime answers pongs without waking the gateway
//! and remembers their times, so the gateway pings a client that lacks acknowledgements and
//! reads the time a second later.
//!
//! A client on long-polling has received everything when it polls and nothing waits for it. On a
//! WebSocket:
//!
//! 1. At a check, the gateway marks what it has sent to the client, and pings it.
//! 2. At a later check, if the client has shown a sign of life since the mark, the gateway sends
//!    `messageDelivered` with the marked position to each room.
//!
//! Checks are a second apart and end after [`MAX_CHECKS`] without a sign of life, so they do not
//! keep the gateway from hibernating. They continue with the next packet, event or alarm. What
//! is not acknowledged by then is sent again when the client joins again.

use super::client::{Client, Framing, Phase, Subscription, SubscriptionState};
use super::state::Chat;
use crate::host::LastSeen;
use crate::ids::ClientId;
use crate::socketio::SocketIoServer;
use roomcast_proto::command::Command;
use roomcast_proto::id::RoomName;
use roomcast_proto::link::Command as ToRoom;
use roomcast_proto::time::{Millis, SECOND, sooner};
use std::collections::HashSet;

/// Time in milliseconds between two checks. So short that the host uses a timer, because an alarm
/// costs a row of storage.
const CHECK_INTERVAL: Millis = SECOND;

/// Minimum time in milliseconds between two acknowledgements of a client. While events flow, a
/// room stores the cursors of all its clients once in this time.
const MARK_INTERVAL: Millis = 4 * SECOND;

/// Number of checks of a client without a sign of life after which no further one is scheduled.
const MAX_CHECKS: u8 = 5;

/// The clients with events that were not acknowledged.
#[derive(Default)]
pub(super) struct DeliveryAcks {
    clients: HashSet<ClientId>,
    check_at: Option<Millis>,
    checked_at: Millis,
}

/// A mark after the events that were sent to a client so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark {
    /// The time of the mark that waits for a sign of life.
    since: Option<Millis>,
    /// No mark is made before this time.
    next: Millis,
    /// Number of checks since the mark.
    checks: u8,
}

impl DeliveryAcks {
    /// Records that an event was sent to a client of a dialect that does not acknowledge.
    pub(super) fn sent(&mut self, key: ClientId, now: Millis) {
        self.clients.insert(key);
        sooner(&mut self.check_at, now + CHECK_INTERVAL);
    }

    /// Records a packet of a client.
    pub(super) fn received(&mut self, key: ClientId, now: Millis) {
        if self.clients.contains(&key) {
            sooner(&mut self.check_at, now + CHECK_INTERVAL);
        }
    }

    /// Returns the time of the next check.
    pub(super) fn deadline(&self) -> Option<Millis> {
        self.check_at
    }

    /// Returns `true` if a check is due. Without a scheduled one, the alarm for the pings is an
    /// opportunity.
    fn is_due(&self, now: Millis) -> bool {
        let interval = self.checked_at + CHECK_INTERVAL;
        !self.clients.is_empty() && self.check_at.unwrap_or(interval) <= now
    }
}

impl Subscription {
    /// Returns `true` if events were sent that are not acknowledged.
    fn lacks_acknowledgement(&self) -> bool {
        self.state == SubscriptionState::Joined
            && self.receives_events()
            && self.delivered > self.acknowledged
    }
}

impl Chat {
    /// Checks the clients with events that were not acknowledged.
    pub(super) fn check_acknowledgements(
        &mut self,
        server: &mut SocketIoServer,
        last_seen: LastSeen<'_>,
        now: Millis,
    ) {
        if self.acks.clients.is_empty() {
            self.acks.check_at = None;
        }
        if !self.acks.is_due(now) {
            return;
        }
        self.acks.check_at = None;
        self.acks.checked_at = now;
        let mut is_next_due = false;
        for key in self.acks.clients.iter().copied().collect::<Vec<_>>() {
            is_next_due |= self.check_acknowledgement(server, key, last_seen, now);
        }
        if is_next_due {
            sooner(&mut self.acks.check_at, now + CHECK_INTERVAL);
        }
    }

    /// Checks a client. Returns `true` if it must be checked again after [`CHECK_INTERVAL`].
    fn check_acknowledgement(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        last_seen: LastSeen<'_>,
        now: Millis,
    ) -> bool {
        let Some(client) = self.clients.get(key) else {
            self.acks.clients.remove(&key);
            return false;
        };
        if !matches!(client.phase, Phase::Connected) {
            return true;
        }
        let Framing::SocketIo { session, .. } = client.framing else {
            return false;
        };
        let active_at = last_activity(server, client, last_seen);
        if server.engine.has_taken_packets(session) && client.mark.next <= now {
            self.acknowledge(server, key, |one| one.delivered);
            if let Some(client) = self.clients.get_mut(key) {
                client.mark = Mark {
                    next: now + MARK_INTERVAL,
                    ..Mark::default()
                };
            }
        } else if client.mark.since.is_some_and(|since| since <= active_at) {
            self.acknowledge(server, key, |one| one.marked);
            if let Some(client) = self.clients.get_mut(key) {
                client.mark = Mark {
                    next: now + MARK_INTERVAL,
                    ..Mark::default()
                };
            }
        }
        let Some(client) = self.clients.get_mut(key) else {
            return false;
        };
        let mut subscriptions = client.subscriptions.iter();
        if !subscriptions.any(Subscription::lacks_acknowledgement) {
            self.acks.clients.remove(&key);
            return false;
        }
        if client.mark.since.is_none() && client.mark.next <= now {
            // Packets that wait for a poll were not sent yet.
            if !server.engine.has_waiting_packets(session) {
                for subscription in &mut client.subscriptions {
                    subscription.marked = subscription.delivered;
                }
                client.mark.since = Some(now);
                server.engine.ping(session);
            }
        }
        client.mark.checks += u8::from(client.mark.next <= now);
        if client.mark.checks > MAX_CHECKS {
            client.mark.checks = MAX_CHECKS;
            return false;
        }
        true
    }

    /// Acknowledges everything that was sent to a client: it has sent a packet after that.
    pub(super) fn acknowledge_all(&mut self, server: &mut SocketIoServer, key: ClientId) {
        let client = self.clients.get(key);
        if let Some(client) = client.filter(|client| client.dialect.acknowledges())
            && let Framing::SocketIo { session, .. } = client.framing
            && matches!(client.phase, Phase::Connected)
            && !server.engine.has_waiting_packets(session)
        {
            self.acknowledge(server, key, |one| one.delivered);
        }
    }

    /// Sends `messageDelivered` with the position that `position` returns to each room that lacks
    /// it.
    fn acknowledge(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        position: impl Fn(&Subscription) -> u64,
    ) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        let mut commands = Vec::new();
        for subscription in &mut client.subscriptions {
            let seq = position(subscription);
            if !subscription.lacks_acknowledgement() || seq <= subscription.acknowledged {
                continue;
            }
            subscription.acknowledged = seq;
            let (room, connection) = (subscription.room.clone(), subscription.id.clone());
            let command = Command::Delivered {
                room: Some(room.clone()),
                seq,
            };
            let command = ToRoom::Execute {
                connection,
                id: None,
                command,
            };
            commands.push((room, command));
        }
        for (room, command) in commands {
            self.forward(server, &room, command);
        }
    }

    /// Handles a command that failed, if it is an acknowledgement by the server. It is sent again
    /// with the next one. Returns `false` for other commands.
    pub(super) fn acknowledgement_failed(
        &mut self,
        key: ClientId,
        room: &RoomName,
        id: Option<u32>,
        command: &Command,
        now: Millis,
    ) -> bool {
        let client = self.clients.get_mut(key);
        let is_by_server = id.is_none() && matches!(command, Command::Delivered { .. });
        match client.filter(|client| is_by_server && client.dialect.acknowledges()) {
            Some(client) => {
                if let Some(subscription) = client.subscription_mut(room) {
                    subscription.acknowledged = 0;
                    self.acks.sent(key, now);
                }
                true
            }
            None => false,
        }
    }
}

/// Returns the time of the last sign of life of a client.
fn last_activity(server: &SocketIoServer, client: &Client, last_seen: LastSeen<'_>) -> Millis {
    let Framing::SocketIo { session, .. } = client.framing else {
        return 0;
    };
    let socket = server.engine.socket_of(session);
    let pinged = socket.and_then(last_seen);
    pinged
        .max(server.engine.last_activity(session))
        .unwrap_or(0)
}
