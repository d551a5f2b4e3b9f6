//! The text of a list of members.

/// A JSON list that is being filled. It ends at a number of items or of bytes, because user ids
/// can be long.
#[derive(Debug)]
pub(crate) struct MemberList {
    text: String,
    items: u64,
    max_items: u64,
    max_bytes: usize,
    more: bool,
}

impl MemberList {
    /// Creates an empty list with these limits. An item that is larger than `max_bytes` is
    /// still added to an empty list.
    pub(crate) fn new(max_items: u64, max_bytes: usize) -> Self {
        MemberList {
            text: String::from("["),
            items: 0,
            max_items,
            max_bytes,
            more: false,
        }
    }

    /// Adds an item, as JSON. Returns `false` if the list is full and the item is not in it.
    pub(crate) fn add(&mut self, item: &str) -> bool {
        // The item needs a separator as well, and the list needs its final bracket.
        let bytes = self.text.len() + item.len() + 2;
        self.more = self.items >= self.max_items || (self.items > 0 && bytes > self.max_bytes);
        if !self.more {
            if self.items > 0 {
                self.text.push(',');
            }
            self.text.push_str(item);
            self.items += 1;
        }
        !self.more
    }

    /// Returns `true` if there are items after the end of the list.
    pub(crate) fn has_more(&self) -> bool {
        self.more
    }

    /// Returns the list as JSON.
    pub(crate) fn finish(mut self) -> String {
        self.text.push(']');
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_ends_at_its_number_of_items_or_bytes() {
        for (max_items, max_bytes, expected, more) in [
            (3, 99, "[11,22,33]", false),
            (2, 99, "[11,22]", true),
            (3, 10, "[11,22,33]", false),
            (3, 9, "[11,22]", true),
            (3, 1, "[11]", true),
        ] {
            let mut list = MemberList::new(max_items, max_bytes);
            let _ = ["11", "22", "33"].iter().all(|item| list.add(item));
            assert_eq!(list.has_more(), more, "{expected}");
            assert_eq!(list.finish(), expected);
        }
        assert_eq!(MemberList::new(1, 1).finish(), "[]");
    }
}
