//! Each connection alone in its room: what it publishes comes back to it, and the next message leaves.

use clap::Args;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::common::Common;
use super::stage::{Extent, Play, Stage};
use super::traffic;
use crate::client::{
    Behaviour, Cause, Message, Orders, Place, Posts, Reply, Share, Tally, Timetable, Traffic,
    Verdict, Window,
};
use crate::delivery::Deliveries;
use crate::dialect::{Dialect, Incoming};
use crate::failure::Failure;
use crate::histogram;
use crate::report::latency_histogram;
use crate::size::Size;
use crate::stamp::Stamp;

/// What `echo` is told.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
pub struct Arguments {
    #[command(flatten)]
    pub common: Common,
    /// Connections
    #[arg(
        long,
        value_name = "N",
        default_value_t = 500,
        help_heading = "Traffic"
    )]
    connections: u32,
    /// Messages in flight on each
    #[arg(long, value_name = "D", default_value_t = 1, help_heading = "Traffic")]
    in_flight: u32,
    /// Bytes of payload: 64, a range 64-4096, or sizes with weights 64:90,4096:10
    #[arg(long, value_name = "B", default_value = "64", help_heading = "Traffic")]
    size: Size,
    #[command(flatten)]
    window: traffic::Window,
}

/// One worker's connections.
pub struct Echo {
    dialect: Dialect,
    share: Share,
    in_flight: u32,
    size: Size,
    timetable: Option<Timetable>,
    started: bool,
    /// By member: the next sequence.
    sequences: Vec<u32>,
    /// By member: it is connected.
    open: Vec<bool>,
    deliveries: Deliveries,
    window: Window,
    interval: Histogram<u64>,
    published: u64,
    received: u64,
}

impl Echo {
    fn new(dialect: Dialect, in_flight: u32, size: Size, share: Share) -> Self {
        let count = share.count();
        Self {
            dialect,
            share,
            in_flight,
            size,
            timetable: None,
            started: false,
            sequences: vec![0; count as usize],
            open: vec![false; count as usize],
            deliveries: Deliveries::new(count, 1, false),
            window: Window::new(),
            interval: latency_histogram(),
            published: 0,
            received: 0,
        }
    }

    fn stamp(&mut self, local: u32, due_ns: u64) -> Stamp {
        let next = &mut self.sequences[local as usize];
        let sequence = *next;
        *next += 1;
        self.published += 1;
        Stamp {
            publisher: self.share.number(local),
            sequence,
            due_ns,
        }
    }

    fn came_back(&mut self, local: u32, payload: &[u8], now_ns: u64, reply: &mut Reply) {
        let number = self.share.number(local);
        let whole = |stamp: &Stamp| payload.len() == self.size.of(stamp.publisher, stamp.sequence);
        let Some(stamp) = Stamp::read(payload).filter(whole) else {
            return self.deliveries.corrupted();
        };
        if stamp.publisher != number {
            return self.deliveries.misrouted();
        }
        if !self.deliveries.delivered(local, 0, stamp.sequence) {
            return; // a second copy is no answer
        }
        self.received += 1;
        let Some(timetable) = self.timetable else {
            return;
        };
        let latency_ns = now_ns.saturating_sub(stamp.due_ns);
        self.window.delivered += u64::from(timetable.measures(now_ns));
        self.interval.saturating_record(latency_ns);
        if timetable.measures(stamp.due_ns) {
            self.window.latency.saturating_record(latency_ns);
        }
        if now_ns < timetable.measure_to_ns {
            let next = self.stamp(local, now_ns);
            let mask = reply.masks.next();
            let bytes = self.size.of(next.publisher, next.sequence);
            self.dialect
                .publish(&mut reply.bytes, mask, bytes, |out| next.write(out));
        }
    }
}

