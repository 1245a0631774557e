//! The registry: who is connected where, kept at Redis beside the messages, and how the nodes are.
//!
//! Rule of this room: notes of connections, answers and time come in, commands for Redis and answers to the admin API go
//! out; it knows no link, and no clock but Redis'. What is written there is told again before it expires, so that whatever
//! is lost comes back by itself, and whatever a dead node has left goes by itself.
//!
//! ```text
//! shards ─ PresenceNote ─▶ Notes ─ a connection's hash, its user's set, its node's set ─▶ Redis
//! every interval: Beat (this node's hash: was it still there?), Roll (all nodes), the state on a channel
//!     the hash was gone ─▶ poll_announce: the shards tell of all connections anew
//!     another node is silent ─▶ Reaper: one of the survivors removes what it has left
//! admin API ─ ClusterQuestion ─▶ Lookups ─ a pipeline ─▶ ClusterReply
//! ```
//!
//! docs/PROTOCOL.md §7 has the layout.

mod deeds;
mod desk;
mod keys;
mod lookups;
mod notes;
mod options;
mod reaper;
mod refusals;
mod scripts;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

pub(super) use self::deeds::deeds;
pub use self::desk::Command;
use self::desk::{Asked, Desk, words};
use self::keys::{Instance, Keys};
use self::lookups::{Lookups, Roll};
use self::notes::{Desired, Notes, QUEUE_MAX};
pub use self::options::{Kept, Options};
use self::reaper::{Reaped, Reaper};
use self::refusals::{Refusals, reason};
pub use self::scripts::GRANT;
use self::scripts::{BEAT, ROLL, eval};
use super::resp::Reply;
use crate::bus::{ClusterQuestion, ClusterReply, PresenceNote};
use crate::metrics::RegistrySnapshot;
use crate::time::Tick;

/// A node's hash and its place on the roll hold for so many intervals.
const INTERVALS_MAX: u32 = 3;
/// Connections that are told of anew a second, over all shards.
const ANNOUNCED_PER_S: u64 = 20_000;
/// While Redis is away, it is asked this often.
const RETRY: Duration = Duration::from_millis(250);
/// At a stop, entries are removed for so long.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// How far leaving has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// What has been noted is being written.
    Flushing,
    /// This node's hash is being removed.
    Signing,
    /// What is left in this node's set is being removed.
    Reaping,
    Left,
}

/// Why there is no heartbeat.
#[derive(Debug)]
struct Away {
    reason: String,
    /// Redis has answered, and refused it.
    is_refusal: bool,
}

/// The state machine. After each input, drain [`Self::poll_command`], [`Self::poll_announce`] and [`Self::poll_answer`].
#[derive(Debug)]
pub struct Registry {
    options: Options,
    own: Desired,
    desk: Desk,
    notes: Notes,
    reaper: Reaper,
    lookups: Lookups,
    answers: VecDeque<(u64, ClusterReply)>,
    announce: Option<u32>,
    beat_due: Tick,
    /// The last heartbeat that was answered.
    beaten: Option<Tick>,
    beat_flying: bool,
    /// The server that has this node's hash.
    beat_server: Option<u16>,
    /// Why there is no heartbeat; `None`: the last was answered.
    away: Option<Away>,
    /// What single servers refuse.
    refusals: Refusals,
    /// Servers that have lost news of connections, and have carried nothing out since.
    missed_by: BTreeSet<u16>,
    /// When all was last told of anew because something was lost.
    made_up: Option<Tick>,
    /// What this node tells of itself, JSON.
    state: String,
    connection_count: u64,
    started: Tick,
    warned: bool,
    leaving: Option<(Leaving, Tick)>,
    counts: RegistrySnapshot,
}

