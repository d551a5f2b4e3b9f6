//! When an object is to be called again: by a timer, which keeps it awake, or by
//! its one alarm, which does not.

use crate::runtime::failpoint;
use js_sys::Date;
use roomcast_proto::time::Millis;
use worker::{Result, ScheduledTime, State};

/// What is set.
#[derive(Default)]
pub struct AlarmClock {
    timer: Option<Millis>,
    alarm: Alarm,
}

/// What is known of the alarm, which outlives the object's memory.
#[derive(Clone, Copy, Default)]
enum Alarm {
    /// Just woken.
    #[default]
    Unknown,
    /// The runtime is being asked.
    Asking,
    Set(Option<Millis>),
}

/// What is to be seen to.
pub enum Due {
    Timer(Millis),
    Alarm(Millis),
    /// Ask what alarm there is: an earlier one must not be put off.
    AskAlarm,
}

impl AlarmClock {
    /// What is to be set, if anything: only what is due before what is set.
    pub fn due(&mut self, timer: Option<Millis>, alarm: Option<Millis>) -> Vec<Due> {
        let mut due = Vec::new();
        if let Some(at) = timer
            && self.timer.is_none_or(|set| at < set)
        {
            self.timer = Some(at);
            due.push(Due::Timer(at));
        }
        if let Some(at) = alarm {
            match self.alarm {
                Alarm::Unknown => {
                    self.alarm = Alarm::Asking;
                    due.push(Due::AskAlarm);
                }
                Alarm::Set(set) if set.is_none_or(|set| at < set) => {
                    self.alarm = Alarm::Set(Some(at));
                    due.push(Due::Alarm(at));
                }
                Alarm::Asking | Alarm::Set(_) => {}
            }
        }
        due
    }

    /// The timer of this time has run out.
    pub fn timer_ran(&mut self, at: Millis) {
        if self.timer == Some(at) {
            self.timer = None;
        }
    }

    /// The alarm has rung.
    pub fn alarm_rang(&mut self) {
        self.alarm = Alarm::Set(None);
    }

    /// What the runtime says of the alarm.
    pub fn alarm_is(&mut self, set: Option<Millis>) {
        self.alarm = Alarm::Set(set);
    }
}

pub async fn set_alarm(state: &State, at: Millis) -> Result<()> {
    let at = ScheduledTime::new(Date::new(&(at as f64 - failpoint::ahead()).into()));
    state.storage().set_alarm(at).await
}

pub async fn alarm(state: &State) -> Result<Option<Millis>> {
    let set = state.storage().get_alarm().await?;
    Ok(set.and_then(|at| Millis::try_from(at + failpoint::ahead() as i64).ok()))
}
