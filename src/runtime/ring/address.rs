//! Socket addresses as the kernel writes and reads them.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// `struct sockaddr_in` or `sockaddr_in6`, whichever `sa_family` says, with the length beside it.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy)]
pub(super) struct Address {
    bytes: [u8; Self::BYTES],
    len: libc::socklen_t,
}

impl Address {
    const BYTES: usize = size_of::<libc::sockaddr_in6>();

    /// Room for the kernel to write an address into.
    #[allow(clippy::cast_possible_truncation)] // 28
    pub(super) const fn empty() -> Self {
        Self {
            bytes: [0; Self::BYTES],
            len: Self::BYTES as libc::socklen_t,
        }
    }

    /// Where the kernel reads or writes the address, and its length, given where `self` lies.
    pub(super) const fn pointers(this: *mut Self) -> (*mut libc::sockaddr, *mut libc::socklen_t) {
        let bytes = this.cast::<u8>();
        let len = bytes.wrapping_add(std::mem::offset_of!(Self, len));
        (
            bytes.wrapping_add(std::mem::offset_of!(Self, bytes)).cast(),
            len.cast(),
        )
    }

    pub(super) const fn len(&self) -> libc::socklen_t {
        self.len
    }

    /// What it says; `None` when it is neither IPv4 nor IPv6.
    pub(super) fn decode(&self) -> Option<SocketAddr> {
        let bytes = &self.bytes;
        let port = u16::from_be_bytes([bytes[2], bytes[3]]);
        let word = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        match i32::from(u16::from_ne_bytes([bytes[0], bytes[1]])) {
            libc::AF_INET => Some(SocketAddrV4::new(Ipv4Addr::from(word(4)), port).into()),
            libc::AF_INET6 => {
                let mut ip = [0; 16];
                ip.copy_from_slice(&bytes[8..24]);
                let flow = u32::from_be_bytes(word(4));
                Some(
                    SocketAddrV6::new(Ipv6Addr::from(ip), port, flow, u32::from_ne_bytes(word(24)))
                        .into(),
                )
            }
            _ => None,
        }
    }
}

impl From<SocketAddr> for Address {
    #[allow(clippy::cast_possible_truncation)] // families are below 2^16, sizes are 16 and 28
    fn from(address: SocketAddr) -> Self {
        let mut encoded = Self::empty();
        let bytes = &mut encoded.bytes;
        bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        let family = match address {
            SocketAddr::V4(address) => {
                bytes[4..8].copy_from_slice(&address.ip().octets());
                encoded.len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
                libc::AF_INET
            }
            SocketAddr::V6(address) => {
                bytes[4..8].copy_from_slice(&address.flowinfo().to_be_bytes());
                bytes[8..24].copy_from_slice(&address.ip().octets());
                bytes[24..28].copy_from_slice(&address.scope_id().to_ne_bytes());
                libc::AF_INET6
            }
        };
        encoded.bytes[..2].copy_from_slice(&(family as u16).to_ne_bytes());
        encoded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_as_they_went() {
        for text in [
            "127.0.0.1:1",
            "255.254.253.252:65535",
            "[::1]:80",
            "[fe80::1:2%7]:8080",
        ] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(Address::from(address).decode(), Some(address));
        }
        assert_eq!(Address::empty().decode(), None);
    }

    #[test]
    fn the_layout_is_the_kernels() {
        let address = socket2::SockAddr::from("[fe80::1:2%7]:8080".parse::<SocketAddr>().unwrap());
        let ours = Address::from(address.as_socket().unwrap());
        assert_eq!(ours.len(), address.len());
        let as_v6 = address.as_socket_ipv6().unwrap();
        assert_eq!(ours.decode().unwrap(), SocketAddr::V6(as_v6));
        let mut ours = ours;
        let (bytes, len) = Address::pointers(&raw mut ours);
        assert_eq!(
            (bytes.addr(), len.addr()),
            ((&raw const ours).addr(), (&raw const ours.len).addr())
        );
    }
}
