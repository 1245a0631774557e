//! One question to an admin listener and its answer, as bytes (RFC 9112). `runtime::fetch` carries them.

use std::fmt;

/// Bytes of an answer's head at most.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// An admin listener to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// A name or an address, without brackets.
    pub(super) host: String,
    pub(super) port: u16,
}

impl Target {
    /// Reads `http://HOST:PORT`, the scheme left out or not.
    ///
    /// # Errors
    /// What is wrong, and what to write instead.
    pub(super) fn read(text: &str) -> Result<Self, (String, String)> {
        let instead = || "write http://HOST:PORT of a node's admin listener".to_owned();
        if text.starts_with("https://") {
            let problem = "the admin listener speaks HTTP without TLS".to_owned();
            return Err((problem, instead()));
        }
        let wrong = |problem: &str| Err((format!("{text:?} {problem}"), instead()));
        let rest = text.strip_prefix("http://").unwrap_or(text);
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#', '@']) {
            return wrong("has more than a host and a port");
        }
        let Some((host, port)) = authority.rsplit_once(':') else {
            return wrong("has no port");
        };
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let is_name = |host: &str| {
            !host.is_empty()
                && host
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        };
        let is_good = match bare {
            Some(bare) => bare.parse::<std::net::Ipv6Addr>().is_ok(),
            None => is_name(host),
        };
        match port.parse() {
            Ok(port @ 1..) if is_good => Ok(Self {
                host: bare.unwrap_or(host).into(),
                port,
            }),
            _ => wrong("is no host with a port"),
        }
    }

    /// `GET path`, with the key if there is one.
    pub(super) fn request(&self, path: &str, key: Option<&str>) -> Vec<u8> {
        let bearer = key.map_or_else(String::new, |key| {
            format!("Authorization: Bearer {key}\r\n")
        });
        let agent = env!("CARGO_PKG_VERSION");
        format!(
            "GET {path} HTTP/1.1\r\nHost: {self}\r\nUser-Agent: throng-top/{agent}\r\nAccept: application/json\r\n\
             {bearer}Connection: close\r\n\r\n"
        )
        .into_bytes()
    }
}

/// The authority, as it stands in a URL.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

/// Reads an answer from all bytes that came so far. `Ok(None)`: there must be more.
///
/// `is_end`: nothing comes after `bytes`.
///
/// # Errors
/// It is no HTTP, or ended too early.
pub(super) fn read(bytes: &[u8], is_end: bool) -> Result<Option<Reply>, &'static str> {
    const NOT_HTTP: &str = "what it answers is not HTTP";
    const CUT: &str = "the answer ended too early";
    let begins = &bytes[..bytes.len().min(7)];
    if !b"HTTP/1.".starts_with(begins) {
        return Err(NOT_HTTP);
    }
    let more = || match is_end {
        true => Err(CUT),
        false => Ok(None),
    };
    let Some(head_end) = find(bytes, b"\r\n\r\n") else {
        return match bytes.len() > HEAD_BYTES_MAX {
            true => Err(NOT_HTTP),
            false => more(),
        };
    };
    let head = std::str::from_utf8(&bytes[..head_end]).map_err(|_| NOT_HTTP)?;
    let rest = &bytes[head_end + 4..];
    let mut lines = head.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let status = status_line.split(' ').nth(1).map(str::parse);
    let Some(Ok(status @ 100..=599)) = status else {
        return Err(NOT_HTTP);
    };
    let header = |wanted: &str| {
        lines
            .clone()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
            .map(|(_, value)| value.trim())
    };
    let body = match (header("transfer-encoding"), header("content-length")) {
        (Some(coding), _) if coding.eq_ignore_ascii_case("chunked") => {
            match unchunk(rest).ok_or(NOT_HTTP)? {
                Some(body) => body,
                None => return more(),
            }
        }
        (Some(_), _) => return Err("its answer has a transfer coding that was not asked for"),
        (None, Some(length)) => match rest.get(..length.parse().map_err(|_| NOT_HTTP)?) {
            Some(body) => body.to_vec(),
            None => return more(),
        },
        (None, None) if is_end => rest.to_vec(),
        (None, None) => return Ok(None),
    };
    Ok(Some(Reply { status, body }))
}

