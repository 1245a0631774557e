//! Connections through balancers: whose they are, by what address they count, what their 101 says.

use super::world::{World, options, request, text};
use crate::bus::{Downstream, Question, Reply, Upstream};
use crate::metrics::{ClientAddress, RefusalKind};
use crate::protocol::CloseReason;
use crate::protocol::handshake::{Auth, Badge, Cookie, Edge, Network, ProxyProtocol, SameSite};
use crate::shard::Options;

const PROXY: &str = "10.0.0.1";
const STRANGER: &str = "192.0.2.66";
const CLIENT: &[u8] = b"PROXY TCP4 203.0.113.9 10.0.0.1 5555 80\r\n";
const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n";

/// A node behind 10.0.0.0/8 where an address has one connection.
fn world(edge: Edge) -> World {
    World::new(Options {
        address_connection_count_max: 1,
        edge: Edge {
            trusted_proxies: vec![Network::parse("10.0.0.0/8").unwrap()],
            ..edge
        },
        ..options()
    })
}

fn with_proxy(proxy_protocol: ProxyProtocol) -> World {
    world(Edge {
        proxy_protocol,
        ..Edge::default()
    })
}

fn with_forwarded() -> World {
    world(Edge {
        forwarded_for: true,
        ..Edge::default()
    })
}

/// An upgrade with one more header.
fn with_header(header: &str) -> Vec<u8> {
    let mut bytes = request("/rooms/a");
    bytes.truncate(bytes.len() - 2);
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(b"\r\n\r\n");
    bytes
}

/// The status of the answer to what `address` sends.
fn status_of(world: &mut World, address: &str, bytes: &[u8]) -> (u32, String) {
    let index = world.open_from(address);
    world.send(index, bytes);
    let answer = world.http(index);
    (index, answer[9..12].to_owned())
}

fn status(world: &mut World, address: &str, bytes: &[u8]) -> String {
    status_of(world, address, bytes).1
}

/// The address of each member of the room "a", as the admin API has it.
fn members(world: &mut World) -> Vec<String> {
    let mut ask = |question| {
        world.forwarded.clear();
        world.downstream(Downstream::Ask {
            request: 1,
            question,
        });
        match world.forwarded.pop() {
            Some(Upstream::Answer { reply, .. }) => reply,
            other => panic!("{other:?}"),
        }
    };
    let Reply::Room(Some(room)) = ask(Question::Room {
        room: "a".into(),
        member_count_max: 100,
    }) else {
        panic!()
    };
    let mut peers: Vec<String> = room
        .members
        .iter()
        .map(|&id| match ask(Question::Connection { id }) {
            Reply::Connection(Some(info)) => info.peer.to_string(),
            other => panic!("{other:?}"),
        })
        .collect();
    peers.sort();
    peers
}

fn learned(world: &World, how: ClientAddress) -> u64 {
    world.counters().client_addresses[how as usize]
}

#[test]
fn a_client_behind_a_proxy_header_counts_by_its_own_address() {
    for mode in [ProxyProtocol::Accept, ProxyProtocol::Require] {
        let mut world = with_proxy(mode);
        let bytes = [CLIENT, &request("/rooms/a"), &text("hi")].concat();
        let (first, answer) = status_of(&mut world, PROXY, &bytes);
        assert_eq!(answer, "101");
        assert_eq!(world.texts(first), ["hi"]);
        assert_eq!(members(&mut world), ["203.0.113.9:5555"]);
        let (second, answer) = status_of(&mut world, PROXY, &bytes);
        assert_eq!(answer, "429", "the client's address is full");
        world.ended(second, false);
        let other = [
            &b"PROXY TCP4 203.0.113.10 10.0.0.1 1 80\r\n"[..],
            &request("/rooms/a"),
        ]
        .concat();
        assert_eq!(status(&mut world, PROXY, &other), "101");
        world.ended(first, false);
        assert_eq!(status(&mut world, PROXY, &bytes), "101", "it has gone");
        assert_eq!(learned(&world, ClientAddress::ProxyHeader), 4);
    }
}

#[test]
fn a_proxy_header_may_come_byte_by_byte_and_health_checks_have_one_too() {
    let mut world = with_proxy(ProxyProtocol::Require);
    let index = world.open_from(PROXY);
    for byte in [CLIENT, HEALTH, &request("/rooms/a")].concat() {
        world.send(index, &[byte]);
    }
    assert!(world.http(index).starts_with("HTTP/1.1 200 "));
    assert!(world.http(index).starts_with("HTTP/1.1 101 "));
    assert_eq!(members(&mut world), ["203.0.113.9:5555"]);
}

