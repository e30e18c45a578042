-- Runs of nodes, connectors and agents, one row each (database.tables). Only made where there is no such table.
CREATE TABLE {table} (
    id text PRIMARY KEY NOT NULL,
    user_id text,
    workspace_id text,
    event_type text NOT NULL,
    context text,
    status text NOT NULL,
    latency_ms integer,
    trace_id text,
    timestamp timestamp NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f000', 'now'))
);
CREATE INDEX {index:user_id} ON {table} (user_id);
CREATE INDEX {index:workspace_id} ON {table} (workspace_id);
CREATE INDEX {index:event_type} ON {table} (event_type);
CREATE INDEX {index:trace_id} ON {table} (trace_id);
CREATE INDEX {index:timestamp} ON {table} (timestamp);
