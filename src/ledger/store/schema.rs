//! Whether the tables that are there are the tables that are needed: one message per misfit.

use super::StoreError;
use crate::ledger::table::{CONTEXT, Destination, Kind, QUARANTINE, Table, TableName};

/// A column that is needed, and its type.
pub(super) type Needed = (&'static str, Kind);

/// The tables that are needed, with their columns.
pub(super) fn needed(destinations: &[&'static Destination]) -> Vec<(TableName, Vec<Needed>)> {
    fn columns<T>(table: &'static Table<T>) -> (TableName, Vec<Needed>) {
        (
            table.name,
            table.columns.iter().map(|column| (column.name, column.kind)).collect(),
        )
    }
    let positions = vec![
        ("journal_id", Kind::Text),
        ("reader", Kind::Text),
        ("next_sequence", Kind::BigInt),
    ];
    let hours = vec![
        ("hour", Kind::BigInt),
        ("part", Kind::Integer),
        ("packed_at_ns", Kind::BigInt),
        ("data", Kind::Bytes),
    ];
    let mut needed = vec![
        columns(&CONTEXT),
        columns(&QUARANTINE),
        (TableName::Own("positions"), positions),
        (TableName::Own("hours"), hours),
    ];
    for destination in destinations {
        needed.extend([columns(&destination.rows), columns(&destination.beside)]);
    }
    needed
}

/// Compares by name: `there` holds the name, whether NULL is refused, and whether there is a default.
pub(super) fn compare_names(table: &str, needed: &[Needed], there: &[(String, bool, bool)], misfits: &mut Vec<String>) {
    if there.is_empty() {
        misfits.push(format!("there is no table {table}"));
        return;
    }
    for (name, _) in needed {
        if !there.iter().any(|(column, _, _)| column == name) {
            misfits.push(format!("table {table} has no column {name}"));
        }
    }
    for (name, not_null, has_default) in there {
        if *not_null && !has_default && !needed.iter().any(|(column, _)| column == name) {
            misfits.push(format!(
                "column {name} of table {table} is NOT NULL and has no default, so that no row could be written"
            ));
        }
    }
}

/// One error of all misfits.
pub(super) fn verdict(misfits: Vec<String>) -> Result<(), StoreError> {
    if misfits.is_empty() {
        Ok(())
    } else {
        Err(StoreError::Misfit(misfits.join("; ")))
    }
}
