//! When things are done: the end of ticks, timers and alarms.

use super::{Live, Object};
use crate::durable::clock::{self, Due};
use crate::durable::runtime::{self, now};
use crate::durable::sabotage::{self, Point};
use roomcast_proto::eventlog::Entry;
use roomcast_proto::time::Millis;
use std::rc::Rc;
use std::time::Duration;
use wasm_bindgen::closure::Closure;
use worker::{Delay, Result, State};

/// Turns of the event loop that a tick waits at the most while fewer things
/// wait than went out with the last one. See docs/performance.md for what it gives.
pub const MAX_TURNS: u32 = 4;

/// How long a tick takes at the most while frames come in, and so many more
/// connections one millisecond longer: the runtime lets timers wait as long as
/// there is something to read, so that a flood would keep all others waiting.
/// To end one takes some 20 µs a connection, which must not be all there is time
/// for.
const MAX_TICK: (Millis, usize) = (3, 5);

/// Of so many ticks that wait for nobody, one looks at the turn after it, which
/// costs a timer: more often costs a quiet room, more seldom a busy one at its
/// beginning.
const QUIET_TICKS: u32 = 4;

impl Object {
    /// Sees to it that what waits goes out, at the end of a tick; begins one if
    /// none is on its way.
    ///
    /// A tick ends by turns of the event loop: with the next turn, so that
    /// frames that have already arrived are taken in, and a few more while
    /// fewer things wait than went out last time. Where the last tick had but
    /// one thing, nobody is waited for: what waits goes out at once. Every few
    /// such ticks the next turn is looked at all the same: what came with it
    /// shows that the room has become busy. So a quiet room answers without
    /// delay, and a busy one gathers.
    pub(super) fn settle(self: &Rc<Self>, at_once: bool) -> Result<()> {
        let begins = self.with(None, |live, state| {
            let idle = live.room.waiting() > 0 && live.turns == 0;
            let quiet = idle && live.last_tick <= 1;
            let max_tick = MAX_TICK.0 + (live.peers.len() / MAX_TICK.1) as Millis;
            let overdue = live.turns > 0 && live.began >= live.tick_began + max_tick;
            if at_once || quiet || overdue {
                live.flush(state);
            }
            if idle || overdue {
                live.tick_began = live.began;
            }
            if quiet {
                live.quiet_ticks = live.quiet_ticks.wrapping_add(1);
                live.turns = u32::from(live.quiet_ticks % QUIET_TICKS == 0);
            } else if idle {
                live.turns = MAX_TURNS;
            }
            if live.awaits_turn {
                return false;
            }
            live.next_page(state);
            live.awaits_turn = live.turns > 0 || !live.pages.is_empty();
            live.awaits_turn
        })?;
        if begins {
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
            if live.turns > 0 {
                live.turns -= 1;
                if live.room.waiting() >= live.last_tick.max(1) {
                    live.turns = 0;
                }
                if live.turns == 0 {
                    live.flush(state);
                }
            }
            live.next_page(state);
            live.awaits_turn = live.turns > 0 || !live.pages.is_empty();
            live.awaits_turn
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
        let slow = self.links.borrow_mut().shed();
        for gateway in slow {
            let asked = self.with(None, |live, _| {
                live.log(Entry::reject("slow").with("gateway", gateway.as_str()));
                live.look_for(&gateway);
            });
            if let Err(error) = asked {
                runtime::complain(error);
            }
        }
        let gateways = self.links.borrow_mut().start();
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
            Due::Alarm(at) => return clock::set_alarm(&self.state, at).await,
            Due::AskAlarm => {
                let set = clock::alarm(&self.state).await?;
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
            self.last_tick = waiting;
            self.advance(state);
        }
    }

    pub(super) fn advance(&mut self, state: &State) {
        let mut out = Vec::new();
        self.room.advance(now(), &mut out);
        sabotage::panics(Point::Tick);
        self.run(state, out);
    }

    /// Hides what is past retention by age.
    pub(super) fn age(&mut self) {
        if let Some(limit) = self.room.age_limit(now()) {
            match self.store.aged(limit) {
                Ok((aged, oldest_at)) => self.room.aged(aged, oldest_at),
                Err(error) => self.log(Entry::error(error.to_string())),
            }
        }
    }

    pub(super) fn arm(&mut self) -> Vec<Due> {
        let alarms = [self.room.alarm_at(), self.links.borrow().probe_at()];
        let alarm = alarms.into_iter().flatten().min();
        self.clock.due(self.room.timer(), alarm)
    }
}
