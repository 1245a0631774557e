//! The phases of stopping and their deadlines. Pure: signals, time and the shards' answers come in, orders go out.
//!
//! ```text
//! Running ─stop─▶ NotReady ─delay─▶ Closing ─every shard drained─▶ Done { cut: false }
//!                                      │
//!                                      └─deadline─▶ Cutting ─drained, or grace over─▶ Done { cut: true }
//! ```
//! The deadline counts from the first stop request. Invariant: `Done` is reached at the latest [`CUT_GRACE_MS`] after
//! it, whatever the shards do; a second stop request only ever brings it nearer.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::Duration;

use crate::bus::{CoreId, DrainOrder};
use crate::time::Tick;

/// From the order to cut until a shard that has not answered is given up.
pub const CUT_GRACE_MS: u32 = 1_000;
/// What a second stop request leaves of the deadline.
pub const HURRY_DEADLINE_MS: u32 = 1_000;

/// How the node stops. Checked by `config`: `delay_ms + window_ms <= deadline_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Readiness is off for so long before the listeners stop, so that load balancers notice.
    pub delay_ms: u32,
    /// The closes are spread over so long.
    pub window_ms: u32,
    /// From the stop request to cutting whoever is left.
    pub deadline_ms: u32,
    /// Whether clients are told to reconnect before they are closed.
    pub notice: bool,
}

/// Where the node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nobody has asked it to stop.
    Running,
    /// Readiness is off; everything else goes on.
    NotReady,
    /// Nobody new is let in; those inside are told and closed.
    Closing,
    /// The deadline has passed; whoever is left is cut.
    Cutting,
    /// The process may end.
    Done {
        /// Whether the deadline came first.
        cut: bool,
    },
}

impl Phase {
    /// The name in logs and answers.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::NotReady => "not_ready",
            Self::Closing => "closing",
            Self::Cutting => "cutting",
            Self::Done { .. } => "done",
        }
    }
}

/// Drives all shards through the phases. One input, then drain [`Drain::poll_order`] to `None`, then wait for the
/// next input or [`Drain::next_deadline`].
#[derive(Debug)]
pub struct Drain {
    options: Options,
    phase: Phase,
    hurried: bool,
    close_at: Tick,
    cut_at: Tick,
    shards_drained: Vec<bool>,
    /// At most one order of each kind and the second `Close` of a hurry.
    orders: VecDeque<DrainOrder>,
}

impl Drain {
    /// A node that runs with `shard_count` shards.
    #[must_use]
    pub fn new(options: Options, shard_count: usize) -> Self {
        Self {
            options,
            phase: Phase::Running,
            hurried: false,
            close_at: Tick::default(),
            cut_at: Tick::default(),
            shards_drained: vec![false; shard_count],
            orders: VecDeque::with_capacity(4),
        }
    }

    /// SIGTERM or SIGINT came. The second hurries: the closes are no longer spread, and the deadline is at most
    /// [`HURRY_DEADLINE_MS`] away. Further ones change nothing.
    pub fn stop_requested(&mut self, now: Tick) {
        match self.phase {
            Phase::Running => {
                self.phase = Phase::NotReady;
                self.close_at = after_ms(now, self.options.delay_ms);
                self.cut_at = after_ms(now, self.options.deadline_ms);
                self.orders.push_back(DrainOrder::NotReady);
            }
            Phase::NotReady | Phase::Closing if !self.hurried => {
                self.hurried = true;
                self.close_at = self.close_at.min(now);
                self.cut_at = self.cut_at.min(after_ms(now, HURRY_DEADLINE_MS));
                if self.phase == Phase::Closing {
                    self.order_close();
                }
            }
            _ => {}
        }
        self.handle_deadline(now);
    }

    /// A shard has no connection left and accepts none ([`crate::bus::Upstream::Drained`]). Before it was told to
    /// close this means nothing: somebody may still come.
    pub fn shard_drained(&mut self, shard: CoreId) {
        if !matches!(self.phase, Phase::Closing | Phase::Cutting) {
            return;
        }
        if let Some(drained) = self.shards_drained.get_mut(usize::from(shard.0)) {
            *drained = true;
        }
        self.finish_if_drained();
    }

    /// Time has passed. A call that comes late passes through every phase that it missed.
    pub fn handle_deadline(&mut self, now: Tick) {
        if self.phase == Phase::NotReady && now >= self.close_at.min(self.cut_at) {
            self.phase = Phase::Closing;
            self.order_close();
            self.finish_if_drained();
        }
        if self.phase == Phase::Closing && now >= self.cut_at {
            self.phase = Phase::Cutting;
            self.orders.push_back(DrainOrder::Cut);
        }
        if self.phase == Phase::Cutting && now >= self.give_up_at() {
            self.phase = Phase::Done { cut: true };
        }
    }

    /// The next order; it goes to every shard.
    pub fn poll_order(&mut self) -> Option<DrainOrder> {
        self.orders.pop_front()
    }

