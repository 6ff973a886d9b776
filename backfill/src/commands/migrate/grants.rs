//! What a role may do: the grants of the projector and of a backfill, and the settings that a role
//! needs behind a proxy. The lists here are also what `backfill doctor` asks for.

use std::fmt;

use anyhow::Context as _;
use projector::bind;
use projector::config::ConfigError;
use projector::database::{DedicatedConnection, ROLE_SETTINGS};
use projector::error::Error;
use serde::Serialize;

use crate::statement::{lacks_privilege, without_remedy};

/// Privileges on tables.
pub(crate) struct Grant {
    privileges: &'static [&'static str],
    tables: &'static [&'static str],
}

/// What the projector does, and nothing else.
pub(crate) const PROJECTOR: &[Grant] = &[Grant {
    privileges: &["SELECT", "INSERT", "UPDATE"],
    tables: &["measurements", "rejected_records"],
}];
/// What the commands of `backfill` do.
pub(crate) const BACKFILL: &[Grant] = &[
    Grant { privileges: &["SELECT", "INSERT", "UPDATE"], tables: &["measurements"] },
    Grant {
        privileges: &["SELECT", "INSERT", "UPDATE", "DELETE"],
        tables: &["rejected_records", "backfill_checkpoints", "pending_objects"],
    },
    Grant { privileges: &["SELECT", "INSERT"], tables: &["verifications"] },
    Grant {
        privileges: &["SELECT", "INSERT", "UPDATE", "DELETE"],
        tables: &["reconciliations", "reconciliation_pieces", "reconciliation_sums"],
    },
    // No DELETE: a repair that is forgotten would let late records be applied by version again.
    Grant { privileges: &["SELECT", "INSERT", "UPDATE"], tables: &["repairs"] },
];

/// The privileges that the login lacks, of the tables and privileges given side by side; `$3` is
/// `true` if it must be able to grant them. A table that does not exist is left out.
pub(crate) const LACKING: &str = "SELECT name, privilege
FROM unnest($1::text[], $2::text[]) AS needed (name, privilege)
WHERE CASE WHEN to_regclass(name) IS NOT NULL THEN NOT has_table_privilege(
    to_regclass(name)::oid, privilege || CASE WHEN $3 THEN ' WITH GRANT OPTION' ELSE '' END
) END";

impl Grant {
    fn sql(&self, quoted_role: &str) -> String {
        format!(
            "GRANT {} ON {} TO {quoted_role}",
            self.privileges.join(", "),
            self.tables.join(", ")
        )
    }
}

/// The tables and the privileges of these grants, side by side.
pub(crate) fn pairs(grants: &[Grant]) -> (Vec<&'static str>, Vec<&'static str>) {
    let pairs = grants.iter().flat_map(|grant| {
        let tables = grant.tables.iter();
        tables.flat_map(|table| grant.privileges.iter().map(|privilege| (*table, *privilege)))
    });
    pairs.unzip()
}

/// A role of the database.
pub(crate) struct Role {
    /// As PostgreSQL quotes it.
    quoted: String,
    /// Its own settings, as `name=value`.
    settings: Vec<String>,
}

/// What is done for a role.
pub(crate) enum Step {
    /// Nothing: the role has a setting of its own.
    Keep(String),
    /// A statement that must succeed.
    Grant(String),
    /// A statement that is needed behind a proxy only.
    Set(String),
}

/// What became of a step.
pub(crate) enum Done {
    /// The setting of its own that a role keeps.
    Kept(String),
    /// A statement.
    Statement(Statement),
}

/// A statement for a role.
#[derive(Debug, Serialize)]
pub(crate) struct Statement {
    sql: String,
    result: Ran,
}

/// What became of a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Ran {
    Granted,
    Set,
    /// The login may not.
    NotSet,
    WouldGrant,
    WouldSet,
}

impl Role {
    /// Looks for the role that `flag` names.
    ///
    /// # Errors
    /// [`ConfigError`] if there is no such role, or the login cannot grant what it is to be
    /// granted.
    pub(crate) async fn find(
        connection: &mut DedicatedConnection,
        flag: &'static str,
        name: &str,
        grants: &[Grant],
    ) -> anyhow::Result<Self> {
        let sql = "SELECT quote_ident(rolname), coalesce(rolconfig, '{}') FROM pg_roles WHERE \
            rolname = $1";
        let found: Option<(String, Vec<String>)> = connection
            .fetch_first(sql, bind![name])
            .await
            .map_err(without_remedy)
            .context("looking for the role")?;
        let Some((quoted, settings)) = found else {
            let problem = format!(
                "names {name:?}, and the database has no such role: create it (CREATE ROLE ... \
                    LOGIN), then run this again"
            );
            return Err(ConfigError { variable: flag, problem }.into());
        };
        require_grant_option(connection, grants).await?;
        Ok(Self { quoted, settings })
    }

