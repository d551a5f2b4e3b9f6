//! The end of a batch. [`roomcast_room::batcher`] decides when a batch ends; this file
//! passes inputs and turns of the event loop to it.

use super::{ActiveRoom, RoomObject};
use crate::runtime::Result;
use crate::runtime::failpoint::{self, Point};
use crate::runtime::log::log_error;
use crate::runtime::object_state::last_ping;
use crate::runtime::time::now;
use roomcast_proto::log_record::LogRecord;
use roomcast_room::ConnId;
use std::rc::Rc;
use wasm_bindgen::prelude::*;
use worker::State;

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_name = setTimeout)]
    fn set_timeout(callback: &Closure<dyn FnMut()>, millis: i32) -> i32;
}

impl RoomObject {
    /// Ends the batch or waits for the next turn of the event loop, and starts the work that
    /// the event has caused. Called after each input.
    pub(super) fn continue_batch(self: &Rc<Self>) -> Result<()> {
        self.host.with_active(None, |active, state| {
            if active.batcher.input(active.room.load(), active.began) {
                active.flush_batch(state);
            }
            if !active.batcher.awaits_turn() {
                active.read_log(state);
            }
        })?;
        self.start_background_work();
        Ok(())
    }

    /// Calls [`RoomObject::turn`] with the next turn of the event loop.
    pub(super) fn await_turn(self: &Rc<Self>) {
        let turn = self.turn.get_or_init(|| {
            let object = Rc::downgrade(self);
            Closure::new(move || {
                if let Some(object) = object.upgrade()
                    && let Err(error) = object.turn()
                {
                    log_error(error);
                }
            })
        });
        set_timeout(turn, 0);
    }

    fn turn(self: &Rc<Self>) -> Result<()> {
        self.host.with_active(None, |active, state| {
            if active.batcher.turn(active.room.waiting()) {
                active.flush_batch(state);
            }
            active.read_log(state);
        })?;
        self.start_background_work();
        Ok(())
    }
}

impl ActiveRoom {
    /// Ends the batch, if it is not empty.
    fn flush_batch(&mut self, state: &State) {
        let waiting = self.room.waiting();
        if waiting > 0 {
            self.batcher.flushed(waiting);
            self.advance(state);
        }
    }

    /// Does the part of the reads from the log that belongs to one turn of the event loop.
    fn read_log(&mut self, state: &State) {
        self.answer_next_page(state);
        self.send_portions(state);
    }

    /// Returns `true` if the host must await the next turn of the event loop.
    pub(super) fn schedule_turn(&mut self) -> bool {
        let pages = self.pages.ready(&self.room);
        self.batcher.schedule(pages + self.room.portions_waiting())
    }

    /// Ends the batch and handles the timers of the room that are due.
    pub(super) fn advance(&mut self, state: &State) {
        let mut out = Vec::new();
        let sockets = &self.sockets;
        let last_ping = |conn: ConnId| last_ping(state, sockets.get(conn)?);
        self.room.check_stalled(last_ping, now(), &mut out);
        self.room.flush(now(), &mut out);
        failpoint::panics(Point::Flush);
        self.run(state, out);
    }

    /// Informs the room which events have exceeded the maximum age, so that it no longer
    /// sends them.
    pub(super) fn apply_retention(&mut self) {
        if let Some(limit) = self.room.retention_cutoff(now()) {
            match self.store.expired(limit) {
                Ok((expired, oldest_at)) => self.room.expire_log(expired, oldest_at),
                Err(error) => self.log(LogRecord::error(error.to_string())),
            }
        }
    }
}
