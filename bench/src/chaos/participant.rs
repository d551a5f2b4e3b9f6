//! A user of a room: sends messages and receipts, reconnects after each lost
//! connection, and records everything that it receives.

use crate::check::Line;
use crate::client::{Client, Failure, User};
use crate::dialect::Dialect;
use crate::target::Endpoint;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

/// The current activity of all participants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Send messages, resends and receipts.
    Faults,
    /// A third of the participants, selected by this number, lose their connection.
    /// With `true` the TCP connection stays open, but is no longer used.
    Cut(u64, bool),
    /// Send nothing. A third of the participants, selected by this number, do not read either.
    Idle(u64),
    /// Reconnect, and send unacknowledged messages again.
    Settle,
}

/// The events that a participant has received.
#[derive(Default)]
pub(super) struct Record {
    /// Logged events in the order of their arrival: `seq` and digest.
    pub events: Vec<(u64, u64)>,
    /// The head of the log at the first join.
    pub start: u64,
    /// Message ids and the `seq`s in their acknowledgements.
    pub acknowledged: HashMap<String, u64>,
    /// The highest acknowledged receipt.
    pub delivered: u64,
    /// Violations that the participant itself has detected.
    pub violations: Vec<String>,
    /// The users of the room that the participant shows, with `true` for those online.
    pub shown: BTreeMap<String, bool>,
    unacknowledged: usize,
    connected: bool,
    settling: bool,
    reconnections: usize,
    resent: usize,
}

/// The part of a participant that is shared with the driver.
pub(super) struct Shared {
    pub room: &'static str,
    pub user: &'static str,
    record: Mutex<Record>,
}

impl Shared {
    pub(super) fn new(room: &'static str, user: &'static str) -> Self {
        Shared {
            room,
            user,
            record: Mutex::default(),
        }
    }

    pub(super) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn acknowledged(&self) -> usize {
        self.record().acknowledged.len()
    }

    pub(super) fn reconnections(&self) -> usize {
        self.record().reconnections
    }

    pub(super) fn resent(&self) -> usize {
        self.record().resent
    }

    /// Returns `true` if the participant has finished: it is connected, settling and
    /// without unacknowledged messages, or it has detected a violation.
    pub(super) fn is_done(&self) -> bool {
        let record = self.record();
        !record.violations.is_empty()
            || record.connected && record.settling && record.unacknowledged == 0
    }

    pub(super) fn describe(&self) -> String {
        let record = self.record();
        format!(
            "{} in {}: connected {}, {} messages not acknowledged",
            self.user, self.room, record.connected, record.unacknowledged
        )
    }
}

/// Interval between two actions.
const INTERVAL: Duration = Duration::from_millis(15);

/// Maximal number of messages in flight.
const IN_FLIGHT: usize = 20;

/// Time limit for a connect and for an answer. After it, the participant reconnects,
/// because a connection can be dead without an error.
pub(super) const TIMEOUT: Duration = Duration::from_secs(3);

/// A command without an answer.
enum Pending {
    /// A message that was not acknowledged before.
    Message(String),
    /// A resend of a message that was acknowledged with this `seq`.
    Resend(String, u64),
    /// A receipt up to this `seq`.
    Receipt(u64),
}

/// A participant; [`Participant::run`] drives it.
pub(super) struct Participant {
    endpoint: Arc<Endpoint>,
    user: User,
    dialect: Dialect,
    shared: Arc<Shared>,
    random: fastrand::Rng,
    /// Messages without an acknowledgement, by their numbers.
    unacknowledged: BTreeMap<u64, String>,
    /// Commands on this connection without an answer.
    pending: HashMap<u64, Pending>,
    last_id: u64,
    last_message: u64,
    /// The last received event; `None` before the first connect.
    last: Option<u64>,
    /// Connections that are no longer used but not closed.
    abandoned: Vec<Client>,
}

/// Why a connection ended.
enum End {
    Lost,
    /// A promise was violated.
    Violation(String),
}

impl Participant {
    pub(super) fn new(
        endpoint: Arc<Endpoint>,
        user: User,
        dialect: Dialect,
        shared: Arc<Shared>,
        seed: u64,
    ) -> Self {
        Participant {
            endpoint,
            user,
            dialect,
            shared,
            random: fastrand::Rng::with_seed(seed),
            unacknowledged: BTreeMap::new(),
            pending: HashMap::new(),
            last_id: 0,
            last_message: 0,
            last: None,
            abandoned: Vec::new(),
        }
    }

    /// Runs until the task is aborted or a promise is violated.
    pub(super) async fn run(mut self, mut phases: watch::Receiver<Phase>) {
        loop {
            let end = match self.connect().await {
                Ok(client) => self.use_connection(client, &mut phases).await,
                Err(end) => end,
            };
            if self.ended(end) {
                return;
            }
            sleep(Duration::from_millis(self.random.u64(5..150))).await;
        }
    }

