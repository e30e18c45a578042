//! The open connections of one listener: how many there may be, and which one gives way.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::Gauge;
use tokio_util::sync::CancellationToken;

use super::Limits;
use super::connection::Activity;
use super::peer::{Peer, Peers};

/// The open connections.
pub(super) struct Open {
    table: Mutex<Table>,
    most: usize,
    most_of_one_peer: usize,
    known: Peers,
    gauge: Gauge,
}

#[derive(Default)]
struct Table {
    connections: HashMap<u64, Connection>,
    peers: HashMap<Option<IpAddr>, (Peer, usize)>,
    next: u64,
}

struct Connection {
    peer: Option<IpAddr>,
    activity: Arc<Activity>,
}

/// The place of one open connection, given back when dropped.
pub(super) struct Place {
    open: Arc<Open>,
    id: u64,
    pub(super) activity: Arc<Activity>,
    pub(super) peer: Peer,
}

impl Open {
    pub(super) fn new(limits: &Limits, known: Peers, gauge: Gauge) -> Arc<Open> {
        Arc::new(Open {
            table: Mutex::default(),
            most: limits.max_connections,
            most_of_one_peer: limits.max_connections_of_one_peer,
            known,
            gauge,
        })
    }

    /// A place for one more connection, that is closed when `shutdown` is cancelled. When all are taken, or all that one
    /// peer may take, the connection that was idle longest is closed for it; when none is idle there is no place.
    pub(super) fn place(self: &Arc<Open>, peer: Option<IpAddr>, shutdown: &CancellationToken) -> Option<Place> {
        let mut table = self.lock();
        let of_this_peer = table.peers.get(&peer).map_or(0, |(_, connections)| *connections);
        if of_this_peer >= self.most_of_one_peer {
            table.close_longest_idle(|connection| connection.peer == peer)?;
        } else if table.connections.len() >= self.most {
            table.close_longest_idle(|_| true)?;
        }
        let id = table.next;
        table.next += 1;
        let activity = Activity::new(shutdown.child_token());
        table.connections.insert(
            id,
            Connection {
                peer,
                activity: activity.clone(),
            },
        );
        let (known, connections) = table.peers.entry(peer).or_insert_with(|| (self.known.at(peer), 0));
        *connections += 1;
        let peer = known.on_another_connection();
        self.gauge.set(table.connections.len() as f64);
        drop(table);
        Some(Place {
            open: self.clone(),
            id,
            activity,
            peer,
        })
    }

    /// Closes the connection that was idle longest, if one is idle.
    pub(super) fn make_room(&self) {
        // Without an idle one there is nothing to be done.
        let _closed = self.lock().close_longest_idle(|_| true);
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn close_longest_idle(&mut self, which: impl Fn(&Connection) -> bool) -> Option<()> {
        let candidates = self.connections.iter().filter(|(_, connection)| which(connection));
        let quiet = candidates.filter_map(|(id, connection)| Some((*id, connection.activity.quiet_since()?)));
        let (id, _) = quiet.min_by_key(|&(_, since)| since)?;
        self.remove(id)?.activity.close.cancel();
        Some(())
    }

    /// Forgets a connection, and its peer when that was its last one.
    fn remove(&mut self, id: u64) -> Option<Connection> {
        let connection = self.connections.remove(&id)?;
        if let Some((_, connections)) = self.peers.get_mut(&connection.peer) {
            *connections -= 1;
            if *connections == 0 {
                self.peers.remove(&connection.peer);
            }
        }
        Some(connection)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.open.lock();
        table.remove(self.id);
        self.open.gauge.set(table.connections.len() as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(most: usize, most_of_one_peer: usize) -> Arc<Open> {
        let limits = Limits {
            max_connections: most,
            max_connections_of_one_peer: most_of_one_peer,
            ..Limits::default()
        };
        Open::new(&limits, Peers::default(), Gauge::noop())
    }

    fn address(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([192, 0, 2, last]))
    }

    #[tokio::test]
    async fn one_peer_cannot_take_every_place() {
        let open = open(4, 3);
        let shutdown = CancellationToken::new();
        let greedy: Vec<Place> = (0..3).map(|_| open.place(address(1), &shutdown).unwrap()).collect();
        let busy: Vec<_> = greedy.iter().map(|place| place.activity.begin()).collect();
        assert!(open.place(address(1), &shutdown).is_none());
        let modest = open.place(address(2), &shutdown).unwrap();
        assert!(open.place(address(1), &shutdown).is_none());
        drop(busy);
        let further = open.place(address(1), &shutdown).unwrap();
        assert!(
            greedy[0].activity.close.is_cancelled(),
            "its own longest idle connection gives way"
        );
        assert!(!modest.activity.close.is_cancelled());
        drop((greedy, modest, further));
        let table = open.lock();
        assert_eq!((table.connections.len(), table.peers.len()), (0, 0));
    }

    #[tokio::test]
    async fn when_every_place_is_taken_the_longest_idle_connection_of_anybody_gives_way() {
        let open = open(2, 2);
        let shutdown = CancellationToken::new();
        let first = open.place(address(1), &shutdown).unwrap();
        let request = first.activity.begin();
        let second = open.place(address(2), &shutdown).unwrap();
        let third = open.place(address(3), &shutdown).unwrap();
        assert!(second.activity.close.is_cancelled() && !first.activity.close.is_cancelled());
        let _busy = third.activity.begin();
        assert!(open.place(address(2), &shutdown).is_none());
        drop(request);
        assert!(open.place(address(2), &shutdown).is_some());
    }
}
