//! What was measured, kept as `results.json` and shown as `README.md` in the folder of results. A
//! part that is run again replaces its own section.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::measure;
use crate::plot::Plot;

/// What one part came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Section {
    /// Its place in the report.
    pub(crate) order: u32,
    pub(crate) title: String,
    /// In Markdown.
    pub(crate) text: String,
    pub(crate) aims: Vec<Aim>,
    /// Figures that another part computes with.
    pub(crate) figures: Vec<(String, f64)>,
    /// Its picture, which `text` shows.
    #[serde(default)]
    pub(crate) plot: Option<Plot>,
}

/// What should be reached, and what was.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Aim {
    pub(crate) what: String,
    pub(crate) wanted: String,
    pub(crate) reached: String,
    pub(crate) met: bool,
}

impl Aim {
    pub(crate) fn at_least(what: impl Into<String>, aim: f64, reached: f64) -> Self {
        let (wanted, reached_text) = (format!("at least {aim}"), format!("{reached:.2}"));
        Self { what: what.into(), wanted, reached: reached_text, met: reached >= aim }
    }

    pub(crate) fn at_most(what: impl Into<String>, aim: f64, reached: f64, unit: &str) -> Self {
        Self {
            what: what.into(),
            wanted: format!("at most {aim} {unit}"),
            reached: format!("{reached:.2} {unit}"),
            met: reached <= aim,
        }
    }
}

/// All sections.
#[derive(Debug)]
pub(crate) struct Report {
    folder: PathBuf,
    sections: Vec<Section>,
}

impl Report {
    /// Reads what earlier runs left there.
    ///
    /// # Errors
    /// Where it cannot be read, or the folder cannot be made.
    pub(crate) fn open(folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let path = folder.join("results.json");
        let sections = match std::fs::read(&path) {
            Ok(json) => serde_json::from_slice(&json)
                .with_context(|| format!("cannot read {}", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        Ok(Self { folder: folder.to_owned(), sections })
    }

    /// A figure of a part that was measured.
    pub(crate) fn figure(&self, name: &str) -> Option<f64> {
        let figures = self.sections.iter().flat_map(|section| &section.figures);
        figures.rev().find(|(of, _)| of == name).map(|(_, figure)| *figure)
    }

    /// Puts a section in its place, and writes all.
    ///
    /// # Errors
    /// Where they cannot be written.
    pub(crate) fn put(&mut self, section: Section) -> anyhow::Result<()> {
        self.sections.retain(|other| other.order != section.order);
        self.sections.push(section);
        self.sections.sort_by_key(|section| section.order);
        let write = |name: &str, text: &str| {
            let path = self.folder.join(name);
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        write("results.json", &serde_json::to_string_pretty(&self.sections)?)?;
        write("README.md", &self.markdown()?)?;
        self.draw()
    }

    /// Draws every plot from what is stored.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub(crate) fn draw(&self) -> anyhow::Result<()> {
        let mut plots = self.sections.iter().filter_map(|section| section.plot.as_ref());
        plots.try_for_each(|plot| plot.draw(&self.folder))
    }

    fn markdown(&self) -> anyhow::Result<String> {
        let mut text = format!(
            "# Measured\n\nWritten by `make bench`; {}, with PostgreSQL 18 and everything else on \
the same machine. What has a rival is measured against it in turns, in one run, and the figure is \
the median of the rounds' ratios: the machine is shared, absolute figures differ by half from hour \
to hour. The database runs with fsync and full-page writes, for everybody.\n\n| what | aim | reached | |\n|---|---|---|---|\n",
            measure::machine()
        );
        for aim in self.sections.iter().flat_map(|section| &section.aims) {
            let met = if aim.met { "met" } else { "**not met**" };
            writeln!(text, "| {} | {} | {} | {met} |", aim.what, aim.wanted, aim.reached)?;
        }
        for section in &self.sections {
            write!(text, "\n## {}\n\n{}\n", section.title, section.text.trim_end())?;
        }
        Ok(text)
    }
}