impl Behaviour for Echo {
    fn place(&self, local: u32) -> Place<'_> {
        let number = self.share.number(local);
        Place {
            prefix: "echo",
            room: number,
            target: number,
        }
    }

    fn opened(&mut self, local: u32, _now_ns: u64, _reply: &mut Reply) {
        self.open[local as usize] = true;
    }

    fn message(&mut self, local: u32, message: Message<'_>, now_ns: u64, reply: &mut Reply) {
        match self.dialect.read(message) {
            Incoming::Delivery(payload) => self.came_back(local, payload, now_ns, reply),
            Incoming::Gap { missed } => self.deliveries.told(missed),
            Incoming::Reconnect { .. } | Incoming::Other => {}
        }
    }

    fn obey(&mut self, orders: &Orders, _now_ns: u64) {
        self.timetable = orders.timetable;
    }

    fn turn(&mut self, now_ns: u64, posts: &mut Posts) -> Option<u64> {
        let timetable = self.timetable.filter(|_| !self.started)?;
        if now_ns < timetable.traffic_from_ns {
            return Some(timetable.traffic_from_ns);
        }
        self.started = true;
        for local in 0..self.sequences.len() as u32 {
            if !self.open[local as usize] {
                continue;
            }
            for _ in 0..self.in_flight {
                let stamp = self.stamp(local, now_ns);
                let bytes = self.size.of(stamp.publisher, stamp.sequence);
                posts.publish(self.dialect, local, bytes, |out| stamp.write(out));
            }
        }
        None
    }

    fn closed(&mut self, local: u32, _cause: Cause, _now_ns: u64) -> Verdict {
        self.open[local as usize] = false;
        Verdict::default()
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

    fn tally(mut self, _published: &[u32]) -> Tally {
        for (local, published) in self.sequences.iter().enumerate() {
            if self.open[local] {
                self.deliveries.close(local as u32, 0, *published);
            }
        }
        Tally {
            deliveries: self.deliveries.counts(),
            windows: vec![self.window],
            ..Tally::default()
        }
    }
}

impl Play for Arguments {
    type Behaviour = Echo;
    const NAME: &'static str = "echo";

    fn common(&self) -> &Common {
        &self.common
    }

    fn extent(&self) -> Result<Extent, Failure> {
        if !(1..=1024).contains(&self.in_flight) {
            return Err(Failure::Usage("--in-flight is 1 to 1024".into()));
        }
        self.window.times()?;
        Ok(Extent::new(self.connections))
    }

    fn behaviour(&self, share: Share) -> Echo {
        Echo::new(
            self.common.dialect,
            self.in_flight,
            self.size.clone(),
            share,
        )
    }

    fn direct(&self, stage: &mut Stage) -> Result<(), Failure> {
        let (warm_up, duration) = self.window.times()?;
        stage.open(self.connections);
        let (before, after) = stage.traffic(warm_up, duration)?;
        stage.settle(1);
        let (_, tally) = stage.finish()?;
        let seconds = stage.window_seconds();
        let report = &mut stage.report;
        tally.deliveries.report(report);
        let window = tally.window(0);
        if window.delivered == 0 {
            report.fault("nothing came back within the window");
        }
        report.figure("messages_per_s", window.delivered as f64 / seconds);
        report.latency("latency", &window.latency);
        stage.usage(&before, &after, "message", window.delivered);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use throng::protocol::OpCode;

    use super::*;

    #[test]
    fn an_echo_is_answered_with_the_next_message_until_the_window_ends() {
        let now = 1_000_000_000;
        let share = Share {
            worker: 1,
            worker_count: 2,
            member_count: 6,
        };
        let mut echo = Echo::new(Dialect::Raw, 2, "64".parse().unwrap(), share);
        for local in 0..3 {
            echo.opened(local, now, &mut Reply::default());
        }
        echo.obey(
            &Orders {
                timetable: Some(Timetable {
                    traffic_from_ns: now,
                    measure_from_ns: now,
                    measure_to_ns: now + 1_000_000,
                }),
                ..Orders::default()
            },
            now,
        );
        echo.turn(now, &mut Posts::default());
        assert_eq!(echo.traffic().published, 6);

        let stamp = |sequence| {
            let mut payload = vec![0; 64];
            Stamp {
                publisher: 3, // the second of worker 1
                sequence,
                due_ns: now,
            }
            .write(&mut payload);
            payload
        };
        let mut reply = Reply::default();
        let mut hear = |local, payload: &[u8], at_ns| {
            let message = Message {
                opcode: OpCode::Binary,
                payload,
            };
            echo.message(local, message, at_ns, &mut reply);
            std::mem::take(&mut reply.bytes).len()
        };
        assert_eq!(hear(1, &stamp(0), now + 5_000), 2 + 4 + 64);
        assert_eq!(hear(2, &stamp(0), now + 5_000), 0, "of another room");
        let mut corrupted = stamp(1);
        corrupted[30] ^= 1;
        assert_eq!(hear(1, &corrupted, now), 0);
        assert_eq!(hear(1, &stamp(1), now + 2_000_000), 0, "the window is over");
        assert_eq!(echo.window.latency.len(), 2);
        let counts = echo.tally(&[]).deliveries;
        assert_eq!(
            (counts.misrouted, counts.corrupted, counts.delivered),
            (1, 1, 2)
        );
        assert_eq!(counts.lost, 3 * 2 + 1 - 2, "what was in flight never came");
    }
}
