//! S3: one object of a bucket of failures, read whole, and deleted as exactly what was read.

use anyhow::anyhow;
use aws_sdk_s3::Client;
use aws_sdk_s3::error::{ProvideErrorMetadata as _, SdkError};
use aws_sdk_s3::operation::delete_object::DeleteObjectError;

use crate::documents::values::MAX_VALUE_BYTES;
use crate::items::place::{FileFault, Place};

/// The version of the only object that a bucket without versions, or with versions suspended, has
/// of a key: whatever comes in its place is called the same.
const UNVERSIONED: &str = "null";

/// Where the object is.
pub(super) struct FailureObject<'a> {
    client: &'a Client,
    bucket: &'a str,
    key: &'a str,
}

/// An object as it was read.
pub(super) struct Read {
    pub(super) bytes: Vec<u8>,
    pub(super) as_read: AsRead,
}

/// What tells it from an object that comes in its place.
pub(super) struct AsRead {
    pub(super) etag: Option<String>,
    version: Option<String>,
}

impl<'a> FailureObject<'a> {
    pub(super) fn named(client: &'a Client, bucket: &'a str, key: &'a str) -> Self {
        Self { client, bucket, key }
    }

    /// For messages.
    pub(super) fn name(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.key)
    }

    /// All of it; `None` if it is not there.
    ///
    /// # Errors
    /// If it cannot be read, or is larger than any batch.
    pub(super) async fn read(&self) -> anyhow::Result<Option<Read>> {
        let place = Place::Bucket(self.client.clone(), self.bucket.to_owned(), String::new());
        let mut pieces = place.open(self.key);
        let mut bytes = Vec::new();
        loop {
            match pieces.next().await {
                Ok(Some(piece)) => bytes.extend_from_slice(&piece),
                Ok(None) => break,
                Err(error) => {
                    let fault = error.downcast_ref::<FileFault>();
                    return if fault.is_some_and(|fault| fault.is_missing) {
                        Ok(None)
                    } else {
                        Err(error)
                    };
                }
            }
            if bytes.len() > MAX_VALUE_BYTES {
                let most = MAX_VALUE_BYTES >> 20;
                return Err(self.stays(&format!("it has more than {most} MiB")).into());
            }
        }
        let (etag, version) = pieces.read_as();
        let as_read = AsRead { etag: etag.map(str::to_owned), version: version.map(str::to_owned) };
        Ok(Some(Read { bytes, as_read }))
    }

    /// It is no batch that Lambda gave up on, or not only that.
    pub(super) fn stays(&self, problem: &str) -> FileFault {
        FileFault {
            name: self.name(),
            problem: format!(
                "stays in the bucket of failures, since not all of it is a batch of these tables \
                 that Lambda gave up on: {problem}. Look at it, keep what you need of it, and \
                 remove it yourself"
            ),
            is_missing: false,
        }
    }

    /// Deletes what was read, and nothing that has come in its place: by the id of its version. In
    /// a bucket without versions the condition is its `ETag`, which S3 compares with the object
    /// that it deletes (Amazon S3 User Guide, "How to perform conditional deletes"). That it is
    /// gone already is as good.
    ///
    /// # Errors
    /// If it is still there.
    pub(super) async fn delete(&self, as_read: &AsRead) -> anyhow::Result<()> {
        let mut request = self.client.delete_object().bucket(self.bucket).key(self.key);
        match as_read.version.as_deref() {
            Some(version) if version != UNVERSIONED => request = request.version_id(version),
            _ => request = request.set_if_match(as_read.etag.clone()),
        }
        match request.send().await {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some("NoSuchKey") => Ok(()),
            Err(error) => Err(self.not_deleted(&error)),
        }
    }

    fn not_deleted(&self, error: &SdkError<DeleteObjectError>) -> anyhow::Error {
        let name = self.name();
        let status = error.raw_response().map(|response| response.status().as_u16());
        let remedy = match status {
            Some(403) => {
                "the role needs s3:DeleteObject there, and s3:DeleteObjectVersion if the bucket \
                 keeps versions. Allow it, and call again"
            }
            Some(412) => "it was replaced after it was read: call again",
            _ => "call again",
        };
        let said = [error.code(), error.message()].into_iter().flatten().collect::<Vec<_>>();
        let said = if said.is_empty() { projector::error::chain(error) } else { said.join(" ") };
        anyhow!("every record of {name} is settled, and it cannot be deleted ({said}): {remedy}")
    }
}
