//! Servers whose behaviour is known: this process, children that end, and endpoints that answer what they should not.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::*;
use crate::clock::thread_cpu_ns;
use crate::report::Report;

/// What an endpoint does with each request.
type Script = Box<dyn FnMut(&str, &mut dyn Write) + Send>;

/// An endpoint that answers by a script, until it is dropped.
struct Scripted {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Scripted {
    fn start(mut script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stop_seen = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if stop_seen.load(Ordering::Relaxed) {
                    return;
                }
                let mut stream = stream.unwrap();
                let mut request = Vec::new();
                let mut chunk = [0; 1024];
                while !request.ends_with(b"\r\n\r\n") {
                    match stream.read(&mut chunk) {
                        Ok(count @ 1..) => request.extend_from_slice(&chunk[..count]),
                        _ => break,
                    }
                }
                script(&String::from_utf8_lossy(&request), &mut stream);
            }
        });
        Self {
            address,
            stop,
            thread: Some(thread),
        }
    }

    /// An endpoint that always answers this.
    fn answering(status: &'static str, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        Self::start(Box::new(move |_, stream| answer(stream, status, &body)))
    }

    fn url(&self) -> String {
        format!("http://{}/metrics", self.address)
    }

    fn beside(&self) -> Beside {
        Beside {
            metrics: vec![self.url()],
            ..Beside::default()
        }
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(std::net::TcpStream::connect(self.address));
        let _ = self.thread.take().unwrap().join();
    }
}

/// Answers; a client that has gone away meanwhile is no concern of a script's.
fn answer(stream: &mut dyn Write, status: &str, body: &[u8]) {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(body);
}

/// A process that does nothing until it is dropped.
struct Sleeper(Child);

impl Sleeper {
    fn start() -> Self {
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.end();
    }
}

fn pids(pids: &[u32]) -> Beside {
    Beside {
        server_pid: pids.to_vec(),
        ..Beside::default()
    }
}

fn refusal(beside: &Beside) -> String {
    match Servers::open(beside) {
        Err(Failure::Usage(text)) => text,
        other => panic!("{other:?}"),
    }
}

fn burn(ms: u128) {
    let start = Instant::now();
    while start.elapsed().as_millis() < ms {
        std::hint::black_box(now_ns());
    }
}

