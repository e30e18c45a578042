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
