//! Questions about users: their bodies, and their answers from the registry or from this node's shards.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::Answer;
use crate::bus::{
    ClusterReply, OnlineUser, PresenceNote, UserConnection, UserInfo, UserName, is_user_name,
};
use crate::limits::USER_ID_BYTES_MAX;

/// Users in one question.
const USERS_MAX: usize = 1_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    users: Vec<String>,
}

/// Who is asked about, in the order of the body.
///
/// # Errors
/// The answer: 400 for a body that is not `{"users":[…]}` with at most 1,000 ids of users.
pub fn asked(body: &[u8]) -> Result<Vec<UserName>, Answer> {
    let invalid = |message: String| Answer::error(400, "body_invalid", &message);
    let asked: Asked = serde_json::from_slice(body).map_err(|error| {
        invalid(format!(
            "the body is {{\"users\":[\"id\", …]}} with {USERS_MAX} users at most: {error}"
        ))
    })?;
    let count = asked.users.len();
    if count > USERS_MAX {
        let message = format!("{count} users are too many: ask for {USERS_MAX} at a time");
        return Err(invalid(message));
    }
    if let Some(index) = asked.users.iter().position(|user| !is_user_name(user)) {
        let message = format!(
            "users[{index}] is no user's id: those have 1 to {USER_ID_BYTES_MAX} bytes and no control characters"
        );
        return Err(Answer::error(400, "user_invalid", &message));
    }
    Ok(asked.users.into_iter().map(Arc::from).collect())
}

/// What the shards have said of users so far, in the order of the question.
#[derive(Debug)]
pub struct Tally {
    of: Vec<(UserName, u64, Vec<PresenceNote>)>,
}

impl Tally {
    pub fn new(users: &[UserName]) -> Self {
        let none = |user: &UserName| (user.clone(), 0, Vec::new());
        let of = users.iter().map(none).collect();
        Self { of }
    }

    /// Adds what one shard has said.
    pub fn add(&mut self, infos: Vec<UserInfo>) {
        for ((_, count, connections), info) in self.of.iter_mut().zip(infos) {
            *count += u64::from(info.connection_count);
            connections.extend(info.connections);
        }
    }

    /// The same as the registry would say it, of this node alone.
    pub fn online(&self, node: &str, with_nodes: bool) -> Vec<OnlineUser> {
        let one = |(user, count, _): &(UserName, u64, _)| OnlineUser {
            user: user.clone(),
            connection_count: *count,
            nodes: match with_nodes && *count > 0 {
                true => vec![node.to_owned()],
                false => Vec::new(),
            },
        };
        self.of.iter().map(one).collect()
    }

    /// The first user's connections.
    pub fn connections(&self, node: &str) -> (u64, Vec<UserConnection>) {
        let Some((_, count, notes)) = self.of.first() else {
            return (0, Vec::new());
        };
        let one = |note: &PresenceNote| UserConnection {
            id: note.id,
            node: node.to_owned(),
            room: note.room.to_string(),
            since_ms_ago: note.since_ms_ago,
            heard_ms_ago: note.heard_ms_ago,
        };
        (*count, notes.iter().map(one).collect())
    }
}

/// `POST /v1/users/online`. `scope`: `cluster`, or `node` where this node alone was asked.
pub fn online(scope: &str, users: &[OnlineUser], with_nodes: bool, stalled: &[u8]) -> Answer {
    let one = |of: &OnlineUser| {
        let mut value = json!({
            "user": *of.user,
            "online": of.connection_count > 0,
            "connections": of.connection_count,
        });
        if with_nodes {
            value["nodes"] = json!(of.nodes);
        }
        value
    };
    let users: Vec<Value> = users.iter().map(one).collect();
    let answer = json!({ "scope": scope, "users": users, "stalled_shards": stalled });
    Answer::json(200, &answer)
}

/// `GET /v1/users/{id}`.
pub fn user(
    scope: &str,
    user: &str,
    connection_count: u64,
    connections: &[UserConnection],
    stalled: &[u8],
) -> Answer {
    let one = |of: &UserConnection| {
        json!({
            "id": of.id.to_string(),
            "node": of.node,
            "room": of.room,
            "opened_ms_ago": of.since_ms_ago,
            "heard_ms_ago": of.heard_ms_ago,
        })
    };
    let list: Vec<Value> = connections.iter().map(one).collect();
    let answer = json!({
        "scope": scope,
        "user": user,
        "online": connection_count > 0,
        "connection_count": connection_count,
        "connections": list,
        "truncated": (list.len() as u64) < connection_count,
        "stalled_shards": stalled,
    });
    Answer::json(200, &answer)
}

/// 503: nobody knows, which is not the same as offline.
pub fn away(reply: Option<&ClusterReply>) -> Answer {
    let reason = match reply {
        Some(ClusterReply::Away(reason)) => reason,
        _ => "it does not answer in time",
    };
    let message = format!("who is connected where is at Redis, which cannot be asked: {reason}");
    Answer::busy("backplane_lost", &message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: &str) -> String {
        let answer = asked(body.as_bytes()).unwrap_err();
        assert_eq!(answer.status, 400);
        String::from_utf8(answer.body).unwrap()
    }

    #[test]
    fn users_are_read_in_their_order_up_to_a_thousand() {
        let users = asked(br#"{"users":["b","a","b"]}"#).unwrap();
        assert_eq!(
            users.iter().map(|user| &**user).collect::<Vec<_>>(),
            ["b", "a", "b"]
        );
        assert!(asked(br#"{"users":[]}"#).unwrap().is_empty());
        let many = |count: usize| json!({ "users": vec!["u"; count] }).to_string();
        assert_eq!(asked(many(1_000).as_bytes()).unwrap().len(), 1_000);
        assert!(message(&many(1_001)).contains("1001 users are too many"));
    }

    #[test]
    fn a_body_that_is_something_else_is_refused_with_what_it_should_be() {
        for body in [
            "",
            "[]",
            "{}",
            r#"{"users":"a"}"#,
            r#"{"users":[1]}"#,
            r#"{"users":[],"x":1}"#,
        ] {
            assert!(message(body).contains("the body is"), "{body}");
        }
        assert!(message(r#"{"users":["a",""]}"#).contains("users[1] is no user's id"));
        let long = json!({ "users": ["u".repeat(USER_ID_BYTES_MAX + 1)] });
        assert!(message(&long.to_string()).contains("users[0]"));
    }
}
