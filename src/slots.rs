//! The limit of the requests that an object has in progress.

use futures_channel::oneshot::{self, Sender};
use roomcast_proto::retry::MAX_REQUESTS;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

/// [`MAX_REQUESTS`] slots. Requests without a slot wait here, in their order, and not in the
/// runtime, where they would also delay other connections of the object.
#[derive(Debug, Default)]
pub struct Slots {
    used: Cell<usize>,
    waiting: RefCell<VecDeque<Sender<()>>>,
}

/// A slot. Dropping it passes it on.
#[derive(Debug)]
pub struct Slot<'a>(&'a Slots);

impl Slots {
    /// Waits for a slot.
    pub async fn take(&self) -> Slot<'_> {
        if self.used.get() < MAX_REQUESTS {
            self.used.set(self.used.get() + 1);
        } else {
            let (sender, receiver) = oneshot::channel();
            self.waiting.borrow_mut().push_back(sender);
            // The sender is dropped only with `self`.
            let _ = receiver.await;
        }
        Slot(self)
    }

    fn next(&self) -> Option<Sender<()>> {
        self.waiting.borrow_mut().pop_front()
    }
}

impl Drop for Slot<'_> {
    #[inline(never)]
    fn drop(&mut self) {
        while let Some(next) = self.0.next() {
            if next.send(()).is_ok() {
                // The next request has taken the slot over.
                return;
            }
        }
        self.0.used.set(self.0.used.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn requests_above_the_limit_wait_in_their_order() {
        let slots = Slots::default();
        let mut taken: Vec<_> = (0..MAX_REQUESTS)
            .map(|_| slots.take().now_or_never().expect("a free slot"))
            .collect();
        let (mut first, mut second) = (Box::pin(slots.take()), Box::pin(slots.take()));
        assert!(first.as_mut().now_or_never().is_none());
        assert!(second.as_mut().now_or_never().is_none());
        taken.pop();
        assert!(second.as_mut().now_or_never().is_none());
        taken.push(first.now_or_never().expect("the slot that was given back"));
        taken.pop();
        assert!(second.now_or_never().is_some());
    }

    #[test]
    fn a_request_that_no_longer_waits_does_not_hold_a_slot() {
        let slots = Slots::default();
        let mut taken: Vec<_> = (0..MAX_REQUESTS)
            .map(|_| slots.take().now_or_never().expect("a free slot"))
            .collect();
        let mut cancelled = Box::pin(slots.take());
        assert!(cancelled.as_mut().now_or_never().is_none());
        drop(cancelled);
        taken.clear();
        assert!((0..MAX_REQUESTS).all(|_| {
            let slot = slots.take().now_or_never();
            taken.extend(slot);
            true
        }));
        assert_eq!(taken.len(), MAX_REQUESTS);
        assert!(slots.take().now_or_never().is_none());
    }
}
