//! The tables in the file: made, put into another order where an earlier version made them, and compared with what is needed.

use rusqlite::Row;

use super::{SqliteStore, texts};
use crate::ledger::store::{ForeignKey, Migration, Store, StoreError, fill_in, migrations, quote, schema};
use crate::ledger::table::{CONTEXT, Destination, Kind, TableName};

migrations!("../../../../migrations/sqlite");

/// The columns of the waiting spans' table, which has many in a row.
const BLOCKS: [(&str, Kind); 5] = [
    ("position", Kind::BigInt),
    ("spans", Kind::Integer),
    ("received_at_ns", Kind::BigInt),
    ("due_ns", Kind::BigInt),
    ("data", Kind::Bytes),
];

/// Tables of earlier versions make room for those of this one. Views that name them stay as they are. First, one with a row for
/// each waiting span.
const SET_SPANS_ASIDE: &str = "PRAGMA legacy_alter_table = ON; \
                               ALTER TABLE {own:context} RENAME TO {own:context_before}; \
                               DROP INDEX {index:own:context:received_at_ns}; DROP INDEX {index:own:context:due_ns}; \
                               PRAGMA legacy_alter_table = OFF";

/// Then, one that kept what is beside the rows in the order of their ids.
const SET_EXECUTIONS_ASIDE: &str = "PRAGMA legacy_alter_table = ON; \
                                    ALTER TABLE {own:executions} RENAME TO {own:executions_before}; \
                                    DROP INDEX IF EXISTS {index:own:executions:noteworthy}; \
                                    PRAGMA legacy_alter_table = OFF";

/// What was in it comes over, in the order of the index on the time: to sort it would take as much memory.
const TAKE_EXECUTIONS_OVER: &str = "INSERT INTO {own:executions} (id, trace_id, span_id, start_ns, end_ns, \
                                    received_at_ns, created_at, reported_runtime, reported_exit_code, \
                                    reported_outcome, cost_usd, sources, row_id) SELECT id, trace_id, span_id, \
                                    start_ns, end_ns, received_at_ns, created_at, reported_runtime, \
                                    reported_exit_code, reported_outcome, cost_usd, sources, row_id \
                                    FROM {own:executions_before} INDEXED BY {index:own:executions:created_at} \
                                    ORDER BY created_at; DROP TABLE {own:executions_before}";

impl SqliteStore {
    /// Makes the tables that are missing, and puts those of earlier versions into the order of this one.
    pub(super) async fn migrate(&mut self, destinations: &[&'static Destination]) -> Result<(), StoreError> {
        // Not as any other: there may be no table of waiting spans yet to hear of.
        self.execute("BEGIN IMMEDIATE").await?;
        let context = self.table_columns(CONTEXT.name).await?;
        let has = |name: &str| context.iter().any(|(column, ..)| column == name);
        let had_spans = has("facts");
        // Before spans had positions, what is beside the rows was in the order of ids.
        let had_no_order = had_spans && !has("position");
        if had_spans {
            self.execute_filled(SET_SPANS_ASIDE).await?;
        }
        if had_no_order {
            self.execute_filled(SET_EXECUTIONS_ASIDE).await?;
        }
        for Migration { table, sql } in migrations(destinations) {
            if self.table_columns(table).await?.is_empty() {
                let sql = fill_in(sql, &self.names, table);
                self.session
                    .run(move |connection| connection.execute_batch(&sql))
                    .await?;
            }
        }
        if had_spans {
            tracing::info!("tables of an earlier version are put in another order: some seconds for each million rows");
            self.take_spans_over().await?;
        }
        if had_no_order {
            self.execute_filled(TAKE_EXECUTIONS_OVER).await?;
        }
        self.commit().await
    }

    /// Statements with the placeholders of migrations.
    pub(super) async fn execute_filled(&mut self, sql: &str) -> Result<(), StoreError> {
        let sql = fill_in(sql, &self.names, CONTEXT.name);
        self.session
            .run_to_the_end(move |connection| connection.execute_batch(&sql))
            .await
    }

    /// Name, whether NULL is refused, and whether there is a default, of each column; nothing if there is no table.
    async fn table_columns(&mut self, table: TableName) -> Result<Vec<(String, bool, bool)>, StoreError> {
        let sql = "SELECT name, \"notnull\", dflt_value IS NOT NULL FROM pragma_table_info(?)".to_owned();
        let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        self.fetch(sql, texts(&[&self.names.bare(table)]), read).await
    }

    /// Whether the tables are what is needed.
    pub(super) async fn check(&mut self, destinations: &[&'static Destination]) -> Result<(), StoreError> {
        let mut misfits = Vec::new();
        for (table, mut columns) in schema::needed(destinations) {
            if table == CONTEXT.name {
                columns = BLOCKS.to_vec();
            }
            let there = self.table_columns(table).await?;
            schema::compare_names(&self.names.of(table), &columns, &there, &mut misfits);
        }
        schema::verdict(misfits)
    }

    pub(super) async fn read_foreign_keys(&mut self, of: TableName) -> Result<Vec<ForeignKey>, StoreError> {
        let sql = "SELECT \"from\", \"table\", coalesce(\"to\", (SELECT name FROM pragma_table_info(k.\"table\") \
                   WHERE pk = 1)) FROM pragma_foreign_key_list(?) k";
        let read = |row: &Row<'_>| {
            Ok(ForeignKey {
                column: row.get(0)?,
                table: quote(row.get_ref(1)?.as_str()?),
                referenced: quote(row.get_ref(2)?.as_str()?),
            })
        };
        self.fetch(sql.to_owned(), texts(&[&self.names.bare(of)]), read).await
    }
}
