//! Delays whose percentiles are known beforehand, and the draws that keep to them.
//!
//! Draws are stratified: each thousand of them takes every thousandth of the distribution once, in an order that the
//! seed gives. So the share of each step is met exactly after each thousand, and percentiles need no luck.

use std::fmt;
use std::str::FromStr;

use super::plants::{duration_text, parse_duration};
use crate::random::{Random, mix};

/// Draws after which each thousandth of the distribution has come once.
pub const STRATUM_COUNT: usize = 1_000;
/// How far the shares of steps may be from 1 together: a rounding in what was typed.
const SHARE_TOLERANCE: f64 = 1e-9;

/// How long deliveries are held back. Nanoseconds.
#[derive(Debug, Clone, PartialEq)]
pub enum Distribution {
    /// All alike.
    Constant(u64),
    /// Every length between two alike.
    Uniform {
        /// The shortest.
        from_ns: u64,
        /// The longest.
        to_ns: u64,
    },
    /// A few lengths, each with its share; ascending, the shares are 1 together.
    Steps(Vec<(u64, f64)>),
}

impl Distribution {
    /// The shortest delay that a share `q` (0 to 1) of all draws does not exceed, nanoseconds.
    pub fn quantile(&self, q: f64) -> u64 {
        match self {
            Self::Constant(ns) => *ns,
            Self::Uniform { from_ns, to_ns } => {
                from_ns + ((to_ns - from_ns) as f64 * q.clamp(0.0, 1.0)).round() as u64
            }
            Self::Steps(steps) => {
                let mut share_sum = 0.0;
                for (ns, share) in steps {
                    share_sum += share;
                    if q <= share_sum + SHARE_TOLERANCE {
                        return *ns;
                    }
                }
                steps.last().map_or(0, |(ns, _)| *ns)
            }
        }
    }
}

impl FromStr for Distribution {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, rest) = text
            .split_once(':')
            .ok_or("write constant:5ms, uniform:1ms-9ms or steps:1ms@0.9,10ms@0.09,100ms@0.01")?;
        match kind {
            "constant" => Ok(Self::Constant(parse_duration(rest)?)),
            "uniform" => {
                let (from, to) = rest.split_once('-').ok_or("write uniform:1ms-9ms")?;
                let (from_ns, to_ns) = (parse_duration(from)?, parse_duration(to)?);
                if from_ns > to_ns {
                    return Err("the shorter one comes first: uniform:1ms-9ms".into());
                }
                Ok(Self::Uniform { from_ns, to_ns })
            }
            "steps" => {
                let mut steps = Vec::new();
                for step in rest.split(',') {
                    let (ns, share) = step
                        .split_once('@')
                        .ok_or("write steps:1ms@0.9,10ms@0.1: a length and its share each")?;
                    let share: f64 = share
                        .trim()
                        .parse()
                        .map_err(|_| format!("{share} is no share"))?;
                    if !(0.0..=1.0).contains(&share) {
                        return Err(format!("{share} is no share: 0 to 1"));
                    }
                    steps.push((parse_duration(ns)?, share));
                }
                if !steps.is_sorted_by(|left, right| left.0 < right.0) {
                    return Err("steps ascend".into());
                }
                let sum: f64 = steps.iter().map(|(_, share)| share).sum();
                if (sum - 1.0).abs() > SHARE_TOLERANCE {
                    return Err(format!("the shares are {sum} together, not 1"));
                }
                Ok(Self::Steps(steps))
            }
            other => Err(format!("{other} is not constant, uniform or steps")),
        }
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant(ns) => write!(formatter, "constant:{}", duration_text(*ns)),
            Self::Uniform { from_ns, to_ns } => write!(
                formatter,
                "uniform:{}-{}",
                duration_text(*from_ns),
                duration_text(*to_ns)
            ),
            Self::Steps(steps) => {
                formatter.write_str("steps:")?;
                for (index, (ns, share)) in steps.iter().enumerate() {
                    let comma = if index > 0 { "," } else { "" };
                    write!(formatter, "{comma}{}@{share}", duration_text(*ns))?;
                }
                Ok(())
            }
        }
    }
}

/// The random choices of a planted server that serve the purpose `salt`: the same for the same seed.
pub fn choices(seed: u64, salt: u64) -> Random {
    Random::new(mix(seed ^ salt.rotate_left(32)))
}

