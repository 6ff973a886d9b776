//! What a repair of the other side wrote: a list of keys for `backfill repair --keys`.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use projector::config::ConfigError;
use projector::part::Part;
use serde_json::json;

/// The keys, and the file that takes them, if there is one.
#[derive(Debug)]
pub(crate) struct Repaired {
    file: Option<(PathBuf, BufWriter<File>)>,
    pub(crate) count: u64,
}

impl Repaired {
    /// Creates the file.
    ///
    /// # Errors
    /// [`ConfigError`] if it cannot be created.
    pub(crate) fn create(path: Option<&Path>) -> Result<Self, ConfigError> {
        let Some(path) = path else { return Ok(Self { file: None, count: 0 }) };
        match File::create(path) {
            Ok(file) => {
                let file = Some((path.to_owned(), BufWriter::new(file)));
                Ok(Self { file, count: 0 })
            }
            Err(error) => {
                let problem = format!("names {}: {error}", path.display());
                Err(ConfigError { variable: "--repaired", problem })
            }
        }
    }

    /// Adds these parts to the file. Without a file they are given back as sessions that are not
    /// merged, and why.
    ///
    /// # Errors
    /// If the file takes no more.
    pub(crate) fn add(
        &mut self,
        parts: Vec<(Part, String)>,
    ) -> anyhow::Result<Vec<(String, String)>> {
        self.count += parts.len() as u64;
        let Some((path, file)) = &mut self.file else {
            let why = |(part, session_id): (Part, String)| {
                let part = part.name();
                let reason = format!(
                    "a repair of the other side wrote its {part} part: --repaired FILE keeps such \
                     keys for `backfill repair --keys FILE`"
                );
                (session_id, reason)
            };
            return Ok(parts.into_iter().map(why).collect());
        };
        for (part, session_id) in parts {
            let line = json!({ "session_id": session_id, "part": part.name() });
            writeln!(file, "{line}").with_context(|| path.display().to_string())?;
        }
        Ok(Vec::new())
    }

    /// Sees that everything is in the file, and says what to do with it.
    ///
    /// # Errors
    /// If the file takes no more.
    pub(crate) fn finish(&mut self) -> anyhow::Result<Option<String>> {
        let Some((path, file)) = &mut self.file else { return Ok(None) };
        file.flush().with_context(|| path.display().to_string())?;
        let (count, path) = (self.count, path.display());
        Ok((count > 0).then(|| {
            format!(
                "{count} parts that a repair of the other side wrote are not merged: run `backfill \
                 repair --keys {path}`, which reads their items"
            )
        }))
    }
}
