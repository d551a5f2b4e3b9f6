//! A client that sends with a fixed number of messages in flight.

use crate::check::Line;
use crate::client::{Client, PING, TIMEOUT};
use crate::listeners::{Counted, Tally};
use std::time::Instant;
use tokio::time::{interval_at, timeout};

/// Sends messages and checks that they are acknowledged in order.
pub(crate) struct Sender {
    client: Client,
    next_id: u64,
    /// Send times of the messages in flight, in the order of their ids.
    sent: std::collections::VecDeque<Instant>,
    /// The last acknowledged `seq`.
    head: u64,
}

impl Sender {
    pub(crate) fn new(client: Client) -> Self {
        let head = client.sequence.last();
        Sender {
            client,
            next_id: 1,
            sent: Default::default(),
            head,
        }
    }

    /// Returns the last acknowledged `seq`, or the head at the time of the join.
    pub(crate) fn head(&self) -> u64 {
        self.head
    }

    fn send_one(&mut self) {
        let id = self.next_id;
        self.client.queue_message(id);
        self.sent.push_back(Instant::now());
        self.next_id += 1;
    }

    /// Keeps `in_flight` messages in flight while `more` returns `true`, then waits for
    /// the remaining acknowledgements. Calls `acked` with the latency of each message in
    /// microseconds. `tally` counts the received events. Returns the last acknowledged
    /// `seq`.
    pub(crate) async fn run(
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
            let mut violation = None;
            let first_id = self.next_id - self.sent.len() as u64;
            let (sent, head) = (&mut self.sent, &mut self.head);
            let mut expected = first_id;
            let reading = self.client.read(|line| match line {
                Line::Ack { id, seq } => {
                    // Messages of one connection are acknowledged in order, with
                    // consecutive `seq`s.
                    match sent.pop_front() {
                        Some(at) if *id == expected && *seq == *head + 1 => {
                            acked(at.elapsed().as_micros() as u32);
                        }
                        _ => violation = Some(format!("ack {id} with seq {seq} after seq {head}")),
                    }
                    expected += 1;
                    *head = *seq;
                }
                line => counted.count(line),
            });
            tokio::select! {
                read = timeout(TIMEOUT, reading) => {
                    read.map_err(|_| "a message was not acknowledged in time".to_owned())??;
                }
                _ = ping.tick() => self.client.ping().await?,
            }
            counted.add_to(tally);
            if let Some(violation) = violation {
                return Err(violation);
            }
        }
    }

    /// Sends `count` messages and waits until all are acknowledged and received. Returns
    /// the head of the log.
    pub(crate) async fn send(&mut self, count: u64, in_flight: usize) -> Result<u64, String> {
        let head = self
            .run(in_flight, |total| total < count, &Tally::default(), |_| {})
            .await?;
        self.see(head).await?;
        Ok(head)
    }

    /// Waits until this client has received event `head`.
    pub(crate) async fn see(&mut self, head: u64) -> Result<(), String> {
        while self.client.sequence.last() < head {
            let reading = self.client.read(|_| {});
            let read = timeout(TIMEOUT, reading).await;
            read.map_err(|_| format!("the sender did not receive event {head}"))??;
        }
        Ok(())
    }
}
