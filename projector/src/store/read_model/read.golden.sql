SELECT m.session_id, NULL::boolean AS inserted, m.session_version, m.left_version, m.right_version,
    ($2 OR ((octet_length(m.user_id) <= 2048) IS NOT FALSE
        AND (octet_length(m.device_model) <= 2048) IS NOT FALSE
        AND (octet_length(m.os_version) <= 2048) IS NOT FALSE
        AND (octet_length(m.app_version) <= 2048) IS NOT FALSE
        AND (pg_column_size(m.session_attributes) <= 2048 AND octet_length(m.session_attributes::text) <= 2048) IS NOT FALSE
        AND (octet_length(m.left_mesh) <= 2048) IS NOT FALSE
        AND (pg_column_size(m.left_attributes) <= 2048 AND octet_length(m.left_attributes::text) <= 2048) IS NOT FALSE
        AND (octet_length(m.right_mesh) <= 2048) IS NOT FALSE
        AND (pg_column_size(m.right_attributes) <= 2048 AND octet_length(m.right_attributes::text) <= 2048) IS NOT FALSE)) AS whole,
    CASE WHEN $2 OR octet_length(m.user_id) <= 2048 THEN m.user_id END AS user_id,
    CASE WHEN $2 OR octet_length(m.device_model) <= 2048 THEN m.device_model END AS device_model,
    CASE WHEN $2 OR octet_length(m.os_version) <= 2048 THEN m.os_version END AS os_version,
    CASE WHEN $2 OR octet_length(m.app_version) <= 2048 THEN m.app_version END AS app_version,
    m.started_at,
    CASE WHEN $2 OR pg_column_size(m.session_attributes) <= 2048 AND octet_length(m.session_attributes::text) <= 2048 THEN m.session_attributes::text END AS session_attributes,
    m.left_scanned_at,
    m.left_foot_length_mm::text AS left_foot_length_mm,
    m.left_foot_breadth_mm::text AS left_foot_breadth_mm,
    m.left_ball_girth_mm::text AS left_ball_girth_mm,
    m.left_heel_breadth_mm::text AS left_heel_breadth_mm,
    m.left_instep_height_mm::text AS left_instep_height_mm,
    m.left_arch_length_mm::text AS left_arch_length_mm,
    CASE WHEN $2 OR octet_length(m.left_mesh) <= 2048 THEN m.left_mesh END AS left_mesh,
    CASE WHEN $2 OR pg_column_size(m.left_attributes) <= 2048 AND octet_length(m.left_attributes::text) <= 2048 THEN m.left_attributes::text END AS left_attributes,
    m.right_scanned_at,
    m.right_foot_length_mm::text AS right_foot_length_mm,
    m.right_foot_breadth_mm::text AS right_foot_breadth_mm,
    m.right_ball_girth_mm::text AS right_ball_girth_mm,
    m.right_heel_breadth_mm::text AS right_heel_breadth_mm,
    m.right_instep_height_mm::text AS right_instep_height_mm,
    m.right_arch_length_mm::text AS right_arch_length_mm,
    CASE WHEN $2 OR octet_length(m.right_mesh) <= 2048 THEN m.right_mesh END AS right_mesh,
    CASE WHEN $2 OR pg_column_size(m.right_attributes) <= 2048 AND octet_length(m.right_attributes::text) <= 2048 THEN m.right_attributes::text END AS right_attributes,
    m.session_changed_at,
    m.left_changed_at,
    m.right_changed_at
FROM measurements m
WHERE session_id = ANY($1::text[])
