//! Rooms and their channels at Redis, the hidden ones among them.

use std::borrow::Cow;

use crate::bus::{EVERYBODY, Hidden, hidden, user_room};

/// Between the prefix and a room, or a user, in a channel's name; behind the prefix in everybody's.
const ROOM_INFIX: &str = ":room:";
const USER_INFIX: &str = ":user:";
const EVERYBODY_SUFFIX: &str = ":all";

/// The channel of `room`.
pub(super) fn room_channel(prefix: &str, room: &str) -> Vec<u8> {
    let parts = match hidden(room) {
        None => [prefix, ROOM_INFIX, room],
        Some(Hidden::User(user)) => [prefix, USER_INFIX, user],
        Some(Hidden::Everybody) => [prefix, EVERYBODY_SUFFIX, ""],
    };
    parts.concat().into_bytes()
}

/// The room whose channel it is.
pub(super) fn room_of<'a>(prefix: &str, channel: &'a [u8]) -> Option<Cow<'a, str>> {
    let channel = std::str::from_utf8(channel).ok()?;
    let rest = channel.strip_prefix(prefix)?;
    if let Some(room) = rest.strip_prefix(ROOM_INFIX) {
        return hidden(room).is_none().then_some(Cow::Borrowed(room));
    }
    if let Some(user) = rest.strip_prefix(USER_INFIX) {
        return Some(Cow::Owned(user_room(user).as_ref().to_owned()));
    }
    (rest == EVERYBODY_SUFFIX).then_some(Cow::Borrowed(EVERYBODY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_leads_back_to_its_room() {
        for (room, channel) in [
            ("lobby", "p:room:lobby"),
            ("user:ann", "p:room:user:ann"),
            ("all", "p:room:all"),
            ("\u{1}ann", "p:user:ann"),
            ("\u{1}room:é", "p:user:room:é"),
            (EVERYBODY, "p:all"),
        ] {
            assert_eq!(room_channel("p", room), channel.as_bytes());
            assert_eq!(room_of("p", channel.as_bytes()).as_deref(), Some(room));
        }
    }

    #[test]
    fn other_channels_are_nobodys() {
        for channel in [
            &b"p:probe:1"[..],
            b"p:alle",
            b"q:room:lobby",
            b"p:room:\x01ann",
            b"p:room:\xff",
        ] {
            assert_eq!(room_of("p", channel), None, "{channel:?}");
        }
    }
}
