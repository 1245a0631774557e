//! What behaviours counted, in a form that adds up over workers, generators and hosts.

use std::collections::BTreeMap;
use std::fmt;

use hdrhistogram::Histogram;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::delivery::Counts;
use crate::histogram;
use crate::order::RoomOrders;
use crate::report::latency_histogram;

/// What one window saw.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Window {
    /// Of messages that were due within the window, nanoseconds.
    #[serde(with = "histogram")]
    pub latency: Histogram<u64>,
    /// Deliveries that came within the window.
    pub delivered: u64,
}

impl Window {
    /// Nothing seen.
    pub fn new() -> Self {
        Self {
            latency: latency_histogram(),
            delivered: 0,
        }
    }

    /// Adds another worker's.
    pub fn merge(&mut self, other: &Self) {
        histogram::add(&mut self.latency, &other.latency);
        self.delivered += other.delivered;
    }
}

/// Windows that another generator may tell of. No scenario has more than a few.
const WINDOW_COUNT_MAX: usize = 64;

/// Reads windows until there are too many: each takes memory by far beyond its text.
fn windows<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Window>, D::Error> {
    struct Windows;
    impl<'de> Visitor<'de> for Windows {
        type Value = Vec<Window>;
        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(formatter, "at most {WINDOW_COUNT_MAX} windows")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut told: A) -> Result<Vec<Window>, A::Error> {
            let mut windows = Vec::new();
            while let Some(window) = told.next_element()? {
                if windows.len() == WINDOW_COUNT_MAX {
                    return Err(A::Error::invalid_length(windows.len() + 1, &self));
                }
                windows.push(window);
            }
            Ok(windows)
        }
    }
    deserializer.deserialize_seq(Windows)
}

/// The sum of what behaviours counted.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Tally {
    /// The deliveries, checked.
    pub deliveries: Counts,
    /// The orders in which members heard their rooms.
    pub orders: RoomOrders,
    /// The windows, one after the other.
    #[serde(deserialize_with = "windows")]
    pub windows: Vec<Window>,
    /// A scenario's own counts, by name.
    pub counts: BTreeMap<String, u64>,
    /// A scenario's own times, nanoseconds, by name.
    #[serde(with = "histogram::map")]
    pub times: BTreeMap<String, Histogram<u64>>,
}

impl Tally {
    /// Adds another worker's.
    pub fn merge(&mut self, other: Self) {
        self.deliveries.merge(other.deliveries);
        self.orders.merge(other.orders);
        for (index, window) in other.windows.into_iter().enumerate() {
            match self.windows.get_mut(index) {
                Some(mine) => mine.merge(&window),
                None => self.windows.push(window),
            }
        }
        for (name, count) in other.counts {
            *self.counts.entry(name).or_default() += count;
        }
        for (name, times) in other.times {
            match self.times.get_mut(&name) {
                Some(mine) => histogram::add(mine, &times),
                None => {
                    self.times.insert(name, times);
                }
            }
        }
    }

    /// A count by name; 0 when nobody counted it.
    pub fn count(&self, name: &str) -> u64 {
        self.counts.get(name).copied().unwrap_or(0)
    }

    /// A window; an empty one when nobody saw it.
    pub fn window(&self, index: usize) -> Window {
        self.windows.get(index).cloned().unwrap_or_else(Window::new)
    }
}
