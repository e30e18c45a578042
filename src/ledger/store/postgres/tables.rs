//! The tables: made where they are missing, checked, and asked for their foreign keys.

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row as _};

use super::{PostgresStore, error, query, type_name, within};
use crate::ledger::store::{ForeignKey, Migration, Store, StoreError, fill_in, migrations, quote, schema};
use crate::ledger::table::{Destination, EXECUTIONS, Kind, TableName};

migrations!("../../../../migrations/postgres");

/// Adds [`WRITTEN`] to a table of executions that has it not. Only its new index reads the table, which is locked meanwhile.
const ADD_WRITTEN: &str = include_str!("../../../../migrations/postgres/0010_written.sql");

/// In which order the rows of executions were written; the database says it. SQLite has the rowids.
const WRITTEN: schema::Needed = ("written", Kind::BigInt);

impl PostgresStore {
    pub(super) async fn migrate(&mut self, destinations: &[&'static Destination]) -> Result<(), StoreError> {
        // Several sidecars may start at once.
        self.lock(&[-1]).await?;
        if let Some(schema) = self.names.schema.clone() {
            let there = query("SELECT FROM pg_namespace WHERE nspname = $1".to_owned()).bind(schema.clone());
            if self.fetch(there).await?.is_empty() {
                let create = format!("CREATE SCHEMA IF NOT EXISTS {}", quote(&schema));
                self.run(query(create)).await?;
            }
        }
        for Migration { table, sql } in migrations(destinations) {
            if self.table_columns(table).await?.is_empty() {
                self.apply(sql, table).await?;
            }
        }
        let executions = EXECUTIONS.beside.name;
        let columns = self.table_columns(executions).await?;
        if !columns.iter().any(|((name, ..), _)| name == WRITTEN.0) {
            self.apply(ADD_WRITTEN, executions).await?;
        }
        Ok(())
    }

    /// Carries out a migration of this table.
    async fn apply(&mut self, sql: &str, table: TableName) -> Result<(), StoreError> {
        let sql = fill_in(sql, &self.names, table);
        let applied = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut self.connection);
        within(self.patience, applied).await.map(drop)
    }

    /// Each column as [`schema::compare_names`] takes it, with its type; nothing if there is no table.
    async fn table_columns(&mut self, table: TableName) -> Result<Vec<((String, bool, bool), String)>, StoreError> {
        let sql = "SELECT a.attname::text, a.attnotnull, \
                   a.atthasdef OR a.attidentity <> '' OR a.attgenerated <> '', format_type(a.atttypid, NULL) \
                   FROM pg_attribute a \
                   WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";
        let rows = self.fetch(query(sql.to_owned()).bind(self.names.of(table))).await?;
        rows.iter()
            .map(|row| Ok(((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?), row.try_get(3)?)))
            .collect::<Result<_, sqlx::Error>>()
            .map_err(error)
    }

    pub(super) async fn check(&mut self, destinations: &[&'static Destination]) -> Result<(), StoreError> {
        let mut misfits = Vec::new();
        for (table, mut needed) in schema::needed(destinations) {
            let name = self.names.of(table);
            let (there, types): (Vec<(String, bool, bool)>, Vec<_>) =
                self.table_columns(table).await?.into_iter().unzip();
            if table == EXECUTIONS.beside.name {
                needed.push(WRITTEN);
                if there
                    .iter()
                    .any(|(column, _, has_default)| column == WRITTEN.0 && !has_default)
                {
                    misfits.push(format!("column {} of table {name} has no default", WRITTEN.0));
                }
            }
            schema::compare_names(&name, &needed, &there, &mut misfits);
            for ((column, _, _), found) in there.iter().zip(&types) {
                let kind = needed.iter().find(|(name, _)| name == column).map(|(_, kind)| *kind);
                if let Some(kind) = kind
                    && !fitting_types(kind).contains(&found.as_str())
                {
                    let wanted = type_name(kind);
                    misfits.push(format!(
                        "column {column} of table {name} is {found}, needed is {wanted}"
                    ));
                }
            }
            if there.is_empty() {
                continue;
            }
            let sql = "SELECT privilege FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege \
                       WHERE NOT has_table_privilege(to_regclass($1), privilege)";
            for row in self.fetch(query(sql.to_owned()).bind(&name)).await? {
                let privilege: String = row.try_get(0).map_err(error)?;
                misfits.push(format!(
                    "the user of database.url may not {privilege} on {name}: GRANT it"
                ));
            }
        }
        schema::verdict(misfits)
    }

    pub(super) async fn read_foreign_keys(&mut self, of: TableName) -> Result<Vec<ForeignKey>, StoreError> {
        // Those it may not look into are found out the hard way, when a row is refused.
        let sql = "SELECT a.attname::text, n.nspname::text, r.relname::text, ra.attname::text \
                   FROM pg_constraint c \
                   JOIN pg_class r ON r.oid = c.confrelid JOIN pg_namespace n ON n.oid = r.relnamespace \
                   JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1] \
                   JOIN pg_attribute ra ON ra.attrelid = c.confrelid AND ra.attnum = c.confkey[1] \
                   WHERE c.conrelid = to_regclass($1) AND c.contype = 'f' AND cardinality(c.conkey) = 1 \
                   AND has_schema_privilege(n.oid, 'USAGE') \
                   AND has_column_privilege(r.oid, ra.attname, 'SELECT') ORDER BY c.conname";
        let rows = self.fetch(query(sql.to_owned()).bind(self.names.of(of))).await?;
        let read = |row: &PgRow| -> Result<ForeignKey, sqlx::Error> {
            Ok(ForeignKey {
                column: row.try_get(0)?,
                table: format!("{}.{}", quote(row.try_get(1)?), quote(row.try_get(2)?)),
                referenced: quote(row.try_get(3)?),
            })
        };
        rows.iter().map(read).collect::<Result<_, _>>().map_err(error)
    }
}

/// The types of a column that what is written can be assigned to without loss.
fn fitting_types(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Text => &["text", "character varying", "citext"],
        Kind::Integer => &["integer", "bigint", "numeric", "double precision"],
        Kind::BigInt => &["bigint", "numeric"],
        Kind::Double => &["double precision", "numeric"],
        Kind::Boolean => &["boolean"],
        Kind::Timestamp => &["timestamp without time zone", "timestamp with time zone"],
        Kind::Bytes => &["bytea"],
        Kind::Json => &["jsonb", "json", "text"],
    }
}
