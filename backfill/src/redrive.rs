//! `backfill redrive`: tries the records of `rejected_records` again, through the same apply path,
//! and removes those that are now in both stores.
//!
//! A record is removed after it is stored: whatever ends the run, none is lost, and the same command
//! goes on.

use std::time::Instant;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use projector::apply::{Counts, Pace};
use projector::database::Database;
use serde_json::Value as Json;
use sqlx::postgres::PgArguments;
use sqlx::{Arguments as _, Row as _};

use crate::Outcome;
use crate::cli::{RedriveArguments, Settings};
use crate::deliver::{Delivery, try_out};
use crate::progress::{Progress, note};
use crate::statement::{self, retry_transient};
use crate::stop::Stop;
use crate::summary::{self, Reasons, say};

/// So many records are held at once; each may have a mesh of 400 KB.
const BATCH: usize = 100;

/// By identity, so that rows that stay are not asked for twice.
const NEXT: &str = "SELECT identity, record::text FROM rejected_records
WHERE identity > $1 AND ($2::text IS NULL OR reason LIKE $2)
ORDER BY identity LIMIT $3";
const COUNT: &str =
    "SELECT count(*) FROM rejected_records WHERE ($1::text IS NULL OR reason LIKE $1)";
const REMOVE: &str = "DELETE FROM rejected_records WHERE identity = ANY($1) RETURNING identity";

pub(crate) async fn run(
    settings: &Settings,
    arguments: &RedriveArguments,
    _stop: &Stop,
) -> anyhow::Result<Outcome> {
    let config = settings.config()?;
    if config.archive.is_none() && !arguments.dry_run {
        note(
            "ARCHIVE_BUCKET is not set: a record is removed when it is in the database, no object is written",
        );
    }
    let start = Instant::now();
    let mut delivery = Delivery::of_rejected(config.projector_with_credentials().await?);
    let pattern = arguments.reason.as_deref();
    let rows = count(&delivery.projector().database, pattern).await?;
    let mut progress = Progress::start(rows);
    let mut pace = Pace::new(BATCH);
    let (mut counts, mut reasons) = (Counts::default(), Reasons::default());
    let mut removed = 0;
    let mut last = String::new();
    loop {
        let (identities, records) =
            next(&delivery.projector().database, &last, pattern, &mut pace).await?;
        let Some(newest) = identities.last() else { break };
        last.clone_from(newest);
        let count = identities.len() as u64;
        if arguments.dry_run {
            try_out(&records, &delivery.projector().tables, &mut counts, &mut reasons)?;
        } else {
            let set_aside = delivery.deliver(records).await?;
            let stored: Vec<&str> = identities
                .iter()
                .enumerate()
                .filter(|(position, _)| set_aside.binary_search(position).is_err())
                .map(|(_, identity)| identity.as_str())
                .collect();
            removed += remove(&delivery.projector().database, &stored, &mut pace).await?;
        }
        progress.advance(count, if arguments.dry_run { &counts } else { &delivery.counts });
    }
    drop(progress);
    if arguments.dry_run {
        summary::print_dry(counts.records, counts.rejected, &reasons);
        return Ok(Outcome::of(&counts));
    }
    summary::print("done", &delivery.counts, &delivery.reasons, start.elapsed());
    say!("{removed} records removed from rejected_records");
    Ok(Outcome::of(&delivery.counts))
}

async fn count(database: &Database, pattern: Option<&str>) -> anyhow::Result<u64> {
    let arguments = || {
        let mut arguments = PgArguments::default();
        arguments.add(pattern)?;
        Ok(arguments)
    };
    retry_transient("count the rejected records", async || {
        statement::count(database, "rejected_records", COUNT, arguments).await
    })
    .await
}

async fn next(
    database: &Database,
    after: &str,
    pattern: Option<&str>,
    pace: &mut Pace,
) -> anyhow::Result<(Vec<String>, Vec<Vec<u8>>)> {
    let arguments = |limit| {
        let mut arguments = PgArguments::default();
        arguments.add(after)?;
        arguments.add(pattern)?;
        arguments.add(i64::try_from(limit)?)?;
        Ok(arguments)
    };
    let rows = retry_transient("read the rejected records", async || {
        statement::page(database, pace, NEXT, arguments).await
    });
    let (mut identities, mut records) = (Vec::new(), Vec::new());
    for row in &rows.await?.1 {
        identities.push(row.try_get(0)?);
        records.push(as_it_came(row.try_get(1)?));
    }
    Ok((identities, records))
}

/// The bytes that were set aside: what was no JSON is kept as a JSON string of it, what was no text
/// as an object with it in base64.
fn as_it_came(record: String) -> Vec<u8> {
    match serde_json::from_str(&record) {
        Ok(Json::String(text)) => text.into_bytes(),
        Ok(Json::Object(members)) if members.len() == 1 => {
            let base64 = members.get("base64").and_then(Json::as_str);
            let bytes = base64.and_then(|base64| BASE64.decode(base64).ok());
            bytes.unwrap_or_else(|| record.into_bytes())
        }
        _ => record.into_bytes(),
    }
}

/// Removes these records, and returns how many were there. As many at a time as were read at a time.
async fn remove(
    database: &Database,
    identities: &[&str],
    pace: &mut Pace,
) -> anyhow::Result<usize> {
    let (mut remaining, mut removed) = (identities, 0);
    while !remaining.is_empty() {
        let arguments = |limit: usize| {
            let mut arguments = PgArguments::default();
            arguments.add(&remaining[..limit.min(remaining.len())])?;
            Ok(arguments)
        };
        let rows = retry_transient("remove rejected records that are stored now", async || {
            statement::page(database, pace, REMOVE, arguments).await
        });
        let (sent, rows) =
            rows.await.context("a role that redrives needs DELETE on rejected_records")?;
        removed += rows.len();
        remaining = &remaining[sent.min(remaining.len())..];
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::as_it_came;

    #[test]
    fn the_bytes_come_back_as_they_were_set_aside() {
        let record = r#"{ "eventID": "1",  "dynamodb": {} }"#;
        assert_eq!(as_it_came(record.to_owned()), record.as_bytes());
        assert_eq!(as_it_came(r#""{\"a\u0000""#.to_owned()), b"{\"a\0");
        assert_eq!(as_it_came(r#"{"base64":"//4="}"#.to_owned()), b"\xff\xfe");
        assert_eq!(as_it_came(r#"{"base64":"?"}"#.to_owned()), br#"{"base64":"?"}"#);
    }
}
