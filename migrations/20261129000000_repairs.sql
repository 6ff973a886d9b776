-- Each `backfill repair`, and whatever else re-reads items. A row says that this database has had a repair: from
-- then on no late record is applied by its image, because above an image its version proves nothing.
create table repairs (
    id bigint generated always as identity primary key,
    -- Where the keys came from.
    source text not null check (source in ('scan', 'export', 'keys', 'redrive', 'merge')),
    -- Everything that was written before it is applied once the repair is complete.
    started_at timestamptz not null default clock_timestamp(),
    -- Null: it is under way, or something ended it; the same command again completes it.
    ended_at timestamptz,
    complete boolean not null default false,
    -- Parts that may have differed, and those that were written.
    candidates bigint not null default 0,
    written bigint not null default 0
);

comment on table repairs is
    'One row per repair. Never delete the last one while a record can still come late: rejected, or given up by Lambda.';
