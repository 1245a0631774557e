//! The desk between the admin listener's connections and the backplane core's loop, both on one core.
//!
//! ```text
//! connection: handler ──request──▶ desk ──turn()──▶ Admin ──ask, publish──▶ the loop's backplane and lanes
//!                 ◀────answer───── PendingAnswers ◀──────── poll_answer ◀── handle_reply
//! ```
//! The loop stays the only owner of the backplane and of the lanes: a handler leaves its request, wakes the loop, and
//! waits. A connection has one request at a time, so the listener's bound on connections bounds the desk.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use super::http::{Handler, PendingAnswers};
use crate::admin::{Admin, Node, Outcome, Request};
use crate::bus::{CoreId, Reply};
use crate::time::Tick;

/// Where handlers leave requests. The number of a request here is its ticket.
struct Desk {
    requests: RefCell<VecDeque<(u64, Request)>>,
    answers: Rc<PendingAnswers>,
    ticket_next: Cell<u64>,
    wake: Box<dyn Fn()>,
}

/// The loop's side of the desk.
pub struct AdminDesk {
    admin: Admin,
    desk: Rc<Desk>,
    /// By exchange: the ticket that waits for it. As many as the admin API lets wait.
    tickets: HashMap<u64, u64>,
}

impl AdminDesk {
    /// A desk without requests. `wake` makes the loop take its next turn soon.
    #[must_use]
    pub fn new(admin: Admin, wake: impl Fn() + 'static) -> Self {
        let desk = Desk {
            requests: RefCell::default(),
            answers: PendingAnswers::new(),
            ticket_next: Cell::new(1),
            wake: Box::new(wake),
        };
        Self {
            admin,
            desk: Rc::new(desk),
            tickets: HashMap::new(),
        }
    }

    /// What [`super::http::serve`] calls.
    #[must_use]
    pub fn handler(&self) -> Handler {
        let desk = Rc::clone(&self.desk);
        Rc::new(move |request| {
            let ticket = desk.ticket_next.replace(desk.ticket_next.get() + 1);
            desk.requests.borrow_mut().push_back((ticket, request));
            (desk.wake)();
            Box::pin(desk.answers.wait(ticket))
        })
    }

    /// Whether no request waits for the loop's turn; else it may not sleep.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.desk.requests.borrow().is_empty()
    }

    /// When the next [`Self::turn`] is due even without a request or a reply.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Tick> {
        self.admin.next_deadline()
    }

    /// Takes the requests that have come, and gives out the answers that are there. Once a turn of the loop, after the
    /// replies of this turn.
    pub fn turn(&mut self, node: &mut impl Node, now: Tick) {
        loop {
            let Some((ticket, request)) = self.desk.requests.borrow_mut().pop_front() else {
                break;
            };
            match self.admin.handle_request(&request, node, now) {
                Outcome::Answer(answer) => self.desk.answers.complete(ticket, answer),
                Outcome::Pending(exchange) => {
                    self.tickets.insert(exchange, ticket);
                }
            }
        }
        self.admin.handle_deadline(now);
        while let Some((exchange, answer)) = self.admin.poll_answer() {
            if let Some(ticket) = self.tickets.remove(&exchange) {
                self.desk.answers.complete(ticket, answer);
            }
        }
    }

    /// Takes a shard's answer in; [`Self::turn`] passes on what it completes.
    pub fn handle_reply(&mut self, from: CoreId, request: u64, reply: Reply, now: Tick) {
        self.admin.handle_reply(from, request, reply, now);
    }
}

#[cfg(test)]
mod tests {
    use super::super::http::{Options, serve};
    use super::*;
    use crate::admin::{Figures, Health};
    use crate::bus::{Batch, Question, RoomName};
    use crate::drain::Phase;
    use crate::metrics::{BackplaneSnapshot, ProcessSnapshot, ShardSnapshot};
    use glommio::LocalExecutor;
    use glommio::channels::local_channel;
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::sync::Arc;
    use std::thread;

    /// A node whose shards answer at once, all but one.
    #[derive(Default)]
    struct Shards {
        asked: Vec<(CoreId, u64)>,
        published: Vec<RoomName>,
    }

    impl Node for Shards {
        fn ask(&mut self, to: CoreId, request: u64, _: Question) -> bool {
            self.asked.push((to, request));
            true
        }
        fn publish(&mut self, room: &RoomName, _: &Arc<Batch>) -> bool {
            self.published.push(room.clone());
            true
        }
        fn health(&mut self, _: Tick) -> Health {
            Health {
                phase: Phase::Running,
                stalled_shards: Vec::new(),
                bus_stalled_us: 0,
            }
        }
        fn figures(&mut self, _: Tick) -> Figures {
            Figures {
                phase: Phase::Running,
                backplane: BackplaneSnapshot::default(),
                lanes: Vec::new(),
                process: ProcessSnapshot::default(),
            }
        }
    }

    fn fetch(address: SocketAddr, method: &str, path: &str) -> String {
        let mut client = TcpStream::connect(address).unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        );
        client.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn requests_reach_the_loop_and_its_answers_reach_the_clients() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let clients = thread::spawn(move || {
            assert!(fetch(address, "GET", "/livez").starts_with("HTTP/1.1 200"));
            assert!(fetch(address, "POST", "/v1/rooms/r/publish").starts_with("HTTP/1.1 202"));
            let both = [0, 1].map(|_| thread::spawn(move || fetch(address, "GET", "/v1/stats")));
            for stats in both {
                let stats = stats.join().unwrap();
                assert!(stats.contains("\"stalled_shards\":[1]"), "{stats}");
                assert!(stats.contains("\"connections\":3"), "{stats}");
            }
        });
        let published = LocalExecutor::default().run(async move {
            let (wake, woken) = local_channel::new_unbounded();
            let admin = Admin::new(crate::admin::Options {
                node_id: "n".into(),
                version: "0",
                shard_count: 2,
                key: None,
                message_bytes_max: 10,
                connection_count_max: 1,
                node_bytes_max: 1,
                answer_timeout_ms: 1_000,
                bus_stall_ms_max: 1_000,
            });
            let mut desk = AdminDesk::new(admin, move || wake.try_send(()).unwrap());
            let served =
                glommio::spawn_local(serve(listener, Options::new(10), desk.handler())).detach();
            let mut shards = Shards::default();
            assert!(desk.is_idle());
            // Four requests wake it four times, whether or not it takes several in a turn; shard 1 is silent.
            for now in 1..=4 {
                woken.recv().await.unwrap();
                desk.turn(&mut shards, Tick::from_ms(now));
                for (from, request) in std::mem::take(&mut shards.asked) {
                    if from == CoreId(0) {
                        let mut snapshot = ShardSnapshot::default();
                        snapshot.gauges.connections_open = 3;
                        desk.handle_reply(
                            from,
                            request,
                            Reply::Stats(Box::new(snapshot)),
                            Tick::from_ms(now),
                        );
                    }
                }
            }
            let due = desk.next_deadline().unwrap();
            assert_eq!(due, Tick::from_ms(1_003));
            desk.turn(&mut shards, Tick(due.0 + 1_000));
            assert_eq!(desk.next_deadline(), None);
            while !clients.is_finished() {
                glommio::executor().yield_task_queue_now().await;
            }
            clients.join().unwrap();
            served.cancel();
            shards.published
        });
        assert_eq!(published, [RoomName::from("r")]);
    }
}
