//! What TLS to Redis is made of: files in PEM, read where the settings are, judged where TLS is.

use std::fmt;
use std::io;

use crate::config::mistake::Mistake;

/// Bytes of a file in PEM at most: a host's whole bundle of authorities is a quarter of it.
const PEM_BYTES_MAX: usize = 1 << 20;

/// A file in PEM (RFC 7468).
#[derive(Clone, PartialEq, Eq)]
pub struct PemFile {
    /// Where it is, for messages.
    pub path: String,
    /// What is in it: it may be a key.
    pub text: String,
}

/// All but what is in it.
impl fmt::Debug for PemFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PemFile")
            .field("path", &self.path)
            .field("bytes", &self.text.len())
            .finish()
    }
}

/// How Redis is spoken to by TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RedisTls {
    /// The authorities that Redis' certificate may be signed by; `None`: those that the host trusts.
    pub ca: Option<PemFile>,
    /// This node's certificate and those between it and its authority.
    pub certificate: Option<PemFile>,
    /// Its private key.
    pub key: Option<PemFile>,
    /// The name that Redis' certificate is to be for; `None`: the host's in the URL.
    pub server_name: Option<String>,
}

impl RedisTls {
    /// Whether anything was given.
    #[must_use]
    pub fn is_given(&self) -> bool {
        *self != Self::default()
    }
}

/// Reads the file that the setting `key` names.
pub(super) fn read(
    key: &str,
    path: Option<&str>,
    read_file: &impl Fn(&str) -> io::Result<String>,
    mistakes: &mut Vec<Mistake>,
) -> Option<PemFile> {
    let path = path?;
    let problem = match read_file(path) {
        Ok(text) if text.len() <= PEM_BYTES_MAX => {
            return Some(PemFile {
                path: path.to_owned(),
                text,
            });
        }
        Ok(_) => format!("{path} is too long for certificates"),
        Err(error) => format!("{path} cannot be read: {error}"),
    };
    mistakes.push(Mistake {
        place: key.into(),
        problem,
        instead: "write the path of a readable file in PEM".into(),
    });
    None
}
