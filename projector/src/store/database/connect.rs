//! One connection: opened, with its time limits and its promise of durability set, and never
//! leaving a setting behind on a connection that others use.
//!
//! A pooler in transaction mode hands each transaction to any of its server connections. A `SET`
//! would reach its next client; a statement prepared by name is unknown on the next server
//! connection; a session's lock is held by nobody in particular. So each connection is asked first
//! where it leads: a name made up for it is sent in the startup packet, which only a server itself
//! keeps.
//!
//! - [`Route::Direct`]: the server itself. Settings last as long as the session.
//! - [`Route::Pooler`]: each statement is a transaction of its own, with `SET LOCAL` in it.
//! - [`Route::Proxy`]: RDS Proxy, which pins a client to a connection for any `SET` (Amazon RDS
//!   User Guide, "Avoiding pinning an RDS Proxy"). Nothing is set; `backfill migrate --grant-to`
//!   sets it for the role.

#![expect(
    clippy::disallowed_methods,
    reason = "this is where the statements of `Database` are run, within the time limit of their caller"
)]

use std::time::{Duration, Instant};

use sqlx::postgres::{PgArguments, PgConnectOptions, PgRow};
use sqlx::{ConnectOptions as _, Executor as _, PgConnection, Row as _};

use crate::cause;
use crate::error::Error;

/// How long the server lets a statement run. Below [`super::STATEMENT_TIMEOUT`], so that the server
/// ends what we are about to give up on. A role or a database may have a lower limit, which holds
/// then.
const SERVER_STATEMENT_TIMEOUT: &str = "20s";
const SERVER_STATEMENT_TIMEOUT_MS: u128 = 20_000;
/// How long a statement waits for a row that somebody else has locked.
const LOCK_TIMEOUT: &str = "5s";
/// When the server closes a session that does nothing: a function that is frozen does not say
/// goodbye. Longer than [`super::MAX_IDLE`], so that a connection in use is never closed under us.
const IDLE_SESSION_TIMEOUT: &str = "10min";
/// How often the server looks, in a long statement, whether its client is still there.
const CLIENT_CHECK_INTERVAL: &str = "5s";

/// The settings of a role that connects behind a proxy, where a client can set none: name, value.
/// `backfill migrate --grant-to` makes them; other connections make them for themselves.
pub const ROLE_SETTINGS: [(&str, &str); 4] = [
    ("synchronous_commit", "on"),
    ("statement_timeout", SERVER_STATEMENT_TIMEOUT),
    ("lock_timeout", LOCK_TIMEOUT),
    ("idle_session_timeout", IDLE_SESSION_TIMEOUT),
];

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Statements of the apply path.
    Statements,
    /// A session of a command's own, which may sit idle for long and run long statements.
    Session,
}

/// Where a connection leads.
#[derive(Clone, Debug)]
pub(super) enum Route {
    /// To the server.
    Direct(Backend),
    /// To a pooler in transaction mode.
    Pooler,
    /// To RDS Proxy.
    Proxy,
}

/// What is between us and the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Between {
    /// A pooler in transaction mode.
    Pooler,
    /// RDS Proxy.
    Proxy,
}

/// A server process, also after its id was given to another one.
#[derive(Clone, Debug)]
pub(super) struct Backend {
    pid: i32,
    start: String,
}

/// A connection and where it leads.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) pg: PgConnection,
    pub(super) route: Route,
    pub(super) idle_since: Instant,
}

/// Opens a connection. `known`: what an earlier one showed to be before the server, so that the
/// startup packet carries nothing that it refuses.
///
/// # Errors
/// [`Error::Refused`] or [`Error::NotDurable`].
pub(super) async fn open(
    options: &PgConnectOptions,
    asked_anew: bool,
    known: Option<Between>,
    purpose: Purpose,
) -> Result<Connection, Error> {
    let refused = |source: sqlx::Error| {
        let cause = cause::of_connecting(&source, asked_anew);
        Error::Refused { cause, source }
    };
    let probe = format!("{:016x}", fastrand::u64(..));
    let probing = options.clone().options([("projector.probe", &probe)]);
    let proxy = known == Some(Between::Proxy) || is_rds_proxy(options.get_host());
    let (mut pg, proxy) = if known.is_some() || proxy {
        (options.connect().await.map_err(refused)?, proxy)
    } else {
        match probing.connect().await {
            Ok(pg) => (pg, false),
            // PgBouncer says 08P01, RDS Proxy 0A000, to a parameter that it does not take.
            Err(error) if matches!(cause::sqlstate(&error).as_deref(), Some("08P01" | "0A000")) => {
                let proxy = cause::stale_statement(&error);
                (options.connect().await.map_err(refused)?, proxy)
            }
            Err(error) => return Err(refused(error)),
        }
    };
    let route = prepare(&mut pg, &probe, proxy, purpose, refused).await?;
    Ok(Connection { pg, route, idle_since: Instant::now() })
}

