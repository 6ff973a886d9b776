//! S3: the object of a session is its row, and never an older one.
//!
//! Two invocations can commit in one order and PUT in the other. So no PUT is unconditional: a new
//! row's goes out with `If-None-Match: *`, any other after a HEAD with the ETag that the HEAD saw.
//! Whoever loses the race reads the row again and compares again. An object is never deleted here:
//! a removed session's becomes a tombstone, because an older PUT still in flight would bring a
//! deleted one back.

use std::mem;
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_s3::Client;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use tokio::sync::Semaphore;

use crate::database::Database;
use crate::error::{self, Error};
use crate::measurement::{Measurement, Versions};
use crate::object::{self, FORMAT};
use crate::read_model::{self, Upserted};

/// How many objects are compared or written at once.
const CONCURRENT_OBJECTS: usize = 32;
/// How many rows larger than [`LARGE_BYTES`] are in memory at once, each as a row and as a body: with two
/// meshes of 400 KB some 3 MB, so that an archive takes 25 MB beside the batch itself, whatever comes.
const LARGE_ROWS: usize = 8;
/// An object of more bytes counts as large.
const LARGE_BYTES: usize = 64 << 10;
/// How often one object is compared and written at most, while others write it too.
const TRIES: u32 = 8;

/// Where objects go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveConfig {
    /// `ARCHIVE_BUCKET`.
    pub bucket: String,
    /// `ARCHIVE_PREFIX`; the key is this, the session's id, and `.json`.
    pub prefix: String,
}

/// The bucket.
#[derive(Debug)]
pub struct Archive {
    client: Client,
    config: ArchiveConfig,
    permits: Semaphore,
    large: Semaphore,
}

/// What became of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Archived {
    /// It was written.
    Written,
    /// It held the row, or something newer, already.
    Current,
}

/// What a HEAD saw.
struct Seen {
    etag: Option<String>,
    versions: Versions,
    format: Option<u32>,
}

enum Put {
    Done,
    /// Somebody else wrote the object since the HEAD.
    Lost,
}

/// What a conditional PUT expects to find.
enum Expect<'a> {
    Nothing,
    ETag(&'a str),
}

impl Archive {
    /// Connects to nothing yet. Where an endpoint is configured (`AWS_ENDPOINT_URL`,
    /// `AWS_ENDPOINT_URL_S3`), buckets are addressed by path: a stand-in has no DNS name for each.
    #[must_use]
    pub fn new(config: ArchiveConfig, aws: &SdkConfig) -> Self {
        let endpoint_given = aws.endpoint_url().is_some()
            || std::env::var_os("AWS_ENDPOINT_URL_S3").is_some_and(|url| !url.is_empty());
        let client =
            aws_sdk_s3::config::Builder::from(aws).force_path_style(endpoint_given).build();
        Self {
            client: Client::from_conf(client),
            config,
            permits: Semaphore::new(CONCURRENT_OBJECTS),
            large: Semaphore::new(LARGE_ROWS),
        }
    }

    /// How many objects are compared or written at once.
    #[must_use]
    pub fn concurrency(&self) -> usize {
        CONCURRENT_OBJECTS
    }

    /// Brings the object of one session up to its row: writes it, or finds it current.
    ///
    /// # Errors
    /// [`Error::Archive`] or [`Error::Contended`], and those of reading the row.
    pub async fn bring_up(
        &self,
        database: &Database,
        session_id: &str,
        upserted: Upserted,
    ) -> Result<Archived, Error> {
        let _permit = self.permits.acquire().await.expect("the semaphore is never closed");
        let key = format!("{}{session_id}.json", self.config.prefix);
        let (mut row, mut held, mut new) = match upserted {
            Upserted::Written { inserted, row } => {
                if let (true, Some(row)) = (inserted, &row)
                    && let Put::Done = self.put(&key, row, &Expect::Nothing).await?
                {
                    return Ok(Archived::Written);
                }
                // Of a large row that is new: it has no object either, or the PUT says so.
                let new = inserted && row.is_none();
                (row, None, new)
            }
            // These are at least the patch; whoever has written the row since answers for that.
            Upserted::Held(versions) => (None, Some(versions), false),
        };
        for tries in 1..=TRIES {
            let seen = if mem::take(&mut new) { None } else { self.head(&key).await? };
            let current = |versions: &Versions| {
                seen.as_ref().is_some_and(|seen| {
                    seen.format >= Some(FORMAT) && object::at_least(&seen.versions, versions)
                })
            };
            if held.take().as_ref().is_some_and(&current) {
                return Ok(Archived::Current);
            }
            let (fresh, _large) = match row.take() {
                Some(row) => (*row, None),
                None => {
                    // How large a row is shows when it is here.
                    let large = self.large.acquire().await.expect("the semaphore is never closed");
                    let row = read_model::read(database, session_id).await?;
                    let large = (object::body_bytes(&row) > LARGE_BYTES).then_some(large);
                    (row, large)
                }
            };
            if current(&fresh.versions) {
                return Ok(Archived::Current);
            }
            let put = match &seen {
                None => self.put(&key, &fresh, &Expect::Nothing).await?,
                Some(Seen { etag: None, .. }) => Put::Lost,
                Some(Seen { etag: Some(etag), versions, format }) => {
                    if object::at_least(&fresh.versions, versions) {
                        self.put(&key, &fresh, &Expect::ETag(etag)).await?
                    } else if *format == Some(FORMAT) {
                        // The projector of another database knows some part better.
                        match self.get(&key, etag).await? {
                            Some(other) => {
                                self.put(&key, &object::join(fresh, other), &Expect::ETag(etag))
                                    .await?
                            }
                            None => Put::Lost,
                        }
                    } else if object::at_least(versions, &fresh.versions) {
                        // Of another format, and newer: not ours to take back.
                        return Ok(Archived::Current);
                    } else {
                        return Err(self.error(
                            "PUT",
                            &key,
                            "it holds newer parts in a format of another version of the projector: bring all projectors of this bucket to one version",
                            "foreign format",
                        ));
                    }
                }
            };
            match put {
                Put::Done => return Ok(Archived::Written),
                Put::Lost => {
                    let pause_ms = fastrand::u64(5..25) << tries;
                    tokio::time::sleep(Duration::from_millis(pause_ms)).await;
                }
            }
        }
        Err(Error::Contended { bucket: self.config.bucket.clone(), key, tries: TRIES })
    }

