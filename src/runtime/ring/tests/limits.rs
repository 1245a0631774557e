//! Whatever runs out: buffers, queue entries, places in the table, descriptors; and nothing leaks.

use std::os::fd::OwnedFd;

use socket2::SockRef;

use super::*;

in_both_homes! {
    thousands_of_connections_come_and_go_and_nothing_is_left
    a_hundred_senders_share_two_buffers
    tiny_queues_carry_hundreds_of_sockets
    clients_wait_while_the_table_is_full
    a_full_table_refuses_to_connect
    two_listeners_share_what_is_left_of_the_table
    a_listener_stops_and_serves_what_it_has_taken
    a_socket_closes_in_every_state
    a_socket_closes_in_every_state_among_very_many
    a_paused_socket_keeps_what_comes_for_later
    pausing_and_resuming_at_will_loses_nothing
    a_ring_may_be_dropped_with_everything_in_flight
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Runs a test in a process of its own, where nobody else opens descriptors.
fn alone(name: &str, descriptors: Descriptors, test: impl FnOnce()) {
    const VARIABLE: &str = "THRONG_TEST_ALONE";
    if std::env::var_os(VARIABLE).is_some() {
        return test();
    }
    let home = if descriptors == Descriptors::Direct {
        "direct"
    } else {
        "plain"
    };
    let path = format!("runtime::ring::tests::limits::{home}::{name}");
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &path, "--nocapture"])
        .env(VARIABLE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn reset(client: TcpStream) {
    SockRef::from(&client)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

fn thousands_of_connections_come_and_go_and_nothing_is_left(descriptors: Descriptors) {
    alone(
        "thousands_of_connections_come_and_go_and_nothing_is_left",
        descriptors,
        || {
            let before = open_descriptors();
            let mut world = World::new(&options(descriptors));
            let mut with_ring = 0;
            for round in 0..40u32 {
                let mut pairs: Vec<_> = (0..100).map(|_| world.client()).collect();
                for (client, _) in &mut pairs {
                    write(client, b"hello");
                }
                for (number, (client, token)) in pairs.into_iter().enumerate() {
                    assert_eq!(world.received(token, 5), b"hello");
                    match number % 3 {
                        0 => drop(client),
                        1 => reset(client),
                        _ => {
                            world.close(token);
                            continue;
                        }
                    }
                    world.wait("the end", |seen| {
                        matches!(seen, Seen::ReceiveEnded(of, _) if *of == token).then_some(())
                    });
                    world.close(token);
                }
                world.assert_empty();
                assert!(world.seen.is_empty(), "{:?}", world.seen);
                assert!(world.ring.sockets.len() <= 100, "tokens are used again");
                if round == 0 {
                    with_ring = open_descriptors();
                }
                assert_eq!(open_descriptors(), with_ring);
            }
            drop(world);
            assert_eq!(open_descriptors(), before);
        },
    );
}

fn a_hundred_senders_share_two_buffers(descriptors: Descriptors) {
    let options = Options {
        receive_buffer_count: 2,
        receive_buffer_bytes: 512,
        ..options(descriptors)
    };
    let mut world = World::new(&options);
    let mut pairs: Vec<_> = (0..100u8)
        .map(|number| (world.client(), vec![number; 5_000]))
        .collect();
    world.turn();
    for ((client, _), bytes) in &mut pairs {
        write(client, bytes);
    }
    for ((_, token), bytes) in &pairs {
        assert_eq!(world.received(*token, 5_000), *bytes);
    }
    assert!(world.ring.counters().buffers_exhausted > 0);
    // Nobody was left behind: all can still be heard.
    for ((client, token), _) in &mut pairs {
        write(client, b"again");
        assert_eq!(world.received(*token, 5), b"again");
    }
    for ((_, token), _) in &pairs {
        world.close(*token);
    }
    world.assert_empty();
}

fn tiny_queues_carry_hundreds_of_sockets(descriptors: Descriptors) {
    let options = Options {
        submission_entries: 8,
        completion_entries: 16,
        ..options(descriptors)
    };
    let mut world = World::new(&options);
    let mut pairs: Vec<_> = (0..300).map(|_| world.client()).collect();
    for round in 0..5u8 {
        for (client, _) in &mut pairs {
            write(client, &[round; 64]);
        }
        for (_, token) in &pairs {
            assert_eq!(world.received(*token, 64), [round; 64]);
        }
        let tokens: Vec<u32> = pairs.iter().map(|(_, token)| *token).collect();
        world.ring.send_fan_out(&encoded(&[round; 100]), &tokens);
        for (client, token) in &mut pairs {
            assert_eq!(world.sent(*token), 100);
            assert_eq!(read_exactly(client, 100), [round; 100]);
        }
    }
    for (_, token) in &pairs {
        world.ring.close(*token);
    }
    for (_, token) in &pairs {
        world.wait_for(&Seen::Closed(*token));
    }
    world.assert_empty();
    let counters = world.ring.counters();
    assert!(
        counters.submission_full > 0 && counters.completion_overflows > 0,
        "{counters:?}"
    );
}

fn clients_wait_while_the_table_is_full(descriptors: Descriptors) {
    let mut world = World::new(&Options {
        socket_count_max: 8,
        ..options(descriptors)
    });
    let mut clients: Vec<_> = (0..20).map(|_| connect(world.address)).collect();
    for client in &mut clients {
        write(client, b"served");
    }
    let mut served = 0;
    let mut open = Vec::new();
    while served < 20 {
        while open.len() < (20 - served).min(8) {
            let token = world.wait("an accept", |seen| match seen {
                Seen::Accepted(token, _) => Some(*token),
                _ => None,
            });
            assert!(token < 8, "tokens are places in the table");
            world.ring.receive(token);
            open.push(token);
        }
        assert!(world.ring.socket_count() <= 8);
        for token in open.drain(..3.min(20 - served)) {
            assert_eq!(world.received(token, 6), b"served");
            world.close(token);
            served += 1;
        }
    }
    assert!(world.ring.counters().accept_exhausted > 0);
    world.assert_empty();
}

fn a_full_table_refuses_to_connect(descriptors: Descriptors) {
    let mut world = World::new(&options(descriptors));
    let mut client = Ring::new(&Options {
        socket_count_max: 3,
        ..options(descriptors)
    })
    .unwrap();
    for _ in 0..3 {
        client.connect(world.address, None).unwrap();
    }
    let error = client.connect(world.address, None).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENFILE));
    client.submit().unwrap();
    world.turn();
}

