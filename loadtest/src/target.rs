//! Where the load goes, and from which addresses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs, UdpSocket};

use throng::protocol::client::{Key, encode_request};

use crate::failure::Failure;

/// Of the ports of a source address, the share that is counted on: looking for the last free ones is slow.
const PORT_SHARE: f64 = 0.9;
/// Connections that a source address is given where addresses cost nothing. The kernel looks for a free port by trying
/// one after the other, half of the range first: 16,000 connects from one address took 123 us of processor time each.
const SOURCE_CONNECTION_COUNT_GOOD: u32 = 2_000;
/// Source addresses that are taken unasked.
const SOURCE_COUNT_GOOD_MAX: u32 = 1_024;

/// A server, and the path of a room on it.
#[derive(Debug, Clone)]
pub struct Target {
    /// More header lines of the request, each with its CRLF.
    headers: String,
    /// Where to connect.
    pub address: SocketAddr,
    /// The `Host` header.
    pub host: String,
    path_template: String,
}

impl Target {
    /// Reads `ws://HOST:PORT[/PATH]`; a path in it is the template unless `path_template` is given.
    ///
    /// # Errors
    /// In words: not such a URL, a name that does not resolve, or an address outside this machine without leave.
    pub fn new(
        url: &str,
        path_template: Option<&str>,
        allow_remote: bool,
    ) -> Result<Self, Failure> {
        let wrong =
            |what: &str| Failure::Usage(format!("--target {url}: {what}; write ws://HOST:PORT"));
        let rest = match url.split_once("://") {
            Some(("ws", rest)) => rest,
            Some(("wss", _)) => return Err(wrong("TLS is not spoken")),
            Some(_) => return Err(wrong("not a WebSocket URL")),
            None => url,
        };
        let (host, path) = rest
            .find('/')
            .map_or((rest, ""), |slash| rest.split_at(slash));
        let authority = if host
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok())
        {
            host.to_owned()
        } else {
            format!("{host}:80")
        };
        let address = authority
            .to_socket_addrs()
            .map_err(|error| wrong(&format!("cannot resolve {authority}: {error}")))?
            .next()
            .ok_or_else(|| wrong("the name has no address"))?;
        if !address.ip().is_loopback() && !allow_remote {
            return Err(Failure::Usage(format!(
                "--target {url} is not on this machine; add --allow-remote if the load may go there"
            )));
        }
        let path_template = match (path_template, path) {
            (Some(template), _) => template,
            (None, "" | "/") => "/rooms/{room}",
            (None, path) => path,
        };
        if !path_template.starts_with('/')
            || path_template.contains(|char: char| char.is_ascii_control() || char == ' ')
        {
            return Err(Failure::Usage(format!(
                "--path {path_template}: begin with / and write no spaces"
            )));
        }
        Ok(Self {
            headers: String::new(),
            address,
            host: host.to_owned(),
            path_template: path_template.to_owned(),
        })
    }

    /// Adds header lines, each as `Name: value`, to every request.
    ///
    /// # Errors
    /// In words, when one is no header line.
    pub fn with_headers(mut self, lines: &[String]) -> Result<Self, Failure> {
        for line in lines {
            let name = line.split_once(':').map_or("", |(name, _)| name);
            let is_token =
                |byte: u8| byte.is_ascii_alphanumeric() || b"-_.!#$%&'*+^`|~".contains(&byte);
            if name.is_empty() || !name.bytes().all(is_token) || line.chars().any(char::is_control)
            {
                return Err(Failure::Usage(format!(
                    "--header {line:?}: write 'Name: value'"
                )));
            }
            self.headers.push_str(line);
            self.headers.push_str("\r\n");
        }
        Ok(self)
    }

    /// The path of a member's room.
    pub fn path(&self, room: &str, member: u32) -> String {
        let path = self.path_template.replace("{room}", room);
        path.replace("{member}", &member.to_string())
    }

    /// Appends the request for a member's upgrade to `out`.
    pub fn request(&self, out: &mut Vec<u8>, room: &str, member: u32, key: &Key) {
        encode_request(out, &self.host, &self.path(room, member), key);
        if !self.headers.is_empty() {
            out.truncate(out.len() - 2); // the empty line
            out.extend_from_slice(self.headers.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }

    /// Whether rooms have paths of their own here.
    pub fn has_rooms(&self) -> bool {
        self.path_template.contains("{room}")
    }
}

/// Ports that the kernel hands out, by `net.ipv4.ip_local_port_range`.
fn port_count() -> u32 {
    let text =
        std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut edges = text
        .split_whitespace()
        .map_while(|word| word.parse::<u32>().ok());
    match (edges.next(), edges.next()) {
        (Some(first), Some(last)) if first < last => last - first + 1,
        _ => 28_232, // Linux's default
    }
}

/// Source addresses for `connection_count` connections at a time to each of `targets`, `connection_total` in the whole
/// run.
///
/// `range` is `A-B` or one address. Without it, loopback IPv4 targets get addresses of 127.0.0.0/8 in plenty,
/// anything else the kernel's choice (an empty list).
///
/// # Errors
/// In words: not a range, or too few ports in it.
pub fn sources(
    range: Option<&str>,
    targets: &[Target],
    connection_count: u32,
    connection_total: u32,
) -> Result<Vec<IpAddr>, Failure> {
    let ports = ((f64::from(port_count()) * PORT_SHARE) as u32).max(1);
    let needed = connection_count.div_ceil(ports).max(1);
    let is_loopback =
        |target: &Target| target.address.is_ipv4() && target.address.ip().is_loopback();
    let Some(range) = range else {
        if targets.iter().all(is_loopback) {
            let first = u32::from(Ipv4Addr::LOCALHOST);
            let good = connection_total.div_ceil(SOURCE_CONNECTION_COUNT_GOOD);
            return Ok((first..first + needed.max(good.min(SOURCE_COUNT_GOOD_MAX)))
                .map(|address| Ipv4Addr::from(address).into())
                .collect());
        }
        if needed > 1 {
            return Err(Failure::Usage(format!(
                "{connection_count} connections to a target need the ports of {needed} source addresses ({ports} each, of \
                 net.ipv4.ip_local_port_range): give them with --source A-B, or widen the range"
            )));
        }
        return Ok(Vec::new());
    };
    let parse = |text: &str| {
        text.trim().parse::<IpAddr>().map_err(|error| {
            Failure::Usage(format!(
                "--source {range}: {text}: {error}; write FIRST-LAST, as 127.0.0.1-127.0.0.64"
            ))
        })
    };
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let list: Vec<IpAddr> = match (parse(first)?, parse(last)?) {
        (IpAddr::V4(first), IpAddr::V4(last))
            if first <= last && u32::from(last) - u32::from(first) < 65_536 =>
        {
            (u32::from(first)..=u32::from(last))
                .map(|address| Ipv4Addr::from(address).into())
                .collect()
        }
        (IpAddr::V6(first), IpAddr::V6(last))
            if first <= last && u128::from(last) - u128::from(first) < 65_536 =>
        {
            (u128::from(first)..=u128::from(last))
                .map(|address| std::net::Ipv6Addr::from(address).into())
                .collect()
        }
        _ => {
            return Err(Failure::Usage(format!(
                "--source {range}: not a range of at most 65536 addresses of one family"
            )));
        }
    };
    if let Some(target) = targets
        .iter()
        .find(|target| list[0].is_ipv4() != target.address.is_ipv4())
    {
        return Err(Failure::Usage(format!(
            "--source {range} and the target {} are of two families",
            target.address
        )));
    }
    if let Some((address, error)) = list.iter().find_map(|address| {
        let bound = UdpSocket::bind((*address, 0)); // costs no port for connections
        bound.err().map(|error| (address, error))
    }) {
        return Err(Failure::Usage(format!(
            "--source {range}: {address} is no address of this machine that connections can come from: {error}"
        )));
    }
    if (list.len() as u64) < u64::from(needed) {
        return Err(Failure::Usage(format!(
            "{connection_count} connections to a target need {needed} source addresses ({ports} ports each, of \
             net.ipv4.ip_local_port_range); --source has {}: give more, or widen the range",
            list.len()
        )));
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_read_with_and_without_its_parts() {
        let target = Target::new("ws://127.0.0.1:9000", None, false).unwrap();
        assert_eq!(
            (target.address, target.path("a", 0)),
            ("127.0.0.1:9000".parse().unwrap(), "/rooms/a".into())
        );
        assert_eq!(
            Target::new("127.0.0.1:9000/echo", None, false)
                .unwrap()
                .path("a", 0),
            "/echo"
        );
        assert_eq!(
            Target::new("ws://127.0.0.1/x", Some("/c/{room}?v=1"), false)
                .unwrap()
                .path("b", 0),
            "/c/b?v=1"
        );
        assert_eq!(
            Target::new("ws://[::1]:81", None, false).unwrap().address,
            "[::1]:81".parse().unwrap()
        );
        for wrong in [
            "wss://127.0.0.1:1",
            "http://127.0.0.1:1",
            "ws://127.0.0.1:1/a b",
        ] {
            assert!(
                matches!(Target::new(wrong, None, false), Err(Failure::Usage(_))),
                "{wrong}"
            );
        }
    }

    #[test]
    fn another_machine_needs_leave() {
        assert!(Target::new("ws://192.0.2.1:80", None, false).is_err());
        assert!(Target::new("ws://192.0.2.1:80", None, true).is_ok());
    }

    #[test]
    fn sources_suffice_or_are_refused() {
        let target = [Target::new("ws://127.0.0.1:9000", None, false).unwrap()];
        let more_than_one_has = port_count() + 1;
        assert_eq!(sources(None, &target, 2_000, 2_000).unwrap().len(), 1);
        assert_eq!(sources(None, &target, 64, 20_001).unwrap().len(), 11);
        assert_eq!(
            sources(Some("127.0.0.1-127.0.1.0"), &target, 5, 5)
                .unwrap()
                .len(),
            256
        );
        let count = more_than_one_has;
        assert!(sources(Some("127.0.0.1"), &target, count, count).is_err());
        let remote = [Target::new("ws://192.0.2.1:9000", None, true).unwrap()];
        assert!(sources(None, &remote, 5_000, 5_000).unwrap().is_empty());
        let Err(Failure::Usage(text)) = sources(None, &remote, count, count) else {
            panic!("one address has not so many ports")
        };
        assert!(
            text.contains("--source") && text.contains("ip_local_port_range"),
            "{text}"
        );
        assert!(sources(Some("127.0.0.9-127.0.0.1"), &target, 1, 1).is_err());
        assert!(sources(Some("::1"), &target, 1, 1).is_err());
        let Err(Failure::Usage(text)) = sources(Some("192.0.2.7"), &target, 1, 1) else {
            panic!("that address is for documentation")
        };
        assert!(text.contains("192.0.2.7 is no address"), "{text}");
    }
}
