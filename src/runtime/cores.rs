//! Sets the cores up: listeners, lanes, a pinned executor for each shard and one for the backplane; signals.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::backplane_core::{self, BackplaneCore, Links, ShardLink, Surroundings};
use super::bridge::Bridge;
use super::clock::Clock;
use super::process::ProcessReader;
use super::ring::{Ring, WakeHandle};
use super::shard_core::{ShardCore, Waker};
use super::{host, http, listener};
use crate::admin::{self, Admin};
use crate::backplane::{self, Backplane};
use crate::bus::{Bell, CoreId, lane};
use crate::config::Settings;
use crate::drain::Drain;
use crate::metrics::Log2Histogram;
use crate::shard::{Delivery, Node, Shard};

/// glommio's own buffers, which no core uses: our sockets are our ring's. The least that it takes.
const EXECUTOR_MEMORY_BYTES: usize = 64 << 10;
/// Entries of glommio's own rings: they carry the bridge and, on the backplane core, the admin listener.
const EXECUTOR_RING_DEPTH: usize = 128;

/// How long shards may take to answer the admin API.
const ADMIN_ANSWER_TIMEOUT_MS: u32 = 1_000;
/// A publish that waits longer than this for room in a shard's lane makes the node not ready.
const ADMIN_BUS_STALL_MS_MAX: u32 = 1_000;

/// Runs the server until it is stopped. Returns the process's exit code: 0 drained, 1 cut.
///
/// # Errors
/// In words, with what mends it: why it could not start, or what failed while it ran.
pub fn serve(settings: Settings) -> Result<u8, String> {
    let clock = Clock::start();
    let seed = entropy()?;
    let shard_count = settings.shards;
    let processors = if settings.cores.is_empty() {
        host::machine().processors
    } else {
        settings.cores.clone()
    };
    let mut listeners: Vec<Vec<_>> = (0..shard_count).map(|_| Vec::new()).collect();
    let mut addresses = Vec::new();
    for &address in &settings.listen {
        let (bound, sockets) = listener::bind(address, shard_count, &settings.socket)?;
        addresses.push(bound);
        for (of_shard, socket) in listeners.iter_mut().zip(sockets) {
            of_shard.push(socket);
        }
    }
    let admin_listener = settings.admin.map(listener::bind_admin).transpose()?;
    let node = Arc::new(Node::new(
        settings.shard.connection_count_max,
        settings.shard.node_bytes_max,
        settings.shard.address_connection_count_max,
        seed,
    ));
    let delivery = if shard_count == 1 {
        Delivery::Inline
    } else {
        Delivery::Bus
    };
    let stop = Arc::new(AtomicBool::new(false));
    let backplane_waker = Waker {
        bell: Bell::new(),
        handle: WakeHandle::new().map_err(|error| format!("cannot make an eventfd: {error}"))?,
    };
    let (ready, readiness) = crossbeam_channel::bounded(shard_count);
    let mut executors = Vec::with_capacity(shard_count);
    let mut links = Vec::with_capacity(shard_count);
    for (index, listeners) in listeners.into_iter().enumerate() {
        let (upstream, upstream_reader) = lane();
        let (downstream_writer, downstream) = lane();
        let bell = Bell::new();
        let core = CoreId(u8::try_from(index).expect("config allows SHARD_COUNT_MAX shards"));
        // The backplane has the first processor; with one processor, or more shards than processors, they share.
        let processor = processors[(index + 1) % processors.len()];
        let (ready, stop, node) = (ready.clone(), Arc::clone(&stop), Arc::clone(&node));
        let (ring_options, options) = (settings.ring.clone(), settings.shard.clone());
        let (shard_bell, backplane) = (Arc::clone(&bell), backplane_waker.clone());
        let seed = seed.wrapping_mul(2 * index as u64 + 1);
        executors.push(spawn(
            &format!("shard-{index}"),
            processor,
            move || async move {
                let set_up = Ring::new(&ring_options)
                    .map_err(|error| error.to_string())
                    .and_then(|ring| {
                        let bridge = Bridge::new(ring.wake_fd())
                            .map_err(|error| format!("cannot duplicate a descriptor: {error}"))?;
                        Ok((ring, bridge))
                    });
                let (ring, bridge) = match set_up {
                    Ok(set_up) => set_up,
                    Err(reason) => {
                        let _ = ready.send((index, Err(reason.clone())));
                        return Err(reason);
                    }
                };
                let direct = ring.direct().map_err(ToOwned::to_owned);
                let _ = ready.send((index, Ok((ring.wake_handle(), direct))));
                let shard = Shard::new(core, options, delivery, node, seed, clock.now());
                ShardCore {
                    shard,
                    ring,
                    bridge,
                    clock,
                    bell: shard_bell,
                    upstream,
                    downstream,
                    backplane,
                    processor,
                    stop,
                    listeners,
                }
                .run()
                .await
            },
        )?);
        links.push((upstream_reader, downstream_writer, bell));
    }
    let mut handles: Vec<Option<WakeHandle>> = vec![None; shard_count];
    let mut failure = None;
    let mut plain = None;
    for (index, result) in readiness.iter().take(shard_count) {
        match result {
            Ok((handle, direct)) => {
                handles[index] = Some(handle);
                plain = plain.or(direct.err());
            }
            Err(reason) => failure = Some(format!("shard {index}: {reason}")),
        }
    }
    if let Some(failure) = failure {
        stop.store(true, Ordering::Relaxed);
        handles.iter().flatten().for_each(WakeHandle::wake);
        return Err(failure);
    }
    if let Some(reason) = plain {
        tracing::warn!(
            reason,
            "sockets are plain descriptors: the open-file limit holds for the whole process"
        );
    }
    let links = links
        .into_iter()
        .zip(handles)
        .map(|((upstream, downstream, bell), handle)| ShardLink {
            upstream,
            downstream,
            waker: Waker {
                bell,
                handle: handle.expect("no shard failed"),
            },
            has_sent: false,
        });
    let links = Links(links.collect());
    let stop_requests = watch_signals(&backplane_waker.handle)?;
    let shard_count_u8 = u8::try_from(shard_count).expect("config allows SHARD_COUNT_MAX shards");
    let backplane_options = backplane::Options {
        inline: delivery == Delivery::Inline,
        ..backplane::Options::new(shard_count_u8, settings.shard.room_count_max)
    };
    let admin_options = admin::Options {
        node_id: settings.node_id.clone(),
        version: env!("CARGO_PKG_VERSION"),
        shard_count: shard_count_u8,
        key: settings.admin_key.clone(),
        message_bytes_max: settings.shard.message_bytes_max,
        connection_count_max: u64::from(settings.shard.connection_count_max),
        node_bytes_max: settings.shard.node_bytes_max,
        answer_timeout_ms: ADMIN_ANSWER_TIMEOUT_MS,
        bus_stall_ms_max: ADMIN_BUS_STALL_MS_MAX,
    };
    let http_options = http::Options::new(settings.shard.message_bytes_max as usize);
    let drain = Drain::new(settings.drain, shard_count);
    let Waker { bell, handle: wake } = backplane_waker;
    let around = Surroundings {
        clock,
        bell,
        wake,
        stop_requests,
        stop: Arc::clone(&stop),
        admin_listener: admin_listener.map(|listener| (listener, http_options)),
    };
    let node_id = settings.node_id;
    let admin_address = settings.admin;
    let backplane = spawn("backplane", processors[0], move || async move {
        let now = clock.now();
        let core = BackplaneCore {
            backplane: Backplane::new(backplane_options, seed, now),
            links,
            drain,
            admin: Admin::new(admin_options),
            process: ProcessReader::new(),
            turn: Log2Histogram::default(),
            first: 0,
        };
        let admin = admin_address.map_or_else(|| "off".to_owned(), |address| address.to_string());
        tracing::info!(node = node_id, shards = shard_count, listen = ?addresses, admin, "serving");
        backplane_core::run(core, around).await
    })?;
    let code = join(backplane);
    stop.store(true, Ordering::Relaxed);
    for executor in executors {
        join(executor)?;
    }
    code
}

