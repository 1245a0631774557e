//! The search for the highest value that holds: up by doubling, then halving what is left in doubt. Pure: it is told
//! what each trial found, and names the value of the next.
//!
//! One trial that fails may be noise: a value counts as broken when as many trials at it failed as it was given tries.

/// What one trial at a value found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Every objective was met.
    Held,
    /// The whole load was offered, and an objective was not met.
    Broke,
    /// The load could not be offered: nothing is known of the server.
    Unoffered,
}

/// Where a search looks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    /// The first value tried.
    pub from: f64,
    /// The last that may be tried.
    pub to: f64,
    /// The answer is exact to this share of it.
    pub precision: f64,
    /// Trials that must fail before a value counts as broken.
    pub tries: u32,
    /// Values are whole numbers.
    pub whole: bool,
}

/// A search that goes on: ask [`Search::next`], try it, tell [`Search::learn`], until there is no next.
#[derive(Debug, Clone)]
pub struct Search {
    range: Range,
    held: Option<f64>,
    over: Option<Over>,
    /// Trials at the current value that did not hold: all, and those with the whole load.
    failed: (u32, u32),
}

/// The lowest value that did not hold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Over {
    /// It.
    pub value: f64,
    /// The whole load was offered in every trial at it: it is the server that broke.
    pub offered: bool,
}

/// What is known so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answer {
    /// The highest value that held.
    pub held: Option<f64>,
    /// The lowest that did not.
    pub over: Option<Over>,
    /// Nothing is left to try: the two are as close as they should be, or the end of the range was met.
    pub complete: bool,
}

impl Search {
    /// A search that begins at the low end of `range`.
    pub const fn new(range: Range) -> Self {
        Self {
            range,
            held: None,
            over: None,
            failed: (0, 0),
        }
    }

    /// The value to try next; none when the answer is complete. The same until its trials are told.
    pub fn next(&self) -> Option<f64> {
        let Range { from, to, .. } = self.range;
        match (self.held, self.over) {
            (None, None) => Some(from),
            (None, Some(_)) => None,
            (Some(held), None) => (held < to).then(|| (held * 2.0).min(to)),
            (Some(held), Some(over)) => {
                let gap = over.value - held;
                if gap <= held * self.range.precision || self.range.whole && gap <= 1.0 {
                    return None;
                }
                let middle = held + gap / 2.0;
                Some(if self.range.whole {
                    middle.floor()
                } else {
                    middle
                })
            }
        }
    }

    /// A trial at [`Search::next`] found this.
    pub fn learn(&mut self, found: Found) {
        let Some(value) = self.next() else { return };
        if found == Found::Held {
            self.held = Some(value);
            self.failed = (0, 0);
            return;
        }
        self.failed.0 += 1;
        self.failed.1 += u32::from(found == Found::Broke);
        if self.failed.0 >= self.range.tries {
            self.over = Some(Over {
                value,
                offered: self.failed.0 == self.failed.1,
            });
            self.failed = (0, 0);
        }
    }

    /// Whether the value that comes next has failed before.
    pub const fn is_repeat(&self) -> bool {
        self.failed.0 > 0
    }

