//! Whether the other nodes fit this one. Says so when some do not, once, and when that is over.
//!
//! It changes nothing: a node that is set up wrongly must not take the others out of the balancer.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::cluster;
use super::router::Options;
use crate::bus::NodeSeen;
use crate::metrics::Misfits;

/// Nodes that one line names at most.
const NAMED_MAX: usize = 10;
/// What is shown of another node's words.
const SHOWN_CHARS_MAX: usize = 100;
/// How a node calls its mode that wished for `sharded` and may not use it.
const FALLBACK: &str = "sharded-by-pubsub";

/// What another node says of itself that is not what this one says. Nothing: it fits.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// Where it looks for rooms.
    layout: Option<String>,
    /// How its messages travel.
    mode: Option<String>,
}

impl Difference {
    /// Between what `other` has told and what this node would. What was not told does not differ.
    pub fn between(other: &Map<String, Value>, own: &Map<String, Value>) -> Self {
        let of = |field: &str| {
            let told = |node: &Map<String, Value>| -> Option<String> {
                node.get(field).and_then(Value::as_str).map(str::to_owned)
            };
            let own = told(own)?;
            told(other).filter(|other| *other != own)
        };
        Self {
            layout: of("layout"),
            mode: of("mode"),
        }
    }

    /// The codes of `GET /v1/cluster`.
    pub fn codes(&self) -> impl Iterator<Item = &'static str> {
        let mode = self.mode.as_ref().map(|_| "mode_mismatch");
        let layout = self.layout.as_ref().map(|_| "layout_mismatch");
        mode.into_iter().chain(layout)
    }

    fn is_none(&self) -> bool {
        self.layout.is_none() && self.mode.is_none()
    }

    /// In words: each field, there and here.
    fn words(&self, own: &Map<String, Value>) -> String {
        let fields = [("layout", &self.layout), ("mode", &self.mode)];
        let differing = fields.into_iter().filter_map(|(field, there)| {
            let here = own.get(field).and_then(Value::as_str).unwrap_or_default();
            let there = shown(there.as_ref()?);
            Some(format!("{field} is \"{there}\" there and \"{here}\" here"))
        });
        differing.collect::<Vec<_>>().join("; ")
    }

    /// What follows from it, and what to do.
    fn advice(&self, own: &Map<String, Value>) -> &'static str {
        let own_mode = own.get("mode").and_then(Value::as_str);
        let modes = [self.mode.as_deref(), own_mode];
        match (&self.layout, &self.mode) {
            (None, Some(_)) if modes.contains(&Some(FALLBACK)) => {
                "their members may not hear each other: throng check says what Redis forbids; grant it, and restart the nodes together"
            }
            (None, _) => {
                "what is published on one of them may not be kept, or not heard, on the other: give all nodes the same backplane_mode"
            }
            (Some(_), _) => {
                "their members do not hear each other in some rooms, or in any: give all nodes the same redis, redis_partitions and backplane_mode"
            }
        }
    }
}

/// Something to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// These nodes do not fit, all for the same reason.
    Begun {
        nodes: String,
        /// What differs, there and here.
        differs: String,
        /// No other node fits either: it may be this one that is wrong.
        is_alone: bool,
        advice: &'static str,
    },
    /// These have come to fit, or are gone.
    Over { nodes: String },
}

impl News {
    /// Writes it to the log.
    pub fn tell(&self) {
        match self {
            Self::Begun {
                nodes,
                differs,
                is_alone: false,
                advice,
            } => {
                tracing::warn!(nodes, differs, "other nodes do not fit this one; {advice}");
            }
            Self::Begun {
                nodes,
                differs,
                is_alone: true,
                advice,
            } => tracing::warn!(
                nodes,
                differs,
                "no other node fits this one, whose settings may be the wrong ones; {advice}"
            ),
            Self::Over { nodes } => {
                tracing::info!(nodes, "nodes that did not fit this one now do, or are gone");
            }
        }
    }
}

