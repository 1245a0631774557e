//! What Redis refuses, in words that say what to do.

use super::{Address, Mode, Options};
use crate::backplane::registry::GRANT as GRANT_REGISTRY;

/// What is shown of a server's words.
const SHOWN_CHARS_MAX: usize = 200;
/// What is shown of bytes that are no RESP.
const SHOWN_BYTES_MAX: usize = 60;
/// How a TLS record begins: its type, and the first byte of its version (RFC 8446 §5.1).
const TLS_ALERT: u8 = 21;
const TLS_HANDSHAKE: u8 = 22;
const TLS_MAJOR: u8 = 3;
/// What every link is greeted with.
const GRANT_GREETING: &str = "+hello +client|setname +select +info +role";
/// What carries messages.
const GRANT_MESSAGES: &str = "+publish +subscribe +unsubscribe";
/// The same in partitions.
const GRANT_SHARDED: &str = " +spublish +ssubscribe +sunsubscribe";
/// Who serves what.
const GRANT_CLUSTER: &str = " +cluster|slots";
/// What keeps them in streams, too: what the script calls, and how what was missed is read.
const GRANT_STREAMS: &str =
    " +script|load +evalsha +hmget +hset +hlen +hkeys +hdel +del +pexpire +xadd +xrange +get +set";
/// What a Sentinel is asked.
const GRANT_SENTINEL: &str = "allchannels +hello +client|setname +info \
     +sentinel|get-master-addr-by-name +subscribe";

/// What the user at a server is to be granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    user: String,
    rules: String,
    /// Where the password is given.
    secrets: &'static str,
}

impl Grant {
    /// What this node needs at a Redis that carries messages.
    pub fn at_redis(options: &Options) -> Self {
        let prefix = &options.prefix;
        let mut rules =
            format!("&{prefix}:* ~{prefix}:* {GRANT_GREETING} {GRANT_MESSAGES} {GRANT_REGISTRY}");
        match options.mode {
            Mode::Pubsub => {}
            Mode::Sharded => rules.push_str(GRANT_SHARDED),
            Mode::Streams => rules.push_str(GRANT_STREAMS),
        }
        if options.is_cluster() {
            rules.push_str(GRANT_CLUSTER);
        }
        let secrets = "redis, redis_password or redis_password_file";
        Self::new(options.address.user.as_deref(), rules, secrets)
    }

    /// What this node needs at a Sentinel.
    pub fn at_sentinel(address: &Address) -> Self {
        let secrets = "redis_sentinel_password, or sentinel_user and sentinel_password in redis";
        Self::new(address.user.as_deref(), GRANT_SENTINEL.into(), secrets)
    }

    fn new(user: Option<&str>, rules: String, secrets: &'static str) -> Self {
        Self {
            user: user.unwrap_or("default").to_owned(),
            rules,
            secrets,
        }
    }

    /// The command that grants it, for whoever administers the server
    /// (<https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl/>).
    pub fn command(&self) -> String {
        format!("ACL SETUSER {} {}", self.user, self.rules)
    }

    /// What is not granted where an error is about a key or a channel; `None`: it is about a command.
    pub fn name_of(&self, error: &str) -> Option<String> {
        if error.contains("to run the '") {
            return None;
        }
        let pattern = |sign: char| {
            let mut rules = self.rules.split(' ');
            rules.find(|rule| rule.starts_with(sign))
        };
        if error.contains("channel") {
            return Some(pattern('&').unwrap_or("allchannels").to_owned());
        }
        let is_of_keys = error.contains("key");
        is_of_keys.then(|| pattern('~').unwrap_or("allkeys").to_owned())
    }

