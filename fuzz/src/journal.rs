//! A journal whose files were written over: it opens, hands out nothing that was not appended, and takes new requests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use spanledger::journal::{Entry, Journal, Options, verify};
use spanledger::otlp::{Encoding, Signal};

const RECORDS: u8 = 40;

/// Files of a journal by name.
static TEMPLATE: LazyLock<BTreeMap<String, Vec<u8>>> = LazyLock::new(|| {
    let directory = super::server::directory();
    let (journal, _) = Journal::open(options(directory.path())).unwrap();
    let mut reader = journal.reader("fuzz").unwrap();
    reader.resume(None);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for number in 0..RECORDS {
        let appended = journal.append(entry(&journal, body(number))).unwrap();
        runtime.block_on(appended.durable).unwrap();
    }
    journal.close();
    drop((reader, journal));
    let files = std::fs::read_dir(directory.path()).unwrap().map(|file| {
        let file = file.unwrap();
        (
            file.file_name().into_string().unwrap(),
            std::fs::read(file.path()).unwrap(),
        )
    });
    files.filter(|(name, _)| name != "lock").collect()
});

fn options(directory: &Path) -> Options {
    Options {
        segment_size: Some(16 << 10),
        max_size: 1 << 20,
        retain: Duration::from_secs(1 << 40),
        readers: vec!["fuzz".to_owned()],
        free_disk_floor: 0,
        ..Options::new(directory)
    }
}

fn body(number: u8) -> Bytes {
    vec![number; 200 + usize::from(number) * 20].into()
}

fn entry(journal: &Journal, body: Bytes) -> Entry {
    Entry {
        signal: Signal::Traces,
        encoding: Encoding::Identity,
        received_at: 1_700_000_000_000_000_000,
        items: 1,
        rejected: 0,
        digest: Some(journal.digest(Signal::Traces, Encoding::Identity, &body)),
        decoded: body.clone(),
        noted: None,
        body,
    }
}

/// One input: pieces of a file to write over. A file, a place, a length, and that many bytes; then the next one.
pub fn run(mut data: &[u8]) {
    let mut files = TEMPLATE.clone();
    while let Some((&[file, high, low, length], rest)) = data.split_first_chunk() {
        let (piece, rest) = rest.split_at(rest.len().min(usize::from(length)));
        data = rest;
        let index = usize::from(file & 0x7f) % files.len();
        let Some(bytes) = files.values_mut().nth(index) else {
            return;
        };
        let place = usize::from(u16::from_be_bytes([high, low])) % bytes.len().max(1);
        if file & 0x80 != 0 {
            bytes.truncate(place);
        }
        let end = (place + piece.len()).min(bytes.len());
        let kept = end.saturating_sub(place);
        bytes[end - kept..end].copy_from_slice(&piece[..kept]);
    }
    let directory = super::server::directory();
    for (name, bytes) in &files {
        std::fs::write(directory.path().join(name), bytes).unwrap();
    }
    // Neither looking nor opening panics, whatever is there; a directory that cannot be used says so.
    let _checked = verify(&options(directory.path())).is_ok();
    let Ok((journal, _)) = Journal::open(options(directory.path())) else {
        return;
    };
    let mut reader = journal.reader("fuzz").unwrap();
    reader.resume(None);
    let appended: BTreeSet<Bytes> = (0..RECORDS).map(body).collect();
    let mut read = 0;
    loop {
        let batch = reader.try_next_batch(usize::MAX, usize::MAX).unwrap();
        if batch.is_empty() {
            break;
        }
        read += batch.len();
        for record in batch {
            assert!(appended.contains(&record.body), "a record that was never appended");
        }
    }
    assert!(read <= usize::from(RECORDS));
    let new = Bytes::from_static(b"new");
    if let Ok(appended) = journal.append(entry(&journal, new.clone())) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(appended.durable).unwrap();
        let batch = reader.try_next_batch(usize::MAX, usize::MAX).unwrap();
        assert_eq!(batch.last().map(|record| &record.body), Some(&new));
    }
    journal.close();
}
