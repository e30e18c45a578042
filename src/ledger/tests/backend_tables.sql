-- The backend's further tables as its own migrations make them; the tables that they point to are there.
CREATE TABLE model_cost_logs (
    id text PRIMARY KEY NOT NULL,
    user_id text REFERENCES users (id) ON DELETE CASCADE,
    agent_id text REFERENCES code_agents (id) ON DELETE SET NULL,
    workflow_execution_id text REFERENCES workflow_executions (id) ON DELETE SET NULL,
    node_id text,
    model_name text NOT NULL,
    provider text NOT NULL,
    input_tokens integer NOT NULL,
    output_tokens integer NOT NULL,
    tokens_total integer,
    rate_per_1k integer,
    cost_usd integer NOT NULL,
    usd_cost numeric(10, 6),
    prompt text,
    response text,
    trace_id text,
    organization_id text REFERENCES organizations (id) ON DELETE CASCADE,
    workspace_id text REFERENCES workspaces (id) ON DELETE CASCADE,
    timestamp timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL,
    created_at timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL
);
CREATE TABLE agent_trace_history (
    id text PRIMARY KEY NOT NULL,
    agent_id text NOT NULL,
    flow_id text,
    trace_id text NOT NULL,
    input_context jsonb,
    execution_nodes jsonb,
    output_summary jsonb,
    error text,
    timestamp timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL
);
CREATE TABLE event_logs (
    id text PRIMARY KEY NOT NULL,
    user_id text REFERENCES users (id) ON DELETE CASCADE,
    workspace_id text REFERENCES workspaces (id) ON DELETE CASCADE,
    event_type text NOT NULL,
    context jsonb,
    status text NOT NULL,
    latency_ms integer,
    trace_id text,
    timestamp timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL
);
INSERT INTO event_logs (id, event_type, status) VALUES ('cuid-9', 'agent_execution', 'success');
