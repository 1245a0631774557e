//! Sets the cores up: listeners, lanes, a pinned executor for each shard and one for the backplane; signals.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use glommio::ExecutorJoinHandle;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::backplane_core::{self, BackplaneCore, Links, ShardLink, Surroundings};
use super::bridge::Bridge;
use super::clock::Clock;
use super::executor::{Ended, join, spawn};
use super::process::ProcessReader;
use super::redis::{RedisSockets, TlsClient};
use super::ring::{self, Ring, WakeHandle};
use super::shard_core::{ShardCore, Waker};
use super::{host, http, listener};
use crate::admin::{self, Admin};
use crate::backplane::{self, Backplane};
use crate::bus::{Bell, CoreId, lane};
use crate::config::Settings;
use crate::drain::Drain;
use crate::metrics::Log2Histogram;
use crate::shard::{Delivery, Node, Shard};

/// How long shards may take to answer the admin API.
const ADMIN_ANSWER_TIMEOUT_MS: u32 = 1_000;
/// Bytes of a request's body that the admin listener takes at least: 1,000 users, each character escaped.
const ADMIN_BODY_BYTES: usize = 1 << 20;
/// A publish that waits longer than this for room in a shard's lane makes the node not ready.
const ADMIN_BUS_STALL_MS_MAX: u32 = 1_000;

/// How long shards may take to end once the backplane core has.
const SHARDS_END_TIMEOUT: Duration = Duration::from_secs(2);

/// Which core has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Core {
    Shard(usize),
    Backplane,
}

/// What all cores share.
#[derive(Clone)]
struct Common {
    clock: Clock,
    seed: u64,
    node: Arc<Node>,
    delivery: Delivery,
    backplane: Waker,
    stop: Arc<AtomicBool>,
    /// Set when a shard has ended that should not have.
    failed: Arc<AtomicBool>,
    ended: Sender<Core>,
}

/// Runs the server until it is stopped. Returns the process's exit code: 0 drained, 1 cut.
///
/// # Errors
/// In words, with what mends it: why it could not start, or what failed while it ran.
pub fn serve(settings: Settings) -> Result<u8, String> {
    let shard_count = settings.shards;
    let processors = match settings.cores.is_empty() {
        true => host::machine().processors,
        false => settings.cores.clone(),
    };
    let tls = TlsClient::wanted(&settings)?;
    let (addresses, listeners) = bind_all(&settings)?;
    let admin_listener = settings.admin.map(listener::bind_admin).transpose()?;
    let (ended, endings) = crossbeam_channel::bounded(shard_count + 1);
    let seed = entropy()?;
    let common = Common {
        clock: Clock::start(),
        seed,
        node: Arc::new(
            Node::new(
                shard_count,
                settings.shard.connection_count_max,
                settings.shard.node_bytes_max,
                settings.shard.address_connection_count_max,
                seed,
            )
            .limit_users(settings.shard.user_connection_count_max, seed),
        ),
        delivery: match (shard_count, &settings.redis) {
            (1, None) => Delivery::Inline,
            _ => Delivery::Bus,
        },
        backplane: Waker {
            bell: Bell::new(),
            handle: WakeHandle::new()
                .map_err(|error| format!("cannot make an eventfd: {error}"))?,
        },
        stop: Arc::default(),
        failed: Arc::default(),
        ended,
    };
    let (mut shards, links, handles) = start_shards(&settings, &common, &processors, listeners)?;
    let started = start_backplane(
        settings,
        &common,
        processors[0],
        links,
        addresses,
        admin_listener,
        tls,
    );
    let mut ended_early = Vec::new();
    if started.is_ok() {
        // The backplane core ends last, unless a shard dies: then the node cannot go on, and says so.
        for core in &endings {
            let Core::Shard(index) = core else { break };
            if !common.stop.load(Ordering::Relaxed) {
                common.failed.store(true, Ordering::Relaxed);
                common.backplane.handle.wake();
            }
            ended_early.push(index);
        }
    }
    common.stop.store(true, Ordering::Relaxed);
    handles.iter().for_each(WakeHandle::wake);
    let code = started.and_then(join);
    let deadline = Instant::now() + SHARDS_END_TIMEOUT;
    let mut left: Vec<_> = (0..shard_count)
        .filter(|index| !ended_early.contains(index))
        .collect();
    while !left.is_empty() {
        match endings.recv_deadline(deadline) {
            Ok(Core::Shard(index)) => left.retain(|&other| other != index),
            Ok(Core::Backplane) => {}
            Err(_) => return Err(format!("shards that did not end: {left:?}")),
        }
    }
    for shard in shards.drain(..) {
        join(shard)?;
    }
    code
}

