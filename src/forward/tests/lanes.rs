//! The decisions of a lane, without a network or a clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::rig::{names, request};
use crate::forward::ExporterOptions;
use crate::forward::answer::{Answer, Verdict};
use crate::forward::lane::{Lane, Outcome, Ticket};
use crate::forward::load::Load;
use crate::forward::parcel::Parcel;
use crate::forward::window::Window;
use crate::otlp::Encoding;

fn lane(options: &ExporterOptions) -> Lane {
    Lane::new(options)
}

/// Every request goes by itself.
fn unmerged() -> ExporterOptions {
    ExporterOptions {
        merge: false,
        ..ExporterOptions::default()
    }
}

fn push(lane: &mut Lane, sequence: u64, name: &str) {
    lane.push(Load::uncompressed(sequence, Encoding::Identity, request([name])));
}

fn sequences(parcel: &Parcel) -> Vec<u64> {
    parcel.parts.iter().map(|part| part.sequence).collect()
}

fn answered(lane: &mut Lane, now: Instant, sent: (Parcel, Ticket), verdict: Verdict) -> Outcome {
    answered_by(lane, now, sent, &Answer::new(verdict, "said so"))
}

fn answered_by(lane: &mut Lane, now: Instant, (parcel, ticket): (Parcel, Ticket), answer: &Answer) -> Outcome {
    lane.answered(now, parcel, ticket, answer, 0.5).0
}

/// A lane of requests of their own in which `bad` fails while `good` is taken; `good` is taken `rounds` times after a
/// failure. Returns the time, and `bad` if it is to be set aside.
fn make_suspect(lane: &mut Lane, rounds: u32, failure: &Answer) -> (Instant, Option<Parcel>) {
    let mut now = Instant::now();
    push(lane, 0, "bad");
    for round in 0..=rounds {
        push(lane, u64::from(round) + 1, "good");
        let mut is_tried = false;
        while !is_tried || !lane.loader.is_empty() {
            now = lane.wake_at(now).unwrap_or(now).max(now);
            while let Some(sent) = lane.next(now) {
                if sent.0.history.refused.is_some() {
                    return (now, Some(sent.0));
                }
                if sequences(&sent.0) == [0] {
                    is_tried = true;
                    answered_by(lane, now, sent, failure);
                } else {
                    answered(lane, now, sent, Verdict::Delivered);
                }
            }
        }
    }
    (now, None)
}

#[test]
fn while_a_small_request_is_under_way_the_next_ones_gather() {
    let now = Instant::now();
    let mut lane = lane(&ExporterOptions::default());
    push(&mut lane, 0, "a");
    let first = lane.next(now).unwrap();
    push(&mut lane, 1, "b");
    push(&mut lane, 2, "c");
    assert!(lane.next(now).is_none());
    assert!(matches!(
        answered(&mut lane, now, first, Verdict::Delivered),
        Outcome::Delivered(_)
    ));
    assert_eq!(sequences(&lane.next(now).unwrap().0), [1, 2]);
}

#[test]
fn a_full_request_does_not_wait_for_one_under_way() {
    let now = Instant::now();
    let options = ExporterOptions {
        max_request_size: 100,
        ..ExporterOptions::default()
    };
    let mut lane = lane(&options);
    push(&mut lane, 0, "a");
    let _under_way = lane.next(now).unwrap();
    push(&mut lane, 1, &"b".repeat(30));
    push(&mut lane, 2, &"c".repeat(30));
    assert_eq!(sequences(&lane.next(now).unwrap().0), [1]);
    assert!(lane.next(now).is_none());
}

#[test]
fn a_backend_that_takes_nothing_is_asked_by_one_request_at_a_time_and_nothing_is_ever_refused() {
    [Verdict::Unclear, Verdict::Transient]
        .into_iter()
        .for_each(ask_for_long);
}