    /// Where the node stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// When [`Drain::handle_deadline`] has to be called next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Tick> {
        match self.phase {
            Phase::Running | Phase::Done { .. } => None,
            Phase::NotReady => Some(self.close_at.min(self.cut_at)),
            Phase::Closing => Some(self.cut_at),
            Phase::Cutting => Some(self.give_up_at()),
        }
    }

    /// The shards that have not said that they are drained.
    pub fn shards_left(&self) -> impl Iterator<Item = CoreId> + '_ {
        let left = |(index, drained): (usize, &bool)| {
            let index = u8::try_from(index).ok()?;
            (!drained).then_some(CoreId(index))
        };
        self.shards_drained.iter().enumerate().filter_map(left)
    }

    /// The process's exit code once it may end: 0 drained, 1 cut.
    #[must_use]
    pub fn exit_code(&self) -> Option<u8> {
        match self.phase {
            Phase::Done { cut } => Some(u8::from(cut)),
            _ => None,
        }
    }

    fn give_up_at(&self) -> Tick {
        after_ms(self.cut_at, CUT_GRACE_MS)
    }

    fn order_close(&mut self) {
        let window_ms = if self.hurried {
            0
        } else {
            self.options.window_ms
        };
        self.orders.push_back(DrainOrder::Close {
            window_ms,
            notice: self.options.notice,
        });
    }

    fn finish_if_drained(&mut self) {
        if self.shards_drained.iter().all(|&drained| drained) {
            self.phase = Phase::Done {
                cut: self.phase == Phase::Cutting,
            };
        }
    }
}

