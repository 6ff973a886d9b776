//! The schema: applies what is pending, says what it did, and grants. Whatever would stop it is
//! looked for before anything is changed, by a dry run and a real run alike.

pub(crate) mod changes;
pub(crate) mod grants;
pub(crate) mod schema;

use anyhow::Context as _;
use projector::cause::sqlstate;
use projector::config::ConfigError;
use projector::database::DedicatedConnection;
use projector::{bind, start};
use serde::Serialize;
use sqlx::migrate::{MigrateError, Migration};

use self::changes::Changes;
use self::grants::{Done, Grant, Role, Statement, Step};
use self::schema::{Applied, MIGRATOR, Mismatch};

use crate::cli::{MigrateArguments, Settings};
use crate::outcome::{Outcome, Remedy};
use crate::output::Output;
use crate::statement::without_remedy;

/// What is to be done, found out before anything is changed.
struct Plan {
    applied: Vec<Applied>,
    pending: Vec<&'static Migration>,
    /// The roles, and what each is granted.
    roles: Vec<(Role, &'static [Grant])>,
}

/// What the command has done, or would do; `--json` prints it as it is.
#[derive(Debug, Serialize)]
struct Report {
    dry_run: bool,
    already_applied: Vec<Migrated>,
    /// Applied by this run.
    applied: Vec<Migrated>,
    /// Not applied.
    pending: Vec<Migrated>,
    statements: Vec<Statement>,
    /// The settings of roles that stay as they are.
    kept: Vec<String>,
}

/// A migration.
#[derive(Clone, Debug, Serialize)]
struct Migrated {
    version: i64,
    description: String,
}

pub(crate) async fn run(
    settings: &Settings,
    arguments: &MigrateArguments,
    output: &Output,
) -> anyhow::Result<Outcome> {
    let mut config = settings.config()?;
    config.archive = None;
    let projector = start::projector_with_credentials(config).await?;
    let mut connection = projector.database.connect().await?;
    let plan = look(&mut connection, arguments).await?;
    let mut report = Report::of(&plan, arguments.dry_run);
    for Migrated { version, description } in &report.already_applied {
        output.line(&format!("already applied  {version}  {description}"));
    }
    let done = if arguments.dry_run {
        announce(&mut connection, &plan, &mut report, output).await
    } else {
        carry_out(&mut connection, &plan, &mut report, output).await
    };
    output.json(|| serde_json::to_value(&report))?;
    done?;
    connection.close().await.context("closing the connection")?;
    output.line(if arguments.dry_run {
        "dry run: nothing was changed"
    } else {
        "the schema is up to date"
    });
    Ok(Outcome::Done)
}

/// Says what a real run would do.
async fn announce(
    connection: &mut DedicatedConnection,
    plan: &Plan,
    report: &mut Report,
    output: &Output,
) -> anyhow::Result<()> {
    for Migrated { version, description } in &report.pending {
        output.line(&format!("pending          {version}  {description}"));
    }
    let steps = steps(connection, plan).await?;
    for step in steps {
        report.add(step.announced(), output);
    }
    Ok(())
}

/// Applies what is pending, and grants. What was done before a failure is in the report.
async fn carry_out(
    connection: &mut DedicatedConnection,
    plan: &Plan,
    report: &mut Report,
    output: &Output,
) -> anyhow::Result<()> {
    if !plan.pending.is_empty() {
        // No limit of its own: it may build an index. But it waits for no lock for long.
        connection.migrate(&MIGRATOR).await.map_err(|error| {
            let remedy = Remedy(remedy(&error).into());
            anyhow::Error::new(error).context("the migrations stopped").context(remedy)
        })?;
    }
    report.applied = std::mem::take(&mut report.pending);
    for Migrated { version, description } in &report.applied {
        output.line(&format!("applied          {version}  {description}"));
    }
    for step in steps(connection, plan).await? {
        report.add(step.run(connection).await?, output);
    }
    Ok(())
}

impl Report {
    fn of(plan: &Plan, dry_run: bool) -> Self {
        let already =
            |row: &Applied| Migrated { version: row.version, description: row.description.clone() };
        let pending = |migration: &&Migration| Migrated {
            version: migration.version,
            description: migration.description.to_string(),
        };
        Self {
            dry_run,
            already_applied: plan.applied.iter().map(already).collect(),
            applied: Vec::new(),
            pending: plan.pending.iter().map(pending).collect(),
            statements: Vec::new(),
            kept: Vec::new(),
        }
    }

