//! Work after an event: turns of the event loop, timers and the alarm, deliveries to gateways, the registration and
//! token checks.

use super::tokens::PendingToken;
use super::{ActiveRoom, RoomObject};
use crate::runtime::Result;
use crate::runtime::alarm_clock::Task;
use crate::runtime::log::log_error;
use roomcast_proto::id::GatewayName;
use roomcast_proto::time::{Millis, sooner};
use std::rc::Rc;
use worker::State;

/// Work that an event has caused.
#[derive(Default)]
struct BackgroundWork {
    /// `true` if the object must await the next turn of the event loop.
    await_turn: bool,
    /// Gateways to which deliveries start.
    gateways: Vec<GatewayName>,
    /// The end of a registration to request.
    registration: Option<Millis>,
    tokens: Vec<PendingToken>,
    timers: Vec<Task>,
}

impl RoomObject {
    /// Starts the work that an event has caused.
    pub(super) fn start_background_work(self: &Rc<Self>) {
        let work = self.host.with_active(None, ActiveRoom::background_work);
        let work = work.unwrap_or_else(|error| {
            log_error(error);
            BackgroundWork::default()
        });
        if work.await_turn {
            self.await_turn();
        }
        // Before the deliveries, because the alarm repeats those that are lost in a crash.
        for task in work.timers {
            self.host.spawn(Rc::clone(self).run_timer(task));
        }
        for gateway in work.gateways {
            let object = Rc::clone(self);
            self.host
                .spawn(async move { object.deliver_to_gateway(gateway).await });
        }
        if let Some(until) = work.registration {
            self.host.spawn(Rc::clone(self).register(until));
        }
        for token in work.tokens {
            self.host.spawn(Rc::clone(self).prepare(token));
        }
    }

    /// Waits for a timer, or sets or reads the alarm.
    async fn run_timer(self: Rc<Self>, task: Task) -> Result<()> {
        if let Some(event) = task.run(&self.host.state).await? {
            self.host.with_active(None, |active, state| {
                if active.clock.handle(event) {
                    active.advance(state);
                }
            })?;
            self.start_background_work();
        }
        Ok(())
    }
}

impl ActiveRoom {
    fn background_work(&mut self, state: &State) -> BackgroundWork {
        let mut out = Vec::new();
        let gateways = self.room.start_deliveries(self.began, &mut out);
        self.run(state, out);
        if self.storage_failed {
            return BackgroundWork {
                gateways,
                ..BackgroundWork::default()
            };
        }
        let mut alarm = self.room.alarm_at();
        if let Some(at) = self.release_at() {
            // The runtime refuses an alarm at the time 0.
            sooner(&mut alarm, at.max(self.began));
        }
        BackgroundWork {
            await_turn: self.schedule_turn(),
            gateways,
            registration: self.registration.take_request(),
            tokens: std::mem::take(&mut self.pending_tokens),
            timers: self.clock.schedule(self.room.timer_at(), alarm),
        }
    }
}
