//! Token buckets: how many messages and bytes a second one connection may send.

use crate::time::Tick;

/// What one connection has left. Made at its first message, and only where a limit is set.
#[derive(Debug)]
pub(super) struct RateState {
    messages: TokenBucket,
    bytes: TokenBucket,
}

impl RateState {
    /// Bytes of memory it takes.
    #[allow(clippy::cast_possible_truncation)] // a few dozen
    pub(super) const BYTES: u32 = size_of::<Self>() as u32;

    pub(super) fn new(
        messages_per_s: u32,
        bytes_per_s: u32,
        message_bytes_max: u32,
        now: Tick,
    ) -> Self {
        Self {
            messages: TokenBucket::new(messages_per_s, messages_per_s, now),
            bytes: TokenBucket::new(bytes_per_s, bytes_per_s.max(message_bytes_max), now),
        }
    }

    /// Takes one message of `bytes` out. False: it is too much.
    pub(super) fn take(&mut self, bytes: u32, now: Tick) -> bool {
        self.messages.take(1, now) && self.bytes.take(bytes, now)
    }
}

/// Tokens that come back at a steady rate up to a burst.
#[derive(Debug, Clone)]
pub(super) struct TokenBucket {
    /// Tokens × 10^6, so that a microsecond's worth is a whole number.
    micro_tokens: u64,
    rate_per_s: u32,
    burst: u32,
    filled: Tick,
}

impl TokenBucket {
    /// A full bucket. A rate of 0 never refuses.
    pub(super) fn new(rate_per_s: u32, burst: u32, now: Tick) -> Self {
        Self {
            micro_tokens: u64::from(burst) * 1_000_000,
            rate_per_s,
            burst,
            filled: now,
        }
    }

    /// Takes `count` tokens, or none.
    pub(super) fn take(&mut self, count: u32, now: Tick) -> bool {
        if self.rate_per_s == 0 {
            return true;
        }
        let gained = now
            .since(self.filled)
            .saturating_mul(u64::from(self.rate_per_s));
        self.micro_tokens = self
            .micro_tokens
            .saturating_add(gained)
            .min(u64::from(self.burst) * 1_000_000);
        self.filled = now;
        let price = u64::from(count) * 1_000_000;
        if price > self.micro_tokens {
            return false;
        }
        self.micro_tokens -= price;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = TokenBucket::new(10, 10, Tick(0));
        for _ in 0..10 {
            assert!(bucket.take(1, Tick(0)));
        }
        assert!(!bucket.take(1, Tick::from_ms(99)));
        assert!(bucket.take(1, Tick::from_ms(100)));
        assert!(!bucket.take(1, Tick::from_ms(101)));
        assert!(
            bucket.take(10, Tick::from_ms(10_000)),
            "never more than the burst, but all of it"
        );
        assert!(!bucket.take(1, Tick::from_ms(10_000)));
    }

    #[test]
    fn a_rate_of_zero_never_refuses() {
        assert!(TokenBucket::new(0, 0, Tick(0)).take(u32::MAX, Tick(0)));
    }

    #[test]
    fn a_byte_limit_below_the_message_limit_still_lets_one_message_pass() {
        let mut state = RateState::new(0, 100, 1_000, Tick(0));
        assert!(state.take(1_000, Tick(0)));
        assert!(!state.take(1, Tick(0)));
    }
}