#[test]
fn a_proxy_speaks_for_itself_as_often_as_it_likes() {
    let mut world = with_proxy(ProxyProtocol::Require);
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";
    for own in [&local[..], b"PROXY UNKNOWN\r\n"] {
        for _ in 0..2 {
            let bytes = [own, &request("/rooms/a")].concat();
            assert_eq!(status(&mut world, PROXY, &bytes), "101");
        }
    }
    assert_eq!(members(&mut world), ["10.0.0.1:4000"; 4]);
    assert_eq!(learned(&world, ClientAddress::ProxyOwn), 4);
}

#[test]
fn behind_a_proxy_header_that_names_nobody_no_header_is_believed() {
    let v2 = |command: u8, family: u8, body: &[u8]| {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [
            &b"\r\n\r\n\0\r\nQUIT\n"[..],
            &[command, family],
            &length,
            body,
        ]
        .concat()
    };
    let headers = [
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN 10.0.0.2 10.0.0.1 1 2\r\n".to_vec(),
        v2(0x20, 0x00, &[]),
        v2(0x20, 0x11, &[10, 0, 0, 2, 10, 0, 0, 1, 0, 1, 0, 2]),
        v2(0x21, 0x00, &[]),
        v2(0x21, 0x12, &[10, 0, 0, 2, 10, 0, 0, 1, 0, 1, 0, 2]),
        v2(0x21, 0x31, &[b'/'; 216]),
    ];
    for mode in [ProxyProtocol::Accept, ProxyProtocol::Require] {
        let mut world = world(Edge {
            proxy_protocol: mode,
            forwarded_for: true,
            auth: Auth::Header("X-User-Id".into()),
            ..Edge::default()
        });
        for front in &headers {
            let forged = [&front[..], &with_header("X-User-Id: anna")].concat();
            let (index, answer) = status_of(&mut world, PROXY, &forged);
            assert_eq!(answer, "403", "{mode:?} {front:?}");
            world.ended(index, false);
            let forged = [&front[..], &with_header("X-Forwarded-For: 203.0.113.77")].concat();
            assert_eq!(status(&mut world, PROXY, &forged), "101");
        }
        let expected = vec!["10.0.0.1:4000"; headers.len()];
        assert_eq!(members(&mut world), expected, "as often as it likes");
        let learned = learned(&world, ClientAddress::ProxyOwn);
        assert_eq!(learned, 2 * headers.len() as u64);
    }
}

#[test]
fn where_a_proxy_header_is_required_nobody_comes_without() {
    let mut world = with_proxy(ProxyProtocol::Require);
    let stranger = world.open_from(STRANGER);
    world.turn();
    assert!(world.is_gone(stranger), "before it sends anything");
    assert_eq!(learned(&world, ClientAddress::ProxyUntrusted), 1);
    assert_eq!(world.closed(CloseReason::NotUpgraded), 1);
    let (index, answer) = status_of(&mut world, PROXY, HEALTH);
    assert_eq!(answer, "400");
    assert!(world.peer(index).write_ended);
    assert_eq!(learned(&world, ClientAddress::ProxyMissing), 1);
    let spoilt = b"PROXY TCP4 x y 1 2\r\nGET /health HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(status(&mut world, PROXY, spoilt), "400");
    assert_eq!(learned(&world, ClientAddress::ProxyMalformed), 1);
}

#[test]
fn where_a_proxy_header_is_accepted_it_is_from_proxies_only() {
    let mut world = with_proxy(ProxyProtocol::Accept);
    let bytes = [CLIENT, &request("/rooms/a")].concat();
    assert_eq!(status(&mut world, STRANGER, &bytes), "400", "it is no HTTP");
    assert_eq!(status(&mut world, PROXY, &request("/rooms/a")), "101");
    assert_eq!(status(&mut world, PROXY, &request("/rooms/a")), "101");
    assert_eq!(members(&mut world), ["10.0.0.1:4000"; 2]);
    let mut off = with_proxy(ProxyProtocol::Off);
    assert_eq!(status(&mut off, PROXY, &bytes), "400");
}

#[test]
fn a_proxy_header_that_does_not_end_is_given_up_with_the_request() {
    let mut world = with_proxy(ProxyProtocol::Require);
    let index = world.open_from(PROXY);
    world.send(index, b"PROXY TCP4 ");
    world.pass(4_900);
    assert!(world.peer(index).received.is_empty());
    world.pass(1_200);
    assert!(world.http(index).starts_with("HTTP/1.1 408 "));
    world.ended(index, false);
    assert_eq!(world.held_bytes(), 0);
}

