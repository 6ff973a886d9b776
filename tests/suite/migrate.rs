//! `backfill migrate`: whatever would stop it is said before anything is changed, by a dry run and
//! a real run in the same words and with the same exit code.

use testkit::runs::{assert_code, backfill, text};
use testkit::services::Stores;

/// Everything that a migration, or a grant to this role, could change.
async fn state(stores: &Stores, role: &str) -> String {
    let sql = format!(
        "SELECT concat((SELECT string_agg(relname || coalesce(relacl::text, ''), ' ' ORDER BY \
            relname)
            FROM pg_class WHERE relnamespace = 'public'::regnamespace),
        (SELECT rolconfig::text FROM pg_roles WHERE rolname = '{role}'))"
    );
    stores.ask(&sql).await
}

async fn run_sql(stores: &Stores, sql: &str) {
    stores.change(sql).await;
}

/// Takes the newest migration out of the ledger.
const FORGET_NEWEST: &str = "DELETE FROM _sqlx_migrations WHERE version = 20261127000000";

/// Takes away what the newest migration made.
const UNDO_NEWEST: &str = "ALTER TABLE rejected_records \
    DROP COLUMN discarded_at CASCADE, DROP COLUMN discarded_why CASCADE";

/// Creates a role, and gives the stores as it reaches them.
async fn role(stores: &Stores) -> (String, Stores) {
    let role = format!("migrate_test_{:08x}", fastrand::u32(..));
    run_sql(stores, &format!("CREATE ROLE {role} LOGIN PASSWORD 'p'")).await;
    let (_, rest) = stores.database_url.split_once('@').expect("a host");
    let as_role = Stores { database_url: format!("postgres://{role}:p@{rest}"), ..stores.clone() };
    (role, as_role)
}

/// Sees that a dry run and a real run are both stopped with this exit code and message, and change
/// nothing.
#[track_caller]
fn assert_stopped(stores: &Stores, arguments: &[&str], code: i32, message: &str) {
    let dry = backfill(stores, &[&["migrate", "--dry-run"], arguments].concat());
    let real = backfill(stores, &[&["migrate"], arguments].concat());
    for output in [&dry, &real] {
        assert_code(output, code);
        assert!(text(&output.stderr).contains(message), "{message}: {}", text(&output.stderr));
        assert_eq!(text(&output.stderr).trim_end().lines().count(), 1, "{output:?}");
    }
    assert_eq!((dry.stdout, dry.stderr), (real.stdout, real.stderr));
}

#[tokio::test]
async fn a_ledger_that_does_not_fit_stops_both_runs_and_names_the_remedy() {
    for (change, code, message) in [
        (
            "UPDATE _sqlx_migrations SET checksum = '\\x00' WHERE version = 20261122000100",
            1,
            "the migration 20261122000100 \"rejected records\" was applied with another text",
        ),
        (
            "INSERT INTO _sqlx_migrations VALUES (99990101000000, 'tomorrow', now(), true, \
                '\\x00', 0)",
            1,
            "99990101000000 \"tomorrow\", which is later than the newest that this `backfill` \
                knows",
        ),
        (
            "INSERT INTO _sqlx_migrations VALUES (20200101000000, 'theirs', now(), true, '\\x00', \
                0)",
            1,
            "20200101000000 \"theirs\", which is none of ours",
        ),
        (
            "UPDATE _sqlx_migrations SET success = false WHERE version = 20261122000100",
            1,
            "failed halfway (success is false in _sqlx_migrations): undo what it has made",
        ),
        (
            "DELETE FROM _sqlx_migrations WHERE version = 20261122000100",
            1,
            "the table rejected_records exists, but _sqlx_migrations does not have the migration \
                20261122000100",
        ),
        (
            "UPDATE _sqlx_migrations SET version = version - 20000000000000",
            2,
            "DATABASE_URL names a database whose table _sqlx_migrations belongs to another program",
        ),
    ] {
        let stores = Stores::fresh().await;
        run_sql(&stores, change).await;
        let (role, _) = role(&stores).await;
        let before = state(&stores, &role).await;
        assert_stopped(&stores, &["--grant-to", &role], code, message);
        assert_eq!(state(&stores, &role).await, before, "{change}");
    }
}

