use std::collections::VecDeque;

use bytes::Bytes;

use super::huge::PAGE;
use super::*;

const KEPT: usize = 8 << 20;

const KIB: usize = 1 << 10;

/// As on a system that gives large pages.
fn in_large_pages(kept: usize) -> Arc<Buffers> {
    Buffers::with(kept, false, true)
}

/// As on any other.
fn without_large_pages(kept: usize) -> Arc<Buffers> {
    Buffers::with(kept, false, false)
}

fn filled(buffers: &Arc<Buffers>, bytes: &[u8]) -> Bytes {
    let mut buffer = buffers.take(bytes.len());
    buffer.extend_from_slice(bytes);
    buffer.freeze()
}

fn held(buffers: &Buffers) -> usize {
    buffers.held.load(Ordering::Relaxed)
}

fn unused_in_chunks(buffers: &Buffers) -> usize {
    buffers.lock().chunks.unused()
}

/// Capacities of what lies unused outside of chunks.
fn others(buffers: &Buffers) -> Vec<usize> {
    let unused = buffers.lock();
    let others: Vec<usize> = unused
        .others
        .values()
        .flatten()
        .map(|(_, buffer)| buffer.capacity())
        .collect();
    assert_eq!(unused.bytes, others.iter().sum::<usize>());
    others
}

#[test]
fn a_buffer_is_used_again_when_nobody_holds_its_body_any_more() {
    for buffers in [in_large_pages(KEPT), without_large_pages(KEPT)] {
        for length in [300_000, 20_000] {
            let mut first = buffers.take(length);
            first.extend_from_slice(&vec![b'-'; length - 20]);
            first.extend_from_slice(b"of the first request");
            let place = first.as_ptr();
            let body = first.freeze();
            let part = body.slice(length - 13..length - 8);
            drop(body);
            let other = buffers.take(length);
            assert_ne!(other.as_ptr(), place, "a part of it is still held");
            assert_eq!(part, "first");
            drop(part);
            let second = buffers.take(length - 100);
            assert_eq!((second.as_ptr(), second.len()), (place, 0));
        }
    }
}

#[test]
fn only_what_was_written_becomes_a_body() {
    let buffers = in_large_pages(KEPT);
    drop(filled(&buffers, &[1; 100_000]));
    let mut buffer = buffers.take(99_000);
    assert_eq!(buffer.room()[50_000], 1, "it is the same one");
    buffer.room()[..3].copy_from_slice(b"new");
    buffer.fill(3);
    assert_eq!(buffer.freeze(), "new");
}

#[test]
fn a_buffer_grows_with_what_it_has_and_a_body_keeps_no_more_than_it_needs() {
    let buffers = in_large_pages(KEPT);
    let mut buffer = buffers.take(10);
    let whole: Vec<u8> = (0..200_000_u32).map(|number| number as u8).collect();
    whole.chunks(7_000).for_each(|part| buffer.extend_from_slice(part));
    buffer.grow(1_000_000);
    assert_eq!(held(&buffers), buffer.capacity());
    let body = buffer.freeze();
    assert_eq!(body, whole);
    assert_eq!(held(&buffers), rounded_up(200_000));
}

#[test]
fn no_more_is_kept_than_allowed_and_what_is_held_does_not_count() {
    let buffers = without_large_pages(KEPT);
    let all: Vec<Buffer> = (0..100).map(|_| buffers.take(200_000)).collect();
    let last = all.last().unwrap().as_ptr();
    all.into_iter().for_each(drop);
    let kept = others(&buffers);
    assert_eq!(kept.len(), KEPT / kept[0]);
    assert_eq!(buffers.take(200_000).as_ptr(), last);

    let buffers = in_large_pages(KEPT);
    let all: Vec<Buffer> = (0..100).map(|_| buffers.take(200_000)).collect();
    assert_eq!(held(&buffers), 100 * 208 * KIB);
    assert_eq!(unused_in_chunks(&buffers), 12 * PAGE - 100 * 208 * KIB);
    drop(all);
    assert_eq!((held(&buffers), unused_in_chunks(&buffers)), (0, KEPT));
}

