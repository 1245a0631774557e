//! What RESP3 costs the backplane: encoding a pipelined batch of publishes, decoding a burst of pub/sub pushes. Run:
//! `cargo bench --bench resp`.
//!
//! Floors: for encoding, each message put together of pieces that are ready; for decoding, views of the buffer cut where
//! they are known to be. A copy of all the bytes is there, too, which decoding without copies may beat: it touches no
//! payload.

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use redis_protocol::resp3::decode::{complete, streaming};
use redis_protocol::resp3::encode::complete::{extend_encode, extend_encode_borrowed};
use redis_protocol::resp3::types::{BorrowedFrame, BytesFrame, DecodedFrame};

/// The server's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Messages in a batch: what a busy node has for a connection to Redis in a turn.
const BATCH: usize = 64;
/// A name as the backplane would give a room's channel.
const CHANNEL: &[u8] = b"throng:room:lobby-0042";
const PAYLOADS: [usize; 3] = [128, 1_024, 16_384];

/// `PUBLISH CHANNEL payload`, borrowed from what is published.
fn publish_borrowed(out: &mut BytesMut, payload: &[u8]) {
    let text = |data| BorrowedFrame::BlobString {
        data,
        attributes: None,
    };
    let words = [text(b"PUBLISH".as_slice()), text(CHANNEL), text(payload)];
    let frame = BorrowedFrame::Array {
        data: &words,
        attributes: None,
    };
    extend_encode_borrowed(out, &frame, false).expect("the buffer grows");
}

/// The same with a frame that shares its bytes.
fn publish_shared(out: &mut BytesMut, channel: &Bytes, payload: &Bytes) {
    let text = |data| BytesFrame::BlobString {
        data,
        attributes: None,
    };
    let frame = BytesFrame::Array {
        data: vec![
            text(Bytes::from_static(b"PUBLISH")),
            text(channel.clone()),
            text(payload.clone()),
        ],
        attributes: None,
    };
    extend_encode(out, &frame, false).expect("the buffer grows");
}

/// Redis's answer to subscribers in RESP3, [`BATCH`] times.
fn burst(payload: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    for _ in 0..BATCH {
        let text = |data| BorrowedFrame::BlobString {
            data,
            attributes: None,
        };
        let words = [text(b"message".as_slice()), text(CHANNEL), text(payload)];
        let frame = BorrowedFrame::Push {
            data: &words,
            attributes: None,
        };
        extend_encode_borrowed(&mut out, &frame, false).expect("the buffer grows");
    }
    out.freeze()
}

/// Payload bytes of a push of a message; panics at anything else.
fn payload_bytes(frame: &BytesFrame) -> usize {
    let BytesFrame::Push { data, .. } = frame else {
        unreachable!("{frame:?}")
    };
    let [_, _, BytesFrame::BlobString { data, .. }] = data.as_slice() else {
        unreachable!("{frame:?}")
    };
    data.len()
}

/// As the backplane reads: whole frames leave the front of the buffer, what has come in part stays.
fn decode_splitting(buffer: &mut BytesMut) -> usize {
    let mut bytes = 0;
    while let Some((frame, _, _)) = streaming::decode_bytes_mut(buffer).expect("RESP3") {
        let DecodedFrame::Complete(frame) = frame else {
            unreachable!("no stream was sent")
        };
        bytes += payload_bytes(&frame);
    }
    bytes
}

/// What [`decode_splitting`] gives, cut out at places that are known.
fn split_only(buffer: &mut BytesMut, frame_bytes: usize, payload_bytes: usize) -> usize {
    let mut bytes = 0;
    while buffer.len() >= frame_bytes {
        let frame = buffer.split_to(black_box(frame_bytes)).freeze();
        let payload_start = frame_bytes - 2 - payload_bytes;
        let kind = frame.slice(black_box(8)..15);
        let channel = frame.slice(black_box(22)..22 + CHANNEL.len());
        let payload = frame.slice(payload_start..frame_bytes - 2);
        bytes += payload.len();
        black_box(vec![kind, channel, payload]);
    }
    bytes
}

/// Pushes whose places in the buffer are found; nothing is allocated for their texts.
fn decode_ranges(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    while let Some((frame, frame_bytes)) = complete::decode_range(bytes).expect("RESP3") {
        black_box(frame);
        bytes = &bytes[frame_bytes..];
        count += 1;
    }
    count
}