    /// What became of a step, in both forms.
    fn add(&mut self, done: Done, output: &Output) {
        output.line(&done.to_string());
        match done {
            Done::Kept(setting) => self.kept.push(setting),
            Done::Statement(statement) => self.statements.push(statement),
        }
    }
}

/// What is asked before anything is changed: a database, a login or a role that will not do is
/// found here.
async fn look(
    connection: &mut DedicatedConnection,
    arguments: &MigrateArguments,
) -> anyhow::Result<Plan> {
    require_usable(connection).await?;
    let Ledger { applied, refusal } = ledger(connection).await?;
    let pending = schema::pending(&applied)?;
    if !pending.is_empty() {
        refusal.map_or(Ok(()), Err)?;
        require_create(connection).await?;
        let changes = Changes::of(&pending);
        require_room(connection, &changes).await?;
        require_tables(connection, &changes).await?;
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

async fn steps(connection: &mut DedicatedConnection, plan: &Plan) -> anyhow::Result<Vec<Step>> {
    let mut steps = Vec::new();
    for (role, grants) in &plan.roles {
        steps.extend(role.steps(connection, grants).await?);
    }
    Ok(steps)
}

/// What to do about a migration that stopped although nothing was in its way before. Each is a
/// transaction: the one that stopped has left nothing behind, those before it are applied.
fn remedy(error: &MigrateError) -> &'static str {
    let code = match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => sqlstate(error),
        _ => None,
    };
    match code.as_deref() {
        Some("55P03" | "57014" | "40P01") => {
            "another `backfill migrate` runs, or somebody uses the table: see pg_locks, then run \
                this again"
        }
        Some("42501") => "log in as the owner of the database and its tables",
        // Two runs at once, for instance: the other one may have done it meanwhile.
        Some("42701" | "42710" | "42P07" | "42P01" | "42703") => {
            "the tables are not as _sqlx_migrations says: run `backfill migrate --dry-run`, which \
                names what does not fit"
        }
        _ => {
            "correct what PostgreSQL says, then run this again; the migration that stopped is \
                rolled back"
        }
    }
}

/// The migrations that are applied, and what the login may not do to the table that lists them.
#[derive(Default)]
struct Ledger {
    applied: Vec<Applied>,
    refusal: Option<ConfigError>,
}

/// Reads the applied migrations; none if the table that lists them is not there yet.
async fn ledger(connection: &mut DedicatedConnection) -> anyhow::Result<Ledger> {
    const ACCESS: &str = "SELECT current_user::text, pg_get_userbyid(relowner)::text,
        has_table_privilege(oid, 'SELECT'),
        has_table_privilege(oid, 'INSERT') AND has_table_privilege(oid, 'UPDATE')
    FROM pg_class WHERE oid = to_regclass('_sqlx_migrations')";
    let reading = "reading which migrations are applied";
    let access: Option<(String, String, bool, bool)> =
        connection.fetch_first(ACCESS, bind![]).await.map_err(without_remedy).context(reading)?;
    let Some((login, owner, may_read, may_write)) = access else { return Ok(Ledger::default()) };
    let lacking = |verb: &str| {
        let problem = format!(
            "logs in as {login:?}, who cannot {verb} the table _sqlx_migrations: log in as its \
                owner, {owner:?}"
        );
        ConfigError { variable: "DATABASE_URL", problem }
    };
    if !may_read {
        return Err(lacking("read").into());
    }
    let applied = connection.fetch(schema::LEDGER, bind![]).await;
    let applied = applied.map_err(without_remedy).context(reading)?;
    Ok(Ledger { applied, refusal: (!may_write).then(|| lacking("write")) })
}

/// A database of another encoding lacks some characters, and each record that holds one would be
/// rejected. A standby, or a read-only database, takes no change at all.
async fn require_usable(connection: &mut DedicatedConnection) -> anyhow::Result<()> {
    let sql = "SELECT current_setting('server_encoding'), pg_is_in_recovery(),
        current_setting('transaction_read_only') = 'on'";
    let facts = connection.fetch_one(sql, bind![]).await;
    let (encoding, standby, read_only): (String, bool, bool) =
        facts.map_err(without_remedy).context("reading what the database is")?;
    let problem = if encoding != "UTF8" {
        format!(
            "names a database with the encoding {encoding}, which cannot hold every text: make one \
             with CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0, and restore a dump into \
             it"
        )
    } else if standby {
        "names a standby (a read replica), which takes no changes: name the primary".to_owned()
    } else if read_only {
        "names a database whose transactions are read-only: unset default_transaction_read_only \
         for the database and the role; on RDS, check whether the storage is full"
            .to_owned()
    } else {
        return Ok(());
    };
    Err(ConfigError { variable: "DATABASE_URL", problem }.into())
}

/// The login may create tables.
async fn require_create(connection: &mut DedicatedConnection) -> anyhow::Result<()> {
    let sql = "SELECT current_user::text, current_schema()::text,
        coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)";
    let (login, schema, may_create): (String, Option<String>, bool) = connection
        .fetch_one(sql, bind![])
        .await
        .map_err(without_remedy)
        .context("reading what the login may create")?;
    if may_create {
        return Ok(());
    }
    let schema = schema.as_deref().unwrap_or("public");
    let problem = format!(
        "logs in as {login:?}, who cannot create tables: log in as the owner of the database, or \
         run GRANT CREATE ON SCHEMA {schema} TO {login:?} as its owner"
    );
    Err(ConfigError { variable: "DATABASE_URL", problem }.into())
}

