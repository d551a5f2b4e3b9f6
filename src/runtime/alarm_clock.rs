//! The timer and the alarm of an object.
//!
//! A timer keeps the object awake; the alarm does not, but setting it costs a row. An object
//! has one alarm, and the runtime remembers it when the object's memory is lost. The order of
//! calls:
//!
//! 1. [`AlarmClock::schedule`] after each event, with the times at which the core must be
//!    called next.
//! 2. [`Task::run`] for each task, in the background.
//! 3. [`AlarmClock::handle`] with the result. If it returns `true`, the core is called.
//! 4. [`AlarmClock::alarm_fired`] in the event handler of the alarm.

use crate::runtime::failpoint;
use crate::runtime::time::now;
use js_sys::Date;
use roomcast_proto::time::Millis;
use std::time::Duration;
use worker::{Delay, Result, ScheduledTime, State};

/// The timer and the alarm that are set.
#[derive(Default)]
pub(crate) struct AlarmClock {
    timer: Option<Millis>,
    alarm: Alarm,
}

/// The known state of the runtime's alarm.
#[derive(Clone, Copy, Default)]
enum Alarm {
    /// Nothing: the object was just restored.
    #[default]
    Unknown,
    /// The alarm is being read.
    Reading,
    /// The time of the alarm, if one is set.
    Known(Option<Millis>),
}

/// A task of the host.
pub(crate) enum Task {
    /// Wait until a time.
    Wait(Millis),
    /// Set the alarm.
    SetAlarm(Millis),
    /// Read the alarm, because an earlier alarm must not be replaced.
    ReadAlarm,
}

/// The result of a [`Task`].
pub(crate) enum Event {
    /// The timer of this time has fired.
    TimerFired(Millis),
    /// The alarm was read.
    AlarmRead(Option<Millis>),
}

impl AlarmClock {
    /// Returns the tasks that set a timer for `timer` and the alarm for `alarm`. Returns no
    /// task for a time if an earlier or equal time is already set.
    pub(crate) fn schedule(&mut self, timer: Option<Millis>, alarm: Option<Millis>) -> Vec<Task> {
        let mut tasks = Vec::new();
        if let Some(at) = timer
            && self.timer.is_none_or(|set| at < set)
        {
            self.timer = Some(at);
            tasks.push(Task::Wait(at));
        }
        if let Some(at) = alarm {
            match self.alarm {
                Alarm::Unknown => {
                    self.alarm = Alarm::Reading;
                    tasks.push(Task::ReadAlarm);
                }
                Alarm::Known(set) if set.is_none_or(|set| at < set) => {
                    self.alarm = Alarm::Known(Some(at));
                    tasks.push(Task::SetAlarm(at));
                }
                Alarm::Reading | Alarm::Known(_) => {}
            }
        }
        tasks
    }

    /// Handles the result of a task. Returns `true` if the timer has fired.
    pub(crate) fn handle(&mut self, event: Event) -> bool {
        match event {
            Event::TimerFired(at) => {
                if self.timer == Some(at) {
                    self.timer = None;
                }
                true
            }
            Event::AlarmRead(alarm) => {
                self.alarm = Alarm::Known(alarm);
                false
            }
        }
    }

    /// Records that the alarm has fired, so that no alarm is set.
    pub(crate) fn alarm_fired(&mut self) {
        self.alarm = Alarm::Known(None);
    }
}

impl Task {
    /// Runs the task. Returns `None` if there is nothing to handle.
    pub(crate) async fn run(self, state: &State) -> Result<Option<Event>> {
        match self {
            Task::Wait(at) => {
                Delay::from(Duration::from_millis(at.saturating_sub(now()))).await;
                Ok(Some(Event::TimerFired(at)))
            }
            Task::SetAlarm(at) => {
                set_alarm(state, at).await?;
                Ok(None)
            }
            Task::ReadAlarm => Ok(Some(Event::AlarmRead(read_alarm(state).await?))),
        }
    }
}

/// Sets the alarm of an object.
pub(crate) async fn set_alarm(state: &State, at: Millis) -> Result<()> {
    let at = ScheduledTime::new(Date::new(&(at as f64 - failpoint::clock_offset()).into()));
    state.storage().set_alarm(at).await
}

async fn read_alarm(state: &State) -> Result<Option<Millis>> {
    let set = state.storage().get_alarm().await?;
    Ok(set.and_then(|at| Millis::try_from(at + failpoint::clock_offset() as i64).ok()))
}
