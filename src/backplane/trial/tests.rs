//! A server by hand that knows rules, and what a trial makes of its answers.

use std::collections::BTreeSet;

use super::*;
use crate::backplane::remote::{Address, Source};

const SCRATCH: &str = "check-1-2-0";

fn options(url: &str, mode: Mode) -> Options {
    let address = match Source::parse(url).unwrap() {
        Source::One(address) => address,
        Source::Cluster { seeds } => seeds[0].clone(),
        Source::Sentinel { sentinels, .. } => sentinels[0].clone(),
    };
    Options {
        mode,
        ..Options::new(address)
    }
}

/// Every command that is tried at a server which answers them by `answer`, and the trial at its end.
fn tried(options: &Options, answer: impl Fn(&Deed) -> Reply) -> (Vec<Deed>, Trial) {
    let mut trial = Trial::new(options, Kept::Users, SCRATCH);
    let mut deeds = Vec::new();
    while let Some(deed) = trial.next() {
        trial.answered(&answer(&deed));
        deeds.push(deed);
    }
    (deeds, trial)
}

fn text(deed: &Deed) -> String {
    let words: Vec<_> = deed
        .words
        .iter()
        .map(|word| String::from_utf8_lossy(word))
        .collect();
    words.join(" ")
}

fn error(words: &str) -> Reply {
    Reply::Error(words.to_owned())
}

fn fine(_: &Deed) -> Reply {
    Reply::Number(1)
}

/// Refuses the commands of these rules.
fn without(rules: &'static [&'static str]) -> impl Fn(&Deed) -> Reply {
    move |deed| {
        let command = String::from_utf8_lossy(&deed.words[0]).to_lowercase();
        let is_denied = rules.iter().any(|rule| match rule.split_once('|') {
            Some((of, _)) => of[1..] == command,
            None => rule[1..] == command,
        });
        match is_denied {
            true => error(&format!(
                "NOPERM this user has no permissions to run the '{command}' command"
            )),
            false => Reply::Number(1),
        }
    }
}

/// What every link is greeted with and nothing else needs; a server that speaks RESP3 is told its client's name by HELLO.
const GREETING: [&str; 3] = ["+hello", "+client|setname", "+role"];

#[test]
fn every_rule_that_is_to_be_granted_is_tried_and_no_other() {
    for (url, mode) in [
        ("redis://u@h/2", Mode::Pubsub),
        ("redis://u@h/2", Mode::Sharded),
        ("redis://u@h/2", Mode::Streams),
        ("redis-cluster://u@h", Mode::Streams),
    ] {
        let options = options(url, mode);
        let command = Grant::at_redis(&options).command();
        let granted: BTreeSet<&str> = command
            .split(' ')
            .filter(|rule| rule.starts_with('+') && !GREETING.contains(rule))
            .filter(|rule| *rule != "+select" || options.address.database > 0)
            .filter(|rule| *rule != "+info" || mode == Mode::Streams)
            .collect();
        let (deeds, _) = tried(&options, fine);
        let tried = deeds
            .iter()
            .map(|deed| deed.right)
            .filter(|right| !right.is_empty());
        assert_eq!(tried.collect::<BTreeSet<_>>(), granted, "{url} {mode:?}");
    }
}

#[test]
fn the_page_for_operators_grants_the_same() {
    let page = include_str!("../../../docs/OPERATING.md");
    let rules = |text: &str| -> BTreeSet<String> {
        let text = text.replace('\\', "");
        let words = text.split([' ', '\n', '`', '\r']);
        words
            .filter(|word| word.starts_with('+'))
            .map(str::to_owned)
            .collect()
    };
    let (_, after) = page.split_once("ACL SETUSER throng on").unwrap();
    let (line, after) = after.split_once("```").unwrap();
    let row = |name: &str| {
        let row = after.lines().find(|line| line.starts_with(name));
        rules(row.unwrap_or_else(|| panic!("no row {name}")))
    };
    let granted = |url: &str, mode: Mode| rules(&Grant::at_redis(&options(url, mode)).command());
    let base = rules(line);
    assert_eq!(granted("redis://h", Mode::Pubsub), base);
    for (mode, name) in [
        (Mode::Sharded, "| `backplane_mode = \"sharded\"` |"),
        (Mode::Streams, "| `backplane_mode = \"streams\"` |"),
    ] {
        let all: BTreeSet<String> = base.union(&row(name)).cloned().collect();
        assert_eq!(granted("redis://h", mode), all);
    }
    let all: BTreeSet<String> = base.union(&row("| a cluster |")).cloned().collect();
    assert_eq!(granted("redis-cluster://h", Mode::Pubsub), all);
    let sentinel = Address::parse("redis://h").unwrap();
    let at_sentinel = rules(&Grant::at_sentinel(&sentinel).command());
    assert_eq!(row("| at the Sentinels |"), at_sentinel);
    let page = include_str!("../../../docs/PROTOCOL.md");
    let (_, after) = page.split_once("**Permissions** of Redis' ACL").unwrap();
    let (line, _) = after.split_once(". ").unwrap();
    assert_eq!(rules(line), rules(registry::GRANT));
}

