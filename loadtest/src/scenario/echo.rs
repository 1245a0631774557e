//! Each connection alone in its room: what it publishes comes back to it, and the next message leaves.

use std::time::Duration;

use clap::Args;
use hdrhistogram::Histogram;
use throng::protocol::OpCode;

use super::{Common, GRACE, wait_for_upgrades};
use crate::client::{Behaviour, Ending, Message, Posts, Reply, Timetable, append_frame};
use crate::delivery::{Counts, Deliveries, notice_missed};
use crate::failure::Failure;
use crate::report::{Report, latency_histogram};
use crate::stamp::{STAMP_BYTES_MIN, Stamp};

/// What `echo` is told.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    pub common: Common,
    /// Connections
    #[arg(long, value_name = "N", default_value_t = 500)]
    connections: u32,
    /// Messages in flight on each
    #[arg(long, value_name = "D", default_value_t = 1)]
    in_flight: u32,
    /// Bytes of payload
    #[arg(long, value_name = "B", default_value_t = 64)]
    bytes: u32,
    /// Seconds that are measured
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    duration: f64,
    /// Seconds of warm-up before
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    warm_up: f64,
}

struct Echo {
    member_first: u32,
    in_flight: u32,
    payload_bytes: usize,
    timetable: Option<Timetable>,
    started: bool,
    /// By member: the next sequence.
    sequences: Vec<u32>,
    deliveries: Deliveries,
    gone: Vec<u32>,
    latency: Histogram<u64>,
    window_count: u64,
    published: u64,
    received: u64,
}

impl Echo {
    fn stamp(&mut self, local: u32, due_ns: u64) -> Stamp {
        let next = &mut self.sequences[local as usize];
        let sequence = *next;
        *next += 1;
        self.published += 1;
        Stamp {
            publisher: self.member_first + local,
            sequence,
            due_ns,
        }
    }

    /// Counts what never came back.
    fn close(mut self) -> Self {
        for (local, published) in self.sequences.iter().enumerate() {
            if !self.gone.contains(&(local as u32)) {
                self.deliveries.close(local as u32, 0, *published);
            }
        }
        self
    }
}

impl Behaviour for Echo {
    fn room(&self, local: u32) -> String {
        format!("echo-{}", self.member_first + local)
    }

    fn opened(&mut self, _local: u32, _reply: &mut Reply) {}

    fn message(&mut self, local: u32, message: Message<'_>, now_ns: u64, reply: &mut Reply) {
        if message.opcode == OpCode::Text {
            self.deliveries
                .told(notice_missed(message.payload).unwrap_or(0));
            return;
        }
        match Stamp::read(message.payload).filter(|_| message.payload.len() == self.payload_bytes) {
            None => self.deliveries.corrupted(),
            Some(stamp) if stamp.publisher != self.member_first + local => {
                self.deliveries.misrouted()
            }
            Some(stamp) => {
                self.received += u64::from(self.deliveries.delivered(local, 0, stamp.sequence));
                let Some(timetable) = self.timetable else {
                    return;
                };
                self.window_count += u64::from(timetable.measures(now_ns));
                if timetable.measures(stamp.due_ns) {
                    self.latency
                        .saturating_record(now_ns.saturating_sub(stamp.due_ns));
                }
                if now_ns < timetable.measure_to_ns {
                    let next = self.stamp(local, now_ns);
                    let mask = reply.masks.next();
                    append_frame(
                        &mut reply.bytes,
                        OpCode::Binary,
                        mask,
                        self.payload_bytes,
                        |out| next.write(out),
                    );
                }
            }
        }
    }

    fn schedule(&mut self, timetable: Timetable) {
        self.timetable = Some(timetable);
    }

    fn turn(&mut self, now_ns: u64, posts: &mut Posts) -> Option<u64> {
        let timetable = self.timetable.filter(|_| !self.started)?;
        if now_ns < timetable.traffic_from_ns {
            return Some(timetable.traffic_from_ns);
        }
        self.started = true;
        for local in 0..self.sequences.len() as u32 {
            for _ in 0..self.in_flight {
                let stamp = self.stamp(local, now_ns);
                posts.add(local, self.payload_bytes, |out| stamp.write(out));
            }
        }
        None
    }

    fn closed_by_server(&mut self, local: u32) -> bool {
        self.gone.push(local);
        false
    }

    fn progress(&self) -> (u64, u64) {
        (self.published, self.received)
    }
}

