//! What one batch of journal records changes in the database: a pure function of the batch and of what is known.

use std::collections::HashMap;

use super::assemble::{Assembled, assemble, assemble_record};
use super::commit::Batch;
use super::facts::{Execution, Facts, Role};
use super::row::{Column, Row, Sources};
use super::store::RowKey;
use super::table::{Beside, Destination, Details, NewRow};
use super::world::World;
use crate::rules::prices::Prices;

/// What to write.
#[derive(Debug, Default)]
pub(super) struct Plan<'a> {
    /// What changes in each table.
    pub(super) parts: Vec<Part<'a>>,
    /// Spans that others may still need, without the executions.
    pub(super) context: Vec<&'a Facts>,
}

/// What changes in one table.
#[derive(Debug)]
pub(super) struct Part<'a> {
    pub(super) destination: &'static Destination,
    /// Rows of the batch. The database says which of them it had already.
    pub(super) rows: Vec<NewRow>,
    /// The facts of `rows`, in their order.
    pub(super) facts: Vec<&'a Facts>,
    /// Rows from before that the batch may make better; what the stored row has decides.
    pub(super) candidates: Vec<Candidate>,
    /// Rows older than the retention.
    pub(super) expired: u64,
}

/// A row from before, as it was known and as it is known now.
#[derive(Debug)]
pub(super) struct Candidate {
    before: Assembled,
    after: Assembled,
    /// What the execution is estimated to cost as it is known now.
    cost_usd: Option<f64>,
}

/// What is stored beside a row.
#[derive(Debug, Default)]
pub(super) struct Stored {
    pub(super) sources: Sources,
    /// The row's id, where it is not the execution's.
    pub(super) row_id: Option<String>,
}

/// A change of a row.
#[derive(Debug, Clone)]
pub(super) struct Update {
    /// The row; only the columns in the mask are to be written.
    pub(super) row: Row,
    /// A mask of [`Column::bit`].
    pub(super) columns: i32,
    /// Where the values that are stored came from.
    pub(super) stored: Sources,
    /// Where those of `row` came from.
    pub(super) new: Sources,
    /// The cost to write when the runtime, which it depends on, is written.
    pub(super) cost_usd: Option<f64>,
}

impl Update {
    /// Where the values come from when this is written.
    pub(super) fn sources(&self) -> Sources {
        let mut sources = self.stored;
        for column in self.changed() {
            sources.set(column, self.new.get(column));
        }
        sources
    }

    /// The same for these columns alone, without the values of the others.
    pub(super) fn only(&self, columns: i32) -> Update {
        let has = |column: Column| columns & column.bit() != 0;
        let text = |column: Column, value: &Option<String>| value.clone().filter(|_| has(column));
        let row = &self.row;
        let row = Row {
            id: row.id.clone(),
            code_agent_id: text(Column::CodeAgentId, &row.code_agent_id),
            runtime: if has(Column::Runtime) {
                row.runtime.clone()
            } else {
                String::new()
            },
            memory_mb: row.memory_mb,
            exit_code: row.exit_code,
            success: row.success,
            error_message: text(Column::ErrorMessage, &row.error_message),
            organization_id: text(Column::OrganizationId, &row.organization_id),
            workspace_id: text(Column::WorkspaceId, &row.workspace_id),
            user_id: text(Column::UserId, &row.user_id),
            created_at: row.created_at,
            ..Row::default()
        };
        Update {
            row,
            columns: self.columns & columns,
            ..self.clone()
        }
    }

    /// The columns that are to be written.
    pub(super) fn changed(&self) -> impl Iterator<Item = Column> {
        let columns = self.columns;
        Column::ALL
            .into_iter()
            .filter(move |column| columns & column.bit() != 0)
    }
}

pub(super) fn plan<'a>(batch: &Batch<'a>, known: &'a [Facts]) -> Plan<'a> {
    let world = World::new(known, batch.facts, batch.window);
    let is_context = |facts: &&Facts| !matches!(facts.told.role, Role::Execution(_));
    Plan {
        parts: batch.destinations.iter().map(|to| part(to, &world, batch)).collect(),
        context: world.fresh().filter(is_context).collect(),
    }
}

