//! Spans that wait, with several sidecars at one database.

use super::databases::{Database, Session, on_both, with};
use super::support::{MS, at, failure, success};
use crate::ledger::facts::Facts;
use crate::ledger::store::{Keys, LOAD_BYTES, LOAD_LIMIT, Room, Store, Waiting};

on_both! {
    what_others_wrote_is_found_whatever_was_rolled_back_before
    what_is_forgotten_is_no_longer_found_and_what_comes_then_is
    what_waits_in_a_trace_of_more_than_are_loaded_does_not_wait_twice
    of_long_texts_no_more_is_loaded_than_memory_may_hold
}

async fn begin(session: &mut Session) {
    with!(*session, store => store.begin().await).unwrap();
}

async fn commit(session: &mut Session) {
    with!(*session, store => store.commit().await).unwrap();
}

async fn wait(session: &mut Session, facts: &[Facts]) {
    let facts: Vec<&Facts> = facts.iter().collect();
    let waiting = with!(*session, store => store.wait(&facts).await).unwrap();
    assert_eq!(waiting, facts.len() as u64);
}

/// Which of the spans wait, in a transaction of its own.
async fn waiting(session: &mut Session, facts: &[Facts]) -> Vec<u64> {
    begin(session).await;
    let found = with!(*session, store => store.load(&Keys::of(facts), &mut Room::of_batch()).await).unwrap();
    commit(session).await;
    let mut ends: Vec<u64> = found
        .iter()
        .map(|facts| facts.end / MS - super::support::EPOCH / MS)
        .collect();
    ends.sort_unstable();
    ends
}

/// One span in each of two traces; with the other keys of both.
fn spans(id: u16, workflow: &'static str) -> Vec<Facts> {
    let ends = u64::from(id);
    at(
        &[
            success(id as u8, id, 0, ends),
            success(100 + id as u8, id, 0, 50 + ends).ids("wf", workflow, "n"),
        ],
        0,
    )
}

async fn what_others_wrote_is_found_whatever_was_rolled_back_before(database: Database) {
    let (first, second, third) = (spans(1, "we-1"), spans(2, "we-2"), spans(3, "we-3"));
    let mut one = database.connect().await.unwrap();
    let mut other = database.connect().await.unwrap();
    begin(&mut one).await;
    wait(&mut one, &first).await;
    with!(one, store => store.rollback().await).unwrap();
    begin(&mut other).await;
    wait(&mut other, &second).await;
    commit(&mut other).await;
    begin(&mut one).await;
    with!(one, store => store.savepoint().await).unwrap();
    wait(&mut one, &first).await;
    with!(one, store => store.back_to_savepoint().await).unwrap();
    wait(&mut one, &third).await;
    commit(&mut one).await;
    for session in [&mut one, &mut other, &mut database.connect().await.unwrap()] {
        assert_eq!(waiting(session, &first).await, [0; 0]);
        assert_eq!(waiting(session, &second).await, [2, 52]);
        assert_eq!(waiting(session, &third).await, [3, 53]);
        assert_eq!(
            waiting(session, &[first.clone(), third.clone()].concat()).await,
            [3, 53]
        );
    }
}

/// Lets all wait, and loads what waits with the first of them, in a transaction that goes on.
async fn loaded(session: &mut Session, all: &[Facts]) -> (Vec<Facts>, Room) {
    begin(session).await;
    wait(session, all).await;
    commit(session).await;
    begin(session).await;
    let (keys, mut room) = (Keys::of(&all[..1]), Room::of_batch());
    let known = with!(*session, store => store.load(&keys, &mut room).await).unwrap();
    (known, room)
}

async fn what_waits_in_a_trace_of_more_than_are_loaded_does_not_wait_twice(database: Database) {
    let one = at(&[success(1, 1, 0, 1)], 0).remove(0);
    let numbered = |number: u64| {
        let mut facts = one.clone();
        facts.id.span = number.to_be_bytes();
        facts
    };
    let all: Vec<Facts> = (1..=LOAD_LIMIT as u64 + 50).map(numbered).collect();
    let mut session = database.connect().await.unwrap();
    let (known, _) = loaded(&mut session, &all).await;
    assert_eq!(known.len(), LOAD_LIMIT);
    let again: Vec<Facts> = all.iter().cloned().chain([numbered(1 << 40)]).collect();
    let again: Vec<&Facts> = again.iter().collect();
    assert_eq!(with!(session, store => store.wait(&again).await).unwrap(), 1);
    commit(&mut session).await;
    let waiting = database.waiting().await;
    assert_eq!(waiting, all.len() as i64 + 1);
}

async fn what_is_forgotten_is_no_longer_found_and_what_comes_then_is(database: Database) {
    let (first, second) = (spans(1, "we-1"), spans(2, "we-2"));
    let mut one = database.connect().await.unwrap();
    let mut other = database.connect().await.unwrap();
    for session in [&mut one, &mut other] {
        begin(session).await;
        wait(session, &first).await;
        with!(*session, store => store.forget(&first).await).unwrap();
        wait(session, &second).await;
        commit(session).await;
        assert_eq!(waiting(session, &first).await, [0; 0]);
        assert_eq!(waiting(session, &second).await, [2, 52]);
        begin(session).await;
        with!(*session, store => store.forget_before(i64::MAX, false, 100).await).unwrap();
        assert_eq!(with!(*session, store => store.count_waiting(100).await).unwrap().0, 0);
        commit(session).await;
    }
    begin(&mut one).await;
    wait(&mut one, &first).await;
    commit(&mut one).await;
    assert_eq!(waiting(&mut one, &first).await, [1, 51]);
    assert_eq!(waiting(&mut other, &first).await, [1, 51]);
    assert_eq!(waiting(&mut other, &second).await, [0; 0]);
}

async fn of_long_texts_no_more_is_loaded_than_memory_may_hold(database: Database) {
    let one = at(&[failure(1, 1, 0, 1).status(2, &"x".repeat(8_000))], 0).remove(0);
    let numbered = |number: u64| {
        let mut facts = one.clone();
        facts.id.span = number.to_be_bytes();
        facts.received_at += number;
        facts
    };
    let fit = (LOAD_BYTES / one.told.to_json().len()) as u64;
    let all: Vec<Facts> = (1..=fit + 50).map(numbered).collect();
    let mut session = database.connect().await.unwrap();
    let (known, room) = loaded(&mut session, &all).await;
    assert_eq!(known.len() as u64, fit + 1);
    assert!(room.is_used_up());
    // The latest, and what was not read is in nobody's way.
    assert!(known.iter().all(|facts| facts.received_at > one.received_at + 49));
    let again: Vec<&Facts> = all.iter().collect();
    assert_eq!(with!(session, store => store.wait(&again).await).unwrap(), 0);
    commit(&mut session).await;
    assert_eq!(database.waiting().await, all.len() as i64);
}
