//! What `throng top` knows: the last answer, what came before it, and how the person wants to see it. Pure: answers, keys
//! and time come in.

use std::cmp::Reverse;
use std::collections::VecDeque;

use super::cluster::{Cluster, Node};
use super::keys::Key;
use crate::time::Tick;

/// Answers that the history goes back.
const HISTORY_COUNT_MAX: usize = 512;

/// What the rows are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    /// Names, from the first letter on.
    Name,
    /// Connections, the most first.
    Connections,
    /// Memory, the most first.
    Memory,
    /// The lag that one message in a hundred exceeds, the most first.
    Lag,
}

/// What a key asks of whoever has the terminal, the weightiest last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wish {
    /// Nothing.
    Nothing,
    /// To see the screen as it is now.
    Show,
    /// To see all of it drawn anew.
    Redraw,
    /// To go to the background.
    Suspend,
    /// To leave.
    Quit,
}

/// An answer of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// Who gave it, as the person called it.
    pub(super) source: String,
    pub(super) cluster: Cluster,
}

/// Totals at one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample {
    /// In and out.
    pub(super) messages_per_s: u64,
    pub(super) connections: u64,
}

/// Nobody answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) since: Tick,
    /// Why, for each that was asked.
    pub(super) reasons: Vec<String>,
}

/// All that a screen is made of, but its size.
#[derive(Debug)]
pub(super) struct State {
    pub(super) answer: Answer,
    /// When the answer came, on the clock of this process and on the wall.
    pub(super) answered: Tick,
    pub(super) answered_unix_s: u64,
    pub(super) now: Tick,
    pub(super) failure: Option<Failure>,
    pub(super) history: VecDeque<Sample>,
    pub(super) sort: Sort,
    pub(super) is_reversed: bool,
    pub(super) is_paused: bool,
    /// The first row on the screen, and how many there are; [`State::fit`] keeps them true.
    pub(super) first_row: usize,
    rows_shown: usize,
    pub(super) interval_ms: u64,
}

impl State {
    /// To begin with an answer.
    pub(super) fn new(answer: Answer, unix_s: u64, now: Tick, interval_ms: u64) -> Self {
        let mut state = Self {
            answered: now,
            answered_unix_s: unix_s,
            now,
            failure: None,
            history: VecDeque::new(),
            sort: Sort::Name,
            is_reversed: false,
            is_paused: false,
            first_row: 0,
            rows_shown: 1,
            interval_ms,
            answer,
        };
        state.remember();
        state
    }

    /// An answer came, or the reasons why there is none. While paused nothing changes.
    pub(super) fn hear(&mut self, heard: Result<Answer, Vec<String>>, unix_s: u64, now: Tick) {
        if self.is_paused {
            return;
        }
        match heard {
            Ok(answer) => {
                self.answer = answer;
                self.answered = now;
                self.answered_unix_s = unix_s;
                self.failure = None;
                self.remember();
            }
            Err(reasons) => {
                let since = self
                    .failure
                    .as_ref()
                    .map_or(self.answered, |failure| failure.since);
                self.failure = Some(Failure { since, reasons });
            }
        }
    }

    fn remember(&mut self) {
        let totals = &self.answer.cluster.totals;
        let either = |figure: Option<u64>| figure.unwrap_or(0);
        if self.history.len() == HISTORY_COUNT_MAX {
            self.history.pop_front();
        }
        self.history.push_back(Sample {
            messages_per_s: either(totals.messages_in_per_s)
                .saturating_add(either(totals.messages_out_per_s)),
            connections: either(totals.connections),
        });
    }

    /// A key was typed.
    pub(super) fn type_key(&mut self, key: Key) -> Wish {
        let page = self.rows_shown.max(1);
        match key {
            Key::Char('q') | Key::Escape | Key::Interrupt => return Wish::Quit,
            Key::Suspend => return Wish::Suspend,
            Key::Redraw => return Wish::Redraw,
            Key::Char('p' | ' ') => self.is_paused = !self.is_paused,
            Key::Char('c') => self.sort_by(Sort::Connections),
            Key::Char('m') => self.sort_by(Sort::Memory),
            Key::Char('l') => self.sort_by(Sort::Lag),
            Key::Char('n') => self.sort_by(Sort::Name),
            Key::Up | Key::Char('k') => self.first_row = self.first_row.saturating_sub(1),
            Key::Down | Key::Char('j') => self.first_row = self.first_row.saturating_add(1),
            Key::PageUp => self.first_row = self.first_row.saturating_sub(page),
            Key::PageDown => self.first_row = self.first_row.saturating_add(page),
            Key::Home => self.first_row = 0,
            Key::End => self.first_row = usize::MAX,
            Key::Char(_) => return Wish::Nothing,
        }
        Wish::Show
    }

    /// The same key again turns the order round.
    fn sort_by(&mut self, sort: Sort) {
        self.is_reversed = self.sort == sort && !self.is_reversed;
        self.sort = sort;
        self.first_row = 0;
    }

    /// There is room for so many rows: no further down than that the last row is at the bottom.
    pub(super) fn fit(&mut self, rows_shown: usize) {
        let below = self.answer.cluster.nodes.len().saturating_sub(rows_shown);
        self.first_row = self.first_row.min(below);
        self.rows_shown = rows_shown;
    }

