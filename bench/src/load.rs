//! The load generator: sockets that read and check everything, a sender that
//! keeps a number of messages in flight, and the clock.

use crate::check::{Line, Sequence};
use crate::dialect::Dialect;
use crate::socket::{Socket, SocketError};
use crate::target::Target;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval_at, timeout};

/// The room that all load goes to.
pub const ROOM: &str = "bench";

/// Another, in which a server that has just been started compiles its code.
const WARM_UP_ROOM: &str = "warm-up";

/// How often every client sends `ping`.
pub const PING: Duration = Duration::from_secs(3);

/// How long a server may take to finish what was asked of it. Only a limit to
/// end a run that hangs; no figure depends on it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How many connects are under way at once where the connect is not what is
/// measured.
pub const CONNECTING: usize = 32;

/// What the reading sockets have counted together.
#[derive(Default)]
pub struct Tally {
    /// Logged events that arrived, over all sockets.
    pub deliveries: AtomicU64,
    /// Presence, membership and the like, over all sockets.
    pub others: AtomicU64,
}

/// Why a socket does not go on.
pub enum Broken {
    /// The server broke a promise.
    Promise(String),
    /// The connection ended.
    Gone(String),
}

impl From<SocketError> for Broken {
    fn from(error: SocketError) -> Self {
        Broken::Gone(error.to_string())
    }
}

impl From<Broken> for String {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Promise(what) | Broken::Gone(what) => what,
        }
    }
}

/// A socket in the room, and where it is in the log.
pub struct Client {
    pub socket: Socket,
    pub sequence: Sequence,
    pub dialect: Dialect,
}

/// The id of the command that joins the room.
const JOIN: u64 = 0;

impl Client {
    /// Connects `user` and waits until it is in the room.
    pub async fn connect(
        target: &Target,
        room: &str,
        user: &User,
        since: Option<u64>,
    ) -> Result<Self, String> {
        let (site, dialect) = (target.door(), target.peer.dialect());
        let path = dialect.path(room, since, &user.token);
        let socket = Socket::open(site.address, &site.host, &path, &user.token)
            .await
            .map_err(|error| format!("{}: {error}", user.name))?;
        let mut client = Client {
            socket,
            sequence: Sequence::after(since),
            dialect,
        };
        if dialect == Dialect::SocketIo {
            client
                .until(|line| (*line == Line::Open).then_some(()))
                .await?;
            client.say("40").await?;
        }
        let connected = client.until(|line| match line {
            Line::Connected { head } => Some(*head),
            _ => None,
        });
        let mut head = connected.await?;
        if dialect != Dialect::Room {
            let join = dialect.command("joinRoom", &format!("{room:?}"), JOIN);
            client.say(&join).await?;
            let joined = client.until(|line| match line {
                Line::Ack { id: JOIN, seq } => Some(*seq),
                _ => None,
            });
            head = Some(joined.await?);
        }
        let head = head.ok_or("connected without seq")?;
        if since.is_none() {
            // Nothing can have come before it knew the head.
            let seen = client.sequence.last();
            client.sequence = Sequence::after(Some(seen.max(head)));
        }
        Ok(client)
    }

    /// Reads until `found` has found something.
    async fn until<T>(&mut self, mut found: impl FnMut(&Line) -> Option<T>) -> Result<T, Broken> {
        let mut result = None;
        loop {
            self.read(|line| {
                if let Some(it) = found(line) {
                    result = Some(it);
                }
            })
            .await?;
            if let Some(it) = result {
                return Ok(it);
            }
        }
    }