fn ask_for_long(failure: Verdict) {
    let mut now = Instant::now();
    let options = ExporterOptions {
        merge: false,
        ..ExporterOptions::default()
    };
    let mut lane = lane(&options);
    for sequence in 0..5 {
        push(&mut lane, sequence, "a");
    }
    let under_way: Vec<_> = std::iter::from_fn(|| lane.next(now)).collect();
    assert_eq!(under_way.len(), 5);
    for sent in under_way {
        assert!(matches!(answered(&mut lane, now, sent, failure), Outcome::Waits));
    }
    for _ in 0..1000 {
        assert!(lane.next(now).is_none());
        now = lane.wake_at(now).unwrap();
        let probe = lane.next(now).unwrap();
        assert!(lane.next(now).is_none(), "one at a time");
        assert!(matches!(answered(&mut lane, now, probe, failure), Outcome::Waits));
    }
    let probe = {
        now = lane.wake_at(now).unwrap();
        lane.next(now).unwrap()
    };
    assert!(matches!(
        answered(&mut lane, now, probe, Verdict::Delivered),
        Outcome::Delivered(_)
    ));
    assert_eq!(
        std::iter::from_fn(|| lane.next(now)).count(),
        4,
        "then the others go at once"
    );
}

#[test]
fn one_failure_of_a_backend_that_works_holds_up_only_the_request_that_failed() {
    let now = Instant::now();
    let options = ExporterOptions {
        merge: false,
        ..ExporterOptions::default()
    };
    let mut lane = lane(&options);
    (0..5).for_each(|sequence| push(&mut lane, sequence, "a"));
    let sent = lane.next(now).unwrap();
    answered(&mut lane, now, sent, Verdict::Delivered);
    let sent = lane.next(now).unwrap();
    answered(&mut lane, now, sent, Verdict::Transient);
    assert_eq!(
        lane.wake_at(now),
        Some(now + Duration::from_secs(1)),
        "the request that failed waits by itself"
    );
    let sent = lane.next(now).unwrap();
    assert_eq!(sequences(&sent.0), [2], "the next one goes");
    assert!(lane.trouble().is_none());
    answered(&mut lane, now, sent, Verdict::Transient);
    assert!(
        lane.trouble().is_some(),
        "the second failure without a success between is the backend's"
    );
    assert!(lane.next(now).is_none());
}

#[test]
fn an_answer_that_asks_for_a_pause_takes_nothing_apart_and_closes_the_gate_for_that_time() {
    let pause = Some(Duration::from_secs(10));
    for (verdict, retry_after, least) in [
        (Verdict::OverQuota, None, Duration::from_millis(500)),
        (Verdict::OverQuota, pause, Duration::from_secs(10)),
        (Verdict::Unclear, pause, Duration::from_secs(10)),
        (Verdict::TimedOut, pause, Duration::from_secs(10)),
    ] {
        let answer = Answer {
            retry_after,
            ..Answer::new(verdict, "a request too many")
        };
        let mut now = Instant::now();
        let mut lane = lane(&ExporterOptions::default());
        push(&mut lane, 0, "a");
        let first = lane.next(now).unwrap();
        (1..=16).for_each(|sequence| push(&mut lane, sequence, "a"));
        answered(&mut lane, now, first, Verdict::Delivered);
        // Others are taken after each of its failures.
        for round in 1..=10 {
            let joined = lane.next(now).unwrap_or_else(|| {
                now = lane.wake_at(now).unwrap();
                lane.next(now).unwrap()
            });
            assert_eq!(joined.0.parts.len(), 16, "it stays joined");
            assert!(matches!(answered_by(&mut lane, now, joined, &answer), Outcome::Waits));
            assert_eq!(lane.trouble(), Some(&answer), "round {round}");
            push(&mut lane, 100 + round, "fresh");
            assert!(lane.next(now).is_none(), "the gate is closed");
            let opens = lane.wake_at(now).unwrap();
            assert!(opens >= now + least, "{:?}", opens - now);
            now = opens;
            let mut probe = lane.next(now).unwrap();
            if probe.0.parts.len() > 1 {
                answered_by(&mut lane, now, probe, &answer);
                now = lane.wake_at(now).unwrap();
                probe = lane.next(now).unwrap();
            }
            answered(&mut lane, now, probe, Verdict::Delivered);
        }
    }
}

#[test]
fn an_answer_that_asks_for_a_longer_pause_prolongs_one_that_has_begun() {
    let now = Instant::now();
    let mut lane = lane(&unmerged());
    (0..2).for_each(|sequence| push(&mut lane, sequence, "a"));
    let (first, second) = (lane.next(now).unwrap(), lane.next(now).unwrap());
    answered(&mut lane, now, first, Verdict::Transient);
    assert_eq!(lane.wake_at(now), Some(now + Duration::from_secs(1)));
    let answer = Answer {
        retry_after: Some(Duration::from_secs(60)),
        ..Answer::new(Verdict::Transient, "later")
    };
    answered_by(&mut lane, now, second, &answer);
    assert!(lane.wake_at(now).unwrap() >= now + Duration::from_secs(60));
}

