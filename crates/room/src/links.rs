//! What a room has for its gateways: queued, and sent by one request at a time
//! to each, so that order is kept and what comes meanwhile goes together.

use super::gateways::Retry;
use super::output::ConnId;
use roomcast_proto::link::{Item, Push};
use roomcast_proto::time::{MINUTE, Millis};
use std::collections::{HashMap, HashSet, VecDeque};

/// Most bytes that wait for a gateway. Above it, the events among them are
/// dropped and come again from the log.
const MAX_WAITING: usize = 32 << 20;

/// Maximum number of portions of the log (see [`super::catch_up`]) in a push. Together
/// they have about 1 MiB, so that a gateway does not spend long on one push. The other
/// items of the push do not count: a busy room must not delay a catch-up.
const MAX_PORTIONS: usize = 4;

/// A push that failed is tried again after so many milliseconds each, as it is.
const RETRIES: [Millis; 3] = [20, 100, 500];

/// After those the gateway is out of reach. What was for it is dropped (it will
/// notice and ask), and after so many milliseconds each it is looked for again.
/// Then it is given up: as long as a ghost is kept by default.
const PATIENCE: [Millis; 5] = [5_000, 10_000, 20_000, 30_000, 30_000];

/// Interval of the pushes to a gateway that was given up, until one arrives or the
/// gateway sends a request. Its clients receive nothing until it learns that they have to
/// join again.
const PROBE_INTERVAL: Millis = MINUTE;

#[derive(Default)]
struct Link {
    items: Vec<Item>,
    texts: String,
    /// Connections that catch up, in the order in which they get a portion.
    catching_up: VecDeque<ConnId>,
    /// Number of portions in the next push.
    portions: usize,
    /// Whether a push is on its way.
    busy: bool,
    number: u64,
    /// Of what is on its way, what must come through.
    last_words: Vec<Item>,
    /// Failures of the push that is on its way.
    attempts: usize,
    /// How often in a row it was out of reach.
    failures: usize,
    given_up: Option<GivenUp>,
}

/// A gateway that stayed out of reach: only last words wait for it.
#[derive(Clone, Copy)]
struct GivenUp {
    /// When it is tried again; `None` while it is.
    probe_at: Option<Millis>,
}

/// What is known once a gateway has taken a push.
#[derive(Default)]
pub struct Reached {
    /// It had been out of reach: what was for it until now was dropped, so it is
    /// to be asked what it has.
    pub was_missed: bool,
    /// The last words that it has heard: see [`Item::must_deliver`].
    pub told: Vec<Item>,
}

/// All links of a room, by the gateways' names.
#[derive(Default)]
pub struct Links(HashMap<String, Link>);

impl Links {
    /// Something for a gateway; with the text that it is about, if it is.
    pub fn queue(&mut self, gateway: &str, item: Item, text: &str) {
        if !self.0.contains_key(gateway) {
            self.0.insert(gateway.to_owned(), Link::default());
        }
        if let Some(link) = self.0.get_mut(gateway)
            // Texts for a gateway that is out of reach are dropped: a probe finds out what
            // its connections lack. A join is dropped with its answer, so that the probe
            // finds the connection unknown and the gateway answers the join by an error.
            && (link.failures == 0 || text.is_empty() && !matches!(item, Item::In { .. }))
        {
            link.items.push(item);
            link.texts.push_str(text);
        }
    }

    /// A text for one connection; see [`Item::One`].
    pub fn queue_text(
        &mut self,
        gateway: &str,
        to: String,
        text: &str,
        after: Option<u64>,
        at: Option<u64>,
    ) {
        let bytes = text.len();
        let one = Item::One {
            to,
            bytes,
            after,
            at,
        };
        self.queue(gateway, one, text);
    }

    /// A connection at a gateway gets the log in portions from here on.
    pub fn catch_up(&mut self, gateway: &str, conn: ConnId) {
        if let Some(link) = self.0.get_mut(gateway) {
            if !link.catching_up.contains(&conn) {
                link.catching_up.push_back(conn);
            }
        } else {
            let mut link = Link::default();
            link.catching_up.push_back(conn);
            self.0.insert(gateway.to_owned(), link);
        }
    }

