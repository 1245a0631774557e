//! What a method, a path and a query ask for.

use std::sync::Arc;

use percent_encoding::percent_decode_str;

use super::Answer;
use crate::bus::{
    ConnectionId, EVERYBODY, MessageKind, RoomName, UserName, is_user_name, user_room,
};
use crate::limits::{ROOM_NAME_BYTES_MAX, USER_ID_BYTES_MAX};
use crate::protocol::{CLOSE_REASON_BYTES_MAX, CloseReason, is_server_close_code};

/// Rooms or members in one answer, when the query does not say.
const LIMIT_DEFAULT: u32 = 100;
/// Rooms or members in one answer at most.
const LIMIT_MAX: u32 = 1_000;

/// The close code of a user's connections, when the query does not say: that of `disconnected`.
const DISCONNECT_CODE: u16 = match CloseReason::Disconnected.code() {
    Some(code) => code,
    None => panic!("who is disconnected is told why"),
};

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    Live,
    Ready,
    Metrics,
    Stats,
    Rooms {
        prefix: String,
        count_max: u32,
    },
    Room {
        room: RoomName,
        member_count_max: u32,
    },
    /// Into a room, to a user (its hidden room) or to everybody.
    Publish {
        room: RoomName,
        kind: Option<MessageKind>,
    },
    /// The users are in the body.
    Online {
        with_nodes: bool,
    },
    User {
        user: UserName,
        connection_count_max: u32,
    },
    Cluster,
    /// Close all connections of a user.
    DisconnectUser {
        /// The user's hidden room.
        room: RoomName,
        code: u16,
        reason: String,
        reconnect: bool,
    },
    Connection {
        id: ConnectionId,
        /// The node whose connection it is, if the query says.
        node: Option<String>,
    },
    Disconnect {
        id: ConnectionId,
        node: Option<String>,
    },
}

/// Finds out what is asked for.
///
/// # Errors
/// The answer: 404 (no such path), 405 (not this method), 400 (a name, an id or a parameter is not what it may be).
pub fn route(method: &str, path: &str, query: &str) -> Result<Route, Answer> {
    let segments: Vec<&str> = path.strip_prefix('/').unwrap_or(path).split('/').collect();
    match *segments.as_slice() {
        ["livez"] => get(method)
            .and_then(|()| no_parameters(query))
            .map(|()| Route::Live),
        ["readyz"] => get(method)
            .and_then(|()| no_parameters(query))
            .map(|()| Route::Ready),
        // Scrapers may add parameters of their own.
        ["metrics"] => get(method).map(|()| Route::Metrics),
        ["v1", "stats"] => get(method)
            .and_then(|()| no_parameters(query))
            .map(|()| Route::Stats),
        ["v1", "rooms"] => get(method).and_then(|()| route_rooms(query)),
        ["v1", "rooms", room] => get(method).and_then(|()| route_room(room, query)),
        ["v1", "rooms", room, "publish"] => match method {
            "POST" => route_publish(room_name(room)?, query),
            _ => Err(Answer::method_not_allowed("POST")),
        },
        ["v1", "users", user, "send"] => match method {
            "POST" => route_publish(user_room(&user_name(user)?), query),
            _ => Err(Answer::method_not_allowed("POST")),
        },
        ["v1", "broadcast"] => match method {
            "POST" => route_publish(EVERYBODY.into(), query),
            _ => Err(Answer::method_not_allowed("POST")),
        },
        ["v1", "users", "online"] if method == "POST" => route_online(query),
        ["v1", "users", user] => match method {
            "GET" => route_user(user, query),
            "DELETE" => route_disconnect_user(user, query),
            _ => Err(Answer::method_not_allowed("GET, HEAD, DELETE")),
        },
        ["v1", "cluster"] => get(method)
            .and_then(|()| no_parameters(query))
            .map(|()| Route::Cluster),
        ["v1", "connections", id] => match method {
            "GET" => connection(id, query).map(|(id, node)| Route::Connection { id, node }),
            "DELETE" => connection(id, query).map(|(id, node)| Route::Disconnect { id, node }),
            _ => Err(Answer::method_not_allowed("GET, HEAD, DELETE")),
        },
        _ => Err(Answer::error(
            404,
            "not_found",
            "there are /livez, /readyz, /metrics, /v1/stats, /v1/rooms, /v1/rooms/{room}, /v1/rooms/{room}/publish, \
             /v1/users/online, /v1/users/{user}, /v1/users/{user}/send, /v1/broadcast, /v1/cluster and \
             /v1/connections/{id}",
        )),
    }
}

