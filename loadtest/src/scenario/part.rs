//! A scenario as a generator sees it that has joined: it takes part, and somebody else directs.

use std::ops::Range;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::Scenario;
use super::common::{Common, Generator};
use super::probe::probe;
use super::stage::{Extent, Play, start};
use crate::client::{Plan, Shared, Troupe};
use crate::failure::Failure;

/// What a crew takes of the workers of this process.
pub type Workers = (Vec<Arc<Shared>>, Box<dyn Troupe>);

/// What can be done with any scenario.
pub trait AnyPlay {
    /// See [`Play::common`].
    fn common(&self) -> &Common;
    /// See [`Play::extent`].
    ///
    /// # Errors
    /// What is wrong with its arguments.
    fn extent(&self) -> Result<Extent, Failure>;
    /// The scenario as it is sent to other generators: its name and its arguments, but for those that are each
    /// generator's own. The seed is among them even where it was drawn.
    fn written(&self) -> Value;
    /// See [`start`].
    ///
    /// # Errors
    /// When a thread cannot be started.
    fn start(
        &self,
        plan: &Arc<Plan>,
        workers: Range<u32>,
        worker_count: u32,
        member_count: u32,
    ) -> Result<Workers, Failure>;
}

impl<P: Play> AnyPlay for P {
    fn common(&self) -> &Common {
        Play::common(self)
    }

    fn extent(&self) -> Result<Extent, Failure> {
        Play::extent(self)
    }

    fn written(&self) -> Value {
        let mut arguments = serde_json::to_value(self).expect("arguments are plain data");
        // One seed for all: the rooms' names come from it.
        arguments["common"]["seed"] = self.common().seed().into();
        Value::Object(Map::from_iter([(P::NAME.to_owned(), arguments)]))
    }

    fn start(
        &self,
        plan: &Arc<Plan>,
        workers: Range<u32>,
        worker_count: u32,
        member_count: u32,
    ) -> Result<Workers, Failure> {
        start(self, plan, workers, worker_count, member_count)
    }
}

/// What this generator does of a scenario.
pub struct Part {
    scenario: Scenario,
    extent: Extent,
    thread_count: u32,
}

impl Part {
    /// Reads what [`AnyPlay::written`] gave, and checks what can be checked of it here, where these options hold.
    ///
    /// # Errors
    /// What is wrong, and what mends it.
    pub fn read(
        scenario: Value,
        generator: &Generator,
        allow_remote: bool,
        generator_count: u32,
    ) -> Result<Self, Failure> {
        let mut scenario: Scenario = serde_json::from_value(scenario)
            .map_err(|error| Failure::Usage(format!("the scenario is not understood: {error}")))?;
        let own = scenario.common_mut();
        own.generator = generator.clone();
        own.allow_remote = allow_remote;
        let common = scenario.any().common();
        let extent = scenario.any().extent()?;
        common.check(extent)?;
        let thread_count = common.thread_count(extent, generator_count.max(1))?;
        for target in common.targets()? {
            probe(&target, common.handshake_patience())?;
        }
        Ok(Self {
            scenario,
            extent,
            thread_count,
        })
    }

    /// Threads that it will use.
    pub const fn thread_count(&self) -> u32 {
        self.thread_count
    }

    /// Processors that they may use at once.
    pub fn core_count(&self) -> f64 {
        let common = self.scenario.any().common();
        common.client_core_count(self.thread_count)
    }

