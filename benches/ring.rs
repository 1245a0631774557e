//! The ring beside the plain way, in one run: an echo loop, a fan-out, closing. CPU time of the server's thread.
//!
//! `cargo bench --bench ring`: server on processor 0, clients on processor 1, medians of rounds that alternate. The
//! criterion harness measures wall time of calls, not processor time of a thread, so this is a program of its own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::thread::{ClockId, CpuSet, sched_setaffinity};
use throng::protocol::{Encoded, Piece};
use throng::runtime::bridge::Bridge;
use throng::runtime::ring::{Descriptors, Event, Options, Ring};

const ECHO_CONNECTIONS: usize = 2_000;
const ECHO_BYTES: usize = 128;
const FAN_OUT_CONNECTIONS: usize = 2_000;
const FAN_OUT_BYTES: usize = 128;
const CLOSE_CONNECTIONS: u32 = 16_000;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_millis(1_500);

fn pin(processor: usize) {
    let mut set = CpuSet::new();
    set.set(processor);
    sched_setaffinity(None, &set).expect("processors 0 and 1");
}

fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        time.tv_sec.try_into().unwrap(),
        time.tv_nsec.try_into().unwrap(),
    )
}

fn microseconds(time: Duration, count: u64) -> f64 {
    time.as_secs_f64() * 1e6 / count as f64
}

fn median(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (
        values[values.len() / 2],
        values[0],
        values[values.len() - 1],
    )
}

fn options(descriptors: Descriptors) -> Options {
    Options {
        descriptors,
        socket_count_max: 18_000,
        submission_entries: 256,
        completion_entries: 4_096,
        receive_buffer_bytes: 4_096,
        receive_buffer_count: 1_024,
    }
}

/// Clients on processor 1 that answer every message until told to stop. Quiet ones only read.
fn clients(
    address: SocketAddr,
    count: usize,
    quiet: bool,
    stop: Arc<AtomicBool>,
    read_bytes: Arc<AtomicU64>,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        pin(1);
        let poller = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let mut sockets: Vec<TcpStream> = (0..count)
            .map(|number| {
                let mut socket = TcpStream::connect(address).unwrap();
                socket.set_nodelay(true).unwrap();
                if !quiet {
                    socket.write_all(&[7; ECHO_BYTES]).unwrap();
                }
                socket.set_nonblocking(true).unwrap();
                let data = epoll::EventData::new_u64(number as u64);
                epoll::add(&poller, socket.as_fd(), data, epoll::EventFlags::IN).unwrap();
                socket
            })
            .collect();
        let mut events = Vec::with_capacity(512);
        let mut bytes = [0; 16_384];
        while !stop.load(Ordering::Relaxed) {
            let wait = rustix::event::Timespec {
                tv_sec: 0,
                tv_nsec: 50_000_000,
            };
            let _ = epoll::wait(
                &poller,
                rustix::buffer::spare_capacity(&mut events),
                Some(&wait),
            );
            for event in events.drain(..) {
                let socket = &mut sockets[event.data.u64() as usize];
                if let Ok(count @ 1..) = socket.read(&mut bytes) {
                    read_bytes.fetch_add(count as u64, Ordering::Relaxed);
                    if !quiet {
                        let _ = socket.write(&bytes[..count]);
                    }
                }
            }
        }
    })
}

/// The loop to beat: level-triggered epoll, one `recv` and one `send` a message.
fn echo_epoll(listener: &TcpListener, measured: &dyn Fn(u64) -> bool) {
    let poller = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let mut sockets: Vec<TcpStream> = Vec::new();
    for number in 0..ECHO_CONNECTIONS {
        let (socket, _) = listener.accept().unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_nonblocking(true).unwrap();
        let data = epoll::EventData::new_u64(number as u64);
        epoll::add(&poller, socket.as_fd(), data, epoll::EventFlags::IN).unwrap();
        sockets.push(socket);
    }
    let mut events = Vec::with_capacity(512);
    let mut bytes = [0; 4_096];
    let mut count = 0;
    while measured(count) {
        epoll::wait(&poller, rustix::buffer::spare_capacity(&mut events), None).unwrap();
        for event in events.drain(..) {
            let socket = &mut sockets[event.data.u64() as usize];
            if let Ok(received @ 1..) = socket.read(&mut bytes) {
                let _ = socket.write(&bytes[..received]);
                count += 1;
            }
        }
    }
}

