//! Rows that are written, deleted and read in any order: each is shown once, none is lost, and who comes back misses none.

use std::collections::{BTreeMap, HashMap, HashSet};

use proptest::prelude::*;

use super::*;

/// Keys as they are read, newest first.
fn keys(places: impl DoubleEndedIterator<Item = i64>) -> Vec<Key> {
    let key = |place: i64| Key {
        place: Place(place),
        id: place.to_string(),
        is_row: true,
    };
    places.rev().map(key).collect()
}

fn waiting(following: &Following) -> Vec<(i64, i64)> {
    let next = following.waiting.iter();
    next.map(|next| (next.place.0, next.resume.0)).collect()
}

fn left_out(rows: usize) -> LeftOut {
    LeftOut {
        rows,
        maybe_more: false,
    }
}

fn writers(numbers: &[i64]) -> Writers {
    numbers.iter().map(i64::to_string).collect()
}

fn from_now_on(order: Order, places: impl DoubleEndedIterator<Item = i64>) -> Following {
    Following::new(order, &keys(places), KEYS_BEFORE, REMEMBERED)
}

#[test]
fn who_goes_on_amid_missing_places_goes_on_before_them() {
    let now = Instant::now();
    let mut following = from_now_on(Order::Taken, 1..4);
    assert_eq!(following.done, Place(3));
    assert_eq!(following.take(now, keys([4, 6, 7].into_iter()), None), left_out(0));
    assert_eq!(
        (waiting(&following), following.done),
        (vec![(4, 4), (6, 4), (7, 4)], Place(4))
    );
    // What could not be read from the database stays.
    assert_eq!(following.take(now, keys(5..9), None), left_out(0));
    let all = vec![(4, 4), (6, 4), (7, 4), (5, 5), (8, 8)];
    assert_eq!((waiting(&following), following.done), (all, Place(8)));
    assert!(following.seen.is_empty() && !following.has_gaps());
}

#[test]
fn a_missing_place_is_waited_for_until_every_transaction_that_may_have_taken_it_has_ended() {
    let begin = Instant::now();
    let at = |seconds| begin + Duration::from_secs(seconds);
    let mut following = from_now_on(Order::Taken, 1..2);
    following.take(begin, keys([3].into_iter()), None);
    assert_eq!(following.done, Place(1));
    // One of these may have taken it, whoever comes later has not.
    following.settle(at(1), &writers(&[11, 12]));
    following.take(at(1), keys([3].into_iter()), None);
    following.settle(at(50), &writers(&[12, 13]));
    following.take(at(50), keys([3].into_iter()), None);
    assert_eq!(following.done, Place(1));
    following.settle(at(59), &writers(&[13]));
    // It ended by a commit.
    assert_eq!(following.take(at(59), keys(2..4), None), left_out(0));
    assert_eq!(waiting(&following), [(3, 1), (2, 2)]);
    assert_eq!(following.done, Place(3));
    // Another one is waited for in vain.
    following.take(at(60), keys([5].into_iter()), None);
    following.settle(at(119), &writers(&[30]));
    assert_eq!(following.take(at(119), keys([5].into_iter()), None), left_out(0));
    following.settle(at(120), &writers(&[30]));
    let maybe = LeftOut {
        rows: 0,
        maybe_more: true,
    };
    assert_eq!(following.take(at(120), keys([5].into_iter()), None), maybe);
    assert_eq!(following.done, Place(5));
    assert!(!following.has_gaps());
    // Where nobody writes, nobody has taken it.
    following.take(at(121), keys([7].into_iter()), None);
    following.settle(at(122), &writers(&[]));
    assert_eq!(following.take(at(122), keys([7].into_iter()), None), left_out(0));
    assert_eq!(following.done, Place(7));
}

