//! Replays a chat log through real connections. Each user of a room is a member with a
//! connection. Some members disconnect and reconnect, some lose their connection during
//! a send and send the message again. At the end, the events that every member received
//! and the messages over HTTP must be equal to the log.
//!
//! Within a room, another user sends only when all earlier lines are acknowledged.
//! Therefore the room must have the order of the log. Rooms run concurrently.

pub(crate) mod log;
mod member;

use crate::target::{Endpoint, Peer, Start, Target};
use clap::Args;
use log::Line;
use member::{Action, Ending, Member, ResumeFrom, Tally};
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
pub(crate) struct Options {
    /// The chat log: one message per line with tab-separated fields: RFC 3339 time, room,
    /// user, text (with the escapes \n, \t, \r, \\ and \u{hex}).
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/data/chat.log"))]
    log: PathBuf,
    /// Speed relative to the times in the log.
    #[arg(long, default_value_t = 1.0)]
    speed: f64,
    /// Ignore the times in the log and send as fast as the server answers.
    #[arg(long, conflicts_with = "speed")]
    max_speed: bool,
    /// A running server, such as http://localhost:8787, instead of a new one.
    #[arg(long, requires = "secret")]
    url: Option<String>,
    /// The JWT_SECRET of the running server.
    #[arg(long)]
    secret: Option<String>,
    /// Maximal number of messages in flight per user. The default is 8, or 1 with --url,
    /// because a running server has rate limits.
    #[arg(long)]
    in_flight: Option<usize>,
    /// Seed of the disconnects.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Limit for every wait. It ends a replay that hangs.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Maximal number of printed differences.
const MAX_PRINTED: usize = 20;

/// Differences from the log.
#[derive(Default)]
struct Differences {
    count: usize,
    first: Vec<String>,
}

/// The lines of one room in order, and the differences from them.
pub(crate) struct Script {
    pub room: String,
    pub lines: Vec<Line>,
    differences: Arc<Mutex<Differences>>,
}

impl Script {
    /// Records a difference.
    pub(crate) fn report(&self, what: String) {
        let mut differences = self
            .differences
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        differences.count += 1;
        if differences.first.len() < MAX_PRINTED {
            differences.first.push(what);
        }
    }

    /// Compares the data of a `newMessage` with the line of its `seq`. Returns the
    /// difference as the error.
    pub(crate) fn compare(&self, data: &Value) -> Result<(), String> {
        let seq = data["seq"].as_u64().unwrap_or(0);
        let index = (seq as usize).wrapping_sub(1);
        let Some(line) = self.lines.get(index) else {
            return Err(format!(
                "event {seq}, but the log has {} lines",
                self.lines.len()
            ));
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
                    "event {seq}: {key} is {found}, expected {expected:?}"
                ));
            }
        }
        Ok(())
    }
}

/// Replays a log. Returns `Ok(false)` if there is a difference.
pub(crate) async fn run(options: Options) -> Result<bool, String> {
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

    // `_server` lives until the end of the replay, because dropping it ends the server.
    let (endpoint, _server) = match (&options.url, &options.secret) {
        (Some(url), Some(secret)) => (Arc::new(Endpoint::running(url, secret).await?), None),
        _ => {
            let start = Start {
                log_level: "warn".to_owned(),
                build: None,
                settings: Vec::new(),
            };
            let target = Target::start(Peer::Roomcast, &start);
            (target.endpoint.clone(), Some(target))
        }
    };
    // A suffix for running servers, which may already have rooms with these names.
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

    // A wrong secret is reported here once, not by every member.
    if let Some(script) = scripts.first() {
        endpoint
            .get(&format!("/rooms/{}/members", script.room))
            .await?;
    }

    let schedule = Schedule {
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
            endpoint: endpoint.clone(),
            script: script.clone(),
            tally: tally.clone(),
            schedule,
            in_flight,
            random: seeds.fork(),
        };
        members += room.users().len();
        running.spawn(room.drive());
    }
    eprintln!(
        "replaying {total} lines of {} rooms with {members} members at {}",
        scripts.len(),
        schedule
            .speed
            .map_or("maximal speed".to_owned(), |s| format!("{s}× speed")),
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
                let acknowledged = tally.acknowledged.load(Relaxed);
                let received = tally.received.load(Relaxed);
                let seconds = schedule.start.elapsed().as_secs();
                eprintln!("{seconds:>5} s  {acknowledged} of {total} lines acknowledged, {received} events received");
            }
        }
    }
    let differences = differences
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    summary(
        &tally,
        schedule.start.elapsed(),
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
        "lines acknowledged           {} of {total}",
        count(&tally.acknowledged)
    );
    println!("rooms, members               {rooms}, {members}");
    println!("events received and compared {}", count(&tally.received));
    println!("  missed while disconnected  {}", count(&tally.missed));
    println!(
        "  received again             {}",
        count(&tally.received_again)
    );
    println!("connections                  {}", count(&tally.sockets));
    println!(
        "  closed, cut                {}, {}",
        count(&tally.closed),
        count(&tally.cut)
    );
    println!(
        "  cut while sending          {}",
        count(&tally.cut_while_sending)
    );
    println!("  resumed by since           {}", count(&tally.by_since));
    println!("  resumed by cursor          {}", count(&tally.by_cursor));
    println!("resends found as duplicates  {}", count(&tally.duplicates));
    println!(
        "presence, membership events  {}",
        count(&tally.presence_and_membership)
    );
    println!(
        "duration                     {seconds:.1} s, {:.0} lines/s, {:.0} events/s",
        total as f64 / seconds,
        count(&tally.received) as f64 / seconds,
    );
    for difference in &differences.first {
        println!("DIFFERENT: {difference}");
    }
    match differences.count {
        0 => println!("the events of every member are equal to the log"),
        count => println!("{count} differences from the log"),
    }
}

