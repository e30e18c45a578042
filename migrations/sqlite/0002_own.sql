-- How far each reader of each journal has come. Saved in the transaction of the rows.
CREATE TABLE {own:positions} (
    journal_id text NOT NULL,
    reader text NOT NULL,
    next_sequence bigint NOT NULL,
    updated_at timestamp NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f000', 'now')),
    PRIMARY KEY (journal_id, reader)
) WITHOUT ROWID;

-- Rows that the database refused, with the reason.
CREATE TABLE {own:quarantine} (
    -- The table that the row was for, by its usual name.
    table_name text NOT NULL,
    id text NOT NULL,
    reason text NOT NULL,
    row_json text NOT NULL,
    facts text NOT NULL,
    trace_id blob NOT NULL,
    span_id blob NOT NULL,
    start_ns bigint NOT NULL,
    end_ns bigint NOT NULL,
    received_at_ns bigint NOT NULL,
    quarantined_at timestamp NOT NULL,
    PRIMARY KEY (table_name, id)
) WITHOUT ROWID;
