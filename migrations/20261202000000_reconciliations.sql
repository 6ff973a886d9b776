-- A reconciliation goes through two whole tables in many invocations of a function. What they must know
-- of one another, and have added up together, is kept here.
create table reconciliations (
    id bigint generated always as identity primary key,
    -- Who began it: the ARN of an execution. The same call again gets the same row.
    owner text not null unique,
    -- Its row in repairs; null if it only compares.
    repair bigint,
    -- Makes the numbers that stand for keys in the sums of this run, and of no other.
    hash_key bytea not null default uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()),
    started_at timestamptz not null default clock_timestamp(),
    -- The oldest of its exports, as far as its slices have named them.
    export_time timestamptz,
    -- Null while it runs, and for good if it was left.
    ended_at timestamptz,
    -- Whether its owner said so, and each of its pieces was done. The sums of the pieces follow.
    complete boolean not null default false,
    files bigint not null default 0,
    compared bigint not null default 0,
    differing bigint not null default 0,
    repaired bigint not null default 0,
    gone bigint not null default 0,
    removed bigint not null default 0,
    rejected bigint not null default 0
);

comment on table reconciliations is
    'One row per reconciliation by slices. Rows of runs that have ended may be deleted.';

-- What is handled by itself, in one invocation after another. Deleted when the run ends.
create table reconciliation_pieces (
    run bigint not null references reconciliations (id) on delete cascade,
    -- The file, s3://BUCKET/KEY, or the step and the beginning of a range of rows.
    piece text not null,
    kind text not null check (kind in ('slice', 'count', 'check', 'failure')),
    -- Of a range: its sessions come after this one, up to that one; null: to the last.
    after text,
    through text,
    -- Up to where it is settled: a number of lines, or a session id.
    next text not null default '',
    -- Up to where it is added to the sums of the run.
    added text not null default '',
    done boolean not null default false,
    -- Lines or rows that were looked at.
    compared bigint not null default 0,
    -- Parts that differ; of those that no row holds, how many.
    differing bigint not null default 0,
    missing bigint not null default 0,
    -- Parts that were written.
    repaired bigint not null default 0,
    -- Parts of rows that were asked for by key, those without an item, and those that were removed.
    asked bigint not null default 0,
    gone bigint not null default 0,
    removed bigint not null default 0,
    rejected bigint not null default 0,
    primary key (run, piece)
);

comment on table reconciliation_pieces is
    'How far each file and each range of rows of a reconciliation that runs has come.';

-- The keys of the items minus the keys of the rows, as sums in which each key has three cells (no bytes:
-- all are 0). The cells of all lanes are added together; there are several, so that not every invocation
-- waits for the same row.
create table reconciliation_sums (
    run bigint not null references reconciliations (id) on delete cascade,
    lane smallint not null,
    -- The items that were seen, minus the parts that had not changed since the export.
    settled bytea not null default '',
    -- Minus those that had.
    recent bytea not null default '',
    primary key (run, lane)
);

-- The cells are as good as random: to compress them costs time and saves nothing.
alter table reconciliation_sums
    alter column settled set storage external,
    alter column recent set storage external;

comment on table reconciliation_sums is
    'The keys of the items and of the rows of a reconciliation that runs, added up.';
