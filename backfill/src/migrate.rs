//! The schema: applies what is pending, says what it did, and grants.

use std::collections::HashSet;
use std::future::Future;

use anyhow::{Context as _, bail};
use projector::config::ConfigError;
use projector::database::{ROLE_SETTINGS, STATEMENT_TIMEOUT};
use sqlx::migrate::Migrator;
use sqlx::{Connection as _, PgConnection};
use tokio::time::timeout;

use crate::Outcome;
use crate::cli::{MigrateArguments, Settings};
use crate::summary::say;

static MIGRATOR: Migrator = sqlx::migrate!("../migrations");

/// What the projector does, and nothing else.
const GRANT_PROJECTOR: [&str; 1] =
    ["GRANT SELECT, INSERT, UPDATE ON measurements, rejected_records TO"];
/// What `backfill file`, `stream` and `redrive` do.
const GRANT_BACKFILL: [&str; 2] = [
    "GRANT SELECT, INSERT, UPDATE ON measurements TO",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON rejected_records, backfill_checkpoints TO",
];

pub(crate) async fn run(
    settings: &Settings,
    arguments: &MigrateArguments,
) -> anyhow::Result<Outcome> {
    let mut config = settings.config()?;
    config.archive = None;
    let projector = config.projector().await?;
    let mut connection = projector.database.connect().await?;
    let looking = look(&mut connection, arguments);
    let (grants, applied) = limited("reading the database's state", looking).await?;
    for migration in MIGRATOR.iter().filter(|migration| applied.contains(&migration.version)) {
        say!("already applied  {}  {}", migration.version, migration.description);
    }
    let pending = MIGRATOR.iter().filter(|migration| !applied.contains(&migration.version));
    if arguments.dry_run {
        for migration in pending {
            say!("pending          {}  {}", migration.version, migration.description);
        }
        return Ok(Outcome::Done);
    }
    // No limit of its own: it may build an index. But it waits for no lock for long.
    MIGRATOR.run(&mut connection).await.context(
        "the migrations stopped (if a lock timed out: another `backfill migrate` runs, or somebody uses the table; see pg_locks, and run this again)",
    )?;
    for migration in pending {
        say!("applied          {}  {}", migration.version, migration.description);
    }
    let granting = async {
        for (role, statements) in &grants {
            role.grant(&mut connection, statements).await?;
            role.set(&mut connection).await?;
        }
        Ok(())
    };
    limited("granting", granting).await?;
    connection.close().await.context("closing the connection")?;
    say!("the schema is up to date");
    Ok(Outcome::Done)
}

/// What is asked before anything is changed: a database or a role that will not do is found here.
async fn look(
    connection: &mut PgConnection,
    arguments: &MigrateArguments,
) -> anyhow::Result<(Vec<(Role, &'static [&'static str])>, HashSet<i64>)> {
    require_utf8(connection).await?;
    let mut grants = Vec::new();
    for (role, statements) in [
        (&arguments.grant_to, GRANT_PROJECTOR.as_slice()),
        (&arguments.grant_backfill_to, &GRANT_BACKFILL),
    ] {
        if let Some(role) = role {
            grants.push((Role::find(connection, role).await?, statements));
        }
    }
    Ok((grants, applied(connection).await?))
}

/// A few small statements, which a connection that has gone silent must not hold for good.
async fn limited<T>(
    what: &str,
    statements: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    timeout(STATEMENT_TIMEOUT, statements)
        .await
        .with_context(|| format!("{what}: the database did not answer within 25 s"))?
}

/// The versions that are applied; none where the bookkeeping table is not there yet.
async fn applied(connection: &mut PgConnection) -> anyhow::Result<HashSet<i64>> {
    let known: bool = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await
        .context("reading which migrations are applied")?;
    if !known {
        return Ok(HashSet::new());
    }
    let versions: Vec<i64> =
        sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success")
            .fetch_all(connection)
            .await
            .context("reading which migrations are applied")?;
    Ok(versions.into_iter().collect())
}

/// A database of another encoding has not every character, and each record that holds one would be rejected.
async fn require_utf8(connection: &mut PgConnection) -> anyhow::Result<()> {
    let encoding: String = sqlx::query_scalar("SELECT current_setting('server_encoding')")
        .fetch_one(connection)
        .await
        .context("reading the database's encoding")?;
    if encoding == "UTF8" {
        return Ok(());
    }
    let problem = format!(
        "names a database with the encoding {encoding}, which cannot hold every text: make one with \
         CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0, and restore a dump into it"
    );
    Err(ConfigError { variable: "DATABASE_URL", problem }.into())
}

