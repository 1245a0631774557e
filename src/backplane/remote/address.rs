//! Where Redis is and who we are there.
//!
//! ```text
//! redis://[user:password@]host[:port][/db]                                     one server
//! unix:///path[?db=N]                                                          the same, by a socket
//! redis-sentinel://[user:password@]host[:port][,host[:port]…]/NAME[/db]        the master that Sentinels name so
//!                  [?sentinel_user=U&sentinel_password=P]
//! redis-cluster://[user:password@]host[:port][,host[:port]…]                   any nodes of a Redis Cluster
//! ```
//!
//! `rediss://`, `rediss-sentinel://` and `rediss-cluster://` are the same with TLS to everything they name. The user and
//! the password are those of the Redis that is used, never those of its Sentinels.

use std::fmt;

use percent_encoding::percent_decode_str;

/// The port that Redis listens on when a URL names none.
const PORT: u16 = 6379;
/// The port of a Sentinel.
const SENTINEL_PORT: u16 = 26379;
/// Servers in one URL.
const SERVER_COUNT_MAX: usize = 64;

/// Where to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A TCP port.
    Tcp {
        /// A name or an address, an IPv6 one without its brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix socket.
    Unix {
        /// Its path.
        path: String,
    },
    /// Wherever Sentinels say that the master is.
    Master {
        /// Where they are and who we are there, in the order of their places; at least one.
        sentinels: Vec<Address>,
        /// What they call it.
        name: String,
    },
}

impl Endpoint {
    /// The name that draws rooms where several servers stand by themselves. Sentinels may be others: their master's
    /// name stays. No two servers may have the same.
    #[must_use]
    pub fn placement_name(&self) -> String {
        match self {
            Self::Master { name, .. } => name.clone(),
            endpoint => endpoint.to_string(),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix { path } => f.write_str(path),
            Self::Master { sentinels, name } => {
                let places = sentinels.iter().map(|address| address.endpoint.to_string());
                let places = places.collect::<Vec<_>>().join(",");
                write!(f, "{name} (Sentinels {places})")
            }
        }
    }
}

/// What is expected to answer at an address: another kind is refused, with the URL that would name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A Redis by itself: a master, with or without replicas.
    Single,
    /// A node of a Redis Cluster.
    ClusterNode,
    /// A Sentinel.
    Sentinel,
}

/// A Redis, as a URL names it.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    /// Where it is.
    pub endpoint: Endpoint,
    /// The user; without one it is `default`.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<String>,
    /// The database that is selected. Channels are the same in all of them.
    pub database: u32,
    /// The connection is TLS.
    pub tls: bool,
    /// What is expected there.
    pub kind: Kind,
}

/// All but the password.
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address")
            .field("endpoint", &self.endpoint)
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "set"))
            .field("database", &self.database)
            .field("tls", &self.tls)
            .field("kind", &self.kind)
            .finish()
    }
}

impl Address {
    /// The scheme of a URL that names it; `tls`: with TLS.
    #[must_use]
    pub const fn scheme(&self, tls: bool) -> &'static str {
        match (self.kind, tls) {
            (Kind::Single, false) => "redis",
            (Kind::Single, true) => "rediss",
            (Kind::ClusterNode, false) => "redis-cluster",
            (Kind::ClusterNode, true) => "rediss-cluster",
            (Kind::Sentinel, false) => "redis-sentinel",
            (Kind::Sentinel, true) => "rediss-sentinel",
        }
    }

    /// Reads the URL of one server: `redis://`, `rediss://` or `unix://`.
    ///
    /// # Errors
    /// What is wrong with it, in words that do not repeat it: it may hold a password.
    pub fn parse(url: &str) -> Result<Self, String> {
        match Source::parse(url)? {
            Source::One(address) => Ok(address),
            Source::Sentinel { .. } | Source::Cluster { .. } => {
                Err("it names more than one server".into())
            }
        }
    }

    /// The same user, password, database, transport and kind at another place.
    #[must_use]
    pub fn moved_to(&self, endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            ..self.clone()
        }
    }
}

/// What a URL names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// One server.
    One(Address),
    /// The master of a group that Sentinels watch.
    Sentinel {
        /// Where they are, and who we are there. At least one.
        sentinels: Vec<Address>,
        /// What they call the group.
        name: String,
        /// Who we are at the master.
        master: Access,
    },
    /// A Redis Cluster.
    Cluster {
        /// Nodes to ask for the others. At least one.
        seeds: Vec<Address>,
    },
}

