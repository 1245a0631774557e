//! What the protocol room costs: headers, masks, UTF-8, the handshake. Run: `cargo bench --bench protocol`.
//!
//! Floors: for headers a walk over frames whose lengths are known and a copy of finished headers, for masks a copy of the
//! payload, for texts `std::str::from_utf8`.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use throng::protocol::handshake::{
    Edge, HeadScan, Options, Route, answer_upgrade, parse_request, route,
};
use throng::protocol::{
    OpCode, Role, Utf8Validator, decode_header, encode_client_header, encode_header, unmask_extend,
    unmask_in_place,
};

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// What Chromium sends from a page on the same host.
const BROWSER_REQUEST: &str = "GET /rooms/lobby HTTP/1.1\r\nHost: chat.example.com\r\nConnection: Upgrade\r\n\
    Pragma: no-cache\r\nCache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 \
    (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36\r\nUpgrade: websocket\r\nOrigin: https://chat.example.com\r\n\
    Sec-WebSocket-Version: 13\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-US,en;q=0.9\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n";

/// The least that a client may send.
const SHORT_REQUEST: &str = "GET /rooms/lobby HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

fn frames(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame");
    group.throughput(Throughput::Elements(1));
    for payload_bytes in [64, 128, 1_000, 70_000] {
        let mut client = Vec::new();
        encode_client_header(&mut client, true, OpCode::Text, payload_bytes, MASK);
        group.bench_function(format!("decode/{payload_bytes}"), |b| {
            b.iter(|| decode_header(black_box(&client), Role::Server));
        });
        let mut out = Vec::with_capacity(16);
        group.bench_function(format!("encode/{payload_bytes}"), |b| {
            b.iter(|| {
                out.clear();
                encode_header(
                    black_box(&mut out),
                    true,
                    OpCode::Text,
                    black_box(payload_bytes),
                )
            });
        });
    }
    for payload_bytes in [64, 1_000] {
        let mut out = Vec::with_capacity(16);
        group.bench_function(format!("encode_client/{payload_bytes}"), |b| {
            b.iter(|| {
                out.clear();
                encode_client_header(
                    black_box(&mut out),
                    true,
                    OpCode::Text,
                    black_box(payload_bytes),
                    black_box(MASK),
                )
            });
        });
    }
    let mut finished = Vec::new();
    encode_header(&mut finished, true, OpCode::Text, 1_000);
    let mut out = Vec::with_capacity(16);
    group.bench_function("copy_only/1000", |b| {
        b.iter(|| {
            out.clear();
            black_box(&mut out).extend_from_slice(black_box(&finished));
        });
    });
    // Frames of 64 bytes one behind the other, as a busy publisher's receive buffer has them.
    let mut buffer = Vec::new();
    for _ in 0..58 {
        encode_client_header(&mut buffer, true, OpCode::Text, 64, MASK);
        buffer.extend_from_slice(&[b'a'; 64]);
    }
    group.throughput(Throughput::Elements(58));
    group.bench_function("decode/buffer_of_58", |b| {
        b.iter(|| {
            let (mut at, mut payload_bytes) = (0, 0);
            while let Ok(Some(header)) = decode_header(black_box(&buffer[at..]), Role::Server) {
                payload_bytes += header.payload_bytes;
                at += usize::from(header.header_bytes) + header.payload_bytes as usize;
            }
            payload_bytes
        });
    });
    let frame_bytes = buffer.len() / 58;
    group.bench_function("walk_only/buffer_of_58", |b| {
        b.iter(|| {
            let (mut at, mut payload_bytes) = (0, 0);
            while let Some(&length) = black_box(&buffer).get(at + 1) {
                payload_bytes += u64::from(length & 0x7f);
                at += black_box(frame_bytes);
            }
            payload_bytes
        });
    });
    group.finish();
}