#[test]
fn rows_beyond_the_keys_that_are_read_are_counted_once_and_what_was_shown_of_them_is_not() {
    let (all, now) = (KEYS as i64, Instant::now());
    let mut following = from_now_on(Order::Taken, 1..1);
    // The first place stays empty.
    assert_eq!(following.take(now, keys(2..12), None), left_out(0));
    following.waiting.clear();
    // Up to the oldest that was read there are the ten that were shown, 88 others, and itself.
    let beyond = following.take(now, keys(100..100 + all), Some(99));
    let maybe = LeftOut {
        rows: 88 + KEYS - AT_ONCE,
        // Somebody may yet write to the first one.
        maybe_more: true,
    };
    assert_eq!(beyond, maybe);
    assert_eq!(following.done, Place(99 + all));
    let newest: Vec<i64> = waiting(&following).into_iter().map(|(place, _)| place).collect();
    assert_eq!(newest, (100 + all - AT_ONCE as i64..100 + all).collect::<Vec<_>>());
}

#[test]
fn what_is_none_takes_a_place_and_is_not_shown() {
    let mut following = from_now_on(Order::Taken, 1..2);
    let mut read = keys(2..4);
    read[1].is_row = false;
    following.take(Instant::now(), read, None);
    assert_eq!((waiting(&following), following.done), (vec![(3, 3)], Place(3)));
}

#[test]
fn a_row_is_remembered_for_as_long_as_so_many_others_were_not_shown() {
    let now = Instant::now();
    let again = |following: &mut Following, place| {
        let key = Key {
            place: Place(place),
            id: "2".to_owned(),
            is_row: true,
        };
        following.take(now, vec![key], None);
        std::mem::take(&mut following.waiting).len()
    };
    let mut following = Following::new(Order::Taken, &[], KEYS_BEFORE, 3);
    following.take(now, keys(1..5), None);
    following.waiting.clear();
    assert_eq!(again(&mut following, 5), 0);
    following.take(now, keys(6..8), None);
    following.waiting.clear();
    assert_eq!(again(&mut following, 8), 0);
    following.take(now, keys(9..12), None);
    following.waiting.clear();
    assert_eq!(again(&mut following, 12), 1);
}

/// What a database does between two looks at it.
#[derive(Debug, Clone)]
enum Step {
    /// Begins a transaction that takes so many places.
    Begin(u8),
    /// One of those that go on takes another.
    Write(u8),
    /// Ends one of those that go on, and keeps its rows or not.
    End(u8, bool),
    /// Takes a row that was committed away and writes it again.
    Again(u8),
    /// Deletes so many of the newest rows.
    Delete(u8),
    /// So many tenths of a second later, the rows are looked at.
    Look(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1..6u8).prop_map(Step::Begin),
        2 => any::<u8>().prop_map(Step::Write),
        4 => (any::<u8>(), prop::bool::weighted(0.8)).prop_map(|(which, is_kept)| Step::End(which, is_kept)),
        1 => any::<u8>().prop_map(Step::Again),
        1 => (1..30u8).prop_map(Step::Delete),
        4 => (1..25u8).prop_map(Step::Look),
    ];
    prop::collection::vec(step, 0..120)
}

/// A database, what follows it, and what was shown.
struct Model {
    order: Order,
    now: Instant,
    rows: BTreeMap<i64, String>,
    /// Transactions by number, with what they wrote.
    running: BTreeMap<i64, Vec<(i64, String)>>,
    next_transaction: i64,
    next_place: i64,
    next_row: usize,
    following: Option<Following>,
    /// As they were shown.
    events: Vec<Next>,
    before: HashSet<String>,
}

impl Model {
    fn new(order: Order) -> Model {
        Model {
            order,
            now: Instant::now(),
            rows: BTreeMap::new(),
            running: BTreeMap::new(),
            next_transaction: 1,
            next_place: 1,
            next_row: 0,
            following: None,
            events: Vec::new(),
            before: HashSet::new(),
        }
    }

    fn place(&mut self) -> i64 {
        if self.order == Order::Committed {
            return self.rows.keys().next_back().unwrap_or(&0) + 1;
        }
        self.next_place += 1;
        self.next_place - 1
    }