#[test]
fn a_suspect_request_in_a_lane_that_has_gone_quiet_is_named_as_the_backends_trouble() {
    let failure = Answer::new(Verdict::Transient, "reset");
    let mut lane = lane(&unmerged());
    let (mut now, _) = make_suspect(&mut lane, 3, &failure);
    for _ in 0..2 {
        assert_eq!(lane.trouble(), None, "others are taken");
        now = lane.wake_at(now).unwrap();
        let sent = lane.next(now).unwrap();
        assert!(sent.0.history.suspicion > 0);
        answered_by(&mut lane, now, sent, &failure);
    }
    assert_eq!(lane.trouble(), Some(&failure), "nothing was taken since");
    push(&mut lane, 100, "good");
    now = lane.wake_at(now).unwrap();
    let sent = lane.next(now).unwrap();
    assert_eq!(sequences(&sent.0), [100], "the suspect one lets others go first");
    answered(&mut lane, now, sent, Verdict::Delivered);
    assert_eq!(lane.trouble(), None);
}

#[test]
fn a_suspect_request_waits_longer_after_each_failure_whoever_is_taken_meanwhile() {
    let failure = Answer::new(Verdict::Transient, "reset");
    let mut lane = lane(&unmerged());
    let (mut now, _) = make_suspect(&mut lane, 1, &failure);
    let mut last = Duration::ZERO;
    for _ in 0..20 {
        let failed = now;
        let sent = loop {
            now = lane.wake_at(now).unwrap();
            if let Some(sent) = lane.next(now) {
                break sent;
            }
        };
        assert!(now - failed >= last, "{:?} after {last:?}", now - failed);
        last = now - failed;
        answered_by(&mut lane, now, sent, &failure);
    }
    assert_eq!(last, Duration::from_secs(30));
}

#[test]
fn a_request_that_never_reached_the_backend_is_no_suspect() {
    let failure = Answer::unreachable("cannot connect");
    let mut lane = lane(&unmerged());
    let (mut now, _) = make_suspect(&mut lane, 3, &failure);
    now = lane.wake_at(now).unwrap_or(now);
    let sent = lane.next(now).unwrap();
    assert_eq!((sequences(&sent.0), sent.0.history.suspicion), (vec![0], 0));
}

#[test]
fn a_request_that_fails_for_ten_minutes_while_others_are_taken_is_set_aside_and_the_reason_says_so() {
    let advised = Some(Duration::from_secs(5));
    for (verdict, retry_after) in [
        (Verdict::Transient, None),
        (Verdict::TimedOut, None),
        // There are proxies that give this advice with every failure.
        (Verdict::Transient, advised),
        (Verdict::Unclear, advised),
    ] {
        let mut lane = lane(&unmerged());
        let began = Instant::now();
        let answer = Answer {
            retry_after,
            ..Answer::new(verdict, "reset")
        };
        let (now, aside) = make_suspect(&mut lane, 1000, &answer);
        let aside = aside.expect("it is set aside");
        assert!(aside.history.suspicion >= 20 && now - began >= Duration::from_secs(600));
        assert!(now - began < Duration::from_secs(1200), "{:?}", now - began);
        let reason = aside.history.refused.unwrap();
        assert!(
            reason.starts_with("reset") && reason.contains("others were taken"),
            "{reason}"
        );
    }
}

#[test]
fn failures_in_quick_succession_do_not_set_a_request_aside_before_ten_minutes_have_passed() {
    let mut options = unmerged();
    options.retry_on_failure.max_interval = Duration::from_secs(1);
    let mut lane = lane(&options);
    let began = Instant::now();
    let (now, aside) = make_suspect(&mut lane, 250, &Answer::new(Verdict::Transient, "reset"));
    assert!(now - began < Duration::from_secs(600), "{:?}", now - began);
    assert!(aside.is_none());
}

#[test]
fn what_the_operator_can_cure_and_what_blames_no_content_is_never_set_aside() {
    for failure in [
        Answer::new(Verdict::Curable, "403"),
        Answer::new(Verdict::OverQuota, "429"),
        Answer::unreachable("cannot connect"),
    ] {
        let (_, aside) = make_suspect(&mut lane(&unmerged()), 200, &failure);
        assert!(aside.is_none(), "{failure:?}");
    }
}