#[test]
fn all_that_is_lacking_is_named_at_once() {
    let options = options("redis://alice@h", Mode::Pubsub);
    let (_, trial) = tried(&options, without(&["+publish", "+zadd", "+pfcount"]));
    let said = trial.verdict().unwrap_err();
    let wanted = "the Redis user alice may not do all that is needed: it lacks +publish +zadd +pfcount; \
                  an administrator grants all of it by: ACL SETUSER alice &throng:* ~throng:* +hello";
    assert!(said.starts_with(wanted), "{said}");
}

#[test]
fn keys_and_channels_that_are_not_let_are_named_once_by_their_pattern() {
    let options = options("redis://alice@h", Mode::Streams);
    let refuses = |deed: &Deed| match text(deed) {
        words if words.starts_with("PUBLISH") || words.starts_with("SUBSCRIBE") => error(
            "NOPERM this user has no permissions to access one of the channels used as arguments",
        ),
        words if words.contains(":known:") => error("NOPERM No permissions to access a key"),
        _ => Reply::Number(1),
    };
    let (_, trial) = tried(&options, refuses);
    let said = trial.verdict().unwrap_err();
    assert!(said.contains("it lacks &throng:* ~throng:*; an"), "{said}");
}

#[test]
fn what_the_registry_lacks_costs_no_messages() {
    let options = options("redis://alice@h", Mode::Pubsub);
    let (_, trial) = tried(&options, without(&["+zadd"]));
    let said = trial.verdict().unwrap().unwrap();
    let wanted = "messages travel, but who is online and how the nodes are is not known: ";
    assert!(
        said.starts_with(wanted) && said.contains("it lacks +zadd; an"),
        "{said}"
    );
    let full = |deed: &Deed| match deed.words[0].as_slice() {
        b"SET" => error("OOM command not allowed when used memory > 'maxmemory'."),
        _ => Reply::Number(1),
    };
    let (_, trial) = tried(&options, full);
    let said = trial.verdict().unwrap().unwrap();
    assert!(said.contains("maxmemory"), "{said}");
    let streams = self::options("redis://alice@h", Mode::Streams);
    assert!(
        tried(&streams, full).1.verdict().is_err(),
        "there it carries messages"
    );
}

#[test]
fn a_registry_that_is_off_needs_less() {
    let options = options("redis://alice@h", Mode::Pubsub);
    let mut trial = Trial::new(&options, Kept::Off, SCRATCH);
    let answer = without(&[
        "+sadd",
        "+pfadd",
        "+zcount",
        "+zrangebyscore",
        "+zremrangebyscore",
    ]);
    while let Some(deed) = trial.next() {
        trial.answered(&answer(&deed));
    }
    assert_eq!(trial.verdict(), Ok(None));
}

#[test]
fn partitions_fall_back_where_the_rest_is_let() {
    let options = options("redis://alice@h", Mode::Sharded);
    let (_, trial) = tried(&options, without(&["+ssubscribe"]));
    assert!(!trial.is_sharded());
    let said = trial.verdict().unwrap().unwrap();
    let wanted = "messages travel by PUBLISH and SUBSCRIBE, unheard by nodes";
    assert!(
        said.starts_with(wanted) && said.contains("it lacks +ssubscribe; an"),
        "{said}"
    );
    let (_, trial) = tried(&options, without(&["+ssubscribe", "+subscribe"]));
    let said = trial.verdict().unwrap_err();
    assert!(
        said.contains("it lacks +subscribe +ssubscribe; an"),
        "{said}"
    );
    let (_, trial) = tried(&options, without(&["+subscribe", "+unsubscribe"]));
    assert_eq!(
        (trial.is_sharded(), trial.verdict()),
        (true, Ok(None)),
        "nobody needs these"
    );
    let old = |deed: &Deed| match deed.words[0].as_slice() {
        b"SPUBLISH" => error("ERR unknown command 'SPUBLISH', with args beginning with:"),
        _ => Reply::Number(1),
    };
    let said = tried(&options, old).1.verdict().unwrap().unwrap();
    assert!(
        said.contains("it does not know SPUBLISH: it is too old"),
        "{said}"
    );
}

