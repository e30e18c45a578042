-- How far each reader of each journal has come. Saved in the transaction of the rows.
CREATE TABLE {own:positions} (
    journal_id text NOT NULL,
    reader text NOT NULL,
    next_sequence bigint NOT NULL,
    updated_at timestamp NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f000', 'now')),
    PRIMARY KEY (journal_id, reader)
) WITHOUT ROWID;

-- One beside each row this program wrote: what the columns of the row have no place for. In the order of time, in which
-- they come: ids are random, and each would be written to a page of its own. So whoever looks for what is beside a row
-- says its created_at too.
CREATE TABLE {own:executions} (
    id text NOT NULL,
    trace_id text NOT NULL,
    span_id text NOT NULL,
    start_ns bigint NOT NULL,
    end_ns bigint NOT NULL,
    received_at_ns bigint NOT NULL,
    created_at timestamp NOT NULL,
    reported_runtime text,
    reported_exit_code integer,
    reported_outcome text NOT NULL,
    cost_usd double,
    sources text NOT NULL,
    -- The row of this execution where it is not the one with this id: it took over a row that stood for its runtime.
    row_id text,
    PRIMARY KEY (created_at, id)
) WITHOUT ROWID;
-- In place of an end that cannot be believed, created_at is the time of receipt, which is another one when the span comes
-- again: these spans, and those that took no time, are told apart by their ids. An end before the start is the start here.
CREATE UNIQUE INDEX {index:own:executions:odd} ON {own:executions} (id)
    WHERE end_ns = start_ns OR end_ns < 946684800000000000 OR end_ns > received_at_ns + 86400000000000;
-- For the query API: the few rows whose time-out or cost it needs to know, so that it need not look up all of them.
CREATE INDEX {index:own:executions:noteworthy} ON {own:executions} (created_at, reported_outcome, cost_usd)
    WHERE reported_outcome = 'timeout' OR cost_usd IS NOT NULL;

-- Spans whose partners may still come: executions that may still be completed, and spans that may complete one.
CREATE TABLE {own:context} (
    trace_id blob NOT NULL,
    span_id blob NOT NULL,
    node_hash bigint,
    start_ns bigint NOT NULL,
    end_ns bigint NOT NULL,
    received_at_ns bigint NOT NULL,
    facts text NOT NULL,
    -- When it becomes a row if no execution is found around it.
    due_ns bigint,
    PRIMARY KEY (trace_id, span_id)
);
CREATE INDEX {index:own:context:node_hash} ON {own:context} (node_hash) WHERE node_hash IS NOT NULL;
CREATE INDEX {index:own:context:received_at_ns} ON {own:context} (received_at_ns);
CREATE INDEX {index:own:context:due_ns} ON {own:context} (due_ns) WHERE due_ns IS NOT NULL;

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