    /// All that is not granted, and what grants it. `untried`: rules that may be lacking as well.
    pub fn lacking(&self, rules: &[&str], untried: &[&str]) -> String {
        let untried = match untried {
            [] => String::new(),
            _ => format!(
                " (and perhaps {}, which cannot be tried)",
                untried.join(" ")
            ),
        };
        format!(
            "the Redis user {} may not do all that is needed: it lacks {}{untried}; an administrator grants all of it by: {}",
            self.user,
            rules.join(" "),
            self.command()
        )
    }
}

/// A server's error in words that say what to do.
pub fn explain(error: &str, grant: &Grant) -> String {
    let words = shown(error);
    let secrets = grant.secrets;
    let code = error.split(' ').next().unwrap_or_default();
    match code {
        "WRONGPASS" => {
            format!("Redis refuses the user or the password ({words}): mend them in {secrets}")
        }
        "NOAUTH" => format!("Redis wants a password ({words}): give it in {secrets}"),
        "NOPERM" => format!(
            "the Redis user {} lacks a permission ({words}): {}",
            grant.user,
            lacking(error, grant)
        ),
        "LOADING" => format!("Redis still loads its data ({words}): it is asked again"),
        "BUSY" => {
            format!("Redis runs a script and answers nobody ({words}): it is asked again")
        }
        "MASTERDOWN" => {
            format!("Redis is a replica that has lost its master ({words}): it is asked again")
        }
        "READONLY" => format!("Redis is a replica ({words}): write the address of its master"),
        "CLUSTERDOWN" => format!("the Redis Cluster lacks a master ({words}): it is asked again"),
        "MOVED" | "ASK" => {
            format!("Redis is a node of a Redis Cluster ({words}): write redis-cluster://HOST:PORT")
        }
        "DENIED" => format!(
            "Redis is in protected mode and lets only its own host in ({words}): give it a password (requirepass or an ACL user), or bind it to an address and set protected-mode no"
        ),
        "OOM" => format!(
            "Redis has no memory left ({words}): raise its maxmemory, or let it evict (maxmemory-policy)"
        ),
        "MISCONF" => format!(
            "Redis cannot save its data and takes nothing ({words}): mend its disk, or set stop-writes-on-bgsave-error no"
        ),
        "ERR" if error.contains("invalid password") || error.contains("without any password") => {
            format!("Redis refuses the password ({words}): mend it in {secrets}")
        }
        "ERR" if error.contains("max number of clients") => format!(
            "Redis has as many clients as it takes ({words}): raise its maxclients, three for each node of Throng"
        ),
        "ERR" if error.contains("cluster support disabled") => {
            format!("Redis is no node of a Redis Cluster ({words}): write redis://HOST:PORT")
        }
        _ => format!("Redis refuses: {words}"),
    }
}

/// What is not granted, as far as the server says it, and the whole of what is to be.
///
/// Redis 7.0: "this user has no permissions to run the 'publish' command", "… to access one of the channels used as
/// arguments"; 7.2: "User alice has no permissions to run the 'publish' command", "No permissions to access a channel".
fn lacking(error: &str, grant: &Grant) -> String {
    let command = error
        .split_once("to run the '")
        .and_then(|(_, rest)| rest.split_once('\''))
        .map(|(command, _)| command);
    let what = match command {
        Some(command) => format!("+{command}"),
        None => grant.name_of(error).unwrap_or("one of these".to_owned()),
    };
    format!(
        "it lacks {what}; an administrator grants all that is needed by: {}",
        grant.command()
    )
}

/// What is behind bytes that are no RESP; `address`: who was to answer.
pub fn explain_junk(bytes: &[u8], address: &Address) -> String {
    let shown = &bytes[..bytes.len().min(SHOWN_BYTES_MAX)];
    if let [TLS_ALERT | TLS_HANDSHAKE, TLS_MAJOR, ..] = shown {
        let (secure, plain) = (address.scheme(true), address.scheme(false));
        return format!("what answers there speaks TLS: write {secure}:// instead of {plain}://");
    }
    let shown = String::from_utf8_lossy(shown);
    format!("what answers there is not Redis: it says {shown:?}")
}