    /// The connection whose portion comes next, if the next push can take one.
    /// To be given to [`Links::catch_up`] again unless the portion was its last.
    pub fn next_portion(&mut self, gateway: &str) -> Option<ConnId> {
        let link = self.0.get_mut(gateway)?;
        if link.failures > 0 || link.portions >= MAX_PORTIONS {
            return None;
        }
        let conn = link.catching_up.pop_front()?;
        link.portions += 1;
        Some(conn)
    }

    /// The connection that [`Links::next_portion`] returned has nothing to read, so the
    /// portion does not count.
    pub fn skip_portion(&mut self, gateway: &str) {
        if let Some(link) = self.0.get_mut(gateway) {
            link.portions = link.portions.saturating_sub(1);
        }
    }

    /// The memory of the room was lost, and with it which connections are behind:
    /// the gateways say so, for they are asked.
    pub fn restart(&mut self) {
        for link in self.0.values_mut() {
            link.catching_up.clear();
        }
    }

    /// Gateways for which something waits and nothing is on its way; from here
    /// on something is.
    pub fn start(&mut self) -> Vec<String> {
        let mut idle = Vec::new();
        for (gateway, link) in &mut self.0 {
            if link.busy || link.is_left_alone() {
                continue;
            }
            if !link.items.is_empty() || !link.catching_up.is_empty() {
                link.busy = true;
                idle.push(gateway.clone());
            }
        }
        idle
    }

    /// What waits for a gateway, as the body of a push; nothing more is on its
    /// way if there is none.
    pub fn take(
        &mut self,
        gateway: &str,
        head: impl FnOnce() -> Push,
    ) -> Option<serde_json::Result<String>> {
        let link = self.0.get_mut(gateway)?;
        if link.items.is_empty() || link.is_left_alone() {
            link.busy = false;
            return None;
        }
        link.number += 1;
        link.portions = 0;
        let push = Push {
            number: link.number,
            items: std::mem::take(&mut link.items),
            ..head()
        };
        let last_words = push.items.iter().filter(|item| item.must_deliver());
        link.last_words = last_words.cloned().collect();
        Some(push.body(&std::mem::take(&mut link.texts)))
    }

    /// A push came through.
    pub fn reached(&mut self, gateway: &str) -> Reached {
        let link = self.0.get_mut(gateway);
        link.map_or_else(Reached::default, |link| {
            (link.given_up, link.attempts) = (None, 0);
            Reached {
                was_missed: std::mem::take(&mut link.failures) > 0,
                told: std::mem::take(&mut link.last_words),
            }
        })
    }

    /// A push did not come through.
    pub(super) fn failed(&mut self, gateway: &str) -> Retry {
        let Some(link) = self.0.get_mut(gateway) else {
            return Retry::Never;
        };
        let again = RETRIES.get(link.attempts).copied();
        link.attempts += 1;
        match again {
            Some(wait) => Retry::Again(wait),
            None => self.missed(gateway).map_or(Retry::Never, Retry::Later),
        }
    }

    /// The gateway is out of reach: after which time to look for it again, if at all.
    fn missed(&mut self, gateway: &str) -> Option<Millis> {
        let link = self.0.get_mut(gateway)?;
        let wait = PATIENCE.get(link.failures).copied();
        link.attempts = 0;
        link.failures += 1;
        link.texts.clear();
        link.items.retain(Item::must_deliver);
        link.items
            .splice(0..0, std::mem::take(&mut link.last_words));
        wait.filter(|_| link.given_up.is_none())
    }

    /// Pushes to a gateway have ended by a failure of our own.
    pub fn stopped(&mut self, gateway: &str) {
        self.missed(gateway);
        if let Some(link) = self.0.get_mut(gateway) {
            (link.busy, link.failures) = (false, 0);
        }
    }

    /// Drops what waits for gateways that take it too slowly: events, which come
    /// again from the log, and then answers that would not fit either. Returns
    /// the gateways, whose connections are to be asked what they have.
    pub fn shed(&mut self) -> Vec<String> {
        let mut slow = Vec::new();
        for (gateway, link) in &mut self.0 {
            if link.texts.len() > MAX_WAITING {
                link.shed();
                slow.push(gateway.clone());
            }
        }
        slow
    }

