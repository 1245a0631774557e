//! Live progress on a terminal: the phase, how far it is, rates, latency and errors of the last second.
//!
//! Draws on standard error, and only when that is a terminal: in pipes and logs it is silent, so that scripts read nothing
//! but the report.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::report::Unit;

/// The run at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// What goes on, such as `connect` or `measure`.
    pub phase: String,
    /// At which `done` the phase ends, when that is known.
    pub goal: Option<u64>,
    /// How far the phase is, in whatever it counts: connections, milliseconds, messages.
    pub done: u64,
    /// Connections that are open now.
    pub open: u64,
    /// How fast `done` grows, each second; 0 when that is not told.
    pub rate_per_s: f64,
    /// `done` is a time, whose rate says nothing.
    pub is_time: bool,
    /// Messages published in the last second.
    pub published_per_s: f64,
    /// Messages received in the last second.
    pub delivered_per_s: f64,
    /// Latency of the last second: half took at most this.
    pub p50_ns: Option<u64>,
    /// Latency of the last second: 99% took at most this.
    pub p99_ns: Option<u64>,
    /// What went wrong so far: failed connections, faulty deliveries.
    pub errors: u64,
    /// Since the run began.
    pub elapsed_ms: u64,
}

/// The line on the terminal.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A line that is drawn when standard error is a terminal and `quiet` is false.
    pub fn new(quiet: bool) -> Self {
        Self::drawn_on(if quiet {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr_with_hz(10)
        })
    }

    fn drawn_on(target: ProgressDrawTarget) -> Self {
        let bar = ProgressBar::with_draw_target(None, target);
        let style = ProgressStyle::with_template("{wide_msg}").expect("the template is valid");
        bar.set_style(style);
        Self { bar }
    }

    /// Draws the line anew.
    pub fn show(&self, snapshot: &Snapshot) {
        if !self.bar.is_hidden() {
            self.bar.set_message(line(snapshot));
            self.bar.tick();
        }
    }

    /// Takes the line away, so that the report begins on a clean one.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

/// Cells of the bar.
const BAR_CELLS: u64 = 20;

fn line(snapshot: &Snapshot) -> String {
    let seconds = Duration::from_millis(snapshot.elapsed_ms).as_secs();
    let mut words = vec![format!(
        "{:>3}:{:02} {:<8}",
        seconds / 60,
        seconds % 60,
        snapshot.phase
    )];
    let has_traffic = snapshot.published_per_s > 0.0 || snapshot.delivered_per_s > 0.0;
    if let Some(goal) = snapshot.goal {
        let done = snapshot.done.min(goal);
        let part =
            |whole: u64| (u128::from(done) * u128::from(whole) / u128::from(goal.max(1))) as u64;
        let filled = part(BAR_CELLS) as usize;
        // Beside traffic there is no room for it on a terminal of 80 columns.
        let bar = format!(
            "[{}{}] ",
            "#".repeat(filled),
            "-".repeat(BAR_CELLS as usize - filled)
        );
        let bar = if has_traffic { "" } else { &bar };
        words.push(format!("{bar}{:>3}%", part(100)));
        if done < goal && snapshot.rate_per_s > 0.0 {
            let left_ns = (goal - done) as f64 / snapshot.rate_per_s * 1e9;
            words.push(format!("{} left", Unit::Time(1).human(left_ns)));
        }
    }
    if snapshot.rate_per_s > 0.0 && !snapshot.is_time {
        words.push(Unit::PerSecond.human(snapshot.rate_per_s));
    }
    words.push(format!("open {}", snapshot.open));
    if snapshot.errors > 0 {
        words.push(format!("ERRORS {}", snapshot.errors));
    }
    if has_traffic {
        words.push(format!(
            "out {} in {}",
            Unit::PerSecond.human(snapshot.published_per_s),
            Unit::PerSecond.human(snapshot.delivered_per_s)
        ));
    }
    if let (Some(p50_ns), Some(p99_ns)) = (snapshot.p50_ns, snapshot.p99_ns) {
        words.push(format!(
            "p50 {}  p99 {}",
            Unit::Time(1).human(p50_ns as f64),
            Unit::Time(1).human(p99_ns as f64)
        ));
    }
    words.join("  ")
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use indicatif::TermLike;

    use super::*;

    /// A terminal of 200 columns that keeps what is written.
    #[derive(Debug, Clone, Default)]
    struct Screen(Arc<Mutex<String>>);

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            200
        }
        fn move_cursor_up(&self, _count: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _count: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _count: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _count: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            self.0.lock().unwrap().clear();
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn connecting() -> Snapshot {
        Snapshot {
            phase: "connect".into(),
            goal: Some(20_000),
            done: 5_000,
            open: 4_990,
            rate_per_s: 2_500.0,
            errors: 10,
            elapsed_ms: 62_400,
            ..Snapshot::default()
        }
    }

    #[test]
    fn a_goal_has_a_bar_and_the_time_that_is_left() {
        assert_eq!(
            line(&connecting()),
            "  1:02 connect   [#####---------------]  25%  6 s left  2.5 k/s  open 4990  ERRORS 10"
        );
        let beyond = Snapshot {
            done: u64::MAX,
            ..connecting()
        };
        assert!(
            line(&beyond).contains("####] 100%  2.5 k/s"),
            "nothing is left"
        );
        let nothing = Snapshot {
            goal: Some(0),
            ..connecting()
        };
        assert!(line(&nothing).contains("]   0%"));
    }

    #[test]
    fn traffic_shows_rates_and_latency_of_the_last_second() {
        let snapshot = Snapshot {
            phase: "measure".into(),
            open: 500,
            published_per_s: 20.0,
            delivered_per_s: 100_000.0,
            p50_ns: Some(210_000),
            p99_ns: Some(12_345_678),
            elapsed_ms: 3_000,
            ..Snapshot::default()
        };
        assert_eq!(
            line(&snapshot),
            "  0:03 measure   open 500  out 20/s in 100 k/s  p50 210 µs  p99 12.3 ms"
        );
        let with_goal = Snapshot {
            goal: Some(60_000),
            done: 15_000,
            rate_per_s: 1_000.0,
            is_time: true,
            ..snapshot
        };
        let line = line(&with_goal);
        assert_eq!(
            line,
            "  0:03 measure    25%  45 s left  open 500  out 20/s in 100 k/s  p50 210 µs  p99 12.3 ms"
        );
    }

    #[test]
    fn it_is_drawn_on_a_terminal_and_taken_away() {
        let screen = Screen::default();
        let progress = Progress::drawn_on(ProgressDrawTarget::term_like(Box::new(screen.clone())));
        progress.show(&connecting());
        assert!(screen.0.lock().unwrap().contains("25%"));
        progress.clear();
        assert!(!screen.0.lock().unwrap().contains("25%"));
    }

    #[test]
    fn it_is_silent_when_told_so_and_in_pipes() {
        let quiet = Progress::new(true);
        assert!(quiet.bar.is_hidden());
        quiet.show(&connecting());
        assert_eq!(quiet.bar.message(), "", "nothing is even formatted");
    }
}
