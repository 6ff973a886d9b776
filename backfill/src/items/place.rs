//! Where the files of an export are, a folder or a prefix of a bucket, and their bytes piece by
//! piece. A read of S3 that breaks off resumes at its byte, and an S3 that is away for a while, or
//! asks to slow down, is waited for.

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use aws_config::SdkConfig;
use aws_sdk_s3::Client;
use aws_sdk_s3::error::{ProvideErrorMetadata as _, SdkError};
use aws_sdk_s3::operation::get_object::GetObjectError;
use aws_sdk_s3::primitives::ByteStream;
use projector::archive;

use crate::console;
use crate::items::manifest::BESIDE;
use crate::retry::{MAX_TRIES, pause_after};

/// How much of a file is read at once.
const PIECE_BYTES: usize = 256 << 10;

/// A file of an export that is at fault itself: it is missing or damaged. The others can be read.
#[derive(Debug, thiserror::Error)]
#[error("{name} {problem}")]
pub(crate) struct FileFault {
    pub(crate) name: String,
    /// What is wrong, and the remedy.
    pub(crate) problem: String,
    pub(crate) is_missing: bool,
}

impl FileFault {
    fn missing(name: &str) -> Self {
        let problem = "is missing: copy the whole export, or make a new one".to_owned();
        Self { name: name.to_owned(), problem, is_missing: true }
    }

    /// A file that is there, and is not the one that the manifest lists.
    pub(crate) fn damaged(name: &str, why: &anyhow::Error) -> Self {
        let problem = format!("is damaged: {why:#}. Copy it again, or make a new export");
        Self { name: name.to_owned(), problem, is_missing: false }
    }
}