#[test]
fn of_a_small_request_that_fails_for_ten_minutes_only_the_span_at_fault_is_set_aside() {
    let mut now = Instant::now();
    let mut lane = lane(&unmerged());
    lane.push(Load::uncompressed(
        0,
        Encoding::Identity,
        request(["a", "bad", "c", "d"]),
    ));
    let mut taken = BTreeSet::new();
    let aside = 'aside: loop {
        push(&mut lane, 1, "good");
        now = lane.wake_at(now).unwrap_or(now).max(now);
        while let Some(sent) = lane.next(now) {
            let names = names(&sent.0.joined());
            if sent.0.history.refused.is_some() {
                break 'aside names;
            }
            let verdict = match names.contains(&"bad".to_owned()) {
                true => Verdict::Transient,
                false => Verdict::Delivered,
            };
            taken.extend((verdict == Verdict::Delivered).then_some(names).into_iter().flatten());
            answered(&mut lane, now, sent, verdict);
        }
        now += Duration::from_secs(1);
    };
    assert_eq!(aside, ["bad"]);
    assert!(["a", "c", "d"].iter().all(|name| taken.contains(*name)), "{taken:?}");
}

#[test]
fn a_curable_answer_is_asked_about_again_at_the_longest_interval() {
    let now = Instant::now();
    let mut lane = lane(&ExporterOptions::default());
    push(&mut lane, 0, "a");
    let sent = lane.next(now).unwrap();
    answered(&mut lane, now, sent, Verdict::Curable);
    assert_eq!(lane.wake_at(now), Some(now + Duration::from_secs(30)));
    assert_eq!(lane.trouble().unwrap().verdict, Verdict::Curable);
}

#[test]
fn a_large_request_that_is_too_slow_is_divided_and_larger_ones_return_when_it_goes_well() {
    let mut now = Instant::now();
    let options = ExporterOptions {
        max_request_size: 1 << 20,
        ..ExporterOptions::default()
    };
    let mut lane = lane(&options);
    let names: Vec<String> = (0..100).map(|index| format!("{index:08192}")).collect();
    lane.push(Load::uncompressed(
        0,
        Encoding::Identity,
        request(names.iter().map(String::as_str)),
    ));
    let sent = lane.next(now).unwrap();
    answered(&mut lane, now, sent, Verdict::TimedOut);
    now = lane.wake_at(now).unwrap();
    let sent = lane.next(now).unwrap();
    let Outcome::Divided(pieces) = answered(&mut lane, now, sent, Verdict::TimedOut) else {
        panic!("not divided")
    };
    assert_eq!(pieces, [(0, 2)]);
    assert!(lane.loader.limit() < 1 << 20);
    for _ in 0..2 {
        now = lane.wake_at(now).unwrap_or(now);
        let sent = lane.next(now).unwrap();
        answered(&mut lane, now, sent, Verdict::Delivered);
    }
    for sequence in 1..20 {
        push(&mut lane, sequence, "small");
        let sent = lane.next(now).unwrap();
        answered(&mut lane, now, sent, Verdict::Delivered);
    }
    assert_eq!(lane.loader.limit(), 1 << 20);
}

/// A backend with moods, poison and a limit; every record has to end in exactly one way.
#[test]
fn whatever_the_backend_does_every_record_is_delivered_or_refused_and_the_position_reaches_the_end() {
    for seed in 0..100 {
        simulate(seed);
    }
}

