//! Sends: whole, in parts, to many, to the dead.

use std::os::fd::AsFd;

use socket2::SockRef;

use super::*;

in_both_homes! {
    a_slow_reader_gets_everything_in_parts
    more_pieces_than_one_call_carries_arrive_in_order
    a_fan_out_reaches_the_living_and_names_the_dead
    a_fan_out_goes_on_alone_where_the_socket_is_full
    a_reset_fails_the_send_in_flight
    nothing_is_sent_to_a_socket_that_is_being_closed
    nothing_is_a_send_too
}

/// A world whose sockets hold few bytes.
fn narrow_world(descriptors: Descriptors) -> World {
    let mut ring = Ring::new(&options(descriptors)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    SockRef::from(&listener).set_send_buffer_size(4096).unwrap();
    let address = listener.local_addr().unwrap();
    ring.listen(listener.into());
    World {
        ring,
        address,
        seen: Vec::new(),
    }
}

fn narrow(client: &impl AsFd) {
    SockRef::from(client).set_recv_buffer_size(2048).unwrap();
}

/// Bytes that tell where they were.
fn pattern(count: u32) -> Vec<u8> {
    (0..count)
        .map(|at| (at ^ at >> 8 ^ at >> 16) as u8)
        .collect()
}

fn read_in_a_thread(mut client: TcpStream, count: usize) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || read_exactly(&mut client, count))
}

fn a_slow_reader_gets_everything_in_parts(descriptors: Descriptors) {
    let mut world = narrow_world(descriptors);
    let (client, token) = world.client();
    let bytes = pattern(3 << 20);
    world.ring.send(token, &[piece(&bytes)]);
    let first = world.wait("a part", |seen| match seen {
        Seen::Sent(of, bytes, false) if *of == token => Some(*bytes),
        _ => None,
    });
    world.turn();
    let reader = read_in_a_thread(client, bytes.len());
    assert_eq!(first as usize + world.sent(token) as usize, bytes.len());
    assert!(reader.join().unwrap() == bytes, "every byte came, in order");
    assert!(world.ring.counters().partial_sends > 0);
    world.close(token);
    world.assert_empty();
}

fn more_pieces_than_one_call_carries_arrive_in_order(descriptors: Descriptors) {
    let mut world = narrow_world(descriptors);
    let (client, token) = world.client();
    let bytes = pattern(1 << 20);
    let shared = encoded(&bytes);
    let mut pieces = Vec::new();
    let mut start = 0;
    for number in 0.. {
        let end = (start + number * 7).min(1 << 20);
        pieces.push(Piece {
            encoded: shared.clone(),
            start,
            end,
        });
        if end == 1 << 20 {
            break;
        }
        start = end;
    }
    assert!(pieces.len() > 3 * crate::limits::SEND_PIECE_COUNT_MAX);
    world.ring.send(token, &pieces);
    drop((pieces, shared));
    let reader = read_in_a_thread(client, bytes.len());
    assert_eq!(world.sent(token) as usize, bytes.len());
    assert!(reader.join().unwrap() == bytes, "every byte came, in order");
    world.close(token);
    world.assert_empty();
}

fn a_fan_out_reaches_the_living_and_names_the_dead(descriptors: Descriptors) {
    let mut world = World::new(&options(descriptors));
    let mut living = Vec::new();
    let mut dead = Vec::new();
    let mut tokens = Vec::new();
    for number in 0..500 {
        let (client, token) = world.client_not_received();
        tokens.push(token);
        if number % 10 == 3 {
            SockRef::from(&client)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
            drop(client);
            dead.push(token);
        } else {
            living.push((client, token));
        }
    }
    let message = encoded(&pattern(300));
    world.ring.send_fan_out(&message, &tokens);
    for (client, token) in &mut living {
        assert_eq!(world.sent(*token), 300);
        assert_eq!(read_exactly(client, 300), pattern(300));
    }
    for &token in &dead {
        let error = world.wait("a failure", |seen| match seen {
            Seen::SendFailed(of, error) if *of == token => Some(*error),
            _ => None,
        });
        assert!(
            matches!(error, Some(libc::ECONNRESET | libc::EPIPE)),
            "{error:?}"
        );
    }
    assert_eq!(
        message.reclaim(),
        Some(pattern(300)),
        "nobody holds the bytes any more"
    );
    for token in tokens {
        world.close(token);
    }
    world.assert_empty();
}

