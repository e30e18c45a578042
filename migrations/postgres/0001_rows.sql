-- The executions, one row each. Only made where there is no such table: one that the backend's own migration made is
-- used as it is.
CREATE TABLE {rows} (
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
CREATE INDEX {index:code_agent_id} ON {rows} (code_agent_id);
CREATE INDEX {index:workflow_execution_id} ON {rows} (workflow_execution_id);
CREATE INDEX {index:runtime} ON {rows} (runtime);
CREATE INDEX {index:language} ON {rows} (language);
CREATE INDEX {index:success} ON {rows} (success);
CREATE INDEX {index:created_at} ON {rows} (created_at);
