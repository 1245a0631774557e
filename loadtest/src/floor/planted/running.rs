//! A planted server on a thread of its own, for tests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use clap::Parser;

use super::tally::{Planted, Tally};
use super::{Plants, Server};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    plants: Plants,
}

/// A planted server that serves until it is dropped.
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    planted: Arc<Planted>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Starts it with the flags in `line`.
    pub fn start(line: &str) -> Self {
        let words = std::iter::once("planted").chain(line.split_whitespace());
        let plants = Line::try_parse_from(words).unwrap_or_else(|error| panic!("{error}"));
        plants.plants.check().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stop_seen = Arc::clone(&stop);
        let (tell, told) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            let mut server = Server::new("127.0.0.1:0".parse().unwrap(), plants.plants).unwrap();
            tell.send((server.address().unwrap(), server.planted()))
                .unwrap();
            server.run(&stop_seen, u64::MAX).unwrap();
        });
        let (address, planted) = told.recv().unwrap();
        Self {
            address,
            planted,
            stop,
            thread: Some(thread),
        }
    }

    /// What it planted so far.
    pub fn tally(&self) -> Tally {
        self.planted.read()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "the server broke");
        }
    }
}