/// Who we are at a server whose place is not known yet.
#[derive(Clone, PartialEq, Eq)]
pub struct Access {
    /// The user; without one it is `default`.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<String>,
    /// The database that is selected.
    pub database: u32,
    /// The connection is TLS.
    pub tls: bool,
}

impl Access {
    /// The address of a server, now that its place is known.
    #[must_use]
    pub fn at(&self, endpoint: Endpoint, kind: Kind) -> Address {
        Address {
            endpoint,
            user: self.user.clone(),
            password: self.password.clone(),
            database: self.database,
            tls: self.tls,
            kind,
        }
    }
}

/// All but the password.
impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "set"))
            .field("database", &self.database)
            .field("tls", &self.tls)
            .finish()
    }
}

/// What it names, without who we are there: for messages.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |addresses: &[Address]| {
            let places = addresses.iter().map(|address| address.endpoint.to_string());
            places.collect::<Vec<_>>().join(",")
        };
        match self {
            Self::One(address) => address.endpoint.fmt(f),
            Self::Sentinel {
                sentinels, name, ..
            } => write!(f, "{name} (Sentinels {})", list(sentinels)),
            Self::Cluster { seeds } => write!(f, "the cluster of {}", list(seeds)),
        }
    }
}

impl Source {
    /// Reads a URL.
    ///
    /// # Errors
    /// What is wrong with it, in words that do not repeat it: it may hold a password.
    pub fn parse(url: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err("it has no scheme such as redis://".into());
        };
        match scheme {
            "redis" => parse_one(rest, false),
            "rediss" => parse_one(rest, true),
            "unix" => parse_unix(rest),
            "redis-sentinel" => parse_sentinel(rest, false),
            "rediss-sentinel" => parse_sentinel(rest, true),
            "redis-cluster" => parse_cluster(rest, false),
            "rediss-cluster" => parse_cluster(rest, true),
            _ => Err("its scheme is none of redis, rediss, unix, redis-sentinel, rediss-sentinel, redis-cluster and rediss-cluster".into()),
        }
    }

    /// Uses `password` where a password is wanted, instead of what the URL says.
    pub fn set_password(&mut self, password: &str) {
        let password = Some(password.to_owned());
        match self {
            Self::One(address) => address.password = password,
            Self::Sentinel { master, .. } => master.password = password,
            Self::Cluster { seeds } => {
                for seed in seeds {
                    seed.password.clone_from(&password);
                }
            }
        }
    }

    /// Uses `password` at the Sentinels, if there are any, instead of what the URL says.
    pub fn set_sentinel_password(&mut self, password: &str) {
        if let Self::Sentinel { sentinels, .. } = self {
            for sentinel in sentinels {
                sentinel.password = Some(password.to_owned());
            }
        }
    }

    /// The servers: one, the master wherever it is, or all that were named of a cluster.
    #[must_use]
    pub fn into_addresses(self) -> Vec<Address> {
        match self {
            Self::One(address) => vec![address],
            Self::Cluster { seeds } => seeds,
            Self::Sentinel {
                mut sentinels,
                name,
                master,
            } => {
                // All nodes are to call it the same, in whatever order they list the Sentinels.
                sentinels.sort_by_key(|address| address.endpoint.to_string());
                vec![master.at(Endpoint::Master { sentinels, name }, Kind::Single)]
            }
        }
    }

    /// Whether anything that it names is spoken to by TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        match self {
            Self::One(address) => address.tls,
            Self::Sentinel { master, .. } => master.tls,
            Self::Cluster { seeds } => seeds.iter().any(|seed| seed.tls),
        }
    }
}

fn parse_one(rest: &str, tls: bool) -> Result<Source, String> {
    if rest.contains(['?', '#']) {
        return Err(
            "redis:// takes no parameters; write `?` and `#` in a password as %3F and %23".into(),
        );
    }
    let (access, places, path) = parse_authority(rest, tls)?;
    if places.contains(',') {
        return Err("redis:// names one server; several are redis-cluster:// or redis-sentinel://, or redis given once for each (a `,` in a password is %2C)".into());
    }
    let endpoint = parse_host_port(places, PORT)?;
    let database = parse_database(path)?;
    let access = Access { database, ..access };
    Ok(Source::One(access.at(endpoint, Kind::Single)))
}