fn spawn<T, F>(
    name: &str,
    processor: u32,
    future: impl FnOnce() -> F + Send + 'static,
) -> Result<ExecutorJoinHandle<Result<T, String>>, String>
where
    T: Send + 'static,
    F: Future<Output = Result<T, String>> + 'static,
{
    LocalExecutorBuilder::new(Placement::Fixed(processor as usize))
        .name(name)
        .io_memory(EXECUTOR_MEMORY_BYTES)
        .ring_depth(EXECUTOR_RING_DEPTH)
        .spawn(future)
        .map_err(|error| {
            format!("cannot start the executor {name} on processor {processor}: {error}; `throng check` says what this host lacks")
        })
}

fn join<T: Send + 'static>(executor: ExecutorJoinHandle<Result<T, String>>) -> Result<T, String> {
    executor
        .join()
        .map_err(|error| format!("a core has died: {error}"))?
}

/// Counts SIGTERM and SIGINT, and wakes the backplane core for each.
fn watch_signals(wake: &WakeHandle) -> Result<Arc<AtomicU32>, String> {
    let mut signals = Signals::new([SIGTERM, SIGINT])
        .map_err(|error| format!("cannot watch for signals: {error}"))?;
    let count = Arc::new(AtomicU32::new(0));
    let (counted, wake) = (Arc::clone(&count), wake.clone());
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for _ in signals.forever() {
                counted.fetch_add(1, Ordering::Relaxed);
                wake.wake();
            }
        })
        .map_err(|error| format!("cannot start the signal thread: {error}"))?;
    Ok(count)
}

fn entropy() -> Result<u64, String> {
    let mut seed = [0; 8];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| format!("cannot get random bytes: {error}"))?;
    Ok(u64::from_ne_bytes(seed) | 1)
}
