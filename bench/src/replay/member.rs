//! One member of one room during a replay. It sends its lines, disconnects and
//! reconnects as the driver instructs, and compares every received event with the log.

use super::{Script, TIMEOUT};
use crate::check;
use crate::socket::{Socket, SocketError};
use crate::target::Endpoint;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// An instruction of the driver.
pub(super) enum Action {
    /// Join for the first time, then notify.
    Join(oneshot::Sender<()>),
    /// Send the line with this index, or after the next connect if disconnected.
    Send(usize),
    /// Send the line and end the connection before its answer can arrive.
    SendAndCut(usize),
    /// End the connection.
    Disconnect(Ending),
    /// Connect again.
    Reconnect(ResumeFrom),
    /// Connect if necessary, and notify when everything is received and acknowledged.
    Finish(oneshot::Sender<()>),
}

/// How a connection ends.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ending {
    /// With a close frame.
    Close,
    /// Without a close frame.
    Cut,
}

/// Position from which a member resumes.
#[derive(Clone, Copy, Debug)]
pub(super) enum ResumeFrom {
    /// After its last received event: `?since=&epoch=`.
    Since,
    /// After its delivered cursor: no query.
    Cursor,
}

/// Counts over all members of a replay.
#[derive(Default)]
pub(super) struct Tally {
    /// Acknowledged lines.
    pub acknowledged: AtomicU64,
    /// Resends that were answered as duplicates.
    pub duplicates: AtomicU64,
    /// Events that are equal to the log.
    pub received: AtomicU64,
    /// Events among `received` that the member had received before.
    pub received_again: AtomicU64,
    /// Events that were sent while a member was disconnected.
    pub missed: AtomicU64,
    pub sockets: AtomicU64,
    pub closed: AtomicU64,
    pub cut: AtomicU64,
    pub cut_while_sending: AtomicU64,
    /// Reconnections with `since`, and without.
    pub by_since: AtomicU64,
    pub by_cursor: AtomicU64,
    pub presence_and_membership: AtomicU64,
}

/// The first id of commands other than lines of the log.
const OTHER_IDS: u64 = 1 << 31;

/// Minimal interval between two receipts.
const RECEIPTS: Duration = Duration::from_millis(250);

const PING: Duration = Duration::from_secs(20);

#[derive(Deserialize)]
struct Incoming {
    event: Option<String>,
    ack: Option<u64>,
    #[serde(default)]
    data: Value,
    error: Option<Value>,
}

/// A member; [`Member::run`] drives it.
pub(super) struct Member {
    pub endpoint: Arc<Endpoint>,
    pub script: Arc<Script>,
    pub user: String,
    pub tally: Arc<Tally>,
    /// Receives the index of every acknowledged line of this member.
    pub acked: mpsc::UnboundedSender<usize>,
    pub state: State,
}

/// The state of a member.
#[derive(Default)]
pub(super) struct State {
    socket: Option<Socket>,
    /// `connected` has arrived on this connection.
    connected: bool,
    /// The position of this connection; `None` for the first one.
    resume_from: Option<ResumeFrom>,
    /// The last received event over all connections.
    last: u64,
    /// The expected `seq` on this connection.
    next: u64,
    epoch: Option<String>,
    /// Sent lines without an answer, in order.
    unanswered: VecDeque<usize>,
    /// The lines among `unanswered` that were sent more than once.
    resent: BTreeSet<usize>,
    /// Own lines in the current frame.
    own: Vec<usize>,
    /// The last delivery receipt sent on this connection.
    receipt: u64,
    /// The highest delivery receipt sent on any connection.
    max_receipt: u64,
    /// The last confirmed delivery receipt.
    confirmed: u64,
    joined: Option<oneshot::Sender<()>>,
    finish: Option<oneshot::Sender<()>>,
    /// Connections with a sent close frame that wait for the answer.
    closing: JoinSet<()>,
}