    /// The gateway is given up. It may be there all the same, and remember by which
    /// number the last push came; and one may be on its way. Its last words wait
    /// until it speaks, or until it is tried again.
    pub fn give_up(&mut self, gateway: &str, now: Millis) {
        let Some(link) = self.0.get_mut(gateway) else {
            return;
        };
        let mut items = std::mem::take(&mut link.items);
        items.retain(Item::must_deliver);
        *link = Link {
            items,
            busy: link.busy,
            number: link.number,
            given_up: Some(GivenUp {
                probe_at: Some(now + PROBE_INTERVAL),
            }),
            ..Link::default()
        };
    }

    /// The gateway has sent a request: if it was given up, it is not any more.
    pub fn spoke(&mut self, gateway: &str) {
        if let Some(link) = self.0.get_mut(gateway) {
            link.given_up = None;
        }
    }

    /// When a gateway that was given up is to be tried again by [`Links::probe`].
    pub fn probe_at(&self) -> Option<Millis> {
        let links = self.0.values().filter(|link| !link.items.is_empty());
        links.filter_map(|link| link.given_up?.probe_at).min()
    }

    /// Gateways that were given up are tried again, if it is time.
    pub fn probe(&mut self, now: Millis) {
        for given_up in self.0.values_mut().filter_map(|it| it.given_up.as_mut()) {
            given_up.probe_at = given_up.probe_at.filter(|at| *at > now);
        }
    }
}

impl Link {
    /// Whether the gateway was given up, and neither spoke nor is tried again.
    fn is_left_alone(&self) -> bool {
        self.given_up.is_some_and(|it| it.probe_at.is_some())
    }