impl Registry {
    /// A registry that has written nothing. `incarnation` tells this process from others of the same node.
    #[must_use]
    pub fn new(options: Options, incarnation: u64, now: Tick) -> Self {
        let own = Desired {
            keys: Keys::new(&options.prefix),
            instance: Instance::new(&options.node_id, incarnation),
            ttl_ms: options.ttl_ms,
        };
        Self {
            own,
            desk: Desk::default(),
            notes: Notes::default(),
            reaper: Reaper::default(),
            lookups: Lookups::default(),
            answers: VecDeque::new(),
            announce: None,
            beat_due: now,
            beaten: None,
            beat_flying: false,
            beat_server: None,
            away: Some(Away {
                reason: "Redis has not answered yet".to_owned(),
                is_refusal: false,
            }),
            refusals: Refusals::default(),
            missed_by: BTreeSet::new(),
            made_up: None,
            state: String::new(),
            connection_count: 0,
            started: now,
            warned: false,
            leaving: None,
            counts: RegistrySnapshot::default(),
            options,
        }
    }

    // --- what comes in ----------------------------------------------------------------------------------------------

    /// News of connections, from a shard.
    pub fn note(&mut self, notes: Vec<PresenceNote>, now: Tick) {
        for note in notes {
            let kept = match self.options.kept {
                Kept::Off => false,
                Kept::Users => note.user.is_some(),
                Kept::All => true,
            };
            if kept {
                self.notes.push(note, !self.state.is_empty(), now);
            }
        }
        self.progress(now);
    }

    /// What this node tells of itself from now on: JSON, and how many connections it has. Before the first there is no
    /// heartbeat.
    pub fn set_state(&mut self, state: String, connection_count: u64) {
        self.state = state;
        self.connection_count = connection_count;
    }

    /// Whether it answers for users, or keeps nothing of connections.
    #[must_use]
    pub fn keeps_users(&self) -> bool {
        self.options.kept != Kept::Off
    }

    /// A question of the admin API: [`Self::poll_answer`] has the answer under the same number.
    pub fn ask(&mut self, request: u64, question: ClusterQuestion, now: Tick) {
        let refused = self.away.as_ref().filter(|away| away.is_refusal);
        let answer = match refused {
            None => {
                let (own, desk) = (&self.own, &mut self.desk);
                self.lookups.ask(request, question, own, desk)
            }
            Some(away) => Some(ClusterReply::Away(away.reason.clone())),
        };
        self.answers.extend(answer.map(|answer| (request, answer)));
        self.progress(now);
    }

    /// The command with this number is given to this server: where there are several, what one of them loses or refuses
    /// says nothing of the others.
    pub fn given(&mut self, ticket: u64, server: u16) {
        self.desk.given(ticket, server);
    }

    /// A command has come to its end; without a reply nobody knows whether it was carried out.
    pub fn answered(&mut self, ticket: u64, reply: Option<Reply>, now: Tick) {
        let Some((asked, server)) = self.desk.take(ticket) else {
            debug_assert!(false, "an answer to what was not asked");
            return;
        };
        let reply = reply.filter(|reply| !passes(reply));
        let is_lost = reply.is_none();
        let is_done = match &reply {
            Some(Reply::Error(error)) => {
                self.refused(&asked, server, error, now);
                false
            }
            reply => reply.is_some(),
        };
        if is_done {
            self.carried_out(&asked, server, now);
        } else if is_lost {
            self.lost(&asked, server, now);
        }
        let (own, desk) = (&self.own, &mut self.desk);
        match asked {
            Asked::Touch { .. } => self.notes.touched(is_done),
            Asked::Forget(note, noted) => self.notes.forgotten(note, noted, is_done, is_lost),
            Asked::Enrol | Asked::See => self.notes.batch_ended(Vec::new()),
            Asked::Withdraw(members) => {
                let again = if is_lost { members } else { Vec::new() };
                self.notes.batch_ended(again);
            }
            Asked::Beat => self.beat_answered(reply.as_ref(), now),
            Asked::Roll => self.roll_answered(reply.as_ref(), now),
            Asked::State => {}
            Asked::ReapEnd => self.struck_off(),
            Asked::Reap { run } => {
                let reaped = self.reaper.stepped(run, reply.as_ref(), own, desk);
                self.reaped(reaped);
            }
            Asked::ReapForget { run } => {
                let reaped = self.reaper.forgotten(run, is_done, own, desk);
                self.reaped(reaped);
            }
            Asked::Leave if is_lost => self.leave_for(Leaving::Left),
            Asked::Leave => self.signed_off(),
            Asked::Lookup { request, part } => {
                let reply = match (reply, self.untrusted(server, now)) {
                    (None, why) => Err(why.unwrap_or("the link to Redis was lost").to_owned()),
                    (Some(reply), None) => Ok(reply),
                    (Some(_), Some(why)) => Err(why.to_owned()),
                };
                let (own, desk) = (&self.own, &mut self.desk);
                let answer = self.lookups.answered(request, part, reply, own, desk);
                self.answers.extend(answer.map(|answer| (request, answer)));
            }
        }
        self.progress(now);
    }