fn echo_ring(listener: TcpListener, descriptors: Descriptors, measured: &dyn Fn(u64) -> bool) {
    let mut ring = Ring::new(&options(descriptors)).unwrap();
    socket2::SockRef::from(&listener)
        .set_tcp_nodelay(true)
        .unwrap();
    ring.listen(listener.into());
    let mut echoes = Vec::new();
    let mut opened = Vec::new();
    let mut count = 0;
    while measured(count) {
        ring.submit_and_wait().unwrap();
        while let Some(event) = ring.next_event() {
            match event {
                Event::Accepted { token, .. } => opened.push(token),
                Event::Received { token, bytes } => echoes.push((token, bytes.to_vec())),
                _ => {}
            }
        }
        for token in opened.drain(..) {
            ring.receive(token);
        }
        count += echoes.len() as u64;
        for (token, bytes) in echoes.drain(..) {
            ring.send(token, &[Piece::whole(Encoded::new(bytes))]);
        }
    }
}

/// Runs an echo server in a pinned thread for a round; CPU microseconds an echo, and echoes a second.
fn echo(
    name: &str,
    server: impl FnOnce(TcpListener, &dyn Fn(u64) -> bool) + Send + 'static,
) -> (f64, f64) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::listen(&listener, 4_096).unwrap();
    let address = listener.local_addr().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let clients = clients(
        address,
        ECHO_CONNECTIONS,
        false,
        Arc::clone(&stop),
        Arc::default(),
    );
    let server = thread::Builder::new().name(name.to_owned()).spawn(move || {
        pin(0);
        // From the second echo of each connection on, for a round.
        let start = std::cell::Cell::new(None);
        let end = std::cell::Cell::new(None);
        let measured = |count: u64| {
            match start.get() {
                None if count > 2 * ECHO_CONNECTIONS as u64 => {
                    start.set(Some((Instant::now(), thread_cpu(), count)))
                }
                Some((at, cpu, from)) if at.elapsed() >= ROUND => {
                    end.set(Some((at.elapsed(), thread_cpu() - cpu, count - from)));
                    return false;
                }
                _ => {}
            }
            true
        };
        server(listener, &measured);
        end.get().expect("a round was measured")
    });
    let (time, cpu, count) = server.unwrap().join().unwrap();
    stop.store(true, Ordering::Relaxed);
    clients.join().unwrap();
    (microseconds(cpu, count), count as f64 / time.as_secs_f64())
}

/// Runs `deliver`, which sends the message to all, for a round; CPU microseconds a delivery.
///
/// The next message waits until all have read the one before, so that no socket is ever full.
fn fan_out_round(read_bytes: &AtomicU64, mut deliver: impl FnMut()) -> f64 {
    let (start, mut cpu, mut count) = (Instant::now(), Duration::ZERO, 0);
    while start.elapsed() < ROUND {
        let from = thread_cpu();
        deliver();
        cpu += thread_cpu() - from;
        count += FAN_OUT_CONNECTIONS as u64;
        while read_bytes.load(Ordering::Relaxed) < count * FAN_OUT_BYTES as u64 {
            thread::sleep(Duration::from_millis(1));
        }
    }
    microseconds(cpu, count)
}

