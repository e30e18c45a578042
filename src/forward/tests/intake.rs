//! How records are taken from the journal.

use std::sync::Arc;

use bytes::Bytes;

use super::rig::{Reply, Rig, Sink, names, request};
use crate::egress::{EgressOptions, KeepRule, Policy, Threshold};
use crate::forward::intake::{Intake, Taken};
use crate::forward::leaving::Loaded;
use crate::forward::{Compression, ExporterOptions, list_refused, read_refused};
use crate::otlp::wire::put_bytes;
use crate::otlp::{Encoding, Signal};

const RECORDS: usize = 20;

/// A request that compresses well.
fn long(index: usize) -> (String, Bytes) {
    let name = format!("{index:04}{}", "x".repeat(100_000));
    let body = request([name.as_str()]);
    (name, body)
}

async fn filled() -> Rig {
    let rig = Rig::new("http://127.0.0.1:1");
    for index in 0..RECORDS {
        rig.append(Signal::Traces, Encoding::Gzip, long(index).1).await;
    }
    rig
}

fn intake(rig: &Rig, options: ExporterOptions) -> Intake {
    let policy = Arc::new(Policy::compile(&options.egress).unwrap());
    let mut reader = rig.journal.reader("otlp").unwrap();
    reader.resume(None);
    Intake::new(Arc::new(options), policy, reader)
}

#[tokio::test]
async fn of_a_batch_so_much_is_decoded_at_once_as_fits_into_a_request_however_well_it_was_compressed() {
    let rig = filled().await;
    let decoded = long(0).1.len();
    let options = |egress| ExporterOptions {
        max_request_size: 3 * decoded,
        compression: Compression::Always(Encoding::Identity),
        egress,
        ..ExporterOptions::default()
    };
    let edits = EgressOptions {
        redact: vec!["0{4}".to_owned()],
        ..EgressOptions::default()
    };
    let decides = EgressOptions {
        ratio: Threshold::from_ratio(0.5).unwrap(),
        keep: vec![KeepRule::Errors],
        ..EgressOptions::default()
    };
    for egress in [EgressOptions::default(), edits, decides] {
        let mut intake = intake(&rig, options(egress));
        intake.try_read().unwrap();
        let (mut all, mut slices) = (0, 0);
        while intake.has_waiting() {
            assert!(!intake.is_caught_up(), "something is still to be taken in");
            let taken = intake.take(3 * decoded).await;
            assert!((1..=3).contains(&taken.len()), "{} at once", taken.len());
            all += taken.len();
            slices += 1;
            assert!(
                intake.position().next > taken.last().unwrap().record.sequence,
                "behind what was taken in"
            );
            if let Some(Taken { record, .. }) = taken.first() {
                assert!(record.decoded().is_some() || slices > 1, "the receiver's copy is used");
            }
            // Then the rest has to be decompressed again.
            intake.wait_compressed();
        }
        assert_eq!((all, slices), (RECORDS, 7));
        assert!(intake.is_caught_up());
        assert_eq!(intake.position().next, rig.end());
    }
}

#[tokio::test]
async fn of_a_batch_so_many_decoded_bodies_are_held_as_may_be_taken_in_and_the_rest_waits_compressed() {
    let rig = filled().await;
    let options = ExporterOptions {
        max_request_size: 3 * long(0).1.len(),
        compression: Compression::Always(Encoding::Identity),
        ..ExporterOptions::default()
    };
    let mut intake = intake(&rig, options);
    intake.try_read().unwrap();
    let mut decoded = Vec::new();
    while intake.has_waiting() {
        let taken = intake.take(usize::MAX).await;
        decoded.extend(taken.iter().map(|taken| taken.record.decoded().is_some()));
    }
    let expected: Vec<bool> = (0..RECORDS).map(|index| index < 6).collect();
    assert_eq!(decoded, expected);
}

#[tokio::test]
async fn a_batch_that_is_taken_in_by_slices_arrives_whole_once_and_in_order() {
    let mut sink = Sink::start(|_, _| Reply::status(200)).await;
    let mut rig = Rig::new(&sink.url());
    rig.options.max_request_size = 150_000;
    rig.options.compression = Compression::Always(Encoding::Identity);
    let mut expected = Vec::new();
    for index in 0..RECORDS {
        let (name, body) = long(index);
        rig.append(Signal::Traces, Encoding::Gzip, body).await;
        expected.push(name);
    }
    let running = rig.start();
    let mut found = sink.next_spans(RECORDS).await;
    running.stop().await;
    found.extend(sink.rest().iter().flat_map(|received| names(&received.decoded())));
    found.sort();
    assert!(found == expected, "each exactly once");
    assert_eq!(rig.saved(), Some(rig.end()));
}

