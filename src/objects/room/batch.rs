//! The end of a batch. [`roomcast_room::batcher`] decides when a batch ends; this file
//! passes inputs and turns of the event loop to it.

use super::{ActiveRoom, RoomObject};
use crate::runtime::Result;
use crate::runtime::failpoint::{self, Point};
use crate::runtime::ids::fresh_id;
use crate::runtime::log::log_error;
use crate::runtime::object_state::last_ping;
use crate::runtime::time::now;
use js_sys::JsString;
use roomcast_proto::id::Epoch;
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::time::Millis;
use roomcast_room::{Change, ConnId, Output};
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
            self.limit_log_bytes(state);
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
            match self.store.oldest("at >= ?", limit) {
                Ok(oldest) => self.room.expire_log(oldest),
                Err(error) => self.log(LogRecord::error(error.to_string())),
            }
        }
    }

    /// Deletes the oldest events if the log has more bytes than it may have.
    fn limit_log_bytes(&mut self, state: &State) {
        if !self.storage_failed
            && let Some(total) = self.room.byte_cutoff()
            && let Some(trim) = self.expire_before("total > ?", total)
        {
            self.run(state, vec![Output::Store(trim)]);
        }
    }

    /// Deletes the oldest part of the log, because storage is full. Returns `false` if nothing
    /// was deleted.
    pub(super) fn free_storage(&mut self) -> bool {
        let upto = self.room.bounds().oldest_part();
        // The oldest row goes, even if it is larger than the part.
        let condition = "last > (SELECT min(last) FROM log) AND last > ?";
        let trim = self.expire_before(condition, upto);
        trim.is_some_and(|trim| self.store.apply(&trim, &JsString::from("")).is_ok())
    }

    /// Expires the events before the oldest row that satisfies a condition with the parameter
    /// `value`. Returns the change that deletes them.
    fn expire_before(&mut self, condition: &str, value: u64) -> Option<Change> {
        match self.store.oldest(condition, value) {
            Ok(Some(oldest)) => {
                self.room.expire_log(Some(oldest));
                Some(self.room.trim(now()))
            }
            Ok(None) => None,
            Err(error) => {
                self.log(LogRecord::error(error.to_string()));
                None
            }
        }
    }

    /// Frees the storage of the room if nothing in it is worth keeping.
    pub(super) fn release_if_unused(&mut self, state: &State) {
        if self.release_at().is_some_and(|at| at <= now()) {
            let mut out = Vec::new();
            self.room.release(Epoch::trusted(fresh_id()), &mut out);
            self.run(state, out);
        }
    }

    /// Returns the time at which [`ActiveRoom::release_if_unused`] must be called.
    pub(super) fn release_at(&self) -> Option<Millis> {
        let is_stored = self.store.exists() && !self.storage_failed;
        self.room.release_at().filter(|_| is_stored)
    }
}
