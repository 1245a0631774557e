//! Lists of networks: whose word about a client is taken.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The bits of an IPv4-mapped IPv6 address before the IPv4 address.
const MAPPED_PREFIX_BITS: u32 = 96;

/// A network: an address and how many of its first bits count. IPv4 is kept as IPv4-mapped IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    bits: u128,
    prefix_bits: u32,
}

impl Network {
    /// Reads `10.0.0.0/8`, `2001:db8::/32`, or a single address.
    ///
    /// `None`: it is no address, the prefix is longer than the address, or bits behind the prefix are set, which is
    /// more often a slip than meant.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let (width, front) = match address {
            IpAddr::V4(_) => (32, MAPPED_PREFIX_BITS),
            IpAddr::V6(_) => (128, 0),
        };
        let prefix: u32 = match prefix {
            None => width,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().ok().filter(|&prefix| prefix <= width)?
            }
            Some(_) => return None,
        };
        let network = Self {
            bits: mapped(address),
            prefix_bits: front + prefix,
        };
        (network.bits & !network.mask() == 0).then_some(network)
    }

    const fn mask(self) -> u128 {
        match self.prefix_bits {
            0 => 0,
            bits => u128::MAX << (128 - bits),
        }
    }

    /// Whether all of IPv4, or all of IPv6 that is given out (2000::/3, IANA), lies in it.
    #[must_use]
    pub fn is_everybody(self) -> bool {
        let ends = |first: u128, last: u128| {
            first & self.mask() == self.bits && last & self.mask() == self.bits
        };
        let v4 = Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().to_bits();
        let v6 = 0x2 << 124;
        ends(v4, v4 | u128::from(u32::MAX)) || ends(v6, v6 | u128::MAX >> 3)
    }

    /// Whether `address` lies in it.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        mapped(address) & self.mask() == self.bits
    }
}

/// Whether `address` lies in one of `networks`.
#[must_use]
pub fn is_in(networks: &[Network], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(address))
}

fn mapped(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => Ipv6Addr::from(address.octets()),
    }
    .to_bits()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn network(text: &str) -> Network {
        Network::parse(text).expect(text)
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect(text)
    }

    #[test]
    fn everybody_is_all_of_a_family() {
        for text in [
            "0.0.0.0/0",
            "::/0",
            "::/1",
            "::ffff:0:0/96",
            "2000::/3",
            "::/2",
        ] {
            assert!(network(text).is_everybody(), "{text}");
        }
        for text in [
            "0.0.0.0/1",
            "10.0.0.0/8",
            "2000::/4",
            "fc00::/7",
            "::/97",
            "::1",
        ] {
            assert!(!network(text).is_everybody(), "{text}");
        }
    }

    #[test]
    fn both_ends_of_a_network_are_inside_and_their_neighbours_are_not() {
        for (text, inside, outside) in [
            (
                "10.1.0.0/16",
                ["10.1.0.0", "10.1.255.255"],
                ["10.0.255.255", "10.2.0.0"],
            ),
            (
                "192.0.2.7",
                ["192.0.2.7", "::ffff:192.0.2.7"],
                ["192.0.2.6", "::192.0.2.7"],
            ),
            (
                "2001:db8::/33",
                ["2001:db8::", "2001:db8:7fff:ffff::1"],
                ["2001:db8:8000::", "2001:db7:ffff::"],
            ),
            ("::1", ["::1", "::1"], ["::2", "127.0.0.1"]),
            ("0.0.0.0/0", ["0.0.0.0", "255.255.255.255"], ["::1", "::"]),
        ] {
            for inside in inside {
                assert!(network(text).contains(address(inside)), "{text} {inside}");
            }
            for outside in outside {
                assert!(
                    !network(text).contains(address(outside)),
                    "{text} {outside}"
                );
            }
        }
        assert!(
            network("::/0").contains(address("10.0.0.1")),
            "all there is"
        );
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in [
            "",
            "localhost",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.1/8",
            "2001:db8::1/32",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0.0/8/8",
            "10.0.0/8",
            "[::1]",
            "10.0.0.1:80",
            " 10.0.0.1",
            "fe80::1%eth0",
        ] {
            assert_eq!(Network::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_list_is_any_of_its_networks_and_an_empty_one_is_none() {
        let list = [network("10.0.0.0/8"), network("::1")];
        assert!(is_in(&list, address("::1")) && is_in(&list, address("10.9.9.9")));
        assert!(!is_in(&list, address("11.0.0.0")));
        assert!(!is_in(&[], address("10.0.0.1")));
    }

    proptest! {
        #[test]
        fn a_network_has_the_addresses_that_share_its_front(base: u32, other: u32, prefix in 0u32..=32) {
            let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
            let network = Network::parse(&format!("{}/{prefix}", std::net::Ipv4Addr::from_bits(base & mask))).unwrap();
            prop_assert!(network.contains(IpAddr::V4(base.into())));
            prop_assert_eq!(network.contains(IpAddr::V4(other.into())), base & mask == other & mask);
        }
    }
}
