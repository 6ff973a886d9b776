//! `verify --tables`: our rows and the items of both tables.

use projector::apply::Projector;

use crate::cli::VerifyArguments;
use crate::verify::{End, Run};

pub(crate) async fn compare(
    _projector: &Projector,
    _arguments: &VerifyArguments,
    _run: &mut Run<'_>,
) -> anyhow::Result<(String, anyhow::Result<End>)> {
    anyhow::bail!("not built")
}