    /// What gives the role these grants, and the settings that its connections make for themselves
    /// and cannot make behind a proxy. What the role has of its own stays.
    pub(crate) async fn steps(
        &self,
        connection: &mut DedicatedConnection,
        grants: &[Grant],
    ) -> anyhow::Result<Vec<Step>> {
        let mut steps: Vec<Step> =
            grants.iter().map(|grant| Step::Grant(grant.sql(&self.quoted))).collect();
        for (name, value) in ROLE_SETTINGS {
            if let Some(own) = own_setting(&self.settings, name, value) {
                steps.push(Step::Keep(format!("{} has {own} of its own", self.quoted)));
                continue;
            }
            let (known,): (bool,) = connection
                .fetch_one("SELECT current_setting($1, true) IS NOT NULL", bind![name])
                .await
                .map_err(without_remedy)
                .context("reading the server's settings")?;
            if known {
                let sql = format!("ALTER ROLE {} SET {name} = '{value}'", self.quoted);
                steps.push(Step::Set(sql));
            }
        }
        Ok(steps)
    }
}

impl Step {
    /// Runs the statement.
    pub(crate) async fn run(self, connection: &mut DedicatedConnection) -> anyhow::Result<Done> {
        let (sql, success, may_be_refused) = match self {
            Self::Keep(setting) => return Ok(Done::Kept(setting)),
            Self::Grant(sql) => (sql, Ran::Granted, false),
            // Only behind a proxy are they missed.
            Self::Set(sql) => (sql, Ran::Set, true),
        };
        let result = match connection.execute(&sql).await {
            Ok(()) => success,
            Err(Error::Database(error)) if may_be_refused && lacks_privilege(&error) => Ran::NotSet,
            Err(error) => {
                return Err(without_remedy(error)).with_context(|| format!("running {sql}"));
            }
        };
        Ok(Done::Statement(Statement { sql, result }))
    }

    /// What [`Step::run`] would do.
    pub(crate) fn announced(self) -> Done {
        let (sql, result) = match self {
            Self::Keep(setting) => return Done::Kept(setting),
            Self::Grant(sql) => (sql, Ran::WouldGrant),
            Self::Set(sql) => (sql, Ran::WouldSet),
        };
        Done::Statement(Statement { sql, result })
    }
}

/// The line for people.
impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, text) = match self {
            Self::Kept(setting) => ("kept", setting),
            Self::Statement(Statement { sql, result }) => match result {
                Ran::Granted => ("granted", sql),
                Ran::Set => ("set", sql),
                Ran::NotSet => ("not set", sql),
                Ran::WouldGrant => ("would grant", sql),
                Ran::WouldSet => ("would set", sql),
            },
        };
        write!(f, "{word:<15}  {text}")?;
        match self {
            Self::Statement(Statement { result: Ran::NotSet, .. }) => {
                f.write_str(": this login may not; behind a proxy, run it as one that may")
            }
            _ => Ok(()),
        }
    }
}

/// PostgreSQL answers a GRANT of what the login holds and cannot pass on with no more than a
/// warning.
async fn require_grant_option(
    connection: &mut DedicatedConnection,
    grants: &[Grant],
) -> anyhow::Result<()> {
    let (tables, privileges) = pairs(grants);
    let lacking: Vec<(String, String)> = connection
        .fetch(LACKING, bind![tables, privileges, true])
        .await
        .map_err(without_remedy)
        .context("reading what the login may grant")?;
    let Some((table, privilege)) = lacking.first() else { return Ok(()) };
    let sql = "SELECT current_user::text, tableowner::text FROM pg_tables
        WHERE (quote_ident(schemaname) || '.' || quote_ident(tablename))::regclass = to_regclass($1)";
    let found: Option<(String, String)> = connection
        .fetch_first(sql, bind![table])
        .await
        .map_err(without_remedy)
        .context("reading who owns the table")?;
    let (login, owner) = found.unwrap_or_default();
    let problem = format!(
        "logs in as {login:?}, who cannot grant {privilege} on {table}: log in as its owner, \
            {owner:?}"
    );
    Err(ConfigError { variable: "DATABASE_URL", problem }.into())
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

/// A time in a setting: a number of milliseconds, or with a unit (PostgreSQL documentation,
/// "Parameter Names and Values").
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
