-- One beside each row that this program wrote into a further table: which rows are its own, and where their values came
-- from.
CREATE TABLE {table} (
    id text COLLATE "C" PRIMARY KEY,
    created_at timestamp NOT NULL,
    sources text NOT NULL
);
CREATE INDEX {index:created_at} ON {table} (created_at);
