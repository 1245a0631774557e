//! The first words on a connection: protocol version, who we are, which database, what answers. Every refusal is told in
//! words.

use std::fmt;

use bytes::BytesMut;

use super::refusal::{Grant, explain, shown};
use super::{Address, Kind};
use crate::backplane::resp::{Reply, encode_command};

/// The oldest server that is spoken to.
const VERSION_MIN: (u32, u32) = (5, 0);

/// What a reply has led to.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// More is to be answered.
    Going,
    /// More is to be answered, and in RESP2.
    Older,
    /// The link may be used.
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Hello,
    Auth,
    Name,
    Info,
    Replication,
    Select,
}

/// What answers there, as it says itself. What it does not say is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Server {
    /// `redis`, `valkey`.
    pub name: String,
    /// `7.0.15`.
    pub version: String,
    /// `standalone`, `cluster`, `sentinel`.
    pub mode: String,
    /// `master`, `replica`.
    pub role: String,
    /// It is spoken to in RESP3.
    pub is_resp3: bool,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or = |text: &str, other: &str| match text {
            "" => other.to_owned(),
            text => text.to_owned(),
        };
        let name = or(&self.name, "redis");
        let version = or(&self.version, "of unknown version");
        write!(f, "{name} {version}, ")?;
        f.write_str(if self.is_resp3 { "RESP3" } else { "RESP2" })?;
        for word in [&self.mode, &self.role] {
            if !word.is_empty() {
                write!(f, ", {word}")?;
            }
        }
        Ok(())
    }
}

/// The exchange, from HELLO to the last answer.
#[derive(Debug)]
pub struct Greeting {
    address: Address,
    grant: Grant,
    asked: Asked,
    server: Server,
}

impl Greeting {
    /// Nothing was said yet. `grant`: what the user is to be allowed.
    pub fn new(address: &Address, grant: Grant) -> Self {
        Self {
            address: address.clone(),
            grant,
            asked: Asked::Hello,
            server: Server::default(),
        }
    }

    /// What answers.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Says HELLO.
    pub fn begin(&mut self, out: &mut BytesMut, name: &str) {
        let mut words: Vec<&[u8]> = vec![b"HELLO", b"3"];
        if let Some(password) = &self.address.password {
            let user = self.address.user.as_deref().unwrap_or("default");
            words.extend([b"AUTH".as_slice(), user.as_bytes(), password.as_bytes()]);
        }
        words.extend([b"SETNAME".as_slice(), name.as_bytes()]);
        encode_command(out, &words);
    }

    /// Takes an answer in and says what comes next.
    ///
    /// # Errors
    /// Why the server cannot be used, and what mends it.
    pub fn handle(
        &mut self,
        reply: &Reply,
        out: &mut BytesMut,
        name: &str,
    ) -> Result<Step, String> {
        match (self.asked, reply) {
            (Asked::Hello, Reply::Fields(fields)) => {
                let field = |name: &str| {
                    let found = fields.iter().find(|(field, _)| field == name);
                    found.map_or_else(String::new, |(_, value)| shown(value))
                };
                self.server = Server {
                    name: field("server"),
                    version: field("version"),
                    mode: field("mode"),
                    role: field("role"),
                    is_resp3: true,
                };
                self.judge()?;
                Ok(self.select(out))
            }
            (Asked::Hello, Reply::Error(error)) if knows_no_hello(error) => {
                if let Some(password) = &self.address.password {
                    let mut words: Vec<&[u8]> = vec![b"AUTH"];
                    words.extend(self.address.user.as_deref().map(str::as_bytes));
                    words.push(password.as_bytes());
                    encode_command(out, &words);
                    self.asked = Asked::Auth;
                } else {
                    self.set_name(out, name);
                }
                Ok(Step::Older)
            }
            (Asked::Auth, Reply::Error(error)) if error.contains("wrong number of arguments") => {
                Err("the server is too old for user names: Redis 6.0 or later has them; leave the user out".into())
            }
            (Asked::Auth, Reply::Text(_)) => {
                self.set_name(out, name);
                Ok(Step::Going)
            }
            (Asked::Name, Reply::Error(error)) if needs_password(error) => Err(self.explain(error)),
            (Asked::Name, _) => {
                encode_command(out, &[b"INFO", b"server"]);
                self.asked = Asked::Info;
                Ok(Step::Going)
            }
            (Asked::Info, Reply::Text(text)) => {
                let text = String::from_utf8_lossy(text);
                self.server.name = "redis".into();
                self.server.version = field_of_info(&text, "redis_version");
                self.server.mode = field_of_info(&text, "redis_mode");
                self.judge()?;
                encode_command(out, &[b"INFO", b"replication"]);
                self.asked = Asked::Replication;
                Ok(Step::Going)
            }
            (Asked::Info, Reply::Error(error)) if !needs_password(error) => Ok(self.select(out)),
            (Asked::Replication, Reply::Text(text)) => {
                let role = field_of_info(&String::from_utf8_lossy(text), "role");
                self.server.role = match role.as_str() {
                    "slave" => "replica".into(),
                    _ => role,
                };
                self.judge()?;
                Ok(self.select(out))
            }
            (Asked::Replication, Reply::Error(_)) => Ok(self.select(out)),
            (Asked::Select, Reply::Text(_)) => Ok(Step::Done),
            (Asked::Select, Reply::Error(error)) => Err(format!(
                "database {} cannot be selected: {}",
                self.address.database,
                shown(error)
            )),
            (_, Reply::Error(error)) => Err(self.explain(error)),
            _ => Err("what answers there is not Redis: its answer to HELLO is of another kind".into()),
        }
    }

