//! What streams ask of Redis, each in a form that changes nothing (`backplane::trial`).

use super::super::Options;
use super::VERB;
use super::kept::{SCRIPT, keys};
use crate::backplane::trial::{Deed, Kind, NO_SCRIPT, Part, SCRATCH_MS};

/// No script has this digest.
const NO_DIGEST: &[u8] = b"0000000000000000000000000000000000000000";

/// All of it. `channel`: a room's, which nobody is in; `scratch`: a name that no node has.
pub fn deeds(options: &Options, channel: &str, scratch: &str) -> Vec<Deed> {
    let prefix = &options.prefix;
    let [stream, known] = keys(prefix, channel.as_bytes());
    let (stream, known) = (stream.as_slice(), known.as_slice());
    let clock = match options.has_tags() {
        true => format!("{prefix}:{{{scratch}}}:clock:{scratch}"),
        false => format!("{prefix}:clock:{scratch}"),
    };
    let clock = clock.as_bytes();
    let of = |right: &'static str, words: &[&[u8]]| Deed::new(Part::Messages, right, words);
    let no_script = NO_SCRIPT.as_bytes();
    let append: [&[u8]; 18] = [
        b"EVAL",
        SCRIPT.as_bytes(),
        b"2",
        stream,
        known,
        b"",
        b"1",
        b"1",
        SCRATCH_MS.as_bytes(),
        b"server",
        b"0000000000000001",
        VERB,
        channel.as_bytes(),
        b"n0",
        b"1",
        b"1",
        b"1",
        b"0",
    ];
    vec![
        of("+info", &[b"INFO", b"server"]),
        of("+script|load", &[b"SCRIPT", b"LOAD", no_script]),
        of("+evalsha", &[b"EVALSHA", NO_DIGEST, b"0"]),
        of("+hmget", &[b"HMGET", known, b"h"]),
        of("+hset", &[b"HSET", known, b"h", b"", b"s"]), // a field without its value
        of("+hlen", &[b"HLEN", known]),
        of("+hkeys", &[b"HKEYS", known]),
        of("+hdel", &[b"HDEL", known, b"h"]),
        of("+del", &[b"DEL", stream]),
        of("+pexpire", &[b"PEXPIRE", stream, b"1"]),
        of("+xadd", &[b"XADD", stream, b"no", b"m", b""]), // no id
        of("+xrange", &[b"XRANGE", stream, b"1", b"+"]),
        of("+get", &[b"GET", clock]),
        of("+set", &[b"SET", clock, b"", b"PX", SCRATCH_MS.as_bytes()]),
        of("", &append).of(Kind::Proof),
        of("", &[b"DEL", stream]).of(Kind::Cleanup),
        of("", &[b"DEL", known]).of(Kind::Cleanup),
        of("", &[b"DEL", clock]).of(Kind::Cleanup),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::super::Address;
    use super::*;

    #[test]
    fn the_script_is_given_as_many_arguments_as_it_reads() {
        let options = Options::new(Address::parse("redis://h").unwrap());
        let deeds = deeds(&options, "throng:room:r", "check");
        let proof = deeds.iter().find(|deed| deed.kind == Kind::Proof).unwrap();
        let given = proof.words.len() - 5; // EVAL, the script, how many keys, and two of these
        let reads = |number: usize| SCRIPT.contains(&format!("ARGV[{number}]"));
        assert!((1..=given).all(reads) && !reads(given + 1), "{given}");
    }
}
