//! A user in a room: talks, reads, confirms, loses the connection and comes
//! back, and remembers all that it was told.

use crate::check::Line;
use crate::client::{Broken, Client, User};
use crate::dialect::Dialect;
use crate::target::Site;
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

/// What all are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Talk.
    Storm,
    /// Some lose their connection: a third of them, by this number; with `true`
    /// without either side being told.
    Cut(u64, bool),
    /// Say nothing at all.
    Silence,
    /// Come back, and finish what was begun.
    Calm,
}

/// What a user was told.
#[derive(Default)]
pub struct Memory {
    /// Logged events in the order they came: number, and what they were.
    pub seen: Vec<(u64, u64)>,
    /// The head of the log when it came for the first time.
    pub began: u64,
    /// Message ids and the numbers they were acknowledged with.
    pub acknowledged: HashMap<String, u64>,
    /// The highest receipt that was acknowledged.
    pub delivered: u64,
    /// What must not have been.
    pub broken: Vec<String>,
    unsaid: usize,
    connected: bool,
    calm: bool,
    reconnections: usize,
    repeated: usize,
}

/// A player, as the others know it.
pub struct Shared {
    pub room: &'static str,
    pub user: &'static str,
    memory: Mutex<Memory>,
}

impl Shared {
    pub fn new(room: &'static str, user: &'static str) -> Self {
        Shared {
            room,
            user,
            memory: Mutex::default(),
        }
    }

    pub fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn acknowledged(&self) -> usize {
        self.memory().acknowledged.len()
    }

    pub fn reconnections(&self) -> usize {
        self.memory().reconnections
    }

    pub fn repeated(&self) -> usize {
        self.memory().repeated
    }

    /// Whether it is connected, knows that all is calm and has nothing left to
    /// say, or has something to complain of.
    pub fn is_done(&self) -> bool {
        let memory = self.memory();
        !memory.broken.is_empty() || memory.connected && memory.calm && memory.unsaid == 0
    }

    pub fn describe(&self) -> String {
        let memory = self.memory();
        format!(
            "{} in {}: connected {}, {} not acknowledged",
            self.user, self.room, memory.connected, memory.unsaid
        )
    }
}

/// How often it does something.
const PACE: Duration = Duration::from_millis(15);

/// How many of its messages may be under way.
const UNDER_WAY: usize = 20;

/// How long a connect, or an answer to come, may take before it tries anew: a
/// connection may be dead without saying so.
const PATIENCE: Duration = Duration::from_secs(3);

/// What waits for an answer.
enum Asked {
    /// A message, for the first time or after a reconnection.
    Message(String),
    /// A message that was acknowledged with this number before.
    Again(String, u64),
    /// A receipt up to this number.
    Receipt(u64),
}

pub struct Player {
    site: Arc<Site>,
    user: User,
    dialect: Dialect,
    shared: Arc<Shared>,
    random: fastrand::Rng,
    /// Messages without an answer, by their numbers.
    unsaid: BTreeMap<u64, String>,
    /// What was asked on this connection.
    asked: HashMap<u64, Asked>,
    last_id: u64,
    last_message: u64,
    /// The last event seen; none before the first connect.
    last: Option<u64>,
    /// Connections that are dead but not closed.
    ghosts: Vec<Client>,
}

/// Why a connection was left.
enum Left {
    Lost,
    /// A promise was broken.
    Broken(String),
}

impl Player {
    pub fn new(
        site: Arc<Site>,
        user: User,
        dialect: Dialect,
        shared: Arc<Shared>,
        seed: u64,
    ) -> Self {
        Player {
            site,
            user,
            dialect,
            shared,
            random: fastrand::Rng::with_seed(seed),
            unsaid: BTreeMap::new(),
            asked: HashMap::new(),
            last_id: 0,
            last_message: 0,
            last: None,
            ghosts: Vec::new(),
        }
    }

    /// Plays until it is dropped, or a promise was broken.
    pub async fn play(mut self, mut phases: watch::Receiver<Phase>) {
        loop {
            let left = match self.connect().await {
                Ok(client) => self.stay(client, &mut phases).await,
                Err(left) => left,
            };
            if self.left(left) {
                return;
            }
            sleep(Duration::from_millis(self.random.u64(5..150))).await;
        }
    }

    /// Whether that was all.
    fn left(&self, why: Left) -> bool {
        let mut memory = self.shared.memory();
        memory.connected = false;
        memory.calm = false;
        let Left::Broken(what) = why else {
            return false;
        };
        let (user, room) = (self.shared.user, self.shared.room);
        memory.broken.push(format!("{user} in {room}: {what}"));
        true
    }

    async fn connect(&mut self) -> Result<Client, Left> {
        let (room, since) = (self.shared.room, self.last);
        let mut seen = Vec::new();
        let opening = Client::open(
            &self.site,
            self.dialect,
            room,
            &self.user,
            since,
            |line, raw| remember(&mut seen, line, raw),
        );
        let opened = timeout(PATIENCE, opening).await;
        let Ok(Ok(client)) = opened else {
            // What had come is asked for again.
            return match opened {
                Ok(Err(why)) if is_broken(&why) => Err(Left::Broken(why)),
                _ => Err(Left::Lost),
            };
        };
        let last = client.sequence.last();
        let mut memory = self.shared.memory();
        match since {
            None => memory.began = last,
            Some(_) => memory.reconnections += 1,
        }
        if since.is_some() {
            memory.seen.extend(seen);
        }
        memory.connected = true;
        drop(memory);
        self.last = Some(last);
        Ok(client)
    }

