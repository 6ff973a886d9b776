//! `verify --objects`: our rows and the objects of the archive.

use projector::apply::Projector;

use crate::verify::{End, Run};

pub(crate) async fn compare(
    _projector: &Projector,
    _run: &mut Run<'_>,
) -> anyhow::Result<(String, anyhow::Result<End>)> {
    anyhow::bail!("not built")
}
