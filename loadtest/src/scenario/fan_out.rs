//! Publishers at a fixed rate to rooms of many members, in an open loop: a message's latency counts from the moment
//! it was due, so that a stalled server cannot hide behind a client that waits for it.

use std::time::Duration;

use clap::Args;
use hdrhistogram::Histogram;
use throng::protocol::OpCode;

use super::echo::window;
use super::{Common, GRACE, wait_for_upgrades};
use crate::client::{Behaviour, Crew, Ending, Message, Posts, Reply, Timetable};
use crate::delivery::{Counts, Deliveries, notice_missed};
use crate::failure::Failure;
use crate::report::{Report, latency_histogram};
use crate::stamp::{STAMP_BYTES_MIN, Stamp};

/// What `fanout` is told.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub traffic: Traffic,
    /// Rooms
    #[arg(long, value_name = "R", default_value_t = 1)]
    rooms: u32,
    /// Members of each room
    #[arg(long, value_name = "M", default_value_t = 100)]
    members: u32,
}

/// What is published, and for how long.
#[derive(Debug, Args)]
pub struct Traffic {
    /// Members of each room that publish, too; 0: the server publishes by itself (the bare loops do)
    #[arg(long, value_name = "P", default_value_t = 1)]
    pub publishers: u32,
    /// Messages a second of each publisher
    #[arg(long, value_name = "N", default_value_t = 20.0)]
    pub rate: f64,
    /// Bytes of payload
    #[arg(long, value_name = "B", default_value_t = 128)]
    pub bytes: u32,
    /// Seconds that are measured
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    pub duration: f64,
    /// Seconds of warm-up before
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    pub warm_up: f64,
}

impl Traffic {
    /// Refuses what cannot be published.
    pub fn check(&self, rooms: u32, members: u32) -> Result<(Duration, Duration), Failure> {
        let wrong = |what: &str| Err(Failure::Usage(what.into()));
        if !(STAMP_BYTES_MIN..=1 << 20).contains(&(self.bytes as usize)) {
            return wrong("--bytes is 16 to 1048576: the stamp needs the first 16");
        }
        if !(0.001..=1e6).contains(&self.rate) {
            return wrong("--rate is 0.001 to 1000000 messages a second of each publisher");
        }
        if rooms == 0 || members == 0 || u64::from(rooms) * u64::from(members) > 10_000_000 {
            return wrong("rooms times members is 1 to 10000000");
        }
        if self.publishers > members
            || u64::from(members) * u64::from(self.publishers) > 100_000_000
        {
            return wrong(
                "--publishers is at most the members of a room, and members times publishers at most 100000000",
            );
        }
        if self.publishers == 0 && rooms > 1 {
            return wrong("--publishers 0 listens to a server that publishes by itself: one room");
        }
        window(self.warm_up, self.duration)
    }
}

struct Publisher {
    local: u32,
    number: u32,
    sequence: u32,
    due_ns: u64,
}

/// What one window saw.
pub struct Window {
    timetable: Timetable,
    /// Of messages that were due within the window.
    pub latency: Histogram<u64>,
    /// Deliveries that came within the window.
    pub delivered: u64,
}

/// A worker's part of the rooms.
pub struct FanOut {
    /// By local number: the member's number over all workers and rooms.
    numbers: Vec<u32>,
    /// Members with this number or a higher one never read.
    stalled_from: u32,
    room_members: u32,
    room_publishers: u32,
    payload_bytes: usize,
    interval_ns: u64,
    publishers: Vec<Publisher>,
    due_ns: u64,
    gone: Vec<bool>,
    deliveries: Deliveries,
    /// The windows so far.
    pub windows: Vec<Window>,
    published: u64,
    received: u64,
}

