//! What is published, and for how long.

use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::cast::Cast;
use super::common::Common;
use crate::failure::Failure;
use crate::report::Unit;
use crate::size::Size;

/// Messages a second that one generator may be asked for: beyond, no machine gives them.
const RATE_MAX: f64 = 1e7;

/// Which publishers are connected where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub enum PublishOn {
    /// Publishers are spread over all targets
    All,
    /// All publishers are connected to the first target
    First,
}

/// What is published, and for how long.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
pub struct Traffic {
    /// Members of each room that publish, too; 0: the server publishes by itself (the bare loops do)
    #[arg(long, value_name = "P", default_value_t = 1, help_heading = "Traffic")]
    pub publishers: u32,
    /// With several targets: where the publishers are connected
    #[arg(long, value_enum, default_value = "all", help_heading = "Traffic")]
    pub publish_on: PublishOn,
    /// Messages a second of each publisher
    #[arg(
        long,
        value_name = "N",
        default_value_t = 20.0,
        help_heading = "Traffic"
    )]
    pub rate: f64,
    /// Bytes of payload: 128, a range 64-4096, or sizes with weights 128:90,4096:10
    #[arg(
        long,
        value_name = "B",
        default_value = "128",
        help_heading = "Traffic"
    )]
    pub size: Size,
    #[command(flatten)]
    pub window: Window,
}

/// Seconds, or a time with its unit: `90`, `90s`, `15m`, `4h`.
pub fn seconds(text: &str) -> Result<f64, String> {
    let minutes = text.strip_suffix('m').map(str::parse::<f64>);
    minutes
        .and_then(|minutes| Some(minutes.ok()? * 60.0))
        .or_else(|| Unit::Time(1_000_000_000).parse(text))
        .filter(|seconds| seconds.is_finite())
        .ok_or_else(|| "seconds are expected, or a time such as 90s, 15m or 4h".into())
}

/// What is measured.
#[derive(Debug, Clone, Copy, Args, Serialize, Deserialize)]
pub struct Window {
    /// Seconds that are measured; 90s, 15m and 4h are understood, too
    #[arg(long, value_name = "S", default_value = "5", value_parser = seconds, help_heading = "Traffic")]
    pub duration: f64,
    /// Seconds of warm-up before
    #[arg(
        long,
        value_name = "S",
        default_value_t = 1.0,
        help_heading = "Traffic"
    )]
    pub warm_up: f64,
}

impl Window {
    /// Warm-up and duration.
    ///
    /// # Errors
    /// When they are out of bounds.
    pub fn times(self) -> Result<(Duration, Duration), Failure> {
        if !(0.0..=86_400.0).contains(&self.warm_up) || !(0.01..=604_800.0).contains(&self.duration)
        {
            return Err(Failure::Usage(
                "--warm-up is 0 to 86400 seconds, --duration 0.01 to 604800".into(),
            ));
        }
        Ok((
            Duration::from_secs_f64(self.warm_up),
            Duration::from_secs_f64(self.duration),
        ))
    }
}

impl Traffic {
    /// Refuses what cannot be published to `rooms` of `members` each.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self, common: &Common, rooms: u32, members: u32) -> Result<(), Failure> {
        let wrong = |what: String| Err(Failure::Usage(what));
        if !(0.001..=1e6).contains(&self.rate) {
            return wrong("--rate is 0.001 to 1000000 messages a second of each publisher".into());
        }
        check_rooms(common, rooms, members)?;
        let targets = common.target.len() as u32;
        let candidates = match self.publish_on {
            PublishOn::All => members,
            PublishOn::First => members.div_ceil(targets),
        };
        if self.publishers > candidates {
            return wrong(format!(
                "--publishers {}: a room has {candidates} members that may publish",
                self.publishers
            ));
        }
        if u64::from(members) * u64::from(self.publishers) > 100_000_000 {
            return wrong("members times publishers is at most 100000000".into());
        }
        if self.publishers == 0 && rooms > 1 {
            return wrong(
                "--publishers 0 listens to a server that publishes by itself: one room".into(),
            );
        }
        let offered = self.rate * f64::from(self.publishers) * f64::from(rooms);
        if offered > RATE_MAX {
            return wrong(format!(
                "{offered:.0} messages a second are asked for (rooms x publishers x rate); at most {RATE_MAX:.0}"
            ));
        }
        self.window.times().map(|_| ())
    }

    /// Readers of `rooms` of `members` each, some of which publish.
    pub fn cast(&self, common: &Common, prefix: &'static str, rooms: u32, members: u32) -> Cast {
        Cast {
            publishers: self.publishers,
            publish_on_first: self.publish_on == PublishOn::First,
            size: self.size.clone(),
            interval_ns: (1e9 / self.rate) as u64,
            ..readers(common, prefix, rooms, members)
        }
    }
}

/// Refuses rooms that cannot be.
///
/// # Errors
/// What is wrong, in words.
pub fn check_rooms(common: &Common, rooms: u32, members: u32) -> Result<(), Failure> {
    if rooms == 0 || members == 0 || u64::from(rooms) * u64::from(members) > 10_000_000 {
        return Err(Failure::Usage(
            "rooms times members is 1 to 10000000".into(),
        ));
    }
    if rooms > 1
        && let Some(url) = common
            .target
            .iter()
            .zip(common.targets()?)
            .find_map(|(url, target)| (!target.has_rooms()).then_some(url))
    {
        return Err(Failure::Usage(format!(
            "several rooms need a path with {{room}} in it: {url} has none (see --path)"
        )));
    }
    Ok(())
}

/// Readers of `rooms` of `members` each; the first of each room publishes when it is asked to.
pub fn readers(common: &Common, prefix: &'static str, rooms: u32, members: u32) -> Cast {
    Cast {
        dialect: common.dialect,
        prefix,
        rooms,
        room_members: members,
        publishers: 1,
        publish_on_first: false,
        targets: common.target.len() as u32,
        size: Size::default(),
        interval_ns: u64::MAX,
        in_flight: None,
        stalled: 0,
        crawling: 0,
        crawl_bytes_per_s: 1,
        slow_come_back: false,
        churning: 0,
        churn_ns: 1,
        back: None,
        seed: common.seed(),
    }
}
