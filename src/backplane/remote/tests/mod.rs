//! Nodes around a scripted Redis.
