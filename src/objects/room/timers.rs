//! When things are done: the end of ticks, timers and alarms.

use super::{Live, Object};
use crate::runtime::alarm_clock::{self, Due};
use crate::runtime::failpoint::{self, Point};
use crate::runtime::{self, now};
use roomcast_proto::log_record::LogRecord;
use std::rc::Rc;
use std::time::Duration;
use wasm_bindgen::closure::Closure;
use worker::{Delay, Result, State};

impl Object {
    /// Something has come in: ends the batch or begins one. `full`: the batch takes
    /// no more. See [`roomcast_room::batcher`].
    pub(super) fn settle(self: &Rc<Self>, full: bool) -> Result<()> {
        let schedule = self.with(None, |live, state| {
            let (waiting, connections) = (live.room.waiting(), live.room.connections());
            if live.batcher.input(waiting, connections, full, live.began) {
                live.flush(state);
            }
            if !live.batcher.awaits_turn() {
                live.next_page(state);
            }
            live.batcher.schedule(!live.pages.is_empty())
        })?;
        if schedule {
            self.await_turn();
        }
        Rc::clone(self).arm();
        Ok(())
    }

    /// Calls [`Object::turn`] with the next turn of the event loop.
    pub(super) fn await_turn(self: &Rc<Self>) {
        let turn = self.turn.get_or_init(|| {
            let object = Rc::downgrade(self);
            Closure::new(move || {
                if let Some(object) = object.upgrade()
                    && let Err(error) = object.turn()
                {
                    runtime::complain(error);
                }
            })
        });
        runtime::set_timeout(turn, 0);
    }

    pub(super) fn turn(self: Rc<Self>) -> Result<()> {
        let more = self.with(None, |live, state| {
            if live.batcher.turn(live.room.waiting()) {
                live.flush(state);
            }
            live.next_page(state);
            live.batcher.schedule(!live.pages.is_empty())
        })?;
        if more {
            self.await_turn();
        }
        self.arm();
        Ok(())
    }

    /// Sets the timer and the alarm for what is due next, and sees to it that
    /// gateways get what waits for them.
    pub(super) fn arm(self: Rc<Self>) {
        let gateways = self.with(None, |live, state| {
            let mut out = Vec::new();
            let gateways = live.room.start_deliveries(&mut out);
            live.run(state, out);
            gateways
        });
        let gateways = gateways.unwrap_or_else(|error| {
            runtime::complain(error);
            Vec::new()
        });
        for gateway in gateways {
            let object = Rc::clone(&self);
            runtime::spawn(&self.state, async move { object.push(gateway).await });
        }
        let (due, unready, unregistered) =
            self.live
                .borrow_mut()
                .as_mut()
                .map_or_else(Default::default, |live| {
                    let unready = std::mem::take(&mut live.unready);
                    (live.arm(), unready, live.unregistered.take())
                });
        if let Some(until) = unregistered {
            let object = Rc::clone(&self);
            runtime::spawn(&self.state, object.register(until));
        }
        for unready in unready {
            let object = Rc::clone(&self);
            runtime::spawn(&self.state, object.prepare(unready));
        }
        for due in due {
            let object = Rc::clone(&self);
            runtime::spawn(&self.state, object.see_to(due));
        }
    }

    pub(super) async fn see_to(self: Rc<Self>, due: Due) -> Result<()> {
        match due {
            Due::Timer(at) => {
                Delay::from(Duration::from_millis(at.saturating_sub(now()))).await;
                self.with(None, |live, state| {
                    live.clock.timer_ran(at);
                    live.advance(state);
                })?;
            }
            Due::Alarm(at) => return alarm_clock::set_alarm(&self.state, at).await,
            Due::AskAlarm => {
                let set = alarm_clock::alarm(&self.state).await?;
                self.with(None, |live, _| live.clock.alarm_is(set))?;
            }
        }
        self.arm();
        Ok(())
    }
}

impl Live {
    /// Ends the tick, if anything waits for that.
    pub(super) fn flush(&mut self, state: &State) {
        let waiting = self.room.waiting();
        if waiting > 0 {
            self.batcher.flushed(waiting);
            self.advance(state);
        }
    }

    pub(super) fn advance(&mut self, state: &State) {
        let mut out = Vec::new();
        self.room.flush(now(), &mut out);
        failpoint::panics(Point::Tick);
        self.run(state, out);
    }

    /// Hides what is past retention by age.
    pub(super) fn age(&mut self) {
        if let Some(limit) = self.room.retention_cutoff(now()) {
            match self.store.aged(limit) {
                Ok((upto, oldest_at)) => self.room.expire_log(upto, oldest_at),
                Err(error) => self.log(LogRecord::error(error.to_string())),
            }
        }
    }

    pub(super) fn arm(&mut self) -> Vec<Due> {
        self.clock.due(self.room.timer_at(), self.room.alarm_at())
    }
}
