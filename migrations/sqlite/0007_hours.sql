-- The rows of hours that are over, packed, for statistics (src/columns.rs). Made from the rows, and made again when they
-- change; deleting all of it only makes statistics slower for a while.
CREATE TABLE {own:hours} (
    -- Hours since 1970.
    hour bigint NOT NULL,
    part integer NOT NULL,
    packed_at_ns bigint NOT NULL,
    data blob NOT NULL,
    PRIMARY KEY (hour, part)
);
