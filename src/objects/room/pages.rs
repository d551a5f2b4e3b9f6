//! Answers to `sync` and `history` that are read from the log.
//!
//! Reading a page takes about as long as handling a hundred messages, so the room answers
//! one page in each turn of the event loop. The rate limit of requests bounds the number of
//! pages that wait for a connection. A stalled connection receives its pages after its next
//! sign of life.

use super::ActiveRoom;
use js_sys::JsString;
use roomcast_proto::error::Error as ClientError;
use roomcast_proto::framing;
use roomcast_proto::log_record::LogRecord;
use roomcast_room::history::HistoryQuery;
use roomcast_room::{ConnId, Output, Room};
use std::collections::VecDeque;
use worker::State;

/// A page that a connection has requested.
pub(super) struct PageRequest {
    pub(super) conn: ConnId,
    /// The id of the answer.
    pub(super) id: u32,
    pub(super) query: HistoryQuery,
}

/// Requested pages, in the order of the requests.
#[derive(Default)]
pub(super) struct PageQueue(VecDeque<PageRequest>);

impl PageQueue {
    /// Returns the number of pages that can be answered now.
    pub(super) fn ready(&self, room: &Room) -> usize {
        let pages = self.0.iter();
        pages.filter(|page| !room.is_stalled(page.conn)).count()
    }

    /// Removes the next request that can be answered now, and returns it.
    fn next(&mut self, room: &Room) -> Option<PageRequest> {
        let mut pages = self.0.iter();
        let next = pages.position(|page| !room.is_stalled(page.conn))?;
        self.0.remove(next)
    }

    /// Removes all requests and returns them as outputs, because the room drops its memory.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Output> {
        let page = |PageRequest { conn, id, query }| Output::Page { conn, id, query };
        self.0.drain(..).map(page)
    }

    pub(super) fn push(&mut self, request: PageRequest) {
        self.0.push_back(request);
    }

    /// Removes the requests of a connection.
    pub(super) fn remove(&mut self, conn: ConnId) {
        self.0.retain(|request| request.conn != conn);
    }
}

impl ActiveRoom {
    /// Answers the next request for a page, if there is one.
    pub(super) fn answer_next_page(&mut self, state: &State) {
        let Some(PageRequest { conn, id, query }) = self.pages.next(&self.room) else {
            return;
        };
        let answer = if !self.room.is_joined(conn) {
            framing::error(Some(id), &ClientError::not_joined())
        } else {
            match self.store.page(query, self.room.floor()) {
                Ok(page) => {
                    let page = page.finish(self.room.bounds().head, self.room.epoch());
                    self.room.page_sent(conn, page.len());
                    framing::ack(id, &page)
                }
                Err(error) => {
                    self.log(LogRecord::error(format!("reading failed: {error}")));
                    framing::error(Some(id), &ClientError::internal())
                }
            }
        };
        self.send(state, conn, &JsString::from(answer.as_str()), answer.len());
    }
}
