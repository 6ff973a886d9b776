-- A rejected record that nobody wants is discarded, not deleted: it stays whole, with who knows why, and a
-- redelivery finds its row and does not open it again. Open records are those without discarded_at.
alter table rejected_records
    add column discarded_at timestamptz,
    add column discarded_why text,
    add constraint rejected_records_discarded check ((discarded_at is null) = (discarded_why is null));

comment on column rejected_records.reason is
    'Why the record was rejected the last time it was tried; rejected_at is the first time.';
comment on column rejected_records.record is
    'The record to the letter if it is JSON; otherwise a JSON string of it or, if it is not UTF-8, {"base64": ...}. A record that looks like one of these two forms is a JSON string of itself.';
comment on column rejected_records.discarded_at is
    'When `backfill redrive --discard` discarded the record; null for a record that is open.';
comment on column rejected_records.discarded_why is
    'Why it was discarded, in the words of whoever did it.';
