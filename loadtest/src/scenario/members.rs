//! The members of rooms: who publishes, who reads, who reads slowly or never, who comes and goes; and what each should
//! have received.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;

use hdrhistogram::Histogram;

use super::cast::{Cast, Kind};
use crate::client::{
    Behaviour, Cause, Message, Orders, Place, Posts, Reply, Share, Tally, Traffic, Verdict, Window,
};
use crate::delivery::Deliveries;
use crate::dialect::Incoming;
use crate::histogram;
use crate::order::RoomOrders;
use crate::random::{Random, mix};
use crate::report::latency_histogram;
use crate::stamp::Stamp;

struct Publisher {
    local: u32,
    /// Over all rooms.
    number: u32,
    sequence: u32,
    due_ns: u64,
}

/// A reader that is not connected.
struct Away {
    since_ns: u64,
    attempt: u32,
}

/// The longest that a client waits for, if a server advises it to.
const ADVICE_MS_MAX: u64 = 3_600_000;
/// After a return, a message that is due may take so long before its absence counts as silence.
const SILENCE_NS: u64 = 1_000_000_000;
const OPEN: u8 = 1;
const WAS_OPEN: u8 = 2;
/// How long a slow member that was cut off stays away, if it comes back.
const SLOW_AWAY_NS: u64 = 1_000_000_000;

/// One worker's members.
pub struct Members {
    cast: Arc<Cast>,
    share: Share,
    /// By member: [`OPEN`], [`WAS_OPEN`].
    flags: Vec<u8>,
    publishers: Vec<Publisher>,
    /// When the next of them is due.
    due_ns: u64,
    deliveries: Deliveries,
    orders: Orders,
    bursts: u32,
    /// Messages due from then on were asked for one by one.
    burst_from_ns: u64,
    expect_close_from_ns: u64,
    away: HashMap<u32, Away>,
    advice_ns: HashMap<u32, u64>,
    /// When readers came back that had been away while others published.
    returned_ns: HashMap<u32, u64>,
    /// How many targets further a reader has gone.
    moved: HashMap<u32, u32>,
    /// When the churning members leave.
    leaving: BinaryHeap<Reverse<(u64, u32)>>,
    random: Random,
    windows: Vec<Window>,
    interval: Histogram<u64>,
    broadcast: Histogram<u64>,
    back: Histogram<u64>,
    close_after: Histogram<u64>,
    counts: BTreeMap<&'static str, u64>,
    back_on: BTreeMap<u32, u64>,
    published: u64,
    received: u64,
}

impl Members {
    /// The members of `share`.
    pub fn new(cast: &Arc<Cast>, share: Share) -> Self {
        let mut publishers = Vec::new();
        for local in 0..share.count() {
            let number = share.number(local);
            if cast.kind(number) == Kind::Reader
                && let Some(index) = cast.publisher_index(number)
            {
                publishers.push(Publisher {
                    local,
                    number: cast.room(number) * cast.publishers + index,
                    sequence: 0,
                    due_ns: u64::MAX,
                });
            }
        }
        let reader_count = share.count_below(cast.readers().min(share.member_count));
        Self {
            flags: vec![0; share.count() as usize],
            publishers,
            due_ns: u64::MAX,
            deliveries: Deliveries::new(reader_count, cast.heard(), cast.publishers == 0),
            orders: Orders::default(),
            bursts: 0,
            burst_from_ns: u64::MAX,
            expect_close_from_ns: u64::MAX,
            away: HashMap::new(),
            advice_ns: HashMap::new(),
            returned_ns: HashMap::new(),
            moved: HashMap::new(),
            leaving: BinaryHeap::new(),
            random: Random::new(mix(cast.seed ^ u64::from(share.worker))),
            windows: Vec::new(),
            interval: latency_histogram(),
            broadcast: latency_histogram(),
            back: latency_histogram(),
            close_after: latency_histogram(),
            counts: BTreeMap::new(),
            back_on: BTreeMap::new(),
            published: 0,
            received: 0,
            share,
            cast: Arc::clone(cast),
        }
    }

    fn kind(&self, local: u32) -> Kind {
        self.cast.kind(self.share.number(local))
    }

    fn is_open(&self, local: u32) -> bool {
        self.flags[local as usize] & OPEN != 0
    }

    fn count(&mut self, name: &'static str, count: u64) {
        *self.counts.entry(name).or_default() += count;
    }

    /// Whether publishers are publishing.
    fn has_traffic(&self, now_ns: u64) -> bool {
        self.orders.timetable.is_some_and(|timetable| {
            (timetable.traffic_from_ns..timetable.measure_to_ns).contains(&now_ns)
        })
    }