fn encode(c: &mut Criterion) {
    let mut group = c.benchmark_group("resp/encode_64_publishes");
    for bytes in PAYLOADS {
        let payload = Bytes::from(vec![b'x'; bytes]);
        let channel = Bytes::from_static(CHANNEL);
        let mut out = BytesMut::new();
        (0..BATCH).for_each(|_| publish_borrowed(&mut out, &payload));
        let expected = out.clone().freeze();
        out.clear();
        (0..BATCH).for_each(|_| publish_shared(&mut out, &channel, &payload));
        assert_eq!(out, expected);
        assert!(out.starts_with(b"*3\r\n$7\r\nPUBLISH\r\n$22\r\nthrong:room:lobby-0042\r\n"));
        group.throughput(Throughput::Bytes(expected.len() as u64));
        group.bench_function(format!("borrowed/{bytes}"), |b| {
            b.iter(|| {
                out.clear();
                for _ in 0..BATCH {
                    publish_borrowed(black_box(&mut out), black_box(&payload));
                }
            });
        });
        group.bench_function(format!("shared/{bytes}"), |b| {
            b.iter(|| {
                out.clear();
                for _ in 0..BATCH {
                    publish_shared(black_box(&mut out), &channel, black_box(&payload));
                }
            });
        });
        let head = &expected[..expected.len() / BATCH - bytes - 2];
        group.bench_function(format!("pieces_only/{bytes}"), |b| {
            b.iter(|| {
                out.clear();
                for _ in 0..BATCH {
                    for piece in [head, &payload, b"\r\n"] {
                        black_box(&mut out).extend_from_slice(black_box(piece));
                    }
                }
            });
            assert_eq!(out, expected);
        });
        group.bench_function(format!("copy_only/{bytes}"), |b| {
            b.iter(|| {
                out.clear();
                black_box(&mut out).extend_from_slice(black_box(&expected));
            });
        });
    }
    group.finish();
}

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("resp/decode_64_pushes");
    for bytes in PAYLOADS {
        let burst = burst(&vec![b'x'; bytes]);
        assert!(burst.starts_with(b">3\r\n$7\r\nmessage\r\n"));
        assert_eq!(decode_ranges(&burst), BATCH);
        let mut whole = BytesMut::from(burst.as_ref());
        assert_eq!(decode_splitting(&mut whole), BATCH * bytes);
        assert!(whole.is_empty());
        let mut whole = BytesMut::from(burst.as_ref());
        assert_eq!(
            split_only(&mut whole, burst.len() / BATCH, bytes),
            BATCH * bytes
        );
        assert_eq!(&burst[8..15], b"message");
        assert_eq!(&burst[22..22 + CHANNEL.len()], CHANNEL);
        group.throughput(Throughput::Bytes(burst.len() as u64));
        // The buffer is filled outside of what is measured, and dropped there.
        group.bench_function(format!("splitting/{bytes}"), |b| {
            b.iter_batched_ref(
                || BytesMut::from(burst.as_ref()),
                decode_splitting,
                BatchSize::SmallInput,
            );
        });
        // The last push has come but for its last byte: it is looked at in vain.
        let cut = burst.len() - 1;
        group.bench_function(format!("splitting_cut/{bytes}"), |b| {
            b.iter_batched_ref(
                || BytesMut::from(&burst[..cut]),
                decode_splitting,
                BatchSize::SmallInput,
            );
        });
        group.bench_function(format!("ranges/{bytes}"), |b| {
            b.iter(|| decode_ranges(black_box(&burst)));
        });
        group.bench_function(format!("split_only/{bytes}"), |b| {
            b.iter_batched_ref(
                || BytesMut::from(burst.as_ref()),
                |buffer| split_only(buffer, burst.len() / BATCH, bytes),
                BatchSize::SmallInput,
            );
        });
        let mut out = Vec::with_capacity(burst.len());
        group.bench_function(format!("copy_only/{bytes}"), |b| {
            b.iter(|| {
                out.clear();
                black_box(&mut out).extend_from_slice(black_box(&burst));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, encode, decode);
criterion_main!(benches);