fn parse_unix(rest: &str) -> Result<Source, String> {
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path = decode(path)?;
    if !path.starts_with('/') {
        return Err("a Unix socket's path is absolute: unix:///run/redis.sock".into());
    }
    let database = match query.split_once('=') {
        None if query.is_empty() => 0,
        Some(("db", number)) => parse_database(number)?,
        _ => return Err("the one parameter of unix:// is db=N".into()),
    };
    Ok(Source::One(Address {
        endpoint: Endpoint::Unix { path },
        user: None,
        password: None,
        database,
        tls: false,
        kind: Kind::Single,
    }))
}

fn parse_sentinel(rest: &str, tls: bool) -> Result<Source, String> {
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (access, places, path) = parse_authority(rest, tls)?;
    let (name, database) = path.split_once('/').unwrap_or((path, ""));
    let name = decode(name)?;
    if name.is_empty() {
        return Err("it does not say what the Sentinels call the master: redis-sentinel://HOST:PORT,HOST:PORT/NAME".into());
    }
    let mut there = Access {
        user: None,
        password: None,
        database: 0,
        tls,
    };
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        match parameter.split_once('=') {
            Some(("sentinel_user", user)) => there.user = Some(decode(user)?),
            Some(("sentinel_password", password)) => there.password = Some(decode(password)?),
            _ => return Err("the parameters of redis-sentinel:// are sentinel_user and sentinel_password (a `?` in a password is %3F, a `&` is %26)".into()),
        }
    }
    if there.user.is_some() && there.password.is_none() {
        return Err("sentinel_user goes with sentinel_password".into());
    }
    Ok(Source::Sentinel {
        sentinels: parse_places(places, SENTINEL_PORT, &there, Kind::Sentinel)?,
        name,
        master: Access {
            database: parse_database(database)?,
            ..access
        },
    })
}

fn parse_cluster(rest: &str, tls: bool) -> Result<Source, String> {
    if rest.contains(['?', '#']) {
        return Err(
            "redis-cluster:// takes no parameters; write `?` and `#` in a password as %3F and %23"
                .into(),
        );
    }
    let (access, places, path) = parse_authority(rest, tls)?;
    if parse_database(path)? != 0 {
        return Err("a Redis Cluster has no database but 0".into());
    }
    Ok(Source::Cluster {
        seeds: parse_places(places, PORT, &access, Kind::ClusterNode)?,
    })
}

/// Who we are, the hosts, and what follows the first `/`.
fn parse_authority(rest: &str, tls: bool) -> Result<(Access, &str, &str), String> {
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (credentials, places) = match authority.rsplit_once('@') {
        Some((credentials, places)) => (Some(credentials), places),
        None => (None, authority),
    };
    let (user, password) = credentials.map_or(Ok((None, None)), parse_credentials)?;
    let access = Access {
        user,
        password,
        database: 0,
        tls,
    };
    Ok((access, places, path))
}

/// `host[:port][,host[:port]…]`.
fn parse_places(
    text: &str,
    port: u16,
    access: &Access,
    kind: Kind,
) -> Result<Vec<Address>, String> {
    let mut places: Vec<Address> = Vec::new();
    for place in text.split(',') {
        let address = access.at(parse_host_port(place, port)?, kind);
        if places.contains(&address) {
            return Err(format!("it names {} twice", address.endpoint));
        }
        places.push(address);
    }
    if places.len() > SERVER_COUNT_MAX {
        return Err(format!("it names more than {SERVER_COUNT_MAX} servers"));
    }
    Ok(places)
}

/// The same URL without its passwords.
#[must_use]
pub fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let mut shown = format!("{scheme}://");
    // A password that should have been percent-encoded may hold any of `@`, `/` and `?`: the last `@` counts.
    let place = match rest.rsplit_once('@') {
        Some((credentials, place)) => {
            let (user, _) = credentials
                .split_once([':', '/', '?'])
                .unwrap_or((credentials, ""));
            if !user.is_empty() {
                shown.extend([user, "@"]);
            }
            place
        }
        None => rest,
    };
    let (place, query) = place
        .split_once('?')
        .map_or((place, None), |(place, query)| (place, Some(query)));
    shown.push_str(place);
    let kept = query.into_iter().flat_map(|query| query.split('&'));
    let kept: Vec<&str> = kept
        .filter(|parameter| !parameter.starts_with("sentinel_password"))
        .collect();
    if !kept.is_empty() {
        shown.push('?');
        shown.push_str(&kept.join("&"));
    }
    shown
}

