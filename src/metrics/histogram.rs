//! A histogram with a bucket for each power of two: a leading-zeros count and an addition to record.

/// Counts of microseconds by power of two: bucket `i` counts values below `2^i` and not below `2^(i-1)`.
///
/// The last bucket takes everything from `2^30` µs (18 minutes) up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log2Histogram {
    buckets: [u64; Self::BUCKET_COUNT],
    sum_us: u64,
}

impl Default for Log2Histogram {
    fn default() -> Self {
        Self {
            buckets: [0; Self::BUCKET_COUNT],
            sum_us: 0,
        }
    }
}

impl Log2Histogram {
    /// Buckets, the open one included.
    pub const BUCKET_COUNT: usize = 32;

    /// Counts `count` values of `us` microseconds.
    #[allow(clippy::cast_possible_truncation)] // at most 64
    pub fn record(&mut self, us: u64, count: u64) {
        let bucket = ((u64::BITS - us.leading_zeros()) as usize).min(Self::BUCKET_COUNT - 1);
        self.buckets[bucket] += count;
        self.sum_us = self.sum_us.wrapping_add(us.wrapping_mul(count));
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine += theirs;
        }
        self.sum_us = self.sum_us.wrapping_add(other.sum_us);
    }

    /// What came since it was as `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut since = self.clone();
        for (mine, theirs) in since.buckets.iter_mut().zip(earlier.buckets) {
            *mine = mine.saturating_sub(theirs);
        }
        since.sum_us = since.sum_us.wrapping_sub(earlier.sum_us);
        since
    }

    /// Values counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Sum of the values, microseconds.
    #[must_use]
    pub const fn sum_us(&self) -> u64 {
        self.sum_us
    }

    /// Upper bound (exclusive, microseconds; `None` for the open bucket) and count of each bucket.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<u64>, u64)> + '_ {
        self.buckets.iter().enumerate().map(|(index, &count)| {
            (
                (index < Self::BUCKET_COUNT - 1).then(|| 1u64 << index),
                count,
            )
        })
    }

    /// An upper bound for the value below which `share` (0 to 1) of the values lie; zero when empty.
    #[must_use]
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )]
    pub fn quantile_us(&self, share: f64) -> u64 {
        let target = (self.count() as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= target && *count > 0 {
                return 1 << index;
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_lands_below_its_bound_and_not_below_half_of_it() {
        for us in [0, 1, 2, 3, 4, 1_000, 1 << 29, (1 << 30) - 1] {
            let mut histogram = Log2Histogram::default();
            histogram.record(us, 1);
            let (bound, _) = histogram.buckets().find(|(_, count)| *count == 1).unwrap();
            let bound = bound.unwrap();
            assert!(
                us < bound && us >= bound / 2,
                "{us} in the bucket below {bound}"
            );
        }
        let mut histogram = Log2Histogram::default();
        histogram.record(u64::MAX, 3);
        assert_eq!(histogram.buckets().last(), Some((None, 3)));
    }

    #[test]
    fn quantiles_are_upper_bounds() {
        let mut histogram = Log2Histogram::default();
        histogram.record(100, 99);
        histogram.record(5_000, 1);
        assert_eq!(histogram.quantile_us(0.5), 128);
        assert_eq!(histogram.quantile_us(0.999), 8_192);
        assert_eq!(Log2Histogram::default().quantile_us(0.5), 0);
    }
}
