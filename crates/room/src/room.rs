//! The room: the parts of its state, and the queries about it.
//!
//! The inputs are in the submodules: `connect` (connections), `membership` (join and leave),
//! `commands` (frames of clients), `send` (events), `service` (requests of services),
//! `member_lists` (lists of members), `profiles` (profiles of users),
//! `gateways` (requests of gateways and deliveries to them), `flush` (the end of a batch,
//! timers and the alarm), `replacement` (users with too many connections), `replay` (catch-up
//! of the room's own sockets, slow consumers).

mod commands;
mod connect;
mod flush;
mod gateways;
mod member_lists;
mod membership;
mod presence;
mod profiles;
mod replacement;
mod replay;
mod send;
mod service;

use crate::admission::Admission;
use crate::attachment::Attachment;
use crate::batch::Batch;
use crate::batcher::Load;
use crate::catch_up::CatchUpQueue;
use crate::config::RoomConfig;
use crate::connection::Receives;
use crate::connections::Connections;
use crate::departed::Departed;
use crate::event_log::EventLog;
use crate::gateway_links::GatewayLinks;
use crate::ids::ConnId;
use crate::log::LogBounds;
use crate::members::Members;
use crate::presence::PresenceTracker;
use crate::replacements::Replacements;
use crate::snapshot::{ReadProfiles, Snapshot};
use crate::timers::{Timer, TimerTable};
use roomcast_proto::id::{Epoch, RoomName, UserId};
use roomcast_proto::link::{PresenceVersion, UNKNOWN_PRESENCE};
use roomcast_proto::time::Millis;
use std::rc::Rc;

/// A room: the log with its members, connections and subscriptions of gateways.
///
/// The room does no I/O and reads no clock. Its methods are of four kinds:
///
/// - Inputs take the current time and a list to which they append [`Output`]s. The host
///   carries the outputs out in order, each after [`Room::route`].
/// - Scheduling, with the next calls of the host and their times: [`Room::timer_at`],
///   [`Room::alarm_at`], [`Room::waiting`], [`Room::load`], [`Room::start_deliveries`],
///   [`Room::retention_cutoff`], [`Room::portions_waiting`].
/// - Results of outputs and other work of the host: [`Room::sent`], [`Room::page_sent`],
///   [`Room::replayed`], [`Room::authenticated`], [`Room::log_read`],
///   [`Room::delivery_acknowledged`] and others.
/// - Queries about the state, such as [`Room::bounds`] and [`Room::attachment`].
///
/// The [crate documentation](crate) explains the order of calls.
///
/// [`Output`]: crate::Output
pub struct Room {
    name: RoomName,
    config: Rc<RoomConfig>,
    log: EventLog,
    members: Members,
    connections: Connections,
    catch_ups: CatchUpQueue,
    /// The last event of the deliveries that the host has carried out or is carrying out.
    sent_upto: u64,
    /// The version of the presence after that batch.
    sent_presence: PresenceVersion,
    /// The number of the last batch up to then that announced all changes of the presence.
    sent_announcement: u64,
    presence: PresenceTracker,
    batch: Batch,
    /// The number of batches since the restart.
    batches: u64,
    gateways: GatewayLinks,
    admission: Admission,
    timers: TimerTable,
    /// The time at which connections at gateways were restored; 0 if none was.
    restored_at: Millis,
    /// See [`Room::set_overloaded`].
    is_overloaded: bool,
    /// Users with too many connections, of which one will be closed.
    replacements: Replacements,
    /// Reads the profiles of members from storage.
    read_profiles: Option<ReadProfiles>,
}