/// A role of the database.
struct Role {
    /// As PostgreSQL quotes it.
    quoted: String,
    /// Its own settings, as `name=value`.
    settings: Vec<String>,
}

impl Role {
    async fn find(connection: &mut PgConnection, name: &str) -> anyhow::Result<Self> {
        let sql = "SELECT quote_ident(rolname), coalesce(rolconfig, '{}') FROM pg_roles WHERE rolname = $1";
        let found: Option<(String, Vec<String>)> = sqlx::query_as(sql)
            .bind(name)
            .fetch_optional(connection)
            .await
            .context("looking for the role")?;
        let Some((quoted, settings)) = found else {
            bail!(
                "there is no role {name:?}: create it first (CREATE ROLE ... LOGIN), then run this again"
            );
        };
        Ok(Self { quoted, settings })
    }

    async fn grant(
        &self,
        connection: &mut PgConnection,
        statements: &[&str],
    ) -> anyhow::Result<()> {
        for grant in statements {
            let sql = format!("{grant} {}", self.quoted);
            sqlx::raw_sql(&sql)
                .execute(&mut *connection)
                .await
                .with_context(|| format!("granting to {}", self.quoted))?;
            say!("granted          {sql}");
        }
        Ok(())
    }

    /// Gives the role the settings that its connections make for themselves, and cannot make behind a proxy.
    /// What the role has of its own stays.
    async fn set(&self, connection: &mut PgConnection) -> anyhow::Result<()> {
        for (name, value) in ROLE_SETTINGS {
            if let Some(own) = own_setting(&self.settings, name, value) {
                say!("kept             {} has {own} of its own", self.quoted);
                continue;
            }
            let known: bool = sqlx::query_scalar("SELECT current_setting($1, true) IS NOT NULL")
                .bind(name)
                .fetch_one(&mut *connection)
                .await
                .context("reading the server's settings")?;
            if !known {
                continue;
            }
            let sql = format!("ALTER ROLE {} SET {name} = '{value}'", self.quoted);
            match sqlx::raw_sql(&sql).execute(&mut *connection).await {
                Ok(_) => say!("set              {sql}"),
                // Only behind a proxy are they missed.
                Err(error) if code_of(&error).as_deref() == Some("42501") => {
                    say!(
                        "not set          {sql}: this login may not; behind a proxy, run it as one that may"
                    );
                }
                Err(error) => return Err(error).with_context(|| format!("running {sql}")),
            }
        }
        Ok(())
    }
}

fn code_of(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}

/// A setting of the role's own that is as good as ours: a time limit that is no higher, or a
/// `synchronous_commit` that waits for the disk.
fn own_setting<'a>(settings: &'a [String], name: &str, ours: &str) -> Option<&'a str> {
    let own = settings.iter().find(|own| own.split('=').next() == Some(name))?;
    let value = own.split_once('=')?.1;
    let as_good = match name {
        "synchronous_commit" => !matches!(value, "off" | "local" | "false" | "no" | "0"),
        _ => milliseconds(value).is_some_and(|own| own > 0 && Some(own) <= milliseconds(ours)),
    };
    as_good.then_some(own)
}

/// A time in a setting: a number of milliseconds, or with a unit (PostgreSQL documentation, "Parameter Names
/// and Values").
fn milliseconds(value: &str) -> Option<u64> {
    let digits = value.find(|character: char| !character.is_ascii_digit()).unwrap_or(value.len());
    let (number, unit) = value.split_at(digits);
    let unit_ms = match unit.trim() {
        "" | "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit_ms)
}

#[cfg(test)]
mod tests {
    use super::{ROLE_SETTINGS, own_setting};

    #[test]
    fn a_setting_of_the_role_stays_unless_it_is_none() {
        let ours = |name| ROLE_SETTINGS.iter().find(|(known, _)| *known == name).expect("ours").1;
        let kept =
            |setting: &str, name| own_setting(&[setting.to_owned()], name, ours(name)).is_some();
        assert!(kept("statement_timeout=3s", "statement_timeout"));
        assert!(kept("statement_timeout=20000", "statement_timeout"));
        assert!(!kept("statement_timeout=1h", "statement_timeout"));
        assert!(!kept("statement_timeout=-1", "statement_timeout"));
        assert!(!kept("lock_timeout=30000", "lock_timeout"));
        assert!(!kept("statement_timeout=0", "statement_timeout"));
        assert!(!kept("statement_timeout=0ms", "statement_timeout"));
        assert!(!kept("lock_timeout=3s", "statement_timeout"));
        assert!(kept("synchronous_commit=remote_apply", "synchronous_commit"));
        assert!(!kept("synchronous_commit=off", "synchronous_commit"));
    }
}
