//! Real clients over loopback against a glommio executor.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream as Client};
use std::sync::mpsc;
use std::thread;

use glommio::LocalExecutor;

use super::*;

/// Serves on a thread of its own while `client` runs. The handler echoes what it was asked; `/slow` takes 50 ms.
fn with_server(options: Options, client: impl FnOnce(SocketAddr)) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = mpsc::channel::<()>();
    let server = thread::spawn(move || {
        LocalExecutor::default().run(async move {
            let pending = PendingAnswers::new();
            let handler: Handler = Rc::new(move |request: Request| {
                if request.path == "/slow" {
                    // Answered from elsewhere, as shards' answers are.
                    let (waits, answers) = (pending.wait(7), Rc::clone(&pending));
                    glommio::spawn_local(async move {
                        glommio::timer::sleep(Duration::from_millis(50)).await;
                        answers.complete(7, Answer::text("text/plain", "slow".into()));
                    })
                    .detach();
                    return Box::pin(waits);
                }
                Box::pin(async move {
                    let text = if request.path == "/large" {
                        "x".repeat(8 << 20)
                    } else if request.path == "/host" {
                        format!("{:?} {}", request.host, request.has_origin)
                    } else {
                        let body = String::from_utf8_lossy(&request.body).into_owned();
                        let (method, path, query) = (request.method, request.path, request.query);
                        format!("{method} {path} {query} {:?} {body}", request.bearer)
                    };
                    Answer::text("text/plain", text).with_header("X-Test", "1")
                })
            });
            let served = glommio::spawn_local(serve(listener, options, handler)).detach();
            while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
                glommio::timer::sleep(Duration::from_millis(1)).await;
            }
            served.cancel();
        });
    });
    client(address);
    stop.send(()).unwrap();
    server.join().unwrap();
}

fn connect(address: SocketAddr) -> Client {
    let client = Client::connect(address).unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    client
}

/// One answer: its status line, its headers in lower case, its body as `Content-Length` announces it.
fn read_answer(reader: &mut impl BufRead, head_only: bool) -> (String, Vec<String>, String) {
    let mut status = String::new();
    reader.read_line(&mut status).unwrap();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if line.trim().is_empty() {
            break;
        }
        headers.push(line.trim().to_lowercase());
    }
    let length = headers
        .iter()
        .find_map(|line| line.strip_prefix("content-length: "))
        .unwrap()
        .parse()
        .unwrap();
    let mut body = vec![0; if head_only { 0 } else { length }];
    reader.read_exact(&mut body).unwrap();
    (
        status.trim().to_owned(),
        headers,
        String::from_utf8(body).unwrap(),
    )
}

fn ask(address: SocketAddr, request: &str) -> (String, Vec<String>, String) {
    let mut client = connect(address);
    client.write_all(request.as_bytes()).unwrap();
    read_answer(&mut BufReader::new(client), false)
}

/// Waits for the peer's end of the stream and gives what came before it.
fn read_to_end(client: &mut Client) -> String {
    let mut rest = Vec::new();
    if let Err(error) = client.read_to_end(&mut rest) {
        // The server closes with bytes unread.
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::ConnectionReset,
            "the connection does not end"
        );
    }
    String::from_utf8_lossy(&rest).into_owned()
}

#[test]
fn whom_a_request_is_meant_for_is_told_whatever_it_says() {
    with_server(Options::new(100), |address| {
        for (request, expected) in [
            (
                "GET /host HTTP/1.1\r\nHost: a:1\r\n\r\n",
                "Some(\"a:1\") false",
            ),
            ("GET /host HTTP/1.0\r\n\r\n", "None false"),
            (
                "POST /host HTTP/1.1\r\nHost: a\r\nOrigin: null\r\n\r\n",
                "Some(\"a\") true",
            ),
            (
                "GET http://b:2/host HTTP/1.1\r\nHost: a\r\n\r\n",
                "Some(\"b:2\") false",
            ),
            (
                "GET /host HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
                "Some(\"a, b\") false",
            ),
        ] {
            assert_eq!(ask(address, request).2, expected, "{request}");
        }
    });
}