/// A dry run that said "pending" of what the real run would stumble over would be worse than none.
#[tokio::test]
async fn what_a_pending_migration_makes_or_changes_is_looked_for_before_anything_is_changed() {
    for (change, message) in [
        (
            FORGET_NEWEST.to_owned(),
            "the column rejected_records.discarded_at exists, but _sqlx_migrations does not have \
             the migration 20261127000000 that makes it: restore _sqlx_migrations",
        ),
        (
            format!(
                "{FORGET_NEWEST}; ALTER TABLE rejected_records DROP COLUMN discarded_at, DROP \
                 COLUMN discarded_why, ADD CONSTRAINT rejected_records_discarded CHECK (true)"
            ),
            "beginning with ALTER TABLE rejected_records DROP CONSTRAINT \
                rejected_records_discarded",
        ),
        (
            "DROP TABLE measurements; DELETE FROM _sqlx_migrations WHERE version = 20261122000000; \
             CREATE INDEX measurements_user_started_at ON rejected_records (reason)"
                .to_owned(),
            "the index measurements_user_started_at exists",
        ),
        (
            format!("{FORGET_NEWEST}; DROP TABLE rejected_records"),
            "changes the table rejected_records, which does not exist",
        ),
    ] {
        let stores = Stores::fresh().await;
        run_sql(&stores, &change).await;
        let before = state(&stores, "postgres").await;
        assert_stopped(&stores, &[], 1, message);
        assert_eq!(state(&stores, "postgres").await, before, "{change}");
    }
    // Every migration of this release, and of the next ones.
    let stores = Stores::fresh().await;
    let versions = "SELECT string_agg(version::text, ' ') FROM _sqlx_migrations";
    for version in stores.ask(versions).await.split(' ') {
        let stores = Stores::fresh().await;
        let gone = format!("DELETE FROM _sqlx_migrations WHERE version = {version}");
        run_sql(&stores, &gone).await;
        let message = format!("exists, but _sqlx_migrations does not have the migration {version}");
        assert_stopped(&stores, &[], 1, &message);
    }
}

/// The advice for a migration that failed halfway leads to the end.
#[tokio::test]
async fn an_undone_migration_is_applied_again() {
    let stores = Stores::fresh().await;
    run_sql(&stores, &format!("{FORGET_NEWEST}; {UNDO_NEWEST}")).await;
    for arguments in [&["migrate", "--dry-run"][..], &["migrate"]] {
        assert_code(&backfill(&stores, arguments), 0);
    }
    assert_eq!(stores.ask("SELECT count(discarded_at) FROM rejected_records").await, "0");
}

#[tokio::test]
async fn a_login_without_rights_is_told_who_owns_the_ledger_and_the_tables() {
    let stores = Stores::fresh().await;
    let (login, as_login) = role(&stores).await;
    run_sql(&stores, &format!("GRANT CREATE ON SCHEMA public TO {login}")).await;
    let owner = "log in as its owner, \"postgres\"";
    assert_stopped(&as_login, &[], 2, &format!("cannot read the table _sqlx_migrations: {owner}"));
    run_sql(
        &stores,
        &format!("GRANT SELECT ON _sqlx_migrations TO {login}; {FORGET_NEWEST}; {UNDO_NEWEST}"),
    )
    .await;
    assert_stopped(&as_login, &[], 2, &format!("cannot write the table _sqlx_migrations: {owner}"));
    run_sql(&stores, &format!("GRANT ALL ON ALL TABLES IN SCHEMA public TO {login}")).await;
    let message = format!("cannot change the table rejected_records: {owner}");
    assert_stopped(&as_login, &[], 2, &message);
}

