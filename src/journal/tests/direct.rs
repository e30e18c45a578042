//! Writing past the page cache: where bytes end up, what waits for what, and who reads back.

use std::sync::Arc;

use bytes::Bytes;

use super::sim_disk::{Direct, SimDisk};
use super::{bodies, entry, on_page};
use crate::journal::core::{Begun, Core};
use crate::journal::direct::{DirectIo, DirectWriter, LEAST, MEMORY};
use crate::journal::disk::{Disk, DiskFile};
use crate::journal::options::Settings;
use crate::journal::record::{HEADER, Placement, span_of};
use crate::journal::segment::{DATA_START, lock};
use crate::journal::*;

/// A writer, its file through the page cache, and the disk.
fn writer(direct: Direct) -> (DirectWriter, Arc<dyn DiskFile>, SimDisk) {
    let disk = SimDisk::new(7, 1 << 30);
    disk.set_direct(direct);
    let file = disk.create("file").unwrap();
    let size = end().next_multiple_of(4096);
    file.allocate(size).unwrap();
    let writer = Arc::new(DirectIo::new(MEMORY, LEAST))
        .writer(&disk, "file", size)
        .unwrap();
    (writer, file, disk)
}

/// Where it belongs, its header and its body.
type Placed = (Placement, [u8; HEADER], Bytes);

/// Records of many lengths, each with a header and a body of a byte of its own. Those of every third length are on blocks,
/// where it is for the writer to take them.
fn records() -> Vec<Placed> {
    let lengths = [
        0,
        1,
        7,
        4024,
        4096,
        LEAST,
        MEMORY - 8192,
        3 * MEMORY + 5,
        LEAST + 1,
        100,
        MEMORY,
        2 * MEMORY - 77,
    ];
    let mut offset = DATA_START;
    let mut records = Vec::new();
    for (number, length) in lengths.into_iter().enumerate() {
        let on_block = number % 3 == 2;
        let at = placement(offset, length, on_block);
        let byte = number as u8 + 1;
        let body = vec![byte; length];
        let body = if on_block { on_page(&body) } else { Bytes::from(body) };
        records.push((at, [byte | 0x80; HEADER], body));
        offset = at.next();
    }
    records
}

fn placement(offset: u64, length: usize, on_block: bool) -> Placement {
    Placement {
        offset,
        length: length as u32,
        on_block,
    }
}

fn end_of(records: &[Placed]) -> u64 {
    records.last().unwrap().0.next()
}

/// Where the last of [`records`] ends.
fn end() -> u64 {
    end_of(&records())
}

fn append_all<'r>(writer: &DirectWriter, records: impl IntoIterator<Item = &'r Placed>) {
    for (at, header, body) in records {
        writer.append(*header, body.clone(), *at);
    }
}

#[track_caller]
fn assert_written(file: &dyn DiskFile, records: &[Placed]) {
    for (at, header, body) in records {
        let mut found = vec![0; HEADER];
        file.read_at(&mut found, at.offset).unwrap();
        assert_eq!(found[..HEADER], *header, "header at {}", at.offset);
        let mut found = vec![0; body.len()];
        file.read_at(&mut found, at.body()).unwrap();
        assert!(found == **body, "body at {}", at.body());
    }
}

#[test]
fn records_of_any_length_lie_where_they_belong_however_many_share_a_sync() {
    for direct in [Direct::Works, Direct::Refuses] {
        for at_once in 1..=records().len() {
            let (writer, file, disk) = writer(direct);
            for (number, records) in records().chunks(at_once).enumerate() {
                append_all(&writer, records);
                let end = end_of(records);
                // Both ways into the file, one after the other.
                writer.sync(&*file, end, number % 3 == 1).unwrap();
            }
            disk.lose_power();
            assert_written(&*file, &records());
            assert_eq!(
                file.length().unwrap(),
                end().next_multiple_of(4096),
                "the file has grown"
            );
        }
    }
}

