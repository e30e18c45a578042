//! Who is at the other end of a connection, so that nobody can take everything.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use tokio::sync::Semaphore;

/// The other end of a connection. All connections from one address (over IPv6: one /64 network) are one peer, and so
/// are all connections over a Unix socket. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Peer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    address: Option<IpAddr>,
    held: AtomicUsize,
    turns: Arc<Semaphore>,
}

impl Peer {
    /// A peer of which nothing is known yet.
    pub(crate) fn new(address: Option<IpAddr>) -> Peer {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let shared = Shared {
            address,
            held: AtomicUsize::new(0),
            turns: Arc::new(Semaphore::new(cores)),
        };
        Peer {
            shared: Arc::new(shared),
        }
    }

    /// The address, or network, of the peer; `None` over a Unix socket.
    pub fn address(&self) -> Option<IpAddr> {
        self.shared.address
    }

    /// How much of something that is scarce all requests of this peer hold together; the service says of what, and
    /// keeps the count.
    pub(crate) fn held(&self) -> &AtomicUsize {
        &self.shared.held
    }

    /// One for each core: as many of this peer's requests may stand in a queue that all peers share.
    pub(crate) fn turns(&self) -> &Arc<Semaphore> {
        &self.shared.turns
    }
}

/// The address by which a peer is told from others.
pub(super) fn identity(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        // Whoever has one address of a /64 has all of them.
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) & !u128::from(u64::MAX)).into()),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_ipv6_network_is_one_peer_and_mapped_ipv4_is_ipv4() {
        let of = |text: &str| identity(text.parse().unwrap()).to_string();
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(of("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(of("192.0.2.7"), "192.0.2.7");
    }
}
