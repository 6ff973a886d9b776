-- How a database is set up, a row per setting: its name and its value. `backfill ready` and compare-settings run it.
-- Settings that name the machine, or that this client has set, differ always.
select 'setting ' || name as name, coalesce(reset_val, '') || coalesce(' ' || unit, '') as value from pg_settings
where source <> 'client' and context <> 'internal' and category <> 'File Locations'
    and name not in ('port', 'listen_addresses', 'unix_socket_directories', 'cluster_name', 'primary_conninfo')
union all
select 'version', current_setting('server_version')
union all
select 'extension ' || extname, extversion from pg_extension
union all
select 'setting of ' || coalesce('role ' || rolname, 'all roles') || ', '
    || case setdatabase when 0 then 'all databases' else 'this database' end || ': ' || split_part(setting, '=', 1),
    substr(setting, strpos(setting, '=') + 1)
from pg_db_role_setting left join pg_roles on pg_roles.oid = setrole, unnest(setconfig) setting
where setdatabase in (0, (select oid from pg_database where datname = current_database()))
union all
select 'index ' || indexrelid::regclass, pg_get_indexdef(indexrelid) || case when indisvalid then '' else ' INVALID' end
from pg_index where indrelid = to_regclass('measurements')