#[test]
fn a_writer_in_the_memory_of_an_earlier_one_writes_its_own_records_only() {
    let disk = SimDisk::new(7, 1 << 30);
    disk.set_direct(Direct::Works);
    let direct_io = Arc::new(DirectIo::new(MEMORY, LEAST));
    let size = end().next_multiple_of(4096);
    let write = |name: &str, records: &[Placed]| {
        let file = disk.create(name).unwrap();
        file.allocate(size).unwrap();
        let writer = direct_io.writer(&disk, name, size).unwrap();
        append_all(&writer, records);
        let end = end_of(records);
        writer.sync(&*file, end, false).unwrap();
        writer.close();
        assert_written(&*file, records);
        let mut behind = vec![1; (end.next_multiple_of(4096) - end) as usize];
        file.read_at(&mut behind, end).unwrap();
        assert!(
            behind.iter().all(|byte| *byte == 0),
            "something of an earlier one lies behind the last record"
        );
    };
    write("first", &records());
    write("second", &records()[..2]);
}

#[test]
fn a_record_waits_for_those_in_front_of_it() {
    let (writer, file, disk) = writer(Direct::Works);
    let records = records();
    append_all(&writer, records[1..].iter().rev());
    writer.sync(&*file, DATA_START, false).unwrap();
    assert_eq!(disk.direct_writes(), 0, "something was written behind a gap");
    append_all(&writer, &records[..1]);
    writer.sync(&*file, end(), false).unwrap();
    assert_written(&*file, &records);
}

#[test]
fn what_comes_behind_what_a_sync_was_asked_for_waits_for_the_next() {
    let (writer, file, disk) = writer(Direct::Works);
    let records = records();
    append_all(&writer, &records);
    let two = records[2].0.offset;
    writer.sync(&*file, two, false).unwrap();
    assert_eq!(disk.direct_writes(), 1);
    assert_written(&*file, &records[..2]);
    let mut behind = [0; HEADER];
    file.read_at(&mut behind, two).unwrap();
    assert_eq!(behind, [0; HEADER]);
    writer.sync(&*file, end(), false).unwrap();
    assert_written(&*file, &records);
}

#[test]
fn a_sync_that_misses_a_record_it_was_to_write_fails() {
    let (writer, file, disk) = writer(Direct::Works);
    let records = records();
    append_all(&writer, &records[1..2]);
    let end = records[2].0.offset;
    let error = writer.sync(&*file, end, false).unwrap_err();
    assert!(error.to_string().contains("never written"), "{error}");
    assert_eq!(disk.direct_writes(), 0, "something was written behind a gap");
}

#[test]
fn after_a_failed_sync_nothing_is_written_any_more() {
    let (writer, file, disk) = writer(Direct::Works);
    let records = records();
    append_all(&writer, &records[..1]);
    disk.set_read_only(true);
    writer.sync(&*file, records[1].0.offset, false).unwrap_err();
    disk.set_read_only(false);
    append_all(&writer, &records);
    writer.sync(&*file, end(), false).unwrap_err();
    assert_eq!(disk.direct_writes(), 0);
}

#[test]
fn a_body_is_let_go_of_when_it_is_written() {
    let (writer, file, _disk) = writer(Direct::Works);
    let mut offset = DATA_START;
    for body in [Bytes::from(vec![1; 1000]), on_page(&[1; 2 * LEAST])] {
        let at = placement(offset, body.len(), writer.takes_as_it_is(&body));
        offset = at.next();
        writer.append([0; HEADER], body.clone(), at);
        assert!(!body.is_unique());
        writer.sync(&*file, offset, false).unwrap();
        assert!(body.is_unique());
    }
    let body = Bytes::from(vec![1; 1000]);
    writer.append([0; HEADER], body.clone(), placement(offset, 1000, false));
    writer.close();
    assert!(body.is_unique());
}