fn get(method: &str) -> Result<(), Answer> {
    if method == "GET" {
        Ok(())
    } else {
        Err(Answer::method_not_allowed("GET, HEAD"))
    }
}

fn route_rooms(query: &str) -> Result<Route, Answer> {
    let [prefix, limit] = parameters(query, ["prefix", "limit"])?;
    Ok(Route::Rooms {
        prefix: prefix.unwrap_or_default(),
        count_max: limit_of(limit, 1)?,
    })
}

fn route_room(room: &str, query: &str) -> Result<Route, Answer> {
    let [limit] = parameters(query, ["limit"])?;
    Ok(Route::Room {
        room: room_name(room)?,
        member_count_max: limit_of(limit, 0)?,
    })
}

fn route_publish(room: RoomName, query: &str) -> Result<Route, Answer> {
    let [kind] = parameters(query, ["kind"])?;
    let kind = match kind.as_deref() {
        None => None,
        Some("text") => Some(MessageKind::Text),
        Some("binary") => Some(MessageKind::Binary),
        Some(_) => {
            return Err(Answer::error(
                400,
                "query_invalid",
                "`kind` is `text` or `binary`",
            ));
        }
    };
    Ok(Route::Publish { room, kind })
}

fn route_disconnect_user(user: &str, query: &str) -> Result<Route, Answer> {
    let room = user_room(&user_name(user)?);
    let [code, reason, reconnect] = parameters(query, ["code", "reason", "reconnect"])?;
    let invalid = |message: &str| Answer::error(400, "query_invalid", message);
    let code = match code.as_deref().map(str::parse) {
        None => DISCONNECT_CODE,
        Some(Ok(code)) if is_server_close_code(code) => code,
        Some(_) => {
            return Err(invalid(
                "`code` is a close code that a server may send: 1000-1003, 1007-1009, 1011-1013 or 3000-4999",
            ));
        }
    };
    let reason = reason.unwrap_or_else(|| CloseReason::Disconnected.label().to_owned());
    if reason.len() > CLOSE_REASON_BYTES_MAX {
        let message = format!("`reason` has at most {CLOSE_REASON_BYTES_MAX} bytes of UTF-8");
        return Err(invalid(&message));
    }
    let reconnect = match reconnect.as_deref() {
        None | Some("0") => false,
        Some("1") => true,
        Some(_) => return Err(invalid("`reconnect` is 0 or 1")),
    };
    Ok(Route::DisconnectUser {
        room,
        code,
        reason,
        reconnect,
    })
}

fn route_online(query: &str) -> Result<Route, Answer> {
    let [nodes] = parameters(query, ["nodes"])?;
    let with_nodes = match nodes.as_deref() {
        None | Some("0") => false,
        Some("1") => true,
        Some(_) => return Err(Answer::error(400, "query_invalid", "`nodes` is 0 or 1")),
    };
    Ok(Route::Online { with_nodes })
}

fn route_user(user: &str, query: &str) -> Result<Route, Answer> {
    let [limit] = parameters(query, ["limit"])?;
    Ok(Route::User {
        user: user_name(user)?.into(),
        connection_count_max: limit_of(limit, 1)?,
    })
}

/// A connection's id, and the node on which it counts.
fn connection(id: &str, query: &str) -> Result<(ConnectionId, Option<String>), Answer> {
    let [node] = parameters(query, ["node"])?;
    let id = ConnectionId::parse(id).ok_or_else(|| {
        Answer::error(
            400,
            "id_invalid",
            "a connection's id has 16 hexadecimal digits, as /v1/rooms/{room} shows them",
        )
    })?;
    Ok((id, node))
}

/// The rules of the client port hold: [`RoomName`].
fn room_name(segment: &str) -> Result<RoomName, Answer> {
    let name = decoded(segment).ok_or_else(|| {
        Answer::error(
            400,
            "room_invalid",
            "a room's name in a path is percent-encoded UTF-8; write `%` as %25",
        )
    })?;
    if name.is_empty() || name.len() > ROOM_NAME_BYTES_MAX || name.chars().any(char::is_control) {
        let message =
            format!("a room's name has 1 to {ROOM_NAME_BYTES_MAX} bytes and no control characters");
        return Err(Answer::error(400, "room_invalid", &message));
    }
    Ok(Arc::from(name))
}

/// The rules of the client port hold: [`crate::bus::UserName`].
fn user_name(segment: &str) -> Result<String, Answer> {
    let invalid = |message: &str| Answer::error(400, "user_invalid", message);
    let name = decoded(segment).ok_or_else(|| {
        invalid("a user's id in a path is percent-encoded UTF-8; write `%` as %25")
    })?;
    if is_user_name(&name) {
        Ok(name)
    } else {
        let message =
            format!("a user's id has 1 to {USER_ID_BYTES_MAX} bytes and no control characters");
        Err(invalid(&message))
    }
}

