//! What servers refuse to carry out, by server and by what it was for. Each is said once, and holds until the same has been
//! carried out there, or has not been refused for a while.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::desk::Asked;
use super::scripts::GRANT;
use crate::time::Tick;

/// What a command was for, as far as Redis may permit the one and refuse the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    Touch,
    /// The same of who has no user: it takes fewer commands.
    TouchLone,
    Forget,
    Enrol,
    Withdraw,
    See,
    Roll,
    State,
    Reap,
    Lookup,
}

impl Work {
    /// `None`: a heartbeat, or the end of one, which the registry itself follows.
    fn of(asked: &Asked) -> Option<Self> {
        Some(match asked {
            Asked::Touch { is_lone: false, .. } => Self::Touch,
            Asked::Touch { is_lone: true, .. } => Self::TouchLone,
            Asked::Forget(..) => Self::Forget,
            Asked::Enrol => Self::Enrol,
            Asked::Withdraw(_) => Self::Withdraw,
            Asked::See => Self::See,
            Asked::Roll => Self::Roll,
            Asked::State => Self::State,
            Asked::Reap { .. } | Asked::ReapForget { .. } | Asked::ReapEnd => Self::Reap,
            Asked::Lookup { .. } => Self::Lookup,
            Asked::Beat | Asked::Leave => return None,
        })
    }

    /// Whether it may be refused for what stands under one key, and not for what Redis permits.
    fn is_of_one_key(self) -> bool {
        !matches!(self, Self::Roll | Self::State)
    }

    /// Whether who is online cannot be told while it is refused.
    fn spoils_lookups(self) -> bool {
        matches!(
            self,
            Self::Touch | Self::TouchLone | Self::Forget | Self::Enrol | Self::Roll
        )
    }
}

#[derive(Debug)]
struct Refusal {
    reason: String,
    until: Tick,
}

/// All that is refused now.
#[derive(Debug, Default)]
pub struct Refusals {
    of: BTreeMap<(u16, Work), Refusal>,
    /// Questions are of many kinds, of which some may be permitted: those of a server are complained of once.
    questions_said: BTreeSet<u16>,
}

impl Refusals {
    /// A server has refused something; it holds for `hold` unless it is carried out before.
    pub fn refused(
        &mut self,
        server: u16,
        asked: &Asked,
        error: &str,
        prefix: &str,
        hold: Duration,
        now: Tick,
    ) {
        let Some(work) = Work::of(asked) else {
            return;
        };
        if work.is_of_one_key() && error.contains("WRONGTYPE") {
            return; // others have written there
        }
        self.pass(now);
        let reason = reason(error, prefix);
        let until = now.after(hold);
        let is_said = self.of.contains_key(&(server, work))
            || work == Work::Lookup && !self.questions_said.insert(server);
        if !is_said {
            tracing::warn!(
                server,
                ?work,
                reason,
                "the registry at Redis is not kept up"
            );
        }
        self.of.insert((server, work), Refusal { reason, until });
    }

    /// A server has carried something out. True: news of connections were refused until now.
    pub fn carried_out(&mut self, server: u16, asked: &Asked) -> bool {
        let work = Work::of(asked).filter(|work| *work != Work::Lookup);
        let Some(work) = work.filter(|work| self.of.remove(&(server, *work)).is_some()) else {
            return false;
        };
        tracing::info!(
            server,
            ?work,
            "Redis carries out again what the registry asks"
        );
        matches!(work, Work::Touch | Work::TouchLone | Work::Enrol)
    }

    /// Forgets what has not been refused for long.
    pub fn pass(&mut self, now: Tick) {
        self.of.retain(|_, refusal| refusal.until > now);
    }

    /// Whether anything is refused.
    pub fn is_any(&self, now: Tick) -> bool {
        self.of.values().any(|refusal| refusal.until > now)
    }

    /// Why a server's answers do not tell who is online.
    pub fn of_server(&self, server: u16, now: Tick) -> Option<&str> {
        let mut found = self.of.iter().filter(|((of, work), refusal)| {
            *of == server && work.spoils_lookups() && refusal.until > now
        });
        found.next().map(|(_, refusal)| refusal.reason.as_str())
    }
}

/// The refusal in words, with what would help. Redis before 7.2 says of a script only that its user may not do something.
pub fn reason(error: &str, prefix: &str) -> String {
    let is_permission = error.starts_with("NOPERM")
        || error.contains("can't run this command")
        || error.contains("can't access at least one of the keys")
        || error.contains("no permissions");
    let cure = match is_permission {
        true => format!(": grant the user ~{prefix}:* {GRANT}"),
        false => String::new(),
    };
    format!("Redis refuses what the registry asks ({error}){cure}")
}