/// RDS Proxy by the name that AWS gives it; one under another name is known by what it refuses.
fn is_rds_proxy(host: &str) -> bool {
    let amazon = host.ends_with(".amazonaws.com") || host.ends_with(".amazonaws.com.cn");
    host.contains(".proxy-") && host.contains(".rds.") && amazon
}

/// Asks where the connection leads, and makes the settings if it is the server itself: one round
/// trip.
async fn prepare(
    pg: &mut PgConnection,
    probe: &str,
    proxy: bool,
    purpose: Purpose,
    refused: impl Fn(sqlx::Error) -> Error,
) -> Result<Route, Error> {
    let direct =
        format!("(current_setting('projector.probe', true) IS NOT DISTINCT FROM '{probe}')");
    let sql = format!(
        "SELECT {direct}, pg_backend_pid(), \
         (SELECT backend_start::text FROM pg_stat_get_activity(pg_backend_pid())), \
         current_setting('synchronous_commit'), CASE WHEN {direct} THEN concat({}) END",
        settings(purpose, None)
    );
    let row = pg.fetch_one(sql.as_str()).await.map_err(&refused)?;
    let direct: bool = row.try_get(0).map_err(&refused)?;
    if direct {
        let (pid, start) = (row.try_get(1).map_err(&refused)?, row.try_get(2).map_err(&refused)?);
        return Ok(Route::Direct(Backend { pid, start }));
    }
    if !proxy {
        return Ok(Route::Pooler);
    }
    let synchronous_commit: String = row.try_get(3).map_err(&refused)?;
    match synchronous_commit.as_str() {
        "off" | "local" => Err(Error::NotDurable(synchronous_commit)),
        _ => Ok(Route::Proxy),
    }
}

/// The settings, as calls of `set_config`; with a limit, for one transaction of at most that long.
/// A lower time limit of the role's or the database's own is kept, and so is a `synchronous_commit`
/// that waits for more. A wait for a lock ends before the statement's limit, or it would pass for a
/// slow database.
fn settings(purpose: Purpose, transaction: Option<Duration>) -> String {
    let local = transaction.is_some();
    let most = transaction.map_or(SERVER_STATEMENT_TIMEOUT_MS, |limit| {
        limit.as_millis().clamp(1, SERVER_STATEMENT_TIMEOUT_MS)
    });
    let lower = |name: &str, limit: &str| {
        format!(
            "CASE WHEN current_setting('{name}')::interval BETWEEN '1 ms' AND {limit} \
             THEN current_setting('{name}')::interval ELSE {limit} END"
        )
    };
    let set_interval = |name: &str, interval: &str| {
        format!("set_config('{name}', (extract(epoch FROM {interval}) * 1000)::int::text, {local})")
    };
    let statement = match purpose {
        Purpose::Statements => lower("statement_timeout", &format!("interval '{most} ms'")),
        // A migration may build an index; it is watched by who runs it.
        Purpose::Session => "interval '0'".to_owned(),
    };
    let half = match purpose {
        Purpose::Statements => format!("least(interval '{LOCK_TIMEOUT}', ({statement}) / 2)"),
        Purpose::Session => format!("interval '{LOCK_TIMEOUT}'"),
    };
    let mut settings = vec![
        format!(
            "set_config('synchronous_commit', CASE current_setting('synchronous_commit') \
             WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, {local})"
        ),
        // First, for it reads the other.
        set_interval("lock_timeout", &lower("lock_timeout", &half)),
        set_interval("statement_timeout", &statement),
    ];
    if !local {
        let idle = match purpose {
            Purpose::Statements => IDLE_SESSION_TIMEOUT,
            Purpose::Session => "1h",
        };
        settings.push(format!(
            "CASE WHEN current_setting('idle_session_timeout', true) IS NOT NULL \
             THEN set_config('idle_session_timeout', '{idle}', false) END"
        ));
        // Before version 15 the server takes it on Linux only.
        settings.push(format!(
            "CASE WHEN current_setting('client_connection_check_interval', true) IS NOT NULL AND \
             (current_setting('server_version_num')::int >= 150000 OR version() LIKE '%linux%') \
             THEN set_config('client_connection_check_interval', '{CLIENT_CHECK_INTERVAL}', false) \
             END"
        ));
    }
    if purpose == Purpose::Statements {
        // What is kept prepared is planned once per connection, and by the index: a plan made while
        // the table was small would read all of it for each session long after it has grown
        // (PostgreSQL documentation, "PREPARE", Notes).
        settings.push(format!("set_config('plan_cache_mode', 'force_generic_plan', {local})"));
        settings.push(format!("set_config('enable_seqscan', 'off', {local})"));
    }
    settings.join(", ")
}

