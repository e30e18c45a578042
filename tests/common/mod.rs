//! What the end-to-end tests share: the real program as a process, senders over every protocol, a sink, and readers for
//! what the program shows the world (its log, `/metrics`, the SQLite table). Nothing here knows how the program works
//! inside; everything is written from what its documentation promises.

pub mod http;
pub mod load;
pub mod pgbouncer;
pub mod postgres;
pub mod program;
pub mod prometheus;
pub mod rows;
pub mod scenario;
pub mod script;
pub mod send;
pub mod sink;
pub mod spans;

use std::future::Future;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long anything that must happen may take. Generous, because it is only ever waited out by a failing test.
pub const DEADLINE: Duration = Duration::from_secs(45);

/// How much of [`DEADLINE`] is over. While this process was held, as by SIGSTOP together with all that it waits for,
/// nothing could happen: of a longer gap only a moment counts. On a machine that gives it little time for long,
/// `SPANLEDGER_TEST_PATIENCE=10` waits ten times as long.
pub struct Patience {
    last: Instant,
    spent: Duration,
    deadline: Duration,
}

impl Patience {
    const MOST_AT_ONCE: Duration = Duration::from_secs(5);

    /// All of it is left.
    pub fn new() -> Patience {
        Patience {
            last: Instant::now(),
            spent: Duration::ZERO,
            deadline: DEADLINE * std::env::var("SPANLEDGER_TEST_PATIENCE").map_or(1, |times| times.parse().unwrap()),
        }
    }

    /// Whether nothing is left; to be asked again and again.
    pub fn is_over(&mut self) -> bool {
        self.spent += self.last.elapsed().min(Patience::MOST_AT_ONCE);
        self.last = Instant::now();
        self.spent >= self.deadline
    }
}

/// What comes of it, unless that takes longer than [`DEADLINE`].
pub async fn in_time<T>(work: impl Future<Output = T>) -> Option<T> {
    let mut work = std::pin::pin!(work);
    let mut patience = Patience::new();
    while !patience.is_over() {
        if let Ok(done) = tokio::time::timeout(Patience::MOST_AT_ONCE, &mut work).await {
            return Some(done);
        }
    }
    None
}

/// Tries until it succeeds, and says what was still wrong if it never does.
pub async fn eventually<T, F>(what: &str, mut attempt: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let mut patience = Patience::new();
    loop {
        let wrong = match attempt().await {
            Ok(result) => return result,
            Err(wrong) => wrong,
        };
        assert!(!patience.is_over(), "{what}: not within {DEADLINE:?}; at last: {wrong}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The random numbers of one test, the same in every run. `SPANLEDGER_TEST_SEED` gives others: a number, or `any` for
/// ones that nobody has seen; the seed is printed.
pub fn random(test: &str) -> fastrand::Rng {
    let seed = match std::env::var("SPANLEDGER_TEST_SEED") {
        Ok(given) if given == "any" => fastrand::u64(..),
        Ok(given) => given.parse().expect("SPANLEDGER_TEST_SEED is a number, or `any`"),
        Err(_) => test
            .bytes()
            .fold(0, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte))),
    };
    println!("{test}: SPANLEDGER_TEST_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// Now, in whole milliseconds since 1970, less the given time.
pub fn unix_ms_ago(ago: Duration) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from((now - ago).as_millis()).unwrap()
}

/// A TCP port for a process that has to be found again after a restart. It lies below the range from which the kernel
/// takes ports for outgoing connections, so that nothing else on the machine gets it in between.
pub fn fixed_port() -> u16 {
    ReservedPort::new().number
}

/// A fixed port that nobody else can take, not even a test in another process that looks for one while nothing listens
/// here: a socket is bound to it all the time. Connections are refused until [`ReservedPort::listen`].
pub struct ReservedPort {
    pub number: u16,
    _bound: tokio::net::TcpSocket,
}

impl ReservedPort {
    pub fn new() -> Self {
        use std::sync::atomic::{AtomicU16, Ordering};
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let first = u16::try_from(std::process::id() % 1_000).unwrap() * 20;
        loop {
            let number = 11_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
            // Whoever shares a port by intention has to be told from one that is free.
            let is_free = std::net::TcpListener::bind(("127.0.0.1", number)).is_ok();
            if let Some(bound) = is_free.then(|| shared_socket(number).ok()).flatten() {
                return Self { number, _bound: bound };
            }
        }
    }

    /// Takes connections; as often as wanted, one after the other.
    pub fn listen(&self) -> tokio::net::TcpListener {
        shared_socket(self.number).unwrap().listen(1024).unwrap()
    }
}

fn shared_socket(port: u16) -> std::io::Result<tokio::net::TcpSocket> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(std::net::SocketAddr::from(([127, 0, 0, 1], port)))?;
    Ok(socket)
}
