//! What the admin core asks of all nodes together, and what the registry at Redis says.

use super::{ConnectionId, UserName};

/// A question to the registry. It is answered by exactly one [`ClusterReply`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterQuestion {
    /// Whether these users are online, on whatever node.
    Online {
        /// Who.
        users: Vec<UserName>,
        /// On which nodes, too.
        with_nodes: bool,
    },
    /// The connections of one user, on whatever node.
    User {
        /// Who.
        user: UserName,
        /// Connections in the answer at most.
        connection_count_max: u32,
    },
    /// The state of all nodes.
    Nodes,
}

/// The registry's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterReply {
    /// To [`ClusterQuestion::Online`], in the order of the question.
    Online(Vec<OnlineUser>),
    /// To [`ClusterQuestion::User`].
    User {
        /// How many connections there are.
        connection_count: u64,
        /// As many of them as were asked for.
        connections: Vec<UserConnection>,
    },
    /// To [`ClusterQuestion::Nodes`].
    Nodes {
        /// By name, then incarnation.
        nodes: Vec<NodeSeen>,
        /// Users with a connection, each once, on whatever node.
        user_count: u64,
    },
    /// Redis cannot be asked, or does not answer: why, in words.
    Away(String),
}

/// One user, all nodes together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnlineUser {
    /// Who.
    pub user: UserName,
    /// Connections; 0 is offline.
    pub connection_count: u64,
    /// The names of the nodes that they are on, each once, in order, if it was asked for.
    pub nodes: Vec<String>,
}

/// One connection of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserConnection {
    /// Its id, on its node.
    pub id: ConnectionId,
    /// The node's name.
    pub node: String,
    /// The room it is in.
    pub room: String,
    /// How long ago it was opened.
    pub since_ms_ago: u64,
    /// How long ago bytes last came from it, as far as its node has told.
    pub heard_ms_ago: u64,
}

/// A node as Redis knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSeen {
    /// Its name.
    pub node: String,
    /// Which of its processes.
    pub incarnation: u64,
    /// How long ago it was heard.
    pub age_ms: u64,
    /// What it has told of itself, JSON; `None`: it has been silent for too long.
    pub state: Option<String>,
}
