//! One list as it is at a moment: searched, put in order and cut into pages at the cost of a page.
//!
//! What takes as long as the list is (an order, the texts that are searched) is made once a list, and
//! for the next list before that is shown, so that no request waits for it when a record changes.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use axum::body::Bytes;
use serde::Serialize;
use tenon::Timestamp;

/// A record that lists are made of.
pub(crate) trait Listed: Serialize {
    fn name(&self) -> &str;
    fn created(&self) -> Timestamp;
    /// Texts in which `q` is looked for.
    fn texts(&self) -> Vec<&str>;
    fn base(&self) -> Option<&str> {
        None
    }
    fn bytes(&self) -> u64 {
        0
    }
    /// As the API writes it.
    fn state(&self) -> Option<&str> {
        None
    }
}

/// What records are put in order by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    Name,
    Base,
    Created,
    Bytes,
    State,
}

impl Key {
    const ALL: [Key; 5] = [Key::Name, Key::Base, Key::Created, Key::Bytes, Key::State];

    fn compare<T: Listed>(self, a: &T, b: &T) -> Ordering {
        match self {
            Key::Name => a.name().cmp(b.name()),
            Key::Base => a.base().cmp(&b.base()),
            Key::Created => a.created().cmp(&b.created()),
            Key::Bytes => a.bytes().cmp(&b.bytes()),
            Key::State => a.state().cmp(&b.state()),
        }
    }
}

/// One list.
pub(crate) struct List<T> {
    /// Another for every state of the list.
    pub(crate) version: u64,
    /// Oldest first.
    pub(crate) items: Vec<T>,
    /// Places of the items in ascending order, by key; then by name, so that pages do not overlap.
    orders: [OnceLock<Vec<u32>>; Key::ALL.len()],
    /// What is searched of each item, in lower case.
    searched: OnceLock<Vec<String>>,
    pages: Mutex<HashMap<String, Bytes>>,
}

/// Pages of a list kept as bytes.
const MAX_PAGES: usize = 64;
/// Largest page kept.
const MAX_PAGE_BYTES: usize = 1 << 20;

impl<T: Listed> List<T> {
    pub(crate) fn new(version: u64, items: Vec<T>) -> Arc<Self> {
        let orders = Key::ALL.map(|_| OnceLock::new());
        Arc::new(Self { version, items, orders, searched: OnceLock::new(), pages: Mutex::default() })
    }

    /// The list that takes this one's place, prepared for what this one was asked.
    pub(crate) fn next(&self, version: u64, items: Vec<T>) -> Arc<Self> {
        let next = Self::new(version, items);
        for key in Key::ALL.into_iter().filter(|key| self.orders[*key as usize].get().is_some()) {
            next.order(key);
        }
        if self.searched.get().is_some() {
            next.searched();
        }
        next
    }

    /// Places of the items in ascending order.
    pub(crate) fn order(&self, key: Key) -> &[u32] {
        self.orders[key as usize].get_or_init(|| {
            let of = |place: u32| &self.items[place as usize];
            let mut order = match key {
                Key::Name => (0..self.items.len() as u32).collect(),
                _ => self.order(Key::Name).to_vec(),
            };
            // Stable: what is equal stays in the order of names.
            order.sort_by(|a, b| key.compare(of(*a), of(*b)));
            order
        })
    }

    /// What is searched of each item, in lower case.
    pub(crate) fn searched(&self) -> &[String] {
        let text = |item: &T| item.texts().join("\n").to_lowercase();
        self.searched.get_or_init(|| self.items.iter().map(text).collect())
    }

    /// The bytes of a page: made by the first who asks.
    pub(crate) fn page(&self, query: &str, make: impl FnOnce(&Self) -> Vec<u8>) -> Bytes {
        let pages = || self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = pages().get(query) {
            return bytes.clone();
        }
        let bytes = Bytes::from(make(self));
        let mut pages = pages();
        if pages.len() >= MAX_PAGES {
            pages.clear();
        }
        if bytes.len() <= MAX_PAGE_BYTES {
            pages.insert(query.to_string(), bytes.clone());
        }
        bytes
    }
}
