//! Expectations: conditions on figures, such as `lost=0` or `latency_p99_ms<50ms`.

use super::figures::Unit;
use crate::failure::Failure;

/// A condition on a figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Expectation<'a> {
    /// The figure's name.
    pub name: &'a str,
    operator: &'a str,
    bound: f64,
}

impl<'a> Expectation<'a> {
    /// Reads `NAME<VALUE` (`<=`, `=`, `>=`, `>`). A value may have a unit, as `50ms`, `1.5GiB` or `90%`; without one it is in
    /// the unit that the figure's name ends in.
    ///
    /// # Errors
    /// When it is not of that form, or the unit is of another kind than the figure's.
    pub fn parse(text: &'a str) -> Result<Self, Failure> {
        let (name, operator, value) = Self::split(text)?;
        let unit = Unit::of(name);
        let bound = unit.parse(value).ok_or_else(|| {
            Failure::Usage(format!(
                "--expect {text}: {value:?} is not a value of {name}, which is {}",
                unit.label()
            ))
        })?;
        Ok(Self {
            name,
            operator,
            bound,
        })
    }

    /// Reads an expectation on a ratio of two runs' figures: the value has no unit but `%`.
    ///
    /// # Errors
    /// When it is not of the form `NAME<VALUE`.
    pub fn parse_ratio(text: &'a str) -> Result<Self, Failure> {
        let (name, operator, value) = Self::split(text)?;
        let bound = Unit::Ratio.parse(value).ok_or_else(|| {
            Failure::Usage(format!(
                "--expect {text}: {value:?} is not a ratio; write it as 1.1 or 110%"
            ))
        })?;
        Ok(Self {
            name,
            operator,
            bound,
        })
    }

    fn split(text: &'a str) -> Result<(&'a str, &'a str, &'a str), Failure> {
        let (start, operator) = ["<=", ">=", "<", ">", "="]
            .into_iter()
            .filter_map(|operator| Some((text.find(operator)?, operator)))
            .min_by_key(|(start, operator)| (*start, 2 - operator.len()))
            .filter(|(start, _)| !text[..*start].trim().is_empty())
            .ok_or_else(|| {
                Failure::Usage(format!(
                    "--expect {text}: write NAME<VALUE, NAME<=VALUE, NAME=VALUE, NAME>=VALUE or NAME>VALUE"
                ))
            })?;
        Ok((
            text[..start].trim(),
            operator,
            text[start + operator.len()..].trim(),
        ))
    }

    /// Whether `value` meets it. Equal is what agrees in nine digits.
    pub fn is_met(&self, value: f64) -> bool {
        match self.operator {
            "<=" => value <= self.bound,
            ">=" => value >= self.bound,
            "<" => value < self.bound,
            ">" => value > self.bound,
            _ => (value - self.bound).abs() <= 1e-9 * self.bound.abs().max(1e-3),
        }
    }
}

/// Checks the form of expectations before a run is spent on them.
///
/// # Errors
/// The first that is not readable.
pub fn check_expectations(expectations: &[String]) -> Result<(), Failure> {
    expectations
        .iter()
        .try_for_each(|text| Expectation::parse(text).map(|_| ()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn met(text: &str, value: f64) -> bool {
        Expectation::parse(text).unwrap().is_met(value)
    }

    #[test]
    fn both_sides_of_each_bound() {
        assert!(met("a<2", 1.9) && !met("a<2", 2.0));
        assert!(met("a<=2", 2.0) && !met("a<=2", 2.1));
        assert!(met("a = 2", 2.0) && !met("a = 2", 2.000_001));
        assert!(met("a>=2", 2.0) && !met("a>=2", 1.9));
        assert!(met("a > 2", 2.1) && !met("a > 2", 2.0));
    }

    #[test]
    fn units_are_turned_into_the_figures_own() {
        assert!(met("latency_p99_ms<50ms", 49.0) && !met("latency_p99_ms<50ms", 51.0));
        assert!(met("latency_p99_ms<0.05s", 49.0) && !met("latency_p99_ms<0.05s", 51.0));
        assert!(met("server_busiest_thread_share<90%", 0.89));
        assert!(!met("server_busiest_thread_share<90%", 0.91));
        assert!(met("server_rss_after_bytes<1MiB", 1_048_575.0));
        assert!(!met("server_rss_after_bytes<1MiB", 1_048_576.0));
        let ratio = Expectation::parse_ratio("latency_p99_ms<=110%").unwrap();
        assert!(ratio.is_met(1.1) && !ratio.is_met(1.11));
    }

    #[test]
    fn what_is_not_readable_is_said() {
        for wrong in [
            "lost",
            "lost=",
            "lost=x",
            "=1x",
            "=1",
            "latency_p99_ms<5KiB",
            "lost<5ms",
            "a<>1",
        ] {
            assert!(check_expectations(&[wrong.into()]).is_err(), "{wrong}");
        }
        assert!(Expectation::parse_ratio("latency_p99_ms<=5ms").is_err());
        let Err(Failure::Usage(text)) = Expectation::parse("latency_p99_ms<5KiB") else {
            panic!("bytes are no time")
        };
        assert!(text.contains("milliseconds"), "{text}");
    }
}
