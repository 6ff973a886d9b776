-- A repair whose parts run in invocations of a function has no session that could hold the lock of
-- repairs. Its row here is the lock instead: a lease, which its owner renews until it ends the row.
alter table repairs
    drop constraint repairs_source_check,
    add constraint repairs_source
        check (source in ('scan', 'export', 'keys', 'redrive', 'merge', 'reconcile')),
    add column owner text,
    add column heartbeat_at timestamptz,
    -- The oldest time from which the streams of both tables hold every change, as the repair began.
    add column streams_since timestamptz,
    -- When the first replay of the streams for this repair began: a later one resumes from its
    -- checkpoints.
    add column following_since timestamptz,
    -- When the streams were first read through to the beginning of the repair.
    add column caught_up_at timestamptz,
    -- Every change of the table that was created up to then is stored.
    add column read_through_sessions timestamptz,
    add column read_through_scans timestamptz,
    add constraint repairs_lease check ((owner is null) = (heartbeat_at is null));

comment on column repairs.owner is
    'Who has the lease, or had it. Null: the session that holds the advisory lock of repairs.';