    /// See [`Links::shed`].
    fn shed(&mut self) {
        let texts = std::mem::take(&mut self.texts);
        let mut rest = texts.as_str();
        let mut kept = Vec::with_capacity(self.items.len());
        // Their joins come to nothing without the answer.
        let mut unanswered = HashSet::new();
        for item in std::mem::take(&mut self.items) {
            let (text, after) = rest.split_at_checked(item.bytes()).unwrap_or((rest, ""));
            rest = after;
            match &item {
                Item::All { .. } | Item::One { at: Some(_), .. } => continue,
                Item::One { to, .. } if self.texts.len() + text.len() > MAX_WAITING / 2 => {
                    unanswered.insert(to.clone());
                    continue;
                }
                _ => {}
            }
            self.texts.push_str(text);
            kept.push(item);
        }
        kept.retain(|item| match item {
            Item::In { to, .. } => !unanswered.contains(to),
            _ => true,
        });
        self.items = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: &str = "n0";

    fn joined(to: &str) -> Item {
        Item::In {
            to: to.to_owned(),
            after: 0,
        }
    }

    fn items(links: &mut Links) -> Vec<Item> {
        let body = links.take(GATEWAY, Push::default).expect("something waits");
        let body = body.expect("JSON");
        Push::parse(&body).expect("a push").0.items
    }

    #[test]
    fn a_backlog_drops_events_and_keeps_answers_and_last_words() {
        let mut links = Links::default();
        let (one, other) = ("c:1".to_owned(), "d:1".to_owned());
        links.queue(GATEWAY, joined(&one), "");
        links.queue_text(GATEWAY, one.clone(), "answer", None, None);
        let large = "x".repeat(MAX_WAITING);
        let all = Item::All {
            bytes: large.len(),
            not: Vec::new(),
            after: 0,
            at: 1,
        };
        links.queue(GATEWAY, all, &large);
        links.queue(GATEWAY, Item::Out { to: other.clone() }, "");
        assert_eq!(links.shed(), [GATEWAY]);
        assert!(links.shed().is_empty(), "once");
        let kept = [
            Item::In {
                to: one.clone(),
                after: 0,
            },
            Item::One {
                to: one,
                bytes: "answer".len(),
                after: None,
                at: None,
            },
            Item::Out { to: other },
        ];
        assert_eq!(items(&mut links), kept);
    }

    #[test]
    fn a_join_whose_answer_is_too_large_to_keep_is_dropped_with_it() {
        let mut links = Links::default();
        let to = "c:1".to_owned();
        links.queue(GATEWAY, joined(&to), "");
        links.queue_text(
            GATEWAY,
            to.clone(),
            &"x".repeat(MAX_WAITING + 1),
            None,
            None,
        );
        links.shed();
        links.queue(
            GATEWAY,
            Item::Is {
                to: to.clone(),
                at: 1,
            },
            "",
        );
        // The gateway answers the join by an error when it is asked.
        assert_eq!(items(&mut links), [Item::Is { to, at: 1 }]);
    }

    #[test]
    fn a_gateway_that_was_given_up_hears_its_last_words_when_it_speaks() {
        let mut links = Links::default();
        let lost = Item::Lost { to: "c:1".into() };
        links.queue_text(GATEWAY, "c:1".into(), "answer", None, None);
        links.give_up(GATEWAY, 0);
        links.queue(GATEWAY, lost.clone(), "");
        assert!(links.start().is_empty(), "it is left alone");
        links.spoke(GATEWAY);
        assert_eq!(links.start(), [GATEWAY]);
        assert_eq!(items(&mut links)[0], lost);
        // If that push fails as well, nothing is lost, and the gateway is not given up at
        // once.
        assert_eq!(links.missed(GATEWAY), Some(PATIENCE[0]));
        assert_eq!(items(&mut links)[0], lost);
    }

    #[test]
    fn a_gateway_that_was_given_up_is_tried_again_at_its_time() {
        let mut links = Links::default();
        links.queue(GATEWAY, Item::Lost { to: "c:1".into() }, "");
        links.give_up(GATEWAY, 0);
        assert_eq!(links.probe_at(), Some(MINUTE));
        links.probe(MINUTE - 1);
        assert!(links.start().is_empty());
        links.probe(MINUTE);
        assert_eq!(links.start(), [GATEWAY]);
        items(&mut links);
        links.reached(GATEWAY);
        assert_eq!(links.probe_at(), None);
    }

    #[test]
    fn connections_catch_up_in_turn_as_long_as_the_push_takes_more() {
        let mut links = Links::default();
        let conns = [super::super::output::conn(1), super::super::output::conn(2)];
        for conn in conns {
            links.catch_up(GATEWAY, conn);
            links.catch_up(GATEWAY, conn);
        }
        assert_eq!(links.start(), [GATEWAY]);
        for n in 0..MAX_PORTIONS {
            let conn = links.next_portion(GATEWAY).expect("it takes one more");
            assert_eq!(conn, conns[n % 2]);
            links.catch_up(GATEWAY, conn);
        }
        assert_eq!(links.next_portion(GATEWAY), None, "the push is full");
        // Other items do not count.
        links.queue_text(GATEWAY, "c:1".into(), &"x".repeat(1 << 20), None, Some(1));
        items(&mut links);
        assert_eq!(links.next_portion(GATEWAY), Some(conns[0]));
    }

    #[test]
    fn connections_without_a_portion_do_not_count() {
        let mut links = Links::default();
        for _ in 0..=MAX_PORTIONS {
            links.catch_up(GATEWAY, super::super::output::conn(1));
            assert!(links.next_portion(GATEWAY).is_some());
            links.skip_portion(GATEWAY);
        }
    }

    #[test]
    fn a_join_at_an_unreachable_gateway_is_dropped_with_its_answer() {
        let mut links = Links::default();
        let to = "c:1".to_owned();
        links.queue(GATEWAY, Item::Out { to: "d:1".into() }, "");
        items(&mut links);
        links.missed(GATEWAY);
        links.queue(GATEWAY, joined(&to), "");
        links.queue_text(GATEWAY, to.clone(), "answer", None, None);
        links.queue(
            GATEWAY,
            Item::Is {
                to: to.clone(),
                at: 1,
            },
            "",
        );
        let out = Item::Out { to: "d:1".into() };
        assert_eq!(items(&mut links), [out, Item::Is { to, at: 1 }]);
    }
}