fn limit_of(limit: Option<String>, least: u32) -> Result<u32, Answer> {
    let Some(limit) = limit else {
        return Ok(LIMIT_DEFAULT);
    };
    match limit.parse::<u32>() {
        Ok(limit) if (least..=LIMIT_MAX).contains(&limit) => Ok(limit),
        _ => {
            let message = format!("`limit` is a number from {least} to {LIMIT_MAX}");
            Err(Answer::error(400, "query_invalid", &message))
        }
    }
}

fn no_parameters(query: &str) -> Result<(), Answer> {
    parameters(query, []).map(|[]| ())
}

/// The values of the parameters that this path takes, decoded; `+` is a space (as HTML forms write it).
fn parameters<const N: usize>(
    query: &str,
    known: [&str; N],
) -> Result<[Option<String>; N], Answer> {
    let invalid = |message: String| Answer::error(400, "query_invalid", &message);
    let mut values = [const { None }; N];
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some(index) = known.iter().position(|known| *known == key) else {
            let takes = if known.is_empty() {
                "no parameters".into()
            } else {
                format!("`{}`", known.join("`, `"))
            };
            return Err(invalid(format!("this path takes {takes}")));
        };
        let value = decoded(&value.replace('+', " ")).ok_or_else(|| {
            invalid(format!(
                "`{key}` is percent-encoded UTF-8; write `%` as %25"
            ))
        })?;
        if values[index].replace(value).is_some() {
            return Err(invalid(format!("`{key}` stands twice")));
        }
    }
    Ok(values)
}