impl FanOut {
    /// A worker with the members `numbers`, of rooms of `room_members` each.
    pub fn new(traffic: &Traffic, numbers: Vec<u32>, room_members: u32, stalled_from: u32) -> Self {
        let publishers = numbers
            .iter()
            .enumerate()
            .filter(|(_, number)| {
                **number < stalled_from && *number % room_members < traffic.publishers
            })
            .map(|(local, number)| Publisher {
                local: local as u32,
                number: number / room_members * traffic.publishers + number % room_members,
                sequence: 0,
                due_ns: u64::MAX,
            })
            .collect();
        let count = numbers.len();
        Self {
            stalled_from,
            room_members,
            room_publishers: traffic.publishers.max(1),
            payload_bytes: traffic.bytes as usize,
            interval_ns: (1e9 / traffic.rate) as u64,
            publishers,
            due_ns: u64::MAX,
            gone: vec![false; count],
            deliveries: Deliveries::new(
                count as u32,
                traffic.publishers.max(1),
                traffic.publishers == 0,
            ),
            windows: Vec::new(),
            published: 0,
            received: 0,
            numbers,
        }
    }

    fn room_index(&self, local: u32) -> u32 {
        let number = self.numbers[local as usize];
        if number >= self.stalled_from {
            0
        } else {
            number / self.room_members
        }
    }

    fn is_stalled(&self, local: u32) -> bool {
        self.numbers[local as usize] >= self.stalled_from
    }
}

impl Behaviour for FanOut {
    fn room(&self, local: u32) -> String {
        format!("fan-out-{}", self.room_index(local))
    }

    fn opened(&mut self, local: u32, reply: &mut Reply) {
        reply.stall = self.is_stalled(local);
    }

    fn message(&mut self, local: u32, message: Message<'_>, now_ns: u64, _reply: &mut Reply) {
        if self.is_stalled(local) {
            return;
        }
        if message.opcode == OpCode::Text {
            self.deliveries
                .told(notice_missed(message.payload).unwrap_or(0));
            return;
        }
        let Some(stamp) =
            Stamp::read(message.payload).filter(|_| message.payload.len() == self.payload_bytes)
        else {
            self.deliveries.corrupted();
            return;
        };
        let publisher = stamp
            .publisher
            .wrapping_sub(self.room_index(local) * self.room_publishers);
        if publisher >= self.room_publishers {
            self.deliveries.misrouted();
            return;
        }
        if !self.deliveries.delivered(local, publisher, stamp.sequence) {
            return;
        }
        self.received += 1;
        if let Some(window) = self.windows.last_mut() {
            window.delivered += u64::from(window.timetable.measures(now_ns));
            if window.timetable.measures(stamp.due_ns) {
                window
                    .latency
                    .saturating_record(now_ns.saturating_sub(stamp.due_ns));
            }
        }
    }

    fn schedule(&mut self, timetable: Timetable) {
        // Publishers are spread over the interval, so that rooms do not all speak at once.
        for publisher in &mut self.publishers {
            let offset = u64::from(publisher.number).wrapping_mul(0x9e37_79b9_7f4a_7c15)
                % self.interval_ns.max(1);
            publisher.due_ns = timetable.traffic_from_ns + offset;
        }
        self.due_ns = timetable.traffic_from_ns;
        self.windows.push(Window {
            timetable,
            latency: latency_histogram(),
            delivered: 0,
        });
    }

    fn turn(&mut self, now_ns: u64, posts: &mut Posts) -> Option<u64> {
        let until_ns = self.windows.last()?.timetable.measure_to_ns;
        if now_ns < self.due_ns {
            return (self.due_ns < until_ns).then_some(self.due_ns);
        }
        self.due_ns = u64::MAX;
        for publisher in &mut self.publishers {
            while publisher.due_ns <= now_ns && publisher.due_ns < until_ns {
                if self.gone[publisher.local as usize] {
                    publisher.due_ns = u64::MAX;
                    break;
                }
                let stamp = Stamp {
                    publisher: publisher.number,
                    sequence: publisher.sequence,
                    due_ns: publisher.due_ns,
                };
                posts.add(publisher.local, self.payload_bytes, |out| stamp.write(out));
                publisher.sequence += 1;
                publisher.due_ns += self.interval_ns;
                self.published += 1;
            }
            self.due_ns = self.due_ns.min(publisher.due_ns);
        }
        (self.due_ns < until_ns).then_some(self.due_ns)
    }

    fn closed_by_server(&mut self, local: u32) -> bool {
        self.gone[local as usize] = true;
        self.is_stalled(local)
    }

