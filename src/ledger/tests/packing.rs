//! Packed hours hold what their rows hold, whatever happens to the rows.

use std::collections::BTreeMap;

use super::databases::{Database, PRICES, batch, on_both, with};
use super::support::{EPOCH, HOUR, MS, S, V, at, execution, failure, node, span, success};
use crate::columns::{Packed, hour_of};
use crate::ledger::commit::Batch;
use crate::ledger::meters::Meters;
use crate::ledger::packing::{Packing, parts_of};
use crate::ledger::standalone::stand_alone;
use crate::ledger::store::{Hours, Store};
use crate::ledger::table::EXECUTIONS;

on_both! {
    hours_that_are_over_are_packed_and_hold_their_rows
    a_row_that_comes_late_takes_its_packed_hour_away
    a_span_that_completes_a_row_takes_its_packed_hour_away
    rows_that_are_made_anew_or_taken_over_take_their_packed_hours_away
    rows_that_are_deleted_take_their_packed_hours_away
    what_others_change_is_found_within_a_day
    an_hour_that_somebody_is_about_to_change_is_packed_later
    more_rows_than_one_part_holds_are_all_there
    a_row_of_long_ago_does_not_have_every_hour_since_then_packed
}

const FIRST: u64 = EPOCH / HOUR;

/// Writes spans that are received so long after the epoch.
async fn write(database: &Database, spans: &[S], received_at: u64) {
    let facts = at(spans, received_at);
    let batch = Batch {
        now: EPOCH + received_at,
        ..batch(&facts)
    };
    database.connect().await.unwrap().apply(&batch).await.unwrap();
}

/// Packs all that is over then.
async fn pack(database: &Database, now: u64) {
    let mut session = database.connect().await.unwrap();
    for _ in 0..20 {
        with!(session, store => Packing::default().turn(store, 0, EPOCH + now, &Meters::new()).await).unwrap();
    }
}

/// The hours that are packed, after the first; each holds what its rows hold.
async fn packed(database: &Database) -> Vec<u64> {
    let mut session = database.connect().await.unwrap();
    with!(session, store => {
        let hours = database.hours().await;
        store.begin().await.unwrap();
        let mut found = Vec::new();
        for hour in hours {
            assert_eq!(store.hour(hour).await.unwrap(), parts_of(store, hour).await.unwrap(), "hour {hour}");
            found.push(hour.cast_unsigned() - FIRST);
        }
        store.commit().await.unwrap();
        found
    })
}

/// How many rows are packed in each hour after the first.
async fn rows(database: &Database) -> BTreeMap<u64, usize> {
    let mut session = database.connect().await.unwrap();
    let mut rows = BTreeMap::new();
    for hour in packed(database).await {
        let parts = with!(session, store => store.hour((FIRST + hour).cast_signed()).await).unwrap();
        let count = parts.iter().map(|part| Packed::read(part).unwrap().count()).sum();
        rows.insert(hour, count);
    }
    rows
}

const IN_HOUR: u64 = HOUR / MS;

async fn hours_that_are_over_are_packed_and_hold_their_rows(database: Database) {
    let late = IN_HOUR * 2 + 5;
    let one = failure(1, 1, 0, 7).with("organization.id", V::S("org-1"));
    let other = success(2, 2, late, late + 30).with("code.exit_code", V::I(3));
    write(&database, &[one, other], 2 * HOUR).await;
    pack(&database, 4 * HOUR).await;
    // The third hour is not over for long enough.
    assert_eq!(rows(&database).await, BTreeMap::from([(0, 1), (1, 0)]));
    pack(&database, 5 * HOUR).await;
    assert_eq!(rows(&database).await, BTreeMap::from([(0, 1), (1, 0), (2, 1)]));
    let mut session = database.connect().await.unwrap();
    let parts = with!(session, store => store.hour(FIRST.cast_signed()).await).unwrap();
    let mut packed = Packed::read(&parts[0]).unwrap();
    let texts = packed.texts.clone();
    let row = packed.next().unwrap();
    let text = |index: usize| row.texts[index].checked_sub(1).map(|id| texts[id as usize]);
    assert_eq!(
        std::array::from_fn(text),
        [Some("vm2"), Some("javascript"), None, Some("org-1"), None, None, None]
    );
    assert_eq!(row.at, (EPOCH + 7 * MS).cast_signed() / 1_000);
    assert_eq!(hour_of(row.at), FIRST.cast_signed());
    assert_eq!((row.success, row.is_timeout, row.duration_ms), (false, false, Some(7)));
    assert_eq!((row.exit_code, row.memory_mb, row.cost_usd), (None, None, None));
}

