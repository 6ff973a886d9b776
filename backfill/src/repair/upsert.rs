//! Images whose hold is over → rows, over the connection that holds the lock of repairs: whoever
//! has lost the lock can write nothing.

use anyhow::Context as _;
use projector::apply::refusal;
use projector::change::Change;
use projector::database::DedicatedConnection;
use projector::error::{Consequence, Error};
use projector::fold::{IndexedChange, SessionChanges, fold};
use projector::item;
use projector::measurement::Versions;
use projector::part::Part;
use projector::read_model::upsert_unmoved;
use time::OffsetDateTime;

use crate::items::{Fault, Key};
use crate::repair::reread::image_version;
use crate::repair::waiting::{Batch, WaitingImage};

/// What became of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is in the row; `removed` if there was no item.
    Written { removed: bool },
    /// The row had moved: the stream has brought what the image shows, or something newer.
    Dropped,
    /// The row was locked for too long, for this reason: it is to be looked at again.
    Locked(String),
    /// PostgreSQL refuses it.
    Refused(Fault),
}

/// Why images are not in their rows: the connection is at fault, or the set-up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotUpserted {
    /// The connection, and the lock with it, may be lost.
    #[error("the connection that holds the lock failed")]
    Connection(#[source] Error),
    /// Nothing that passes.
    #[error(transparent)]
    Fatal(anyhow::Error),
}

/// Writes each image into its row, if the row has not moved since it was seen. An image that
/// PostgreSQL refuses keeps no other out.
///
/// # Errors
/// [`NotUpserted`]. Some images may be in their rows by then: looked at anew, those are equal.
pub(crate) async fn upsert(
    connection: &mut DedicatedConnection,
    batch: &Batch,
    now: OffsetDateTime,
) -> Result<Vec<(Key, Fate)>, NotUpserted> {
    let changes = changes(batch, now).map_err(NotUpserted::Fatal)?;
    let mut fates = Vec::with_capacity(changes.len());
    let mut pieces = vec![changes];
    while let Some(mut piece) = pieces.pop() {
        let error = match upsert_piece(connection, &piece, &batch.images).await {
            Ok(some) => {
                fates.extend(some);
                continue;
            }
            Err(error) => error,
        };
        match error.consequence() {
            Consequence::Split | Consequence::Reject if piece.len() > 1 => {
                let rest = piece.split_off(piece.len() / 2);
                pieces.extend([rest, piece]);
            }
            Consequence::Reject => fates.extend(all(piece, &Fate::Refused(fault(&error)))),
            Consequence::Split if error.too_much() => {
                fates.extend(all(piece, &Fate::Locked(projector::error::chain(&error))));
            }
            Consequence::Split | Consequence::Retry | Consequence::Reconnect => {
                return Err(NotUpserted::Connection(error));
            }
            Consequence::Fatal => return Err(NotUpserted::Fatal(error.into())),
        }
    }
    Ok(fates)
}

/// The same fate for every image of a piece.
fn all(piece: Vec<IndexedChange>, fate: &Fate) -> impl Iterator<Item = (Key, Fate)> {
    let keys = piece.into_iter().map(|one| (one.change.part, one.change.session_id));
    keys.map(|key| (key, fate.clone()))
}

/// Why PostgreSQL refuses an item; without values for the log.
fn fault(error: &Error) -> Fault {
    let (reason, logged) = refusal(error);
    Fault { reason, logged }
}

/// The images as changes, each with its version.
fn changes(batch: &Batch, now: OffsetDateTime) -> anyhow::Result<Vec<IndexedChange>> {
    let now_us = u64::try_from(now.unix_timestamp_nanos() / 1_000).context("before 1970")?;
    let change = |(record_index, image): (usize, &WaitingImage)| {
        let (part, session_id) = image.key.clone();
        let document = match &image.item {
            None => None,
            Some(json) => {
                let item = item::decode(json, part == Part::Session).map_err(anyhow::Error::from);
                Some(item?.document?)
            }
        };
        let version = image_version(image.floor.as_deref(), now_us)?;
        let changed_at = Some(batch.read_at);
        let (inserted, expired) = (false, false);
        let change = Change { session_id, part, version, changed_at, document, inserted, expired };
        Ok(IndexedChange { record_index, change })
    };
    batch.images.iter().enumerate().map(change).collect()
}

/// The record index of each change is that of its image.
async fn upsert_piece(
    connection: &mut DedicatedConnection,
    piece: &[IndexedChange],
    images: &[WaitingImage],
) -> Result<Vec<(Key, Fate)>, Error> {
    let sessions = fold(piece);
    let seen_of = |session: &SessionChanges<'_>| {
        let mut seen = Versions::default();
        for indexed in &session.changes {
            seen[indexed.change.part].clone_from(&images[indexed.record_index].row);
        }
        seen
    };
    let seen: Vec<Versions> = sessions.iter().map(seen_of).collect();
    let written = upsert_unmoved(connection, &sessions, &seen).await?;
    let mut fates = Vec::with_capacity(piece.len());
    for (session, held) in sessions.iter().zip(written) {
        for indexed in &session.changes {
            let Change { part, session_id, version, document, .. } = &indexed.change;
            let holds = held.as_ref().and_then(|held| held[*part].as_deref());
            let fate = if holds == Some(version.as_str()) {
                Fate::Written { removed: document.is_none() }
            } else {
                Fate::Dropped
            };
            fates.push(((*part, session_id.clone()), fate));
        }
    }
    Ok(fates)
}
