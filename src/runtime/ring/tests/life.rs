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
