-- One beside each row this program wrote: what the columns of the row have no place for. In the order of time, in which
-- they come: ids are random, and each would be written to a page of its own. So whoever looks for what is beside a row
-- says its created_at too.
CREATE TABLE {own:executions} (
    id text NOT NULL,
    trace_id text NOT NULL,
    span_id text NOT NULL,
    start_ns bigint NOT NULL,
    end_ns bigint NOT NULL,
    received_at_ns bigint NOT NULL,
    created_at timestamp NOT NULL,
    reported_runtime text,
    reported_exit_code integer,
    reported_outcome text NOT NULL,
    cost_usd double,
    sources text NOT NULL,
    -- The row of this execution where it took over one that stood for its runtime. Beside that row, its own id.
    row_id text,
    PRIMARY KEY (created_at, id)
) WITHOUT ROWID;
-- In place of an end that cannot be believed, created_at is the time of receipt, which is another one when the span comes
-- again; who took over a row, and that row, may come again with another time, too. These, and spans that took no time, are
-- told apart by their ids. An end before the start is the start here.
CREATE UNIQUE INDEX {index:own:executions:odd} ON {own:executions} (id)
    WHERE end_ns = start_ns OR end_ns < 946684800000000000 OR end_ns > received_at_ns + 86400000000000
        OR row_id IS NOT NULL;
-- For the query API: the few rows whose time-out or cost it needs to know, so that it need not look up all of them.
CREATE INDEX {index:own:executions:noteworthy} ON {own:executions} (created_at, reported_outcome, cost_usd)
    WHERE reported_outcome = 'timeout' OR cost_usd IS NOT NULL;
