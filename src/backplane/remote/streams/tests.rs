//! What a server that takes another's place is sent again.

use std::sync::Arc;

use super::*;
use crate::backplane::remote::{Address, LinkOrder, Mode, Role, Source, placement};
use crate::bus::{Batch, BatchMessage, MessageKind};

const ROLE: Role = Role::Publishing;
const HELLO: &[u8] = b"%1\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n";
const DIGEST: &[u8] = b"$40\r\n0123456789abcdef0123456789abcdef01234567\r\n";

fn text(letter: u8) -> Arc<Batch> {
    letters_of(letter, 40)
}

fn letters_of(letter: u8, count: usize) -> Arc<Batch> {
    Arc::new(Batch {
        bytes: vec![letter; count],
        messages: vec![BatchMessage {
            end: count as u32,
            header_bytes: 0,
            kind: MessageKind::Text,
            sender: None,
        }],
        published: Tick(0),
    })
}

/// What is written on the publishing link.
fn written(remote: &mut Remote, now: Tick) -> String {
    let gathered = now.after(Duration::from_secs(1));
    let output = remote.output(ROLE, gathered).to_vec();
    remote.written(ROLE, output.len(), now);
    String::from_utf8_lossy(&output).into_owned()
}

/// The publishing link comes up; whatever is due is done after each of the server's words. What is published.
fn come_up(remote: &mut Remote, server: &str, at: Tick) -> String {
    remote.handle_deadline(at);
    assert!(
        std::iter::from_fn(|| remote.poll_order())
            .any(|order| matches!(order, LinkOrder::Connect { link, .. } if link.role == ROLE))
    );
    remote.connected(ROLE, at);
    let info = format!("${}\r\nrun_id:{server}\r\n", "run_id:".len() + server.len());
    for reply in [HELLO, DIGEST, info.as_bytes()] {
        remote.handle_deadline(at);
        assert!(!written(remote, at).contains("EVALSHA"), "not asked yet");
        remote.received(ROLE, reply, at);
    }
    written(remote, at)
}

fn go_down(remote: &mut Remote, at: Tick) {
    remote.failed(ROLE, "it is gone".into(), at);
    while remote.poll_order().is_some() {}
}

#[test]
fn what_was_acknowledged_is_sent_again_after_any_outage_and_once_more_after_another() {
    let options = options();
    assert_eq!(options.streams_retain_ms, 5_000);
    let mut remote = Remote::new(options, 0, 7, Tick(0));
    assert!(!come_up(&mut remote, "first", Tick(0)).contains("EVALSHA"));
    for letter in [b'a', b'b'] {
        remote.publish(&"r".into(), &text(letter), None, Tick(0));
    }
    assert!(written(&mut remote, Tick(0)).contains("aaaa"));
    remote.received(ROLE, b":1\r\n:2\r\n", Tick(0));
    go_down(&mut remote, Tick::from_ms(1_000));

    // Longer than acknowledged messages are kept while Redis is there.
    let back = Tick::from_ms(60_000);
    let again = come_up(&mut remote, "second", back);
    let places = ["aaaa", "bbbb"].map(|text| again.find(text));
    assert!(places.is_sorted() && places[0].is_some(), "{again}");
    assert_eq!(remote.snapshot(back).buffer_bytes, 0);
    assert!(remote.snapshot(back).stream_retained_bytes > 0);
    remote.received(ROLE, b":1\r\n", back);
    go_down(&mut remote, back);

    // Longer than unacknowledged messages are kept.
    let later = Tick::from_ms(120_000);
    remote.handle_deadline(later);
    assert_eq!(remote.snapshot(later).messages_refused, 0);
    while remote.poll_order().is_some() {}
    go_down(&mut remote, later);
    let back = Tick::from_ms(180_000);
    let again = come_up(&mut remote, "third", back);
    let places = ["aaaa", "bbbb"].map(|text| again.find(text));
    assert!(places.is_sorted() && places[0].is_some(), "{again}");
    remote.received(ROLE, b":1\r\n:2\r\n", back);
    go_down(&mut remote, back);
    let again = come_up(&mut remote, "third", Tick::from_ms(240_000));
    assert!(!again.contains("EVALSHA"), "it is the same server");
}

fn options() -> Options {
    Options {
        mode: Mode::Streams,
        buffer_age_ms: 1_000,
        ..Options::new(Address::parse("redis://x").unwrap())
    }
}

/// The letters of what is published in `output`, in order.
fn letters(output: &str) -> String {
    let runs = output.split("\r\n").filter_map(|line| {
        let last = line.chars().last()?;
        line.ends_with(&String::from(last).repeat(40))
            .then_some(last)
    });
    runs.collect()
}