impl Room {
    /// Creates the room from its stored state. The host restores the connections with
    /// [`Room::restore_connection`] and [`Room::restore_subscriber`].
    pub fn new(name: RoomName, config: Rc<RoomConfig>, snapshot: Snapshot) -> Self {
        let mut room = Room {
            name,
            catch_ups: CatchUpQueue::default(),
            sent_upto: snapshot.bounds.head,
            sent_presence: UNKNOWN_PRESENCE,
            sent_announcement: 0,
            log: EventLog::new(
                snapshot.epoch,
                snapshot.secret,
                snapshot.bounds,
                snapshot.recent,
                snapshot.rows,
            ),
            members: Members::restore(snapshot.members, &snapshot.journal),
            connections: Connections::default(),
            presence: PresenceTracker::new(Departed::restore(snapshot.departed)),
            batch: Batch::default(),
            batches: 0,
            gateways: GatewayLinks::new(snapshot.life),
            admission: Admission::new(&config),
            timers: TimerTable::default(),
            restored_at: 0,
            is_overloaded: false,
            replacements: Replacements::default(),
            read_profiles: snapshot.profiles,
            config,
        };
        for user in room.members.users() {
            room.presence.log.restore_member(user);
        }
        room.schedule_retention();
        room
    }

    /// Sets whether the host is short of memory. The room then refuses events (`sendMessage`
    /// and `emit` with `rateLimited`, publications with `unavailable`), refuses commands of
    /// connections at gateways with `rateLimited`, and keeps fewer broadcasts for gateways.
    pub fn set_overloaded(&mut self, is_overloaded: bool) {
        self.is_overloaded = is_overloaded;
    }

    /// Returns the name of the room.
    pub fn name(&self) -> &RoomName {
        &self.name
    }

    /// Returns the epoch of the log.
    pub fn epoch(&self) -> &Epoch {
        self.log.epoch()
    }

    /// Returns the bounds of the log.
    pub fn bounds(&self) -> &LogBounds {
        self.log.bounds()
    }

    /// Returns the sequence number up to which events have expired.
    pub fn floor(&self) -> u64 {
        self.log.floor(&self.config)
    }

    /// Returns the persistent part of a connection.
    pub fn attachment(&self, conn: ConnId) -> Option<Attachment> {
        let connection = self.connections.get(conn)?;
        let mut attachment = connection.attachment.clone();
        if let Some(catch_up) = &connection.catch_up
            && !attachment.remote
        {
            attachment.caught_up_to = Some(catch_up.at());
            attachment.requested_past = catch_up.has_past();
        }
        Some(attachment)
    }

    /// Returns `true` if the connection has joined the room.
    pub fn is_joined(&self, conn: ConnId) -> bool {
        self.connections.is_joined(conn)
    }

    /// Returns `true` if the connection receives the shared frame of a batch.
    pub fn receives(&self, conn: ConnId, batch: u64) -> bool {
        self.connections.receives(conn, batch) == Receives::All
    }

    /// Returns the number of connections, including those at gateways.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Returns the number of items that wait for the end of the batch.
    pub fn waiting(&self) -> usize {
        self.batch.waiting()
    }

    /// Returns the state that determines when the batch ends, for
    /// [`Batcher`](crate::batcher::Batcher).
    pub fn load(&self) -> Load {
        Load {
            waiting: self.batch.waiting(),
            connections: self.connections.len(),
            is_full: self.batch.is_full(),
        }
    }

    /// Returns the time at which the host must call [`Room::flush`]. The time is near, so the
    /// host sets a timer.
    pub fn timer_at(&self) -> Option<Millis> {
        self.timers.next_short()
    }

    /// Returns the time at which the host must call [`Room::handle_alarm`]. The host sets an
    /// alarm, so that the room can hibernate until then.
    pub fn alarm_at(&self) -> Option<Millis> {
        // The time of the next attempt depends on the items in the outboxes, which change
        // often. So it is computed here and not kept in the table of timers.
        let times = [self.timers.next_long(), self.gateways.retry_at()];
        times.into_iter().flatten().min()
    }

    fn schedule_retention(&mut self) {
        let at = self.log.bounds().next_expiry(&self.config);
        self.timers.set(Timer::LogRetention, at);
    }

    /// Queues an ephemeral event about `user` for all other users.
    fn queue_event(&mut self, user: &UserId, line: String, now: Millis) {
        let connections = self.connections.len();
        self.presence
            .queue(user, line, connections, &mut self.timers, now);
    }

    /// Schedules the presence updates of users whose status may have changed.
    fn schedule_presence(&mut self, now: Millis) {
        let connections = self.connections.len();
        self.presence
            .schedule_changes(connections, &mut self.timers, now);
    }
}