    /// The nodes in the order of their rows. One that does not tell the figure counts as the least.
    pub(super) fn rows(&self) -> Vec<&Node> {
        let mut nodes: Vec<&Node> = self.answer.cluster.nodes.iter().collect();
        // Those that are alike keep the order of their names.
        nodes.sort_by(|one, other| one.id.cmp(&other.id));
        match self.sort {
            Sort::Name => {}
            Sort::Connections => nodes.sort_by_key(|node| Reverse(node.connections)),
            Sort::Memory => nodes.sort_by_key(|node| Reverse(node.memory_bytes)),
            Sort::Lag => nodes.sort_by_key(|node| Reverse(node.lag_p99_us)),
        }
        if self.is_reversed {
            nodes.reverse();
        }
        nodes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::top::tests::{cluster, node};

    fn state(nodes: Vec<Node>) -> State {
        let answer = Answer {
            source: "127.0.0.1:8081".into(),
            cluster: cluster(nodes),
        };
        State::new(answer, 0, Tick(0), 2_000)
    }

    fn order(state: &State) -> Vec<&str> {
        state.rows().iter().map(|node| node.id.as_str()).collect()
    }

    #[test]
    fn rows_are_sorted_by_the_key_and_turned_by_the_same_again() {
        let mut nodes = vec![node("b"), node("c"), node("a")];
        nodes[0].connections = Some(5);
        nodes[1].connections = Some(9);
        nodes[2].connections = None;
        nodes[0].memory_bytes = Some(9);
        nodes[1].memory_bytes = Some(5);
        nodes[2].memory_bytes = Some(7);
        nodes[0].lag_p99_us = Some(1);
        nodes[1].lag_p99_us = Some(2);
        nodes[2].lag_p99_us = Some(3);
        let mut state = state(nodes);
        assert_eq!(order(&state), ["a", "b", "c"]);
        for (key, wanted) in [
            ('c', ["c", "b", "a"]),
            ('c', ["a", "b", "c"]),
            ('m', ["b", "a", "c"]),
            ('l', ["a", "c", "b"]),
            ('n', ["a", "b", "c"]),
            ('n', ["c", "b", "a"]),
        ] {
            assert_eq!(state.type_key(Key::Char(key)), Wish::Show);
            assert_eq!(order(&state), wanted, "{key}");
        }
    }

    #[test]
    fn scrolling_ends_where_the_last_row_is_at_the_bottom() {
        let nodes = (0..10).map(|index| node(&format!("n{index}"))).collect();
        let mut state = state(nodes);
        state.fit(4);
        let mut scroll = |key| {
            state.type_key(key);
            state.fit(4);
            state.first_row
        };
        assert_eq!(scroll(Key::Up), 0);
        assert_eq!(scroll(Key::Down), 1);
        assert_eq!(scroll(Key::PageDown), 5);
        assert_eq!(scroll(Key::PageDown), 6);
        assert_eq!(scroll(Key::Down), 6);
        assert_eq!(scroll(Key::PageUp), 2);
        assert_eq!(scroll(Key::End), 6);
        assert_eq!(scroll(Key::Home), 0);
        state.fit(20);
        state.type_key(Key::End);
        state.fit(20);
        assert_eq!(state.first_row, 0);
    }

    #[test]
    fn while_paused_answers_change_nothing() {
        let mut state = state(vec![node("a")]);
        assert_eq!(state.type_key(Key::Char('p')), Wish::Show);
        let later = Answer {
            source: "elsewhere:1".into(),
            cluster: cluster(vec![]),
        };
        state.hear(Ok(later.clone()), 9, Tick(9));
        state.hear(Err(vec!["refused".into()]), 9, Tick(9));
        assert_eq!(state.answer.source, "127.0.0.1:8081");
        assert_eq!((state.failure.as_ref(), state.history.len()), (None, 1));
        state.type_key(Key::Char('p'));
        state.hear(Ok(later), 9, Tick(9));
        assert_eq!(state.answer.source, "elsewhere:1");
    }

    #[test]
    fn silence_counts_from_the_last_answer_and_ends_with_the_next() {
        let mut state = state(vec![node("a")]);
        let answer = state.answer.clone();
        state.hear(Ok(answer.clone()), 1, Tick::from_ms(1_000));
        state.hear(Err(vec!["refused".into()]), 3, Tick::from_ms(3_000));
        state.hear(Err(vec!["timed out".into()]), 5, Tick::from_ms(5_000));
        let failure = state.failure.clone().unwrap();
        assert_eq!(failure.since, Tick::from_ms(1_000));
        assert_eq!(failure.reasons, ["timed out"]);
        state.hear(Ok(answer), 7, Tick::from_ms(7_000));
        assert_eq!(state.failure, None);
        assert_eq!(state.answered_unix_s, 7);
    }

    #[test]
    fn the_history_is_bounded() {
        let mut state = state(vec![node("a")]);
        for second in 0..2 * HISTORY_COUNT_MAX as u64 {
            let answer = state.answer.clone();
            state.hear(Ok(answer), second, Tick::from_ms(second));
        }
        assert_eq!(state.history.len(), HISTORY_COUNT_MAX);
    }

    #[test]
    fn keys_that_mean_nothing_draw_nothing() {
        let mut state = state(vec![]);
        assert_eq!(state.type_key(Key::Char('x')), Wish::Nothing);
        for key in [Key::Char('q'), Key::Escape, Key::Interrupt] {
            assert_eq!(state.type_key(key), Wish::Quit);
        }
        assert_eq!(state.type_key(Key::Suspend), Wish::Suspend);
    }
}