    /// What is known so far.
    pub fn answer(&self) -> Answer {
        Answer {
            held: self.held,
            over: self.over,
            complete: self.next().is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(from: f64, to: f64, precision: f64, whole: bool) -> Range {
        Range {
            from,
            to,
            precision,
            tries: 2,
            whole,
        }
    }

    /// Runs a search to its end; gives the answer and the number of trials.
    fn search(range: Range, mut find: impl FnMut(f64, u32) -> Found) -> (Answer, u32) {
        let mut search = Search::new(range);
        let mut trials = 0;
        while let Some(value) = search.next() {
            assert!(trials < 200, "it does not end");
            assert!((range.from..=range.to).contains(&value), "{value}");
            assert!(!range.whole || value.fract() == 0.0, "{value}");
            search.learn(find(value, trials));
            trials += 1;
        }
        let answer = search.answer();
        assert!(answer.complete);
        (answer, trials)
    }

    fn held_up_to(limit: f64) -> impl Fn(f64) -> Found {
        move |value| {
            if value <= limit {
                Found::Held
            } else {
                Found::Broke
            }
        }
    }

    #[test]
    fn a_first_trial_that_breaks_is_an_answer() {
        let (answer, trials) = search(range(10.0, 100.0, 0.02, true), |_, _| Found::Broke);
        assert_eq!(trials, 2, "it was tried again");
        assert_eq!(answer.held, None);
        assert_eq!(
            answer.over,
            Some(Over {
                value: 10.0,
                offered: true
            })
        );
    }

    #[test]
    fn a_server_that_never_breaks_is_tried_up_to_the_end_of_the_range_and_no_further() {
        let mut values = Vec::new();
        let (answer, _) = search(range(10.0, 100.0, 0.02, true), |value, _| {
            values.push(value);
            Found::Held
        });
        assert_eq!(values, [10.0, 20.0, 40.0, 80.0, 100.0]);
        assert_eq!((answer.held, answer.over), (Some(100.0), None));
    }

    #[test]
    fn a_range_of_one_value_is_one_trial() {
        let (answer, trials) = search(range(7.0, 7.0, 0.02, true), |_, _| Found::Held);
        assert_eq!((answer.held, trials), (Some(7.0), 1));
    }

    #[test]
    fn a_break_of_a_load_that_was_once_not_offered_is_not_the_servers() {
        let mut found = [Found::Held, Found::Broke, Found::Unoffered].into_iter();
        let (answer, _) = search(range(1.0, 2.0, 0.02, true), |_, _| found.next().unwrap());
        assert_eq!(answer.held, Some(1.0));
        assert_eq!(
            answer.over,
            Some(Over {
                value: 2.0,
                offered: false
            })
        );
    }

    #[test]
    fn an_answer_before_the_end_is_not_complete() {
        let mut search = Search::new(range(1.0, 100.0, 0.02, true));
        search.learn(Found::Held);
        let answer = search.answer();
        assert_eq!((answer.held, answer.complete), (Some(1.0), false));
        assert!(!search.is_repeat());
        search.learn(Found::Broke);
        assert!(search.is_repeat());
    }

    proptest! {
        #[test]
        fn a_planted_limit_is_found_within_the_precision(
            from in 1.0..1e4_f64,
            span in 1.0..1e4_f64,
            at in 0.0..=1.0_f64,
            precision in 0.005..0.2_f64,
            whole: bool,
        ) {
            let round = |value: f64| if whole { value.floor() } else { value };
            let (from, to) = (round(from), round(from * span));
            let limit = from + (to - from) * at;
            let held_up_to = held_up_to(limit);
            let (answer, trials) = search(range(from, to, precision, whole), |value, _| held_up_to(value));
            let held = answer.held.unwrap();
            let slack = if whole { f64::max(1.0, held * precision) } else { held * precision };
            prop_assert!(held <= limit);
            match answer.over {
                Some(over) => {
                    prop_assert!(over.offered && over.value > limit);
                    prop_assert!(over.value - held <= slack, "{held} to {}", over.value);
                }
                None => prop_assert_eq!(held, to),
            }
            prop_assert!(trials <= 60, "{trials} trials");
        }

        #[test]
        fn trials_that_fail_once_by_chance_do_not_derail_it(
            limit in 10.0..10_000.0_f64,
            chance in proptest::collection::vec(proptest::bool::weighted(0.3), 200),
        ) {
            let held_up_to = held_up_to(limit);
            let mut last_was_chance = false;
            let (answer, _) = search(range(10.0, 20_000.0, 0.02, true), |value, trial| {
                last_was_chance = chance[trial as usize] && !last_was_chance;
                if last_was_chance { Found::Broke } else { held_up_to(value) }
            });
            let held = answer.held.unwrap();
            prop_assert!(held <= limit && limit - held <= f64::max(1.0, held * 0.02), "{held} of {limit}");
        }

        #[test]
        fn where_the_generator_gives_out_first_the_server_is_not_blamed(
            server in 10.0..10_000.0_f64,
            generator in 10.0..10_000.0_f64,
        ) {
            let held_up_to = held_up_to(server);
            let (answer, _) = search(range(10.0, 10_000.0, 0.02, false), |value, _| {
                if value > generator { Found::Unoffered } else { held_up_to(value) }
            });
            let held = answer.held.unwrap();
            let least = server.min(generator);
            prop_assert!(held <= least && least - held <= held * 0.02);
            if let Some(over) = answer.over && generator < server * 0.97 {
                prop_assert!(!over.offered);
            } else if let Some(over) = answer.over && server < generator * 0.97 {
                prop_assert!(over.offered);
            }
        }
    }
}