    /// Does what is due by time.
    pub fn handle_deadline(&mut self, now: Tick) {
        if self.leaving.is_none() && self.beat_due <= now && !self.state.is_empty() {
            let pause = match self.away {
                None => self.interval(),
                Some(_) => self.interval().min(RETRY),
            };
            self.beat_due = now.after(pause);
            self.beat();
        }
        self.progress(now);
    }

    /// When [`Self::handle_deadline`] has something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Tick> {
        let beat = (!self.state.is_empty()).then_some(self.beat_due);
        let due = match self.leaving {
            Some((_, until)) => Some(until),
            None => beat,
        };
        due.into_iter().chain(self.notes.next_due()).min()
    }

    /// The node ends, and its clients have gone: what it has at Redis is removed, for a second at most.
    pub fn close(&mut self, now: Tick) {
        if self.leaving.is_some() {
            return;
        }
        self.leaving = Some((Leaving::Flushing, now.after(CLOSE_TIME)));
        self.reaper.give_up();
        self.progress(now);
    }

    /// Whether the node may end.
    #[must_use]
    pub fn is_closed(&self, now: Tick) -> bool {
        self.leaving
            .is_some_and(|(stage, until)| stage == Leaving::Left || until <= now)
    }

    // --- what comes out ---------------------------------------------------------------------------------------------

    /// The next command for Redis. Its end comes to [`Self::answered`].
    pub fn poll_command(&mut self) -> Option<Command> {
        self.desk.poll()
    }

    /// All connections are to be told of anew, spread over so many milliseconds.
    pub fn poll_announce(&mut self) -> Option<u32> {
        self.announce.take()
    }

    /// The next answer to the admin API.
    pub fn poll_answer(&mut self) -> Option<(u64, ClusterReply)> {
        self.answers.pop_front()
    }

    /// Everything counted, and what waits now.
    #[must_use]
    pub fn snapshot(&self, now: Tick) -> RegistrySnapshot {
        let oldest = self.notes.oldest(&self.desk);
        RegistrySnapshot {
            up: self.away.is_none() && !self.refusals.is_any(now),
            beat_age_us: now.since(self.beaten.unwrap_or(self.started)),
            written: self.notes.written,
            dropped: self.notes.dropped,
            queued: self.notes.queued() as u64,
            queued_max: QUEUE_MAX as u64,
            oldest_us: oldest.map_or(0, |noted| now.since(noted)),
            connections_reaped: self.reaper.connections,
            ..self.counts
        }
    }

    /// Checks what must hold between inputs. For tests.
    ///
    /// # Panics
    /// When something does not hold.
    pub fn check_invariants(&self) {
        self.notes.check_invariants();
    }

    // --- how it goes on ---------------------------------------------------------------------------------------------

    fn interval(&self) -> Duration {
        Duration::from_millis(u64::from(self.options.interval_ms))
    }

    /// Writes what may be written by now.
    fn progress(&mut self, now: Tick) {
        let (own, desk) = (&self.own, &mut self.desk);
        self.refusals.pass(now);
        if !self.state.is_empty() {
            self.notes.send(own, desk, now);
        }
        let is_away = self.away.is_some();
        let is_flushing = matches!(self.leaving, Some((Leaving::Flushing, _)));
        if is_flushing && self.notes.is_idle(!is_away) {
            if is_away {
                return self.leave_for(Leaving::Left);
            }
            self.leave_for(Leaving::Signing);
            let (own, desk) = (&self.own, &mut self.desk);
            let node = own.keys.node(&own.instance);
            desk.ask(Asked::Leave, &node, words(&["DEL", &node]));
        }
    }

    fn leave_for(&mut self, stage: Leaving) {
        if let Some((at, _)) = &mut self.leaving {
            *at = stage;
        }
    }

    /// This node's hash is gone: what may be left of its connections goes, and its name.
    fn signed_off(&mut self) {
        self.leave_for(Leaving::Reaping);
        let own = self.own.instance.clone();
        self.reaper.begin(own, &self.own, &mut self.desk);
    }

    /// A name is off the roll.
    fn struck_off(&mut self) {
        if matches!(self.leaving, Some((Leaving::Reaping, _))) {
            self.leave_for(Leaving::Left);
        }
    }

    fn reaped(&mut self, reaped: Reaped) {
        let is_leaving = matches!(self.leaving, Some((Leaving::Reaping, _)));
        match reaped {
            Reaped::On => {}
            Reaped::Whole if is_leaving => {} // its name is about to go
            Reaped::Whole => self.counts.nodes_reaped += 1,
            Reaped::Not if is_leaving => self.leave_for(Leaving::Left),
            Reaped::Not => {}
        }
    }

    /// Why what a server answers does not tell who is online.
    fn untrusted(&self, server: u16, now: Tick) -> Option<&str> {
        let beats = self.beat_server.is_none_or(|of| of == server);
        let away = self.away.as_ref().filter(|away| beats || away.is_refusal);
        let away = away.map(|away| away.reason.as_str());
        away.or_else(|| self.refusals.of_server(server, now))
    }

    fn carried_out(&mut self, asked: &Asked, server: u16, now: Tick) {
        if matches!(asked, Asked::Beat) {
            self.beat_server = Some(server);
        }
        let was_refused = self.refusals.carried_out(server, asked);
        let was_lost = self.missed_by.remove(&server);
        if was_lost || was_refused {
            self.notes.has_missed = true;
        }
        let is_back = matches!(asked, Asked::Beat) && self.away.is_some();
        if is_back || was_lost {
            self.notes.back(now);
        }
    }

    /// Nobody knows what became of a command. Its server may be one of several: what the others have goes on.
    fn lost(&mut self, asked: &Asked, server: u16, now: Tick) {
        match asked {
            Asked::Touch { .. } | Asked::Enrol => _ = self.missed_by.insert(server),
            Asked::Beat => {
                self.beat_server = Some(server);
                self.beat_due = self.beat_due.min(now.after(RETRY));
                self.lose("its server cannot be reached".to_owned(), false);
            }
            _ => {}
        }
    }

    /// Redis cannot be asked. At the start nothing is said of a server that is not reached: its links do.
    fn lose(&mut self, reason: String, is_refusal: bool) {
        let was_up = self.beaten.is_some() && self.away.is_none();
        let is_known = |away: &Away| away.is_refusal == is_refusal && away.reason == reason;
        if was_up || is_refusal && !self.away.as_ref().is_some_and(is_known) {
            tracing::warn!(reason, "the registry at Redis is not kept up");
        }
        self.away = Some(Away { reason, is_refusal });
        if self.leaving.is_some() {
            self.leave_for(Leaving::Left);
        }
    }

    fn refused(&mut self, asked: &Asked, server: u16, error: &str, now: Tick) {
        self.counts.errors += 1;
        let prefix = &self.options.prefix;
        if matches!(asked, Asked::Beat) {
            self.beat_server = Some(server);
            self.beat_due = self.beat_due.min(now.after(RETRY));
            self.lose(reason(error, prefix), true);
            return;
        }
        // Every connection is told of once in a refresh: what is not refused for two is not asked any more.
        let hold = Duration::from_millis(2 * u64::from(self.options.refresh_ms()));
        self.refusals
            .refused(server, asked, error, prefix, hold, now);
    }

    // --- the heartbeat ----------------------------------------------------------------------------------------------

    fn beat(&mut self) {
        if self.beat_flying {
            return; // the link is slow, or about to be given up
        }
        self.beat_flying = true;
        let own = &self.own;
        let instance = &own.instance;
        let lives_ms = (INTERVALS_MAX * self.options.interval_ms).to_string();
        let set_lives_ms = own.set_ttl_ms().to_string();
        let incarnation = format!("{:016x}", instance.incarnation());
        let keys = [own.keys.node(instance), own.keys.node_connections(instance)];
        let arguments = [
            &lives_ms,
            &set_lives_ms,
            instance.node(),
            &incarnation,
            &self.state,
        ];
        let command = eval(BEAT, &keys, &arguments.map(str::as_bytes));
        self.desk.ask(Asked::Beat, &keys[0], command);
        let nodes = own.keys.nodes();
        let arguments = [&*set_lives_ms, instance.as_str()].map(str::as_bytes);
        let command = eval(ROLL, std::slice::from_ref(&nodes), &arguments);
        self.desk.ask(Asked::Roll, &nodes, command);
        let channel = own.keys.states();
        let command = words(&["PUBLISH", &channel, &self.state]);
        self.desk.ask(Asked::State, &channel, command);
    }

    fn beat_answered(&mut self, reply: Option<&Reply>, now: Tick) {
        self.beat_flying = false;
        let Some(Reply::Number(known)) = reply else {
            return;
        };
        if self.away.take().is_some() {
            tracing::info!("the registry at Redis is kept up");
        }
        self.beaten = Some(now);
        self.counts.beats += 1;
        // What was missed is made up for, but no more often than refreshes come.
        let refresh = Duration::from_millis(u64::from(self.options.refresh_ms()));
        let made_up = self.made_up.is_some_and(|at| at.after(refresh) > now);
        let makes_up = self.notes.has_missed && !made_up;
        if makes_up {
            self.made_up = Some(now);
        }
        // This node has been taken for dead, or Redis has lost what it knew.
        if *known == 0 || makes_up {
            self.notes.has_missed = false;
            self.announce();
        }
    }

    fn announce(&mut self) {
        let spread_ms = self.connection_count * 1_000 / ANNOUNCED_PER_S;
        let refresh_ms = self.options.refresh_ms();
        let within_ms = u32::try_from(spread_ms).unwrap_or(refresh_ms);
        self.announce = Some(within_ms.clamp(ANNOUNCE_MS_MIN.min(refresh_ms), refresh_ms));
        self.counts.announcements += 1;
    }

    fn roll_answered(&mut self, reply: Option<&Reply>, now: Tick) {
        let Some(roll) = reply.and_then(Roll::read) else {
            return;
        };
        let own = &self.own.instance;
        let silent_ms = u64::from(INTERVALS_MAX * self.options.interval_ms);
        let dead_ms = silent_ms.max(u64::from(self.options.refresh_ms()));
        let mut heard = 0;
        let mut dead = Vec::new();
        let mut has_twin = false;
        for (instance, age_ms) in roll.ages() {
            heard += u64::from(age_ms <= silent_ms);
            // An earlier process of this node is dead for certain once its hash is gone: the step looks.
            let is_former = instance.node() == own.node() && instance != *own;
            has_twin |= is_former && age_ms <= silent_ms;
            if age_ms > dead_ms || is_former {
                dead.push(instance);
            }
        }
        self.counts.nodes = heard;
        let is_new = now.since(self.started) <= 2_000 * silent_ms;
        if has_twin && !is_new && !self.warned {
            self.warned = true;
            let node = own.node();
            tracing::warn!(node, "another process has the same node_id, and is alive");
        }
        if self.leaving.is_none() && !self.reaper.is_busy() && !dead.is_empty() {
            // Another one each time: some may be claimed by others.
            let index = self.counts.beats as usize % dead.len();
            self.reaper
                .begin(dead.swap_remove(index), &self.own, &mut self.desk);
        }
    }
}

/// Whether a refusal is of now, and not of the command: as good as no answer.
fn passes(reply: &Reply) -> bool {
    let Reply::Error(error) = reply else {
        return false;
    };
    let code = error.split(' ').next().unwrap_or_default();
    matches!(
        code,
        "MOVED"
            | "ASK"
            | "TRYAGAIN"
            | "CLUSTERDOWN"
            | "LOADING"
            | "READONLY"
            | "MASTERDOWN"
            | "BUSY"
    )
}

/// Announcements are spread over so long at least.
const ANNOUNCE_MS_MIN: u32 = 1_000;
