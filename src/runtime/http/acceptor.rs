//! Accepts from a listening socket that was bound elsewhere, on a glommio executor.
//!
//! glommio's own listener binds by itself and with `SO_REUSEPORT`: a second process on the same address would go
//! unnoticed. So this one accepts without blocking, and waits for readiness by way of a glommio stream on a duplicate of
//! the listening socket: the stream asks for readiness as it is made, and its first read fails with `ENOTCONN` once a
//! connection is there.

use std::future::poll_fn;
use std::io;
use std::net::TcpListener;
use std::pin::Pin;
use std::time::Duration;

use futures_lite::AsyncRead;
use glommio::net::TcpStream;
use glommio::timer::sleep;
use glommio_socket2::Socket;

/// Between tries when the process has no descriptor or memory for one more connection.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// A listening socket.
#[derive(Debug)]
pub struct Acceptor(TcpListener);

impl Acceptor {
    /// Takes the listening socket over.
    ///
    /// # Errors
    /// It cannot be made non-blocking.
    pub fn new(listener: TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self(listener))
    }

    /// The next connection. Failures pass: those of one connection at once, exhaustion after a pause.
    pub async fn accept(&self) -> TcpStream {
        loop {
            match self.0.accept() {
                Ok((stream, _)) => {
                    // An answer is one write, so there is nothing to gather; without this it may wait for an ACK.
                    let _ = stream.set_nodelay(true);
                    return TcpStream::from(Socket::from(stream));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable().await,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(%error, "admin listener cannot accept");
                    sleep(EXHAUSTED_PAUSE).await;
                }
            }
        }
    }

    async fn readable(&self) {
        let Ok(duplicate) = self.0.try_clone() else {
            return sleep(EXHAUSTED_PAUSE).await;
        };
        let mut stream = TcpStream::from(Socket::from(duplicate));
        let mut nothing = [0; 1];
        // The first answer is readiness, whatever it says.
        poll_fn(|context| {
            Pin::new(&mut stream)
                .poll_read(context, &mut nothing)
                .map(|_| ())
        })
        .await;
    }
}
