//! What must be true of a run, whatever has happened in it.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::client::{Heard, MessageId};
use crate::topic::{ROOMS, TOPIC_COUNT, topic_name};
use crate::world::World;

/// Who was told what, once nothing is on its way any more: nobody is left without a message or a notice.
pub fn check_deliveries(world: &World) {
    let heard_by_somebody: HashSet<MessageId> = world
        .clients
        .iter()
        .flat_map(|client| client.heard_ids.iter().copied())
        .collect();
    let live: BTreeMap<_, _> = world.live().collect();
    for (&index, client) in &live {
        let joined_at = client.joined_at.expect("it is in");
        let (mut owed, mut possible) = (0, 0);
        for (id, message) in (0..).zip(&world.messages) {
            let is_own = message.sender == Some(index);
            if !client.hears(message.topic)
                || client.heard_ids.contains(&id)
                || is_own && !client.echo
            {
                continue;
            }
            possible += 1;
            let was_taken = message.sender.is_none_or(|sender| {
                live.contains_key(&sender) || world.clients[sender].closed_well
            }) || heard_by_somebody.contains(&id);
            // What a hidden room had that this shard could not follow is missing for who was told so behind it.
            let was_told = is_hidden(message.topic)
                && client.told_unknown_at.is_some_and(|at| message.event <= at);
            owed += u32::from(message.event > joined_at && was_taken && !was_told);
        }
        if client.notices {
            assert!(
                owed <= client.gaps_told,
                "client {index} misses {owed} messages, and was told of {}",
                client.gaps_told
            );
        }
        assert!(
            client.gaps_told <= possible,
            "client {index} was told of {} messages, and misses {possible}",
            client.gaps_told
        );
        assert!(
            client.pongs_heard <= client.pongs_due,
            "client {index} got pongs that it did not ask for"
        );
    }
    let told: u64 = world.clients.iter().map(|c| u64::from(c.gaps_told)).sum();
    let dropped: u64 = world
        .shards
        .iter()
        .flat_map(|shard| shard.counters().dropped)
        .sum();
    assert!(told <= dropped, "told of {told}, counted {dropped}");
}

const fn is_hidden(topic: usize) -> bool {
    topic >= ROOMS.len()
}

/// Nobody gets what was old on its shard before it asked to be let in.
pub fn check_nothing_old(world: &World) {
    for (index, client) in world.clients.iter().enumerate() {
        for (topic, old_count) in client.old_counts.iter().enumerate() {
            let Some(seen) = world.seen.get(&(client.shard, topic)) else {
                continue;
            };
            for id in &seen.order[..*old_count] {
                assert!(
                    !client.heard_ids.contains(id),
                    "client {index} got message {id}, which is older than its request"
                );
            }
        }
    }
}

/// All who hear a room, a user's messages or broadcasts, on all shards, agree on one order; and nobody hears what is not for it.
pub fn check_one_order(world: &World) {
    for client in &world.clients {
        for id in &client.heard_ids {
            let topic = world.messages[*id as usize].topic;
            assert!(client.hears(topic), "what was for {:?}", topic_name(topic));
        }
    }
    for topic in 0..TOPIC_COUNT {
        let mut next: BTreeMap<MessageId, BTreeSet<MessageId>> = BTreeMap::new();
        for client in &world.clients {
            let messages: Vec<_> = client
                .heard
                .iter()
                .filter_map(|heard| match *heard {
                    Heard::Message(id) => Some(id),
                    Heard::Gap(_) | Heard::Unknown => None,
                })
                .filter(|id| world.messages[*id as usize].topic == topic)
                .collect();
            for id in &messages {
                next.entry(*id).or_default();
            }
            for pair in messages.windows(2) {
                next.entry(pair[0]).or_default().insert(pair[1]);
            }
        }
        // One order exists if and only if "heard right before" has no circle.
        let mut before: BTreeMap<MessageId, usize> = next.keys().map(|id| (*id, 0)).collect();
        for id in next.values().flatten() {
            *before.get_mut(id).expect("everything heard is a node") += 1;
        }
        let mut ready: Vec<_> = before
            .iter()
            .filter_map(|(id, count)| (*count == 0).then_some(*id))
            .collect();
        let mut ordered_count = 0;
        while let Some(id) = ready.pop() {
            ordered_count += 1;
            for behind in &next[&id] {
                let count = before.get_mut(behind).expect("a node");
                *count -= 1;
                if *count == 0 {
                    ready.push(*behind);
                }
            }
        }
        assert_eq!(
            ordered_count,
            next.len(),
            "members disagree on the order of {:?}",
            topic_name(topic)
        );
    }
    check_senders_order(world);
}

/// What one sender publishes stays in its order.
fn check_senders_order(world: &World) {
    for client in &world.clients {
        let mut last: BTreeMap<Option<usize>, MessageId> = BTreeMap::new();
        for heard in &client.heard {
            let Heard::Message(id) = *heard else { continue };
            let sender = world.messages[id as usize].sender;
            let before = last.insert(sender, id);
            assert!(
                sender.is_none() || before.is_none_or(|before| before < id),
                "a sender's messages changed places"
            );
        }
    }
}
