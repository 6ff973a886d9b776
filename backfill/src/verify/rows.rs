//! `verify --against`: our rows and those of another database.

use projector::database::Database;

use crate::cli::VerifyArguments;
use crate::peer::Peer;
use crate::verify::{End, Run};

pub(crate) async fn compare(
    _ours: &Database,
    _peer: &Peer,
    _arguments: &VerifyArguments,
    _run: &mut Run<'_>,
) -> anyhow::Result<End> {
    anyhow::bail!("not built")
}