    fn explain(&self, error: &str) -> String {
        explain(error, &self.grant)
    }

    fn set_name(&mut self, out: &mut BytesMut, name: &str) {
        encode_command(out, &[b"CLIENT", b"SETNAME", name.as_bytes()]);
        self.asked = Asked::Name;
    }

    fn select(&mut self, out: &mut BytesMut) -> Step {
        if self.address.database == 0 {
            return Step::Done;
        }
        encode_command(
            out,
            &[b"SELECT", self.address.database.to_string().as_bytes()],
        );
        self.asked = Asked::Select;
        Step::Going
    }

    /// Whether what answers is what was named. A server that does not say what it is is taken: it has answered as Redis
    /// does.
    fn judge(&self) -> Result<(), String> {
        let Server {
            version,
            mode,
            role,
            ..
        } = &self.server;
        check_version(version)?;
        let Address {
            endpoint,
            tls,
            kind,
            ..
        } = &self.address;
        let s = if *tls { "s" } else { "" };
        match (kind, mode.as_str()) {
            (Kind::Single, "cluster") => Err(format!(
                "{endpoint} is a node of a Redis Cluster: write redis{s}-cluster://{endpoint}"
            )),
            (Kind::Single | Kind::ClusterNode, "sentinel") => Err(format!(
                "{endpoint} is a Sentinel: write redis{s}-sentinel://{endpoint}/NAME, with the NAME that its `sentinel monitor` gives the master"
            )),
            (Kind::ClusterNode, "standalone") => Err(format!(
                "{endpoint} is no node of a Redis Cluster: write redis{s}://{endpoint}"
            )),
            (Kind::Sentinel, "standalone") => Err(format!(
                "{endpoint} is no Sentinel but a Redis: write redis{s}://{endpoint}, or the port of a Sentinel (26379)"
            )),
            (Kind::Sentinel, "cluster") => Err(format!(
                "{endpoint} is no Sentinel but a node of a Redis Cluster: write redis{s}-cluster://{endpoint}"
            )),
            (Kind::Single, _) if role == "replica" => Err(replica_refused(&self.address)),
            _ => Ok(()),
        }
    }
}

/// Why a replica is not used.
fn replica_refused(address: &Address) -> String {
    let s = if address.tls { "s" } else { "" };
    format!(
        "{} is a replica: messages published there reach nobody else; write the address of its master, or redis{s}-sentinel://",
        address.endpoint
    )
}

/// Whether a server that was asked again by `HELLO 3` or `ROLE` is a master now; `None`: it does not say.
pub fn is_master(reply: &Reply) -> Option<bool> {
    let role = match reply {
        Reply::Fields(fields) => {
            let (_, role) = fields.iter().find(|(field, _)| field == "role")?;
            role.as_bytes()
        }
        Reply::List(parts) => match parts.first()? {
            Reply::Text(role) => role,
            _ => return None,
        },
        _ => return None,
    };
    Some(role == b"master")
}

fn knows_no_hello(error: &str) -> bool {
    error.starts_with("NOPROTO") || error.contains("unknown command")
}

fn needs_password(error: &str) -> bool {
    error.starts_with("NOAUTH")
}

