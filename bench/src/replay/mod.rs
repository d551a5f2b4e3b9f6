//! Drives rooms from a chat log through real sockets: each user of a room is a
//! member with a socket, some go offline and come back, some are cut off in
//! the middle of a message and say it again. It ends with a check that what
//! every member saw, and what the room tells over HTTP, equals the log.
//!
//! Within a room one line follows the other: somebody else speaks only when
//! what was said before is acknowledged. That makes the log's order the one
//! that the room must have. Rooms run side by side.

pub mod log;
mod member;

use crate::target::{Peer, Site, Start, Target};
use clap::Args;
use log::Line;
use member::{Leaving, Member, Order, Returning, Tally};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

/// Options of `replay`.
#[derive(Args)]
pub struct Options {
    /// The chat log: one message a line, tab separated: RFC 3339 time, room,
    /// user, text (with \n, \t, \r, \\ and \u{hex} as escapes).
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/data/chat.log"))]
    log: PathBuf,
    /// How many times as fast as it was said.
    #[arg(long, default_value_t = 1.0)]
    speed: f64,
    /// As fast as the server answers.
    #[arg(long, conflicts_with = "speed")]
    max_speed: bool,
    /// A running server, such as http://localhost:8787, instead of an own one.
    #[arg(long, requires = "secret")]
    url: Option<String>,
    /// The JWT_SECRET of the running server.
    #[arg(long)]
    secret: Option<String>,
    /// Messages of one user that may be under way at once. The default is 8,
    /// with --url 1: limits of a running server are met by waiting.
    #[arg(long)]
    in_flight: Option<usize>,
    /// Who goes offline when.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// How long the slowest thing may take that is waited for. Only a limit to end
/// a replay that hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Differences that are printed; the rest are counted.
const SHOWN: usize = 20;

/// What was not as it must be.
#[derive(Default)]
struct Differences {
    count: usize,
    first: Vec<String>,
}

/// What was said in one room, in order, and what differs from it.
pub struct Script {
    pub room: String,
    pub lines: Vec<Line>,
    differences: Arc<Mutex<Differences>>,
}

impl Script {
    /// Something is not as it must be.
    pub fn wrong(&self, what: String) {
        let mut differences = self
            .differences
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        differences.count += 1;
        if differences.first.len() < SHOWN {
            differences.first.push(what);
        }
    }