fn now_millis() -> u128 {
    std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(0, |since| since.as_millis())
}

/// Due times of the lines.
#[derive(Clone, Copy)]
struct Schedule {
    start: Instant,
    /// The time of the first line in milliseconds since 1970.
    first: u64,
    /// The speed, or `None` for immediate sends.
    speed: Option<f64>,
}

impl Schedule {
    async fn wait_for(&self, line: &Line) {
        if let Some(speed) = self.speed {
            let after = (line.at.saturating_sub(self.first)) as f64 / 1000.0 / speed;
            sleep_until(self.start + Duration::from_secs_f64(after)).await;
        }
    }
}

/// The replay of one room.
struct Room {
    endpoint: Arc<Endpoint>,
    script: Arc<Script>,
    tally: Arc<Tally>,
    schedule: Schedule,
    in_flight: usize,
    random: fastrand::Rng,
}

/// The driver's handle of a member.
struct MemberHandle {
    actions: mpsc::UnboundedSender<Action>,
    /// If it is disconnected: the line at which it reconnects.
    reconnect_at: Option<usize>,
}

impl MemberHandle {
    fn send(&self, action: Action) {
        // A member that has stopped has reported the reason.
        let _ = self.actions.send(action);
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

    /// Replays the script with all members, then checks the room over HTTP.
    async fn drive(mut self) {
        let (acked, mut acks) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        let mut members: BTreeMap<String, MemberHandle> = BTreeMap::new();
        for user in self.users() {
            let (actions, receiver) = mpsc::unbounded_channel();
            let member = Member {
                endpoint: self.endpoint.clone(),
                script: self.script.clone(),
                user: user.clone(),
                tally: self.tally.clone(),
                acked: acked.clone(),
                state: Default::default(),
            };
            tasks.spawn(member.run(receiver));
            let handle = MemberHandle {
                actions,
                reconnect_at: None,
            };
            members.insert(user, handle);
        }
        drop(acked);
        // The first line is sent after all have joined, so that every member receives
        // every line.
        self.all(&members, Action::Join, "could not join").await;

        let mut in_flight = 0;
        let mut previous = "";
        let script = self.script.clone();
        for (index, line) in script.lines.iter().enumerate() {
            self.schedule.wait_for(line).await;
            let allowed = if line.user == previous {
                self.in_flight - 1
            } else {
                0
            };
            while in_flight > allowed {
                match timeout(TIMEOUT, acks.recv()).await {
                    Ok(Some(_)) => in_flight -= 1,
                    _ => return script.report(format!("{}: no answer to a line", script.room)),
                }
            }
            while acks.try_recv().is_ok() {
                in_flight -= 1;
            }
            self.reconnect(index, &line.user, &mut members);
            let sender = &members[&line.user];
            // 6 of 256 sends lose their connection before the answer.
            if self.random.u8(..) < 6 {
                sender.send(Action::SendAndCut(index));
            } else {
                sender.send(Action::Send(index));
            }
            in_flight += 1;
            previous = &line.user;
            self.disconnect(index, &line.user, &mut members);
        }

        self.all(&members, Action::Finish, "did not receive everything")
            .await;
        drop(members);
        tasks.join_all().await;
        if let Err(error) = self.check_over_http().await {
            script.report(format!("{}: {error}", script.room));
        }
    }

    /// Sends every member an action and waits until all members have notified. Reports
    /// `what` for each member that does not notify in time.
    async fn all(
        &self,
        members: &BTreeMap<String, MemberHandle>,
        action: impl Fn(oneshot::Sender<()>) -> Action,
        what: &str,
    ) {
        let mut waiting = JoinSet::new();
        for (user, member) in members {
            let (done, notified) = oneshot::channel();
            member.send(action(done));
            let failure = format!("{user} in {} {what}", self.script.room);
            let script = self.script.clone();
            waiting.spawn(async move {
                if !matches!(timeout(TIMEOUT, notified).await, Ok(Ok(()))) {
                    script.report(failure);
                }
            });
        }
        waiting.join_all().await;
    }

    /// Reconnects the members that are due at this line, and its sender.
    fn reconnect(
        &mut self,
        index: usize,
        sender: &str,
        members: &mut BTreeMap<String, MemberHandle>,
    ) {
        for (user, member) in members {
            let due = member
                .reconnect_at
                .is_some_and(|at| at <= index || user == sender);
            if due {
                member.reconnect_at = None;
                member.send(Action::Reconnect(if self.random.bool() {
                    ResumeFrom::Since
                } else {
                    ResumeFrom::Cursor
                }));
            }
        }
    }

    /// Disconnects a random member for up to 40 lines in 24 of 256 cases, unless half of
    /// the members are disconnected already.
    fn disconnect(
        &mut self,
        index: usize,
        sender: &str,
        members: &mut BTreeMap<String, MemberHandle>,
    ) {
        let disconnected = members
            .values()
            .filter(|member| member.reconnect_at.is_some())
            .count();
        if self.random.u8(..) >= 24 || disconnected * 2 >= members.len() {
            return;
        }
        let others: Vec<&mut MemberHandle> = members
            .iter_mut()
            .filter(|(user, member)| *user != sender && member.reconnect_at.is_none())
            .map(|(_, member)| member)
            .collect();
        let choice = self.random.usize(..others.len().max(1));
        if let Some(member) = others.into_iter().nth(choice) {
            member.reconnect_at = Some(index + self.random.usize(1..=40));
            member.send(Action::Disconnect(if self.random.bool() {
                Ending::Close
            } else {
                Ending::Cut
            }));
        }
    }

    /// Sends `GET /rooms/{room}/{what}` as a service.
    async fn get(&self, what: &str) -> Result<Value, String> {
        self.endpoint
            .get(&format!("/rooms/{}/{what}", self.script.room))
            .await
    }

    /// Checks that the messages over HTTP are equal to the log and that no member has
    /// queued events.
    async fn check_over_http(&self) -> Result<(), String> {
        let script = &self.script;
        let mut after = 0;
        loop {
            let page = self
                .get(&format!("messages?after={after}&limit=500"))
                .await?;
            let events = page["events"].as_array().ok_or("over HTTP: no events")?;
            for event in events {
                let data = &event["data"];
                if data["seq"].as_u64() != Some(after + 1) {
                    return Err(format!(
                        "over HTTP: event {} follows event {after}",
                        data["seq"]
                    ));
                }
                script
                    .compare(data)
                    .map_err(|e| format!("over HTTP: {e}"))?;
                after += 1;
            }
            if page["more"] != true || events.is_empty() {
                break;
            }
        }
        let total = script.lines.len() as u64;
        if after != total {
            return Err(format!("over HTTP: {after} events instead of {total}"));
        }
        let mut path = "members?limit=1000".to_owned();
        loop {
            let members = self.get(&path).await?;
            let members = members.as_array().ok_or("over HTTP: no members")?;
            for member in members {
                let queued = member["queued"].as_u64();
                if member["delivered"].as_u64() != Some(total) || queued != Some(0) {
                    return Err(format!("over HTTP: not everything is delivered: {member}"));
                }
            }
            match members.last().and_then(|member| member["userId"].as_str()) {
                Some(last) if members.len() == 1_000 => {
                    path = format!("members?limit=1000&after={last}");
                }
                _ => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn compare_accepts_only_the_line_of_the_seq() {
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
