//! Users who have more connections than are allowed, while gateways are asked which of them are
//! active.

use crate::ids::ConnId;
use roomcast_proto::id::UserId;
use roomcast_proto::time::{Millis, SECOND};

/// Time in milliseconds after which a connection is closed although a gateway has not answered:
/// it may be out of reach.
const ANSWER_TIMEOUT: Millis = 2 * SECOND;

/// The users whose connections are counted again when all gateways have answered. There are few
/// at a time.
#[derive(Debug, Default)]
pub(crate) struct Replacements(Vec<Replacement>);

/// A user with too many connections.
#[derive(Debug)]
struct Replacement {
    user: UserId,
    /// The newest connection, which stays.
    newest: ConnId,
    /// The connections whose gateways have not answered.
    awaited: Vec<ConnId>,
    /// The connection is closed at this time in any case.
    deadline: Millis,
}

impl Replacements {
    /// Records that the gateways of these connections are asked because of a new connection.
    /// Returns the time by which they must have answered.
    pub(crate) fn ask(
        &mut self,
        user: &UserId,
        newest: ConnId,
        asked: Vec<ConnId>,
        now: Millis,
    ) -> Millis {
        let earlier = self.0.iter_mut().find(|one| one.user == *user);
        if let Some(replacement) = earlier {
            replacement.newest = newest;
            replacement.awaited = asked;
            return replacement.deadline;
        }
        let deadline = now + ANSWER_TIMEOUT;
        self.0.push(Replacement {
            user: user.clone(),
            newest,
            awaited: asked,
            deadline,
        });
        deadline
    }

    /// Records that the gateway of a connection has answered, or that the connection has ended.
    pub(crate) fn answered(&mut self, conn: ConnId) {
        for replacement in &mut self.0 {
            replacement.awaited.retain(|one| *one != conn);
        }
    }

    /// Removes a user for whom all gateways have answered, or whose deadline has come. Returns
    /// the user and its newest connection.
    pub(crate) fn take_due(&mut self, now: Millis) -> Option<(UserId, ConnId)> {
        let is_due = |one: &Replacement| one.awaited.is_empty() || one.deadline <= now;
        let index = self.0.iter().position(is_due)?;
        let due = self.0.swap_remove(index);
        Some((due.user, due.newest))
    }

    /// Forgets a user whose connections are counted now.
    pub(crate) fn remove(&mut self, user: &UserId) {
        self.0.retain(|one| one.user != *user);
    }

    /// Returns the next deadline.
    pub(crate) fn next(&self) -> Option<Millis> {
        self.0.iter().map(|one| one.deadline).min()
    }
}