#[test]
fn requests_on_one_connection_are_answered_in_turn() {
    with_server(Options::new(100), |address| {
        let mut client = connect(address);
        let mut reader = BufReader::new(client.try_clone().unwrap());
        client
            .write_all(b"GET /a%20b?c=d HTTP/1.1\r\nHost: x\r\nAuthorization: bearer  k y\r\n\r\n")
            .unwrap();
        let (status, headers, body) = read_answer(&mut reader, false);
        assert_eq!(status, "HTTP/1.1 200 OK");
        assert_eq!(body, "GET /a%20b c=d Some(\"k y\") ");
        assert!(
            headers.contains(&"x-test: 1".to_owned())
                && headers.contains(&"content-type: text/plain".to_owned())
        );
        let is_last = "connection: close".to_owned();
        assert!(headers.contains(&"cache-control: no-store".to_owned()));
        assert!(headers.iter().any(|header| header.starts_with("date: ")));
        assert!(!headers.contains(&is_last), "{headers:?}");

        // A body in two parts, and the next request in the same segment as its end.
        client
            .write_all(b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nabc")
            .unwrap();
        client
            .write_all(b"defHEAD /h HTTP/1.1\r\nHost: x\r\n\r\n")
            .unwrap();
        assert_eq!(read_answer(&mut reader, false).2, "POST /p  None abcdef");
        let (status, headers, _) = read_answer(&mut reader, true);
        assert_eq!(status, "HTTP/1.1 200 OK");
        assert!(
            headers.contains(&"content-length: 13".to_owned()),
            "{headers:?}"
        );

        client
            .write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .unwrap();
        let (_, headers, body) = read_answer(&mut reader, false);
        assert_eq!(body, "slow");
        assert!(headers.contains(&is_last), "{headers:?}");
        assert_eq!(
            read_to_end(&mut client),
            "",
            "nothing followed the HEAD's head, and the connection ended"
        );
    });
}

#[test]
fn bodies_are_bounded_whether_announced_or_chunked() {
    with_server(Options::new(10), |address| {
        let (status, _, body) = ask(
            address,
            "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n0123456789",
        );
        assert_eq!(
            (status.as_str(), body.as_str()),
            ("HTTP/1.1 200 OK", "POST /  None 0123456789")
        );
        for request in [
            "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n0123456789a\r\n0\r\n\r\n",
        ] {
            let (status, headers, body) = ask(address, request);
            assert_eq!(status, "HTTP/1.1 413 Payload Too Large");
            assert!(headers.contains(&"connection: close".to_owned()));
            assert!(body.contains("\"code\":\"body_too_large\""), "{body}");
        }
    });
}

#[test]
fn garbage_and_endless_heads_end_their_own_connection_only() {
    with_server(Options::new(10), |address| {
        let mut client = connect(address);
        client.write_all(b"\x16\x03\x01 not http\r\n\r\n").unwrap();
        assert!(read_to_end(&mut client).starts_with("HTTP/1.1 400"));
        let mut client = connect(address);
        let _ = client.write_all(
            format!(
                "GET / HTTP/1.1\r\nX: {}\r\n\r\n",
                "y".repeat(2 * HEAD_BYTES_MAX)
            )
            .as_bytes(),
        );
        assert!(!read_to_end(&mut client).contains("200 OK"));
        let many: String = (0..=HEADER_COUNT_MAX)
            .map(|index| format!("X-{index}: y\r\n"))
            .collect();
        let mut client = connect(address);
        client
            .write_all(format!("GET / HTTP/1.1\r\n{many}\r\n").as_bytes())
            .unwrap();
        assert!(read_to_end(&mut client).starts_with("HTTP/1.1 431"));
        assert_eq!(
            ask(address, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").0,
            "HTTP/1.1 200 OK"
        );
    });
}

#[test]
fn a_request_that_does_not_come_in_time_frees_its_place_for_who_waits() {
    let mut options = Options::new(10);
    options.connection_count_max = 3;
    options.request_timeout = Duration::from_millis(200);
    with_server(options, |address| {
        // Silent from the start; stuck in the head; stuck in the body: all places are taken.
        let mut stuck = [(); 3].map(|()| connect(address));
        stuck[1].write_all(b"GET / HTTP/1.1\r\nHost").unwrap();
        stuck[2]
            .write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab")
            .unwrap();
        assert_eq!(
            ask(address, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").0,
            "HTTP/1.1 200 OK"
        );
        for client in &mut stuck {
            assert!(!read_to_end(client).contains("200 OK"));
        }
    });
}

#[test]
fn an_idle_connection_ends_and_one_that_waits_for_its_answer_does_not() {
    let mut options = Options::new(10);
    options.request_timeout = Duration::from_millis(20);
    with_server(options, |address| {
        let mut client = connect(address);
        client
            .write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
            .unwrap();
        let mut reader = BufReader::new(client.try_clone().unwrap());
        assert_eq!(
            read_answer(&mut reader, false).2,
            "slow",
            "it took longer than a request may"
        );
        assert_eq!(read_to_end(&mut client), "", "then it idled");
    });
}

#[test]
fn a_reader_that_stops_is_cut_and_a_slow_one_is_served_to_the_end() {
    let mut options = Options::new(10);
    options.write_timeout = Duration::from_millis(200);
    options.connection_count_max = 1;
    with_server(options, |address| {
        let mut stopped = connect(address);
        stopped
            .write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            .unwrap();
        // Its place becomes free though it never reads.
        let (status, _, body) = ask(
            address,
            "GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        );
        assert_eq!((status.as_str(), body.len()), ("HTTP/1.1 200 OK", 8 << 20));
        assert!(read_to_end(&mut stopped).len() < 8 << 20);
    });
}
