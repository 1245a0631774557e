//! The parts of the reference, and of what `throng config` prints.

/// The parts of the reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Where it listens and who may come.
    Listeners,
    /// What stands before the node.
    Edge,
    /// Cores and identity.
    Cores,
    /// Limits of the node and its shards.
    NodeLimits,
    /// Limits of one connection.
    ConnectionLimits,
    /// Life of a connection.
    Life,
    /// Kernel sockets.
    Sockets,
    /// The socket engine.
    Engine,
    /// Redis between the nodes.
    Redis,
    /// Stopping.
    Stopping,
    /// Logs.
    Logs,
}

impl Group {
    /// All of them, in the order of the reference.
    pub const ALL: [Self; 11] = [
        Self::Listeners,
        Self::Edge,
        Self::Cores,
        Self::NodeLimits,
        Self::ConnectionLimits,
        Self::Life,
        Self::Sockets,
        Self::Engine,
        Self::Redis,
        Self::Stopping,
        Self::Logs,
    ];

    /// The heading.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Listeners => "Listeners",
            Self::Edge => "Balancers and users",
            Self::Cores => "Cores and identity",
            Self::NodeLimits => "Limits of the node",
            Self::ConnectionLimits => "Limits of a connection",
            Self::Life => "Life of a connection",
            Self::Sockets => "Kernel sockets",
            Self::Engine => "Socket engine",
            Self::Redis => "Redis",
            Self::Stopping => "Stopping",
            Self::Logs => "Logs",
        }
    }
}
