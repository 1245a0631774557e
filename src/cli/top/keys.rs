//! Keys from the bytes that a terminal sends for them (ECMA-48, and xterm's control sequences).

use std::mem;

/// Something typed that means something here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// A sign.
    Char(char),
    Escape,
    /// Ctrl-C.
    Interrupt,
    /// Ctrl-Z.
    Suspend,
    /// Ctrl-L.
    Redraw,
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
}

/// Bytes in, keys out. A sequence may come in parts.
#[derive(Debug, Default)]
pub(super) struct Keys {
    pending: Vec<u8>,
}

/// Bytes of a sequence at most; a longer one is dropped.
const SEQUENCE_BYTES_MAX: usize = 16;
const ESCAPE: u8 = 0x1b;

impl Keys {
    /// Reads what was typed.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Vec<Key> {
        let mut keys = Vec::new();
        for &byte in bytes {
            self.pending.push(byte);
            match &self.pending[..] {
                [ESCAPE] | [ESCAPE, b'[' | b'O'] => {}
                [ESCAPE, ESCAPE] => {
                    keys.push(Key::Escape);
                    self.pending.pop();
                }
                // CSI ends with a byte from 0x40, SS3 after one.
                [ESCAPE, b'[', .., last] if !(0x40..=0x7e).contains(last) => {
                    if self.pending.len() >= SEQUENCE_BYTES_MAX {
                        self.pending.clear();
                    }
                }
                _ => keys.extend(key(&mem::take(&mut self.pending))),
            }
        }
        keys
    }

    /// Whether an escape has come that may be the key or the beginning of a sequence.
    pub(super) fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Nothing followed: an escape was the key.
    pub(super) fn settle(&mut self) -> Option<Key> {
        let pending = mem::take(&mut self.pending);
        (pending == [ESCAPE]).then_some(Key::Escape)
    }
}

/// The key of one whole sequence.
fn key(sequence: &[u8]) -> Option<Key> {
    match sequence {
        [0x03] => Some(Key::Interrupt),
        [0x0c] => Some(Key::Redraw),
        [0x1a] => Some(Key::Suspend),
        [sign @ 0x20..=0x7e] => Some(Key::Char(char::from(*sign))),
        [ESCAPE, b'[' | b'O', last] => match last {
            b'A' => Some(Key::Up),
            b'B' => Some(Key::Down),
            b'H' => Some(Key::Home),
            b'F' => Some(Key::End),
            _ => None,
        },
        [ESCAPE, b'[', number, b'~'] => match number {
            b'1' | b'7' => Some(Key::Home),
            b'4' | b'8' => Some(Key::End),
            b'5' => Some(Key::PageUp),
            b'6' => Some(Key::PageDown),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_keys_however_they_are_split() {
        let bytes = b"q\x1b[A\x1bOB\x1b[5~\x1b[1;5C\x03\x1b[F";
        let wanted = [
            Key::Char('q'),
            Key::Up,
            Key::Down,
            Key::PageUp,
            Key::Interrupt,
            Key::End,
        ];
        assert_eq!(Keys::default().read(bytes), wanted);
        let mut keys = Keys::default();
        let one_by_one: Vec<Key> = bytes
            .iter()
            .flat_map(|byte| keys.read(std::slice::from_ref(byte)))
            .collect();
        assert_eq!(one_by_one, wanted);
        assert!(!keys.is_pending());
    }

    #[test]
    fn an_escape_that_nothing_follows_is_the_key() {
        let mut keys = Keys::default();
        assert_eq!(keys.read(b"\x1b"), []);
        assert!(keys.is_pending());
        assert_eq!(keys.settle(), Some(Key::Escape));
        assert!(!keys.is_pending());
        assert_eq!(keys.read(b"\x1b\x1b"), [Key::Escape]);
        assert_eq!(keys.settle(), Some(Key::Escape));
        assert_eq!(keys.read(b"\x1b["), []);
        assert_eq!(keys.settle(), None);
    }

    #[test]
    fn what_means_nothing_is_dropped_and_never_grows() {
        let mut keys = Keys::default();
        assert_eq!(keys.read("é\x7f\t\x1bx".as_bytes()), []);
        assert_eq!(
            keys.read(&[b"\x1b[".to_vec(), vec![b'1'; 1_000]].concat())
                .len(),
            1_000 - 14
        );
        assert!(keys.pending.len() <= SEQUENCE_BYTES_MAX);
    }
}
