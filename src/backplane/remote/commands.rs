//! The commands link: questions to Redis, answered in order, behind which no message waits.

use std::time::Duration;

use super::directory::Elsewhere;
use super::moves::News;
use super::{Effect, Remote, Role};
use crate::backplane::resp::Reply;
use crate::time::Tick;

/// A command that is not answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    /// Who is told of the answer.
    ticket: u64,
    /// When it was given.
    pub(super) at: Tick,
}

impl Remote {
    /// Gives a command to the commands link; [`Effect::Answered`] says what became of it. A link that is not up says so
    /// at once. Commands are carried out and answered in their order.
    pub fn command(&mut self, words: &[&[u8]], ticket: u64, now: Tick) {
        if !self.commands.is_up() || self.closing_is_over(now) {
            let reply = None;
            self.effects.push_back(Effect::Answered { ticket, reply });
            return;
        }
        self.commands.command(words);
        self.asked.push_back(Asked { ticket, at: now });
    }

    /// Whether [`Self::command`] has a link that is up.
    #[must_use]
    pub fn takes_commands(&self) -> bool {
        self.commands.is_up()
    }

    /// Bytes of commands that wait for their socket: who has more to say waits until they are few.
    #[must_use]
    pub fn command_bytes(&self) -> usize {
        self.commands.out_bytes()
    }

    /// An answer has come.
    pub(super) fn answered(&mut self, reply: Reply, now: Tick) -> Result<(), String> {
        let Some(Asked { ticket, .. }) = self.asked.pop_front() else {
            return Err("Redis answers what it was not asked".into());
        };
        if self.options.is_cluster()
            && let Reply::Error(error) = &reply
            && let Some(Elsewhere::Moved(slot)) = Elsewhere::read(error)
        {
            self.news.push_back(News::Elsewhere(slot)); // who asked may ask again
        }
        let reply = Some(reply);
        if Self::is_streams_own(ticket) {
            return self.streams_answered(ticket, reply, now);
        }
        self.effects.push_back(Effect::Answered { ticket, reply });
        Ok(())
    }

    pub(super) fn commands_lost(&mut self, reason: String, now: Tick) {
        self.commands.fail(reason, now, &mut self.random);
        self.commands_unanswered(now);
    }

    /// Nothing that was asked will be answered.
    pub(super) fn commands_unanswered(&mut self, now: Tick) {
        for Asked { ticket, .. } in std::mem::take(&mut self.asked) {
            let reply = None;
            if Self::is_streams_own(ticket) {
                let lost = self.streams_answered(ticket, reply, now);
                debug_assert!(lost.is_ok(), "there is nothing to be wrong");
                continue;
            }
            self.effects.push_back(Effect::Answered { ticket, reply });
        }
    }

    /// When the link is to be given up because an answer is due.
    pub(super) fn command_deadline(&self, timeout: Duration) -> Option<Tick> {
        let asked = self.asked.front()?;
        let since = self.link(Role::Commands).up_since()?;
        let heard = self.commands.heard();
        Some(asked.at.max(heard).max(since).after(timeout))
    }

    fn closing_is_over(&self, now: Tick) -> bool {
        self.closing.is_some_and(|until| until <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Address, LinkOrder, Options};
    use super::*;

    const HELLO: &[u8] = b"%1\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n";

    /// A backplane whose commands link is up.
    fn remote() -> Remote {
        let options = Options {
            commands: true,
            ..Options::new(Address::parse("redis://x").unwrap())
        };
        let mut remote = Remote::new(options, 3, 7, Tick(0));
        remote.handle_deadline(Tick(0));
        let orders: Vec<LinkOrder> = std::iter::from_fn(|| remote.poll_order()).collect();
        let asked = orders.iter().any(|order| {
            matches!(order, LinkOrder::Connect { link, .. }
                if link.role == Role::Commands && link.server == 3)
        });
        assert!(asked, "{orders:?}");
        remote.connected(Role::Commands, Tick(0));
        remote.received(Role::Commands, HELLO, Tick(0));
        assert!(remote.takes_commands());
        remote
    }

    fn answers(remote: &mut Remote) -> Vec<(u64, Option<Reply>)> {
        std::iter::from_fn(|| remote.poll_effect())
            .map(|effect| match effect {
                Effect::Answered { ticket, reply } => (ticket, reply),
                effect => panic!("{effect:?}"),
            })
            .collect()
    }

    #[test]
    fn commands_are_answered_in_their_order_errors_too() {
        let mut remote = remote();
        remote.command(&[b"GET", b"a"], 1, Tick(1));
        remote.command(&[b"INCR", b"a"], 2, Tick(1));
        remote.command(&[b"HKEYS", b"h"], 3, Tick(1));
        assert!(remote.command_bytes() > 0);
        remote.received(
            Role::Commands,
            b"_\r\n-ERR no number\r\n*1\r\n$1\r\nf\r\n",
            Tick(2),
        );
        let field = Reply::Text("f".into());
        assert_eq!(
            answers(&mut remote),
            [
                (1, Some(Reply::Nil)),
                (2, Some(Reply::Error("ERR no number".into()))),
                (3, Some(Reply::List(vec![field]))),
            ]
        );
    }

    #[test]
    fn a_lost_link_answers_all_that_it_owes_and_the_others_go_on() {
        let mut remote = remote();
        remote.command(&[b"GET", b"a"], 1, Tick(1));
        remote.handle_deadline(Tick::from_ms(3_001));
        assert_eq!(answers(&mut remote), [(1, None)]);
        assert!(!remote.takes_commands());
        remote.command(&[b"GET", b"a"], 2, Tick::from_ms(3_002));
        assert_eq!(answers(&mut remote), [(2, None)]);
        let troubles = remote.troubles(Tick::from_ms(3_002));
        assert!(troubles.iter().all(|trouble| trouble.link != "commands"));
    }

    #[test]
    fn what_nobody_asked_for_is_no_answer() {
        let mut remote = remote();
        remote.received(Role::Commands, b":1\r\n", Tick(1));
        assert!(!remote.takes_commands());
    }
}
