//! The limit of the requests that an object has in progress.

use futures_channel::oneshot::{self, Sender};
use roomcast_proto::retry::MAX_REQUESTS;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

/// [`MAX_REQUESTS`] slots. Requests without a slot wait here, in their order, and not in the
/// runtime, where they would also delay other connections of the object.
#[derive(Default)]
pub(crate) struct Slots {
    used: Cell<usize>,
    waiting: RefCell<VecDeque<Sender<()>>>,
}

/// A slot. Dropping it passes it on.
pub(crate) struct Slot<'a>(&'a Slots);

impl Slots {
    /// Waits for a slot.
    pub(crate) async fn take(&self) -> Slot<'_> {
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