impl Connection {
    /// Runs one statement, in a transaction of its own where the route wants one.
    pub(super) async fn run(
        &mut self,
        sql: &'static str,
        arguments: PgArguments,
        limit: Duration,
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        let persistent = matches!(self.route, Route::Direct(_));
        let query = sqlx::query_with(sql, arguments).persistent(persistent);
        if !matches!(self.route, Route::Pooler) {
            return query.fetch_all(&mut self.pg).await;
        }
        let begin = format!("BEGIN; SELECT {}", settings(Purpose::Statements, Some(limit)));
        if let Err(error) = self.pg.execute(begin.as_str()).await {
            // The connection may be kept: not in a transaction.
            let _ = self.pg.execute("ROLLBACK").await;
            return Err(error);
        }
        let answer = query.fetch_all(&mut self.pg).await;
        let end = if answer.is_ok() { "COMMIT" } else { "ROLLBACK" };
        let ended = self.pg.execute(end).await;
        let rows = answer?;
        ended?;
        Ok(rows)
    }

    /// The server process, where this connection alone has it.
    pub(super) fn backend(&self) -> Option<Backend> {
        match &self.route {
            Route::Direct(backend) => Some(backend.clone()),
            Route::Pooler | Route::Proxy => None,
        }
    }
}

/// Cancels what a server process of ours runs: a client that only drops its socket leaves the
/// statement running, with its locks. sqlx keeps the key of a cancel request to itself, so the
/// request is made over another connection.
pub(super) async fn cancel(
    options: &PgConnectOptions,
    backend: &Backend,
) -> Result<(), sqlx::Error> {
    let mut connection = options.connect().await?;
    let sql = format!(
        "SELECT pg_cancel_backend(pid) FROM pg_stat_get_activity({}) WHERE backend_start = \
         '{}'::timestamptz AND application_name = 'projector' AND state = 'active'",
        backend.pid, backend.start
    );
    connection.execute(sql.as_str()).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Purpose, is_rds_proxy, settings};
    use std::time::Duration;

    #[test]
    fn rds_proxy_is_known_by_its_name_in_china_too() {
        for host in [
            "feet.proxy-abc.eu-central-1.rds.amazonaws.com",
            "ro.endpoint.proxy-abc.eu-central-1.rds.amazonaws.com",
            "feet.proxy-abc.rds.cn-north-1.amazonaws.com.cn",
        ] {
            assert!(is_rds_proxy(host), "{host}");
        }
        assert!(!is_rds_proxy("feet.abc.eu-central-1.rds.amazonaws.com"));
        assert!(!is_rds_proxy("feet.proxy-abc.example.com"));
    }

    #[test]
    fn behind_a_pooler_every_setting_ends_with_its_transaction() {
        let local = settings(Purpose::Statements, Some(Duration::from_millis(1_500)));
        assert!(local.contains("interval '1500 ms'"), "{local}");
        assert!(!local.contains("false)") && local.contains("'synchronous_commit'"), "{local}");
    }
}
