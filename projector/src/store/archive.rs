//! S3: HEAD, GET, and PUTs that are all conditional. Nothing here knows PostgreSQL, or when what is
//! written: `apply/reconcile.rs` decides that.

use std::collections::HashMap;

use aws_config::SdkConfig;
use aws_sdk_s3::Client;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::cause::{self, Consequence, Message};
use crate::config::{ArchiveConfig, ArchiveObjects};
use crate::error::{self, Error};
use crate::measurement::{Measurement, Versions};
use crate::object;

/// How many objects are compared or written at once.
const CONCURRENT_OBJECTS: usize = 32;
/// How many rows larger than [`LARGE_BYTES`] are in memory at once, each as a row and as a body:
/// with two meshes of 400 KB some 3 MB, so that an archive takes 25 MB beside the batch itself,
/// whatever comes.
const LARGE_ROWS: usize = 8;
/// An object of more bytes counts as large.
const LARGE_BYTES: usize = 64 << 10;

/// The bucket.
#[derive(Debug)]
pub struct Archive {
    client: Client,
    config: ArchiveConfig,
    permits: Semaphore,
    large: Semaphore,
}

/// What a HEAD saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The object's ETag.
    pub etag: Option<String>,
    /// What its metadata says; `None` where it has none of ours.
    pub described: Option<Described>,
}

/// What an object says that it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// The version of each part.
    pub versions: Versions,
    /// The form of its body.
    pub format: u32,
}

/// An object as a listing names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its key.
    pub key: String,
    /// How large its body is.
    pub bytes: u64,
}

/// A body and its metadata.
pub type Object = (Bytes, Option<HashMap<String, String>>);

/// What became of a conditional PUT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The object is written.
    Done,
    /// Somebody else wrote it since the HEAD.
    Lost,
}

/// What a PUT must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition<'a> {
    /// No object.
    Absent,
    /// The object with this ETag.
    Matches(&'a str),
}

/// How a client of S3 is made. If an endpoint is configured (`AWS_ENDPOINT_URL`,
/// `AWS_ENDPOINT_URL_S3`), buckets are addressed by path: a stand-in has no DNS name for each.
#[must_use]
pub fn client_config(aws: &SdkConfig) -> aws_sdk_s3::config::Builder {
    let endpoint_given = aws.endpoint_url().is_some()
        || std::env::var_os("AWS_ENDPOINT_URL_S3").is_some_and(|url| !url.is_empty());
    aws_sdk_s3::config::Builder::from(aws).force_path_style(endpoint_given)
}

impl Archive {
    /// Connects to nothing yet.
    #[must_use]
    pub fn new(config: ArchiveConfig, aws: &SdkConfig) -> Self {
        Self {
            client: Client::from_conf(client_config(aws).build()),
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

    /// One of the [`Archive::concurrency`] places.
    pub async fn permit(&self) -> SemaphorePermit<'_> {
        self.permits.acquire().await.expect("the semaphore is never closed")
    }

    /// One of the places for rows and objects that may be large.
    pub async fn permit_for_large(&self) -> SemaphorePermit<'_> {
        self.large.acquire().await.expect("the semaphore is never closed")
    }

    /// Whether a row wants [`Archive::permit_for_large`] as long as it is in memory.
    #[must_use]
    pub fn is_large(row: &Measurement) -> bool {
        object::body_bytes(row) > LARGE_BYTES
    }

    /// From when on a session has an object.
    #[must_use]
    pub fn objects(&self) -> ArchiveObjects {
        self.config.objects
    }

    /// Where the objects are, for a comparison with where they were: the bucket and the prefix.
    #[must_use]
    pub fn place(&self) -> String {
        format!("{}/{}", self.config.bucket, self.config.prefix)
    }

    /// The key of a session's object.
    #[must_use]
    pub fn key(&self, session_id: &str) -> String {
        format!("{}{session_id}.json", self.config.prefix)
    }

    /// The object holds newer parts than the row, in a form that this version cannot read.
    #[must_use]
    pub fn foreign_format(&self, key: &str) -> Error {
        let what = "it holds newer parts in a format of another version of the projector";
        let message =
            Message::new(what).remedy("bring all projectors of this bucket to one version");
        self.error("PUT", key, message, "foreign format")
    }

    /// What the object holds cannot be made out, so it is not written over.
    #[must_use]
    pub fn unreadable(
        &self,
        key: &str,
        error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        let message =
            Message::new("its body does not say what it holds").remedy("move the object away");
        self.error("GET", key, message, error)
    }

    /// Others wrote the object during each of these conditional writes.
    #[must_use]
    pub fn contended(&self, key: &str, tries: u32) -> Error {
        Error::Contended { bucket: self.config.bucket.clone(), key: key.to_owned(), tries }
    }

    fn error(
        &self,
        operation: &'static str,
        key: &str,
        message: Message,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        let (bucket, key) = (self.config.bucket.clone(), key.to_owned());
        Error::Archive { operation, bucket, key, message: Box::new(message), source: source.into() }
    }

    /// What the object with this key is; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Archive`] or [`Error::NoBucket`].
    pub async fn head(&self, key: &str) -> Result<Option<Seen>, Error> {
        let head = self.client.head_object().bucket(&self.config.bucket).key(key).send().await;
        match head {
            Ok(head) => {
                let described = object::read_metadata(head.metadata())
                    .map(|(versions, format)| Described { versions, format });
                Ok(Some(Seen { etag: head.e_tag, described }))
            }
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(self.failed("HEAD", key, &error)),
        }
    }

