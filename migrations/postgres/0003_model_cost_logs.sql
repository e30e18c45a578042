-- The calls of language models, one row each (database.tables). Only made where there is no such table.
CREATE TABLE {table} (
    id text PRIMARY KEY,
    user_id text,
    agent_id text,
    workflow_execution_id text,
    node_id text,
    model_name text NOT NULL,
    provider text NOT NULL,
    input_tokens integer NOT NULL,
    output_tokens integer NOT NULL,
    tokens_total integer,
    rate_per_1k integer,
    -- In cents.
    cost_usd integer NOT NULL,
    -- In dollars.
    usd_cost numeric(10, 6),
    prompt text,
    response text,
    trace_id text,
    organization_id text,
    workspace_id text,
    timestamp timestamp NOT NULL DEFAULT (now() AT TIME ZONE 'UTC'),
    created_at timestamp NOT NULL DEFAULT (now() AT TIME ZONE 'UTC')
);
CREATE INDEX {index:workflow_execution_id} ON {table} (workflow_execution_id);
CREATE INDEX {index:trace_id} ON {table} (trace_id);
CREATE INDEX {index:timestamp} ON {table} (timestamp);
