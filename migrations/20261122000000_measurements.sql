-- One row a session: who measured, and the two feet. Each part has its own version; the row has none.
create table measurements (
    -- The C collation: ids are opaque, and bytes compare faster than a language's order.
    session_id text collate "C" primary key,

    user_id text,
    device_model text,
    os_version text,
    app_version text,
    started_at timestamptz,
    session_attributes json,

    left_scanned_at timestamptz,
    left_foot_length_mm numeric,
    left_foot_breadth_mm numeric,
    left_ball_girth_mm numeric,
    left_heel_breadth_mm numeric,
    left_instep_height_mm numeric,
    left_arch_length_mm numeric,
    left_mesh bytea,
    left_attributes json,

    right_scanned_at timestamptz,
    right_foot_length_mm numeric,
    right_foot_breadth_mm numeric,
    right_ball_girth_mm numeric,
    right_heel_breadth_mm numeric,
    right_instep_height_mm numeric,
    right_arch_length_mm numeric,
    right_mesh bytea,
    right_attributes json,

    -- <stream label>/<sequence number, 40 digits>: plain > is the order of changes. A version stays
    -- when its part is removed, so that a replay cannot bring the part back.
    session_version text collate "C",
    left_version text collate "C",
    right_version text collate "C",

    session_changed_at timestamptz,
    left_changed_at timestamptz,
    right_changed_at timestamptz,

    complete boolean not null generated always as (
        user_id is not null and left_scanned_at is not null and right_scanned_at is not null
    ) stored
)
-- A row is written about three times: room on its page keeps the later writes heap-only.
with (fillfactor = 70);

-- A mesh is compressed at its source; trying again costs CPU on every write.
alter table measurements
    alter column left_mesh set storage external,
    alter column right_mesh set storage external;

-- "A user's newest measurement." There is no index on what a scan changes: it would end heap-only updates.
create index measurements_user_started_at on measurements (user_id, started_at desc) where user_id is not null;

comment on table measurements is
    'One row a measurement, merged from the change records of the sessions and scans tables. Only the projector writes it, and nothing may delete rows: the versions in them are the guard against replays.';