#[test]
fn what_would_leave_something_behind_is_tried_on_a_scratch_key_alone() {
    let options = options("redis://alice@h", Mode::Pubsub);
    let (deeds, trial) = tried(&options, without(&["+set"]));
    let risky = |deed: &Deed| {
        ["SADD", "PFADD"]
            .iter()
            .any(|word| text(deed).starts_with(word))
    };
    assert!(!deeds.iter().any(risky));
    let said = trial.verdict().unwrap().unwrap();
    let wanted = "it lacks +set (and perhaps +sadd +pfadd, which cannot be tried);";
    assert!(said.contains(wanted), "{said}");
    let (deeds, _) = tried(&options, fine);
    let at = |wanted: &str| {
        deeds
            .iter()
            .position(|deed| text(deed).starts_with(wanted))
            .unwrap()
    };
    let members = format!("throng:node:{{{SCRATCH}:0000000000000000}}:conns");
    assert!(at(&format!("SET {members}")) < at(&format!("SADD {members}")));
    let is_of_scratch = |deed: &Deed| match deed.kind {
        Kind::Scratch | Kind::OnScratch => text(deed).contains(SCRATCH),
        _ => true,
    };
    assert!(
        deeds.iter().all(is_of_scratch),
        "no key of a node or a user is written"
    );
}

#[test]
fn every_scratch_key_is_removed_at_the_end() {
    for mode in [Mode::Pubsub, Mode::Streams] {
        let (deeds, _) = tried(&options("redis://h", mode), fine);
        let first = deeds
            .iter()
            .position(|deed| deed.kind == Kind::Cleanup)
            .unwrap();
        assert!(deeds[first..].iter().all(|deed| deed.kind == Kind::Cleanup));
        let removed: BTreeSet<&[u8]> = deeds[first..].iter().map(|deed| &*deed.words[1]).collect();
        for deed in &deeds[..first] {
            match (deed.words[0].as_slice(), deed.kind) {
                (b"SET", _) => assert!(removed.contains(&*deed.words[1]), "{}", text(deed)),
                (_, Kind::Proof) => {
                    let keys = &deed.words[3..5];
                    assert!(keys.iter().all(|key| removed.contains(&**key)), "{keys:?}");
                }
                _ => {}
            }
        }
    }
}

#[test]
fn what_a_node_does_is_done_only_where_all_is_let_and_has_to_succeed() {
    let options = options("redis://alice@h", Mode::Streams);
    let proofs = |deeds: &[Deed]| deeds.iter().filter(|deed| deed.kind == Kind::Proof).count();
    let (deeds, trial) = tried(&options, fine);
    assert_eq!((proofs(&deeds), trial.verdict()), (3, Ok(None)));
    let (deeds, _) = tried(&options, without(&["+xadd"]));
    assert_eq!(proofs(&deeds), 2, "the registry's");
    let breaks = |deed: &Deed| match deed.kind {
        Kind::Proof => error("ERR user_script:1: attempt to call a nil value"),
        _ => Reply::Number(1),
    };
    let said = tried(&options, breaks).1.verdict().unwrap_err();
    assert!(said.contains("attempt to call a nil value"), "{said}");
}

#[test]
fn answers_of_a_cluster_that_send_elsewhere_are_no_refusal() {
    let options = options("redis-cluster://alice@h", Mode::Pubsub);
    let moved = |deed: &Deed| match deed.kind {
        Kind::Proof => Reply::Number(1),
        _ if deed.words[0] == b"PUBLISH" => Reply::Number(0),
        _ => error("MOVED 1 127.0.0.1:7000"),
    };
    assert_eq!(tried(&options, moved).1.verdict(), Ok(None));
    let moving = |_: &Deed| error("MOVED 1 127.0.0.1:7000");
    let said = tried(&options, moving).1.verdict().unwrap().unwrap();
    assert!(said.contains("being moved"), "{said}");
}

#[test]
fn a_database_that_is_not_there_is_told() {
    let options = options("redis://alice@h/99", Mode::Pubsub);
    let none = |deed: &Deed| match deed.kind {
        Kind::Select => error("ERR DB index is out of range"),
        _ => Reply::Number(1),
    };
    let said = tried(&options, none).1.verdict().unwrap_err();
    assert!(said.starts_with("database 99 cannot be selected"), "{said}");
}

#[test]
fn a_sentinel_that_lets_nobody_listen_costs_time_only() {
    let address = Address::parse("redis://alice@h").unwrap();
    let grant = Grant::at_sentinel(&address);
    let mut trial = Trial::at_sentinel(grant.clone(), "one", true);
    let answer = without(&["+subscribe"]);
    while let Some(deed) = trial.next() {
        trial.answered(&answer(&deed));
    }
    let said = trial.verdict().unwrap().unwrap();
    assert!(said.starts_with("a failover is heard of only"), "{said}");
    let mut trial = Trial::at_sentinel(grant, "one", true);
    let answer = without(&["+subscribe", "+sentinel|get-master-addr-by-name"]);
    while let Some(deed) = trial.next() {
        trial.answered(&answer(&deed));
    }
    let said = trial.verdict().unwrap_err();
    let wanted = "it lacks +sentinel|get-master-addr-by-name +subscribe; an";
    assert!(said.contains(wanted), "{said}");
}
