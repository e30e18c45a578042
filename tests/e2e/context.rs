//! What an execution's own span does not say, other spans do: whoever runs the workflow, why it failed, where it really
//! ran. Whatever the order in which the spans arrive, the rows are the same.

use crate::common::program::Setup;
use crate::common::rows::{self, Row};
use crate::common::send::{ROUTES, Sender};
use crate::common::{eventually, random, spans, unix_ms_ago};
use opentelemetry_proto::tonic::trace::v1::{Span, Status};
use serde_json::{Value, json};
use std::time::Duration;

/// Spans of one test: executions, and the spans around and inside them.
pub struct Story {
    base_unix_ms: u64,
    random: fastrand::Rng,
    pub executions: Vec<Span>,
    pub context: Vec<Span>,
    pub rows: Vec<Row>,
}

impl Story {
    /// A span between two times in milliseconds, in a trace of that number. Every story has traces of its own.
    fn span(
        &mut self,
        name: &str,
        trace: u8,
        (start, end): (u64, u64),
        attributes: Value,
        status: (i32, &str),
    ) -> Span {
        let mut trace_id = self.base_unix_ms.to_be_bytes().repeat(2);
        trace_id[15] = trace;
        Span {
            trace_id,
            span_id: self.random.u64(1..).to_be_bytes().to_vec(),
            name: name.to_owned(),
            kind: 1,
            start_time_unix_nano: (self.base_unix_ms + start) * 1_000_000,
            end_time_unix_nano: (self.base_unix_ms + end) * 1_000_000,
            attributes: spans::attributes(&attributes),
            status: Some(Status {
                code: status.0,
                message: status.1.to_owned(),
            }),
            ..Default::default()
        }
    }

    /// A `code.execute` of a workflow's node, and the row it must become: `row` changes what its own span would give.
    fn execution(
        &mut self,
        trace: u8,
        (start, end): (u64, u64),
        ids: [&str; 2],
        fails: bool,
        row: impl FnOnce(&mut Row),
    ) {
        let attributes = json!({
            "code.language": "python", "code.runtime": "vm2", "code.timeout_ms": 30000, "security.namespace": "default",
            "workflow.id": "wf-1", "workflow.execution_id": ids[0], "node.id": ids[1],
            "code.success": !fails, "code.has_error": fails, "code.duration_ms": end - start,
        });
        let span = self.span(
            "code.execute",
            trace,
            (start, end),
            attributes,
            (if fails { 2 } else { 1 }, ""),
        );
        let text = |value: &str| Some(value.to_owned()).filter(|value| !value.is_empty());
        let mut expected = Row {
            id: spans::id(&span),
            workflow_execution_id: text(ids[0]),
            node_id: text(ids[1]),
            runtime: "vm2".to_owned(),
            language: "python".to_owned(),
            duration_ms: Some((end - start) as i64),
            success: !fails,
            created_at: i64::try_from(span.end_time_unix_nano / 1_000).unwrap(),
            ..Row::default()
        };
        row(&mut expected);
        self.executions.push(span);
        self.rows.push(expected);
        self.rows.sort();
    }

    /// The `node.execute` around executions.
    fn node(
        &mut self,
        trace: u8,
        times: (u64, u64),
        ids: [&str; 2],
        [user, organization, workspace]: [&str; 3],
        error: &str,
    ) {
        let mut attributes = json!({
            "node.id": ids[1], "node.type": "action.code", "workflow.id": "wf-1", "workflow.execution_id": ids[0],
            "user.id": user, "organization.id": organization, "workspace.id": workspace,
            "node.status": if error.is_empty() { "completed" } else { "failed" }, "node.latency_ms": times.1 - times.0,
        });
        if !error.is_empty() {
            attributes["node.error"] = error.into();
        }
        let status = if error.is_empty() { (1, "") } else { (2, error) };
        let span = self.span("node.execute.action.code", trace, times, attributes, status);
        self.context.push(span);
    }

