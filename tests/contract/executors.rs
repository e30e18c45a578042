//! Spans as the executors of the backend make them, attribute by attribute.

use crate::story::{Draft, Story};
use serde_json::{Value, json};

/// Who calls the executor of code, and so which ids its span has.
#[derive(Debug, Clone)]
pub struct Caller {
    pub workflow_id: String,
    pub node_id: String,
    pub execution_id: String,
    /// The organization, else `default`.
    pub namespace: String,
}

impl Caller {
    /// A node of a workflow, started by somebody who is logged in.
    pub fn node(story: &Story) -> Caller {
        Caller {
            workflow_id: story.id("wf"),
            node_id: story.id("node"),
            execution_id: story.id("exec"),
            namespace: story.id("org"),
        }
    }

    /// A node of a workflow that a webhook, a schedule or an e-mail has started.
    pub fn anonymous_node(story: &Story) -> Caller {
        Caller {
            namespace: "default".to_owned(),
            ..Caller::node(story)
        }
    }

    /// The route that runs a code agent.
    pub fn code_agent(story: &Story) -> Caller {
        Caller {
            workflow_id: format!("agent-{}", story.id("cag")),
            node_id: "code-agent".to_owned(),
            execution_id: format!("agent-exec-{}", story.base_unix_ms),
            namespace: story.id("org"),
        }
    }

    /// A hook of retrieval; `when` is `pre-ingest` or `post-answer`.
    pub fn hook(story: &Story, when: &str) -> Caller {
        Caller {
            workflow_id: story.id("wf"),
            node_id: format!("{when}-hook-{}", story.id("cag")),
            execution_id: String::new(),
            namespace: "default".to_owned(),
        }
    }

    /// The tool `execute_code` of an agent.
    pub fn tool() -> Caller {
        Caller {
            workflow_id: "agent-execution".to_owned(),
            node_id: "code-tool".to_owned(),
            execution_id: String::new(),
            namespace: "default".to_owned(),
        }
    }

    /// The router, which calls the executor once more: a second span of the same run.
    pub fn router() -> Caller {
        Caller {
            workflow_id: "runtime-router".to_owned(),
            node_id: "code-execution".to_owned(),
            execution_id: String::new(),
            namespace: "default".to_owned(),
        }
    }

    /// Nobody who is known.
    pub fn nobody() -> Caller {
        Caller {
            workflow_id: String::new(),
            node_id: String::new(),
            execution_id: String::new(),
            namespace: "default".to_owned(),
        }
    }

    /// The columns that these ids become.
    pub fn columns(&self) -> Value {
        let text = |text: &str| if text.is_empty() { Value::Null } else { text.into() };
        let organization = if self.namespace == "default" {
            ""
        } else {
            &self.namespace
        };
        let mut columns = json!({
            "workflow_execution_id": text(&self.execution_id), "node_id": text(&self.node_id),
            "organization_id": text(organization),
        });
        columns.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        columns
    }
}

/// Who the story is about, as columns.
pub fn tenant(story: &Story) -> Value {
    json!({
        "organization_id": story.id("org"), "workspace_id": story.id("ws"), "user_id": story.id("user"),
    })
}

/// `code.execute` as it begins.
pub fn code(caller: &Caller, language: &str, runtime: &str, start_ms: i64, end_ms: i64) -> Draft {
    Draft::new("sos-code-executor", "code.execute", start_ms, end_ms).with(json!({
        "code.language": language, "code.runtime": runtime, "code.has_input_schema": false,
        "code.has_output_schema": false, "code.validation_type": "zod", "code.packages_count": 0,
        "code.timeout_ms": 30_000, "code.requires_sandbox": false, "code.long_job": false,
        "code.expected_duration_ms": 0, "security.namespace": caller.namespace, "security.read_only_fs": true,
        "security.allow_network": false, "node.id": caller.node_id, "workflow.id": caller.workflow_id,
        "workflow.execution_id": caller.execution_id,
    }))
}

/// An execution of nobody who is known, which went well.
pub fn execution(language: &str, start_ms: i64, end_ms: i64) -> Draft {
    code(&Caller::nobody(), language, "vm2", start_ms, end_ms).finished(true, end_ms - start_ms)
}

/// The router of runtimes; its status is OK whatever came of it.
pub fn route(language: &str, requested: &str, selected: &str, success: bool, start_ms: i64, end_ms: i64) -> Draft {
    let reason = if requested == "auto" {
        "auto_routed"
    } else {
        "explicitly_specified"
    };
    Draft::new("sos-runtime-router", "runtimeRouter.route", start_ms, end_ms)
        .with(json!({
            "runtime.language": language, "runtime.requested": requested, "runtime.requires_sandbox": false,
            "runtime.long_job": false, "runtime.expected_duration": 0, "runtime.selected": selected,
            "runtime.reason": reason, "runtime.duration_ms": end_ms - start_ms, "runtime.success": success,
        }))
        .ok()
}

