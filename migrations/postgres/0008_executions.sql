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
    -- The row of this execution where it took over one that stood for its runtime. Beside that row, its own id.
    row_id text COLLATE "C"
);
CREATE INDEX {index:own:executions:created_at} ON {own:executions} (created_at);
-- For whoever follows the rows as they are written: nearly free, since rows come in this order.
CREATE INDEX {index:own:executions:received_at_ns} ON {own:executions} USING brin (received_at_ns);
