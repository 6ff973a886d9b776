//! Which migrations a database has, compared with those of this binary. Everything that would stop
//! a migration is found here, before anything is changed, so that a dry run says what the real run
//! would say.

use std::collections::HashSet;

use sqlx::FromRow;
use sqlx::migrate::{Migration, Migrator};

use super::changes::Kind;

/// The migrations of this binary.
pub(crate) static MIGRATOR: Migrator = sqlx::migrate!("../migrations");

/// The applied migrations.
pub(crate) const LEDGER: &str =
    "SELECT version, description, success, checksum FROM _sqlx_migrations ORDER BY version";

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
#[error("{}: {}", self.problem(), self.remedy())]
pub(crate) enum Mismatch {
    /// Another program keeps its migrations in this database.
    Foreign { version: i64, description: String },
    /// A migration has begun and has not succeeded.
    Failed { version: i64, description: String },
    /// A later release has migrated the database.
    Later { version: i64, description: String, newest: i64 },
    /// A migration among ours that is none of ours.
    Unknown { version: i64, description: String },
    /// An applied migration had another text.
    Changed { version: i64, description: String },
    /// What a pending migration makes is there.
    Exists { version: i64, kind: Kind, table: String, name: String },
    /// The table that a pending migration changes is not there.
    Missing { version: i64, table: String },
}

impl Mismatch {
    /// Whether the database is the wrong one.
    pub(crate) fn is_configuration(&self) -> bool {
        matches!(self, Self::Foreign { .. })
    }

    /// What does not fit.
    pub(crate) fn problem(&self) -> String {
        match self {
            Self::Foreign { version, description } => format!(
                "DATABASE_URL names a database whose table _sqlx_migrations belongs to another \
                 program (its newest migration is {version} {description:?}, and none is ours)"
            ),
            Self::Failed { version, description } => format!(
                "the migration {version} {description:?} failed halfway (success is false in \
                    _sqlx_migrations)"
            ),
            Self::Later { version, description, newest } => format!(
                "the database has the migration {version} {description:?}, which is later than the \
                 newest that this `backfill` knows ({newest})"
            ),
            Self::Unknown { version, description } => format!(
                "the database has the migration {version} {description:?}, which is none of ours: \
                 another program shares the table _sqlx_migrations"
            ),
            Self::Changed { version, description } => format!(
                "the migration {version} {description:?} was applied with another text than this \
                 `backfill` has (the checksum in _sqlx_migrations differs)"
            ),
            Self::Exists { version, kind, table, name } => format!(
                "{} exists, but _sqlx_migrations does not have the migration {version} that makes \
                    it",
                thing(*kind, table, name)
            ),
            Self::Missing { version, table } => format!(
                "the migration {version} changes the table {table}, which does not exist, although \
                 _sqlx_migrations has the migration that makes it"
            ),
        }
    }

    /// What to do.
    pub(crate) fn remedy(&self) -> String {
        match self {
            Self::Foreign { .. } => {
                "name the read model's own database, or create one for it".to_owned()
            }
            Self::Failed { version, .. } => format!(
                "undo what it has made, run DELETE FROM _sqlx_migrations WHERE version = \
                 {version}, then run `backfill migrate` again; or restore the database"
            ),
            Self::Later { .. } => "use the `backfill` of the release that applied it".to_owned(),
            Self::Unknown { .. } => {
                "give that program a database of its own, then delete its row and run `backfill \
                 migrate` again"
                    .to_owned()
            }
            Self::Changed { .. } => {
                "use the `backfill` that applied it; if the file was edited, restore its text and \
                 make the change in a new migration"
                    .to_owned()
            }
            Self::Exists { kind: Kind::Table, .. } => {
                "if the table is the read model's, restore _sqlx_migrations \
                 along with it; if it is another program's, name another database in DATABASE_URL"
                    .to_owned()
            }
            Self::Exists { kind, table, name, .. } => format!(
                "restore _sqlx_migrations along with the tables; or, if nobody needs what that \
                 migration made, undo all of it, beginning with {}, then run `backfill migrate` \
                 again",
                undoing(*kind, table, name)
            ),
            Self::Missing { .. } => {
                "restore the table: somebody has dropped it, or it lies outside the search_path \
                 of this login"
                    .to_owned()
            }
        }
    }
}

fn thing(kind: Kind, table: &str, name: &str) -> String {
    match kind {
        Kind::Table => format!("the table {table}"),
        Kind::Column | Kind::Constraint => format!("the {} {table}.{name}", kind.word()),
        Kind::Index => format!("the index {name}"),
    }
}

/// The statement that takes it away again.
fn undoing(kind: Kind, table: &str, name: &str) -> String {
    match kind {
        Kind::Column | Kind::Constraint => {
            format!("ALTER TABLE {table} DROP {} {name}", kind.word().to_uppercase())
        }
        Kind::Table | Kind::Index => format!("DROP {} {name}", kind.word().to_uppercase()),
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

/// Every migration, as the ledger of a database of today lists it.
#[cfg(test)]
pub(crate) fn all_applied() -> Vec<Applied> {
    let row = |migration: &Migration| Applied {
        version: migration.version,
        description: migration.description.to_string(),
        success: true,
        checksum: migration.checksum.to_vec(),
    };
    MIGRATOR.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::{Applied, MIGRATOR, Mismatch, all_applied, pending};

    fn other(version: i64) -> Applied {
        Applied { version, description: "theirs".to_owned(), success: true, checksum: vec![1] }
    }

    #[test]
    fn what_is_not_applied_is_pending() {
        assert_eq!(pending(&[]).expect("all").len(), MIGRATOR.iter().count());
        assert_eq!(pending(&all_applied()).expect("none").len(), 0);
        assert_eq!(pending(&all_applied()[..1]).expect("some").len(), MIGRATOR.iter().count() - 1);
    }

    #[test]
    fn each_mismatch_is_told_apart() {
        let mismatch = |rows: &[Applied]| pending(rows).expect_err("a mismatch");
        assert!(matches!(mismatch(&[other(1), other(2)]), Mismatch::Foreign { version: 2, .. }));
        let with = |row: Applied| {
            let mut rows = [all_applied(), vec![row]].concat();
            rows.sort_by_key(|row| row.version);
            mismatch(&rows)
        };
        assert!(matches!(with(other(7)), Mismatch::Unknown { version: 7, .. }));
        let later = 99_999_999_999_999;
        assert!(matches!(with(other(later)), Mismatch::Later { version, .. } if version == later));
        let mut rows = all_applied();
        rows[0].checksum = vec![0];
        assert!(matches!(mismatch(&rows), Mismatch::Changed { .. }));
        rows[1].success = false;
        assert!(matches!(mismatch(&rows), Mismatch::Failed { .. }));
    }
}
