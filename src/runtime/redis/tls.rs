//! TLS to Redis: a client's configuration from files, and a session over a socket that does not wait.
//!
//! TLS 1.2 and 1.3 by rustls. The server's certificate is always verified: against `redis_tls_ca_file`, or against what
//! this host trusts.

use std::io::{self, Read as _, Write as _};
use std::ops::Range;
use std::sync::Arc;

use rustix::net::RecvFlags;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, Error, RootCertStore,
};
use socket2::Socket;

use crate::config::{PemFile, RedisTls, Settings};

/// Names of a certificate that are shown.
const NAMES_SHOWN_MAX: usize = 5;
/// Bytes of one read of the socket.
const ARRIVED_BYTES_MAX: usize = 64 << 10;
/// What is shown of bytes that are no TLS.
const SHOWN_BYTES_MAX: usize = 40;
/// How a TLS record may begin that answers a client: an alert, or a handshake (RFC 8446 §5.1).
const RECORD_TYPES: [u8; 2] = [21, 22];

/// What all TLS links of this node begin with.
#[derive(Clone)]
pub(crate) struct TlsClient {
    config: Arc<ClientConfig>,
    /// Verified instead of the host's name, if given.
    server_name: Option<ServerName<'static>>,
    has_certificate: bool,
}

impl TlsClient {
    /// What these settings want; `None`: no URL has TLS.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(crate) fn wanted(settings: &Settings) -> Result<Option<Self>, String> {
        match &settings.redis {
            Some(redis) if redis.addresses().any(|address| address.tls) => {
                Self::new(&settings.redis_tls).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Reads what was given.
    ///
    /// # Errors
    /// What is wrong with a file or a name, in words, the setting first.
    pub(crate) fn new(tls: &RedisTls) -> Result<Self, String> {
        let provider = Arc::new(ring::default_provider());
        let roots = match &tls.ca {
            Some(file) => roots_of(file)?,
            None => roots_of_host()?,
        };
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .build()
                .map_err(|error| format!("redis_tls_ca_file: {error}"))?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS cannot be set up: {error}"))?
            .with_webpki_verifier(verifier);
        let has_certificate = tls.certificate.is_some();
        let config = match (&tls.certificate, &tls.key) {
            (Some(certificate), Some(key)) => {
                let chain = certificates(certificate, "redis_tls_cert_file")?;
                let secret = private_key(key)?;
                builder
                    .with_client_auth_cert(chain, secret)
                    .map_err(|error| client_refused(&error, certificate, key))?
            }
            _ => builder.with_no_client_auth(),
        };
        let server_name = match &tls.server_name {
            Some(name) => Some(server_name(name).ok_or_else(|| {
                format!("redis_tls_server_name: {name} is neither a host name nor an address")
            })?),
            None => None,
        };
        Ok(Self {
            config: Arc::new(config),
            server_name,
            has_certificate,
        })
    }
}

fn server_name(host: &str) -> Option<ServerName<'static>> {
    ServerName::try_from(host.to_owned()).ok()
}

fn roots_of(file: &PemFile) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file, "redis_tls_ca_file")? {
        roots.add(certificate).map_err(|error| {
            format!(
                "redis_tls_ca_file: {} holds a certificate that cannot be read: {error}",
                file.path
            )
        })?;
    }
    Ok(roots)
}

/// What the host trusts: its OpenSSL directories, or `SSL_CERT_FILE`.
fn roots_of_host() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if !roots.is_empty() {
        return Ok(roots);
    }
    let why = found.errors.first().map_or_else(
        || "no certificates were found".to_owned(),
        ToString::to_string,
    );
    Err(format!(
        "this host trusts no certificate authority ({why}): give the one of Redis by redis_tls_ca_file, or install ca-certificates"
    ))
}

fn certificates(file: &PemFile, setting: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(file.text.as_bytes()).collect();
    match all {
        Ok(all) if all.is_empty() => Err(format!(
            "{setting}: {} holds no certificate: one begins with -----BEGIN CERTIFICATE-----",
            file.path
        )),
        Ok(all) => Ok(all),
        Err(error) => Err(format!(
            "{setting}: {} cannot be read: {}",
            file.path,
            pem_words(&error)
        )),
    }
}

fn private_key(file: &PemFile) -> Result<PrivateKeyDer<'static>, String> {
    if file.text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----")
        || file.text.contains("Proc-Type: 4,ENCRYPTED")
    {
        return Err(format!(
            "redis_tls_key_file: the key in {} is encrypted: take the passphrase off (openssl pkey -in KEY -out PLAIN) and guard the file by its permissions",
            file.path
        ));
    }
    PrivateKeyDer::from_pem_slice(file.text.as_bytes()).map_err(|error| match error {
        pem::Error::NoItemsFound => format!(
            "redis_tls_key_file: {} holds no private key: one begins with -----BEGIN PRIVATE KEY-----",
            file.path
        ),
        error => format!("redis_tls_key_file: {} cannot be read: {}", file.path, pem_words(&error)),
    })
}

