-- Records that can never apply, whole and with the reason: they block nothing and are not lost.
create table rejected_records (
    -- What makes two deliveries the same record: <table>/<version>, or a digest where a record is
    -- too broken to have one.
    identity text collate "C" primary key,
    table_name text,
    stream_label text,
    sequence_number text,
    event_id text,
    reason text not null,
    record json not null,
    rejected_at timestamptz not null default now()
);

comment on column rejected_records.record is
    'The record to the letter; what is no JSON is a JSON string of it, what is no text is {"base64": ...}.';
