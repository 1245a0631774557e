//! Removes what dead nodes have left: one node at a time, in bounded steps, and only one of the survivors does it.
//!
//! ```text
//! claim, next members ─▶ each is removed from its user ─▶ claim, these are done, next members ─▶ … ─▶ off the roll
//! ```
//!
//! Members are taken off the dead node's set only when they have been removed from their users, so that a reaper that dies
//! halfway leaves nothing behind but work for the next.

use super::desk::{Asked, Desk, words};
use super::keys::{Instance, Member};
use super::notes::Desired;
use super::scripts::{REAP, eval};
use crate::backplane::resp::Reply;

/// Members in one step.
const STEP_MEMBERS: usize = 128;
/// A claim holds so long without a step.
const CLAIM_MS: u32 = 10_000;

/// One dead node.
#[derive(Debug)]
struct Reaping {
    /// Tells the answers to this one's commands from those to one that was given up.
    run: u64,
    instance: Instance,
    /// Members that the last step has given.
    members: Vec<String>,
    /// Those of them that are not removed yet.
    left: usize,
}

/// What a step has led to.
#[derive(Debug, PartialEq, Eq)]
pub enum Reaped {
    /// It goes on.
    On,
    /// Nothing is left of this node.
    Whole,
    /// There is nothing to do: it lives, or another node removes it, or Redis did not do it.
    Not,
}

/// Which node is being removed.
#[derive(Debug, Default)]
pub struct Reaper {
    current: Option<Reaping>,
    runs: u64,
    pub connections: u64,
}

impl Reaper {
    pub fn is_busy(&self) -> bool {
        self.current.is_some()
    }

    /// Begins with a node.
    pub fn begin(&mut self, instance: Instance, to: &Desired, desk: &mut Desk) {
        self.runs += 1;
        self.current = Some(Reaping {
            run: self.runs,
            instance,
            members: Vec::new(),
            left: 0,
        });
        self.step(to, desk);
    }

    fn step(&mut self, to: &Desired, desk: &mut Desk) {
        let Some(Reaping {
            run,
            instance,
            members,
            ..
        }) = &self.current
        else {
            return;
        };
        let claim = to.keys.claim(instance);
        let keys = [
            claim.clone(),
            to.keys.node(instance),
            to.keys.node_connections(instance),
        ];
        let (claim_ms, count) = (CLAIM_MS.to_string(), STEP_MEMBERS.to_string());
        let mut arguments = vec![
            to.instance.as_str().as_bytes(),
            claim_ms.as_bytes(),
            count.as_bytes(),
        ];
        arguments.extend(members.iter().map(String::as_bytes));
        let words = eval(REAP, &keys, &arguments);
        desk.ask(Asked::Reap { run: *run }, &claim, words);
    }

    /// The answer to a step.
    pub fn stepped(
        &mut self,
        run: u64,
        reply: Option<&Reply>,
        to: &Desired,
        desk: &mut Desk,
    ) -> Reaped {
        let Some(reaping) = self.run(run) else {
            return Reaped::On;
        };
        let Some(Reply::List(list)) = reply else {
            return self.give_up();
        };
        let mut texts = list.iter().filter_map(|reply| match reply {
            Reply::Text(text) => std::str::from_utf8(text).ok(),
            _ => None,
        });
        match texts.next() {
            Some("more") => {}
            Some("done") => {
                let nodes = to.keys.nodes();
                let name = reaping.instance.as_str();
                desk.ask(Asked::ReapEnd, &nodes, words(&["ZREM", &nodes, name]));
                self.current = None;
                return Reaped::Whole;
            }
            _ => return self.give_up(),
        }
        reaping.members = texts.map(str::to_owned).collect();
        let members: Vec<Member> = reaping
            .members
            .iter()
            .filter_map(|text| Member::parse(text))
            .collect();
        reaping.left = members.len();
        for Member { id, user } in &members {
            let (asked, user) = (Asked::ReapForget { run }, user.as_deref());
            to.forget(desk, asked, &reaping.instance, *id, user);
        }
        if members.is_empty() {
            self.step(to, desk); // others have written what is no member
        }
        Reaped::On
    }

    /// A member is removed, or (`carried_out` is false) nobody knows.
    pub fn forgotten(
        &mut self,
        run: u64,
        carried_out: bool,
        to: &Desired,
        desk: &mut Desk,
    ) -> Reaped {
        let Some(reaping) = self.run(run) else {
            return Reaped::On;
        };
        if !carried_out {
            return self.give_up();
        }
        reaping.left -= 1;
        let is_whole = reaping.left == 0;
        self.connections += 1;
        if is_whole {
            self.step(to, desk);
        }
        Reaped::On
    }

    fn run(&mut self, run: u64) -> Option<&mut Reaping> {
        self.current.as_mut().filter(|reaping| reaping.run == run)
    }

    /// Leaves it to the next look at the roll, or to the next node.
    pub fn give_up(&mut self) -> Reaped {
        self.current = None;
        Reaped::Not
    }
}
