//! The backend's own table, made by its own migration, with its five foreign keys; and one that refuses more than those.

use crate::common::random;
use crate::executors::*;
use crate::story::{Story, request};
use crate::world::World;
use serde_json::{Value, json};

/// The table as the backend's migration makes it, and what it refers to.
pub fn tables(more: &str) -> String {
    let parents = [
        "code_agents",
        "workflow_executions",
        "organizations",
        "workspaces",
        "users",
    ];
    let mut sql: String = parents
        .iter()
        .map(|table| format!("CREATE TABLE {table} (id text PRIMARY KEY NOT NULL);"))
        .collect();
    sql += &format!(
        "CREATE TABLE code_exec_logs (
            id text PRIMARY KEY NOT NULL,
            code_agent_id text CONSTRAINT code_exec_logs_code_agent_id_code_agents_id_fk
                REFERENCES code_agents(id) ON DELETE SET NULL,
            workflow_execution_id text CONSTRAINT code_exec_logs_workflow_execution_id_workflow_executions_id_fk
                REFERENCES workflow_executions(id) ON DELETE SET NULL,
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
            organization_id text CONSTRAINT code_exec_logs_organization_id_organizations_id_fk
                REFERENCES organizations(id) ON DELETE CASCADE,
            workspace_id text CONSTRAINT code_exec_logs_workspace_id_workspaces_id_fk
                REFERENCES workspaces(id) ON DELETE CASCADE,
            user_id text CONSTRAINT code_exec_logs_user_id_users_id_fk REFERENCES users(id) ON DELETE CASCADE,
            created_at timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL
            {more}
        );"
    );
    let indexed = [
        "code_agent_id",
        "workflow_execution_id",
        "runtime",
        "language",
        "success",
        "created_at",
    ];
    for column in indexed {
        sql += &format!("CREATE INDEX code_exec_logs_{column}_idx ON code_exec_logs ({column});");
    }
    sql
}

/// What a database says of the table, to be the same afterwards.
async fn shape(world: &World, side: usize) -> i64 {
    let database = &world.sides[side].database;
    match database {
        crate::world::Database::Sqlite(_) => {
            database
                .count(
                    "SELECT (SELECT count(*) FROM pragma_table_info('code_exec_logs')) \
                     + 100 * (SELECT count(*) FROM pragma_foreign_key_list('code_exec_logs')) \
                     + 10000 * (SELECT count(*) FROM sqlite_master \
                                WHERE tbl_name = 'code_exec_logs' AND type IN ('index', 'trigger') AND sql IS NOT NULL)",
                )
                .await
        }
        crate::world::Database::Postgres(_) => {
            database
                .count(
                    "SELECT (SELECT count(*) FROM information_schema.columns WHERE table_name = 'code_exec_logs') \
                     + 100 * (SELECT count(*) FROM pg_constraint \
                              WHERE conrelid = 'code_exec_logs'::regclass AND contype = 'f') \
                     + 10000 * (SELECT count(*) FROM pg_index \
                                WHERE indrelid = 'code_exec_logs'::regclass AND NOT indisprimary) \
                     + 1000000 * (SELECT count(*) FROM pg_trigger \
                                  WHERE tgrelid = 'code_exec_logs'::regclass AND NOT tgisinternal)",
                )
                .await
        }
    }
}

