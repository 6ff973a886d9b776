-- The sessions whose objects must still be compared with their rows. A long run of `backfill` stores rows
-- first and writes the objects at its end, each once. A key is committed together with its row, so it
-- outlives kill -9, and the next run writes what this one did not.
create table pending_objects (
    session_id text collate "C" primary key,
    -- Changes each time a run touches the key. Whoever has compared the object removes the key only if
    -- the mark is still the one that was read before the row.
    mark bigint not null,
    -- There was no row when the key was first kept, so there is probably no object either.
    is_new boolean not null
);

comment on table pending_objects is
    'The sessions whose objects backfill has still to compare with their rows: `backfill objects --pending` does. Without an archive the table stays empty.';
