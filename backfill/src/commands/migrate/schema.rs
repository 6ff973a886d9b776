//! Which migrations a database has, compared with those of this binary. Everything that would stop a migration is
//! found here, before anything is changed, so that a dry run says what the real run would say.

use std::collections::HashSet;

use sqlx::FromRow;
use sqlx::migrate::{Migration, Migrator};

/// The migrations of this binary.
pub(crate) static MIGRATOR: Migrator = sqlx::migrate!("../migrations");

/// Whether the database has the table of applied migrations.
pub(crate) const HAS_LEDGER: &str = "SELECT to_regclass('_sqlx_migrations') IS NOT NULL";
/// The applied migrations.
pub(crate) const LEDGER: &str =
    "SELECT version, description, success, checksum FROM _sqlx_migrations ORDER BY version";
/// Those of the given tables that the database has.
pub(crate) const EXISTING: &str =
    "SELECT name FROM unnest($1::text[]) AS given (name) WHERE to_regclass(name) IS NOT NULL";

/// A row of `_sqlx_migrations`.
#[derive(Clone, Debug, FromRow)]
pub(crate) struct Applied {
    pub(crate) version: i64,
    pub(crate) description: String,
    pub(crate) success: bool,
    pub(crate) checksum: Vec<u8>,
}

/// Why the migrations of this binary cannot run on a database.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Mismatch {
    /// Another program keeps its migrations in this database.
    #[error(
        "DATABASE_URL names a database whose table _sqlx_migrations belongs to another program (its newest migration \
         is {version} {description:?}, and none is ours): name the read model's own database, or create one for it"
    )]
    Foreign { version: i64, description: String },
    /// A migration has begun and has not succeeded.
    #[error(
        "the migration {version} {description:?} failed halfway (success is false in _sqlx_migrations): undo what it \
         has made, run DELETE FROM _sqlx_migrations WHERE version = {version}, then run `backfill migrate` again; or \
         restore the database"
    )]
    Failed { version: i64, description: String },
    /// A later release has migrated the database.
    #[error(
        "the database has the migration {version} {description:?}, which is later than the newest that this `backfill` \
         knows ({newest}): use the `backfill` of the release that applied it"
    )]
    Later { version: i64, description: String, newest: i64 },
    /// A migration among ours that is none of ours.
    #[error(
        "the database has the migration {version} {description:?}, which is none of ours: another program shares the \
         table _sqlx_migrations; give it a database of its own, then delete that row and run `backfill migrate` again"
    )]
    Unknown { version: i64, description: String },
    /// An applied migration had another text.
    #[error(
        "the migration {version} {description:?} was applied with another text than this `backfill` has (the checksum \
         in _sqlx_migrations differs): use the `backfill` that applied it; if the file was edited, restore its text \
         and make the change in a new migration"
    )]
    Changed { version: i64, description: String },
    /// The table that a pending migration makes is there.
    #[error(
        "the table {table} exists, but _sqlx_migrations does not have the migration {version} that makes it: if the \
         table is the read model's, restore _sqlx_migrations along with it; if it is another program's, name another \
         database in DATABASE_URL"
    )]
    TableExists { version: i64, table: String },
}

impl Mismatch {
    /// Whether the database is the wrong one.
    pub(crate) fn is_configuration(&self) -> bool {
        matches!(self, Self::Foreign { .. })
    }
}

/// The migrations that the database does not have yet.
///
/// # Errors
/// What would stop them.
pub(crate) fn pending(applied: &[Applied]) -> Result<Vec<&'static Migration>, Mismatch> {
    let ours = |version| MIGRATOR.iter().find(|migration| migration.version == version);
    if let Some(last) = applied.last()
        && !applied.iter().any(|row| ours(row.version).is_some())
    {
        let (version, description) = (last.version, last.description.clone());
        return Err(Mismatch::Foreign { version, description });
    }
    if let Some(failed) = applied.iter().find(|row| !row.success) {
        let (version, description) = (failed.version, failed.description.clone());
        return Err(Mismatch::Failed { version, description });
    }
    let newest = MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or_default();
    for Applied { version, description, checksum, .. } in applied {
        let (version, description) = (*version, description.clone());
        match ours(version) {
            None if version > newest => {
                return Err(Mismatch::Later { version, description, newest });
            }
            None => return Err(Mismatch::Unknown { version, description }),
            Some(migration) if *migration.checksum != **checksum => {
                return Err(Mismatch::Changed { version, description });
            }
            Some(_) => {}
        }
    }
    let applied: HashSet<i64> = applied.iter().map(|row| row.version).collect();
    Ok(MIGRATOR.iter().filter(|migration| !applied.contains(&migration.version)).collect())
}

/// The tables that these migrations make.
pub(crate) fn tables_made(migrations: &[&'static Migration]) -> Vec<(i64, &'static str)> {
    let names = migrations.iter().flat_map(|migration| {
        let made = migration.sql.lines().filter_map(|line| line.strip_prefix("create table "));
        made.filter_map(|rest| Some((migration.version, rest.split_whitespace().next()?)))
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::{Applied, MIGRATOR, Mismatch, pending, tables_made};

    fn applied() -> Vec<Applied> {
        let row = |migration: &sqlx::migrate::Migration| Applied {
            version: migration.version,
            description: migration.description.to_string(),
            success: true,
            checksum: migration.checksum.to_vec(),
        };
        MIGRATOR.iter().map(row).collect()
    }

    fn other(version: i64) -> Applied {
        Applied { version, description: "theirs".to_owned(), success: true, checksum: vec![1] }
    }

    #[test]
    fn what_is_not_applied_is_pending() {
        assert_eq!(pending(&[]).expect("all").len(), MIGRATOR.iter().count());
        assert_eq!(pending(&applied()).expect("none").len(), 0);
        assert_eq!(pending(&applied()[..1]).expect("some").len(), MIGRATOR.iter().count() - 1);
    }

    #[test]
    fn each_mismatch_is_told_apart() {
        let mismatch = |rows: &[Applied]| pending(rows).expect_err("a mismatch");
        assert!(matches!(mismatch(&[other(1), other(2)]), Mismatch::Foreign { version: 2, .. }));
        let with = |row: Applied| {
            let mut rows = [applied(), vec![row]].concat();
            rows.sort_by_key(|row| row.version);
            mismatch(&rows)
        };
        assert!(matches!(with(other(7)), Mismatch::Unknown { version: 7, .. }));
        let later = 99_999_999_999_999;
        assert!(matches!(with(other(later)), Mismatch::Later { version, .. } if version == later));
        let mut rows = applied();
        rows[0].checksum = vec![0];
        assert!(matches!(mismatch(&rows), Mismatch::Changed { .. }));
        rows[1].success = false;
        assert!(matches!(mismatch(&rows), Mismatch::Failed { .. }));
    }

    #[test]
    fn the_tables_of_the_migrations_are_found() {
        let all: Vec<_> = MIGRATOR.iter().collect();
        let names: Vec<&str> = tables_made(&all).into_iter().map(|(_, name)| name).collect();
        for table in ["measurements", "rejected_records", "backfill_checkpoints"] {
            assert!(names.contains(&table), "{table} is not in {names:?}");
        }
    }
}
