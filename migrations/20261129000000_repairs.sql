-- Each repair of this database, written before the repair reads anything. A repair writes images, which
-- have a version but no place in a stream, so a record that comes late can no longer be applied by its
-- version.
create table repairs (
    id bigint generated always as identity primary key,
    -- Where the keys came from, or the command that applied records or rows from elsewhere.
    source text not null check (source in ('scan', 'export', 'keys', 'redrive', 'merge')),
    started_at timestamptz not null default clock_timestamp(),
    -- Null while it runs, and for good if it was killed.
    ended_at timestamptz,
    -- Whether it went through all its candidates.
    complete boolean not null default false,
    -- The parts that it read again.
    candidates bigint not null default 0,
    -- Those among them that it wrote.
    written bigint not null default 0
);

comment on table repairs is
    'One row per repair. A row says that this database had a repair: from then on late records are re-read, never applied by version. Rows must never be deleted while records may still be redriven.';
