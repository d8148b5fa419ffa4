//! Who a client is, as far as a server can know.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Who a client is, as far as a server can know: the connections of one client have equal ones.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Client {
    /// A process of this machine, by a Unix socket. 0 where the kernel cannot tell.
    Process(i32),
    /// Everything at an address that shows the same certificate.
    Machine {
        /// Where it connects from.
        address: IpAddr,
        /// The certificate that it showed (DER), if it had to show one.
        certificate: Option<Arc<[u8]>>,
    },
}

impl Client {
    pub(crate) fn at(address: IpAddr) -> Self {
        Self::Machine {
            address: address.to_canonical(),
            certificate: None,
        }
    }

    /// The same client, which has shown a certificate.
    pub(crate) fn with_certificate(&self, shown: Option<Arc<[u8]>>) -> Self {
        match self {
            Self::Process(_) => self.clone(),
            Self::Machine { address, .. } => Self::Machine {
                address: *address,
                certificate: shown,
            },
        }
    }

    /// The network that it comes from, as the bounds count it.
    pub(crate) fn network(&self) -> Option<IpAddr> {
        match self {
            Self::Process(_) => None,
            Self::Machine { address, .. } => Some(admission::network(*address)),
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(pid) => write!(f, "process {pid}"),
            Self::Machine { address, .. } => write!(f, "{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_of_a_network_is_one_client_to_the_bounds() {
        let network = |text: &str| Client::at(text.parse().unwrap()).network().unwrap().to_string();
        assert_eq!(network("192.0.2.7"), "192.0.2.7");
        assert_eq!(network("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(Client::Process(7).network(), None);
    }
}
