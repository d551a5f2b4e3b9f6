//! The output that a delivery causes at its gateway. A gateway handles a delivery in one turn
//! of the event loop, so a delivery with much output delays all other clients of the gateway.

use roomcast_proto::gateway_kind::GatewayKind;
use roomcast_proto::link::Item;

/// Maximum size in bytes of the output that a delivery causes at the gateway, which may copy a
/// text for each of its connections. Sending it takes 10 to 25 ms on one core.
pub(crate) const MAX_OUTPUT: usize = 2 << 20;

/// Size in bytes that a frame to a socket counts in addition to its text. A frame takes 30 to
/// 50 µs, in which about 4 KiB of text are sent.
const FRAME_COST: usize = 4 << 10;

/// Returns the number of frames to a socket of a gateway in which a text is sent.
fn frames(gateway: &str, text: &str) -> usize {
    match GatewayKind::of(gateway) {
        GatewayKind::Native => 1,
        // Socket.IO sends each line in a frame.
        GatewayKind::EngineIo => text.split('\n').count(),
    }
}

/// Returns the output in bytes, for the limit of [`MAX_OUTPUT`], that a text causes for each of
/// its receivers at a gateway.
pub(crate) fn output_of(gateway: &str, text: &str) -> usize {
    text.len() + frames(gateway, text) * FRAME_COST
}

/// Limits the output of one delivery to a gateway.
pub(crate) struct OutputLimit<'a> {
    gateway: &'a str,
    /// The number of the room's connections at the gateway.
    connections: usize,
    left: usize,
    is_first: bool,
}

/// The part of an item that fits into a delivery.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    Whole,
    /// The first lines of the text.
    Lines(usize),
    Nothing,
}

impl<'a> OutputLimit<'a> {
    /// Returns the limit of a delivery to a gateway with this number of connections.
    pub(crate) fn new(gateway: &'a str, connections: usize) -> Self {
        OutputLimit {
            gateway,
            connections,
            left: MAX_OUTPUT,
            is_first: true,
        }
    }

    /// Counts an item with its text, if it fits. At least one line of the first item fits.
    pub(crate) fn take(&mut self, item: &Item, text: &str) -> Fit {
        let is_first = std::mem::take(&mut self.is_first);
        let receivers = match item {
            Item::Broadcast { .. } => self.connections,
            Item::Multicast { to, .. } | Item::Presence { to, .. } => to.len(),
            Item::Unicast { .. } => 1,
            _ => 0,
        };
        let output = receivers * output_of(self.gateway, text);
        if output <= self.left {
            self.left -= output;
            return Fit::Whole;
        }
        let lines = frames(self.gateway, text);
        let fitting = std::mem::take(&mut self.left) / (output / lines).max(1);
        match fitting.max(usize::from(is_first)) {
            0 => Fit::Nothing,
            fitting if fitting < lines && is_divisible(item) => Fit::Lines(fitting),
            _ if is_first => Fit::Whole,
            _ => Fit::Nothing,
        }
    }
}

/// Returns `true` if the lines of an item can be in two items.
fn is_divisible(item: &Item) -> bool {
    matches!(
        item,
        Item::Broadcast { .. }
            | Item::Multicast { .. }
            | Item::Presence { .. }
            | Item::Unicast { after: Some(_), .. }
    )
}

/// Removes the first `lines` lines from an item with this text. Returns them as an item of its
/// own, and the length of its text. The rest of the text begins after a line break.
pub(crate) fn divide(item: &mut Item, text: &str, lines: usize) -> (Item, usize) {
    let mut breaks = text.match_indices('\n').map(|(at, _)| at);
    let length = breaks.nth(lines - 1).unwrap_or(text.len());
    let mut first = item.clone();
    // Each of the first lines is an event; ephemeral events follow.
    let middle = |after: u64, at: u64| at.min(after + lines as u64);
    match &mut first {
        Item::Broadcast {
            after,
            at,
            presence,
            ..
        } => {
            *at = middle(*after, *at);
            *presence = false;
        }
        Item::Multicast { after, at, .. }
        | Item::Unicast {
            after: Some(after),
            at: Some(at),
            ..
        } => *at = middle(*after, *at),
        Item::Presence { is_last, .. } => *is_last = false,
        _ => {}
    }
    match item {
        Item::Broadcast { after, at, .. }
        | Item::Multicast { after, at, .. }
        | Item::Unicast {
            after: Some(after),
            at: Some(at),
            ..
        } => *after = middle(*after, *at),
        _ => {}
    }
    first.set_bytes(length);
    item.set_bytes(text.len().saturating_sub(length + 1));
    (first, length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use roomcast_proto::id::ConnectionId;

    fn broadcast(text: &str, after: u64, at: u64) -> Item {
        Item::Broadcast {
            bytes: text.len(),
            not: vec![ConnectionId::trusted("c")],
            after,
            at,
            presence: true,
        }
    }

    #[test]
    fn a_frame_of_a_socketio_client_has_one_line_and_one_of_a_native_client_all() {
        let text = vec!["x"; 2_000].join("\n");
        let item = broadcast(&text, 0, 2_000);
        assert_eq!(OutputLimit::new("n0", 10).take(&item, &text), Fit::Whole);
        let fit = OutputLimit::new("0", 10).take(&item, &text);
        let Fit::Lines(lines) = fit else {
            panic!("{fit:?}");
        };
        let frames = MAX_OUTPUT / FRAME_COST / 10;
        assert!((frames - 1..=frames).contains(&lines), "{lines}");
    }

    #[test]
    fn an_item_that_does_not_fit_waits_unless_it_is_the_first() {
        let text = "x".repeat(MAX_OUTPUT);
        let item = broadcast(&text, 0, 1);
        let mut limit = OutputLimit::new("0", 10);
        assert_eq!(limit.take(&item, &text), Fit::Whole);
        assert_eq!(limit.take(&item, &text), Fit::Nothing);
        let answer = Item::Unicast {
            to: ConnectionId::trusted("c"),
            bytes: 1,
            after: None,
            at: None,
        };
        assert_eq!(limit.take(&answer, "x"), Fit::Nothing, "the order stays");
    }

    #[test]
    fn the_parts_of_a_divided_item_have_all_its_events_and_lines() {
        let text = "one\ntwo\ntyping\npresence";
        let mut rest = broadcast(text, 5, 7);
        let (first, length) = divide(&mut rest, text, 1);
        assert_eq!(&text[..length], "one");
        let Item::Broadcast {
            bytes,
            after,
            at,
            presence,
            ..
        } = first
        else {
            panic!("{first:?}");
        };
        assert_eq!((bytes, after, at, presence), (3, 5, 6, false));
        let text = &text[length + 1..];
        assert_eq!(rest, broadcast(text, 6, 7));
        let (first, length) = divide(&mut rest, text, 2);
        assert_eq!(&text[..length], "two\ntyping");
        assert!(matches!(
            first,
            Item::Broadcast {
                after: 6,
                at: 7,
                ..
            }
        ));
        assert_eq!(rest, broadcast("presence", 7, 7));
    }
}
