-- Spans whose partners may still come: executions that may still be completed, and spans that may complete one. In the
-- order of arrival; where the spans of a trace or of a node are, the program that writes it knows by heart.
CREATE TABLE {own:context} (
    position integer PRIMARY KEY AUTOINCREMENT,
    trace_id blob NOT NULL,
    span_id blob NOT NULL,
    node_hash bigint,
    start_ns bigint NOT NULL,
    end_ns bigint NOT NULL,
    received_at_ns bigint NOT NULL,
    facts text NOT NULL,
    -- When it becomes a row if no execution is found around it.
    due_ns bigint
);
CREATE INDEX {index:own:context:received_at_ns} ON {own:context} (received_at_ns);
CREATE INDEX {index:own:context:due_ns} ON {own:context} (due_ns) WHERE due_ns IS NOT NULL;