    /// All that can be known of one another.
    pub fn tell(mut random: fastrand::Rng) -> Story {
        let base_unix_ms = unix_ms_ago(Duration::from_secs(600)) + random.u64(..1_000);
        let mut story = Story {
            base_unix_ms,
            random,
            executions: Vec::new(),
            context: Vec::new(),
            rows: Vec::new(),
        };
        let text = |value: &str| Some(value.to_owned());

        // A node that tried twice. Its error is that of the last attempt; who ran it is true for both.
        let ids = ["exec-retries", "node-1"];
        let who = |row: &mut Row| {
            row.user_id = text("user-1");
            row.organization_id = text("org-1");
            row.workspace_id = text("ws-1");
        };
        story.execution(1, (10, 200), ids, true, who);
        story.execution(2, (1_200, 1_400), ids, true, |row| {
            who(row);
            row.error_message = text("NameError: name 'x' is not defined");
        });
        story.node(
            3,
            (0, 1_410),
            ids,
            ["user-1", "org-1", "ws-1"],
            "NameError: name 'x' is not defined",
        );

        // A loop: the same node again, each time for another user. Times tell them apart.
        let ids = ["exec-loop", "node-2"];
        for (turn, user) in [(0, "user-a"), (1, "user-b")] {
            let at = 10_000 + turn * 1_000;
            story.execution(4, (at + 5, at + 100), ids, false, |row| {
                row.user_id = text(user);
                row.workspace_id = text("ws-1");
            });
            story.node(4, (at, at + 110), ids, [user, "", "ws-1"], "");
        }

        // Two nodes around one execution, which say different things: nobody knows, so nobody guesses.
        let ids = ["exec-parallel", "node-3"];
        story.execution(5, (20_010, 20_100), ids, false, |_| {});
        story.node(6, (20_000, 20_200), ids, ["user-c", "", ""], "");
        story.node(7, (20_000, 20_300), ids, ["user-d", "", ""], "");

        // A node of the same ids at another time knows nothing of this execution.
        let ids = ["exec-later", "node-4"];
        story.execution(8, (30_010, 30_100), ids, false, |_| {});
        story.node(8, (40_000, 40_200), ids, ["user-e", "org-e", "ws-e"], "");

        // Routed: it says vm2 by default, and really ran on E2B, whose span knows the exit code.
        story.execution(9, (50_000, 51_000), ["exec-routed", "node-5"], false, |row| {
            row.runtime = "e2b".to_owned();
            row.exit_code = Some(0);
            row.memory_mb = Some(77);
        });
        let route = json!({
            "runtime.language": "python", "runtime.requested": "auto", "runtime.selected": "e2b",
            "runtime.reason": "auto_routed", "runtime.duration_ms": 950, "runtime.success": true,
        });
        let sandbox = json!({
            "e2b.language": "python", "e2b.runtime": "e2b", "e2b.success": true, "e2b.exit_code": 0,
            "e2b.duration_ms": 900, "e2b.memory_mb": 76.6,
        });
        let route = story.span("runtimeRouter.route", 9, (50_020, 50_980), route, (1, ""));
        let sandbox = story.span("e2b.execute", 9, (50_030, 50_970), sandbox, (1, ""));
        story.context.extend([route, sandbox]);

        // A hook knows which agent it is for, and why it failed.
        story.execution(10, (60_010, 60_100), ["", "post-answer-hook-cag-7"], true, |row| {
            row.code_agent_id = text("cag-7");
            row.error_message = text("division by zero");
        });
        let hook = json!({"hook.agent_id": "cag-7", "hook.type": "post_answer", "workflow.id": "wf-1"});
        let hook = story.span(
            "etlHook.postAnswer",
            10,
            (60_000, 60_110),
            hook,
            (2, "division by zero"),
        );
        story.context.push(hook);
        story
    }
}

/// In which order executions and the spans around them arrive.
#[derive(Debug, Clone, Copy)]
enum Order {
    Together,
    ContextFirst,
    ContextLast,
    ContextAfterKill,
    ExecutionsAfterKill,
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_completed_by_the_spans_around_and_inside_an_execution_in_every_order() {
    let mut random = random("rows_are_completed_by_the_spans_around_and_inside_an_execution_in_every_order");
    use Order::*;
    for order in [
        Together,
        ContextFirst,
        ContextLast,
        ContextAfterKill,
        ExecutionsAfterKill,
    ] {
        let story = Story::tell(random.fork());
        let mut batches = match order {
            Together => vec![[story.executions.clone(), story.context.clone()].concat()],
            ContextFirst | ExecutionsAfterKill => vec![story.context.clone(), story.executions.clone()],
            ContextLast | ContextAfterKill => vec![story.executions.clone(), story.context.clone()],
        };
        for batch in &mut batches {
            random.shuffle(batch);
        }
        let setup = Setup::new();
        let mut program = setup.start().await;
        for (index, batch) in batches.into_iter().enumerate() {
            if index == 1 && matches!(order, ContextAfterKill | ExecutionsAfterKill) {
                program.kill();
                program = setup.start().await;
            }
            let request = spans::request(Vec::new(), batch.into_iter().map(|span| ("sos".to_owned(), span)));
            Sender::to(&program)
                .await
                .accepted(ROUTES[random.usize(..ROUTES.len())], &request)
                .await;
        }
        eventually(&format!("{order:?}: every row is complete"), || async {
            let found = rows::read(&setup.database()).await.map_err(|error| error.to_string())?;
            let wrong = rows::difference(&found, &story.rows);
            if wrong.is_empty() {
                Ok(())
            } else {
                Err(wrong.join("\n"))
            }
        })
        .await;
        // Labels are what the span itself said.
        let scrape = program.scrape().await;
        let labels = [("runtime", "vm2"), ("language", "python"), ("outcome", "success")];
        assert_eq!(scrape.get("code_executions_total", &labels), Some(5.0), "{order:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_resource_says_fills_the_row() {
    let mut random = random("what_only_the_resource_says_fills_the_row");
    let mut story = Story::tell(random.fork());
    let span = story.executions.remove(0);
    let resource = json!({"organization.id": "org-r", "workspace.id": "ws-r", "user.id": "user-r"});
    let request = spans::request(spans::attributes(&resource), [("sos".to_owned(), span.clone())]);
    let setup = Setup::new();
    let program = setup.start().await;
    Sender::to(&program)
        .await
        .accepted(ROUTES[random.usize(..ROUTES.len())], &request)
        .await;
    let found = rows::wait(&setup.database(), 1).await;
    let ids = [&found[0].organization_id, &found[0].workspace_id, &found[0].user_id].map(Option::as_deref);
    assert_eq!(ids, [Some("org-r"), Some("ws-r"), Some("user-r")]);
    assert_eq!(found[0].id, spans::id(&span));
}