#[test]
fn what_was_acknowledged_goes_along_with_its_room_and_waits_for_any_server_for_as_long_as_it_takes()
{
    let mut old = Remote::new(options(), 0, 7, Tick(0));
    let mut new = Remote::new(options(), 1, 8, Tick(0)).of_node(old.node(), 8);
    come_up(&mut old, "old", Tick(0));
    for letter in [b'a', b'b'] {
        old.publish(&"r".into(), &text(letter), Some(CoreId(0)), Tick(0));
    }
    assert_eq!(letters(&written(&mut old, Tick(0))), "ab");
    old.received(ROLE, b":1\r\n:2\r\n", Tick(0));
    go_down(&mut old, Tick(0));
    old.publish(&"r".into(), &text(b'c'), Some(CoreId(0)), Tick(0));
    let departure = old.release(|_| true, Tick(0));
    assert!(departure.in_flight.is_empty() && old.outgoing.is_empty());
    for (room, sequence) in departure.sequences {
        new.adopt_sequence(room, sequence, Tick(0));
    }
    let cost = departure.unsent[0].bytes();
    new.set_bounds(2 * cost, 10);
    for entry in departure.unsent {
        new.resume(entry, Tick(0));
    }
    let snapshot = new.snapshot(Tick(0));
    assert_eq!(
        (snapshot.buffer_bytes, snapshot.stream_retained_bytes),
        (cost, 2 * cost)
    );
    let published = new.publish(&"r".into(), &text(b'd'), Some(CoreId(0)), Tick(0));
    assert_eq!(published, crate::backplane::remote::Published::Taken);

    // Far longer than a message waits whose publisher was not told.
    let late = Tick::from_ms(3_600_000);
    assert!(new.next_deadline().unwrap() <= Tick::from_ms(1_001));
    new.handle_deadline(late);
    let refused = std::iter::from_fn(|| new.poll_effect())
        .filter(|effect| matches!(effect, Effect::Refused { .. }));
    assert_eq!(refused.count(), 2, "c and d, whose publishers hear of it");
    assert_eq!(new.snapshot(late).messages_refused, 2);
    go_down(&mut new, late);
    let back = late.after(Duration::from_secs(60));
    assert_eq!(letters(&come_up(&mut new, "new", back)), "ab");
    new.publish(&"r".into(), &text(b'e'), None, back);
    assert_eq!(letters(&written(&mut new, back)), "e");
    new.received(ROLE, b":1\r\n:2\r\n:3\r\n", back);
    assert_eq!(new.snapshot(late).messages_refused, 2);
    assert!(new.outgoing.is_empty());
}

#[test]
fn what_an_old_server_acknowledges_of_a_room_that_has_gone_goes_after_it() {
    let mut old = Remote::new(options(), 0, 7, Tick(0));
    come_up(&mut old, "old", Tick(0));
    for letter in [b'a', b'b', b'c'] {
        old.publish(&"r".into(), &text(letter), None, Tick(0));
    }
    written(&mut old, Tick(0));
    old.received(ROLE, b":1\r\n", Tick(0));
    let departure = old.release(|_| true, Tick(0));
    assert_eq!(departure.unsent.len(), 1, "what was acknowledged by then");
    assert_eq!(departure.in_flight, ["r".into()]);
    old.received(ROLE, b":2\r\n:3\r\n", Tick::from_ms(5));
    let news: Vec<_> = std::iter::from_fn(|| old.poll_news()).collect();
    let [
        moves::News::Returned(b),
        moves::News::Returned(c),
        moves::News::Left(_),
    ] = news.as_slice()
    else {
        panic!("{news:?}");
    };
    assert!(b.again && c.again && b.place() < c.place());
    assert!(old.is_idle());
    assert_eq!(
        old.snapshot(Tick(0)).stream_retained_bytes,
        0,
        "nothing stays"
    );
}

#[test]
fn what_was_refused_is_waited_for_before_what_was_not_sent_goes_to_the_next_server() {
    let Ok(Source::Cluster { seeds }) = Source::parse("redis-cluster://x") else {
        panic!("it is a cluster");
    };
    let options = Options {
        mode: Mode::Streams,
        ..Options::new(seeds[0].clone())
    };
    let mut old = Remote::new(options, 1, 7, Tick(0));
    old.set_probe_tag(placement::tag_in(|_| true), Tick(0));
    come_up(&mut old, "old", Tick(0));
    for letter in [b'a', b'b'] {
        old.publish(&"r".into(), &text(letter), None, Tick(0));
    }
    let output = written(&mut old, Tick(0));
    let words: Vec<&str> = output.split("\r\n").collect();
    let last = words.iter().rev().nth(1);
    assert_eq!(last, Some(&"1"), "b follows a, and is refused with it");
    // The link takes no more than this for the time being.
    old.publish(&"s".into(), &letters_of(b'x', 300_000), None, Tick(0));
    old.publish(&"r".into(), &text(b'c'), None, Tick(0));
    old.received(
        ROLE,
        b"-MOVED 1 y:1\r\n-TRYAGAIN what it follows was not taken\r\n",
        Tick(0),
    );
    let departure = old.release(|room| room == "r", Tick(0));
    assert_eq!(departure.unsent.len(), 1);
    assert!(departure.in_flight.contains(&"r".into()), "a and b are");
    let news = std::iter::from_fn(|| old.poll_news());
    let displaced = news.filter(|news| matches!(news, moves::News::Displaced(_)));
    assert_eq!(displaced.count(), 2);
}
