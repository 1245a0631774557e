//! News of connections on their way to Redis: queued within a bound, written in batches, a bounded number at a time.
//!
//! A note that a connection is here may be dropped: the next refresh brings it. A note that it has gone is kept while Redis
//! is away, as long as there is room, and tried again and again: nothing would bring it but the end of its entry's life.
//! What waits for a server that is away stands aside, so that what the others have goes on.

use std::collections::VecDeque;
use std::time::Duration;

use super::desk::{Asked, Desk, words};
use super::keys::{Instance, Keys, Member, reference};
use super::scripts::{ENROL, FORGET, SEE, TOUCH, eval};
use crate::bus::{ConnectionId, PresenceNote, UserName};
use crate::time::Tick;

/// Notes that wait at most.
pub const QUEUE_MAX: usize = 65_536;
/// Notes on their way to Redis at most.
const FLYING_MAX: usize = 1_024;
/// What was lost is tried again so often, and so much of it at once until something is carried out.
const AGAIN: Duration = Duration::from_millis(250);
const AGAIN_COUNT: usize = 16;
/// Members in one command on a node's set, and users in one count.
const BATCH_MAX: usize = 128;

/// Whose connections these are, and how long an entry lives.
#[derive(Debug)]
pub struct Desired {
    pub keys: Keys,
    pub instance: Instance,
    pub ttl_ms: u32,
}

impl Desired {
    /// The keys of one connection: its hash, and its user's set if it has a user.
    pub fn keys_of(
        &self,
        instance: &Instance,
        id: ConnectionId,
        user: Option<&str>,
    ) -> Vec<String> {
        let mut keys = vec![self.keys.connection(instance, id, user)];
        keys.extend(user.map(|user| self.keys.user(user)));
        keys
    }

    /// Removes a connection of any node.
    pub fn forget(
        &self,
        desk: &mut Desk,
        asked: Asked,
        instance: &Instance,
        id: ConnectionId,
        user: Option<&str>,
    ) {
        let keys = self.keys_of(instance, id, user);
        let text = reference(instance, id);
        desk.ask(asked, &keys[0], eval(FORGET, &keys, &[text.as_bytes()]));
    }

    fn touch(&self, desk: &mut Desk, note: &PresenceNote, noted: Tick, now: Tick) {
        let user = note.user.as_deref();
        let keys = self.keys_of(&self.instance, note.id, user);
        let waited_ms = now.since(noted) / 1_000;
        let arguments = [
            &reference(&self.instance, note.id),
            &self.ttl_ms.to_string(),
            self.instance.node(),
            &note.room,
            &note.since_ms_ago.saturating_add(waited_ms).to_string(),
            &note.heard_ms_ago.saturating_add(waited_ms).to_string(),
            user.unwrap_or_default(),
        ];
        let arguments = arguments.map(str::as_bytes);
        desk.ask(
            Asked::Touch {
                noted,
                is_lone: user.is_none(),
            },
            &keys[0],
            eval(TOUCH, &keys, &arguments),
        );
    }

    /// The node's set outlives its connections' entries, so that there is time to remove what a dead node has left.
    pub fn set_ttl_ms(&self) -> u64 {
        2 * u64::from(self.ttl_ms)
    }

    /// Every user is told of once in such a window at least: refreshes come three times in an entry's life.
    pub fn window_ms(&self) -> u32 {
        self.ttl_ms / 2
    }

    pub fn windows(&self) -> Vec<String> {
        (0..3).map(|window| self.keys.seen(window)).collect()
    }
}

/// The queue.
#[derive(Debug)]
pub struct Notes {
    waiting: VecDeque<(PresenceNote, Tick)>,
    /// Who has gone, and their server did not say that it knows.
    again: VecDeque<(PresenceNote, Tick)>,
    /// The same of this node's set.
    withdrawn_again: VecDeque<String>,
    /// When the next of those are tried, and how many.
    again_due: Tick,
    again_count: usize,
    flying: usize,
    /// To be added to this node's set.
    enrolled: Vec<String>,
    /// To be counted.
    users: Vec<UserName>,
    /// To be taken off this node's set.
    withdrawn: Vec<String>,
    /// Of the batches, those that are not answered.
    batches: usize,
    /// A note that a connection is here was lost: all are to be told of anew.
    pub has_missed: bool,
    pub written: u64,
    pub dropped: u64,
}

impl Default for Notes {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            again: VecDeque::new(),
            withdrawn_again: VecDeque::new(),
            again_due: Tick(0),
            again_count: FLYING_MAX,
            flying: 0,
            enrolled: Vec::new(),
            users: Vec::new(),
            withdrawn: Vec::new(),
            batches: 0,
            has_missed: false,
            written: 0,
            dropped: 0,
        }
    }
}

impl Notes {
    /// Takes a note in. `begun`: the node has begun to write.
    pub fn push(&mut self, note: PresenceNote, begun: bool, now: Tick) {
        if self.waits() >= QUEUE_MAX || !begun && !note.is_gone {
            self.drop_note(note.is_gone);
            return;
        }
        self.waiting.push_back((note, now));
    }

    fn drop_note(&mut self, is_gone: bool) {
        self.dropped += 1;
        self.has_missed |= !is_gone;
    }

