//! What a room has for its gateways: queued, and sent by one request at a time
//! to each, so that order is kept and what comes meanwhile goes together.

use super::link::{Item, Push};
use std::collections::HashMap;

/// Most bytes that wait for a gateway: one that takes no more is given up.
const MAX_WAITING: usize = 32 << 20;

/// A push that failed is tried again after so many milliseconds each, as it is.
pub const RETRIES: [u64; 3] = [20, 100, 500];

/// After those the gateway is out of reach. What was for it is dropped (it will
/// notice and ask), and after so many milliseconds each it is looked for again.
/// Then it is given up: as long as a ghost is kept by default.
pub const PATIENCE: [u64; 5] = [5_000, 10_000, 20_000, 30_000, 30_000];

#[derive(Default)]
struct Link {
    items: Vec<Item>,
    texts: String,
    /// Whether a push is on its way.
    busy: bool,
    number: u64,
    /// Of what is on its way, what must come through.
    last_words: Vec<Item>,
    /// How often in a row it was out of reach.
    failures: usize,
}

/// What is known once a gateway has taken a push.
#[derive(Default)]
pub struct Reached {
    /// It had been out of reach: what was for it until now was dropped, so it is
    /// to be asked what it has.
    pub was_missed: bool,
    /// The last words that it has heard: see [`Item::is_last_word`].
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
            && (link.failures == 0 || text.is_empty())
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

    /// Gateways for which something waits and nothing is on its way; from here
    /// on something is.
    pub fn start(&mut self) -> Vec<String> {
        let mut idle = Vec::new();
        for (gateway, link) in &mut self.0 {
            if !link.busy && !link.items.is_empty() {
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
        if link.items.is_empty() {
            link.busy = false;
            return None;
        }
        link.number += 1;
        let push = Push {
            number: link.number,
            items: std::mem::take(&mut link.items),
            ..head()
        };
        let last_words = push.items.iter().filter(|item| item.is_last_word());
        link.last_words = last_words.cloned().collect();
        Some(push.body(&std::mem::take(&mut link.texts)))
    }

    /// A push came through.
    pub fn reached(&mut self, gateway: &str) -> Reached {
        let link = self.0.get_mut(gateway);
        link.map_or_else(Reached::default, |link| Reached {
            was_missed: std::mem::take(&mut link.failures) > 0,
            told: std::mem::take(&mut link.last_words),
        })
    }

    /// A push did not come through: after which time to look for the gateway
    /// again, if at all.
    pub fn missed(&mut self, gateway: &str) -> Option<u64> {
        let link = self.0.get_mut(gateway)?;
        let wait = PATIENCE.get(link.failures).copied();
        link.failures += 1;
        link.texts.clear();
        link.items.retain(Item::is_last_word);
        link.items
            .splice(0..0, std::mem::take(&mut link.last_words));
        wait
    }

    /// Gateways that have let too much pile up.
    pub fn overfull(&self) -> Option<String> {
        self.0
            .iter()
            .find(|(_, link)| link.texts.len() > MAX_WAITING)
            .map(|(gateway, _)| gateway.clone())
    }

    /// The gateway is given up. It may be there all the same, and remember by which
    /// number the last push came; and one may be on its way.
    pub fn forget(&mut self, gateway: &str) {
        if let Some(link) = self.0.get_mut(gateway) {
            *link = Link {
                busy: link.busy,
                number: link.number,
                ..Link::default()
            };
        }
    }
}