fn two_listeners_share_what_is_left_of_the_table(descriptors: Descriptors) {
    let mut world = World::new(&Options {
        socket_count_max: 100,
        ..options(descriptors)
    });
    let second = TcpListener::bind("127.0.0.1:0").unwrap();
    let second_address = second.local_addr().unwrap();
    assert_eq!(world.ring.listen(second.into()), 1);
    let mut clients = Vec::new();
    for number in 0..90 {
        let client = connect(if number % 3 == 0 {
            second_address
        } else {
            world.address
        });
        let address = client.local_addr().unwrap();
        world.accepted(address);
        clients.push(client);
    }
    for number in 0..10 {
        let client = connect(if number % 2 == 0 {
            second_address
        } else {
            world.address
        });
        clients.push(client);
    }
    for client in &clients[90..98] {
        let address = client.local_addr().unwrap();
        world.accepted(address);
    }
}

fn a_listener_stops_and_serves_what_it_has_taken(descriptors: Descriptors) {
    let mut world = World::new(&options(descriptors));
    let mut clients: Vec<_> = (0..30).map(|_| connect(world.address)).collect();
    world.ring.submit().unwrap();
    world.ring.stop_accepting(0);
    world.ring.stop_accepting(0);
    world.wait_for(&Seen::ListenerStopped(0));
    let tokens: Vec<u32> = world
        .seen
        .drain(..)
        .map(|seen| {
            if let Seen::Accepted(token, _) = seen {
                token
            } else {
                panic!("{seen:?}")
            }
        })
        .collect();
    assert_eq!(tokens.len(), 30, "accepts in flight had taken them");
    for &token in &tokens {
        world.ring.send(token, &[piece(b"bye")]);
        assert_eq!(world.sent(token), 3);
        world.close(token);
    }
    for client in &mut clients {
        assert_eq!(read_to_end(client).0, b"bye");
    }
    assert!(
        TcpStream::connect(world.address).is_err(),
        "the listening socket is closed"
    );
    world.ring.accept_again(0);
    world.assert_empty();
}

fn a_socket_closes_in_every_state(descriptors: Descriptors) {
    close_in_every_state(World::new(&options(descriptors)));
}

fn a_socket_closes_in_every_state_among_very_many(descriptors: Descriptors) {
    let mut world = World::new(&options(descriptors));
    world.ring.cancel_armed_count_max = 0;
    close_in_every_state(world);
}