#[test]
fn chunks_that_are_shared_with_what_is_held_stay_and_others_go_on_without_them() {
    const PIECE: usize = 320 * KIB;
    let buffers = in_large_pages(KEPT);
    let mut all: Vec<Buffer> = (0..60).map(|_| buffers.take(PIECE)).collect();
    let left_over = 10 * (PAGE % PIECE);
    assert_eq!(unused_in_chunks(&buffers), left_over);
    // One of each chunk is left.
    let mut number = 0;
    all.retain(|_| {
        number += 1;
        number % 6 == 1
    });
    assert_eq!(unused_in_chunks(&buffers), 10 * (PAGE - PIECE));
    // Nothing else begins a chunk meanwhile; what it takes instead is kept as well.
    let other = buffers.take(512 * KIB);
    let place = other.as_ptr();
    drop(other);
    assert_eq!(unused_in_chunks(&buffers), 10 * (PAGE - PIECE));
    assert_eq!(others(&buffers), [512 * KIB]);
    assert_eq!(buffers.take(512 * KIB).as_ptr(), place);
    all.extend((0..50).map(|_| buffers.take(PIECE)));
    assert_eq!(unused_in_chunks(&buffers), left_over, "all of them are used again");
    drop(all);
    assert_eq!(unused_in_chunks(&buffers), KEPT);
}

#[test]
fn as_much_as_is_held_is_kept_for_the_next_ones_and_given_up_when_that_is_gone() {
    for in_large_pages in [true, false] {
        let buffers = Buffers::with(2 << 20, true, in_large_pages);
        let unused = || unused_in_chunks(&buffers) + others(&buffers).iter().sum::<usize>();
        let bodies = |count: usize| -> Vec<Buffer> { (0..count).map(|_| buffers.take(1 << 20)).collect() };
        let mut all = bodies(16);
        all.truncate(8);
        assert_eq!(unused(), 8 << 20, "as much as is held");
        all.extend(bodies(8));
        assert_eq!(unused(), 0, "all of them are used again");
        // A body that is too large to be kept makes no room for others.
        let large = buffers.take(64 << 20);
        drop(all);
        assert_eq!((unused(), held(&buffers)), (2 << 20, 0));
        drop(large);
    }
}

#[test]
fn what_was_unused_longest_makes_room_whatever_its_size() {
    let buffers = in_large_pages(60 * KIB);
    let all = [24 * KIB, 5 * KIB, 24 * KIB, 6 * KIB].map(|size| buffers.take(size));
    all.into_iter().for_each(drop);
    drop(buffers.take(28 * KIB));
    assert_eq!(others(&buffers), [6 * KIB, 24 * KIB, 28 * KIB]);
    drop(buffers.take(8 * KIB));
    assert_eq!(others(&buffers), [6 * KIB, 8 * KIB, 28 * KIB]);
}

#[test]
fn buffers_have_at_most_an_eighth_too_much_and_what_is_very_small_or_very_large_is_not_kept() {
    let buffers = in_large_pages(KEPT);
    for capacity in [
        0,
        1,
        3_000,
        4 << 10,
        5_000,
        27_000,
        300_001,
        2 << 20,
        (2 << 20) + 1,
        9 << 20,
    ] {
        let buffer = buffers.take(capacity);
        assert!(
            (capacity..=capacity + capacity / 8).contains(&buffer.capacity()),
            "{capacity}"
        );
        assert_eq!(rounded_up(buffer.capacity()), buffer.capacity());
    }
    assert_eq!(others(&buffers), [4 * KIB, 5 * KIB, 28 * KIB]);
    assert_eq!(unused_in_chunks(&buffers), 2 * PAGE);
}

#[test]
fn where_nothing_is_kept_there_are_no_large_pages_for_one_body_each() {
    let buffers = Buffers::new(0);
    drop(buffers.take(PAGE));
    assert_eq!(
        buffers
            .lock()
            .chunks
            .begin(PAGE, PAGE)
            .make()
            .map(|pieces| pieces.len()),
        Some(1)
    );
    assert!(!buffers.in_large_pages);
}