#[test]
fn times_of_all_processes_are_read_before_the_memory_of_any() {
    let mut child = Command::new("sleep").arg("60").spawn().unwrap();
    // To be walked page by page.
    let held = vec![1_u8; 512 << 20];
    let beside = Beside {
        server_pid: vec![std::process::id(), child.id()],
        ..Beside::default()
    };
    let servers = Servers::open(&beside).unwrap();
    let process = servers.servers[0].process.as_ref().unwrap();
    // The shortest of many: other processes may have the processor meanwhile.
    let (mut walk_ns, mut gap_ns) = (u64::MAX, u64::MAX);
    for _ in 0..30 {
        let begin_ns = now_ns();
        process.add_memory(&mut Part::default()).unwrap();
        walk_ns = walk_ns.min(now_ns() - begin_ns);
        let parts = servers.sample().unwrap().parts;
        gap_ns = gap_ns.min(parts[1].at_ns - parts[0].at_ns);
        assert!(parts[0].rss_bytes > Some(512 << 20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        gap_ns < walk_ns,
        "{gap_ns} ns apart, a walk takes {walk_ns} ns"
    );
    drop(held);
}

#[test]
fn without_servers_nothing_is_read_and_nothing_reported() {
    let servers = Servers::open(&Beside::default()).unwrap();
    assert!(servers.is_empty() && servers.names().is_empty());
    let sample = servers.sample().unwrap();
    assert_eq!(sample.total(|part| part.rss_bytes), None);
    let mut report = Report::new("test");
    report_usage(&sample, &sample, "message", 1, &mut report);
    report_memory(&sample, &[(1, &sample), (2, &sample)], &mut report);
    assert_eq!(report.text(), "");
    let glance = servers.glance();
    assert_eq!(Glance::points(&glance, &glance), []);
}

#[test]
fn this_process_uses_time_and_memory() {
    let servers = Servers::open(&pids(&[std::process::id()])).unwrap();
    assert_eq!(servers.names(), [std::process::id().to_string()]);
    let before = servers.sample().unwrap();
    let glance = servers.glance();
    burn(60);
    let points = Glance::points(&glance, &servers.glance());
    let after = servers.sample().unwrap();
    let usage = Usage::between(&before, &after);
    assert!(usage.cpu_us > 1_000.0, "{usage:?}");
    let range = 0.01..1.5;
    assert!(range.contains(&usage.busiest_share), "{usage:?}");
    assert!(before.total(|part| part.rss_bytes).unwrap() > 100_000);
    assert!(before.total(|part| part.pss_bytes).unwrap() > 100_000);
    let descriptors = before.total(|part| part.descriptor_count).unwrap();
    assert!((3..10_000).contains(&descriptors), "{descriptors}");

    let [point] = points.as_slice() else {
        panic!("{points:?}")
    };
    assert!(range.contains(&point.busiest_thread_share), "{point:?}");
    assert!(point.rss_bytes > 100_000 && point.descriptors > 2);
    assert_eq!(point.connections, None);

    let mut report = Report::new("test");
    report_usage(&before, &after, "message", 10, &mut report);
    for name in [
        "server_cpu_us_per_message",
        "server_cores_used",
        "server_waited_share",
        "server_rss_after_bytes",
        "server_descriptors",
        "tcp_memory_after_bytes",
    ] {
        assert!(report.get(name).is_some(), "{name}:\n{}", report.text());
    }
}

#[test]
fn processor_time_of_threads_that_came_and_went_counts() {
    let servers = Servers::open(&pids(&[std::process::id()])).unwrap();
    let before = servers.sample().unwrap();
    let burnt_ns = 150_000_000;
    let burner = thread::spawn(move || while thread_cpu_ns() < burnt_ns {});
    burner.join().unwrap();
    let after = servers.sample().unwrap();
    let cpu_us = Usage::between(&before, &after).cpu_us;
    assert!(cpu_us > 100_000.0, "{cpu_us}");
}

#[test]
fn threads_may_come_and_go_while_they_are_read() {
    let stop = Arc::new(AtomicBool::new(false));
    let stop_seen = Arc::clone(&stop);
    let spawner = thread::spawn(move || {
        while !stop_seen.load(Ordering::Relaxed) {
            let brood: Vec<_> = (0..4).map(|_| thread::spawn(|| ())).collect();
            brood.into_iter().for_each(|thread| thread.join().unwrap());
        }
    });
    let servers = Servers::open(&pids(&[std::process::id()])).unwrap();
    let begin = servers.sample().unwrap();
    let mut last = servers.glance();
    for _ in 0..100 {
        let glance = servers.glance();
        assert_eq!(Glance::points(&last, &glance).len(), 1);
        last = glance;
    }
    let usage = Usage::between(&begin, &servers.sample().unwrap());
    assert!((0.0..64.0).contains(&usage.cores), "{usage:?}");
    stop.store(true, Ordering::Relaxed);
    spawner.join().unwrap();
}

#[test]
fn a_process_may_have_any_name() {
    let name = OsStr::from_bytes(b"a) Z 1 (\xff\n");
    let directory = std::env::temp_dir().join(format!("throng-load-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let program = directory.join(name);
    symlink("/bin/cat", &program).unwrap();
    let mut command = Command::new(&program);
    command.arg0("cat").stdin(Stdio::piped());
    let sleeper = Sleeper(command.spawn().unwrap());
    std::fs::remove_dir_all(&directory).unwrap();
    let servers = Servers::open(&pids(&[sleeper.0.id()])).unwrap();
    let sample = servers.sample().unwrap();
    assert!(sample.parts[0].threads[0].name.starts_with("a) Z 1 ("));
    assert!(servers.glance().gone().is_empty());
}

#[test]
fn a_process_that_is_not_there_or_not_to_be_looked_at_is_refused() {
    assert!(refusal(&pids(&[u32::MAX])).contains("there is no such process"));
    assert!(refusal(&pids(&[0])).contains("there is no such process"));
    let this = std::process::id();
    assert!(refusal(&pids(&[this, this])).contains("given twice"));
    let many = vec!["http://127.0.0.1:1/".to_owned(); SERVER_COUNT_MAX + 1];
    let beside = Beside {
        metrics: many,
        ..Beside::default()
    };
    assert!(refusal(&beside).contains("at most 256"));
    let mut zombie = Sleeper::start();
    let _ = zombie.0.kill();
    let start = Instant::now();
    // Killed, but not waited for: it stays as a zombie once the signal has come.
    loop {
        match Servers::open(&pids(&[zombie.0.id()])) {
            Err(Failure::Usage(text)) if text.contains("has ended") => break,
            _ => assert!(start.elapsed() < Duration::from_secs(10)),
        }
        thread::yield_now();
    }
}

#[test]
fn a_process_that_ends_during_the_run_is_an_error_and_gone() {
    let mut sleeper = Sleeper::start();
    let servers = Servers::open(&pids(&[std::process::id(), sleeper.0.id()])).unwrap();
    let before = servers.glance();
    assert_eq!(before.gone(), [] as [String; 0]);
    assert!(servers.sample().is_ok());
    let name = sleeper.0.id().to_string();
    sleeper.end();
    let after = servers.glance();
    assert_eq!(after.gone(), std::slice::from_ref(&name));
    assert_eq!(Glance::points(&before, &after).len(), 1);
    let error = servers.sample().unwrap_err();
    let text = format!("server {name} ended during the run");
    assert_eq!(error, Failure::Broken(text));
}

const TOLD: &str = "\
# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total 12.5
process_resident_memory_bytes 1.048576e+06
process_open_fds 9
throng_connections{shard=\"0\"} 3
throng_connections{shard=\"1\"} 4
throng_deliveries_total 100
";

#[test]
fn a_server_known_by_its_metrics_alone_tells_what_a_process_does() {
    let mut scrape_count = 0;
    let scripted = Scripted::start(Box::new(move |_, stream| {
        scrape_count += 1;
        let cpu = format!("process_cpu_seconds_total {scrape_count}.5");
        let text = TOLD.replace("process_cpu_seconds_total 12.5", &cpu);
        answer(stream, "200 OK", text.as_bytes());
    }));
    let servers = Servers::open(&scripted.beside()).unwrap();
    assert_eq!(servers.names(), [scripted.address.to_string()]);
    let before = servers.sample().unwrap();
    let after = servers.sample().unwrap();
    let mut report = Report::new("test");
    report_usage(&before, &after, "message", 1000, &mut report);
    let about = |name: &str, value: f64| {
        let found = report.get(name).unwrap();
        assert!((found - value).abs() < 1e-6, "{name} {found}");
    };
    about("server_cpu_us_per_message", 1000.0);
    about("server_rss_after_bytes", 1_048_576.0);
    about("server_descriptors", 9.0);
    about("metrics_throng_connections", 7.0);
    about("metrics_throng_deliveries", 0.0);
    assert_eq!(report.get("server_busiest_thread_share"), None);
    assert_eq!(report.get("server_user_us_per_message"), None);

    // Glances leave the endpoint in peace for a while: the second waits until it may ask again.
    let first = servers.glance();
    let start = Instant::now();
    let point = loop {
        let points = Glance::points(&first, &servers.glance());
        if let Some(point) = points.into_iter().next() {
            break point;
        }
        assert!(start.elapsed() < Duration::from_secs(20));
        thread::yield_now();
    };
    assert_eq!(point.connections, Some(7));
    assert_eq!((point.rss_bytes, point.descriptors), (1 << 20, 9));
    assert!(point.user_share > 0.0 && point.system_share == 0.0);
}

#[test]
fn metrics_of_a_process_that_is_given_too_are_not_another_server() {
    let scripted = Scripted::answering("200 OK", TOLD);
    let beside = Beside {
        server_pid: vec![std::process::id()],
        ..scripted.beside()
    };
    let servers = Servers::open(&beside).unwrap();
    assert_eq!(servers.names(), [std::process::id().to_string()]);
    let sample = servers.sample().unwrap();
    assert_eq!(sample.parts[0].connection_count, Some(7));
    // What `/proc` tells is the finer, and stands.
    assert_ne!(sample.parts[0].rss_bytes, Some(1 << 20));
    assert!(!sample.parts[0].threads.is_empty());
    let mut report = Report::new("test");
    report_usage(&sample, &sample, "message", 1, &mut report);
    let note = format!("the metrics of {} are server", scripted.address);
    assert!(report.text().contains(&note), "{}", report.text());
    assert_eq!(
        Glance::points(&Glance::default(), &servers.glance()),
        [],
        "there was no earlier glance"
    );
}

#[test]
fn metrics_of_another_process_are_another_server() {
    let scripted = Scripted::answering("200 OK", TOLD);
    let sleeper = Sleeper::start();
    let beside = Beside {
        server_pid: vec![sleeper.0.id()],
        ..scripted.beside()
    };
    let servers = Servers::open(&beside).unwrap();
    let expected = [sleeper.0.id().to_string(), scripted.address.to_string()];
    assert_eq!(servers.names(), expected);
}

#[test]
fn metrics_whose_process_began_at_the_same_moment_are_its() {
    let sleeper = Sleeper::start();
    let start_s = Process::open(sleeper.0.id()).unwrap().start_unix_s();
    let text = format!("process_start_time_seconds {}\n", start_s.unwrap());
    let scripted = Scripted::answering("200 OK", text);
    let beside = Beside {
        server_pid: vec![sleeper.0.id()],
        ..scripted.beside()
    };
    let servers = Servers::open(&beside).unwrap();
    assert_eq!(servers.names(), [sleeper.0.id().to_string()]);
}

#[test]
fn two_paths_of_a_host_are_two_servers_and_one_path_twice_is_a_mistake() {
    let scripted = Scripted::answering("200 OK", TOLD);
    let (address, url) = (scripted.address, scripted.url());
    let beside = |urls: [&str; 2]| Beside {
        metrics: urls.map(str::to_owned).to_vec(),
        ..Beside::default()
    };
    let other = format!("http://{address}/other");
    let servers = Servers::open(&beside([&url, &other])).unwrap();
    assert_eq!(servers.sample().unwrap().parts.len(), 2);
    assert!(servers.glance().gone().is_empty());
    assert_eq!(
        servers.names(),
        [format!("{address}"), format!("{address}/other")]
    );
    let bare = format!("http://{address}");
    assert!(refusal(&beside([&url, &bare])).contains("given twice"));
}

#[test]
fn what_is_no_endpoint_of_metrics_is_refused_with_the_reason() {
    for (url, reason) in [
        ("127.0.0.1:8081", "the scheme is not http"),
        ("https://127.0.0.1/metrics", "only plain HTTP"),
        ("ftp://127.0.0.1/metrics", "the scheme is not http"),
        ("http:///metrics", "no URL"),
        ("http://user:key@127.0.0.1/metrics", "no user name"),
        ("http://127.0.0.1:99999/metrics", "port is no number"),
        ("http://127.0.0.1:1/metrics", "nobody listens there"),
        ("", "no URL"),
    ] {
        let beside = Beside {
            metrics: vec![url.into()],
            ..Beside::default()
        };
        let text = refusal(&beside);
        assert!(text.contains(reason), "{url}: {text}");
    }
    let answers: [(&'static str, &[u8], &str); 8] = [
        ("404 Not Found", b"", "404 Not Found; is the path right?"),
        ("401 Unauthorized", b"", "--metrics-key-file"),
        ("302 Found", b"", "it answers 302"),
        ("503 Service Unavailable", TOLD.as_bytes(), "it answers 503"),
        ("200 OK", b"<html>hello</html>", "line 1 is no metric"),
        ("200 OK", b"up 1\nup \xff\n", "no text"),
        ("200 OK", b"# nothing here\n", "no metrics in it"),
        ("nonsense", b"", "--metrics"),
    ];
    for (status, body, reason) in answers {
        let scripted = Scripted::answering(status, body);
        let text = refusal(&scripted.beside());
        assert!(text.contains(reason), "{status}: {text}");
    }
}

#[test]
fn an_endless_answer_is_given_up_at_its_bound() {
    let scripted = Scripted::start(Box::new(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        let line = "up 1\n".repeat(4096);
        while stream.write_all(line.as_bytes()).is_ok() {}
    }));
    let endpoint = Endpoint::new(&scripted.url(), None).unwrap();
    let trouble = endpoint.scrape(Duration::from_secs(60)).unwrap_err();
    assert!(trouble.text.contains("larger than 16 MiB"), "{trouble:?}");
    assert!(!trouble.is_gone);
}

#[test]
fn an_endpoint_that_trickles_is_given_up_in_time() {
    let scripted = Scripted::start(Box::new(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n");
        while stream.write_all(b"#").is_ok() {
            thread::sleep(Duration::from_millis(5));
        }
    }));
    let endpoint = Endpoint::new(&scripted.url(), None).unwrap();
    let start = Instant::now();
    let trouble = endpoint.scrape(Duration::from_millis(100)).unwrap_err();
    assert!(
        trouble.text.contains("no whole answer within 100ms"),
        "{trouble:?}"
    );
    assert!(start.elapsed() < Duration::from_secs(5) && !trouble.is_gone);
}

#[test]
fn an_endpoint_that_ends_during_the_run_is_an_error_and_gone() {
    let scripted = Scripted::answering("200 OK", TOLD);
    let servers = Servers::open(&scripted.beside()).unwrap();
    let name = scripted.address.to_string();
    drop(scripted);
    assert_eq!(servers.glance().gone(), std::slice::from_ref(&name));
    assert_eq!(
        servers.glance().gone(),
        std::slice::from_ref(&name),
        "and it stays so"
    );
    let Err(Failure::Broken(text)) = servers.sample() else {
        panic!("it is gone");
    };
    assert!(
        text.starts_with(&format!("server {name} ended during the run")),
        "{text}"
    );
}

#[test]
fn an_endpoint_that_goes_wrong_for_a_moment_is_asked_again() {
    let mut scrape_count = 0;
    let scripted = Scripted::start(Box::new(move |_, stream| {
        scrape_count += 1;
        let is_well = scrape_count == 1 || scrape_count == 3;
        let status = if is_well { "200 OK" } else { "500 Oh" };
        answer(stream, status, TOLD.as_bytes());
    }));
    let servers = Servers::open(&scripted.beside()).unwrap();
    assert!(servers.sample().is_ok(), "the second attempt is answered");
    let Err(Failure::Broken(text)) = servers.sample() else {
        panic!("every attempt is refused");
    };
    assert!(
        text.contains("does not tell its metrics any more"),
        "{text}"
    );
}

#[test]
fn a_key_is_sent_as_a_bearer_and_a_wrong_file_is_refused() {
    let scripted = Scripted::start(Box::new(|request, stream| {
        let request = request.to_lowercase();
        let known = request.contains("authorization: bearer sesame\r\n");
        let status = if known { "200 OK" } else { "401 Unauthorized" };
        answer(stream, status, b"up 1\n");
    }));
    assert!(refusal(&scripted.beside()).contains("401"));
    let directory = std::env::temp_dir();
    let file = directory.join(format!("throng-load-key-{}", std::process::id()));
    let with_key = Beside {
        metrics_key_file: Some(file.clone()),
        ..scripted.beside()
    };
    for (key, reason) in [
        ("Sesame\n", None),
        (" \n", Some("1 to 8192 bytes")),
        ("two words", Some("visible ASCII")),
        ("a\r\nb: c", Some("visible ASCII")),
    ] {
        std::fs::write(&file, key).unwrap();
        match reason {
            None => assert!(Servers::open(&with_key).is_ok()),
            Some(reason) => assert!(refusal(&with_key).contains(reason), "{key:?}"),
        }
    }
    std::fs::remove_file(&file).unwrap();
    assert!(refusal(&with_key).contains("--metrics-key-file"));
}
