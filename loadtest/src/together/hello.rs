//! Who is there? Both sides show that they know the secret, without telling it.
//!
//! ```text
//! coordinator: Challenge { versions, nonce }
//! joiner:      Hello { versions, nonce, name, proof = HMAC(secret, "joiner", both nonces) }
//! coordinator: Welcome { proof = HMAC(secret, "coordinator", both nonces) }, or Refused { why }
//! ```
//!
//! Without a secret (on loopback only) it is the empty one. What follows is neither encrypted nor signed: who can change
//! packets on their way needs no secret.

use std::io::{self, Read};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::wire::{self, WIRE_VERSION, printable, reason};
use crate::failure::Failure;

/// This tool's version; generators of different versions may count differently.
const TOOL_VERSION: &str = env!("CARGO_PKG_VERSION");
/// Bytes of each of these messages at most.
const HELLO_BYTES_MAX: usize = 4096;
/// For all of these messages.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a secret at least.
const SECRET_BYTES_MIN: usize = 16;
/// Characters of a generator's name at most.
const NAME_LENGTH_MAX: usize = 40;
const NONCE_BYTES: usize = 16;

/// What both sides know, and nobody else.
#[derive(Clone, Default)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Reads the secret: the file's content without white space at its ends. No file: the empty secret.
    ///
    /// # Errors
    /// When it cannot be read, or is too short.
    pub fn read(path: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = path else {
            return Ok(Self::default());
        };
        let wrong =
            |what: String| Failure::Usage(format!("--secret-file {}: {what}", path.display()));
        let content = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
        let secret = content.trim_ascii();
        if secret.len() < SECRET_BYTES_MIN {
            return Err(wrong(format!(
                "a secret is at least {SECRET_BYTES_MIN} bytes; make one with `head -c 32 /dev/urandom | base64`"
            )));
        }
        Ok(Self(secret.to_vec()))
    }

    fn mac(&self, role: &str, challenge: &Challenge, joiner_nonce: &str) -> Hmac<Sha256> {
        let mut mac = Hmac::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        for part in [role, &challenge.nonce, joiner_nonce] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        mac
    }

    fn proof(&self, role: &str, challenge: &Challenge, joiner_nonce: &str) -> String {
        let mac = self.mac(role, challenge, joiner_nonce);
        STANDARD.encode(mac.finalize().into_bytes())
    }

    /// Compares in constant time.
    fn is_proven(
        &self,
        role: &str,
        challenge: &Challenge,
        joiner_nonce: &str,
        proof: &str,
    ) -> bool {
        let mac = self.mac(role, challenge, joiner_nonce);
        STANDARD
            .decode(proof)
            .is_ok_and(|proof| mac.verify_slice(&proof).is_ok())
    }
}

/// The coordinator's first words.
#[derive(Debug, Serialize, Deserialize)]
pub struct Challenge {
    wire: u32,
    version: String,
    nonce: String,
}

/// A joiner's first words.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hello {
    wire: u32,
    version: String,
    nonce: String,
    proof: String,
    /// What the joiner calls itself: letters, digits and `_`.
    pub name: String,
    /// Which boot of which machine it runs in: those of the same have the same clock.
    pub boot_id: String,
}

/// The coordinator's answer.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Welcome { proof: String },
    Refused { why: String },
}

/// A joiner that has shown who it is, and waits for an answer.
pub struct Applicant {
    /// The stream.
    pub stream: TcpStream,
    /// What it said.
    pub hello: Hello,
    proof: String,
}

impl Applicant {
    /// Takes it.
    ///
    /// # Errors
    /// The stream's.
    pub fn welcome(self) -> io::Result<(TcpStream, Hello)> {
        let mut stream = self.stream;
        let answer = Answer::Welcome { proof: self.proof };
        wire::send(&mut stream, &answer)?;
        Ok((stream, self.hello))
    }
}

fn refuse(stream: &mut TcpStream, why: &str) {
    let answer = Answer::Refused {
        why: why.to_owned(),
    };
    let _ = wire::send(stream, &answer); // who has gone needs no answer
}

/// The coordinator's side: asks who is there, and checks the answer.
///
/// # Errors
/// In words: silence, no joiner, of another version, or without the secret. It has been told, where it could be.
pub fn challenge(mut stream: TcpStream, secret: &Secret) -> Result<Applicant, String> {
    let until = Instant::now() + HELLO_TIMEOUT;
    let words = |error: io::Error| reason(&error);
    let challenge = Challenge {
        wire: WIRE_VERSION,
        version: TOOL_VERSION.to_owned(),
        nonce: nonce().map_err(words)?,
    };
    stream.set_nodelay(true).map_err(words)?;
    stream
        .set_write_timeout(Some(HELLO_TIMEOUT))
        .map_err(words)?;
    wire::send(&mut stream, &challenge).map_err(words)?;
    let hello: Hello = receive(&stream, until).map_err(words)?;
    let refused = |stream: &mut TcpStream, why: String| {
        refuse(stream, &why);
        Err(why)
    };
    if let Some(why) = mismatch(hello.wire, &hello.version) {
        return refused(&mut stream, format!("the generator {why}"));
    }
    if !secret.is_proven("joiner", &challenge, &hello.nonce, &hello.proof) {
        return refused(
            &mut stream,
            "the secrets differ (see --secret-file)".to_owned(),
        );
    }
    Ok(Applicant {
        proof: secret.proof("coordinator", &challenge, &hello.nonce),
        stream,
        hello: Hello {
            name: name(&hello.name),
            ..hello
        },
    })
}

