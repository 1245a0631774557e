//! A metrics endpoint: one GET, plain HTTP, bounded in bytes and in time.

use std::io;
use std::net::{IpAddr, ToSocketAddrs, UdpSocket};
use std::time::Duration;

use ureq::Agent;
use ureq::http::Uri;

use super::exposition::Exposition;
use crate::failure::Failure;

/// No larger answer is read.
const BODY_BYTES_MAX: u64 = 16 << 20;
/// The formats that are understood; the samples are the same in both.
const ACCEPT: &str = "text/plain;version=0.0.4, application/openmetrics-text;version=1.0.0;q=0.9";

/// Where a server tells its metrics.
#[derive(Debug)]
pub struct Endpoint {
    url: String,
    name: String,
    host: String,
    port: u16,
    authorization: Option<String>,
    agent: Agent,
}

/// Why there is no scrape.
#[derive(Debug)]
pub struct Trouble {
    /// What happened.
    pub text: String,
    /// Whether nobody listens there any more, as opposed to being slow or wrong.
    pub is_gone: bool,
}

impl Endpoint {
    /// The endpoint at `url`; without a path, `/metrics`. `key` is sent as `Authorization: Bearer KEY`.
    ///
    /// # Errors
    /// When it is no URL of plain HTTP.
    pub fn new(url: &str, key: Option<&str>) -> Result<Self, Failure> {
        let wrong = |what: &str| {
            Failure::Usage(format!(
                "--metrics {url}: {what}; write http://HOST:PORT/metrics"
            ))
        };
        let uri: Uri = url.parse().map_err(|_| wrong("it is no URL"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(wrong("only plain HTTP is spoken")),
            _ => return Err(wrong("the scheme is not http")),
        }
        let authority = uri.authority().ok_or_else(|| wrong("it has no host"))?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(wrong("there must be a host, and no user name"));
        }
        let host = authority.host();
        let port = match uri.port() {
            Some(port) => port.as_u16(),
            None if authority.as_str() == host => 80,
            None => return Err(wrong("the port is no number")),
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let path = if path == "/" { "/metrics" } else { path };
        let agent = Agent::config_builder()
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .max_idle_connections(0)
            .user_agent(concat!("throng-load/", env!("CARGO_PKG_VERSION")))
            .accept(ACCEPT)
            .build()
            .new_agent();
        Ok(Self {
            url: format!("http://{host}:{port}{path}"),
            name: format!("{host}:{port}"),
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            authorization: key.map(|key| format!("Bearer {key}")),
            agent,
        })
    }

    /// The whole address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Host and port.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether its host is this machine, and whether by a loopback address.
    pub fn is_here(&self) -> (bool, bool) {
        let addresses = (self.host.as_str(), self.port).to_socket_addrs();
        let addresses: Vec<IpAddr> = addresses
            .map(|all| all.map(|address| address.ip()).collect())
            .unwrap_or_default();
        // A socket can only be bound to an address of this machine.
        let is_own = |address: &IpAddr| UdpSocket::bind((*address, 0)).is_ok();
        (
            addresses.iter().any(is_own),
            !addresses.is_empty() && addresses.iter().all(IpAddr::is_loopback),
        )
    }

    /// Asks for the metrics, for at most `timeout` in all.
    pub fn scrape(&self, timeout: Duration) -> Result<Exposition, Trouble> {
        let trouble = |text: String| Trouble {
            text,
            is_gone: false,
        };
        let failed = |error: ureq::Error| {
            let is_gone = matches!(&error, ureq::Error::ConnectionFailed)
                || matches!(&error, ureq::Error::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused);
            let text = match error {
                ureq::Error::Timeout(_) => format!("no whole answer within {timeout:?}"),
                ureq::Error::BodyExceedsLimit(_) => {
                    format!("its answer is larger than {} MiB", BODY_BYTES_MAX >> 20)
                }
                error if is_gone => format!("nobody listens there ({error})"),
                error => error.to_string(),
            };
            Trouble { text, is_gone }
        };
        let mut request = self
            .agent
            .get(&self.url)
            .header("connection", "close")
            .config()
            .timeout_global(Some(timeout))
            .build();
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        let mut response = request.call().map_err(failed)?;
        let status = response.status();
        if status.as_u16() != 200 {
            let hint = match status.as_u16() {
                401 | 403 => "; it may want --metrics-key-file",
                404 => "; is the path right?",
                _ => "",
            };
            return Err(trouble(format!("it answers {status}{hint}")));
        }
        let body = response
            .body_mut()
            .with_config()
            .limit(BODY_BYTES_MAX)
            .read_to_vec()
            .map_err(failed)?;
        let text = String::from_utf8(body).map_err(|_| trouble("its answer is no text".into()))?;
        let exposition = Exposition::parse(&text)
            .map_err(|error| trouble(format!("its answer is not metrics: {error}")))?;
        if exposition.series.is_empty() {
            return Err(trouble("its answer has no metrics in it".into()));
        }
        Ok(exposition)
    }
}