/// `field:value` in an answer to INFO.
fn field_of_info(text: &str, field: &str) -> String {
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let found = lines.find(|(name, _)| *name == field);
    found.map_or_else(String::new, |(_, value)| shown(value.trim()))
}

/// A server whose version cannot be read is taken: it has answered as Redis does.
fn check_version(version: &str) -> Result<(), String> {
    let mut parts = version.split('.').map(str::parse::<u32>);
    let (Some(Ok(major)), minor) = (parts.next(), parts.next()) else {
        return Ok(());
    };
    let minor = minor.and_then(Result::ok).unwrap_or_default();
    if (major, minor) >= VERSION_MIN {
        return Ok(());
    }
    let (least_major, least_minor) = VERSION_MIN;
    Err(format!(
        "Redis {version} is too old: {least_major}.{least_minor} or later is needed"
    ))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::{Options, Source};
    use super::*;

    fn greet(url: &str, replies: &[Reply]) -> (Vec<String>, Result<Step, String>) {
        let address = match Source::parse(url).unwrap() {
            Source::One(address) => address,
            Source::Sentinel { sentinels, .. } => sentinels[0].clone(),
            Source::Cluster { seeds } => seeds[0].clone(),
        };
        let grant = Grant::at_redis(&Options::new(address.clone()));
        let mut greeting = Greeting::new(&address, grant);
        let mut out = BytesMut::new();
        greeting.begin(&mut out, "me");
        let mut last = Ok(Step::Going);
        for reply in replies {
            last = greeting.handle(reply, &mut out, "me");
        }
        let said = String::from_utf8(out.to_vec()).unwrap();
        let commands = said.split('*').skip(1).map(|command| {
            let words = command.split("\r\n").skip(2).step_by(2);
            words.collect::<Vec<_>>().join(" ").trim().to_owned()
        });
        (commands.collect(), last)
    }

    fn error(text: &str) -> Reply {
        Reply::Error(text.into())
    }

    fn hello(version: &str) -> Reply {
        Reply::Fields(vec![("version".into(), version.into())])
    }

    fn text(text: &str) -> Reply {
        Reply::Text(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn a_server_of_today_is_greeted_in_one_exchange() {
        let (said, end) = greet("redis://u:p@h", &[hello("7.0.15")]);
        assert_eq!(said, ["HELLO 3 AUTH u p SETNAME me"]);
        assert_eq!(end, Ok(Step::Done));
        let (said, end) = greet("redis://:p@h/4", &[hello("8.0.0"), text("OK")]);
        assert_eq!(said, ["HELLO 3 AUTH default p SETNAME me", "SELECT 4"]);
        assert_eq!(end, Ok(Step::Done));
    }

    #[test]
    fn a_server_without_hello_is_spoken_to_in_resp2() {
        let unknown = error("ERR unknown command `HELLO`, with args beginning with: ");
        let info = text("# Server\r\nredis_version:5.0.14\r\n");
        let role = text("# Replication\r\nrole:master\r\n");
        let replies = [unknown.clone(), text("OK"), text("OK"), info, role];
        let (said, end) = greet("redis://:p@h", &replies);
        let expected = [
            "AUTH p",
            "CLIENT SETNAME me",
            "INFO server",
            "INFO replication",
        ];
        assert_eq!(said[1..], expected);
        assert_eq!(end, Ok(Step::Done));
        let (_, step) = greet("redis://h", &[unknown]);
        assert_eq!(step, Ok(Step::Older));
    }

    #[test]
    fn every_refusal_says_what_mends_it() {
        let unknown = || error("ERR unknown command 'HELLO'");
        let old = text("redis_version:4.0.9\r\n");
        for (url, replies, wanted) in [
            (
                "redis://h",
                vec![error("NOAUTH HELLO must be called with …")],
                "redis_password",
            ),
            (
                "redis://u:p@h",
                vec![error("WRONGPASS invalid username-password pair")],
                "refuses the user",
            ),
            (
                "redis://:p@h",
                vec![unknown(), error("ERR invalid password")],
                "refuses the password",
            ),
            (
                "redis://u:p@h",
                vec![
                    unknown(),
                    error("ERR wrong number of arguments for 'auth' command"),
                ],
                "too old for user names",
            ),
            (
                "redis://h",
                vec![unknown(), error("NOAUTH Authentication required.")],
                "wants a password",
            ),
            ("redis://h", vec![unknown(), text("OK"), old], "too old"),
            ("redis://h", vec![hello("4.0.1")], "too old"),
            (
                "redis://h/99",
                vec![hello("7.0.0"), error("ERR DB index is out of range")],
                "database 99",
            ),
            (
                "redis://h",
                vec![error(
                    "NOPERM this user has no permissions to run the 'hello' command",
                )],
                "'hello' command",
            ),
            (
                "redis://h",
                vec![error("DENIED Redis is running in protected mode")],
                "protected mode",
            ),
            (
                "redis://h",
                vec![error("ERR max number of clients reached")],
                "maxclients",
            ),
            ("redis://h", vec![Reply::Number(1)], "not Redis"),
        ] {
            let (_, end) = greet(url, &replies);
            let said = end.unwrap_err();
            assert!(said.contains(wanted), "{said} does not say {wanted}");
        }
    }

    /// An answer to HELLO.
    fn is(mode: &str, role: &str) -> Reply {
        let field = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        Reply::Fields(vec![
            field("server", "redis"),
            field("version", "7.0.15"),
            field("mode", mode),
            field("role", role),
        ])
    }

    #[test]
    fn another_kind_of_server_is_refused_with_the_url_to_write() {
        for (url, answer, wanted) in [
            (
                "redis://h:1",
                is("cluster", "master"),
                "write redis-cluster://h:1",
            ),
            (
                "rediss://h:1",
                is("sentinel", ""),
                "write rediss-sentinel://h:1/NAME",
            ),
            (
                "redis-cluster://h:1",
                is("standalone", "master"),
                "write redis://h:1",
            ),
            (
                "redis-cluster://h:1",
                is("sentinel", ""),
                "write redis-sentinel://h:1/NAME",
            ),
            (
                "redis-sentinel://h:1/m",
                is("standalone", "master"),
                "no Sentinel but a Redis: write redis://h:1",
            ),
            (
                "rediss-sentinel://h:1/m",
                is("cluster", "master"),
                "write rediss-cluster://h:1",
            ),
            (
                "redis://h:1",
                is("standalone", "replica"),
                "h:1 is a replica",
            ),
        ] {
            let (_, end) = greet(url, &[answer]);
            let said = end.unwrap_err();
            assert!(said.contains(wanted), "{said} does not say {wanted}");
        }
        for (url, answer) in [
            ("redis://h", is("standalone", "master")),
            ("redis-cluster://h", is("cluster", "replica")),
            ("redis-sentinel://h/m", is("sentinel", "")),
        ] {
            let (_, end) = greet(url, &[answer]);
            assert_eq!(end, Ok(Step::Done), "{url}");
        }
    }

    #[test]
    fn an_older_servers_kind_is_known_from_info() {
        let begin = [error("ERR unknown command 'HELLO'"), text("OK")];
        let info = |mode: &str| text(&format!("redis_version:5.0.14\r\nredis_mode:{mode}\r\n"));
        let replica = [info("standalone"), text("role:slave\r\n")];
        let (_, end) = greet("redis://h", &[&begin[..], &replica[..]].concat());
        assert!(end.unwrap_err().contains("is a replica"));
        let (_, end) = greet("redis://h", &[&begin[..], &[info("cluster")]].concat());
        assert!(end.unwrap_err().contains("redis-cluster://"));
    }

    #[test]
    fn a_server_is_told_in_a_line() {
        let server = |name: &str| Server {
            name: name.into(),
            ..Server::default()
        };
        assert_eq!(server("").to_string(), "redis of unknown version, RESP2");
        let valkey = Server {
            version: "8.0.1".into(),
            mode: "standalone".into(),
            role: "master".into(),
            is_resp3: true,
            ..server("valkey")
        };
        assert_eq!(
            valkey.to_string(),
            "valkey 8.0.1, RESP3, standalone, master"
        );
    }

    #[test]
    fn who_was_a_master_may_be_none_any_more() {
        assert_eq!(is_master(&is("standalone", "master")), Some(true));
        assert_eq!(is_master(&is("standalone", "replica")), Some(false));
        let list = |role: &str| Reply::List(vec![text(role), Reply::Number(0)]);
        assert_eq!(is_master(&list("master")), Some(true));
        assert_eq!(is_master(&list("slave")), Some(false));
        assert_eq!(is_master(&error("NOPERM no")), None);
    }
}
