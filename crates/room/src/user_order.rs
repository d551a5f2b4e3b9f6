//! Users in the order of their ids.

use roomcast_proto::id::UserId;

/// Maximum number of added users that are inserted one by one. To insert one user moves the
/// users after it, up to 80 kB in a room of 10,000 members. To sort a long list with a sorted
/// beginning takes about as long as 64 such moves.
const MAX_INSERTED: usize = 64;

/// A set of users in the order of their ids, for lists of members. The ids are shared with the
/// maps of the users, so each takes 8 bytes in the Worker.
#[derive(Debug, Default)]
pub(crate) struct UserOrder {
    sorted: Vec<UserId>,
    /// Users that are not in `sorted` yet. After hibernation, thousands are added at once.
    added: Vec<UserId>,
}

impl UserOrder {
    /// Adds a user that is not in the set.
    pub(crate) fn add(&mut self, user: UserId) {
        self.added.push(user);
    }

    /// Removes a user, if it is in the set.
    pub(crate) fn remove(&mut self, user: &UserId) {
        self.sort();
        if let Ok(index) = self.sorted.binary_search(user) {
            self.sorted.remove(index);
        }
    }

    /// Returns the users with ids after `after`, or all users. [`UserOrder::sort`] must be called
    /// before.
    pub(crate) fn after(&self, after: Option<&UserId>) -> &[UserId] {
        debug_assert!(self.added.is_empty(), "not sorted");
        let start = after.map_or(0, |after| self.sorted.partition_point(|one| one <= after));
        &self.sorted[start..]
    }

    /// Sorts the users that were added.
    pub(crate) fn sort(&mut self) {
        if self.added.len() > MAX_INSERTED {
            self.sorted.append(&mut self.added);
            self.sorted.sort();
        }
        for user in self.added.drain(..) {
            let index = self.sorted.partition_point(|one| *one < user);
            self.sorted.insert(index, user);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(number: usize) -> UserId {
        UserId::trusted(format!("{number:03}"))
    }

    fn users(order: &mut UserOrder, after: Option<&str>) -> Vec<String> {
        order.sort();
        let after = after.map(UserId::trusted);
        let users = order.after(after.as_ref()).iter();
        users.map(UserId::to_string).collect()
    }

    #[test]
    fn users_are_ordered_whether_few_or_many_are_added_at_once() {
        for chunk in [1, 7, MAX_INSERTED, MAX_INSERTED + 1, 500] {
            let mut order = UserOrder::default();
            // 7 has no common factor with 500, so this is every number once.
            let numbers: Vec<usize> = (0..500).map(|number| number * 7 % 500).collect();
            for numbers in numbers.chunks(chunk) {
                numbers.iter().for_each(|number| order.add(user(*number)));
                order.sort();
            }
            let all: Vec<String> = (0..500).map(|number| user(number).to_string()).collect();
            assert_eq!(users(&mut order, None), all);
        }
    }

    #[test]
    fn the_list_continues_after_a_user_that_is_not_in_it() {
        let mut order = UserOrder::default();
        (0..5).for_each(|number| order.add(user(number)));
        order.remove(&user(2));
        order.remove(&user(9));
        assert_eq!(users(&mut order, Some("002")), ["003", "004"]);
        assert_eq!(users(&mut order, Some("003")), ["004"]);
        assert_eq!(users(&mut order, Some("004")), [""; 0]);
        assert_eq!(users(&mut order, Some("")), ["000", "001", "003", "004"]);
    }
}