/// Delays drawn from a distribution, stratum by stratum.
#[derive(Debug)]
pub struct Delays {
    distribution: Distribution,
    random: Random,
    /// The strata of this thousand, in the order in which they come.
    order: Vec<u16>,
    drawn_count: usize,
}

impl Delays {
    /// Draws from `distribution` in the order that `seed` gives.
    pub fn new(distribution: Distribution, seed: u64) -> Self {
        Self {
            distribution,
            random: choices(seed, 1),
            order: (0..STRATUM_COUNT as u16).collect(),
            drawn_count: 0,
        }
    }

    /// The next delay, nanoseconds.
    pub fn next(&mut self) -> u64 {
        let position = self.drawn_count % STRATUM_COUNT;
        if position == 0 {
            for index in (1..STRATUM_COUNT).rev() {
                let other = self.random.below(index as u64 + 1) as usize;
                self.order.swap(index, other);
            }
        }
        self.drawn_count += 1;
        // Within its stratum a draw lies anywhere but on the edges, where two steps meet.
        let within = (self.random.below(1 << 20) as f64 + 0.5) / f64::from(1 << 20);
        let q = (f64::from(self.order[position]) + within) / STRATUM_COUNT as f64;
        self.distribution.quantile(q)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn distributions_are_read_and_written_alike() {
        for (text, q, ns) in [
            ("constant:5ms", 0.3, 5 * MS),
            ("uniform:1ms-9ms", 0.25, 3 * MS),
            ("steps:1ms@0.9,10ms@0.09,100ms@0.01", 0.9, MS),
            ("steps:1ms@0.9,10ms@0.09,100ms@0.01", 0.99, 10 * MS),
            ("steps:1ms@0.9,10ms@0.09,100ms@0.01", 0.9901, 100 * MS),
            ("steps:250us@0.5,1500us@0.5", 1.0, 1_500_000),
        ] {
            let distribution: Distribution = text.parse().unwrap();
            assert_eq!(distribution.quantile(q), ns, "{text} at {q}");
            assert_eq!(distribution.to_string().parse(), Ok(distribution), "{text}");
        }
    }

    #[test]
    fn what_is_no_distribution_is_refused() {
        for wrong in [
            "5ms",
            "constant:5",
            "constant:x",
            "uniform:9ms-1ms",
            "uniform:1ms",
            "steps:1ms@0.5",
            "steps:1ms@0.5,2ms@0.6",
            "steps:2ms@0.5,1ms@0.5",
            "steps:1ms@-1,2ms@2",
            "steps:1ms",
            "normal:1ms",
        ] {
            assert!(wrong.parse::<Distribution>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn each_thousand_draws_have_exactly_the_shares_of_the_steps() {
        let steps = "steps:1ms@0.9,10ms@0.09,100ms@0.01";
        for seed in 0..20 {
            let mut delays = Delays::new(steps.parse().unwrap(), seed);
            for _ in 0..3 {
                let drawn: Vec<u64> = (0..STRATUM_COUNT).map(|_| delays.next()).collect();
                let count = |ns| drawn.iter().filter(|drawn| **drawn == ns).count();
                assert_eq!(
                    [count(MS), count(10 * MS), count(100 * MS)],
                    [900, 90, 10],
                    "seed {seed}"
                );
            }
        }
    }

    #[test]
    fn uniform_draws_fill_the_span_and_come_in_no_order() {
        let mut delays = Delays::new("uniform:1ms-9ms".parse().unwrap(), 7);
        let drawn: Vec<u64> = (0..STRATUM_COUNT).map(|_| delays.next()).collect();
        let ascents = drawn.windows(2).filter(|pair| pair[0] < pair[1]).count();
        assert!((400..600).contains(&ascents), "{ascents} of 999 ascend");
        let mut sorted = drawn.clone();
        sorted.sort_unstable();
        for (index, ns) in sorted.iter().enumerate() {
            let from_ns = MS + 8 * MS * index as u64 / STRATUM_COUNT as u64;
            assert!((from_ns..=from_ns + 8_000).contains(ns), "{index}: {ns}");
        }
        let mut again = Delays::new("uniform:1ms-9ms".parse().unwrap(), 7);
        assert!(drawn.iter().all(|ns| *ns == again.next()), "same seed");
        let mut other = Delays::new("uniform:1ms-9ms".parse().unwrap(), 8);
        assert!(drawn.iter().any(|ns| *ns != other.next()), "another seed");
    }
}
