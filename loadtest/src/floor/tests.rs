//! The bare loops, driven by plain sockets.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use super::*;
use crate::stamp::Stamp;

fn arguments(duration: u32) -> FloorArguments {
    FloorArguments {
        listen: "127.0.0.1:0".parse().unwrap(),
        core: None,
        duration,
    }
}

fn upgrade(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "));
    stream
}

#[test]
fn the_echo_loop_upgrades_and_echoes_even_a_frame_in_two_parts() {
    let (mut server, deadline_ns) = start(&arguments(10)).unwrap();
    let address = server.address().unwrap();
    let client = thread::spawn(move || {
        let mut stream = upgrade(address);
        for parts in [
            [&[0x82, 0x83, 1, 1, 1, 1, b'a', b'b', b'c'][..], &[]],
            [&[0x82, 0x83, 0, 0], &[0, 0, 96, 99, 98]],
        ] {
            stream.write_all(parts[0]).unwrap();
            if !parts[1].is_empty() {
                thread::sleep(Duration::from_millis(20)); // so that the kernel does not join the parts
                stream.write_all(parts[1]).unwrap();
            }
            let mut echo = [0; 5];
            stream.read_exact(&mut echo).unwrap();
            assert_eq!(echo, [0x82, 3, 96, 99, 98]);
        }
    });
    while !client.is_finished() || server.upgraded_count() > 0 {
        assert!(
            now_ns() < deadline_ns,
            "the client has left, but its connection stayed"
        );
        server.turn(Some(Duration::from_millis(10))).unwrap();
    }
    client.join().unwrap();
}

#[test]
fn both_fan_out_loops_send_stamped_frames_in_order_to_all_members() {
    for way in [Way::Write, Way::Uring] {
        let arguments = FanOutArguments {
            floor: arguments(60),
            members: 3,
            rate: 200.0,
            bytes: 200,
        };
        let (mut server, _) = start(&arguments.floor).unwrap();
        let address = server.address().unwrap();
        let deadline_ns = now_ns() + 1_500_000_000;
        let clients: Vec<_> = (0..3)
            .map(|_| {
                thread::spawn(move || {
                    let mut stream = upgrade(address);
                    for sequence in 0..5 {
                        let mut frame = [0; 204];
                        stream.read_exact(&mut frame).unwrap();
                        assert_eq!(frame[..4], [0x82, 126, 0, 200]);
                        let stamp = Stamp::read(&frame[4..]).expect("an intact payload");
                        assert_eq!((stamp.publisher, stamp.sequence), (0, sequence));
                        assert!(stamp.due_ns <= now_ns());
                    }
                })
            })
            .collect();
        fan_out::serve(way, &arguments, &mut server, deadline_ns).unwrap();
        for client in clients {
            client.join().unwrap();
        }
    }
}
