//! Asks nodes for the cluster, one after another until one knows, and says in words why none does.

use std::io::{self, ErrorKind};
use std::time::Duration;

use serde_json::Value;

use super::cluster::{Cluster, error_message};
use super::http::{self, Reply, Target};
use super::state::Answer;
use crate::runtime::fetch;

const PATH: &str = "/v1/cluster";
/// For one node: looking its name up, connecting, and its whole answer.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes of an answer at most: some ten thousand nodes.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// Who may be asked, and with what.
#[derive(Debug)]
pub(super) struct Asker {
    /// At least one; the one that answered last stands first.
    pub(super) targets: Vec<Target>,
    pub(super) key: Option<Key>,
}

/// The bearer key.
pub(super) struct Key {
    pub(super) text: String,
    /// Where it came from, in words.
    pub(super) place: String,
}

/// All but the key itself.
impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl Asker {
    /// The answer, and the JSON that it was made from.
    ///
    /// A node that has lost its Redis knows of itself alone: its answer is taken when nobody has a better one.
    ///
    /// # Errors
    /// Why nobody answers: a line for each that was asked.
    pub(super) fn ask(&mut self) -> Result<(Answer, Value), Vec<String>> {
        let mut reasons = Vec::new();
        let mut alone = None;
        for index in 0..self.targets.len() {
            let target = &self.targets[index];
            match self.ask_one(target) {
                Ok((cluster, value)) => {
                    let is_alone = cluster.problem.is_some();
                    let source = target.to_string();
                    let answer = (Answer { source, cluster }, value);
                    if !is_alone {
                        self.targets[..=index].rotate_right(1);
                        return Ok(answer);
                    }
                    alone.get_or_insert(answer);
                }
                Err(reason) => reasons.push(format!("{target}: {reason}")),
            }
        }
        alone.ok_or(reasons)
    }

    fn ask_one(&self, target: &Target) -> Result<(Cluster, Value), String> {
        let key = self.key.as_ref();
        let request = target.request(PATH, key.map(|key| key.text.as_str()));
        let reply = fetch::exchange(
            &target.host,
            target.port,
            &request,
            ANSWER_BYTES_MAX,
            TIMEOUT,
            http::read,
        );
        understand(&reply.map_err(|error| in_words(&error))?, key)
    }
}

/// What an answer says, or why it says nothing.
fn understand(reply: &Reply, key: Option<&Key>) -> Result<(Cluster, Value), String> {
    let value: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    if matches!(reply.status, 200 | 503)
        && let Some(cluster) = Cluster::read(&value)
    {
        return Ok((cluster, value));
    }
    let status = reply.status;
    Err(match (status, error_message(&value), key) {
        (401, _, None) => {
            "it wants the admin key: set THRONG_ADMIN_KEY, or give --key-file FILE".into()
        }
        (401, _, Some(key)) => format!("the key from {} is not the one that it wants", key.place),
        (404, Some(_), _) => {
            format!("it is a Throng that has no {PATH}: an older version, or not its admin port")
        }
        (_, Some(message), _) => format!("{status}: {message}"),
        (_, None, _) => format!("it answers {status}, but not as the admin listener of a Throng"),
    })
}

fn in_words(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => "connection refused: nothing listens there".into(),
        ErrorKind::TimedOut => format!("no answer within {} s", TIMEOUT.as_secs()),
        ErrorKind::UnexpectedEof => "the answer ended too early".into(),
        ErrorKind::InvalidData => {
            format!("{error}; it is not the admin listener of a Throng")
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(status: u16, body: &str, key: Option<&Key>) -> String {
        let reply = Reply {
            status,
            body: body.into(),
        };
        understand(&reply, key).unwrap_err()
    }

    #[test]
    fn a_refusal_says_which_key_it_is_about() {
        let body = r#"{"error":{"code":"unauthorized","message":"give the key"}}"#;
        assert!(why(401, body, None).contains("THRONG_ADMIN_KEY"));
        let key = Key {
            text: "not-to-be-told".into(),
            place: "THRONG_ADMIN_KEY_FILE".into(),
        };
        let told = why(401, body, Some(&key));
        assert!(told.contains("THRONG_ADMIN_KEY_FILE"), "{told}");
        assert!(!format!("{told}{key:?}").contains("not-to-be-told"));
    }

    #[test]
    fn others_are_told_from_a_throng_that_cannot_answer() {
        assert!(why(200, "<html>hello</html>", None).contains("not as the admin"));
        assert!(why(200, r#"{"status":"ok"}"#, None).contains("not as the admin"));
        assert!(why(404, "not found", None).contains("not as the admin"));
        let error = r#"{"error":{"code":"x","message":"no \u001b[2Jsuch"}}"#;
        assert!(why(404, error, None).contains("older"));
        assert_eq!(why(504, error, None), r"504: no \u{1b}[2Jsuch");
    }

    #[test]
    fn a_node_without_its_redis_still_answers_for_itself() {
        let body = r#"{"node":"a","redis":true,"nodes":[],"error":{"message":"away"}}"#;
        let reply = Reply {
            status: 503,
            body: body.into(),
        };
        let (cluster, _) = understand(&reply, None).unwrap();
        assert_eq!(cluster.problem.as_deref(), Some("away"));
    }
}
