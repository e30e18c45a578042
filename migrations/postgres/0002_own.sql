-- How far each reader of each journal has come. Saved in the transaction of the rows.
CREATE TABLE {own:positions} (
    journal_id text COLLATE "C" NOT NULL,
    reader text COLLATE "C" NOT NULL,
    next_sequence bigint NOT NULL,
    updated_at timestamp NOT NULL DEFAULT (now() AT TIME ZONE 'UTC'),
    PRIMARY KEY (journal_id, reader)
);

-- One beside each row this program wrote: what the columns of the row have no place for. The rows of one trace are a
-- range of ids, since an id begins with the trace.
CREATE TABLE {own:executions} (
    id text COLLATE "C" PRIMARY KEY,
    trace_id text COLLATE "C" NOT NULL,
    span_id text COLLATE "C" NOT NULL,
    start_ns bigint NOT NULL,
    end_ns bigint NOT NULL,
    received_at_ns bigint NOT NULL,
    created_at timestamp NOT NULL,
    reported_runtime text,
    reported_exit_code integer,
    reported_outcome text NOT NULL,
    cost_usd double precision,
    sources text NOT NULL,
    -- The row of this execution where it is not the one with this id: it took over a row that stood for its runtime.
    row_id text COLLATE "C"
);
CREATE INDEX {index:own:executions:created_at} ON {own:executions} (created_at);
-- For whoever follows the rows as they are written: nearly free, since rows come in this order.
CREATE INDEX {index:own:executions:received_at_ns} ON {own:executions} USING brin (received_at_ns);

-- Spans whose partners may still come: executions that may still be completed, and spans that may complete one.
CREATE TABLE {own:context} (
    trace_id bytea NOT NULL,
    span_id bytea NOT NULL,
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
CREATE INDEX {index:own:context:received_at_ns} ON {own:context} USING brin (received_at_ns);
CREATE INDEX {index:own:context:due_ns} ON {own:context} (due_ns) WHERE due_ns IS NOT NULL;

-- Rows that the database refused, with the reason.
CREATE TABLE {own:quarantine} (
    -- The table that the row was for, by its usual name.
    table_name text NOT NULL,
    id text COLLATE "C" NOT NULL,
    reason text NOT NULL,
    row_json text NOT NULL,
    facts text NOT NULL,
    trace_id bytea NOT NULL,
    span_id bytea NOT NULL,
    start_ns bigint NOT NULL,
    end_ns bigint NOT NULL,
    received_at_ns bigint NOT NULL,
    quarantined_at timestamp NOT NULL,
    PRIMARY KEY (table_name, id)
);
