//! A disk without room, stages that die or hang, and a backend that is away while traffic goes on.

use crate::common::load::{Load, Planned};
use crate::common::program::{Program, Setup};
use crate::common::send::{Outcome, Prepared, ROUTES, Route, Sender};
use crate::common::sink::Sink;
use crate::common::{eventually, random, spans};
use crate::end_to_end::delivered_spans;
use crate::flow::counted_exactly;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A small file system of its own, gone when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// None where this user may not mount.
    fn mount(at: PathBuf, size: &str) -> Option<SmallDisk> {
        std::fs::create_dir_all(&at).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(&at)
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(SmallDisk(at)),
            refused => {
                eprintln!("SKIPPED: a full disk is not tested, because this user may not mount a tmpfs: {refused:?}");
                None
            }
        }
    }

    /// Takes all the room there is.
    fn fill(&self) {
        let mut filler = File::create(self.0.join("filler")).unwrap();
        let zeros = vec![0; 64 << 10];
        for length in [zeros.len(), 4096, 1] {
            while filler.write_all(&zeros[..length]).is_ok() {}
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().unwrap();
    }
}

/// Requests with a span too many attributes for small segments: about 40 KiB each.
fn sized(load: &Load, number: u64, random: &mut fastrand::Rng, bytes: usize) -> Planned {
    let mut planned = load.request(number);
    let text: String = std::iter::repeat_with(|| random.alphanumeric()).take(bytes).collect();
    let span = &mut planned.request.resource_spans[0].scope_spans[0].spans[0];
    span.attributes
        .push(spans::attribute("stdout", Value::StringValue(text)));
    planned
}

