//! Hidden rooms: whom messages reach that are meant for a user, or for everybody, whatever room they are in.
//!
//! A hidden room is a room to bus and backplane: interest, order, sequences and gaps are those of any other. No client can
//! name one, since names of rooms have no control characters, and no list shows one.
//!
//! ```text
//! U+0001 USER    all connections of the user, beside their rooms        Redis: PREFIX:user:USER
//! U+0002         everybody; every shard follows it while it runs        Redis: PREFIX:all
//! ```

use super::RoomName;
use crate::limits::{ROOM_NAME_BYTES_MAX, USER_ID_BYTES_MAX};

const USER_MARK: char = '\u{1}';
const _: () = assert!(USER_ID_BYTES_MAX < ROOM_NAME_BYTES_MAX);

/// The name of everybody's room.
pub const EVERYBODY: &str = "\u{2}";

/// Whom a hidden room reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hidden<'a> {
    /// The connections of this user.
    User(&'a str),
    /// Everybody.
    Everybody,
}

/// Whom `room` reaches, if it is a hidden room; `None`: the members of a room that a client has named.
#[must_use]
pub fn hidden(room: &str) -> Option<Hidden<'_>> {
    if room == EVERYBODY {
        return Some(Hidden::Everybody);
    }
    room.strip_prefix(USER_MARK).map(Hidden::User)
}

/// The name of the user's hidden room.
#[must_use]
pub fn user_room(user: &str) -> RoomName {
    let mut name = String::with_capacity(USER_MARK.len_utf8() + user.len());
    name.push(USER_MARK);
    name.push_str(user);
    name.into()
}

/// Whether `text` may be a user's id ([`super::UserName`]).
#[must_use]
pub fn is_user_name(text: &str) -> bool {
    (1..=USER_ID_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_rooms_are_told_from_others_and_from_each_other() {
        assert_eq!(hidden(&user_room("ann")), Some(Hidden::User("ann")));
        assert_eq!(hidden(EVERYBODY), Some(Hidden::Everybody));
        for room in ["ann", "all", "user:ann", " "] {
            assert_eq!(hidden(room), None, "{room}");
        }
    }

    #[test]
    fn a_users_id_is_judged_at_both_ends_of_its_limits() {
        let longest = "u".repeat(USER_ID_BYTES_MAX);
        for (text, may_be) in [
            ("a", true),
            (&*longest, true),
            ("Zoë / 7", true),
            ("", false),
            (&*(longest.clone() + "u"), false),
            ("a\u{1}", false),
            ("a\u{85}", false),
        ] {
            assert_eq!(is_user_name(text), may_be, "{text:?}");
        }
    }
}
