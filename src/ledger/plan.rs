//! What one batch of journal records changes in the database: a pure function of the batch and of what is known.

use super::assemble::{Assembled, assemble};
use super::facts::{Execution, Facts, Role};
use super::row::{Row, Sources};
use super::table::{Beside, NewRow};
use super::world::World;
use crate::rules::prices::Prices;

/// What to write.
#[derive(Debug, Default)]
pub(super) struct Plan<'a> {
    /// Executions of the batch. The database says which of them it had already.
    pub(super) rows: Vec<NewRow>,
    /// The facts of `rows`, in their order.
    pub(super) executions: Vec<&'a Facts>,
    /// Other spans that executions may still need.
    pub(super) context: Vec<&'a Facts>,
    /// Rows from before that the batch may make better; what the stored row has decides.
    pub(super) candidates: Vec<Candidate>,
    /// Executions older than the retention.
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
#[derive(Debug)]
pub(super) struct Update {
    /// The row; only the columns in the mask are to be written.
    pub(super) row: Row,
    /// A mask of [`super::row::Column::bit`].
    pub(super) columns: i32,
    pub(super) sources: Sources,
    /// The cost to write when the runtime, which it depends on, is written.
    pub(super) cost_usd: Option<f64>,
}

/// `oldest` is the Unix time in nanoseconds before which executions are not written.
pub(super) fn plan<'a>(known: &'a [Facts], fresh: &'a [Facts], window: u64, oldest: u64, prices: &Prices) -> Plan<'a> {
    let world = World::new(known, fresh, window);
    let mut plan = Plan::default();
    for facts in world.fresh() {
        let Role::Execution(execution) = &facts.told.role else {
            plan.context.push(facts);
            continue;
        };
        if execution.created_at < oldest {
            plan.expired += 1;
            continue;
        }
        let Some(assembled) = assemble(&world, facts, true) else {
            continue;
        };
        let replaces = super::standalone::replaced_by(&world, facts);
        plan.rows.push(new_row(facts, execution, assembled, replaces, prices));
        plan.executions.push(facts);
    }
    for old in world.executions().filter(|span| !span.fresh) {
        let Role::Execution(execution) = &old.facts.told.role else {
            continue;
        };
        let before = assemble(&world, old.facts, false);
        let after = assemble(&world, old.facts, true);
        if let (Some(before), Some(after)) = (before, after)
            && before != after
        {
            let cost_usd = cost(execution, &after, prices);
            plan.candidates.push(Candidate {
                before,
                after,
                cost_usd,
            });
        }
    }
    plan
}

/// What the span says itself; else what the row's runtime costs for as long as it took.
fn cost(execution: &Execution, assembled: &Assembled, prices: &Prices) -> Option<f64> {
    let row = &assembled.row;
    let estimate = || prices.execution_cost(&row.runtime, row.duration_ms.map(f64::from));
    execution.cost_usd.or_else(estimate)
}

pub(super) fn new_row(
    facts: &Facts,
    execution: &Execution,
    assembled: Assembled,
    replaces: Vec<String>,
    prices: &Prices,
) -> NewRow {
    let beside = Beside {
        start: facts.start,
        end: facts.end,
        received_at: facts.received_at,
        runtime: execution.runtime.clone(),
        exit_code: execution.exit_code,
        outcome: execution.reported_outcome(),
        cost_usd: cost(execution, &assembled, prices),
    };
    let Assembled { row, sources, .. } = assembled;
    NewRow {
        id: facts.id,
        row,
        sources,
        beside,
        replaces,
        alias_of: None,
    }
}

impl Candidate {
    pub(super) fn id(&self) -> &str {
        &self.after.row.id
    }

    /// What is to be written, when this is stored of the row.
    pub(super) fn update(self, stored: &Stored) -> Option<Update> {
        let Stored {
            sources: stored,
            row_id,
        } = stored;
        let columns = self.after.changes(&self.before, stored);
        if columns == 0 {
            return None;
        }
        let mut sources = *stored;
        for column in super::row::Column::ALL
            .into_iter()
            .filter(|column| columns & column.bit() != 0)
        {
            sources.set(column, self.after.sources.get(column));
        }
        let mut row = self.after.row;
        if let Some(row_id) = row_id {
            row.id.clone_from(row_id);
        }
        Some(Update {
            row,
            columns,
            sources,
            cost_usd: self.cost_usd,
        })
    }
}
