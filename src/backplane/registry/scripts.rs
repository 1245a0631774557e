//! What the registry has Redis do in one atomic step, each in one slot (<https://redis.io/docs/latest/commands/eval/>).
//!
//! All of them take the time from Redis (`TIME`), so that no node's clock counts. They need effects replication, which is
//! the rule from Redis 5.0 on.

/// What a user of Redis' ACL needs for all of this, beside the keys.
pub const GRANT: &str = "+eval +time +exists +hset +hget +hmget +pexpire +zadd +zrem +zrange +zrangebyscore \
    +zremrangebyscore +zcount +sadd +srem +srandmember +get +set +del +pfadd +pfcount";

/// Tells of a connection. Keys: its hash; its user's set, if it has a user. Arguments: its reference, milliseconds that it
/// lives, node, room, how long ago it was opened and heard, its user or nothing.
pub const TOUCH: &str = "\
local t=redis.call('TIME')
local now=t[1]*1000+math.floor(t[2]/1000)
redis.call('HSET',KEYS[1],'node',ARGV[3],'room',ARGV[4],'since',now-ARGV[5],'active',now-ARGV[6],'user',ARGV[7])
redis.call('PEXPIRE',KEYS[1],ARGV[2])
if KEYS[2] then
redis.call('ZREMRANGEBYSCORE',KEYS[2],'-inf',now)
redis.call('ZADD',KEYS[2],now+ARGV[2],ARGV[1])
redis.call('PEXPIRE',KEYS[2],ARGV[2])
end
return 1";

/// Removes a connection. Keys as for [`TOUCH`]. Argument: its reference.
pub const FORGET: &str = "\
redis.call('DEL',KEYS[1])
if KEYS[2] then redis.call('ZREM',KEYS[2],ARGV[1]) end
return 1";

/// Adds connections to their node's set. Key: the set. Arguments: milliseconds that it lives, members.
pub const ENROL: &str = "\
redis.call('SADD',KEYS[1],unpack(ARGV,2))
return redis.call('PEXPIRE',KEYS[1],ARGV[1])";

/// Counts users as seen. Keys: the HyperLogLogs of three windows. Arguments: a window's milliseconds, users.
pub const SEE: &str = "\
local t=redis.call('TIME')
local k=KEYS[math.floor((t[1]*1000+t[2]/1000)/ARGV[1])%3+1]
redis.call('PFADD',k,unpack(ARGV,2))
return redis.call('PEXPIRE',k,2*ARGV[1])";

/// How many users were seen in this window and the last. Keys and first argument as for [`SEE`].
pub const SEEN: &str = "\
local t=redis.call('TIME')
local w=math.floor((t[1]*1000+t[2]/1000)/ARGV[1])
return redis.call('PFCOUNT',KEYS[w%3+1],KEYS[(w+2)%3+1])";

/// A heartbeat: whether the one before still stood. Keys: the node's hash, the node's set. Arguments: milliseconds that the
/// hash lives, those of the set, node, incarnation, state.
pub const BEAT: &str = "\
local known=redis.call('EXISTS',KEYS[1])
redis.call('HSET',KEYS[1],'node',ARGV[3],'incarnation',ARGV[4],'state',ARGV[5])
redis.call('PEXPIRE',KEYS[1],ARGV[1])
redis.call('PEXPIRE',KEYS[2],ARGV[2])
return known";

/// All nodes and Redis' time: the time, then each instance and when it was heard, milliseconds. Key: the nodes' set.
/// Arguments: milliseconds that the set lives and the asking instance, or none to leave it out.
pub const ROLL: &str = "\
local t=redis.call('TIME')
local now=t[1]*1000+math.floor(t[2]/1000)
if ARGV[2] then
redis.call('ZADD',KEYS[1],now,ARGV[2])
redis.call('PEXPIRE',KEYS[1],ARGV[1])
end
local all=redis.call('ZRANGE',KEYS[1],0,-1,'WITHSCORES')
table.insert(all,1,string.format('%.0f',now))
return all";

/// A step of removing what a node has left: claims it, takes off the set what is done, gives what is next. Keys: the claim,
/// the node's hash, the node's set. Arguments: who claims, milliseconds that the claim holds, members in the answer at most,
/// members that are done. Who removes itself leaves no claim behind. Answers `more` and members, or `done`, `taken` (another node does it), `alive`.
pub const REAP: &str = "\
if redis.call('EXISTS',KEYS[2])==1 then return {'alive'} end
if not redis.call('SET',KEYS[1],ARGV[1],'NX','PX',ARGV[2]) then
if redis.call('GET',KEYS[1])~=ARGV[1] then return {'taken'} end
redis.call('PEXPIRE',KEYS[1],ARGV[2])
end
if ARGV[4] then redis.call('SREM',KEYS[3],unpack(ARGV,4)) end
local left=redis.call('SRANDMEMBER',KEYS[3],ARGV[3])
local own='{'..ARGV[1]..'}'
if #left==0 and string.sub(KEYS[1],-#own)==own then redis.call('DEL',KEYS[1]) end
table.insert(left,1,#left==0 and 'done' or 'more')
return left";

/// How many connections a user has: what has expired is not counted, though it may still stand in the set. Key: the user's set.
pub const COUNT: &str = "\
local t=redis.call('TIME')
local now=t[1]*1000+math.floor(t[2]/1000)
return redis.call('ZCOUNT',KEYS[1],string.format('(%.0f',now),'+inf')";

/// Which those are: the time, milliseconds, then references. Key: the user's set. Argument: references at most.
pub const WHICH: &str = "\
local t=redis.call('TIME')
local now=string.format('%.0f',t[1]*1000+math.floor(t[2]/1000))
local all=redis.call('ZRANGEBYSCORE',KEYS[1],'('..now,'+inf','LIMIT',0,ARGV[1])
table.insert(all,1,now)
return all";

/// The words of an `EVAL`.
pub fn eval(script: &str, keys: &[String], arguments: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut words = Vec::with_capacity(3 + keys.len() + arguments.len());
    words.push(b"EVAL".to_vec());
    words.push(script.as_bytes().to_vec());
    words.push(keys.len().to_string().into_bytes());
    words.extend(keys.iter().map(|key| key.clone().into_bytes()));
    words.extend(arguments.iter().map(|argument| argument.to_vec()));
    words
}
