-- How far `backfill stream` has come: what a shard's row says is in both stores.
create table backfill_checkpoints (
    stream_arn text not null,
    shard_id text not null,
    -- The last record that is in both stores; null where the shard had none.
    sequence_number text,
    -- The newest ApproximateCreationDateTime of those records.
    last_created timestamptz,
    -- All records created up to then are in both stores; later than last_created where the shard was
    -- found empty after it.
    read_through timestamptz,
    -- The shard was read to its end.
    finished boolean not null,
    -- The bucket and prefix that the records went to as well, or null: they are in that archive only.
    archive text,
    -- The run that wrote this began when every change since then could be read; null where that is not
    -- known.
    snapshot_time timestamptz,
    updated_at timestamptz not null default now(),
    primary key (stream_arn, shard_id)
);

comment on table backfill_checkpoints is
    'Where `backfill stream` goes on after it was ended. Rows may be deleted: then it begins at TRIM_HORIZON.';