    fn error(
        &self,
        operation: &'static str,
        key: &str,
        remedy: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        let (bucket, key) = (self.config.bucket.clone(), key.to_owned());
        Error::Archive { operation, bucket, key, remedy, source: source.into() }
    }

    async fn head(&self, key: &str) -> Result<Option<Seen>, Error> {
        let head = self.client.head_object().bucket(&self.config.bucket).key(key).send().await;
        match head {
            Ok(head) => {
                let (versions, format) = object::read_metadata(head.metadata());
                Ok(Some(Seen { etag: head.e_tag, versions, format }))
            }
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(self.failed("HEAD", key, &error)),
        }
    }

    /// The row that the object with this ETag was made of; `None` where it is another object by now.
    async fn get(&self, key: &str, etag: &str) -> Result<Option<Measurement>, Error> {
        let get = self.client.get_object().bucket(&self.config.bucket).key(key).if_match(etag);
        let object = match get.send().await {
            Ok(object) => object,
            Err(error) if matches!(status(&error), Some(404 | 412)) => return Ok(None),
            Err(error) => return Err(self.failed("GET", key, &error)),
        };
        let metadata = object.metadata;
        let body = object.body.collect().await;
        let body = body.map_err(|error| self.error("GET", key, "S3 broke off", error))?;
        object::parse(&body.into_bytes(), metadata.as_ref()).map(Some).map_err(|error| {
            let remedy = "its body is not what its metadata says: move the object away";
            self.error("GET", key, remedy, error)
        })
    }

    async fn put(&self, key: &str, row: &Measurement, expect: &Expect<'_>) -> Result<Put, Error> {
        let form = object::body(row).and_then(|body| Ok((body, object::metadata(row)?)));
        let (body, metadata) = form.map_err(|error| {
            self.error("PUT", key, "its row holds what the projector never writes there", error)
        })?;
        let mut request = self
            .client
            .put_object()
            .bucket(&self.config.bucket)
            .key(key)
            .content_type("application/json")
            .set_metadata(Some(metadata))
            .body(ByteStream::from(body));
        request = match expect {
            Expect::Nothing => request.if_none_match("*"),
            Expect::ETag(etag) => request.if_match(*etag),
        };
        if row.removed() {
            request = request.tagging("state=deleted");
        }
        match request.send().await {
            Ok(_) => Ok(Put::Done),
            // 412: the condition does not hold. 409: another write is under way. 404: there is no
            // object any more to match (Amazon S3 User Guide, "Conditional writes").
            Err(error) if matches!(status(&error), Some(409 | 412)) => Ok(Put::Lost),
            Err(error) if status(&error) == Some(404) && error.code() != Some("NoSuchBucket") => {
                Ok(Put::Lost)
            }
            Err(error) => Err(self.failed("PUT", key, &error)),
        }
    }

    fn failed<E>(&self, operation: &'static str, key: &str, error: &SdkError<E>) -> Error
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let no_bucket = |remedy| Error::NoBucket {
            bucket: self.config.bucket.clone(),
            remedy,
            source: said(error).into(),
        };
        let remedy = match (operation, status(error)) {
            ("PUT", Some(404)) => return no_bucket("it does not exist"),
            (_, Some(301 | 307)) => return no_bucket("it is in another region than AWS_REGION"),
            ("HEAD", Some(403)) => {
                "the role needs s3:GetObject on the prefix, and s3:ListBucket on the bucket (without it a missing object is a 403)"
            }
            (_, Some(403)) => {
                "the role needs s3:PutObject, s3:GetObject and s3:PutObjectTagging on the prefix, and the key's kms:GenerateDataKey and kms:Decrypt"
            }
            (_, Some(_)) => "S3 refuses",
            (_, None) => "S3 cannot be reached",
        };
        self.error(operation, key, remedy, said(error))
    }
}

/// What S3 said, in one line; the SDK's own forms are one word or the whole response.
fn said<E>(error: &SdkError<E>) -> String
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    match (status(error), error.meta()) {
        (Some(status), meta) => {
            let (code, message) =
                (meta.code().unwrap_or_default(), meta.message().unwrap_or_default());
            format!("{status} {code} {message}").trim_end().to_owned()
        }
        (None, _) => error::chain(error),
    }
}

fn status<E>(error: &SdkError<E>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}
