//! Where and when a run was: the machine, the command line, the moment.

use std::fs;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// The machine that the generator ran on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The kernel, as `Linux 6.12.0`.
    pub kernel: String,
    /// Processors that this process may use.
    pub processors: u64,
    /// The processor's model, when the kernel tells.
    pub processor: String,
}

impl Host {
    /// This one.
    pub fn this() -> Self {
        let uname = rustix::system::uname();
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            kernel: format!(
                "{} {}",
                uname.sysname().to_string_lossy(),
                uname.release().to_string_lossy()
            ),
            processors: thread::available_parallelism().map_or(0, |count| count.get() as u64),
            processor: cpuinfo
                .lines()
                .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
                .map(|(_, model)| model.trim().to_owned())
                .unwrap_or_default(),
        }
    }
}

/// This process's command line, quoted for a shell where that is needed.
pub fn command() -> String {
    join_quoted(std::env::args_os().map(|word| word.to_string_lossy().into_owned()))
}

fn join_quoted(words: impl Iterator<Item = String>) -> String {
    let quoted = words.map(|word| {
        let safe = |letter: char| letter.is_alphanumeric() || "-_./:=,@%+{}".contains(letter);
        if !word.is_empty() && word.chars().all(safe) {
            word
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// A moment as RFC 3339 text in UTC, whole seconds (§5.6).
pub fn rfc3339(moment: SystemTime) -> String {
    let seconds = moment
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    // Years are counted from March, so that the leap day is the last of its year, and in eras of 400 years.
    let days = seconds / 86_400 + 719_468;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = days / 146_097 * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        seconds / 3_600 % 24,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn moments_are_rfc_3339() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_709_164_799, "2024-02-28T23:59:59Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (1_735_689_600, "2025-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_command_line_can_be_run_again() {
        let words = [
            "throng-load",
            "fanout",
            "--expect",
            "lost<1",
            "--name",
            "it's",
            "",
        ];
        assert_eq!(
            join_quoted(words.map(str::to_owned).into_iter()),
            r"throng-load fanout --expect 'lost<1' --name 'it'\''s' ''"
        );
    }

    #[test]
    fn this_machine_is_described() {
        let host = Host::this();
        assert!(
            host.kernel.starts_with("Linux ") && host.kernel.len() > 6,
            "{host:?}"
        );
        assert!(host.processors >= 1);
    }
}