fn a_fan_out_goes_on_alone_where_the_socket_is_full(descriptors: Descriptors) {
    let mut world = narrow_world(descriptors);
    let mut clients: Vec<_> = (0..10).map(|_| world.client()).collect();
    let tokens: Vec<u32> = clients.iter().map(|(_, token)| *token).collect();
    let bytes = pattern(400_000);
    world.ring.send_fan_out(&encoded(&bytes), &tokens);
    // The odd ones are read, the even ones stall and are closed with the rest of the send in flight.
    for (number, (client, token)) in clients.drain(..).enumerate() {
        if number % 2 == 1 {
            let reader = read_in_a_thread(client, bytes.len());
            assert_eq!(world.sent(token) as usize, bytes.len());
            assert!(reader.join().unwrap() == bytes);
        } else {
            narrow(&client);
            world.wait("a part", |seen| {
                matches!(seen, Seen::Sent(of, _, false) if *of == token).then_some(())
            });
            world
                .seen
                .retain(|seen| !matches!(seen, Seen::Sent(of, _, _) if *of == token));
            world.close(token);
        }
    }
    for &token in tokens.iter().skip(1).step_by(2) {
        world.close(token);
    }
    world.assert_empty();
}

fn a_reset_fails_the_send_in_flight(descriptors: Descriptors) {
    let mut world = narrow_world(descriptors);
    let (client, token) = world.client();
    narrow(&client);
    let message = encoded(&pattern(4 << 20));
    world.ring.send(token, &[Piece::whole(message.clone())]);
    world.wait("a part", |seen| {
        matches!(seen, Seen::Sent(of, _, false) if *of == token).then_some(())
    });
    SockRef::from(&client)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(client);
    let error = world.wait("a failure", |seen| match seen {
        Seen::SendFailed(of, error) if *of == token => Some(*error),
        _ => None,
    });
    assert!(
        matches!(error, Some(libc::ECONNRESET | libc::EPIPE)),
        "{error:?}"
    );
    // Who hears of the reset first gets the error; the other sees the end.
    world.wait("the end", |seen| {
        matches!(seen, Seen::ReceiveEnded(of, _) if *of == token).then_some(())
    });
    assert!(
        message.reclaim().is_some(),
        "nobody holds the bytes any more"
    );
    world.close(token);
    world.assert_empty();
}

fn nothing_is_sent_to_a_socket_that_is_being_closed(descriptors: Descriptors) {
    let mut world = World::new(&options(descriptors));
    let (mut leaving, left) = world.client();
    let (mut staying, stays) = world.client();
    let message = encoded(b"late");
    world.ring.close(left);
    world.ring.send_fan_out(&message, &[left, stays]);
    world.ring.send(left, &[piece(b"later")]);
    world.ring.send(left, &[piece(b"even"), piece(b"later")]);
    assert_eq!(world.sent(stays), 4);
    world.wait_for(&Seen::Closed(left));
    assert!(!world.names(left));
    assert_eq!(read_exactly(&mut staying, 4), b"late");
    assert_eq!(read_to_end(&mut leaving).0, b"");
    assert!(message.reclaim().is_some());
    world.close(stays);
    world.assert_empty();
}

fn nothing_is_a_send_too(descriptors: Descriptors) {
    let mut world = World::new(&options(descriptors));
    let (_client, token) = world.client();
    world.ring.send(token, &[]);
    assert_eq!(world.sent(token), 0);
    world.ring.send(token, &[piece(b""), piece(b"")]);
    assert_eq!(world.sent(token), 0);
    world.ring.send_fan_out(&encoded(b""), &[token]);
    assert_eq!(world.sent(token), 0);
    world.ring.send_fan_out(&encoded(b"to nobody"), &[]);
    world.close(token);
    world.assert_empty();
}

#[test]
#[should_panic(expected = "at most one send in flight")]
fn a_second_send_before_the_first_is_done_is_refused() {
    let mut world = World::new(&options(Descriptors::Direct));
    let (_client, token) = world.client();
    world.ring.send(token, &[piece(b"one")]);
    world.ring.send_fan_out(&encoded(b"two"), &[token]);
}