    fn progress(&self) -> (u64, u64) {
        (self.published, self.received)
    }
}

/// Waits until everybody has what was published, or nothing comes any more.
pub fn wait_for_deliveries(crew: &Crew<FanOut>, reader_count: u32, room_count: u32) {
    std::thread::sleep(Duration::from_millis(50)); // until every worker has seen the end and published its last
    let received = |crew: &Crew<FanOut>| crew.sum(|progress| &progress.received);
    let members = u64::from(reader_count / room_count);
    crew.wait(
        GRACE,
        |crew| received(crew) >= crew.sum(|progress| &progress.published) * members,
        received,
    );
}

/// Counts what never came, and sums all workers.
pub fn close(workers: &mut [FanOut], publisher_count: u32) -> Counts {
    let mut published = vec![0; publisher_count as usize];
    for publisher in workers.iter().flat_map(|worker| &worker.publishers) {
        published[publisher.number as usize] = publisher.sequence;
    }
    let mut counts = Counts::default();
    for worker in workers {
        for local in 0..worker.numbers.len() as u32 {
            if publisher_count == 0 || worker.gone[local as usize] || worker.is_stalled(local) {
                continue; // who was cut off is counted as a lost connection
            }
            let first = worker.room_index(local) * worker.room_publishers;
            for publisher in 0..worker.room_publishers {
                worker
                    .deliveries
                    .close(local, publisher, published[(first + publisher) as usize]);
            }
        }
        counts.merge(worker.deliveries.counts());
    }
    counts
}

/// Runs it.
pub fn run(arguments: &Arguments) -> Result<Report, Failure> {
    let (common, traffic) = (&arguments.common, &arguments.traffic);
    let (warm_up, duration) = traffic.check(arguments.rooms, arguments.members)?;
    let member_count = arguments.rooms * arguments.members;
    let (plan, shares) = common.prepare(member_count, u32::MAX, Ending::Stream)?;
    if arguments.rooms > 1 && !plan.target.has_rooms() {
        return Err(Failure::Usage(
            "--rooms over 1 needs a path with {room} in it".into(),
        ));
    }
    let mut report = Report::new("fanout");
    let mut number_first = 0;
    let behaviours = shares.iter().map(|share| {
        let numbers = (number_first..number_first + share).collect();
        number_first += share;
        (
            *share,
            FanOut::new(traffic, numbers, arguments.members, u32::MAX),
        )
    });
    let crew = common.start(&plan, behaviours.collect())?;
    crew.order(|orders, share| orders.open_until = share);
    wait_for_upgrades(&crew, u64::from(member_count), &mut report);

    let timetable = Timetable::starting_now(warm_up, duration);
    crew.order(|orders, _| orders.timetable = Some(timetable));
    crew.sleep_until(timetable.measure_from_ns);
    let before = common.meter()?;
    if !crew.sleep_until(timetable.measure_to_ns) {
        report.fault("the run was cut short");
    }
    let after = common.meter()?;
    if traffic.publishers > 0 {
        wait_for_deliveries(&crew, member_count, arguments.rooms);
    }
    let published = crew.sum(|progress| &progress.published);
    let (outcome, mut workers) = crew.finish()?;

    outcome.report(&mut report);
    report.count("published", published);
    close(&mut workers, arguments.rooms * traffic.publishers).report(&mut report);
    let (latency, delivered) = window_sum(&workers, 0);
    if delivered == 0 {
        report.fault("nothing was delivered within the window");
    }
    report.figure(
        "deliveries_per_s",
        delivered as f64 / duration.as_secs_f64(),
    );
    report.latency("latency", &latency);
    before.report(
        &after,
        "delivery",
        delivered,
        common.client_core_count(shares.len()),
        &mut report,
    );
    Ok(report)
}

/// Sums a window over all workers.
pub fn window_sum(workers: &[FanOut], index: usize) -> (Histogram<u64>, u64) {
    let mut latency = latency_histogram();
    let mut delivered = 0;
    for window in workers
        .iter()
        .filter_map(|worker| worker.windows.get(index))
    {
        latency
            .add(&window.latency)
            .expect("all have the same bounds");
        delivered += window.delivered;
    }
    (latency, delivered)
}
