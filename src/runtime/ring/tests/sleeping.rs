//! Alarms, and the way to sleep.

use std::os::fd::AsFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;

/// Whether the eventfd is readable, after waiting at most `ms` milliseconds for it.
fn readable(ring: &Ring, ms: i64) -> bool {
    let wait = Timespec {
        tv_sec: ms / 1000,
        tv_nsec: ms % 1000 * 1_000_000,
    };
    let mut fds = [PollFd::from_borrowed_fd(
        ring.wake_fd().as_fd(),
        PollFlags::IN,
    )];
    poll(&mut fds, Some(&wait)).unwrap() == 1
}

fn sleep(world: &mut World) {
    while !world.ring.prepare_sleep() {
        world.drain();
    }
}

#[test]
fn a_completion_signals_a_sleeper_and_nobody_else() {
    let mut world = World::new(&options(Descriptors::Direct));
    let (mut client, token) = world.client();
    world.turn();
    write(&mut client, b"busy");
    assert_eq!(world.received(token, 4), b"busy");
    assert!(
        !readable(&world.ring, 0),
        "nobody sleeps, nobody is signalled"
    );
    sleep(&mut world);
    assert!(!readable(&world.ring, 0), "nothing has come");
    write(&mut client, b"wake up");
    assert!(readable(&world.ring, 10_000));
    world.ring.awake();
    assert!(!readable(&world.ring, 0), "awake empties it");
    world.turn();
    assert_eq!(world.received(token, 7), b"wake up");
}

#[test]
fn what_has_come_already_forbids_to_sleep() {
    let mut world = World::new(&options(Descriptors::Direct));
    let (mut client, token) = world.client();
    world.turn();
    write(&mut client, b"early");
    // The bytes are in the socket; their completion is deferred work that nobody has run.
    assert!(!world.ring.prepare_sleep());
    world.drain();
    assert_eq!(world.received(token, 5), b"early");
}

#[test]
fn other_threads_wake_a_sleeper() {
    let mut world = World::new(&options(Descriptors::Direct));
    sleep(&mut world);
    let handle = world.ring.wake_handle();
    let thread = std::thread::spawn(move || handle.wake());
    assert!(readable(&world.ring, 10_000));
    world.ring.awake();
    thread.join().unwrap();
    assert!(!readable(&world.ring, 0));
}

#[test]
fn an_alarm_comes_once_and_not_before_its_time() {
    let mut world = World::new(&options(Descriptors::Direct));
    let start = Instant::now();
    world.ring.set_alarm(Duration::from_millis(30));
    while !world.seen.contains(&Seen::Alarm) {
        world.ring.submit_and_wait().unwrap();
        world.drain();
    }
    assert!(start.elapsed() >= Duration::from_millis(30));
    sleep(&mut world);
    assert!(!readable(&world.ring, 50), "nothing is left of it");
    assert_eq!(world.seen, [Seen::Alarm]);
}

#[test]
fn an_alarm_replaces_the_one_before_whatever_the_moment() {
    let mut world = World::new(&options(Descriptors::Direct));
    // Around the moment of passing: each is replaced just before, while or after it passes.
    let mut alarms = 0;
    for round in 0..2_000u64 {
        world.ring.set_alarm(Duration::from_micros(round % 40));
        world.turn();
        alarms += world
            .seen
            .drain(..)
            .filter(|seen| *seen == Seen::Alarm)
            .count();
    }
    world.ring.set_alarm(Duration::from_millis(100));
    let start = Instant::now();
    while world.seen.is_empty() {
        world.ring.submit_and_wait().unwrap();
        world.drain();
    }
    assert_eq!(
        world.seen,
        [Seen::Alarm],
        "one alarm stands, after {alarms} that had passed"
    );
    assert!(
        start.elapsed() >= Duration::from_millis(99),
        "and it is the last one: {:?}",
        start.elapsed()
    );
    sleep(&mut world);
    assert!(!readable(&world.ring, 20));
}

#[test]
fn an_alarm_moves_earlier_and_later() {
    let mut world = World::new(&options(Descriptors::Direct));
    let start = Instant::now();
    world.ring.set_alarm(Duration::from_secs(3_600));
    world.turn();
    world.ring.set_alarm(Duration::from_millis(20));
    world.turn();
    world.ring.set_alarm(Duration::from_millis(60));
    while world.seen.is_empty() {
        world.ring.submit_and_wait().unwrap();
        world.drain();
    }
    assert!((Duration::from_millis(60)..Duration::from_secs(60)).contains(&start.elapsed()));
}

#[test]
fn an_alarm_that_has_passed_unseen_is_replaced_too() {
    let mut world = World::new(&options(Descriptors::Direct));
    for entered in [false, true] {
        world.ring.set_alarm(Duration::from_millis(1));
        sleep(&mut world);
        assert!(readable(&world.ring, 10_000), "it has passed");
        world.ring.awake();
        if entered {
            world.ring.submit().unwrap(); // its completion is in the queue now
        }
        let start = Instant::now();
        world.ring.set_alarm(Duration::from_millis(50));
        while world.seen.is_empty() {
            world.ring.submit_and_wait().unwrap();
            world.drain();
        }
        assert!(
            start.elapsed() >= Duration::from_millis(50),
            "{:?}",
            start.elapsed()
        );
        assert_eq!(world.seen.drain(..).collect::<Vec<_>>(), [Seen::Alarm]);
    }
}