    fn after(&self, place: Place) -> Vec<Key> {
        let newest = self.rows.iter().rev().take_while(|(row, _)| **row > place.0);
        let key = |(place, id): (&i64, &String)| Key {
            place: Place(*place),
            id: id.clone(),
            is_row: true,
        };
        newest.map(key).collect()
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Begin(count) => {
                let mut written = Vec::new();
                for _ in 0..count {
                    let (place, id) = (self.place(), format!("row {}", self.next_row));
                    self.next_row += 1;
                    match self.order {
                        Order::Committed => drop(self.rows.insert(place, id)),
                        Order::Taken => written.push((place, id)),
                    }
                }
                if self.order == Order::Taken {
                    self.running.insert(self.next_transaction, written);
                    self.next_transaction += 1;
                }
            }
            Step::Write(which) => {
                let running: Vec<i64> = self.running.keys().copied().collect();
                if !running.is_empty() {
                    let (place, id) = (self.place(), format!("row {}", self.next_row));
                    self.next_row += 1;
                    let written = self.running.get_mut(&running[usize::from(which) % running.len()]);
                    written.unwrap().push((place, id));
                }
            }
            Step::End(which, is_kept) => {
                let running: Vec<i64> = self.running.keys().copied().collect();
                if !running.is_empty() {
                    let written = self
                        .running
                        .remove(&running[usize::from(which) % running.len()])
                        .unwrap();
                    self.rows.extend(written.into_iter().filter(|_| is_kept));
                }
            }
            Step::Again(which) => {
                let places: Vec<i64> = self.rows.keys().copied().collect();
                if !places.is_empty() {
                    let id = self.rows.remove(&places[usize::from(which) % places.len()]).unwrap();
                    let place = self.place();
                    self.rows.insert(place, id);
                }
            }
            Step::Delete(count) => {
                for _ in 0..count {
                    self.rows.pop_last();
                }
            }
            Step::Look(tenths) => {
                self.now += Duration::from_millis(100) * u32::from(tenths);
                self.look();
            }
        }
    }

    /// As the poller does.
    fn look(&mut self) {
        let Some(mut following) = self.following.take() else {
            let keys = self.after(Place(0));
            self.before = self.rows.values().cloned().collect();
            self.following = Some(Following::new(self.order, &keys, KEYS_BEFORE, REMEMBERED));
            return;
        };
        if following.has_gaps() {
            following.settle(self.now, &self.running.keys().map(i64::to_string).collect());
        }
        let mut keys = self.after(following.read_after());
        let left_out = match following.has_moved(&mut keys) {
            Some(after) => {
                let last = Place(self.rows.keys().next_back().copied().unwrap_or_default());
                let (unknown, is_lost) = following.go_back(self.after(after), last);
                assert!(!is_lost);
                following.take(self.now, unknown, None)
            }
            None => following.take(self.now, keys, None),
        };
        assert_eq!(left_out, LeftOut::default());
        self.events.extend(std::mem::take(&mut following.waiting));
        assert!(following.turns.len() <= 1_000 && following.seen.len() <= 1_000);
        self.following = Some(following);
        // All that is there was there before or is shown.
        let shown: HashSet<&String> = self.events.iter().map(|event| &event.id).collect();
        let is_known = |id: &&String| self.before.contains(*id) || shown.contains(id);
        assert_eq!(self.rows.values().find(|id| !is_known(id)), None);
    }

    fn check(&self) {
        let mut times: HashMap<&str, usize> = HashMap::new();
        for event in &self.events {
            *times.entry(&event.id).or_default() += 1;
            assert!(!self.before.contains(&event.id), "{} was there before", event.id);
        }
        assert!(times.values().all(|times| *times == 1), "{:?}", self.events);
        if self.order == Order::Taken {
            for (index, event) in self.events.iter().enumerate() {
                let missed = self.events[index + 1..]
                    .iter()
                    .find(|later| later.place <= event.resume);
                assert_eq!(missed, None, "after {event:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn each_row_that_is_committed_is_shown_once_and_who_comes_back_misses_none(steps in steps()) {
        let mut model = Model::new(Order::Taken);
        for step in steps {
            // None goes on for as long as a client is told about.
            if model.now.duration_since(Instant::now()) < Duration::from_secs(50) {
                model.step(step);
            }
        }
        // Whoever goes on ends.
        while !model.running.is_empty() {
            model.step(Step::End(0, true));
        }
        model.look();
        model.look();
        model.check();
    }

    #[test]
    fn each_row_that_is_written_where_another_was_is_shown_once(steps in steps()) {
        let mut model = Model::new(Order::Committed);
        for step in steps {
            model.step(step);
        }
        model.look();
        model.look();
        model.check();
    }
}
