-- What each `backfill verify` came to: `backfill ready` asks for the last complete one.
create table verifications (
    id bigint generated always as identity primary key,
    -- What was compared with the rows: the rows of another database, the items of the tables, or the objects.
    comparison text not null check (comparison in ('rows', 'tables', 'objects')),
    -- The other side, without credentials: host:port/database, the two tables, or the bucket and prefix.
    against text not null,
    started_at timestamptz not null,
    ended_at timestamptz not null default now(),
    -- Whether it compared every session, from the first to the last.
    complete boolean not null,
    -- It compared only what changed after this time; null if all.
    since timestamptz,
    compared bigint not null,
    missing bigint not null,
    extra bigint not null,
    older bigint not null,
    content bigint not null
);

comment on table verifications is
    'One row per run of `backfill verify`: what was compared, and how many differences persisted. Rows may be deleted.';
