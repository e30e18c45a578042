//! From what is known to a row: a pure function.
//!
//! # Invariants
//!
//! * **The order of arrival does not matter**: the row is a function of the set of facts, not of their sequence.
//! * **The best source wins.** Each column asks its sources best first and takes the first that answers.
//! * **Never a guess.** A source of which more than one matches is denied, not chosen from. Denial takes back what was
//!   taken when only one match was known; the column then falls to its next source.
//! * **Never worse.** When facts have fallen out of the window the row keeps what it has: see [`Assembled::changes`].
//!
//! | column | sources, best first |
//! |---|---|
//! | `runtime` | router, inner span (both only where the execution says `vm2` or nothing); execution |
//! | `memory_mb`, `exit_code` | execution; the runtime's own span |
//! | `success` | the execution's own verdict; where that is only "nothing says otherwise", a non-zero exit code |
//! | `error_message` | status; exception; `node.error` of the enclosing node if this is its last attempt; the hook's |
//! | `organization_id` | execution; enclosing node; resource; `security.namespace` |
//! | `workspace_id`, `user_id` | execution; enclosing node; resource |
//! | `code_agent_id` | execution; ids that contain it; enclosing hook |
//!
//! All other columns are what the execution's own span says.

use super::facts::{Execution, Facts, Role, Tenant};
use super::row::{Column, Row, Source, Sources, UNKNOWN};
use super::world::{Kind, Match, TOLERANCE, World};

/// A row, where its values came from, and which sources were found ambiguous.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assembled {
    /// The row.
    pub row: Row,
    /// Where its values came from.
    pub sources: Sources,
    /// Per column the sources of which more than one matched, as bits.
    denied: [u32; Column::ALL.len()],
}

/// The answer of one source.
enum Answer<T> {
    /// It does not say.
    Silent,
    /// It says this.
    Says(T),
    /// More than one could be asked.
    Denied,
}

impl<T> Answer<T> {
    fn of(value: Option<T>) -> Answer<T> {
        value.map_or(Answer::Silent, Answer::Says)
    }
}