    /// Has a message ready to be sent to the room that all load goes to.
    pub fn queue_message(&mut self, id: u64) {
        let data = match self.dialect {
            Dialect::Room => format!(r#"{{"content":"{CONTENT}"}}"#),
            // It could be in several.
            _ => format!(r#"{{"roomId":"{ROOM}","content":"{CONTENT}"}}"#),
        };
        let message = self.dialect.command("sendMessage", &data, id);
        self.socket.queue(message.as_bytes());
    }

    /// Sends one frame.
    pub async fn say(&mut self, text: &str) -> Result<(), Broken> {
        self.socket.queue(text.as_bytes());
        Ok(self.socket.flush().await?)
    }

    /// Waits for something to arrive unless something is there already, checks
    /// it, and shows it to `each`. Cancel safe.
    pub async fn read(&mut self, mut each: impl FnMut(&Line)) -> Result<(), Broken> {
        if !self.take(&mut each)? {
            self.socket.fill().await?;
            self.take(&mut each)?;
        }
        // A pong, if there is anything.
        Ok(self.socket.flush().await?)
    }

    /// Looks at what has been read; whether there was anything.
    fn take(&mut self, each: &mut impl FnMut(&Line)) -> Result<bool, Broken> {
        let Client {
            socket,
            sequence,
            dialect,
        } = self;
        let (mut any, mut pinged) = (false, false);
        loop {
            let read = socket.next(|frame| {
                dialect.read(frame, sequence, |line| {
                    pinged |= *line == Line::Ping;
                    each(line);
                })
            });
            match read? {
                Some(result) => result.map_err(Broken::Promise)?,
                None => break,
            }
            any = true;
        }
        if pinged {
            socket.queue(b"3");
        }
        Ok(any)
    }

    /// Reads until it is told to stop by being dropped; `seen` follows the last
    /// event it has.
    async fn listen(mut self, tally: &Tally, seen: &AtomicU64) -> Result<(), Broken> {
        let mut ping = interval_at(tokio::time::Instant::now() + PING, PING);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        seen.store(self.sequence.last(), Relaxed);
        loop {
            let mut counted = Counted::default();
            tokio::select! {
                read = self.read(|line| counted.count(line)) => read?,
                _ = ping.tick() => self.ping().await?,
            }
            counted.add_to(tally);
            seen.store(self.sequence.last(), Relaxed);
        }
    }

    /// Shows that it lives, where that is up to it.
    pub async fn ping(&mut self) -> Result<(), Broken> {
        if let Some(ping) = self.dialect.ping() {
            self.socket.queue(ping);
        }
        Ok(self.socket.flush().await?)
    }

    /// Goes away without a word.
    pub fn cut(self) {
        self.socket.cut();
    }
}

#[derive(Default)]
struct Counted {
    deliveries: u64,
    others: u64,
}

impl Counted {
    fn count(&mut self, line: &Line) {
        match line {
            Line::Message { .. } => self.deliveries += 1,
            Line::Other => self.others += 1,
            Line::Ack { .. } | Line::Connected { .. } | Line::Open | Line::Ping => {}
        }
    }

    fn add_to(&self, tally: &Tally) {
        tally.deliveries.fetch_add(self.deliveries, Relaxed);
        tally.others.fetch_add(self.others, Relaxed);
    }
}

/// A user and its token, made before the clock starts.
pub struct User {
    pub name: String,
    pub token: String,
}

/// `count` users that nobody else is.
pub fn users(target: &Target, count: usize) -> Vec<User> {
    (0..count)
        .map(|n| {
            let name = format!("user-{n:05}");
            let token = target.site.token(&name);
            User { name, token }
        })
        .collect()
}

/// Connects them a few at a time; answers in the order of `users`.
pub async fn connect_all(target: &Target, users: &[User]) -> Result<Vec<Client>, String> {
    stream::iter(users)
        .map(|user| Client::connect(target, ROOM, user, None))
        .buffered(CONNECTING)
        .try_collect()
        .await
}

/// Sockets that read in the background until this is dropped.
pub struct Audience {
    tally: Arc<Tally>,
    seen: Vec<Arc<AtomicU64>>,
    tasks: JoinSet<()>,
    failures: mpsc::UnboundedReceiver<String>,
    report: mpsc::UnboundedSender<String>,
}

impl Default for Audience {
    fn default() -> Self {
        let (report, failures) = mpsc::unbounded_channel();
        Audience {
            tally: Arc::default(),
            seen: Vec::new(),
            tasks: JoinSet::new(),
            failures,
            report,
        }
    }
}

impl Audience {
    /// Lets a client listen.
    pub fn add(&mut self, client: Client) {
        let seen = Arc::new(AtomicU64::new(client.sequence.last()));
        self.seen.push(seen.clone());
        let tally = self.tally.clone();
        let report = self.report.clone();
        self.tasks.spawn(async move {
            if let Err(failure) = client.listen(&tally, &seen).await {
                // Nobody listens any more when the run is over already.
                let _ = report.send(failure.into());
            }
        });
    }

    /// Fails with what the first socket complained about, if one has.
    pub fn check(&mut self) -> Result<(), String> {
        match self.failures.try_recv() {
            Ok(failure) => Err(failure),
            Err(_) => Ok(()),
        }
    }

    /// Waits until every socket has seen the event `head`, and no more.
    pub async fn reach(&mut self, head: u64) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.check()?;
            let behind = self.seen.iter().filter(|seen| seen.load(Relaxed) < head);
            match behind.count() {
                0 => break,
                count if Instant::now() > deadline => {
                    return Err(format!("{count} sockets never saw event {head}"));
                }
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
        match self.seen.iter().map(|seen| seen.load(Relaxed)).max() {
            Some(last) if last > head => Err(format!("an event {last} after the last, {head}")),
            _ => Ok(()),
        }
    }
}

/// What one types in a chat: two lines on a phone.
const CONTENT: &str = "the quick brown fox jumps over the lazy dog, and then it rests.";

/// Sends messages, `in_flight` of them unanswered at any time.
pub struct Sender {
    client: Client,
    next_id: u64,
    /// When the message of each id that is in flight was sent.
    sent: std::collections::VecDeque<Instant>,
    /// The last `seq` that was acknowledged.
    head: u64,
}

impl Sender {
    pub fn new(client: Client) -> Self {
        let head = client.sequence.last();
        Sender {
            client,
            next_id: 1,
            sent: Default::default(),
            head,
        }
    }

    fn send_one(&mut self) {
        let id = self.next_id;
        self.client.queue_message(id);
        self.sent.push_back(Instant::now());
        self.next_id += 1;
    }

    /// Keeps `in_flight` messages under way until `more` answers false, then
    /// waits for those that are. `acked` hears of each one, with microseconds.
    /// `deliveries` counts what this socket receives.
    async fn run(
        &mut self,
        in_flight: usize,
        mut more: impl FnMut(u64) -> bool,
        tally: &Tally,
        mut acked: impl FnMut(u32),
    ) -> Result<u64, String> {
        let mut ping = interval_at(tokio::time::Instant::now() + PING, PING);
        let mut total = 0;
        loop {
            while self.sent.len() < in_flight && more(total) {
                self.send_one();
                total += 1;
            }
            self.client
                .socket
                .flush()
                .await
                .map_err(|e| e.to_string())?;
            if self.sent.is_empty() {
                return Ok(self.head);
            }
            let mut counted = Counted::default();
            let mut wrong = None;
            let first_id = self.next_id - self.sent.len() as u64;
            let (sent, head) = (&mut self.sent, &mut self.head);
            let mut expected = first_id;
            let reading = self.client.read(|line| match line {
                Line::Ack { id, seq } => {
                    // Sent in order by one socket: acknowledged in order, with
                    // the numbers that follow.
                    match sent.pop_front() {
                        Some(at) if *id == expected && *seq == *head + 1 => {
                            acked(at.elapsed().as_micros() as u32);
                        }
                        _ => wrong = Some(format!("ack {id} with seq {seq} after {head}")),
                    }
                    expected += 1;
                    *head = *seq;
                }
                line => counted.count(line),
            });
            tokio::select! {
                read = timeout(PATIENCE, reading) => {
                    read.map_err(|_| "no answer to what was sent".to_owned())??;
                }
                _ = ping.tick() => self.client.ping().await?,
            }
            counted.add_to(tally);
            if let Some(wrong) = wrong {
                return Err(wrong);
            }
        }
    }

    /// Sends `count` messages and waits for all acks and for its own copies.
    /// Answers the head of the log.
    pub async fn send(&mut self, count: u64, in_flight: usize) -> Result<u64, String> {
        let head = self
            .run(in_flight, |total| total < count, &Tally::default(), |_| {})
            .await?;
        self.see(head).await?;
        Ok(head)
    }

    /// Waits until this socket has the event `head` itself.
    async fn see(&mut self, head: u64) -> Result<(), String> {
        while self.client.sequence.last() < head {
            let reading = self.client.read(|_| {});
            let read = timeout(PATIENCE, reading).await;
            read.map_err(|_| format!("the sender never saw event {head}"))??;
        }
        Ok(())
    }
}

/// What one measurement of throughput gave.
pub struct Throughput {
    /// How long was measured.
    pub seconds: f64,
    /// Logged events that arrived at sockets in that time.
    pub deliveries: u64,
    /// Microseconds from each send to its ack, of those acknowledged then.
    pub latencies: Vec<u32>,
    /// Share of one core that server and generator used.
    pub server_cpu: f64,
    pub generator_cpu: f64,
    /// All messages of the run, the warm-up included.
    pub messages: u64,
}

/// `sockets` users in one room; the first sends, `in_flight` at a time, for
/// `measure` after a warm-up.
pub async fn throughput(
    target: &Target,
    sockets: usize,
    in_flight: usize,
    warm_up: Duration,
    measure: Duration,
) -> Result<Throughput, String> {
    let users = users(target, sockets);
    let mut clients = connect_all(target, &users).await?.into_iter();
    let sender = clients.next().ok_or("nobody to send")?;
    let mut audience = Audience::default();
    clients.for_each(|client| audience.add(client));

    let stop = Arc::new(AtomicBool::new(false));
    let measuring = Arc::new(AtomicBool::new(false));
    let tally = audience.tally.clone();
    let sending = tokio::spawn({
        let (stop, measuring) = (stop.clone(), measuring.clone());
        async move {
            let mut latencies = Vec::with_capacity(1 << 20);
            let mut sender = Sender::new(sender);
            let more = |_| !stop.load(Relaxed);
            let head = sender
                .run(in_flight, more, &tally, |micros| {
                    if measuring.load(Relaxed) {
                        latencies.push(micros);
                    }
                })
                .await?;
            sender.see(head).await?;
            Ok::<_, String>((head, latencies))
        }
    });

    tokio::time::sleep(warm_up).await;
    let before = audience.tally.deliveries.load(Relaxed);
    let (server, generator) = (target.cpu_seconds(), crate::machine::own_cpu_seconds());
    let start = Instant::now();
    measuring.store(true, Relaxed);
    tokio::time::sleep(measure).await;
    measuring.store(false, Relaxed);
    let seconds = start.elapsed().as_secs_f64();
    let deliveries = audience.tally.deliveries.load(Relaxed) - before;
    let server_cpu = (target.cpu_seconds() - server) / seconds;
    let generator_cpu = (crate::machine::own_cpu_seconds() - generator) / seconds;

    stop.store(true, Relaxed);
    audience.check()?;
    let (head, latencies) = sending.await.map_err(|e| e.to_string())??;
    audience.reach(head).await?;
    Ok(Throughput {
        seconds,
        deliveries,
        latencies,
        server_cpu,
        generator_cpu,
        messages: head,
    })
}

/// What a rush of clients gave.
pub struct Rush {
    /// From the first connect to the last client having what it came for.
    pub seconds: f64,
    /// Microseconds that each client waited.
    pub waits: Vec<u32>,
    /// Presence and membership events that arrived at all sockets meanwhile.
    pub others: u64,
}

/// All `users` connect at the same time and each waits for event `until`
/// (`connected` alone when there is nothing to wait for).
async fn rush(
    target: &Arc<Target>,
    room: &'static str,
    users: Vec<User>,
    since: Option<u64>,
    until: u64,
    audience: &mut Audience,
) -> Result<Rush, String> {
    let before = audience.tally.others.load(Relaxed);
    let mut connecting = JoinSet::new();
    let start = Instant::now();
    for user in users {
        let (target, tally) = (target.clone(), audience.tally.clone());
        connecting.spawn(async move {
            let start = Instant::now();
            let mut client = Client::connect(&target, room, &user, since).await?;
            let mut counted = Counted::default();
            while client.sequence.last() < until {
                client.read(|line| counted.count(line)).await?;
            }
            counted.add_to(&tally);
            Ok::<_, String>((client, start.elapsed().as_micros() as u32))
        });
    }
    let mut waits = Vec::with_capacity(connecting.len());
    let all = async {
        while let Some(done) = connecting.join_next().await {
            let (client, wait) = done.map_err(|e| e.to_string())??;
            waits.push(wait);
            // It goes on reading: the others' arrivals are sent to it too.
            audience.add(client);
        }
        Ok::<_, String>(start.elapsed().as_secs_f64())
    };
    let seconds = timeout(PATIENCE, all)
        .await
        .map_err(|_| "a connect was never answered".to_owned())??;
    audience.check()?;
    let others = audience.tally.others.load(Relaxed) - before;
    Ok(Rush {
        seconds,
        waits,
        others,
    })
}

/// `count` users connect to one room at once, after a quarter of that to another
/// room: code is compiled then.
pub async fn spike(target: &Arc<Target>, count: usize) -> Result<Rush, String> {
    // A server that has run for a second is not what rushes are about.
    let some = users(target, count / 4);
    rush(
        target,
        WARM_UP_ROOM,
        some,
        None,
        0,
        &mut Audience::default(),
    )
    .await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let all = users(target, count);
    rush(target, ROOM, all, None, 0, &mut Audience::default()).await
}

/// `count` clients are cut off, `missed` events happen, all come back at once
/// and resume by `since`.
pub async fn reconnect(target: &Arc<Target>, count: usize, missed: u64) -> Result<Rush, String> {
    let mut users = users(target, count + 1);
    let publisher = users.pop().ok_or("nobody to publish")?;
    let mut sender = Sender::new(Client::connect(target, ROOM, &publisher, None).await?);
    let clients = connect_all(target, &users).await?;
    // A room that has a past.
    let since = sender.send(10, 1).await?;
    for mut client in clients {
        while client.sequence.last() < since {
            client.read(|_| {}).await?;
        }
        client.cut();
    }
    // The server needs a moment to notice; then nobody is there.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let head = sender.send(missed, 16).await?;
    let mut audience = Audience::default();
    let rush = rush(target, ROOM, users, Some(since), head, &mut audience).await?;
    audience.reach(head).await?;
    Ok(rush)
}