fn simulate(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let options = ExporterOptions {
        merge: random.bool(),
        max_request_size: random.usize(200..3000),
        ..ExporterOptions::default()
    };
    let backend_limit = random.usize(150..3000);
    let flakiness = random.f64() * 0.6;
    let poison_verdict = random
        .choice([Verdict::Refused, Verdict::Unclear, Verdict::Transient])
        .unwrap();
    let mut lane = lane(&options);
    let mut window = Window::new(0);
    let mut now = Instant::now();
    let mut outage_until = now;
    let mut under_way = Vec::new();
    // Name of each span, and whether the backend chokes on it.
    let mut expected: BTreeMap<String, bool> = BTreeMap::new();
    let (mut delivered, mut refused) = (Vec::new(), Vec::new());
    let records = 40;
    let mut next_record = 0;
    let mut turns = 0;
    while window.position() < records {
        turns += 1;
        assert!(
            turns < 100_000,
            "seed {seed}: no end at {} of {records}",
            window.position()
        );
        if next_record < records && random.u8(..3) == 0 {
            let is_poison = random.u8(..10) == 0;
            let count = if is_poison { 1 } else { random.usize(1..20) };
            let spans: Vec<String> = (0..count)
                .map(|span| format!("{}{next_record}.{span}", if is_poison { "bad " } else { "" }))
                .collect();
            let encoding = if random.bool() {
                Encoding::Identity
            } else {
                Encoding::Gzip
            };
            let load = Load::uncompressed(next_record, encoding, request(spans.iter().map(String::as_str)));
            expected.extend(spans.into_iter().map(|name| (name, is_poison)));
            window.add(next_record, lane.push(load));
            next_record += 1;
        }
        while under_way.len() < 4
            && let Some(expected) = lane.peek(now).map(sequences)
        {
            let sent = lane.next(now).unwrap();
            assert_eq!(sequences(&sent.0), expected, "seed {seed}");
            under_way.push(sent);
        }
        assert!(
            under_way.len() == 4 || lane.next(now).is_none(),
            "seed {seed}: nothing is where nothing is seen"
        );
        if under_way.is_empty() || random.u8(..4) == 0 {
            // Traffic goes on, so time never stands still for ever.
            let soon = now + Duration::from_millis(random.u64(1..500));
            now = lane.wake_at(now).map_or(soon, |wake| wake.max(now).min(soon));
        }
        if random.u8(..100) == 0 {
            outage_until = now + Duration::from_millis(random.u64(..20_000));
        }
        if under_way.is_empty() {
            continue;
        }
        let (parcel, ticket) = under_way.swap_remove(random.usize(..under_way.len()));
        if parcel.history.refused.is_some() {
            refused.extend(names(&parcel.joined()));
            parcel.parts.iter().for_each(|part| window.done(part.sequence));
            continue;
        }
        let body: Bytes = parcel.joined();
        let has_poison = names(&body).iter().any(|name| name.starts_with("bad"));
        let verdict = if now < outage_until || random.f64() < flakiness {
            random
                .choice([
                    Verdict::Transient,
                    Verdict::TimedOut,
                    Verdict::OverQuota,
                    Verdict::Curable,
                ])
                .unwrap()
        } else if body.len() > backend_limit && names(&body).len() > 1 {
            Verdict::TooLarge
        } else if has_poison {
            poison_verdict
        } else {
            Verdict::Delivered
        };
        match answered(&mut lane, now, (parcel, ticket), verdict) {
            Outcome::Delivered(parcel) => {
                delivered.extend(names(&parcel.joined()));
                parcel.parts.iter().for_each(|part| window.done(part.sequence));
            }
            Outcome::Divided(pieces) => pieces
                .into_iter()
                .for_each(|(sequence, count)| window.divided(sequence, count)),
            Outcome::Waits => {}
            Outcome::GaveUp(_) => panic!("seed {seed}: given up without a limit"),
        }
        // Poison that is not refused is only found out while others are taken.
        if window.position() < records && next_record == records && lane.is_empty() && under_way.is_empty() {
            panic!("seed {seed}: something was lost");
        }
        if next_record == records && under_way.is_empty() && poison_verdict != Verdict::Refused {
            // Later traffic goes on for ever; here a request that the test does not count.
            lane.push(Load::uncompressed(u64::MAX, Encoding::Identity, request(["later"])));
        }
    }
    let count = |names: &[String]| {
        let names: Vec<&String> = names.iter().filter(|name| *name != "later").collect();
        let set: BTreeSet<String> = names.iter().map(|name| (*name).clone()).collect();
        assert_eq!(names.len(), set.len(), "seed {seed}: twice");
        set
    };
    let (delivered, refused) = (count(&delivered), count(&refused));
    let of = |poison: bool| -> BTreeSet<String> {
        expected
            .iter()
            .filter(|(_, is_poison)| **is_poison == poison)
            .map(|(name, _)| name.clone())
            .collect()
    };
    assert_eq!(delivered, of(false), "seed {seed}");
    assert_eq!(refused, of(true), "seed {seed}");
}