    /// Records the end of a connection. Returns `true` if the participant must stop.
    fn ended(&self, end: End) -> bool {
        let mut record = self.shared.record();
        record.connected = false;
        record.settling = false;
        let End::Violation(what) = end else {
            return false;
        };
        let (user, room) = (self.shared.user, self.shared.room);
        record.violations.push(format!("{user} in {room}: {what}"));
        true
    }

    async fn connect(&mut self) -> Result<Client, End> {
        let (room, since) = (self.shared.room, self.last);
        let (mut events, mut changes) = (Vec::new(), Vec::new());
        let opening = Client::open(
            &self.endpoint,
            self.dialect,
            room,
            &self.user,
            since,
            |line, raw| {
                record_event(&mut events, line, raw);
                changes.extend(shown(line, raw));
            },
        );
        let opened = timeout(TIMEOUT, opening).await;
        let Ok(Ok(client)) = opened else {
            // Received events are discarded. The next connect requests them again.
            return match opened {
                Ok(Err(reason)) if is_violation(&reason) => Err(End::Violation(reason)),
                _ => Err(End::Lost),
            };
        };
        if self.dialect == Dialect::Room {
            // `connected` has no members. Events that arrive later are newer than this answer.
            let path = format!("/rooms/{room}/presence");
            let presence = self.endpoint.get(&path);
            let Ok(Ok(presence)) = timeout(TIMEOUT, presence).await else {
                return Err(End::Lost);
            };
            changes.push(Shown::Members(statuses(&presence["users"])));
        }
        let last = client.sequence.last();
        let mut record = self.shared.record();
        match since {
            None => record.start = last,
            Some(_) => record.reconnections += 1,
        }
        if since.is_some() {
            record.events.extend(events);
        }
        record.shown.clear();
        changes.into_iter().for_each(|change| record.show(change));
        record.connected = true;
        drop(record);
        self.last = Some(last);
        Ok(client)
    }

    /// Uses a connection until it ends.
    async fn use_connection(
        &mut self,
        mut client: Client,
        phases: &mut watch::Receiver<Phase>,
    ) -> End {
        self.pending.clear();
        // Resends in the original order, under the same ids.
        for (_, message) in self.unacknowledged.clone() {
            self.send(&mut client, message);
        }
        let mut actions = interval(INTERVAL);
        actions.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut idle_for = Duration::ZERO;
        loop {
            let mut events = Vec::new();
            let (mut answers, mut changes) = (Vec::new(), Vec::new());
            let done = tokio::select! {
                read = client.read_raw(|line, raw| {
                    record_event(&mut events, line, raw);
                    changes.extend(shown(line, raw));
                    if let Line::Ack { id, seq } = line {
                        answers.push((*id, *seq));
                    }
                }) => read,
                _ = actions.tick() => {
                    idle_for += INTERVAL;
                    let phase = *phases.borrow_and_update();
                    self.shared.record().settling = phase == Phase::Settle;
                    match phase {
                        Phase::Faults => self.act(&mut client),
                        Phase::Cut(number, keep_open) if self.is_affected(number) => {
                            match keep_open {
                                true => self.abandoned.push(client),
                                false => client.cut(),
                            }
                            // Waits for the next phase, so that it is cut only once.
                            let _ = timeout(TIMEOUT, phases.changed()).await;
                            return End::Lost;
                        }
                        Phase::Idle(number) if self.is_affected(number) => {
                            // A slow consumer: reads nothing until the next phase.
                            let _ = phases.changed().await;
                            idle_for = Duration::ZERO;
                        }
                        Phase::Cut(..) | Phase::Idle(_) | Phase::Settle => {}
                    }
                    client.socket.flush().await.map_err(Failure::from)
                }
            };
            if !events.is_empty() || !answers.is_empty() {
                idle_for = Duration::ZERO;
            }
            self.last = Some(client.sequence.last());
            let mut record = self.shared.record();
            record.events.extend(events);
            changes.into_iter().for_each(|change| record.show(change));
            drop(record);
            for (id, seq) in answers {
                if let Err(what) = self.answered(id, seq) {
                    return End::Violation(what);
                }
            }
            self.shared.record().unacknowledged = self.unacknowledged.len();
            match done {
                Ok(()) => {}
                Err(Failure::Violation(what)) if is_violation(&what) => {
                    return End::Violation(what);
                }
                Err(_) => return End::Lost,
            }
            if idle_for > TIMEOUT && !self.pending.is_empty() {
                return End::Lost;
            }
        }
    }

    /// Returns `true` for a third of the participants, selected by a number.
    fn is_affected(&self, number: u64) -> bool {
        let mut hasher = DefaultHasher::new();
        (number, self.shared.user, self.shared.room).hash(&mut hasher);
        hasher.finish().is_multiple_of(3)
    }