async fn a_row_that_comes_late_takes_its_packed_hour_away(database: Database) {
    write(&database, &[success(1, 1, 0, 5)], 0).await;
    for early in 0..3 {
        pack(&database, early * HOUR).await;
        assert!(packed(&database).await.is_empty(), "it is not over");
    }
    pack(&database, 6 * HOUR).await;
    assert_eq!(packed(&database).await, [0, 1, 2, 3]);
    write(&database, &[success(2, 2, IN_HOUR, IN_HOUR + 5)], 6 * HOUR).await;
    assert_eq!(packed(&database).await, [0, 2, 3]);
    pack(&database, 6 * HOUR).await;
    assert_eq!(rows(&database).await, BTreeMap::from([(0, 1), (1, 1), (2, 0), (3, 0)]));
}

async fn a_span_that_completes_a_row_takes_its_packed_hour_away(database: Database) {
    write(&database, &[failure(1, 1, 100, 150)], 6 * HOUR - HOUR / 2).await;
    pack(&database, 6 * HOUR).await;
    assert_eq!(packed(&database).await, [0, 1, 2, 3]);
    write(&database, &[node(1, 3, 90, 160)], 6 * HOUR).await;
    assert_eq!(database.rows().await[0].organization_id.as_deref(), Some("org-1"));
    assert_eq!(packed(&database).await, [1, 2, 3]);
}

async fn rows_that_are_made_anew_or_taken_over_take_their_packed_hours_away(database: Database) {
    // It ends before the hour does, and its execution after it.
    let runtime = span("e2b.execute", 1, 2, IN_HOUR - 100, IN_HOUR - 50).with("e2b.runtime", V::S("e2b"));
    write(&database, std::slice::from_ref(&runtime), 7 * HOUR - HOUR / 2).await;
    let stand = |now: u64| {
        let database = &database;
        async move {
            let mut session = database.connect().await.unwrap();
            with!(session, store => stand_alone(store, HOUR, 0, EPOCH + now, &PRICES).await)
                .unwrap()
                .1
        }
    };
    assert_eq!(stand(7 * HOUR).await.written, 1);
    pack(&database, 7 * HOUR).await;
    assert_eq!(
        rows(&database).await,
        BTreeMap::from([(0, 1), (1, 0), (2, 0), (3, 0), (4, 0)])
    );
    let late = execution(1, 1, IN_HOUR - 200, IN_HOUR + 10);
    write(&database, std::slice::from_ref(&late), 7 * HOUR).await;
    assert_eq!(database.rows().await.len(), 1, "taken over");
    assert_eq!(packed(&database).await, [2, 3, 4]);
    pack(&database, 7 * HOUR).await;
    assert_eq!(rows(&database).await, BTreeMap::from([(1, 1), (2, 0), (3, 0), (4, 0)]));
    // A runtime that becomes a row when its hour is packed already.
    let alone = span("e2b.execute", 7, 2, 110, 140).with("e2b.runtime", V::S("e2b"));
    write(&database, &[alone], 7 * HOUR).await;
    assert_eq!(stand(8 * HOUR).await.written, 1);
    assert_eq!(packed(&database).await, [1, 2, 3, 4]);
    // As `rows rebuild` does.
    let facts = at(&[late], 0);
    let anew = Batch {
        anew: true,
        now: EPOCH + 8 * HOUR,
        ..batch(&facts)
    };
    database.connect().await.unwrap().apply(&anew).await.unwrap();
    assert_eq!(packed(&database).await, [2, 3, 4]);
}

async fn rows_that_are_deleted_take_their_packed_hours_away(database: Database) {
    write(
        &database,
        &[success(1, 1, 0, 5), success(1, 2, IN_HOUR, IN_HOUR + 5)],
        0,
    )
    .await;
    write(&database, &[success(1, 3, IN_HOUR, IN_HOUR + 900)], 0).await;
    pack(&database, 6 * HOUR).await;
    let mut session = database.connect().await.unwrap();
    let before = EPOCH + HOUR + 100 * MS;
    assert_eq!(
        with!(session, store => store.delete_rows(EXECUTIONS, before, 10).await).unwrap(),
        2
    );
    assert_eq!(packed(&database).await, [2, 3]);
    // The hour that is being deleted is not packed again and again.
    with!(session, store => Packing::default().turn(store, before, EPOCH + 6 * HOUR, &Meters::new()).await).unwrap();
    assert_eq!(packed(&database).await, [2, 3]);
}

