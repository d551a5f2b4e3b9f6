//! Who sends, with a number of messages in flight.

use crate::audience::{Counted, Tally};
use crate::check::Line;
use crate::client::{Client, PATIENCE, PING};
use std::time::Instant;
use tokio::time::{interval_at, timeout};

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

    /// The last event that was acknowledged, or the head when it came.
    pub fn head(&self) -> u64 {
        self.head
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
    pub async fn run(
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
    pub async fn see(&mut self, head: u64) -> Result<(), String> {
        while self.client.sequence.last() < head {
            let reading = self.client.read(|_| {});
            let read = timeout(PATIENCE, reading).await;
            read.map_err(|_| format!("the sender never saw event {head}"))??;
        }
        Ok(())
    }
}