/// `user`, `user:password` or `:password`, each percent-decoded.
fn parse_credentials(text: &str) -> Result<(Option<String>, Option<String>), String> {
    let (user, password) = text
        .split_once(':')
        .map_or((text, None), |(user, password)| (user, Some(password)));
    let some = |text: &str| decode(text).map(|text| (!text.is_empty()).then_some(text));
    Ok((some(user)?, password.map_or(Ok(None), some)?))
}

/// `default_port`: where it is when the text does not say.
fn parse_host_port(text: &str, default_port: u16) -> Result<Endpoint, String> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, rest)) => match rest.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None => return Err("nothing but a port follows an address in brackets".into()),
        },
        None => text
            .split_once(':')
            .map_or((text, None), |(host, port)| (host, Some(port))),
    };
    if host.is_empty() || host.contains(|character: char| !character.is_ascii_graphic()) {
        return Err("it names no host".into());
    }
    let port = match port.map(str::parse) {
        None => default_port,
        Some(Ok(port)) if port > 0 => port,
        Some(_) => {
            return Err("its port is no number from 1 to 65535 (an IPv6 address stands in brackets, a `/` or `@` in a password as %2F or %40)".into());
        }
    };
    Ok(Endpoint::Tcp {
        host: host.to_owned(),
        port,
    })
}

fn parse_database(text: &str) -> Result<u32, String> {
    match text {
        "" => Ok(0),
        _ => text.parse().map_err(|_| {
            "its database is no number (a `/` or `@` in a password is written %2F or %40)"
                .to_owned()
        }),
    }
}

