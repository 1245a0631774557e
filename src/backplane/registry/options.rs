//! What the registry may be told.

/// Whose connections are written to Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// Nobody's.
    Off,
    /// Those of users.
    Users,
    /// All.
    All,
}

/// The registry's options. Checked by `config`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Whose connections are written.
    pub kept: Kept,
    /// The node's name.
    pub node_id: String,
    /// What all keys and channels begin with.
    pub prefix: String,
    /// An entry that is not told of again goes after so long.
    pub ttl_ms: u32,
    /// Between heartbeats.
    pub interval_ms: u32,
}

impl Options {
    /// Everything as usual, for a node of this name.
    #[must_use]
    pub fn new(node_id: String) -> Self {
        Self {
            kept: Kept::Users,
            node_id,
            prefix: "throng".into(),
            ttl_ms: 90_000,
            interval_ms: 2_000,
        }
    }

    /// Every connection is told of once in so long.
    #[must_use]
    pub const fn refresh_ms(&self) -> u32 {
        self.ttl_ms / 3
    }
}