fn part<'a>(destination: &'static Destination, world: &World<'a>, batch: &Batch<'_>) -> Part<'a> {
    let mut part = Part {
        destination,
        rows: Vec::new(),
        facts: Vec::new(),
        candidates: Vec::new(),
        expired: 0,
    };
    let taken: Vec<&Facts> = world.fresh().filter(|facts| destination.takes(facts)).collect();
    let mut replaced = if destination.is_of_executions() {
        super::standalone::replaced(world)
    } else {
        HashMap::new()
    };
    part.rows.reserve(taken.len());
    part.facts.reserve(taken.len());
    for facts in taken {
        let Some(assembled) = destination.assemble(world, facts, true) else {
            continue;
        };
        if assembled.row.created_at < batch.oldest {
            part.expired += 1;
            continue;
        }
        let replaces = replaced.remove(&facts.id).unwrap_or_default();
        part.rows
            .extend(new_row(destination, facts, assembled, replaces, batch.prices));
        part.facts.push(facts);
    }
    if destination.completed.is_empty() {
        return part;
    }
    for facts in world.known().filter(|facts| destination.takes(facts)) {
        let before = destination.assemble(world, facts, false);
        let after = destination.assemble(world, facts, true);
        if let (Some(before), Some(after)) = (before, after)
            && before != after
        {
            let cost_usd = match &facts.told.role {
                Role::Execution(execution) => cost(execution, &after, batch.prices),
                _ => None,
            };
            part.candidates.push(Candidate {
                before,
                after,
                cost_usd,
            });
        }
    }
    part
}

impl Destination {
    /// The row that the span becomes here.
    fn assemble(&self, world: &World<'_>, facts: &Facts, with_fresh: bool) -> Option<Assembled> {
        if self.is_of_executions() {
            assemble(world, facts, with_fresh)
        } else {
            assemble_record(world, facts, with_fresh)
        }
    }
}

/// What the span says itself; else what the row's runtime costs for as long as it took.
fn cost(execution: &Execution, assembled: &Assembled, prices: &Prices) -> Option<f64> {
    let row = &assembled.row;
    let estimate = || prices.execution_cost(&row.runtime, row.duration_ms.map(f64::from));
    execution.cost_usd.or_else(estimate)
}

/// `None` if `facts` is of no such row.
pub(super) fn new_row(
    destination: &'static Destination,
    facts: &Facts,
    assembled: Assembled,
    replaces: Vec<(String, u64)>,
    prices: &Prices,
) -> Option<NewRow> {
    let details = match (&facts.told.role, &facts.told.record) {
        (Role::Execution(execution), _) if destination.is_of_executions() => Details::Execution(Beside {
            start: facts.start,
            end: facts.end,
            received_at: facts.received_at,
            runtime: execution.runtime.clone(),
            exit_code: execution.exit_code,
            outcome: execution.reported_outcome(),
            cost_usd: cost(execution, &assembled, prices),
        }),
        (_, Some(record)) => Details::Record(record.clone()),
        _ => return None,
    };
    let Assembled { row, sources, .. } = assembled;
    Some(NewRow {
        destination,
        id: facts.id,
        row,
        sources,
        details,
        replaces,
        alias_of: None,
    })
}

impl Candidate {
    pub(super) fn key(&self) -> RowKey<'_> {
        RowKey::from(&self.after.row)
    }

    /// Unix nanoseconds.
    pub(super) fn created_at(&self) -> u64 {
        self.after.row.created_at
    }

    /// What is to be written of the columns in `mask`, when this is stored of the row.
    pub(super) fn update(self, stored: &Stored, mask: i32) -> Option<Update> {
        let columns = self.after.changes(&self.before, &stored.sources) & mask;
        if columns == 0 {
            return None;
        }
        let mut row = self.after.row;
        if let Some(row_id) = &stored.row_id {
            row.id.clone_from(row_id);
        }
        Some(Update {
            row,
            columns,
            stored: stored.sources,
            new: self.after.sources,
            cost_usd: self.cost_usd,
        })
    }
}
