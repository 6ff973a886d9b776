//! The schema: applies what is pending, says what it did, and grants.

use std::collections::HashSet;

use anyhow::{Context as _, bail};
use projector::database::Database;
use sqlx::migrate::Migrator;
use sqlx::{Connection as _, PgConnection};

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
    let mut connection = connect(&projector.database).await?;
    let applied = applied(&mut connection).await?;
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
    MIGRATOR.run(&mut connection).await.context("the migrations stopped")?;
    for migration in pending {
        say!("applied          {}  {}", migration.version, migration.description);
    }
    if let Some(role) = &arguments.grant_to {
        grant(&mut connection, &GRANT_PROJECTOR, role).await?;
    }
    if let Some(role) = &arguments.grant_backfill_to {
        grant(&mut connection, &GRANT_BACKFILL, role).await?;
    }
    connection.close().await.context("closing the connection")?;
    say!("the schema is up to date");
    Ok(Outcome::Done)
}

async fn connect(database: &Database) -> anyhow::Result<PgConnection> {
    Ok(database.connect().await?)
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

async fn grant(connection: &mut PgConnection, grants: &[&str], role: &str) -> anyhow::Result<()> {
    let quoted: Option<String> =
        sqlx::query_scalar("SELECT quote_ident(rolname) FROM pg_roles WHERE rolname = $1")
            .bind(role)
            .fetch_optional(&mut *connection)
            .await
            .context("looking for the role")?;
    let Some(quoted) = quoted else {
        bail!(
            "there is no role {role:?}: create it first (CREATE ROLE ... LOGIN), then run this again"
        );
    };
    // The name is PostgreSQL's own quoting of a role that exists.
    for grant in grants {
        let sql = format!("{grant} {quoted}");
        sqlx::raw_sql(&sql)
            .execute(&mut *connection)
            .await
            .with_context(|| format!("granting to {role:?}"))?;
        say!("granted          {sql}");
    }
    Ok(())
}
