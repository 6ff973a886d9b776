SELECT array_agg(session_id), array_agg(session_version), array_agg(left_version), array_agg(right_version)
FROM measurements
WHERE session_id = ANY($1::text[])