/// Runs it.
pub fn run(arguments: &Arguments) -> Result<Report, Failure> {
    let common = &arguments.common;
    let payload_bytes = arguments.bytes as usize;
    if !(STAMP_BYTES_MIN..=1 << 20).contains(&payload_bytes) {
        return Err(Failure::Usage(format!(
            "--bytes is {STAMP_BYTES_MIN} to 1048576: the stamp needs the first"
        )));
    }
    if !(1..=1024).contains(&arguments.in_flight) {
        return Err(Failure::Usage("--in-flight is 1 to 1024".into()));
    }
    let (warm_up, duration) = window(arguments.warm_up, arguments.duration)?;
    let (plan, shares) = common.prepare(arguments.connections, u32::MAX, Ending::Stream)?;
    let mut report = Report::new("echo");
    let mut member_first = 0;
    let behaviours = shares.iter().map(|share| {
        let behaviour = Echo {
            member_first,
            in_flight: arguments.in_flight,
            payload_bytes,
            timetable: None,
            started: false,
            sequences: vec![0; *share as usize],
            deliveries: Deliveries::new(*share, 1, false),
            gone: Vec::new(),
            latency: latency_histogram(),
            window_count: 0,
            published: 0,
            received: 0,
        };
        member_first += share;
        (*share, behaviour)
    });
    let crew = common.start(&plan, behaviours.collect())?;
    crew.order(|orders, share| orders.open_until = share);
    wait_for_upgrades(&crew, u64::from(arguments.connections), &mut report);

    let timetable = Timetable::starting_now(warm_up, duration);
    crew.order(|orders, _| orders.timetable = Some(timetable));
    crew.sleep_until(timetable.measure_from_ns);
    let before = common.meter()?;
    if !crew.sleep_until(timetable.measure_to_ns) {
        report.fault("the run was cut short");
    }
    let after = common.meter()?;
    std::thread::sleep(Duration::from_millis(50)); // until every worker has seen the end and published its last
    let received = |crew: &crate::client::Crew<Echo>| crew.sum(|progress| &progress.received);
    crew.wait(
        GRACE,
        |crew| received(crew) >= crew.sum(|progress| &progress.published),
        received,
    );
    let (outcome, behaviours) = crew.finish()?;

    outcome.report(&mut report);
    let mut counts = Counts::default();
    let mut latency = latency_histogram();
    let mut window_count = 0;
    for echo in behaviours.into_iter().map(Echo::close) {
        counts.merge(echo.deliveries.counts());
        latency
            .add(&echo.latency)
            .expect("all have the same bounds");
        window_count += echo.window_count;
    }
    counts.report(&mut report);
    if window_count == 0 {
        report.fault("nothing came back within the window");
    }
    report.figure(
        "messages_per_s",
        window_count as f64 / duration.as_secs_f64(),
    );
    report.latency("latency", &latency);
    before.report(
        &after,
        "message",
        window_count,
        common.client_core_count(shares.len()),
        &mut report,
    );
    Ok(report)
}

/// Checks and converts a warm-up and a duration given in seconds.
pub fn window(warm_up: f64, duration: f64) -> Result<(Duration, Duration), Failure> {
    if !(0.0..=86_400.0).contains(&warm_up) || !(0.01..=86_400.0).contains(&duration) {
        return Err(Failure::Usage(
            "--warm-up is 0 to 86400 seconds, --duration 0.01 to 86400".into(),
        ));
    }
    Ok((
        Duration::from_secs_f64(warm_up),
        Duration::from_secs_f64(duration),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::now_ns;

    #[test]
    fn an_echo_is_answered_with_the_next_message_until_the_window_ends() {
        let now = now_ns();
        let mut echo = Echo {
            member_first: 10,
            in_flight: 2,
            payload_bytes: 64,
            timetable: None,
            started: false,
            sequences: vec![0; 3],
            deliveries: Deliveries::new(3, 1, false),
            gone: Vec::new(),
            latency: latency_histogram(),
            window_count: 0,
            published: 0,
            received: 0,
        };
        echo.schedule(Timetable {
            traffic_from_ns: now,
            measure_from_ns: now,
            measure_to_ns: now + 1_000_000,
        });
        echo.turn(now, &mut Posts::default());
        assert_eq!(echo.progress(), (6, 0));

        let mut payload = vec![0; 64];
        Stamp {
            publisher: 11,
            sequence: 0,
            due_ns: now,
        }
        .write(&mut payload);
        let mut reply = Reply::default();
        let message = Message {
            opcode: OpCode::Binary,
            payload: &payload,
        };
        echo.message(1, message, now + 5_000, &mut reply);
        assert_eq!(reply.bytes.len(), 2 + 4 + 64);
        assert_eq!(echo.latency.len(), 1);
        reply.bytes.clear();

        echo.message(2, message, now + 5_000, &mut reply);
        payload[30] ^= 1;
        echo.message(
            1,
            Message {
                opcode: OpCode::Binary,
                payload: &payload,
            },
            now,
            &mut reply,
        );
        assert!(reply.bytes.is_empty());

        Stamp {
            publisher: 11,
            sequence: 1,
            due_ns: now,
        }
        .write(&mut payload);
        echo.message(
            1,
            Message {
                opcode: OpCode::Binary,
                payload: &payload,
            },
            now + 2_000_000,
            &mut reply,
        );
        assert!(reply.bytes.is_empty(), "the window is over");
        let counts = echo.close().deliveries.counts();
        assert_eq!(
            (counts.misrouted, counts.corrupted, counts.delivered),
            (1, 1, 2)
        );
        assert_eq!(counts.lost, 3 * 2 + 1 - 2, "what was in flight never came");
    }
}