/// Why a joiner is not taken.
#[derive(Debug, PartialEq, Eq)]
pub enum Turned {
    /// It may try again.
    Later(String),
    /// It need not.
    Away(Failure),
}

/// The joiner's side: answers the coordinator's challenge, and checks that it knows the secret, too.
///
/// # Errors
/// When it is not taken.
pub fn introduce(stream: &mut TcpStream, secret: &Secret, name: &str) -> Result<(), Turned> {
    let until = Instant::now() + HELLO_TIMEOUT;
    let later = |error: io::Error| match error.kind() {
        io::ErrorKind::InvalidData => Turned::Away(Failure::Usage(format!(
            "who listens there is no coordinator: {}",
            reason(&error)
        ))),
        _ => Turned::Later(reason(&error)),
    };
    let away = |why: String| Turned::Away(Failure::Usage(why));
    stream.set_nodelay(true).map_err(later)?;
    stream
        .set_write_timeout(Some(HELLO_TIMEOUT))
        .map_err(later)?;
    let challenge: Challenge = receive(stream, until).map_err(later)?;
    let nonce = nonce().map_err(later)?;
    let hello = Hello {
        wire: WIRE_VERSION,
        version: TOOL_VERSION.to_owned(),
        proof: secret.proof("joiner", &challenge, &nonce),
        nonce,
        name: name.to_owned(),
        boot_id: boot_id(),
    };
    wire::send(stream, &hello).map_err(later)?;
    if let Some(why) = mismatch(challenge.wire, &challenge.version) {
        return Err(away(format!("the coordinator {why}")));
    }
    match receive(stream, until).map_err(later)? {
        Answer::Welcome { proof } => {
            if secret.is_proven("coordinator", &challenge, &hello.nonce, &proof) {
                Ok(())
            } else {
                Err(away("who listens there does not know the secret".into()))
            }
        }
        Answer::Refused { why } => {
            let why = printable(&why);
            Err(away(format!("the coordinator refused: {why}")))
        }
    }
}

fn mismatch(wire: u32, version: &str) -> Option<String> {
    (wire != WIRE_VERSION || version != TOOL_VERSION).then(|| {
        let version = printable(version);
        format!(
            "is throng-load {version} (wire {wire}), this is {TOOL_VERSION} (wire {WIRE_VERSION}): use the same on all machines"
        )
    })
}

fn nonce() -> io::Result<String> {
    let mut bytes = [0; NONCE_BYTES];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(STANDARD.encode(bytes))
}

/// A message that comes before `until`, however slowly its bytes do.
fn receive<T: serde::de::DeserializeOwned>(stream: &TcpStream, until: Instant) -> io::Result<T> {
    wire::receive(&mut Until { stream, until }, HELLO_BYTES_MAX)
}

struct Until<'a> {
    stream: &'a TcpStream,
    until: Instant,
}

impl Read for Until<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = self.until.saturating_duration_since(Instant::now());
        if rest.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(rest))?;
        let mut stream = self.stream;
        stream.read(buffer)
    }
}

/// Which boot of which machine this process runs in; empty when the kernel does not tell.
pub fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// The name of this machine.
pub fn host_name() -> String {
    name(&rustix::system::uname().nodename().to_string_lossy())
}