    /// Stays as long as the connection does.
    async fn stay(&mut self, mut client: Client, phases: &mut watch::Receiver<Phase>) -> Left {
        self.asked.clear();
        // In the order they were first said; the same ids make them the same.
        for (_, message) in self.unsaid.clone() {
            self.say(&mut client, message);
        }
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut silent_for = Duration::ZERO;
        loop {
            let mut seen = Vec::new();
            let mut answers = Vec::new();
            let done = tokio::select! {
                read = client.read_raw(|line, raw| {
                    remember(&mut seen, line, raw);
                    if let Line::Ack { id, seq } = line {
                        answers.push((*id, *seq));
                    }
                }) => read,
                _ = pace.tick() => {
                    silent_for += PACE;
                    let phase = *phases.borrow_and_update();
                    self.shared.memory().calm = phase == Phase::Calm;
                    match phase {
                        Phase::Storm => self.talk(&mut client),
                        Phase::Cut(number, quietly) if self.is_hit(number) => {
                            match quietly {
                                true => self.ghosts.push(client),
                                false => client.cut(),
                            }
                            // Until the next phase, so that it is hit once.
                            let _ = timeout(PATIENCE, phases.changed()).await;
                            return Left::Lost;
                        }
                        Phase::Cut(..) | Phase::Silence | Phase::Calm => {}
                    }
                    client.socket.flush().await.map_err(Broken::from)
                }
            };
            if !seen.is_empty() || !answers.is_empty() {
                silent_for = Duration::ZERO;
            }
            self.last = Some(client.sequence.last());
            self.shared.memory().seen.extend(seen);
            for (id, seq) in answers {
                if let Err(what) = self.answered(id, seq) {
                    return Left::Broken(what);
                }
            }
            self.shared.memory().unsaid = self.unsaid.len();
            match done {
                Ok(()) => {}
                Err(Broken::Promise(what)) if is_broken(&what) => return Left::Broken(what),
                Err(_) => return Left::Lost,
            }
            if silent_for > PATIENCE && !self.asked.is_empty() {
                return Left::Lost;
            }
        }
    }

    /// A third, by a number that all are given.
    fn is_hit(&self, number: u64) -> bool {
        let mut hasher = DefaultHasher::new();
        (number, self.shared.user, self.shared.room).hash(&mut hasher);
        hasher.finish().is_multiple_of(3)
    }

    /// One thing that it might do now.
    fn talk(&mut self, client: &mut Client) {
        match self.random.u8(..100) {
            0..40 if self.unsaid.len() < UNDER_WAY => {
                self.last_message += 1;
                let message = format!("{}-{}", self.user.name, self.last_message);
                self.unsaid.insert(self.last_message, message.clone());
                self.say(client, message);
            }
            40..45 => {
                let memory = self.shared.memory();
                // Any of the latest.
                let number = self.last_message.saturating_sub(self.random.u64(..50));
                let message = format!("{}-{number}", self.user.name);
                let again = memory.acknowledged.get(&message).copied();
                drop(memory);
                if let Some(seq) = again {
                    self.shared.memory().repeated += 1;
                    let fields = fields_of(&message);
                    let id = self.ask(Asked::Again(message, seq));
                    client.queue("sendMessage", &fields, Some(id));
                }
            }
            45..50 => {
                let id = self.ask(Asked::Receipt(client.sequence.last()));
                client.queue_receipt(Some(id));
            }
            _ => {}
        }
    }

    fn ask(&mut self, what: Asked) -> u64 {
        self.last_id += 1;
        self.asked.insert(self.last_id, what);
        self.last_id
    }

    fn say(&mut self, client: &mut Client, message: String) {
        let fields = fields_of(&message);
        let id = self.ask(Asked::Message(message));
        client.queue("sendMessage", &fields, Some(id));
    }

    fn answered(&mut self, id: u64, seq: u64) -> Result<(), String> {
        let Some(asked) = self.asked.remove(&id) else {
            return Err(format!("an answer to {id}, which was not asked"));
        };
        let mut memory = self.shared.memory();
        match asked {
            Asked::Message(message) => {
                self.unsaid.retain(|_, unsaid| *unsaid != message);
                memory.acknowledged.insert(message, seq);
            }
            Asked::Again(message, before) if seq != before => {
                return Err(format!("{message} was {before} and is {seq} now: doubled"));
            }
            Asked::Again(..) => {}
            // The user's other connections may have said more.
            Asked::Receipt(asked) if seq < asked => {
                return Err(format!("a receipt for {asked} is answered {seq}"));
            }
            Asked::Receipt(_) => memory.delivered = memory.delivered.max(seq),
        }
        Ok(())
    }
}

fn fields_of(message: &str) -> String {
    format!(r#""content":"{message}","messageId":"{message}""#)
}

fn remember(seen: &mut Vec<(u64, u64)>, line: &Line, raw: &[u8]) {
    if let Line::Message { seq } = line {
        seen.push((*seq, digest(raw)));
    }
}

/// What an event was, as it is written.
pub fn digest(raw: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    raw.hash(&mut hasher);
    hasher.finish()
}

/// A refusal that says that it is the server's own fault is no broken promise:
/// what was sent is sent again.
fn is_broken(why: &str) -> bool {
    let promises = [
        "a hole",
        "again or out of order",
        "cannot read",
        "without seq",
        "gap",
    ];
    promises.iter().any(|promise| why.contains(promise))
}
