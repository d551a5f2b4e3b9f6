//! What a room has for its gateways: queued, and sent by one request at a time
//! to each, so that order is kept and what comes meanwhile goes together.

use crate::room::link::{Item, Push};
use std::collections::HashMap;

/// Most bytes that wait for a gateway: one that takes no more is given up.
const MAX_WAITING: usize = 32 << 20;

/// A push that failed is tried again after so many milliseconds, and then its
/// gateway is given up.
pub const RETRIES: [u64; 4] = [20, 100, 500, 2_000];

#[derive(Default)]
pub struct Link {
    items: Vec<Item>,
    texts: String,
    /// Whether a push is on its way.
    pub busy: bool,
    number: u64,
}

/// All links of a room, by the gateways' names.
#[derive(Default)]
pub struct Links(HashMap<String, Link>);

impl Links {
    pub fn queue(&mut self, gateway: &str, item: Item, text: &str) {
        if !self.0.contains_key(gateway) {
            self.0.insert(gateway.to_owned(), Link::default());
        }
        if let Some(link) = self.0.get_mut(gateway) {
            link.items.push(item);
            link.texts.push_str(text);
        }
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
        Some(push.body(&std::mem::take(&mut link.texts)))
    }

    /// Gateways that have let too much pile up.
    pub fn overfull(&self) -> Option<String> {
        self.0
            .iter()
            .find(|(_, link)| link.texts.len() > MAX_WAITING)
            .map(|(gateway, _)| gateway.clone())
    }

    pub fn forget(&mut self, gateway: &str) {
        self.0.remove(gateway);
    }
}