fn pem_words(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a section does not end".into(),
        pem::Error::IllegalSectionStart { .. } => "a section begins with a damaged line".into(),
        pem::Error::Base64Decode(_) => "a section is no Base64".into(),
        _ => "it is no PEM".into(),
    }
}

fn client_refused(error: &Error, certificate: &PemFile, key: &PemFile) -> String {
    match error {
        Error::InconsistentKeys(_) => format!(
            "redis_tls_key_file: the key in {} is not that of the certificate in {}",
            key.path, certificate.path
        ),
        Error::General(words) => format!(
            "redis_tls_key_file: the key in {} cannot be used: {words}",
            key.path
        ),
        error => format!(
            "redis_tls_cert_file: {} cannot be used: {error}",
            certificate.path
        ),
    }
}

/// A name of a certificate without the word for its kind: `DnsName("redis.example")`, `IpAddress(10.0.0.1)`.
fn bare_name(name: &str) -> &str {
    let inside = name
        .split_once('(')
        .and_then(|(_, rest)| rest.strip_suffix(')'));
    inside.unwrap_or(name).trim_matches('"')
}

/// A session over a socket.
pub(super) struct TlsStream {
    session: ClientConnection,
    socket: Socket,
    /// The other side, for messages.
    place: String,
    /// The scheme of its URL without TLS.
    plain: &'static str,
    has_certificate: bool,
    /// What has come of which the session has not had all: the session takes no more than 4 KiB at a time, too little for
    /// a system call.
    arrived: Box<[u8]>,
    /// Where the rest of it is.
    rest: Range<usize>,
    /// Nothing has come yet.
    is_silent: bool,
}

