//! A socket's life: accepted or connected, received from, paused, ended, closed.

use std::net::Shutdown;

use super::*;

in_both_homes! {
    bytes_come_and_go_as_an_echo
    peers_are_named_over_ipv6_too
    a_half_close_ends_the_stream_and_lets_us_answer
    our_end_of_the_stream_follows_what_was_sent
    a_ring_connects_to_a_ring_from_a_source_of_choice
    a_refused_connect_fails_and_closes
}

fn bytes_come_and_go_as_an_echo(descriptors: Descriptors) {
    let mut world = World::new(&options(descriptors));
    let (mut client, token) = world.client();
    for round in 0..10u8 {
        write(&mut client, &[round; 100]);
        let bytes = world.received(token, 100);
        assert_eq!(bytes, [round; 100]);
        world.ring.send(token, &[piece(&bytes)]);
        assert_eq!(world.sent(token), 100);
        assert_eq!(read_exactly(&mut client, 100), bytes);
    }
    drop(client);
    world.wait_for(&Seen::ReceiveEnded(token, None));
    world.close(token);
    world.assert_empty();
}

fn peers_are_named_over_ipv6_too(descriptors: Descriptors) {
    let mut world = World::on(&options(descriptors), "[::1]:0");
    let (mut client, token) = world.client();
    write(&mut client, b"six");
    assert_eq!(world.received(token, 3), b"six");
}

fn a_half_close_ends_the_stream_and_lets_us_answer(descriptors: Descriptors) {
    let mut world = World::new(&options(descriptors));
    let (mut client, token) = world.client();
    write(&mut client, b"question");
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(world.received(token, 8), b"question");
    world.wait_for(&Seen::ReceiveEnded(token, None));
    world.ring.send(token, &[piece(b"answer")]);
    assert_eq!(world.sent(token), 6);
    world.close(token);
    let (bytes, end) = read_to_end(&mut client);
    assert_eq!(bytes, b"answer");
    end.unwrap();
    world.assert_empty();
}

fn our_end_of_the_stream_follows_what_was_sent(descriptors: Descriptors) {
    let mut world = World::new(&options(descriptors));
    let (mut client, token) = world.client();
    world.ring.send(token, &[piece(b"good"), piece(b"bye")]);
    world.ring.shutdown_write(token);
    assert_eq!(world.sent(token), 7);
    world.turn();
    let (bytes, end) = read_to_end(&mut client);
    assert_eq!(bytes, b"goodbye");
    end.unwrap();
    write(&mut client, b"still heard");
    assert_eq!(world.received(token, 11), b"still heard");
    world.close(token);
    world.assert_empty();
}

fn a_ring_connects_to_a_ring_from_a_source_of_choice(descriptors: Descriptors) {
    let mut world = World::new(&options(descriptors));
    let mut pairs = Vec::new();
    for number in 0..100u8 {
        let source = (number < 50).then(|| SocketAddr::from(([127, 0, 0, 2], 0)));
        pairs.push((world.ring.connect(world.address, source).unwrap(), number));
    }
    for (ours, number) in pairs {
        if number % 2 == 0 {
            world.ring.receive(ours); // early
        }
        world.wait_for(&Seen::Connected(ours));
        world.ring.receive(ours);
        world.ring.send(ours, &[piece(&[number])]);
        assert_eq!(world.sent(ours), 1);
    }
    for _ in 0..100 {
        let (token, peer) = world.wait("an accept", |seen| match seen {
            Seen::Accepted(token, peer) => Some((*token, *peer)),
            _ => None,
        });
        world.ring.receive(token);
        let number = world.received(token, 1)[0];
        assert_eq!(
            peer.ip().to_string(),
            if number < 50 {
                "127.0.0.2"
            } else {
                "127.0.0.1"
            }
        );
        world.close(token);
        let client = world.wait("the end", |seen| match seen {
            Seen::ReceiveEnded(token, None) => Some(*token),
            _ => None,
        });
        world.close(client);
    }
    world.assert_empty();
}

fn a_refused_connect_fails_and_closes(descriptors: Descriptors) {
    let mut world = World::new(&options(descriptors));
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let token = world.ring.connect(nobody, None).unwrap();
    world.wait_for(&Seen::ConnectFailed(token, Some(libc::ECONNREFUSED)));
    world.wait_for(&Seen::Closed(token));
    world.assert_empty();
}

#[test]
fn a_table_beyond_the_limit_is_refused_in_words_or_done_without() {
    let count = crate::limits::SHARD_CONNECTION_COUNT_MAX - 1;
    let options = Options {
        socket_count_max: count,
        ..options(Descriptors::Direct)
    };
    let refused = Ring::new(&options).unwrap_err().to_string();
    assert!(
        refused.contains("16777215 sockets") && refused.contains("LimitNOFILE"),
        "{refused}"
    );
    let options = Options {
        descriptors: Descriptors::Auto,
        ..options
    };
    let ring = Ring::new(&options).unwrap();
    assert_eq!(ring.direct(), Err(refused.as_str()));
    assert!(!ring.counters().direct_descriptors);
}

#[test]
fn options_out_of_range_are_refused_in_words() {
    let good = options(Descriptors::Plain);
    for (bad, word) in [
        (
            Options {
                socket_count_max: 0,
                ..good.clone()
            },
            "sockets",
        ),
        (
            Options {
                socket_count_max: 1 << 24,
                ..good.clone()
            },
            "sockets",
        ),
        (
            Options {
                receive_buffer_count: 3,
                ..good.clone()
            },
            "power of two",
        ),
        (
            Options {
                receive_buffer_bytes: 0,
                ..good.clone()
            },
            "1 byte",
        ),
        (
            Options {
                submission_entries: 0,
                ..good.clone()
            },
            "too old, or a queue size",
        ),
    ] {
        let refused = Ring::new(&bad).unwrap_err().to_string();
        assert!(refused.contains(word), "{refused}");
    }
}

#[test]
fn many_rings_on_one_thread_come_and_go() {
    for _ in 0..3 {
        // More than a thread's 16 places for registered rings.
        let mut worlds: Vec<_> = (0..20)
            .map(|_| World::new(&options(Descriptors::Direct)))
            .collect();
        for world in &mut worlds {
            let (mut client, token) = world.client();
            write(&mut client, b"here");
            assert_eq!(world.received(token, 4), b"here");
        }
    }
}
