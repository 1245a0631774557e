//! The registry against a Redis by hand, and several of them around one under faults.

mod redis;
mod world;

use self::redis::FakeRedis;
use super::*;
use crate::bus::ConnectionId;

fn options(node: &str) -> Options {
    Options {
        ttl_ms: 9_000,
        interval_ms: 500,
        ..Options::new(node.into())
    }
}

fn note(id: u64, user: Option<&str>, is_gone: bool) -> PresenceNote {
    PresenceNote {
        id: ConnectionId(id),
        user: user.map(Into::into),
        room: "r".into(),
        since_ms_ago: 70,
        heard_ms_ago: 7,
        is_gone,
    }
}

/// A registry that has its first heartbeat to give.
fn registry(node: &str, incarnation: u64) -> Registry {
    let mut registry = Registry::new(options(node), incarnation, Tick(0));
    registry.set_state(r#"{"state":"ready"}"#.into(), 3);
    registry
}

/// Carries out all that the registry asks for, at once.
fn serve(registry: &mut Registry, redis: &mut FakeRedis, now: Tick) {
    redis.now_ms = 1_000_000 + now.0 / 1_000;
    registry.handle_deadline(now);
    while let Some(command) = registry.poll_command() {
        let reply = redis.command(&command.words);
        registry.answered(command.ticket, Some(reply), now);
    }
    registry.check_invariants();
}

/// Gives all that it asks for no answer.
fn lose(registry: &mut Registry, now: Tick) {
    registry.handle_deadline(now);
    while let Some(command) = registry.poll_command() {
        registry.answered(command.ticket, None, now);
    }
}

fn ask(
    registry: &mut Registry,
    redis: &mut FakeRedis,
    question: ClusterQuestion,
    now: Tick,
) -> ClusterReply {
    registry.ask(9, question, now);
    serve(registry, redis, now);
    let (request, reply) = registry.poll_answer().expect("an answer");
    assert_eq!(request, 9);
    reply
}

#[test]
fn nothing_is_asked_before_the_node_knows_its_state() {
    let mut registry = Registry::new(options("a"), 1, Tick(0));
    assert_eq!(registry.next_deadline(), None);
    registry.handle_deadline(Tick::from_ms(10));
    registry.note(vec![note(1, Some("ann"), false)], Tick::from_ms(10));
    assert_eq!(registry.poll_command(), None);
    registry.set_state("{}".into(), 0);
    registry.handle_deadline(Tick::from_ms(10));
    assert!(registry.poll_command().is_some());
}

#[test]
fn a_connection_is_written_found_and_forgotten() {
    let (mut one, mut redis) = (registry("a", 1), FakeRedis::default());
    let now = Tick::from_ms(5);
    serve(&mut one, &mut redis, now);
    one.note(vec![note(1, Some("ann"), false)], now);
    serve(&mut one, &mut redis, now);
    let user = || ClusterQuestion::User {
        user: "ann".into(),
        connection_count_max: 10,
    };
    let later = Tick::from_ms(105);
    let ClusterReply::User { connections, .. } = ask(&mut one, &mut redis, user(), later) else {
        panic!("another answer");
    };
    assert_eq!(connections.len(), 1);
    assert_eq!(
        (connections[0].node.as_str(), &*connections[0].room),
        ("a", "r")
    );
    assert_eq!(
        (connections[0].since_ms_ago, connections[0].heard_ms_ago),
        (170, 107)
    );
    one.note(vec![note(1, Some("ann"), true)], later);
    serve(&mut one, &mut redis, later);
    let gone = ask(&mut one, &mut redis, user(), later);
    assert_eq!(
        gone,
        ClusterReply::User {
            connection_count: 0,
            connections: Vec::new()
        }
    );
    assert!(redis.connections().is_empty());
}

#[test]
fn what_is_not_kept_is_not_written() {
    for (kept, expected) in [(Kept::Off, 0), (Kept::Users, 1), (Kept::All, 2)] {
        let options = Options {
            kept,
            ..options("a")
        };
        let mut registry = Registry::new(options, 1, Tick(0));
        registry.set_state("{}".into(), 0);
        let mut redis = FakeRedis::default();
        serve(&mut registry, &mut redis, Tick(0));
        let notes = vec![note(1, Some("ann"), false), note(2, None, false)];
        registry.note(notes, Tick(0));
        serve(&mut registry, &mut redis, Tick(0));
        assert_eq!(redis.connections().len(), expected, "{kept:?}");
        assert_eq!(registry.keeps_users(), kept != Kept::Off);
    }
}

#[test]
fn all_is_told_anew_when_the_hash_was_gone_and_when_something_was_missed() {
    let (mut one, mut redis) = (registry("a", 1), FakeRedis::default());
    serve(&mut one, &mut redis, Tick(0));
    assert_eq!(one.poll_announce(), Some(1_000), "it is new");
    serve(&mut one, &mut redis, Tick::from_ms(500));
    assert_eq!(one.poll_announce(), None);
    redis.lose_all();
    serve(&mut one, &mut redis, Tick::from_ms(1_000));
    assert_eq!(one.poll_announce(), Some(1_000), "Redis is empty");
    one.note(vec![note(1, Some("ann"), false)], Tick::from_ms(1_500));
    lose(&mut one, Tick::from_ms(1_500));
    serve(&mut one, &mut redis, Tick::from_ms(1_750));
    assert_eq!(one.poll_announce(), Some(1_000), "a note was dropped");
    assert_eq!(one.snapshot(Tick::from_ms(1_750)).dropped, 1);
    lose(&mut one, Tick::from_ms(2_250));
    serve(&mut one, &mut redis, Tick::from_ms(2_500));
    assert_eq!(one.poll_announce(), None, "nothing was missed");
}

#[test]
fn announcements_are_spread_by_how_many_there_are_and_not_beyond_a_refresh() {
    let mut redis = FakeRedis::default();
    for (connections, within_ms) in [(0, 1_000), (40_000, 2_000), (1_000_000, 3_000)] {
        let mut one = registry("a", connections + 1);
        one.set_state("{}".into(), connections);
        serve(&mut one, &mut redis, Tick(0));
        assert_eq!(one.poll_announce(), Some(within_ms), "{connections}");
    }
}

#[test]
fn who_goes_while_redis_is_away_is_kept_in_mind_and_others_are_not() {
    let (mut one, mut redis) = (registry("a", 1), FakeRedis::default());
    serve(&mut one, &mut redis, Tick(0));
    let notes = (0..3).map(|id| note(id, Some("ann"), false)).collect();
    one.note(notes, Tick(0));
    serve(&mut one, &mut redis, Tick(0));
    lose(&mut one, Tick::from_ms(500));
    let notes = vec![note(0, Some("ann"), true), note(9, Some("ann"), false)];
    one.note(notes, Tick::from_ms(500));
    lose(&mut one, Tick::from_ms(500));
    assert_eq!(one.snapshot(Tick::from_ms(600)).oldest_us, 100_000);
    serve(&mut one, &mut redis, Tick::from_ms(750));
    assert_eq!(redis.connections().len(), 2);
    assert_eq!(one.snapshot(Tick::from_ms(750)).queued, 0);
}

#[test]
fn the_queue_is_bounded_and_so_is_what_is_on_its_way() {
    let options = Options {
        kept: Kept::All,
        ..options("a")
    };
    let mut one = Registry::new(options, 1, Tick(0));
    one.set_state("{}".into(), 0);
    let mut redis = FakeRedis::default();
    serve(&mut one, &mut redis, Tick(0));
    let many = QUEUE_MAX as u64 + 5_000;
    let notes = (0..many).map(|id| note(id, None, false));
    one.note(notes.collect(), Tick(0));
    one.check_invariants();
    let snapshot = one.snapshot(Tick(0));
    assert_eq!(snapshot.queued, QUEUE_MAX as u64);
    assert_eq!(snapshot.dropped, 5_000);
    let on_the_way = std::iter::from_fn(|| one.poll_command()).count();
    assert!((1_024..1_100).contains(&on_the_way), "{on_the_way}");
}

#[test]
fn without_redis_a_question_is_answered_with_why() {
    let mut one = registry("a", 1);
    let users = ClusterQuestion::Online {
        users: vec!["ann".into()],
        with_nodes: false,
    };
    one.ask(1, users.clone(), Tick(0));
    lose(&mut one, Tick(0));
    let away = |one: &mut Registry| match one.poll_answer() {
        Some((1, ClusterReply::Away(reason))) => reason,
        other => panic!("{other:?}"),
    };
    assert!(away(&mut one).contains("not answered yet"));
    let mut redis = FakeRedis::default();
    serve(&mut one, &mut redis, Tick::from_ms(250));
    one.ask(1, users.clone(), Tick::from_ms(251));
    let command = one.poll_command().unwrap();
    one.answered(command.ticket, None, Tick::from_ms(251));
    assert!(away(&mut one).contains("link to Redis was lost"));
    lose(&mut one, Tick::from_ms(750));
    one.ask(1, users.clone(), Tick::from_ms(750));
    lose(&mut one, Tick::from_ms(750));
    assert!(away(&mut one).contains("cannot be reached"));
    serve(&mut one, &mut redis, Tick::from_ms(1_000));
    one.ask(1, users, Tick::from_ms(1_000));
    let command = one.poll_command().unwrap();
    let error = Reply::Error("WRONGTYPE it is a text".into());
    one.answered(command.ticket, Some(error), Tick::from_ms(1_000));
    assert!(away(&mut one).contains("WRONGTYPE"));
    assert_eq!(one.snapshot(Tick(0)).errors, 1);
}

#[test]
fn a_heartbeat_that_is_refused_means_that_redis_is_away() {
    let mut one = registry("a", 1);
    one.handle_deadline(Tick(0));
    while let Some(command) = one.poll_command() {
        let error = Reply::Error("NOPERM no".into());
        one.answered(command.ticket, Some(error), Tick(0));
    }
    assert!(!one.snapshot(Tick(0)).up);
    one.ask(1, ClusterQuestion::Nodes, Tick(0));
    let (_, reply) = one.poll_answer().unwrap();
    assert!(matches!(reply, ClusterReply::Away(_)));
    serve(&mut one, &mut FakeRedis::default(), Tick::from_ms(250));
    assert!(one.snapshot(Tick(0)).up, "asked again soon");
}

#[test]
fn one_of_two_survivors_removes_a_dead_node_in_steps() {
    let mut redis = FakeRedis::default();
    let mut dead = registry("dead", 7);
    serve(&mut dead, &mut redis, Tick(0));
    let notes = (0..300).map(|id| note(id, Some("ann"), false));
    dead.note(notes.collect(), Tick(0));
    serve(&mut dead, &mut redis, Tick(0));
    let mut survivors = [registry("a", 1), registry("b", 2)];
    for step in 0..20 {
        for survivor in &mut survivors {
            serve(survivor, &mut redis, Tick::from_ms(step * 250));
        }
    }
    assert!(redis.connections().is_empty());
    let reaped = survivors.each_ref().map(|one| {
        let snapshot = one.snapshot(Tick(0));
        (snapshot.nodes_reaped, snapshot.connections_reaped)
    });
    assert!([[(1, 300), (0, 0)], [(0, 0), (1, 300)]].contains(&reaped));
    assert_eq!(redis.roll(), ["a", "b"]);
    assert_eq!(survivors[0].snapshot(Tick(0)).nodes, 2);
}

#[test]
fn a_node_that_lives_is_not_removed_whatever_the_roll_says() {
    let mut redis = FakeRedis::default();
    let (mut a, mut b) = (registry("a", 1), registry("b", 2));
    serve(&mut b, &mut redis, Tick(0));
    b.note(vec![note(1, Some("ann"), false)], Tick(0));
    serve(&mut b, &mut redis, Tick(0));
    redis.age_on_roll("b", 60_000);
    serve(&mut a, &mut redis, Tick(0));
    assert_eq!(redis.connections().len(), 1);
    assert_eq!(a.snapshot(Tick(0)).nodes_reaped, 0);
}

#[test]
fn a_stop_writes_what_it_knows_and_leaves_nothing() {
    let (mut one, mut redis) = (registry("a", 1), FakeRedis::default());
    serve(&mut one, &mut redis, Tick(0));
    let notes = (0..200).map(|id| note(id, Some("ann"), false));
    one.note(notes.collect(), Tick(0));
    serve(&mut one, &mut redis, Tick(0));
    let notes = (0..100).map(|id| note(id, Some("ann"), true));
    one.note(notes.collect(), Tick(0));
    one.close(Tick(0));
    assert!(!one.is_closed(Tick(0)));
    serve(&mut one, &mut redis, Tick(0));
    assert!(one.is_closed(Tick(0)));
    assert_eq!(redis.keys(), ["throng:users:{seen}"]);
    assert_eq!(one.snapshot(Tick(0)).nodes_reaped, 0, "it was not dead");
}

#[test]
fn a_stop_waits_a_second_for_redis_and_not_at_all_when_it_is_away() {
    let (mut one, mut redis) = (registry("a", 1), FakeRedis::default());
    serve(&mut one, &mut redis, Tick(0));
    one.close(Tick(0));
    assert!(!one.is_closed(Tick::from_ms(999)));
    assert!(one.is_closed(Tick::from_ms(1_000)));
    let mut other = registry("a", 1);
    lose(&mut other, Tick(0));
    other.close(Tick(0));
    assert!(other.is_closed(Tick(0)));
}

#[test]
fn registries_come_to_the_truth_after_any_faults() {
    for seed in 0..60 {
        world::World::new(seed).run();
    }
}

/// Several servers by hand: what a command names decides which of them has it.
struct Servers {
    of: Vec<FakeRedis>,
    /// These answer nothing.
    away: Vec<u16>,
    /// This one refuses these scripts.
    refusing: Option<(u16, Vec<&'static str>)>,
}

const BEATS: u16 = 0;
const ANNS: u16 = 1;
const BOBS: u16 = 2;

impl Servers {
    fn new() -> Self {
        Self {
            of: (0..3).map(|_| FakeRedis::default()).collect(),
            away: Vec::new(),
            refusing: None,
        }
    }

    fn serve(&mut self, registry: &mut Registry, now_ms: u64) {
        let now = Tick::from_ms(now_ms);
        registry.handle_deadline(now);
        while let Some(command) = registry.poll_command() {
            let server = match command.place.as_slice() {
                b"{ann}" => ANNS,
                b"{bob}" => BOBS,
                _ => BEATS,
            };
            registry.given(command.ticket, server);
            let redis = &mut self.of[usize::from(server)];
            redis.now_ms = 1_000_000 + now_ms;
            let script = std::str::from_utf8(&command.words[1]).unwrap();
            let is_refused = |(of, scripts): &(u16, Vec<&str>)| {
                *of == server && scripts.contains(&script) && command.words[0] == b"EVAL"
            };
            let reply = if self.away.contains(&server) {
                None
            } else if self.refusing.as_ref().is_some_and(is_refused) {
                let error = "NOPERM User x has no permissions to run the 'zadd' command script";
                Some(Reply::Error(error.into()))
            } else {
                Some(redis.command(&command.words))
            };
            registry.answered(command.ticket, reply, now);
        }
        registry.check_invariants();
    }

    /// How many connections a user has, or why nobody knows.
    fn count(&mut self, registry: &mut Registry, user: &str, now_ms: u64) -> Result<u64, String> {
        let question = ClusterQuestion::Online {
            users: vec![user.into()],
            with_nodes: false,
        };
        registry.ask(5, question, Tick::from_ms(now_ms));
        self.serve(registry, now_ms);
        match registry.poll_answer().unwrap() {
            (5, ClusterReply::Online(users)) => Ok(users[0].connection_count),
            (5, ClusterReply::Away(reason)) => Err(reason),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_server_that_is_away_takes_only_what_it_has_along_whichever_it_is() {
    for dead in [BEATS, ANNS, BOBS] {
        let mut servers = Servers::new();
        let mut one = registry("a", 1);
        servers.serve(&mut one, 0);
        let both = || vec![note(1, Some("ann"), false), note(2, Some("bob"), false)];
        one.note(both(), Tick(0));
        servers.serve(&mut one, 0);
        servers.away = vec![dead];
        // Longer than any entry lives: who has a server that answers is told of again and again.
        for step in 1..40 {
            let now_ms = step * 500;
            if step % 6 == 0 {
                one.note(both(), Tick::from_ms(now_ms));
            }
            servers.serve(&mut one, now_ms);
            for (user, server) in [("ann", ANNS), ("bob", BOBS)] {
                let found = servers.count(&mut one, user, now_ms);
                match server == dead {
                    true => assert!(found.is_err(), "{dead} {user} {found:?}"),
                    false => assert_eq!(found, Ok(1), "{dead} {user} at {now_ms}"),
                }
            }
        }
        assert_eq!(one.snapshot(Tick(0)).up, dead != BEATS);
        _ = one.poll_announce();
        // Who leaves is forgotten at once where the server answers, and elsewhere when it is back.
        one.note(vec![note(1, Some("ann"), true)], Tick::from_ms(20_000));
        servers.serve(&mut one, 20_000);
        if dead != ANNS {
            assert!(servers.of[usize::from(ANNS)].connections().is_empty());
        }
        servers.away.clear();
        one.note(vec![note(2, Some("bob"), false)], Tick::from_ms(20_500));
        for step in 0..3 {
            servers.serve(&mut one, 20_500 + 500 * step);
        }
        assert_eq!(servers.count(&mut one, "ann", 21_500), Ok(0), "{dead}");
        assert_eq!(servers.count(&mut one, "bob", 21_500), Ok(1), "{dead}");
        assert!(one.poll_announce().is_some(), "{dead} missed some");
    }
}

#[test]
fn who_has_gone_is_not_told_to_a_server_that_is_away_all_the_time() {
    let (mut one, mut redis) = (registry("a", 1), FakeRedis::default());
    serve(&mut one, &mut redis, Tick(0));
    let gone = (0..20_000).map(|id| note(id, Some("ann"), true));
    one.note(gone.collect(), Tick(0));
    lose(&mut one, Tick(0));
    lose(&mut one, Tick::from_ms(250));
    let mut asked = 0;
    for step in 2..42 {
        one.handle_deadline(Tick::from_ms(250 * step));
        while let Some(command) = one.poll_command() {
            asked += 1;
            one.answered(command.ticket, None, Tick::from_ms(250 * step));
        }
    }
    assert!(asked < 40 * 30, "{asked} in ten seconds");
    assert_eq!(one.snapshot(Tick(0)).queued, 20_000);
    for step in 42..66 {
        serve(&mut one, &mut redis, Tick::from_ms(250 * step));
    }
    assert_eq!(one.snapshot(Tick(0)).queued, 0, "within six seconds");
}

#[test]
fn what_one_server_refuses_is_said_once_and_nobody_there_is_called_offline() {
    let mut servers = Servers::new();
    let mut one = registry("a", 1);
    servers.refusing = Some((ANNS, vec![scripts::TOUCH]));
    servers.serve(&mut one, 0);
    _ = one.poll_announce();
    let both = || vec![note(1, Some("ann"), false), note(2, Some("bob"), false)];
    one.note(both(), Tick(0));
    servers.serve(&mut one, 0);
    assert!(!one.snapshot(Tick(0)).up);
    let why = servers.count(&mut one, "ann", 10).unwrap_err();
    assert!(why.contains("NOPERM") && why.contains("+zadd"), "{why}");
    assert_eq!(servers.count(&mut one, "bob", 10), Ok(1));
    servers.serve(&mut one, 1_000);
    assert!(!one.snapshot(Tick::from_ms(1_000)).up, "it goes on");
    servers.refusing = None;
    one.note(both(), Tick::from_ms(3_000));
    servers.serve(&mut one, 3_000);
    assert!(one.snapshot(Tick::from_ms(3_000)).up);
    assert_eq!(servers.count(&mut one, "ann", 3_000), Ok(1));
    servers.serve(&mut one, 3_500);
    assert!(one.poll_announce().is_some(), "others may have been missed");
}

#[test]
fn every_script_that_is_refused_shows_and_passes() {
    for script in [
        scripts::TOUCH,
        scripts::ENROL,
        scripts::SEE,
        scripts::ROLL,
        scripts::COUNT,
        scripts::FORGET,
    ] {
        let mut servers = Servers::new();
        let mut one = registry("a", 1);
        servers.serve(&mut one, 0);
        servers.refusing = Some((BEATS, vec![script]));
        one.note(vec![note(1, Some("eve"), false)], Tick(0));
        one.note(vec![note(1, Some("eve"), true)], Tick(0));
        servers.serve(&mut one, 500);
        _ = servers.count(&mut one, "eve", 500);
        assert!(!one.snapshot(Tick::from_ms(500)).up, "{script}");
        servers.refusing = None;
        // A refresh is 3 s: what is not asked any more is not refused any more.
        servers.serve(&mut one, 6_500);
        assert!(one.snapshot(Tick::from_ms(6_500)).up, "{script}");
        assert!(servers.count(&mut one, "eve", 6_500).is_ok(), "{script}");
    }
}

#[test]
fn what_stands_under_one_users_key_spoils_nobody_else() {
    let mut one = registry("a", 1);
    let mut redis = FakeRedis::default();
    serve(&mut one, &mut redis, Tick(0));
    one.note(vec![note(1, Some("ann"), false)], Tick(0));
    while let Some(command) = one.poll_command() {
        let error = "ERR Error running script: WRONGTYPE Operation against a key";
        one.answered(command.ticket, Some(Reply::Error(error.into())), Tick(0));
    }
    let snapshot = one.snapshot(Tick(0));
    assert!(snapshot.up && snapshot.errors > 0);
}

#[test]
fn a_server_counts_by_its_own_clock() {
    let mut servers = Servers::new();
    let mut one = registry("a", 1);
    servers.serve(&mut one, 0);
    one.note(vec![note(1, Some("ann"), false)], Tick(0));
    servers.serve(&mut one, 0);
    servers.of[usize::from(BEATS)].now_ms += 3_600_000;
    one.note(Vec::new(), Tick(0));
    let question = ClusterQuestion::User {
        user: "ann".into(),
        connection_count_max: 10,
    };
    one.ask(5, question, Tick(0));
    while let Some(command) = one.poll_command() {
        let server = usize::from(command.place == b"{ann}");
        let reply = servers.of[server].command(&command.words);
        one.answered(command.ticket, Some(reply), Tick(0));
    }
    let Some((5, ClusterReply::User { connections, .. })) = one.poll_answer() else {
        panic!("another answer");
    };
    assert_eq!(connections[0].since_ms_ago, 70);
}