fn after_ms(start: Tick, ms: u32) -> Tick {
    start.after(Duration::from_millis(u64::from(ms)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OPTIONS: Options = Options {
        delay_ms: 2_000,
        window_ms: 10_000,
        deadline_ms: 30_000,
        notice: true,
    };
    const CLOSE: DrainOrder = DrainOrder::Close {
        window_ms: 10_000,
        notice: true,
    };
    const CLOSE_NOW: DrainOrder = DrainOrder::Close {
        window_ms: 0,
        notice: true,
    };

    /// Where a phase stands among all.
    fn number(phase: Phase) -> u8 {
        match phase {
            Phase::Running => 0,
            Phase::NotReady => 1,
            Phase::Closing => 2,
            Phase::Cutting => 3,
            Phase::Done { .. } => 4,
        }
    }

    fn orders(drain: &mut Drain) -> Vec<DrainOrder> {
        std::iter::from_fn(|| drain.poll_order()).collect()
    }

    #[test]
    fn a_running_node_waits_for_nothing() {
        let mut drain = Drain::new(OPTIONS, 2);
        drain.handle_deadline(Tick::from_ms(1_000_000));
        drain.shard_drained(CoreId(0));
        drain.shard_drained(CoreId(1));
        assert_eq!(drain.phase(), Phase::Running);
        assert_eq!(drain.next_deadline(), None);
        assert_eq!(drain.exit_code(), None);
        assert_eq!(orders(&mut drain), []);
    }

    #[test]
    fn a_node_whose_shards_drain_ends_with_0() {
        let mut drain = Drain::new(OPTIONS, 2);
        drain.stop_requested(Tick::from_ms(100));
        assert_eq!(drain.phase(), Phase::NotReady);
        assert_eq!(orders(&mut drain), [DrainOrder::NotReady]);
        assert_eq!(drain.next_deadline(), Some(Tick::from_ms(2_100)));
        drain.handle_deadline(Tick::from_ms(2_099));
        assert_eq!(drain.phase(), Phase::NotReady);
        drain.handle_deadline(Tick::from_ms(2_100));
        assert_eq!(drain.phase(), Phase::Closing);
        assert_eq!(orders(&mut drain), [CLOSE]);
        assert_eq!(drain.next_deadline(), Some(Tick::from_ms(30_100)));
        drain.shard_drained(CoreId(1));
        drain.shard_drained(CoreId(1));
        assert_eq!(drain.phase(), Phase::Closing);
        assert_eq!(drain.shards_left().collect::<Vec<_>>(), [CoreId(0)]);
        drain.shard_drained(CoreId(0));
        assert_eq!(drain.phase(), Phase::Done { cut: false });
        assert_eq!(drain.exit_code(), Some(0));
        assert_eq!(drain.next_deadline(), None);
    }

    #[test]
    fn without_a_delay_the_listeners_stop_at_once() {
        let options = Options {
            delay_ms: 0,
            ..OPTIONS
        };
        let mut drain = Drain::new(options, 1);
        drain.stop_requested(Tick::from_ms(5));
        assert_eq!(drain.phase(), Phase::Closing);
        assert_eq!(orders(&mut drain), [DrainOrder::NotReady, CLOSE]);
    }

    #[test]
    fn at_the_deadline_stragglers_are_cut_and_the_code_is_1() {
        let mut drain = Drain::new(OPTIONS, 1);
        drain.stop_requested(Tick::from_ms(0));
        drain.handle_deadline(Tick::from_ms(2_000));
        drain.handle_deadline(Tick::from_ms(29_999));
        assert_eq!(drain.phase(), Phase::Closing);
        drain.handle_deadline(Tick::from_ms(30_000));
        assert_eq!(drain.phase(), Phase::Cutting);
        assert_eq!(
            orders(&mut drain),
            [DrainOrder::NotReady, CLOSE, DrainOrder::Cut]
        );
        drain.shard_drained(CoreId(0));
        assert_eq!(drain.exit_code(), Some(1));
    }

    #[test]
    fn a_shard_that_never_answers_is_given_up_after_the_grace() {
        let mut drain = Drain::new(OPTIONS, 1);
        drain.stop_requested(Tick::from_ms(0));
        drain.handle_deadline(Tick::from_ms(30_000));
        assert_eq!(drain.next_deadline(), Some(Tick::from_ms(31_000)));
        drain.handle_deadline(Tick::from_ms(30_999));
        assert_eq!(drain.exit_code(), None);
        drain.handle_deadline(Tick::from_ms(31_000));
        assert_eq!(drain.phase(), Phase::Done { cut: true });
    }

    #[test]
    fn a_late_call_passes_through_every_phase() {
        let mut drain = Drain::new(OPTIONS, 1);
        drain.stop_requested(Tick::from_ms(0));
        drain.handle_deadline(Tick::from_ms(90_000));
        assert_eq!(
            orders(&mut drain),
            [DrainOrder::NotReady, CLOSE, DrainOrder::Cut]
        );
        assert_eq!(drain.exit_code(), Some(1));
    }

    #[test]
    fn a_second_signal_hurries_and_a_third_changes_nothing() {
        let mut drain = Drain::new(OPTIONS, 1);
        drain.stop_requested(Tick::from_ms(0));
        drain.stop_requested(Tick::from_ms(500));
        assert_eq!(drain.phase(), Phase::Closing);
        assert_eq!(orders(&mut drain), [DrainOrder::NotReady, CLOSE_NOW]);
        assert_eq!(drain.next_deadline(), Some(Tick::from_ms(1_500)));
        drain.stop_requested(Tick::from_ms(900));
        assert_eq!(orders(&mut drain), []);
        assert_eq!(drain.next_deadline(), Some(Tick::from_ms(1_500)));
    }

    #[test]
    fn a_second_signal_while_closing_replaces_the_window() {
        let mut drain = Drain::new(OPTIONS, 1);
        drain.stop_requested(Tick::from_ms(0));
        drain.handle_deadline(Tick::from_ms(2_000));
        drain.stop_requested(Tick::from_ms(3_000));
        assert_eq!(orders(&mut drain), [DrainOrder::NotReady, CLOSE, CLOSE_NOW]);
        assert_eq!(drain.next_deadline(), Some(Tick::from_ms(4_000)));
    }

    #[test]
    fn hurrying_never_moves_the_deadline_away() {
        let mut drain = Drain::new(OPTIONS, 1);
        drain.stop_requested(Tick::from_ms(0));
        drain.handle_deadline(Tick::from_ms(2_000));
        drain.stop_requested(Tick::from_ms(29_900));
        assert_eq!(drain.next_deadline(), Some(Tick::from_ms(30_000)));
    }

    proptest! {
        /// Whatever comes in whatever order, the node ends by its deadline and the grace, and tells each phase once.
        #[test]
        fn it_always_ends(
            delay_ms in 0u32..5_000,
            window_ms in 0u32..5_000,
            slack_ms in 0u32..5_000,
            shard_count in 1usize..5,
            inputs in proptest::collection::vec((0u8..4, 0u64..3_000, 0u8..6), 0..40),
        ) {
            let deadline_ms = delay_ms + window_ms + slack_ms;
            let options = Options { delay_ms, window_ms, deadline_ms, notice: false };
            let mut drain = Drain::new(options, shard_count);
            let mut now_ms = 0;
            let mut told = Vec::new();
            let mut numbers = vec![number(drain.phase())];
            drain.stop_requested(Tick::from_ms(0));
            for (kind, wait_ms, shard) in inputs {
                now_ms += wait_ms;
                let now = Tick::from_ms(now_ms);
                match kind {
                    0 => drain.stop_requested(now),
                    1 => drain.shard_drained(CoreId(shard)),
                    _ => drain.handle_deadline(now),
                }
                told.extend(orders(&mut drain));
                numbers.push(number(drain.phase()));
                prop_assert!(drain.exit_code().is_some() || drain.next_deadline().is_some());
            }
            drain.handle_deadline(Tick::from_ms(u64::from(deadline_ms + CUT_GRACE_MS)));
            told.extend(orders(&mut drain));
            numbers.push(number(drain.phase()));
            prop_assert!(drain.exit_code().is_some());
            prop_assert!(numbers.is_sorted(), "phases only go forward");
            let count = |wanted: fn(&DrainOrder) -> bool| told.iter().filter(|&order| wanted(order)).count();
            prop_assert_eq!(count(|order| *order == DrainOrder::NotReady), 1);
            let closes = count(|order| matches!(order, DrainOrder::Close { .. }));
            prop_assert!((1..=2).contains(&closes));
            prop_assert!(count(|order| *order == DrainOrder::Cut) <= 1);
        }
    }
}
