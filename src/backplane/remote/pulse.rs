//! Probes through Redis: a message of our own, out on one link and back on the other.

use std::time::Duration;

use crate::time::Tick;

/// At most one probe at a time.
#[derive(Debug)]
pub struct Pulse {
    interval: Duration,
    timeout: Duration,
    number: u64,
    /// When the probe was sent that has not come back.
    pending: Option<Tick>,
    /// A link is new: the next probe is due at once.
    unproven: bool,
}

impl Pulse {
    /// Nothing is proven.
    pub fn new(options: &super::Options) -> Self {
        Self {
            interval: Duration::from_millis(u64::from(options.probe_interval_ms)),
            timeout: Duration::from_millis(u64::from(options.probe_timeout_ms)),
            number: 0,
            pending: None,
            unproven: true,
        }
    }

    /// A link was lost, and the probe with it.
    pub fn lost(&mut self) {
        self.pending = None;
        self.unproven = true;
    }

    /// The number of the probe to be sent now, if one is due: at once after a loss, or when a link was silent for the
    /// interval, since `heard`.
    pub fn take_due(&mut self, ready: bool, heard: Tick, now: Tick) -> Option<u64> {
        let silent = heard.after(self.interval) <= now;
        if !ready || self.pending.is_some() || !(self.unproven || silent) {
            return None;
        }
        self.number += 1;
        self.pending = Some(now);
        Some(self.number)
    }

    /// Whether this probe is the one that is waited for.
    pub fn awaits(&self, number: u64) -> bool {
        self.pending.is_some() && number == self.number
    }

    /// A probe has come back. Whether it is the one that was waited for.
    pub fn returned(&mut self, number: u64) -> bool {
        let expected = self.awaits(number);
        if expected {
            self.pending = None;
            self.unproven = false;
        }
        expected
    }

    /// When the probe was sent that should have come back by now.
    pub fn overdue(&self, now: Tick) -> Option<Tick> {
        self.pending.filter(|sent| sent.after(self.timeout) <= now)
    }

    /// When the probe was sent that is on its way.
    pub fn pending(&self) -> Option<Tick> {
        self.pending
    }

    /// When a probe is due, or overdue.
    pub fn deadline(&self, ready: bool, heard: Tick) -> Option<Tick> {
        match self.pending {
            Some(sent) => Some(sent.after(self.timeout)),
            None if ready && !self.unproven => Some(heard.after(self.interval)),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Address, Options};
    use super::*;

    #[test]
    fn a_silent_link_is_probed_and_a_probe_that_does_not_return_is_overdue() {
        let options = Options::new(Address::parse("redis://x").unwrap());
        let mut pulse = Pulse::new(&options);
        let at = Tick::from_ms;
        assert_eq!(pulse.take_due(false, at(0), at(0)), None);
        assert_eq!(
            pulse.take_due(true, at(0), at(0)),
            Some(1),
            "a new link, at once"
        );
        assert_eq!(pulse.take_due(true, at(0), at(0)), None, "one at a time");
        assert_eq!(pulse.overdue(at(2_999)), None);
        assert_eq!(pulse.overdue(at(3_000)), Some(at(0)));
        assert!(!pulse.returned(7));
        assert!(pulse.returned(1) && !pulse.returned(1));
        assert_eq!(pulse.take_due(true, at(100), at(5_099)), None);
        assert_eq!(pulse.deadline(true, at(100)), Some(at(5_100)));
        assert_eq!(pulse.take_due(true, at(100), at(5_100)), Some(2));
        pulse.lost();
        assert!(!pulse.returned(2), "its link is gone");
        assert_eq!(pulse.take_due(true, at(5_100), at(5_100)), Some(3));
    }
}