/// Every shard's listening sockets on every address, and the addresses as they were bound.
fn bind_all(settings: &Settings) -> Result<(Vec<SocketAddr>, Vec<Vec<OwnedFd>>), String> {
    let mut listeners: Vec<Vec<_>> = (0..settings.shards).map(|_| Vec::new()).collect();
    let mut addresses = Vec::new();
    for &address in &settings.listen {
        let (bound, sockets) = listener::bind(address, settings.shards, &settings.socket)?;
        addresses.push(bound);
        for (of_shard, socket) in listeners.iter_mut().zip(sockets) {
            of_shard.push(socket);
        }
    }
    Ok((addresses, listeners))
}

type ShardExecutor = ExecutorJoinHandle<Result<(), String>>;

/// Starts the shards, and waits until each has said that it is ready.
fn start_shards(
    settings: &Settings,
    common: &Common,
    processors: &[u32],
    listeners: Vec<Vec<OwnedFd>>,
) -> Result<(Vec<ShardExecutor>, Links, Vec<WakeHandle>), String> {
    let shard_count = listeners.len();
    let (ready, readiness) = crossbeam_channel::bounded(shard_count);
    let mut executors = Vec::with_capacity(shard_count);
    let mut halves = Vec::with_capacity(shard_count);
    for (index, listeners) in listeners.into_iter().enumerate() {
        let (upstream, upstream_reader) = lane();
        let (downstream_writer, downstream) = lane();
        let bell = Bell::new();
        halves.push((upstream_reader, downstream_writer, Arc::clone(&bell)));
        let core = CoreId(u8::try_from(index).expect("config allows SHARD_COUNT_MAX shards"));
        // The backplane has the first processor; with one processor, or more shards than processors, they share.
        let processor = processors[(index + 1) % processors.len()];
        let (ready, common) = (ready.clone(), common.clone());
        let (ring_options, options) = (settings.ring.clone(), settings.shard.clone());
        let name = format!("shard-{index}");
        executors.push(spawn(&name, processor, move || async move {
            let _ended = Ended::new(Core::Shard(index), &common.ended);
            let (ring, bridge) = match set_up_ring(&ring_options) {
                Ok(set_up) => set_up,
                Err(reason) => {
                    let _ = ready.send((index, Err(reason.clone())));
                    return Err(reason);
                }
            };
            let direct = ring.direct().map_err(ToOwned::to_owned);
            let _ = ready.send((index, Ok((ring.wake_handle(), direct))));
            drop(ready);
            let seed = common.seed.wrapping_mul(2 * index as u64 + 1);
            let now = common.clock.now();
            let shard = Shard::new(core, options, common.delivery, common.node, seed, now);
            let shard_core = ShardCore {
                shard,
                ring,
                bridge,
                clock: common.clock,
                bell,
                upstream,
                downstream,
                backplane: common.backplane,
                processor,
                stop: common.stop,
                listeners,
            };
            let result = shard_core.run().await;
            if let Err(reason) = &result {
                tracing::error!(shard = index, reason, "a shard has failed");
            }
            result
        })?);
    }
    let mut handles: Vec<Option<WakeHandle>> = vec![None; shard_count];
    let (mut failure, mut plain) = (None, None);
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
        common.stop.store(true, Ordering::Relaxed);
        handles.iter().flatten().for_each(WakeHandle::wake);
        return Err(failure);
    }
    if let Some(reason) = plain {
        tracing::warn!(
            reason,
            "sockets are plain descriptors: the open-file limit holds for the whole process"
        );
    }
    let handles: Vec<_> = handles.into_iter().flatten().collect();
    let link = |((upstream, downstream, bell), handle): (_, &WakeHandle)| ShardLink {
        upstream,
        downstream,
        waker: Waker {
            bell,
            handle: handle.clone(),
        },
        has_sent: false,
    };
    let links = Links(halves.into_iter().zip(&handles).map(link).collect());
    Ok((executors, links, handles))
}

