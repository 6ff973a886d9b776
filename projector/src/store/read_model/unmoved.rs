//! PostgreSQL: the upsert of images that were read from the tables. A part is written only if its
//! row still has the version that was seen before the item was read.
//!
//! The comparison and the write of a session are one statement, because a change that is committed
//! between the two would be taken back. Two statements share the sessions, and each compares for
//! itself:
//!
//! - A session of which no part was seen is inserted. The comparison is the primary key: if another
//!   writer has the row, nothing is written. A guard by version would not do there: an image can be
//!   greater than what was inserted meanwhile, if it is built on the version of an object.
//! - Every other session has a row, also one whose insert found another writer's: rows are never
//!   deleted. All rows are locked in the order of their keys, as every writer locks them, and only
//!   then compared.
//!
//! No row without versions is ever written, so a crash between the two leaves nothing behind but
//! sessions that are not written yet.

use std::collections::HashMap;

use sqlx::Arguments as _;
use sqlx::error::BoxDynError;
use sqlx::postgres::PgArguments;

use super::{statement, upsert_arguments};
use crate::database::DedicatedConnection;
use crate::error::Error;
use crate::fold::SessionChanges;
use crate::measurement::Versions;
use crate::part::Part;

/// Key and versions, as both statements return them.
type Found = (String, Option<String>, Option<String>, Option<String>);

/// Writes each part whose row still has exactly the version that was seen (`None`: the row never
/// held it), and whose new version is greater. Goes over the connection that holds the lock of
/// repairs. The caller bounds the batch: a scan has a mesh of up to 400 KB.
///
/// `sessions` are sorted by `session_id`, without repetition, and `seen` has one entry for each.
/// The answer has one entry per session: the versions of its row afterwards if it holds at least
/// one part of the patch in exactly the version of the patch; otherwise `None`, because every part
/// has moved. So a call that is repeated after its answer was lost answers the same: a part that it
/// has written counts as written.
///
/// # Errors
/// As [`DedicatedConnection::fetch`]; a row that another writer keeps locked for 5 s is one.
/// [`Error::RowNotWritten`] if a trigger or a rule keeps a part that has not moved out of its row.
/// Other sessions of the call may be written then.
pub async fn upsert_unmoved(
    connection: &mut DedicatedConnection,
    sessions: &[SessionChanges<'_>],
    seen: &[Versions],
) -> Result<Vec<Option<Versions>>, Error> {
    debug_assert_eq!(sessions.len(), seen.len());
    let mut afterwards = HashMap::new();
    let of_no_row: Vec<&SessionChanges<'_>> = sessions
        .iter()
        .zip(seen)
        .filter_map(|(session, seen)| seen.values().all(Option::is_none).then_some(session))
        .collect();
    if !of_no_row.is_empty() {
        let arguments = || upsert_arguments(&of_no_row);
        let inserted = connection.fetch(statement::INSERT_ABSENT.as_str(), arguments).await?;
        afterwards.extend(inserted.into_iter().map(by_key));
    }
    let remaining: Vec<(&SessionChanges<'_>, &Versions)> = sessions
        .iter()
        .zip(seen)
        .filter(|(session, _)| !afterwards.contains_key(session.session_id))
        .collect();
    if !remaining.is_empty() {
        let arguments = || unmoved_arguments(&remaining);
        let held = connection.fetch(statement::UPSERT_UNMOVED.as_str(), arguments).await?;
        afterwards.extend(held.into_iter().map(by_key));
    }
    require_written(sessions, seen, &afterwards)?;
    let answer = |session: &SessionChanges<'_>| {
        let row = afterwards.remove(session.session_id)?;
        let holds = |part: Part| {
            session.patch[part]
                .is_some_and(|change| row[part].as_deref() == Some(change.version.as_str()))
        };
        Part::ALL.into_iter().any(holds).then_some(row)
    };
    Ok(sessions.iter().map(answer).collect())
}

fn by_key((session_id, session, left, right): Found) -> (String, Versions) {
    (session_id, [session, left, right].into())
}

fn unmoved_arguments(
    sessions: &[(&SessionChanges<'_>, &Versions)],
) -> Result<PgArguments, BoxDynError> {
    let changes: Vec<&SessionChanges<'_>> = sessions.iter().map(|(session, _)| *session).collect();
    let mut arguments = upsert_arguments(&changes)?;
    for part in Part::ALL {
        arguments
            .add(sessions.iter().map(|(_, seen)| seen[part].as_deref()).collect::<Vec<_>>())?;
    }
    Ok(arguments)
}

/// A part that has not moved, and is older than the one that was sent for it, was kept out of its
/// row: it must not pass for one that the stream has brought.
fn require_written(
    sessions: &[SessionChanges<'_>],
    seen: &[Versions],
    afterwards: &HashMap<String, Versions>,
) -> Result<(), Error> {
    let is_kept_out = |(session, seen): &(&SessionChanges<'_>, &Versions)| {
        let never = Versions::default();
        let row = afterwards.get(session.session_id).unwrap_or(&never);
        Part::ALL.into_iter().any(|part| {
            let version = session.patch[part].map(|change| change.version.as_str());
            row[part] == seen[part] && version > row[part].as_deref()
        })
    };
    let mut kept_out = sessions.iter().zip(seen).filter(is_kept_out);
    match kept_out.next() {
        None => Ok(()),
        Some((session, _)) => Err(Error::RowNotWritten {
            session_id: session.session_id.to_owned(),
            others: kept_out.count(),
        }),
    }
}
