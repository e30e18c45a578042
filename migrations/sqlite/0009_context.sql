-- Spans whose partners may still come: executions that may still be completed, and spans that may complete one. In the
-- order of arrival, many in a row; where the spans of a trace or of a node are, the program that writes it knows by heart.
CREATE TABLE {own:context} (
    -- Of the last span of the row. Each span has one, and those of a row follow each other.
    position integer PRIMARY KEY AUTOINCREMENT,
    -- How many of the spans still wait.
    spans integer NOT NULL,
    -- When the last of them was received.
    received_at_ns bigint NOT NULL,
    -- When the span becomes a row if no execution is found around it. Such a span is alone here.
    due_ns bigint,
    -- The spans (src/ledger/store/sqlite/block.rs).
    data blob NOT NULL
);
CREATE INDEX {index:own:context:received_at_ns} ON {own:context} (received_at_ns, spans);
CREATE INDEX {index:own:context:due_ns} ON {own:context} (due_ns) WHERE due_ns IS NOT NULL;
