//! The first words on a connection: protocol version, who we are, which database. Every refusal is told in words.

use bytes::BytesMut;

use super::Address;
use crate::backplane::resp::{Reply, encode_command};

/// The oldest server that is spoken to.
const VERSION_MIN: (u32, u32) = (5, 0);
/// What is shown of a server's words.
const SHOWN_CHARS_MAX: usize = 200;

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
    Select,
}

/// The exchange, from HELLO to the last answer.
#[derive(Debug)]
pub struct Greeting {
    user: Option<String>,
    password: Option<String>,
    database: u32,
    asked: Asked,
    server: String,
}

impl Greeting {
    /// Nothing was said yet.
    pub fn new(address: &Address) -> Self {
        Self {
            user: address.user.clone(),
            password: address.password.clone(),
            database: address.database,
            asked: Asked::Hello,
            server: String::from("unknown"),
        }
    }

    /// What the server calls itself: `redis 7.0.15, RESP3`.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Says HELLO.
    pub fn begin(&mut self, out: &mut BytesMut, name: &str) {
        let mut words: Vec<&[u8]> = vec![b"HELLO", b"3"];
        if let Some(password) = &self.password {
            let user = self.user.as_deref().unwrap_or("default");
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
                    found.map_or("", |(_, value)| value.as_str())
                };
                let version = field("version");
                check_version(version)?;
                self.server = format!("{} {version}, RESP3, {}", field("server"), field("mode"));
                Ok(self.select(out))
            }
            (Asked::Hello, Reply::Error(error)) if knows_no_hello(error) => {
                if let Some(password) = &self.password {
                    let mut words: Vec<&[u8]> = vec![b"AUTH"];
                    words.extend(self.user.as_deref().map(str::as_bytes));
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
            (Asked::Name, Reply::Error(error)) if needs_password(error) => Err(explain(error)),
            (Asked::Name, _) => {
                encode_command(out, &[b"INFO", b"server"]);
                self.asked = Asked::Info;
                Ok(Step::Going)
            }
            (Asked::Info, Reply::Text(text)) => {
                let text = String::from_utf8_lossy(text);
                let version = text
                    .lines()
                    .find_map(|line| line.strip_prefix("redis_version:"))
                    .unwrap_or_default()
                    .trim();
                check_version(version)?;
                self.server = format!("redis {version}, RESP2");
                Ok(self.select(out))
            }
            (Asked::Info, Reply::Error(error)) if !needs_password(error) => {
                self.server = "of unknown version, RESP2".into();
                Ok(self.select(out))
            }
            (Asked::Select, Reply::Text(_)) => Ok(Step::Done),
            (Asked::Select, Reply::Error(error)) => Err(format!(
                "database {} cannot be selected: {}",
                self.database,
                shown(error)
            )),
            (_, Reply::Error(error)) => Err(explain(error)),
            _ => Err("what answers there is not Redis: its answer to HELLO is of another kind".into()),
        }
    }

    fn set_name(&mut self, out: &mut BytesMut, name: &str) {
        encode_command(out, &[b"CLIENT", b"SETNAME", name.as_bytes()]);
        self.asked = Asked::Name;
    }

    fn select(&mut self, out: &mut BytesMut) -> Step {
        if self.database == 0 {
            return Step::Done;
        }
        encode_command(out, &[b"SELECT", self.database.to_string().as_bytes()]);
        self.asked = Asked::Select;
        Step::Going
    }
}

fn knows_no_hello(error: &str) -> bool {
    error.starts_with("NOPROTO") || error.contains("unknown command")
}

fn needs_password(error: &str) -> bool {
    error.starts_with("NOAUTH")
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

/// A server's error in words that say what to do.
pub fn explain(error: &str) -> String {
    let words = shown(error);
    let code = error.split(' ').next().unwrap_or_default();
    match code {
        "WRONGPASS" => format!(
            "Redis refuses the user or the password ({words}): mend them in redis, redis_password or redis_password_file"
        ),
        "NOAUTH" => format!(
            "Redis wants a password ({words}): give it in redis, redis_password or redis_password_file"
        ),
        "NOPERM" => format!(
            "the Redis user lacks a permission ({words}): it needs +hello +select +info +client|setname +publish \
             +subscribe +unsubscribe, and the channels of redis_prefix (&throng:* by default)"
        ),
        "LOADING" | "BUSY" | "MASTERDOWN" => format!("Redis is not ready yet ({words})"),
        "DENIED" => format!("Redis is in protected mode and lets only its own host in ({words})"),
        "ERR" if error.contains("invalid password") || error.contains("without any password") => {
            format!(
                "Redis refuses the password ({words}): mend it in redis, redis_password or redis_password_file"
            )
        }
        "ERR" if error.contains("max number of clients") => {
            format!("Redis has as many clients as it takes ({words}): raise its maxclients")
        }
        _ => format!("Redis refuses: {words}"),
    }
}

fn shown(error: &str) -> String {
    error
        .chars()
        .filter(|character| !character.is_control())
        .take(SHOWN_CHARS_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn greet(url: &str, replies: &[Reply]) -> (Vec<String>, Result<Step, String>) {
        let mut greeting = Greeting::new(&Address::parse(url).unwrap());
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
        let replies = [unknown.clone(), text("OK"), text("OK"), info];
        let (said, end) = greet("redis://:p@h", &replies);
        let expected = ["AUTH p", "CLIENT SETNAME me", "INFO server"];
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
}
