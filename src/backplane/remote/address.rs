//! Where Redis is and who we are there: `redis://[user:password@]host:port[/db]` and `unix:///path[?db=N]`.

use std::fmt;

use percent_encoding::percent_decode_str;

/// The port that Redis listens on when a URL names none.
const PORT: u16 = 6379;

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
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix { path } => f.write_str(path),
        }
    }
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
}

/// All but the password.
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address")
            .field("endpoint", &self.endpoint)
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "set"))
            .field("database", &self.database)
            .finish()
    }
}

impl Address {
    /// Reads a URL.
    ///
    /// # Errors
    /// What is wrong with it, in words that do not repeat it: it may hold a password.
    pub fn parse(url: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err("it has no scheme such as redis://".into());
        };
        match scheme {
            "redis" => Self::parse_tcp(rest),
            "unix" => Self::parse_unix(rest),
            "rediss" => Err(not_spoken(scheme, "TLS to Redis")),
            "redis-sentinel" => Err(not_spoken(scheme, "Sentinel")),
            "redis-cluster" => Err(not_spoken(scheme, "Redis Cluster")),
            _ => Err("its scheme is neither redis nor unix".into()),
        }
    }

    fn parse_tcp(rest: &str) -> Result<Self, String> {
        if rest.contains(['?', '#']) {
            return Err(
                "redis:// takes no parameters; write `?` and `#` in a password as %3F and %23"
                    .into(),
            );
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (credentials, host_port) = match authority.rsplit_once('@') {
            Some((credentials, host_port)) => (Some(credentials), host_port),
            None => (None, authority),
        };
        let (user, password) = credentials.map_or(Ok((None, None)), parse_credentials)?;
        Ok(Self {
            endpoint: parse_host_port(host_port)?,
            user,
            password,
            database: parse_database(path)?,
        })
    }

    fn parse_unix(rest: &str) -> Result<Self, String> {
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
        Ok(Self {
            endpoint: Endpoint::Unix { path },
            user: None,
            password: None,
            database,
        })
    }
}

/// The same URL without its password.
#[must_use]
pub fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let Some((credentials, place)) = rest.rsplit_once('@') else {
        return url.to_owned();
    };
    match credentials.split_once(':') {
        Some((user, _)) if !user.is_empty() => format!("{scheme}://{user}@{place}"),
        Some(_) => format!("{scheme}://{place}"),
        None => url.to_owned(),
    }
}

fn not_spoken(scheme: &str, what: &str) -> String {
    format!(
        "{scheme}:// is not spoken: {what} is not supported, write redis://HOST:PORT or unix:///PATH"
    )
}

/// `user`, `user:password` or `:password`, each percent-decoded.
fn parse_credentials(text: &str) -> Result<(Option<String>, Option<String>), String> {
    let (user, password) = text
        .split_once(':')
        .map_or((text, None), |(user, password)| (user, Some(password)));
    let some = |text: &str| decode(text).map(|text| (!text.is_empty()).then_some(text));
    Ok((some(user)?, password.map_or(Ok(None), some)?))
}

fn parse_host_port(text: &str) -> Result<Endpoint, String> {
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
        None => PORT,
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
        _ => text
            .parse()
            .map_err(|_| "its database is no number".to_owned()),
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
            "rediss://u:hunter2@host",
            "redis-sentinel://host",
            "redis-cluster://host",
        ] {
            let error = Address::parse(url).unwrap_err();
            assert!(!error.contains("hunter2"), "{url}: {error}");
        }
        let error = Address::parse("rediss://host").unwrap_err();
        assert!(error.contains("rediss:// is not spoken"), "{error}");
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
        ] {
            assert_eq!(without_password(url), shown);
        }
        let address = Address::parse("redis://u:hunter2@h").unwrap();
        assert!(!format!("{address:?}").contains("hunter2"));
    }
}