/// The nodes that do not fit, as they were seen last.
#[derive(Debug, Default)]
pub struct Fit {
    misfits: BTreeMap<(String, u64), Difference>,
}

impl Fit {
    /// Looks at all nodes. `own`: what this one would say of itself now.
    pub fn look(
        &mut self,
        nodes: &[NodeSeen],
        own: &Map<String, Value>,
        options: &Options,
    ) -> Vec<News> {
        let mut misfits = BTreeMap::new();
        let mut fitting_count = 0u64;
        let others = nodes
            .iter()
            .filter(|seen| seen.incarnation != options.incarnation);
        for seen in others {
            let Some(told) = cluster::told(seen, options) else {
                continue;
            };
            let difference = Difference::between(&told, own);
            if difference.is_none() {
                fitting_count += 1;
            } else {
                misfits.insert((seen.node.clone(), seen.incarnation), difference);
            }
        }
        let before = std::mem::replace(&mut self.misfits, misfits);
        let mut begun: BTreeMap<&Difference, Vec<&str>> = BTreeMap::new();
        for (node, difference) in &self.misfits {
            if before.get(node) != Some(difference) {
                begun.entry(difference).or_default().push(&node.0);
            }
        }
        let ended = before
            .keys()
            .filter(|node| !self.misfits.contains_key(node));
        let ended: Vec<&str> = ended.map(|(node, _)| node.as_str()).collect();
        let begun = begun.into_iter().map(|(difference, nodes)| News::Begun {
            nodes: named(&nodes),
            differs: difference.words(own),
            is_alone: fitting_count == 0,
            advice: difference.advice(own),
        });
        let over = (!ended.is_empty()).then(|| News::Over {
            nodes: named(&ended),
        });
        begun.chain(over).collect()
    }

    /// How many there are.
    pub fn misfits(&self) -> Misfits {
        let count = |differs: fn(&Difference) -> bool| {
            self.misfits.values().filter(|one| differs(one)).count() as u64
        };
        Misfits {
            layout: count(|one| one.layout.is_some()),
            mode: count(|one| one.mode.is_some()),
        }
    }
}

fn named(nodes: &[&str]) -> String {
    let names: Vec<String> = nodes
        .iter()
        .take(NAMED_MAX)
        .map(|name| shown(name))
        .collect();
    let names = names.join(", ");
    match nodes.len().saturating_sub(NAMED_MAX) {
        0 => names,
        left => format!("{names} and {left} more"),
    }
}

