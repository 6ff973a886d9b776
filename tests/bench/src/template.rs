//! What `infra/projector.yaml` gives a function unless somebody chooses otherwise.

use std::path::Path;

use anyhow::Context as _;

/// One processor comes with this memory, and shares of it in proportion (AWS Lambda Developer
/// Guide, "Configure Lambda function memory").
pub(crate) const ONE_PROCESSOR_MB: u32 = 1_769;

/// The default of `MemorySize`, in MB.
///
/// # Errors
/// If the template cannot be read.
pub(crate) fn memory_mb() -> anyhow::Result<u32> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../infra/projector.yaml");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let parameter = text.split("\n  MemorySize:\n").nth(1).context("no parameter MemorySize")?;
    let default = parameter.lines().find_map(|line| line.trim().strip_prefix("Default:"));
    Ok(default.context("MemorySize has no default")?.trim().parse()?)
}