    /// Whether the data of a `newMessage` is the line that its `seq` says.
    pub fn compare(&self, data: &Value) -> Result<(), String> {
        let seq = data["seq"].as_u64().unwrap_or(0);
        let index = (seq as usize).wrapping_sub(1);
        let Some(line) = self.lines.get(index) else {
            return Err(format!("event {seq} of {}", self.lines.len()));
        };
        let expected = [
            ("content", line.text.as_str()),
            ("senderId", line.user.as_str()),
            ("roomId", self.room.as_str()),
            ("messageId", &member::message_id(index)),
        ];
        for (key, expected) in expected {
            if data[key] != expected {
                let found = data[key].to_string();
                let found: String = found.chars().take(200).collect();
                let expected: String = expected.chars().take(200).collect();
                return Err(format!(
                    "event {seq}: {key} is {found}, said was {expected:?}"
                ));
            }
        }
        Ok(())
    }
}

/// Replays; answers whether everything was as it must be.
pub async fn run(options: Options) -> Result<bool, String> {
    let text = std::fs::read_to_string(&options.log)
        .map_err(|error| format!("{}: {error}", options.log.display()))?;
    let lines = log::parse(&text).map_err(|error| format!("{}: {error}", options.log.display()))?;
    let first = lines
        .iter()
        .map(|line| line.at)
        .min()
        .ok_or("the log is empty")?;
    if options.speed.is_nan() || options.speed <= 0.0 {
        return Err("--speed must be above 0".to_owned());
    }

    // Kept until the end: dropping it ends the server.
    let (site, _server) = match (&options.url, &options.secret) {
        (Some(url), Some(secret)) => (Arc::new(Site::running(url, secret).await?), None),
        _ => {
            let start = Start {
                log_level: "warn".to_owned(),
                build: None,
                settings: Vec::new(),
            };
            let target = Target::start(Peer::Roomcast, &start);
            (target.site.clone(), Some(target))
        }
    };
    // A running server may have had the same rooms before.
    let suffix = match options.url {
        Some(_) => format!(":replay-{:x}", now_millis()),
        None => String::new(),
    };
    let differences = Arc::new(Mutex::new(Differences::default()));
    let total = lines.len() as u64;
    let mut rooms: BTreeMap<String, Vec<Line>> = BTreeMap::new();
    for line in lines {
        rooms.entry(line.room.clone()).or_default().push(line);
    }
    let scripts: Vec<Arc<Script>> = rooms
        .into_iter()
        .map(|(room, lines)| {
            Arc::new(Script {
                room: room + &suffix,
                lines,
                differences: differences.clone(),
            })
        })
        .collect();

    // A wrong secret is better told once than by every member.
    if let Some(script) = scripts.first() {
        site.get(&format!("/rooms/{}/members", script.room)).await?;
    }

    let pace = Pace {
        start: Instant::now(),
        first,
        speed: (!options.max_speed).then_some(options.speed),
    };
    let in_flight = options
        .in_flight
        .unwrap_or(if options.url.is_some() { 1 } else { 8 })
        .max(1);
    let tally = Arc::new(Tally::default());
    let mut seeds = fastrand::Rng::with_seed(options.seed);
    let mut running = JoinSet::new();
    let mut members = 0;
    for script in &scripts {
        let room = Room {
            site: site.clone(),
            script: script.clone(),
            tally: tally.clone(),
            pace,
            in_flight,
            random: seeds.fork(),
        };
        members += room.users().len();
        running.spawn(room.drive());
    }
    eprintln!(
        "replaying {total} lines of {} rooms with {members} members {}",
        scripts.len(),
        pace.speed
            .map_or("as fast as it goes".to_owned(), |s| format!(
                "at {s}× speed"
            )),
    );

    let mut progress = tokio::time::interval(Duration::from_secs(1));
    progress.tick().await;
    while !running.is_empty() {
        tokio::select! {
            done = running.join_next() => {
                if let Some(Err(error)) = done {
                    return Err(error.to_string());
                }
            }
            _ = progress.tick() => {
                let said = tally.acknowledged.load(Relaxed);
                let seen = tally.seen.load(Relaxed);
                let seconds = pace.start.elapsed().as_secs();
                eprintln!("{seconds:>5} s  {said} of {total} lines said, {seen} events seen");
            }
        }
    }
    let differences = differences
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    summary(
        &tally,
        pace.start.elapsed(),
        total,
        scripts.len(),
        members,
        &differences,
    );
    Ok(differences.count == 0)
}

fn summary(
    tally: &Tally,
    elapsed: Duration,
    total: u64,
    rooms: usize,
    members: usize,
    differences: &Differences,
) {
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Relaxed);
    let seconds = elapsed.as_secs_f64();
    println!(
        "lines said and acknowledged  {} of {total}",
        count(&tally.acknowledged)
    );
    println!("rooms, members               {rooms}, {members}");
    println!("events seen and compared     {}", count(&tally.seen));
    println!("  missed while away          {}", count(&tally.missed));
    println!("  seen a second time         {}", count(&tally.seen_again));
    println!("sockets                      {}", count(&tally.sockets));
    println!(
        "  closed, cut                {}, {}",
        count(&tally.closed),
        count(&tally.cut)
    );
    println!(
        "  cut while sending          {}",
        count(&tally.cut_while_sending)
    );
    println!("  came back by since         {}", count(&tally.by_since));
    println!("  came back by cursor        {}", count(&tally.by_cursor));
    println!("repeated sends, told apart   {}", count(&tally.duplicates));
    println!(
        "presence, membership         {}",
        count(&tally.presence_and_membership)
    );
    println!(
        "took                         {seconds:.1} s, {:.0} lines/s, {:.0} events/s",
        total as f64 / seconds,
        count(&tally.seen) as f64 / seconds,
    );
    for difference in &differences.first {
        println!("DIFFERENT: {difference}");
    }
    match differences.count {
        0 => println!("what every member saw equals the log"),
        count => println!("{count} differences from the log"),
    }
}

