//! Which rows are wrong at the end, for every handler and everything that can arrive.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use serde_json::Value as Json;
use testkit::generate::{self, Day};
use testkit::oracle::{self, Rows};
use testkit::records::Record;
use testkit::services::Stores;

use super::Handler;
use super::history::{BATCH, History, with_evening, with_times};
use super::mapping::{MAX_RETRIES, Mapping};
use crate::plot::{Kind, Plot};
use crate::report::{Aim, Section};

/// A value whatever its form: 245.3 and 245.30 are the same foot, and a set has no order.
fn value(json: &Json) -> Json {
    match json {
        Json::Number(_) => json.as_f64().map_or_else(|| json.clone(), Json::from),
        Json::Array(values) => {
            let mut values: Vec<Json> = values.iter().map(value).collect();
            values.sort_by_key(Json::to_string);
            Json::Array(values)
        }
        Json::Object(members) => {
            members.iter().map(|(name, member)| (name.clone(), value(member))).collect()
        }
        Json::Null | Json::Bool(_) | Json::String(_) => json.clone(),
    }
}

/// The rows whose values are wrong, or that are missing; most peers keep no versions.
fn wrong(rows: &Rows, expected: &Rows) -> usize {
    let values = |row: Option<&Json>| {
        let row = row.and_then(Json::as_object)?;
        // `app_version` is a value.
        let of_values = |name: &str| {
            let parts = ["session", "left", "right"].iter();
            parts.filter_map(|part| name.strip_prefix(part)).all(|rest| !PLACES.contains(&rest))
        };
        Some(
            row.iter()
                .filter(|(name, _)| of_values(name))
                .map(|(_, json)| value(json))
                .collect::<Vec<_>>(),
        )
    };
    let sessions: BTreeSet<&String> = rows.keys().chain(expected.keys()).collect();
    sessions
        .into_iter()
        .filter(|session| values(rows.get(*session)) != values(expected.get(*session)))
        .count()
}

/// What a part's columns of places in a stream end in: values stand in all others.
const PLACES: [&str; 2] = ["_version", "_changed_at"];

/// What one handler came to.
struct Score {
    handler: Handler,
    /// Wrong rows by history.
    wrong: Vec<usize>,
    /// Good records and bad that were given up after their retries, by history.
    given_up: Vec<usize>,
}

async fn score(handler: Handler, records: &[Record], expected: &Rows) -> anyhow::Result<Score> {
    let mut score = Score { handler, wrong: Vec::new(), given_up: Vec::new() };
    for history in History::ALL {
        let start = Instant::now();
        let stores = Stores::fresh().await;
        let mut mapping = Mapping::start(handler, &stores).await?;
        let given_up = mapping
            .deliver(history, &history.batches(records))
            .await
            .with_context(|| format!("{}, {}", handler.name(), history.name()))?;
        mapping.stop().await?;
        let wrong = wrong(&stores.rows().await, expected);
        eprintln!(
            "  {}, {}: {wrong} wrong, {given_up} given up, {:.1} s",
            handler.name(),
            history.name(),
            start.elapsed().as_secs_f64()
        );
        ensure!(
            handler != Handler::Projector || wrong == 0,
            "the projector has {wrong} rows wrong: {}",
            history.name()
        );
        score.wrong.push(wrong);
        score.given_up.push(given_up);
    }
    Ok(score)
}

fn table(scores: &[Score]) -> Result<String, std::fmt::Error> {
    let names = History::ALL.map(History::name).join(" | ");
    let mut table = format!("| handler | {names} |\n|---|{}\n", "---|".repeat(History::ALL.len()));
    for score in scores {
        write!(table, "| {} |", score.handler.name())?;
        for (wrong, given_up) in score.wrong.iter().zip(&score.given_up) {
            match given_up {
                0 => write!(table, " {wrong} |")?,
                given_up => write!(table, " {wrong} ({given_up} given up) |")?,
            }
        }
        writeln!(table)?;
    }
    Ok(table)
}

/// Scores every handler.
///
/// # Errors
/// If a handler cannot be started, or the projector has a wrong row.
pub(crate) async fn measure(quick: bool) -> anyhow::Result<Section> {
    let sessions = if quick { 200 } else { 2_000 };
    let day = Day { seed: 3, sessions, malformed: false, mesh_bytes: 0 };
    let (of_sessions, scans) = generate::day(day);
    let delivered = with_times(with_evening([of_sessions, scans].concat())?)?;
    let expected = oracle::rows(&delivered);
    let mut scores = Vec::new();
    for handler in Handler::ALL {
        scores.push(score(handler, &delivered, &expected).await?);
    }
    let ours: usize = scores[0].wrong.iter().sum();
    let text = format!(
        "A day of {sessions} sessions in batches of {BATCH}, rows alone, over one lane of a \
mapping as Lambda has it (a batch that ended in an error is split, and comes again up to {MAX_RETRIES} \
times). What is then given up lies in the bucket of failures, and nobody applies it here. Rows \
that are wrong or missing at the end:\n\n{}\n\
- Every fourth item changes once more in the evening. *duplicates*: 7 of 100 records come twice, some of them behind later ones. *shuffled*: the \
batches in any order. *stale prefix*: at the end, the first quarter again.\n\
- *kill -9*: at a random moment of every third batch. *bad record*: a text with a NUL in every \
fifth batch. *outage*: the database away for a second in every fifth batch.\n\
- `tests/peers/README.md` says why each is wrong, and what else the peers do not defend \
against.\n\n![wrong rows](wrong.svg)\n",
        table(&scores)?
    );
    Ok(Section {
        order: 1,
        title: "What is wrong at the end".to_owned(),
        text,
        aims: vec![Aim::at_most(
            "wrong rows of the projector, all histories",
            0.0,
            ours as f64,
            "",
        )],
        figures: Vec::new(),
        plot: Some(plot(&scores, sessions)),
    })
}

fn plot(scores: &[Score], sessions: usize) -> Plot {
    let flawless = |score: &&Score| score.wrong.iter().all(|wrong| *wrong == 0);
    let names: Vec<&str> =
        scores.iter().filter(flawless).map(|score| score.handler.name()).collect();
    let title = match names[..] {
        [only] => format!("Only the {only} ends with no wrong row, whatever arrives"),
        _ => format!("No wrong row, whatever arrives: {}", names.join(", ")),
    };
    let row = |score: &Score| {
        let cells = score.wrong.iter().enumerate();
        (
            score.handler.name().to_owned(),
            cells.map(|(at, wrong)| (at as f64, *wrong as f64)).collect(),
        )
    };
    Plot {
        file: "wrong.svg".to_owned(),
        kind: Kind::Grid,
        title,
        x: format!("wrong rows of {} sessions", crate::plot::thousands(sessions as f64)),
        y: String::new(),
        series: scores.iter().map(row).collect(),
        columns: History::ALL.map(|history| history.name().to_owned()).to_vec(),
    }
}