async fn what_others_change_is_found_within_a_day(database: Database) {
    write(&database, &[success(1, 1, 0, 5)], 0).await;
    pack(&database, 30 * HOUR).await;
    database.execute("UPDATE code_exec_logs SET duration_ms = 77").await;
    let mut session = database.connect().await.unwrap();
    let mut packing = Packing::default();
    let before = with!(session, store => store.hour(FIRST.cast_signed()).await).unwrap();
    // A turn takes place every ten seconds; 90 days have 2,160 hours.
    for _ in 0..28 * 8640 / 2160 {
        with!(session, store => packing.turn(store, 0, EPOCH + 30 * HOUR, &Meters::new()).await).unwrap();
    }
    assert_ne!(
        with!(session, store => store.hour(FIRST.cast_signed()).await).unwrap(),
        before
    );
    assert_eq!(packed(&database).await, Vec::from_iter(0..28));
}

async fn an_hour_that_somebody_is_about_to_change_is_packed_later(database: Database) {
    if !database.is_postgres() {
        // There is one writer at a time.
        return;
    }
    write(&database, &[success(1, 1, 0, 5)], 0).await;
    let mut session = database.connect().await.unwrap();
    with!(session, store => {
        store.begin().await.unwrap();
        store.unpack(&[FIRST.cast_signed()]).await.unwrap();
    });
    pack(&database, 5 * HOUR).await;
    assert_eq!(packed(&database).await, [1, 2]);
    with!(session, store => store.commit().await.unwrap());
    pack(&database, 5 * HOUR).await;
    assert_eq!(packed(&database).await, [0, 1, 2]);
}

async fn more_rows_than_one_part_holds_are_all_there(database: Database) {
    // Many of one microsecond, so that parts are cut between rows of the same time.
    let spans: Vec<S> = (0..10_500).map(|id| success(1, id, 0, 1 + u64::from(id % 3))).collect();
    write(&database, &spans, 0).await;
    pack(&database, 3 * HOUR).await;
    assert_eq!(rows(&database).await, BTreeMap::from([(0, 10_500)]));
    let parts = database.number("SELECT count(*) FROM spanledger_hours").await;
    assert_eq!(parts, 2);
}

async fn a_row_of_long_ago_does_not_have_every_hour_since_then_packed(database: Database) {
    let days = |days: u64| days * 24;
    write(&database, &[success(1, 1, 0, 5)], 0).await;
    for (id, day) in [(2, 60), (3, 66)] {
        let at = days(day) * IN_HOUR;
        write(&database, &[success(1, id, at, at + 5)], days(day) * HOUR).await;
    }
    pack(&database, days(67) * HOUR).await;
    let recent = days(60)..days(67) - 2;
    assert_eq!(
        packed(&database).await,
        Vec::from_iter(std::iter::once(0).chain(recent))
    );
    // A row in between is found, and the hours around it are left.
    let at = days(30) * IN_HOUR;
    write(&database, &[success(1, 4, at, at + 5)], days(67) * HOUR).await;
    let mut packing = Packing::default();
    let mut session = database.connect().await.unwrap();
    let mut turn = async || {
        let now = EPOCH + days(67) * HOUR;
        with!(session, store => packing.turn(store, 0, now, &Meters::new()).await).unwrap()
    };
    assert!(!turn().await);
    let others = [0, days(30)].into_iter().chain(days(60)..days(67) - 2);
    assert_eq!(packed(&database).await, Vec::from_iter(others));
    // And what others change is found there, too: hours that are not packed are not looked at again.
    database.execute("UPDATE code_exec_logs SET duration_ms = 77").await;
    let hours = packed_other_than_its_rows(&database).await;
    assert_eq!(hours, [0, days(30), days(60), days(66)]);
    for _ in 0..4 * (2 + 7 * 24) {
        turn().await;
    }
    assert!(packed_other_than_its_rows(&database).await.is_empty());
}

/// The packed hours, after the first, that do not hold what their rows hold.
async fn packed_other_than_its_rows(database: &Database) -> Vec<u64> {
    let mut session = database.connect().await.unwrap();
    let mut found = Vec::new();
    with!(session, store => {
        let hours = database.hours().await;
        store.begin().await.unwrap();
        for hour in hours {
            if store.hour(hour).await.unwrap() != parts_of(store, hour).await.unwrap() {
                found.push(hour.cast_unsigned() - FIRST);
            }
        }
        store.commit().await.unwrap();
    });
    found
}