/// `None` for a `%` without two hexadecimal digits, and for what is not UTF-8.
fn decoded(text: &str) -> Option<String> {
    let escapes_are_whole = text
        .split('%')
        .skip(1)
        .all(|rest| rest.len() >= 2 && rest.as_bytes()[..2].iter().all(u8::is_ascii_hexdigit));
    if !escapes_are_whole {
        return None;
    }
    percent_decode_str(text)
        .decode_utf8()
        .ok()
        .map(std::borrow::Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn status(method: &str, path: &str, query: &str) -> u16 {
        route(method, path, query).expect_err("an error").status
    }

    #[test]
    fn paths_lead_where_they_say() {
        let id = ConnectionId::parse("00000a0000000001").unwrap();
        for (method, path, query, expected) in [
            ("GET", "/livez", "", Route::Live),
            ("GET", "/readyz", "", Route::Ready),
            ("GET", "/metrics", "name[]=x", Route::Metrics),
            ("GET", "/v1/stats", "", Route::Stats),
            (
                "GET",
                "/v1/rooms",
                "",
                Route::Rooms {
                    prefix: String::new(),
                    count_max: 100,
                },
            ),
            (
                "GET",
                "/v1/rooms",
                "limit=7&prefix=a+b%3A",
                Route::Rooms {
                    prefix: "a b:".into(),
                    count_max: 7,
                },
            ),
            (
                "GET",
                "/v1/rooms/publish",
                "",
                Route::Room {
                    room: "publish".into(),
                    member_count_max: 100,
                },
            ),
            (
                "GET",
                "/v1/rooms/a%2Fb+c",
                "limit=0",
                Route::Room {
                    room: "a/b+c".into(),
                    member_count_max: 0,
                },
            ),
            (
                "POST",
                "/v1/rooms/%C3%A9/publish",
                "",
                Route::Publish {
                    room: "é".into(),
                    kind: None,
                },
            ),
            (
                "POST",
                "/v1/rooms/r/publish",
                "kind=binary",
                Route::Publish {
                    room: "r".into(),
                    kind: Some(MessageKind::Binary),
                },
            ),
            (
                "POST",
                "/v1/users/room%2Fa/send",
                "kind=text",
                Route::Publish {
                    room: "\u{1}room/a".into(),
                    kind: Some(MessageKind::Text),
                },
            ),
            (
                "POST",
                "/v1/broadcast",
                "",
                Route::Publish {
                    room: "\u{2}".into(),
                    kind: None,
                },
            ),
            (
                "DELETE",
                "/v1/users/send",
                "",
                Route::DisconnectUser {
                    room: "\u{1}send".into(),
                    code: 4001,
                    reason: "disconnected".into(),
                    reconnect: false,
                },
            ),
            (
                "DELETE",
                "/v1/users/ann",
                "code=1008&reason=not+now&reconnect=1",
                Route::DisconnectUser {
                    room: "\u{1}ann".into(),
                    code: 1008,
                    reason: "not now".into(),
                    reconnect: true,
                },
            ),
            (
                "GET",
                "/v1/connections/00000a0000000001",
                "",
                Route::Connection { id, node: None },
            ),
            (
                "DELETE",
                "/v1/connections/00000A0000000001",
                "",
                Route::Disconnect { id, node: None },
            ),
            (
                "DELETE",
                "/v1/connections/00000a0000000001",
                "node=web%201",
                Route::Disconnect {
                    id,
                    node: Some("web 1".into()),
                },
            ),
        ] {
            assert_eq!(
                route(method, path, query),
                Ok(expected),
                "{method} {path}?{query}"
            );
        }
    }

    #[test]
    fn other_paths_and_methods_are_refused_with_what_is_allowed() {
        for path in [
            "/",
            "",
            "/v1",
            "/v1/rooms/a/b",
            "/livez/",
            "/v2/stats",
            "/v1/rooms/a/publish/b",
        ] {
            assert_eq!(status("GET", path, ""), 404, "{path}");
        }
        for (method, path, allow) in [
            ("POST", "/livez", "GET, HEAD"),
            ("DELETE", "/v1/rooms/a", "GET, HEAD"),
            ("GET", "/v1/rooms/a/publish", "POST"),
            ("GET", "/v1/users/a/send", "POST"),
            ("GET", "/v1/broadcast", "POST"),
            ("POST", "/v1/users/a", "GET, HEAD, DELETE"),
            (
                "POST",
                "/v1/connections/00000a0000000001",
                "GET, HEAD, DELETE",
            ),
        ] {
            let answer = route(method, path, "").unwrap_err();
            assert_eq!(answer.status, 405);
            assert_eq!(answer.headers, [("Allow", allow.to_owned())]);
        }
    }

    #[test]
    fn names_ids_and_parameters_are_checked_at_both_ends_of_their_limits() {
        let longest = "r".repeat(ROOM_NAME_BYTES_MAX);
        assert!(route("GET", &format!("/v1/rooms/{longest}"), "").is_ok());
        assert_eq!(status("GET", &format!("/v1/rooms/{longest}r"), ""), 400);
        for room in ["", "%", "%4", "%zz", "%ff", "a%00", "a%0A", "%C2%85"] {
            assert_eq!(
                status("GET", &format!("/v1/rooms/{room}"), ""),
                400,
                "{room}"
            );
            assert_eq!(
                status("POST", &format!("/v1/rooms/{room}/publish"), ""),
                400,
                "{room}"
            );
        }
        for query in [
            "limit=0",
            "limit=1001",
            "limit=",
            "limit=-1",
            "limit=x",
            "limit=1&limit=2",
            "room=a",
            "prefix=%f",
        ] {
            assert_eq!(status("GET", "/v1/rooms", query), 400, "{query}");
        }
        assert!(route("GET", "/v1/rooms", "limit=1000").is_ok());
        assert_eq!(status("POST", "/v1/rooms/a/publish", "kind=json"), 400);
        assert_eq!(status("GET", "/livez", "x=1"), 400);
        let longest = "u".repeat(USER_ID_BYTES_MAX);
        assert!(route("POST", &format!("/v1/users/{longest}/send"), "").is_ok());
        for user in ["", "%", "%ff", "a%00", "%C2%85", &format!("{longest}u")] {
            assert_eq!(
                status("POST", &format!("/v1/users/{user}/send"), ""),
                400,
                "{user}"
            );
            assert_eq!(
                status("DELETE", &format!("/v1/users/{user}"), ""),
                400,
                "{user}"
            );
        }
        let long_reason = format!("reason={}", "r".repeat(CLOSE_REASON_BYTES_MAX + 1));
        for query in [
            "code=1005",
            "code=1010",
            "code=x",
            "code=",
            "code=65537",
            "reconnect=true",
            "room=a",
            &long_reason,
        ] {
            assert_eq!(status("DELETE", "/v1/users/a", query), 400, "{query}");
        }
        assert!(
            route(
                "DELETE",
                "/v1/users/a",
                &long_reason[..long_reason.len() - 1]
            )
            .is_ok()
        );
        for id in ["1", "00000a000000000g", "00000a00000000010"] {
            assert_eq!(
                status("DELETE", &format!("/v1/connections/{id}"), ""),
                400,
                "{id}"
            );
        }
    }

    proptest! {
        #[test]
        fn nothing_that_is_sent_makes_it_panic(method in "[A-Z]{0,4}", path in "/?(v1/)?(rooms/)?.{0,20}", query in ".{0,20}") {
            let _ = route(&method, &path, &query);
        }
    }
}
