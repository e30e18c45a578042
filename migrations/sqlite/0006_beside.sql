-- One beside each row that this program wrote into a further table: which rows are its own, and where their values came
-- from.
CREATE TABLE {table} (
    id text NOT NULL,
    created_at timestamp NOT NULL,
    sources text NOT NULL,
    PRIMARY KEY (created_at, id)
) WITHOUT ROWID;