/// The second `code.execute` of a run that the router passed on.
pub fn inner(language: &str, runtime: &str, success: bool, start_ms: i64, end_ms: i64) -> Draft {
    code(&Caller::router(), language, runtime, start_ms, end_ms).finished(success, end_ms - start_ms)
}

/// `e2b.execute` as it begins.
pub fn e2b(language: &str, start_ms: i64, end_ms: i64) -> Draft {
    Draft::new("sos-e2b-runtime", "e2b.execute", start_ms, end_ms).with(json!({
        "e2b.language": language, "e2b.timeout": 30_000, "e2b.code_length": 120, "e2b.runtime": "e2b",
    }))
}

/// `e2b.execute` that came to its end in the sandbox.
pub fn e2b_ended(language: &str, exit_code: i64, start_ms: i64, end_ms: i64) -> Draft {
    let ended = e2b(language, start_ms, end_ms).with(json!({
        "e2b.template": "python3", "e2b.runtime_id": "sbx-1", "e2b.success": exit_code == 0, "e2b.exit_code": exit_code,
        "e2b.stdout_length": 3, "e2b.stderr_length": 0, "e2b.duration_ms": end_ms - start_ms,
    }));
    if exit_code == 0 { ended.ok() } else { ended.failed("") }
}

/// `wasmedge.execute` as it begins.
pub fn wasmedge(language: &str, start_ms: i64, end_ms: i64) -> Draft {
    Draft::new("sos-wasmedge-runtime", "wasmedge.execute", start_ms, end_ms).with(json!({
        "wasmedge.language": language, "wasmedge.timeout": 30_000, "wasmedge.code_length": 120,
        "wasmedge.runtime": "wasmedge",
    }))
}

/// `bacalhau.execute` as it begins.
pub fn bacalhau(language: &str, start_ms: i64, end_ms: i64) -> Draft {
    Draft::new("sos-bacalhau-runtime", "bacalhau.execute", start_ms, end_ms).with(json!({
        "bacalhau.language": language, "bacalhau.timeout": 600_000, "bacalhau.code_length": 120,
        "bacalhau.runtime": "bacalhau", "bacalhau.gpu_enabled": false,
    }))
}

/// `node.execute.action.code` around an execution, as it is before its end.
pub fn node(story: &Story, caller: &Caller, start_ms: i64, end_ms: i64) -> Draft {
    Draft::new("sos-node-executor", "node.execute.action.code", start_ms, end_ms).with(json!({
        "node.id": caller.node_id, "node.type": "action.code", "workflow.id": caller.workflow_id,
        "workflow.execution_id": caller.execution_id, "node.retry.max_attempts": 3, "node.attempt": 1,
        "user.id": story.id("user"), "organization.id": story.id("org"), "workspace.id": story.id("ws"),
        "node.latency_ms": end_ms - start_ms,
    }))
}

/// `etlHook.preIngest` or `etlHook.postAnswer` around an execution, as it begins.
pub fn hook(story: &Story, when: &str, start_ms: i64, end_ms: i64) -> Draft {
    let (name, kind) = if when == "pre-ingest" {
        ("etlHook.preIngest", "pre_ingest")
    } else {
        ("etlHook.postAnswer", "post_answer")
    };
    Draft::new("sos-etl-hook-service", name, start_ms, end_ms).with(json!({
        "hook.agent_id": story.id("cag"), "hook.type": kind, "workflow.id": story.id("wf"),
    }))
}

impl Draft {
    /// The end of `code.execute` when nothing was thrown.
    pub fn finished(self, success: bool, duration_ms: i64) -> Draft {
        let draft = self.with(json!({
            "code.success": success, "code.has_error": !success, "code.duration_ms": duration_ms,
            "code.ai_generated": false,
        }));
        if success { draft.ok() } else { draft.failed("") }
    }

    /// What `code.execute` says when the router was asked.
    pub fn routed(self, selected: &str, reason: &str) -> Draft {
        self.with(json!({ "code.runtime_selected": selected, "code.routing_reason": reason }))
    }

    /// The end of a node that went well.
    pub fn completed(self, attempts: i64) -> Draft {
        self.with(json!({ "node.status": "completed", "node.attempts": attempts, "node.attempt": attempts }))
            .ok()
    }

    /// The end of a node whose last attempt failed.
    pub fn gave_up(self, error: &str, attempts: i64) -> Draft {
        self.with(json!({
            "node.status": "failed", "node.attempts": attempts, "node.attempt": attempts, "node.error": error,
            "node.error_code": "CODE_EXECUTION_ERROR",
        }))
        .failed(error)
        .exception("Error", error)
    }
}
