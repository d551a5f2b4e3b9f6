//! One member of one room during a replay: it says its lines, goes away and
//! comes back as it is told, and compares every event it gets with the log.

use super::{PATIENCE, Script};
use crate::check;
use crate::socket::{Socket, SocketError};
use crate::target::Site;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// What a member is told to do.
pub enum Order {
    /// Join for the first time, answer when that is done.
    Join(oneshot::Sender<()>),
    /// Say the line with this index. When away, on coming back.
    Say(usize),
    /// Say it and be cut off before the answer can have come.
    SayAndVanish(usize),
    Leave(Leaving),
    Return(Returning),
    /// Be there until everything has been seen and acknowledged, then answer.
    Finish(oneshot::Sender<()>),
}

/// How a connection ends.
#[derive(Clone, Copy, Debug)]
pub enum Leaving {
    /// With a close frame.
    Close,
    /// Like a phone in a tunnel.
    Cut,
}

/// Where a member that comes back wants to go on.
#[derive(Clone, Copy, Debug)]
pub enum Returning {
    /// After the last event it has seen: `?since=&epoch=`.
    Since,
    /// Wherever the room knows it to be: its delivered cursor.
    Cursor,
}

/// What all members of a replay count together.
#[derive(Default)]
pub struct Tally {
    pub acknowledged: AtomicU64,
    /// Sends that were repeated and that the room already had.
    pub duplicates: AtomicU64,
    /// Events compared with the log and found equal.
    pub seen: AtomicU64,
    /// Of those, the ones that a member had seen before it was cut off.
    pub seen_again: AtomicU64,
    /// Of those, the ones that happened while the member was away.
    pub missed: AtomicU64,
    pub sockets: AtomicU64,
    pub closed: AtomicU64,
    pub cut: AtomicU64,
    pub cut_while_sending: AtomicU64,
    pub by_since: AtomicU64,
    pub by_cursor: AtomicU64,
    pub presence_and_membership: AtomicU64,
}

/// Ids of commands that are not lines of the log.
const OTHER_IDS: u64 = 1 << 31;

/// How often delivery is acknowledged, when there is something new.
const ACKNOWLEDGE: Duration = Duration::from_millis(250);

const PING: Duration = Duration::from_secs(20);

#[derive(Deserialize)]
struct Incoming {
    event: Option<String>,
    ack: Option<u64>,
    #[serde(default)]
    data: Value,
    error: Option<Value>,
}

/// A member; [`Member::run`] is its life.
pub struct Member {
    pub site: Arc<Site>,
    pub script: Arc<Script>,
    pub user: String,
    pub tally: Arc<Tally>,
    /// Hears of every line of this member that is acknowledged.
    pub acked: mpsc::UnboundedSender<usize>,
    pub state: State,
}

/// What it knows.
#[derive(Default)]
pub struct State {
    socket: Option<Socket>,
    /// `connected` has come on this socket.
    greeted: bool,
    returning: Option<Returning>,
    /// The last event seen, over all connections.
    last: u64,
    /// What must come next on this connection.
    next: u64,
    epoch: Option<String>,
    /// Lines said and not yet answered, in order.
    unanswered: VecDeque<usize>,
    /// Of those, the ones that were said more than once.
    repeated: BTreeSet<usize>,
    /// Lines of its own that were in the frame being read.
    own: Vec<usize>,
    /// The delivered cursor as told on this connection, as told at the most on
    /// any, and as last confirmed.
    told: u64,
    told_ever: u64,
    confirmed: u64,
    joined: Option<oneshot::Sender<()>>,
    finish: Option<oneshot::Sender<()>>,
    /// Sockets that have said goodbye and wait for the answer.
    closing: JoinSet<()>,
}

