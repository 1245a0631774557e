//! Listening sockets: bound before anything starts, so that a port in use is said at once; one for each shard.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, TcpKeepalive, Type};

use crate::config::SocketOptions;

/// Binds and listens on `address` once for each of `shard_count` shards (`SO_REUSEPORT`). Gives the address that was
/// bound (its port is chosen by the kernel where `address` says 0) and the sockets.
///
/// # Errors
/// In words, with what mends it: the port is in use, may not be bound, or the address is not this host's.
pub(super) fn bind(
    address: SocketAddr,
    shard_count: usize,
    options: &SocketOptions,
) -> Result<(SocketAddr, Vec<OwnedFd>), String> {
    let explain = |error: io::Error| explain(address, &error);
    if address.port() != 0 {
        // Without SO_REUSEPORT this fails if anybody listens there; with it, two servers would share the port unseen.
        let probe = socket(address).map_err(explain)?;
        probe.set_reuse_address(true).map_err(explain)?;
        probe.bind(&address.into()).map_err(explain)?;
        probe.listen(1).map_err(explain)?;
    }
    let mut bound = address;
    let mut sockets = Vec::with_capacity(shard_count);
    for _ in 0..shard_count {
        let socket = listening(bound, options).map_err(explain)?;
        if let Some(local) = socket.local_addr().map_err(explain)?.as_socket() {
            bound = local;
        }
        sockets.push(OwnedFd::from(socket));
    }
    Ok((bound, sockets))
}

/// Binds and listens on the admin listener's `address`.
///
/// # Errors
/// As [`bind`].
pub(super) fn bind_admin(address: SocketAddr) -> Result<std::net::TcpListener, String> {
    std::net::TcpListener::bind(address).map_err(|error| explain(address, &error))
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// A listening socket with everything set that accepted sockets inherit.
fn listening(address: SocketAddr, options: &SocketOptions) -> io::Result<Socket> {
    let socket = socket(address)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_tcp_nodelay(true)?;
    if options.send_buffer_bytes > 0 {
        socket.set_send_buffer_size(options.send_buffer_bytes as usize)?;
    }
    if options.receive_buffer_bytes > 0 {
        socket.set_recv_buffer_size(options.receive_buffer_bytes as usize)?;
    }
    if options.notsent_lowat_bytes > 0 {
        socket.set_tcp_notsent_lowat(options.notsent_lowat_bytes)?;
    }
    if options.user_timeout_ms > 0 {
        socket.set_tcp_user_timeout(Some(Duration::from_millis(u64::from(
            options.user_timeout_ms,
        ))))?;
    }
    if let Some(keepalive) = options.keepalive {
        socket.set_tcp_keepalive(
            &TcpKeepalive::new()
                .with_time(Duration::from_secs(u64::from(keepalive.idle_s)))
                .with_interval(Duration::from_secs(u64::from(keepalive.interval_s)))
                .with_retries(keepalive.probe_count),
        )?;
    }
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
    Ok(socket)
}

/// Lets no new connection begin on a listening socket, while those that have begun can still be accepted.
///
/// A filter drops every SYN that is not part of a handshake under way; a client whose SYN is dropped sends it again a
/// second later, to whoever listens then. Closing the socket at once would reset all that wait in its queue.
pub(super) fn refuse_new(listener: &OwnedFd) -> io::Result<()> {
    const LOAD_BYTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
    const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
    const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const TCP_FLAGS: u32 = 13; // offset in the TCP header, which is where a TCP socket's filter begins
    const SYN: u32 = 0x02;
    const SYN_ACK: u32 = 0x12;
    SockRef::from(listener).attach_filter(&[
        SockFilter::new(LOAD_BYTE, 0, 0, TCP_FLAGS),
        SockFilter::new(AND, 0, 0, SYN_ACK),
        SockFilter::new(JUMP_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ])
}

fn explain(address: SocketAddr, error: &io::Error) -> String {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "another process listens there (`ss -ltnp 'sport = :{}'` shows it): stop it, or choose another port",
            address.port()
        ),
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need CAP_NET_BIND_SERVICE: choose a higher port, or `setcap cap_net_bind_service=+ep` the binary"
                .to_owned()
        }
        io::ErrorKind::AddrNotAvailable => {
            "this host has no such address (`ip address` lists them): use one of its own, or 0.0.0.0 for all".to_owned()
        }
        _ => "see `throng check`".to_owned(),
    };
    format!("cannot listen on {address}: {error}: {remedy}")
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn options() -> SocketOptions {
        SocketOptions {
            backlog: 128,
            send_buffer_bytes: 0,
            receive_buffer_bytes: 0,
            notsent_lowat_bytes: 16_384,
            keepalive: None,
            user_timeout_ms: 0,
        }
    }

    #[test]
    fn a_port_in_use_is_said_with_what_to_do_even_if_its_owner_would_share_it() {
        let (address, _sockets) = bind("127.0.0.1:0".parse().unwrap(), 2, &options()).unwrap();
        let error = bind(address, 1, &options()).unwrap_err();
        assert!(error.contains("another process listens there"), "{error}");
    }

    #[test]
    fn an_address_that_is_not_ours_is_said() {
        let error = bind("192.0.2.1:0".parse().unwrap(), 1, &options()).unwrap_err();
        assert!(error.contains("no such address"), "{error}");
    }

    #[test]
    fn who_waits_in_the_queue_is_served_and_nobody_new_comes_in() {
        let (address, mut sockets) = bind("127.0.0.1:0".parse().unwrap(), 1, &options()).unwrap();
        let socket = sockets.remove(0);
        let mut early = TcpStream::connect(address).unwrap();
        refuse_new(&socket).unwrap();
        let late = TcpStream::connect_timeout(&address, Duration::from_millis(300));
        assert!(late.is_err(), "a new connection must not come through");
        early.write_all(b"x").unwrap();
        let listener = TcpListener::from(socket);
        let (mut accepted, _) = listener.accept().unwrap();
        let mut byte = [0];
        accepted.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
        listener.set_nonblocking(true).unwrap();
        assert_eq!(
            listener.accept().unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
    }
}