/// One message to all, over and over, in the two ways; CPU microseconds a delivery of each.
fn fan_out(descriptors: Descriptors) -> (f64, f64) {
    pin(0);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::listen(&listener, 4_096).unwrap();
    socket2::SockRef::from(&listener)
        .set_tcp_nodelay(true)
        .unwrap();
    let address = listener.local_addr().unwrap();
    let message = Encoded::new(vec![7; FAN_OUT_BYTES]);
    let readers = || {
        let (stop, read_bytes) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let thread = clients(
            address,
            FAN_OUT_CONNECTIONS,
            true,
            Arc::clone(&stop),
            Arc::clone(&read_bytes),
        );
        (thread, stop, read_bytes)
    };

    let (thread, stop, read_bytes) = readers();
    let sockets: Vec<TcpStream> = (0..FAN_OUT_CONNECTIONS)
        .map(|_| listener.accept().unwrap().0)
        .collect();
    let plain = fan_out_round(&read_bytes, || {
        for socket in &sockets {
            rustix::net::send(socket, message.bytes(), rustix::net::SendFlags::NOSIGNAL).unwrap();
        }
    });
    stop.store(true, Ordering::Relaxed);
    thread.join().unwrap();
    drop(sockets);

    let (thread, stop, read_bytes) = readers();
    let mut ring = Ring::new(&options(descriptors)).unwrap();
    ring.listen(listener.into());
    let mut tokens = Vec::new();
    while tokens.len() < FAN_OUT_CONNECTIONS {
        ring.submit_and_wait().unwrap();
        while let Some(event) = ring.next_event() {
            if let Event::Accepted { token, .. } = event {
                tokens.push(token);
            }
        }
    }
    let ours = fan_out_round(&read_bytes, || {
        ring.send_fan_out(&message, &tokens);
        let mut done_count = 0;
        while done_count < tokens.len() {
            ring.submit().unwrap();
            while let Some(event) = ring.next_event() {
                done_count += usize::from(matches!(event, Event::Sent { done: true, .. }));
            }
        }
    });
    stop.store(true, Ordering::Relaxed);
    thread.join().unwrap();
    (plain, ours)
}

/// CPU microseconds to close a socket with an armed receive, among `CLOSE_CONNECTIONS` of them.
fn closing() -> f64 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::listen(&listener, 4_096).unwrap();
    let address = listener.local_addr().unwrap();
    let up = Arc::new(AtomicU32::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let clients = thread::spawn({
        let (up, stop) = (Arc::clone(&up), Arc::clone(&stop));
        move || {
            pin(1);
            let mut ring = Ring::new(&options(Descriptors::Direct)).unwrap();
            let mut begun = 0;
            while !stop.load(Ordering::Relaxed) {
                while begun < CLOSE_CONNECTIONS && begun < up.load(Ordering::Relaxed) + 1_000 {
                    ring.connect(address, None).unwrap();
                    begun += 1;
                }
                ring.set_alarm(Duration::from_millis(10));
                ring.submit_and_wait().unwrap();
                while ring.next_event().is_some() {}
            }
        }
    });
    pin(0);
    let mut ring = Ring::new(&options(Descriptors::Direct)).unwrap();
    ring.listen(listener.into());
    let mut tokens = Vec::new();
    while tokens.len() < CLOSE_CONNECTIONS as usize {
        ring.submit_and_wait().unwrap();
        let from = tokens.len();
        while let Some(event) = ring.next_event() {
            if let Event::Accepted { token, .. } = event {
                tokens.push(token);
            }
        }
        for &token in &tokens[from..] {
            ring.receive(token);
        }
        up.store(u32::try_from(tokens.len()).unwrap(), Ordering::Relaxed);
    }
    ring.submit().unwrap();
    let cpu = thread_cpu();
    for &token in &tokens {
        ring.close(token);
    }
    let mut closed_count = 0;
    while closed_count < tokens.len() {
        ring.submit().unwrap();
        while let Some(event) = ring.next_event() {
            closed_count += usize::from(matches!(event, Event::Closed { .. }));
        }
    }
    let cost = microseconds(thread_cpu() - cpu, u64::from(CLOSE_CONNECTIONS));
    stop.store(true, Ordering::Relaxed);
    clients.join().unwrap();
    cost
}

