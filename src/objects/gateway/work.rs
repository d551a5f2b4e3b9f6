//! Work after an event: timers and the alarm, requests to other objects.

use super::{ActiveGateway, GatewayObject};
use crate::runtime::Result;
use crate::runtime::alarm_clock::Task;
use crate::runtime::memory;
use crate::runtime::object_state::last_ping;
use crate::runtime::rpc::gateways::FindRequest;
use roomcast_gateway::{Authentication, ClientId, SocketId};
use roomcast_proto::id::{RoomName, UserId};
use roomcast_proto::time::Millis;
use std::rc::Rc;
use worker::State;

/// Work that an event has caused.
pub(super) enum Work {
    /// Send the commands that wait for a room.
    Forward(RoomName),
    /// Find the record of a client that resumes.
    Find {
        client: ClientId,
        pid: String,
        user: UserId,
    },
    /// Fetch the keys and revocations that a token check requires.
    Authenticate(Authentication),
}

/// Everything that an event has caused.
struct Caused {
    work: Vec<Work>,
    /// The end of the registration to request.
    registration: Option<Millis>,
    timers: Vec<Task>,
}

impl GatewayObject {
    /// Passes an event to the gateway, carries out the outputs, and starts the work that they
    /// cause.
    pub(super) fn with_active<T>(
        self: &Rc<Self>,
        name: Option<String>,
        act: impl FnOnce(&mut ActiveGateway, &State) -> T,
    ) -> Result<T> {
        let (result, caused) = self.host.with_active(name, |active, state| {
            let result = act(active, state);
            (result, active.finish_event(state))
        })?;
        self.start(caused);
        Ok(result)
    }

    fn start(self: &Rc<Self>, caused: Caused) {
        for work in caused.work {
            self.host.spawn(Rc::clone(self).run(work));
        }
        if let Some(until) = caused.registration {
            self.host.spawn(Rc::clone(self).register(until));
        }
        for task in caused.timers {
            self.host.spawn(Rc::clone(self).run_timer(task));
        }
    }

    async fn run(self: Rc<Self>, work: Work) -> Result<()> {
        match work {
            Work::Forward(room) => self.forward(&room).await,
            Work::Authenticate(request) => self.prepare(request).await,
            Work::Find { client, pid, user } => {
                let by = self.with_active(None, |active, _| active.name.clone())?;
                self.find(client, FindRequest { pid, user, by }).await
            }
        }
    }

    /// Waits for a timer, or sets or reads the alarm.
    async fn run_timer(self: Rc<Self>, task: Task) -> Result<()> {
        if let Some(event) = task.run(&self.host.state).await? {
            self.with_active(None, |active, state| {
                if active.clock.handle(event) {
                    active.advance(state);
                }
            })?;
        }
        Ok(())
    }
}

impl ActiveGateway {
    /// Carries out the outputs of an event. Returns the work that the event has caused.
    #[inline(never)]
    fn finish_event(&mut self, state: &State) -> Caused {
        self.drain_events(state);
        let excess = memory::early_excess(self.config.worker.max_object_bytes);
        if excess > 0 {
            self.gateway.shed(excess);
            self.drain_events(state);
        }
        Caused {
            work: std::mem::take(&mut self.work),
            registration: self.registration.take_request(),
            timers: self.schedule(),
        }
    }

    /// Returns the tasks for the next deadline.
    fn schedule(&mut self) -> Vec<Task> {
        let (gateway, now) = (&self.gateway, self.began);
        match self.hibernates {
            true => {
                let (timer, alarm) = (gateway.timer_at(now), gateway.alarm_at(now));
                self.clock.schedule(timer, alarm)
            }
            // The gateway cannot hibernate, so an alarm, which costs a row, has no advantage.
            false => self.clock.schedule(gateway.deadline(), None),
        }
    }

    /// Handles all deadlines that have passed.
    pub(super) fn advance(&mut self, state: &State) {
        let sockets = &self.sockets;
        let last_ping = |socket: SocketId| last_ping(state, sockets.get(socket)?);
        self.gateway.advance(&last_ping, self.began);
    }
}
