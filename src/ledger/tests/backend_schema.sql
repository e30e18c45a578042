-- The tables of the backend that the rows' table points to, as far as it matters here, and that table as the backend's
-- own migration makes it.
CREATE TABLE organizations (id text PRIMARY KEY, name text);
CREATE TABLE workspaces (id text PRIMARY KEY, name text);
CREATE TABLE users (id text PRIMARY KEY, name text);
CREATE TABLE code_agents (id text PRIMARY KEY, name text);
CREATE TABLE workflow_executions (id text PRIMARY KEY, status text);
CREATE TABLE code_exec_logs (
    id text PRIMARY KEY NOT NULL,
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
    created_at timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL,
    CONSTRAINT code_exec_logs_code_agent_id_code_agents_id_fk FOREIGN KEY (code_agent_id)
        REFERENCES code_agents (id) ON DELETE SET NULL,
    CONSTRAINT code_exec_logs_workflow_execution_id_workflow_executions_id_fk FOREIGN KEY (workflow_execution_id)
        REFERENCES workflow_executions (id) ON DELETE SET NULL,
    CONSTRAINT code_exec_logs_organization_id_organizations_id_fk FOREIGN KEY (organization_id)
        REFERENCES organizations (id) ON DELETE CASCADE,
    CONSTRAINT code_exec_logs_workspace_id_workspaces_id_fk FOREIGN KEY (workspace_id)
        REFERENCES workspaces (id) ON DELETE CASCADE,
    CONSTRAINT code_exec_logs_user_id_users_id_fk FOREIGN KEY (user_id)
        REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX code_exec_logs_code_agent_id_idx ON code_exec_logs (code_agent_id);
CREATE INDEX code_exec_logs_workflow_execution_id_idx ON code_exec_logs (workflow_execution_id);
CREATE INDEX code_exec_logs_runtime_idx ON code_exec_logs (runtime);
CREATE INDEX code_exec_logs_language_idx ON code_exec_logs (language);
CREATE INDEX code_exec_logs_success_idx ON code_exec_logs (success);
CREATE INDEX code_exec_logs_created_at_idx ON code_exec_logs (created_at);
INSERT INTO organizations (id) VALUES ('org-1');
INSERT INTO workspaces (id) VALUES ('ws-1');
INSERT INTO users (id) VALUES ('user-1');
INSERT INTO code_agents (id) VALUES ('ca-7');
INSERT INTO workflow_executions (id, status) VALUES ('we-1', 'completed');
