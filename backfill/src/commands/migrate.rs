//! The schema: applies what is pending, says what it did, and grants. Whatever would stop it is looked for before
//! anything is changed, by a dry run and a real run alike.

pub(crate) mod grants;
pub(crate) mod schema;

use std::future::Future;

use anyhow::Context as _;
use projector::config::ConfigError;
use projector::database::STATEMENT_TIMEOUT;
use projector::start;
use sqlx::migrate::Migration;
use sqlx::{Connection as _, PgConnection};
use tokio::time::timeout;

use self::grants::{Grant, Role, Step};
use self::schema::{Applied, MIGRATOR, Mismatch};

use crate::cli::{MigrateArguments, Settings};
use crate::console::say;
use crate::outcome::{Outcome, Remedy};

/// What is to be done, found out before anything is changed.
struct Plan {
    applied: Vec<Applied>,
    pending: Vec<&'static Migration>,
    /// The roles, and what each is granted.
    roles: Vec<(Role, &'static [Grant])>,
}

pub(crate) async fn run(
    settings: &Settings,
    arguments: &MigrateArguments,
) -> anyhow::Result<Outcome> {
    let mut config = settings.config()?;
    config.archive = None;
    let projector = start::projector_with_credentials(config).await?;
    let mut connection = projector.database.connect().await?;
    let looking = look(&mut connection, arguments);
    let plan = limited("reading the database's state", looking).await?;
    for migration in &plan.applied {
        say!("already applied  {}  {}", migration.version, migration.description);
    }
    if arguments.dry_run {
        for migration in &plan.pending {
            say!("pending          {}  {}", migration.version, migration.description);
        }
        for step in limited("reading the roles", steps(&mut connection, &plan)).await? {
            step.announce();
        }
        say!("dry run: nothing was changed");
        return Ok(Outcome::Done);
    }
    if !plan.pending.is_empty() {
        // No limit of its own: it may build an index. But it waits for no lock for long.
        let migrated = MIGRATOR.run(&mut connection).await.context("the migrations stopped");
        migrated.context(Remedy(
            "if a lock timed out, another `backfill migrate` runs or somebody uses the table: see pg_locks, and run the \
             same command again"
                .to_owned(),
        ))?;
    }
    for migration in &plan.pending {
        say!("applied          {}  {}", migration.version, migration.description);
    }
    let granting = async {
        for step in steps(&mut connection, &plan).await? {
            step.run(&mut connection).await?;
        }
        Ok(())
    };
    limited("granting", granting).await?;
    connection.close().await.context("closing the connection")?;
    say!("the schema is up to date");
    Ok(Outcome::Done)
}

/// What is asked before anything is changed: a database, a login or a role that will not do is found here.
async fn look(connection: &mut PgConnection, arguments: &MigrateArguments) -> anyhow::Result<Plan> {
    require_usable(connection).await?;
    let applied = applied(connection).await?;
    let pending = schema::pending(&applied)?;
    if !pending.is_empty() {
        require_room(connection, &pending).await?;
    }
    let mut roles = Vec::new();
    for (flag, role, grants) in [
        ("--grant-to", &arguments.grant_to, grants::PROJECTOR),
        ("--grant-backfill-to", &arguments.grant_backfill_to, grants::BACKFILL),
    ] {
        if let Some(role) = role {
            roles.push((Role::find(connection, flag, role, grants).await?, grants));
        }
    }
    Ok(Plan { applied, pending, roles })
}

async fn steps(connection: &mut PgConnection, plan: &Plan) -> anyhow::Result<Vec<Step>> {
    let mut steps = Vec::new();
    for (role, grants) in &plan.roles {
        steps.extend(role.steps(connection, grants).await?);
    }
    Ok(steps)
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

/// The applied migrations; none if the table that lists them is not there yet.
async fn applied(connection: &mut PgConnection) -> anyhow::Result<Vec<Applied>> {
    let reading = "reading which migrations are applied";
    let known: bool = sqlx::query_scalar(schema::HAS_LEDGER)
        .fetch_one(&mut *connection)
        .await
        .context(reading)?;
    if !known {
        return Ok(Vec::new());
    }
    sqlx::query_as(schema::LEDGER).fetch_all(connection).await.context(reading)
}

/// A database of another encoding lacks some characters, and each record that holds one would be rejected. A
/// standby, or a read-only database, takes no change at all.
async fn require_usable(connection: &mut PgConnection) -> anyhow::Result<()> {
    let sql = "SELECT current_setting('server_encoding'), pg_is_in_recovery(),
        current_setting('transaction_read_only') = 'on'";
    let (encoding, standby, read_only): (String, bool, bool) =
        sqlx::query_as(sql).fetch_one(connection).await.context("reading what the database is")?;
    let problem = if encoding != "UTF8" {
        format!(
            "names a database with the encoding {encoding}, which cannot hold every text: make one with \
             CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0, and restore a dump into it"
        )
    } else if standby {
        "names a standby (a read replica), which takes no changes: name the primary".to_owned()
    } else if read_only {
        "names a database whose transactions are read-only: unset default_transaction_read_only for the database and \
         the role; on RDS, check whether the storage is full"
            .to_owned()
    } else {
        return Ok(());
    };
    Err(ConfigError { variable: "DATABASE_URL", problem }.into())
}

/// The login may create tables, and none of those that are to be created is there.
async fn require_room(
    connection: &mut PgConnection,
    pending: &[&'static Migration],
) -> anyhow::Result<()> {
    let sql = "SELECT current_user::text, current_schema()::text,
        coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)";
    let (login, schema, may_create): (String, Option<String>, bool) = sqlx::query_as(sql)
        .fetch_one(&mut *connection)
        .await
        .context("reading what the login may create")?;
    if !may_create {
        let schema = schema.as_deref().unwrap_or("public");
        let problem = format!(
            "logs in as {login:?}, who cannot create tables: log in as the owner of the database, or run \
             GRANT CREATE ON SCHEMA {schema} TO {login:?} as its owner"
        );
        return Err(ConfigError { variable: "DATABASE_URL", problem }.into());
    }
    let made = schema::tables_made(pending);
    let names: Vec<&str> = made.iter().map(|(_, name)| *name).collect();
    let existing: Option<String> = sqlx::query_scalar(schema::EXISTING)
        .bind(names)
        .fetch_optional(connection)
        .await
        .context("reading which tables exist")?;
    match made.into_iter().find(|(_, name)| Some(*name) == existing.as_deref()) {
        Some((version, table)) => {
            Err(Mismatch::TableExists { version, table: table.to_owned() }.into())
        }
        None => Ok(()),
    }
}
