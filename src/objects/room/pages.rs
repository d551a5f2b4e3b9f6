//! Answers to `sync` and `history` that are read from the log.
//!
//! Reading a page takes about as long as handling a hundred messages, so the room answers
//! one page in each turn of the event loop.

use super::ActiveRoom;
use js_sys::JsString;
use roomcast_proto::error::Error as ClientError;
use roomcast_proto::framing;
use roomcast_proto::log_record::LogRecord;
use roomcast_room::ConnId;
use roomcast_room::history::HistoryQuery;
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
    pub(super) fn len(&self) -> usize {
        self.0.len()
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
        let Some(PageRequest { conn, id, query }) = self.pages.0.pop_front() else {
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
