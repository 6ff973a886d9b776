//! What migrations make and change, by their SQL. Pure. PostgreSQL would say it too, but only to
//! somebody who runs them: that takes locks, even if it is rolled back, and a dry run must be
//! harmless on a live database.

use sqlx::migrate::Migration;

/// Something that a migration makes, and that must not be there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Made<'a> {
    /// The migration.
    pub(crate) version: i64,
    /// What it is.
    pub(crate) kind: Kind,
    /// The table that it belongs to; for a table, itself.
    pub(crate) table: &'a str,
    /// Its name.
    pub(crate) name: &'a str,
}

/// What a migration can make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Table,
    Column,
    Constraint,
    Index,
}

impl Kind {
    /// Its word in messages, and in the statement that looks for it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Column => "column",
            Self::Constraint => "constraint",
            Self::Index => "index",
        }
    }
}

/// What some migrations do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes<'a> {
    /// In the order in which it is made.
    pub(crate) made: Vec<Made<'a>>,
    /// The tables that must be there before, and the first migration that changes each.
    pub(crate) altered: Vec<(i64, &'a str)>,
    /// The statements that this module does not know.
    pub(crate) unknown: Vec<Vec<&'a str>>,
}

impl<'a> Changes<'a> {
    /// What these migrations do, one after the other.
    pub(crate) fn of(migrations: &[&'a Migration]) -> Self {
        let mut changes = Self::default();
        for migration in migrations {
            for statement in statements(&migration.sql) {
                changes.add(migration.version, &statement);
            }
        }
        changes
    }

    /// The tables that are made.
    pub(crate) fn tables(&self) -> Vec<&'a str> {
        let tables = self.made.iter().filter(|made| made.kind == Kind::Table);
        tables.map(|made| made.table).collect()
    }

    fn add(&mut self, version: i64, statement: &[&'a str]) {
        match statement {
            ["create", "table", name, ..] => {
                self.made.push(Made { version, kind: Kind::Table, table: name, name });
            }
            ["create", "index", name, "on", table, ..]
            | ["create", "unique", "index", name, "on", table, ..] => {
                self.alter(version, table);
                self.made.push(Made { version, kind: Kind::Index, table, name });
            }
            ["alter", "table", table, actions @ ..] => {
                self.alter(version, table);
                for action in actions.windows(3) {
                    let (kind, name) = match action {
                        ["add", "column", name] => (Kind::Column, name),
                        ["add", "constraint", name] => (Kind::Constraint, name),
                        _ => continue,
                    };
                    self.made.push(Made { version, kind, table, name });
                }
            }
            // Data moves within the table: it must be there before, and nothing is made.
            ["update", table, "set", ..] => self.alter(version, table),
            // It changes no data and needs no more than the table, which another statement names.
            ["comment", "on", ..] => {}
            other => self.unknown.push(other.to_vec()),
        }
    }

    fn alter(&mut self, version: i64, table: &'a str) {
        let known = self.altered.iter().any(|(_, altered)| *altered == table);
        if !known && !self.tables().contains(&table) {
            self.altered.push((version, table));
        }
    }
}

/// The words of each statement, without comments, text literals and punctuation.
fn statements(sql: &str) -> Vec<Vec<&str>> {
    let (mut statements, mut words) = (Vec::new(), Vec::new());
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        let is_word = |character: char| character.is_alphanumeric() || character == '_';
        let end = if rest.starts_with("--") {
            rest.find('\n').unwrap_or(rest.len())
        } else if first == '\'' {
            rest[1..].find('\'').map_or(rest.len(), |end| end + 2)
        } else if is_word(first) {
            rest.find(|character| !is_word(character)).unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        let (token, after) = rest.split_at(end);
        rest = after;
        if token == ";" {
            statements.push(std::mem::take(&mut words));
        } else if token.starts_with(is_word) {
            words.push(token);
        }
    }
    statements.push(words);
    statements.retain(|words| !words.is_empty());
    statements
}

#[cfg(test)]
mod tests {
    use super::{Changes, Kind, statements};
    use crate::commands::migrate::schema::MIGRATOR;

    #[test]
    fn comments_and_texts_are_no_statements() {
        let sql = "-- it's; a comment\ncreate table a (b text default 'x; -- y''z');\ncomment on table a is ';';";
        let words = statements(sql);
        assert_eq!(words[0], ["create", "table", "a", "b", "text", "default"]);
        assert_eq!(words[1], ["comment", "on", "table", "a", "is"]);
        assert_eq!(words.len(), 2);
    }

    /// The example of docs/how-to.md has this form: it moves values into a column of their own.
    #[test]
    fn a_migration_that_moves_data_needs_its_table() {
        let sql = "alter table a add column c numeric;\n\
                   update b set c = (d ->> 'c')::numeric where json_typeof(d -> 'c') = 'null';";
        let mut changes = Changes::default();
        for statement in statements(sql) {
            changes.add(1, &statement);
        }
        assert_eq!(changes.altered, [(1, "a"), (1, "b")]);
        assert_eq!(changes.made.len(), 1);
        assert_eq!(changes.unknown, Vec::<Vec<&str>>::new());
    }

    /// A migration of another form would not be checked before it runs: teach this module its
    /// statements.
    #[test]
    fn every_migration_is_understood_and_makes_something() {
        for migration in MIGRATOR.iter() {
            let changes = Changes::of(&[migration]);
            assert_eq!(changes.unknown, Vec::<Vec<&str>>::new(), "{}", migration.version);
            assert!(!changes.made.is_empty(), "{}", migration.version);
            assert!(!migration.no_tx, "{}: it could stop halfway", migration.version);
        }
    }

    #[test]
    fn tables_columns_constraints_and_indexes_are_found() {
        let all: Vec<_> = MIGRATOR.iter().collect();
        let changes = Changes::of(&all);
        let found = |kind, table, name| {
            let made = changes.made.iter();
            made.filter(|made| (made.kind, made.table, made.name) == (kind, table, name)).count()
        };
        let tables = [
            "measurements",
            "rejected_records",
            "backfill_checkpoints",
            "verifications",
            "repairs",
        ];
        for table in tables {
            assert_eq!(found(Kind::Table, table, table), 1, "{table}");
        }
        let rejected = "rejected_records";
        assert_eq!(found(Kind::Column, rejected, "discarded_at"), 1);
        assert_eq!(found(Kind::Column, rejected, "discarded_why"), 1);
        assert_eq!(found(Kind::Constraint, rejected, "rejected_records_discarded"), 1);
        assert_eq!(found(Kind::Index, "measurements", "measurements_user_started_at"), 1);
        // What is made on the way need not be there before.
        assert_eq!(changes.altered, []);
        let last = Changes::of(&all[3..4]);
        assert_eq!(last.altered, [(20_261_127_000_000, rejected)]);
    }
}
