//! The differences of a run: each to a file, the first of them to people, all of them counted.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::Context as _;
use serde_json::Value as Json;

use crate::verify::difference::{Difference, Tally};

/// How many differences, and how many sessions that are not confirmed, are named for people.
const NAMED: usize = 20;

/// What a comparison found that is no difference.
#[derive(Clone, Debug)]
pub(crate) struct Remark {
    /// The member of the JSON.
    pub(crate) name: &'static str,
    pub(crate) value: Json,
    /// What the value means, for people; `None` if it is of no interest to them.
    pub(crate) text: Option<String>,
}

/// What a run has found so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    file: Option<BufWriter<File>>,
    named: Vec<Difference>,
    remarks: Vec<Remark>,
    pub(crate) tally: Tally,
    unconfirmed: Vec<String>,
    /// How many sessions differed when they were last read, and were not read again often enough to
    /// be a difference.
    pub(crate) not_confirmed: u64,
}

impl Report {
    /// A report that also writes each difference as one line of JSON to this file, which it empties
    /// first.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn create(path: Option<&Path>) -> anyhow::Result<Self> {
        let create = |path: &Path| {
            let file = File::create(path);
            file.with_context(|| format!("cannot write the report {}", path.display()))
        };
        let file = path.map(create).transpose()?.map(BufWriter::new);
        Ok(Self { file, ..Self::default() })
    }

    /// Takes up a difference that persists.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn add(&mut self, difference: Difference) -> anyhow::Result<()> {
        self.tally.add(difference.kind);
        if let Some(file) = &mut self.file {
            writeln!(file, "{}", difference.json()).context("cannot write the report")?;
        }
        if self.named.len() < NAMED {
            self.named.push(difference);
        }
        Ok(())
    }

    /// Takes up a session that differed when it was last read, in a run that ends before it was
    /// read again often enough.
    pub(crate) fn leave_unconfirmed(&mut self, session_id: &str) {
        self.not_confirmed += 1;
        if self.unconfirmed.len() < NAMED {
            self.unconfirmed.push(session_id.to_owned());
        }
    }

    /// The first sessions that are not confirmed.
    pub(crate) fn unconfirmed(&self) -> &[String] {
        &self.unconfirmed
    }

    /// The first differences.
    pub(crate) fn named(&self) -> &[Difference] {
        &self.named
    }

    /// Adds what is no difference and good to know.
    pub(crate) fn remark(&mut self, name: &'static str, value: Json, text: Option<String>) {
        self.remarks.push(Remark { name, value, text });
    }

    /// What is no difference and good to know.
    pub(crate) fn remarks(&self) -> &[Remark] {
        &self.remarks
    }

    /// Writes what is still in memory to the file.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn flush(&mut self) -> anyhow::Result<()> {
        self.file.as_mut().map_or(Ok(()), std::io::Write::flush).context("cannot write the report")
    }
}
