//! The delivery of revocations to registered objects.

use crate::registration::notice_retry_delay;
use roomcast_proto::time::Millis;

/// The cursor before all objects. Objects are JSON objects with a field, which sort after it.
const START: &str = "{";

/// The delivery of revocations to all registered objects, in the order of their names.
///
/// Objects can be too many for one event of the registry. So the host delivers in slices and
/// stores the [`NoticePass::cursor`] after each. When no object is left after the cursor, the
/// pass starts again, for objects that did not acknowledge their notice and for revocations
/// that are newer than their notice. The pass ends when it starts and finds no object. The
/// order of calls:
///
/// 1. [`NoticePass::restore`] when the registry wakes.
/// 2. [`NoticePass::begin`] for each new revocation.
/// 3. In each alarm: [`NoticePass::resume`]. Then, until the slice ends, the host looks for
///    objects after [`NoticePass::cursor`] that lack revocations. It calls
///    [`NoticePass::notified`] for each, and [`NoticePass::restart`] if there are none.
/// 4. [`NoticePass::delay`] after the slice, for the next alarm.
#[derive(Debug, Default)]
pub struct NoticePass {
    /// The last object that was notified. Empty if all objects have all revocations.
    cursor: String,
    /// An object has not acknowledged its notice since the last start.
    failed: bool,
    /// The pass has started again after a failure and waits for the next alarm.
    paused: bool,
    /// Number of consecutive starts after a failure.
    failures: u32,
}

impl NoticePass {
    /// Restores the pass from storage. `cursor` is the last value of [`NoticePass::cursor`].
    /// Without it a pass begins: an earlier version stored no cursor, and may have left notices
    /// to be delivered.
    pub fn restore(cursor: Option<&str>) -> Self {
        NoticePass {
            cursor: cursor.unwrap_or(START).to_owned(),
            ..NoticePass::default()
        }
    }

    /// Returns the object after which the pass continues, or an empty text if there is no pass.
    pub fn cursor(&self) -> &str {
        &self.cursor
    }

    /// Starts a pass for a new revocation. A pass that is in progress continues, because it
    /// would never reach the last objects if each revocation started it again.
    pub fn begin(&mut self) {
        if self.cursor.is_empty() {
            self.cursor = START.to_owned();
        }
    }

    /// Begins a slice. Returns `true` if there is a pass.
    pub fn resume(&mut self) -> bool {
        self.paused = false;
        !self.cursor.is_empty()
    }

    /// Records that a notice was delivered to an object, or that the delivery failed. Notices
    /// that are in progress at the same time may end in any order.
    pub fn notified(&mut self, object: &str, delivered: bool) {
        if self.cursor.as_str() < object {
            self.cursor = object.to_owned();
        }
        self.failed |= !delivered;
    }

    /// Starts again after the last object. Returns `false` if the slice must end: all objects
    /// have all revocations, or notices have failed and must not be repeated at once.
    pub fn restart(&mut self) -> bool {
        if self.cursor == START {
            *self = NoticePass::default();
            return false;
        }
        self.cursor = START.to_owned();
        if std::mem::take(&mut self.failed) {
            self.failures = self.failures.saturating_add(1);
            self.paused = true;
        }
        !self.paused
    }