/// What only the run itself can meet has a remedy too: here, a lock.
#[tokio::test]
async fn a_migration_that_cannot_get_its_lock_says_where_to_look() {
    let stores = Stores::fresh().await;
    run_sql(&stores, &format!("{FORGET_NEWEST}; {UNDO_NEWEST}")).await;
    let mut user = stores.connect().await;
    let lock = "BEGIN; LOCK TABLE rejected_records IN ACCESS SHARE MODE";
    user.run(lock).await;
    // The dry run waits for nobody.
    assert_code(&backfill(&stores, &["migrate", "--dry-run"]), 0);
    let output = backfill(&stores, &["migrate"]);
    assert_code(&output, 1);
    let message = text(&output.stderr);
    assert!(
        message.contains("the migrations stopped: ") && message.contains("pg_locks"),
        "{message}"
    );
    user.run("ROLLBACK").await;
    assert_code(&backfill(&stores, &["migrate"]), 0);
}

#[tokio::test]
async fn a_role_that_does_not_exist_is_found_before_anything_is_changed() {
    let stores = Stores::unmigrated().await;
    for flag in ["--grant-to", "--grant-backfill-to"] {
        let message =
            format!("{flag} names \"nobody\", and the database has no such role: create it");
        assert_stopped(&stores, &[flag, "nobody"], 2, &message);
    }
    assert_eq!(stores.ask("SELECT to_regclass('measurements')").await, "");
}

/// PostgreSQL answers a GRANT without the grant option with a warning alone, as if it had granted.
#[tokio::test]
async fn a_login_that_cannot_grant_or_create_is_found_before_anything_is_changed() {
    let stores = Stores::fresh().await;
    let (login, as_login) = role(&stores).await;
    let (other, _) = role(&stores).await;
    run_sql(&stores, &format!("GRANT ALL ON ALL TABLES IN SCHEMA public TO {login}")).await;
    let message = format!(
        "DATABASE_URL logs in as \"{login}\", who cannot grant SELECT on measurements: log in as its owner"
    );
    assert_stopped(&as_login, &["--grant-to", &other], 2, &message);
    // Without a grant there is nothing to do, and nothing that the login lacks.
    assert_code(&backfill(&as_login, &["migrate"]), 0);

    let empty = Stores::unmigrated().await;
    let (login, as_login) = role(&empty).await;
    let message = format!("logs in as \"{login}\", who cannot create tables");
    assert_stopped(&as_login, &[], 2, &message);
}

#[tokio::test]
async fn a_database_that_takes_no_changes_is_found_before_anything_is_changed() {
    let stores = Stores::unmigrated().await;
    let read_only =
        format!("ALTER DATABASE {:?} SET default_transaction_read_only = on", stores.bucket);
    run_sql(&stores, &read_only).await;
    assert_stopped(&stores, &[], 2, "names a database whose transactions are read-only");
}

#[tokio::test]
async fn a_dry_run_says_what_the_real_run_does() {
    let stores = Stores::unmigrated().await;
    let (role, _) = role(&stores).await;
    let arguments = ["--grant-to", &role, "--grant-backfill-to", &role];
    let before = state(&stores, &role).await;
    let dry = backfill(&stores, &[&["migrate", "--dry-run"], arguments.as_slice()].concat());
    assert_code(&dry, 0);
    assert_eq!(state(&stores, &role).await, before);
    let real = backfill(&stores, &[&["migrate"], arguments.as_slice()].concat());
    assert_code(&real, 0);
    assert_ne!(state(&stores, &role).await, before);
    let lines = |output: &[u8], renamed: &[(&str, &str)]| {
        let mut text = text(output);
        for (from, to) in renamed {
            text = text.replace(from, to);
        }
        let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        let mut lines: Vec<String> = lines.collect();
        lines.pop().expect("a last line");
        lines
    };
    let renamed = [("pending  ", "applied  "), ("would grant", "granted"), ("would set", "set")];
    assert_eq!(lines(&dry.stdout, &renamed), lines(&real.stdout, &[]));
    assert!(text(&dry.stdout).contains("would grant"), "{dry:?}");
}