    /// Starts its workers: from `worker_first` on, of `worker_count` of all generators.
    ///
    /// # Errors
    /// When it cannot have so many connections, or a thread cannot be started.
    pub fn start(&self, worker_first: u32, worker_count: u32) -> Result<Workers, Failure> {
        let worker_end = worker_first
            .checked_add(self.thread_count)
            .filter(|end| *end <= worker_count)
            .ok_or_else(|| Failure::Usage("there are fewer workers than it has threads".into()))?;
        let play = self.scenario.any();
        let plan = play
            .common()
            .plan(self.extent, self.thread_count, worker_count)?;
        play.start(
            &plan,
            worker_first..worker_end,
            worker_count,
            self.extent.members,
        )
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use clap::{Command, FromArgMatches, Subcommand};

    use super::*;
    use crate::server::Beside;
    use crate::together::Coordination;

    fn parse(words: &[String]) -> Scenario {
        let command = Scenario::augment_subcommands(Command::new("throng-load"));
        let matches = command.try_get_matches_from(words);
        Scenario::from_arg_matches(&matches.unwrap_or_else(|error| panic!("{error}"))).unwrap()
    }

    /// Sets what does not travel to what it is by itself.
    fn forget_own(scenario: &mut Scenario) {
        let own = scenario.common_mut();
        own.fix_seed();
        own.generator = Generator::default();
        own.coordination = Coordination::default();
        own.beside = Beside::default();
        own.allow_remote = false;
        own.expect = Vec::new();
        own.json = None::<PathBuf>;
        own.html = None::<PathBuf>;
        own.hdr = None::<PathBuf>;
        own.quiet = false;
        if let Scenario::Drain(drain) = scenario {
            drain.stop_pid = None;
        }
    }

    fn assert_travels(words: &[String]) {
        let mut scenario = parse(words);
        let written = serde_json::to_string(&scenario.any().written()).unwrap();
        let read: Scenario = serde_json::from_str(&written).unwrap();
        forget_own(&mut scenario);
        assert_eq!(format!("{read:?}"), format!("{scenario:?}"), "{words:?}");
    }

    #[test]
    fn every_scenario_travels_with_its_defaults_and_with_every_flag_set() {
        let command = Scenario::augment_subcommands(Command::new("throng-load"));
        for scenario in command.get_subcommands() {
            let name = scenario.get_name();
            let target = ["--target".to_owned(), "ws://127.0.0.1:9".to_owned()];
            let mut words = vec!["throng-load".to_owned(), name.to_owned()];
            words.extend(target.clone());
            assert_travels(&words);
            let few = words.clone();
            let mut set: Vec<&clap::Arg> = Vec::new();
            for argument in scenario.get_arguments() {
                let Some(long) = argument.get_long().filter(|long| *long != "target") else {
                    continue;
                };
                let excludes = |one, other| scenario.get_arg_conflicts_with(one).contains(&other);
                if (set.iter()).any(|set| excludes(set, argument) || excludes(argument, set)) {
                    let mut alone = few.clone();
                    alone.extend([format!("--{long}"), "77".to_owned()]);
                    assert_travels(&alone);
                    continue;
                }
                set.push(argument);
                words.push(format!("--{long}"));
                if argument.get_action().takes_values() {
                    let choices = argument.get_possible_values();
                    let default = argument.get_default_values().first();
                    let default = default.and_then(|value| value.to_str()).unwrap_or("");
                    let value = match choices.last() {
                        Some(choice) => choice.get_name().to_owned(),
                        None if default.contains('.') => "0.25".to_owned(),
                        None => "77".to_owned(),
                    };
                    words.push(value);
                }
            }
            assert!(words.len() > 30, "{words:?}");
            assert_travels(&words);
        }
    }

    #[test]
    fn a_generator_has_its_own_leave_and_its_own_limits() {
        let words = |text: &str| -> Vec<String> {
            let words = format!("throng-load {text}");
            words.split_whitespace().map(str::to_owned).collect()
        };
        let generator = Generator::default();
        let remote = parse(&words(
            "echo --target ws://192.0.2.1:80 --allow-remote --threads 3",
        ));
        let Err(Failure::Usage(text)) = Part::read(remote.any().written(), &generator, false, 2)
        else {
            panic!("the coordinator's leave is not this generator's")
        };
        assert!(text.contains("--allow-remote"), "{text}");

        let wrong = parse(&words("echo --target ws://127.0.0.1:9 --in-flight 0"));
        assert!(Part::read(wrong.any().written(), &generator, false, 2).is_err());
        for nothing in [
            "{}",
            "\"echo\"",
            "{\"nothing\": {}}",
            "{\"echo\": {\"common\": 1}}",
        ] {
            let Err(Failure::Usage(text)) =
                Part::read(serde_json::from_str(nothing).unwrap(), &generator, false, 2)
            else {
                panic!("{nothing} is no scenario")
            };
            assert!(text.contains("not understood"), "{text}");
        }
    }
}