/// A name as it may stand in the name of a figure.
fn name(text: &str) -> String {
    let fit = |char: char| {
        if char.is_ascii_alphanumeric() {
            char.to_ascii_lowercase()
        } else {
            '_'
        }
    };
    let name: String = text.chars().take(NAME_LENGTH_MAX).map(fit).collect();
    if name.is_empty() {
        "generator".to_owned()
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let joiner = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().unwrap().0, joiner)
    }

    fn meet(coordinator: &Secret, joiner: &Secret) -> (Result<String, String>, Result<(), Turned>) {
        let (coordinators, mut joiners) = pair();
        let (coordinator, joiner) = (coordinator.clone(), joiner.clone());
        let joining = thread::spawn(move || introduce(&mut joiners, &joiner, "Box-7.example"));
        let taken = challenge(coordinators, &coordinator)
            .map(|applicant| applicant.welcome().unwrap().1.name);
        (taken, joining.join().unwrap())
    }

    #[test]
    fn who_knows_the_secret_is_taken() {
        let secret = Secret(b"0123456789abcdef".to_vec());
        let (taken, joined) = meet(&secret, &secret);
        assert_eq!((taken.as_deref(), joined), (Ok("box_7_example"), Ok(())));
        let (taken, _) = meet(&Secret::default(), &Secret::default());
        assert!(taken.is_ok());
    }

    #[test]
    fn who_does_not_is_told_so() {
        let secret = Secret(b"0123456789abcdef".to_vec());
        for (coordinator, joiner) in [
            (secret.clone(), Secret::default()),
            (Secret::default(), secret.clone()),
            (secret, Secret(b"0123456789abcdeF".to_vec())),
        ] {
            let (taken, joined) = meet(&coordinator, &joiner);
            assert!(taken.unwrap_err().contains("secrets differ"));
            let Err(Turned::Away(Failure::Usage(text))) = joined else {
                panic!("{joined:?}")
            };
            assert!(text.contains("--secret-file"), "{text}");
        }
    }

    #[test]
    fn a_coordinator_that_does_not_know_the_secret_gives_no_orders() {
        let (mut coordinators, mut joiners) = pair();
        let joining = thread::spawn(move || {
            introduce(&mut joiners, &Secret(b"0123456789abcdef".to_vec()), "a")
        });
        let challenge = Challenge {
            wire: WIRE_VERSION,
            version: TOOL_VERSION.into(),
            nonce: "n".into(),
        };
        wire::send(&mut coordinators, &challenge).unwrap();
        let hello: Hello = wire::receive(&mut coordinators, HELLO_BYTES_MAX).unwrap();
        // The joiner's own proof does not serve as the coordinator's.
        let answer = Answer::Welcome { proof: hello.proof };
        wire::send(&mut coordinators, &answer).unwrap();
        let joined = joining.join().unwrap();
        let Err(Turned::Away(Failure::Usage(text))) = joined else {
            panic!("{joined:?}")
        };
        assert!(text.contains("does not know the secret"), "{text}");
    }

    #[test]
    fn another_version_is_refused_on_both_sides() {
        let (coordinators, mut joiners) = pair();
        let joining = thread::spawn(move || {
            let _: Challenge = wire::receive(&mut joiners, HELLO_BYTES_MAX).unwrap();
            let hello = Hello {
                wire: WIRE_VERSION + 1,
                version: "99.0.0".into(),
                nonce: String::new(),
                proof: String::new(),
                name: String::new(),
                boot_id: String::new(),
            };
            wire::send(&mut joiners, &hello).unwrap();
            wire::receive::<Answer>(&mut joiners, HELLO_BYTES_MAX).unwrap()
        });
        let text = challenge(coordinators, &Secret::default()).err().unwrap();
        assert!(
            text.contains("99.0.0") && text.contains(TOOL_VERSION),
            "{text}"
        );
        let Answer::Refused { why } = joining.join().unwrap() else {
            panic!("it is refused")
        };
        assert_eq!(why, text);

        let (mut coordinators, mut joiners) = pair();
        let challenge = Challenge {
            wire: WIRE_VERSION,
            version: "0.0.1".into(),
            nonce: "n".into(),
        };
        wire::send(&mut coordinators, &challenge).unwrap();
        let Err(Turned::Away(Failure::Usage(text))) =
            introduce(&mut joiners, &Secret::default(), "a")
        else {
            panic!("the coordinator is another's")
        };
        assert!(text.contains("0.0.1"), "{text}");
    }

    #[test]
    fn bytes_that_come_slowly_do_not_lengthen_the_wait() {
        let (mut slow, stream) = pair();
        let started = Instant::now();
        let dripping = thread::spawn(move || {
            while slow.write_all(&[0]).is_ok() {
                thread::sleep(Duration::from_millis(20));
            }
        });
        let until = started + Duration::from_millis(200);
        // Zeroes announce an empty message; the reader is asked for a longer one.
        let mut reader = Until {
            stream: &stream,
            until,
        };
        let error = reader.read_exact(&mut [0; 1000]).unwrap_err();
        assert!(matches!(
            error.kind(),
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock
        ));
        assert!(started.elapsed() >= Duration::from_millis(200));
        drop(stream);
        dripping.join().unwrap();
    }

    #[test]
    fn a_secret_is_read_without_its_line_end_and_must_be_long_enough() {
        let path = std::env::temp_dir().join(format!("throng-load-secret-{}", std::process::id()));
        std::fs::write(&path, "0123456789abcdef\n").unwrap();
        assert_eq!(Secret::read(Some(&path)).unwrap().0, b"0123456789abcdef");
        std::fs::write(&path, "0123456789abcde\n").unwrap();
        assert!(Secret::read(Some(&path)).is_err());
        std::fs::remove_file(&path).unwrap();
        assert!(Secret::read(Some(&path)).is_err());
    }
}