    /// Performs one random action.
    fn act(&mut self, client: &mut Client) {
        match self.random.u8(..100) {
            0..40 if self.unacknowledged.len() < IN_FLIGHT => {
                self.last_message += 1;
                let message = format!("{}-{}", self.user.name, self.last_message);
                self.unacknowledged
                    .insert(self.last_message, message.clone());
                self.send(client, message);
            }
            40..45 => {
                let record = self.shared.record();
                // One of the latest 50 messages.
                let number = self.last_message.saturating_sub(self.random.u64(..50));
                let message = format!("{}-{number}", self.user.name);
                let acknowledged = record.acknowledged.get(&message).copied();
                drop(record);
                if let Some(seq) = acknowledged {
                    self.shared.record().resent += 1;
                    let fields = fields_of(&message);
                    let id = self.add_pending(Pending::Resend(message, seq));
                    client.queue("sendMessage", &fields, Some(id));
                }
            }
            45..50 => {
                let id = self.add_pending(Pending::Receipt(client.sequence.last()));
                client.queue_receipt(Some(id));
            }
            _ => {}
        }
    }

    /// Returns the id for a new command.
    fn add_pending(&mut self, command: Pending) -> u64 {
        self.last_id += 1;
        self.pending.insert(self.last_id, command);
        self.last_id
    }

    fn send(&mut self, client: &mut Client, message: String) {
        let fields = fields_of(&message);
        let id = self.add_pending(Pending::Message(message));
        client.queue("sendMessage", &fields, Some(id));
    }

    /// Checks an answer. Returns a violation as the error.
    fn answered(&mut self, id: u64, seq: u64) -> Result<(), String> {
        let Some(command) = self.pending.remove(&id) else {
            return Err(format!("an answer to unknown command {id}"));
        };
        let mut record = self.shared.record();
        match command {
            Pending::Message(message) => {
                self.unacknowledged.retain(|_, other| *other != message);
                record.acknowledged.insert(message, seq);
            }
            Pending::Resend(message, before) if seq != before => {
                return Err(format!(
                    "{message} was acknowledged with seq {before}, its resend with {seq}"
                ));
            }
            Pending::Resend(..) => {}
            // Other connections of the user may have sent a later receipt.
            Pending::Receipt(sent) if seq < sent => {
                return Err(format!("a receipt for {sent} was answered with {seq}"));
            }
            Pending::Receipt(_) => record.delivered = record.delivered.max(seq),
        }
        Ok(())
    }
}

fn fields_of(message: &str) -> String {
    format!(r#""content":"{message}","messageId":"{message}""#)
}

fn record_event(events: &mut Vec<(u64, u64)>, line: &Line, raw: &[u8]) {
    if let Line::Message { seq } = line {
        events.push((*seq, digest(raw)));
    }
}

/// A change of the users that a participant shows.
enum Shown {
    /// All members of the room.
    Members(BTreeMap<String, bool>),
    /// One user.
    One(String, bool),
}

impl Record {
    fn show(&mut self, change: Shown) {
        match change {
            Shown::Members(all) => self.shown = all,
            Shown::One(user, online) => {
                self.shown.insert(user, online);
            }
        }
    }
}

/// Returns the name of a user, and `true` if it is online.
fn status(user: &Value) -> Option<(String, bool)> {
    let name = user["userId"].as_str()?.to_owned();
    Some((name, user["status"].as_str()? != "offline"))
}

/// Returns [`status`] of each user in a list.
fn statuses(users: &Value) -> BTreeMap<String, bool> {
    let users = users.as_array().into_iter().flatten();
    users.filter_map(status).collect()
}

/// Returns what a line changes in the users that a client shows.
fn shown(line: &Line, raw: &[u8]) -> Option<Shown> {
    let has_members = || memchr::memmem::find(raw, br#""members":"#).is_some();
    match line {
        Line::Ack { .. } if has_members() => {}
        Line::Connected { .. } | Line::Other => {}
        _ => return None,
    }
    let line: Value = serde_json::from_slice(raw).ok()?;
    let data = &line["data"];
    if data["members"].is_array() {
        return Some(Shown::Members(statuses(&data["members"])));
    }
    match line["event"].as_str()? {
        "presenceUpdate" => status(data).map(|(user, online)| Shown::One(user, online)),
        // A user joins with a connection.
        "userJoined" => Some(Shown::One(data["userId"].as_str()?.to_owned(), true)),
        "userLeft" => Some(Shown::One(data["userId"].as_str()?.to_owned(), false)),
        _ => None,
    }
}

/// Returns a digest of the raw bytes of an event.
pub(super) fn digest(raw: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    raw.hash(&mut hasher);
    hasher.finish()
}

/// Returns `true` if an error of [`Client`] is a violated promise. An answer with the
/// error `internal` is not: the participant sends the command again.
fn is_violation(reason: &str) -> bool {
    let violations = [
        "a hole",
        "again or out of order",
        "cannot parse",
        "without seq",
        "gap",
    ];
    violations
        .iter()
        .any(|violation| reason.contains(violation))
}
