-- The runs of agents, one row each (database.tables). Only made where there is no such table.
CREATE TABLE {table} (
    id text PRIMARY KEY NOT NULL,
    agent_id text NOT NULL,
    flow_id text,
    trace_id text NOT NULL,
    input_context text,
    execution_nodes text,
    output_summary text,
    error text,
    timestamp timestamp NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f000', 'now'))
);
CREATE INDEX {index:agent_id} ON {table} (agent_id);
CREATE INDEX {index:trace_id} ON {table} (trace_id);
CREATE INDEX {index:timestamp} ON {table} (timestamp);