fn close_in_every_state(mut world: World) {
    // Accepted.
    let (_client, token) = world.client_not_received();
    world.close(token);
    // Receive queued, not submitted.
    let (_client, token) = world.client();
    world.close(token);
    // Receive armed; closing twice is closing once.
    let (mut client, token) = world.client();
    world.turn();
    world.ring.close(token);
    world.close(token);
    assert_eq!(read_to_end(&mut client).0, b"");
    // Bytes arrived that nobody has taken.
    let (mut client, token) = world.client();
    world.turn();
    write(&mut client, b"unheard");
    world.ring.submit().unwrap();
    world.close(token);
    // Paused.
    let (mut client, token) = world.client();
    world.turn();
    world.ring.receive_pause(token);
    write(&mut client, b"unheard");
    world.close(token);
    // Pause in flight.
    let (_client, token) = world.client();
    world.turn();
    world.ring.receive_pause(token);
    world.ring.receive_resume(token);
    world.close(token);
    // Ended by the peer.
    let (client, token) = world.client();
    drop(client);
    world.wait_for(&Seen::ReceiveEnded(token, None));
    world.close(token);
    // Reset by the peer.
    let (client, token) = world.client();
    world.turn();
    reset(client);
    world.wait_for(&Seen::ReceiveEnded(token, Some(libc::ECONNRESET)));
    world.close(token);
    // A send that stalls, with the end of the stream waiting for it.
    let (_client, token) = world.client();
    let message = encoded(&vec![7; 64 << 20]);
    world.ring.send(token, &[Piece::whole(message.clone())]);
    world.wait("a part", |seen| {
        matches!(seen, Seen::Sent(of, _, false) if *of == token).then_some(())
    });
    world.ring.shutdown_write(token);
    for _ in 0..10 {
        world.turn();
    }
    world.close(token);
    assert!(message.reclaim().is_some());
    // A send queued, not submitted: it goes out, or not, but whole.
    let (mut client, token) = world.client();
    world.ring.send(token, &[piece(b"parting")]);
    world.close(token);
    let (bytes, _) = read_to_end(&mut client);
    assert!(bytes == b"parting" || bytes.is_empty());
    // The end of the stream is in flight.
    let (mut client, token) = world.client();
    world.ring.shutdown_write(token);
    world.close(token);
    assert_eq!(read_to_end(&mut client).0, b"");
    // Everything at once, in one submission.
    let (_client, token) = world.client();
    world.ring.receive_pause(token);
    world.ring.send(token, &[piece(b"a"), piece(b"b")]);
    world.ring.shutdown_write(token);
    world.ring.receive_resume(token);
    world.close(token);
    // A connect that was not submitted.
    let token = world.ring.connect(world.address, None).unwrap();
    world.ring.close(token);
    world.wait_for(&Seen::Closed(token));
    world
        .seen
        .retain(|seen| !matches!(seen, Seen::Accepted(..)));
    // A connect that nobody answers: the queue of the listener is full, so its SYN is dropped.
    let listener =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener
        .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let tokens: Vec<u32> = (0..8)
        .map(|_| world.ring.connect(address, None).unwrap())
        .collect();
    world.wait("the first connect", |seen| {
        matches!(seen, Seen::Connected(_)).then_some(())
    });
    for &token in &tokens {
        world.ring.close(token);
    }
    for &token in &tokens {
        world.wait_for(&Seen::Closed(token));
    }
}

fn a_paused_socket_keeps_what_comes_for_later(descriptors: Descriptors) {
    let mut world = World::new(&options(descriptors));
    let (mut client, token) = world.client();
    world.turn();
    world.ring.receive_pause(token);
    world.turn();
    write(&mut client, b"kept");
    let (mut other, other_token) = world.client();
    write(&mut other, b"heard");
    assert_eq!(world.received(other_token, 5), b"heard");
    assert!(!world.names(token), "{:?}", world.seen);
    world.ring.receive_resume(token);
    assert_eq!(world.received(token, 4), b"kept");
    client.shutdown(std::net::Shutdown::Write).unwrap();
    world.wait_for(&Seen::ReceiveEnded(token, None));
    world.ring.receive_pause(token);
    world.ring.receive_resume(token);
    world.turn();
    world.turn();
    assert!(
        !world.names(token),
        "the end is told once: {:?}",
        world.seen
    );
}