impl Member {
    /// Joins, then does as ordered until the orders end.
    pub async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        let mut acknowledge = interval(ACKNOWLEDGE);
        let mut ping = interval(PING);
        acknowledge.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let done = tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => self.obey(order).await,
                    None => break,
                },
                filled = fill(&mut self.state.socket) => match filled {
                    Ok(()) => self.take().await,
                    Err(error) => Err(error),
                },
                _ = acknowledge.tick() => self.acknowledge().await,
                _ = ping.tick() => self.send("ping").await,
            };
            if let Err(error) = done {
                self.wrong(format!("lost the connection: {error}"));
                self.state.socket = None;
                if let Err(error) = self.open(Returning::Since).await {
                    return self.wrong(format!("cannot come back: {error}"));
                }
            }
            self.finish_if_done();
        }
        self.leave(Leaving::Close);
        self.state.closing.join_all().await;
    }

    fn wrong(&self, what: String) {
        self.script
            .wrong(format!("{} in {}: {what}", self.user, self.script.room));
    }

    async fn obey(&mut self, order: Order) -> Result<(), SocketError> {
        match order {
            Order::Join(done) => {
                self.state.joined = Some(done);
                self.open(Returning::Cursor).await?;
            }
            Order::Say(index) => {
                self.state.unanswered.push_back(index);
                if self.state.greeted {
                    let line = self.line(index);
                    self.send(&line).await?;
                }
            }
            Order::SayAndVanish(index) => {
                self.state.unanswered.push_back(index);
                let line = self.line(index);
                if self.state.greeted {
                    self.send(&line).await?;
                }
                self.leave(Leaving::Cut);
                self.tally.cut_while_sending.fetch_add(1, Relaxed);
                self.open(Returning::Since).await?;
            }
            Order::Leave(how) => self.leave(how),
            Order::Return(how) => self.open(how).await?,
            Order::Finish(done) => {
                self.state.finish = Some(done);
                if self.state.socket.is_none() {
                    self.open(Returning::Cursor).await?;
                }
            }
        }
        Ok(())
    }

    async fn send(&mut self, text: &str) -> Result<(), SocketError> {
        if let Some(socket) = &mut self.state.socket {
            socket.queue(text.as_bytes());
            socket.flush().await?;
        }
        Ok(())
    }

    /// The command that says a line; the same bytes every time.
    fn line(&self, index: usize) -> String {
        let data =
            json!({ "content": self.script.lines[index].text, "messageId": message_id(index) });
        json!({ "event": "sendMessage", "data": data, "id": index }).to_string()
    }

    fn leave(&mut self, how: Leaving) {
        let Some(socket) = self.state.socket.take() else {
            return;
        };
        self.state.greeted = false;
        match how {
            Leaving::Close => {
                self.tally.closed.fetch_add(1, Relaxed);
                let (script, user) = (self.script.clone(), self.user.clone());
                self.state.closing.spawn(async move {
                    if timeout(PATIENCE, socket.close()).await.is_err() {
                        script.wrong(format!("{user} in {}: no answer to a close", script.room));
                    }
                });
            }
            Leaving::Cut => {
                self.tally.cut.fetch_add(1, Relaxed);
                socket.cut();
            }
        }
    }

    async fn open(&mut self, how: Returning) -> Result<(), SocketError> {
        if self.state.socket.is_some() {
            return Ok(());
        }
        let mut path = format!("/rooms/{}/ws", self.script.room);
        let first = self.state.epoch.is_none();
        if let (Returning::Since, Some(epoch)) = (how, &self.state.epoch) {
            path += &format!("?since={}&epoch={epoch}", self.state.last);
        }
        if !first {
            match how {
                Returning::Since => &self.tally.by_since,
                Returning::Cursor => &self.tally.by_cursor,
            }
            .fetch_add(1, Relaxed);
        }
        let token = self.site.token(&self.user);
        let socket = Socket::open(self.site.address, &self.site.host, &path, &token).await?;
        self.tally.sockets.fetch_add(1, Relaxed);
        self.state.returning = (!first).then_some(how);
        self.state.greeted = false;
        self.state.socket = Some(socket);
        // The first frames may have come with the answer to the upgrade.
        self.take().await
    }

    /// Looks at everything that has been read.
    async fn take(&mut self) -> Result<(), SocketError> {
        while let Some(socket) = &mut self.state.socket {
            let Some(frame) = socket.next(<[u8]>::to_vec)? else {
                break;
            };
            let mut lines = Vec::new();
            let _ = check::lines(&frame, |line| {
                lines.push(line.to_vec());
                Ok(())
            });
            for line in lines {
                self.incoming(&line).await?;
            }
            // An ack comes in or before the frame with the event; said again,
            // it may come after the replay that has the event.
            for index in std::mem::take(&mut self.state.own) {
                let state = &self.state;
                if state.unanswered.contains(&index) && !state.repeated.contains(&index) {
                    self.wrong(format!("line {index} came back before it was acknowledged"));
                }
            }
        }
        Ok(())
    }

    async fn incoming(&mut self, line: &[u8]) -> Result<(), SocketError> {
        if line == b"pong" {
            return Ok(());
        }
        let Ok(incoming) = serde_json::from_slice::<Incoming>(line) else {
            self.wrong(format!("cannot read {:?}", String::from_utf8_lossy(line)));
            return Ok(());
        };
        match (incoming.ack, incoming.event.as_deref()) {
            (Some(id), _) => self.answered(id, incoming.data, incoming.error).await?,
            (None, Some("connected")) => self.greeted(&incoming.data).await?,
            (None, Some("newMessage")) => self.saw(&incoming.data),
            (None, Some("presenceUpdate" | "userJoined" | "userLeft" | "messageDelivered")) => {
                self.tally.presence_and_membership.fetch_add(1, Relaxed);
            }
            _ => self.wrong(format!("did not ask for {}", String::from_utf8_lossy(line))),
        }
        Ok(())
    }

    /// `connected`: says what comes next, so it is checked against what this
    /// member knows.
    async fn greeted(&mut self, data: &Value) -> Result<(), SocketError> {
        let number = |key: &str| data[key].as_u64();
        let (Some(head), Some(delivered), Some(epoch)) =
            (number("seq"), number("delivered"), data["epoch"].as_str())
        else {
            self.wrong(format!("connected without seq, delivered or epoch: {data}"));
            return Ok(());
        };
        if data["userId"] != self.user.as_str() || data["roomId"] != self.script.room.as_str() {
            self.wrong(format!("connected as somebody else: {data}"));
        }
        if data["reset"] == true || self.state.epoch.as_deref().is_some_and(|e| e != epoch) {
            self.wrong(format!("the log started over: {data}"));
        }
        let state = &mut self.state;
        state.next = 1 + match state.returning {
            Some(Returning::Since) => state.last,
            Some(Returning::Cursor) => delivered,
            None => head,
        };
        let (last, told, confirmed) = (state.last, state.told_ever, state.confirmed);
        // What was told on the old connection may not have arrived.
        state.told = delivered;
        state.told_ever = told.max(delivered);
        let first = state.epoch.replace(epoch.to_owned()).is_none();
        if first && head != 0 {
            self.wrong(format!("the room was not new: its head is {head}"));
        }
        if head < last {
            self.wrong(format!("the head went back to {head}, {last} was seen"));
        }
        if !first {
            self.tally
                .missed
                .fetch_add(head.saturating_sub(last), Relaxed);
        }
        if !first && !(confirmed..=told).contains(&delivered) {
            self.wrong(format!(
                "the delivered cursor is {delivered}; {confirmed} was confirmed, {told} told"
            ));
        }
        self.state.greeted = true;
        if let Some(joined) = self.state.joined.take() {
            // The driver may have given up waiting.
            let _ = joined.send(());
        }
        // What may or may not have arrived is said again.
        for index in self.state.unanswered.clone() {
            self.state.repeated.insert(index);
            let line = self.line(index);
            self.send(&line).await?;
        }
        Ok(())
    }

    /// A `newMessage`: is it the line of the log that belongs here?
    fn saw(&mut self, data: &Value) {
        let Some(seq) = data["seq"].as_u64() else {
            return self.wrong(format!("an event without seq: {data}"));
        };
        if !self.state.greeted {
            self.wrong(format!("event {seq} before `connected`"));
        }
        if seq != self.state.next {
            self.wrong(format!(
                "event {seq} came where {} was next",
                self.state.next
            ));
        }
        self.state.next = seq + 1;
        if let Err(difference) = self.script.compare(data) {
            return self.wrong(difference);
        }
        self.tally.seen.fetch_add(1, Relaxed);
        if data["senderId"] == self.user.as_str() {
            self.state.own.push(seq as usize - 1);
        }
        if seq <= self.state.last {
            self.tally.seen_again.fetch_add(1, Relaxed);
        }
        self.state.last = self.state.last.max(seq);
    }

    async fn answered(
        &mut self,
        id: u64,
        data: Value,
        error: Option<Value>,
    ) -> Result<(), SocketError> {
        if let Some(error) = error {
            return self.refused(id, &error).await;
        }
        let seq = data["seq"].as_u64();
        if id >= OTHER_IDS {
            match seq {
                Some(seq) if seq <= self.state.told_ever && seq >= self.state.confirmed => {
                    self.state.confirmed = seq;
                }
                _ => self.wrong(format!("a delivery was answered with {data}")),
            }
            return Ok(());
        }
        let index = id as usize;
        match self.state.unanswered.iter().position(|&i| i == index) {
            Some(0) => {}
            Some(_) => self.wrong(format!("line {index} was answered before an earlier one")),
            None => {
                self.wrong(format!("an answer to {index}, which is not open: {data}"));
                return Ok(());
            }
        }
        self.state.unanswered.retain(|&i| i != index);
        if seq != Some(index as u64 + 1) || data["messageId"] != message_id(index) {
            self.wrong(format!("line {index} of the room was answered with {data}"));
        }
        if data["duplicate"] == true {
            self.tally.duplicates.fetch_add(1, Relaxed);
            if !self.state.repeated.contains(&index) {
                self.wrong(format!("line {index} was said once and called a duplicate"));
            }
        }
        self.tally.acknowledged.fetch_add(1, Relaxed);
        // The driver is gone only when the replay is over.
        let _ = self.acked.send(index);
        Ok(())
    }

    async fn refused(&mut self, id: u64, error: &Value) -> Result<(), SocketError> {
        let wait = error["retryAfterMs"].as_u64();
        match (error["code"].as_str(), wait) {
            (Some("rateLimited"), Some(wait)) if id < OTHER_IDS => {
                // A running server with its own limits: one line is under way
                // at a time then, so that saying it again keeps the order.
                tokio::time::sleep(Duration::from_millis(wait)).await;
                let line = self.line(id as usize);
                self.send(&line).await
            }
            _ => {
                self.wrong(format!("command {id} was refused: {error}"));
                // Go on with the rest: one difference is enough of it.
                self.state.unanswered.retain(|&i| i as u64 != id);
                let _ = self.acked.send(id as usize);
                Ok(())
            }
        }
    }

    /// Tells the room what has been delivered.
    async fn acknowledge(&mut self) -> Result<(), SocketError> {
        if !self.state.greeted || self.state.last <= self.state.told {
            return Ok(());
        }
        self.state.told = self.state.last;
        self.state.told_ever = self.state.told_ever.max(self.state.told);
        let id = OTHER_IDS + self.state.told;
        let data = json!({ "seq": self.state.told });
        let command = json!({ "event": "messageDelivered", "data": data, "id": id });
        self.send(&command.to_string()).await
    }

    fn finish_if_done(&mut self) {
        let total = self.script.lines.len() as u64;
        let state = &mut self.state;
        let done = state.last == total && state.confirmed == total && state.unanswered.is_empty();
        if let Some(tell) = state.finish.take_if(|_| done) {
            // The driver may have given up waiting.
            let _ = tell.send(());
        }
    }
}

/// The `messageId` that the line with this index is sent with.
pub fn message_id(index: usize) -> String {
    format!("line-{index}")
}

/// Waits for bytes; forever when there is no socket.
async fn fill(socket: &mut Option<Socket>) -> Result<(), SocketError> {
    match socket {
        Some(socket) => socket.fill().await,
        None => std::future::pending().await,
    }
}