impl<'a> Match<&'a Facts> {
    fn ask<T>(self, question: impl FnOnce(&'a Facts) -> Option<T>) -> Answer<T> {
        match self {
            Match::None => Answer::Silent,
            Match::One(facts) => Answer::of(question(facts)),
            Match::Many => Answer::Denied,
        }
    }
}

/// The row of `execution` as `world` knows it, or as it knew it before the batch at hand (`with_fresh: false`).
/// `None` if `facts` is not of an execution.
pub fn assemble(world: &World<'_>, facts: &Facts, with_fresh: bool) -> Option<Assembled> {
    let Role::Execution(execution) = &facts.told.role else {
        return None;
    };
    let mut assembled = Assembled::of(own_row(facts, execution));

    let node = world.enclosing(facts, Kind::Node, with_fresh);
    let hook = world.hook_of(facts, with_fresh);
    let runtime_span = world.enclosed(facts, Kind::Runtime, with_fresh);

    let own = Answer::of(execution.runtime.clone());
    let runtime = if execution.runtime.as_deref().is_none_or(|runtime| runtime == "vm2") {
        let router = world.enclosed(facts, Kind::Router, with_fresh).ask(selected_runtime);
        let inner = world.enclosed(facts, Kind::Inner, with_fresh).ask(selected_runtime);
        assembled.pick(
            Column::Runtime,
            [
                (Source::Router, router),
                (Source::Inner, inner),
                (Source::Execution, own),
            ],
        )
    } else {
        assembled.pick(Column::Runtime, [(Source::Execution, own)])
    };
    assembled.row.runtime = runtime.unwrap_or_else(|| UNKNOWN.to_owned());

    let measured = |measure: fn(&super::facts::Runtime) -> Option<i32>| {
        runtime_span.ask(|span| match &span.told.role {
            Role::Runtime(runtime) => measure(runtime),
            _ => None,
        })
    };
    let own = Answer::of(execution.memory_mb);
    let sources = [
        (Source::Execution, own),
        (Source::RuntimeSpan, measured(|runtime| runtime.memory_mb)),
    ];
    assembled.row.memory_mb = assembled.pick(Column::MemoryMb, sources);
    let own = Answer::of(execution.exit_code);
    let sources = [
        (Source::Execution, own),
        (Source::RuntimeSpan, measured(|runtime| runtime.exit_code)),
    ];
    assembled.row.exit_code = assembled.pick(Column::ExitCode, sources);

    let (success, source) = match execution.success {
        // Nothing on the execution's span says that it failed, but its runtime does.
        (true, Source::Default) if assembled.row.exit_code.is_some_and(|code| code != 0) => {
            (false, Source::RuntimeSpan)
        }
        own => own,
    };
    assembled.row.success = success;
    assembled.sources.set(Column::Success, source);
    if runtime_span == Match::Many {
        assembled.deny(Column::Success, Source::RuntimeSpan);
    }

    let own = |wanted: Source| match &execution.error {
        Some((text, source)) if *source == wanted => Answer::Says(text.clone()),
        _ => Answer::Silent,
    };
    let (of_node, of_hook) = if success {
        (Answer::Denied, Answer::Denied)
    } else {
        (error_of_node(world, facts, node, with_fresh), hook.ask(error_of_hook))
    };
    let sources = [
        (Source::Status, own(Source::Status)),
        (Source::Exception, own(Source::Exception)),
        (Source::Node, of_node),
        (Source::Hook, of_hook),
    ];
    assembled.row.error_message = assembled.pick(Column::ErrorMessage, sources);

    let (own, resource) = (&execution.span_tenant, &execution.resource_tenant);
    assembled.pick_tenant(node, own, resource, execution.namespace.as_ref());

    let own = |wanted: Source| match &execution.code_agent_id {
        Some((agent, source)) if *source == wanted => Answer::Says(agent.clone()),
        _ => Answer::Silent,
    };
    let of_hook = hook.ask(|hook| match &hook.told.role {
        Role::Hook { agent_id, .. } => agent_id.clone(),
        _ => None,
    });
    let sources = [
        (Source::Execution, own(Source::Execution)),
        (Source::DerivedId, own(Source::DerivedId)),
        (Source::Hook, of_hook),
    ];
    assembled.row.code_agent_id = assembled.pick(Column::CodeAgentId, sources);
    Some(assembled)
}

/// The same for the row of a further table: all that other spans can tell of it is whom it belongs to.
pub fn assemble_record(world: &World<'_>, facts: &Facts, with_fresh: bool) -> Option<Assembled> {
    let record = facts.told.record.as_ref()?;
    let mut assembled = Assembled::of(Row {
        id: facts.id.row_id(),
        workflow_execution_id: facts.told.execution_id.clone(),
        node_id: facts.told.node_id.clone(),
        duration_ms: record.latency_ms,
        success: record.success,
        error_message: record.error.clone(),
        created_at: record.created_at,
        ..Row::default()
    });
    let node = world.enclosing(facts, Kind::Node, with_fresh);
    assembled.pick_tenant(node, &record.span_tenant, &record.resource_tenant, None);
    Some(assembled)
}

/// What the execution's own span says of the columns that nothing else fills.
fn own_row(facts: &Facts, execution: &Execution) -> Row {
    Row {
        id: facts.id.row_id(),
        workflow_execution_id: facts.told.execution_id.clone(),
        node_id: facts.told.node_id.clone(),
        language: execution.language.clone().unwrap_or_else(|| UNKNOWN.to_owned()),
        duration_ms: execution.duration_ms,
        tokens_used: execution.tokens_used,
        validation_passed: execution.validation_passed,
        created_at: execution.created_at,
        ..Row::default()
    }
}

fn selected_runtime(facts: &Facts) -> Option<String> {
    match &facts.told.role {
        Role::Router { selected: runtime } | Role::Inner { runtime } => runtime.clone(),
        _ => None,
    }
}

fn error_of_hook(facts: &Facts) -> Option<String> {
    match &facts.told.role {
        Role::Hook { error, .. } => error.clone(),
        _ => None,
    }
}

/// `node.error` is the error of the node's last attempt and says nothing of the others.
fn error_of_node(world: &World<'_>, facts: &Facts, node: Match<&Facts>, with_fresh: bool) -> Answer<String> {
    let span = match node {
        Match::None => return Answer::Silent,
        Match::Many => return Answer::Denied,
        Match::One(span) => span,
    };
    let Role::Node(node) = &span.told.role else {
        return Answer::Silent;
    };
    let Some(error) = &node.error else {
        return Answer::Silent;
    };
    // A tool or a hook that runs inside another node shares its tenant, but the error is that node's.
    if !facts.names_no_other_node(span) {
        return Answer::Silent;
    }
    let known = world.attempts(span, with_fresh);
    if !known.is_last(facts) {
        return Answer::Denied;
    }
    // The last of those that are known is the last of all if all are known, or if the node ended with it: after a
    // failed attempt that is not the last the node waits and tries again.
    let all_known = node.attempts.is_none_or(|attempts| known.count >= attempts);
    let ended_with_node = span.end <= facts.end.saturating_add(TOLERANCE);
    if all_known || ended_with_node {
        Answer::Says(error.clone())
    } else {
        Answer::Silent
    }
}

impl Assembled {
    fn of(row: Row) -> Assembled {
        Assembled {
            row,
            sources: Sources::default(),
            denied: [0; Column::ALL.len()],
        }
    }

