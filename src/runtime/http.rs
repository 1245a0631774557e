//! HTTP/1.1 for the admin listener: hyper on glommio's sockets. It carries requests and answers, and decides nothing.
//!
//! Bounds: connections, bytes and headers of a request head, bytes of a body, the time for a whole request and the time
//! that a peer may let an answer wait ([`Options`]). A connection beyond the bound waits in the kernel's accept queue.
#![forbid(unsafe_code)]

mod acceptor;
mod pending;
mod stream;

pub use pending::PendingAnswers;

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_lite::future::BoxedLocal;
use glommio::net::TcpStream;
use glommio::sync::Semaphore;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{
    ACCEPT, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST,
    HeaderName, HeaderValue, ORIGIN,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Response, StatusCode, Uri};

use crate::admin::{Answer, Request};
use acceptor::Acceptor;
use stream::{Deadlines, Stream};

/// Bytes of a request head, and of hyper's buffer.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Headers of a request.
const HEADER_COUNT_MAX: usize = 64;

/// Answers requests; called once a request.
pub type Handler = Rc<dyn Fn(Request) -> BoxedLocal<Answer>>;

/// What the carrier may be told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Connections at a time; further ones are accepted when one of these has ended.
    pub connection_count_max: u16,
    /// Bytes of a request's body.
    pub body_bytes_max: usize,
    /// For a request from its connection's start, or from the last answer, to its last byte: also how long a connection
    /// may idle.
    pub request_timeout: Duration,
    /// For the peer to take some more of an answer.
    pub write_timeout: Duration,
}

impl Options {
    /// The usual bounds around bodies of `body_bytes_max`.
    #[must_use]
    pub fn new(body_bytes_max: usize) -> Self {
        Self {
            connection_count_max: 64,
            body_bytes_max,
            request_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(10),
        }
    }
}

/// Serves the connections of `listener` until it is dropped. Must run on a glommio executor.
///
/// # Errors
/// The listener cannot be used at all. What goes wrong with one connection ends that connection.
pub async fn serve(
    listener: TcpListener,
    options: Options,
    handler: Handler,
) -> io::Result<Infallible> {
    let acceptor = Acceptor::new(listener)?;
    let places = Rc::new(Semaphore::new(u64::from(options.connection_count_max)));
    let options = Rc::new(options);
    loop {
        let place = places
            .acquire_static_permit(1)
            .await
            .map_err(io::Error::from)?;
        let stream = acceptor.accept().await;
        let (options, handler) = (Rc::clone(&options), Rc::clone(&handler));
        glommio::spawn_local(async move {
            serve_connection(stream, options, handler).await;
            drop(place);
        })
        .detach();
    }
}

async fn serve_connection(stream: TcpStream, options: Rc<Options>, handler: Handler) {
    let deadlines = Deadlines::new(options.request_timeout, options.write_timeout);
    let stream = Stream::new(stream, Rc::clone(&deadlines));
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (handler, options, deadlines) = (
            Rc::clone(&handler),
            Rc::clone(&options),
            Rc::clone(&deadlines),
        );
        async move {
            let head_only = request.method() == Method::HEAD;
            let (answer, keep_alive) = match take_request(request, options.body_bytes_max).await {
                Ok(request) => {
                    deadlines.request_taken();
                    (handler(request).await, true)
                }
                Err(answer) => (answer, false),
            };
            deadlines.answered();
            Ok::<_, Infallible>(response(answer, head_only, keep_alive))
        }
    });
    let connection = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADER_COUNT_MAX)
        .keep_alive(true)
        .half_close(false)
        .header_read_timeout(None)
        .serve_connection(stream, service);
    // A peer that breaks off, sends garbage or is too slow ends its own connection; nobody else need know.
    if let Err(error) = connection.await {
        tracing::debug!(%error, "admin connection ended");
    }
}

/// Reads the request to its end.
///
/// # Errors
/// The answer: 413 beyond `body_bytes_max`, 400 when the body ends early.
async fn take_request(
    request: hyper::Request<Incoming>,
    body_bytes_max: usize,
) -> Result<Request, Answer> {
    let too_large = || {
        let message = format!("a body has at most {body_bytes_max} bytes");
        Answer::error(413, "body_too_large", &message)
    };
    let (head, body) = request.into_parts();
    // What is announced too large is refused before a byte of it is read.
    if body.size_hint().lower() > body_bytes_max as u64 {
        return Err(too_large());
    }
    let body = match Limited::new(body, body_bytes_max).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => return Err(too_large()),
        Err(_) => {
            return Err(Answer::error(
                400,
                "body_incomplete",
                "the body ended early: send all of it",
            ));
        }
    };
    let method = if head.method == Method::HEAD {
        Method::GET
    } else {
        head.method
    };
    Ok(Request {
        method: method.as_str().to_owned(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or("").to_owned(),
        bearer: bearer(&head.headers),
        host: host(&head.uri, &head.headers),
        has_origin: head.headers.contains_key(ORIGIN),
        accept: text(&head.headers, &ACCEPT),
        content_type: text(&head.headers, &CONTENT_TYPE),
        body: body.into(),
    })
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// Whom the request is meant for: an absolute target counts over `Host` (RFC 9112 §3.2.2). Several are not made out to be one.
fn host(target: &Uri, headers: &HeaderMap) -> Option<String> {
    if let Some(authority) = target.authority() {
        return Some(authority.to_string());
    }
    let hosts = headers.get_all(HOST).into_iter();
    hosts
        .map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned())
        .reduce(|all, host| format!("{all}, {host}"))
}

/// The token behind `Bearer` (RFC 6750 §2.1); the scheme's case does not count (RFC 9110 §11.1).
fn bearer(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim().to_owned())
}

fn response(answer: Answer, head_only: bool, keep_alive: bool) -> Response<Full<Bytes>> {
    let content_length = HeaderValue::from(answer.body.len());
    let body = if head_only {
        Bytes::new()
    } else {
        Bytes::from(answer.body)
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() =
        StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    headers.insert(CONTENT_LENGTH, content_length);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for (name, value) in answer.headers {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    if !keep_alive {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

#[cfg(test)]
mod tests;