fn decode(text: &str) -> Result<String, String> {
    let text = percent_decode_str(text).decode_utf8();
    let text = text.map_err(|_| "what is percent-encoded in it is not UTF-8".to_owned())?;
    Ok(text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Endpoint {
        Endpoint::Tcp {
            host: host.into(),
            port,
        }
    }

    #[test]
    fn urls_are_read_in_all_their_parts() {
        let bare = Address::parse("redis://localhost").unwrap();
        assert_eq!(bare.endpoint, tcp("localhost", 6379));
        assert_eq!((bare.user, bare.password, bare.database), (None, None, 0));
        let full = Address::parse("redis://app:p%40ss%2F:w@redis.example:7000/3").unwrap();
        assert_eq!(full.endpoint, tcp("redis.example", 7000));
        assert_eq!(full.user.as_deref(), Some("app"));
        assert_eq!(full.password.as_deref(), Some("p@ss/:w"));
        assert_eq!(full.database, 3);
        let only_password = Address::parse("redis://:secret@[::1]:7").unwrap();
        assert_eq!(only_password.endpoint, tcp("::1", 7));
        assert_eq!(only_password.endpoint.to_string(), "[::1]:7");
        assert_eq!(only_password.user, None);
        let unix = Address::parse("unix:///run/my%20redis.sock?db=2").unwrap();
        let path = "/run/my redis.sock".into();
        assert_eq!(unix.endpoint, Endpoint::Unix { path });
        assert_eq!(unix.database, 2);
    }

    #[test]
    fn tls_is_a_scheme_of_its_own() {
        for (url, tls) in [
            ("redis://h", false),
            ("rediss://u:p@h:7/1", true),
            ("rediss-sentinel://h/m", true),
            ("redis-cluster://h", false),
            ("rediss-cluster://h", true),
        ] {
            assert_eq!(Source::parse(url).unwrap().is_tls(), tls, "{url}");
        }
        let address = Address::parse("rediss://u:p@h:7/1").unwrap();
        assert_eq!((address.tls, address.database), (true, 1));
        let elsewhere = address.moved_to(tcp("x", 1));
        assert_eq!(elsewhere.password.as_deref(), Some("p"));
        assert_eq!((elsewhere.endpoint, elsewhere.tls), (tcp("x", 1), true));
        assert_eq!((address.kind, elsewhere.kind), (Kind::Single, Kind::Single));
    }

    #[test]
    fn sentinels_have_their_own_credentials() {
        let url = "redis-sentinel://u:p@a,b:7,[::1]:8/my%2Fmaster/2?sentinel_user=s&sentinel_password=w%26";
        let Source::Sentinel {
            mut sentinels,
            name,
            master,
        } = Source::parse(url).unwrap()
        else {
            panic!("{url} is a Sentinel's");
        };
        let places: Vec<Endpoint> = sentinels.iter().map(|at| at.endpoint.clone()).collect();
        assert_eq!(places, [tcp("a", 26379), tcp("b", 7), tcp("::1", 8)]);
        assert_eq!((name.as_str(), master.database), ("my/master", 2));
        assert_eq!(master.user.as_deref(), Some("u"));
        assert_eq!(
            master.at(tcp("m", 1), Kind::Single).password.as_deref(),
            Some("p")
        );
        let sentinel = sentinels.remove(0);
        assert_eq!(sentinel.user.as_deref(), Some("s"));
        assert_eq!(sentinel.password.as_deref(), Some("w&"));
        assert_eq!((sentinel.database, sentinel.kind), (0, Kind::Sentinel));
    }

    #[test]
    fn a_cluster_is_any_of_its_nodes() {
        let source = Source::parse("redis-cluster://:p@a:1,b").unwrap();
        assert_eq!(source.to_string(), "the cluster of a:1,b:6379");
        let Source::Cluster { seeds } = source else {
            panic!("it is a cluster");
        };
        assert!(
            seeds
                .iter()
                .all(|seed| seed.password.as_deref() == Some("p"))
        );
    }

    #[test]
    fn a_password_from_elsewhere_goes_where_it_is_wanted() {
        for url in ["redis://h", "redis-sentinel://h/m", "redis-cluster://a,b"] {
            let mut source = Source::parse(url).unwrap();
            source.set_password("at-redis");
            source.set_sentinel_password("at-sentinel");
            match source {
                Source::One(address) => assert_eq!(address.password.as_deref(), Some("at-redis")),
                Source::Cluster { seeds } => {
                    let all = seeds
                        .iter()
                        .all(|seed| seed.password.as_deref() == Some("at-redis"));
                    assert!(all);
                }
                Source::Sentinel {
                    sentinels, master, ..
                } => {
                    assert_eq!(master.password.as_deref(), Some("at-redis"));
                    assert_eq!(sentinels[0].password.as_deref(), Some("at-sentinel"));
                }
            }
        }
    }

    #[test]
    fn a_wrong_url_is_told_without_its_password() {
        for url in [
            "localhost:6379",
            "http://x",
            "redis://",
            "redis://:hunter2@",
            "redis://u:hunter2@host:0",
            "redis://u:hunter2@host:x",
            "redis://u:hunter2/@host",
            "redis://u:hunter2@host/x",
            "redis://u:hunter2?@host",
            "redis://u:hunter2%ff@host",
            "redis://[::1]x",
            "unix://run/redis.sock",
            "unix:///run/redis.sock?user=x",
            "valkey://u:hunter2@host",
            "redis://u:hunter2@a,b",
            "redis-sentinel://host",
            "redis-sentinel://u:hunter2@host/",
            "redis-sentinel://u:hunter2@/m",
            "redis-sentinel://u:hunter2@a,,b/m",
            "redis-sentinel://u:hunter2@a,a/m",
            "redis-sentinel://u:hunter2@host/m/x",
            "redis-sentinel://host/m?sentinel_pasword=hunter2",
            "redis-sentinel://host/m?sentinel_user=hunter2",
            "redis-cluster://u:hunter2@host/1",
            "redis-cluster://u:hunter2@host?x",
        ] {
            let error = Source::parse(url).unwrap_err();
            assert!(!error.contains("hunter2"), "{url}: {error}");
        }
        let error = Address::parse("redis-cluster://h").unwrap_err();
        assert!(error.contains("more than one"), "{error}");
    }

    #[test]
    fn passwords_are_never_shown() {
        for (url, shown) in [
            ("redis://u:p@h:1/2", "redis://u@h:1/2"),
            ("redis://:p@h", "redis://h"),
            ("redis://u:a@b@h", "redis://u@h"),
            ("redis://u@h", "redis://u@h"),
            ("redis://h", "redis://h"),
            ("unix:///a:b", "unix:///a:b"),
            ("unix:///a?db=1", "unix:///a?db=1"),
            ("redis://u:p?w@h", "redis://u@h"),
            (
                "redis-sentinel://a/m?sentinel_password=p@w",
                "redis-sentinel://a@w",
            ),
            (
                "redis-sentinel://u:p@a,b/m?sentinel_user=s&sentinel_password=p",
                "redis-sentinel://u@a,b/m?sentinel_user=s",
            ),
            (
                "redis-sentinel://a/m?sentinel_password=p",
                "redis-sentinel://a/m",
            ),
        ] {
            assert_eq!(without_password(url), shown);
        }
        let address = Address::parse("redis://u:hunter2@h").unwrap();
        assert!(!format!("{address:?}").contains("hunter2"));
    }
}