    fn pick_tenant(&mut self, node: Match<&Facts>, own: &Tenant, resource: &Tenant, namespace: Option<&String>) {
        let tenants = |part: fn(&Tenant) -> &Option<String>| {
            let of_node = node.ask(|node| match &node.told.role {
                Role::Node(node) => part(&node.tenant).clone(),
                _ => None,
            });
            [
                (Source::Execution, Answer::of(part(own).clone())),
                (Source::Node, of_node),
                (Source::Resource, Answer::of(part(resource).clone())),
            ]
        };
        let namespace = (Source::Namespace, Answer::of(namespace.cloned()));
        let organization = tenants(|tenant| &tenant.organization_id).into_iter().chain([namespace]);
        self.row.organization_id = self.pick(Column::OrganizationId, organization);
        self.row.workspace_id = self.pick(Column::WorkspaceId, tenants(|tenant| &tenant.workspace_id));
        self.row.user_id = self.pick(Column::UserId, tenants(|tenant| &tenant.user_id));
    }

    fn pick<T>(&mut self, column: Column, sources: impl IntoIterator<Item = (Source, Answer<T>)>) -> Option<T> {
        for (source, answer) in sources {
            match answer {
                Answer::Silent => {}
                Answer::Denied => self.deny(column, source),
                Answer::Says(value) => {
                    self.sources.set(column, source);
                    return Some(value);
                }
            }
        }
        None
    }

    fn deny(&mut self, column: Column, source: Source) {
        self.denied[column as usize] |= 1 << source as u32;
    }

    /// The columns (a mask of [`Column::bit`]) in which the stored row is to become this one: those that the batch at
    /// hand changed (`before` is the row without it), unless the stored value has a better source. It can have one
    /// that is no longer known, because facts fall out of the window.
    pub fn changes(&self, before: &Assembled, stored: &Sources) -> i32 {
        let changed = |column: &&Column| match column {
            Column::CodeAgentId => self.row.code_agent_id != before.row.code_agent_id,
            Column::Runtime => self.row.runtime != before.row.runtime,
            Column::MemoryMb => self.row.memory_mb != before.row.memory_mb,
            Column::ExitCode => self.row.exit_code != before.row.exit_code,
            Column::Success => self.row.success != before.row.success,
            Column::ErrorMessage => self.row.error_message != before.row.error_message,
            Column::OrganizationId => self.row.organization_id != before.row.organization_id,
            Column::WorkspaceId => self.row.workspace_id != before.row.workspace_id,
            Column::UserId => self.row.user_id != before.row.user_id,
        };
        let allowed = |column: &&Column| {
            let (stored, new) = (stored.get(**column), self.sources.get(**column));
            let denied = self.denied[**column as usize] & (1 << stored as u32) != 0;
            denied || rank(**column, new) <= rank(**column, stored)
        };
        let changed = |column: &&Column| changed(column) || self.sources.get(**column) != before.sources.get(**column);
        Column::ALL
            .iter()
            .filter(changed)
            .filter(allowed)
            .map(|column| column.bit())
            .sum()
    }
}

/// How good a source is for a column: 0 is best. The order of the table above.
fn rank(column: Column, source: Source) -> usize {
    let order: &[Source] = match column {
        Column::Runtime => &[Source::Router, Source::Inner, Source::Execution],
        Column::MemoryMb | Column::ExitCode => &[Source::Execution, Source::RuntimeSpan],
        Column::Success => &[
            Source::Execution,
            Source::HasError,
            Source::Status,
            Source::Exception,
            Source::RuntimeSpan,
            Source::Default,
        ],
        Column::ErrorMessage => &[Source::Status, Source::Exception, Source::Node, Source::Hook],
        Column::OrganizationId => &[Source::Execution, Source::Node, Source::Resource, Source::Namespace],
        Column::WorkspaceId | Column::UserId => &[Source::Execution, Source::Node, Source::Resource],
        Column::CodeAgentId => &[Source::Execution, Source::DerivedId, Source::Hook],
    };
    order.iter().position(|known| *known == source).unwrap_or(order.len())
}