/// Nothing that is to be made is there.
async fn require_room(
    connection: &mut DedicatedConnection,
    changes: &Changes<'_>,
) -> anyhow::Result<()> {
    const EXISTING: &str = "SELECT place
    FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS made (kind, relation, name, place)
    WHERE CASE kind
        WHEN 'column' THEN EXISTS (SELECT FROM pg_attribute
            WHERE attrelid = to_regclass(relation) AND attname = name AND NOT attisdropped)
        WHEN 'constraint' THEN EXISTS (SELECT FROM pg_constraint
            WHERE conrelid = to_regclass(relation) AND conname = name)
        ELSE to_regclass(name) IS NOT NULL
    END ORDER BY place LIMIT 1";
    let made = &changes.made;
    let arguments = bind![
        made.iter().map(|made| made.kind.word()).collect::<Vec<_>>(),
        made.iter().map(|made| made.table).collect::<Vec<_>>(),
        made.iter().map(|made| made.name).collect::<Vec<_>>(),
    ];
    let existing: Option<(i64,)> = connection
        .fetch_first(EXISTING, arguments)
        .await
        .map_err(without_remedy)
        .context("reading what exists already")?;
    let first = existing.and_then(|(place,)| made.get(usize::try_from(place - 1).ok()?));
    first.map_or(Ok(()), |made| {
        let (table, name) = (made.table.to_owned(), made.name.to_owned());
        Err(Mismatch::Exists { version: made.version, kind: made.kind, table, name }.into())
    })
}

/// The tables that are to be changed are there, and are the login's.
async fn require_tables(
    connection: &mut DedicatedConnection,
    changes: &Changes<'_>,
) -> anyhow::Result<()> {
    const OWNER: &str = "SELECT current_user::text, pg_get_userbyid(relowner)::text,
        pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = to_regclass($1)";
    for (version, table) in &changes.altered {
        let found: Option<(String, String, bool)> = connection
            .fetch_first(OWNER, bind![*table])
            .await
            .map_err(without_remedy)
            .context("reading who owns the tables")?;
        let Some((login, owner, may_change)) = found else {
            let (version, table) = (*version, (*table).to_owned());
            return Err(Mismatch::Missing { version, table }.into());
        };
        if !may_change {
            let problem = format!(
                "logs in as {login:?}, who cannot change the table {table}: log in as its owner, \
                    {owner:?}"
            );
            return Err(ConfigError { variable: "DATABASE_URL", problem }.into());
        }
    }
    Ok(())
}
