//! What the registry asks of Redis, each in a form that changes nothing (`backplane::trial`).

use super::keys::{Instance, Keys, reference};
use super::options::Kept;
use super::scripts::{FORGET, TOUCH, eval};
use crate::backplane::trial::{Deed, Kind, NO_SCRIPT, Part, SCRATCH_MS};
use crate::bus::ConnectionId;

/// All of it. `scratch`: a name that no user and no node has.
pub fn deeds(prefix: &str, kept: Kept, scratch: &str) -> Vec<Deed> {
    let keys = Keys::new(prefix);
    let instance = Instance::new(scratch, 0);
    let id = ConnectionId(0);
    let connection = keys.connection(&instance, id, Some(scratch));
    let user = keys.user(scratch);
    let (node, members) = (keys.node(&instance), keys.node_connections(&instance));
    let (claim, nodes, states) = (keys.claim(&instance), keys.nodes(), keys.states());
    let seen = format!("{prefix}:users:{{{scratch}}}");
    let of = |right: &'static str, text: &[&str]| {
        let words: Vec<&[u8]> = text.iter().map(|word| word.as_bytes()).collect();
        Deed::new(Part::Registry, right, &words)
    };
    let mut deeds = vec![
        of(
            "+publish",
            &["PUBLISH", &format!("{prefix}:server:{scratch}"), ""],
        )
        .of(Kind::Command),
        of("+eval", &["EVAL", NO_SCRIPT, "0"]),
        of("+time", &["TIME"]),
        of("+exists", &["EXISTS", &node]),
        of("+hset", &["HSET", &node, "a", "b", "c"]), // a field without its value
        of("+hget", &["HGET", &node, "state"]),
        of("+hmget", &["HMGET", &connection, "room"]),
        of("+pexpire", &["PEXPIRE", &node, "1"]),
        of("+zadd", &["ZADD", &nodes, "XX", "0", scratch]),
        of("+zrange", &["ZRANGE", &nodes, "0", "0"]),
        of("+zrem", &["ZREM", &nodes, scratch]),
        of("+get", &["GET", &claim]),
        of("+del", &["DEL", &connection]),
        of("+srem", &["SREM", &members, scratch]),
        of("+srandmember", &["SRANDMEMBER", &members, "1"]),
        of("+pfcount", &["PFCOUNT", &seen]),
        of("+set", &["SET", &claim, "", "PX", SCRATCH_MS]).of(Kind::Scratch),
        of("", &["DEL", &claim]).of(Kind::Cleanup),
        // Nobody is told anything on the channel of the states.
        of("", &["SUBSCRIBE", &states]).of(Kind::Names).heard(),
    ];
    if kept == Kept::Off {
        return deeds;
    }
    // A text is no set, and not what counts users.
    deeds.extend([
        of("+zcount", &["ZCOUNT", &user, "0", "0"]),
        of("+zrangebyscore", &["ZRANGEBYSCORE", &user, "0", "0"]),
        of("+zremrangebyscore", &["ZREMRANGEBYSCORE", &user, "0", "0"]),
        of("+set", &["SET", &members, "", "PX", SCRATCH_MS]).of(Kind::Scratch),
        of("+sadd", &["SADD", &members, scratch]).of(Kind::OnScratch),
        of("+set", &["SET", &seen, "no", "PX", SCRATCH_MS]).of(Kind::Scratch),
        of("+pfadd", &["PFADD", &seen, scratch]).of(Kind::OnScratch),
        of("", &["DEL", &members]).of(Kind::Cleanup),
        of("", &["DEL", &seen]).of(Kind::Cleanup),
        of("", &["DEL", &connection]).of(Kind::Cleanup),
        of("", &["DEL", &user]).of(Kind::Cleanup),
    ]);
    let proof = |words: Vec<Vec<u8>>| {
        let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        Deed::new(Part::Registry, "", &words).of(Kind::Proof)
    };
    let told = [connection, user];
    let reference = reference(&instance, id);
    let touch = [&*reference, SCRATCH_MS, scratch, "", "0", "0", scratch].map(str::as_bytes);
    deeds.push(proof(eval(TOUCH, &told, &touch)));
    deeds.push(proof(eval(FORGET, &told, &[reference.as_bytes()])));
    deeds
}
