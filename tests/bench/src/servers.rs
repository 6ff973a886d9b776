//! What the parts measure against: an S3 in memory, in a process of its own, PostgreSQL with and
//! without TLS, and the function under the Runtime API.

use std::path::Path;
use std::process::Stdio;

use anyhow::Context as _;
use projector::apply::Projector;
use projector::archive::Archive;
use projector::config::{ArchiveConfig, ArchiveObjects};
use testkit::gates::tls_before_postgres;
use testkit::runtime_api::{Function, MEMORY};
use testkit::services::{Stores, aws};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::{measure, template};

/// An S3 in memory; it ends with this value.
#[derive(Debug)]
pub(crate) struct MemoryS3 {
    process: Child,
    pub(crate) url: String,
}

impl MemoryS3 {
    /// Starts one.
    ///
    /// # Errors
    /// Where it does not start.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .arg("--serve-s3")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the S3 in memory")?;
        let stdout = process.stdout.take().context("no standard output")?;
        let line = BufReader::new(stdout).lines().next_line().await?;
        Ok(Self { process, url: line.context("the S3 in memory has not started")? })
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id().unwrap_or_default()
    }

    /// A projector of these stores whose objects go here.
    pub(crate) async fn projector(&self, stores: &Stores) -> Projector {
        let (bucket, prefix) = ("bench".to_owned(), "measurements/".to_owned());
        let config = ArchiveConfig { bucket, prefix, objects: ArchiveObjects::Every };
        let mut projector = stores.projector_without_archive(&stores.database_url, 1);
        projector.archive = Some(Archive::new(config, &aws(&self.url).await));
        projector
    }
}

/// A program as a Lambda function on these stores; with an S3, its objects go there.
///
/// # Errors
/// Where it does not start.
pub(crate) async fn function(
    command: Command,
    stores: &Stores,
    s3: Option<&MemoryS3>,
) -> anyhow::Result<Function> {
    function_of(command, stores, s3, template::memory_mb()?).await
}

/// The same with this memory, which also says how many processors it has.
///
/// # Errors
/// If it does not start.
pub(crate) async fn function_of(
    mut command: Command,
    stores: &Stores,
    s3: Option<&MemoryS3>,
    memory_mb: u32,
) -> anyhow::Result<Function> {
    command
        .env("DATABASE_URL", &stores.database_url)
        .env(MEMORY, memory_mb.to_string())
        .env_remove("RUST_LOG");
    match s3 {
        Some(s3) => {
            command.env("AWS_ENDPOINT_URL", &s3.url).env("ARCHIVE_BUCKET", "bench");
        }
        None => {
            command.env_remove("ARCHIVE_BUCKET");
        }
    }
    Function::start(command).await
}

/// The projector's binary.
///
/// # Errors
/// Where it is not built.
pub(crate) fn projector() -> anyhow::Result<Command> {
    Ok(Command::new(measure::binary("projector")?))
}

/// The same database behind TLS, verified in full, as it is in use.
///
/// # Errors
/// If the certificate cannot be written.
pub(crate) async fn behind_tls(stores: &Stores, folder: &Path) -> anyhow::Result<Stores> {
    let (address, authority) = tls_before_postgres(stores.database_host()).await;
    let roots = folder.join("roots.pem");
    std::fs::write(&roots, authority)?;
    let by_name = stores.with_database_at(&format!("localhost:{}", address.port()));
    let (url, _) = by_name.database_url.split_once('?').context("a URL without parameters")?;
    let database_url = format!("{url}?sslmode=verify-full&sslrootcert={}", roots.display());
    Ok(Stores { database_url, ..by_name })
}

/// The process that all of PostgreSQL's are children of.
///
/// # Errors
/// If it is not on this machine.
pub(crate) async fn postmaster(stores: &Stores) -> anyhow::Result<u32> {
    let mut connection = stores.connect().await;
    let (pid,): (i32,) = connection.row("SELECT pg_backend_pid()").await;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).context("no PPid")?;
    Ok(parent.trim().parse()?)
}