    /// Whether anything may have been published from `since_ns` to now.
    fn was_published_since(&self, since_ns: u64, now_ns: u64) -> bool {
        let by_timetable = self.orders.timetable.is_some_and(|timetable| {
            since_ns < timetable.measure_to_ns && timetable.traffic_from_ns < now_ns
        });
        by_timetable || self.orders.bursts.0 > 0 && since_ns < self.orders.bursts.1
    }

    /// Whether a publisher that kept to the timetable published after `moment_ns`.
    fn is_published_after(&self, moment_ns: u64) -> bool {
        let interval_ns = self.cast.interval_ns.saturating_mul(2);
        self.orders.timetable.is_some_and(|timetable| {
            moment_ns
                .saturating_add(interval_ns)
                .saturating_add(SILENCE_NS)
                < timetable.measure_to_ns
        })
    }

    /// The target that a reader connects to next.
    fn target(&self, local: u32) -> u32 {
        let moved = self.moved.get(&local).copied().unwrap_or(0);
        (self.cast.target(self.share.number(local)) + moved) % self.cast.targets
    }

    fn delivered(&mut self, local: u32, payload: &[u8], now_ns: u64, reply: &mut Reply) {
        let kind = self.kind(local);
        let stamp = Stamp::read(payload).filter(|stamp| {
            self.cast.publishers == 0
                || payload.len() == self.cast.size.of(stamp.publisher, stamp.sequence)
        });
        let Some(stamp) = stamp else {
            self.deliveries.corrupted();
            return;
        };
        if kind != Kind::Reader {
            self.count("received_by_others", 1);
            if kind == Kind::Crawling {
                let ns = payload.len() as u64 * 1_000_000_000 / self.cast.crawl_bytes_per_s.max(1);
                reply.pause_until_ns = Some(reply.pause_until_ns.unwrap_or(now_ns) + ns);
            }
            return;
        }
        let room = self.cast.room(self.share.number(local));
        let heard = self.cast.heard();
        let publisher = stamp.publisher.wrapping_sub(room * heard);
        if publisher >= heard {
            self.deliveries.misrouted();
            return;
        }
        if !self.deliveries.delivered(local, publisher, stamp.sequence) {
            return;
        }
        self.received += 1;
        let latency_ns = now_ns.saturating_sub(stamp.due_ns);
        if stamp.due_ns >= self.burst_from_ns {
            self.broadcast.saturating_record(latency_ns);
        }
        self.interval.saturating_record(latency_ns);
        if let Some(window) = self.windows.last_mut()
            && let Some(timetable) = self.orders.timetable
        {
            window.delivered += u64::from(timetable.measures(now_ns));
            if timetable.measures(stamp.due_ns) {
                window.latency.saturating_record(latency_ns);
            }
        }
        if self.cast.in_flight.is_some() {
            self.publish_again(local, stamp.publisher, now_ns, reply);
        }
    }

    /// Closed loop: a publisher has its own message back.
    fn publish_again(&mut self, local: u32, publisher: u32, now_ns: u64, reply: &mut Reply) {
        let Ok(index) = self
            .publishers
            .binary_search_by_key(&local, |found| found.local)
        else {
            return;
        };
        if self.publishers[index].number != publisher || !self.has_traffic(now_ns) {
            return;
        }
        let stamp = self.stamp(index, now_ns);
        let bytes = self.cast.size.of(stamp.publisher, stamp.sequence);
        let mask = reply.masks.next();
        self.cast
            .dialect
            .publish(&mut reply.bytes, mask, bytes, |out| stamp.write(out));
    }

    /// The stamp of a publisher's next message.
    fn stamp(&mut self, index: usize, due_ns: u64) -> Stamp {
        let publisher = &mut self.publishers[index];
        let sequence = publisher.sequence;
        publisher.sequence += 1;
        self.published += 1;
        Stamp {
            publisher: publisher.number,
            sequence,
            due_ns,
        }
    }

    fn post(&mut self, index: usize, due_ns: u64, posts: &mut Posts) {
        let local = self.publishers[index].local;
        if !self.is_open(local) {
            self.count("unpublished", 1);
            return;
        }
        let stamp = self.stamp(index, due_ns);
        let bytes = self.cast.size.of(stamp.publisher, stamp.sequence);
        posts.publish(self.cast.dialect, local, bytes, |out| stamp.write(out));
    }

    /// Publishes what is due by the timetable.
    fn publish(&mut self, now_ns: u64, posts: &mut Posts) -> Option<u64> {
        let until_ns = self.orders.timetable?.measure_to_ns;
        if now_ns >= self.due_ns {
            self.due_ns = u64::MAX;
            for index in 0..self.publishers.len() {
                while self.publishers[index].due_ns <= now_ns
                    && self.publishers[index].due_ns < until_ns
                {
                    let due_ns = self.publishers[index].due_ns;
                    match self.cast.in_flight {
                        None => {
                            self.post(index, due_ns, posts);
                            self.publishers[index].due_ns += self.cast.interval_ns;
                        }
                        Some(in_flight) => {
                            for _ in 0..in_flight {
                                self.post(index, now_ns, posts);
                            }
                            self.publishers[index].due_ns = u64::MAX;
                        }
                    }
                }
                self.due_ns = self.due_ns.min(self.publishers[index].due_ns);
            }
        }
        (self.due_ns < until_ns).then_some(self.due_ns)
    }

