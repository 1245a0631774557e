//! Who a connection comes from: its other end, or the client that a trusted proxy there speaks for.
//!
//! ```text
//! accept ─▶ other end ── trusted ─▶ PROXY header ─▶ other end ── trusted ─▶ X-Forwarded-For ─▶ client
//!               │        proxy     (proxy_protocol)     │         proxy    (forwarded_for)       │
//!               └─ counted by its address               └─ counted                      counted ─┘
//! ```
//!
//! A connection is counted by one address, once it is known that nobody speaks for another there. A trusted proxy's own
//! connections are not counted: it has as many as its clients.
//!
//! Who writes a PROXY header passes bytes on: what is behind it is a client's, also where the header names none.

use super::Shard;
use super::connection::flag;
use crate::metrics::{ClientAddress, RefusalKind};
use crate::protocol::handshake::{
    self, ParsedRequest, ProxyHeader, ProxyProtocol, Refusal, parse_proxy_header,
};

impl Shard {
    /// Looks at the other end of a socket that was just accepted. Whether it may send anything at all.
    pub(super) fn meet(&mut self, index: u32) -> bool {
        self.count_address(index);
        let from_proxy = self.connections[index].has(flag::FROM_PROXY);
        match self.handshake.edge.proxy_protocol {
            ProxyProtocol::Off => {}
            ProxyProtocol::Accept | ProxyProtocol::Require if from_proxy => {
                self.connections[index].set(flag::PROXY_AWAITED);
            }
            ProxyProtocol::Accept => {}
            ProxyProtocol::Require => {
                self.learned(ClientAddress::ProxyUntrusted);
                return false;
            }
        }
        true
    }

    fn learned(&mut self, how: ClientAddress) {
        self.counters.client_addresses[how as usize] += 1;
    }

    /// Counts the connection by its other end's address, but for a trusted proxy's.
    fn count_address(&mut self, index: u32) {
        let connection = &mut self.connections[index];
        let address = connection.peer().ip();
        if handshake::is_in(&self.handshake.edge.trusted_proxies, address) {
            connection.set(flag::FROM_PROXY);
            return;
        }
        match self.node.admit_address(address) {
            Some(false) => {}
            Some(true) => connection.set(flag::ADDRESS_COUNTED),
            None => connection.set(flag::ADDRESS_FULL),
        }
    }

    /// From here on the connection is that of `client`, for whom a trusted proxy speaks.
    fn spoken_for(&mut self, index: u32, client: std::net::SocketAddr) {
        let connection = &mut self.connections[index];
        debug_assert!(connection.has(flag::FROM_PROXY) && !connection.has(flag::ADDRESS_COUNTED));
        connection.clear(flag::FROM_PROXY);
        connection.set_peer(client);
        self.count_address(index);
    }

    /// From here on the connection is that of a client whose address nobody knows: it keeps the proxy's, which is not
    /// counted, and its headers are not the proxy's.
    fn spoken_by_nobody(&mut self, index: u32) {
        self.connections[index].clear(flag::FROM_PROXY);
    }

    /// Takes the PROXY header from the front of `bytes`, the first of a connection that may have one.
    ///
    /// Gives what is behind it; `None`: there is no more to be done with these bytes now.
    pub(super) fn take_proxy_header<'b>(
        &mut self,
        index: u32,
        bytes: &'b [u8],
    ) -> Option<&'b [u8]> {
        let found = match parse_proxy_header(bytes) {
            Ok(ProxyHeader::Partial) => {
                self.keep_unread(index, bytes, false);
                return None;
            }
            Ok(ProxyHeader::Absent)
                if self.handshake.edge.proxy_protocol == ProxyProtocol::Accept =>
            {
                Ok(bytes)
            }
            Ok(ProxyHeader::Absent) => Err((ClientAddress::ProxyMissing, Refusal::NO_PROXY_HEADER)),
            Ok(ProxyHeader::Whole {
                header_bytes,
                client,
            }) => {
                match client {
                    Some(client) => {
                        self.learned(ClientAddress::ProxyHeader);
                        self.spoken_for(index, client);
                    }
                    None => {
                        self.learned(ClientAddress::ProxyOwn);
                        self.spoken_by_nobody(index);
                    }
                }
                Ok(&bytes[header_bytes..])
            }
            Err(refusal) => Err((ClientAddress::ProxyMalformed, refusal)),
        };
        self.connections[index].clear(flag::PROXY_AWAITED);
        match found {
            Ok(rest) => Some(rest),
            Err((how, refusal)) => {
                self.learned(how);
                self.refuse(index, &refusal);
                None
            }
        }
    }

    /// Before an upgrade: who the client is, if a trusted proxy tells, and whether its address has a place.
    ///
    /// # Errors
    /// `AddressFull`: it has none.
    pub(super) fn admit_forwarded(
        &mut self,
        index: u32,
        request: &ParsedRequest<'_>,
    ) -> Result<(), Refusal> {
        let edge = &self.handshake.edge;
        if !edge.forwarded_for || !self.connections[index].has(flag::FROM_PROXY) {
            return Ok(());
        }
        let forwarded = handshake::forwarded_for(request, &edge.trusted_proxies);
        if forwarded.is_malformed {
            self.learned(ClientAddress::ForwardedMalformed);
        }
        let Some(client) = forwarded.client else {
            return Ok(());
        };
        if !forwarded.is_malformed {
            self.learned(ClientAddress::Forwarded);
        }
        self.spoken_for(index, client);
        self.admit_address(index)
    }

    /// Asks once more for whom the address had no place when it was counted: another of its sockets may have gone
    /// since.
    pub(super) fn admit_address(&mut self, index: u32) -> Result<(), Refusal> {
        let connection = &mut self.connections[index];
        if !connection.has(flag::ADDRESS_FULL) {
            return Ok(());
        }
        if self.node.admit_address(connection.peer().ip()).is_none() {
            return Err(Refusal::of(RefusalKind::AddressFull));
        }
        connection.clear(flag::ADDRESS_FULL);
        connection.set(flag::ADDRESS_COUNTED);
        Ok(())
    }
}