#[test]
fn a_large_body_on_a_page_is_written_from_where_it_is_and_others_are_copied() {
    let disk = SimDisk::new(7, 1 << 30);
    let core = core(&disk);
    let sent = [
        vec![1; 100],
        vec![2; LEAST],
        vec![3; LEAST - 1],
        vec![4; LEAST + 1],
        vec![5; 7],
        vec![6; 2 * LEAST + 77],
    ];
    let mut written = Vec::new();
    for body in &sent {
        let body = on_page(body);
        append_body(&core, body.clone());
        written.push(disk.wrote_from(&body));
    }
    assert_eq!(written, [false, true, false, true, false, true]);
    // One that is on a page too, but fits into what is left of the segment only right behind its header.
    let free = {
        let state = lock(&core.state);
        let active = state.active.as_ref().unwrap();
        active.segment.size - active.offset
    };
    let tight = on_page(&vec![8; LEAST + 8]);
    let filling = free - span_of(tight.len()) - span_of(0);
    append_body(&core, on_page(&vec![7; filling as usize + 1]).slice(1..));
    append_body(&core, tight.clone());
    assert!(!disk.wrote_from(&tight));

    disk.lose_power();
    let core = self::core(&disk);
    let mut reader = Reader::new(Arc::clone(&core), 0);
    reader.resume(None);
    let mut read = Vec::new();
    while !reader.is_caught_up() {
        read.extend(bodies(&reader.try_next_batch(1 << 20, 100).unwrap()));
    }
    assert_eq!(read[..sent.len()], sent);
    assert_eq!(read.last(), Some(&tight));
}

#[test]
fn while_the_disk_hangs_no_more_is_held_than_was_agreed_on() {
    let disk = SimDisk::new(7, 1 << 30);
    let core = core(&disk);
    let mut held = 0;
    let refused = loop {
        let entry = entry(vec![1; 10_000]);
        match core.begin(&entry) {
            Ok(Begun::Write(reservation)) => drop(core.finish(reservation, Ok(()))),
            Ok(Begun::Done(_)) => panic!("there is room in the segment"),
            Err(refused) => break refused,
        }
        held += span_of(10_000);
    };
    assert!(matches!(&refused, AppendError::Failed(_)), "{refused}");
    assert!(refused.is_retryable());
    assert_eq!(
        held,
        (108_333 / span_of(10_000) + 1) * span_of(10_000),
        "a twelfth more, and one request"
    );
}

/// A core without threads on a simulated disk, with room in memory for a few records.
fn core(disk: &SimDisk) -> Arc<Core> {
    let options = Options {
        max_size: 64 << 20,
        segment_size: Some(1 << 20),
        readers: vec!["meter".to_owned()],
        tail_bytes: 10_000,
        max_unsynced: 100_000,
        free_disk_floor: 0,
        ..Options::new("/simulated")
    };
    let settings = Settings::new(&options).unwrap();
    let locked = disk.lock("lock").unwrap().unwrap();
    let (core, _) = Core::open(Arc::new(disk.clone()), locked, settings, 1, &[3; 48]).unwrap();
    Arc::new(core)
}

/// Appends a record and syncs it; returns how many direct writes that took.
fn append(core: &Core, disk: &SimDisk, byte: u8) -> u64 {
    let before = disk.direct_writes();
    append_body(core, vec![byte; 2000].into());
    disk.direct_writes() - before
}

fn append_body(core: &Core, body: Bytes) {
    let entry = entry(body);
    let Begun::Write(reservation) = core.begin(&entry).unwrap() else {
        panic!("no place for a record");
    };
    let outcome = core.write(&reservation, &entry);
    let durable = core.finish(reservation, outcome);
    let job = core.sync_job(&mut lock(&core.state), 1).unwrap();
    let outcome = job.run();
    core.finish_sync(job, outcome, 1);
    assert_eq!(durable.outcome(), Some(Ok(())));
}

#[test]
fn what_readers_have_in_memory_goes_past_the_page_cache_and_what_they_read_from_files_through_it() {
    let disk = SimDisk::new(7, 1 << 30);
    let core = core(&disk);
    let mut reader = Reader::new(Arc::clone(&core), 0);
    reader.resume(None);
    let mut sent = Vec::new();
    let mut read = Vec::new();
    let mut send = |byte| {
        sent.push(Bytes::from(vec![byte; 2000]));
        append(&core, &disk, byte)
    };
    // The tail holds four of them.
    let direct: Vec<u64> = (0..8).map(&mut send).collect();
    assert_eq!(direct, [1, 1, 1, 1, 0, 0, 0, 0]);
    while !reader.is_caught_up() {
        read.extend(bodies(&reader.try_next_batch(1 << 20, 100).unwrap()));
    }
    assert!(reader.try_next_batch(1 << 20, 100).unwrap().is_empty());
    assert_eq!(send(8), 1, "the reader keeps up again");
    read.extend(bodies(&reader.try_next_batch(1 << 20, 100).unwrap()));
    assert_eq!(read, sent);
}