fn echo_all() {
    let mut epoll = (Vec::new(), Vec::new());
    let mut direct = (Vec::new(), Vec::new());
    let mut plain = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (cpu, rate) = echo("epoll", |listener, measured| {
            echo_epoll(&listener, measured)
        });
        epoll.0.push(cpu);
        epoll.1.push(rate);
        let (cpu, rate) = echo("direct", |listener, measured| {
            echo_ring(listener, Descriptors::Direct, measured)
        });
        direct.0.push(cpu);
        direct.1.push(rate);
        let (cpu, rate) = echo("plain", |listener, measured| {
            echo_ring(listener, Descriptors::Plain, measured)
        });
        plain.0.push(cpu);
        plain.1.push(rate);
    }
    println!(
        "echo, {ECHO_CONNECTIONS} connections, {ECHO_BYTES} B: CPU us an echo, median (least, most); echoes/s"
    );
    let base = median(epoll.0.clone()).0;
    for (name, (cpu, rate)) in [
        ("epoll", epoll),
        ("ring, direct", direct),
        ("ring, plain", plain),
    ] {
        let (middle, least, most) = median(cpu);
        let rate = median(rate).0;
        println!(
            "  {name:12} {middle:.2} ({least:.2}, {most:.2})  {:.2} of epoll  {rate:.0}/s",
            middle / base
        );
    }
}

fn fan_out_all() {
    println!("fan-out, {FAN_OUT_CONNECTIONS} sockets: CPU us a delivery, median of {ROUNDS}");
    for descriptors in [Descriptors::Direct, Descriptors::Plain] {
        let rounds: Vec<_> = (0..ROUNDS)
            .map(|_| thread::spawn(move || fan_out(descriptors)).join().unwrap())
            .collect();
        let (send, ..) = median(rounds.iter().map(|round| round.0).collect());
        let (ring, ..) = median(rounds.iter().map(|round| round.1).collect());
        println!(
            "  send() {send:.2}, ring, {descriptors:?} {ring:.2}: {:.2} of send()",
            ring / send
        );
    }
}

fn closing_all() {
    let cost = thread::spawn(closing).join().unwrap();
    println!("closing {CLOSE_CONNECTIONS} armed sockets: {cost:.2} CPU us each");
}

/// CPU time, and wall time, from going to sleep in a glommio executor to being awake again.
fn sleeping_all() {
    const COUNT: u64 = 100_000;
    let (cpu, wall) = glommio::LocalExecutorBuilder::default()
        .spawn(|| async {
            let mut ring = Ring::new(&options(Descriptors::Auto)).unwrap();
            let mut bridge = Bridge::new(ring.wake_fd()).unwrap();
            let handle = ring.wake_handle();
            let (cpu, wall) = (thread_cpu(), Instant::now());
            for _ in 0..COUNT {
                handle.wake();
                if ring.prepare_sleep() {
                    bridge.woken().await;
                }
                ring.awake();
            }
            (thread_cpu() - cpu, wall.elapsed())
        })
        .unwrap()
        .join()
        .unwrap();
    let (cpu, wall) = (microseconds(cpu, COUNT), microseconds(wall, COUNT));
    println!("a sleep and a wake-up through the bridge: {cpu:.2} CPU us, {wall:.2} us");
}

/// Runs the parts that are named (`echo`, `fan-out`, `closing`, `sleeping`), or all.
fn main() {
    let parts: [(&str, fn()); 4] = [
        ("echo", echo_all),
        ("fan-out", fan_out_all),
        ("closing", closing_all),
        ("sleeping", sleeping_all),
    ];
    let named: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    for (name, run) in parts {
        if named.is_empty() || named.iter().any(|part| part == name) {
            run();
        }
    }
}
