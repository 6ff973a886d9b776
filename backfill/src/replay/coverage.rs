//! What the streams of both tables look like, and who reads them. [`judge`] concludes whether they
//! hold a gap.

pub(crate) mod judge;

use projector::change::{Misconfigured, Tables};
use time::OffsetDateTime;

use crate::replay::outage::Outage;
use crate::replay::readers::Readers;
use crate::replay::source::{Description, Source, Stream};

/// What the streams of both tables look like.
pub(crate) struct Found(Vec<FoundStream>);

#[derive(Clone)]
struct FoundStream {
    stream: Stream,
    description: Description,
    /// Who reads it, once that is known.
    readers: Option<Readers>,
    /// The table has a later stream.
    replaced: bool,
}

impl Found {
    /// Each stream and its shards, the older streams of a table before its newest. Older ones
    /// without new images are left out: they were enabled anew because nothing can be read from
    /// them.
    ///
    /// # Errors
    /// [`Misconfigured::NoNewImages`] of a table's newest stream.
    pub(crate) fn readable(&self) -> Result<Vec<(&Stream, &Description)>, Misconfigured> {
        let mut readable = Vec::new();
        for FoundStream { stream, description, replaced, .. } in &self.0 {
            if description.has_new_images() {
                readable.push((stream, description));
            } else if !replaced {
                let (table, view_type) = (stream.table.clone(), description.view_type.clone());
                return Err(Misconfigured::NoNewImages { table, view_type });
            }
        }
        Ok(readable)
    }

    /// The time without a stream before the stream at this index: its table's streams are listed
    /// one after another, the oldest first.
    fn outage_before(&self, index: usize) -> Option<Outage> {
        let older = &self.0[index.checked_sub(1)?];
        let newer = &self.0[index];
        (older.stream.table == newer.stream.table)
            .then(|| Outage::between(&older.description, &newer.description))
    }

    /// All streams, in order.
    pub(crate) fn streams(&self) -> Vec<Stream> {
        self.0.iter().map(|found| found.stream.clone()).collect()
    }

    /// The table of each newest stream, and when that stream was enabled.
    pub(crate) fn newest_streams(&self) -> impl Iterator<Item = (&str, Option<OffsetDateTime>)> {
        let newest = self.0.iter().filter(|found| !found.replaced);
        newest.map(|found| (found.stream.table.as_str(), found.description.enabled_since))
    }

    /// Adds who reads each stream, in the order of [`Found::streams`].
    pub(crate) fn set_readers(&mut self, readers: Vec<Readers>) {
        for (found, readers) in self.0.iter_mut().zip(readers) {
            found.readers = Some(readers);
        }
    }
}

/// Asks for the streams of both tables and their shards.
pub(crate) async fn examine(source: &Source, tables: &Tables) -> anyhow::Result<Found> {
    let Tables { sessions, scans } = tables;
    let (mut sessions, scans) = tokio::try_join!(
        streams_of(source, "SESSIONS_TABLE", sessions),
        streams_of(source, "SCANS_TABLE", scans),
    )?;
    sessions.extend(scans);
    Ok(Found(sessions))
}

async fn streams_of(
    source: &Source,
    variable: &'static str,
    table: &str,
) -> anyhow::Result<Vec<FoundStream>> {
    let streams = source.streams_of(variable, table).await?;
    let newest = streams.len() - 1;
    let mut found = Vec::new();
    for (index, stream) in streams.into_iter().enumerate() {
        let replaced = index < newest;
        match source.describe(&stream).await? {
            Some(description) => {
                found.push(FoundStream { stream, description, readers: None, replaced });
            }
            // AWS deletes a stream 24 hours after it was disabled, also between two calls.
            None if replaced => {}
            None => anyhow::bail!(
                "ListStreams names {}, and DescribeStream does not find it: run this again",
                stream.arn
            ),
        }
    }
    Ok(found)
}

impl Description {
    pub(crate) fn has_new_images(&self) -> bool {
        matches!(self.view_type.as_str(), "NEW_IMAGE" | "NEW_AND_OLD_IMAGES")
    }
}