fn masks(c: &mut Criterion) {
    let mut group = c.benchmark_group("unmask");
    for payload_bytes in [16, 128, 65_536] {
        let payload = vec![b'a'; payload_bytes];
        group.throughput(Throughput::Bytes(payload_bytes as u64));
        let mut place = payload.clone();
        group.bench_function(format!("in_place/{payload_bytes}"), |b| {
            b.iter(|| unmask_in_place(black_box(&mut place), black_box(MASK), 1));
        });
        let mut out = Vec::with_capacity(payload_bytes);
        group.bench_function(format!("extend/{payload_bytes}"), |b| {
            b.iter(|| {
                out.clear();
                unmask_extend(black_box(&mut out), black_box(&payload), black_box(MASK), 1);
            });
        });
        group.bench_function(format!("copy_only/{payload_bytes}"), |b| {
            b.iter(|| {
                out.clear();
                black_box(&mut out).extend_from_slice(black_box(&payload));
            });
        });
    }
    group.finish();
}

fn texts(c: &mut Criterion) {
    let mut group = c.benchmark_group("utf8");
    for text_bytes in [16, 64, 128, 65_536] {
        for (name, pattern) in [("ascii", "abcdefgh"), ("mixed", "grüße €😀 ")] {
            let mut text = pattern.repeat(text_bytes / pattern.len() + 1);
            let end = (0..=text_bytes)
                .rev()
                .find(|&end| text.is_char_boundary(end))
                .unwrap();
            text.truncate(end);
            group.throughput(Throughput::Bytes(text.len() as u64));
            group.bench_function(format!("{name}/{text_bytes}"), |b| {
                b.iter(|| {
                    let mut validator = Utf8Validator::default();
                    (
                        validator.push(black_box(text.as_bytes())),
                        validator.is_complete(),
                    )
                });
            });
            group.bench_function(format!("{name}_std/{text_bytes}"), |b| {
                b.iter(|| std::str::from_utf8(black_box(text.as_bytes())).is_ok());
            });
        }
    }
    // A text that comes in reads of 4 KiB, which end within characters as often as not.
    let text = "grüße €😀 ".repeat(4_096);
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("mixed_in_reads_of_4096", |b| {
        b.iter(|| {
            let mut validator = Utf8Validator::default();
            let valid = black_box(text.as_bytes())
                .chunks(4_096)
                .all(|read| validator.push(read).is_ok());
            valid && validator.is_complete()
        });
    });
    group.bench_function("mixed_in_reads_of_4096_std_whole", |b| {
        b.iter(|| std::str::from_utf8(black_box(text.as_bytes())).is_ok());
    });
    group.finish();
}

fn handshakes(c: &mut Criterion) {
    let options = Options {
        bytes_max: 8_192,
        header_count_max: 64,
        origins: Vec::new(),
        edge: Edge::default(),
    };
    let mut group = c.benchmark_group("handshake");
    for (name, request) in [("browser", BROWSER_REQUEST), ("short", SHORT_REQUEST)] {
        let bytes = request.as_bytes();
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(format!("parse/{name}"), |b| {
            b.iter(|| parse_request(black_box(bytes), &options));
        });
        let parsed = parse_request(bytes, &options).unwrap().unwrap();
        group.bench_function(format!("route/{name}"), |b| {
            b.iter(|| route(black_box(&parsed), &options, false))
        });
        let mut out = Vec::with_capacity(256);
        group.bench_function(format!("whole/{name}"), |b| {
            b.iter(|| {
                out.clear();
                let parsed = parse_request(black_box(bytes), &options).unwrap().unwrap();
                let Ok(Route::Upgrade(upgrade)) = route(&parsed, &options, false) else {
                    unreachable!()
                };
                answer_upgrade(&mut out, &upgrade.accept, b"");
            });
        });
        group.bench_function(format!("drip/{name}"), |b| {
            b.iter_batched(
                HeadScan::default,
                |mut scan| {
                    for end in 1..=bytes.len() {
                        if let Ok(Some(head_bytes)) =
                            scan.advance(black_box(&bytes[..end]), &options)
                        {
                            return head_bytes;
                        }
                    }
                    0
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, frames, masks, texts, handshakes);
criterion_main!(benches);
