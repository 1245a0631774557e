//! Glances: what is cheap to know about the servers, once a second, and the points of a plot between two of them.

use std::sync::PoisonError;
use std::time::Duration;

use super::process::busiest;
use super::{Part, Server, each, kernel, metrics};
use crate::clock::now_ns;
use crate::report::ServerPoint;

/// A glance waits no longer for an endpoint.
const SCRAPE_TIMEOUT: Duration = Duration::from_millis(250);
/// After a scrape, an endpoint has peace for so many times as long as it took: one that is slow is asked more seldom than
/// once a second, and nobody waits for it for more than a tenth of the time.
const PEACE_FACTOR: u64 = 9;

/// An endpoint's state between glances.
#[derive(Debug, Default)]
pub(super) struct Scraped {
    last: Option<Part>,
    is_gone: bool,
    not_before_ns: u64,
}

/// What was cheap to know about all servers at one moment.
#[derive(Debug, Clone, Default)]
pub struct Glance {
    /// Each server that told something.
    parts: Vec<Part>,
    gone: Vec<String>,
    tcp_memory_bytes: u64,
}

impl Glance {
    pub(super) fn take(servers: &[Server]) -> Self {
        let mut glance = Self::default();
        if servers.is_empty() {
            return glance;
        }
        for (server, part) in servers
            .iter()
            .zip(each(servers, |_, server| server.glance()))
        {
            match part {
                Some(Some(part)) => glance.parts.push(part),
                Some(None) => {}
                None => glance.gone.push(server.name.clone()),
            }
        }
        glance.tcp_memory_bytes = kernel::read_tcp().1.unwrap_or(0);
        glance
    }

    /// The names of the servers that have ended, or do not listen any more.
    pub fn gone(&self) -> &[String] {
        &self.gone
    }

    /// What each server used from `earlier` to `later`. A server that did not tell anything new has no point.
    pub fn points(earlier: &Self, later: &Self) -> Vec<ServerPoint> {
        let point = |part: &Part| {
            let before = earlier
                .parts
                .iter()
                .find(|before| before.name == part.name && before.at_ns < part.at_ns)?;
            let seconds = (part.at_ns - before.at_ns) as f64 / 1e9;
            let share = |of: fn(&Part) -> Option<u64>| {
                let (before, now) = (of(before)?, of(part)?);
                // Less than before: the process started anew.
                let used = now.checked_sub(before).unwrap_or(now);
                Some(used as f64 / 1e9 / seconds)
            };
            let parts = share(|part| part.user_ns).zip(share(|part| part.system_ns));
            let (user_share, system_share) =
                parts.unwrap_or_else(|| (share(|part| part.cpu_ns).unwrap_or(0.0), 0.0));
            let told = part.tcp_memory_bytes;
            Some(ServerPoint {
                name: part.name.clone(),
                user_share,
                system_share,
                busiest_thread_share: busiest(&before.threads, &part.threads, seconds).0,
                rss_bytes: part.rss_bytes.unwrap_or(0),
                tcp_memory_bytes: told.unwrap_or(later.tcp_memory_bytes),
                descriptors: part.descriptor_count.unwrap_or(0),
                connections: part.connection_count,
            })
        };
        later.parts.iter().filter_map(point).collect()
    }
}

impl Server {
    /// None: it is gone. Some(None): it has told nothing yet.
    fn glance(&self) -> Option<Option<Part>> {
        let process = match &self.process {
            Some(process) => Some(process.glance()?),
            None => None,
        };
        let Some(endpoint) = &self.endpoint else {
            return Some(process);
        };
        let mut scraped = self.glanced.lock().unwrap_or_else(PoisonError::into_inner);
        let begin_ns = now_ns();
        let mut is_fresh = false;
        if begin_ns >= scraped.not_before_ns {
            match endpoint.scrape(SCRAPE_TIMEOUT) {
                Ok(scrape) => {
                    scraped.last = Some(self.joined(None, metrics::part(&scrape)));
                    scraped.is_gone = false;
                    is_fresh = true;
                }
                Err(trouble) => scraped.is_gone = trouble.is_gone,
            }
            let end_ns = now_ns();
            scraped.not_before_ns = end_ns + (end_ns - begin_ns) * PEACE_FACTOR;
        }
        match process {
            Some(part) => {
                let told = scraped.last.clone().filter(|_| is_fresh);
                Some(Some(self.joined(Some(part), told.unwrap_or_default())))
            }
            None if scraped.is_gone => None,
            None => Some(scraped.last.clone()),
        }
    }
}