/// The content of a chunked body (RFC 9112 §7.1). `Some(None)`: there must be more. `None`: that is none.
fn unchunk(mut bytes: &[u8]) -> Option<Option<Vec<u8>>> {
    let mut body = Vec::new();
    loop {
        let Some(line_end) = find(&bytes[..bytes.len().min(1_024)], b"\r\n") else {
            return (bytes.len() < 1_024).then_some(None);
        };
        let line = std::str::from_utf8(&bytes[..line_end]).ok()?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = u32::from_str_radix(size, 16).ok()? as usize;
        if size == 0 {
            // What may follow are trailers, which nobody wants.
            return Some(Some(body));
        }
        let chunk = &bytes[line_end + 2..];
        if chunk.len() < size + 2 {
            return Some(None);
        }
        body.extend_from_slice(&chunk[..size]);
        bytes = chunk[size..].strip_prefix(b"\r\n")?;
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|part| part == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> String {
        match Target::read(text) {
            Ok(target) => target.to_string(),
            Err((problem, _)) => problem,
        }
    }

    #[test]
    fn a_target_is_a_host_and_a_port() {
        assert_eq!(target("http://127.0.0.1:8081"), "127.0.0.1:8081");
        assert_eq!(target("http://node-1.example:80/"), "node-1.example:80");
        assert_eq!(target("[::1]:8081"), "[::1]:8081");
        for wrong in [
            "https://a:1",
            "a",
            "http://a",
            "a:0",
            "a:70000",
            ":1",
            "a:1/v1",
            "u:p@a:1",
            "[::1:8081",
            "[a]:1",
            "a b:1",
            "::1:8081",
            "",
        ] {
            assert!(Target::read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_key_is_sent_where_there_is_one() {
        let target = Target::read("[::1]:8081").unwrap();
        let request = String::from_utf8(target.request("/v1/cluster", Some("secret-key"))).unwrap();
        assert!(request.starts_with("GET /v1/cluster HTTP/1.1\r\nHost: [::1]:8081\r\n"));
        assert!(request.contains("\r\nAuthorization: Bearer secret-key\r\n"));
        assert!(request.ends_with("\r\nConnection: close\r\n\r\n"));
        let request = String::from_utf8(target.request("/", None)).unwrap();
        assert!(!request.contains("Authorization"));
    }

    #[test]
    fn an_answer_reads_the_same_wherever_it_is_split() {
        let whole: [&[u8]; 2] = [
            b"HTTP/1.1 200 OK\r\ncontent-Length: 5\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nhel\r\n2\r\nlo\r\n0\r\n",
        ];
        for bytes in whole {
            for end in 0..bytes.len() {
                assert_eq!(read(&bytes[..end], false), Ok(None), "at {end}");
                assert!(read(&bytes[..end], true).is_err(), "at {end}");
            }
            let reply = read(bytes, false).unwrap().unwrap();
            assert_eq!((reply.status, &reply.body[..]), (200, &b"hello"[..]));
        }
    }

    #[test]
    fn without_a_length_the_end_is_the_end() {
        let bytes = b"HTTP/1.0 401 No\r\n\r\nwho?";
        assert_eq!(read(bytes, false), Ok(None));
        let reply = read(bytes, true).unwrap().unwrap();
        assert_eq!((reply.status, &reply.body[..]), (401, &b"who?"[..]));
    }

    #[test]
    fn what_is_not_http_is_said_at_once() {
        for wrong in [
            &b"SSH-2.0-x\r\n"[..],
            b"-ERR wrong\r\n",
            b"HTTP/1.1 OK\r\n\r\n",
            b"HTTP/1.1 999 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        ] {
            assert!(read(wrong, false).is_err(), "{wrong:?}");
        }
        let endless = [b"HTTP/1.1 200 OK\r\n".to_vec(), vec![b'a'; HEAD_BYTES_MAX]].concat();
        assert!(read(&endless, false).is_err());
    }
}