#[test]
fn a_forwarded_client_counts_by_its_own_address() {
    let mut world = with_forwarded();
    let forwarded = |list: &str| with_header(&format!("X-Forwarded-For: {list}"));
    let (first, answer) = status_of(
        &mut world,
        PROXY,
        &forwarded("forged, 203.0.113.9, 10.0.0.2"),
    );
    assert_eq!(answer, "101");
    let (second, answer) = status_of(&mut world, PROXY, &forwarded("203.0.113.9:80"));
    assert_eq!(answer, "429");
    world.ended(second, false);
    assert_eq!(status(&mut world, PROXY, &forwarded("203.0.113.10")), "101");
    assert_eq!(members(&mut world), ["203.0.113.10:0", "203.0.113.9:0"]);
    world.ended(first, false);
    assert_eq!(status(&mut world, PROXY, &forwarded("203.0.113.9")), "101");
    assert_eq!(learned(&world, ClientAddress::Forwarded), 4);
}

#[test]
fn only_a_proxy_may_forward_and_what_is_no_address_leaves_its_own() {
    let mut world = with_forwarded();
    let forwarded = |list: &str| with_header(&format!("X-Forwarded-For: {list}"));
    assert_eq!(
        status(&mut world, STRANGER, &forwarded("203.0.113.9")),
        "101"
    );
    assert_eq!(status(&mut world, PROXY, &forwarded("unknown")), "101");
    assert_eq!(status(&mut world, PROXY, &forwarded("unknown")), "101");
    assert_eq!(
        members(&mut world),
        ["10.0.0.1:4000", "10.0.0.1:4000", "192.0.2.66:4000"]
    );
    assert_eq!(learned(&world, ClientAddress::ForwardedMalformed), 2);
    assert_eq!(learned(&world, ClientAddress::Forwarded), 0);
    let mut off = world_off();
    assert_eq!(status(&mut off, PROXY, &forwarded("203.0.113.9")), "101");
    assert_eq!(members(&mut off), ["10.0.0.1:4000"]);
}

fn world_off() -> World {
    world(Edge::default())
}

#[test]
fn whoever_a_proxy_header_names_is_the_other_end_for_all_headers() {
    let mut world = world(Edge {
        proxy_protocol: ProxyProtocol::Require,
        forwarded_for: true,
        auth: Auth::Header("X-User-Id".into()),
        ..Edge::default()
    });
    let behind = |front: &[u8], header: &str| [front, &with_header(header)].concat();
    // A proxy that speaks TCP only does not know of headers: its client wrote them.
    let (index, answer) = status_of(&mut world, PROXY, &behind(CLIENT, "X-User-Id: anna"));
    assert_eq!(answer, "403");
    world.ended(index, false);
    let refused = world.counters().refused[RefusalKind::IdentityForbidden as usize];
    assert_eq!(refused, 1);
    let bytes = behind(CLIENT, "X-Forwarded-For: 203.0.113.77");
    let (index, answer) = status_of(&mut world, PROXY, &bytes);
    assert_eq!(answer, "101");
    assert_eq!(members(&mut world), ["203.0.113.9:5555"]);
    world.ended(index, false);
    // One that names another proxy has that one's headers.
    let inner = b"PROXY TCP4 10.0.0.2 10.0.0.1 5555 80\r\n";
    let bytes = behind(inner, "X-Forwarded-For: 203.0.113.77\r\nX-User-Id: anna");
    assert_eq!(status(&mut world, PROXY, &bytes), "101");
    assert_eq!(members(&mut world), ["203.0.113.77:0"]);
}

#[test]
fn a_refused_upgrade_gives_the_clients_place_back() {
    let mut world = with_forwarded();
    let bytes = with_header("X-Forwarded-For: 203.0.113.9\r\nOrigin: x\r\nOrigin: y");
    for _ in 0..3 {
        let (index, answer) = status_of(&mut world, PROXY, &bytes);
        assert_eq!(answer, "400");
        world.ended(index, false);
    }
    let good = with_header("X-Forwarded-For: 203.0.113.9");
    assert_eq!(status(&mut world, PROXY, &good), "101");
}

#[test]
fn the_101_names_the_node_and_sets_the_cookie_for_who_has_it_not() {
    let cookie = Cookie {
        name: "throng_node".into(),
        value: "a".into(),
        path: "/".into(),
        domain: None,
        max_age_s: 0,
        same_site: SameSite::Lax,
        secure: false,
    };
    let mut world = world(Edge {
        badge: Badge::new(Some(("X-Throng-Node", "node-1")), Some(&cookie)),
        ..Edge::default()
    });
    for (header, sets) in [
        ("Cookie: x=1", true),
        ("Cookie: throng_node=b", true),
        ("Cookie: throng_node=a", false),
    ] {
        let index = world.open_from(PROXY);
        world.send(index, &with_header(header));
        let answer = world.http(index);
        assert!(answer.contains("\r\nX-Throng-Node: node-1\r\n"), "{answer}");
        assert_eq!(answer.contains("\r\nSet-Cookie: throng_node=a; "), sets);
    }
}
