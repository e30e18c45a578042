-- The executions, one row each. Only made where there is no such table: one that the backend's own migration made is
-- used as it is.
CREATE TABLE {table} (
    id text PRIMARY KEY,
    code_agent_id text,
    workflow_execution_id text,
    node_id text,
    runtime text NOT NULL,
    language text NOT NULL,
    duration_ms integer,
    memory_mb integer,
    exit_code integer,
    success boolean NOT NULL,
    error_message text,
    tokens_used integer,
    validation_passed boolean,
    organization_id text,
    workspace_id text,
    user_id text,
    created_at timestamp NOT NULL DEFAULT (now() AT TIME ZONE 'UTC')
);
CREATE INDEX {index:code_agent_id} ON {table} (code_agent_id);
CREATE INDEX {index:workflow_execution_id} ON {table} (workflow_execution_id);
CREATE INDEX {index:runtime} ON {table} (runtime);
CREATE INDEX {index:language} ON {table} (language);
CREATE INDEX {index:success} ON {table} (success);
CREATE INDEX {index:created_at} ON {table} (created_at);