fn now_millis() -> u128 {
    std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(0, |since| since.as_millis())
}

/// When lines are due.
#[derive(Clone, Copy)]
struct Pace {
    start: Instant,
    /// The time of the first line, in ms since 1970.
    first: u64,
    /// None: at once.
    speed: Option<f64>,
}

impl Pace {
    async fn wait_for(&self, line: &Line) {
        if let Some(speed) = self.speed {
            let after = (line.at.saturating_sub(self.first)) as f64 / 1000.0 / speed;
            sleep_until(self.start + Duration::from_secs_f64(after)).await;
        }
    }
}

/// One room's replay.
struct Room {
    site: Arc<Site>,
    script: Arc<Script>,
    tally: Arc<Tally>,
    pace: Pace,
    in_flight: usize,
    random: fastrand::Rng,
}

/// One member as the room's driver knows it.
struct Seat {
    orders: mpsc::UnboundedSender<Order>,
    /// When it comes back, as an index of a line, if it is away.
    back_at: Option<usize>,
}

impl Seat {
    fn order(&self, order: Order) {
        // A member that is gone has said why.
        let _ = self.orders.send(order);
    }
}

impl Room {
    fn users(&self) -> BTreeSet<String> {
        self.script
            .lines
            .iter()
            .map(|line| line.user.clone())
            .collect()
    }

    /// Plays the script with all its members, then checks the room itself.
    async fn drive(mut self) {
        let (acked, mut acks) = mpsc::unbounded_channel();
        let mut lives = JoinSet::new();
        let mut seats: BTreeMap<String, Seat> = BTreeMap::new();
        for user in self.users() {
            let (orders, receiver) = mpsc::unbounded_channel();
            let member = Member {
                site: self.site.clone(),
                script: self.script.clone(),
                user: user.clone(),
                tally: self.tally.clone(),
                acked: acked.clone(),
                state: Default::default(),
            };
            lives.spawn(member.run(receiver));
            let seat = Seat {
                orders,
                back_at: None,
            };
            seats.insert(user, seat);
        }
        drop(acked);
        // Everybody is to see everything: the first line waits for all.
        self.all(&seats, Order::Join, "could not join").await;

        let mut open = 0;
        let mut previous = "";
        let script = self.script.clone();
        for (index, line) in script.lines.iter().enumerate() {
            self.pace.wait_for(line).await;
            let allowed = if line.user == previous {
                self.in_flight - 1
            } else {
                0
            };
            while open > allowed {
                match timeout(PATIENCE, acks.recv()).await {
                    Ok(Some(_)) => open -= 1,
                    _ => return script.wrong(format!("{}: no answer to a line", script.room)),
                }
            }
            while acks.try_recv().is_ok() {
                open -= 1;
            }
            self.come_back(index, &line.user, &mut seats);
            let speaker = &seats[&line.user];
            // Rarely: cut off before the answer can have come.
            if self.random.u8(..) < 6 {
                speaker.order(Order::SayAndVanish(index));
            } else {
                speaker.order(Order::Say(index));
            }
            open += 1;
            previous = &line.user;
            self.go_away(index, &line.user, &mut seats);
        }

        self.all(&seats, Order::Finish, "never saw everything")
            .await;
        drop(seats);
        lives.join_all().await;
        if let Err(error) = self.check_over_http().await {
            script.wrong(format!("{}: {error}", script.room));
        }
    }