/// Where the files are.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// A folder of this machine.
    Folder(PathBuf),
    /// A bucket, and what comes before a file's path in its key: empty, or it ends with a slash.
    Bucket(Client, String, String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => folder.display().fmt(f),
            Self::Bucket(_, bucket, prefix) => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

/// The client for exports: as the archive's, with the SDK's own retries. [`Pieces`] has more.
pub(crate) fn client(aws: &SdkConfig) -> Client {
    Client::from_conf(archive::client_config(aws).build())
}

impl Place {
    /// `s3://BUCKET/PREFIX` or a folder.
    pub(crate) fn parse(text: &str, client: &Client) -> Self {
        let Some(rest) = text.strip_prefix("s3://") else {
            return Self::Folder(PathBuf::from(text));
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let mut prefix = prefix.trim_end_matches('/').to_owned();
        if !prefix.is_empty() {
            prefix.push('/');
        }
        Self::Bucket(client.clone(), bucket.to_owned(), prefix)
    }

    /// The name of a file, for messages.
    pub(crate) fn name(&self, path: &str) -> String {
        match self {
            Self::Folder(folder) => folder.join(path).display().to_string(),
            Self::Bucket(_, bucket, prefix) => format!("s3://{bucket}/{}", key(prefix, path)),
        }
    }

    /// A whole file, which is small.
    pub(crate) async fn read(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        let mut pieces = self.open(path);
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.next().await? {
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    /// A file, piece by piece. Nothing is read yet.
    pub(crate) fn open(&self, path: &str) -> Pieces {
        Pieces {
            place: self.clone(),
            path: path.to_owned(),
            source: None,
            etag: None,
            version: None,
            offset: 0,
            ended: false,
        }
    }
}

/// A file's key in a bucket; its path may begin beside the folder. Above the bucket's root there is
/// nothing, so the key stays at the root.
fn key(prefix: &str, path: &str) -> String {
    let Some(path) = path.strip_prefix(BESIDE) else { return format!("{prefix}{path}") };
    let beside = prefix.trim_end_matches('/').rsplit_once('/');
    beside.map_or_else(|| path.to_owned(), |(beside, _)| format!("{beside}/{path}"))
}

enum Source {
    File(File),
    Object(ByteStream),
}

/// The bytes of a file, piece by piece.
pub(crate) struct Pieces {
    place: Place,
    path: String,
    source: Option<Source>,
    /// Of the object that is read.
    etag: Option<String>,
    /// The id of its version, if its bucket keeps versions.
    version: Option<String>,
    offset: u64,
    ended: bool,
}

impl Pieces {
    /// What tells the object that was read from one that comes in its place: its `ETag`, and the id
    /// of its version, if its bucket keeps versions. Nothing of a file of this machine.
    pub(crate) fn read_as(&self) -> (Option<&str>, Option<&str>) {
        (self.etag.as_deref(), self.version.as_deref())
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// [`FileFault`] if the file is not there; and if it cannot be read. Each error names it.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        let name = self.place.name(&self.path);
        let mut failures = 0;
        while !self.ended {
            let Some(source) = &mut self.source else {
                match self.open().await {
                    Ok(source) => self.source = Some(source),
                    Err(Unopened::Passes(why)) => wait(&name, why, &mut failures).await?,
                    Err(Unopened::Missing) => return Err(FileFault::missing(&name).into()),
                    Err(Unopened::Stays(error)) => {
                        return Err(error.context(format!("cannot read {name}")));
                    }
                }
                continue;
            };
            match source {
                Source::File(file) => {
                    let mut piece = Vec::with_capacity(PIECE_BYTES);
                    let reading = file.take(PIECE_BYTES as u64).read_to_end(&mut piece);
                    reading.with_context(|| format!("cannot read {name}"))?;
                    self.ended = piece.is_empty();
                    return Ok((!self.ended).then_some(piece));
                }
                Source::Object(stream) => match stream.next().await {
                    Some(Ok(bytes)) => {
                        self.offset += bytes.len() as u64;
                        return Ok(Some(bytes.to_vec()));
                    }
                    None => self.ended = true,
                    Some(Err(error)) => {
                        self.source = None;
                        let why = format!("S3 broke off: {}", projector::error::chain(&error));
                        wait(&name, why, &mut failures).await?;
                    }
                },
            }
        }
        Ok(None)
    }

    /// Opens the file where it was left.
    async fn open(&mut self) -> Result<Source, Unopened> {
        let (client, bucket, prefix) = match &self.place {
            Place::Folder(folder) => {
                return File::open(folder.join(&self.path)).map(Source::File).map_err(|error| {
                    match error.kind() {
                        ErrorKind::NotFound => Unopened::Missing,
                        _ => Unopened::Stays(error.into()),
                    }
                });
            }
            Place::Bucket(client, bucket, prefix) => (client, bucket, prefix),
        };
        let mut request = client.get_object().bucket(bucket).key(key(prefix, &self.path));
        if let Some(etag) = &self.etag {
            request = request.if_match(etag).range(format!("bytes={}-", self.offset));
        }
        match request.send().await {
            Ok(object) => {
                self.etag = object.e_tag;
                self.version = object.version_id;
                Ok(Source::Object(object.body))
            }
            Err(error) => Err(unopened(error)),
        }
    }
}

/// Why a file is not open.
enum Unopened {
    /// It is not there.
    Missing,
    /// It may be there in a while.
    Passes(String),
    /// Nothing that passes.
    Stays(anyhow::Error),
}

/// Waits before the next try.
///
/// # Errors
/// If there were too many without any progress.
async fn wait(name: &str, why: String, failures: &mut u32) -> anyhow::Result<()> {
    *failures += 1;
    if *failures == MAX_TRIES {
        return Err(anyhow!(why).context(format!("cannot read {name}")));
    }
    let pause = pause_after(*failures);
    console::line(&format!("cannot read {name} ({why}); again in {} s", pause.as_secs()));
    tokio::time::sleep(pause).await;
    Ok(())
}

/// What S3's answer to a GET comes to.
fn unopened(error: SdkError<GetObjectError>) -> Unopened {
    let status = error.raw_response().map(|response| response.status().as_u16());
    let said = format!(
        "{} {}",
        error.code().unwrap_or("no error code"),
        error.message().unwrap_or_default()
    );
    let why = match (error.code().unwrap_or_default(), status) {
        ("NoSuchKey", _) => return Unopened::Missing,
        ("SlowDown" | "RequestTimeout" | "ThrottlingException", _) | (_, Some(429 | 500..)) => {
            return Unopened::Passes(format!("S3 asks to slow down, or is away: {}", said.trim()));
        }
        (_, None) => {
            let why = projector::error::chain(&error);
            return match error {
                SdkError::ConstructionFailure(_) => Unopened::Stays(error.into()),
                _ => Unopened::Passes(format!("S3 cannot be reached: {why}")),
            };
        }
        ("NoSuchBucket", _) => "there is no such bucket: correct the place",
        ("InvalidObjectState", _) => "its storage class is an archive: restore the objects first",
        ("PreconditionFailed", _) => "it changed while it was read: run the same command again",
        ("PermanentRedirect" | "AuthorizationHeaderMalformed", _) | (_, Some(301)) => {
            "the bucket is in another region than AWS_REGION: copy the export to a folder, or to a \
             bucket of this region"
        }
        (code, _) if code.starts_with("KMS.") => {
            "the key that encrypts it cannot be used: enable it, and allow the role \
             kms:Decrypt"
        }
        _ => {
            "the role needs s3:GetObject there, kms:Decrypt if a key encrypts it, and s3:ListBucket to \
             tell a missing file from a forbidden one"
        }
    };
    Unopened::Stays(anyhow!("{}: {why}", said.trim()))
}

#[cfg(test)]
mod tests {
    use super::key;

    #[test]
    fn a_path_may_begin_beside_the_folder() {
        assert_eq!(key("p/AWSDynamoDB/01-a/", "data/a"), "p/AWSDynamoDB/01-a/data/a");
        assert_eq!(key("p/AWSDynamoDB/01-a/", "../data/a"), "p/AWSDynamoDB/data/a");
        assert_eq!(key("01-a/", "../data/a"), "data/a");
        assert_eq!(key("", "data/a"), "data/a");
    }
}
