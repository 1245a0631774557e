//! The admin listener's requests and answers: health, metrics, API.
//!
//! Rule of this room: it carries nothing itself. A request comes in as a value and leaves as an [`Answer`], at once or
//! when the shards have been heard; the HTTP around it is runtime's. Nothing here waits: a shard that does not answer
//! within the deadline is named in the answer, and what waits for shards is bounded.
//!
//! | method and path | answer |
//! |---|---|
//! | `GET /livez` | 200 while this core turns |
//! | `GET /readyz` | 200, or 503 with the reasons: stopping, a stalled shard, an overfull bus, a link to Redis that carries nothing |
//! | `GET /metrics` | the Prometheus text format, OpenMetrics for those who ask for it |
//! | `GET /v1/stats` | figures of the node and of each shard, JSON |
//! | `GET /v1/rooms?prefix=&limit=` | rooms and their members, merged over the shards |
//! | `GET /v1/rooms/{room}?limit=` | members by shard, with the ids of some |
//! | `POST /v1/rooms/{room}/publish?kind=` | 202; the body is the message |
//! | `POST /v1/users/online?nodes=` | who of those in the body is online, on whatever node |
//! | `GET /v1/users/{id}?limit=` | the user's connections, on whatever node |
//! | `GET /v1/cluster` | the state of all nodes |
//! | `GET /v1/connections/{id}?node=` | what its shard knows of it |
//! | `DELETE /v1/connections/{id}?node=` | closes it with code 4001 |
//!
//! Everything under `/v1` wants `Authorization: Bearer KEY` when a key is set; without one it is for programs on this host,
//! not for pages of their browsers. A connection's id counts on its node only, which `node` names: others answer 409. Errors are JSON:
//! `{"error":{"code":"…","message":"what to do"}}`.
#![forbid(unsafe_code)]

mod answer;
mod cluster;
mod exchange;
mod fit;
mod json;
mod message;
mod route;
mod router;
mod users;

pub use answer::{Answer, Request};
pub use router::{Admin, Figures, Health, LinkTrouble, Node, NotPublished, Options, Outcome};
