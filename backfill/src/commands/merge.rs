//! `backfill merge`: the rows of another database, or the objects of an archive, are applied with the versions they have.

use crate::cli::{MergeArguments, Settings};
use crate::outcome::Outcome;
use crate::output::Output;
use crate::stop::Stop;

pub(crate) async fn run(
    _settings: &Settings,
    _arguments: &MergeArguments,
    _stop: &Stop,
    _output: &Output,
) -> anyhow::Result<Outcome> {
    anyhow::bail!("not built")
}
