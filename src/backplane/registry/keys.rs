//! The registry's keys at Redis, and the names in them. PROTOCOL.md §7 has the layout.
//!
//! Braces are hash tags (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags>): what one
//! step touches is in one slot, a user's keys by the user, a node's by the node.

use crate::bus::{ConnectionId, PresenceNote};

/// One process of a node: `NODE:INCARNATION`, the incarnation in 16 hexadecimal digits. A restarted node is another one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instance(String);

impl Instance {
    /// The process of `node` that drew `incarnation`.
    pub fn new(node: &str, incarnation: u64) -> Self {
        Self(format!("{node}:{incarnation:016x}"))
    }

    /// Reads what [`Self::as_str`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        let (node, incarnation) = text.rsplit_once(':')?;
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let whole = incarnation.len() == 16 && incarnation.bytes().all(is_hex);
        (whole && !node.is_empty()).then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The node's name.
    pub fn node(&self) -> &str {
        self.0.rsplit_once(':').map_or("", |(node, _)| node)
    }

    pub fn incarnation(&self) -> u64 {
        let digits = self.0.rsplit_once(':').map_or("", |(_, digits)| digits);
        u64::from_str_radix(digits, 16).unwrap_or_default()
    }
}

/// A connection in a node's set: `ID` or `ID:USER`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub id: ConnectionId,
    pub user: Option<String>,
}

impl Member {
    pub fn of(note: &PresenceNote) -> Self {
        Self {
            id: note.id,
            user: note.user.as_deref().map(str::to_owned),
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        let (id, user) = match text.split_once(':') {
            Some((id, user)) => (id, Some(user.to_owned())),
            None => (text, None),
        };
        let id = ConnectionId::parse(id)?;
        Some(Self { id, user })
    }

    pub fn text(&self) -> String {
        match &self.user {
            Some(user) => format!("{}:{user}", self.id),
            None => self.id.to_string(),
        }
    }
}

/// A connection of any node: `NODE:INCARNATION:ID`.
pub fn reference(instance: &Instance, id: ConnectionId) -> String {
    format!("{}:{id}", instance.as_str())
}

/// Reads a [`reference()`].
pub fn parse_reference(text: &str) -> Option<(Instance, ConnectionId)> {
    let (instance, id) = text.rsplit_once(':')?;
    Some((Instance::parse(instance)?, ConnectionId::parse(id)?))
}

/// All names of keys and channels, by what they are of.
#[derive(Debug, Clone)]
pub struct Keys {
    prefix: String,
}

impl Keys {
    pub fn new(prefix: &str) -> Self {
        let prefix = prefix.to_owned();
        Self { prefix }
    }

    /// A connection's hash; in the slot of its user, if it has one.
    pub fn connection(&self, instance: &Instance, id: ConnectionId, user: Option<&str>) -> String {
        let reference = reference(instance, id);
        match user {
            Some(user) => format!("{}:conn:{{{}}}:{reference}", self.prefix, tag(user)),
            None => format!("{}:conn:{{{reference}}}", self.prefix),
        }
    }

    /// A user's connections: references, by when they expire.
    pub fn user(&self, user: &str) -> String {
        format!("{}:user:{{{}}}:conns", self.prefix, tag(user))
    }

    /// A node's heartbeat and state.
    pub fn node(&self, instance: &Instance) -> String {
        format!("{}:node:{{{}}}", self.prefix, instance.as_str())
    }

    /// A node's connections: [`Member`]s.
    pub fn node_connections(&self, instance: &Instance) -> String {
        format!("{}:node:{{{}}}:conns", self.prefix, instance.as_str())
    }

    /// Who removes what a dead node has left.
    pub fn claim(&self, instance: &Instance) -> String {
        format!("{}:reap:{{{}}}", self.prefix, instance.as_str())
    }

    /// All nodes, by when they were heard.
    pub fn nodes(&self) -> String {
        format!("{}:nodes", self.prefix)
    }

    /// Users that were told of, as a HyperLogLog for each of three windows in turn.
    pub fn seen(&self, window: usize) -> String {
        format!("{}:users:{{seen}}:{window}", self.prefix)
    }

    /// The channel of the nodes' states.
    pub fn states(&self) -> String {
        format!("{}:server:metrics", self.prefix)
    }
}

/// A user as a hash tag: a tag ends at the first `}`, so that there is none in it.
fn tag(user: &str) -> String {
    user.replace('%', "%25").replace('}', "%7D")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: ConnectionId = ConnectionId(0x0100_0002_0000_0003);

    /// What a cluster hashes of a key.
    fn hashed(key: &str) -> &str {
        let (_, rest) = key.split_once('{').unwrap();
        let (tag, _) = rest.split_once('}').unwrap();
        assert!(!tag.is_empty());
        tag
    }

    #[test]
    fn a_users_keys_are_in_one_slot_whatever_the_user_is_called() {
        let keys = Keys::new("p");
        let instance = Instance::new("n", 7);
        let mut tags = Vec::new();
        for user in ["ann", "}", "{}", "a}b", "{a", "%7D", "a:b", "{ann}"] {
            let (set, hash) = (keys.user(user), keys.connection(&instance, ID, Some(user)));
            assert_eq!(hashed(&set), hashed(&hash), "{user}");
            tags.push(hashed(&set).to_owned());
        }
        tags.sort_unstable();
        assert!(tags.is_sorted_by(|a, b| a < b), "each its own: {tags:?}");
        assert_eq!(keys.user("ann"), "p:user:{ann}:conns");
        let hash = "p:conn:{ann}:n:0000000000000007:0100000200000003";
        assert_eq!(keys.connection(&instance, ID, Some("ann")), hash);
    }

    #[test]
    fn a_nodes_keys_are_in_one_slot() {
        let keys = Keys::new("p");
        let instance = Instance::new("n.1", 7);
        let all = [
            keys.node(&instance),
            keys.node_connections(&instance),
            keys.claim(&instance),
        ];
        assert!(all.iter().all(|key| hashed(key) == instance.as_str()));
    }

    #[test]
    fn names_lead_back_to_what_they_are_of() {
        let instance = Instance::new("web-1", u64::MAX);
        assert_eq!(Instance::parse(instance.as_str()), Some(instance.clone()));
        assert_eq!(
            (instance.node(), instance.incarnation()),
            ("web-1", u64::MAX)
        );
        let text = reference(&instance, ID);
        assert_eq!(parse_reference(&text), Some((instance, ID)));
        for user in [None, Some("ann"), Some("a:b")] {
            let member = Member {
                id: ID,
                user: user.map(str::to_owned),
            };
            assert_eq!(Member::parse(&member.text()), Some(member));
        }
    }

    #[test]
    fn what_others_have_written_is_no_name() {
        for text in ["", "n", "n:7", ":0000000000000007", "n:000000000000000G"] {
            assert_eq!(Instance::parse(text), None, "{text}");
            assert_eq!(parse_reference(text), None, "{text}");
        }
        assert_eq!(Member::parse("xyz:ann"), None);
    }
}