fn pausing_and_resuming_at_will_loses_nothing(descriptors: Descriptors) {
    let options = Options {
        receive_buffer_count: 4,
        receive_buffer_bytes: 64,
        ..options(descriptors)
    };
    let mut world = World::new(&options);
    let mut pairs: Vec<_> = (0..8).map(|_| (world.client(), Vec::new())).collect();
    let bytes: Vec<u8> = (0..20_000u32).map(|at| (at % 251) as u8).collect();
    let mut random = 12_345u32;
    let mut written = 0;
    world.ring.set_alarm(PATIENCE);
    while pairs
        .iter()
        .any(|(_, received)| received.len() < bytes.len())
    {
        if written < bytes.len() {
            for ((client, _), _) in &mut pairs {
                write(client, &bytes[written..written + 100]);
            }
            written += 100;
        }
        for ((_, token), _) in &pairs {
            for _ in 0..2 {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                match random >> 29 {
                    0..=2 => world.ring.receive_pause(*token),
                    3..=5 => world.ring.receive_resume(*token),
                    _ => world.ring.submit().unwrap(),
                }
            }
            if written == bytes.len() {
                world.ring.receive_resume(*token);
            }
        }
        world.turn();
        for seen in world.seen.drain(..) {
            let Seen::Received(token, bytes) = seen else {
                panic!("{seen:?}")
            };
            let (_, received) = pairs.iter_mut().find(|((_, of), _)| *of == token).unwrap();
            received.extend(bytes);
        }
    }
    for ((_, token), received) in pairs {
        assert!(received == bytes, "every byte came, in order");
        world.close(token);
    }
    world.assert_empty();
}

fn a_ring_may_be_dropped_with_everything_in_flight(descriptors: Descriptors) {
    alone(
        "a_ring_may_be_dropped_with_everything_in_flight",
        descriptors,
        || {
            let before = open_descriptors();
            for submitted in [true, false] {
                let mut world = World::new(&options(descriptors));
                let mut clients: Vec<_> = (0..20).map(|_| world.client()).collect();
                let message = encoded(&vec![1; 64 << 20]);
                let tokens: Vec<u32> = clients.iter().map(|(_, token)| *token).collect();
                world.ring.send_fan_out(&message, &tokens[..10]);
                world.ring.send(
                    tokens[10],
                    &[Piece::whole(message.clone()), Piece::whole(message.clone())],
                );
                world
                    .ring
                    .send(tokens[11], &[Piece::whole(message.clone())]);
                world.ring.shutdown_write(tokens[12]);
                world.ring.close(tokens[13]);
                world.ring.set_alarm(Duration::from_secs(3_600));
                for _ in 0..5 {
                    world.ring.connect(world.address, None).unwrap();
                }
                let waiting: Vec<_> = (0..5).map(|_| connect(world.address)).collect();
                if submitted {
                    for _ in 0..3 {
                        world.ring.submit().unwrap();
                        while world.ring.next_event().is_some() {}
                    }
                    write(&mut clients[15].0, b"unheard");
                    world.ring.submit().unwrap();
                }
                drop(world);
                assert!(
                    message.reclaim().is_some(),
                    "the ring holds nothing after its end"
                );
                for (client, _) in &mut clients {
                    let _ = read_to_end(client); // comes to an end: the other end is closed
                }
                drop((clients, waiting));
                assert_eq!(open_descriptors(), before);
            }
        },
    );
}

#[test]
fn an_accept_without_descriptors_waits_to_be_asked_again() {
    let name = "an_accept_without_descriptors_waits_to_be_asked_again";
    if std::env::var_os("THRONG_TEST_ALONE").is_none() {
        let path = format!("runtime::ring::tests::limits::{name}");
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &path])
            .env("THRONG_TEST_ALONE", "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let mut world = World::new(&options(Descriptors::Plain));
    let mut clients: Vec<_> = (0..3).map(|_| connect(world.address)).collect();
    // Whatever is left of the descriptors.
    let limit = rustix::process::Rlimit {
        current: Some(200),
        maximum: Some(20_000),
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    let mut hoard: Vec<OwnedFd> = Vec::new();
    while let Ok(fd) = world.ring.wake_fd().try_clone() {
        hoard.push(fd);
    }
    world.wait("a failure", |seen| {
        (*seen == Seen::AcceptFailed(Some(libc::EMFILE))).then_some(())
    });
    assert!(world.ring.counters().accept_exhausted > 0);
    hoard.truncate(hoard.len() - 10);
    world.ring.accept_again(0);
    for client in &mut clients {
        let address = client.local_addr().unwrap();
        let token = world.accepted(address);
        world.ring.receive(token);
        write(client, b"at last");
        assert_eq!(world.received(token, 7), b"at last");
    }
}