    /// Returns the time until the next slice, or `None` if there is no pass.
    pub fn delay(&self) -> Option<Millis> {
        (!self.cursor.is_empty()).then(|| match self.paused {
            true => notice_retry_delay(self.failures),
            false => 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use roomcast_proto::time::SECOND;
    use std::collections::BTreeMap;

    /// The registry: the newest revocation, and the newest one that each object has.
    #[derive(Default)]
    struct Registry {
        head: u32,
        told: BTreeMap<String, u32>,
        pass: NoticePass,
    }

    impl Registry {
        fn new(objects: u32) -> Self {
            let told = (0..objects).map(|n| (format!(r#"{{"Room":"{n:03}"}}"#), 0));
            Registry {
                told: told.collect(),
                ..Registry::default()
            }
        }

        fn revoke(&mut self) {
            self.head += 1;
            self.pass.begin();
        }

        /// Runs a slice of at most `limit` notices. Objects for which `fails` is `true` do not
        /// acknowledge. Returns the notified objects and the delay.
        fn slice(&mut self, limit: usize, fails: impl Fn(&str) -> bool) -> (usize, Option<Millis>) {
            let mut notices = 0;
            self.pass.resume();
            while notices < limit && !self.pass.cursor().is_empty() {
                let mut untold = self.told.iter_mut().filter(|(object, told)| {
                    object.as_str() > self.pass.cursor() && **told < self.head
                });
                match untold.next() {
                    Some((object, told)) => {
                        notices += 1;
                        if !fails(object) {
                            *told = self.head;
                        }
                        self.pass.notified(object, !fails(object));
                    }
                    None if self.pass.restart() => {}
                    None => break,
                }
            }
            (notices, self.pass.delay())
        }

        fn all_have_all(&self) -> bool {
            self.told.values().all(|told| *told == self.head)
        }
    }

    #[test]
    fn slices_reach_every_object_and_the_pass_ends() {
        let mut registry = Registry::new(100);
        assert_eq!(
            registry.slice(30, |_| false),
            (0, None),
            "nothing to deliver"
        );
        registry.revoke();
        for _ in 0..3 {
            assert_eq!(registry.slice(30, |_| false), (30, Some(0)));
            // The memory of the registry is lost between the slices.
            registry.pass = NoticePass::restore(Some(registry.pass.cursor()));
        }
        assert_eq!(registry.slice(30, |_| false), (10, None));
        assert!(registry.all_have_all());
        registry.pass = NoticePass::restore(Some(registry.pass.cursor()));
        assert_eq!(registry.pass.delay(), None);
    }

    #[test]
    fn notices_that_an_earlier_version_left_are_delivered() {
        let mut registry = Registry::new(10);
        registry.revoke();
        registry.pass = NoticePass::restore(None);
        assert_eq!(registry.pass.delay(), Some(0));
        assert_eq!(registry.slice(1_000, |_| false), (10, None));
    }

    #[test]
    fn a_revocation_during_a_pass_reaches_the_objects_that_were_already_notified() {
        let mut registry = Registry::new(100);
        registry.revoke();
        registry.slice(50, |_| false);
        registry.revoke();
        // The rest with both revocations, then the first half with the second one.
        assert_eq!(registry.slice(1_000, |_| false), (100, None));
        assert!(registry.all_have_all());
    }

    #[test]
    fn revocations_in_quick_succession_do_not_starve_the_last_objects() {
        let mut registry = Registry::new(100);
        for _ in 0..10 {
            registry.revoke();
            registry.slice(10, |_| false);
        }
        let never = registry.told.values().filter(|told| **told == 0);
        assert_eq!(never.count(), 0);
    }

    #[test]
    fn unreachable_objects_are_retried_at_growing_intervals_and_delay_no_other_object() {
        let mut registry = Registry::new(100);
        registry.revoke();
        let fails = |object: &str| object < r#"{"Room":"040"}"#;
        assert_eq!(registry.slice(30, fails), (30, Some(0)));
        // The next slice continues after the unreachable objects of the first.
        assert_eq!(registry.slice(70, fails), (70, Some(0)));
        let delays: Vec<_> = (0..3).map(|_| registry.slice(1_000, fails)).collect();
        let seconds = |n| Some(n * SECOND);
        // The first slice finds that no object is left after the cursor.
        assert_eq!(
            delays,
            [(0, seconds(2)), (40, seconds(4)), (40, seconds(8))]
        );
        assert_eq!(registry.slice(1_000, |_| false), (40, None));
        assert!(registry.all_have_all());
        // The interval is short again after a success.
        registry.revoke();
        assert_eq!(registry.slice(1_000, fails).1, seconds(2));
    }

    #[test]
    fn notices_may_end_in_any_order() {
        let mut pass = NoticePass::default();
        pass.begin();
        for object in [r#"{"Room":"b"}"#, r#"{"Gateway":"g"}"#, r#"{"Room":"a"}"#] {
            pass.notified(object, true);
        }
        assert_eq!(pass.cursor(), r#"{"Room":"b"}"#);
    }
}
