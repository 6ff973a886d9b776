//! Where the files of an export are, a folder or a prefix of a bucket, and their bytes piece by
//! piece. A read of S3 that breaks off resumes at its byte.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use aws_config::SdkConfig;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::error::ProvideErrorMetadata as _;
use aws_sdk_s3::primitives::ByteStream;
use projector::archive;

use crate::items::manifest::BESIDE;
use crate::retry::pause_after;

/// How often a read is resumed without any progress.
const RESUMED_AT_MOST: u32 = 5;
/// How much of a file is read at once.
const PIECE_BYTES: usize = 256 << 10;
/// How often a call is made before it is given up.
const TRIES: u32 = 8;

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

/// The client for exports: as the archive's, with the SDK's own retries, more of them.
pub(crate) fn client(aws: &SdkConfig) -> Client {
    let retries = RetryConfig::standard().with_max_attempts(TRIES);
    Client::from_conf(archive::client_config(aws).retry_config(retries).build())
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
    offset: u64,
    ended: bool,
}

impl Pieces {
    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// If the file is not there or cannot be read.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        let name = self.place.name(&self.path);
        let mut resumed = 0;
        while !self.ended {
            if self.source.is_none() {
                let opened = self.open().await;
                self.source = Some(opened.with_context(|| format!("cannot read {name}"))?);
            }
            let Some(source) = &mut self.source else { continue };
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
                        resumed += 1;
                        if resumed > RESUMED_AT_MOST {
                            return Err(error).with_context(|| format!("cannot read {name}"));
                        }
                        tracing::warn!(
                            name,
                            error = projector::error::chain(&error),
                            "S3 broke off; resuming"
                        );
                        self.source = None;
                        tokio::time::sleep(pause_after(resumed)).await;
                    }
                },
            }
        }
        Ok(None)
    }

    /// Opens the file where it was left.
    async fn open(&mut self) -> anyhow::Result<Source> {
        let (client, bucket, prefix) = match &self.place {
            Place::Folder(folder) => return Ok(Source::File(File::open(folder.join(&self.path))?)),
            Place::Bucket(client, bucket, prefix) => (client, bucket, prefix),
        };
        let mut request = client.get_object().bucket(bucket).key(key(prefix, &self.path));
        if let Some(etag) = &self.etag {
            request = request.if_match(etag).range(format!("bytes={}-", self.offset));
        }
        match request.send().await {
            Ok(object) => {
                self.etag = object.e_tag;
                Ok(Source::Object(object.body))
            }
            Err(error) => match (error.code(), error.message()) {
                (Some("NoSuchKey"), _) => bail!("there is no such file"),
                (Some(code), message) => bail!(
                    "{code} {}: the role needs s3:GetObject there, and s3:ListBucket to tell a \
                     missing file from a forbidden one",
                    message.unwrap_or_default()
                ),
                (None, _) => Err(error.into()),
            },
        }
    }
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