/// Rows, metrics and the sink have exactly these requests.
async fn arrived_exactly(database: &Path, program: &Program, sink: &Sink, planned: &[Planned]) {
    counted_exactly(database, program, planned).await;
    let expected: BTreeSet<String> = planned.iter().flat_map(|each| each.spans.clone()).collect();
    let delivered = sink
        .wait("every span", |all| {
            let delivered: BTreeSet<String> = delivered_spans(all).into_iter().collect();
            (delivered.len() >= expected.len()).then_some(delivered)
        })
        .await;
    assert_eq!(delivered, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_requests_are_refused_until_there_is_room_and_nothing_acknowledged_is_lost() {
    let mut random = random("on_a_full_disk_requests_are_refused_until_there_is_room");
    let load = Load::new(&mut random);
    let sink = Sink::start().await;
    let setup = Setup::forwarding_to(sink.url());
    let Some(disk) = SmallDisk::mount(setup.path("small"), "192m") else {
        return;
    };
    // Journal, checkpoint, positions and rows are all on it.
    let database = disk.0.join("executions.db");
    let setup = setup
        .set("journal.directory", disk.0.join("journal").to_str().unwrap())
        .set("journal.max_size", "64MiB")
        .set("journal.retain", "0s")
        .set("database.url", format!("sqlite:{}", database.display()));
    let mut program = setup.start().await;
    let mut sender = Sender::to(&program).await;
    let mut acknowledged = Vec::new();
    let mut number = 0;
    for round in 0..6 {
        for _ in 0..random.u32(1..20) {
            let planned = sized(&load, number, &mut random, 40 << 10);
            sender
                .accepted(ROUTES[number as usize % ROUTES.len()], &planned.request)
                .await;
            acknowledged.push(planned);
            number += 1;
        }
        disk.fill();
        // The segment that is begun has its room already; then there is none.
        let waiting = loop {
            let planned = sized(&load, number, &mut random, 40 << 10);
            number += 1;
            let prepared = Prepared::new(ROUTES[number as usize % ROUTES.len()], &planned.request);
            match sender.deliver(&prepared).await {
                Outcome::Accepted(0, _) => acknowledged.push(planned),
                Outcome::Refused(_, true) => break (planned, prepared),
                other => panic!("round {round}: {other:?}"),
            }
            assert!(number < 2_000, "a full disk took everything");
        };
        if round % 2 == 1 {
            // It comes up on the full disk too, and still refuses what it has no room for.
            program.kill();
            program = setup.spawn();
            program.address("otlp_http").await;
            sender = Sender::to(&program).await;
        }
        disk.make_room();
        // The request that was refused is taken without a restart.
        let (planned, prepared) = waiting;
        eventually("there is room again", || async {
            match sender.deliver(&prepared).await {
                Outcome::Accepted(0, _) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        acknowledged.push(planned);
    }
    arrived_exactly(&database, &program, &sink, &acknowledged).await;
    assert_eq!(program.get("health", "/readyz").await.status, 200);
    let (status, log) = program.terminate().await;
    assert_eq!(status.code(), Some(0), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_panics_or_hangs_makes_the_process_not_alive_within_half_a_minute() {
    let mut random = random("a_stage_that_panics_or_hangs_makes_the_process_not_alive");
    let load = Load::new(&mut random);
    let sink = Sink::start().await;
    let cases = [
        ("after_sync:2:panic", "journal"),
        ("before_commit:1:panic", "ledger"),
        ("before_position_save:1:panic", "exporter otlp"),
        ("before_checkpoint:1:panic", "meter"),
        ("before_sync:2:stall", "journal"),
        ("before_checkpoint:1:stall", "meter"),
        ("before_position_save:1:stall", "exporter otlp"),
        ("before_commit:1:stall", "ledger"),
    ];
    let mut running = Vec::new();
    for (failpoint, stage) in cases {
        let setup = Setup::forwarding_to(sink.url());
        let mut program = setup.spawn_armed(failpoint);
        assert!(program.ready_unless_killed().await);
        assert_eq!(program.get("health", "/healthz").await.status, 200, "{failpoint}");
        let sender = Sender::to(&program).await;
        for number in 0..3 {
            // The one that meets the defect may never be answered.
            let planned = load.request(number);
            let sending = sender.send(Route::Http, &planned.request);
            tokio::time::timeout(Duration::from_secs(1), sending).await.ok();
        }
        running.push((setup, program, failpoint, stage));
    }
    let began = Instant::now();
    for (_setup, program, failpoint, stage) in &running {
        let url = program.url("health", "/healthz").await;
        eventually(&format!("{failpoint} is told by /healthz"), || async {
            let answer = crate::common::http::get(&url).await?;
            let body: serde_json::Value = serde_json::from_str(&answer.text()).unwrap();
            let stages = body["stages"].as_array().unwrap();
            let dead = stages.iter().filter(|stage| stage["alive"] == false);
            let dead: Vec<&str> = dead.map(|stage| stage["stage"].as_str().unwrap()).collect();
            if answer.status == 503 && dead == [*stage] {
                Ok(())
            } else {
                Err(format!("{} {dead:?}", answer.status))
            }
        })
        .await;
        assert!(
            began.elapsed() < Duration::from_secs(32),
            "{failpoint}: {:?}",
            began.elapsed()
        );
        println!("{failpoint}: told after {:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_backend_is_away_only_the_disk_fills_and_the_backlog_drains_three_times_as_fast() {
    let mut random = random("while_a_backend_is_away_only_the_disk_fills");
    let load = Load::new(&mut random);
    let mut sink = Sink::away();
    let setup = Setup::forwarding_to(sink.url());
    let program = setup.start().await;
    let sender = Sender::to(&program).await;
    let mut sent = Vec::new();
    // As much as an exporter and the newest records may take in memory.
    for number in 0..400 {
        let planned = sized(&load, number, &mut random, 100 << 10);
        sender.accepted(Route::Http, &planned.request).await;
        sent.push(planned);
    }
    let (_, before) = program.resident();
    let prepared: Vec<Planned> = (400..800)
        .map(|number| sized(&load, number, &mut random, 100 << 10))
        .collect();
    let bodies: Vec<Prepared> = prepared
        .iter()
        .map(|each| Prepared::new(Route::Http, &each.request))
        .collect();
    let began = Instant::now();
    for body in &bodies {
        let outcome = sender.deliver(body).await;
        assert!(outcome.is_acknowledged(), "{outcome:?}");
    }
    let ingest = began.elapsed();
    sent.extend(prepared);
    let (_, after) = program.resident();
    let grown = after.saturating_sub(before);
    println!("40 MiB of backlog, {} KiB more memory", grown >> 10);
    assert!(grown < 12 << 20, "the backlog is in memory: {grown} bytes more");

    // Metrics and rows are not delayed: they are there while nothing was delivered.
    counted_exactly(&setup.database(), &program, &sent).await;
    assert_eq!(sink.attempts(), 0);

    sink.come_back().await;
    sink.wait_attempts(1).await;
    let began = Instant::now();
    let bytes: usize = bodies.iter().map(|body| body.body.len()).sum();
    sink.wait("the backlog", |all| {
        let delivered: usize = all.iter().map(|each| each.body.len()).sum();
        (delivered >= bytes).then_some(())
    })
    .await;
    let drain = began.elapsed();
    println!("ingest {ingest:?} with one sender, drain {drain:?}");
    arrived_exactly(&setup.database(), &program, &sink, &sent).await;
    assert!(drain * 3 < ingest, "ingest took {ingest:?}, the drain {drain:?}");
}