/// What may be behind an end before anything was said: a TLS port ends a connection that begins without TLS.
pub fn explain_silence(reason: String, address: &Address) -> String {
    match address.tls {
        true => reason,
        false => format!(
            "{reason}: {} has said nothing to HELLO; it is no Redis, or speaks TLS (write {}://)",
            address.endpoint,
            address.scheme(true)
        ),
    }
}

/// As much of a server's words as is shown to people.
pub fn shown(error: &str) -> String {
    error
        .chars()
        .filter(|character| !character.is_control())
        .take(SHOWN_CHARS_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Address, Kind};
    use super::*;

    fn grant() -> Grant {
        let address = Address::parse("redis://alice:p@h").unwrap();
        Grant::at_redis(&Options {
            prefix: "blue".into(),
            ..Options::new(address)
        })
    }

    #[test]
    fn a_missing_permission_is_named_with_the_command_that_grants_all() {
        for (error, what) in [
            (
                "NOPERM this user has no permissions to run the 'publish' command",
                "lacks +publish;",
            ),
            (
                "NOPERM User alice has no permissions to run the 'client|setname' command",
                "lacks +client|setname;",
            ),
            (
                "NOPERM this user has no permissions to access one of the channels used as arguments",
                "lacks &blue:*;",
            ),
            (
                "NOPERM No permissions to access a channel",
                "lacks &blue:*;",
            ),
        ] {
            let said = explain(error, &grant());
            assert!(said.contains(what), "{said} does not say {what}");
            let line = "ACL SETUSER alice &blue:* ~blue:* +hello";
            assert!(said.contains(line), "{said} does not say {line}");
        }
    }

    #[test]
    fn a_wrong_password_is_mended_where_it_is_given() {
        let sentinel = Address {
            kind: Kind::Sentinel,
            ..Address::parse("redis://h").unwrap()
        };
        let at_sentinel = Grant::at_sentinel(&sentinel);
        for error in [
            "WRONGPASS invalid username-password pair or user is disabled.",
            "NOAUTH Authentication required.",
            "ERR invalid password",
        ] {
            let said = explain(error, &at_sentinel);
            let right = said.contains("redis_sentinel_password, or sentinel_user");
            assert!(right && !said.contains("redis_password"), "{said}");
            let said = explain(error, &grant());
            assert!(said.contains("redis_password_file"), "{said}");
        }
    }

    #[test]
    fn the_scheme_to_write_is_that_of_the_kind() {
        let hello = [TLS_HANDSHAKE, TLS_MAJOR, 3];
        for (kind, plain, secure) in [
            (Kind::Single, "redis://", "rediss://"),
            (Kind::ClusterNode, "redis-cluster://", "rediss-cluster://"),
            (Kind::Sentinel, "redis-sentinel://", "rediss-sentinel://"),
        ] {
            let address = Address {
                kind,
                ..Address::parse("redis://h").unwrap()
            };
            let said = explain_junk(&hello, &address);
            let wanted = format!("write {secure} instead of {plain}");
            assert!(said.contains(&wanted), "{said} does not say {wanted}");
            let said = explain_silence("ended".into(), &address);
            assert!(said.contains(&format!("(write {secure})")), "{said}");
        }
    }

    #[test]
    fn what_passes_by_itself_says_so() {
        for error in [
            "LOADING Redis is loading the dataset in memory",
            "BUSY Redis is busy running a script.",
            "MASTERDOWN Link with MASTER is down",
            "CLUSTERDOWN The cluster is down",
        ] {
            let said = explain(error, &grant());
            assert!(said.contains("asked again"), "{said}");
        }
    }

    #[test]
    fn a_servers_words_are_cut_and_cleaned() {
        let said = explain(&format!("ERR a\u{1b}[31m{}", "x".repeat(500)), &grant());
        assert!(!said.contains('\u{1b}') && said.len() < 250, "{said}");
    }
}
