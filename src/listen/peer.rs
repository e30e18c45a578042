//! Who is at the other end of a connection, so that nobody can take everything.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Semaphore;

/// The other end of a connection. All connections from one address (over IPv6: one /64 network) are one peer, and so
/// are all connections over a Unix socket. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Peer {
    shared: Arc<Shared>,
    /// Of one connection, see [`Peer::large_unread`].
    large_unread: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Shared {
    address: Option<IpAddr>,
    held: AtomicUsize,
    streams: AtomicUsize,
    turns: Arc<Semaphore>,
    large_turn: Arc<Semaphore>,
    large_unread: AtomicUsize,
    /// Where this peer is known, and forgotten in the end.
    known_to: Weak<Known>,
}

/// To find out reads files of the system, which is too much for each new peer.
static CORES: LazyLock<usize> = LazyLock::new(|| std::thread::available_parallelism().map_or(1, usize::from));

impl Peer {
    /// A peer of which nothing is known yet, and which nobody else will know.
    #[cfg(test)]
    pub(crate) fn new(address: Option<IpAddr>) -> Peer {
        Peer::known_to(&Weak::new(), address)
    }

    fn known_to(known: &Weak<Known>, address: Option<IpAddr>) -> Peer {
        let shared = Shared {
            address,
            held: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
            turns: Arc::new(Semaphore::new(*CORES)),
            large_turn: Arc::new(Semaphore::new(1)),
            large_unread: AtomicUsize::new(0),
            known_to: known.clone(),
        };
        Peer::of(Arc::new(shared))
    }

    fn of(shared: Arc<Shared>) -> Peer {
        Peer {
            shared,
            large_unread: Arc::default(),
        }
    }

    /// The same peer on a further connection; clones are on the same one.
    pub(crate) fn on_another_connection(&self) -> Peer {
        Peer::of(self.shared.clone())
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

    /// How many streams that last are open to this peer; the service keeps the count.
    pub(crate) fn streams(&self) -> &AtomicUsize {
        &self.shared.streams
    }

    /// One for each core: as many of this peer's requests may stand in a queue that all peers share.
    pub(crate) fn turns(&self) -> &Arc<Semaphore> {
        &self.shared.turns
    }

    /// One: as many of this peer's large requests may stand in the queue of those that go one at a time.
    pub(crate) fn large_turn(&self) -> &Arc<Semaphore> {
        &self.shared.large_turn
    }

    /// How many of this peer's large requests wait for that before they are read, on all connections and on this one; the
    /// service keeps the counts.
    pub(crate) fn large_unread(&self) -> [&AtomicUsize; 2] {
        [&self.shared.large_unread, &self.large_unread]
    }
}

/// The peers of listeners that share what they ration: who comes to several of them is one peer. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Peers {
    known: Arc<Known>,
}

type Known = Mutex<HashMap<Option<IpAddr>, Weak<Shared>>>;

impl Peers {
    /// The peer at this address.
    pub(super) fn at(&self, address: Option<IpAddr>) -> Peer {
        let mut known = lock(&self.known);
        if let Some(shared) = known.get(&address).and_then(Weak::upgrade) {
            return Peer::of(shared);
        }
        let peer = Peer::known_to(&Arc::downgrade(&self.known), address);
        known.insert(address, Arc::downgrade(&peer.shared));
        peer
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let Some(known) = self.known_to.upgrade() else {
            return;
        };
        let mut known = lock(&known);
        // Unless the peer has come back meanwhile.
        if known.get(&self.address).is_some_and(|peer| peer.strong_count() == 0) {
            known.remove(&self.address);
        }
    }
}

fn lock(known: &Known) -> MutexGuard<'_, HashMap<Option<IpAddr>, Weak<Shared>>> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn a_peer_is_the_same_to_all_who_know_it_and_is_forgotten_with_its_last_connection() {
        let peers = Peers::default();
        let address = Some(IpAddr::from([192, 0, 2, 1]));
        let (first, second) = (peers.at(address), peers.clone().at(address));
        assert!(Arc::ptr_eq(&first.shared, &second.shared));
        assert!(!Arc::ptr_eq(&first.shared, &peers.at(None).shared));
        assert_eq!(
            lock(&peers.known).len(),
            1,
            "nobody has a connection over a Unix socket"
        );
        drop(first);
        assert!(Arc::ptr_eq(&second.shared, &peers.at(address).shared));
        drop(second);
        assert!(lock(&peers.known).is_empty());
    }

    #[test]
    fn one_ipv6_network_is_one_peer_and_mapped_ipv4_is_ipv4() {
        let of = |text: &str| identity(text.parse().unwrap()).to_string();
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(of("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(of("192.0.2.7"), "192.0.2.7");
    }
}
