//! What messages of a run are sent to: rooms, users, everybody.

use throng::bus::{EVERYBODY, RoomName, user_room};

/// Few, so that members collide; each with another policy towards its slow members.
pub const ROOMS: [&str; 4] = ["disconnect", "drop-oldest", "drop-newest", "latest"];

/// Few, too; all names of one length, so that identities weigh the same.
pub const USERS: [&str; 3] = ["ann", "bob", "cyd"];

/// What messages are sent to: rooms, then users, then everybody.
pub const TOPIC_COUNT: usize = ROOMS.len() + USERS.len() + 1;
pub const EVERYBODY_TOPIC: usize = TOPIC_COUNT - 1;

/// The topic of a user's messages.
pub const fn user_topic(user: usize) -> usize {
    ROOMS.len() + user
}

/// The room that a topic is to bus and shards.
pub fn topic_name(topic: usize) -> RoomName {
    if topic == EVERYBODY_TOPIC {
        EVERYBODY.into()
    } else if topic < ROOMS.len() {
        ROOMS[topic].into()
    } else {
        user_room(USERS[topic - ROOMS.len()])
    }
}

pub fn topic_index(name: &str) -> usize {
    (0..TOPIC_COUNT)
        .find(|topic| *topic_name(*topic) == *name)
        .expect("a topic of the run")
}
