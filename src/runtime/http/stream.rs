//! A glommio stream as hyper wants it, with deadlines.
//!
//! hyper's timers must be `Send`; glommio's cannot be. So the deadlines live here, where the waiting is: a read that is
//! pending while a request is owed, and a write that is pending at all.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_lite::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;
use glommio::timer::Timer;
use hyper::rt::{Read, ReadBufCursor, Write};

/// Bytes taken from the socket at a time; on the stack, so that an idle connection holds no buffer here.
const READ_BYTES: usize = 4 * 1024;

/// The deadlines of a connection, shared by its stream and its requests.
#[derive(Debug)]
pub struct Deadlines {
    request_timeout: Duration,
    write_timeout: Duration,
    /// The peer owes nothing: its request is being answered.
    answering: Cell<bool>,
    request: RefCell<Option<Timer>>,
    write: RefCell<Option<Timer>>,
}

impl Deadlines {
    /// A new connection owes a request.
    pub fn new(request_timeout: Duration, write_timeout: Duration) -> Rc<Self> {
        Rc::new(Self {
            request_timeout,
            write_timeout,
            answering: Cell::new(false),
            request: RefCell::new(None),
            write: RefCell::new(None),
        })
    }

    /// The request is here to its last byte.
    pub fn request_taken(&self) {
        self.answering.set(true);
        self.request.take();
    }

    /// The answer is known; the peer owes the next request.
    pub fn answered(&self) {
        self.answering.set(false);
        self.request.take();
    }

    /// The peer has taken a part of the answer: both times begin anew.
    fn progressed(&self) {
        self.write.take();
        self.request.take();
    }

    fn poll_request(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.answering.get() {
            return Poll::Pending;
        }
        poll_timer(
            &self.request,
            self.request_timeout,
            "no whole request in time",
            context,
        )
    }

    fn poll_write(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        poll_timer(
            &self.write,
            self.write_timeout,
            "the answer is not taken",
            context,
        )
    }
}

/// Runs the timer, from now if it does not run yet. Ready, with the error, when it is over.
fn poll_timer(
    timer: &RefCell<Option<Timer>>,
    timeout: Duration,
    late: &'static str,
    context: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    let mut timer = timer.borrow_mut();
    let running = timer.get_or_insert_with(|| Timer::new(timeout));
    ready!(Pin::new(running).poll(context));
    Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, late)))
}

/// The stream.
#[derive(Debug)]
pub struct Stream {
    socket: TcpStream,
    deadlines: Rc<Deadlines>,
}

impl Stream {
    /// Takes the socket over.
    pub fn new(socket: TcpStream, deadlines: Rc<Deadlines>) -> Self {
        Self { socket, deadlines }
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = [0; READ_BYTES];
        let length = buffer.remaining().min(READ_BYTES);
        match Pin::new(&mut self.socket).poll_read(context, &mut bytes[..length]) {
            Poll::Ready(Ok(count)) => {
                buffer.put_slice(&bytes[..count]);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => self.deadlines.poll_request(context),
        }
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.socket).poll_write(context, bytes) {
            Poll::Ready(written) => {
                self.deadlines.progressed();
                Poll::Ready(written)
            }
            Poll::Pending => match self.deadlines.poll_write(context) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
            },
        }
    }

    /// hyper does not read again behind an answer when an earlier read is still pending, so the time for the next
    /// request begins to run here.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.socket).poll_flush(context))?;
        match self.deadlines.poll_request(context) {
            Poll::Ready(late) => Poll::Ready(late),
            Poll::Pending => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(context)
    }
}