    /// Gives every member the order that `order` makes and waits until all
    /// have answered; `what` is wrong with those who do not.
    async fn all(
        &self,
        seats: &BTreeMap<String, Seat>,
        order: impl Fn(oneshot::Sender<()>) -> Order,
        what: &str,
    ) {
        let mut waiting = JoinSet::new();
        for (user, seat) in seats {
            let (done, answer) = oneshot::channel();
            seat.order(order(done));
            let wrong = format!("{user} in {} {what}", self.script.room);
            let script = self.script.clone();
            waiting.spawn(async move {
                if !matches!(timeout(PATIENCE, answer).await, Ok(Ok(()))) {
                    script.wrong(wrong);
                }
            });
        }
        waiting.join_all().await;
    }

    /// Brings back who is due, and who is about to speak.
    fn come_back(&mut self, index: usize, speaker: &str, seats: &mut BTreeMap<String, Seat>) {
        for (user, seat) in seats {
            let due = seat
                .back_at
                .is_some_and(|at| at <= index || user == speaker);
            if due {
                seat.back_at = None;
                seat.order(Order::Return(if self.random.bool() {
                    Returning::Since
                } else {
                    Returning::Cursor
                }));
            }
        }
    }

    /// Now and then sends somebody away for up to 40 lines, never more than
    /// half of the room.
    fn go_away(&mut self, index: usize, speaker: &str, seats: &mut BTreeMap<String, Seat>) {
        let away = seats.values().filter(|seat| seat.back_at.is_some()).count();
        if self.random.u8(..) >= 24 || away * 2 >= seats.len() {
            return;
        }
        let others: Vec<&mut Seat> = seats
            .iter_mut()
            .filter(|(user, seat)| *user != speaker && seat.back_at.is_none())
            .map(|(_, seat)| seat)
            .collect();
        let choice = self.random.usize(..others.len().max(1));
        if let Some(seat) = others.into_iter().nth(choice) {
            seat.back_at = Some(index + self.random.usize(1..=40));
            seat.order(Order::Leave(if self.random.bool() {
                Leaving::Close
            } else {
                Leaving::Cut
            }));
        }
    }

    /// `GET /rooms/{room}/{what}` as a service.
    async fn get(&self, what: &str) -> Result<Value, String> {
        self.site
            .get(&format!("/rooms/{}/{what}", self.script.room))
            .await
    }

    /// The room's history equals the log, and nobody has anything left to get.
    async fn check_over_http(&self) -> Result<(), String> {
        let script = &self.script;
        let mut after = 0;
        loop {
            let page = self
                .get(&format!("messages?after={after}&limit=500"))
                .await?;
            let events = page["events"].as_array().ok_or("no events over HTTP")?;
            for event in events {
                let data = &event["data"];
                if data["seq"].as_u64() != Some(after + 1) {
                    return Err(format!("over HTTP {} follows {after}", data["seq"]));
                }
                script
                    .compare(data)
                    .map_err(|e| format!("over HTTP, {e}"))?;
                after += 1;
            }
            if page["more"] != true || events.is_empty() {
                break;
            }
        }
        let total = script.lines.len() as u64;
        if after != total {
            return Err(format!("over HTTP {after} events, {total} were said"));
        }
        let members = self.get("members").await?;
        for member in members.as_array().ok_or("no members over HTTP")? {
            if member["delivered"].as_u64() != Some(total) || member["queued"].as_u64() != Some(0) {
                return Err(format!("everything was delivered, but {member}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_is_compared_with_its_line() {
        let script = Script {
            room: "r".to_owned(),
            lines: log::parse("2026-03-14T08:00:03Z\tr\talice\thi\n").expect("a log"),
            differences: Arc::default(),
        };
        let event = json!({
            "content": "hi", "senderId": "alice", "roomId": "r", "messageId": "line-0", "seq": 1,
        });
        assert_eq!(script.compare(&event), Ok(()));
        for (key, value) in [
            ("content", json!("hi ")),
            ("senderId", json!("bob")),
            ("roomId", json!("s")),
            ("messageId", json!("line-1")),
            ("seq", json!(2)),
            ("seq", json!(0)),
            ("seq", json!(null)),
        ] {
            let mut other = event.clone();
            other[key] = value;
            assert!(script.compare(&other).is_err(), "{other}");
        }
    }
}
