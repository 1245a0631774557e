//! What the kernel refused at set-up, in words, with what mends it.

use std::fmt;
use std::io;

/// Why a ring could not be set up, in words, with what mends it.
#[derive(Debug)]
pub struct RingError(pub String);

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for RingError {}

impl RingError {
    /// `doing` is a clause such as "setting up io_uring".
    pub(super) fn new(doing: &str, error: &io::Error) -> Self {
        let mends = match error.raw_os_error() {
            Some(libc::ENOSYS) => {
                "this kernel has no io_uring: build it with CONFIG_IO_URING=y, or run Linux 6.1 or newer"
            }
            Some(libc::EPERM | libc::EACCES) => {
                "io_uring is forbidden here: `sysctl kernel.io_uring_disabled=0`, and allow io_uring_setup, \
                 io_uring_enter and io_uring_register in the seccomp profile (containers: \
                 `--security-opt seccomp=unconfined` or a profile that lists them)"
            }
            Some(libc::ENOMEM) => {
                "no memory for it: raise the locked-memory limit (`ulimit -l unlimited`, systemd: \
                 `LimitMEMLOCK=infinity`) or lower the queue sizes"
            }
            Some(libc::EMFILE) => {
                "too many open files: raise the limit (`ulimit -n 1048576`, systemd: `LimitNOFILE=1048576`) or \
                 lower the number of connections; a table of direct descriptors may not exceed it"
            }
            Some(libc::ENFILE) => "the host's file table is full: `sysctl fs.file-max=10000000`",
            Some(libc::EINVAL) => {
                "this kernel is too old, or a queue size is out of its range: Linux 6.1 or newer is needed"
            }
            _ => "no known remedy",
        };
        Self(format!("{doing} failed: {error}; {mends}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_act_the_errno_and_the_remedy() {
        let text = RingError::new(
            "setting up io_uring",
            &io::Error::from_raw_os_error(libc::EPERM),
        )
        .to_string();
        assert!(text.starts_with("setting up io_uring failed: "), "{text}");
        assert!(
            text.contains("os error 1") && text.contains("kernel.io_uring_disabled"),
            "{text}"
        );
    }
}