    /// The body and the metadata of the object with this ETag; `None` where it is another object by
    /// now.
    ///
    /// # Errors
    /// [`Error::Archive`] or [`Error::NoBucket`].
    pub async fn get(&self, key: &str, etag: &str) -> Result<Option<Object>, Error> {
        self.get_if(key, Some(etag)).await
    }

    /// The body and the metadata of the object, whichever it is now; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Archive`] or [`Error::NoBucket`].
    pub async fn get_current(&self, key: &str) -> Result<Option<Object>, Error> {
        self.get_if(key, None).await
    }

    async fn get_if(&self, key: &str, etag: Option<&str>) -> Result<Option<Object>, Error> {
        let get = self.client.get_object().bucket(&self.config.bucket).key(key);
        let object = match get.set_if_match(etag.map(str::to_owned)).send().await {
            Ok(object) => object,
            Err(error)
                if matches!(status(&error), Some(404 | 412))
                    && error.code() != Some("NoSuchBucket") =>
            {
                return Ok(None);
            }
            Err(error) => return Err(self.failed("GET", key, &error)),
        };
        let metadata = object.metadata;
        let body = object.body.collect().await;
        let body =
            body.map_err(|error| self.error("GET", key, Message::new("S3 broke off"), error))?;
        Ok(Some((body.into_bytes(), metadata)))
    }

    /// The objects below the prefix whose keys come after this one, up to 1,000 of them in the
    /// order of their keys.
    ///
    /// # Errors
    /// [`Error::Archive`] or [`Error::NoBucket`].
    pub async fn list(&self, after: &str) -> Result<Vec<Listed>, Error> {
        let ArchiveConfig { bucket, prefix, objects: _ } = &self.config;
        let list = self.client.list_objects_v2().bucket(bucket).prefix(prefix);
        let list = if after.is_empty() { list } else { list.start_after(after) };
        let page = list.send().await.map_err(|error| self.failed("LIST", prefix, &error))?;
        let listed = |object: aws_sdk_s3::types::Object| {
            let bytes = object.size.and_then(|size| u64::try_from(size).ok()).unwrap_or_default();
            Some(Listed { key: object.key?, bytes })
        };
        Ok(page.contents.unwrap_or_default().into_iter().filter_map(listed).collect())
    }

    /// The session whose object has this key; `None` where it is none of ours.
    #[must_use]
    pub fn session_of<'a>(&self, key: &'a str) -> Option<&'a str> {
        key.strip_prefix(&self.config.prefix)?.strip_suffix(".json")
    }

    /// Asks for a byte of an object that does not exist: an answer of "not found" proves that the
    /// bucket is there, and that the role may read objects and list them. Writes nothing.
    ///
    /// # Errors
    /// [`Error::Archive`] or [`Error::NoBucket`].
    pub async fn probe(&self, key: &str) -> Result<(), Error> {
        let get = self.client.get_object().bucket(&self.config.bucket).key(key).range("bytes=0-0");
        match get.send().await {
            Ok(_) => Ok(()),
            Err(error) if status(&error) == Some(404) && error.code() != Some("NoSuchBucket") => {
                Ok(())
            }
            Err(error) => Err(self.failed("GET", key, &error)),
        }
    }

    /// Writes the object of a row, if it finds what it must.
    ///
    /// # Errors
    /// [`Error::Archive`] or [`Error::NoBucket`].
    pub async fn put(
        &self,
        key: &str,
        row: &Measurement,
        condition: &Condition<'_>,
    ) -> Result<Put, Error> {
        let form = object::body(row).and_then(|body| Ok((body, object::metadata(row)?)));
        let (body, metadata) = form.map_err(|error| {
            let message = Message::new("its row holds what the projector never writes there");
            self.error("PUT", key, message, error)
        })?;
        let mut request = self
            .client
            .put_object()
            .bucket(&self.config.bucket)
            .key(key)
            .content_type("application/json")
            .set_metadata(Some(metadata))
            .body(ByteStream::from(body));
        request = match condition {
            Condition::Absent => request.if_none_match("*"),
            Condition::Matches(etag) => request.if_match(*etag),
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
        let mut cause = cause::of_s3(operation, status(error), error.meta().code());
        // The answer to a HEAD names no code; for a bucket of another region it names that.
        if status(error) == Some(400)
            && let Some(region) = self.other_region(error)
        {
            cause = cause::of_s3(operation, Some(301), None);
            tracing::debug!(region, "the bucket's region");
        }
        let source = service_message(error);
        if cause.consequence == Consequence::Fatal {
            let (bucket, message) = (self.config.bucket.clone(), cause.message);
            return Error::NoBucket { bucket, message: Box::new(message), source: source.into() };
        }
        self.error(operation, key, cause.message, source)
    }

    /// The region of the bucket, where an answer says that it is another one than ours.
    fn other_region<E>(&self, error: &SdkError<E>) -> Option<String> {
        let region = error.raw_response()?.headers().get("x-amz-bucket-region")?;
        let ours = self.client.config().region().map(AsRef::as_ref);
        (Some(region) != ours).then(|| region.to_owned())
    }
}

/// What S3 said, in one line; the SDK's own forms are one word or the whole response.
fn service_message<E>(error: &SdkError<E>) -> String
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