/// Takes, fills, grows, freezes and lets go of buffers at random, and looks whether every body is what was put into it.
fn use_at_random(buffers: &Arc<Buffers>, seed: u64, steps: usize) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bodies: VecDeque<(Bytes, u8)> = VecDeque::new();
    let is_whole = |(body, mark): (Bytes, u8)| assert!(body.iter().all(|byte| *byte == mark), "seed {seed}");
    for step in 0..steps {
        let mark = step as u8;
        let length = if random.bool() {
            random.usize(..50_000)
        } else {
            random.usize(..1_500_000)
        };
        let mut buffer = buffers.take(random.usize(..=length));
        while buffer.len() < length {
            let part = random.usize(1..=length - buffer.len());
            buffer.extend_from_slice(&vec![mark; part]);
        }
        bodies.push_back((buffer.freeze(), mark));
        while bodies.len() > random.usize(..24) {
            let next = random.usize(..bodies.len());
            bodies.swap_remove_back(next).into_iter().for_each(is_whole);
        }
    }
    bodies.into_iter().for_each(is_whole);
}

#[test]
fn bodies_are_what_was_put_into_them_whoever_else_takes_and_gives_back_meanwhile() {
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    for buffers in [
        in_large_pages(KEPT),
        without_large_pages(KEPT),
        Buffers::with(KEPT, true, true),
    ] {
        std::thread::scope(|threads| {
            for number in 0..4 {
                let buffers = &buffers;
                threads.spawn(move || use_at_random(buffers, seed.wrapping_add(number), 50));
            }
        });
        assert_eq!(held(&buffers), 0);
        assert!(unused_in_chunks(&buffers) + others(&buffers).iter().sum::<usize>() <= KEPT / 4 * 5);
        let mut unused = buffers.lock();
        let chunks = std::iter::from_fn(|| unused.chunks.take_whole()).count();
        assert!(chunks <= KEPT / PAGE);
        assert_eq!(unused.chunks.unused(), 0, "every chunk is whole again");
    }
}

#[test]
fn what_was_not_needed_since_the_last_time_goes() {
    for in_large_pages in [true, false] {
        let buffers = Buffers::with(KEPT, false, in_large_pages);
        let unused = || unused_in_chunks(&buffers) + others(&buffers).iter().sum::<usize>();
        let bodies = |count: usize| -> Vec<Buffer> { (0..count).map(|_| buffers.take(1 << 20)).collect() };
        drop(bodies(8));
        buffers.give_up_unneeded();
        assert_eq!(unused(), 8 << 20, "all of it was needed");
        drop(bodies(4));
        buffers.give_up_unneeded();
        assert_eq!(unused(), 4 << 20, "of this only a part was");
        buffers.give_up_unneeded();
        assert_eq!(unused(), 0);
        let held = bodies(2);
        buffers.give_up_unneeded();
        assert!(held.iter().all(|body| body.capacity() == 1 << 20));
        drop(held);
        assert_eq!(unused(), 2 << 20);
    }
}

#[test]
fn what_is_in_use_stays_when_other_memory_goes() {
    let buffers = in_large_pages(KEPT);
    let use_some = || drop((buffers.take(1_500 * KIB), buffers.take(20 * KIB)));
    drop((buffers.take(PAGE / 2), buffers.take(PAGE / 2), buffers.take(24 * KIB)));
    use_some();
    buffers.give_up_unneeded();
    assert_eq!(
        (unused_in_chunks(&buffers), others(&buffers)),
        (4 * PAGE, vec![20 * KIB, 24 * KIB])
    );
    let mut held = Vec::new();
    for _ in 0..3 {
        use_some();
        buffers.give_up_unneeded();
        assert_eq!(unused_in_chunks(&buffers), 3 * PAGE - held.len() * 1_536 * KIB);
        assert_eq!(others(&buffers), [20 * KIB]);
        // A chunk that cannot go, as a part of it is held, drives nothing else out.
        held.push(buffers.take(1_500 * KIB));
    }
}
