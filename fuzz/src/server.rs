//! A running receiver, for what is fuzzed through its sockets.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use spanledger::journal::{Fsync, Journal, Options, Reader};
use spanledger::otlp::{Signal, TraceRequest, decompress};
use spanledger::receive::{ReceiveOptions, Receivers};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// More than any input becomes by decompression, and little enough to be reached.
const LIMIT: usize = 1 << 20;

/// No answer takes that long, even on a machine that has hardly any time for fuzzing.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A directory in memory, where there is such a place.
pub fn directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

/// The server, and what looks at its journal.
pub struct Server {
    pub runtime: Runtime,
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    reader: Mutex<Reader>,
    _directory: TempDir,
}

impl Server {
    pub fn start() -> Server {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let directory = directory();
        let (journal, _) = Journal::open(Options {
            max_size: 64 << 20,
            retain: Duration::ZERO,
            fsync: Fsync::Interval(Duration::from_secs(1)),
            readers: vec!["fuzz".to_owned()],
            free_disk_floor: 0,
            ..Options::new(directory.path())
        })
        .unwrap();
        let mut reader = journal.reader("fuzz").unwrap();
        reader.resume(None);
        let mut options = ReceiveOptions::default();
        let (grpc, http) = (options.grpc.as_mut().unwrap(), options.http.as_mut().unwrap());
        grpc.endpoint = "127.0.0.1:0".to_owned();
        grpc.max_recv_msg_size = LIMIT;
        http.endpoint = "127.0.0.1:0".to_owned();
        http.max_request_body_size = LIMIT;
        // More than a starved machine takes between two reads.
        let short = Duration::from_secs(60);
        (grpc.read_timeout, http.read_timeout) = (short, short);
        (grpc.limits.header_timeout, http.limits.header_timeout) = (short, short);
        let _entered = runtime.enter();
        // libFuzzer's `main` is not Rust's: a peer that went away would end the process.
        let _none_is_awaited = signal(SignalKind::pipe()).unwrap();
        let receivers = Receivers::bind(&options, journal).unwrap();
        let addresses: Vec<SocketAddr> = receivers
            .addresses()
            .map(|(_, address)| address.tcp().unwrap())
            .collect();
        runtime.spawn(receivers.serve(CancellationToken::new()));
        drop(_entered);
        Server {
            runtime,
            grpc: addresses[0],
            http: addresses[1],
            reader: Mutex::new(reader),
            _directory: directory,
        }
    }

    /// Sends bytes and reads until the end; `is_all` says that there are no more, without which the server has to close.
    pub async fn exchange(address: SocketAddr, bytes: &[u8], is_all: bool) -> Vec<u8> {
        let mut answer = Vec::new();
        let exchange = async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // The server may close before all of it is written.
            let _written = stream.write_all(bytes).await;
            if is_all {
                let _ended = stream.shutdown().await;
            }
            let _read = stream.read_to_end(&mut answer).await;
        };
        let ended = tokio::time::timeout(PATIENCE, exchange).await;
        assert!(ended.is_ok(), "the connection does not end");
        answer
    }

    /// What is in the journal can be read by everybody behind it.
    pub fn check_journal(&self) {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        for record in reader.try_next_batch(usize::MAX, usize::MAX).unwrap() {
            let plain = decompress(record.encoding, &record.body, LIMIT).unwrap();
            if record.signal == Signal::Traces {
                let checked = TraceRequest::parse(plain).unwrap();
                assert_eq!((checked.spans, checked.rejected), (record.items, 0));
            }
        }
        let passed = reader.position();
        reader.passed(passed);
    }
}

/// One input at a time, so that what is found is of that input.
pub fn exclusive() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