#[tokio::test]
async fn rules_are_neither_applied_nor_counted_for_signals_that_are_not_sent() {
    let rig = filled().await;
    for keep in [vec![], vec![KeepRule::Errors]] {
        let options = ExporterOptions {
            signals: vec![Signal::Logs],
            egress: EgressOptions {
                redact: vec!["xxxx".to_owned()],
                truncate: 10,
                ratio: Threshold::NEVER,
                keep,
                ..EgressOptions::default()
            },
            ..ExporterOptions::default()
        };
        let mut intake = intake(&rig, options.clone());
        intake.try_read().unwrap();
        let taken = intake.take(options.max_request_size).await;
        assert_eq!(taken.len(), RECORDS);
        assert!(taken.iter().all(|taken| matches!(taken.loaded, Ok(Loaded::NotSent))));
        let policy = Policy::compile(&options.egress).unwrap();
        policy.count(intake.workspace(), |rule, count| panic!("rule {rule} counted {count}"));
        assert!(!intake.has_undecided());
    }
}

#[tokio::test]
async fn a_span_that_cannot_be_sampled_is_kept_as_refused_and_the_others_of_its_request_go() {
    let mut sink = Sink::start(|_, _| Reply::status(200)).await;
    let mut rig = Rig::new(&sink.url());
    rig.options.egress = EgressOptions {
        // Nearly all.
        ratio: Threshold::from_ratio(0.999).unwrap(),
        keep: vec![KeepRule::Errors],
        ..EgressOptions::default()
    };
    let mut span = Vec::new();
    put_bytes(&mut span, 1, &[0xff; 16]);
    put_bytes(&mut span, 2, &[9; 8]);
    // A name that is longer than the span.
    span.extend([0x2a, 0x7f]);
    let (mut scope, mut resource, mut damaged) = (Vec::new(), Vec::new(), Vec::new());
    put_bytes(&mut scope, 2, &span);
    put_bytes(&mut resource, 2, &scope);
    put_bytes(&mut damaged, 1, &resource);
    let body: Bytes = [&request(["good"])[..], &damaged].concat().into();
    rig.append_unchecked(Signal::Traces, body).await;
    let running = rig.start();
    assert_eq!(sink.next().await.names(), ["good"]);
    running.stop().await;
    let kept = list_refused(&rig.refused()).unwrap();
    assert_eq!((kept.len(), kept[0].refusal.items), (1, 1));
    assert!(
        kept[0].refusal.reason.contains("cannot be read"),
        "{}",
        kept[0].refusal.reason
    );
    assert_eq!(read_refused(&kept[0]).unwrap(), damaged);
    assert_eq!(rig.saved(), Some(rig.end()));
}

#[tokio::test]
async fn what_is_sent_of_a_journal_of_other_signals_does_not_hold_what_lies_beside_it() {
    let rig = Rig::new("http://127.0.0.1:1");
    for index in 0..60 {
        let signal = if index % 10 == 9 {
            Signal::Metrics
        } else {
            Signal::Traces
        };
        rig.append(signal, Encoding::Identity, long(index).1).await;
    }
    for (signals, are_shared) in [(vec![Signal::Metrics], false), (Signal::ALL.to_vec(), true)] {
        let options = ExporterOptions {
            signals,
            ..ExporterOptions::default()
        };
        let mut intake = intake(&rig, options);
        let mut sent = 0;
        while let Ok(()) = intake.try_read()
            && intake.has_waiting()
        {
            for Taken { record, loaded } in intake.take(usize::MAX).await {
                if let Ok(Loaded::Now(load)) = loaded {
                    assert_eq!(load.part.body, record.body);
                    assert_eq!(load.part.body.as_ptr() == record.body.as_ptr(), are_shared);
                    sent += 1;
                }
            }
        }
        assert_eq!(sent, if are_shared { 60 } else { 6 });
    }
}