impl Member {
    /// Executes instructions until the driver drops the channel.
    pub(super) async fn run(mut self, mut actions: mpsc::UnboundedReceiver<Action>) {
        let mut receipts = interval(RECEIPTS);
        let mut ping = interval(PING);
        receipts.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let done = tokio::select! {
                action = actions.recv() => match action {
                    Some(action) => self.execute(action).await,
                    None => break,
                },
                filled = fill(&mut self.state.socket) => match filled {
                    Ok(()) => self.take().await,
                    Err(error) => Err(error),
                },
                _ = receipts.tick() => self.send_receipt().await,
                _ = ping.tick() => self.send("ping").await,
            };
            if let Err(error) = done {
                self.report(format!("lost the connection: {error}"));
                self.state.socket = None;
                if let Err(error) = self.open(ResumeFrom::Since).await {
                    return self.report(format!("cannot reconnect: {error}"));
                }
            }
            self.finish_if_done();
        }
        self.disconnect(Ending::Close);
        self.state.closing.join_all().await;
    }

    /// Reports a difference from the log.
    fn report(&self, what: String) {
        self.script
            .report(format!("{} in {}: {what}", self.user, self.script.room));
    }

    async fn execute(&mut self, action: Action) -> Result<(), SocketError> {
        match action {
            Action::Join(done) => {
                self.state.joined = Some(done);
                self.open(ResumeFrom::Cursor).await?;
            }
            Action::Send(index) => {
                self.state.unanswered.push_back(index);
                if self.state.connected {
                    let line = self.line(index);
                    self.send(&line).await?;
                }
            }
            Action::SendAndCut(index) => {
                self.state.unanswered.push_back(index);
                let line = self.line(index);
                if self.state.connected {
                    self.send(&line).await?;
                }
                self.disconnect(Ending::Cut);
                self.tally.cut_while_sending.fetch_add(1, Relaxed);
                self.open(ResumeFrom::Since).await?;
            }
            Action::Disconnect(how) => self.disconnect(how),
            Action::Reconnect(from) => self.open(from).await?,
            Action::Finish(done) => {
                self.state.finish = Some(done);
                if self.state.socket.is_none() {
                    self.open(ResumeFrom::Cursor).await?;
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

    /// Returns the command that sends a line. It is the same for every resend.
    fn line(&self, index: usize) -> String {
        let data =
            json!({ "content": self.script.lines[index].text, "messageId": message_id(index) });
        json!({ "event": "sendMessage", "data": data, "id": index }).to_string()
    }

    fn disconnect(&mut self, how: Ending) {
        let Some(socket) = self.state.socket.take() else {
            return;
        };
        self.state.connected = false;
        match how {
            Ending::Close => {
                self.tally.closed.fetch_add(1, Relaxed);
                let (script, user) = (self.script.clone(), self.user.clone());
                self.state.closing.spawn(async move {
                    if timeout(TIMEOUT, socket.close()).await.is_err() {
                        script.report(format!(
                            "{user} in {}: no answer to a close frame",
                            script.room
                        ));
                    }
                });
            }
            Ending::Cut => {
                self.tally.cut.fetch_add(1, Relaxed);
                socket.cut();
            }
        }
    }

    async fn open(&mut self, from: ResumeFrom) -> Result<(), SocketError> {
        if self.state.socket.is_some() {
            return Ok(());
        }
        let mut path = format!("/rooms/{}/ws", self.script.room);
        let first = self.state.epoch.is_none();
        if let (ResumeFrom::Since, Some(epoch)) = (from, &self.state.epoch) {
            path += &format!("?since={}&epoch={epoch}", self.state.last);
        }
        if !first {
            match from {
                ResumeFrom::Since => &self.tally.by_since,
                ResumeFrom::Cursor => &self.tally.by_cursor,
            }
            .fetch_add(1, Relaxed);
        }
        let token = self.endpoint.token(&self.user);
        let socket =
            Socket::open(self.endpoint.address, &self.endpoint.host, &path, &token).await?;
        self.tally.sockets.fetch_add(1, Relaxed);
        self.state.resume_from = (!first).then_some(from);
        self.state.connected = false;
        self.state.socket = Some(socket);
        // The first frames can arrive together with the upgrade response.
        self.take().await
    }

    /// Processes all frames that have been read.
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
            // An acknowledgement comes in or before the frame with the event. After a
            // resend it can come after the replay with the event.
            for index in std::mem::take(&mut self.state.own) {
                let state = &self.state;
                if state.unanswered.contains(&index) && !state.resent.contains(&index) {
                    self.report(format!("line {index} arrived before its acknowledgement"));
                }
            }
        }
        Ok(())
    }

    /// Processes one line.
    async fn incoming(&mut self, line: &[u8]) -> Result<(), SocketError> {
        if line == b"pong" {
            return Ok(());
        }
        let Ok(incoming) = serde_json::from_slice::<Incoming>(line) else {
            self.report(format!("cannot parse {:?}", String::from_utf8_lossy(line)));
            return Ok(());
        };
        match (incoming.ack, incoming.event.as_deref()) {
            (Some(id), _) => self.answered(id, incoming.data, incoming.error).await?,
            (None, Some("connected")) => self.connected(&incoming.data).await?,
            (None, Some("newMessage")) => self.message(&incoming.data),
            (None, Some("presenceUpdate" | "userJoined" | "userLeft" | "messageDelivered")) => {
                self.tally.presence_and_membership.fetch_add(1, Relaxed);
            }
            _ => self.report(format!("unexpected line {}", String::from_utf8_lossy(line))),
        }
        Ok(())
    }

    /// Processes `connected` and checks it against the state of this member.
    async fn connected(&mut self, data: &Value) -> Result<(), SocketError> {
        let number = |key: &str| data[key].as_u64();
        let (Some(head), Some(delivered), Some(epoch)) =
            (number("seq"), number("delivered"), data["epoch"].as_str())
        else {
            self.report(format!("connected without seq, delivered or epoch: {data}"));
            return Ok(());
        };
        if data["userId"] != self.user.as_str() || data["roomId"] != self.script.room.as_str() {
            self.report(format!("connected as another user: {data}"));
        }
        if data["reset"] == true || self.state.epoch.as_deref().is_some_and(|e| e != epoch) {
            self.report(format!("the log was reset: {data}"));
        }
        let state = &mut self.state;
        state.next = 1 + match state.resume_from {
            Some(ResumeFrom::Since) => state.last,
            Some(ResumeFrom::Cursor) => delivered,
            None => head,
        };
        let (last, sent, confirmed) = (state.last, state.max_receipt, state.confirmed);
        // Receipts of the last connection may be lost.
        state.receipt = delivered;
        state.max_receipt = sent.max(delivered);
        let first = state.epoch.replace(epoch.to_owned()).is_none();
        if first && head != 0 {
            self.report(format!("the room is not empty: its head is {head}"));
        }
        if head < last {
            self.report(format!("the head is {head}, but event {last} was received"));
        }
        if !first {
            self.tally
                .missed
                .fetch_add(head.saturating_sub(last), Relaxed);
        }
        if !first && !(confirmed..=sent).contains(&delivered) {
            self.report(format!(
                "the delivered cursor is {delivered}; receipts up to {confirmed} were confirmed, up to {sent} sent"
            ));
        }
        self.state.connected = true;
        if let Some(joined) = self.state.joined.take() {
            // The driver may have stopped waiting.
            let _ = joined.send(());
        }
        // Lines without an answer may be lost, so they are sent again.
        for index in self.state.unanswered.clone() {
            self.state.resent.insert(index);
            let line = self.line(index);
            self.send(&line).await?;
        }
        Ok(())
    }

    /// Checks that a `newMessage` is the expected line of the log.
    fn message(&mut self, data: &Value) {
        let Some(seq) = data["seq"].as_u64() else {
            return self.report(format!("an event without seq: {data}"));
        };
        if !self.state.connected {
            self.report(format!("event {seq} before `connected`"));
        }
        if seq != self.state.next {
            self.report(format!(
                "event {seq} arrived, expected event {}",
                self.state.next
            ));
        }
        self.state.next = seq + 1;
        if let Err(difference) = self.script.compare(data) {
            return self.report(difference);
        }
        self.tally.received.fetch_add(1, Relaxed);
        if data["senderId"] == self.user.as_str() {
            self.state.own.push(seq as usize - 1);
        }
        if seq <= self.state.last {
            self.tally.received_again.fetch_add(1, Relaxed);
        }
        self.state.last = self.state.last.max(seq);
    }

    /// Processes an answer.
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
                Some(seq) if seq <= self.state.max_receipt && seq >= self.state.confirmed => {
                    self.state.confirmed = seq;
                }
                _ => self.report(format!("a receipt was answered with {data}")),
            }
            return Ok(());
        }
        let index = id as usize;
        match self.state.unanswered.iter().position(|&i| i == index) {
            Some(0) => {}
            Some(_) => self.report(format!("line {index} was answered before an earlier line")),
            None => {
                self.report(format!(
                    "an answer to line {index}, which has an answer already: {data}"
                ));
                return Ok(());
            }
        }
        self.state.unanswered.retain(|&i| i != index);
        if seq != Some(index as u64 + 1) || data["messageId"] != message_id(index) {
            self.report(format!("line {index} was answered with {data}"));
        }
        if data["duplicate"] == true {
            self.tally.duplicates.fetch_add(1, Relaxed);
            if !self.state.resent.contains(&index) {
                self.report(format!(
                    "line {index} was sent once but answered as a duplicate"
                ));
            }
        }
        self.tally.acknowledged.fetch_add(1, Relaxed);
        // Fails if the replay is over and the receiver was dropped.
        let _ = self.acked.send(index);
        Ok(())
    }

    /// Processes an error answer.
    async fn refused(&mut self, id: u64, error: &Value) -> Result<(), SocketError> {
        let wait = error["retryAfterMs"].as_u64();
        match (error["code"].as_str(), wait) {
            (Some("rateLimited"), Some(wait)) if id < OTHER_IDS => {
                // Only with `--url`, where a single line is in flight, so that a resend
                // keeps the order.
                tokio::time::sleep(Duration::from_millis(wait)).await;
                let line = self.line(id as usize);
                self.send(&line).await
            }
            _ => {
                self.report(format!("command {id} was refused: {error}"));
                // Reported once; the replay continues with the other lines.
                self.state.unanswered.retain(|&i| i as u64 != id);
                let _ = self.acked.send(id as usize);
                Ok(())
            }
        }
    }

    /// Sends a delivery receipt if there are new events.
    async fn send_receipt(&mut self) -> Result<(), SocketError> {
        if !self.state.connected || self.state.last <= self.state.receipt {
            return Ok(());
        }
        self.state.receipt = self.state.last;
        self.state.max_receipt = self.state.max_receipt.max(self.state.receipt);
        let id = OTHER_IDS + self.state.receipt;
        let data = json!({ "seq": self.state.receipt });
        let command = json!({ "event": "messageDelivered", "data": data, "id": id });
        self.send(&command.to_string()).await
    }

    /// Notifies the driver if everything is received and acknowledged.
    fn finish_if_done(&mut self) {
        let total = self.script.lines.len() as u64;
        let state = &mut self.state;
        let done = state.last == total && state.confirmed == total && state.unanswered.is_empty();
        if let Some(finish) = state.finish.take_if(|_| done) {
            // The driver may have stopped waiting.
            let _ = finish.send(());
        }
    }
}

/// Returns the `messageId` of the line with this index.
pub(super) fn message_id(index: usize) -> String {
    format!("line-{index}")
}

/// Waits for data, forever if there is no connection.
async fn fill(socket: &mut Option<Socket>) -> Result<(), SocketError> {
    match socket {
        Some(socket) => socket.fill().await,
        None => std::future::pending().await,
    }
}