/// Another's words, cut and cleaned.
fn shown(text: &str) -> String {
    let clean = text.chars().filter(|character| !character.is_control());
    clean.take(SHOWN_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::cluster::tests::{options, own, seen};
    use super::*;

    fn state(layout: &str, mode: &str) -> Map<String, Value> {
        let mut state = own(&options());
        state.insert("layout".into(), json!(layout));
        state.insert("mode".into(), json!(mode));
        state
    }

    /// `(node, incarnation, layout, mode)` each, and this node itself.
    fn roll(others: &[(&str, u64, &str, &str)]) -> Vec<NodeSeen> {
        let own = Value::Object(state("one server", "pubsub")).to_string();
        let mut nodes = vec![NodeSeen {
            incarnation: options().incarnation,
            ..seen("a", 0, Some(own))
        }];
        nodes.extend(others.iter().map(|(node, incarnation, layout, mode)| {
            let told = Value::Object(state(layout, mode)).to_string();
            NodeSeen {
                incarnation: *incarnation,
                ..seen(node, 0, Some(told))
            }
        }));
        nodes
    }

    fn look(fit: &mut Fit, others: &[(&str, u64, &str, &str)]) -> Vec<News> {
        fit.look(&roll(others), &state("one server", "pubsub"), &options())
    }

    const TWO: &str = "redis://x:1 redis://y:1";

    #[test]
    fn who_does_not_fit_is_told_once_and_again_when_it_is_over() {
        let mut fit = Fit::default();
        let b = ("b", 1, "one server", "pubsub");
        assert_eq!(look(&mut fit, &[b]), []);
        let news = look(&mut fit, &[b, ("c", 2, TWO, "pubsub")]);
        let [
            News::Begun {
                nodes,
                differs,
                is_alone: false,
                advice,
            },
        ] = news.as_slice()
        else {
            panic!("{news:?}");
        };
        assert_eq!(nodes, "c");
        let wanted = format!("layout is \"{TWO}\" there and \"one server\" here");
        assert_eq!(*differs, wanted);
        assert!(advice.contains("redis_partitions"), "{advice}");
        assert_eq!(fit.misfits(), Misfits { layout: 1, mode: 0 });
        assert_eq!(look(&mut fit, &[b, ("c", 2, TWO, "pubsub")]), [], "once");
        let over = News::Over { nodes: "c".into() };
        assert_eq!(
            look(&mut fit, &[b, ("c", 2, "one server", "pubsub")]),
            [over]
        );
        assert_eq!(fit.misfits(), Misfits::default());
    }

    #[test]
    fn a_difference_that_changes_and_a_node_that_was_restarted_are_told_anew() {
        let mut fit = Fit::default();
        let begun = |news: &[News]| matches!(news, [News::Begun { .. }, ..]);
        assert!(begun(&look(&mut fit, &[("b", 1, TWO, "pubsub")])));
        assert!(begun(&look(&mut fit, &[("b", 1, TWO, "streams")])));
        assert_eq!(fit.misfits(), Misfits { layout: 1, mode: 1 });
        let news = look(&mut fit, &[("b", 2, TWO, "streams")]);
        assert!(
            begun(&news) && matches!(news[1], News::Over { .. }),
            "{news:?}"
        );
    }

    #[test]
    fn who_fits_nobody_is_told_so_in_one_line() {
        let mut fit = Fit::default();
        let names: Vec<String> = (0..12).map(|number| format!("n{number:02}")).collect();
        let others: Vec<_> = names
            .iter()
            .map(|name| (name.as_str(), 9, "one server", "streams"))
            .collect();
        let news = look(&mut fit, &others);
        let [
            News::Begun {
                nodes,
                is_alone: true,
                advice,
                ..
            },
        ] = news.as_slice()
        else {
            panic!("{news:?}");
        };
        assert!(
            nodes.starts_with("n00, n01") && nodes.ends_with("n09 and 2 more"),
            "{nodes}"
        );
        assert!(advice.contains("the same backplane_mode"), "{advice}");
    }

    #[test]
    fn a_mode_that_redis_forbids_is_to_be_granted() {
        let mut fit = Fit::default();
        let news = look(&mut fit, &[("b", 1, "one server", FALLBACK)]);
        let [News::Begun { advice, .. }] = news.as_slice() else {
            panic!("{news:?}");
        };
        assert!(advice.contains("throng check"), "{advice}");
    }

    #[test]
    fn silent_nodes_and_those_that_say_nothing_of_it_do_not_count() {
        let mut nodes = roll(&[("b", 1, TWO, "pubsub"), ("c", 2, TWO, "pubsub")]);
        nodes[1].age_ms = 1_501;
        nodes[2].state = None;
        let mut silent = state(TWO, "pubsub");
        silent.insert("layout".into(), Value::Null);
        nodes.push(seen("d", 0, Some(Value::Object(silent).to_string())));
        let mut fit = Fit::default();
        let news = fit.look(&nodes, &state("one server", "pubsub"), &options());
        assert_eq!(news, []);
    }

    #[test]
    fn anothers_words_are_cut_and_cleaned() {
        let mut fit = Fit::default();
        let evil = format!("\u{1b}[31m{}", "x".repeat(500));
        let news = look(&mut fit, &[("b", 1, &evil, "pubsub")]);
        let [News::Begun { differs, .. }] = news.as_slice() else {
            panic!("{news:?}");
        };
        assert!(
            !differs.contains('\u{1b}') && differs.len() < 200,
            "{differs}"
        );
    }
}