impl TlsStream {
    /// A session that has not begun; `host`: who is to be at the other end; `plain`: the scheme of its URL without TLS.
    pub(super) fn new(
        client: &TlsClient,
        socket: Socket,
        host: &str,
        place: &str,
        plain: &'static str,
    ) -> Result<Self, String> {
        let name = client.server_name.clone().or_else(|| server_name(host));
        let name = name.ok_or_else(|| {
            format!("{place}: {host} is no name that a certificate can be for; give redis_tls_server_name")
        })?;
        let session = ClientConnection::new(Arc::clone(&client.config), name)
            .map_err(|error| format!("{place}: TLS cannot begin: {error}"))?;
        Ok(Self {
            session,
            socket,
            place: place.into(),
            plain,
            has_certificate: client.has_certificate,
            arrived: vec![0; ARRIVED_BYTES_MAX].into_boxed_slice(),
            rest: 0..0,
            is_silent: true,
        })
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// What both sides have agreed on: `TLSv1_3`.
    pub(super) fn version(&self) -> String {
        let version = self.session.protocol_version();
        version.map_or_else(String::new, |version| format!("{version:?}"))
    }

    /// Whether the session has something for the socket.
    pub(super) fn wants_write(&self) -> bool {
        self.session.wants_write()
    }

    /// Goes on with the handshake as far as the socket lets it. Whether it is done.
    ///
    /// # Errors
    /// Why there will be no session, in words.
    pub(super) fn shake(&mut self) -> io::Result<bool> {
        loop {
            let went_on = match self.flush() {
                Ok(()) if !self.session.is_handshaking() => return Ok(true),
                Ok(()) => self.receive(),
                Err(error) => Err(error),
            };
            match went_on {
                Ok(0) => return Err(io::Error::other(self.ended())),
                Ok(_) => {}
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(false),
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                        return Err(io::Error::other(self.ended()));
                    }
                    _ => return Err(error),
                },
            }
        }
    }

    fn ended(&self) -> String {
        let place = &self.place;
        match self.has_certificate {
            true => format!(
                "{place} has closed the connection during the TLS handshake: is it a TLS port?"
            ),
            false => format!(
                "{place} has closed the connection during the TLS handshake: is it a TLS port? It may want a client certificate (redis_tls_cert_file, redis_tls_key_file)"
            ),
        }
    }

    /// Reads what has come, as much as fits. 0: the other side has ended it.
    ///
    /// # Errors
    /// `WouldBlock`: nothing is there. Anything else: the session is over.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        loop {
            match self.session.reader().read(&mut buffer[filled..]) {
                Ok(0) => return Ok(filled), // it has said that it ends, or the buffer is full
                Ok(count) => {
                    filled += count;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Ended without a word: as a plain connection does.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(filled),
                Err(error) => return Err(error),
            }
            match self.receive() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What was read first counts; the error comes again.
                Err(_) if filled > 0 => return Ok(filled),
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether [`Self::read`] has something of which the socket does not tell any more.
    pub(super) fn holds_unread(&mut self) -> bool {
        let state = self.session.process_new_packets();
        !self.rest.is_empty() || state.is_ok_and(|state| state.plaintext_bytes_to_read() > 0)
    }

    /// Gives the session bytes that have come. How many it took; 0: the other side has ended it.
    fn receive(&mut self) -> io::Result<usize> {
        if self.rest.is_empty() {
            self.fetch()?;
        }
        let count = self
            .session
            .read_tls(&mut &self.arrived[self.rest.clone()])?;
        self.rest.start += count;
        if let Err(error) = self.session.process_new_packets() {
            let _ = self.flush(); // it says why, if the other side still listens
            return Err(io::Error::other(self.words(&error)));
        }
        Ok(count)
    }

    /// Reads what the socket has.
    fn fetch(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.is_silent) {
            self.look().inspect_err(|error| {
                let again = [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted];
                self.is_silent = again.contains(&error.kind());
            })?;
        }
        self.rest = 0..(&self.socket).read(&mut self.arrived)?;
        Ok(())
    }

    /// Looks at the first bytes: what answers without TLS is told by its own words.
    fn look(&self) -> io::Result<()> {
        let mut first = [0; SHOWN_BYTES_MAX];
        let (count, _) = rustix::net::recv(&self.socket, &mut first[..], RecvFlags::PEEK)?;
        match first[..count] {
            [] => Ok(()),
            [kind, ..] if RECORD_TYPES.contains(&kind) => Ok(()),
            _ => Err(io::Error::other(format!(
                "{} speaks no TLS, it says {:?}: write {}:// instead of a URL with TLS",
                self.place,
                String::from_utf8_lossy(&first[..count]),
                self.plain
            ))),
        }
    }

    /// Takes bytes that are to be sent, as many as the session holds; [`Self::flush`] sends them.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.session.writer().write(bytes)
    }

    /// Sends all that the session holds.
    ///
    /// # Errors
    /// `WouldBlock`: the socket is full.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut &self.socket) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What the session has failed for, and what mends it.
    #[cold]
    fn words(&self, error: &Error) -> String {
        let place = &self.place;
        match error {
            Error::InvalidCertificate(reason) => self.certificate_words(reason),
            Error::AlertReceived(alert) => self.alert_words(*alert),
            Error::InvalidMessage(_) => format!(
                "{place} does not speak TLS as it should: write {}:// if it speaks none ({error})",
                self.plain
            ),
            Error::PeerIncompatible(_) => format!(
                "{place} has no TLS version or cipher in common with this node, which speaks TLS 1.2 and 1.3: set tls-protocols \"TLSv1.2 TLSv1.3\" there ({error})"
            ),
            error => format!("the TLS session with {place} has failed: {error}"),
        }
    }

    fn certificate_words(&self, reason: &CertificateError) -> String {
        let place = &self.place;
        match reason {
            CertificateError::UnknownIssuer => format!(
                "the certificate of {place} is not trusted: give the certificate of the authority that signed it by redis_tls_ca_file"
            ),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => format!(
                "the certificate of {place} has expired, or this host's clock is wrong: renew it there"
            ),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => format!(
                "the certificate of {place} is not valid yet: this host's clock or the other's is wrong"
            ),
            CertificateError::NotValidForName => {
                format!(
                    "the certificate of {place} is for another name: give it by redis_tls_server_name"
                )
            }
            CertificateError::NotValidForNameContext {
                expected,
                presented,
            } => {
                let shown = presented.iter().take(NAMES_SHOWN_MAX);
                let names: Vec<&str> = shown.map(|name| bare_name(name)).collect();
                let names = match &names[..] {
                    [] => "no name at all".to_owned(),
                    names => names.join(", "),
                };
                format!(
                    "the certificate of {place} is not for {} but for {names}: connect by a name that it has, or give one by redis_tls_server_name",
                    expected.to_str()
                )
            }
            CertificateError::Revoked => format!("the certificate of {place} was revoked"),
            reason => format!("the certificate of {place} is refused: {reason}"),
        }
    }

    fn alert_words(&self, alert: AlertDescription) -> String {
        let place = &self.place;
        match alert {
            AlertDescription::CertificateRequired
            | AlertDescription::NoCertificate
            | AlertDescription::HandshakeFailure
                if !self.has_certificate =>
            {
                format!(
                    "{place} wants a client certificate: give one by redis_tls_cert_file and redis_tls_key_file ({alert:?})"
                )
            }
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::DecryptError
            | AlertDescription::AccessDenied => format!(
                "{place} does not accept this node's certificate (redis_tls_cert_file): it is to be signed by an authority of the server's tls-ca-cert-file, and valid ({alert:?})"
            ),
            AlertDescription::ProtocolVersion => format!(
                "{place} speaks neither TLS 1.2 nor 1.3: set tls-protocols \"TLSv1.2 TLSv1.3\" there"
            ),
            alert => format!("{place} refuses the TLS session: {alert:?}"),
        }
    }
}

/// The other side is told that nothing more comes (RFC 8446 §6.1), if its socket takes that at once.
impl Drop for TlsStream {
    fn drop(&mut self) {
        self.session.send_close_notify();
        let _ = self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificates_names_are_shown_bare() {
        for (name, bare) in [
            ("DnsName(\"redis.example\")", "redis.example"),
            ("IpAddress(10.0.0.1)", "10.0.0.1"),
            ("redis.example", "redis.example"),
        ] {
            assert_eq!(bare_name(name), bare);
        }
    }
}