/// An execution whose five ids are of parents that are there (`known-...`) or not.
fn with_ids(s: &mut Story, ids: [&str; 5]) -> [Value; 5] {
    let kept = ids.map(|id| {
        if id.starts_with("known") {
            Value::from(id)
        } else {
            Value::Null
        }
    });
    let run = s.send(
        execution("python", 10, 20)
            .with(json!({
                "code.agent_id": ids[0], "workflow.execution_id": ids[1], "organization.id": ids[2],
                "workspace.id": ids[3], "user.id": ids[4], "node.id": s.id("node"),
            }))
            .alone(),
    );
    let node = s.id("node");
    let [agent, execution, organization, workspace, user] = kept.clone();
    s.expect(
        &run,
        json!({
            "runtime": "vm2", "language": "python", "duration_ms": 10, "success": true, "node_id": node,
            "code_agent_id": agent, "workflow_execution_id": execution, "organization_id": organization,
            "workspace_id": workspace, "user_id": user,
        }),
    );
    kept
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_key_that_refuses_empties_its_column_and_no_other() {
    let mut random = random("a_foreign_key_that_refuses_empties_its_column_and_no_other");
    let mut sql = tables("");
    for table in [
        "code_agents",
        "workflow_executions",
        "organizations",
        "workspaces",
        "users",
    ] {
        sql += &format!("INSERT INTO {table} (id) VALUES ('known-1'), ('known-2');");
    }
    let mut world = World::start_with(&mut random, |setup| setup, &sql).await;
    for side in 0..world.sides.len() {
        assert_eq!(
            shape(&world, side).await,
            60_517,
            "seventeen columns, five foreign keys, six indexes"
        );
    }
    // Every combination of known and unknown ids, in one batch.
    let mut story = Story::new(&mut random);
    for unknown in 0..32 {
        let ids = [0, 1, 2, 3, 4].map(|column| {
            if unknown & (1 << column) == 0 {
                "known-1"
            } else {
                "nobody"
            }
        });
        with_ids(&mut story, ids);
    }
    // A run of the route for code agents: its workflow execution is in no table.
    let mut agent = Story::new(&mut random);
    let caller = Caller::code_agent(&agent);
    let run = agent.send(code(&caller, "python", "subprocess", 10, 60).finished(true, 50));
    let row = json!({
        "runtime": "subprocess", "language": "python", "duration_ms": 50, "success": true, "node_id": "code-agent",
    });
    agent.expect(&run, row);
    story.sent.extend(agent.sent);
    story.rows.extend(agent.rows);
    world.tell(&story).await;

    // What is learnt later: a user who is known, and a workspace that is not.
    let mut story = Story::new(&mut random);
    let caller = Caller {
        execution_id: "known-2".to_owned(),
        ..Caller::anonymous_node(&story)
    };
    let run = story.send(code(&caller, "python", "subprocess", 10, 100).finished(false, 90));
    let around = node(&story, &caller, 0, 110).gave_up("why", 1);
    story.send(around.with(json!({"user.id": "known-2", "organization.id": "nobody", "workspace.id": "nobody"})));
    let row = json!({
        "runtime": "subprocess", "language": "python", "duration_ms": 90, "success": false, "error_message": "why",
        "user_id": "known-2",
    });
    story.expect(&run, [caller.columns(), row]);
    for sent in &story.sent {
        world.send(&request([sent])).await;
    }
    let found = world.settle().await;
    for rows in &found {
        assert_eq!(rows[&run], story.rows[0]);
        assert_eq!(rows.len(), 34);
    }
    for side in 0..world.sides.len() {
        assert_eq!(shape(&world, side).await, 60_517, "nothing was added to the table");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_the_database_refuses_is_set_aside_and_the_rows_beside_it_are_written() {
    let mut random = random("a_row_that_the_database_refuses_is_set_aside_and_the_rows_beside_it_are_written");
    let sql = tables(", CONSTRAINT no_cobol CHECK (language <> 'cobol')");
    let mut world = World::start_with(&mut random, |setup| setup, &sql).await;
    let mut story = Story::new(&mut random);
    let mut refused = Vec::new();
    for number in 0..40 {
        let language = if number % 10 == 3 { "cobol" } else { "python" };
        let run = story.send(execution(language, 10, 20).alone());
        if language == "cobol" {
            refused.push(run);
        } else {
            story.expect(
                &run,
                json!({"runtime": "vm2", "language": language, "duration_ms": 10, "success": true}),
            );
        }
    }
    world.tell(&story).await;
    for side in &world.sides {
        let ids = refused
            .iter()
            .map(|id| format!("'{id}'"))
            .collect::<Vec<_>>()
            .join(", ");
        let kept = format!(
            "SELECT CAST(count(*) AS bigint) FROM spanledger_quarantine WHERE id IN ({ids}) AND reason LIKE '%no_cobol%'"
        );
        assert_eq!(side.database.count(&kept).await, 4, "each with the reason");
        let all = "SELECT CAST(count(*) AS bigint) FROM spanledger_quarantine";
        assert_eq!(side.database.count(all).await, 4);
    }
}