    /// Gives as many notes to Redis as may be on their way.
    pub fn send(&mut self, to: &Desired, desk: &mut Desk, now: Tick) {
        self.try_again(now);
        while self.flying < FLYING_MAX
            && let Some((note, noted)) = self.waiting.pop_front()
        {
            self.flying += 1;
            let member = Member::of(&note).text();
            if note.is_gone {
                self.withdrawn.push(member);
                let user = note.user.clone();
                let id = note.id;
                let asked = Asked::Forget(note, noted);
                to.forget(desk, asked, &to.instance, id, user.as_deref());
            } else {
                to.touch(desk, &note, noted, now);
                self.enrolled.push(member);
                self.users.extend(note.user);
            }
        }
        self.send_batches(to, desk);
    }

    fn try_again(&mut self, now: Tick) {
        if self.next_due().is_none_or(|due| due > now) {
            return;
        }
        let count = self.again_count.min(self.again.len());
        self.waiting.extend(self.again.drain(..count));
        let count = self.again_count.min(self.withdrawn_again.len());
        self.withdrawn.extend(self.withdrawn_again.drain(..count));
        self.again_due = now.after(AGAIN);
        self.again_count = AGAIN_COUNT;
    }

    /// Redis is back: what was lost is tried again at once.
    pub fn back(&mut self, now: Tick) {
        self.again_due = now;
        self.again_count = FLYING_MAX;
    }

    /// Who comes is added before who goes is taken off: no connection comes back once it has gone.
    fn send_batches(&mut self, to: &Desired, desk: &mut Desk) {
        let set = to.keys.node_connections(&to.instance);
        let ttl_ms = to.set_ttl_ms().to_string();
        while let Some(members) = batch(&mut self.enrolled) {
            let mut arguments = vec![ttl_ms.as_bytes()];
            arguments.extend(members.iter().map(String::as_bytes));
            let keys = std::slice::from_ref(&set);
            desk.ask(Asked::Enrol, &set, eval(ENROL, keys, &arguments));
            self.batches += 1;
        }
        let window_ms = to.window_ms().to_string();
        while let Some(users) = batch(&mut self.users) {
            let keys = to.windows();
            let mut arguments = vec![window_ms.as_bytes()];
            arguments.extend(users.iter().map(|user| user.as_bytes()));
            desk.ask(Asked::See, &keys[0], eval(SEE, &keys, &arguments));
            self.batches += 1;
        }
        while let Some(members) = batch(&mut self.withdrawn) {
            let mut all = words(&["SREM", &set]);
            all.extend(members.iter().map(|member| member.clone().into_bytes()));
            desk.ask(Asked::Withdraw(members), &set, all);
            self.batches += 1;
        }
    }

    /// A note has come to its end. `carried_out`: by Redis, without an error.
    pub fn touched(&mut self, carried_out: bool) {
        self.flying -= 1;
        if carried_out {
            self.written += 1;
        } else {
            self.dropped += 1;
        }
    }

    /// The same of a connection that has gone. `again`: nobody knows, so that it is told of once more.
    pub fn forgotten(&mut self, note: PresenceNote, noted: Tick, carried_out: bool, again: bool) {
        self.flying -= 1;
        if carried_out {
            self.written += 1;
            self.again_count = FLYING_MAX;
        } else if again && self.waits() < QUEUE_MAX {
            self.again.push_back((note, noted)); // nothing else of this connection is behind it
        } else {
            self.drop_note(true);
        }
    }

    /// A batch has come to its end; what is to be taken off once more.
    pub fn batch_ended(&mut self, again: Vec<String>) {
        self.batches -= 1;
        let room = QUEUE_MAX.saturating_sub(self.withdrawn_again.len());
        self.withdrawn_again.extend(again.into_iter().take(room));
    }

    /// When something that was lost is tried again.
    pub fn next_due(&self) -> Option<Tick> {
        let is_none = self.again.is_empty() && self.withdrawn_again.is_empty();
        (!is_none).then_some(self.again_due)
    }

    /// Nothing waits, and nothing is on its way. What was lost counts only where it is waited for.
    pub fn is_idle(&self, waits_for_lost: bool) -> bool {
        self.waiting.is_empty()
            && self.flying == 0
            && self.batches == 0
            && !(waits_for_lost && self.next_due().is_some())
    }

    fn waits(&self) -> usize {
        self.waiting.len() + self.again.len()
    }

    /// Notes that wait or are on their way.
    pub fn queued(&self) -> usize {
        self.waits() + self.flying
    }

    /// When the oldest of those was noted.
    pub fn oldest(&self, desk: &Desk) -> Option<Tick> {
        let flying = desk.asked().find_map(|asked| match asked {
            Asked::Touch { noted, .. } | Asked::Forget(_, noted) => Some(*noted),
            _ => None,
        });
        let waiting = self.waiting.front().map(|(_, noted)| *noted);
        let again = self.again.iter().map(|(_, noted)| *noted).min();
        flying.into_iter().chain(waiting).chain(again).min()
    }

    /// For tests.
    ///
    /// # Panics
    /// When a bound is broken.
    pub fn check_invariants(&self) {
        let again = self.again.len().max(self.withdrawn_again.len());
        assert!(self.waits() <= QUEUE_MAX && again <= QUEUE_MAX);
        assert!(self.flying <= FLYING_MAX);
        assert!(self.enrolled.is_empty() && self.users.is_empty() && self.withdrawn.is_empty());
    }
}

/// Takes what fits one command off the front.
fn batch<T>(from: &mut Vec<T>) -> Option<Vec<T>> {
    let count = from.len().min(BATCH_MAX);
    (count > 0).then(|| from.drain(..count).collect())
}