    /// Publishes what was asked for one by one.
    fn publish_bursts(&mut self, posts: &mut Posts) {
        let (count, due_ns) = self.orders.bursts;
        for _ in self.bursts..count {
            for index in 0..self.publishers.len() {
                if self.publishers[index]
                    .number
                    .is_multiple_of(self.cast.heard())
                {
                    self.post(index, due_ns, posts);
                }
            }
        }
        self.bursts = count;
    }

    /// When a reader that was dropped, closed, refused or not connected comes back.
    fn come_back(&mut self, local: u32, now_ns: u64) -> Option<u64> {
        let back = self.cast.back?;
        let advice_ns = self.advice_ns.remove(&local).filter(|_| back.advice);
        let away = self.away.entry(local).or_insert(Away {
            since_ns: now_ns,
            attempt: 0,
        });
        let delay_ns = advice_ns.unwrap_or_else(|| back.delay_ns(away.attempt, &mut self.random));
        away.attempt += 1;
        if back.next_target {
            *self.moved.entry(local).or_default() += 1;
        }
        Some(now_ns + delay_ns)
    }
}

impl Behaviour for Members {
    fn place(&self, local: u32) -> Place<'_> {
        Place {
            prefix: self.cast.prefix,
            room: self.cast.room(self.share.number(local)),
            target: self.target(local),
        }
    }

    fn opened(&mut self, local: u32, now_ns: u64, reply: &mut Reply) {
        let flags = &mut self.flags[local as usize];
        let was_open = *flags & WAS_OPEN != 0;
        *flags |= OPEN | WAS_OPEN;
        match self.kind(local) {
            Kind::Stalled => reply.pause_until_ns = Some(u64::MAX),
            Kind::Churning => {
                let stay_ns = self.cast.churn_ns / 2 + self.random.below(self.cast.churn_ns);
                self.leaving.push(Reverse((now_ns + stay_ns, local)));
            }
            Kind::Crawling => {}
            Kind::Reader => {
                if let Some(away) = self.away.remove(&local) {
                    if was_open && self.was_published_since(away.since_ns, now_ns) {
                        self.deliveries.forget(local);
                        self.returned_ns.insert(local, now_ns);
                    }
                    self.back
                        .saturating_record(now_ns.saturating_sub(away.since_ns));
                    let target = self.target(local);
                    *self.back_on.entry(target).or_default() += 1;
                }
            }
        }
    }

    fn message(&mut self, local: u32, message: Message<'_>, now_ns: u64, reply: &mut Reply) {
        match self.cast.dialect.read(message) {
            Incoming::Delivery(payload) => self.delivered(local, payload, now_ns, reply),
            Incoming::Gap { missed } => {
                if self.kind(local) == Kind::Reader {
                    self.deliveries.told(missed);
                } else {
                    self.count("gaps_told_to_others", missed);
                }
            }
            Incoming::Reconnect { after_ms } => {
                self.count("advised_to_reconnect", 1);
                let after_ns = after_ms.min(ADVICE_MS_MAX) * 1_000_000;
                self.advice_ns.insert(local, after_ns);
            }
            Incoming::Other => self.count("notices_ignored", 1),
        }
    }

    fn obey(&mut self, orders: &Orders, now_ns: u64) {
        // Traffic that has begun may be told to end sooner.
        let began = self.orders.timetable.map(|mine| mine.traffic_from_ns);
        if let Some(timetable) = orders.timetable
            && began != Some(timetable.traffic_from_ns)
        {
            // Publishers are spread over the interval, so that rooms do not all speak at once.
            for publisher in &mut self.publishers {
                let offset = u64::from(publisher.number).wrapping_mul(0x9e37_79b9_7f4a_7c15)
                    % self.cast.interval_ns.max(1);
                publisher.due_ns = timetable.traffic_from_ns + offset;
            }
            self.due_ns = timetable.traffic_from_ns;
            self.windows.push(Window::new());
        }
        if orders.bursts.0 > 0 && self.burst_from_ns == u64::MAX {
            self.burst_from_ns = orders.bursts.1;
        }
        if orders.expect_close && !self.orders.expect_close {
            self.expect_close_from_ns = now_ns;
        }
        self.orders = orders.clone();
    }

    fn turn(&mut self, now_ns: u64, posts: &mut Posts) -> Option<u64> {
        let (bursts, burst_due_ns) = self.orders.bursts;
        let mut burst = (bursts > self.bursts).then_some(burst_due_ns);
        if burst.take_if(|due_ns| *due_ns <= now_ns).is_some() {
            self.publish_bursts(posts);
        }
        while let Some(Reverse((due_ns, local))) = self.leaving.peek().copied() {
            if due_ns > now_ns {
                break;
            }
            self.leaving.pop();
            posts.leave(local);
        }
        let leaving = self.leaving.peek().map(|Reverse((due_ns, _))| *due_ns);
        let publish = self.publish(now_ns, posts);
        [burst, leaving, publish].into_iter().flatten().min()
    }

    fn closed(&mut self, local: u32, cause: Cause, now_ns: u64) -> Verdict {
        let was_member = self.is_open(local);
        self.flags[local as usize] &= !OPEN;
        let kind = self.kind(local);
        if let Cause::Closed(_) = cause
            && self.orders.expect_close
        {
            self.close_after
                .saturating_record(now_ns.saturating_sub(self.expect_close_from_ns));
        }
        match kind {
            Kind::Stalled | Kind::Crawling => {
                let came_before = self.flags[local as usize] & WAS_OPEN != 0;
                Verdict {
                    expected: was_member,
                    again_at_ns: (self.cast.slow_come_back && came_before)
                        .then_some(now_ns + SLOW_AWAY_NS),
                }
            }
            Kind::Churning => {
                let away_ns = match cause {
                    Cause::Left => self.cast.churn_ns / 2 + self.random.below(self.cast.churn_ns),
                    _ => 1_000_000_000,
                };
                let came_before = self.flags[local as usize] & WAS_OPEN != 0;
                self.count("churned", u64::from(cause == Cause::Left));
                Verdict {
                    expected: cause == Cause::Left,
                    again_at_ns: came_before.then_some(now_ns + away_ns),
                }
            }
            Kind::Reader => {
                let part_of_it = was_member || self.away.contains_key(&local);
                Verdict {
                    expected: cause == Cause::Dropped || self.orders.expect_close,
                    again_at_ns: part_of_it.then(|| self.come_back(local, now_ns)).flatten(),
                }
            }
        }
    }

    fn traffic(&self) -> Traffic {
        Traffic {
            published: self.published,
            received: self.received,
            faults: self.deliveries.counts().faults(),
        }
    }

    fn take_interval(&mut self) -> Option<Histogram<u64>> {
        histogram::take(&mut self.interval)
    }

    fn published(&self) -> Vec<(u32, u32)> {
        let publishers = self.publishers.iter();
        publishers
            .map(|publisher| (publisher.number, publisher.sequence))
            .collect()
    }

    fn tally(mut self, published: &[u32]) -> Tally {
        // The last rooms may be smaller: not every place has a member.
        let readers = self.cast.readers().min(self.share.member_count);
        let reader_count = self.share.count_below(readers);
        let mut orders = RoomOrders::default();
        for local in 0..reader_count {
            if self.cast.publishers == 0 || !self.is_open(local) {
                continue; // who was cut off is counted as a lost connection
            }
            let heard = self.cast.heard();
            let first = self.cast.room(self.share.number(local)) * heard;
            for index in 0..heard {
                let count = published.get((first + index) as usize).copied();
                let count = count.unwrap_or(0);
                self.deliveries.close(local, index, count);
                let returned_ns = self.returned_ns.get(&local);
                if count > 0
                    && returned_ns.is_some_and(|at_ns| self.is_published_after(*at_ns))
                    && self.deliveries.is_silent(local, index)
                {
                    self.deliveries.silent();
                }
            }
            if let Some(sum) = self.deliveries.order(local) {
                orders.add(first / heard, sum);
            }
        }
        let mut tally = Tally {
            deliveries: self.deliveries.counts(),
            orders,
            windows: self.windows,
            ..Tally::default()
        };
        for (name, count) in self.counts {
            tally.counts.insert(name.to_owned(), count);
        }
        for (target, count) in self.back_on {
            tally
                .counts
                .insert(format!("back_on_target_{target}"), count);
        }
        for (name, times) in [
            ("broadcast", self.broadcast),
            ("back", self.back),
            ("close_after", self.close_after),
        ] {
            if !times.is_empty() {
                tally.times.insert(name.to_owned(), times);
            }
        }
        tally
    }
}

/// The sum of the histograms of a time by name; an empty one when nobody recorded it.
pub fn times(tally: &Tally, name: &str) -> Histogram<u64> {
    let mut sum = latency_histogram();
    if let Some(found) = tally.times.get(name) {
        histogram::add(&mut sum, found);
    }
    sum
}

#[cfg(test)]
mod tests;