fn set_up_ring(options: &ring::Options) -> Result<(Ring, Bridge), String> {
    let ring = Ring::new(options).map_err(|error| error.to_string())?;
    let bridge = Bridge::new(ring.wake_fd())
        .map_err(|error| format!("cannot duplicate a descriptor: {error}"))?;
    Ok((ring, bridge))
}

/// Starts the backplane core, with the admin listener on it.
fn start_backplane(
    settings: Settings,
    common: &Common,
    processor: u32,
    links: Links,
    addresses: Vec<SocketAddr>,
    admin_listener: Option<TcpListener>,
    tls: Option<TlsClient>,
) -> Result<ExecutorJoinHandle<Result<u8, String>>, String> {
    let stop_requests = watch_signals(&common.backplane.handle)?;
    let shard_count = u8::try_from(settings.shards).expect("config allows SHARD_COUNT_MAX shards");
    let backplane_options = backplane::Options {
        inline: common.delivery == Delivery::Inline,
        ..backplane::Options::new(shard_count, settings.shard.room_count_max)
    };
    let incarnation = entropy()?;
    let admin_options = admin::Options {
        node_id: settings.node_id.clone(),
        incarnation,
        version: env!("CARGO_PKG_VERSION"),
        shard_count,
        key: settings.admin_key,
        message_bytes_max: settings.shard.message_bytes_max,
        connection_count_max: u64::from(settings.shard.connection_count_max),
        node_bytes_max: settings.shard.node_bytes_max,
        answer_timeout_ms: ADMIN_ANSWER_TIMEOUT_MS,
        bus_stall_ms_max: ADMIN_BUS_STALL_MS_MAX,
        has_redis: settings.redis.is_some(),
        layout: settings.redis.as_ref().map_or_else(
            || "none".to_owned(),
            crate::backplane::remote::Options::layout,
        ),
        cluster_interval_ms: settings.registry.interval_ms,
    };
    let redis = match &settings.redis {
        Some(_) => Some(
            RedisSockets::new(&common.backplane.handle, tls)
                .map_err(|error| format!("cannot make an epoll instance: {error}"))?,
        ),
        None => None,
    };
    let body_bytes_max = (settings.shard.message_bytes_max as usize).max(ADMIN_BODY_BYTES);
    let http_options = http::Options::new(body_bytes_max);
    let common = common.clone();
    spawn("backplane", processor, move || async move {
        let _ended = Ended::new(Core::Backplane, &common.ended);
        let now = common.clock.now();
        let backplane = match settings.redis {
            Some(redis) => {
                let mut backplane =
                    Backplane::with_redis(backplane_options, redis, common.seed, now);
                backplane.keep_registry(settings.registry, incarnation, now);
                backplane
            }
            None => Backplane::new(backplane_options, common.seed, now),
        };
        let core = BackplaneCore {
            backplane,
            redis,
            links,
            drain: Drain::new(settings.drain, settings.shards),
            admin: Admin::new(admin_options),
            process: ProcessReader::new(),
            turn: Log2Histogram::default(),
            first: 0,
        };
        let around = Surroundings {
            clock: common.clock,
            bell: common.backplane.bell,
            wake: common.backplane.handle,
            stop_requests,
            stop: common.stop,
            failed: common.failed,
            admin_listener: admin_listener.map(|listener| (listener, http_options)),
        };
        let (node, shards) = (settings.node_id, settings.shards);
        let admin = settings
            .admin
            .map_or_else(|| "off".to_owned(), |address| address.to_string());
        tracing::info!(node, shards, listen = ?addresses, admin, "serving");
        backplane_core::run(core, around).await
    })
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
